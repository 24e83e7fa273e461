"""Buckets in the memory of one process: exact, bounded, gone with it, not shared with other workers.

It holds at most `max_buckets`. A new bucket first makes room by forgetting expired ones, oldest first. If
none has expired the spend is refused (not allowed, nothing remaining): forgetting a live bucket would hand
its owner the whole limit again, and whoever can invent descriptor values could do that at will. Buckets
that exist are served as before. `refused` counts how often it happened; the answer to it is a larger bound,
or limits with fewer distinct values.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush

from ratelimit.algorithm import Bucket, Outcome, fixed_window
from ratelimit.charge import ONCE_KIND, Once, Slot, Spend, Stored, charge
from ratelimit.store.base import CounterStore, Held

# About 75 MB when full of keys of 60 characters.
DEFAULT_MAX_BUCKETS = 200_000


class MemoryStore(CounterStore):
    """A `Store` that answers at once. Not for use by several threads."""

    def __init__(self, max_buckets: int = DEFAULT_MAX_BUCKETS) -> None:
        if max_buckets < 1:
            raise ValueError("a store holds at least one bucket")
        self.refused = 0
        self._max_buckets = max_buckets
        self._size = 0
        self._buckets: dict[str, dict[str, Stored]] = {}
        # When which bucket expires, next one first. A bucket that was renewed has several entries; only the
        # one that says what the bucket says counts.
        self._expiries: list[tuple[int, str, str]] = []

    def __len__(self) -> int:
        return self._size

    def spend(self, spends: Sequence[Spend], now: int) -> list[Outcome]:
        """Apply `spends` at `now`; return one outcome each, in order."""
        for spend in spends:
            if not spend.limit.is_plain or spend.once or spend.extra:
                return self._charge(spends, now)
        return [self._spend(spend, now) for spend in spends]

    async def look(self, spends: Sequence[Spend], now: int) -> Held:
        """Return the buckets of `spends`, also those that have expired. Changes nothing."""
        found = [self._load((spend.limit.kind, spend.key)) for spend in spends]
        return Held(now, [None if isinstance(one, Once) else one for one in found])

    async def reset(self, spends: Sequence[Spend], now: int) -> Held:
        """Remove the buckets of `spends`; return what they were."""
        held = await self.look(spends, now)
        for spend in spends:
            self._remove(spend.limit.kind, spend.key)
            for key in spend.once_keys:
                self._remove(ONCE_KIND, key)
        return held

    def forget(self, keys: Sequence[str]) -> None:
        """Nothing is known besides the buckets."""

    def drop(self, keys: Sequence[str]) -> None:
        """Remove the buckets called `keys`, of whichever kind."""
        for kind in self._buckets:
            for key in keys:
                self._remove(kind, key)

    def _remove(self, kind: str, key: str) -> None:
        # Its entry among the expiries then speaks of nothing.
        if self._buckets.get(kind, {}).pop(key, None) is not None:
            self._size -= 1

    def _spend(self, spend: Spend, now: int) -> Outcome:
        """Apply one spend that depends on no other."""
        key, limit, cost, *_ = spend
        kind = limit.kind
        buckets = self._buckets.get(kind)
        if buckets is None:
            buckets = self._buckets[kind] = {}
        old = buckets.get(key)
        outcome, new = fixed_window(limit, old if isinstance(old, Bucket) else None, now, cost)
        if old is None:
            if cost <= 0:
                return outcome  # looking leaves no trace, or it could fill the store for nothing
            if not self._make_room(1, now):
                return Outcome(allowed=False, remaining=0, reset=outcome.reset)
            self._size += 1
            buckets[key] = new
            heappush(self._expiries, (new.expires, kind, key))
        else:
            buckets[key] = new
            if new.expires != old.expires:
                heappush(self._expiries, (new.expires, kind, key))
                self._forget_expired(now)
        return outcome

    def _charge(self, spends: Sequence[Spend], now: int) -> list[Outcome]:
        """Apply spends all or nothing."""
        admitted: set[Slot] = set()

        def admit(slot: Slot) -> bool:
            if slot not in admitted and self._make_room(len(admitted) + 1, now):
                admitted.add(slot)
            return slot in admitted

        outcomes, written = charge(spends, self._load, admit, now)
        for (kind, key), new in written.items():
            buckets = self._buckets.setdefault(kind, {})
            old = buckets.get(key)
            if old is None:
                self._size += 1
            buckets[key] = new
            if old is None or new.expires != old.expires:
                heappush(self._expiries, (new.expires, kind, key))
                self._forget_expired(now)
        return outcomes

    def _load(self, slot: Slot) -> Stored | None:
        kind, key = slot
        buckets = self._buckets.get(kind)
        return buckets.get(key) if buckets is not None else None

    def _make_room(self, wanted: int, now: int) -> bool:
        """Return whether `wanted` new buckets have room."""
        self._forget_expired(now)
        while self._size + wanted > self._max_buckets:
            if not self._forget_one(now):
                self.refused += 1
                return False
        return True

    def _forget_expired(self, now: int) -> None:
        """Forget the oldest expired buckets, a few at a time: no call pays for the whole of a past window.

        Two for each that is new or renewed, so that the store shrinks while it is written to.
        """
        for _ in range(2):
            if not self._forget_one(now):
                return

    def _forget_one(self, now: int) -> bool:
        """Drop the entry that expires first and what it speaks of; return False if nothing has expired."""
        if not self._expiries or self._expiries[0][0] > now:
            return False
        expires, kind, key = heappop(self._expiries)
        bucket = self._buckets[kind].get(key)
        if bucket is not None and bucket.expires == expires:
            del self._buckets[kind][key]
            self._size -= 1
        return True
