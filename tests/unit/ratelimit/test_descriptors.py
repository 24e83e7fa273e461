"""Bucket keys are readable, escaped and of bounded length."""

from __future__ import annotations

from ratelimit.algorithm import UNITS
from ratelimit.descriptors import MAX_KEY_CHARACTERS, bucket_key

MINUTE = UNITS["minute"]


def test_key_format() -> None:
    """A key names unit, domain and entries in order."""
    assert bucket_key(MINUTE, "d", [("a", "b"), ("c", "")]) == "minute|d|a=b|c="


def test_separators_are_escaped() -> None:
    """A separator inside a name or value is not one."""
    assert bucket_key(MINUTE, "d|x", [("a=", "b%|")]) == "minute|d%7Cx|a%3D=b%25%7C"


def test_unit_is_part_of_the_key() -> None:
    """Two units never share a count."""
    assert bucket_key(UNITS["hour"], "d", [("a", "b")]) != bucket_key(MINUTE, "d", [("a", "b")])


def test_long_keys_are_hashed() -> None:
    """A key does not grow with what callers put into their headers, and still tells values apart."""
    first = bucket_key(MINUTE, "d", [("a", "x" * 100_000 + "1")])
    second = bucket_key(MINUTE, "d", [("a", "x" * 100_000 + "2")])
    assert len(first) <= MAX_KEY_CHARACTERS
    assert first.startswith("#")
    assert first != second
