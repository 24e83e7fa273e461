"""Limits by what was verified, through a real Envoy: charged inside Check, or asked for by Envoy's own filter."""

from __future__ import annotations

import ssl
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.envoys import (
    Envoy,
    call,
    cluster,
    fragment,
    garrison_cluster,
    listener,
    running_envoy,
)
from support.policies import policy, tokens
from support.rate_limits import BY_IDENTITY, BY_SUBJECT, rate_limit
from support.serving import serving, write_settings
from support.tokens import ed_signer
from support.upstreams import Upstream, served

from ca.authority import Authority, Hierarchy
from ca.keys import new_private_key, private_key_pem
from garrison.identity import SpiffeId, TrustDomain

PAGE = Path(__file__).resolve().parents[2] / "docs/reference/rate-limit-policy.md"
WORKLOADS = ("a", "b")
LIMITS = """
domain: shop
descriptors:
- {key: user, rate_limit: {name: per-user, unit: year, requests_per_unit: 3}}
- {key: header-user, rate_limit: {unit: year, requests_per_unit: 3}}
- {key: workload, rate_limit: {unit: year, requests_per_unit: 3}}
"""
# Whatever a caller may hope to be taken for.
FORGED = [
    ("x-verified-user", "somebody"),
    ("user", "somebody"),
    ("sub", "somebody"),
    ("x-forwarded-client-cert", "URI=spiffe://cluster.local/ns/default/sa/somebody"),
    ("source.principal", "cluster.local/ns/default/sa/somebody"),
    ("envoy.filters.http.ext-authz", '{"user": "somebody"}'),
]


def example(first: str) -> str:
    """Return the example of the page that begins so."""
    (found,) = (text for text in PAGE.read_text().split("```")[1::2] if text.startswith(f"yaml\n{first}"))
    return found.removeprefix("yaml\n")


def handed_over() -> str:
    """Return the page's ResponsePolicy."""
    return next(
        text.removeprefix("yaml\n")
        for text in PAGE.read_text().split("```")
        if text.startswith("yaml\n") and "kind: ResponsePolicy" in text
    )


def policies() -> str:
    """Return what is charged, what is handed over, and that everybody may call."""
    everybody = policy("[{}]", namespace="shop")
    of = "selector: {{matchLabels: {{app: {}}}}}"
    by_user = rate_limit(BY_SUBJECT, name="users", namespace="shop", domain="shop", spec=of.format("users"))
    by_workload = rate_limit(
        BY_IDENTITY, name="workloads", namespace="shop", domain="shop", spec=of.format("workloads")
    )
    return everybody + tokens("shop") + by_user + by_workload + handed_over()


