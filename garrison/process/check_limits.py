"""Rate limits that `Check` charges: the ordinary ones, counted as if Envoy had asked for them."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence

from authz.rate_limits import LimitAnswer, LimitRequest, OverLimit
from ratelimit.algorithm import Limit, Outcome
from ratelimit.descriptors import Descriptor
from ratelimit.later import Later
from ratelimit.limiter import Decision
from ratelimit.response import HeaderNames, tightest_headers
from ratelimit.service import RateLimitService


class CheckLimits:
    """The `authz.rate_limits.RateLimits` of a process; `headers` are those that `ShouldRateLimit` adds."""

    def __init__(self, service: RateLimitService, headers: HeaderNames | None) -> None:
        self._service = service
        self._headers = headers

    def spend(self, request: LimitRequest) -> LimitAnswer | Awaitable[LimitAnswer]:
        """Charge all descriptors of `request`; at once if the store answers at once.

        Raises:
            DependencyError: at once or when awaited: the store cannot tell, and a limit denies then.

        """
        descriptors = [Descriptor(one.entries, one.hits) for one in request.descriptors]
        decision = self._service.charge(request.domain, descriptors)
        if isinstance(decision, Decision):
            return self._answer(descriptors, decision)
        return Later(self._later, descriptors, decision)

    async def _later(self, descriptors: Sequence[Descriptor], decision: Awaitable[Decision]) -> LimitAnswer:
        return self._answer(descriptors, await decision)

    def _answer(self, descriptors: Sequence[Descriptor], decision: Decision) -> LimitAnswer:
        headers = tightest_headers(decision, self._headers) if self._headers is not None else ()
        if not decision.over_limit:
            return LimitAnswer(headers=headers)
        over = [
            (index, status.rule, status.outcome)
            for index, status in enumerate(decision.statuses)
            if status.over_limit and isinstance(status.rule, Limit)
        ]
        if not over:
            # An answer with nothing over allows, so a denial that names no limit must not become one.
            return LimitAnswer((OverLimit(0, "a limit that was not named"),), headers=headers)
        # One limit outside a quota denies by itself; those of quotas only together.
        plain = [one for one in over if not one[1].quota_mode]
        waits = [_wait(limit, outcome, descriptors[index].cost) for index, limit, outcome in plain or over]
        enough = max(waits) if all(waits) else 0
        return LimitAnswer(
            tuple(OverLimit(index, _described(limit)) for index, limit, _ in plain or over),
            enough if plain else min(filter(None, waits), default=0),
            headers,
        )


def _wait(limit: Limit, outcome: Outcome | None, cost: int) -> int:
    """Return in how many nanoseconds there is enough again; 0: not known, or never."""
    if outcome is None or not outcome.is_known or cost > limit.capacity:
        return 0
    return outcome.reset


def _described(limit: Limit) -> str:
    shown = f"{limit.requests_per_unit} a {limit.unit.name} at {limit.source}"
    return f"{limit.name}, {shown}" if limit.name else shown
