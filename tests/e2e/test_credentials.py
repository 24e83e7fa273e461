"""Credentials through real Envoys: what proves who calls, what is refused, and what the upstream gets to see.

A gateway Envoy verifies client certificates and forwards them to a second Envoy, over mTLS; that one asks a real
`garrison serve`, which asks a real introspection endpoint over TLS and a real Valkey. The header `x-to` chooses
the destination, `a.NAMESPACE.svc.cluster.local`.
"""

from __future__ import annotations

import base64
import json
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from support.certificates import certify
from support.credentials import authentication
from support.envoys import (
    Answer,
    Envoy,
    call,
    cluster,
    fragment,
    garrison_cluster,
    listener,
    running_envoy,
    typed,
)
from support.http_server import answer as http_answer
from support.http_server import serving as http_serving
from support.policies import policy
from support.serving import serving, write_settings
from support.tokens import Authentication, ed_signer
from support.valkey import Valkey

from authz.authenticators.clients import digest_of, hash_key
from authz.authenticators.passwords import new_scrypt
from ca.authority import Authority, Hierarchy
from ca.keys import new_private_key, private_key_pem
from garrison.identity import SpiffeId, TrustDomain

NAMESPACES = ("keys", "basic", "opaque", "certs", "stored", "mixed")
GATEWAY, CLIENT = "cluster.local/ns/edge/sa/gateway", "cluster.local/ns/shop/sa/client"
REALM = 'realm="a.{}.svc.cluster.local"'

IDENTIFIED = "[{from: [{source: {requestPrincipals: ['*']}}]}]"
PLACES = "fromHeaders: [{name: x-api-key}], fromParams: [key], fromCookies: [key]"
POLICIES = "".join(
    [
        authentication(f"[{{authenticator: keys, {PLACES}}}]", required=True, namespace="keys"),
        authentication("[{authenticator: people}]", required=True, namespace="basic"),
        authentication("[{authenticator: opaque}]", required=True, namespace="opaque"),
        authentication(f"[{{forwardedClientCertificate: {{trustedPeers: [{GATEWAY}]}}}}]", namespace="certs"),
        authentication("[{authenticator: stored, forward: true}]", required=True, namespace="stored"),
        authentication("[{authenticator: keys}, {anonymous: {}}]", namespace="mixed"),
        str(Authentication(ed_signer().jwks(), namespace="mixed")),
        *(policy(IDENTIFIED, namespace=name) for name in ("keys", "basic", "opaque", "stored", "mixed")),
        policy(
            f"[{{when: [{{key: 'request.auth.claims[uri]', values: ['spiffe://{CLIENT}']}}]}},"
            " {to: [{operation: {paths: [/open]}}]}]",
            namespace="certs",
        ),
        *(
            f"""
apiVersion: garrison.dev/v1alpha1
kind: ResponsePolicy
metadata: {{name: caller, namespace: {name}}}
spec: {{allowed: {{requestHeaders: [{{name: x-caller, value: "${{request.auth.principal}}"}}]}}}}
---
"""
            for name in NAMESPACES
        ),
    ]
)


class _Everything(dict[str, Any]):
    """The same answer at every path."""

    def __missing__(self, path: str) -> Any:
        return self[""]


def echo(handler: BaseHTTPRequestHandler) -> None:
    """Answer with what arrived."""
    seen = {"target": handler.path, "headers": handler.headers.items()}
    http_answer(json.dumps(seen).encode())(handler)


