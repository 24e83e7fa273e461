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
from pathlib import Path
from tempfile import TemporaryDirectory

import uvloop

from authz.policy.compile import MeshSettings
from authz.service import Authorization, DestinationResolver
from authz.snapshot import Snapshot, load_snapshot
from benchmarks.report import Requirement, Row, Sample, Section, render
from benchmarks.run import BenchmarkError, Run
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
    longest_wait_ms: float


def write_documents(folder: Path, files: int, roles: int = _ROLES) -> None:
    """Write roles and their bindings, evenly spread over so many files."""
    texts = role_documents(Shape(roles, _SERVICES)).decode().split("---\n")
    size = -(-len(texts) // files)
    for number in range(files):
        part = texts[number * size : (number + 1) * size]
        (folder / f"{number:05}.yaml").write_text("---\n".join(part), encoding="utf-8")


async def measure(folder: Path) -> Cost:
    """Load the documents in `folder`, then change one file and reload, deciding calls all the while.

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

    (message,) = role_requests(Shape(1, 1), 1)
    waits: list[float] = []
    done = asyncio.Event()

    async def call() -> None:
        while not done.is_set():
            due = time.perf_counter() + _PAUSE_SECONDS
            await asyncio.sleep(_PAUSE_SECONDS)
            service.check(message, _CALL)
            waits.append((time.perf_counter() - due) * 1e3)

    await asyncio.to_thread(_change, min(find_files([folder])))
    calling = asyncio.create_task(call())
    begin = time.perf_counter()
    await reloader.reload()
    reload_seconds = time.perf_counter() - begin
    done.set()
    await calling
    return Cost(
        load_seconds,
        load_megabytes,
        reload_seconds,
        _resident_megabytes(),
        sorted(waits)[len(waits) // 2],
        max(waits),
    )


def _change(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"# changed\n")


def load(run: Run) -> Section:
    """Measure 100,000 documents in one file and in 1,000."""
    run.say("100,000 documents in one file and in 1,000")
    return section({files: _measured(run.folder / f"load-{files}", files) for files in (1, 1000)})


def section(costs: Mapping[int, Cost]) -> Section:
    """Return what was measured, by number of files, with what is required of it."""
    rows: list[Row] = []
    requirements: list[Requirement] = []
    for files, cost in costs.items():
        where = "in one file" if files == 1 else f"in {files:,} files"
        for what, value, unit, bound in (
            ("loading", cost.load_seconds, "s", MAX_SECONDS),
            ("memory after loading", cost.load_megabytes, "MB", MAX_MEGABYTES),
            ("reloading after a change of one file", cost.reload_seconds, "s", None),
            ("memory after that", cost.reload_megabytes, "MB", None),
            ("a call's median wait meanwhile", cost.median_wait_ms, "ms", None),
            ("a call's longest wait meanwhile", cost.longest_wait_ms, "ms", MAX_WAIT_MS),
        ):
            sample = Sample.of([value])
            rows.append(Row(f"{what}, {where}", sample, unit))
            if bound is not None:
                requirements.append(Requirement(f"{what}, {where} ({unit})", sample, bound, at_least=False))
    return Section(
        "100,000 policy documents",
        "50,000 roles and their bindings are read, checked, compiled and put in force; then a file changes.",
        tuple(rows),
        tuple(requirements),
    )


def _measured(folder: Path, files: int) -> Cost:
    folder.mkdir()
    write_documents(folder, files)
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_load", str(folder)],
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
        print(json.dumps(asdict(uvloop.run(measure(Path(arguments[0]))))))
        return 0
    with TemporaryDirectory(prefix="garrison-bench-") as folder:
        measured = {files: _measured(Path(folder) / str(files), files) for files in (1, 1000)}
    print(render([section(measured)], {}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
