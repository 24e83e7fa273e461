"""Bundles: equal files give equal bytes, and nothing else is a bundle."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.distribution.bundle import BundleFile, digest, pack, unpack
from garrison.distribution.refusal import Refusal, RefusalError

NAMES = st.text(st.characters(categories=["L", "N"], include_characters="-_ "), min_size=1, max_size=20)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
FILES = st.dictionaries(PATHS, st.binary(max_size=200), max_size=5).map(
    lambda found: [BundleFile(name, content) for name, content in found.items()]
)


@given(FILES)
def test_files_come_out_as_they_went_in(files: list[BundleFile]) -> None:
    """Names, contents and order survive, and packing again gives the same bytes."""
    bundle = pack(files)
    assert unpack(bundle) == tuple(files)
    assert pack(unpack(bundle)) == bundle


@given(FILES, st.data())
def test_a_changed_bundle_is_another_bundle_or_none(files: list[BundleFile], data: st.DataObject) -> None:
    """Whatever is changed, cut or added: it is refused, or it is what `pack` makes of other files."""
    bundle = bytearray(pack(files))
    start = data.draw(st.integers(0, len(bundle)))
    end = data.draw(st.integers(start, min(len(bundle), start + 8)))
    bundle[start:end] = data.draw(st.binary(max_size=8))
    try:
        packed = pack(unpack(bytes(bundle)))
    except RefusalError:
        return
    assert packed == bytes(bundle)


@given(st.binary(max_size=100))
def test_garbage_is_refused(garbage: bytes) -> None:
    """Any bytes after the first line give a refusal, never another exception."""
    with pytest.raises(RefusalError) as caught:
        unpack(garbage)
    assert caught.value.code is Refusal.UNREADABLE
    with pytest.raises(RefusalError):
        unpack(b"garrison-bundle 1\n[" + garbage)


@pytest.mark.parametrize(
    "index",
    [
        b'[["a.yaml",1] ]',
        b'[["\\u0061.yaml",1]]',
        b'[["a.yaml",true]]',
        b'[["a.yaml",1.0]]',
        b'[["a.yaml",-1],["b.yaml",2]]',
        b'[["a.yaml",1],["a.yaml",0]]',
        b'[["a.yaml",2]]',
        b'[["a.yaml",0]]',
        b'["a"]',
        b'{"a.yaml":1}',
        b"[" * 10_000,
        b"1",
    ],
)
def test_there_is_one_spelling(index: bytes) -> None:
    """Spaces, escapes, other types, wrong sizes and repeated names are no bundle."""
    assert unpack(b'garrison-bundle 1\n[["a.yaml",1]]\nx')
    with pytest.raises(RefusalError):
        unpack(b"garrison-bundle 1\n" + index + b"\nx")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc/passwd",
        "../a.yaml",
        "a/../../b.yaml",
        "a//b",
        "./a",
        "a\\b",
        "a\nb",
        "a\x1b[2J",
        "a\0",
        "\ud800",
        "x" * 1025,
    ],
)
def test_names_are_plain_relative_paths(name: str) -> None:
    """Nothing that could lead out of a folder, move a terminal's cursor or end a line is a name."""
    with pytest.raises(ValueError, match=r"name|path"):
        pack([BundleFile(name, b"")])


def test_two_files_of_one_name() -> None:
    """Which one counts would be a guess."""
    with pytest.raises(ValueError, match=r"two files would be called `a\.yaml`"):
        pack([BundleFile("a.yaml", b"1"), BundleFile("a.yaml", b"2")])


def test_the_version_is_the_content() -> None:
    """The same files are the same version on every machine and with every library, forever."""
    files = [BundleFile("policies/ä.yaml", b"a: 1\n"), BundleFile("b.yaml", b"")]
    assert pack(files) == b'garrison-bundle 1\n[["policies/\\u00e4.yaml",5],["b.yaml",0]]\na: 1\n'
    assert digest(pack(files[::-1])) != digest(pack(files))
