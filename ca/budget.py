"""How often somebody may try: so many a second, and some at once. No clock: time is an argument."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

_SECOND = 1_000_000_000
MAX_KEYS = 10_000


class Budget:
    """The generic cell rate algorithm, for each key; the keys that were used longest ago are forgotten."""

    def __init__(self, per_second: int, at_once: int, *, max_keys: int = MAX_KEYS) -> None:
        self._interval = _SECOND // per_second
        self._tolerance = self._interval * at_once
        self._max_keys = max_keys
        # When each key's debt is over, in nanoseconds.
        self._free_at: OrderedDict[Hashable, int] = OrderedDict()

    def take(self, key: Hashable, now_ns: int, cost: int = 1) -> bool:
        """Tell whether `key` may now, and if so count it."""
        due = max(self._free_at.get(key, 0), now_ns) + cost * self._interval
        if due - now_ns > self._tolerance:
            return False
        self._free_at[key] = due
        self._free_at.move_to_end(key)
        if len(self._free_at) > self._max_keys:
            self._free_at.popitem(last=False)
        return True

    def give_back(self, key: Hashable) -> None:
        """Undo one `take`."""
        if key in self._free_at:
            self._free_at[key] -= self._interval
