"""One template makes every Envoy's bootstrap, as data, and the real Envoy accepts it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from garrison.cli import main
from garrison.envoy_binary import find_envoy
from garrison.envoy_config import (
    Destination,
    Edge,
    HeaderDescriptor,
    Inbound,
    InboundRoute,
    Outbound,
    Upstream,
    Workload,
    dump,
    fill,
    load_template,
    render_bootstrap,
)
from garrison.errors import DependencyError
from garrison.identity import SpiffeId, TrustDomain
from garrison.transport.address import Address

TRUST_DOMAIN = TrustDomain.parse("cluster.local")
REVIEWS = Upstream(
    "reviews.default.svc.cluster.local",
    (Address.parse("tcp://127.0.0.1:1"), Address.parse("tcp://127.0.0.1:2")),
    (SpiffeId.workload(TRUST_DOMAIN, "default", "a"), SpiffeId.workload(TRUST_DOMAIN, "default", "b")),
    hosts=("reviews",),
)
RATINGS = InboundRoute(
    Destination("ratings.default.svc.cluster.local", "default", {"app": "ratings"}),
    quotas=(HeaderDescriptor("end-user", "user"),),
)


def workload(**changes: Any) -> Workload:
    """Return a workload with neither listener, or with those of `changes`."""
    values: dict[str, Any] = {
        "node_id": "ratings",
        "trust_domain": TRUST_DOMAIN,
        "request": (Address.parse("unix:///r/request.sock"),),
        "control": Address.parse("unix:///r/control.sock"),
        "admin": Address.parse("unix:///r/admin.sock"),
    }
    return Workload(**{**values, **changes})


def inbound(*routes: InboundRoute, domain: str = "bookinfo") -> Inbound:
    """Return an inbound listener with `routes`."""
    return Inbound(Address.parse("tcp://127.0.0.1:3"), Address.parse("tcp://127.0.0.1:4"), routes, domain)


def validate(case: Workload, folder: Path) -> tuple[int, str]:
    """Return exit code and warnings of Envoy's own look at a bootstrap."""
    config = folder / "envoy.yaml"
    config.write_text(dump(render_bootstrap(case)), encoding="utf-8")
    run = subprocess.run(
        [find_envoy(), "--mode", "validate", "--log-level", "warn", "-c", config],
        capture_output=True,
        text=True,
        check=False,
    )
    return run.returncode, run.stderr


def walk(value: Any) -> Iterator[Any]:
    """Yield every mapping inside `value`."""
    if isinstance(value, dict):
        yield value
        for item in value.values():
            yield from walk(item)
    elif isinstance(value, list):
        for item in value:
            yield from walk(item)


def http_filters(bootstrap: dict[str, Any]) -> list[str]:
    """Return the names of the first listener's HTTP filters."""
    found = next(part["http_filters"] for part in walk(bootstrap) if "http_filters" in part)
    return [item["name"].rpartition(".")[2] for item in found]


FULL = workload(
    inbound=inbound(RATINGS),
    outbound=Outbound(Address.parse("tcp://127.0.0.1:5"), (REVIEWS,)),
    edge=Edge(Address.parse("tcp://127.0.0.1:6"), REVIEWS, ("/productpage",), ("end-user",)),
)
SHARES = (HeaderDescriptor("x-tenant", "tenant"), HeaderDescriptor("end-user", "user"))
WITH_SHARES = replace(FULL, inbound=replace(inbound(RATINGS), shares=SHARES))


@pytest.mark.parametrize(
    "case", [FULL, workload(), workload(inbound=inbound(InboundRoute(RATINGS.destination)))]
)
def test_envoy_accepts_what_is_rendered(case: Workload, tmp_path: Path) -> None:
    """The real Envoy validates a bootstrap with every part, with none, and without quotas."""
    assert validate(case, tmp_path) == (0, "")


def test_envoy_accepts_shares_as_work_in_progress(tmp_path: Path) -> None:
    """With shares of quotas Envoy warns that these are marked as work in progress, and of nothing else."""
    code, warnings = validate(WITH_SHARES, tmp_path)
    assert code == 0
    assert all("marked as work-in-progress" in line for line in warnings.splitlines())


def test_no_placeholder_and_no_key_is_left() -> None:
    """Every placeholder has a value, and no private key or certificate stands in the file."""
    text = dump(render_bootstrap(WITH_SHARES))
    assert "${" not in text
    assert "PRIVATE" not in text
    assert "private_key" not in text


