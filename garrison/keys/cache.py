"""What issuers confirmed last, on disk, for a start while one of them is away.

A file says whose keys it holds and when they were confirmed, under a SHA-256 of all of it: what was cut off,
edited by hand or put in the place of another is not used. That is no signature. Whoever can write as this
user can put keys there.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from garrison.errors import DependencyError
from garrison.fetching import MAX_BODY_BYTES
from garrison.keys.jwks import KeySource
from garrison.private_files import read_private, write_private

_MAGIC = b"garrison-keys-1"
_MAX_FILE_BYTES = MAX_BODY_BYTES + 65_536
_SUFFIX = ".keys"


@dataclass(frozen=True, slots=True)
class Remembered:
    """A JWK Set, and when its issuer last confirmed it, in seconds since 1970."""

    body: bytes
    confirmed_at: float


class KeyCache:
    """A file for each source in `folder`, which is made when it is first needed. For one process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, source: KeySource) -> Remembered | None:
        """Return what was written for `source`, None when nothing was.

        Raises:
            DependencyError: the file cannot be used.

        """
        path = self._path(source)
        try:
            content = read_private(path, _MAX_FILE_BYTES)
        except FileNotFoundError:
            return None
        magic, _, rest = content.partition(b"\n")
        digest, _, sealed = rest.partition(b"\n")
        header, separator, body = sealed.partition(b"\n")
        if magic != _MAGIC or not separator or digest != _digest(sealed):
            raise DependencyError(f"`{path}` is not as it was written")
        found = json.loads(header)
        if found["source"] != _terms(source):
            raise DependencyError(f"`{path}` is for another issuer")
        return Remembered(body, found["confirmed_at"])

    def write(self, source: KeySource, remembered: Remembered) -> None:
        """Remember keys in the place of those before.

        Raises:
            OSError: they cannot be written, and those before are still there.

        """
        header = {"source": _terms(source), "confirmed_at": remembered.confirmed_at}
        sealed = json.dumps(header).encode() + b"\n" + remembered.body
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(self._path(source), b"\n".join((_MAGIC, _digest(sealed), sealed)))

    def prune(self, oldest: float) -> None:
        """Remove what was last written before `oldest` (seconds since 1970): it is too old to be used."""
        # Also what a process left behind that ended while it wrote.
        for path in self._folder.glob(f"*{_SUFFIX}*"):
            with suppress(OSError):
                if path.lstat().st_mtime < oldest:
                    path.unlink()

    def _path(self, source: KeySource) -> Path:
        name = hashlib.sha256(json.dumps(_terms(source)).encode()).hexdigest()
        return self._folder / (name + _SUFFIX)


def _terms(source: KeySource) -> list[str]:
    """Return what makes a source this one; the same keys are good for any time limit."""
    return [source.url, source.issuer]


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()
