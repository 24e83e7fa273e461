"""When an SVID is to be renewed: pure arithmetic on its life, a moment and chance.

`ca renew` does as step does, and later than servers and agents do with what they hold in memory.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from garrison.pauses import at_least_half, give_or_take

# What is held in memory is renewed when half of its life is over, so that half of it is left for failures.
_HALF = 0.5
_SPREAD = 0.1
# However little life is left, nothing is renewed more often than this.
MIN_INTERVAL = timedelta(seconds=5)
# step renews at two thirds of the life, less up to a twentieth: machines that started together do not come
# back together.
RENEW_AT = 2 / 3
JITTER = 1 / 20
# After a failure it is tried again after this share of what is left, but not more often than this.
_RETRY_SHARE = 1 / 10
MIN_RETRY = timedelta(seconds=5)
MAX_RETRY = timedelta(minutes=5)


def half_life(now: datetime, not_after: datetime, chance: float) -> datetime:
    """Return when what was got at `now`, and is held in memory, is to be renewed; `chance` is in [0, 1).

    From `now`, not from its start: a start that was set back must not make it due too early.
    """
    left = max(not_after - now, timedelta(0))
    return now + max(MIN_INTERVAL, give_or_take(left * _HALF, _SPREAD, chance))


def renewal_time(now: datetime, not_after: datetime, expires_in: timedelta | None, chance: float) -> datetime:
    """Return when an SVID that was got at `now` is to be renewed; `chance` is in [0, 1).

    `expires_in` says how long before its end, else two thirds of what is left from now on count: a start that
    was set back to before `now` does not make it due at once.
    """
    life = max(not_after - now, timedelta(0))
    due = not_after - min(expires_in, life) if expires_in is not None else now + life * RENEW_AT
    return max(now, due - life * JITTER * chance)


def is_due(now: datetime, starts: datetime, not_after: datetime, expires_in: timedelta | None) -> bool:
    """Tell whether an SVID with this validity should be renewed at `now`."""
    if expires_in is not None:
        return now >= not_after - expires_in
    return now >= starts + (not_after - starts) * RENEW_AT


def retry_time(now: datetime, not_after: datetime, chance: float) -> datetime:
    """Return when to try again after a failure: sooner as the end comes closer, never in a tight loop."""
    pause = min(max((not_after - now) * _RETRY_SHARE, MIN_RETRY), MAX_RETRY)
    return now + at_least_half(pause, chance)
