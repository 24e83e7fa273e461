"""Paths: the four normalisation modes, and what never changes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.paths import PathNormalization, normalize_path

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
