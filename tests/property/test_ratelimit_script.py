"""The script inside a real Valkey answers exactly as the memory store does, and both as the plain model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.limit_model import Model
from support.limit_strategies import calls, limits
from support.ratelimit import START, Clock
from support.valkey import KINDS, Valkey

from ratelimit.algorithm import Outcome
from ratelimit.charge import Spend
from ratelimit.store.connection import Endpoint
from ratelimit.store.memory import MemoryStore
from ratelimit.store.redis import RedisStore
from ratelimit.store.servers import SingleServer

ON_SERVER = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture(scope="module", params=KINDS)
def valkey(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """Run one server for all examples."""
    with Valkey(tmp_path_factory.mktemp("v"), kind=request.param) as server:
        yield server


async def on_server(server: Valkey, turns: list[tuple[int, list[list[Spend]]]]) -> list[list[list[Outcome]]]:
    """Return the outcomes of calls that come together at each of several times, on an empty server."""
    clock = Clock()
    servers = SingleServer(Endpoint(path=str(server.socket)))
    store = RedisStore(servers, clock=clock)
    found = []
    try:
        await (await servers.connection(0)).ask("FLUSHALL")
        for now, together in turns:
            clock.now = now
            waiting = [store.spend(spends, now) for spends in together]
            found.append(list(await asyncio.gather(*waiting)))
    finally:
        await store.close()
    return found


@ON_SERVER
@given(data=st.data(), chosen=st.lists(limits(), min_size=1, max_size=3))
def test_script_answers_as_memory(data: st.DataObject, chosen: list[Any], valkey: Valkey) -> None:
    """Outcomes agree to the nanosecond, for calls one after the other and several in one script."""
    now = START
    turns: list[tuple[int, list[list[Spend]]]] = []
    for _ in range(data.draw(st.integers(1, 8))):
        together = []
        for _ in range(data.draw(st.integers(1, 3))):
            wait, spends = data.draw(calls(chosen))
            together.append(spends)
        now += wait * 1000
        turns.append((now, together))
    memory, model = MemoryStore(), Model()
    expected = [[memory.spend(spends, time) for spends in together] for time, together in turns]
    answers = asyncio.run(on_server(valkey, turns))
    assert answers == expected
    for (time, together), outcomes in zip(turns, answers, strict=True):
        for spends, found in zip(together, outcomes, strict=True):
            plain = [(one.allowed, one.remaining, one.granted) for one in found]
            assert plain == model.call(spends, time)
