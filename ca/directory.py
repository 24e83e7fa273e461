"""Files of a directory that change together: after a crash either all of them are new or none is.

New files are written to a folder beside their places (`.new-…`), which one rename makes the pending one
(`.pending`): from then on they count, and whoever comes next moves what has not been moved yet. One at a
time: writers hold a lock on the directory. A name may be that of a file in a folder of the directory
(`folder/file`); the folder is made if there is none, with mode 0700.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ca.atomic_files import sync_directory, write_file

PENDING = ".pending"
_STAGING = ".new-"
# In names of files that wait: none of ours has it otherwise.
_SLASH = "%2F"


@dataclass(frozen=True, slots=True)
class NewFile:
    """What a file is to hold, and its mode."""

    content: bytes
    mode: int = 0o644


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep other writers out, and finish first what one of them left half moved.

    Raises:
        OSError: the directory cannot be locked or written.

    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        _finish(directory)
        yield
    finally:
        os.close(descriptor)


def install(directory: Path, files: Mapping[str, NewFile]) -> None:
    """Write `files`, all or none, in place of what is there; the caller holds the lock.

    Raises:
        OSError: one cannot be written. Nothing has changed then, unless all of them were written already:
            then the next command finishes the move.

    """
    for stale in directory.glob(f"{_STAGING}*"):
        shutil.rmtree(stale)
    staging = directory / f"{_STAGING}{secrets.token_hex(8)}"
    staging.mkdir(mode=0o700)
    try:
        for name, file in files.items():
            write_file(staging / name.replace("/", _SLASH), file.content, mode=file.mode, replace=False)
        staging.rename(directory / PENDING)
    except OSError:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    sync_directory(directory)
    _finish(directory)


def finish(directory: Path) -> None:
    """Move what a crashed writer left to be moved; without that nothing is touched, nor locked.

    Raises:
        OSError: it cannot be moved.

    """
    if (directory / PENDING).exists():
        with locked(directory):
            pass


def _finish(directory: Path) -> None:
    pending = directory / PENDING
    try:
        names = sorted(path.name for path in pending.iterdir())
    except FileNotFoundError:
        return
    folders = set()
    for name in names:
        target = directory / name.replace(_SLASH, "/")
        if target.parent != directory:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            folders |= {target.parent, target.parent.parent}
        (pending / name).replace(target)
    for folder in sorted(folders - {directory}):
        sync_directory(folder)
    sync_directory(directory)
    pending.rmdir()
    sync_directory(directory)
