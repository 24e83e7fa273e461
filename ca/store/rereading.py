"""What is read whole whenever some of it changed: only what was not there the last time is parsed.

Parsing 100,000 registrations takes seconds, and making so many objects has the garbage collector look at all
that is alive, for which every thread stops.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

_Stored = TypeVar("_Stored", bound=Hashable)
_Value = TypeVar("_Value")


class Rereading(Generic[_Stored, _Value]):
    """Parses by `parse`, which depends on nothing but what is stored. Threads may use it."""

    def __init__(self, parse: Callable[[_Stored], _Value]) -> None:
        self._parse = parse
        self._last: dict[_Stored, _Value] = {}

    def values(self, stored: Iterable[_Stored]) -> tuple[_Value, ...]:
        """Return the value of each of `stored`, in order; no two are the same.

        Raises:
            Exception: what `parse` raises; what was read last is known as before.

        """
        last = self._last
        found = {one: last[one] if one in last else self._parse(one) for one in stored}
        self._last = found
        return tuple(found.values())
