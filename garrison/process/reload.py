"""Watched files -> something compiled: build beside the old one, swap, or keep the old one and say why."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Generic, Protocol, Self, TypeVar

import structlog
import watchfiles

from garrison.documents import Diagnostic, Listing, list_files
from garrison.documents.files import is_being_written, is_replaced_whole, is_settled
from garrison.errors import ConfigError
from garrison.process.heap import quiet_build, release

log = structlog.get_logger()

# Changes come in groups: wait until there was none for so long.
_QUIET_SECONDS = 0.1
# After this long without quiet, look for files that are replaced again and again; see `_follow`. It takes a
# few glances, as a new file often gets the inode of the one before, and then does not look replaced.
_PATIENCE_SECONDS = 0.5
_GLANCE_SECONDS = 0.015
_GLANCES_SECONDS = 0.2
# Notifications get lost: folders and links are replaced, network file systems send none. So look ourselves,
# but spend no more than a fiftieth of the time on it.
_LOOK_SECONDS = 0.5
_LOOK_SHARE = 0.02
_STEP_MS = 25


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
    in force and is called in the event loop's thread, after `prepare` if there is any; `also` names further
    files that a generation was made of; `files` says which files paths stand for,
    YAML and JSON below folders by default.
    """

    def __init__(
        self,
        kind: str,
        paths: Sequence[Path],
        build: Callable[[Sequence[Path]], Generation],
        use: Callable[[Generation], None],
        *,
        prepare: Callable[[Generation], Awaitable[None]] | None = None,
        also: Callable[[Generation], Sequence[Path]] = lambda _: (),
        files: Callable[[Sequence[Path]], Listing] | None = None,
    ) -> None:
        self.kind = kind
        self._prepare = prepare
        self._also = also
        self._files = files
        self.paths = tuple(paths)
        self._build = build
        self._use = use
        self.current: Generation | None = None
        self.results = {"ok": 0, "refused": 0}
        self._refused = False
        self._listing: Listing = {}
        self._trusted = False
        self._postponed = False
        self._from_files = True
        self._turn = asyncio.Lock()

    def load(self) -> None:
        """Load for the first time.

        Raises:
            ConfigError: the files cannot be used, and there is nothing to fall back to.

        """
        self._swap(self._load())

    async def reload(self) -> None:
        """Load what the files hold now; when they are wrong, what is in force stays."""
        async with self._turn:
            if self._from_files:
                await self._attempt(self._load)

    async def replace(self, build: Callable[[], Generation]) -> ConfigError | None:
        """Put what `build` returns in force: from then on, the files do not count any more.

        Return why not, if it raised ConfigError: then what is in force stays.
        """

        def build_quietly() -> Generation:
            with quiet_build():
                return build()

        async with self._turn:
            refused = await self._attempt(build_quietly)
            if refused is None:
                self._from_files = False
            return refused

    async def _attempt(self, build: Callable[[], Generation]) -> ConfigError | None:
        try:
            built = await asyncio.to_thread(build)
        except ConfigError as error:
            self._refused = True
            self.results["refused"] += 1
            log.error(  # noqa: TRY400 - the diagnostics say it all, a stack would hide them
                "snapshot_refused",
                kind=self.kind,
                in_force=self.current.version if self.current else "",
                diagnostics=[diagnostic.as_json() for diagnostic in error.diagnostics],
            )
            return error
        retired: list[object] = []
        if self.current is None or built.version != self.current.version:
            retired.append(self.current)
            await self.prepare(built)
            self._swap(built)
        else:
            retired.append(built)
            if self._refused:
                log.info("snapshot_restored", kind=self.kind, version=built.version)
        self._refused = False
        del built
        await asyncio.to_thread(release, retired)
        return None

    async def prepare(self, generation: Generation | None) -> None:
        """Fetch what a generation needs before it can be in force."""
        if generation is not None and self._prepare is not None:
            await self._prepare(generation)

    @property
    def watched(self) -> tuple[Path, ...]:
        """Every path whose change calls for a reload."""
        more = self._also(self.current) if self.current is not None else ()
        return (*self.paths, *more)

    def list_files(self) -> Listing:
        """Return the state of every file whose change calls for a reload."""
        return (self._files or list_files)(self.watched)

    def has_changed(self, listing: Listing, *, told: bool) -> bool:
        """Return whether `listing` shows that the files are not those that were loaded last.

        `told` is whether there was a notification: right after a change, a second one may not show in the
        time stamps of a file.
        """
        return self._from_files and (listing != self._listing or (told and not self._trusted))

    def postpone(self) -> None:
        """Note that the files keep changing, so that what is in force stays for now; log it once."""
        if not self._postponed:
            self._postponed = True
            log.warning("configuration_unsettled", kind=self.kind)

    def is_being_written(self, listing: Listing) -> bool:
        """Return whether a file that is not as it was loaded is still open for writing."""
        return any(
            is_being_written(path) for path, state in listing.items() if state != self._listing.get(path)
        )

    def _load(self) -> Generation:
        # Looked at before reading: what changes meanwhile shows as a change from this.
        self._listing = self.list_files()
        self._postponed = False
        self._trusted = is_settled(self._listing, time.time_ns())
        with quiet_build():
            return self._build(self.paths)

    def _swap(self, generation: Generation) -> None:
        previous = self.current.version if self.current else ""
        self._use(generation)
        self.current = generation
        if more := self._also(generation):
            # As they are now; what changed while they were read shows in the version of the next reload.
            self._listing = {**self._listing, **list_files(more)}
        self.results["ok"] += 1
        log.info("snapshot_swapped", kind=self.kind, version=generation.version, previous=previous)
        for warning in generation.warnings:
            log.warning("configuration_warning", kind=self.kind, **warning.as_json())


