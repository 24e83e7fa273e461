"""`ShouldRateLimit` answers every request explicitly."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from functools import partial
from typing import Any

import pytest
from envoy.service.ratelimit.v3 import rls_pb2
from support.ratelimit import CALL, OK, OVER_LIMIT, Clock, limits_of
from support.ratelimit import answer as ask
from support.ratelimit import request as request_in

from garrison.errors import DependencyError, RequestError
from ratelimit.algorithm import SECOND, Outcome
from ratelimit.service import FAULT_HEADER, SHOULD_RATE_LIMIT, Counters, RateLimitService
from ratelimit.store.base import Spend, Store
from ratelimit.store.memory import MemoryStore

MINUTE = rls_pb2.RateLimitResponse.RateLimit.MINUTE
HOUR = rls_pb2.RateLimitResponse.RateLimit.HOUR

CONFIG = """\
domain: shop
descriptors:
- {key: user, rate_limit: {unit: minute, requests_per_unit: 2, name: per-user}}
- {key: path, rate_limit: {unit: hour, requests_per_unit: 3}}
- {key: dark, shadow_mode: true, rate_limit: {unit: minute, requests_per_unit: 0}}
- {key: open, rate_limit: {unlimited: true}}
"""


def serve(store: Store | None = None, clock: Clock | None = None) -> RateLimitService:
    """Return a service with `CONFIG`."""
    limits = limits_of(CONFIG)
    return RateLimitService(lambda: limits, store or MemoryStore(), clock or Clock())


request = partial(request_in, domain="shop")


def fault_of(response: Any) -> str:
    """Return the fault that `response` names, the same in header and metadata."""
    (header,) = response.response_headers_to_add
    assert header.key == FAULT_HEADER
    assert response.dynamic_metadata["fault"] == header.value
    assert response.overall_code == OVER_LIMIT
    return str(header.value)


def test_status_says_limit_remaining_and_reset() -> None:
    """A status holds what Envoy needs for its rate-limit headers."""
    clock = Clock()
    clock.now += SECOND // 2
    response = ask(serve(clock=clock), request({"user": "a"}))
    (status,) = response.statuses
    assert response.overall_code == OK
    assert status.code == OK
    assert status.limit_remaining == 1
    assert status.duration_until_reset.seconds == 60
    assert status.duration_until_reset.nanos == 0
    assert status.current_limit.requests_per_unit == 2
    assert status.current_limit.unit == MINUTE
    assert status.current_limit.name == "per-user"


def test_over_limit_for_one_value_only() -> None:
    """The call after the last is denied, for that value, until the window ends."""
    clock = Clock()
    service = serve(clock=clock)
    codes = [ask(service, request({"user": "a"})).overall_code for _ in range(3)]
    assert codes == [OK, OK, OVER_LIMIT]
    assert ask(service, request({"user": "b"})).overall_code == OK
    clock.now += 60 * SECOND
    assert ask(service, request({"user": "a"})).overall_code == OK


def test_one_descriptor_over_is_enough_and_all_are_counted() -> None:
    """A request is denied by any of its descriptors; the others are charged all the same."""
    service = serve()
    both = request({"user": "a"}, {"path": "/x"})
    answers = [ask(service, both) for _ in range(3)]
    assert [answer.overall_code for answer in answers] == [OK, OK, OVER_LIMIT]
    assert [status.code for status in answers[2].statuses] == [OVER_LIMIT, OK]
    assert [status.limit_remaining for status in answers[2].statuses] == [0, 0]
    assert ask(service, request({"path": "/x"})).overall_code == OVER_LIMIT


def test_unmatched_descriptor_is_ok() -> None:
    """A descriptor without a rule has a bare OK status at its place."""
    response = ask(serve(), request({"nobody": "knows"}, {"user": "a"}))
    assert [status.HasField("current_limit") for status in response.statuses] == [False, True]
    assert response.overall_code == OK


def test_unknown_domain_is_ok() -> None:
    """A domain that is not configured limits nothing, overrides included, and is counted apart."""
    service = serve()
    message = request({"user": "a"}, {"user": "b"}, domain="else")
    message.descriptors[0].limit.requests_per_unit = 0
    message.descriptors[0].limit.unit = 2
    response = ask(service, message)
    assert response.overall_code == OK
    assert [status.code for status in response.statuses] == [OK, OK]
    assert service.counters() == {"": Counters(allowed=1)}


def test_shadow_mode_counts_but_allows() -> None:
    """A limit in shadow mode reports nothing left and denies nobody; the counter tells."""
    service = serve()
    response = ask(service, request({"dark": "x"}))
    assert response.overall_code == OK
    assert response.statuses[0].code == OK
    assert response.statuses[0].limit_remaining == 0
    assert response.statuses[0].HasField("current_limit")
    assert service.counters()["shop"] == Counters(allowed=1, shadowed=1)


def test_unlimited_shows_no_limit() -> None:
    """An unlimited descriptor has the largest remaining and no current limit."""
    (status,) = ask(serve(), request({"open": "x"})).statuses
    assert status.code == OK
    assert status.limit_remaining == 2**32 - 1
    assert not status.HasField("current_limit")


def test_hits_addend_of_the_request() -> None:
    """The request's hits_addend holds for every descriptor that has none of its own."""
    service = serve()
    message = request({"user": "a"}, {"path": "/x"}, hits=2)
    message.descriptors[1].hits_addend.value = 3
    assert [status.limit_remaining for status in ask(service, message).statuses] == [0, 0]


