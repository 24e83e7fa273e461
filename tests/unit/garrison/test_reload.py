"""Configuration follows its files, whatever way they are changed, and never takes half a change."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import weakref
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs
from structlog.typing import EventDict

from garrison.documents import Diagnostic, DocumentCache, Listing, list_files
from garrison.documents.files import is_being_written
from garrison.errors import ConfigError
from garrison.process.reload import Reloader, _follow, watch

# How long a condition may take before a test gives up; nothing waits this long when all is well.
PATIENCE_SECONDS = 20.0


@dataclass(eq=False)
class Generation:
    """What the tests load: the data of all documents."""

    version: str
    data: list[Any]
    warnings: Sequence[Diagnostic] = ()


class Watched:
    """A reloader with everything that it ever put in force."""

    def __init__(self, *paths: Path) -> None:
        self.cache = DocumentCache()
        self.used: list[Any] = []
        self.builds = 0
        self.changed = asyncio.Event()
        self.reloader = Reloader("test", paths, self.build, self.use)

    def build(self, paths: Sequence[Path]) -> Generation:
        """Load all files; refuse those that are wrong."""
        self.builds += 1
        loaded = self.cache.load(paths)
        if loaded.diagnostics:
            raise ConfigError(loaded.diagnostics)
        version = b"".join(loaded.digests).hex()
        return Generation(version, [document.data for document in loaded.documents])

    def use(self, generation: Generation) -> None:
        """Note what is in force."""
        self.used.append(generation.data)
        self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds; it is looked at whenever something is put in force."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def in_force(self, *data: Any) -> None:
        """Wait until exactly these documents are in force."""
        await self.until(lambda: bool(self.used) and self.used[-1] == list(data))


def watching(watched: Watched, scenario: Callable[[], Awaitable[None]]) -> None:
    """Load, and run a scenario while changes are followed."""

    async def run() -> None:
        watched.reloader.load()
        stop = asyncio.Event()
        task = asyncio.create_task(watch([watched.reloader], stop))  # type: ignore[list-item] # invariant
        try:
            await scenario()
        finally:
            stop.set()
            async with asyncio.timeout(PATIENCE_SECONDS):
                await task

    asyncio.run(run())


@contextmanager
def logged(name: str) -> Iterator[Callable[[], Awaitable[None]]]:
    """Give something that waits until an event of this name is logged."""
    seen = asyncio.Event()

    def note(_logger: object, _method: str, event: EventDict) -> EventDict:
        if event["event"] == name:
            seen.set()
        raise structlog.DropEvent

    async def wait() -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await seen.wait()

    # In place, as `capture_logs` does it: loggers keep the list.
    processors = structlog.get_config()["processors"]
    before = processors.copy()
    try:
        processors[:] = [note]
        yield wait
    finally:
        processors[:] = before


def replace(file: Path, text: str) -> None:
    """Write a new file and rename it over `file`, as editors do."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.rename(file)


def test_written_and_renamed_files_take_effect(tmp_path: Path) -> None:
    """Both ways to change a file are followed, and so are new and removed files."""
    (tmp_path / "a.yaml").write_text("a: 1")
    watched = Watched(tmp_path)

    async def scenario() -> None:
        (tmp_path / "a.yaml").write_text("a: 2")
        await watched.in_force({"a": 2})
        replace(tmp_path / "a.yaml", "a: 3")
        await watched.in_force({"a": 3})
        (tmp_path / "b.yaml").write_text("b: 1")
        await watched.in_force({"a": 3}, {"b": 1})
        (tmp_path / "a.yaml").unlink()
        await watched.in_force({"b": 1})

    watching(watched, scenario)


def config_map(folder: Path, name: str, files: dict[str, str]) -> None:
    """Publish files as the kubelet does: a new folder of data, then one link swapped."""
    data = folder / f"..{name}"
    data.mkdir()
    for file, text in files.items():
        (data / file).write_text(text)
    (folder / "..data_tmp").symlink_to(data.name)
    (folder / "..data_tmp").rename(folder / "..data")
    for file in files:
        if not (folder / file).is_symlink():
            (folder / file).symlink_to(f"..data/{file}")
    for link in folder.iterdir():
        if not link.name.startswith(".") and link.name not in files:
            link.unlink()


