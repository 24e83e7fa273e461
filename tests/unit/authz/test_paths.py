"""Paths: the four normalisation modes, and what never changes."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.paths import PathNormalization, change_query, normalize_path

NONE, BASE, MERGE, DECODE = PathNormalization


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/a?b#c", ("/a", "/a", "/a", "/a")),
        ("/a#b?c", ("/a", "/a", "/a", "/a")),
        ("/a/../b", ("/a/../b", "/b", "/b", "/b")),
        ("/a/./b/", ("/a/./b/", "/a/b/", "/a/b/", "/a/b/")),
        ("/a/..", ("/a/..", "/", "/", "/")),
        ("/../../a", ("/../../a", "/a", "/a", "/a")),
        ("/a/%2e%2E/b", ("/a/%2e%2E/b", "/b", "/b", "/b")),
        ("/%61dmin", ("/%61dmin", "/admin", "/admin", "/admin")),
        ("/a\\..\\b", ("/a\\..\\b", "/b", "/b", "/b")),
        ("//a//b", ("//a//b", "//a//b", "/a/b", "/a/b")),
        ("/a%2fb%5Cc", ("/a%2fb%5Cc", "/a%2fb%5Cc", "/a%2fb%5Cc", "/a/b/c")),
        ("/a%2f..%2fb", ("/a%2f..%2fb", "/a%2f..%2fb", "/a%2f..%2fb", "/b")),
        ("/a/%252e%252e/b", ("/a/%252e%252e/b",) * 4),
        ("/a;x=y", ("/a;x=y",) * 4),
        ("/Admin", ("/Admin",) * 4),
        ("/a/.b/..c", ("/a/.b/..c",) * 4),
        ("/%zz%", ("/%zz%",) * 4),
        ("*", ("*",) * 4),
    ],
)
def test_modes(target: str, expected: tuple[str, str, str, str]) -> None:
    """Each mode does what Istio's does, on paths without query and fragment."""
    assert tuple(normalize_path(target, mode) for mode in (NONE, BASE, MERGE, DECODE)) == expected


@given(st.text("/.%2eEfFaA\\?#;", max_size=40), st.sampled_from([BASE, MERGE, DECODE]))
def test_no_dot_segment_survives(text: str, mode: PathNormalization) -> None:
    """After normalisation no `.` or `..` segment is left for an upstream to resolve."""
    segments = normalize_path("/" + text, mode).split("/")
    assert not {".", ".."} & set(segments)


@pytest.mark.parametrize(
    ("target", "remove", "add", "expected"),
    [
        ("/a", (), {}, "/a"),
        ("/a?", (), {}, "/a"),
        ("/a?x=1&y=2", (), {}, "/a?x=1&y=2"),
        ("/a?x=1&y=2&x=3", ("x",), {}, "/a?y=2"),
        ("/a?x", ("x",), {}, "/a"),
        ("/a?%78=1&%79=2&X=3&x%20=4", ("x",), {}, "/a?%79=2&X=3&x%20=4"),
        ("/a?y=1;x=2;z=3", ("x",), {}, "/a?y=1;z=3"),
        ("/a?x=1;z=3", ("x",), {}, "/a?z=3"),
        ("/a?a+b=1&a%20b=2", ("a b",), {}, "/a"),
        ("/a", (), {"x": "1"}, "/a?x=1"),
        ("/a?x=0&%78=0&y=?", (), {"x": "a&b=c d/\u00e4%"}, "/a?y=?&x=a%26b%3Dc%20d%2F%C3%A4%25"),
        ("/a#b", (), {"x": "1"}, "/a?x=1"),
        ("/a\udcff?y=\udcfe", (), {"x": "\udcfd"}, "/a%FF?y=%FE&x=%FD"),
    ],
)
def test_change_query(target: str, remove: tuple[str, ...], add: dict[str, str], expected: str) -> None:
    """Parameters go in every spelling and come encoded; what else is there stays as it was."""
    assert change_query(target, remove, add) == expected


NAMES = st.text(alphabet="ab %&;=\u00e4", min_size=1, max_size=3)


@given(st.lists(st.tuples(NAMES, NAMES)), st.sets(NAMES), st.dictionaries(NAMES, NAMES))
def test_a_server_reads_what_was_set(
    sent: list[tuple[str, str]], gone: set[str], add: dict[str, str]
) -> None:
    """Whatever a caller sends, a set parameter has one value, a removed one none, and others their own."""
    changed = change_query(f"/p?{urlencode(sent)}", gone, add)
    assert changed.isascii()
    kept = [(name, value) for name, value in sent if name not in gone and name not in add]
    path, _, query = changed.partition("?")
    assert path == "/p"
    assert parse_qsl(query, keep_blank_values=True) == [*kept, *add.items()]