def test_descriptor_hits_addend_zero_only_looks() -> None:
    """A look charges nothing, and says over limit as soon as nothing is left."""
    service = serve()
    look = request({"user": "a"}, hits=7)
    look.descriptors[0].hits_addend.value = 0
    for _ in range(3):
        assert ask(service, look).statuses[0].limit_remaining == 2
    ask(service, request({"user": "a"}, hits=2))
    assert ask(service, look).overall_code == OVER_LIMIT


def test_huge_hits_addend() -> None:
    """The largest hits_addend is denied and stays counted."""
    service = serve()
    message = request({"user": "a"})
    message.descriptors[0].hits_addend.value = 2**64 - 1
    for _ in range(3):
        assert ask(service, message).overall_code == OVER_LIMIT
    assert ask(service, request({"user": "a"})).overall_code == OVER_LIMIT


def with_negative_hits(raw_field: bytes) -> bytes:
    """Return a request of user `a` with hits_addend 5 and `raw_field` at the end of its descriptor."""
    descriptor = request({"user": "a"}).descriptors[0]
    descriptor.hits_addend.value = 5
    body = descriptor.SerializeToString() + raw_field
    return bytes(request().SerializeToString() + b"\x12" + bytes([len(body)]) + body)


@pytest.mark.parametrize("raw_field", [b"\x20\x01", b"\x20\xff\x01", b"\x22\x01x"])
def test_refund_is_not_charged(raw_field: bytes) -> None:
    """Negative hits, sent in a field the published messages lack, are not taken for positive ones."""
    service = serve()
    response = ask(service, with_negative_hits(raw_field))
    assert response.overall_code == OK
    assert response.statuses[0].limit_remaining == 2


@pytest.mark.parametrize("raw_field", [b"", b"\x20\x00", b"\x28\x01"])
def test_other_unknown_fields_do_not_waive_the_charge(raw_field: bytes) -> None:
    """`is_negative_hits: false` and fields of the future leave the cost as it is."""
    assert ask(serve(), with_negative_hits(raw_field)).overall_code == OVER_LIMIT


def test_override_takes_the_place_of_the_rule() -> None:
    """A limit in the request is used instead of the configured one, also where none is configured."""
    service = serve()
    message = request({"user": "a"}, {"nobody": "knows"})
    for descriptor in message.descriptors:
        descriptor.limit.requests_per_unit = 9
        descriptor.limit.unit = 3
    for status in ask(service, message).statuses:
        assert status.limit_remaining == 8
        assert status.current_limit.unit == HOUR
        assert status.current_limit.name == ""
    assert ask(service, request({"user": "a"})).statuses[0].limit_remaining == 1


def test_override_ends_shadow_mode() -> None:
    """A limit in the request denies even where the configured one is in shadow mode."""
    message = request({"dark": "x"})
    message.descriptors[0].limit.unit = 2
    assert ask(serve(), message).overall_code == OVER_LIMIT


