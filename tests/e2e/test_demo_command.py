"""`garrison demo` as a user runs it: its exit codes say the truth and nothing is left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from garrison.demo.mesh import example_folder, garrison_command


@pytest.fixture
def folder() -> Iterator[Path]:
    """Yield a folder with a path short enough for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="garrison-e2e-") as path:
        yield Path(path)


@pytest.fixture
def policies(tmp_path: Path) -> Path:
    """Return a copy of the example's policies."""
    return Path(shutil.copytree(example_folder() / "policies", tmp_path / "policies"))


def run(folder: Path, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `garrison demo` to its end."""
    command = [*garrison_command(), "demo", "--dir", str(folder / "runs"), *map(str, arguments)]
    # Wide, so that no cell of the table is broken into lines.
    environment = {**os.environ, "COLUMNS": "200", **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


def test_every_row_is_as_expected(folder: Path) -> None:
    """The demo exits 0, its table and its JSON agree, and its folder is gone."""
    result = run(folder, "--json", folder / "rows.json")
    assert (result.returncode, result.stderr) == (0, ""), result.stdout
    written = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    assert written["ok"] is True
    count = len(written["rows"])
    assert f"{count} of {count} rows as expected" in result.stdout
    assert {row["group"] for row in written["rows"]} >= {
        "roles",
        "header",
        "token",
        "certificate",
        "quota",
        "change",
    }
    assert list((folder / "runs").iterdir()) == []


def test_a_policy_that_grants_too_much_is_noticed(folder: Path, policies: Path) -> None:
    """With one subject too many the demo exits 1, shows the row that differs, and keeps the logs."""
    path = policies / "services.yaml"
    text = path.read_text(encoding="utf-8")
    path.write_text(
        text.replace(
            "- user: bookinfo-reviews-v2\n", "- user: bookinfo-reviews-v2\n  - user: bookinfo-reviews-v1\n"
        ),
        encoding="utf-8",
    )
    result = run(folder, "--policies", policies)
    assert result.returncode == 1, result.stdout
    differs = [line for line in result.stdout.splitlines() if line.startswith("DIFFERS")]
    assert len(differs) == 1
    assert "reviews-v1 -> ratings" in differs[0]
    kept = [path.name for path in next((folder / "runs").iterdir()).iterdir()]
    assert {"logs", "envoy", "policies"} <= set(kept)
    assert "bin" not in kept


def test_a_policy_that_is_no_policy_stops_the_start(folder: Path, policies: Path) -> None:
    """When `garrison serve` refuses its policies, the demo exits 2 and shows why."""
    (policies / "wrong.yaml").write_text(
        "kind: ServiceRole\napiVersion: rbac.istio.io/v1alpha1\n", encoding="utf-8"
    )
    result = run(folder, "--policies", policies)
    assert result.returncode == 2
    assert "the mesh did not start: garrison serve ended with exit code 2" in result.stderr
    assert "wrong.yaml" in result.stderr


def test_without_envoy_there_is_no_demo(folder: Path) -> None:
    """A missing Envoy is said at once, with exit code 2."""
    result = run(folder, GARRISON_ENVOY=str(folder / "no-envoy"))
    assert result.returncode == 2
    assert "`GARRISON_ENVOY` names" in result.stderr


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Return when `condition` holds; fail when it takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children_of(pid: int) -> list[int]:
    """Return the processes that `pid` started and that still run."""
    return [
        int(one)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for one in (task / "children").read_text().split()
    ]


def is_alive(pid: int) -> bool:
    """Return whether the process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_stopping_leaves_no_process(folder: Path, number: signal.Signals, exit_code: int) -> None:
    """Ctrl-C, SIGTERM and even SIGKILL end the mesh: Envoys, applications, `garrison serve`."""
    output = folder / "output"
    with output.open("wb") as file:
        command = [*garrison_command(), "demo", "--up", "--dir", str(folder / "runs")]
        runner = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    with runner:
        wait_until(lambda: "Ctrl-C stops everything" in output.read_text(encoding="utf-8"))
        started = children_of(runner.pid)
        assert len(started) == 10
        runner.send_signal(number)
        assert runner.wait(20) == exit_code
    wait_until(lambda: not any(map(is_alive, started)))
    if number != signal.SIGKILL:
        assert list((folder / "runs").iterdir()) == []
