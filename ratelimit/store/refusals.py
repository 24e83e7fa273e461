"""Who is known to be over a limit until when, so that nobody has to ask the store about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ratelimit.algorithm import SECOND, Algorithm, Outcome
from ratelimit.charge import Spend
from ratelimit.store.base import FORGET_SECONDS

# The store is asked again after this long even if the reset is later: somebody may have given back hits, or
# an operator elsewhere may have reset the counter.
MAX_SECONDS = 1.0
MAX_KEYS = 50_000


# Of a limit that plays no part, because another one of its descriptor denies.
_NOT_ASKED = Outcome(allowed=True, remaining=0, reset=1, is_known=False)


class _Refusal(NamedTuple):
    until: float
    reset_at: float
    cost: int
    numbers: tuple[int, ...]


class Refusals:
    """Remembers what the store denied with nothing left, and denies the same or more for a moment.

    Times are seconds of a monotonic clock.
    """

    def __init__(self, max_keys: int = MAX_KEYS) -> None:
        self._max_keys = max_keys
        self._known: dict[str, _Refusal] = {}
        # Until when nothing is learnt about a key.
        self._forgotten: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._known)

    def answer(self, spends: Sequence[Spend], at: float) -> list[Outcome] | None:
        """Return the outcomes of a call that is known to be denied and to change nothing; else None.

        That is one all of whose limits are known to deny, or have a limit beside them on the same descriptor
        that is, and take nothing from a call that is denied.
        """
        outcomes: list[Outcome | None] = [self._deny(spend, at) for spend in spends]
        if None in outcomes:
            denying = {
                spend.descriptor
                for spend, outcome in zip(spends, outcomes, strict=True)
                if outcome is not None and not spend.limit.shadow_mode and not spend.limit.quota_mode
            }
            for index, spend in enumerate(spends):
                if outcomes[index] is None:
                    if spend.limit.counts_denied or spend.once or spend.descriptor not in denying:
                        return None
                    outcomes[index] = _NOT_ASKED
        return [outcome for outcome in outcomes if outcome is not None]

    def _deny(self, spend: Spend, at: float) -> Outcome | None:
        known = self._known.get(spend.key)
        if known is None:
            return None
        if known.until <= at:
            del self._known[spend.key]
            return None
        if spend.cost < 0 or spend.once or (spend.cost or 1) < known.cost:
            return None
        if known.numbers != spend.limit.numbers:
            return None
        reset = max(int((known.reset_at - at) * SECOND), 1)
        return Outcome(allowed=False, remaining=0, reset=reset)

    def learn(self, spends: Sequence[Spend], outcomes: Sequence[Outcome], at: float) -> None:
        """Remember who has nothing left, and forget who was given something back."""
        for spend, outcome in zip(spends, outcomes, strict=True):
            if outcome.allowed:
                if self._known and spend.cost < 0:
                    self._known.pop(spend.key, None)
                continue
            limit = spend.limit
            # Places are given back at any moment.
            if outcome.remaining or limit.algorithm is Algorithm.CONCURRENCY:
                continue
            if self._forgotten and self._forgotten.get(spend.key, at) > at:
                continue
            reset = outcome.reset / SECOND
            self._known.pop(spend.key, None)
            while len(self._known) >= self._max_keys:
                self._known.pop(next(iter(self._known)))
            self._known[spend.key] = _Refusal(
                at + min(reset, MAX_SECONDS), at + reset, spend.cost or 1, limit.numbers
            )

    def forget(self, keys: Sequence[str], at: float) -> None:
        """Forget `keys`, and learn nothing about them for a while: an answer from before may still come."""
        self._forgotten = {key: until for key, until in self._forgotten.items() if until > at}
        for key in keys:
            self._known.pop(key, None)
            self._forgotten[key] = at + FORGET_SECONDS
