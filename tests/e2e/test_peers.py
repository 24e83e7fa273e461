"""Peers through real Envoys: plaintext where mTLS is asked, foreign names, certificates that nobody verified.

One Envoy serves all tests. The header `x-to` names the destination's namespace. Its listeners differ in what they
let in: `plain` has no TLS, `wide` trusts one root too many, `loose` accepts whatever certificate there is
(`trust_chain_verification: ACCEPT_UNTRUSTED`), `asked` asks a server that wants to know who asks.
"""

from __future__ import annotations

import copy
import json
import socket
import ssl
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from support.envoys import (
    Answer,
    Envoy,
    call,
    cluster,
    fragment,
    garrison_cluster,
    listener,
    log_lines,
    running_envoy,
    typed,
)
from support.policies import policy
from support.serving import PATIENCE_SECONDS, serving, write_settings
from support.tokens import ed_signer
from support.upstreams import EchoServer, served

from ca.authority import Authority, Hierarchy
from ca.keys import new_private_key, private_key_pem
from garrison.identity import SpiffeId, TrustDomain

NAMESPACES = ("open", "strict", "disabled", "shop", "old", "other")
CALLER = "spiffe://cluster.local/ns/default/sa/caller"
SIDECAR = "spiffe://cluster.local/ns/open/sa/a"


def peers(namespace: str, mode: str) -> str:
    """Return a PeerAuthentication for a namespace."""
    return f"""
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: default, namespace: {namespace}}}
spec: {{mtls: {{mode: {mode}}}}}
---
"""


POLICIES = (
    policy("[{}]", name="everybody", namespace="istio-system")
    + peers("strict", "STRICT")
    + peers("disabled", "DISABLE")
    + f"""
apiVersion: authentication.istio.io/v1alpha1
kind: Policy
metadata: {{name: default, namespace: old}}
spec:
  peers: [{{mtls: {{}}}}]
  origins: [{{jwt: {{issuer: "https://issuer.example", jwks: {json.dumps(ed_signer().jwks())}}}}}]
---
"""
)


class _Upstream(BaseHTTPRequestHandler):
    """Answers every call."""

    def do_GET(self) -> None:
        """Say hello."""
        self.send_response(200)
        self.send_header("content-length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""


@dataclass(frozen=True)
class Holder:
    """A certificate chain and its key, in PEM."""

    chain: bytes
    key: bytes

    def context(self, folder: Path) -> ssl.SSLContext:
        """Return the TLS of a caller that shows it."""
        file = folder / "caller.pem"
        file.write_bytes(self.chain + self.key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # what is tested is how the caller is looked at
        context.load_cert_chain(file)
        return context

    def envoy(self) -> dict[str, Any]:
        """Return it as a certificate of Envoy's."""
        return {
            "certificate_chain": {"inline_string": self.chain.decode()},
            "private_key": {"inline_string": self.key.decode()},
        }


def issue(authority: Authority, name: str) -> Holder:
    """Return an SVID for `name`, which is in the authority's own trust domain."""
    key, now = new_private_key(), datetime.now(UTC)
    svid = authority.issue(SpiffeId.parse(name), key.public_key(), now=now, ttl=timedelta(hours=1))
    return Holder(svid.chain_pem, private_key_pem(key))


def forge(name: str) -> Holder:
    """Return a certificate for `name` that signed itself."""
    key, now = new_private_key(), datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(name)]), critical=True)
    )
    certificate = builder.sign(key, hashes.SHA256())
    return Holder(certificate.public_bytes(Encoding.PEM), private_key_pem(key))


@dataclass(frozen=True)
class Authorities:
    """Our CA, that of a partner who is federated with `shop`, a stranger's, and one that uses our name."""

    ours: Authority
    partner: Authority
    stranger: Authority
    impostor: Authority

    @classmethod
    def create(cls) -> Authorities:
        """Make all of them."""
        names = ("cluster.local", "partner.example", "stranger.example", "cluster.local")
        now = datetime.now(UTC)
        return cls(*(Hierarchy.create(TrustDomain(name), now=now).authority() for name in names))


