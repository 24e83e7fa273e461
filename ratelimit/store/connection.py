"""One connection to Redis or Valkey: commands go out as they come up, answers come back in their order.

The asynchronous client of the `redis` package gives each command a connection and several turns of the event
loop. Here one connection carries all scripts, and an answer is there in the turn in which its bytes are.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from dataclasses import dataclass, field
from typing import Any, cast

import hiredis


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server is, by host and port or by the path of a Unix socket, and how to be let in.

    Prints no password.
    """

    host: str = ""
    port: int = 0
    path: str = ""
    database: int = 0
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"


class AnswerError(Exception):
    """The server answered with an error; `code` is its first word."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.code = text.partition(" ")[0]
        self.text = text


class Connection(asyncio.Protocol):
    """An open connection. Use `open_connection` to make one."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader()
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def is_open(self) -> bool:
        """Whether commands can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, *command: str | bytes | int) -> asyncio.Future[Any]:
        """Send a command; the future will have the answer, an `AnswerError` as a value among them.

        Raises:
            ConnectionError: the connection is lost.

        """
        if self._transport is None or self._transport.is_closing():
            raise ConnectionError("the connection is closed")
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting.append(future)
        words: Any = command  # the stubs know tuples of one word only
        self._transport.write(hiredis.pack_command(words))
        return future

    async def ask(self, *command: str | bytes | int) -> Any:
        """Return the answer to a command.

        Raises:
            AnswerError: it is an error.
            ConnectionError: the connection is lost.

        """
        answer = await self.send(*command)
        if isinstance(answer, AnswerError):
            raise answer
        return answer

    def close(self) -> None:
        """Close the connection; who waits for an answer gets a `ConnectionError`."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to write to."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Hand every complete answer to who waits for it."""
        try:
            self._reader.feed(data)
            while (answer := self._reader.gets()) is not False:
                future = self._waiting.popleft()
                if not future.done():
                    error = isinstance(answer, hiredis.ReplyError)
                    future.set_result(AnswerError(str(answer)) if error else answer)
        except (hiredis.ProtocolError, IndexError):
            # Not the protocol, or more answers than commands: whatever else comes cannot be trusted.
            self.close()

    def connection_lost(self, _exc: Exception | None) -> None:
        """Tell everybody who waits."""
        waiting, self._waiting = self._waiting, deque()
        for future in waiting:
            if not future.done():
                future.set_exception(ConnectionError("the connection was lost"))
                future.exception()  # nobody may be waiting any more


async def open_connection(endpoint: Endpoint) -> Connection:
    """Return a connection on which the server has let this client in.

    Raises:
        AnswerError: it has not.
        OSError: it cannot be reached, or its certificate does not verify.

    """
    loop = asyncio.get_running_loop()
    if endpoint.path:
        _, connection = await loop.create_unix_connection(Connection, endpoint.path)
    else:
        name = endpoint.host if endpoint.tls is not None else None
        _, connection = await loop.create_connection(
            Connection, endpoint.host, endpoint.port, ssl=endpoint.tls, server_hostname=name
        )
    try:
        if endpoint.password is not None:
            user = [endpoint.username] if endpoint.username else []
            await connection.ask("AUTH", *user, endpoint.password)
        if endpoint.database:
            await connection.ask("SELECT", endpoint.database)
    except BaseException:
        connection.close()
        raise
    return connection
