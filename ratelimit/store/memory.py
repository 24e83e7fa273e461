"""Buckets in the memory of one process: exact, bounded, gone with it, not shared with other workers.

It holds at most `max_buckets`. A new bucket first makes room by forgetting expired ones, oldest first. If
none has expired the spend is refused (not allowed, nothing remaining): forgetting a live bucket would hand
its owner the whole limit again, and whoever can invent descriptor values could do that at will. Buckets
that exist are served as before. `refused` counts how often it happened; the answer to it is a larger bound,
or limits with fewer distinct values.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from ratelimit.algorithm import Bucket, Outcome, fixed_window
from ratelimit.store.base import Spend

# About 62 MB when full of keys of 60 characters.
DEFAULT_MAX_BUCKETS = 200_000


class MemoryStore:
    """A `Store` that answers at once. Not for use by several threads."""

    def __init__(self, max_buckets: int = DEFAULT_MAX_BUCKETS) -> None:
        if max_buckets < 1:
            raise ValueError("a store holds at least one bucket")
        self.refused = 0
        self._max_buckets = max_buckets
        self._size = 0
        # By window length. Within one length the order of last renewal is the order of expiry, so the
        # front is always the next to go.
        self._buckets: dict[int, OrderedDict[str, Bucket]] = {}

    def __len__(self) -> int:
        return self._size

    def spend(self, spends: Sequence[Spend], now: int) -> list[Outcome]:
        """Apply `spends` at `now`; return one outcome each, in order."""
        return [self._spend(spend, now) for spend in spends]

    def _spend(self, spend: Spend, now: int) -> Outcome:
        key, limit, cost = spend
        buckets = self._buckets.get(limit.unit.window)
        if buckets is None:
            buckets = self._buckets[limit.unit.window] = OrderedDict()
        old = buckets.get(key)
        outcome, new = fixed_window(limit, old, now, cost)
        if not cost:
            return outcome  # looking leaves no trace, or it could fill the store for nothing
        if old is None:
            self._forget_expired(now)
            if self._size >= self._max_buckets:
                self.refused += 1
                return Outcome(allowed=False, remaining=0, reset=outcome.reset)
            self._size += 1
            buckets[key] = new
        else:
            buckets[key] = new
            if new.expires != old.expires:
                buckets.move_to_end(key)
        return outcome

    def _forget_expired(self, now: int) -> None:
        """Forget the oldest expired buckets, a few at a time: no call pays for the whole of a past window.

        Two per new bucket, so that the store shrinks while it is written to.
        """
        for _ in range(2):
            oldest: OrderedDict[str, Bucket] | None = None
            oldest_expires = now + 1
            for buckets in self._buckets.values():
                if buckets and (expires := next(iter(buckets.values())).expires) < oldest_expires:
                    oldest, oldest_expires = buckets, expires
            if oldest is None:
                return
            oldest.popitem(last=False)
            self._size -= 1
