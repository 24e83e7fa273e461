"""A connection hands each answer to who asked, and tells everybody when it is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from ratelimit.store.connection import AnswerError, Connection, Endpoint, open_connection

Server = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
def socket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a path that is short enough for a Unix socket."""
    return tmp_path_factory.mktemp("c") / "s"


def talk(socket: Path, server: Server, client: Callable[[Connection], Awaitable[None]]) -> None:
    """Run a client against a server that says what the test says."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await server(reader, writer)
        finally:
            writer.close()

    async def scenario() -> None:
        listening = await asyncio.start_unix_server(accept, socket)
        connection = await open_connection(Endpoint(path=str(socket)))
        async with asyncio.timeout(20):
            await client(connection)
        connection.close()
        listening.close()

    asyncio.run(scenario())


def test_answers_come_in_order(socket: Path) -> None:
    """Answers that arrive in pieces, or several at once, go to the commands in their order; errors are values."""

    async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"three\r\n")
        for piece in (b"$3\r", b"\none\r\n-ERR n", b"o\r\n:3\r\n"):
            writer.write(piece)
            await writer.drain()
        await reader.read()

    async def client(connection: Connection) -> None:
        one, two, three = (connection.send("ECHO", word) for word in ("one", "two", "three"))
        assert await one == b"one"
        assert isinstance(found := await two, AnswerError)
        assert (found.code, found.text) == ("ERR", "ERR no")
        assert await three == 3

    talk(socket, server, client)


def test_who_gave_up_is_skipped(socket: Path) -> None:
    """An answer that nobody waits for any more does not become somebody else's."""

    async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"two\r\n")
        writer.write(b"+first\r\n+second\r\n")
        await reader.read()

    async def client(connection: Connection) -> None:
        connection.send("ECHO", "one").cancel()
        assert await connection.send("ECHO", "two") == b"second"

    talk(socket, server, client)


@pytest.mark.parametrize("said", [b"", b"nonsense\r\n", b"+one\r\n+never asked for\r\n"])
def test_a_server_that_makes_no_sense_is_left(socket: Path, said: bytes) -> None:
    """A server that hangs up, or says what is no answer, loses the connection; who waits hears of it."""

    async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"one\r\n")
        writer.write(said)
        await writer.drain()
        if said:
            await reader.read()

    async def client(connection: Connection) -> None:
        one = connection.send("ECHO", "one")
        if said.startswith(b"+"):
            assert await one == b"one"
            await asyncio.sleep(0)
        else:
            with pytest.raises(ConnectionError):
                await one
        assert not connection.is_open
        with pytest.raises(ConnectionError):
            connection.send("PING")

    talk(socket, server, client)


def test_a_password_is_shown_nowhere() -> None:
    """An endpoint prints where, not how."""
    endpoint = Endpoint("counts.example", 6379, username="garrison", password="hidden")
    assert str(endpoint) == "counts.example:6379"
    assert "hidden" not in repr(endpoint)
