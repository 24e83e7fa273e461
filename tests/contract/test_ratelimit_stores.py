"""Counts in real servers, Valkey and Redis: one, one with TLS, a Cluster of three."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.proxy import Proxy
from support.ratelimit import START
from support.store_certificates import certificate
from support.valkey import KINDS, Valkey, server_with_tls
from support.valkey_nodes import Cluster, Node, free_port

from garrison.errors import DependencyError
from garrison.process.quota import StoreOptions, find_servers
from garrison.redis_address import RedisAddress
from ratelimit.algorithm import SECOND, UNITS, Algorithm, Limit, Outcome
from ratelimit.charge import Spend
from ratelimit.store.guard import GuardedStore
from ratelimit.store.redis import RedisStore
from ratelimit.zones import calendar_unit

TEN = Limit(10, UNITS["day"], counts_denied=False)


@pytest.fixture(scope="module", params=KINDS)
def valkey(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """Run one server."""
    with Valkey(tmp_path_factory.mktemp("v"), kind=request.param) as server:
        yield server


@pytest.fixture(scope="module", params=KINDS)
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Run a Cluster."""
    servers = Cluster(tmp_path_factory.mktemp("c"), kind=request.param)
    try:
        servers.start()
        yield servers
    finally:
        servers.kill()


def store_at(*urls: str, **more: object) -> RedisStore:
    """Return a store on the servers at `urls`."""
    options = StoreOptions([RedisAddress.parse(url) for url in urls], **more)  # type: ignore[arg-type]
    return RedisStore(find_servers(options), options.prefix)


async def spend(store: RedisStore, *spends: Spend) -> list[Outcome]:
    """Return the outcomes of one call at the server's time."""
    return await store.spend(spends, START)


def test_many_clients_never_exceed_a_limit(valkey: Valkey) -> None:
    """Calls that come from several processes at once get exactly the limit between them, for each algorithm."""

    async def scenario() -> None:
        stores = [store_at(valkey.url) for _ in range(4)]
        try:
            for algorithm in Algorithm:
                limit = Limit(50, UNITS["year"], algorithm=algorithm, counts_denied=False)
                call = [Spend("race", limit, 1)]
                found = await asyncio.gather(
                    *(store.spend(call, START) for store in stores for _ in range(40))
                )
                assert sum(outcome.allowed for (outcome,) in found) == 50, algorithm
        finally:
            for store in stores:
                await store.close()

    asyncio.run(scenario())


def test_the_servers_clock_counts(valkey: Valkey) -> None:
    """The time that this process believes in plays no part; calendars that it works out may be a window off."""
    at = time.time_ns()
    months = Limit(5, calendar_unit("month", "UTC"))

    async def scenario() -> None:
        store = store_at(valkey.url)
        try:
            for limit, step in ((TEN, 400), (months, 25)):
                call = [Spend("clock", limit, 1)]
                found = [
                    (await store.spend(call, at + days * 86400 * SECOND))[0] for days in (0, step, -step)
                ]
                assert [first.remaining - found[0].remaining for first in found] == [0, -1, -2]
                assert all(0 < outcome.reset <= 31 * 86400 * SECOND for outcome in found)
                assert (
                    max(outcome.reset for outcome in found) - min(outcome.reset for outcome in found)
                    < 60 * SECOND
                )
        finally:
            await store.close()

    asyncio.run(scenario())


def test_a_clock_that_is_far_behind_denies(valkey: Valkey) -> None:
    """A process that believes in another year does not get a new calendar window with each call."""
    months = Limit(2, calendar_unit("month", "UTC"))

    async def scenario() -> None:
        store = store_at(valkey.url)
        try:
            call = [Spend("behind", months, 1)]
            assert [(await store.spend(call, START))[0].allowed for _ in range(3)] == [True, True, False]
        finally:
            await store.close()

    asyncio.run(scenario())


def test_keys_run_out(valkey: Valkey) -> None:
    """Whatever is written has a time to live, and what is given back entirely is gone."""

    async def scenario() -> None:
        store = store_at(valkey.url, prefix="gone")
        try:
            for algorithm in Algorithm:
                limit = Limit(5, UNITS["minute"], algorithm=algorithm, counts_denied=False)
                await spend(store, Spend("k", limit, 1, once="id", once_for=SECOND))
            places = Limit(5, UNITS["minute"], algorithm=Algorithm.CONCURRENCY, counts_denied=False)
            await spend(store, Spend("p", places, 2))
            await spend(store, Spend("p", places, -2))
        finally:
            await store.close()

    asyncio.run(scenario())
    client = valkey.client()
    keys = client.keys("gone:*")
    assert len(keys) == 2 * len(Algorithm)
    assert all(0 < client.pttl(key) <= 130_000 for key in keys)
    client.close()


