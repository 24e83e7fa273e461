"""What is told of sources that are fetched: keys of issuers, bundles of other trust domains."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.registry import Collector

from ca.federator import FederationStatus
from garrison.keys.refresher import KeyStatus
from garrison.telemetry.metrics import FederationCollector, KeyCollector


def lines(collector: Collector) -> list[str]:
    """Return what a scrape shows, without the help."""
    registry = CollectorRegistry()
    registry.register(collector)
    return [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]


def test_of_sources_with_one_name_the_worst_figures_count() -> None:
    """One that was never fetched has no age; fetches add up."""
    found = [
        KeyStatus("a", True, 5.0, 0, "", 3, 1),
        KeyStatus("a", False, None, 2, "down", 0, 2),
        KeyStatus("a", True, 7.0, 1, "down", 1, 1),
        KeyStatus("b", False, None, 4, "down", 0, 4),
    ]
    assert lines(KeyCollector(lambda: found)) == [
        'garrison_keys_available{source="a"} 0.0',
        'garrison_keys_available{source="b"} 0.0',
        'garrison_keys_age_seconds{source="a"} 7.0',
        'garrison_keys_failures{source="a"} 2.0',
        'garrison_keys_failures{source="b"} 4.0',
        'garrison_keys_fetches_total{result="ok",source="a"} 4.0',
        'garrison_keys_fetches_total{result="failed",source="a"} 4.0',
        'garrison_keys_fetches_total{result="ok",source="b"} 0.0',
        'garrison_keys_fetches_total{result="failed",source="b"} 4.0',
    ]


def test_figures_of_other_trust_domains() -> None:
    """The same as of keys, without the failures in a row."""
    found = [FederationStatus("p", True, 0.0, 1, 0), FederationStatus("q", False, None, 0, 2)]
    assert lines(FederationCollector(lambda: found)) == [
        'garrison_federated_bundle_available{trust_domain="p"} 1.0',
        'garrison_federated_bundle_available{trust_domain="q"} 0.0',
        'garrison_federated_bundle_age_seconds{trust_domain="p"} 0.0',
        'garrison_federated_bundle_fetches_total{result="ok",trust_domain="p"} 1.0',
        'garrison_federated_bundle_fetches_total{result="failed",trust_domain="p"} 0.0',
        'garrison_federated_bundle_fetches_total{result="ok",trust_domain="q"} 0.0',
        'garrison_federated_bundle_fetches_total{result="failed",trust_domain="q"} 2.0',
    ]
