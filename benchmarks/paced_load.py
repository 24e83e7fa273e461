"""Load at a steady rate for an HTTP/1.1 server, whatever it answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass, field

from benchmarks.http_load import parse_response

_SETTLE_SECONDS = 5.0


@dataclass(slots=True)
class Paced:
    """What was answered so far: for each status, how often; and how often nothing was."""

    statuses: Counter[int] = field(default_factory=Counter)
    lost: int = 0


class _Client(asyncio.Protocol):
    def __init__(self, result: Paced) -> None:
        self._result = result
        self._buffer = b""
        self.waiting = 0
        self.settled = asyncio.Event()
        self.settled.set()
        self._is_lost = False

    def sent(self) -> None:
        """Expect one more answer."""
        self.waiting += 1
        if not self._is_lost:
            self.settled.clear()

    def connection_lost(self, _exc: Exception | None) -> None:
        # Nobody will answer any more: no need to wait.
        self._is_lost = True
        self.settled.set()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while response := parse_response(self._buffer):
            status, size = response
            self._buffer = self._buffer[size:]
            self._result.statuses[status] += 1
            self.waiting -= 1
        if not self.waiting:
            self.settled.set()


async def paced_load(port: int, message: bytes, *, per_second: float, seconds: float, result: Paced) -> None:
    """Send `message` to a port of the loopback interface, `per_second` times a second for `seconds`.

    Requests fall due by the clock: a server that is late for one gets the next all the same. `result` is
    filled meanwhile.

    Raises:
        OSError: the server cannot be reached.

    """
    loop = asyncio.get_running_loop()
    transport, client = await loop.create_connection(lambda: _Client(result), "127.0.0.1", port)
    try:
        begin = loop.time()
        for number in range(int(seconds * per_second)):
            await asyncio.sleep(begin + number / per_second - loop.time())
            client.sent()
            transport.write(message)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(client.settled.wait(), _SETTLE_SECONDS)
        result.lost += client.waiting
    finally:
        transport.close()