@pytest.mark.parametrize("unit", [0, 7, 99, -1])
def test_override_without_a_known_unit(unit: int) -> None:
    """An override that means nothing is answered OVER_LIMIT, not ignored, and crashes nothing."""
    service = serve()
    message = request({"user": "a"})
    message.descriptors[0].limit.requests_per_unit = 100
    message.descriptors[0].limit.unit = unit
    assert fault_of(ask(service, message)) == "invalid_override"
    assert service.counters()["shop"] == Counters(errors=1)


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        (b"\xff\xff\xff", "malformed_request"),
        (b"\x0a\x02\xff\xfe", "malformed_request"),
        (b"", "empty_domain"),
        (request({"user": "a"}, domain=""), "empty_domain"),
        (request(), "no_descriptors"),
        (request({}), "no_entries"),
        (request({"user": "a"}, {}), "no_entries"),
        (request(domain="else"), "no_descriptors"),
    ],
)
def test_malformed_requests_are_over_limit(message: Any, fault: str) -> None:
    """What cannot be decided is denied and says why, since Envoy would let an RPC error pass."""
    service = serve()
    assert fault_of(ask(service, message)) == fault
    assert sum(counters.errors for counters in service.counters().values()) == 1


def test_nothing_is_charged_by_a_malformed_request() -> None:
    """A request is charged as a whole or not at all."""
    service = serve()
    ask(service, request({"user": "a"}, {}))
    assert ask(service, request({"user": "a"})).statuses[0].limit_remaining == 1


@pytest.mark.parametrize(
    ("error", "fault"),
    [(RequestError("too large"), "malformed_request"), (ZeroDivisionError(), "internal_error")],
)
def test_faults_of_the_transport(error: Exception, fault: str) -> None:
    """What the transport could not hand over is denied too, and counted."""
    service = serve()
    method = service.methods()[SHOULD_RATE_LIMIT]
    assert method.handler == service.should_rate_limit
    assert method.on_fault is not None
    assert fault_of(rls_pb2.RateLimitResponse.FromString(method.on_fault(error))) == fault
    assert service.counters()[""].errors == 1


def test_limits_are_read_for_each_request() -> None:
    """New limits hold from the next request on, and keep what was counted."""
    current = limits_of(CONFIG)
    service = RateLimitService(lambda: current, MemoryStore(), Clock())
    for _ in range(3):
        ask(service, request({"user": "a"}))
    current = limits_of(CONFIG.replace("requests_per_unit: 2", "requests_per_unit: 9"))
    assert ask(service, request({"user": "a"})).statuses[0].limit_remaining == 5
    current = limits_of("domain: other\n")
    assert not ask(service, request({"user": "a"})).statuses[0].HasField("current_limit")


class Remote:
    """A store that answers later, or fails at once or later."""

    def __init__(self, *, fails: str = "") -> None:
        self._memory = MemoryStore()
        self._fails = fails

    def spend(self, spends: Sequence[Spend], now: int) -> Awaitable[list[Outcome]]:
        """Answer in the next turn of the loop."""
        if self._fails == "at once":
            raise DependencyError("no connection")
        return self._later(spends, now)

    async def _later(self, spends: Sequence[Spend], now: int) -> list[Outcome]:
        await asyncio.sleep(0)
        if self._fails == "later":
            raise DependencyError("connection lost")
        return self._memory.spend(spends, now)


async def ask_remote(service: RateLimitService, message: Any) -> Any:
    """Return the answer of `service`, now or later."""
    answer = service.should_rate_limit(message.SerializeToString(), CALL)
    return rls_pb2.RateLimitResponse.FromString(answer if isinstance(answer, bytes) else await answer)


def test_a_store_may_answer_later() -> None:
    """A remote store's outcome arrives in an awaitable answer, counted when it is there."""

    async def scenario() -> None:
        service = serve(Remote())
        answers = [await ask_remote(service, request({"user": "a"})) for _ in range(3)]
        assert [answer.overall_code for answer in answers] == [OK, OK, OVER_LIMIT]
        assert service.counters()["shop"] == Counters(allowed=2, over_limit=1)

    asyncio.run(scenario())


@pytest.mark.parametrize("fails", ["at once", "later"])
def test_a_store_that_fails_denies(fails: str) -> None:
    """Without a store there is no consent."""
    service = serve(Remote(fails=fails))
    assert fault_of(asyncio.run(ask_remote(service, request({"user": "a"})))) == "store_unavailable"
    assert service.counters()["shop"] == Counters(errors=1)