def test_quota_is_asked_after_authorization() -> None:
    """A caller that is refused cannot use up a quota; a service without quotas asks for none."""
    assert http_filters(render_bootstrap(FULL)) == ["ext_authz", "ratelimit", "router"]
    shared = http_filters(render_bootstrap(WITH_SHARES))
    assert shared == ["ext_authz", "ratelimit", "rate_limit_quota", "router"]
    plain = workload(inbound=inbound(InboundRoute(RATINGS.destination)))
    assert http_filters(render_bootstrap(plain)) == ["ext_authz", "router"]


def test_certificates_are_included_where_asked_for() -> None:
    """Only then does Garrison get them, and the template stays as it was."""
    route = InboundRoute(RATINGS.destination)
    for wanted in (False, True, False):
        parts = walk(
            render_bootstrap(workload(inbound=replace(inbound(route), include_peer_certificate=wanted)))
        )
        (authz,) = (part for part in parts if "include_peer_certificate" in part)
        assert authz["include_peer_certificate"] is wanted


def test_it_fails_closed() -> None:
    """No answer from Garrison, no client certificate and an unreadable mutation never let a call through."""
    parts = list(walk(render_bootstrap(FULL)))
    authz = next(part for part in parts if "encode_raw_headers" in part)
    assert authz["failure_mode_allow"] is False
    assert authz["validate_mutations"] is True
    assert authz["grpc_service"]["timeout"] == "0.5s"
    assert next(part for part in parts if "rate_limit_service" in part)["failure_mode_deny"] is True
    assert next(part for part in parts if "require_client_certificate" in part)["require_client_certificate"]


def test_peers_are_held_to_their_identities() -> None:
    """A server must be one of the service's identities exactly, a client only a member of the trust domain."""
    parts = [
        part["match_typed_subject_alt_names"]
        for part in walk(render_bootstrap(FULL))
        if "match_typed_subject_alt_names" in part
    ]
    matchers = [[item["matcher"] for item in part] for part in parts]
    server = [{"exact": str(identity)} for identity in REVIEWS.identities]
    assert matchers == [[{"prefix": "spiffe://cluster.local/"}], server]


def test_the_destination_is_the_operators_word() -> None:
    """Each route names its destination under the attribute's own names."""
    extensions = [
        part["context_extensions"] for part in walk(render_bootstrap(FULL)) if "context_extensions" in part
    ]
    assert extensions == [
        {
            "destination.service": "ratings.default.svc.cluster.local",
            "destination.namespace": "default",
            "destination.labels[app]": "ratings",
            "protocol": "http",
        }
    ]


def test_shares_of_quotas_leave_no_call_out() -> None:
    """The first header that a call has says its bucket; a call that has none is in a bucket as well."""
    [config] = [
        part
        for part in walk(render_bootstrap(WITH_SHARES))
        if str(part.get("@type", "")).endswith(".RateLimitQuotaFilterConfig")
    ]
    assert config["domain"] == "bookinfo"
    matcher = config["bucket_matchers"]
    buckets = [
        one["on_match"]["action"]["typed_config"]["bucket_id_builder"]["bucket_id_builder"]
        for one in matcher["matcher_list"]["matchers"]
    ]
    assert [
        {key: value["custom_value"]["typed_config"]["header_name"] for key, value in bucket.items()}
        for bucket in buckets
    ] == [{"tenant": "x-tenant"}, {"user": "end-user"}]
    other = matcher["on_no_match"]["action"]["typed_config"]
    assert other["bucket_id_builder"]["bucket_id_builder"] == {"tenant": {"string_value": "anonymous"}}
    with pytest.raises(ValueError, match="no rate limit domain"):
        render_bootstrap(workload(inbound=replace(inbound(domain=""), shares=SHARES)))


def test_a_path_prefix_is_a_path_not_a_beginning() -> None:
    """`/api/v1/products` does not take `/api/v1/products-internal`."""
    case = workload(inbound=inbound(InboundRoute(RATINGS.destination, "/api/v1/products")))
    matches = [part["match"] for part in walk(render_bootstrap(case)) if "match" in part]
    assert matches == [{"path_separated_prefix": "/api/v1/products"}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"admin": Address.parse("tcp://0.0.0.0:1")}, "admin interface"),
        ({"control": Address.parse("tls://h:1")}, "TLS only between sidecars"),
        ({"inbound": inbound(RATINGS, domain="")}, "no rate limit domain"),
        (
            {"outbound": Outbound(Address.parse("tcp://127.0.0.1:5"), (Upstream("x", (), ()),))},
            "no identity may answer for `x`",
        ),
    ],
)
def test_unsafe_bootstraps_are_refused(changes: dict[str, Any], message: str) -> None:
    """An open admin interface, an unchecked server, a quota without domain are errors, not defaults."""
    with pytest.raises(ValueError, match=message):
        render_bootstrap(workload(**changes))


