"""Folders for sockets: in use they stay, and nothing stays behind of whoever ended, however that was."""

from __future__ import annotations

import gc
import os
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from garrison.run_folder import RunFolder

KEEPS_ONE = """
import socket, sys, tempfile, time
tempfile.tempdir = sys.argv[1]
from garrison.run_folder import RunFolder
folder = RunFolder()
listening = socket.socket(socket.AF_UNIX)
listening.bind(str(folder.path / "s"))
print(folder.path, flush=True)
time.sleep(600)
"""


@pytest.fixture
def parent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Have folders for temporary files made in one of its own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def left_by_a_killed_process(parent: Path) -> Path:
    """Return its folder, with a socket in it, which nobody took while it ran."""
    with subprocess.Popen(
        [sys.executable, "-c", KEEPS_ONE, str(parent)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            folder = Path(process.stdout.readline().strip())
            RunFolder().remove()
            assert folder.is_dir()
        finally:
            process.kill()
    assert (folder / "s").exists()
    return folder


def test_it_is_private_and_removed_with_its_sockets(parent: Path) -> None:
    """Removed once or twice; nothing else of the folder around it is touched."""
    (parent / "other").mkdir()
    folder = RunFolder()
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder.path / "s"))
    folder.remove()
    folder.remove()
    assert [path.name for path in parent.iterdir()] == ["other"]


def test_whoever_forgets_it_leaves_nothing(parent: Path) -> None:
    """It goes with the object."""
    RunFolder()
    gc.collect()
    assert list(parent.iterdir()) == []


def test_the_next_one_removes_what_a_killed_process_left(parent: Path) -> None:
    """SIGKILL lets nobody tidy up. What runs keeps its own, also while others come and go."""
    left = left_by_a_killed_process(parent)
    folder = RunFolder()
    assert not left.exists()
    assert list(parent.iterdir()) == [folder.path]
    again = RunFolder()
    assert {path.name for path in parent.iterdir()} == {folder.path.name, again.path.name}


def test_what_may_be_somebody_elses_stays(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other names, other files, links, and what belongs to another user."""
    names = ("garrison-demo-1", "garrison-new-1", "garrison-run-file", "garrison-run-with-file")
    for name in names:
        (parent / name).mkdir()
    (parent / "garrison-run-file").rmdir()
    (parent / "garrison-run-file").write_text("mine", encoding="utf-8")
    (parent / "garrison-run-with-file" / "notes").write_text("mine", encoding="utf-8")
    (parent / "garrison-run-link").symlink_to(parent / "garrison-demo-1")
    RunFolder().remove()
    assert {path.name for path in parent.iterdir()} == {*names, "garrison-run-link"}
    left = left_by_a_killed_process(parent)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    RunFolder().remove()
    assert (left / "s").exists()


def test_without_locks_nothing_is_taken_for_a_leftover(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems have none: the folder serves all the same, and nobody removes it."""

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(descriptor, operation)

    with monkeypatch.context() as patched:
        patched.setattr("garrison.run_folder.fcntl.flock", refuse)
        folder = RunFolder()
    RunFolder().remove()
    assert list(parent.iterdir()) == [folder.path]
    folder.remove()
    assert list(parent.iterdir()) == []
