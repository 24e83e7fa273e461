"""A flood of unary gRPC calls that costs its sender next to nothing, so that the server's share is measured.

Requests are written as HTTP/2 frames made beforehand (RFC 9113), a few each millisecond; of the
answers only the ends are counted. A client that unpacks what it gets takes more of a core than the server
does, and on a machine of two cores it would be the client that makes good traffic wait.

    python -m benchmarks.flood tcp://127.0.0.1:9191 /package.Service/Method messages --rate 20000
"""

from __future__ import annotations

import argparse
import os
import socket
import time
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from struct import Struct

from benchmarks.load import read_messages
from garrison.transport.address import Address
from garrison.transport.wire import PREFIX

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_MAX_WINDOW = (1 << 31) - 1
_INITIAL_WINDOW = 65_535
_HEAD = Struct(">HBBBI")  # length (upper 16 bits, lower 8), type, flags, stream
_TICK_SECONDS = 0.001
_NICENESS = 10
# Calls that were not answered yet, on one connection: what a server allows at once (RFC 9113, 5.1.2).
_MAX_UNANSWERED = 128


class FloodError(Exception):
    """The server ended the flood."""


def _frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    size = len(payload)
    return _HEAD.pack(size >> 8, size & 255, kind, flags, stream_id) + payload


def _literal(name: bytes | int, value: bytes) -> bytes:
    """Return a header field that the server's table remembers (RFC 7541, 6.2.1)."""
    head = b"\x40" + _string(name) if isinstance(name, bytes) else bytes([0x40 | name])
    return head + _string(value)


def _string(text: bytes) -> bytes:
    assert len(text) < 127  # noqa: S101 - what is sent here is short
    return bytes([len(text)]) + text


class _Connection:
    """One HTTP/2 connection. Its first call teaches the server the headers; the others name them."""

    def __init__(self, address: Address, method: str) -> None:
        self.answered = self._sent = 0
        self._socket = socket.create_connection((address.host, address.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        window = (_MAX_WINDOW - _INITIAL_WINDOW).to_bytes(4, "big")
        self._socket.sendall(_PREFACE + _frame(_SETTINGS, 0, 0, b"") + _frame(_WINDOW_UPDATE, 0, 0, window))
        self._socket.setblocking(False)
        self._credit = _INITIAL_WINDOW
        self._rest = b""
        # Static table (RFC 7541, appendix A): 1 :authority, 3 :method POST, 4 :path, 6 :scheme http,
        # 31 content-type. What is added last is entry 62.
        self._block = b"\x83\x86" + b"".join(
            (
                _literal(4, method.encode()),
                _literal(1, f"{address.host}:{address.port}".encode()),
                _literal(31, b"application/grpc"),
                _literal(b"te", b"trailers"),  # codespell:ignore te
            )
        )

    def has_room(self, size: int) -> bool:
        return self._credit >= size and self._sent - self.answered < _MAX_UNANSWERED

    def send(self, messages: Sequence[bytes]) -> None:
        """Begin a call with each of `messages`, all in one write."""
        parts = []
        for message in messages:
            stream_id = 2 * self._sent + 1
            parts.append(_frame(_HEADERS, _END_HEADERS, stream_id, self._block))
            parts.append(_frame(_DATA, _END_STREAM, stream_id, message))
            self._block = b"\x83\x86\xc1\xc0\xbf\xbe"
            self._credit -= len(message)
            self._sent += 1
        self._socket.setblocking(True)
        self._socket.sendall(b"".join(parts))
        self._socket.setblocking(False)

    def receive(self) -> None:
        """Take what the server sent."""
        try:
            data = self._rest + self._socket.recv(1 << 20)
        except BlockingIOError:
            return
        at, end = 0, len(data)
        while at + 9 <= end:
            upper, lower, kind, flags, _ = _HEAD.unpack_from(data, at)
            size = upper << 8 | lower
            if at + 9 + size > end:
                break
            if kind == _HEADERS:
                self.answered += flags & _END_STREAM
            elif kind == _WINDOW_UPDATE:
                if not int.from_bytes(data[at + 5 : at + 9], "big"):
                    self._credit += int.from_bytes(data[at + 9 : at + 13], "big")
            elif kind == _GOAWAY:
                raise FloodError("the server sent GOAWAY")
            elif kind in {_SETTINGS, _PING} and not flags & _ACK:
                payload = b"" if kind == _SETTINGS else data[at + 9 : at + 17]
                self._socket.send(_frame(kind, _ACK, 0, payload))
            at += 9 + size
        self._rest = data[at:]


def flood(
    address: Address, method: str, messages: Iterator[bytes], *, rate: float, connections: int, seconds: float
) -> int:
    """Begin `rate` calls a second for `seconds`, and return how many were answered.

    Calls that the server leaves no room for are left out: it never gets more than its windows allow.

    Raises:
        FloodError: the server ended a connection.
        OSError: it cannot be reached.

    """
    # Good calls beside it are not to wait for their sender's turn: it gives way on the core that both use.
    os.nice(_NICENESS)
    opened = [_Connection(address, method) for _ in range(connections)]
    turn = cycle(opened)
    begin = now = time.perf_counter()
    begun = 0
    while now < begin + seconds:
        due = int((now - begin) * rate) - begun
        begun += due
        batch = [next(messages) for _ in range(min(due, _MAX_UNANSWERED))]
        connection = next(turn)
        connection.receive()
        if batch and connection.has_room(sum(map(len, batch))):
            connection.send(batch)
        time.sleep(_TICK_SECONDS)
        now = time.perf_counter()
    for connection in opened:
        connection.receive()
    return sum(connection.answered for connection in opened)


def main() -> None:
    """Print how many calls were answered."""
    parser = argparse.ArgumentParser(description="Flood a unary gRPC method.")
    parser.add_argument("address", type=Address.parse, help="tcp://HOST:PORT")
    parser.add_argument("method", help="/package.Service/Method")
    parser.add_argument("messages", type=Path, help="a file of requests, each after its length (4 bytes)")
    parser.add_argument("--rate", type=float, default=20_000, help="calls begun in a second")
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    frames = [PREFIX.pack(0, len(message)) + message for message in read_messages(options.messages)]
    answered = flood(
        options.address,
        options.method,
        cycle(frames),
        rate=options.rate,
        connections=options.connections,
        seconds=options.seconds,
    )
    print(f"{answered} calls answered")


if __name__ == "__main__":
    main()
