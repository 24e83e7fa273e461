"""Files and folders of YAML, in a fixed order, read as they were at one moment, parsed when they changed."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import signal
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from garrison.documents.diagnostic import Diagnostic, Position
from garrison.documents.document import Document
from garrison.documents.yaml import MAX_FILE_BYTES, parse

SUFFIXES = frozenset({".yaml", ".yml", ".json"})

# Somebody writes while we read: try again this often before saying so.
_ATTEMPTS = 10
# The coarsest time stamps of a file system in use (FAT) have two seconds: within that time a file can change
# and look as it did.
_COARSEST_STAMP_NS = 3_000_000_000


class FileState(NamedTuple):
    """What tells one content of a file from another without reading it; times in nanoseconds."""

    device: int
    inode: int
    regular: bool
    size: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileState:
        """Return the state in `status`. Pipes and devices have no size and no times."""
        if not stat.S_ISREG(status.st_mode):
            return cls(status.st_dev, status.st_ino, False, 0, 0, 0)
        return cls(status.st_dev, status.st_ino, True, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def is_settled(self, now_ns: int) -> bool:
        """Return whether any change from now on would show, however coarse the file system's time stamps."""
        return self.regular and max(self.modified_ns, self.changed_ns) + _COARSEST_STAMP_NS < now_ns


# Of each file its state, or why it cannot be read.
Listing = Mapping[Path, FileState | str]


def find_files(paths: Iterable[Path]) -> list[Path]:
    """Return the files that `paths` stand for: a file is itself, a folder every YAML or JSON file below it.

    Names that start with a dot are left out of folders: editors and Kubernetes volumes keep copies there.
    Symbolic links are followed. The order is that of `paths`, then by name, and no file comes twice.
    """
    return list(list_files(paths))


def list_files(paths: Iterable[Path]) -> Listing:
    """Return the state of each file that `paths` stand for, in the order of `find_files`.

    Paths, folders and links that lead nowhere are in it with the reason: what cannot be read must not pass
    for what is not there.
    """
    found: dict[Path, FileState | str] = {}
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            found[path] = _reason(error)
            continue
        if stat.S_ISDIR(status.st_mode):
            found.update(_walk(path, status, ()))
        else:
            found[path] = FileState.of(status)
    return found


def _walk(
    folder: Path, status: os.stat_result, above: Collection[tuple[int, int]]
) -> Iterator[tuple[Path, FileState | str]]:
    here = (status.st_dev, status.st_ino)
    if here in above:  # a link to a folder that it stands in
        return
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        yield folder, _reason(error)
        return
    for name in names:
        path = folder / name
        wanted = path.suffix in SUFFIXES
        try:
            found = path.stat()
        except OSError as error:
            if wanted:
                yield path, _reason(error)
            continue
        if stat.S_ISDIR(found.st_mode):
            yield from _walk(path, found, (*above, here))
        elif wanted and stat.S_ISREG(found.st_mode):
            yield path, FileState.of(found)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


@dataclass(frozen=True, slots=True)
class Loaded:
    """What files held at one moment. `digests` are the SHA-256 of their contents, in order."""

    documents: list[Document]
    diagnostics: list[Diagnostic]
    digests: list[bytes]


@dataclass(slots=True)
class _File:
    state: FileState
    settled: bool  # an equal state means an equal content
    digest: bytes
    documents: list[Document]
    diagnostics: list[Diagnostic]


