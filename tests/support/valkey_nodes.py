"""Real Valkeys that know each other: a Cluster of three or six, or a master with a replica and Sentinels."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from support.valkey import DURABLE, server_binary

PATIENCE_SECONDS = 30.0


def free_port() -> int:
    """Return a free port whose Cluster bus, 10,000 above it, is free too.

    Both are below the ports that the kernel gives to whoever asks for any: tests that run beside this one
    would take them between this look and the server's start.
    """
    while True:
        port = random.randrange(10_000, 22_000)
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as bus:
            one.bind(("127.0.0.1", port))
            bus.bind(("127.0.0.1", port + 10_000))
            return port


def wait_until(holds: Callable[[], bool], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Return as soon as `holds` does."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if holds():
                return
        except redis.RedisError:
            pass
        time.sleep(0.02)
    raise AssertionError(f"in vain: {what}")


class Node:
    """One server on a port of its own."""

    def __init__(self, folder: Path, *arguments: str, sentinel: str = "", kind: str = "valkey") -> None:
        """`sentinel` is the text of a configuration; with it the server is a Sentinel."""
        folder.mkdir()
        self.port = free_port()
        self._folder = folder
        self._command = [str(server_binary(kind))]
        if sentinel:
            file = folder / "sentinel.conf"
            file.write_text(sentinel)
            self._command += [str(file), "--sentinel"]
        self._command += ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder), *arguments]
        if not sentinel:
            self._command += ["--save", ""]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server; return when it answers."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        wait_until(lambda: bool(self.ask("PING")), f"a server on port {self.port}")

    def kill(self) -> None:
        """End the server at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Stop the server in the middle of whatever it does; `kill` ends it all the same."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def ask(self, *command: str) -> Any:
        """Run one command."""
        client: Any = redis.Redis(
            port=self.port, protocol=2, retry=Retry(NoBackoff(), 0), decode_responses=True
        )
        try:
            return client.execute_command(*command)
        finally:
            client.close()


class Cluster:
    """Three masters that share all slots; with `replicas`, each has one, which takes over when it is gone."""

    def __init__(self, folder: Path, *, replicas: bool = False, kind: str = "valkey") -> None:
        # Keeps no slot to itself when another node is away, so that one failure is one failure.
        options = ["--cluster-enabled", "yes", "--cluster-require-full-coverage", "no"]
        options += ["--cluster-node-timeout", "1000"] if replicas else []
        self.nodes = [
            Node(folder / str(number), *options, kind=kind) for number in range(6 if replicas else 3)
        ]
        self.masters, self.replicas = self.nodes[:3], self.nodes[3:]

    @property
    def urls(self) -> list[str]:
        """Where the nodes are."""
        return [f"redis://127.0.0.1:{node.port}" for node in self.nodes]

    def start(self) -> None:
        """Start the nodes and wait until they agree."""
        for node in self.nodes:
            node.start()
        step = 16384 // 3 + 1
        for number, node in enumerate(self.masters):
            node.ask("CLUSTER", "ADDSLOTSRANGE", str(number * step), str(min((number + 1) * step, 16384) - 1))
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
        for node in self.nodes[1:]:
            node.ask("CLUSTER", "MEET", "127.0.0.1", str(self.nodes[0].port))
        for node in self.nodes:
            wait_until(lambda node=node: self._is_ready(node), "a Cluster")  # type: ignore[misc]
        for replica, master in zip(self.replicas, self.masters, strict=False):
            name = master.ask("CLUSTER", "MYID")
            wait_until(
                lambda replica=replica, name=name: replica.ask("CLUSTER", "REPLICATE", name) == "OK",  # type: ignore[misc]
                "a replica",
            )
        for replica in self.replicas:
            wait_until(
                lambda replica=replica: replica.ask("INFO", "replication").get("master_link_status") == "up",  # type: ignore[misc]
                "a replica that is up to date",
            )
        for node in self.masters if self.replicas else ():
            wait_until(
                lambda node=node: all(len(one) == 4 for one in node.ask("CLUSTER", "SLOTS")),  # type: ignore[misc]
                "masters that know their replicas",
            )

    def _is_ready(self, node: Node) -> bool:
        shards = node.ask("CLUSTER", "SLOTS")
        info = node.ask("CLUSTER", "INFO")
        known = f"cluster_known_nodes:{len(self.nodes)}" in info
        return known and len(shards) == 3 and "cluster_state:ok" in info

    def node_of(self, key: str) -> Node:
        """Return the node whose slot `key` is in."""
        slot = int(self.nodes[0].ask("CLUSTER", "KEYSLOT", key))
        for first, last, master, *_ in self.nodes[0].ask("CLUSTER", "SLOTS"):
            if int(first) <= slot <= int(last):
                return next(node for node in self.nodes if node.port == int(master[1]))
        raise AssertionError(f"nobody has slot {slot}")

    def kill(self) -> None:
        """End all nodes."""
        for node in self.nodes:
            node.kill()


class Watched:
    """A master with replicas, all of which keep what they confirm, and Sentinels that call it `ledger`."""

    def __init__(self, folder: Path, *arguments: str, replicas: int = 1, sentinels: int = 1) -> None:
        options = [*DURABLE, "--repl-diskless-sync-delay", "0", *arguments]
        self.master = Node(folder / "m", *options)
        self.replicas = [
            Node(folder / f"r{number}", "--replicaof", "127.0.0.1", str(self.master.port), *options)
            for number in range(replicas)
        ]
        text = f"""\
sentinel monitor ledger 127.0.0.1 {self.master.port} 1
sentinel down-after-milliseconds ledger 500
sentinel failover-timeout ledger 2000
"""
        self.sentinels = [Node(folder / f"s{number}", sentinel=text) for number in range(sentinels)]

    @property
    def urls(self) -> list[str]:
        """Where the Sentinels are."""
        return [f"redis://127.0.0.1:{node.port}" for node in self.sentinels]

    def start(self) -> None:
        """Start all of them, and wait until they know each other."""
        for node in (self.master, *self.replicas):
            node.start()
        for replica in self.replicas:
            wait_until(
                lambda replica=replica: replica.ask("INFO", "replication")["master_link_status"] == "up",  # type: ignore[misc]
                "a replica",
            )
        for sentinel in self.sentinels:
            sentinel.start()
            wait_until(
                lambda sentinel=sentinel: (  # type: ignore[misc]
                    len(sentinel.ask("SENTINEL", "replicas", "ledger")) == len(self.replicas)
                ),
                "a Sentinel that knows the replicas",
            )

    def named(self) -> int:
        """Return the port of the server that the first Sentinel calls the master."""
        return int(self.sentinels[0].ask("SENTINEL", "get-master-addr-by-name", "ledger")[1])

    def kill(self) -> None:
        """End all of them."""
        for node in (*self.sentinels, *self.replicas, self.master):
            node.kill()
