"""Between policy files, bundles and snapshots."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from types import MappingProxyType

from authz.casbin_policy import AdapterFactory
from authz.policy.compile import MeshSettings
from authz.snapshot import Snapshot, build_snapshot
from garrison.distribution.bundle import BundleFile
from garrison.documents import Diagnostic, Document, Position, list_files, parse
from garrison.documents.yaml import MAX_FILE_BYTES
from garrison.errors import ConfigError

_ATTEMPTS = 10
# No folder is called like this: what documents point at beside themselves is not found, on any machine.
_INSIDE = "bundle:"


class BundleCompiler:
    """Compiles the files of one bundle after the other; files that did not change are not parsed again.

    `adapters` are the Casbin stores that policies may name. Not for several threads at once.
    """

    def __init__(
        self, mesh: MeshSettings, adapters: Mapping[str, AdapterFactory] = MappingProxyType({})
    ) -> None:
        self._mesh = mesh
        self._adapters = adapters
        self._parsed: dict[tuple[str, bytes], tuple[list[Document], list[Diagnostic]]] = {}

    def compile(self, files: Sequence[BundleFile]) -> Snapshot:
        """Return the snapshot of `files`. Its version is that of the same files in a folder.

        Raises:
            ConfigError: a document is wrong; every problem is in it.

        """
        parsed = {}
        for file in files:
            key = (file.name, hashlib.sha256(file.content).digest())
            parsed[key] = self._parsed.get(key) or parse(file.content, _INSIDE + file.name)
        gone = [self._parsed[key][0] for key in self._parsed.keys() - parsed.keys()]
        self._parsed = parsed
        # One by one: freeing a long list in one step would stop the other threads.
        for old in gone:
            while old:
                old.pop()
        documents = [document for found, _ in parsed.values() for document in found]
        problems = [problem for _, found in parsed.values() for problem in found]
        if problems:
            raise ConfigError(problems)
        return build_snapshot(documents, self._mesh, [file.content for file in files], self._adapters)


def read_files(paths: Sequence[Path]) -> list[tuple[Path, BundleFile]]:
    """Return every policy file below `paths`, as all were at one moment, in the order of loading.

    In a bundle, a file is called by its name, and a file in a folder by the folder's and its path below it.

    Raises:
        ConfigError: a file cannot be read; every one is in it.

    """
    for _ in range(_ATTEMPTS):
        listing = list_files(paths)
        wrong = [_unreadable(path, state) for path, state in listing.items() if isinstance(state, str)]
        if wrong:
            raise ConfigError(wrong)
        try:
            found = [(path, BundleFile(_name(path, paths), _read(path))) for path in listing]
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ConfigError([_unreadable(Path(str(error.filename)), reason)]) from error
        if list_files(paths) == listing:
            return found
    raise ConfigError([_unreadable(paths[0], "it keeps changing")])


def check_files(
    files: Sequence[tuple[Path, BundleFile]],
    mesh: MeshSettings,
    adapters: Mapping[str, AdapterFactory] = MappingProxyType({}),
) -> tuple[Snapshot, list[Diagnostic]]:
    """Return the snapshot that replicas with these settings will make of `files`, and its warnings.

    Compiled as replicas do it: without what stands beside the documents on this machine. Only the problems
    name the files as they are here.

    Raises:
        ConfigError: they cannot be used.

    """
    here = {_INSIDE + file.name: str(path) for path, file in files}

    def placed(problems: Iterable[Diagnostic]) -> list[Diagnostic]:
        return [replace(problem, file=here.get(problem.file, problem.file)) for problem in problems]

    try:
        snapshot = BundleCompiler(mesh, adapters).compile([file for _, file in files])
    except ConfigError as error:
        raise ConfigError(placed(error.diagnostics)) from error
    return snapshot, placed(snapshot.warnings)


def _name(path: Path, paths: Sequence[Path]) -> str:
    for start in paths:
        if path == start:
            return path.name
        if path.is_relative_to(start):
            parts = (PurePath(start.name), path.relative_to(start))
            return PurePath(*parts).as_posix()
    return path.name


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_FILE_BYTES + 1)


def _unreadable(path: Path, reason: str) -> Diagnostic:
    return Diagnostic(str(path), Position(1, 1), (), "unreadable", f"cannot be read: {reason}")
