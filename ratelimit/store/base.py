"""What the limiter asks of a store."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import NamedTuple, Protocol

from ratelimit.algorithm import AnyBucket, Outcome
from ratelimit.charge import Spend

__all__ = ["FORGET_SECONDS", "CounterStore", "Held", "Spend", "Store"]

# For how long nothing is remembered about a bucket that is being reset: what was answered before may still be
# on its way. Longer than it takes to tell all workers and then the store.
FORGET_SECONDS = 10.0


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


class Held(NamedTuple):
    """Buckets as a store holds them, None where there is none, and its time (nanoseconds since the epoch)."""

    now: int
    buckets: Sequence[AnyBucket | None]


class CounterStore(Store, Protocol):
    """A store whose buckets an operator may look at and remove.

    `spends` say which buckets: those of one descriptor. What they cost plays no part.
    """

    async def look(self, spends: Sequence[Spend], now: int) -> Held:
        """Return the buckets of `spends`, in order. Changes nothing.

        Raises:
            DependencyError: the store does not answer.

        """

    async def reset(self, spends: Sequence[Spend], now: int) -> Held:
        """Remove the buckets of `spends`, and the records of their identifiers; return what they were.

        Who knows something of these buckets has to `forget` it first.

        Raises:
            DependencyError: the store does not answer. It may have removed them all the same.

        """

    def forget(self, keys: Sequence[str]) -> None:
        """Forget what this process knows of buckets besides the store, and learn nothing new for a while."""
