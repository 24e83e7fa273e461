"""RateLimitPolicies of a real `garrison serve`: Check and ShouldRateLimit share counts, in memory or a Valkey."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from envoy.service.ratelimit.v3.rls_pb2 import RateLimitResponse
from support.checks import check_request, principal
from support.quotas import ALLOWED
from support.rate_limits import BY_IDENTITY, rate_limit
from support.ratelimit import request as limit_request
from support.serving import Serving, serving, write_settings
from support.valkey import Valkey

CHECK = "/envoy.service.auth.v3.Authorization/Check"
SHOULD_RATE_LIMIT = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
LIMITS = """
domain: d
descriptors:
- {key: workload, rate_limit: {unit: year, requests_per_unit: 5}}
- {key: open, rate_limit: {unit: year, requests_per_unit: 5, on_store_failure: allow}}
- {key: local, rate_limit: {unit: year, requests_per_unit: 2, on_store_failure: local}}
"""


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder whose name is short enough for Unix sockets."""
    return tmp_path_factory.mktemp("q")


@pytest.fixture
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """Run a server for a test."""
    with Valkey(tmp_path_factory.mktemp("v")) as server:
        yield server


def ready(server: Serving) -> dict[str, Any]:
    """Return what a server said when it was ready."""
    found = [event for event in server.seen if event["event"] == "ready"]
    return found[0] if found else server.wait_for("ready")


def asked(server: Serving, method: str, message: bytes) -> bytes:
    """Return the answer of one method."""
    address = ready(server)["request"][0].replace("unix://", "unix:")
    with grpc.insecure_channel(address) as channel:
        ask: Any = channel.unary_unary(method)
        answer: bytes = ask(message, timeout=20, wait_for_ready=True)
    return answer


def check(server: Serving, count: int, **request: Any) -> list[int]:
    """Return the HTTP statuses of equal calls, one after the other."""
    message = check_request(**request).SerializeToString()
    found = [CheckResponse.FromString(asked(server, CHECK, message)) for _ in range(count)]
    return [int(one.denied_response.status.code) or 200 for one in found]


def written(folder: Path, more: str = "", policies: str = "") -> str:
    """Return the path of settings with a limit for each workload."""
    file = write_settings(folder, more)
    (folder / "policies" / "p.yaml").write_text(ALLOWED + (policies or rate_limit(BY_IDENTITY)))
    (folder / "limits" / "l.yaml").write_text(LIMITS)
    return str(file)


def test_check_and_the_rate_limit_service_share_counts(folder: Path) -> None:
    """What Check has charged is gone for ShouldRateLimit, and the metrics count both by rule."""
    with serving("--config", written(folder)) as server:
        a = principal("a")
        assert check(server, 4, source=a) == [200] * 4
        message = limit_request({"workload": a.removeprefix("spiffe://")}).SerializeToString()
        codes = [
            RateLimitResponse.FromString(asked(server, SHOULD_RATE_LIMIT, message)).overall_code
            for _ in range(2)
        ]
        assert codes == [RateLimitResponse.OK, RateLimitResponse.OVER_LIMIT]
        assert check(server, 1, source=a) == [429]
        assert check(server, 1, source=principal("b")) == [200]
        address = ready(server)["admin"].removeprefix("tcp://")
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=20) as response:
            metrics = response.read().decode()
        assert 'garrison_decisions_total{code="rate_limited",verdict="deny"} 1.0' in metrics
        assert (
            'garrison_rate_limit_hits_total{domain="d",outcome="within_limit",rule="workload"} 6.0' in metrics
        )


def test_replicas_share_a_valkey(folder: Path, valkey: Valkey) -> None:
    """What one replica charges counts at the other; without the store each limit says what holds."""
    store = f'rate_limit: {{redis: ["{valkey.url}"], deadline: 1s, response_headers: true}}'
    (folder / "b").mkdir()
    others = "".join(
        rate_limit(
            f"{{entries: [{{key: {name}, value: x}}]}}",
            name=name,
            spec=f"selector: {{matchLabels: {{app: {name}}}}}",
        )
        for name in ("open", "local")
    )
    first_settings = written(folder, store)
    second_settings = written(folder / "b", store, others)
    with serving("--config", first_settings) as first, serving("--config", second_settings) as second:
        assert check(first, 3, source=principal("a")) == [200] * 3
        message = limit_request({"workload": principal("a").removeprefix("spiffe://")}).SerializeToString()
        for _ in range(2):
            asked(second, SHOULD_RATE_LIMIT, message)
        assert check(first, 1, source=principal("a")) == [429]
        valkey.kill()
        assert check(first, 1, source=principal("c")) == [503]
        assert check(first, 1, method="POST") == [403]
        labels = {"destination.labels[app]": "open", "destination.namespace": "default"}
        assert check(second, 9, extensions=labels) == [200] * 9
        labels["destination.labels[app]"] = "local"
        assert check(second, 3, extensions=labels) == [200, 200, 429]


def test_a_server_says_which_policies_limit_nothing(folder: Path) -> None:
    """When it starts, and when that changes with the limits."""
    policies = rate_limit(BY_IDENTITY, domain="typo") + rate_limit(BY_IDENTITY, name="good")
    with serving("--config", written(folder, policies=policies)) as server:
        ready(server)
        told = [event for event in server.seen if event["event"] == "rate_limit_domain_unknown"]
        assert [(one["domain"], one["policy"]) for one in told] == [("typo", "RateLimitPolicy default/r")]
        (folder / "limits" / "l.yaml").write_text(LIMITS.replace("domain: d", "domain: other"))
        event = server.wait_for("rate_limit_domain_unknown", lambda one: one["domain"] == "d")
        assert event["policy"] == "RateLimitPolicy default/good"
