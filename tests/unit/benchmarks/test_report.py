"""Tables, JSON and verdicts say what the rounds say."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.report import Requirement, Row, Sample, Section, Table, as_json, failures, render

VALUES = st.lists(st.floats(min_value=1e-3, max_value=1e9), min_size=1, max_size=9)


def section(*requirements: Requirement) -> Section:
    """Return a section with one row and `requirements`."""
    row = Row("server: CPU", Sample.of([20.0, 1500.0, 30.0]), "us a call")
    return Section("A title", "how it was done", (row,), requirements)


@given(VALUES)
def test_the_median_lies_between_the_rounds(values: list[float]) -> None:
    """A sample's median is never outside of what was measured."""
    assert min(values) <= Sample.of(values).median <= max(values)


@given(st.lists(st.tuples(*[st.floats(min_value=1e-3, max_value=1e3)] * 2), min_size=1))
def test_a_ratio_is_taken_round_by_round(pairs: list[tuple[float, float]]) -> None:
    """Each round's value is divided by the other's of the same round."""
    ones, twos = zip(*pairs, strict=True)
    assert Sample.of(ones).over(Sample.of(twos)).values == tuple(one / two for one, two in pairs)


def test_a_sample_needs_values_and_a_ratio_equal_rounds() -> None:
    """Neither an empty sample nor a ratio of unequal ones has a meaning."""
    with pytest.raises(ValueError, match="needs a value"):
        Sample.of([])
    with pytest.raises(ValueError, match="shorter"):
        Sample.of([1.0, 2.0]).over(Sample.of([1.0]))


@pytest.mark.parametrize(
    ("value", "at_least", "holds"),
    [(12.0, True, True), (11.99, True, False), (12.0, False, True), (12.01, False, False)],
)
def test_a_bound_itself_is_kept(value: float, at_least: bool, holds: bool) -> None:
    """A requirement holds at its bound and fails beyond it; only failing ones are reported."""
    requirement = Requirement("a over b", Sample.of([value]), 12.0, at_least)
    assert requirement.holds is holds
    assert failures([section(requirement)]) == ([] if holds else [requirement])


def test_the_table_shows_median_spread_and_verdict() -> None:
    """A reader sees the median, the extremes, the unit, and which requirement failed."""
    missed = Requirement("a over b", Sample.of([8.0]), 12.0, at_least=True)
    kept = Requirement("c over d", Sample.of([0.5]), 1.0, at_least=False)
    lines = render([section(missed, kept)], {"machine": "two cores"}).splitlines()
    assert lines[0] == "machine: two cores"
    assert "  server: CPU      30      20    1,500  us a call" in lines
    assert "  FAIL a over b: 8, required at least 12" in lines
    assert "  ok   c over d: 0.50, required at most 1" in lines


def test_json_holds_every_round() -> None:
    """A program finds medians, rounds, bounds and the verdict of the whole run."""
    missed = Requirement("a over b", Sample.of([8.0, 9.0, 7.0]), 12.0, at_least=True)
    report = json.loads(json.dumps(as_json([section(missed)], {"machine": "two cores"}, quick=True)))
    assert report["holds"] is False
    assert report["quick"] is True
    [only] = report["sections"]
    assert only["rows"] == [
        {"what": "server: CPU", "unit": "us a call", "median": 30.0, "rounds": [20.0, 1500.0, 30.0]}
    ]
    assert only["requirements"] == [
        {
            "what": "a over b",
            "bound": 12.0,
            "at_least": True,
            "holds": False,
            "median": 8.0,
            "rounds": [8.0, 9.0, 7.0],
        }
    ]


def test_a_table_of_several_things() -> None:
    """Each line has a cell for each heading; JSON names them and holds every round."""
    table = Table(("calls", "p99 ms"), {"killed": (Sample.of([2000.0]), Sample.of([1.5, 2.5]))})
    found = Section("A title", "how it was done", table=table)
    lines = render([found], {}).splitlines()
    assert lines[-2:] == ["          calls  p99 ms", "  killed  2,000       2"]
    (only,) = as_json([found], {}, quick=False)["sections"]
    assert only["table"]["killed"]["p99 ms"] == {"median": 2.0, "rounds": [1.5, 2.5]}