def test_strange_values_count_as_none(valkey: Valkey) -> None:
    """A key that holds something else is no bucket, and no reason to fail."""

    async def scenario() -> None:
        store = store_at(valkey.url)
        try:
            (outcome,) = await spend(store, Spend("odd", TEN, 1))
            assert outcome.remaining == 9
        finally:
            await store.close()

    client = valkey.client()
    client.set("garrison:{%}:day!odd", "rubbish")
    asyncio.run(scenario())
    client.delete("garrison:{%}:day!odd")
    client.lpush("garrison:{%}:day!odd", "a", "b")
    asyncio.run(scenario())
    client.close()


def test_a_server_that_forgot_the_script_is_taught_again(valkey: Valkey) -> None:
    """A server that was restarted, or told to forget its scripts, is given the script with the next call."""

    async def scenario() -> None:
        store = store_at(valkey.url)
        try:
            before = await spend(store, Spend("taught", TEN, 1))
            client = valkey.client()
            client.script_flush()
            client.close()
            after = await spend(store, Spend("taught", TEN, 1))
            assert (before[0].remaining, after[0].remaining) == (9, 8)
        finally:
            await store.close()

    asyncio.run(scenario())


def test_tls_is_verified(valkey: Valkey, tmp_path: Path) -> None:
    """rediss:// counts with the right roots, and with no others."""
    right, wrong = certificate(tmp_path, "right"), certificate(tmp_path, "wrong")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(right)

    async def scenario(port: int) -> None:
        for roots in (right, wrong, None):
            store = store_at(f"rediss://127.0.0.1:{port}", ca=roots)
            try:
                if roots is right:
                    assert (await spend(store, Spend("tls", TEN, 1)))[0].remaining == 9
                else:
                    with pytest.raises(DependencyError, match="connection"):
                        await spend(store, Spend("tls", TEN, 1))
            finally:
                await store.close()

    with Proxy(valkey.socket, tls) as proxy:
        asyncio.run(scenario(proxy.port))


@contextmanager
def asks_for_certificates(folder: Path, how: str) -> Iterator[tuple[int, Path]]:
    """Yield port and certificate of a server that only lets in whoever shows `client.pem`."""
    own, client = certificate(folder, "own"), certificate(folder, "client")
    if how == "proxy":
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(own)
        tls.load_verify_locations(client)
        tls.verify_mode = ssl.CERT_REQUIRED
        with Valkey(folder) as server, Proxy(server.socket, tls) as proxy:
            yield proxy.port, own
        return
    port = free_port()
    files = ("--tls-cert-file", own, "--tls-key-file", own, "--tls-ca-cert-file", client)
    options = ("--tls-port", port, *files, "--tls-auth-clients", "yes", "--bind", "127.0.0.1")
    with Valkey(folder, *map(str, options), binary=server_with_tls()):
        yield port, own