def manager(log: Path, garrison: str, *, include: bool) -> dict[str, Any]:
    """Return the connection manager that sidecars have, with a route for each namespace."""
    access_log = fragment("access_log", access_log_path=str(log))
    line = access_log["typed_config"]["log_format"]["json_format"]
    line["authz_code"] = "%DYNAMIC_METADATA(envoy.filters.http.ext_authz:code)%"
    line["authz_reason"] = "%DYNAMIC_METADATA(envoy.filters.http.ext_authz:reason)%"
    ext_authz = copy.deepcopy(fragment("ext_authz"))
    ext_authz["typed_config"]["include_peer_certificate"] = include
    ext_authz["typed_config"]["grpc_service"]["envoy_grpc"]["cluster_name"] = garrison
    ext_authz["typed_config"]["grpc_service"]["timeout"] = "5s"
    routes = []
    for namespace in NAMESPACES:
        extensions = {"destination.service": f"a.{namespace}.svc.cluster.local", "destination.user": "a"}
        match = {"prefix": "/", "headers": [{"name": "x-to", "string_match": {"exact": namespace}}]}
        route = fragment("inbound_route", match=match, rate_limits=[], destination=extensions)
        route["route"]["cluster"] = "application"
        routes.append(route)
    filled = fragment(
        "inbound_http", access_log=[access_log], http_filters=[ext_authz, fragment("router")], routes=routes
    )
    return {"name": "envoy.filters.network.http_connection_manager", "typed_config": filled}


def connections(namespace: str) -> list[dict[str, Any]]:
    """Return the network filters of a TCP service."""
    service = {
        "envoy_grpc": {"cluster_name": "garrison_request"},
        "timeout": "5s",
        "initial_metadata": [
            {"key": "garrison-destination", "value": f"destination.service=a.{namespace}.svc.cluster.local"}
        ],
    }
    name, proxy = "envoy.filters.network.ext_authz", "envoy.filters.network.tcp_proxy"
    fields = {"stat_prefix": namespace, "transport_api_version": "V3", "grpc_service": service}
    return [
        typed("filters.network.ext_authz.v3.ExtAuthz", name, **fields),
        typed("filters.network.tcp_proxy.v3.TcpProxy", proxy, stat_prefix=namespace, cluster="echo"),
    ]


@dataclass(frozen=True)
class World:
    """What runs, and calls to it."""

    envoy: Envoy
    authorities: Authorities
    folder: Path

    def get(
        self, at: str, namespace: str, holder: Holder | None = None, *headers: tuple[str, str]
    ) -> tuple[Answer, dict[str, Any]]:
        """Call a destination at one of the listeners; return the answer and the access log's line."""
        request_id = str(uuid.uuid4())
        lines = [("host", "a"), ("x-to", namespace), ("x-request-id", request_id), *headers]
        tls = holder.context(self.folder) if holder is not None else None
        answer = call(self.envoy.ports[at], "/", lines, tls=tls)
        (line,) = log_lines(self.folder / "access.log", request_id)
        return answer, line

    def code(self, at: str, namespace: str, holder: Holder | None = None) -> tuple[int, str]:
        """Return the status that the caller got and the code of the decision."""
        answer, line = self.get(at, namespace, holder)
        return answer.status, line["authz_code"]

    def echoed(self, at: str) -> bytes:
        """Send `ping` over TCP; return what comes back: nothing if the connection is refused."""
        with socket.create_connection(("127.0.0.1", self.envoy.ports[at]), PATIENCE_SECONDS) as connection:
            connection.sendall(b"ping")
            try:
                return connection.recv(4)
            except ConnectionResetError:
                return b""


def settings(folder: Path, authorities: Authorities) -> str:
    """Write the trust bundles; return the settings about peers."""
    for name, authority in (("ours", authorities.ours), ("partner", authorities.partner)):
        chain = issue(authority, f"spiffe://{authority.trust_domain}/x").chain
        (folder / f"{name}.pem").write_bytes(authority.bundle_pem() + _without_leaf(chain))
    return """
federated_trust_domains: [partner.example=shop]
trust_bundles:
- {trust_domain: cluster.local, file: ours.pem}
- {trust_domain: partner.example, file: partner.pem}
"""