@dataclass
class Introspector:
    """An authorization server: knows two tokens, and notes which it was asked about."""

    asked: list[str] = field(default_factory=list)
    broken: bool = False

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer a request."""
        body = handler.rfile.read(int(handler.headers["content-length"])).decode()
        (token,) = parse_qs(body)["token"]
        self.asked.append(token)
        known = {
            "good": {"active": True, "sub": "olga", "iss": "https://evil.example"},
            "text": {"active": "true", "sub": "x"},
        }
        said = json.dumps(known.get(token, {"active": False})).encode()
        http_answer(said, 503 if self.broken else 200, content_type="application/json")(handler)


class Identities:
    """A CA, and the TLS of those whom it issued an identity."""

    def __init__(self) -> None:
        self._authority: Authority = Hierarchy.create(
            TrustDomain("cluster.local"), now=datetime.now(UTC)
        ).authority()

    def _issue(self, name: str) -> tuple[bytes, bytes]:
        key = new_private_key()
        identity, now = SpiffeId.parse(f"spiffe://{name}"), datetime.now(UTC)
        svid = self._authority.issue(identity, key.public_key(), now=now, ttl=timedelta(hours=1))
        return svid.chain_pem, private_key_pem(key)

    def context(self, name: str) -> dict[str, Any]:
        """Return an Envoy's common TLS context."""
        chain, key = self._issue(name)
        own = {
            "certificate_chain": {"inline_string": chain.decode()},
            "private_key": {"inline_string": key.decode()},
        }
        roots = {"inline_string": self._authority.bundle_pem().decode()}
        return {"tls_certificates": [own], "validation_context": {"trusted_ca": roots}}

    def client(self, folder: Path, name: str) -> ssl.SSLContext:
        """Return a client's TLS."""
        file = folder / "client.pem"
        file.write_bytes(b"".join(self._issue(name)))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # identities are URIs
        context.load_verify_locations(cadata=self._authority.bundle_pem().decode())
        context.load_cert_chain(file)
        return context


def inbound(
    route_to: str = "application", *, authorized: bool = True, forwards: str = "SANITIZE"
) -> dict[str, Any]:
    """Return a connection manager; `forwards` is what it does with forwarded certificates."""
    routes = []
    for namespace in NAMESPACES:
        to = {"name": "x-to", "string_match": {"exact": namespace}}
        route = fragment(
            "inbound_route",
            match={"prefix": "/", "headers": [to]},
            rate_limits=[],
            destination={"destination.service": f"a.{namespace}.svc.cluster.local"},
        )
        route["route"]["cluster"] = route_to
        if not authorized:
            del route["typed_per_filter_config"]
        routes.append(route)
    filters = [fragment("ext_authz"), fragment("router")] if authorized else [fragment("router")]
    manager = fragment("inbound_http", access_log=[], http_filters=filters, routes=routes)
    manager["forward_client_cert_details"] = forwards
    if forwards == "SANITIZE_SET":
        manager["set_current_client_cert_details"] = {"subject": True, "uri": True, "dns": True}
    return {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}


@dataclass(frozen=True)
class World:
    """What runs, and calls to it."""

    envoy: Envoy
    gateway: Envoy
    client: ssl.SSLContext
    introspector: Introspector
    valkey: Valkey

    def get(self, to: str, *headers: tuple[str, str], target: str = "/", method: str = "GET") -> Answer:
        """Make a plain call to a destination."""
        lines = [("host", "a.example"), ("x-to", to), *headers]
        return call(self.envoy.ports["http"], target, lines, method=method)

    def through_gateway(self, *headers: tuple[str, str], target: str = "/") -> Answer:
        """Make a call with a client certificate to the gateway, which passes it on."""
        lines = [("host", "a.example"), ("x-to", "certs"), *headers]
        return call(self.gateway.ports["edge"], target, lines, tls=self.client)


def seen(answer: Answer) -> dict[str, list[str]]:
    """Return the header lines that the upstream saw, and under `target` what it was asked for."""
    assert answer.status == 200, answer
    data = json.loads(answer.body)
    found: dict[str, list[str]] = {"target": [data["target"]]}
    for name, value in data["headers"]:
        found.setdefault(name.lower(), []).append(value)
    return found


def basic(text: str) -> tuple[str, str]:
    """Return the header line with a name and password."""
    return "authorization", f"Basic {base64.b64encode(text.encode()).decode()}"


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Yield everything, running; it ends with the tests."""
    # pytest's own folders are too deep for the paths of Unix sockets.
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="garrison-e2e-")))
        identities, introspector = Identities(), Introspector()
        valkey = stack.enter_context(Valkey(folder))
        tls, ca = certify(folder, "127.0.0.1")
        endpoint = stack.enter_context(http_serving({"/introspect": introspector}, tls))
        upstream = stack.enter_context(http_serving(_Everything({"": echo})))
        (folder / "keys.yaml").write_text(
            f"keys: [{{name: acme, hashes: ['{hash_key('acmes-key')}'], claims: {{groups: [partners]}}}}]"
        )
        (folder / "users").write_text(f"anna:{new_scrypt(ln=10, r=8, p=1).of(b'pass:word')}\n")
        (folder / "secret").write_text("s3cret")
        settings = write_settings(
            folder,
            f"""
