"""A proxy between two Unix sockets that can hold back what the server says, as a slow network does.

    python -m benchmarks.slow_proxy LISTEN SERVER SECONDS

SIGUSR1 makes it slow, SIGUSR2 fast again. What was said first arrives first.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys


class _Proxy:
    def __init__(self, server: str, seconds: float) -> None:
        self._server = server
        self._seconds = seconds
        self._is_slow = False

    async def listen(self, path: str) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, self._set, True)
        loop.add_signal_handler(signal.SIGUSR2, self._set, False)
        server = await asyncio.start_unix_server(self._accept, path)
        print("listening", flush=True)
        await server.serve_forever()

    def _set(self, is_slow: bool) -> None:  # noqa: FBT001 - the loop passes arguments by position only
        self._is_slow = is_slow

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_unix_connection(self._server)
        await asyncio.gather(self._pass(reader, outer), self._hold_back(inner, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    async def _hold_back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Delay each piece by as much: latency, not bandwidth."""
        loop = asyncio.get_running_loop()
        due = 0.0
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                due = max(due, loop.time() + (self._seconds if self._is_slow else 0.0))
                loop.call_at(due, writer.write, data)
        writer.close()


def main() -> None:
    """Listen until killed."""
    listen, server, seconds = sys.argv[1:]
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_Proxy(server, float(seconds)).listen(listen))


if __name__ == "__main__":
    main()
