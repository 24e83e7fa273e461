"""What the limiter asks of a store."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import NamedTuple, Protocol

from ratelimit.algorithm import Limit, Outcome


class Spend(NamedTuple):
    """Take `cost` (0 only looks) from the bucket `key`, which `limit` governs."""

    key: str
    limit: Limit
    cost: int


class Store(Protocol):
    """Counts spends.

    All spends of one call come together, so that a shared store needs one round trip. Two spends of one batch
    that name the same bucket count one after the other.
    """

    def spend(self, spends: Sequence[Spend], now: int) -> list[Outcome] | Awaitable[list[Outcome]]:
        """Apply `spends` at `now` (nanoseconds since the epoch); return one outcome each, in order.

        A local store answers at once, a remote one with an awaitable.

        Raises:
            DependencyError: the store cannot tell. It never guesses an outcome.

        """
