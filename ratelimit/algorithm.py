"""How much of a limit is left: pure integer arithmetic over one bucket.

An algorithm is `(limit, bucket or None, now, cost) -> (outcome, bucket)`. Times are integer nanoseconds
since the Unix epoch; nothing here reads a clock.

Rules of the fixed window, which are those of envoyproxy/ratelimit:
- windows are aligned to the epoch (UTC; so a week starts on Thursday, a month has 30 days, a year 365);
- a denied cost is counted too, so a raised limit helps only once the count is below it or the window ends;
- a cost of 0 only looks: it is allowed while at least one more would be. Upstream still allows it at an
  exactly exhausted bucket, which lets "look first, charge later" callers through once too often.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

SECOND = 1_000_000_000  # nanoseconds

# What a signed 64-bit counter, such as one in Redis, can hold. A count stops here instead of wrapping.
MAX_COUNT = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Unit:
    """A window length by name; `wire` is its number in `RateLimitResponse.RateLimit.Unit`."""

    name: str
    wire: int
    window: int


UNITS: Mapping[str, Unit] = {
    unit.name: unit
    for unit in (
        Unit("second", 1, SECOND),
        Unit("minute", 2, 60 * SECOND),
        Unit("hour", 3, 3600 * SECOND),
        Unit("day", 4, 86400 * SECOND),
        Unit("week", 7, 7 * 86400 * SECOND),
        Unit("month", 5, 30 * 86400 * SECOND),
        Unit("year", 6, 365 * 86400 * SECOND),
    )
}


@dataclass(frozen=True, slots=True)
class Limit:
    """A configured rule: at most `requests_per_unit` per window of `unit`.

    `name` is safe to put into a header. A limit in `shadow_mode` counts but never denies. `source` is where
    the rule stands (`file:line:column`), or what brought it.
    """

    requests_per_unit: int
    unit: Unit
    name: str = ""
    shadow_mode: bool = False
    source: str = ""


# Bucket and Outcome are made once per descriptor of every call; a NamedTuple costs half a frozen dataclass.
class Bucket(NamedTuple):
    """What was spent, denied costs included, until `expires`. From then on it may be forgotten."""

    expires: int
    spent: int


class Outcome(NamedTuple):
    """The answer and why: whether the cost fits, how much is left, nanoseconds until the window ends."""

    allowed: bool
    remaining: int
    reset: int


def fixed_window(limit: Limit, bucket: Bucket | None, now: int, cost: int) -> tuple[Outcome, Bucket]:
    """Return the outcome of spending `cost` (0 or more) at `now`, and the bucket as it is afterwards.

    A clock that steps back by less than a window goes on counting in the later window, so that a step
    across an edge grants nothing twice. After a longer step the window is that of the clock again.
    """
    window = limit.unit.window
    end = now - now % window + window
    spent = cost
    if bucket is not None and (bucket.expires == end or bucket.expires == end + window):
        end = bucket.expires
        spent += bucket.spent
    spent = min(spent, MAX_COUNT)
    remaining = limit.requests_per_unit - spent
    allowed = remaining >= 0 if cost else remaining > 0
    return Outcome(allowed, max(remaining, 0), end - now), Bucket(end, spent)
