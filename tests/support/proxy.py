"""A proxy in front of a Unix socket: can be slow, can be silent, can lose answers, can speak TLS."""

from __future__ import annotations

import asyncio
import queue
import ssl
import threading
from pathlib import Path
from typing import Self

PATIENCE_SECONDS = 30.0


class Proxy:
    """Listens on a free port of 127.0.0.1 while it is entered as a context.

    `delay_seconds` is how long what the server says is held back; what it says to the next request that contains
    `losing` is lost, and the connection with it. Both may change at any time.
    """

    def __init__(self, socket: Path, tls: ssl.SSLContext | None = None) -> None:
        self.delay_seconds = 0.0
        self.losing = b""
        self.port = 0
        self._socket = socket
        self._tls = tls
        self._ready: queue.Queue[tuple[asyncio.AbstractEventLoop, asyncio.Event, int]] = queue.Queue()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._listen()))

    def __enter__(self) -> Self:
        self._thread.start()
        self._loop, self._stop, self.port = self._ready.get(timeout=PATIENCE_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE_SECONDS)

    async def _listen(self) -> None:
        stop = asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        self._ready.put((asyncio.get_running_loop(), stop, server.sockets[0].getsockname()[1]))
        await stop.wait()
        server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner, outer = await asyncio.open_unix_connection(str(self._socket))
        except OSError:
            writer.close()
            return
        lost = asyncio.Event()
        await asyncio.gather(
            self._pump(reader, outer, lost, slow=False), self._pump(inner, writer, lost, slow=True)
        )

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, lost: asyncio.Event, *, slow: bool
    ) -> None:
        try:
            while data := await reader.read(65536):
                if not slow and self.losing and self.losing in data:
                    self.losing = b""
                    lost.set()
                if slow and lost.is_set():
                    return
                if slow and self.delay_seconds:
                    await asyncio.sleep(self.delay_seconds)
                writer.write(data)
                await writer.drain()
        except (OSError, ssl.SSLError):
            pass
        finally:
            writer.close()
