"""Prometheus metrics, read from the plain counters that the hot path keeps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

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
        workload: Callable[[], Counts],
        refused_buckets: Callable[[], int],
        resets: Callable[[], Counts],
        snapshots: Callable[[], Mapping[str, str]],
        ready: Callable[[], bool],
    ) -> None:
        self._left_out = left_out
        self._sds = sds
        self._workload = workload
        self._refused_buckets = refused_buckets
        self._resets = resets
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
        yield _counter(
            names.WORKLOAD_API, names.WORKLOAD_API_HELP, names.WORKLOAD_API_LABELS, self._workload()
        )
        yield CounterMetricFamily(
            names.RATE_LIMIT_REFUSED, names.RATE_LIMIT_REFUSED_HELP, value=self._refused_buckets()
        )
        yield _counter(
            names.RATE_LIMIT_RESETS,
            names.RATE_LIMIT_RESETS_HELP,
            names.RATE_LIMIT_RESETS_LABELS,
            self._resets(),
        )
        snapshots = GaugeMetricFamily(names.SNAPSHOT, names.SNAPSHOT_HELP, labels=names.SNAPSHOT_LABELS)
        for kind, version in self._snapshots().items():
            snapshots.add_metric((kind, version), 1)
        yield snapshots
        yield GaugeMetricFamily(names.READY, names.READY_HELP, value=float(self._ready()))


class SourceFigures(Protocol):
    """What is known of a source that is fetched; `age_seconds` is None when it never was."""

    @property
    def name(self) -> str:
        """The URL or issuer of keys, the trust domain of a bundle."""

    @property
    def available(self) -> bool:
        """Whether there is something that counts."""

    @property
    def age_seconds(self) -> float | None:
        """Time since it was confirmed."""

    @property
    def fetched(self) -> int:
        """Fetches that went well."""

    @property
    def failed(self) -> int:
        """Fetches that did not."""


class KeyFigures(SourceFigures, Protocol):
    """What is known of the keys of one source."""

    @property
    def failures(self) -> int:
        """Fetches that failed in a row."""


class CaCollector(Collector):
    """Reads what the CA's gRPC methods issued and refused."""

    def __init__(
        self, *, issued: Callable[[], Mapping[str, int]], refused: Callable[[], Mapping[str, int]]
    ) -> None:
        self._issued = issued
        self._refused = refused

    def collect(self) -> Iterable[Metric]:
        """Yield every metric family."""
        for name, help_, labels, read in (
            (names.CA_ISSUED, names.CA_ISSUED_HELP, names.CA_ISSUED_LABELS, self._issued),
            (names.CA_REFUSED, names.CA_REFUSED_HELP, names.CA_REFUSED_LABELS, self._refused),
        ):
            yield _counter(name, help_, labels, {(value,): count for value, count in read().items()})


class KeyCollector(Collector):
    """Reads what is known of keys that are fetched. Of sources with one name the worst figures count."""

    def __init__(self, figures: Callable[[], Sequence[KeyFigures]]) -> None:
        self._figures = figures

    def collect(self) -> Iterable[Metric]:
        """Yield every metric family."""
        found = self._figures()
        available = GaugeMetricFamily(
            names.KEYS_AVAILABLE, names.KEYS_AVAILABLE_HELP, labels=names.KEYS_AVAILABLE_LABELS
        )
        age = GaugeMetricFamily(names.KEYS_AGE, names.KEYS_AGE_HELP, labels=names.KEYS_AGE_LABELS)
        failures = GaugeMetricFamily(
            names.KEYS_FAILURES, names.KEYS_FAILURES_HELP, labels=names.KEYS_FAILURES_LABELS
        )
        fetches = _read_sources(found, available, age)
        for name, of_name in _by_name(found).items():
            failures.add_metric((name,), max(one.failures for one in of_name))
        yield from (available, age, failures)
        yield _counter(names.KEYS_FETCHES, names.KEYS_FETCHES_HELP, names.KEYS_FETCHES_LABELS, fetches)


