"""Files are read as of one moment, parsed only when they changed, and never left out in silence."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from garrison.documents import Document, DocumentCache, find_files, list_files, load, parse
from garrison.documents.files import is_being_written, is_replaced_whole, is_settled
from garrison.documents.yaml import MAX_FILE_BYTES, _Chunks

# Far enough ahead of every time stamp that files count as settled.
LATER_NS = 2**62


def cache() -> DocumentCache:
    """Return a cache that trusts time stamps at once."""
    return DocumentCache(lambda: LATER_NS)


def test_folders_are_walked_by_name_and_links_followed(tmp_path: Path) -> None:
    """Folders and what links point to stand in the order of their names; a link upwards ends nothing."""
    folder = tmp_path / "policies"
    (folder / "b").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for file in (
        folder / "c.yaml",
        folder / "b" / "x.yml",
        folder / "b.yaml",
        tmp_path / "elsewhere" / "y.json",
    ):
        file.write_text("{}")
    (folder / "a").symlink_to(tmp_path / "elsewhere")
    (folder / "b" / "up").symlink_to(folder)
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "z.yaml").write_text("{}")
    names = [str(file.relative_to(folder)) for file in find_files([folder, folder / "c.yaml"])]
    assert names == ["a/y.json", "b/x.yml", "b.yaml", "c.yaml"]


def test_a_link_to_nothing_is_an_error(tmp_path: Path) -> None:
    """A policy whose target is gone is not the same as no policy."""
    (tmp_path / "a.yaml").symlink_to(tmp_path / "gone.yaml")
    assert [str(problem) for problem in load([tmp_path])[1]] == [
        f"{tmp_path / 'a.yaml'}:1:1: cannot be read: no such file or directory [unreadable]"
    ]


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Policies that nobody can see are reported, not passed over."""

    def denied(folder: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "scandir", denied)
    assert [problem.message for problem in load([tmp_path])[1]] == ["cannot be read: permission denied"]


def test_only_changed_files_are_parsed_again(tmp_path: Path) -> None:
    """Documents of unchanged files are the same objects; a changed, new or removed file is noticed."""
    one, two = tmp_path / "1.yaml", tmp_path / "2.yaml"
    one.write_text("a: 1")
    two.write_text("a: 2")
    files = cache()
    first = files.load([tmp_path])
    assert files.load([tmp_path]).documents == first.documents
    two.write_text("a: 3")
    second = files.load([tmp_path])
    assert second.documents[0] is first.documents[0]
    assert second.documents[1].data == {"a": 3}
    assert second.digests[0] == first.digests[0]
    assert second.digests[1] != first.digests[1]
    one.unlink()
    assert [document.data for document in files.load([tmp_path]).documents] == [{"a": 3}]


def test_a_change_that_time_stamps_do_not_show_is_noticed(tmp_path: Path) -> None:
    """Right after a change a file is read again even if it looks the same, as coarse stamps may hide one."""
    file = tmp_path / "1.yaml"
    file.write_text("a: 1")
    status = file.stat()
    files = DocumentCache(lambda: max(status.st_mtime_ns, status.st_ctime_ns) + 1)
    files.load([tmp_path])
    known = files._files[file]
    file.write_text("a: 2")
    known.state = list_files([file])[file]  # type: ignore[assignment] # as if both had the same stamp
    assert files.load([tmp_path]).documents[0].data == {"a": 2}


def test_a_touched_file_keeps_its_documents(tmp_path: Path) -> None:
    """Same content, same documents, whatever its time stamp."""
    file = tmp_path / "1.yaml"
    file.write_text("a: 1")
    files = cache()
    (before,) = files.load([file]).documents
    os.utime(file, ns=(1, 1))
    assert files.load([file]).documents == [before]


