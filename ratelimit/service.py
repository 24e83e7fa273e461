"""`envoy.service.ratelimit.v3.RateLimitService`: bytes in, bytes out; the only user of its messages.

Envoy lets a call pass on any RPC failure unless `failure_mode_deny` is set, and on the code UNKNOWN. So every
request gets an explicit answer, and one that cannot be decided gets OVER_LIMIT with its `Fault` in the
response header `x-garrison-ratelimit-fault` and in the dynamic metadata (`fault`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from envoy.service.ratelimit.v3 import rls_pb2
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from garrison.errors import DependencyError, GarrisonError, RequestError
from garrison.transport import Call, Method, Methods
from ratelimit.algorithm import SECOND, UNITS, Limit
from ratelimit.compile import Limits, Unlimited
from ratelimit.descriptors import Descriptor
from ratelimit.limiter import Decision, spend
from ratelimit.store.base import Store

SHOULD_RATE_LIMIT = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
FAULT_HEADER = "x-garrison-ratelimit-fault"

_OK = rls_pb2.RateLimitResponse.OK
_OVER_LIMIT = rls_pb2.RateLimitResponse.OVER_LIMIT
_UNLIMITED_REMAINING = 2**32 - 1

# envoy.type.v3.RateLimitUnit, which has no week. Months and years are numbered as in the response.
_OVERRIDE_UNITS = {unit.wire: unit for unit in UNITS.values() if unit.name != "week"}
_OVERRIDE_SOURCE = "request"

# RateLimitDescriptor.is_negative_hits: Envoy 1.40 sends it, the published Python messages lack it.
_IS_NEGATIVE_HITS = 4


class Fault(StrEnum):
    """Why a request could not be decided."""

    MALFORMED_REQUEST = "malformed_request"
    EMPTY_DOMAIN = "empty_domain"
    NO_DESCRIPTORS = "no_descriptors"
    NO_ENTRIES = "no_entries"
    INVALID_OVERRIDE = "invalid_override"
    STORE_UNAVAILABLE = "store_unavailable"
    INTERNAL_ERROR = "internal_error"


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

    def __init__(self, limits: Callable[[], Limits], store: Store, clock: Callable[[], int]) -> None:
        self._limits = limits
        self._store = store
        self._clock = clock
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
            request = rls_pb2.RateLimitRequest.FromString(message)
        except DecodeError:
            return self._fault("", Fault.MALFORMED_REQUEST)
        name = request.domain
        domain = self._limits().domains.get(name)
        label = name if domain is not None else ""
        try:
            descriptors = _parse_request(request)
            if domain is None:
                self._counters[""].allowed += 1
                return _build_unlimited(len(descriptors))
            decision = spend(self._store, domain, descriptors, self._clock())
        except _FaultError as error:
            return self._fault(label, error.fault)
        except DependencyError:
            return self._fault(label, Fault.STORE_UNAVAILABLE)
        if isinstance(decision, Decision):
            return self._answer(label, decision)
        return self._answer_later(label, decision)

    def on_fault(self, error: Exception) -> bytes:
        """Return the answer to a call that the transport could not hand over, or whose handler raised."""
        foreseen = isinstance(error, GarrisonError)
        return self._fault("", Fault.MALFORMED_REQUEST if foreseen else Fault.INTERNAL_ERROR)

    async def _answer_later(self, label: str, decision: Awaitable[Decision]) -> bytes:
        try:
            return self._answer(label, await decision)
        except DependencyError:
            return self._fault(label, Fault.STORE_UNAVAILABLE)

    def _answer(self, label: str, decision: Decision) -> bytes:
        counters = self._of(label)
        if decision.over_limit:
            counters.over_limit += 1
        else:
            counters.allowed += 1
        if decision.shadowed:
            counters.shadowed += 1
        return _build_response(decision)

    def _fault(self, label: str, fault: Fault) -> bytes:
        self._of(label).errors += 1
        return _FAULT_RESPONSES[fault]

    def _of(self, label: str) -> Counters:
        counters = self._counters.get(label)
        if counters is None:
            counters = self._counters[label] = Counters()
        return counters


class _FaultError(RequestError):
    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.value)
        self.fault = fault


def _parse_request(request: Any) -> list[Descriptor]:
    if not request.domain:
        raise _FaultError(Fault.EMPTY_DOMAIN)
    # hits_addend 0 is how proto3 says "absent" here; in a descriptor, where presence shows, 0 only looks.
    cost = request.hits_addend or 1
    descriptors = [_parse_descriptor(descriptor, cost) for descriptor in request.descriptors]
    if not descriptors:
        raise _FaultError(Fault.NO_DESCRIPTORS)
    return descriptors


def _parse_descriptor(descriptor: Any, cost: int) -> Descriptor:
    entries = [(entry.key, entry.value) for entry in descriptor.entries]
    if not entries:
        raise _FaultError(Fault.NO_ENTRIES)
    if descriptor.HasField("hits_addend"):
        cost = descriptor.hits_addend.value
    if len(unknown := UnknownFieldSet(descriptor)) and _is_refund(unknown):
        cost = 0  # refunds are not supported yet; charging one as if it were a cost would be worse
    if not descriptor.HasField("limit"):
        return Descriptor(entries, cost)
    unit = _OVERRIDE_UNITS.get(descriptor.limit.unit)
    if unit is None:
        raise _FaultError(Fault.INVALID_OVERRIDE)
    return Descriptor(entries, cost, Limit(descriptor.limit.requests_per_unit, unit, source=_OVERRIDE_SOURCE))


def _is_refund(unknown: UnknownFieldSet) -> bool:
    fields = (unknown[index] for index in range(len(unknown)))
    return any(field.field_number == _IS_NEGATIVE_HITS and field.data for field in fields)


def _build_response(decision: Decision) -> bytes:
    response = rls_pb2.RateLimitResponse(overall_code=_OVER_LIMIT if decision.over_limit else _OK)
    for rule, outcome, over_limit in decision.statuses:
        status = response.statuses.add()
        status.code = _OVER_LIMIT if over_limit else _OK
        if outcome is not None and isinstance(rule, Limit):
            status.limit_remaining = outcome.remaining
            # Envoy shows whole seconds and drops the rest, so round up: never "0 seconds" before the reset.
            status.duration_until_reset.seconds = -(-outcome.reset // SECOND)
            current = status.current_limit
            current.requests_per_unit = rule.requests_per_unit
            current.unit = rule.unit.wire
            if rule.name:
                current.name = rule.name
        elif isinstance(rule, Unlimited):
            status.limit_remaining = _UNLIMITED_REMAINING
    answer: bytes = response.SerializeToString()
    return answer


def _build_unlimited(descriptors: int) -> bytes:
    """Return the answer for a domain without limits: one bare OK for each descriptor."""
    response = rls_pb2.RateLimitResponse(overall_code=_OK)
    for _ in range(descriptors):
        response.statuses.add().code = _OK
    answer: bytes = response.SerializeToString()
    return answer


def _build_fault(fault: Fault) -> bytes:
    response = rls_pb2.RateLimitResponse(overall_code=_OVER_LIMIT)
    response.response_headers_to_add.add(key=FAULT_HEADER, value=fault.value)
    response.dynamic_metadata.update({"fault": fault.value})
    answer: bytes = response.SerializeToString(deterministic=True)
    return answer


_FAULT_RESPONSES = {fault: _build_fault(fault) for fault in Fault}
