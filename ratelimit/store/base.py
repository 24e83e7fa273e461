"""What the limiter asks of a store."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Protocol

from ratelimit.algorithm import Outcome
from ratelimit.charge import Spend

__all__ = ["Spend", "Store"]


class Store(Protocol):
    """Counts spends.

    All spends of one call come together, so that they are charged all or nothing (`ratelimit/charge.py`), and
    a shared store needs one round trip.
    """

    def spend(self, spends: Sequence[Spend], now: int) -> list[Outcome] | Awaitable[list[Outcome]]:
        """Apply `spends` at `now` (nanoseconds since the epoch); return one outcome each, in order.

        A local store answers at once, a remote one with an awaitable.

        Raises:
            DependencyError: the store cannot tell. It never guesses an outcome.

        """
