"""All spends of one call on their buckets, all or nothing. Pure; `store/script.lua` does the same.

A call is denied when one of its descriptors is over a limit that is neither in shadow mode nor in quota mode,
or when it has descriptors in quota mode and all of them are over. Then limits that count denied costs are
charged all the same, as in envoyproxy/ratelimit, and the others are not, whether or not the cost would have
fitted. Two spends of one call on the same bucket count one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import NamedTuple

from ratelimit.algorithm import STEPS, AnyBucket, Limit, Outcome

# Identifiers come from callers, so what a store holds of them is of bounded length.
_MAX_ONCE_CHARACTERS = 512
# What spends are remembered under (`Once`) is of this kind.
ONCE_KIND = "once"


class Spend(NamedTuple):
    """Take `cost` (0 only looks, below 0 gives back) from the bucket `key`, which `limit` governs.

    Spends of one `descriptor` of a call stand next to each other. With `once`, an identifier, the cost is
    taken once in `once_for` nanoseconds, however often the call is repeated. All spends of a call are of one
    `domain`. If the cost fits, as much of `extra` is taken as fits besides.
    """

    key: str
    limit: Limit
    cost: int
    descriptor: int = 0
    once: str = ""
    once_for: int = 0
    domain: str = ""
    extra: int = 0

    @property
    def once_key(self) -> str:
        """Where it is remembered that this was taken; giving back is remembered apart from taking."""
        return self._record("back" if self.cost < 0 else "once")

    @property
    def once_keys(self) -> tuple[str, ...]:
        """Where it may be remembered that this was taken, or given back."""
        return (self._record("once"), self._record("back")) if self.once else ()

    def _record(self, what: str) -> str:
        key = f"{what}|{self.limit.kind}|{self.key}|{self.once}"
        return key if len(key) <= _MAX_ONCE_CHARACTERS else "once#" + sha256(key.encode()).hexdigest()


class Once(NamedTuple):
    """That a cost was taken, and how much of it."""

    expires: int
    granted: int


Slot = tuple[str, str]  # kind and key of a bucket
Stored = AnyBucket | Once
Load = Callable[[Slot], "Stored | None"]
Admit = Callable[[Slot], bool]


class _Space(NamedTuple):
    """The buckets as one call finds them, and as it leaves them."""

    load: Load
    admit: Admit
    written: dict[Slot, Stored]
    now: int

    def find(self, slot: Slot) -> Stored | None:
        """Return a bucket as the call has left it so far."""
        found = self.written.get(slot)
        return found if found is not None else self.load(slot)


def charge(
    spends: Sequence[Spend], load: Load, admit: Admit, now: int
) -> tuple[list[Outcome], dict[Slot, Stored]]:
    """Return an outcome for each spend, and the buckets to be written.

    `load` gives the bucket of a slot, expired ones or None included; `admit` says whether there is room for
    a slot that is new. What does not get a room is not allowed.
    """
    written: dict[Slot, Stored] = {}
    outcomes: list[Outcome] = []
    costs = _costs(spends, load, now)
    repeated: list[Once | None] = []
    space = _Space(load, admit, written, now)
    for spend, cost in zip(spends, costs, strict=True):
        once = _remembered(spend, space)
        repeated.append(once)
        outcomes.append(_step(spend, 0 if once else cost, space))
        if once:
            outcomes[-1] = outcomes[-1]._replace(allowed=True)
        elif spend.once and cost and outcomes[-1].allowed:
            slot = (ONCE_KIND, spend.once_key)
            # Without room for a record the call may be charged again, which is the lesser evil.
            if load(slot) is not None or admit(slot):
                written[slot] = Once(now + spend.once_for, cost)
    if is_denied(spends, outcomes):
        written.clear()
        for index, (spend, cost) in enumerate(zip(spends, costs, strict=True)):
            first = outcomes[index]
            again = cost if spend.limit.counts_denied and not repeated[index] else 0
            left = _step(spend, again, space)
            outcomes[index] = left._replace(allowed=first.allowed) if first.allowed else first
            if not first.allowed:
                outcomes[index] = first._replace(remaining=left.remaining)
    for index, (spend, cost) in enumerate(zip(spends, costs, strict=True)):
        if (spend.limit.best_effort or spend.extra) and cost > 0 and outcomes[index].allowed:
            once = repeated[index]
            outcomes[index] = outcomes[index]._replace(granted=once.granted if once else cost)
    return outcomes, written


def is_denied(spends: Sequence[Spend], outcomes: Sequence[Outcome]) -> bool:
    """Return whether a call with these outcomes is denied."""
    quota: dict[int, bool] = {}
    for spend, outcome in zip(spends, outcomes, strict=True):
        limit = spend.limit
        over = not outcome.allowed and not limit.shadow_mode
        if limit.quota_mode:
            quota[spend.descriptor] = over or quota.get(spend.descriptor, False)
        elif over:
            return True
    return bool(quota) and all(quota.values())


def _costs(spends: Sequence[Spend], load: Load, now: int) -> list[int]:
    """Return what each spend is to take: less than asked for where a part is enough, or more."""
    # By descriptor, what the limit with least remaining could give.
    parts: dict[int, int] = {}
    for spend in spends:
        if spend.limit.best_effort and spend.cost > 1:
            part = parts.get(spend.descriptor, spend.cost)
            parts[spend.descriptor] = max(min(part, _look(spend, load, now).remaining), 1)
    costs = [parts.get(spend.descriptor, spend.cost) if spend.cost > 1 else spend.cost for spend in spends]
    for index, spend in enumerate(spends):
        if spend.extra and spend.cost > 0:
            costs[index] = max(costs[index], min(spend.cost + spend.extra, _look(spend, load, now).remaining))
    return costs


def _look(spend: Spend, load: Load, now: int) -> Outcome:
    bucket = load((spend.limit.kind, spend.key))
    outcome, _ = STEPS[spend.limit.algorithm](spend.limit, _bucket(bucket), now, 0)
    return outcome


def _remembered(spend: Spend, space: _Space) -> Once | None:
    if not spend.once or not spend.cost:
        return None
    once = space.find((ONCE_KIND, spend.once_key))
    return once if isinstance(once, Once) and once.expires > space.now else None


def _step(spend: Spend, cost: int, space: _Space) -> Outcome:
    limit = spend.limit
    slot = (limit.kind, spend.key)
    bucket = space.find(slot)
    outcome, after = STEPS[limit.algorithm](limit, _bucket(bucket), space.now, cost)
    if bucket is None:
        # Looking leaves no trace, or it could fill the store for nothing; nor does giving back what is not
        # there, or a denied cost that is not counted.
        if cost <= 0 or not (outcome.allowed or limit.counts_denied):
            return outcome
        if not space.admit(slot):
            return Outcome(allowed=False, remaining=0, reset=outcome.reset)
    space.written[slot] = after
    return outcome


def _bucket(stored: Stored | None) -> AnyBucket | None:
    return None if isinstance(stored, Once) else stored
