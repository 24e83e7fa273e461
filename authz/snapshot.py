"""Everything that decisions rest on, compiled, immutable, with a version that names its content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from authz.destination import Destination
from authz.policy.compile import MeshSettings, compile_policies
from authz.policy.index import DestinationPolicies, PolicyIndex
from authz.policy.rules import PolicySet
from garrison.documents import Diagnostic, Document, find_files, parse
from garrison.documents.diagnostic import Position
from garrison.errors import ConfigError

# Operators name few destinations; the bound is for `destination_from_host`.
_MAX_DESTINATIONS = 10_000


class Snapshot:
    """A compiled generation of policies. `version` is a hash of the documents and the mesh settings."""

    def __init__(
        self, version: str, mesh: MeshSettings, policies: PolicySet, warnings: Sequence[Diagnostic]
    ) -> None:
        self.version = version
        self.mesh = mesh
        self.policies = policies
        self.warnings = tuple(warnings)
        self._index = PolicyIndex(policies)
        self._destinations: dict[Destination, DestinationPolicies] = {}

    def policies_for(self, destination: Destination) -> DestinationPolicies:
        """Return what applies to `destination`; worked out once for each."""
        found = self._destinations.get(destination)
        if found is None or found.destination.labels != destination.labels:
            found = self._index.policies_for(destination)
            if len(self._destinations) >= _MAX_DESTINATIONS:
                self._destinations.clear()
            self._destinations[destination] = found
        return found


def build_snapshot(documents: Sequence[Document], mesh: MeshSettings, content: Iterable[bytes]) -> Snapshot:
    """Return the snapshot of `documents`; `content` is what its version is made from.

    Raises:
        ConfigError: a document is wrong; all problems of all documents are in it.

    """
    policies, problems = compile_policies(documents, mesh)
    if policies is None:
        raise ConfigError(problems)
    digest = hashlib.sha256(repr(mesh).encode())
    for piece in content:
        digest.update(hashlib.sha256(piece).digest())
    return Snapshot(digest.hexdigest()[:12], mesh, policies, problems)


def load_snapshot(paths: Sequence[Path], mesh: MeshSettings) -> Snapshot:
    """Return the snapshot of all policy files below `paths`.

    Raises:
        ConfigError: a file cannot be read or a document is wrong; every problem is in it.

    """
    documents: list[Document] = []
    problems: list[Diagnostic] = []
    content: list[bytes] = []
    for file in find_files(paths):
        try:
            text = file.read_bytes()
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            problems.append(
                Diagnostic(str(file), Position(1, 1), (), "unreadable", f"cannot be read: {reason}")
            )
            continue
        content.append(text)
        parsed, wrong = parse(text, str(file))
        documents += parsed
        problems += wrong
    if problems:
        _, more = compile_policies(documents, mesh)
        raise ConfigError([*problems, *more])
    return build_snapshot(documents, mesh, content)