@given(st.text())
def test_a_value_never_becomes_syntax(text: str) -> None:
    """Whatever a value holds, YAML gives it back as the one string it was, placeholders included."""
    assert yaml.safe_load(dump(fill({"a": "${x}", "b": ["${x}"]}, {"x": text}))) == {"a": text, "b": [text]}


def test_a_missing_or_unfit_value_is_an_error() -> None:
    """A placeholder without value, or a list inside a longer string, is a mistake of ours, never passed on."""
    with pytest.raises(KeyError):
        fill("${absent}", {})
    with pytest.raises(TypeError):
        fill("a ${x}", {"x": [1]})


def test_every_fragment_is_used() -> None:
    """The template holds nothing that no bootstrap uses: leaving any one fragment out is an error."""
    template = load_template()
    for name in template:
        rest = {key: value for key, value in template.items() if key != name}
        with pytest.raises(KeyError):
            render_bootstrap(WITH_SHARES, rest)


COMMAND = [
    *("--service", "reviews.default.svc.cluster.local", "--label", "app=reviews"),
    *("--listen", "tcp://0.0.0.0:15006", "--application", "tcp://127.0.0.1:9080"),
    *("--request", "unix:///r/request.sock", "--control", "unix:///r/control.sock"),
]


def test_the_command_prints_a_bootstrap() -> None:
    """`garrison envoy-config` prints the YAML that `render_bootstrap` returns."""
    more = [
        *("--outbound", "tcp://127.0.0.1:15001"),
        *("--upstream", "ratings,tcp://10.0.0.1:15006,spiffe://cluster.local/ns/default/sa/ratings"),
        *("--rate-limit-domain", "bookinfo", "--rate-limit-header", "end-user=user"),
    ]
    result = CliRunner().invoke(main, ["envoy-config", *COMMAND, *more])
    assert result.exit_code == 0, result.output
    bootstrap = yaml.safe_load(result.output)
    assert http_filters(bootstrap) == ["ext_authz", "ratelimit", "router"]
    names = [cluster["name"] for cluster in bootstrap["static_resources"]["clusters"]]
    assert names == ["garrison_request", "garrison_control", "application", "ratings"]
    included = CliRunner().invoke(main, ["envoy-config", *COMMAND, "--include-peer-certificate"])
    assert "include_peer_certificate: true" in included.output
    assert "include_peer_certificate: false" in result.output


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--admin", "tcp://0.0.0.0:1"], "admin interface"),
        (["--label", "app"], "`app` is not NAME=VALUE"),
        (["--listen", "9191"], "does not start with"),
        (["--outbound", "tcp://127.0.0.1:1", "--upstream", "ratings"], "is not SERVICE,ADDRESS,SPIFFE-ID"),
        (["--upstream", "r,tcp://h:1,spiffe://a/b"], "needs `--outbound`"),
        (["--rate-limit-domain", "x"], "goes together"),
        (["--rate-limit-share", "x-tenant=tenant"], "goes together"),
        (["--trust-domain", "Cluster"], "trust domain `Cluster`"),
    ],
)
def test_the_command_names_what_is_wrong(more: list[str], message: str) -> None:
    """A wrong option is a usage error that says which and why."""
    result = CliRunner().invoke(main, ["envoy-config", *COMMAND, *more])
    assert result.exit_code == 2
    assert message in result.output


def test_the_chosen_envoy_is_never_replaced(tmp_path: Path) -> None:
    """`GARRISON_ENVOY` comes first and a wrong one is an error; with none anywhere the error says where we looked."""
    binary = tmp_path / "envoy"
    binary.write_text("#!/bin/sh\n", encoding="utf-8")
    with pytest.raises(DependencyError, match="not an executable file"):
        find_envoy({"GARRISON_ENVOY": str(binary)})
    binary.chmod(0o755)
    assert find_envoy({"GARRISON_ENVOY": str(binary)}) == binary
    assert find_envoy({"PATH": str(tmp_path)}, prefix="nowhere") == binary
    with pytest.raises(DependencyError, match="no Envoy binary"):
        find_envoy({"PATH": ""}, prefix="nowhere")
