"""When an agent renews, and when it asks again after a failure: pure arithmetic on moments and chance.

Renewal at half the life, give or take a tenth, and exponential backoff with full jitter: nodes that lost
their server at the same moment must not come back at the same moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from ca.renewal import half_life
from garrison.pauses import doubled

# Full jitter alone may be nothing at all.
MIN_PAUSE = timedelta(seconds=0.2)
FIRST_PAUSE = timedelta(seconds=1)


def renewal_time(now: datetime, not_after: datetime, chance: float) -> datetime:
    """Return when what was got at `now` is to be renewed; `chance` is in [0, 1).

    Never after its end, and if it has not ended by then not within `ca.renewal.MIN_INTERVAL`.
    """
    return min(half_life(now, not_after, chance), max(now, not_after))


def pause_after(failures: int, longest: timedelta, chance: float) -> timedelta:
    """Return how long to wait after so many failures in a row: at least `MIN_PAUSE`, at most `longest`."""
    return max(MIN_PAUSE, doubled(FIRST_PAUSE, failures - 1, longest) * chance)


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