class DocumentCache:
    """Loads files, and parses only those whose content changed since the last time.

    Documents of files that did not change are the same objects again, with all that they remember. Not to be
    used by two threads at a time.
    """

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        """`clock` gives nanoseconds since the epoch, to tell whether a file's time stamp can be trusted."""
        self._clock = clock
        self._files: dict[Path, _File] = {}

    def load(self, paths: Collection[Path]) -> Loaded:
        """Return the documents of all files below `paths`, and a diagnostic for each that is unreadable.

        All contents are of one moment: when a file changes, comes or goes while others are still being read,
        all is read again.
        """
        loaded = Loaded([], [], [])
        for _ in range(_ATTEMPTS):
            listing = list_files(paths)
            now = self._clock()
            contents: dict[Path, bytes | str | None] = {
                path: _read(path, state)
                for path, state in listing.items()
                if isinstance(state, FileState) and not self._is_known(path, state)
            }
            if None not in contents.values() and list_files(paths) == listing:
                break
        else:
            where = next((path for path, content in contents.items() if content is None), next(iter(listing)))
            loaded.diagnostics.append(_unreadable(str(where), "it keeps changing"))
            return loaded
        files: dict[Path, _File] = {}
        for path, state in listing.items():
            content = contents.pop(path, None)
            if isinstance(state, str):
                loaded.diagnostics.append(_unreadable(str(path), state))
                continue
            if isinstance(content, str):
                loaded.diagnostics.append(_unreadable(str(path), content))
                continue
            file = files[path] = self._parsed(path, state, content, now)
            loaded.documents.extend(file.documents)
            loaded.diagnostics.extend(file.diagnostics)
            loaded.digests.append(file.digest)
        self._forget(files)
        return loaded

    def _forget(self, files: dict[Path, _File]) -> None:
        """Keep only `files`. Documents go one by one: freeing a long list in one step stops other threads."""
        kept = {id(file.documents) for file in files.values()}
        gone = [file for file in self._files.values() if id(file.documents) not in kept]
        self._files = files
        for file in gone:
            while file.documents:
                file.documents.pop()

    def _is_known(self, path: Path, state: FileState) -> bool:
        known = self._files.get(path)
        return known is not None and known.settled and known.state == state

    def _parsed(self, path: Path, state: FileState, content: bytes | None, now: int) -> _File:
        known = self._files.get(path)
        if content is None and known is not None:
            return known
        assert content is not None  # noqa: S101 - what is not known was read
        digest = hashlib.sha256(content).digest()
        settled = state.is_settled(now)
        if known is not None and known.digest == digest:
            return _File(state, settled, digest, known.documents, known.diagnostics)
        return _File(state, settled, digest, *parse(content, str(path)))


def load(paths: Iterable[Path]) -> tuple[list[Document], list[Diagnostic]]:
    """Return the documents of all files below `paths`, and a diagnostic for each file that is unreadable."""
    loaded = DocumentCache().load(list(paths))
    return loaded.documents, loaded.diagnostics


def _read(path: Path, state: FileState) -> bytes | str | None:
    """Return the content of a file, why it cannot be read, or None if it is not in this state (any more)."""
    try:
        with path.open("rb") as file:
            before = FileState.of(os.fstat(file.fileno()))
            # One byte more than may be: enough for `parse` to refuse it.
            content = file.read(MAX_FILE_BYTES + 1)
            after = FileState.of(os.fstat(file.fileno()))
    except OSError as error:
        return _reason(error)
    return content if before == after == state else None


def _unreadable(file: str, reason: str) -> Diagnostic:
    return Diagnostic(file, Position(1, 1), (), "unreadable", f"cannot be read: {reason}")


def is_settled(listing: Listing, now_ns: int) -> bool:
    """Return whether an equal listing will mean that nothing changed since."""
    return all(isinstance(state, str) or state.is_settled(now_ns) for state in listing.values())


def is_replaced_whole(before: Listing, after: Listing) -> bool:
    """Return whether all that changed is files that were each replaced by another file of that name.

    That is how to change a file while others read it: whoever opens it finds the old or the new one, never a
    part. A file that grows, comes or goes may be one step of many.
    """
    return before.keys() == after.keys() and all(
        isinstance(state, FileState)
        and isinstance(was, FileState)
        and (was.device, was.inode) != (state.device, state.inode)
        for was, state in zip(before.values(), (after[path] for path in before), strict=True)
        if was != state
    )


def is_being_written(path: Path) -> bool:
    """Return whether some process has the file open for writing; False where the system does not tell.

    Linux grants a read lease only on a file that nobody can write to (fcntl(2), "Leases"), and only to its
    owner.
    """
    if not hasattr(fcntl, "F_SETLEASE"):
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # Whoever opens the file for writing while we hold the lease waits for us to give it back, and we get
        # a signal: not SIGIO, which would end the process, but one that is ignored.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    finally:
        os.close(descriptor)
    return False
