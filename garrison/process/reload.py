"""Watched files -> something compiled: build beside the old one, swap, or keep the old one and say why."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import structlog
import watchfiles

from garrison.documents import Diagnostic
from garrison.errors import ConfigError

log = structlog.get_logger()

# Editors and `kubectl` touch several files in one go; wait this long for the rest of them.
_DEBOUNCE_MS = 200
_STEP_MS = 50


class Versioned(Protocol):
    """What is reloaded: immutable, with a version that names its content."""

    @property
    def version(self) -> str:
        """A hash of what it was built from."""

    @property
    def warnings(self) -> Sequence[Diagnostic]:
        """Problems that do not keep it from being used."""


Generation = TypeVar("Generation", bound=Versioned)


class Reloader(Generic[Generation]):
    """Keeps one kind of configuration current.

    `build` is called in a thread, must not change anything, and raises ConfigError; `use` puts a generation
    in force and is called in the event loop's thread.
    """

    def __init__(
        self,
        kind: str,
        paths: Sequence[Path],
        build: Callable[[Sequence[Path]], Generation],
        use: Callable[[Generation], None],
    ) -> None:
        self.kind = kind
        self.paths = tuple(paths)
        self._build = build
        self._use = use
        self.current: Generation | None = None
        self.results = {"ok": 0, "refused": 0}
        self._refused = False

    def load(self) -> None:
        """Load for the first time.

        Raises:
            ConfigError: the files cannot be used, and there is nothing to fall back to.

        """
        self._swap(self._build(self.paths))

    async def reload(self) -> None:
        """Load what the files hold now; when they are wrong, what is in force stays."""
        try:
            built = await asyncio.to_thread(self._build, self.paths)
        except ConfigError as error:
            self._refused = True
            self.results["refused"] += 1
            log.error(  # noqa: TRY400 - the diagnostics say it all, a stack would hide them
                "snapshot_refused",
                kind=self.kind,
                in_force=self.current.version if self.current else "",
                diagnostics=[diagnostic.as_json() for diagnostic in error.diagnostics],
            )
            return
        if self.current is None or built.version != self.current.version:
            self._swap(built)
        elif self._refused:
            log.info("snapshot_restored", kind=self.kind, version=built.version)
        self._refused = False

    def _swap(self, generation: Generation) -> None:
        previous = self.current.version if self.current else ""
        self._use(generation)
        self.current = generation
        self.results["ok"] += 1
        log.info("snapshot_swapped", kind=self.kind, version=generation.version, previous=previous)
        for warning in generation.warnings:
            log.warning("configuration_warning", kind=self.kind, **warning.as_json())


async def watch(reloaders: Iterable[Reloader[Versioned]], stop: asyncio.Event) -> None:
    """Reload whenever something below the reloaders' paths changes, until `stop` is set.

    Files are watched through their folder: editors and Kubernetes replace files instead of writing them.
    """
    watched = [reloader for reloader in reloaders if reloader.paths]
    folders = {_folder(path) for reloader in watched for path in reloader.paths}
    if not folders:
        await stop.wait()
        return
    changes = watchfiles.awatch(
        *folders, stop_event=stop, debounce=_DEBOUNCE_MS, step=_STEP_MS, watch_filter=None, recursive=True
    )
    async for _ in changes:
        for reloader in watched:
            try:
                await reloader.reload()
            except Exception:
                log.exception("reload_failed", kind=reloader.kind)


def _folder(path: Path) -> Path:
    """Return the existing folder that shows changes of `path`."""
    folder = path if path.is_dir() else path.parent
    while not folder.is_dir():
        folder = folder.parent
    return folder