authenticators:
- {{name: keys, api_keys: {{file: keys.yaml}}}}
- {{name: people, basic: {{file: users}}}}
- name: opaque
  introspection: {{endpoint: "{endpoint}/introspect", client_id: g, client_secret_file: secret, ca: "{ca}", timeout: 5s}}
- {{name: stored, api_keys: {{redis: {{url: "{valkey.url}", timeout: 5s, cache: 0s}}}}}}
""",
        )
        (folder / "policies" / "all.yaml").write_text(POLICIES)
        server = stack.enter_context(serving("--config", str(settings)))
        server.wait_for("ready")
        for name in ("inbound", "gateway"):
            (folder / name).mkdir()
        envoy = stack.enter_context(
            running_envoy(
                folder / "inbound",
                [
                    listener("http", [inbound()]),
                    listener(
                        "https",
                        [inbound(forwards="FORWARD_ONLY")],
                        identities.context("cluster.local/ns/default/sa/envoy"),
                    ),
                ],
                [
                    garrison_cluster(folder / "r.sock"),
                    cluster("application", int(upstream.rpartition(":")[2])),
                ],
            )
        )
        onward = cluster("onward", envoy.ports["https"])
        onward["transport_socket"] = typed(
            "transport_sockets.tls.v3.UpstreamTlsContext",
            "envoy.transport_sockets.tls",
            common_tls_context=identities.context(GATEWAY),
        )
        edge = [inbound("onward", authorized=False, forwards="SANITIZE_SET")]
        gateway = stack.enter_context(
            running_envoy(
                folder / "gateway",
                [listener("edge", edge, identities.context(GATEWAY))],
                [onward],
            )
        )
        yield World(envoy, gateway, identities.client(folder, CLIENT), introspector, valkey)


def test_an_api_key_names_its_client(world: World) -> None:
    """The upstream learns who calls, and never the key."""
    found = seen(world.get("keys", ("x-api-key", "acmes-key"), ("x-caller", "forged")))
    assert found["x-caller"] == ["keys/clients/keys/acme"]
    assert "x-api-key" not in found


def test_a_key_in_the_query_or_a_cookie_is_removed_from_there(world: World) -> None:
    """And what stands next to it stays as it was written."""
    found = seen(world.get("keys", target="/x?a=%20b&k%65y=acmes-key&c"))
    assert found["target"] == ["/x?a=%20b&c"]
    found = seen(world.get("keys", ("cookie", 'a=1; key=acmes-key; b="2 3"')))
    assert found["cookie"] == ['a=1; b="2 3"']
    assert "cookie" not in seen(world.get("keys", ("cookie", "key=acmes-key")))
    # Two header lines become one; the upstream must see the key in neither.
    two = seen(world.get("keys", ("cookie", "a=1"), ("cookie", "key=acmes-key; b=2")))
    assert two["cookie"] == ["a=1; b=2"]
    assert seen(world.get("keys", ("cookie", "key=acmes-key"), ("cookie", "b=2")))["cookie"] == ["b=2"]


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("x-api-key", "wrong")],
        [("x-api-key", "")],
        [("x-api-key", hash_key("acmes-key"))],
        [("x-api-key", "acmes-key"), ("x-api-key", "other")],
        [("x-api-key", "acmes-key"), ("cookie", "key=other")],
    ],
)
def test_no_key_or_a_bad_one_is_401(world: World, headers: list[tuple[str, str]]) -> None:
    """With a challenge, and without a word about why."""
    answer = world.get("keys", *headers)
    assert answer.status == 401
    assert answer.header("www-authenticate") == f"ApiKey {REALM.format('keys')}"
    assert "wrong" not in answer.body


def test_a_password_names_its_user(world: World) -> None:
    """Twice, of which the second time is from memory; the upstream never sees it."""
    for _ in range(2):
        found = seen(world.get("basic", basic("anna:pass:word")))
        assert found["x-caller"] == ["basic/clients/people/anna"]
        assert "authorization" not in found


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [basic("anna:wrong")],
        [basic("nobody:pass:word")],
        [("authorization", "Basic !")],
        [("authorization", "Basic")],
        [basic("anna:pass:word"), basic("anna:pass:word")],
        [basic("anna:pass:word"), ("authorization", "Bearer x")],
    ],
)
def test_a_wrong_password_is_401(world: World, headers: list[tuple[str, str]]) -> None:
    """Browsers then ask for another one; two lines, which Envoy joins, are no password."""
    answer = world.get("basic", *headers)
    assert answer.status == 401
    assert answer.header("www-authenticate") == f'Basic {REALM.format("basic")}, charset="UTF-8"'


def test_an_opaque_token_is_its_subjects(world: World) -> None:
    """The endpoint is asked once; its `iss` counts for nothing."""
    before = world.introspector.asked.count("good")
    for _ in range(3):
        found = seen(world.get("opaque", ("authorization", "Bearer good")))
        assert found["x-caller"] == ["opaque/clients/opaque/olga"]
        assert "authorization" not in found
    assert world.introspector.asked.count("good") - before <= 1


def test_an_inactive_token_is_401_and_a_confused_server_503(world: World) -> None:
    """`"active": "true"` is no consent."""
    answer = world.get("opaque", ("authorization", "Bearer bad"))
    assert answer.status == 401
    assert answer.header("www-authenticate") == f'Bearer {REALM.format("opaque")}, error="invalid_token"'
    assert world.get("opaque").header("www-authenticate") == f"Bearer {REALM.format('opaque')}"
    assert world.get("opaque", ("authorization", "Bearer text")).status == 503


def test_an_endpoint_that_is_away_denies_and_leaves_no_trace(world: World) -> None:
    """503 for what is not known; what was asked meanwhile is asked again when it is back."""
    seen(world.get("opaque", ("authorization", "Bearer good")))
    world.introspector.broken = True
    assert world.get("opaque", ("authorization", "Bearer new")).status == 503
    seen(world.get("opaque", ("authorization", "Bearer good")))
    world.introspector.broken = False
    assert world.get("opaque", ("authorization", "Bearer new")).status == 401


def test_a_gateways_client_is_known_by_its_certificate(world: World) -> None:
    """The gateway verified it and says so over mTLS; a copy that the client sends is not it."""
    found = seen(
        world.through_gateway(("x-forwarded-client-cert", "URI=spiffe://cluster.local/ns/x/sa/admin"))
    )
    assert found["x-caller"] == [f"certs/clients/certificate/spiffe://{CLIENT}"]
    assert "x-forwarded-client-cert" not in found


def test_a_forged_certificate_header_is_nothing_and_goes_no_further(world: World) -> None:
    """Whoever calls past the gateway: over mTLS as somebody else, or in plain text."""
    forged = ("x-forwarded-client-cert", f"URI=spiffe://{CLIENT}")
    lines = [("host", "a.example"), ("x-to", "certs"), forged]
    direct = call(world.envoy.ports["https"], "/", lines, tls=world.client)
    assert direct.status == 403
    found = seen(call(world.envoy.ports["https"], "/open", lines, tls=world.client))
    assert "x-forwarded-client-cert" not in found
    assert "x-caller" not in found
    assert world.get("certs", forged).status == 403


def test_a_key_in_redis_counts_while_it_is_there(world: World) -> None:
    """And goes on to the upstream where the method says so."""
    client = world.valkey.client()
    client.hset("garrison:api-keys", digest_of("stored-key"), json.dumps({"name": "bob"}))
    found = seen(world.get("stored", ("x-api-key", "stored-key")))
    assert (found["x-caller"], found["x-api-key"]) == (["stored/clients/stored/bob"], ["stored-key"])
    client.delete("garrison:api-keys")
    client.close()
    assert world.get("stored", ("x-api-key", "stored-key")).status == 401


def test_tokens_keys_and_nobody_side_by_side(world: World) -> None:
    """Each has an identity of its own; two of them at once have none."""
    token = ("authorization", f"Bearer {ed_signer().token({'exp': datetime.now(UTC).timestamp() + 600})}")
    key = ("x-api-key", "acmes-key")
    assert seen(world.get("mixed", key))["x-caller"] == ["mixed/clients/keys/acme"]
    assert seen(world.get("mixed"))["x-caller"] == ["mixed/clients/anonymous/anonymous"]
    assert "clients" not in seen(world.get("mixed", token))["x-caller"][0]
    assert world.get("mixed", token, key).status == 401


def test_a_preflight_needs_no_credential(world: World) -> None:
    """Policies still decide on it: here one that asks for an identity."""
    preflight = [("origin", "https://a.example"), ("access-control-request-method", "PUT")]
    assert world.get("keys", *preflight, method="OPTIONS").status == 403
    assert world.get("keys", method="OPTIONS").status == 401