class Identities:
    """A CA, the TLS of Envoy's listener, and callers that have an identity of it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._authority: Authority = Hierarchy.create(
            TrustDomain("cluster.local"), now=datetime.now(UTC)
        ).authority()

    def _issue(self, name: str) -> tuple[bytes, bytes]:
        key = new_private_key()
        identity = SpiffeId.parse(f"spiffe://cluster.local/ns/default/sa/{name}")
        now = datetime.now(UTC)
        svid = self._authority.issue(identity, key.public_key(), now=now, ttl=timedelta(hours=1))
        return svid.chain_pem, private_key_pem(key)

    def caller(self, name: str) -> ssl.SSLContext:
        """Return the TLS of a workload."""
        file = self._folder / f"{name}.pem"
        file.write_bytes(b"".join(self._issue(name)))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # identities are URIs
        context.load_verify_locations(cadata=self._authority.bundle_pem().decode())
        context.load_cert_chain(file)
        return context

    def listener_context(self) -> dict[str, Any]:
        """Return the TLS of a listener that asks for certificates of this CA."""
        chain, key = self._issue("envoy")
        own = {
            "certificate_chain": {"inline_string": chain.decode()},
            "private_key": {"inline_string": key.decode()},
        }
        roots = {"inline_string": self._authority.bundle_pem().decode()}
        return {"tls_certificates": [own], "validation_context": {"trusted_ca": roots}}


@dataclass(frozen=True)
class World:
    """What runs, and calls to it."""

    envoy: Envoy
    callers: dict[str, ssl.SSLContext]

    def statuses(
        self,
        count: int,
        path: str,
        *headers: tuple[str, str],
        by: str = "http",
        caller: str = "",
    ) -> list[int]:
        """Return the statuses of equal calls, one after the other."""
        port, tls = self.envoy.ports[by], self.callers.get(caller)
        return [call(port, path, [("host", "a"), *headers], tls=tls).status for _ in range(count)]


def manager(filters: Sequence[Any], routes: dict[str, tuple[str, list[Any]]]) -> dict[str, Any]:
    """Return a connection manager; `routes` have an application, which the destination is named after."""
    built = []
    for prefix, (app, rate_limits) in routes.items():
        destination = {
            "destination.service": f"{app}.shop.svc.cluster.local",
            "destination.labels[app]": app,
        }
        match = {"prefix": prefix}
        built.append(fragment("inbound_route", match=match, rate_limits=rate_limits, destination=destination))
    config = fragment(
        "inbound_http", access_log=[], http_filters=[*filters, fragment("router")], routes=built
    )
    return {"name": "envoy.filters.network.http_connection_manager", "typed_config": config}


def bearer(subject: str) -> tuple[str, str]:
    """Return the header line with a user's good token."""
    claims = {"exp": time.time() + 3600, "sub": subject}
    return "authorization", f"Bearer {ed_signer().token(claims)}"


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Yield everything, running; it ends with the tests."""
    # pytest's own folders are too deep for the paths of Unix sockets.
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="garrison-e2e-")))
        settings = write_settings(folder)
        (folder / "limits" / "shop.yaml").write_text(LIMITS)
        (folder / "policies" / "all.yaml").write_text(policies())
        stack.enter_context(serving("--config", str(settings))).wait_for("ready")
        port = stack.enter_context(served(ThreadingHTTPServer(("127.0.0.1", 0), Upstream)))
        identities = Identities(folder)
        by_metadata, by_header = yaml.safe_load(example("rate_limits:"))["rate_limits"]
        charged = manager([fragment("ext_authz")], {"/users": ("users", []), "/workloads": ("workloads", [])})
        asked = manager(
            [fragment("ext_authz"), fragment("ratelimit", rate_limit_domain="shop")],
            {"/metadata": ("others", [by_metadata]), "/header": ("others", [by_header])},
        )
        envoy = stack.enter_context(
            running_envoy(
                folder,
                [
                    listener("http", [charged]),
                    listener("https", [charged], identities.listener_context()),
                    listener("asked", [asked]),
                ],
                [garrison_cluster(folder / "r.sock"), cluster("application", port)],
            )
        )
        yield World(envoy, {name: identities.caller(name) for name in WORKLOADS})


def test_a_limit_for_each_user(world: World) -> None:
    """Each verified subject has its own count; nothing that a caller adds gives it another one."""
    assert world.statuses(2, "/users", bearer("ann")) == [200, 200]
    assert world.statuses(2, "/users", bearer("ann"), *FORGED) == [200, 429]
    assert world.statuses(2, "/users?user=x", ("x-request-id", "x"), bearer("ann")) == [429, 429]
    assert world.statuses(4, "/users", bearer("bob")) == [200] * 3 + [429]


def test_the_caller_is_told_why_and_until_when(world: World) -> None:
    """429 with `retry-after`, from Check."""
    world.statuses(3, "/users", bearer("eve"))
    port = world.envoy.ports["http"]
    answer = call(port, "/users", [("host", "a"), bearer("eve")])
    assert (answer.status, answer.body) == (429, "rate limit exceeded")
    assert 0 < int(answer.header("retry-after") or 0) <= 366 * 86_400


def test_no_subject_is_no_way_around(world: World) -> None:
    """Without a token, or with a bad one, there is nobody to charge, and so no call."""
    assert world.statuses(1, "/users") == [403]
    assert world.statuses(1, "/users", *FORGED) == [403]
    _, good = bearer("ann")
    assert world.statuses(1, "/users", ("authorization", f"{good[:-4]}AAAA")) == [401]


def test_a_limit_for_each_workload(world: World) -> None:
    """The identity of the peer's certificate counts, whatever its headers say."""
    assert world.statuses(2, "/workloads", by="https", caller="a") == [200, 200]
    assert world.statuses(2, "/workloads", *FORGED, by="https", caller="a") == [200, 429]
    assert world.statuses(4, "/workloads", by="https", caller="b") == [200] * 3 + [429]
    assert world.statuses(1, "/workloads", *FORGED) == [403]  # plaintext has no identity


@pytest.mark.parametrize("path", ["/metadata", "/header"])
def test_envoy_asks_with_what_check_verified(world: World, path: str) -> None:
    """Its own filter gets the verified subject, although the caller sent something of the same name."""
    ann, bob = bearer(f"ann of {path}"), bearer(f"bob of {path}")
    assert world.statuses(2, path, ann, by="asked") == [200, 200]
    for name in ("one", "two"):
        forged = [("x-verified-user", name), ("envoy.filters.http.ext-authz", name)]
        assert world.statuses(1, path, ann, *forged, by="asked") == [200 if name == "one" else 429]
    forged = [("x-verified-user", f"ann of {path}")]
    assert world.statuses(4, path, bob, *forged, by="asked") == [200] * 3 + [429]


def test_metadata_with_a_default_limits_callers_without_a_token(world: World) -> None:
    """They share one count; of a header the copy that they sent is removed, and Envoy then asks for nothing."""
    assert world.statuses(4, "/metadata", *FORGED, by="asked") == [200] * 3 + [429]
    assert world.statuses(4, "/header", ("x-verified-user", "me"), by="asked") == [200] * 4
