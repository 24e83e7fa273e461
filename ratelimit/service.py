"""`envoy.service.ratelimit.v3.RateLimitService`: bytes in, bytes out.

Envoy lets a call pass on any RPC failure unless `failure_mode_deny` is set, and on the code UNKNOWN. So every
request gets an explicit answer, and one that cannot be decided gets OVER_LIMIT with its `Fault` in the
response header `x-garrison-ratelimit-fault` and in the dynamic metadata (`fault`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from garrison.errors import DependencyError, GarrisonError
from garrison.transport import Call, Method, Methods
from ratelimit.descriptors import Descriptor
from ratelimit.later import Later
from ratelimit.limiter import Decision, Status, spend
from ratelimit.request import Fault, FaultError, Request, parse_request
from ratelimit.response import FAULT_HEADER, ResponseOptions, build_fault, build_response, build_unlimited
from ratelimit.statistics import Statistics
from ratelimit.store.base import Store
from ratelimit.tree import Limits

__all__ = ["FAULT_HEADER", "SHOULD_RATE_LIMIT", "Counters", "Fault", "RateLimitService"]

SHOULD_RATE_LIMIT = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
_DEFAULTS = ResponseOptions()


@dataclass(slots=True)
class Counters:
    """Calls since the start, by answer. `shadowed` ones are among `allowed`, unless another limit denied."""

    allowed: int = 0
    over_limit: int = 0
    shadowed: int = 0
    errors: int = 0


class RateLimitService:
    """Answers `ShouldRateLimit`.

    `limits` returns those in force and is called once per request; `clock` returns nanoseconds since the
    Unix epoch. Answers are immediate if the store's are.
    """

    def __init__(
        self,
        limits: Callable[[], Limits],
        store: Store,
        clock: Callable[[], int],
        options: ResponseOptions = _DEFAULTS,
    ) -> None:
        self.statistics = Statistics()
        self._limits = limits
        self._store = store
        self._clock = clock
        self._options = options
        self._counters: dict[str, Counters] = {"": Counters()}

    def methods(self) -> Methods:
        """Return the methods of the service, for a transport."""
        return {SHOULD_RATE_LIMIT: Method(self.should_rate_limit, self.on_fault)}

    def counters(self) -> Mapping[str, Counters]:
        """Return the counters by configured domain; `""` has calls that are unreadable or for another one."""
        return dict(self._counters)

    def should_rate_limit(self, message: bytes, _call: Call) -> bytes | Awaitable[bytes]:
        """Return the `RateLimitResponse` to the `RateLimitRequest` in `message`, whatever is in it."""
        try:
            request = parse_request(message)
        except FaultError as error:
            known = error.domain in self._limits().domains
            return self._fault(error.domain if known else "", error.fault)
        domain = self._limits().domains.get(request.domain)
        if domain is None:
            self._counters[""].allowed += 1
            return build_unlimited(len(request.descriptors))
        try:
            decision = spend(self._store, domain, request.descriptors, self._clock())
        except DependencyError:
            return self._fault(request.domain, Fault.STORE_UNAVAILABLE)
        if isinstance(decision, Decision):
            return self._answer(request, decision)
        return self._answer_later(request, decision)

    def charge(self, name: str, descriptors: Sequence[Descriptor]) -> Decision | Awaitable[Decision]:
        """Charge `descriptors` in the domain called `name`, for this process itself; counted like any call.

        Raises:
            DependencyError: at once or when awaited: the store cannot tell.

        """
        domain = self._limits().domains.get(name)
        if domain is None:
            self._counters[""].allowed += 1
            return _unlimited(len(descriptors))
        try:
            decision = spend(self._store, domain, descriptors, self._clock())
        except DependencyError:
            self._of(name).errors += 1
            raise
        if isinstance(decision, Decision):
            return self._counted(name, decision)
        return Later(self._counted_later, name, decision)

    def on_fault(self, error: Exception) -> bytes:
        """Return the answer to a call that the transport could not hand over, or whose handler raised."""
        foreseen = isinstance(error, GarrisonError)
        return self._fault("", Fault.MALFORMED_REQUEST if foreseen else Fault.INTERNAL_ERROR)

    async def _answer_later(self, request: Request, decision: Awaitable[Decision]) -> bytes:
        try:
            return self._answer(request, await decision)
        except DependencyError:
            return self._fault(request.domain, Fault.STORE_UNAVAILABLE)

    def _answer(self, request: Request, decision: Decision) -> bytes:
        return build_response(self._counted(request.domain, decision), request, self._options)

    async def _counted_later(self, name: str, decision: Awaitable[Decision]) -> Decision:
        try:
            return self._counted(name, await decision)
        except DependencyError:
            self._of(name).errors += 1
            raise

    def _counted(self, name: str, decision: Decision) -> Decision:
        """Count a decision, and return it as it is told: nothing denies where only shadows are wanted."""
        counters = self._of(name)
        shadowed = decision.shadowed
        if not decision.over_limit:
            counters.allowed += 1
        elif self._options.shadow_mode:
            counters.allowed += 1
            shadowed = True
        else:
            counters.over_limit += 1
        if shadowed:
            counters.shadowed += 1
        self.statistics.count(name, decision)
        if decision.over_limit and self._options.shadow_mode:
            return decision._replace(over_limit=False)
        return decision

    def _fault(self, label: str, fault: Fault) -> bytes:
        self._of(label).errors += 1
        return _FAULT_RESPONSES[fault]

    def _of(self, label: str) -> Counters:
        counters = self._counters.get(label)
        if counters is None:
            counters = self._counters[label] = Counters()
        return counters


def _unlimited(descriptors: int) -> Decision:
    status = Status(None, None, over_limit=False)
    return Decision(over_limit=False, shadowed=False, statuses=[status] * descriptors)


_FAULT_RESPONSES = {fault: build_fault(fault) for fault in Fault}
