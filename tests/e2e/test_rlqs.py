"""Real Envoys with shares of one limit, under load, through a reload and a restart."""

from __future__ import annotations

import asyncio
import copy
import http.client
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic, time
from typing import Any

import pytest
import yaml
from support.envoys import Envoy, call, eventually, fragment, garrison_cluster, listener, running_envoy
from support.policies import policy, tokens
from support.serving import Serving, serving, write_settings
from support.tokens import ed_signer

from benchmarks.http_load import request
from benchmarks.paced_load import Paced, paced_load

PAGE = Path(__file__).resolve().parents[2] / "docs/reference/rlqs.md"
VERIFIED = PAGE.parent / "rate-limit-policy.md"
INPUTS = "type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3"
INPUT_MATCHERS = "type.googleapis.com/envoy.extensions.matching.input_matchers"
LIMITS = "domain: api\ndescriptors:\n- key: tenant\n  rate_limit: {unit: second, requests_per_unit: 50}\n"
ROUTES = [
    {
        "match": {"prefix": "/"},
        "direct_response": {"status": 200, "body": {"inline_string": "ok\n"}},
    }
]
A_CALL = request("GET", "/", [("host", "api"), ("x-tenant", "acme")])


def examples() -> list[Any]:
    """Return the YAML of the reference: an Envoy's filters and cluster, and limits."""
    return [yaml.safe_load(part.partition("```")[0]) for part in PAGE.read_text().split("```yaml\n")[1:]]


