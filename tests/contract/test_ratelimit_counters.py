"""Counters in every kind of store: in memory, in one server, in a Cluster, behind Sentinels, with what a process knows besides."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.ratelimit import limits_of
from support.valkey import Valkey
from support.valkey_nodes import Cluster, Node

from garrison.errors import DependencyError
from garrison.process.quota import StoreOptions, build_store
from garrison.redis_address import RedisAddress
from ratelimit.algorithm import Outcome
from ratelimit.charge import Spend
from ratelimit.counters import Counter, find_counters, read_counters
from ratelimit.descriptors import Entry
from ratelimit.store.guard import GuardedStore
from ratelimit.store.memory import MemoryStore

LIMITS = limits_of("""\
domain: shop
descriptors:
- {key: fixed, rate_limit: {unit: year, requests_per_unit: 3}}
- {key: calendar, rate_limit: {unit: year, time_zone: Europe/Berlin, requests_per_unit: 3}}
- {key: sliding, rate_limit: {algorithm: sliding_window, unit: year, requests_per_unit: 3}}
- {key: tokens, rate_limit: {algorithm: token_bucket, unit: year, requests_per_unit: 1, burst: 3}}
- {key: places, rate_limit: {algorithm: concurrency, window: 365d, requests_per_unit: 3}}
- {key: leased, rate_limit: {unit: year, requests_per_unit: 3, lease: 3}}
- {key: pattern, value: "a*", rate_limit: {unit: year, requests_per_unit: 3}}
- {key: shared, value: "a*", share_threshold: true, rate_limit: {unit: year, requests_per_unit: 3}}
- {key: network, match: {cidr: 10.0.0.0/8}, rate_limit: {unit: year, requests_per_unit: 3}}
- key: path
  descriptors:
  - key: several
    rate_limits:
    - {name: yearly, unit: year, requests_per_unit: 3}
    - {name: burst, algorithm: token_bucket, window: 3650d, requests_per_unit: 9}
  - {key: deduplicated, rate_limit: {unit: year, requests_per_unit: 3}, descriptors: [{key: id, deduplicate: 1h}]}
""")
DESCRIPTORS: list[list[Entry]] = [
    [("fixed", "a=b,c|d~%{}\n\u00e9")],
    [("fixed", "x" * 5000)],
    [("calendar", "v")],
    [("sliding", "v")],
    [("tokens", "v")],
    [("places", "v")],
    [("leased", "v")],
    [("pattern", "abc")],
    [("shared", "abc")],
    [("network", "10.1.2.3")],
    [("path", ""), ("several", "v")],
    [("path", "/"), ("deduplicated", "v"), ("id", "1")],
]
MadeStore = MemoryStore | GuardedStore


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """Run one server."""
    with Valkey(tmp_path_factory.mktemp("v")) as server:
        yield server


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Run a Cluster."""
    servers = Cluster(tmp_path_factory.mktemp("c"))
    try:
        servers.start()
        yield servers
    finally:
        servers.kill()


@pytest.fixture(scope="module")
def sentinel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """Run a master and a Sentinel that knows it; yield the Sentinel."""
    folder = tmp_path_factory.mktemp("s")
    master = Node(folder / "m")
    asked = Node(folder / "s", sentinel=f"sentinel monitor counts 127.0.0.1 {master.port} 1\n")
    try:
        master.start()
        asked.start()
        yield asked
    finally:
        asked.kill()
        master.kill()


@pytest.fixture(params=["memory", "single", "cluster", "sentinel"])
def make(request: pytest.FixtureRequest) -> Callable[[], MadeStore]:
    """Return what makes a store as a process does; all that one parameter makes share their counts."""
    options: dict[str, Any] = {"prefix": f"test-{time.monotonic_ns()}", "deadline_seconds": 1.0}
    if request.param == "memory":
        store = MemoryStore()
        return lambda: store
    if request.param == "single":
        urls = [request.getfixturevalue("valkey").url]
    elif request.param == "cluster":
        urls, options["mode"] = request.getfixturevalue("cluster").urls[:1], "cluster"
    else:
        urls = [f"redis://127.0.0.1:{request.getfixturevalue('sentinel').port}"]
        options |= {"mode": "sentinel", "master": "counts"}
    return lambda: build_store(StoreOptions([RedisAddress.parse(url) for url in urls], **options))


async def spend(store: MadeStore, spends: list[Spend]) -> list[Outcome]:
    """Return the outcomes of one call."""
    found = store.spend(spends, time.time_ns())
    return found if isinstance(found, list) else await found


async def look(store: MadeStore, spends: list[Spend]) -> list[Counter]:
    """Return the counters that `spends` name."""
    return read_counters(spends, await store.look(spends, time.time_ns()))


