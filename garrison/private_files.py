"""Files that only this process's user writes: what a process remembers on disk for its next start.

What is read was written by us or by root, and nobody else can write to it; what is written is there as a
whole or not at all.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from garrison.errors import DependencyError

_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class UnusableFileError(DependencyError):
    """A file that cannot be read, or that somebody else may have written; `oversize`: it is too large."""

    def __init__(self, message: str, *, oversize: bool = False) -> None:
        super().__init__(message)
        self.oversize = oversize


def read_private(path: Path, most: int) -> bytes:
    """Return what the file holds, at most `most` bytes.

    Raises:
        FileNotFoundError: there is none.
        UnusableFileError: it is no plain file, too large, or others own it or can write to it.

    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnusableFileError(f"`{path}`: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_mode & _WRITABLE_BY_OTHERS:
            raise UnusableFileError(f"`{path}` can be written by others")
        if status.st_uid not in {0, os.geteuid()}:
            raise UnusableFileError(f"`{path}` belongs to somebody else")
        content = file.read(most + 1)
    if len(content) > most:
        raise UnusableFileError(f"`{path}` is larger than it may be", oversize=True)
    return content


def write_private(path: Path, content: bytes) -> None:
    """Replace the file in one step; its folder is there.

    Raises:
        OSError: it cannot be written, and what was there before still is.

    """
    new = path.with_name(f".{path.name}.{os.getpid()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(new, flags, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
