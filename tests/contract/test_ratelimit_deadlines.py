"""Real servers that fail, on a clock that the test moves: nobody waits longer than the breaker's own deadline.

Where a server says that it cannot, or is gone, nobody waits at all: the clock stands still.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from support.manual_loop import PATIENCE_SECONDS, ManualLoop, until
from support.ratelimit import START
from support.valkey import KINDS, Valkey
from support.valkey_nodes import Cluster, Node

from ratelimit.algorithm import UNITS, Limit, OnStoreFailure, Outcome
from ratelimit.charge import Spend
from ratelimit.store.connection import Endpoint
from ratelimit.store.guard import GuardedStore, State
from ratelimit.store.redis import RedisStore
from ratelimit.store.servers import ClusterServers, SentinelServer, Servers, SingleServer

DEADLINE_SECONDS = 0.01
# An answer that may have come and was not read yet, because this process was late, is given so much more.
GRACE_SECONDS = 0.002
LIMIT = Limit(1000, UNITS["year"], on_store_failure=OnStoreFailure.ALLOW)
CALL = [Spend("k", LIMIT, 1)]


class Gate:
    """A way to a server on which its answers may be held back."""

    def __init__(self, server: Path) -> None:
        self._server = server
        self.path = server.with_name("gate.sock")
        self.passes = asyncio.Event()
        self.passes.set()
        self._writers: list[asyncio.StreamWriter] = []
        self._busy = 0

    async def listen(self) -> asyncio.Server:
        """Take connections."""
        return await asyncio.start_unix_server(self._accept, self.path)

    async def close(self) -> None:
        """End all connections."""
        self.passes.set()
        for writer in self._writers:
            writer.transport.abort()
        await until(lambda: not self._busy, "the end of all connections")

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._busy += 1
        self._writers.append(writer)
        try:
            inner, outer = await asyncio.open_unix_connection(self._server)
            self._writers.append(outer)
            await asyncio.gather(self._pump(reader, outer, held=False), self._pump(inner, writer, held=True))
        except OSError:
            writer.close()
        finally:
            self._busy -= 1

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, held: bool) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if held:
                    await self.passes.wait()
                writer.write(data)
        writer.close()


@dataclass
class Scene:
    """A guarded store on a real server."""

    loop: ManualLoop
    valkey: Valkey
    gate: Gate
    guard: GuardedStore

    def ask(self) -> asyncio.Task[list[Outcome]] | list[Outcome]:
        """Make a call; a list is what was answered at once."""
        found = self.guard.spend(CALL, START)
        return found if isinstance(found, list) else asyncio.ensure_future(_wait(found))

    async def answer(self) -> Outcome:
        """Return the answer to a call for which no time passes."""
        found = self.ask()
        if isinstance(found, list):
            return found[0]
        await until(found.done, "an answer without any time passing")
        return found.result()[0]

    def command(self, *words: str, password: str | None = None) -> Any:
        """Have the server do something."""
        client: Any = redis.Redis(unix_socket_path=str(self.valkey.socket), password=password, protocol=2)
        try:
            return client.execute_command(*words)
        finally:
            client.close()

    @property
    def state(self) -> State:
        """The state of the only breaker."""
        (breaker,) = self.guard.breakers()
        return breaker.state

    async def breaks(self, reason: str) -> None:
        """See that the breaker is open for `reason`, says so, and answers everybody at once."""
        await until(lambda: f"({reason})" in self.guard.describe(), f"open: {reason}")
        assert self.guard.failures[reason] >= 1
        for _ in range(20):
            found = self.ask()
            assert isinstance(found, list)
            assert not found[0].is_known

    async def heals(self) -> Outcome:
        """Let time pass between probes until the store is asked again; return its answer."""
        give_up = time.monotonic() + PATIENCE_SECONDS
        while self.state is not State.CLOSED:
            assert time.monotonic() < give_up, self.guard.describe()
            if self.state is State.OPEN:
                self.loop.now += 0.1
            await asyncio.sleep(0)
        outcome = await self.answer()
        assert outcome.is_known
        return outcome


async def _wait(found: Awaitable[list[Outcome]]) -> list[Outcome]:
    return await found


Scenario = Callable[[Scene], Awaitable[None]]


@pytest.fixture(params=KINDS)
def valkey(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """Run a server."""
    with Valkey(tmp_path_factory.mktemp("f"), kind=request.param) as server:
        yield server


def play(valkey: Valkey, scenario: Scenario, password: str | None = None) -> None:
    """Run a scenario after a call that the store has answered; nothing may go wrong behind its back."""

    @asynccontextmanager
    async def scene() -> Any:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, ManualLoop)
        gate = Gate(valkey.socket)
        server = await gate.listen()
        store = RedisStore(
            SingleServer(Endpoint(path=str(gate.path), password=password)), deadline_seconds=DEADLINE_SECONDS
        )
        guard = GuardedStore(store, loop.time, deadline_seconds=DEADLINE_SECONDS)
        try:
            yield Scene(loop, valkey, gate, guard)
        finally:
            await guard.close()
            server.close()
            await gate.close()

    wrong: list[dict[str, Any]] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: wrong.append(context))
        async with scene() as found:
            assert (await found.answer()).remaining == 999
            found.loop.now += 60.0  # long enough for a first probe that need not wait
            await scenario(found)

    with asyncio.Runner(loop_factory=ManualLoop) as runner:
        runner.run(run())
    assert wrong == []


async def expires(scene: Scene, call: asyncio.Task[list[Outcome]], late: float = 0.0) -> None:
    """See that a call waits for just the deadline, however late this process is with looking at the clock."""
    for _ in range(20):
        await asyncio.sleep(0)
    assert not call.done()
    begin = scene.loop.now
    scene.loop.now = begin + DEADLINE_SECONDS - 0.0001
    for _ in range(20):
        await asyncio.sleep(0)
    assert not call.done()
    scene.loop.now = begin + DEADLINE_SECONDS + late
    if late:
        for _ in range(20):
            await asyncio.sleep(0)
        scene.loop.now += GRACE_SECONDS
    await until(call.done, "an answer once the deadline is over")
    assert not call.result()[0].is_known


def waiting(scene: Scene) -> asyncio.Task[list[Outcome]]:
    """Return a call that waits for the store."""
    call = scene.ask()
    assert isinstance(call, asyncio.Task)
    return call


@pytest.mark.parametrize("late", [0.0, 5.0])
def test_paused(valkey: Valkey, late: float) -> None:
    """Calls to a server that says nothing wait for the deadline, those that come later not at all."""

    async def scenario(scene: Scene) -> None:
        valkey.pause()
        try:
            await expires(scene, waiting(scene), late)
            await scene.breaks("timeout")
        finally:
            valkey.resume()
        await scene.heals()

    play(valkey, scenario)


def test_slow(valkey: Valkey) -> None:
    """An answer that comes after the deadline changes nothing, and a slow probe does not close the breaker."""

    async def scenario(scene: Scene) -> None:
        scene.gate.passes.clear()
        await expires(scene, waiting(scene))
        await scene.breaks("timeout")
        await until(lambda: scene.state is State.HALF_OPEN, "a probe")
        for _ in range(20):
            await asyncio.sleep(0)
        scene.loop.now += DEADLINE_SECONDS + 0.001
        scene.gate.passes.set()
        await scene.breaks("slow")
        await scene.heals()

    play(valkey, scenario)


def test_killed(valkey: Valkey) -> None:
    """The end of a server ends the wait of those who asked it, and no later call waits for a connection."""

    async def scenario(scene: Scene) -> None:
        valkey.pause()
        call = waiting(scene)
        for _ in range(20):
            await asyncio.sleep(0)
        valkey.kill()
        await until(call.done, "an answer without any time passing")
        assert not call.result()[0].is_known
        await scene.breaks("connection")
        valkey.start()
        assert (await scene.heals()).remaining == 999

    play(valkey, scenario)


def test_restarted_empty(valkey: Valkey) -> None:
    """A server that has neither counts nor the script is taught within the call that finds out."""

    async def scenario(scene: Scene) -> None:
        valkey.kill()
        valkey.start()
        await scene.answer()
        await scene.heals()
        scene.command("SCRIPT", "FLUSH")
        scene.command("FLUSHALL")
        assert (await scene.answer()).remaining == 999
        assert scene.state is State.CLOSED

    play(valkey, scenario)


def test_failed_over(valkey: Valkey) -> None:
    """A server that has become a replica says so at once."""

    async def scenario(scene: Scene) -> None:
        scene.command("REPLICAOF", "127.0.0.1", "1")
        assert not (await scene.answer()).is_known
        await scene.breaks("read_only")
        scene.command("REPLICAOF", "NO", "ONE")
        assert (await scene.heals()).remaining == 998

    play(valkey, scenario)


def test_out_of_memory(valkey: Valkey) -> None:
    """A server that cannot write says so at once."""

    async def scenario(scene: Scene) -> None:
        scene.command("CONFIG", "SET", "maxmemory", "1")
        assert not (await scene.answer()).is_known
        await scene.breaks("out_of_memory")
        scene.command("CONFIG", "SET", "maxmemory", "0")
        assert (await scene.heals()).remaining == 998

    play(valkey, scenario)


@pytest.mark.parametrize("kind", KINDS)
def test_password_refused(tmp_path_factory: pytest.TempPathFactory, kind: str) -> None:
    """A server that refuses the password says so at once, with every new connection."""
    valkey = Valkey(tmp_path_factory.mktemp("f"), "--requirepass", "right", kind=kind)
    valkey.start()

    async def scenario(scene: Scene) -> None:
        scene.command("CONFIG", "SET", "requirepass", "other", password="right")
        scene.command("CLIENT", "KILL", "TYPE", "normal", password="other")
        await scene.answer()
        await scene.breaks("auth")
        scene.command("CONFIG", "SET", "requirepass", "right", password="other")
        assert (await scene.heals()).remaining == 998

    try:
        play(valkey, scenario, "right")
    finally:
        valkey.kill()


def test_calls_that_expire_as_they_are_sent(valkey: Valkey) -> None:
    """A script whose calls expire before it is on its way takes no later script's place.

    The third call waits behind two scripts, and its time is over just when they give their places up.
    """

    async def scenario(scene: Scene) -> None:
        for turns in [*range(8), *range(8)]:
            valkey.pause()
            try:
                calls = [waiting(scene)]
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                calls.append(waiting(scene))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                scene.loop.now += 0.001
                calls.append(waiting(scene))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                scene.loop.now += DEADLINE_SECONDS - 0.001
                for _ in range(turns):
                    await asyncio.sleep(0)
                scene.loop.now += 0.001
                await until(lambda calls=calls: all(call.done() for call in calls), "all calls")  # type: ignore[misc]
            finally:
                valkey.resume()
            await scene.heals()
            scene.loop.now += 60.0
            assert (await scene.answer()).is_known

    play(valkey, scenario)


async def passes_over(servers: Servers, slot: int) -> int:
    """Look for the server of a slot while somebody who is asked says nothing; return the port that is found."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, ManualLoop)
    try:
        looking = asyncio.ensure_future(servers.renew(slot))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not looking.done()
        # Far less than the two seconds that a probe takes at most.
        loop.now += 0.6
        await until(looking.done, "another one that is asked")
        looking.result()
        again = asyncio.ensure_future(servers.renew(slot))
        await until(again.done, "the one that answered is asked first, so no time passes")
        again.result()
        connection = await servers.connection(slot)
        asked = connection.send("CONFIG", "GET", "port")
        await until(asked.done, "an answer")
        return int(asked.result()[1])
    finally:
        servers.close()


