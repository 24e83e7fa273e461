"""Decision -> `RateLimitResponse`; the only writer of rate-limit response messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ratelimit.algorithm import SECOND, Limit, Outcome, Unit
from ratelimit.limiter import Decision, Status
from ratelimit.protos import rls_pb2
from ratelimit.request import Fault, Request
from ratelimit.tree import Unlimited

FAULT_HEADER = "x-garrison-ratelimit-fault"

OK, OVER_LIMIT = 1, 2
_MAX_UINT32 = 2**32 - 1
_ONE_BYTE = [bytes([number]) for number in range(0x80)]
_OVERALL_OK, _OVERALL_OVER = b"\x08\x01", b"\x08\x02"
_REMAINING_UNLIMITED = b"\x18\xff\xff\xff\xff\x0f"
# By number, name of the window and name of the limit.
_CURRENT_LIMITS: dict[tuple[int, str, str], bytes] = {}
_MAX_CURRENT_LIMITS = 10_000
_OVERRIDE_UNIT_NAMES = {1: "SECOND", 2: "MINUTE", 3: "HOUR", 4: "DAY", 5: "MONTH", 6: "YEAR"}


@dataclass(frozen=True, slots=True)
class HeaderNames:
    """What response headers are called that tell of the tightest limit."""

    limit: str = "RateLimit-Limit"
    remaining: str = "RateLimit-Remaining"
    reset: str = "RateLimit-Reset"


@dataclass(frozen=True, slots=True)
class ResponseOptions:
    """What answers hold besides the verdict and the statuses.

    With `shadow_mode` the verdict is OK, whatever the statuses say. `headers` tell of the tightest limit;
    `dynamic_metadata` tells Envoy's other filters what was asked, with the metadata of what passed.
    """

    shadow_mode: bool = False
    headers: HeaderNames | None = None
    dynamic_metadata: bool = False


def build_response(decision: Decision, request: Request, options: ResponseOptions) -> bytes:
    """Return the answer to `request`.

    Statuses are put together by hand, because setting the fields of their messages would take longer than all
    the rest; a test holds the bytes to those of the messages.
    """
    answer = _OVERALL_OVER if decision.over_limit and not options.shadow_mode else _OVERALL_OK
    granted = False
    for rule, outcome, over_limit, _ in decision.statuses:
        status = b"\x08\x02" if over_limit else b"\x08\x01"
        if outcome is not None and isinstance(rule, Limit):
            what = (rule.requests_per_unit, rule.unit.name, rule.name)
            status += _CURRENT_LIMITS.get(what) or _current_limit(what, rule.unit)
            if outcome.remaining:
                status += b"\x18" + _varint(min(outcome.remaining, _MAX_UINT32))
            seconds = _varint(_reset_seconds(outcome))
            status += b"\x22" + _varint(1 + len(seconds)) + b"\x08" + seconds
            granted = granted or rule.best_effort
        elif isinstance(rule, Unlimited):
            status += _REMAINING_UNLIMITED
        answer += b"\x12" + _varint(len(status)) + status
    if not granted and options.headers is None and not options.dynamic_metadata:
        return answer
    rest = rls_pb2.RateLimitResponse()
    if options.headers is not None:
        _add_headers(rest, decision, options.headers)
    if options.dynamic_metadata:
        _add_metadata(rest, decision, request)
    if granted:
        rest.dynamic_metadata.update({"granted": [_granted(status) for status in decision.statuses]})
    return answer + rest.SerializeToString()


def _reset_seconds(outcome: Outcome) -> int:
    # Envoy shows whole seconds and drops the rest, so round up: never "0 seconds" before the reset.
    return -(-outcome.reset // SECOND)


def _current_limit(what: tuple[int, str, str], unit: Unit) -> bytes:
    """Return the field `current_limit` for a limit, and remember it."""
    current = rls_pb2.RateLimitResponse.RateLimit(requests_per_unit=what[0], unit=unit.wire, name=what[2])
    if unit.multiplier != 1:
        current.unit_multiplier.value = unit.multiplier
    message = current.SerializeToString()
    if len(_CURRENT_LIMITS) >= _MAX_CURRENT_LIMITS:
        # Limits that requests bring along are without number.
        _CURRENT_LIMITS.clear()
    found = _CURRENT_LIMITS[what] = b"\x12" + _varint(len(message)) + message
    return found


def _varint(number: int) -> bytes:
    """Return a number that is not negative as protobuf writes it."""
    if number < 0x80:
        return _ONE_BYTE[number]
    data = bytearray()
    while number >= 0x80:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    data.append(number)
    return bytes(data)


def build_unlimited(descriptors: int) -> bytes:
    """Return the answer for a domain without limits: one bare OK for each descriptor."""
    response = rls_pb2.RateLimitResponse(overall_code=OK)
    for _ in range(descriptors):
        response.statuses.add(code=OK)
    return response.SerializeToString()


def build_fault(fault: Fault) -> bytes:
    """Return the answer to a request that cannot be decided: OVER_LIMIT, and why."""
    response = rls_pb2.RateLimitResponse(overall_code=OVER_LIMIT)
    response.response_headers_to_add.add(key=FAULT_HEADER, value=fault.value)
    response.dynamic_metadata.update({"fault": fault.value})
    return response.SerializeToString(deterministic=True)


def _granted(status: Status) -> int | None:
    return status.outcome.granted if status.outcome is not None else None


def _add_headers(response: rls_pb2.RateLimitResponse, decision: Decision, names: HeaderNames) -> None:
    for name, value in tightest_headers(decision, names):
        response.response_headers_to_add.add(key=name, value=value)


def tightest_headers(decision: Decision, names: HeaderNames) -> tuple[tuple[str, str], ...]:
    """Tell of the descriptor with least remaining; one that is over a limit outside a quota wins."""
    tightest: tuple[Limit, Outcome] | None = None
    least = _MAX_UINT32
    for rule, outcome, over_limit, _ in decision.statuses:
        if not isinstance(rule, Limit) or outcome is None:
            continue
        if outcome.remaining < least:
            tightest, least = (rule, outcome), outcome.remaining
        if over_limit and not rule.quota_mode:
            tightest, least = (rule, outcome), 0
    if tightest is None:
        return ()
    limit, outcome = tightest
    return (
        (names.limit, str(limit.requests_per_unit)),
        (names.remaining, str(min(outcome.remaining, _MAX_UINT32))),
        (names.reset, str(_reset_seconds(outcome))),
    )


def _add_metadata(response: rls_pb2.RateLimitResponse, decision: Decision, request: Request) -> None:
    """Tell what was asked, and the merged metadata of what passed; the first of equal keys wins."""
    told: dict[str, Any] = {"domain": request.domain, "descriptors": []}
    for descriptor in request.message.descriptors:
        one: dict[str, Any] = {"entries": [f"{entry.key}={entry.value}" for entry in descriptor.entries]}
        if descriptor.HasField("limit"):
            unit = _OVERRIDE_UNIT_NAMES.get(descriptor.limit.unit, "UNKNOWN")
            one["limit"] = f"requests_per_unit:{descriptor.limit.requests_per_unit} unit:{unit}"
        if descriptor.HasField("hits_addend"):
            one["hitsAddend"] = float(descriptor.hits_addend.value)
        told["descriptors"].append(one)
    if request.message.hits_addend:
        told["hitsAddend"] = request.message.hits_addend
    passed: dict[str, Any] = {}
    for status in decision.statuses:
        if status.metadata is not None and not status.over_limit:
            _merge(passed, status.metadata)
    if passed:
        told["metadata"] = passed
    response.dynamic_metadata.update(told)


def _merge(into: dict[str, Any], more: Mapping[str, Any]) -> None:
    for name, value in more.items():
        if name not in into:
            into[name] = dict(value) if isinstance(value, dict) else value
        elif isinstance(into[name], dict) and isinstance(value, dict):
            _merge(into[name], value)
