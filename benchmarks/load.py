"""Load for any unary gRPC server: many calls in flight on a few HTTP/2 connections.

`load` is what the benchmarks call. As a program, it sends the same messages to any address:

    python -m benchmarks.load tcp://127.0.0.1:9191 /grpc.health.v1.Health/Check --seconds 3
"""

from __future__ import annotations

import argparse
import asyncio
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from struct import Struct
from time import perf_counter
from typing import cast

from ngh2 import (
    Configuration,
    Connection,
    DataReceived,
    Event,
    GoAwayReceived,
    NGH2Error,
    ResponseReceived,
    Role,
    Setting,
    StreamClosed,
    TrailersReceived,
)

from garrison.transport.address import Address, Scheme
from garrison.transport.wire import PREFIX

Metadata = Sequence[tuple[bytes, bytes]]

_OK = (b"grpc-status", b"0")
_WINDOW_BYTES = 1 << 24
# How often a paced load begins the calls that are due.
_PACE_SECONDS = 0.001
# A load that hangs is a result too: after its time it may take this long to collect the last answers.
_SETTLE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What came of a load. `calls` were answered with status OK; latencies are theirs, in microseconds."""

    calls: int
    errors: int
    seconds: float
    p50_us: float
    p90_us: float
    p99_us: float
    max_us: float
    # The last response message, for the caller to look into.
    last_answer: bytes

    @property
    def calls_per_second(self) -> float:
        """Answered calls per second of wall-clock time."""
        return self.calls / self.seconds if self.seconds else 0.0


class _Run:
    """What the connections of one load share."""

    def __init__(
        self,
        messages: Sequence[bytes],
        calls: int | None,
        on_answer: Callable[[bytes], None] | None,
        rate: float | None,
    ) -> None:
        self.on_answer = on_answer
        self.rate = rate
        self._begin = perf_counter()
        self._made = 0
        self.frames = cycle([PREFIX.pack(0, len(message)) + message for message in messages])
        self.left = calls
        self.stopped = False
        self.latencies = array("d")
        self.errors = 0
        self.last_answer = b""

    def take(self) -> bool:
        """Return whether one more call is to be made, and count it."""
        if self.stopped or self.left == 0:
            return False
        if self.rate is not None:
            if self._made >= (perf_counter() - self._begin) * self.rate:
                return False
            self._made += 1
        if self.left is not None:
            self.left -= 1
        return True


class _Client(asyncio.Protocol):
    """One connection that keeps `streams` calls in flight."""

    def __init__(self, run: _Run, headers: list[tuple[bytes, bytes]], streams: int) -> None:
        self._run = run
        self._headers = headers
        self._streams = streams
        self._loop = asyncio.get_running_loop()
        self._http2 = Connection(Role.CLIENT, Configuration(peer_max_concurrent_streams=streams))
        self._started: dict[int, float] = {}
        self._succeeded: set[int] = set()
        # Response messages that somebody wants to see, by stream, with their prefix.
        self._answers: dict[int, bytes] = {}
        self.done = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._http2.initiate_connection({Setting.INITIAL_WINDOW_SIZE: _WINDOW_BYTES, Setting.ENABLE_PUSH: 0})
        self._http2.set_local_window_size(_WINDOW_BYTES)
        self._fill()

    def data_received(self, data: bytes) -> None:
        try:
            self._http2.receive_data(data)
            self._process(self._http2.events())
            if self._run.rate is None or self._run.stopped:
                self._fill()
        except NGH2Error:
            self._transport.abort()

    def connection_lost(self, _exc: Exception | None) -> None:
        self._run.errors += len(self._started)
        self._started.clear()
        if not self.done.done():
            self.done.set_result(None)

    def _process(self, events: list[Event]) -> None:
        run = self._run
        now = perf_counter()
        for event in events:
            kind = type(event)
            if kind is StreamClosed:
                stream_id = cast("StreamClosed", event).stream_id
                started = self._started.pop(stream_id, None)
                answer = self._answers.pop(stream_id, b"") if run.on_answer else b""
                if stream_id in self._succeeded:
                    if run.on_answer:
                        run.on_answer(answer[PREFIX.size :])
                    self._succeeded.discard(stream_id)
                    if started is not None:
                        run.latencies.append(now - started)
                elif started is not None:
                    run.errors += 1
            elif kind is DataReceived:
                data_event = cast("DataReceived", event)
                run.last_answer = data_event.data[PREFIX.size :]
                if run.on_answer:
                    before = self._answers.get(data_event.stream_id, b"")
                    self._answers[data_event.stream_id] = before + data_event.data
            elif kind is TrailersReceived:
                trailers = cast("TrailersReceived", event)
                if _OK in trailers.headers:
                    self._succeeded.add(trailers.stream_id)
            elif kind is GoAwayReceived:
                self._streams = 0
            elif kind is ResponseReceived:
                continue

    def _fill(self) -> None:
        http2 = self._http2
        run = self._run
        now = perf_counter()
        while len(self._started) < self._streams and run.take():
            stream_id = http2.send_request(self._headers)
            http2.send_data(stream_id, next(run.frames), end_stream=True)
            self._started[stream_id] = now
        data = http2.data_to_send()
        if data:
            self._transport.write(data)
        if run.rate is not None and not run.stopped:
            self._loop.call_later(_PACE_SECONDS, self._fill)
        elif not self._started and not self.done.done():
            self.done.set_result(None)
            self._transport.close()

    def abort(self) -> None:
        self._transport.abort()


async def load(
    address: Address,
    method_path: str,
    messages: Sequence[bytes],
    *,
    connections: int = 4,
    streams: int = 32,
    calls: int | None = None,
    seconds: float | None = None,
    metadata: Metadata = (),
    on_answer: Callable[[bytes], None] | None = None,
    rate: float | None = None,
    stop: asyncio.Event | None = None,
) -> LoadResult:
    """Call `method_path` with `messages` in turn, until `calls` were made or `seconds` are over.

    A call counts as an error if it ends with another status than OK, or with its connection. A connection
    that got a GOAWAY finishes its calls and makes no more. `on_answer` is given each response message.
    With a `rate`, so many calls are begun in a second, as long as no more than `streams` are in flight. Where
    `seconds` are given, `stop` ends the load before they are over.

    Raises:
        ValueError: neither bound is given, or the address is a TLS one.
        OSError: the server cannot be reached.

    """
    if (calls is None) == (seconds is None) or not messages:
        raise ValueError("a load needs messages and either a number of calls or of seconds")
    if address.scheme is Scheme.TLS:
        raise ValueError("this client has no TLS")
    loop = asyncio.get_running_loop()
    run = _Run(messages, calls, on_answer, rate)
    authority = "localhost" if address.scheme is Scheme.UNIX else f"{address.host}:{address.port}"
    headers = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", method_path.encode()),
        (b":authority", authority.encode()),
        (b"te", b"trailers"),  # codespell:ignore te
        (b"content-type", b"application/grpc"),
        *metadata,
    ]
    begin = loop.time()
    clients = [await _connect(address, run, headers, streams) for _ in range(connections)]
    ends = [client.done for client in clients]
    if seconds is not None:
        stopping = asyncio.ensure_future(stop.wait()) if stop is not None else loop.create_future()
        ended = asyncio.gather(*ends)
        await asyncio.wait((ended, stopping), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        run.stopped = True
        await asyncio.wait(ends, timeout=_SETTLE_SECONDS)
    else:
        # Bounded even if the server never answers: no call of interest here takes a tenth of a second.
        await asyncio.wait(ends, timeout=_SETTLE_SECONDS + (calls or 0) / 10)
    end = loop.time()
    for client in clients:
        client.abort()
    await asyncio.sleep(0)
    return _result(run, end - begin)


async def _connect(address: Address, run: _Run, headers: list[tuple[bytes, bytes]], streams: int) -> _Client:
    loop = asyncio.get_running_loop()
    if address.scheme is Scheme.UNIX:
        _, client = await loop.create_unix_connection(lambda: _Client(run, headers, streams), address.path)
    else:
        _, client = await loop.create_connection(
            lambda: _Client(run, headers, streams), address.host, address.port
        )
    return client


def _result(run: _Run, seconds: float) -> LoadResult:
    ordered = sorted(run.latencies)
    count = len(ordered)

    def percentile(share: float) -> float:
        return ordered[min(count - 1, int(count * share))] * 1e6 if count else 0.0

    return LoadResult(
        calls=count,
        errors=run.errors,
        seconds=seconds,
        p50_us=percentile(0.5),
        p90_us=percentile(0.9),
        p99_us=percentile(0.99),
        max_us=percentile(1.0),
        last_answer=run.last_answer,
    )


_LENGTH = Struct(">I")


def write_messages(file: Path, messages: Iterable[bytes]) -> None:
    """Write `messages` for `--messages`."""
    file.write_bytes(b"".join(_LENGTH.pack(len(message)) + message for message in messages))


def read_messages(file: Path) -> list[bytes]:
    """Return what `write_messages` wrote."""
    content, found, at = file.read_bytes(), [], 0
    while at < len(content):
        (length,) = _LENGTH.unpack_from(content, at)
        found.append(content[at + _LENGTH.size : at + _LENGTH.size + length])
        at += _LENGTH.size + length
    return found


def main() -> None:
    """Print what came of one load."""
    parser = argparse.ArgumentParser(description="Load a unary gRPC method.")
    parser.add_argument("address", type=Address.parse, help="tcp://HOST:PORT or unix:///PATH")
    parser.add_argument("method", help="/package.Service/Method")
    parser.add_argument("--message", type=bytes.fromhex, default=b"", help="the request, in hex")
    parser.add_argument("--messages", type=Path, help="a file of requests, each after its length (4 bytes)")
    parser.add_argument("--rate", type=float, help="calls begun in a second; as many as go, if left out")
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    result = asyncio.run(
        load(
            options.address,
            options.method,
            read_messages(options.messages) if options.messages else [options.message],
            rate=options.rate,
            connections=options.connections,
            streams=options.streams,
            seconds=options.seconds,
        )
    )
    print(
        f"{result.calls} calls, {result.errors} errors, {result.calls_per_second:.0f}/s,"
        f" p50 {result.p50_us:.0f} us, p99 {result.p99_us:.0f} us"
    )


if __name__ == "__main__":
    main()