def test_config_maps_are_followed(tmp_path: Path) -> None:
    """Two files swapped by one link change together: no mixture is ever in force."""
    config_map(tmp_path, "1", {"a.yaml": "v: 1", "b.yaml": "v: 1"})
    watched = Watched(tmp_path)

    async def scenario() -> None:
        config_map(tmp_path, "2", {"a.yaml": "v: 2", "b.yaml": "v: 2"})
        shutil.rmtree(tmp_path / "..1")
        await watched.in_force({"v": 2}, {"v": 2})
        config_map(tmp_path, "3", {"a.yaml": "v: 3"})
        await watched.in_force({"v": 3})

    watching(watched, scenario)
    assert watched.used == [[{"v": 1}] * 2, [{"v": 2}] * 2, [{"v": 3}]]


def test_a_single_file_behind_a_config_map_is_followed(tmp_path: Path) -> None:
    """A path that names one file follows the link too."""
    config_map(tmp_path, "1", {"a.yaml": "v: 1"})
    watched = Watched(tmp_path / "a.yaml")

    async def scenario() -> None:
        config_map(tmp_path, "2", {"a.yaml": "v: 2"})
        await watched.in_force({"v": 2})

    watching(watched, scenario)


def test_a_folder_that_is_a_link_is_followed(tmp_path: Path) -> None:
    """Deployment tools swap a link to a whole folder; the system tells nobody who watches the old one."""
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.yaml").write_text(f"v: {name}")
    (tmp_path / "current").symlink_to("1")
    watched = Watched(tmp_path / "current")

    async def scenario() -> None:
        (tmp_path / "next").symlink_to("2")
        (tmp_path / "next").rename(tmp_path / "current")
        await watched.in_force({"v": 2})

    watching(watched, scenario)


def test_a_folder_may_disappear_and_come_back(tmp_path: Path) -> None:
    """While it is gone the old policies stay; once it is back, changes in it are followed again."""
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "a.yaml").write_text("a: 1")
    watched = Watched(folder)

    async def scenario() -> None:
        with logged("snapshot_refused") as refused:
            shutil.rmtree(folder)
            await refused()
        assert watched.used == [[{"a": 1}]]
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "a.yaml").write_text("a: 2")
        (tmp_path / "new").rename(folder)
        await watched.in_force({"a": 2})
        (folder / "a.yaml").write_text("a: 3")
        await watched.in_force({"a": 3})

    watching(watched, scenario)


def test_a_file_that_is_still_open_is_not_used(tmp_path: Path) -> None:
    """The first half of a file is a valid policy; it is not taken while its writer goes on."""
    file = tmp_path / "a.yaml"
    file.write_text("deny: everything\n---\nallow: something\n")
    watched = Watched(tmp_path)

    async def scenario() -> None:
        with logged("configuration_unsettled") as unsettled, file.open("w") as writer:
            if not is_being_written(file):
                pytest.skip("this file system has no leases")
            writer.write("allow: something\n")
            writer.flush()
            await unsettled()
            writer.write("---\ndeny: everything\n")
        await watched.in_force({"allow": "something"}, {"deny": "everything"})

    watching(watched, scenario)
    assert [{"allow": "something"}] not in watched.used


def test_a_storm_of_renames_takes_whole_files_only(tmp_path: Path) -> None:
    """A file replaced without end takes effect in time, each time as a whole."""
    file = tmp_path / "a.yaml"
    file.write_text("n: 0\n---\nn: 0\n")
    watched = Watched(tmp_path)

    async def scenario() -> None:
        number = 0
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(watched.used) < 3:
                number += 1
                replace(file, f"n: {number}\n---\nn: {number}\n")
                await asyncio.sleep(0.005)
        await watched.in_force({"n": number}, {"n": number})

    watching(watched, scenario)
    assert all(len(data) == 2 and data[0] == data[1] for data in watched.used)


