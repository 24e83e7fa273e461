"""Who serves what is asked of whoever answers, and what makes no sense is a failure like any other."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from support.manual_loop import ManualLoop

from ratelimit.store.connection import Endpoint
from ratelimit.store.redis import RedisStore, StoreError
from ratelimit.store.servers import ClusterServers, Informants


async def says(path: Path, answer: bytes) -> asyncio.Server:
    """Listen for one command on each connection and give `answer`, or nothing at all."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n")
            writer.write(answer)
            await reader.read()
        finally:
            writer.close()

    return await asyncio.start_unix_server(accept, path)


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder whose name is short enough for Unix sockets."""
    return tmp_path_factory.mktemp("i")


async def look(informants: Informants, loop: ManualLoop) -> tuple[Endpoint, object] | None:
    """Ask for as long as a probe may; None if nobody has answered by then."""
    asking = asyncio.ensure_future(informants.ask("WHO"))
    end = loop.now + 2.0
    while not asking.done() and loop.now < end:
        for _ in range(20):
            await asyncio.sleep(0)
        loop.now += 0.1
    asking.cancel()
    await asyncio.wait([asking])
    return None if asking.cancelled() else asking.result()


def test_who_does_not_answer_is_asked_last(folder: Path) -> None:
    """However many say nothing, whoever looks again and again with too little time finds the one that answers."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, ManualLoop)
        answers = [b""] * 9 + [b"+here\r\n"]
        listening = [await says(folder / str(number), answer) for number, answer in enumerate(answers)]
        nodes = [Endpoint(path=str(folder / str(number))) for number in range(10)]
        informants = Informants(nodes)
        found = [await look(informants, loop) for _ in range(5)]
        assert (nodes[9], b"here") in found
        assert found[0] is None
        assert await look(informants, loop) == (nodes[9], b"here")
        for server in listening:
            server.close()
        for _ in range(20):
            await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=ManualLoop) as runner:
        runner.run(scenario())


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"+OK\r\n", "answer"),
        (b"*1\r\n*2\r\n:0\r\n:16383\r\n", "answer"),
        (b"*1\r\n*3\r\n:0\r\n:1\r\n*1\r\n$1\r\na\r\n", "answer"),
        (b"*1\r\n:7\r\n", "answer"),
        (b"*0\r\n", "connection"),
        (b"-NOPERM no\r\n", "auth"),
    ],
)
def test_an_answer_that_makes_no_sense(folder: Path, answer: bytes, reason: str) -> None:
    """A node that says something else than who serves what is one that fails, so that it is tried again."""

    async def scenario() -> None:
        server = await says(folder / "s", answer)
        store = RedisStore(ClusterServers([Endpoint(path=str(folder / "s"))]))
        with pytest.raises(StoreError) as failure:
            await store.renew("d")
        assert failure.value.reason == reason
        await store.close()
        server.close()

    asyncio.run(scenario())
