"""Prometheus metrics, read from the plain counters that the hot path keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from garrison.telemetry import names

Counts = Mapping[tuple[str, ...], int]


class ServerCollector(Collector):
    """Reads the server's counters when somebody scrapes; each reader gives (label values) -> count."""

    def __init__(
        self,
        *,
        decisions: Callable[[], Counts],
        rate_limits: Callable[[], Counts],
        rule_hits: Callable[[], Counts],
        reloads: Callable[[], Counts],
        left_out: Callable[[], Counts],
        sds: Callable[[], Counts],
        refused_buckets: Callable[[], int],
        snapshots: Callable[[], Mapping[str, str]],
        ready: Callable[[], bool],
    ) -> None:
        self._left_out = left_out
        self._sds = sds
        self._refused_buckets = refused_buckets
        self._decisions = decisions
        self._rate_limits = rate_limits
        self._rule_hits = rule_hits
        self._reloads = reloads
        self._snapshots = snapshots
        self._ready = ready

    def collect(self) -> Iterable[Metric]:
        """Yield every metric family."""
        yield _counter(names.DECISIONS, names.DECISIONS_HELP, names.DECISIONS_LABELS, self._decisions())
        yield _counter(
            names.RATE_LIMIT_HITS,
            names.RATE_LIMIT_HITS_HELP,
            names.RATE_LIMIT_HITS_LABELS,
            self._rate_limits(),
        )
        yield _counter(
            names.RATE_LIMIT_RULE_HITS,
            names.RATE_LIMIT_RULE_HITS_HELP,
            names.RATE_LIMIT_RULE_HITS_LABELS,
            self._rule_hits(),
        )
        yield _counter(names.RELOADS, names.RELOADS_HELP, names.RELOADS_LABELS, self._reloads())
        yield _counter(
            names.LOG_LINES_LEFT_OUT,
            names.LOG_LINES_LEFT_OUT_HELP,
            names.LOG_LINES_LEFT_OUT_LABELS,
            self._left_out(),
        )
        yield _counter(names.SDS, names.SDS_HELP, names.SDS_LABELS, self._sds())
        yield CounterMetricFamily(
            names.RATE_LIMIT_REFUSED, names.RATE_LIMIT_REFUSED_HELP, value=self._refused_buckets()
        )
        snapshots = GaugeMetricFamily(names.SNAPSHOT, names.SNAPSHOT_HELP, labels=names.SNAPSHOT_LABELS)
        for kind, version in self._snapshots().items():
            snapshots.add_metric((kind, version), 1)
        yield snapshots
        yield GaugeMetricFamily(names.READY, names.READY_HELP, value=float(self._ready()))


class DistributionCollector(Collector):
    """Reads what the follower of a policy channel knows."""

    def __init__(
        self,
        *,
        connected: Callable[[], bool],
        bundles: Callable[[], Mapping[str, int]],
        in_force: Callable[[], tuple[str, int] | None],
    ) -> None:
        """`in_force` gives version and sequence of the bundle in force."""
        self._connected = connected
        self._bundles = bundles
        self._in_force = in_force

    def collect(self) -> Iterable[Metric]:
        """Yield every metric family."""
        yield GaugeMetricFamily(
            names.DISTRIBUTION_CONNECTED, names.DISTRIBUTION_CONNECTED_HELP, value=float(self._connected())
        )
        yield _counter(
            names.DISTRIBUTION_BUNDLES,
            names.DISTRIBUTION_BUNDLES_HELP,
            names.DISTRIBUTION_BUNDLES_LABELS,
            {(result,): count for result, count in self._bundles().items()},
        )
        bundle = GaugeMetricFamily(
            names.DISTRIBUTION_BUNDLE,
            names.DISTRIBUTION_BUNDLE_HELP,
            labels=names.DISTRIBUTION_BUNDLE_LABELS,
        )
        if found := self._in_force():
            version, sequence = found
            bundle.add_metric((version,), sequence)
        yield bundle


class RlqsCollector(Collector):
    """Reads what the quota streams count."""

    def __init__(
        self,
        *,
        streams: Callable[[], int],
        buckets: Callable[[], int],
        actions: Callable[[], Counts],
        reported: Callable[[], Counts],
        refused: Callable[[], Counts],
    ) -> None:
        self._streams = streams
        self._buckets = buckets
        self._actions = actions
        self._reported = reported
        self._refused = refused

    def collect(self) -> Iterable[Metric]:
        """Yield every metric family."""
        yield GaugeMetricFamily(names.RLQS_STREAMS, names.RLQS_STREAMS_HELP, value=self._streams())
        yield GaugeMetricFamily(names.RLQS_BUCKETS, names.RLQS_BUCKETS_HELP, value=self._buckets())
        yield _counter(
            names.RLQS_ACTIONS, names.RLQS_ACTIONS_HELP, names.RLQS_ACTIONS_LABELS, self._actions()
        )
        yield _counter(
            names.RLQS_REPORTED, names.RLQS_REPORTED_HELP, names.RLQS_REPORTED_LABELS, self._reported()
        )
        yield _counter(
            names.RLQS_REFUSED, names.RLQS_REFUSED_HELP, names.RLQS_REFUSED_LABELS, self._refused()
        )


def _counter(name: str, help_: str, labels: Sequence[str], counts: Counts) -> Metric:
    family = CounterMetricFamily(name, help_, labels=labels)
    for values, count in counts.items():
        family.add_metric(values, count)
    return family
