"""What a replica remembers on disk: the last good announcement, and its bundle beside it.

Believed no more than Redis is: the signature is checked again, and so is the bundle's hash. The bundle's file
is named by that hash, so the announcement's file alone says which of them counts: it is
replaced last, in one step.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from garrison.distribution.announcement import MAX_ANNOUNCEMENT_BYTES
from garrison.distribution.refusal import Refusal, RefusalError

# Groups and others must not be able to write what stands in for a signature on an unsigned channel.
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class DiskCache:
    """Files in `folder`, which is made when it is first needed, for one channel and one process."""

    def __init__(self, folder: Path, channel: str) -> None:
        self._folder = folder
        self._announcement = folder / f"{channel}.announcement"
        self._prefix = f"{channel}.bundle."

    def announcement(self) -> bytes | None:
        """Return the sealed announcement that was saved, None when there is none.

        Raises:
            RefusalError: the file cannot be used.

        """
        try:
            return _read(self._announcement, MAX_ANNOUNCEMENT_BYTES)
        except FileNotFoundError:
            return None

    def bundle(self, digest: str, size: int) -> bytes:
        """Return the bundle that was saved under its SHA-256 in hexadecimal; `size` is the most to read.

        Raises:
            RefusalError: there is none, or the file cannot be used.

        """
        try:
            return _read(self._folder / (self._prefix + digest), size)
        except FileNotFoundError as error:
            raise RefusalError(Refusal.MISSING, "the bundle is not beside its announcement") from error

    def save(self, sealed: bytes, digest: str, bundle: bytes | None) -> None:
        """Remember an announcement and its bundle; None: that bundle is saved already.

        Raises:
            OSError: it cannot be written, and what was saved before is still there.

        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = self._folder / (self._prefix + digest)
        if bundle is not None:
            _write(file, bundle)
        _write(self._announcement, sealed)
        for other in self._folder.glob(f"{self._prefix}*"):
            if other != file:
                with suppress(OSError):
                    other.unlink()


def _read(path: Path, most: int) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RefusalError(Refusal.UNREADABLE, f"`{path}`: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_mode & _WRITABLE_BY_OTHERS:
            raise RefusalError(Refusal.UNREADABLE, f"`{path}` can be written by others")
        if status.st_uid not in {0, os.geteuid()}:
            raise RefusalError(Refusal.UNREADABLE, f"`{path}` belongs to somebody else")
        content = file.read(most + 1)
    if len(content) > most:
        raise RefusalError(Refusal.OVERSIZE, f"`{path}` is larger than it may be")
    return content


def _write(path: Path, content: bytes) -> None:
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
