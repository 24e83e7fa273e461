"""Rate-limit requests that mean harm: a defined answer each, the next call is answered, counters are intact.

Over both transports, with counters in memory and in a server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from envoy.service.ratelimit.v3 import rls_pb2
from support.ratelimit import OK, OVER_LIMIT, request, service
from support.valkey import KINDS, Valkey

from garrison.transport.address import Address
from garrison.transport.h2 import Limits
from garrison.transport.listeners import RequestServer, Transport
from ratelimit.protos import rls_pb2 as own_pb2
from ratelimit.service import FAULT_HEADER, SHOULD_RATE_LIMIT
from ratelimit.store.base import Store
from ratelimit.store.connection import Endpoint
from ratelimit.store.memory import MemoryStore
from ratelimit.store.redis import RedisStore
from ratelimit.store.servers import SingleServer

LIMITS = """\
domain: d
descriptors:
- {key: user, rate_limit: {unit: year, requests_per_unit: 5}}
- {key: path, value: "/a*", share_threshold: true, rate_limit: {unit: year, requests_per_unit: 5}}
- {key: bucket, rate_limit: {algorithm: token_bucket, unit: year, requests_per_unit: 5, burst: 4294967295}}
- {key: slide, rate_limit: {algorithm: sliding_window, unit: year, requests_per_unit: 5}}
- {key: place, rate_limit: {algorithm: concurrency, window: 1h, requests_per_unit: 5}}
- key: once
  rate_limit: {unit: year, requests_per_unit: 5}
  descriptors: [{key: id, deduplicate: 1h}]