async def watch(reloaders: Iterable[Reloader[Versioned]], stop: asyncio.Event) -> None:
    """Reload whenever files of the reloaders' paths change, until `stop` is set."""
    watched = [reloader for reloader in reloaders if reloader.paths]
    if not watched:
        await stop.wait()
        return
    async with _Notifications([path for reloader in watched for path in reloader.paths], stop) as notified:
        pause = _LOOK_SECONDS
        while not stop.is_set():
            told = await notified.wait(pause)
            begin = time.monotonic()
            await notified.renew()
            changed = [
                reloader
                for reloader in watched
                if reloader.has_changed(await asyncio.to_thread(reloader.list_files), told=told)
            ]
            pause = max(_LOOK_SECONDS, (time.monotonic() - begin) / _LOOK_SHARE)
            for reloader in changed:
                try:
                    await _follow(reloader, stop)
                except Exception:
                    log.exception("reload_failed", kind=reloader.kind)


async def _follow(reloader: Reloader[Versioned], stop: asyncio.Event) -> None:
    """Reload once whoever changes the files has finished; leave it for later if that takes long.

    That is when nothing changed for a while and no changed file is open for writing. Files that are replaced
    without end, each by a whole one, are taken as they are in the end; files that grow, come and go are not.
    """
    begin = time.monotonic()
    late = False
    listing = await asyncio.to_thread(reloader.list_files)
    while not await _is_set(stop, _GLANCE_SECONDS if late else _QUIET_SECONDS):
        before, listing = listing, await asyncio.to_thread(reloader.list_files)
        # Between two glances, a lack of changes says nothing.
        finished = listing != before and is_replaced_whole(before, listing) if late else listing == before
        if finished and not await asyncio.to_thread(reloader.is_being_written, listing):
            await reloader.reload()
            return
        waited = time.monotonic() - begin
        late = waited > _PATIENCE_SECONDS
        if waited > _PATIENCE_SECONDS + _GLANCES_SECONDS:
            reloader.postpone()
            return


async def _is_set(event: asyncio.Event, seconds: float) -> bool:
    """Return whether `event` is set, waiting for it no longer than that."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


class _Notifications:
    """What the operating system tells of changes in folders; a hint to look at once, nothing more."""

    def __init__(self, paths: Sequence[Path], stop: asyncio.Event) -> None:
        self._paths = paths
        self._stop = stop
        self._told = asyncio.Event()
        self._folders: dict[Path, tuple[int, int]] = {}
        self._listeners: list[asyncio.Task[None]] = []
        self._ended = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self.renew()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    async def wait(self, seconds: float) -> bool:
        """Return whether there was a notification, as soon as there is one or `stop` is set."""
        told = asyncio.create_task(self._told.wait())
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait((told, stopped), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        stopped.cancel()
        was_told = self._told.is_set()
        self._told.clear()
        return was_told

    async def renew(self) -> None:
        """Listen to the folders that are there now: a new folder of the same name is another folder."""
        folders = {}
        for path in self._paths:
            # A file is watched through its folder: editors and Kubernetes replace files, not their content.
            folder = path if path.is_dir() else path.parent
            with suppress(OSError):
                status = folder.stat()
                folders[folder] = (status.st_dev, status.st_ino)
        if folders == self._folders:
            return
        await self._end()
        self._folders = folders
        self._ended = asyncio.Event()
        for recursive in (True, False):
            found = [folder for folder in folders if (folder in self._paths) is recursive]
            if found:
                self._listeners.append(asyncio.create_task(self._listen(found, self._ended, recursive)))

    async def _listen(self, folders: Sequence[Path], ended: asyncio.Event, recursive: bool) -> None:  # noqa: FBT001 - passed on
        changes = watchfiles.awatch(
            *folders,
            stop_event=ended,
            debounce=_STEP_MS,
            step=_STEP_MS,
            watch_filter=None,
            recursive=recursive,
        )
        try:
            async for _ in changes:
                self._told.set()
        except (OSError, RuntimeError) as error:  # it is gone again, or the system has no watch left
            log.warning("watch_failed", error=str(error), look_seconds=_LOOK_SECONDS)

    async def _end(self) -> None:
        self._ended.set()
        for listener in self._listeners:
            await listener
        self._listeners.clear()