class FederationCollector(Collector):
    """Reads what is known of other trust domains."""

    def __init__(self, figures: Callable[[], Sequence[SourceFigures]]) -> None:
        self._figures = figures

    def collect(self) -> Iterable[Metric]:
        """Yield every metric family."""
        available = GaugeMetricFamily(
            names.FEDERATED_BUNDLE_AVAILABLE,
            names.FEDERATED_BUNDLE_AVAILABLE_HELP,
            labels=names.FEDERATED_BUNDLE_AVAILABLE_LABELS,
        )
        age = GaugeMetricFamily(
            names.FEDERATED_BUNDLE_AGE,
            names.FEDERATED_BUNDLE_AGE_HELP,
            labels=names.FEDERATED_BUNDLE_AGE_LABELS,
        )
        fetches = _read_sources(self._figures(), available, age)
        yield from (available, age)
        yield _counter(
            names.FEDERATED_BUNDLE_FETCHES,
            names.FEDERATED_BUNDLE_FETCHES_HELP,
            names.FEDERATED_BUNDLE_FETCHES_LABELS,
            fetches,
        )


class StoreCollector(Collector):
    """Reads what stands before a shared store of rate limits."""

    def __init__(
        self,
        *,
        breakers: Callable[[], Mapping[str, int]],
        failures: Callable[[], Mapping[str, int]],
        local_answers: Callable[[], Mapping[str, int]],
    ) -> None:
        """`breakers` gives how many are in which state."""
        self._breakers = breakers
        self._failures = failures
        self._local_answers = local_answers

    def collect(self) -> Iterable[Metric]:
        """Yield every metric family."""
        breakers = GaugeMetricFamily(
            names.RATE_LIMIT_BREAKERS, names.RATE_LIMIT_BREAKERS_HELP, labels=names.RATE_LIMIT_BREAKERS_LABELS
        )
        counted = self._breakers()
        for state in ("closed", "open", "half_open"):
            breakers.add_metric((state,), counted.get(state, 0))
        yield breakers
        yield _counter(
            names.RATE_LIMIT_STORE_FAILURES,
            names.RATE_LIMIT_STORE_FAILURES_HELP,
            names.RATE_LIMIT_STORE_FAILURES_LABELS,
            {(reason,): count for reason, count in self._failures().items()},
        )
        yield _counter(
            names.RATE_LIMIT_LOCAL_ANSWERS,
            names.RATE_LIMIT_LOCAL_ANSWERS_HELP,
            names.RATE_LIMIT_LOCAL_ANSWERS_LABELS,
            {(answer,): count for answer, count in self._local_answers().items()},
        )


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


class AuthenticatorCollector(Collector):
    """Reads what authenticators have counted."""

    def __init__(
        self,
        *,
        answers: Callable[[], Counts],
        breakers: Callable[[], Mapping[str, bool]],
        remembered: Callable[[], Mapping[str, int]],
    ) -> None:
        self._answers = answers
        self._breakers = breakers
        self._remembered = remembered

    def collect(self) -> Iterable[Metric]:
        """Yield every metric family."""
        yield _counter(
            names.AUTHENTICATOR_ANSWERS,
            names.AUTHENTICATOR_ANSWERS_HELP,
            names.AUTHENTICATOR_ANSWERS_LABELS,
            self._answers(),
        )
        breakers = GaugeMetricFamily(
            names.AUTHENTICATOR_BREAKER,
            names.AUTHENTICATOR_BREAKER_HELP,
            labels=names.AUTHENTICATOR_BREAKER_LABELS,
        )
        for name, is_open in self._breakers().items():
            breakers.add_metric((name,), float(is_open))
        yield breakers
        remembered = GaugeMetricFamily(
            names.AUTHENTICATOR_REMEMBERED,
            names.AUTHENTICATOR_REMEMBERED_HELP,
            labels=names.AUTHENTICATOR_REMEMBERED_LABELS,
        )
        for name, count in self._remembered().items():
            remembered.add_metric((name,), count)
        yield remembered


