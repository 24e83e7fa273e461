"""When an agent renews, and when it asks again after a failure: pure arithmetic on moments and chance.

Renewal at half the life, give or take a tenth, and exponential backoff with full jitter: nodes that lost
their server at the same moment must not come back at the same moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

RENEW_AT = 0.5
JITTER = 0.1
# However little life is left, nothing is renewed more often than this.
MIN_INTERVAL = timedelta(seconds=5)
# Full jitter alone may be nothing at all.
MIN_PAUSE = timedelta(seconds=0.2)
FIRST_PAUSE = timedelta(seconds=1)
# 2 ** 32 seconds are more than anybody waits; a greater exponent only costs time.
_MAX_DOUBLINGS = 32


def renewal_time(now: datetime, not_after: datetime, chance: float) -> datetime:
    """Return when what was got at `now` is to be renewed; `chance` is in [0, 1).

    Never after its end, and if it has not ended by then not within `MIN_INTERVAL`. From `now`, not from its
    start: a start that was set back must not make it due too early.
    """
    left = max(not_after - now, timedelta(0))
    share = RENEW_AT * (1 + JITTER * (2 * chance - 1))
    return min(now + max(MIN_INTERVAL, left * share), max(now, not_after))


def pause_after(failures: int, longest: timedelta, chance: float) -> timedelta:
    """Return how long to wait after so many failures in a row: at least `MIN_PAUSE`, at most `longest`."""
    most = min(longest, FIRST_PAUSE * (1 << min(max(failures - 1, 0), _MAX_DOUBLINGS)))
    return max(MIN_PAUSE, most * chance)


@dataclass(frozen=True, slots=True)
class Attempts:
    """How often something has failed since it last worked, and when it may be tried again."""

    failures: int = 0
    not_before: datetime | None = None

    def may_try(self, now: datetime) -> bool:
        """Tell whether it may be tried at `now`."""
        return self.not_before is None or now >= self.not_before

    def failed(self, now: datetime, longest: timedelta, chance: float) -> Attempts:
        """Return the same after one more failure."""
        failures = self.failures + 1
        return Attempts(failures, now + pause_after(failures, longest, chance))