def test_a_growing_folder_is_not_used_before_it_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as files come one after the other, nothing is built."""
    watched = Watched(tmp_path)
    looks = 0

    def growing(paths: Any) -> Listing:
        nonlocal looks
        looks += 1
        if looks < 20:
            (tmp_path / f"{looks:02}.yaml").write_text("n: 1")
        return list_files(paths)

    monkeypatch.setattr("garrison.process.reload._QUIET_SECONDS", 0)
    monkeypatch.setattr("garrison.process.reload._PATIENCE_SECONDS", PATIENCE_SECONDS)
    monkeypatch.setattr("garrison.process.reload.list_files", growing)
    asyncio.run(_follow(watched.reloader, asyncio.Event()))  # type: ignore[arg-type] # as above
    assert watched.used == [[{"n": 1}] * 19]


def test_files_that_are_no_policies_cost_no_build(tmp_path: Path) -> None:
    """A log or an editor's copy in the folder is no reason to build anything."""
    (tmp_path / "a.yaml").write_text("a: 1")
    os.utime(tmp_path / "a.yaml")
    watched = Watched(tmp_path)
    watched.reloader.load()
    listing = watched.reloader._listing
    watched.reloader._trusted = True
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".a.yaml.swp").write_text("x")
    assert not watched.reloader.has_changed(dict(listing), told=True)
    watched.reloader._trusted = False
    assert watched.reloader.has_changed(dict(listing), told=True)
    assert not watched.reloader.has_changed(dict(listing), told=False)


def test_a_refused_change_leaves_the_old_generation(tmp_path: Path) -> None:
    """A mistake is counted and logged, and when it is taken back the log says that all is well."""
    file = tmp_path / "a.yaml"
    file.write_text("a: 1")
    watched = Watched(file)

    async def run() -> None:
        file.write_text("a: [")
        await watched.reloader.reload()
        file.write_text("a: 1")
        await watched.reloader.reload()

    watched.reloader.load()
    with capture_logs() as logs:
        asyncio.run(run())
    assert [line["event"] for line in logs] == ["snapshot_refused", "snapshot_restored"]
    assert watched.reloader.results == {"ok": 1, "refused": 1}
    assert watched.used == [[{"a": 1}]]


def test_old_generations_are_freed(tmp_path: Path) -> None:
    """Twenty reloads leave one generation, its documents, and nothing for the collector to find."""
    watched = Watched(tmp_path)
    generations: list[weakref.ref[Any]] = []
    documents: list[weakref.ref[Any]] = []
    watched.reloader = Reloader(
        "test", [tmp_path], watched.build, lambda built: generations.append(weakref.ref(built))
    )

    async def run() -> None:
        for number in range(20):
            (tmp_path / "a.yaml").write_text(f"n: {number}\n---\nm: [1]\n")
            await watched.reloader.reload()
            documents.extend(
                weakref.ref(document) for document in watched.cache._files[tmp_path / "a.yaml"].documents
            )

    gc.disable()
    try:
        asyncio.run(run())
        assert [bool(reference()) for reference in generations] == [False] * 19 + [True]
        assert [bool(reference()) for reference in documents] == [False] * 38 + [True] * 2
    finally:
        gc.enable()


def test_a_bug_in_a_build_does_not_end_the_watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unforeseen exception is logged, and the next change is followed."""
    file = tmp_path / "a.yaml"
    file.write_text("a: 1")
    watched = Watched(tmp_path)
    whole = watched.cache.load

    def broken(paths: Any) -> Any:
        loaded = whole(paths)
        if any(document.data == {"a": 2} for document in loaded.documents):
            raise RuntimeError("a bug")
        return loaded

    async def scenario() -> None:
        monkeypatch.setattr(watched.cache, "load", broken)
        with logged("reload_failed") as failed:
            file.write_text("a: 2")
            await failed()
        file.write_text("a: 3")
        await watched.in_force({"a": 3})

    watching(watched, scenario)