def _without_leaf(chain: bytes) -> bytes:
    _, *others = x509.load_pem_x509_certificates(chain)
    return b"".join(one.public_bytes(Encoding.PEM) for one in others)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Yield everything, running; it ends with the tests."""
    # pytest's own folders are too deep for the paths of Unix sockets.
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="garrison-e2e-")))
        http_port = stack.enter_context(served(ThreadingHTTPServer(("127.0.0.1", 0), _Upstream)))
        echo_port = stack.enter_context(served(EchoServer()))
        authorities, log = Authorities.create(), folder / "access.log"
        log.touch()
        asked_port = stack.enter_context(asking_server(folder / "asked", authorities))
        own = [issue(authorities.ours, SIDECAR).envoy()]
        every = (authorities.ours, authorities.partner, authorities.stranger, authorities.impostor)
        roots = b"".join(authority.bundle_pem() for authority in every).decode()
        wide = {"trusted_ca": {"inline_string": roots}}
        loose = {
            "trusted_ca": {"inline_string": authorities.ours.bundle_pem().decode()},
            "trust_chain_verification": "ACCEPT_UNTRUSTED",
        }
        believing = manager(log, "garrison_request", include=False)
        including = manager(log, "garrison_request", include=True)
        envoy = stack.enter_context(
            running_envoy(
                folder,
                [
                    listener("plain", [believing]),
                    listener("wide", [believing], {"tls_certificates": own, "validation_context": wide}),
                    listener(
                        "wide-included", [including], {"tls_certificates": own, "validation_context": wide}
                    ),
                    listener("loose", [including], {"tls_certificates": own, "validation_context": loose}),
                    listener("asked", [manager(log, "garrison_asked", include=False)]),
                    listener("tcp-strict", connections("strict")),
                    listener("tcp-open", connections("open")),
                ],
                [
                    garrison_cluster(folder / "r.sock"),
                    asking_cluster(asked_port, own, authorities.ours),
                    cluster("application", http_port),
                    cluster("echo", echo_port),
                ],
            )
        )
        file = write_settings(folder, settings(folder, authorities))
        (folder / "policies" / "all.yaml").write_text(POLICIES)
        server = stack.enter_context(serving("--config", str(file)))
        server.wait_for("ready")
        yield World(envoy, authorities, folder)


@contextmanager
def asking_server(folder: Path, authorities: Authorities) -> Iterator[int]:
    """Run a server that answers sidecars with an SVID only; yields its port."""
    folder.mkdir()
    server = issue(authorities.ours, "spiffe://cluster.local/garrison")
    for name, content in (
        ("s.pem", server.chain),
        ("s.key", server.key),
        ("roots.pem", authorities.ours.bundle_pem()),
    ):
        (folder / name).write_bytes(content)
    file = write_settings(folder)
    text = file.read_text().replace('"tcp://127.0.0.1:0"]}\ncontrol', '"tls://127.0.0.1:0"]}\ncontrol')
    tls = "require_asker_svid: true, tls: {certificate: s.pem, private_key: s.key, client_ca: roots.pem}"
    file.write_text(text.replace("request: {", f"request: {{{tls}, "))
    (folder / "policies" / "all.yaml").write_text(POLICIES)
    with serving("--config", str(file)) as running:
        addresses = running.wait_for("ready")["request"]
        (address,) = [one for one in addresses if one.startswith("tls://")]
        yield int(address.rpartition(":")[2])


def asking_cluster(port: int, own: list[dict[str, Any]], authority: Authority) -> dict[str, Any]:
    """Return the cluster of that server: mTLS with the sidecar's SVID."""
    found = cluster("garrison_asked", port, http2=True)
    roots = {"trusted_ca": {"inline_string": authority.bundle_pem().decode()}}
    context = {"tls_certificates": own, "validation_context": roots, "alpn_protocols": ["h2"]}
    found["transport_socket"] = typed(
        "transport_sockets.tls.v3.UpstreamTlsContext",
        "envoy.transport_sockets.tls",
        common_tls_context=context,
    )
    return found


