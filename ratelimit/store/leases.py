"""What this process has taken from a shared store in advance, so that it need not ask for each call.

A lease ends with the window that it was taken in, counted from before the store was asked, so that no hit of
it is ever used in a later window: in each window of the store's clock at most the limit is allowed. What is
not used until then is lost to others: at most one hit less than the lease for each process, value and window.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ratelimit.algorithm import SECOND, Outcome
from ratelimit.charge import Spend
from ratelimit.store.base import FORGET_SECONDS

MAX_KEYS = 50_000


class _Lease(NamedTuple):
    left: int
    until: float
    # What the store had left besides, when it was asked.
    remaining: int
    numbers: tuple[int, ...]


class Leases:
    """Hits taken in advance, by bucket. Times are seconds of a monotonic clock."""

    def __init__(self, max_keys: int = MAX_KEYS) -> None:
        self._max_keys = max_keys
        self._leases: dict[str, _Lease] = {}
        self._asked: set[str] = set()
        # Until when no lease is taken of a key.
        self._forgotten: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._leases)

    def spend(self, spend: Spend, at: float) -> Outcome | None:
        """Return the outcome of taking a cost from a lease, or of looking at it; None if there is none."""
        lease = self._leases.get(spend.key)
        if lease is None:
            return None
        if lease.until <= at or lease.numbers != spend.limit.numbers:
            del self._leases[spend.key]
            return None
        if not 0 <= spend.cost <= lease.left or not lease.left:
            return None
        left = lease.left - spend.cost
        self._leases[spend.key] = lease._replace(left=left)
        reset = max(int((lease.until - at) * SECOND), 1)
        return Outcome(allowed=True, remaining=lease.remaining + left, reset=reset)

    def ask(self, spend: Spend, at: float) -> Spend:
        """Return what to ask the store for: a lease with the cost, unless one is there or being asked for."""
        lease = self._leases.get(spend.key)
        held = lease is not None and lease.until > at and lease.left > 0
        if held or spend.key in self._asked or not 0 < spend.cost < spend.limit.lease:
            return spend
        if self._forgotten and self._forgotten.get(spend.key, at) > at:
            return spend
        self._asked.add(spend.key)
        return spend._replace(extra=spend.limit.lease - spend.cost)

    def answered(self, spend: Spend, outcome: Outcome | None, asked_at: float) -> None:
        """Keep what the store granted besides the cost.

        `spend` is what `ask` returned, `asked_at` the time before the store was asked; without an outcome the
        store has failed, or nobody waited for it.
        """
        if not spend.extra:
            return
        self._asked.discard(spend.key)
        if outcome is None or outcome.granted is None or outcome.granted <= spend.cost:
            return
        if self._forgotten.get(spend.key, asked_at) > asked_at:
            return  # it was asked for before its bucket was reset
        self._leases.pop(spend.key, None)
        while len(self._leases) >= self._max_keys:
            self._leases.pop(next(iter(self._leases)))
        until = asked_at + outcome.reset / SECOND
        left = outcome.granted - spend.cost
        self._leases[spend.key] = _Lease(left, until, outcome.remaining, spend.limit.numbers)

    def forget(self, keys: Sequence[str], at: float) -> None:
        """Drop the leases of `keys`, and take none for a while: one that was asked for may still come."""
        self._forgotten = {key: until for key, until in self._forgotten.items() if until > at}
        for key in keys:
            self._leases.pop(key, None)
            self._forgotten[key] = at + FORGET_SECONDS


def own_outcome(spend: Spend, outcome: Outcome) -> Outcome:
    """Return the outcome of a call that took a lease as if it had not: what was taken besides is left."""
    if not spend.extra or outcome.granted is None:
        return outcome
    return outcome._replace(remaining=outcome.remaining + outcome.granted - spend.cost, granted=None)
