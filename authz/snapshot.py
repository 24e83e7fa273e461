"""Everything that decisions rest on, compiled, immutable, with a version that names its content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from authz.casbin_policy import AdapterFactory
from authz.destination import Destination
from authz.policy.compile import MeshSettings, compile_policies
from authz.policy.index import DestinationPolicies, PolicyIndex
from authz.policy.rules import PolicySet
from garrison.documents import Diagnostic, Document, DocumentCache
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


def build_snapshot(
    documents: Sequence[Document],
    mesh: MeshSettings,
    content: Iterable[bytes],
    adapters: Mapping[str, AdapterFactory] = MappingProxyType({}),
) -> Snapshot:
    """Return the snapshot of `documents`; `content` is what its version is made from.

    `adapters` are the Casbin stores that policies may name.

    Raises:
        ConfigError: a document is wrong; all problems of all documents are in it.

    """
    return _build(documents, mesh, (hashlib.sha256(piece).digest() for piece in content), adapters)


def load_snapshot(
    paths: Sequence[Path],
    mesh: MeshSettings,
    cache: DocumentCache | None = None,
    adapters: Mapping[str, AdapterFactory] = MappingProxyType({}),
) -> Snapshot:
    """Return the snapshot of all policy files below `paths`; with a `cache` only changed files are parsed.

    `adapters` are the Casbin stores that policies may name.

    Raises:
        ConfigError: a file cannot be read or a document is wrong; every problem is in it.

    """
    loaded = (cache or DocumentCache()).load(paths)
    if loaded.diagnostics:
        _, more = compile_policies(loaded.documents, mesh, adapters)
        raise ConfigError([*loaded.diagnostics, *more])
    return _build(loaded.documents, mesh, loaded.digests, adapters)


def _build(
    documents: Sequence[Document],
    mesh: MeshSettings,
    digests: Iterable[bytes],
    adapters: Mapping[str, AdapterFactory] = MappingProxyType({}),
) -> Snapshot:
    policies, problems = compile_policies(documents, mesh, adapters)
    if policies is None:
        raise ConfigError(problems)
    digest = hashlib.sha256(repr(mesh).encode())
    for piece in digests:
        digest.update(piece)
    for content in policies.sources:
        digest.update(hashlib.sha256(content).digest())
    return Snapshot(digest.hexdigest()[:12], mesh, policies, problems)