def test_files_that_keep_changing_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set of files that is never the same before and after reading is an error, not half a policy."""
    file = tmp_path / "1.yaml"
    file.write_text("a: 1")
    listings = iter(range(1000))

    def restless(paths: object) -> object:
        file.write_text(f"a: {next(listings)}")
        return list_files([file])

    monkeypatch.setattr("garrison.documents.files.list_files", restless)
    loaded = cache().load([file])
    assert loaded.documents == []
    assert str(loaded.diagnostics[0]) == f"{file}:1:1: cannot be read: it keeps changing [unreadable]"


def test_a_file_that_comes_while_others_are_read_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading starts over when a file came or went in between."""
    (tmp_path / "1.yaml").write_text("a: 1")
    looks = iter(range(1000))

    def listed(paths: list[Path]) -> object:
        if next(looks) == 1:
            (tmp_path / "2.yaml").write_text("a: 2")
        return list_files(paths)

    monkeypatch.setattr("garrison.documents.files.list_files", listed)
    assert [document.data for document in cache().load([tmp_path]).documents] == [{"a": 1}, {"a": 2}]


def test_pipes_can_be_read(tmp_path: Path) -> None:
    """A file given by name may be a pipe, as the shell's `<(...)` is."""
    read, write = os.pipe()
    os.write(write, b"a: 1\n")
    os.close(write)
    documents, problems = load([Path(f"/dev/fd/{read}")])
    os.close(read)
    assert problems == []
    assert documents[0].data == {"a": 1}


def test_too_large_a_file_is_refused_unread(tmp_path: Path) -> None:
    """A file over the limit costs no more than the limit."""
    file = tmp_path / "1.yaml"
    with file.open("wb") as large:
        large.truncate(MAX_FILE_BYTES + 2)
    assert [problem.code for problem in load([file])[1]] == ["file_too_large"]


def test_a_file_open_for_writing_is_known(tmp_path: Path) -> None:
    """The system tells whether somebody can still write to a file."""
    file = tmp_path / "1.yaml"
    with file.open("w") as writer:
        writer.write("a: 1")
        if not is_being_written(file):
            pytest.skip("this file system has no leases")
    assert not is_being_written(file)
    assert not is_being_written(tmp_path / "missing")


def test_replacing_is_told_from_growing(tmp_path: Path) -> None:
    """Files renamed over others are whole; files that grow, come or go may be half of something."""
    file, new = tmp_path / "1.yaml", tmp_path / "new"
    file.write_text("a: 1")
    before = list_files([tmp_path])
    assert is_replaced_whole(before, before)
    new.write_text("a: 2")
    new.rename(file)
    replaced = list_files([tmp_path])
    assert is_replaced_whole(before, replaced)
    with file.open("a") as writer:
        writer.write("b: 2")
    assert not is_replaced_whole(replaced, list_files([tmp_path]))
    (tmp_path / "2.yaml").write_text("")
    assert not is_replaced_whole(before, list_files([tmp_path]))
    assert is_settled(before, LATER_NS)
    assert not is_settled(before, file.stat().st_mtime_ns)


def test_derived_values_are_remembered_per_key() -> None:
    """What was made once for a document is not made again, and never leaks to another key."""
    document = Document("f.yaml", {"a": 1})
    made: list[str] = []

    def maker(name: str) -> Callable[[], str]:
        def make() -> str:
            made.append(name)
            return name

        return make

    assert [document.derived(key, maker(key)) for key in ("x", "x", "y")] == ["x", "x", "y"]
    assert made == ["x", "y"]


def test_parts_of_a_long_list_cost_one_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions of the items of a `List` are found without reading the whole once for each."""
    text = "items:\n" + "".join(f"- a: {number}\n" for number in range(500))
    (document,) = parse(text.encode(), "f.yaml")[0]
    readings: list[int] = []

    class Counted(_Chunks):
        def __init__(self, text: bytes) -> None:
            super().__init__(text)
            readings.append(len(text))

    monkeypatch.setattr("garrison.documents.yaml._Chunks", Counted)
    for number in range(500):
        assert document.part(("items", number)).position(("a",)).line == number + 2
    assert sum(readings) < 5 * len(text)
