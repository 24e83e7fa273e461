"""Children start, fail and end as their starter must be able to rely on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from garrison.demo.children import Children, StartError
from garrison.demo.mesh import run_folder

WAIT_FOR_EVER = "import signal; print('up', flush=True); signal.pause()"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + WAIT_FOR_EVER


@pytest.fixture
def children() -> Iterator[Children]:
    """Yield a starter whose children end with the test."""
    made = Children()
    yield made
    made.close()


def wait_until(condition: Callable[[], bool]) -> None:
    """Return when `condition` holds; fail after 10 s."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def is_alive(pid: int) -> bool:
    """Return whether the process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_child_stops_when_asked(children: Children, tmp_path: Path) -> None:
    """SIGTERM ends an ordinary child; what it printed is in its log."""
    log = tmp_path / "log"
    child = children.start("child", [sys.executable, "-c", WAIT_FOR_EVER], log)
    child.wait_until(lambda: "up" in log.read_text(), "printing", 10)
    assert children.stop(child) == -signal.SIGTERM
    assert child.tail() == "  up"


def test_a_stubborn_child_is_killed(children: Children, tmp_path: Path) -> None:
    """A child that ignores SIGTERM is killed after a while."""
    log = tmp_path / "log"
    child = children.start("child", [sys.executable, "-c", STUBBORN], log)
    child.wait_until(lambda: "up" in log.read_text(), "printing", 10)
    assert child.stop(0.05) == -signal.SIGKILL


def test_a_child_that_fails_says_why(children: Children, tmp_path: Path) -> None:
    """Waiting for a child that has ended raises with its exit code and the tail of its log; `ended` lists it."""
    child = children.start(
        "child", [sys.executable, "-c", "raise SystemExit('no such port')"], tmp_path / "log"
    )
    with pytest.raises(StartError, match=r"child ended with exit code 1:\n  no such port"):
        child.wait_until(lambda: False, "nothing", 10)
    assert children.ended() == [child]


def test_waiting_ends(children: Children, tmp_path: Path) -> None:
    """A child that never becomes ready is an error that names what was waited for."""
    child = children.start("child", [sys.executable, "-c", WAIT_FOR_EVER], tmp_path / "log")
    with pytest.raises(StartError, match=r"child: becoming ready took over 0\.05 s"):
        child.wait_until(lambda: False, "becoming ready", 0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's notice of a parent's death is Linux's")
def test_children_die_with_a_starter_that_is_killed(tmp_path: Path) -> None:
    """Even SIGKILL, which nobody can handle, leaves no child behind."""
    script = (
        "import sys; from pathlib import Path; from garrison.demo.children import Children\n"
        f"child = Children().start('c', [sys.executable, '-c', {WAIT_FOR_EVER!r}], Path({str(tmp_path / 'log')!r}))\n"
        "print(child.pid, flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        wait_until(lambda: (tmp_path / "log").read_text() == "up\n")
        assert is_alive(pid)
        starter.kill()
    wait_until(lambda: not is_alive(pid))


def test_the_run_folder_is_private_and_removed() -> None:
    """Nobody else can look into a run's folder, and it goes away unless it is to be kept."""
    # A test's own folder is too deep for the paths of sockets.
    with (
        tempfile.TemporaryDirectory() as parent,
        run_folder(Path(parent) / "runs", keep=lambda: False) as run,
    ):
        assert run == Path(parent).resolve() / "runs" / f"run-{os.getpid()}"
        assert run.stat().st_mode & 0o777 == 0o700
    assert not run.exists()


def test_a_kept_run_folder_has_no_binaries() -> None:
    """What is kept is what one reads: the links to Envoy go."""
    with tempfile.TemporaryDirectory() as parent:
        with run_folder(Path(parent), keep=lambda: True) as run:
            (run / "bin").mkdir()
            (run / "logs").mkdir()
        assert [path.name for path in run.iterdir()] == ["logs"]


def test_a_path_too_long_for_sockets_is_replaced(tmp_path: Path) -> None:
    """A socket's path has 107 bytes: below a deep folder the run moves to a temporary one."""
    with run_folder(tmp_path / ("x" * 100), keep=lambda: False) as run:
        assert run.name.startswith("garrison-demo-")
        assert run.stat().st_mode & 0o777 == 0o700
    assert not run.exists()
