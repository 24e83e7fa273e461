"""Folders for the sockets of a process, which nobody else can enter, and none of which stays behind.

Who is killed cannot tidy up, so whoever comes next does. A process holds a lock (flock(2)) on each of its
folders from before the folder has its name until the process ends, however it ends. So a folder that can be
locked belongs to nobody any more.
"""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path

_PREFIX = "garrison-run-"
# Not locked yet, so left alone.
_NEW_PREFIX = "garrison-new-"


class RunFolder:
    """A folder in the system's folder for temporary files, with mode 0700; gone at the end of the process."""

    def __init__(self) -> None:
        _remove_leftovers()
        made = Path(tempfile.mkdtemp(prefix=_NEW_PREFIX))
        descriptor = os.open(made, os.O_RDONLY | os.O_DIRECTORY)
        with suppress(OSError):
            # Where there are no locks the folder keeps its first name, and nobody takes it for a leftover.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            made = made.rename(made.with_name(made.name.replace(_NEW_PREFIX, _PREFIX)))
        self.path = made
        self._end = weakref.finalize(self, _end, made, descriptor)

    def remove(self) -> None:
        """Remove the folder and the sockets in it; again is harmless."""
        self._end()


def _end(folder: Path, descriptor: int) -> None:
    with suppress(OSError):
        _remove(folder)
    os.close(descriptor)


def _remove_leftovers() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # Somebody else's, or in use, or gone by now.
        with suppress(OSError):
            _remove_if_left(folder)


def _remove_if_left(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(descriptor).st_uid == os.geteuid():
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(folder)
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    """Remove a folder that holds nothing but sockets.

    Raises:
        OSError: it holds something else, and then all of it stays, or it cannot be removed.

    """
    content = list(folder.iterdir())
    if all(stat.S_ISSOCK(path.lstat().st_mode) for path in content):
        for path in content:
            path.unlink(missing_ok=True)
        folder.rmdir()