"""
COUNTED = ("user", "slide", "place", "once")

Ask = Callable[[Any], Awaitable[Any]]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Valkey]]:
    """Give a function that returns a server of a kind, started when it is asked for first."""
    running: dict[str, Valkey] = {}

    def find(kind: str) -> Valkey:
        if kind not in running:
            server = Valkey(tmp_path_factory.mktemp("v"), kind=kind)
            server.start()
            running[kind] = server
        return running[kind]

    yield find
    for server in running.values():
        server.kill()


@dataclass(frozen=True)
class Victim:
    """What is attacked: over which transport, and what makes its store, inside an event loop."""

    transport: Transport
    store_of: Callable[[], Store]


@pytest.fixture(params=["memory", *KINDS])
def store_of(request: pytest.FixtureRequest, servers: Callable[[str], Valkey]) -> Callable[[], Store]:
    """Return what makes an empty store of each kind."""
    if request.param == "memory":
        return MemoryStore
    valkey = servers(request.param)
    client = valkey.client()
    client.flushall()
    client.close()
    return lambda: RedisStore(SingleServer(Endpoint(path=str(valkey.socket))))


@pytest.fixture(params=list(Transport))
def victim(request: pytest.FixtureRequest, store_of: Callable[[], Store]) -> Victim:
    """Return each combination."""
    return Victim(request.param, store_of)


def attack(victim: Victim, scenario: Callable[[Ask], Awaitable[None]]) -> None:
    """Run a scenario; afterwards every limit still counts from where it was."""

    async def run() -> None:
        store = victim.store_of()
        server = RequestServer(
            victim.transport,
            [Address.parse("tcp://127.0.0.1:0")],
            service(LIMITS, store=store).methods(),
            limits=Limits(max_message_bytes=64 * 2**20),
        )
        await server.start()
        (address,) = server.addresses
        options = [(f"grpc.max_{way}_message_length", -1) for way in ("send", "receive")]
        async with grpc.aio.insecure_channel(f"{address.host}:{address.port}", options=options) as channel:
            method: Any = channel.unary_unary(SHOULD_RATE_LIMIT)

            async def ask(message: Any) -> Any:
                raw = message if isinstance(message, bytes) else message.SerializeToString()
                return rls_pb2.RateLimitResponse.FromString(await method(raw, timeout=60))

            for key in COUNTED:
                assert (await ask(request({key: "victim"}))).statuses[0].limit_remaining == 4
            await scenario(ask)
            for key in COUNTED:
                assert (await ask(request({key: "victim"}))).statuses[0].limit_remaining == 3, key
        await server.drain(5)
        if isinstance(store, RedisStore):
            await store.close()

    asyncio.run(run())


def test_unknown_domains_leave_nothing(victim: Victim) -> None:
    """Domains that nobody configured are allowed and counted under one label, however many there are."""

    async def scenario(ask: Ask) -> None:
        for number in range(50):
            response = await ask(request({"user": "victim"}, domain=f"invented-{number}"))
            assert response.overall_code == OK

    attack(victim, scenario)


def test_nothing_to_decide(victim: Victim) -> None:
    """No domain, no descriptors, no entries, no protobuf: over limit, with the reason."""

    async def scenario(ask: Ask) -> None:
        for message, fault in (
            (request({"user": "victim"}, domain=""), "empty_domain"),
            (request(), "no_descriptors"),
            (request({"user": "victim"}, {}), "no_entries"),
            (b"\x0a\xff", "malformed_request"),
            (b"\x0a\x01\xff", "malformed_request"),
        ):
            response = await ask(message)
            assert response.overall_code == OVER_LIMIT
            (header,) = response.response_headers_to_add
            assert (header.key, header.value) == (FAULT_HEADER, fault)

    attack(victim, scenario)


def test_ten_thousand_descriptors(victim: Victim) -> None:
    """Very many descriptors are all answered, also the same one ten thousand times."""

    async def scenario(ask: Ask) -> None:
        many = await ask(request(*({"user": f"u{number}"} for number in range(10_000))))
        assert len(many.statuses) == 10_000
        assert many.overall_code == OK
        same = await ask(request(*({"user": "same"} for _ in range(10_000))))
        assert [status.code for status in same.statuses] == [OK] * 5 + [OVER_LIMIT] * 9_995

    attack(victim, scenario)


def test_values_of_a_megabyte(victim: Victim) -> None:
    """Values and keys of any length are told apart, and do not become keys of that length."""

    async def scenario(ask: Ask) -> None:
        long = "x" * 2**20
        for value in (long, long + "y"):
            response = await ask(request({"user": value}, {"once": "z", "id": value}, {long: value}))
            assert [status.limit_remaining for status in response.statuses[:1]] == [4]
        assert (await ask(request({"once": "z"}))).statuses[0].limit_remaining == 2
        deep = request(*({f"k{number}": "v" for number in range(1000)} for _ in range(10)))
        assert (await ask(deep)).overall_code == OK

    attack(victim, scenario)


def test_units_that_mean_nothing(victim: Victim) -> None:
    """A limit in the request with a unit of 0, or of the future, is over limit and stops nothing."""

    async def scenario(ask: Ask) -> None:
        for unit in (0, 7, 8, 2**31 - 1, -1, -(2**31)):
            message = request({"user": "victim"})
            message.descriptors[0].limit.requests_per_unit = 2**32 - 1
            message.descriptors[0].limit.unit = unit
            response = await ask(message)
            assert response.overall_code == OVER_LIMIT
            assert response.dynamic_metadata["fault"] == "invalid_override"

    attack(victim, scenario)


def test_hits_that_overflow(victim: Victim) -> None:
    """Any number of hits is denied or given back without wrapping a counter."""

    async def scenario(ask: Ask) -> None:
        for hits in (2**31, 2**32, 2**53 - 1, 2**53, 2**63, 2**64 - 1):
            for key in ("user", "slide", "bucket", "place", "once"):
                message = request({key: "attacker"})
                message.descriptors[0].hits_addend.value = hits
                response = await ask(message)
                expected = OK if key == "bucket" and hits == 2**31 else OVER_LIMIT
                assert response.overall_code == expected, (key, hits)
                refund = own_pb2.RateLimitRequest.FromString(message.SerializeToString())
                refund.descriptors[0].is_negative_hits = True
                back = await ask(refund.SerializeToString())
                assert back.overall_code == OK
                assert back.statuses[0].limit_remaining <= 2**32 - 1
        assert (await ask(request({"user": "attacker"}, hits=5))).overall_code == OK
        assert (await ask(request({"user": "attacker"}))).overall_code == OVER_LIMIT

    attack(victim, scenario)


def test_hits_that_are_negative(victim: Victim) -> None:
    """A number of hits below zero is a very large one, as the wire has it; giving back what was not taken gains nothing."""

    async def scenario(ask: Ask) -> None:
        minus_one = b"\xff" * 9 + b"\x01"
        call = request({"user": "attacker"}).SerializeToString()
        assert (await ask(call + b"\x18" + minus_one)).overall_code == OVER_LIMIT
        descriptor = request({"user": "attacker"}).descriptors[0].SerializeToString()
        descriptor += b"\x1a\x0b\x08" + minus_one
        prefix = b"\x0a\x01d\x12" + bytes([len(descriptor)])
        assert (await ask(prefix + descriptor)).overall_code == OVER_LIMIT
        for key in ("attacker", "somebody"):
            refund = own_pb2.RateLimitRequest.FromString(
                request({"slide": key}, {"user": key}).SerializeToString()
            )
            for one in refund.descriptors:
                one.hits_addend.value = 3
                one.is_negative_hits = True
            assert (await ask(refund.SerializeToString())).overall_code == OK
        for key in ("slide", "user"):
            assert (await ask(request({key: "somebody"}, hits=6))).overall_code == OVER_LIMIT
        assert (await ask(request({"slide": "attacker"}, hits=6))).overall_code == OVER_LIMIT

    attack(victim, scenario)


def test_nobody_spends_or_refunds_for_another(victim: Victim) -> None:
    """Entries that spell somebody else's key when joined, or hold braces and separators, have their own counters."""

    async def scenario(ask: Ask) -> None:
        for value in ("victim|x=y", "victim}", "{d}", "%", "victim%7Cx", "victim\n", "VICTIM", " victim"):
            message = request({"user": value}, hits=9)
            assert (await ask(message)).overall_code == OVER_LIMIT
            refund = own_pb2.RateLimitRequest.FromString(message.SerializeToString())
            refund.descriptors[0].is_negative_hits = True
            refund.descriptors[0].hits_addend.value = 100
            assert (await ask(refund.SerializeToString())).overall_code == OK

    attack(victim, scenario)