async def close(*stores: MadeStore) -> None:
    """Close the connections of shared stores."""
    for store in stores:
        if isinstance(store, GuardedStore):
            await store.close()


@pytest.mark.parametrize("entries", DESCRIPTORS, ids=lambda entries: entries[-1][0] + entries[-1][1][:3])
def test_an_exhausted_counter_is_shown_and_reset(make: Callable[[], MadeStore], entries: list[Entry]) -> None:
    """Two processes exhaust it; it is shown as it is, and once it is reset both admit again."""
    found = find_counters(LIMITS, "shop", entries)
    one = [spend._replace(cost=1, once="") for spend in found]
    neighbour = [spend._replace(key=spend.key + "x") for spend in one]

    async def scenario() -> None:
        first, second = make(), make()
        try:
            assert [counter.used for counter in await look(first, found)] == [0] * len(found)
            assert [counter.bucket for counter in await look(first, found)] == [None] * len(found)
            await spend(second, neighbour)
            for _ in range(4):
                for store in (first, second):
                    last = await spend(store, one)
            assert not all(outcome.allowed for outcome in last)
            for store in (first, second):
                counter = (await look(store, found))[0]
                assert (counter.remaining, counter.over_limit) == (0, True)
                assert counter.used >= 3
                assert counter.as_json()["stored"] is not None
            for store in (first, second):
                store.forget([spend.key for spend in found])
            held = await second.reset(found, time.time_ns())
            assert read_counters(found, held)[0].used >= 3
            assert [counter.used for counter in await look(first, found)] == [0] * len(found)
            for store in (first, second, first):
                assert all(outcome.allowed for outcome in await spend(store, one))
            assert [counter.used for counter in await look(second, found)] == [3] * len(found)
            assert not all(outcome.allowed for outcome in await spend(first, one))
            assert (await look(first, neighbour))[0].used >= 1
        finally:
            await close(first, second)

    asyncio.run(scenario())


def test_an_identifier_that_is_named_is_forgotten(make: Callable[[], MadeStore]) -> None:
    """A reset with the identifier of a call lets it be charged again, one without leaves it known."""
    entries = [("path", "/i"), ("deduplicated", "v"), ("id", "7")]
    (found,) = find_counters(LIMITS, "shop", entries)
    call = [found._replace(cost=1)]

    async def scenario() -> None:
        store = make()
        try:
            await spend(store, call)
            await store.reset([found._replace(once="")], time.time_ns())
            await spend(store, call)
            assert (await look(store, [found]))[0].used == 0
            await store.reset([found], time.time_ns())
            await spend(store, call)
            assert (await look(store, [found]))[0].used == 1
        finally:
            await close(store)

    asyncio.run(scenario())


def test_strange_values_are_no_counters(valkey: Valkey) -> None:
    """What no script has written is shown as nothing, and a reset removes it."""
    (found,) = find_counters(LIMITS, "shop", [("fixed", "odd")])

    async def scenario() -> None:
        store = build_store(
            StoreOptions([RedisAddress.parse(valkey.url)], prefix="odd", deadline_seconds=1.0)
        )
        client = valkey.client()
        key = "odd:{shop}:year|shop|fixed=odd"
        try:
            for value in ("rubbish", "x" * 16, "12345678", "\x00\x00\x00\x00\x00\x00\xf0\x7f" * 2):
                client.set(key, value.encode("latin-1"))
                assert (await look(store, [found]))[0].bucket is None or value == "x" * 16
            client.delete(key)
            client.lpush(key, "a")
            assert (await look(store, [found]))[0].bucket is None
            await store.reset([found], time.time_ns())
            assert client.exists(key) == 0
        finally:
            client.close()
            await close(store)

    asyncio.run(scenario())


def test_a_store_that_is_gone_shows_and_resets_nothing(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Before and after the breaker opens that is an error, and what was counted is still there afterwards."""
    server = Valkey(tmp_path_factory.mktemp("g"))
    server.start()
    (found,) = find_counters(LIMITS, "shop", [("fixed", "v")])

    async def scenario() -> None:
        store = build_store(StoreOptions([RedisAddress.parse(server.url)], deadline_seconds=1.0))
        assert isinstance(store, GuardedStore)
        try:
            await spend(store, [found._replace(cost=1)])
            server.kill()
            for _ in range(2):
                for method in (store.look, store.reset):
                    with pytest.raises(DependencyError, match="rate-limit store"):
                        await method([found], time.time_ns())
                with pytest.raises(DependencyError):
                    await spend(store, [found._replace(cost=1)])
            assert store.describe() != "closed"
        finally:
            await close(store)

    try:
        asyncio.run(scenario())
    finally:
        server.kill()