def test_a_silent_sentinel_is_passed_over(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The Sentinel that is asked first may hang as well, as on the machine that failed: the next one is asked."""
    folder = tmp_path_factory.mktemp("s")
    master = Node(folder / "m")
    text = f"sentinel monitor counts 127.0.0.1 {master.port} 1\n"
    silent, other = (Node(folder / name, sentinel=text) for name in "ab")
    try:
        for node in (master, silent, other):
            node.start()
        silent.pause()

        async def scenario() -> None:
            sentinels = [Endpoint("127.0.0.1", node.port) for node in (silent, other)]
            servers = SentinelServer(sentinels, "counts", Endpoint())
            assert await passes_over(servers, 0) == master.port

        with asyncio.Runner(loop_factory=ManualLoop) as runner:
            runner.run(scenario())
    finally:
        for node in (silent, other, master):
            node.kill()


def test_a_silent_node_of_a_cluster_is_passed_over(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A node that hangs does not keep others from saying who serves what."""
    cluster = Cluster(tmp_path_factory.mktemp("c"))
    try:
        cluster.start()
        silent, serving, _ = cluster.nodes
        silent.pause()

        async def scenario() -> None:
            servers = ClusterServers([Endpoint("127.0.0.1", node.port) for node in (silent, serving)])
            domain = next(name for name in map(str, range(100)) if 5462 <= servers.slot(name) < 10924)
            assert await passes_over(servers, servers.slot(domain)) == serving.port

        with asyncio.Runner(loop_factory=ManualLoop) as runner:
            runner.run(scenario())
    finally:
        cluster.kill()
