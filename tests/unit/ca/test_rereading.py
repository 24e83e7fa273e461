"""What is read again is parsed once, and never taken for what it was when it has changed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ca.store.rereading import Rereading


def test_only_what_is_new_is_parsed() -> None:
    """What was gone for one reading is new again."""
    parsed: list[str] = []

    def parse(text: str) -> int:
        parsed.append(text)
        return int(text)

    rereading = Rereading(parse)
    assert [rereading.values(one) for one in (["1", "2"], ["2", "3"], ["1", "2"])] == [(1, 2), (2, 3), (1, 2)]
    assert parsed == ["1", "2", "3", "1"]


def test_what_cannot_be_parsed_changes_nothing() -> None:
    """It is an error each time, and the others are known as before."""
    rereading = Rereading[str, int](int)
    first = rereading.values(["1"])
    for _ in range(2):
        with pytest.raises(ValueError, match="invalid literal"):
            rereading.values(["2", "x"])
    assert rereading.values(["1"]) == first


@given(st.lists(st.lists(st.text(max_size=2), unique=True, max_size=5), max_size=5))
def test_it_reads_as_if_everything_was_parsed(readings: list[list[str]]) -> None:
    """In the order of what is stored, whatever was read before."""
    rereading = Rereading[str, str](lambda text: f"<{text}>")
    assert [rereading.values(one) for one in readings] == [
        tuple(f"<{text}>" for text in one) for one in readings
    ]
