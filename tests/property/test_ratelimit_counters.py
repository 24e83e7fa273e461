"""Looking at counters changes nothing and tells what calls would be told; a reset makes one like new, and no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.limit_strategies import calls, limits
from support.ratelimit import START, Clock
from support.valkey import Valkey

from ratelimit.algorithm import SECOND, Limit, Outcome
from ratelimit.charge import Spend
from ratelimit.counters import Counter, read_counters
from ratelimit.store.base import CounterStore
from ratelimit.store.connection import Endpoint
from ratelimit.store.memory import MemoryStore
from ratelimit.store.redis import RedisStore
from ratelimit.store.servers import SingleServer

ON_SERVER = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
History = list[tuple[int, list[Spend]]]


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """Run one server for all examples."""
    with Valkey(tmp_path_factory.mktemp("v")) as server:
        yield server


@asynccontextmanager
async def stores(valkey: Valkey, clock: Clock) -> AsyncIterator[list[CounterStore]]:
    """Yield an empty store in memory and an empty one in a real server."""
    servers = SingleServer(Endpoint(path=str(valkey.socket)))
    shared = RedisStore(servers, clock=clock)
    try:
        await (await servers.connection(0)).ask("FLUSHALL")
        yield [MemoryStore(), shared]
    finally:
        await shared.close()


async def spend(store: CounterStore, clock: Clock, now: int, spends: Sequence[Spend]) -> list[Outcome]:
    """Return the outcomes of a call at `now`."""
    clock.now = now
    found = store.spend(spends, now)
    return found if isinstance(found, list) else await found


@st.composite
def histories(draw: Any, chosen: list[Limit]) -> History:
    """Draw calls, one after the other, and when each is made."""
    now, found = START, []
    for _ in range(draw(st.integers(1, 8))):
        wait, spends = draw(calls(chosen))
        now += wait * 1000
        found.append((now, spends))
    return found


def named(history: History) -> list[Spend]:
    """Return every bucket of a history once, as an operator would name it."""
    found = {
        (one.limit.kind, one.key): one._replace(cost=0, extra=0) for _, spends in history for one in spends
    }
    return list(found.values())


def told(counters: Sequence[Counter]) -> list[tuple[object, ...]]:
    """Return what is shown of counters, to be compared."""
    return [(one.used, one.remaining, one.over_limit, one.reset, one.as_json()["stored"]) for one in counters]


@ON_SERVER
@given(data=st.data(), chosen=st.lists(limits(), min_size=1, max_size=3))
def test_looking_changes_nothing(data: st.DataObject, chosen: list[Limit], valkey: Valkey) -> None:
    """Every answer is the same with a look before it, both stores show the same, and it is what a look by a call says."""
    history = data.draw(histories(chosen))
    buckets = named(history)

    async def scenario() -> None:
        clock = Clock()
        alone = MemoryStore()
        async with stores(valkey, clock) as watched:
            for now, spends in history:
                expected = alone.spend(spends, now)
                shown = []
                for store in watched:
                    clock.now = now
                    counters = read_counters(buckets, await store.look(buckets, now))
                    again = read_counters(buckets, await store.look(buckets, now))
                    assert told(counters) == told(again)
                    assert await spend(store, clock, now, spends) == expected
                    shown.append(told(counters))
                assert shown[0] == shown[1]
            last = history[-1][0]
            counters = read_counters(buckets, await alone.look(buckets, last))
            for bucket, counter in zip(buckets, counters, strict=True):
                (outcome,) = alone.spend([bucket._replace(once="")], last)
                assert (counter.over_limit, counter.remaining, counter.reset) == (
                    not outcome.allowed,
                    outcome.remaining,
                    outcome.reset,
                )

    asyncio.run(scenario())


@ON_SERVER
@given(data=st.data(), chosen=st.lists(limits(), min_size=1, max_size=3))
def test_a_reset_counter_is_like_new(data: st.DataObject, chosen: list[Limit], valkey: Valkey) -> None:
    """Whatever was counted: the next calls are answered as by an empty store, and all other buckets stay."""
    history = data.draw(histories(chosen))
    buckets = named(history)
    # With every identifier that was used: its records are removed when it is named.
    target = data.draw(st.sampled_from(buckets))
    identifiers = {
        one.once
        for _, spends in history
        for one in spends
        if (one.limit, one.key) == (target.limit, target.key)
    }
    after = [
        (history[-1][0] + wait * SECOND // 4, target._replace(cost=cost, once=once))
        for wait, cost, once in data.draw(
            st.lists(
                st.tuples(st.integers(0, 9), st.integers(-2, 9), st.sampled_from(sorted(identifiers))),
                min_size=1,
                max_size=6,
            )
        )
    ]
    after.sort(key=lambda one: one[0])

    async def scenario() -> None:
        clock = Clock()
        async with stores(valkey, clock) as both:
            for store in both:
                for now, spends in history:
                    await spend(store, clock, now, spends)
                others = [
                    one for one in buckets if (one.limit.kind, one.key) != (target.limit.kind, target.key)
                ]
                now = history[-1][0]
                before = await store.look([target], now)
                untouched = await store.look(others, now) if others else None
                for number, once in enumerate(sorted(identifiers)):
                    found = await store.reset([target._replace(once=once)], now)
                    assert found.buckets == (before.buckets if number == 0 else [None])
                if others:
                    assert await store.look(others, now) == untouched
                empty = MemoryStore()
                for at, one in after:
                    assert await spend(store, clock, at, [one]) == empty.spend([one], at)

    asyncio.run(scenario())
