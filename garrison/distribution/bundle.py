"""A bundle: policy files, in order, as one piece of bytes. Equal files give equal bytes, and only those.

    garrison-bundle 1
    [["policies/roles.yaml",812],["policies/mesh.yaml",97]]
    (812 bytes, then 97 bytes, nothing after them)

Not compressed: the same files must give the same bytes, and so the same version, with any library.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from garrison.distribution.refusal import Refusal, RefusalError

# The largest policy file that is read has 64 MiB; 100,000 roles have about 40 MB.
DEFAULT_MAX_BUNDLE_BYTES = 64 * 1024 * 1024
_MAX_FILES = 100_000
_MAX_NAME_BYTES = 1024
_HEAD = b"garrison-bundle 1\n"
# How much of a digest people see and type; the same length as a snapshot's version.
VERSION_LENGTH = 12


@dataclass(frozen=True, slots=True)
class BundleFile:
    """One file. `name` is relative, with `/` between folders; diagnostics show it."""

    name: str
    content: bytes


def digest(bundle: bytes) -> str:
    """Return the SHA-256 of a bundle in hexadecimal: the name it is stored under."""
    return hashlib.sha256(bundle).hexdigest()


def pack(files: Sequence[BundleFile]) -> bytes:
    """Return `files` as one bundle.

    Raises:
        ValueError: a name cannot be in a bundle, or stands twice.

    """
    _check([(file.name, len(file.content)) for file in files])
    return b"".join([_HEAD, _index((file.name, len(file.content)) for file in files), *_contents(files)])


def unpack(bundle: bytes) -> tuple[BundleFile, ...]:
    """Return the files of a bundle; `pack` gives the same bytes again.

    Raises:
        RefusalError: these bytes are no bundle.

    """
    start = len(_HEAD)
    end = bundle.find(b"\n", start) + 1
    if not bundle.startswith(_HEAD) or not end:
        raise RefusalError(Refusal.UNREADABLE, "the bundle is of another format")
    try:
        sizes = [(name, size) for name, size in json.loads(bundle[start:end])]
        _check(sizes)
    except (ValueError, TypeError, RecursionError) as error:
        raise RefusalError(Refusal.UNREADABLE, "the bundle's list of files cannot be read") from error
    # Nothing but what `pack` writes: spaces or escapes would be a second bundle of the same files.
    if _index(sizes) != bundle[start:end]:
        raise RefusalError(Refusal.UNREADABLE, "the bundle's list of files is not in its one form")
    if end + sum(size for _, size in sizes) != len(bundle):
        raise RefusalError(Refusal.UNREADABLE, "the bundle is not as long as its files")
    files = []
    for name, size in sizes:
        files.append(BundleFile(name, bundle[end : end + size]))
        end += size
    return tuple(files)


def _index(sizes: Iterable[tuple[str, int]]) -> bytes:
    rows = [[name, size] for name, size in sizes]
    return json.dumps(rows, separators=(",", ":"), ensure_ascii=True).encode() + b"\n"


def _contents(files: Iterable[BundleFile]) -> Iterable[bytes]:
    return (file.content for file in files)


def _check(sizes: Sequence[tuple[object, object]]) -> None:
    """Raise ValueError unless every name is a plain relative path that stands once, every size a number."""
    if len(sizes) > _MAX_FILES:
        raise ValueError(f"{len(sizes)} files are more than the {_MAX_FILES} that a bundle may have")
    seen = set()
    for name, size in sizes:
        if type(name) is not str or type(size) is not int or size < 0:
            raise ValueError("a file needs a name and a size")
        if not name.isprintable() or len(name.encode()) > _MAX_NAME_BYTES:
            raise ValueError(f"{name!r} is no name for a file in a bundle")
        # Nobody makes files of these names today; nobody shall be able to outside their folder tomorrow.
        if any(part in {"", ".", ".."} for part in name.split("/")) or "\\" in name:
            raise ValueError(f"`{name}` is no plain relative path")
        if name in seen:
            raise ValueError(f"two files would be called `{name}`")
        seen.add(name)
