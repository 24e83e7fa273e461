"""Load for an HTTP/1.1 server: one request at a time on each of several kept connections."""

from __future__ import annotations

import asyncio
import re
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from time import perf_counter
from typing import cast

_HEAD_END = b"\r\n\r\n"
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
_SETTLE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class HttpResult:
    """What came of a load: answers by status code, and connections that ended early."""

    statuses: Counter[int]
    lost: int
    latencies_us: Sequence[float]

    @property
    def calls(self) -> int:
        """How many requests were answered."""
        return sum(self.statuses.values())


def request(method: str, path: str, headers: Sequence[tuple[str, str]]) -> bytes:
    """Return a request without a body."""
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def parse_response(data: bytes) -> tuple[int, int] | None:
    """Return status and length in bytes of the response that `data` begins with; None if it is not all there.

    Raises:
        ValueError: it has no `content-length`; nothing else is understood here.

    """
    head = data.find(_HEAD_END)
    if head < 0:
        return None
    length = _CONTENT_LENGTH.search(data, 0, head)
    if length is None:
        raise ValueError("a response has no content-length")
    size = head + len(_HEAD_END) + int(length[1])
    return (int(data[9:12]), size) if len(data) >= size else None


class _Client(asyncio.Protocol):
    def __init__(self, requests: cycle[bytes], statuses: Counter[int], latencies: array[float]) -> None:
        self._requests = requests
        self._statuses = statuses
        self._latencies = latencies
        self._buffer = b""
        self._started = 0.0
        self.stopped = False
        self.lost = False
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        response = parse_response(self._buffer)
        if response is None:
            return
        status, size = response
        self._buffer = self._buffer[size:]
        self._latencies.append((perf_counter() - self._started) * 1e6)
        self._statuses[status] += 1
        if self.stopped:
            self._end()
        else:
            self._send()

    def connection_lost(self, _exc: Exception | None) -> None:
        if not self.done.done():
            self.lost = True
            self._end()

    def _send(self) -> None:
        self._started = perf_counter()
        self._transport.write(next(self._requests))

    def _end(self) -> None:
        self.done.set_result(None)
        self._transport.close()


async def http_load(
    host: str, port: int, requests: Sequence[bytes], *, connections: int, seconds: float
) -> HttpResult:
    """Send `requests` in turn for `seconds` and return what was answered.

    Raises:
        OSError: the server cannot be reached.

    """
    loop = asyncio.get_running_loop()
    statuses: Counter[int] = Counter()
    latencies = array("d")
    endless = cycle(requests)
    clients = [
        (await loop.create_connection(lambda: _Client(endless, statuses, latencies), host, port))[1]
        for _ in range(connections)
    ]
    ends = [client.done for client in clients]
    await asyncio.wait(ends, timeout=seconds)
    for client in clients:
        client.stopped = True
    await asyncio.wait(ends, timeout=_SETTLE_SECONDS)
    unfinished = sum(not client.done.done() for client in clients)
    return HttpResult(statuses, sum(client.lost for client in clients) + unfinished, latencies)