class AuthorityCollector(Collector):
    """Reads how long the CA lasts, and how its authorities follow each other."""

    def __init__(
        self,
        seconds_left: Callable[[], Mapping[str, float]],
        counts: Callable[[], Mapping[str, int]],
        rotations: Mapping[str, int],
    ) -> None:
        self._seconds_left = seconds_left
        self._counts = counts
        self._rotations = rotations

    def collect(self) -> Iterable[Metric]:
        """Yield every metric family."""
        left = GaugeMetricFamily(
            names.CA_SECONDS_LEFT, names.CA_SECONDS_LEFT_HELP, labels=names.CA_SECONDS_LEFT_LABELS
        )
        for certificate, seconds in self._seconds_left().items():
            left.add_metric((certificate,), seconds)
        yield left
        states = GaugeMetricFamily(
            names.CA_AUTHORITIES, names.CA_AUTHORITIES_HELP, labels=names.CA_AUTHORITIES_LABELS
        )
        for state, count in self._counts().items():
            states.add_metric((state,), count)
        yield states
        rotations: Counts = {(step,): count for step, count in dict(self._rotations).items()}
        yield _counter(names.CA_ROTATIONS, names.CA_ROTATIONS_HELP, names.CA_ROTATIONS_LABELS, rotations)


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


class WorkerCollector(Collector):
    """Reads what the control process knows of its workers, by number, and of the embedded store."""

    def __init__(
        self,
        *,
        ready: Callable[[], Mapping[int, bool]],
        restarts: Callable[[], Mapping[int, int]],
        silent: Callable[[], Mapping[int, int]],
        store_restarts: Callable[[], int],
    ) -> None:
        self._ready = ready
        self._restarts = restarts
        self._silent = silent
        self._store_restarts = store_restarts

    def collect(self) -> Iterable[Metric]:
        """Yield every metric family."""
        ready = GaugeMetricFamily(
            names.WORKER_READY, names.WORKER_READY_HELP, labels=names.WORKER_READY_LABELS
        )
        for number, is_ready in self._ready().items():
            ready.add_metric((str(number),), float(is_ready))
        yield ready
        for name, help_, labels, read in (
            (
                names.WORKER_RESTARTS,
                names.WORKER_RESTARTS_HELP,
                names.WORKER_RESTARTS_LABELS,
                self._restarts,
            ),
            (names.WORKER_SILENT, names.WORKER_SILENT_HELP, names.WORKER_SILENT_LABELS, self._silent),
        ):
            yield _counter(name, help_, labels, {(str(number),): n for number, n in read().items()})
        yield CounterMetricFamily(
            names.EMBEDDED_RESTARTS, names.EMBEDDED_RESTARTS_HELP, value=self._store_restarts()
        )


def _counter(name: str, help_: str, labels: Sequence[str], counts: Counts) -> Metric:
    family = CounterMetricFamily(name, help_, labels=labels)
    for values, count in counts.items():
        family.add_metric(values, count)
    return family


Figures = TypeVar("Figures", bound=SourceFigures)


def _by_name(found: Iterable[Figures]) -> Mapping[str, Sequence[Figures]]:
    by_name: dict[str, list[Figures]] = defaultdict(list)
    for one in found:
        by_name[one.name].append(one)
    return by_name


def _read_sources(
    figures: Iterable[SourceFigures], available: GaugeMetricFamily, age: GaugeMetricFamily
) -> Counts:
    """Fill two families with the worst figures of each name, and return the fetches of all by result."""
    fetches: dict[tuple[str, ...], int] = {}
    for name, found in _by_name(figures).items():
        available.add_metric((name,), float(all(one.available for one in found)))
        ages = [one.age_seconds for one in found if one.age_seconds is not None]
        if ages:
            age.add_metric((name,), max(ages))
        fetches[name, "ok"] = sum(one.fetched for one in found)
        fetches[name, "failed"] = sum(one.failed for one in found)
    return fetches