@pytest.mark.parametrize("how", ["proxy", "server"])
def test_certificates_on_both_sides(how: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A server that asks for a certificate counts for whoever shows the right one, and for nobody else."""
    folder = tmp_path_factory.mktemp("t")
    wrong = certificate(folder, "wrong")

    async def scenario(port: int, own: Path) -> None:
        right = folder / "client.pem"
        for roots, shown in ((own, right), (own, wrong), (own, None), (wrong, right)):
            store = store_at(f"rediss://127.0.0.1:{port}", ca=roots, certificate=shown)
            try:
                if (roots, shown) == (own, right):
                    assert (await spend(store, Spend("mtls", TEN, 1)))[0].remaining == 9
                else:
                    with pytest.raises(DependencyError, match="connection"):
                        await spend(store, Spend("mtls", TEN, 1))
            finally:
                await store.close()

    with asks_for_certificates(folder, how) as (port, own):
        asyncio.run(scenario(port, own))


def test_ten_thousand_descriptors(valkey: Valkey) -> None:
    """A call of any size is one script, all or nothing."""

    async def scenario() -> None:
        store = store_at(valkey.url)
        try:
            call = [Spend(f"big{number}", TEN, 1, number) for number in range(10_000)]
            assert all(outcome.allowed for outcome in await spend(store, *call))
            refused = await spend(store, *call, Spend("none", Limit(0, UNITS["day"]), 1, 10_000))
            assert not refused[-1].allowed
            assert (await spend(store, call[-1]))[0].remaining == 8
        finally:
            await store.close()

    asyncio.run(scenario())


def test_a_cluster_counts_like_one_server(cluster: Cluster) -> None:
    """Calls of many domains, spread over three nodes and sent together, are each counted all or nothing."""
    domains = [f"domain-{number}" for number in range(30)]
    assert len({cluster.node_of(f"garrison:{{{domain}}}:x").port for domain in domains}) == 3

    async def scenario() -> None:
        store = store_at(*cluster.urls[:1], mode="cluster")
        two = Limit(2, UNITS["day"], counts_denied=False)
        try:
            for expected in ([True, True], [True, True], [True, False], [True, False]):
                calls = [
                    [Spend("a", TEN, 1, 0, domain=domain), Spend("b", two, 1, 1, domain=domain)]
                    for domain in domains
                ]
                found = await asyncio.gather(*(store.spend(call, START) for call in calls))
                assert [[outcome.allowed for outcome in outcomes] for outcomes in found] == [expected] * 30
            left = await asyncio.gather(
                *(store.spend([Spend("a", TEN, 0, domain=domain)], START) for domain in domains)
            )
            assert [outcome.remaining for (outcome,) in left] == [8] * 30
        finally:
            await store.close()

    asyncio.run(scenario())


def scripts_run(node: Valkey | Node) -> int:
    """Return how many scripts a server has run."""
    if isinstance(node, Node):
        stats = node.ask("INFO", "commandstats")
    else:
        client = node.client()
        stats = client.info("commandstats")
        client.close()
    return sum(int(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"]) for name in ("evalsha", "eval"))


def test_calls_of_one_turn_are_one_script(valkey: Valkey) -> None:
    """A hundred calls that come up together are one script, and what comes up meanwhile waits for the next one."""

    async def scenario() -> None:
        store = store_at(valkey.url)
        try:
            await spend(store, Spend("turn", TEN, 0))
            before = scripts_run(valkey)
            found = await asyncio.gather(
                *(store.spend([Spend(f"turn{n}", TEN, 1)], START) for n in range(100))
            )
            assert all(outcome.remaining == 9 for (outcome,) in found)
            assert scripts_run(valkey) - before == 1
        finally:
            await store.close()

    asyncio.run(scenario())


def test_leases_keep_to_the_limit(valkey: Valkey) -> None:
    """Four processes that take leases allow the limit at most, nearly all of it, and ask seldom."""
    limit = Limit(100, UNITS["year"], lease=7)

    async def scenario() -> None:
        guards = [GuardedStore(store_at(valkey.url), time.monotonic, deadline_seconds=5.0) for _ in range(4)]
        allowed = 0
        try:
            before = scripts_run(valkey)
            for number in range(160):
                found = guards[number % 4].spend([Spend("leased", limit, 1)], START)
                (outcome,) = found if isinstance(found, list) else await found
                allowed += outcome.allowed
            assert 100 - 4 * 6 <= allowed <= 100
            assert scripts_run(valkey) - before < 30
        finally:
            for guard in guards:
                await guard.close()

    asyncio.run(scenario())


def test_a_cluster_gets_one_script_for_each_slot(cluster: Cluster) -> None:
    """Calls of one turn for two domains are two scripts, each where its slot is."""
    names = [f"turn-{number}" for number in range(20)]
    first = cluster.node_of(f"garrison:{{{names[0]}}}:x")
    second = next(name for name in names if cluster.node_of(f"garrison:{{{name}}}:x") is not first)

    async def scenario() -> None:
        store = store_at(*cluster.urls, mode="cluster")
        try:
            domains = [names[0], second]
            await asyncio.gather(*(spend(store, Spend("k", TEN, 0, domain=domain)) for domain in domains))
            before = [scripts_run(node) for node in cluster.nodes]
            calls = [[Spend(f"k{n}", TEN, 1, domain=domain)] for domain in domains for n in range(50)]
            await asyncio.gather(*(store.spend(call, START) for call in calls))
            after = [scripts_run(node) for node in cluster.nodes]
            assert sorted(now - then for now, then in zip(after, before, strict=True)) == [0, 1, 1]
        finally:
            await store.close()

    asyncio.run(scenario())


def test_a_slot_that_moved_is_followed(cluster: Cluster) -> None:
    """When a slot is with another node than before, the call is counted there, once."""
    key = "garrison:{moving}:x"
    slot = cluster.nodes[0].ask("CLUSTER", "KEYSLOT", key)

    async def scenario() -> None:
        store = store_at(*cluster.urls, mode="cluster")
        try:
            call = Spend("new", TEN, 1, domain="moving")
            await spend(store, Spend("old", TEN, 1, domain="moving"))
            source = cluster.node_of(key)
            target = next(node for node in cluster.nodes if node is not source)
            name = target.ask("CLUSTER", "MYID")
            source.ask("FLUSHALL")
            for node in cluster.nodes:
                node.ask("CLUSTER", "SETSLOT", str(slot), "NODE", name)
            assert [(await spend(store, call))[0].remaining for _ in range(2)] == [9, 8]
            assert target.ask("EXISTS", "garrison:{moving}:day!new") == 1
        finally:
            await store.close()

    asyncio.run(scenario())


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    """Without a server there is no outcome."""

    async def scenario() -> None:
        store = store_at(f"unix://{tmp_path}/none.sock")
        try:
            with pytest.raises(DependencyError, match="connection"):
                await spend(store, Spend("k", TEN, 1))
        finally:
            await store.close()

    asyncio.run(scenario())
