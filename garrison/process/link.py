"""How a worker and the control process talk: JSON in frames, over a socket pair that only those two have.

The first frame says what the worker is to be. Then the worker says how it is whenever that changes, and
answers requests: for its metrics, or to forget what it knows of counters. Trust bundles that only the control
process gets are told to it, and not answered. The end of the stream is the end of
the other side, however it came about.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import signal
import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import structlog

log = structlog.get_logger()

_LENGTH = struct.Struct(">I")
# How long a worker that has been told to end may take beyond its drain.
_OVERTIME_SECONDS = 5.0
_FLUSH_SECONDS = 1.0

Message = dict[str, Any]


def frame(message: Message) -> bytes:
    """Return a message as it is sent."""
    body = json.dumps(message).encode()
    return _LENGTH.pack(len(body)) + body


async def read_frame(reader: asyncio.StreamReader) -> Message | None:
    """Return the next message, None at the end."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        message: Message = json.loads(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, OSError):
        return None
    return message


class WorkerLink:
    """The worker's end. Threads read and write it, so that neither side ever waits for the other's calls."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        # Programs that the worker may start have no part in this.
        sock.set_inheritable(False)
        self._sending: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="link-writer", daemon=True)
        self._metrics: Callable[[], str] = str
        self._forget: Callable[[list[str]], Future[None]] | None = None
        # The last ones that were told, and who is to know of the next ones; they come in another thread.
        self._bundles: Message = {}
        self._use_bundles: Callable[[Message], None] = lambda _: None
        self._telling = threading.Lock()
        self._closed = False

    def receive(self) -> Message | None:
        """Return the next message, None at the end; before `watch` only."""
        header = self._receive_exactly(_LENGTH.size)
        body = self._receive_exactly(_LENGTH.unpack(header)[0]) if header else b""
        message: Message | None = json.loads(body) if body else None
        return message

    def watch(self, grace_seconds: float) -> None:
        """Answer requests from now on; when the control process ends, end as after SIGTERM.

        Who then is not gone after `grace_seconds` and a little is ended at once.
        """
        self._writer.start()
        arguments = (grace_seconds + _OVERTIME_SECONDS,)
        threading.Thread(target=self._read, args=arguments, name="link", daemon=True).start()

    def tell_addresses(self, addresses: list[str]) -> None:
        """Say that this worker listens, and where."""
        self._send({"addresses": addresses})

    def tell_ready(self, *, ready: bool) -> None:
        """Say whether this worker takes calls."""
        self._send({"ready": ready})

    def serve_metrics(self, metrics: Callable[[], str]) -> None:
        """Answer requests for metrics with what `metrics` returns; it is called in a thread."""
        self._metrics = metrics

    def serve_forget(self, forget: Callable[[list[str]], Future[None]]) -> None:
        """Answer requests to forget counters once what `forget` returns is done; it is called in a thread."""
        self._forget = forget

    def serve_bundles(self, use: Callable[[Message], None]) -> Message:
        """Return the trust bundles that were told last; `use` is called with later ones, in a thread."""
        with self._telling:
            self._use_bundles = use
            return self._bundles

    def tell_bundles(self, bundles: Message) -> None:
        """Take note of trust bundles that were told."""
        with self._telling:
            self._bundles = bundles
            self._use_bundles(bundles)

    def close(self) -> None:
        """Send the last metrics, so that nothing that was counted is lost."""
        self._send({"metrics": self._metrics(), "request": None})
        self._closed = True
        self._sending.put(None)
        self._writer.join(_FLUSH_SECONDS)

    def _send(self, message: Message) -> None:
        self._sending.put(frame(message))

    def _write(self) -> None:
        with suppress(OSError):
            while (content := self._sending.get()) is not None:
                self._socket.sendall(content)

    def _read(self, patience_seconds: float) -> None:
        while (message := self.receive()) is not None:
            try:
                self._answer(message)
            except Exception:
                # Whatever is wrong with an answer: this thread is how the end of the other side is noticed.
                log.exception("link_request_failed")
        if self._closed:
            return
        # Before there is a handler this ends the process, afterwards it drains.
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(patience_seconds)
        os._exit(1)

    def _answer(self, message: Message) -> None:
        if "bundles" in message:
            self.tell_bundles(message["bundles"])
            return
        number = message["request"]
        if "forget" not in message:
            self._send({"metrics": self._metrics(), "request": number})
        elif self._forget is not None:

            def forgotten(done: Future[None]) -> None:
                if not done.cancelled() and done.exception() is None:
                    self._send({"forgotten": True, "request": number})

            self._forget(message["forget"]).add_done_callback(forgotten)

    def _receive_exactly(self, size: int) -> bytes:
        """Return that many bytes, none at the end."""
        parts = bytearray()
        while len(parts) < size:
            try:
                part = self._socket.recv(size - len(parts))
            except OSError:
                return b""
            if not part:
                return b""
            parts += part
        return bytes(parts)