def test_plaintext_is_refused_where_mtls_is_asked(world: World) -> None:
    """STRICT: 403 with the document in the reason; mTLS of one of ours passes; DISABLE is the reverse."""
    ours = issue(world.authorities.ours, CALLER)
    answer, line = world.get("plain", "strict")
    assert (answer.status, answer.body) == (403, "RBAC: access denied")
    assert line["authz_code"] == "plaintext_not_allowed"
    assert "PeerAuthentication strict/default says STRICT" in line["authz_reason"]
    assert world.code("plain", "open") == (200, "policy_matched")
    assert world.code("plain", "disabled") == (200, "policy_matched")
    assert world.code("wide", "strict", ours) == (200, "policy_matched")
    assert world.code("wide", "disabled", ours) == (403, "mtls_not_allowed")


def test_connections_are_refused_as_well(world: World) -> None:
    """A TCP connection without TLS to a STRICT service is closed; to another one it is not."""
    assert world.echoed("tcp-open") == b"ping"
    assert world.echoed("tcp-strict") == b""


def test_a_foreign_trust_domain_may_not_call(world: World) -> None:
    """Envoy trusts its root, so it connects; Garrison refuses it, wherever it is not federated."""
    stranger = issue(world.authorities.stranger, "spiffe://stranger.example/ns/default/sa/caller")
    partner = issue(world.authorities.partner, "spiffe://partner.example/ns/default/sa/caller")
    for at in ("wide", "wide-included"):
        assert world.code(at, "open", stranger) == (403, "foreign_trust_domain")
        assert world.code(at, "shop", stranger) == (403, "foreign_trust_domain")
        assert world.code(at, "open", partner) == (403, "foreign_trust_domain")
        assert world.code(at, "shop", partner) == (200, "policy_matched")


def test_a_root_too_many_lets_nobody_in_under_our_name(world: World) -> None:
    """Another CA that Envoy trusts issues one of our names: the certificate does not prove it."""
    impostor = issue(world.authorities.impostor, CALLER)
    assert world.code("wide-included", "open", impostor) == (403, "peer_certificate_invalid")
    assert world.code("wide-included", "open", issue(world.authorities.ours, CALLER)) == (
        200,
        "policy_matched",
    )


def test_accept_untrusted_lets_nobody_in(world: World) -> None:
    """Envoy reports names that nobody verified; with the certificate they are verified here."""
    for holder in (issue(world.authorities.impostor, CALLER), forge(CALLER)):
        answer, line = world.get("loose", "open", holder)
        assert (answer.status, line["authz_code"]) == (403, "peer_certificate_invalid")
        assert f"does not prove `{CALLER}`" in line["authz_reason"]
    for namespace in ("open", "strict"):
        assert world.code("loose", namespace, issue(world.authorities.ours, CALLER)) == (
            200,
            "policy_matched",
        )


def test_names_that_only_look_like_an_identity(world: World) -> None:
    """Envoy passes on whatever stands in a URI SAN."""
    for name in (
        "spiffe://cluster.local/ns/default/sa/../sa/caller",
        "SPIFFE://cluster.local/a",
        "spiffe://",
    ):
        assert world.code("loose", "open", forge(name)) == (403, "malformed_spiffe_id")


def test_old_policies_answer_401(world: World) -> None:
    """A v1alpha1 Policy: its bodies, and a challenge that reaches the caller."""
    ours = issue(world.authorities.ours, CALLER)
    realm = 'Bearer realm="a.old.svc.cluster.local"'
    answer, line = world.get("plain", "old")
    assert (answer.status, answer.body) == (401, "Peer authentication failed.")
    assert (answer.header("www-authenticate"), line["authz_code"]) == (realm, "peer_authentication_failed")
    answer, _ = world.get("wide", "old", ours)
    assert (answer.status, answer.body) == (401, "Origin authentication failed.")
    assert answer.header("www-authenticate") == realm
    answer, _ = world.get("wide", "old", ours, ("authorization", "Bearer x.y.z"))
    assert answer.header("www-authenticate") == f'{realm}, error="invalid_token"'
    token = ed_signer().token({"exp": datetime.now(UTC).timestamp() + 3600})
    answer, line = world.get("wide", "old", ours, ("authorization", f"Bearer {token}"))
    assert (answer.status, line["authz_code"]) == (200, "policy_matched")


def test_a_sidecar_asks_about_itself(world: World) -> None:
    """Over mTLS with its SVID, Envoy is answered about its own workload and refused about others."""
    assert world.code("asked", "open") == (200, "policy_matched")
    assert world.code("asked", "other") == (403, "asker_not_allowed")
