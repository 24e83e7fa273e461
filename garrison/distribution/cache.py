"""What a replica remembers on disk: the last good announcement, and its bundle beside it.

Believed no more than Redis is: the signature is checked again, and so is the bundle's hash. The bundle's file
is named by that hash, so the announcement's file alone says which of them counts: it is
replaced last, in one step. Nobody else can write to the files: on an unsigned channel, that stands in for
a signature.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from garrison.distribution.announcement import MAX_ANNOUNCEMENT_BYTES
from garrison.distribution.refusal import Refusal, RefusalError
from garrison.private_files import UnusableFileError, read_private, write_private


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
            write_private(file, bundle)
        write_private(self._announcement, sealed)
        for other in self._folder.glob(f"{self._prefix}*"):
            if other != file:
                with suppress(OSError):
                    other.unlink()


def _read(path: Path, most: int) -> bytes:
    try:
        return read_private(path, most)
    except UnusableFileError as error:
        raise RefusalError(Refusal.OVERSIZE if error.oversize else Refusal.UNREADABLE, str(error)) from error
