"""Policy files -> snapshot, again and again: build, then swap, or keep the old one and say why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from authz.policy.compile import MeshSettings
from authz.snapshot import Snapshot, load_snapshot
from garrison.errors import ConfigError

log = structlog.get_logger()


class PolicyReloader:
    """Builds snapshots from `paths` and hands good ones to `use`.

    `failures` counts the builds that were refused; `current` is the snapshot in force.
    """

    def __init__(self, paths: Sequence[Path], mesh: MeshSettings, use: Callable[[Snapshot], None]) -> None:
        self.paths = tuple(paths)
        self._mesh = mesh
        self._use = use
        self.current: Snapshot | None = None
        self.failures = 0

    def load(self) -> Snapshot:
        """Load for the first time.

        Raises:
            ConfigError: the policies cannot be used; there is nothing to fall back to.

        """
        snapshot = self.build()
        self.swap(snapshot)
        return snapshot

    def build(self) -> Snapshot:
        """Return a snapshot of the files as they are now; safe in any thread, changes nothing.

        Raises:
            ConfigError: the policies cannot be used.

        """
        return load_snapshot(self.paths, self._mesh)

    def swap(self, snapshot: Snapshot) -> None:
        """Put `snapshot` in force unless its content is what is in force already."""
        if self.current is not None and self.current.version == snapshot.version:
            return
        previous = self.current.version if self.current else ""
        self.current = snapshot
        self._use(snapshot)
        log.info(
            "snapshot_swapped",
            version=snapshot.version,
            previous=previous,
            rules=len(snapshot.policies.rules),
        )
        for warning in snapshot.warnings:
            log.warning("policy_warning", **warning.as_json())

    def refuse(self, error: ConfigError) -> None:
        """Record that the files are wrong; what is in force stays."""
        self.failures += 1
        log.error(
            "snapshot_refused",
            in_force=self.current.version if self.current else "",
            diagnostics=[diagnostic.as_json() for diagnostic in error.diagnostics],
        )
