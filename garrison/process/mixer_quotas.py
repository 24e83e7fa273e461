"""Mixer's quotas, counted in the store of rate limits: one list of spends for each call, all or nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from authz.mixer.quotas import QuotaAnswer, QuotaCharge, QuotaLimit
from ratelimit.algorithm import Algorithm, Limit, OnStoreFailure, Outcome
from ratelimit.charge import Spend
from ratelimit.compile import window_unit
from ratelimit.descriptors import domain_text, entries_text, finish_key
from ratelimit.later import Later
from ratelimit.store.base import Store

# All quotas are in one domain, and so in one slot of a Cluster: a call may be charged for any of them.
DOMAIN = "config.istio.io"
_TEXT = domain_text(DOMAIN)
_MAX_LIMITS = 10_000


class StoreQuotas:
    """The `authz.mixer.quotas.Quotas` of a process; `clock` gives nanoseconds since the epoch."""

    def __init__(self, store: Store, clock: Callable[[], int], on_store_failure: OnStoreFailure) -> None:
        self._store = store
        self._clock = clock
        self._on_store_failure = on_store_failure
        self._limits: dict[QuotaLimit, Limit] = {}

    def spend(self, charges: Sequence[QuotaCharge]) -> list[QuotaAnswer] | Awaitable[list[QuotaAnswer]]:
        """Take all `charges`, or none; at once if the store answers at once.

        Raises:
            DependencyError: at once or when awaited: the store cannot tell.

        """
        spends = [self._spend(charge, index) for index, charge in enumerate(charges)]
        outcomes = self._store.spend(spends, self._clock())
        return _answers(outcomes) if isinstance(outcomes, list) else Later(_later, outcomes)

    def _spend(self, charge: QuotaCharge, index: int) -> Spend:
        limit = self._limits.get(charge.limit)
        if limit is None:
            if len(self._limits) >= _MAX_LIMITS:
                self._limits.clear()
            limit = self._limits[charge.limit] = self._limit(charge.limit)
        key = finish_key(limit.kind, entries_text(_TEXT, charge.key))
        return Spend(key, limit, charge.amount, index, domain=DOMAIN)

    def _limit(self, given: QuotaLimit) -> Limit:
        return Limit(
            given.max_amount,
            window_unit(given.window),
            algorithm=Algorithm.ROLLING_WINDOW if given.steps else Algorithm.FIXED_WINDOW,
            counts_denied=False,
            on_store_failure=self._on_store_failure,
            slots=given.steps or 1,
        )


async def _later(outcomes: Awaitable[list[Outcome]]) -> list[QuotaAnswer]:
    return _answers(await outcomes)


def _answers(outcomes: Sequence[Outcome]) -> list[QuotaAnswer]:
    return [QuotaAnswer(one.allowed, 0 if one.allowed or not one.is_known else one.reset) for one in outcomes]
