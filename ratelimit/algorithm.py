"""How much of a limit is left: pure integer arithmetic over one bucket.

An algorithm is `(limit, bucket or None, now, cost) -> (outcome, bucket)`. Times are integer nanoseconds
since the Unix epoch; nothing here reads a clock. `store/script.lua` does the same inside a shared store, and
property tests hold the two to each other.

Rules of all algorithms:
- a cost above 0 is allowed if all of it fits; a denied one is taken as far as it goes if the limit
  `counts_denied`, else it takes nothing;
- a cost of 0 only looks: it is allowed while at least one more would be. envoyproxy/ratelimit still allows it
  at an exactly exhausted bucket, which lets "look first, charge later" callers through once too often;
- a cost below 0 gives back, newest first, never more than was taken, and is always allowed.

Rules of the fixed window, which are those of envoyproxy/ratelimit:
- windows are aligned to the epoch (UTC; so a week starts on Thursday, a month has 30 days, a year 365), or,
  with a calendar, to it;
- denied costs are counted in full, so a raised limit helps only once the count is below it or the window
  ends.

The other algorithms count time in ticks (see `Limit.tick`), so that every product stays exact in the doubles
that a store's Lua has for numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol

SECOND = 1_000_000_000  # nanoseconds
MICROSECOND = 1000

# The largest integer that a double holds exactly with all below it. A count stops here instead of wrapping.
MAX_COUNT = 2**53 - 1
# A capacity times a window in ticks stays below this, so that twice as much is still exact in a double.
_MAX_PRODUCT = 2**52
# A reset that is further away than a hundred years is not told more exactly.
_MAX_RESET = 100 * 365 * 86400 * SECOND
# Leases of one sixteenth of their duration are counted together.
LEASE_SLOTS = 16


class Calendar(Protocol):
    """Windows of unequal length, such as the months of a time zone."""

    def start(self, now: int) -> int:
        """Return when the window that `now` is in began."""

    def ends(self, now: int) -> tuple[int, int]:
        """Return when the window that `now` is in ends, and when the one after it does."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A window length: `multiplier` times the unit that `wire` is in `RateLimitResponse.RateLimit.Unit`.

    `name` tells windows apart in bucket keys. With a `calendar`, `window` is the longest that it has.
    """

    name: str
    wire: int
    window: int
    multiplier: int = 1
    calendar: Calendar | None = field(default=None, compare=False)


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


class Algorithm(StrEnum):
    """How a limit counts."""

    FIXED_WINDOW = "fixed_window"
    SLIDING_WINDOW = "sliding_window"
    TOKEN_BUCKET = "token_bucket"  # noqa: S105 - no password
    CONCURRENCY = "concurrency"
    ROLLING_WINDOW = "rolling_window"


# How `store/script.lua` knows an algorithm; flags are added.
_NUMBERS = {algorithm: number for number, algorithm in enumerate(Algorithm, 1)}
_SHADOW, _QUOTA, _COUNTS, _BEST_EFFORT = 8, 16, 32, 64


class OnStoreFailure(StrEnum):
    """What a limit answers while the shared store does not."""

    ALLOW = "allow"
    DENY = "deny"
    LOCAL = "local"


@dataclass(frozen=True, slots=True)
class Limit:
    """A configured rule: at most `requests_per_unit` per window of `unit`.

    `name` is safe to put into a header. A limit in `shadow_mode` counts but never denies; one in `quota_mode`
    denies only together with all others of the request. `source` is where the rule stands
    (`file:line:column`), or what brought it. `burst` is what a token bucket holds. `metric` is what its
    metrics are called. `best_effort` gives what is left where not all of a cost fits. `lease` is how much a
    process takes from a shared store at a time. A rolling window moves in `slots` steps.
    """

    requests_per_unit: int
    unit: Unit
    name: str = ""
    shadow_mode: bool = False
    source: str = ""
    algorithm: Algorithm = Algorithm.FIXED_WINDOW
    burst: int = 0
    quota_mode: bool = False
    counts_denied: bool = True
    best_effort: bool = False
    on_store_failure: OnStoreFailure = OnStoreFailure.DENY
    lease: int = 0
    metric: str = field(default="", compare=False)
    slots: int = LEASE_SLOTS
    # Worked out from the above.
    capacity: int = field(init=False, compare=False, repr=False)
    tick: int = field(init=False, compare=False, repr=False)
    ticks: int = field(init=False, compare=False, repr=False)
    kind: str = field(init=False, compare=False, repr=False)
    is_plain: bool = field(init=False, compare=False, repr=False)
    numbers: tuple[int, int, int, int, int] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        bucket = self.algorithm is Algorithm.TOKEN_BUCKET
        capacity = (self.burst or self.requests_per_unit) if bucket else self.requests_per_unit
        fixed = self.algorithm is Algorithm.FIXED_WINDOW
        tick = MICROSECOND
        most = max(capacity, self.requests_per_unit)
        rolling = self.algorithm is Algorithm.ROLLING_WINDOW
        while not fixed and not rolling and most * _ticks(self.unit.window, tick) > _MAX_PRODUCT:
            tick *= 10
        put = object.__setattr__
        put(self, "capacity", capacity)
        # Nanoseconds that count as one moment: a microsecond, more only for very many in a very long window.
        put(self, "tick", tick)
        put(self, "ticks", _ticks(self.unit.window, tick))
        # Limits of one kind understand each other's buckets.
        scale = f"/{tick // MICROSECOND}" if tick != MICROSECOND else ""
        scale += f"/{self.slots}" if rolling else ""
        put(self, "kind", self.unit.name if fixed else f"{self.algorithm}{scale}:{self.unit.name}")
        # Whether what it is charged depends on nothing but its own bucket.
        put(self, "is_plain", fixed and self.counts_denied and not self.best_effort)
        code = _NUMBERS[self.algorithm] + _SHADOW * self.shadow_mode + _QUOTA * self.quota_mode
        code += _COUNTS * self.counts_denied + _BEST_EFFORT * self.best_effort
        # The limit as a store's script reads it.
        size = self.slots if rolling else capacity
        put(self, "numbers", (code, self.requests_per_unit, size, self.ticks, tick // MICROSECOND))


# Buckets and outcomes are made for each descriptor of every call; a NamedTuple costs half a frozen dataclass.
class Bucket(NamedTuple):
    """What was spent, denied costs included, until `expires`. From then on it may be forgotten."""

    expires: int
    spent: int


class SlidingBucket(NamedTuple):
    """What was spent in the window that ends at tick `end`, and in the one before."""

    expires: int
    end: int
    current: int
    previous: int


class TokenBucket(NamedTuple):
    """What is missing from a full bucket at tick `at`: tokens, each as many parts as its window has ticks."""

    expires: int
    at: int
    debt: int


class LeaseBucket(NamedTuple):
    """Who holds places: (slot, how many), oldest first; a slot is a sixteenth of the longest stay."""

    expires: int
    leases: tuple[tuple[int, int], ...]


AnyBucket = Bucket | SlidingBucket | TokenBucket | LeaseBucket


class Outcome(NamedTuple):
    """The answer and why: whether the cost fits, how much is left, nanoseconds until the reset.

    The reset of what is allowed is when nothing will be in use any more; of what is denied, when the same
    cost would fit, as far as can be known. A fixed window has one moment for both: its end. `granted` is how
    much of the cost was taken where a part was enough (`best_effort`). Without `is_known` nobody looked at
    the bucket.
    """

    allowed: bool
    remaining: int
    reset: int
    granted: int | None = None
    is_known: bool = True


def fixed_window(limit: Limit, bucket: AnyBucket | None, now: int, cost: int) -> tuple[Outcome, Bucket]:
    """Return the outcome of spending `cost` at `now`, and the bucket as it is afterwards.

    A clock that steps back by less than a window goes on counting in the later window, so that a step
    across an edge grants nothing twice. After a longer step the window is that of the clock again.
    """
    unit = limit.unit
    if unit.calendar is None:
        end = now - now % unit.window + unit.window
        next_end = end + unit.window
    else:
        end, next_end = unit.calendar.ends(now)
    spent = 0
    if isinstance(bucket, Bucket) and bucket.expires in (end, next_end):
        end, spent = bucket
    after = spent + cost
    if after > MAX_COUNT:
        after = MAX_COUNT
    elif after < 0:
        after = 0
    remaining = limit.requests_per_unit - after
    allowed = remaining >= 0 if cost > 0 else remaining > 0 or cost < 0
    if not allowed and not limit.counts_denied:
        after, remaining = spent, limit.requests_per_unit - spent
    return Outcome(allowed, max(remaining, 0), end - now), Bucket(end, after)


def sliding_window(
    limit: Limit, bucket: AnyBucket | None, now: int, cost: int
) -> tuple[Outcome, SlidingBucket]:
    """Count the last window from two aligned ones: all of the current one, a share of the one before.

    The share is what would be left of the previous window's count if it had come evenly, rounded up. Denied
    costs are counted up to the limit. A clock that steps back by less than a window stands still.
    """
    tick, window, most = limit.tick, limit.ticks, limit.requests_per_unit
    at = now // tick
    end = at - at % window + window
    current = previous = 0
    if isinstance(bucket, SlidingBucket):
        if bucket.end == end or bucket.end == end + window:
            _, end, current, previous = bucket
            at = max(at, end - window)
        elif bucket.end == end - window:
            previous = bucket.current
    previous = min(previous, most)
    left = most - current - _share(previous, end - at, window)
    wanted = cost or 1
    allowed = wanted < 0 or left >= wanted
    if allowed or limit.counts_denied:
        if cost > 0:
            current = current + cost if allowed else max(current, min(current + cost, most))
        elif cost < 0:
            back = min(current, -cost)
            current -= back
            previous = max(previous + cost + back, 0)
    if allowed:
        wait = (end + window - at) if current else (end - at) if previous else 0
    else:
        wait = _sliding_wait(limit, wanted, current, previous, end - at)
    left = most - current - _share(previous, end - at, window)
    reset = max(wait * tick, 1)
    return Outcome(allowed, max(left, 0), reset), SlidingBucket((end + window) * tick, end, current, previous)


def _sliding_wait(limit: Limit, wanted: int, current: int, previous: int, to_end: int) -> int:
    """Return how many ticks until `wanted` more fit, if nobody else spends; until all is gone if never."""
    most, window = limit.requests_per_unit, limit.ticks
    room = most - wanted - current
    if room >= 0:
        # `previous` is not 0: else there would be room now.
        return max(to_end - room * window // max(previous, 1), 1)
    if wanted > most:
        return to_end + window
    return to_end + window - min((most - wanted) * window // min(current, most), window)


def _share(previous: int, to_end: int, window: int) -> int:
    return -(-previous * to_end // window)


def token_bucket(limit: Limit, bucket: AnyBucket | None, now: int, cost: int) -> tuple[Outcome, TokenBucket]:
    """Take `cost` tokens from a bucket that holds `burst` and gains `requests_per_unit` in each window.

    It is the generic cell rate algorithm, with what is missing as its state. A token is as many parts as the
    window has ticks, and each tick brings `requests_per_unit` parts: nothing is ever rounded. Denied costs
    that count empty the bucket. A clock that steps back stands still, for at most as long as filling takes.
    """
    rate, capacity, tick, window = limit.requests_per_unit, limit.capacity, limit.tick, limit.ticks
    full = capacity * window
    at = now // tick
    debt = 0
    if isinstance(bucket, TokenBucket) and rate:
        debt = min(bucket.debt, full)
        elapsed = at - bucket.at
        if elapsed < 0:
            if -elapsed <= -(-full // rate):
                at = bucket.at
        elif elapsed >= -(-debt // rate):
            debt = 0
        else:
            debt -= elapsed * rate
    wanted = cost or 1
    # In this order: a cost that is too large for any bucket is never multiplied.
    allowed = wanted < 0 or (rate > 0 and wanted <= capacity and wanted * window <= full - debt)
    wait = 0
    if not allowed and rate:
        short = debt + wanted * window - full if wanted <= capacity else debt
        wait = -(-short // rate)
    if allowed or limit.counts_denied:
        if cost > 0:
            debt = debt + cost * window if allowed else full
        elif cost < 0:
            debt = max(debt - min(-cost, capacity) * window, 0)
    if allowed:
        wait = -(-debt // rate) if rate else 0
    if not rate:
        return Outcome(allowed, 0, limit.unit.window), TokenBucket(now, at, 0)
    left = (full - debt) // window
    # How long filling takes at most, in whole steps of that, so that it changes seldom.
    life = -(-full // rate)
    expires = (at // life + 2) * life * tick
    return Outcome(allowed, left, min(max(wait * tick, 1), _MAX_RESET)), TokenBucket(expires, at, debt)


def concurrency(limit: Limit, bucket: AnyBucket | None, now: int, cost: int) -> tuple[Outcome, LeaseBucket]:
    """Take `cost` places until they are given back (a cost below 0), at the longest for one window.

    A place is a lease: whoever is lost while holding it, with what should have given it back, blocks it for
    one window and at most a sixteenth more. What is given back is the newest lease, so that a lost one stays
    the oldest and runs out. A clock that steps back makes leases last longer, for at most a window.
    """
    return _lease(limit, bucket, now, cost, (LEASE_SLOTS, LEASE_SLOTS + 1))


def rolling_window(
    limit: Limit, bucket: AnyBucket | None, now: int, cost: int
) -> tuple[Outcome, LeaseBucket]:
    """Take `cost` of what the last window has left; it comes back one window later, less at most one step.

    The window moves in `slots` steps, as that of Mixer's memquota does. Denied costs are not counted.
    """
    return _lease(limit, bucket, now, cost, (limit.slots, limit.slots))


def _lease(
    limit: Limit, bucket: AnyBucket | None, now: int, cost: int, steps: tuple[int, int]
) -> tuple[Outcome, LeaseBucket]:
    """Take `cost`; `steps` are how many slots a window has, and for how many a lease counts."""
    slots, life = steps
    tick, most = limit.tick, limit.requests_per_unit
    step = -(-limit.ticks // slots)
    at = now // tick
    slot = at // step
    leases: list[tuple[int, int]] = []
    if isinstance(bucket, LeaseBucket):
        leases = [one for one in bucket.leases if slot - life < one[0] <= slot + slots]
    held = sum(count for _, count in leases)
    wanted = cost or 1
    allowed = wanted < 0 or held + wanted <= most
    if allowed and cost > 0:
        newest = max(slot, leases[-1][0]) if leases else slot
        before = leases.pop()[1] if leases and leases[-1][0] == newest else 0
        leases.append((newest, before + cost))
        held += cost
    elif cost < 0:
        back = min(-cost, held)
        held -= back
        while back:
            newest, count = leases.pop()
            if count > back:
                leases.append((newest, count - back))
            back -= min(back, count)
    wait = _lease_wait(leases, held if allowed else held + wanted - most, life) * step - at
    last = (leases[-1][0] if leases else slot) + life
    reset = max(wait * tick, 1) if held else 1 if allowed else limit.unit.window
    return Outcome(allowed, max(most - held, 0), reset), LeaseBucket(last * step * tick, tuple(leases))


def _lease_wait(leases: list[tuple[int, int]], places: int, life: int) -> int:
    """Return the slot at whose start `places` of the leases, or all of them, will have run out."""
    found = 0
    for slot, count in leases:
        found = slot + life
        places -= count
        if places <= 0:
            break
    return found


def _ticks(nanoseconds: int, tick: int) -> int:
    return -(-nanoseconds // tick)


Step = Callable[[Limit, "AnyBucket | None", int, int], "tuple[Outcome, AnyBucket]"]

STEPS: Mapping[Algorithm, Step] = {
    Algorithm.FIXED_WINDOW: fixed_window,
    Algorithm.SLIDING_WINDOW: sliding_window,
    Algorithm.TOKEN_BUCKET: token_bucket,
    Algorithm.CONCURRENCY: concurrency,
    Algorithm.ROLLING_WINDOW: rolling_window,
}