def documented(control: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a listener and a cluster as the reference has them, with the control socket where it is."""
    config = examples()[0]
    http = fragment("inbound_http", access_log=[], http_filters=config["http_filters"], routes=ROUTES)
    (cluster,) = config["clusters"]
    cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]["pipe"]["path"] = (
        str(control)
    )
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": http}]
    return listener("in", filters), cluster


@contextmanager
def folder() -> Iterator[Path]:
    """Yield a folder whose path is short enough for Unix sockets, with settings and limits."""
    with tempfile.TemporaryDirectory(prefix="garrison-rlqs-") as name:
        path = Path(name)
        write_settings(path)
        (path / "limits" / "api.yaml").write_text(LIMITS)
        yield path


@contextmanager
def envoy(where: Path, name: str) -> Iterator[Envoy]:
    """Run a documented Envoy."""
    (where / name).mkdir()
    a_listener, cluster = documented(where / "c.sock")
    with running_envoy(where / name, [a_listener], [cluster]) as running:
        yield running


def metrics(ready: dict[str, Any]) -> dict[str, float]:
    """Return what the server says of its quota streams."""
    address = ready["admin"].removeprefix("tcp://")
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as page:
        lines = page.read().decode().splitlines()
    found = (line.rpartition(" ") for line in lines if line.startswith("garrison_rlqs_"))
    return {name: float(value) for name, _, value in found}


def status(running: Envoy, *headers: tuple[str, str]) -> int:
    """Return the status of a call, of the tenant unless other headers are given."""
    return call(running.ports["in"], "/", [("Host", "api"), *(headers or [("x-tenant", "acme")])]).status


def started(server: Serving) -> dict[str, Any]:
    """Return the event of a server that is ready."""
    return server.wait_for("ready")


def test_three_envoys_keep_to_one_limit() -> None:
    """Asked for more than three times the limit, one of them late, they let through no more than it."""
    with folder() as where, serving("--config", str(where / "garrison.yaml")) as server, ExitStack() as stack:
        ready = started(server)
        envoys = [stack.enter_context(envoy(where, f"envoy-{number}")) for number in range(3)]
        results = [Paced() for _ in envoys]

        async def load() -> float:
            begin = monotonic()
            loads = []
            for running, result, delay in zip(envoys, results, (0.0, 0.0, 2.0), strict=True):
                loads.append(_later(delay, running, result, seconds=7.5 - delay))
            await asyncio.gather(*loads)
            return monotonic() - begin

        seconds = asyncio.run(load())
        admitted = sum(result.statuses[200] for result in results)
        assert admitted <= 1.1 * 50 * seconds
        assert all(result.statuses[200] for result in results)
        assert all(result.lost == 0 for result in results)
        assert all(set(result.statuses) == {200, 429} for result in results)
        counted = metrics(ready)
        assert counted["garrison_rlqs_streams"] == counted["garrison_rlqs_buckets"] == 3
        # What was done since the last report is not known yet.
        reported = counted['garrison_rlqs_reported_calls_total{domain="api",outcome="allowed"}']
        assert 0 < reported <= admitted
        assert server.stop() == 0


async def _later(delay: float, running: Envoy, result: Paced, seconds: float) -> None:
    await asyncio.sleep(delay)
    await paced_load(running.ports["in"], A_CALL, per_second=60, seconds=seconds, result=result)


def test_a_reload_reaches_envoys_at_once_and_a_restart_gets_them_back() -> None:
    """A limit of none denies without waiting for a report; a drain is clean with a stream open."""
    with folder() as where, ExitStack() as stack:
        config = str(where / "garrison.yaml")
        server = stack.enter_context(serving("--config", config))
        started(server)
        running = stack.enter_context(envoy(where, "envoy"))
        assert status(running) == 429, "no answer is not consent"
        eventually(lambda: status(running) == 200 or None, "a share")
        assert status(running, ("x-other", "acme")) == 429, "calls without the header have a bucket, too"
        eventually(lambda: status(running, ("x-other", "acme")) == 200 or None, "a share of it")
        (where / "limits" / "api.yaml").write_text(LIMITS.replace("50", "0"))
        eventually(lambda: status(running) == 429 or None, "the new limit")
        (where / "limits" / "api.yaml").write_text(LIMITS.replace("50", "40"))
        eventually(lambda: status(running) == 200 or None, "the next limit")
        assert server.stop() == 0
        assert status(running) == 200, "what was assigned lasts on"
        server = stack.enter_context(serving("--config", config))
        ready = started(server)
        eventually(lambda: metrics(ready)["garrison_rlqs_buckets"] or None, "the Envoy's next report")
        assert server.stop() == 0


STATE = yaml.safe_load(
    next(
        text for text in VERIFIED.read_text().split("```yaml\n") if text.startswith("http_filters:")
    ).partition("```")[0]
)["http_filters"]
HEADER = {
    "name": "verified",
    "typed_config": {
        "@type": "type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput",
        "header_name": "x-verified-user",
    },
}
METADATA = {
    "name": "verified",
    "typed_config": {
        "@type": f"{INPUTS}.DynamicMetadataInput",
        "filter": "envoy.filters.http.ext_authz",
        "path": [{"key": "user"}],
    },
}


def by_header() -> list[Any]:
    """Return the documented filter with the header that Check sets."""
    quota = copy.deepcopy(STATE[1])
    (matcher,) = quota["typed_config"]["bucket_matchers"]["matcher_list"]["matchers"]
    matcher["predicate"]["single_predicate"]["input"] = HEADER
    settings = matcher["on_match"]["action"]["typed_config"]
    settings["bucket_id_builder"]["bucket_id_builder"]["user"]["custom_value"] = HEADER
    return [quota]


def by_metadata() -> list[Any]:
    """Return the filter as it does not work: what was verified, taken without a detour."""
    (quota,) = by_header()
    (matcher,) = quota["typed_config"]["bucket_matchers"]["matcher_list"]["matchers"]
    anything = {"@type": f"{INPUT_MATCHERS}.metadata.v3.Metadata", "value": {"present_match": True}}
    matcher["predicate"]["single_predicate"] = {
        "input": METADATA,
        "custom_match": {"name": "any", "typed_config": anything},
    }
    settings = matcher["on_match"]["action"]["typed_config"]
    settings["bucket_id_builder"]["bucket_id_builder"]["user"]["custom_value"] = METADATA
    return [quota]


@contextmanager
def verifying(where: Path, filters: list[Any]) -> Iterator[Envoy]:
    """Run an Envoy that asks Check first, and then has `filters`."""
    destination = {"destination.service": "a.shop.svc.cluster.local"}
    route = fragment("inbound_route", match={"prefix": "/"}, rate_limits=[], destination=destination)
    del route["route"]
    route["direct_response"] = {"status": 200}
    every = [fragment("ext_authz"), *filters, fragment("router")]
    http = fragment("inbound_http", access_log=[], http_filters=every, routes=[route])
    a_listener = listener(
        "in", [{"name": "envoy.filters.network.http_connection_manager", "typed_config": http}]
    )
    _, quota_cluster = documented(where / "c.sock")
    (where / "envoy").mkdir()
    clusters = [quota_cluster, garrison_cluster(where / "r.sock")]
    with running_envoy(where / "envoy", [a_listener], clusters) as running:
        yield running


@contextmanager
def serving_verified(where: Path) -> Iterator[Serving]:
    """Run a server that hands over who was verified, and gives nothing to alice and to nobody."""
    page = VERIFIED.read_text().split("```")
    handed_over = next(text for text in page if "kind: ResponsePolicy" in text).removeprefix("yaml\n")
    everybody = policy("[{}]", namespace="shop")
    (where / "policies" / "all.yaml").write_text(everybody + tokens("shop") + handed_over)
    (where / "limits" / "api.yaml").write_text(by_user(alice=0, anonymous=0))
    with serving("--config", str(where / "garrison.yaml")) as server:
        yield server


def by_user(**limits: int) -> str:
    """Return limits of users by name, 50 a second for all others."""
    named = [
        f"- {{key: user, value: {name}, rate_limit: {{unit: second, requests_per_unit: {limit}}}}}\n"
        for name, limit in limits.items()
    ]
    other = "- {key: user, rate_limit: {unit: second, requests_per_unit: 50}}\n"
    return "domain: api\ndescriptors:\n" + "".join(named) + other


def bearer(subject: str) -> tuple[str, str]:
    """Return the header line with a user's good token."""
    claims = {"exp": time() + 3600, "sub": subject}
    return "authorization", f"Bearer {ed_signer().token(claims)}"


@pytest.mark.parametrize("filters", [STATE, by_header()], ids=["metadata", "header"])
def test_buckets_are_those_of_whoever_check_verified(filters: list[Any]) -> None:
    """Each user has its own share, whatever the caller says of itself; who is nobody has the one of nobody."""
    forged = [(name, value) for name in ("x-verified-user", "user", "verified.user") for value in ("bob",)]
    with folder() as where, serving_verified(where) as server:
        ready = started(server)
        with verifying(where, filters) as running:
            for who in ([bearer("bob")], [bearer("carol"), ("x-verified-user", "alice")]):
                eventually(lambda who=who: status(running, *who) == 200 or None, "a share")  # type: ignore[misc]
            nobody = [("x-other", "x")]
            for who in ([bearer("alice")], nobody):
                assert status(running, *who) == 429
            eventually(lambda: metrics(ready)["garrison_rlqs_buckets"] == 4 or None, "all four buckets")
            for who in ([bearer("alice")], [bearer("alice"), *forged], nobody, forged):
                assert status(running, *who) == 429
            # It is their limits, and not that nothing was assigned.
            (where / "limits" / "api.yaml").write_text(by_user(bob=0))
            eventually(lambda: status(running, bearer("alice"), *forged) == 200 or None, "what alice may")
            eventually(lambda: status(running, *forged) == 200 or None, "what nobody may")
            eventually(lambda: status(running, bearer("bob")) == 429 or None, "the end of bob's")
            assert status(running, bearer("bob"), ("x-verified-user", "alice")) == 429
            assert metrics(ready)["garrison_rlqs_buckets"] == 4


def test_metadata_is_no_value_of_a_bucket_by_itself() -> None:
    """Envoy allows whatever the documentation warns of, and reports nothing: no limit holds."""
    with folder() as where, serving_verified(where) as server:
        ready = started(server)
        with verifying(where, by_metadata()) as running:
            assert [status(running, bearer("alice")) for _ in range(3)] == [200] * 3
            assert metrics(ready)["garrison_rlqs_buckets"] == 0


def test_the_documented_filter_is_the_shipped_one() -> None:
    """The page and the template in `deploy/` say the same."""
    value = fragment("header_value", header="x-tenant")
    action = fragment("quota_action", bucket_id={"tenant": {"custom_value": value}})
    bucket = fragment("quota_bucket", header_value=value, action=action)
    otherwise = fragment("quota_action", bucket_id={"tenant": {"string_value": "anonymous"}})
    shipped = fragment("rate_limit_quota", rate_limit_domain="api", buckets=[bucket], otherwise=otherwise)
    assert examples()[0]["http_filters"] == [shipped, fragment("router")]
    assert yaml.safe_load(LIMITS) == examples()[1]


def test_what_lint_warns_of_is_true() -> None:
    """An Envoy whose buckets start with a token bucket ends with the second call, by itself."""
    with folder() as where:
        (where / "envoy").mkdir()
        a_listener, cluster = documented(where / "nobody.sock")
        settings = a_listener["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"][0]
        matcher = settings["typed_config"]["bucket_matchers"]["matcher_list"]["matchers"][0]
        matcher["on_match"]["action"]["typed_config"]["no_assignment_behavior"] = {
            "fallback_rate_limit": {
                "token_bucket": {"max_tokens": 10, "tokens_per_fill": 10, "fill_interval": "1s"}
            }
        }
        with running_envoy(where / "envoy", [a_listener], [cluster]) as running:

            def is_gone() -> bool | None:
                try:
                    status(running)
                except (OSError, http.client.HTTPException):
                    return True
                return None

            eventually(is_gone, "the crash")
