"""Files that belong together are all new or all old, wherever the disk or the power fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.faults import FaultyDisk, PowerCut

from ca.directory import NewFile, finish, install, locked

OLD = {"a": b"old a", "b": b"old b"}
NEW = {"a": b"new a", "b": b"new b", "c": b"new c"}


def content(directory: Path) -> dict[str, bytes]:
    """Return what is in the directory, as `finish` leaves it; nothing else may be there."""
    finish(directory)
    return {path.name: path.read_bytes() for path in directory.iterdir() if not path.name.startswith(".new-")}


def change(directory: Path) -> None:
    """Write the new files."""
    with locked(directory):
        install(directory, {name: NewFile(data, 0o600) for name, data in NEW.items()})


@pytest.mark.parametrize("power", [False, True], ids=["full disk", "power cut"])
def test_all_or_none_at_every_step(tmp_path: Path, power: bool) -> None:
    """A fault at each operation leaves the old files or the new ones, and the change can be made again."""
    outcomes = set()
    for step in range(1, 200):
        directory = tmp_path / str(step)
        directory.mkdir()
        for name, data in OLD.items():
            (directory / name).write_bytes(data)
        with pytest.MonkeyPatch.context() as patch:
            disk = FaultyDisk(patch, step, power=power)
            try:
                change(directory)
                raised = False
            except (OSError, PowerCut):
                raised = True
            reached = disk.failed
        found = content(directory)
        assert found in (OLD, NEW), step
        assert raised or found == NEW
        outcomes.add(found == NEW)
        change(directory)
        assert {path.name for path in directory.iterdir()} == set(NEW)
        assert content(directory) == NEW
        if not reached:
            break
    else:
        raise AssertionError("more steps than foreseen")
    assert outcomes == {False, True}
    assert step > 15


def test_modes_are_what_was_asked(tmp_path: Path) -> None:
    """Each file has its own."""
    with locked(tmp_path):
        install(tmp_path, {"key": NewFile(b"k", 0o600), "cert": NewFile(b"c")})
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"key": 0o600, "cert": 0o644}


def test_nothing_is_written_to_look(tmp_path: Path) -> None:
    """Without a change to finish, a directory that cannot be written is no obstacle."""
    with pytest.MonkeyPatch.context() as patch:
        disk = FaultyDisk(patch, 1, power=True)
        finish(tmp_path)
        assert disk.count == 0
