"""What 100,000 policy documents cost to load, and what a reload costs the calls beside it.

`python -m benchmarks.bench_load` measures by itself. Each layout is measured in a process of its own, as what
a process once took from the system it seldom gives back.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from statistics import median

import uvloop

from authz.policy.compile import MeshSettings
from authz.service import Authorization, DestinationResolver
from authz.snapshot import Snapshot, load_snapshot
from benchmarks.report import Requirement, Row, Sample, Section, render
from benchmarks.run import BenchmarkError, Run, running
from benchmarks.workload import Shape, role_documents, role_requests
from garrison.documents import DocumentCache, find_files
from garrison.process.reload import Reloader
from garrison.transport import Call, Peer

_ROLES = 50_000  # and as many bindings
_SERVICES = 5_000
MAX_SECONDS = 20.0
MAX_MEGABYTES = 1000.0
MAX_WAIT_MS = 20.0

_CALL = Call(Peer("benchmark"), ())
_PAUSE_SECONDS = 0.001


@dataclass(frozen=True, slots=True)
class Cost:
    """What one process measured: seconds, megabytes of resident memory, milliseconds."""

    load_seconds: float
    load_megabytes: float
    reload_seconds: float
    reload_megabytes: float
    median_wait_ms: float
    p99_wait_ms: float
    longest_wait_ms: float


def write_documents(folder: Path, files: int, roles: int = _ROLES, services: int = _SERVICES) -> None:
    """Write roles and their bindings, evenly spread over so many files."""
    texts = role_documents(Shape(roles, services)).decode().split("---\n")
    size = -(-len(texts) // files)
    for number in range(files):
        part = texts[number * size : (number + 1) * size]
        (folder / f"{number:05}.yaml").write_text("---\n".join(part), encoding="utf-8")


async def measure(folder: Path, reloads: int, services: int) -> Cost:
    """Load the documents in `folder`, then change one file and reload, so often; decide calls all the while.

    The calls are for a thousand services, or for the one that there is.

    A call's wait is what passes between the moment it is due and its answer, beyond what it costs alone.
    """
    service = Authorization(DestinationResolver(), time.time)
    cache = DocumentCache()
    mesh = MeshSettings()
    reloader: Reloader[Snapshot] = Reloader(
        "policies", [folder], lambda paths: load_snapshot(paths, mesh, cache), service.use
    )
    begin = time.perf_counter()
    reloader.load()
    load_seconds, load_megabytes = time.perf_counter() - begin, _resident_megabytes()

    messages = cycle(role_requests(Shape(_ROLES, services), 1_000))
    waits: list[float] = []
    done = asyncio.Event()

    async def call() -> None:
        while not done.is_set():
            due = time.perf_counter() + _PAUSE_SECONDS
            await asyncio.sleep(_PAUSE_SECONDS)
            service.check(next(messages), _CALL)
            waits.append((time.perf_counter() - due) * 1e3)

    calling = asyncio.create_task(call())
    reload_seconds: list[float] = []
    for number in range(reloads):
        await asyncio.to_thread(_change, min(find_files([folder])), number)
        begin = time.perf_counter()
        await reloader.reload()
        reload_seconds.append(time.perf_counter() - begin)
    done.set()
    await calling
    if reloader.results != {"ok": 1 + reloads, "refused": 0}:
        raise BenchmarkError(f"not every reload was put in force: {reloader.results}")
    waits.sort()
    return Cost(
        load_seconds,
        load_megabytes,
        median(reload_seconds),
        _resident_megabytes(),
        waits[len(waits) // 2],
        waits[len(waits) * 99 // 100],
        waits[-1],
    )


def _change(file: Path, number: int) -> None:
    """Add a role to `file`."""
    more = role_documents(Shape(1, 1)).replace(b"role-0", b"added-%d" % number)
    with file.open("ab") as end:  # to copy 15 MB here would keep the calls waiting, too
        end.write(b"\n---\n" + more)


@dataclass(frozen=True, slots=True)
class Layout:
    """How the documents lie, and how often a file is changed."""

    files: int
    services: int
    reloads: int

    def __str__(self) -> str:
        where = "in one file" if self.files == 1 else f"in {self.files:,} files"
        return where if self.services > 1 else f"{where}, for one service"


# Parts of a file are not known apart, so all of it is read again: once is enough.
_ONE_FILE, _MANY_FILES = Layout(1, _SERVICES, 1), Layout(1_000, _SERVICES, 5)
_ONE_SERVICE = Layout(1_000, 1, 2)


def load(run: Run) -> Section:
    """Measure 100,000 documents in one file, in 1,000, and all for one service."""
    costs: dict[Layout, Cost] = {}
    for layout in (_MANY_FILES,) if run.quick else (_ONE_FILE, _MANY_FILES, _ONE_SERVICE):
        run.say(f"100,000 documents {layout}")
        costs[layout] = _measured(run.folder / f"load-{layout.files}-{layout.services}", layout)
    return section(costs)


def section(costs: Mapping[Layout, Cost]) -> Section:
    """Return what was measured, by layout, with what is required of it."""
    rows: list[Row] = []
    requirements: list[Requirement] = []
    for where, cost in costs.items():
        for what, value, unit, bound in (
            ("loading", cost.load_seconds, "s", MAX_SECONDS),
            ("memory after loading", cost.load_megabytes, "MB", MAX_MEGABYTES),
            ("reloading after a change of one file", cost.reload_seconds, "s", None),
            (f"memory after {where.reloads} of these", cost.reload_megabytes, "MB", MAX_MEGABYTES),
            ("a call's median wait meanwhile", cost.median_wait_ms, "ms", None),
            ("p99 of a call's wait meanwhile", cost.p99_wait_ms, "ms", None),
            ("a call's longest wait meanwhile", cost.longest_wait_ms, "ms", MAX_WAIT_MS),
        ):
            sample = Sample.of([value])
            rows.append(Row(f"{what}, {where}", sample, unit))
            if bound is not None:
                requirements.append(Requirement(f"{what}, {where} ({unit})", sample, bound, at_least=False))
    return Section(
        "100,000 policy documents",
        "50,000 roles and their bindings, for 5,000 services or for one, are read, checked, compiled and put "
        "in force; then a role is added to a file. Meanwhile a call is decided each millisecond.",
        tuple(rows),
        tuple(requirements),
    )


def _measured(folder: Path, layout: Layout) -> Cost:
    folder.mkdir()
    write_documents(folder, layout.files, services=layout.services)
    child = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.bench_load",
            str(folder),
            str(layout.reloads),
            str(layout.services),
        ],
        stdout=subprocess.PIPE,
        check=False,
        timeout=600,
    )
    if child.returncode:
        raise BenchmarkError(f"loading {folder.name} ended with {child.returncode}")
    return Cost(**json.loads(child.stdout.splitlines()[-1]))


def _resident_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 1e6


def main(arguments: Sequence[str]) -> int:
    """Measure the folder that is named, and print JSON; without one measure all and print a table."""
    if arguments:
        folder, reloads, services = arguments
        print(json.dumps(asdict(uvloop.run(measure(Path(folder), int(reloads), int(services))))))
        return 0
    with running(quick=False, say=print) as run:
        print(render([load(run)], {}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
