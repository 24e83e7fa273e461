"""The metrics of several processes become one page that adds up and never goes back."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

import garrison
from garrison.telemetry import names
from garrison.telemetry.merging import GAUGES, Rule, Totals


class Fixed(Collector):
    """Shows fixed families."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        """Return them."""
        return self._families


def counter(name: str, counts: Mapping[str, float]) -> Metric:
    """Return a counter with one label."""
    family = CounterMetricFamily(name, "help", labels=["code", "verdict"])
    for label, count in counts.items():
        family.add_metric([label, "x"], count)
    return family


def gauge(name: str, value: float) -> Metric:
    """Return a gauge without labels."""
    return GaugeMetricFamily(name, "help", value=value)


def page(*families: Metric) -> str:
    """Return families as a worker sends them."""
    registry = CollectorRegistry()
    registry.register(Fixed(list(families)))
    return generate_latest(registry).decode()


def samples(families: list[Metric], name: str) -> dict[str, float]:
    """Return the values of a sample by its label `code`."""
    return {
        sample.labels.get("code", ""): sample.value
        for family in families
        for sample in family.samples
        if sample.name == name
    }


LABELS = st.text(min_size=1, max_size=4)
COUNTS = st.dictionaries(LABELS, st.integers(0, 1000), max_size=4)


@given(st.lists(COUNTS, max_size=4), COUNTS)
def test_counters_are_the_sum_of_the_parts(parts: list[dict[str, int]], control: dict[str, int]) -> None:
    """For every label, whatever text it is, the sum is what all processes counted."""
    totals = Totals()
    for number, part in enumerate(parts):
        totals.record(str(number), 1, page(counter("c", part)))
    merged = totals.merge([counter("c", control)], {str(number) for number in range(len(parts))})
    expected = {
        label: sum(part.get(label, 0) for part in [*parts, control])
        for part in [*parts, control]
        for label in part
    }
    assert samples(merged, "c_total") == expected


STEPS = st.lists(
    st.tuples(st.sampled_from(["count", "scrape", "silent", "end", "crash"]), st.integers(0, 2)), max_size=40
)


@given(STEPS)
def test_counters_never_go_back(steps: list[tuple[str, int]]) -> None:
    """Whatever workers do between scrapes: count, say nothing, end with or without a last word."""
    totals = Totals()
    lives = dict.fromkeys(range(3), 1)
    counts = dict.fromkeys(range(3), 0)
    shown = 0.0
    for what, number in steps:
        if what == "count":
            counts[number] += 1
        elif what in {"end", "crash"}:
            if what == "end":
                totals.record(str(number), lives[number], page(counter("c", {"a": counts[number]})))
            totals.end(str(number), lives[number])
            lives[number] += 1
            counts[number] = 0
        else:
            answering = [one for one in range(3) if what == "scrape" or one != number]
            for one in answering:
                totals.record(str(one), lives[one], page(counter("c", {"a": counts[one]})))
            merged = totals.merge([], {str(one) for one in answering})
            now = samples(merged, "c_total").get("a", 0.0)
            assert now >= shown
            shown = now


def test_nothing_is_lost_or_counted_twice_over_a_restart() -> None:
    """The last word of a worker counts, once; what arrives after its end does not."""
    totals = Totals()
    totals.record("0", 1, page(counter("c", {"a": 5})))
    totals.record("0", 1, page(counter("c", {"a": 7})))
    totals.end("0", 1)
    totals.record("0", 1, page(counter("c", {"a": 6})))
    assert samples(totals.merge([], ()), "c_total") == {"a": 7}
    totals.record("0", 2, page(counter("c", {"a": 1})))
    assert samples(totals.merge([], {"0"}), "c_total") == {"a": 8}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (names.KEYS_AGE, 9),
        (names.KEYS_AVAILABLE, 2),
        (names.RATE_LIMIT_BREAKERS, 16),
        (names.READY, 5),
        ("unheard_of", 16),
    ],
)
def test_each_gauge_has_its_rule(name: str, expected: float) -> None:
    """The most, the least, the sum or the control process's word; the sum where nothing is said."""
    totals = Totals()
    for worker, value in (("0", 9), ("1", 2)):
        totals.record(worker, 1, page(gauge(name, value)))
    assert samples(totals.merge([gauge(name, 5)], {"0", "1"}), name) == {"": expected}


def test_gauges_of_silent_and_ended_workers_are_left_out() -> None:
    """A gauge says how things are now, so only those count that say it now."""
    totals = Totals()
    for worker, value in (("0", 9), ("1", 2), ("2", 30)):
        totals.record(worker, 1, page(gauge(names.KEYS_AGE, value)))
    totals.end("2", 1)
    assert samples(totals.merge([], {"1"}), names.KEYS_AGE) == {"": 2}


def test_every_rule_is_of_a_known_gauge() -> None:
    """No rule is left behind when a metric is renamed."""
    known = {value for name, value in vars(names).items() if name.isupper() and isinstance(value, str)}
    assert {name for name in GAUGES if name.startswith("garrison_")} <= known
    assert set(Rule) == set(GAUGES.values())


def gauges_in(source: str) -> Iterator[str]:
    """Yield the name of each gauge that code makes; fail where it is not one of `names`."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        made = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
        is_gauge = any(isinstance(one, ast.Constant) and one.value == "gauge" for one in arguments)
        if made in {"GaugeMetricFamily", "Gauge", "Info", "Enum"} or (made == "Metric" and is_gauge):
            name = node.args[0]
            assert isinstance(name, ast.Attribute), f"line {node.lineno}: the name is not one of `names`"
            yield getattr(names, name.attr)


def test_every_gauge_has_a_rule() -> None:
    """What becomes of the values of several processes is said for each gauge, not left to the sum."""
    package = Path(garrison.__file__).parent
    found = {
        name for file in sorted(package.rglob("*.py")) for name in gauges_in(file.read_text(encoding="utf-8"))
    }
    assert names.READY in found
    assert found <= set(GAUGES), f"without a rule in GAUGES: {sorted(found - set(GAUGES))}"


@pytest.mark.parametrize(
    "made",
    [
        "GaugeMetricFamily(names.SNAPSHOT, 'x')",
        "core.Metric(names.SNAPSHOT, 'x', 'gauge')",
        "Gauge(names.SNAPSHOT, '')",
    ],
)
def test_gauges_are_found_however_they_are_made(made: str) -> None:
    """A gauge cannot be overlooked; one with a name that is written out is refused."""
    assert list(gauges_in(made)) == [names.SNAPSHOT]
    with pytest.raises(AssertionError, match="line 1"):
        list(gauges_in(made.replace("names.SNAPSHOT", "'garrison_x'")))
    assert list(gauges_in("core.Metric(names.SDS, 'x', 'counter')")) == []
