"""The metrics of several processes as one page. Counters are summed, gauges by a rule of each.

A counter never goes back: what a process had counted when it ended stays in the sum, and one that does not
answer counts with what it said last.
"""

from __future__ import annotations

import threading
from collections.abc import Container, Iterable, Mapping
from enum import StrEnum

from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from garrison.telemetry import names


class Rule(StrEnum):
    """What becomes of the values that several processes have for one gauge."""

    SUM = "sum"
    LEAST = "least"
    MOST = "most"
    # The control process says it for all.
    CONTROL = "control"


GAUGES: Mapping[str, Rule] = {
    names.CA_AUTHORITIES: Rule.CONTROL,
    names.CA_SECONDS_LEFT: Rule.CONTROL,
    names.SNAPSHOT: Rule.MOST,
    names.READY: Rule.CONTROL,
    names.FEDERATED_BUNDLE_AVAILABLE: Rule.CONTROL,
    names.FEDERATED_BUNDLE_AGE: Rule.CONTROL,
    names.KEYS_AVAILABLE: Rule.LEAST,
    names.KEYS_AGE: Rule.MOST,
    names.KEYS_FAILURES: Rule.MOST,
    names.AUTHENTICATOR_BREAKER: Rule.MOST,
    names.AUTHENTICATOR_REMEMBERED: Rule.MOST,
    names.RATE_LIMIT_BREAKERS: Rule.SUM,
    names.DISTRIBUTION_CONNECTED: Rule.LEAST,
    names.DISTRIBUTION_BUNDLE: Rule.MOST,
    names.RLQS_STREAMS: Rule.CONTROL,
    names.RLQS_BUCKETS: Rule.CONTROL,
    names.WORKER_READY: Rule.CONTROL,
    "process_virtual_memory_bytes": Rule.SUM,
    "process_resident_memory_bytes": Rule.SUM,
    "process_open_fds": Rule.SUM,
    "process_max_fds": Rule.LEAST,
    "process_start_time_seconds": Rule.CONTROL,
    "python_info": Rule.CONTROL,
}

_Key = tuple[str, tuple[tuple[str, str], ...]]


class Totals:
    """What processes have told, and what those had counted that have ended. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By process, as it said last: which life of it that was, and its families.
        self._last: dict[str, tuple[int, list[Metric]]] = {}
        self._lives_ended: dict[str, int] = {}
        # By family: an empty one, and what its samples came to.
        self._ended: dict[str, tuple[Metric, dict[_Key, float]]] = {}

    def record(self, process: str, life: int, text: str) -> None:
        """Note the page of `process` in its `life`, a number that grows; after its end it is too late.

        Raises:
            ValueError: `text` is not in Prometheus' format.

        """
        families = list(text_string_to_metric_families(text))
        with self._lock:
            if life > self._lives_ended.get(process, -1):
                self._last[process] = life, families

    def end(self, process: str, life: int) -> None:
        """Note that a life of `process` has ended: its counters stay, its gauges are gone."""
        with self._lock:
            self._lives_ended[process] = life
            known = self._last.get(process)
            if known is None or known[0] != life:
                return
            del self._last[process]
            for family in known[1]:
                if family.type != "gauge":
                    _, sums = self._ended.setdefault(family.name, (_empty(family), {}))
                    for key, value in _values(family):
                        sums[key] = sums.get(key, 0.0) + value

    def merge(self, control: Iterable[Metric], answered: Container[str]) -> list[Metric]:
        """Return the sum of what `control` says now, what processes said last, and what ended ones counted.

        Gauges of processes that are not among those that `answered` are left out.
        """
        merged: dict[str, Metric] = {}
        values: dict[str, dict[_Key, list[float]]] = {}

        def add(family: Metric, samples: Iterable[tuple[_Key, float]]) -> None:
            merged.setdefault(family.name, _empty(family))
            found = values.setdefault(family.name, {})
            for key, value in samples:
                found.setdefault(key, []).append(value)

        with self._lock:
            for family in control:
                add(family, _values(family))
            for process, (_, families) in self._last.items():
                for family in families:
                    is_gauge = family.type == "gauge"
                    if not is_gauge or (process in answered and _rule(family) is not Rule.CONTROL):
                        add(family, _values(family))
            for family, sums in self._ended.values():
                add(family, sums.items())
        for name, family in merged.items():
            rule = _rule(family)
            for (sample, labels), found_values in values[name].items():
                family.samples.append(Sample(sample, dict(labels), _reduce(rule, found_values)))
        return list(merged.values())


def _empty(family: Metric) -> Metric:
    return Metric(family.name, family.documentation, family.type)


def _rule(family: Metric) -> Rule:
    return GAUGES.get(family.name, Rule.SUM) if family.type == "gauge" else Rule.SUM


def _values(family: Metric) -> Iterable[tuple[_Key, float]]:
    return ((_key(sample), sample.value) for sample in family.samples)


def _key(sample: Sample) -> _Key:
    return sample.name, tuple(sorted(sample.labels.items()))


def _reduce(rule: Rule, values: list[float]) -> float:
    match rule:
        case Rule.LEAST:
            return min(values)
        case Rule.MOST:
            return max(values)
        case Rule.SUM | Rule.CONTROL:
            return sum(values)
