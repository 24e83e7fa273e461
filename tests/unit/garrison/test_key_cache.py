"""The cache on disk: what was written for a source comes back for it, or nothing does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from garrison.errors import DependencyError
from garrison.keys.cache import KeyCache, Remembered
from garrison.keys.jwks import KeySource

SOURCE = KeySource("https://issuer.example/keys", "https://issuer.example")
OTHER = KeySource("https://issuer.example/keys", "https://other.example")
KEYS = Remembered(b'{"keys": []}\n', 1_000_000.25)


def file_in(folder: Path) -> Path:
    """Return the only file in `folder`."""
    (file,) = folder.iterdir()
    return file


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    """For the same source, also in another process and with another time limit; not for another source."""
    cache = KeyCache(tmp_path / "a" / "b")
    assert cache.read(SOURCE) is None
    cache.write(SOURCE, Remembered(b"old", 1.0))
    cache.write(SOURCE, KEYS)
    assert KeyCache(tmp_path / "a" / "b").read(SOURCE) == KEYS
    assert cache.read(KeySource(SOURCE.url, SOURCE.issuer, timeout_seconds=1)) == KEYS
    assert cache.read(OTHER) is None


def test_files_are_for_this_user_alone(tmp_path: Path) -> None:
    """Nobody else may write to them, or they would not be believed."""
    folder = tmp_path / "cache"
    KeyCache(folder).write(SOURCE, KEYS)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert file_in(folder).stat().st_mode & 0o777 == 0o600


@given(at=st.integers(0, 10_000), flip=st.integers(1, 255))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_edited_files_are_refused(tmp_path: Path, at: int, flip: int) -> None:
    """Any changed byte shows."""
    cache = KeyCache(tmp_path)
    cache.write(SOURCE, KEYS)
    file = file_in(tmp_path)
    content = bytearray(file.read_bytes())
    content[at % len(content)] ^= flip
    file.write_bytes(content)
    with pytest.raises(DependencyError, match="not as it was written"):
        cache.read(SOURCE)


def test_truncated_and_lengthened_files_are_refused(tmp_path: Path) -> None:
    """A file that was cut off anywhere, or has something after it, is not used."""
    cache = KeyCache(tmp_path)
    cache.write(SOURCE, KEYS)
    file = file_in(tmp_path)
    content = file.read_bytes()
    for wrong in (*(content[:length] for length in range(len(content))), content + b"\n"):
        file.write_bytes(wrong)
        with pytest.raises(DependencyError):
            cache.read(SOURCE)


def test_swapped_files_are_refused(tmp_path: Path) -> None:
    """The keys of one issuer in the file of another would let the one sign for the other."""
    cache = KeyCache(tmp_path)
    cache.write(SOURCE, KEYS)
    of_source = file_in(tmp_path).rename(tmp_path / "away")
    cache.write(OTHER, KEYS)
    of_other = next(file for file in tmp_path.iterdir() if file != of_source)
    of_source.replace(of_other)
    with pytest.raises(DependencyError, match="for another issuer"):
        cache.read(OTHER)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_files_that_others_can_write_to_are_refused(tmp_path: Path, mode: int) -> None:
    """Whoever else can write to the file could put keys there."""
    cache = KeyCache(tmp_path)
    cache.write(SOURCE, KEYS)
    file_in(tmp_path).chmod(mode)
    with pytest.raises(DependencyError, match="can be written by others"):
        cache.read(SOURCE)


def test_links_and_pipes_are_refused(tmp_path: Path) -> None:
    """Only a plain file is read, and reading never waits."""
    cache = KeyCache(tmp_path)
    cache.write(SOURCE, KEYS)
    file = file_in(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    with pytest.raises(DependencyError):
        cache.read(SOURCE)
    file.unlink()
    os.mkfifo(file, 0o600)
    with pytest.raises(DependencyError):
        cache.read(SOURCE)


def test_a_large_file_is_refused(tmp_path: Path) -> None:
    """No more is read than a key set may have."""
    cache = KeyCache(tmp_path)
    cache.write(SOURCE, Remembered(b"x" * 2_000_000, 0))
    with pytest.raises(DependencyError, match="larger"):
        cache.read(SOURCE)


def test_old_files_are_removed(tmp_path: Path) -> None:
    """What is too old to be used is deleted, and nothing that the cache did not write."""
    cache = KeyCache(tmp_path)
    for source, written in ((SOURCE, 1_000), (OTHER, 3_000)):
        cache.write(source, KEYS)
        newest = max(tmp_path.glob("*.keys"), key=lambda one: one.stat().st_mtime)
        os.utime(newest, (written, written))
    stranger = tmp_path / "notes.txt"
    stranger.write_text("")
    unfinished = tmp_path / f".{'0' * 64}.keys.123"
    unfinished.write_text("")
    for old in (stranger, unfinished):
        os.utime(old, (1_000, 1_000))
    cache.prune(2_000)
    assert cache.read(SOURCE) is None
    assert cache.read(OTHER) == KEYS
    assert stranger.exists()
    assert not unfinished.exists()
    KeyCache(tmp_path / "absent").prune(2_000)
