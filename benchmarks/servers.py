"""What is measured: `garrison serve` and Envoy as child processes, and what their processes spend.

CPU time is read from `/proc`, so the benchmarks need Linux.
"""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from garrison.demo.children import Child, Children
from garrison.demo.mesh import garrison_command
from garrison.transport.address import Address

_START_SECONDS = 60.0
_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(stat: str) -> float:
    """Return user and system time of a process, all its threads, from the text of `/proc/<pid>/stat`."""
    # The program's name, in parentheses, may hold anything; proc_pid_stat(5) counts it as field 2.
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS


@dataclass(frozen=True, slots=True)
class Measured:
    """A process that is being measured."""

    child: Child

    def cpu_seconds(self) -> float:
        """Return the CPU time it has used so far."""
        return cpu_seconds(Path(f"/proc/{self.child.pid}/stat").read_text(encoding="ascii", errors="replace"))

    def resident_mib(self) -> float:
        """Return the memory it holds now."""
        pages = int(Path(f"/proc/{self.child.pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def apart(server: Measured) -> Iterator[None]:
    """Give a server a core of its own, and its clients, this process and its children, the others.

    Its clients are on other machines where it matters; here they would wait for the core that it is on, and
    it for them. Nor is either to wait for whatever else this machine does: where that is allowed, both have
    real-time priority meanwhile. On a machine with one core nothing is done.
    """
    cores = os.sched_getaffinity(0)
    if len(cores) == 1:
        yield
        return
    its_own = {min(cores)}
    for thread in Path(f"/proc/{server.child.pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), its_own)
        _schedule(int(thread.name), os.SCHED_FIFO, 1)
    os.sched_setaffinity(0, cores - its_own)
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    _schedule(0, os.SCHED_FIFO, 1)
    try:
        yield
    finally:
        _schedule(0, policy, priority.sched_priority)
        os.sched_setaffinity(0, cores)


@contextmanager
def on_one_core() -> Iterator[None]:
    """Keep this process on one core: what its threads share stays in that core's caches."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def _schedule(thread: int, policy: int, priority: int) -> None:
    with suppress(PermissionError):
        os.sched_setscheduler(thread, policy, os.sched_param(priority))


def family_cpu_seconds(pid: int, name: str = "") -> float:
    """Return the CPU time so far of a process and its children, or of those children with a `name`."""
    found = 0.0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text(encoding="ascii", errors="replace")
        except OSError:  # it has ended meanwhile
            continue
        called, _, fields = stat.rpartition(")")
        is_child = int(fields.split()[1]) == pid
        if (is_child and called.partition("(")[2] == name) if name else (is_child or int(entry.name) == pid):
            found += cpu_seconds(stat)
    return found


@dataclass(frozen=True, slots=True)
class Server(Measured):
    """A `garrison serve` that is ready; `request` is where it answers calls, `ca` where its CA does."""

    request: Address
    admin: Address
    # One or more for each worker.
    endpoints: tuple[Address, ...] = ()
    ca: tuple[Address, ...] = ()

    def decisions(self) -> int:
        """Return how many `Check` calls it says it has answered."""
        with urllib.request.urlopen(f"http://{self.admin.host}:{self.admin.port}/metrics", timeout=5) as page:
            lines = page.read().decode().splitlines()
        return sum(
            int(float(line.rpartition(" ")[2]))
            for line in lines
            if line.startswith("garrison_decisions_total{")
        )


def start_server(children: Children, folder: Path, name: str, settings: dict[str, Any]) -> Server:
    """Start `garrison serve` with `settings` and return it when it is ready; its log goes to a file.

    Raises:
        StartError: it did not start.

    """
    everywhere = {"control": {"listen": ["tcp://127.0.0.1:0"]}, "admin": {"listen": "tcp://127.0.0.1:0"}}
    config = folder / f"{name}.yaml"
    config.write_text(yaml.safe_dump({**everywhere, **settings}), encoding="utf-8")
    log = folder / f"{name}.log"
    log.unlink(missing_ok=True)  # of an earlier server of this name
    child = children.start(
        f"garrison serve ({name})", [*garrison_command(), "serve", "--config", config], log
    )
    ready: list[dict[str, Any]] = []

    def is_ready() -> bool:
        ready.extend(_events(log, "ready"))
        return bool(ready)

    child.wait_until(is_ready, "becoming ready", _START_SECONDS)
    said = ready[0]
    endpoints = tuple(map(Address.parse, said["request"]))
    own = tuple(map(Address.parse, said["ca"]))
    return Server(child, endpoints[0], Address.parse(said["admin"]), endpoints, own)


def _events(log: Path, name: str) -> list[dict[str, Any]]:
    """Return the complete JSON lines of `log` that are about `name`."""
    complete = log.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
    found = [json.loads(line) for line in complete if f'"event":"{name}"' in line]
    return [event for event in found if event.get("event") == name]
