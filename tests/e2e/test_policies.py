"""Every kind of policy, decided by a real `garrison serve` for a real Envoy in front of real upstreams.

One Envoy serves all tests. The header `x-to` chooses the route, the route names the destination
(`NAME.NAMESPACE.svc.cluster.local`), and each scenario has a namespace of its own.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent import futures
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
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
from support.quotas import quotas
from support.serving import PATIENCE_SECONDS, serving, write_settings
from support.tokens import Authentication, ed_signer, encode_part
from support.upstreams import EchoServer, served

from ca.authority import Authority, Hierarchy
from ca.keys import new_private_key, private_key_pem
from garrison.identity import SpiffeId, TrustDomain

CALLER = "cluster.local/ns/default/sa/caller"
GRPC_PATH = "/e2e.Echo/Echo"
# Where TCP connections go: a listener for each, with the name of its namespace.
TCP = ("tcp-ip", "tcp-port", "tcp-other-port", "tcp-http-allow", "tcp-http-deny", "tcp-nowhere")
DESTINATIONS = (
    "a.deny",
    "a.allow",
    "a.custom-ok",
    "a.custom-down",
    "a.custom-open",
    "a.denier",
    "a.quota",
    "a.lists",
    "a.casbin",
    "a.shaped",
    "a.marked",
    "a.tokens",
)

# ------------------------------------------------------------------------------------------------ policies

CASBIN = """
apiVersion: garrison.dev/v1alpha1
kind: CasbinPolicy
metadata: {name: orders, namespace: casbin}
spec:
  request:
  - {attribute: "request.headers[x-user]", prefix: "user:"}
  - request.path
  - request.method
  model: |
    [request_definition]
    r = sub, obj, act
    [policy_definition]
    p = sub, obj, act, eft
    [role_definition]
    g = _, _
    [policy_effect]
    e = some(where (p.eft == allow)) && !some(where (p.eft == deny))
    [matchers]
    m = g(r.sub, p.sub) && keyMatch2(r.obj, p.obj) && r.act == p.act
  policy: |
    p, role:clerk, /orders/:id, GET, allow
    p, user:bob, /orders/7, GET, deny
    g, user:ann, role:clerk
    g, user:bob, role:clerk
---
"""
QUOTA = policy("[{to: [{operation: {methods: [GET, POST]}}]}]", namespace="quota") + quotas(
    "maxAmount: 5, validDuration: 8760h",
    dimensions="""{user: 'request.headers["x-user"]'}""",
    services="[{name: a, namespace: quota}]",
)
RESPONSES = """
apiVersion: garrison.dev/v1alpha1
kind: ResponsePolicy
metadata: {name: ours, namespace: custom-ok}
spec: {allowed: {requestHeaders: [{name: x-both, value: ours}]}}
---
apiVersion: garrison.dev/v1alpha1
kind: ResponsePolicy
metadata: {name: shaping, namespace: shaped}
spec:
  allowed:
    requestHeaders:
    - {name: x-caller, value: "${source.principal}"}
    - {name: x-subject, value: "${request.auth.claims[sub]}"}
    - {name: x-debug, value: "", action: REMOVE}
    responseHeaders:
    - {name: x-checked-by, value: garrison}
    setParameters: {caller: "${source.principal}", who: "a&b=c d"}
    removeParameters: [debug]
    metadata: {caller: "${source.principal}"}
  denied:
  - forStatus: [403]
    status: 451
    contentType: application/json
    body: '{"error": "${reason}"}'
    headers: [{name: x-help, value: "ask ${destination.namespace}"}]
---
"""


def mixer(lists_url: str) -> str:
    """Return Mixer rules: one that denies, one with two lists, one that changes headers."""
    return f"""
apiVersion: config.istio.io/v1alpha2
kind: denier
metadata: {{name: refuse, namespace: denier}}
spec: {{status: {{code: 7, message: Not today}}}}
---
apiVersion: config.istio.io/v1alpha2
kind: checknothing
metadata: {{name: nothing, namespace: denier}}
spec:
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {{name: deny-tests, namespace: denier}}
spec:
  match: (request.headers["x-test"] | "") == "yes"
  actions: [{{handler: refuse.denier, instances: [nothing.checknothing]}}]
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {{name: headers, namespace: denier}}
spec:
  match: request.method == "GET"
  requestHeaderOperations:
  - {{name: x-replaced, values: ['"by mixer"']}}
  - {{name: x-appended, values: ['"last"'], operation: APPEND}}
  - {{name: x-removed, operation: REMOVE}}
  responseHeaderOperations:
  - {{name: x-answer, values: ['"from mixer"']}}
---
apiVersion: config.istio.io/v1alpha2
kind: listchecker
metadata: {{name: fetched, namespace: lists}}
spec: {{providerUrl: "{lists_url}", overrides: [always], entryType: CASE_INSENSITIVE_STRINGS}}
---
apiVersion: config.istio.io/v1alpha2
kind: listentry
metadata: {{name: client, namespace: lists}}
spec: {{value: 'request.headers["x-client"] | ""'}}
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {{name: known-clients, namespace: lists}}
spec:
  actions: [{{handler: fetched.listchecker, instances: [client.listentry]}}]
---
"""


def policies(ports: dict[str, int], lists_url: str) -> str:
    """Return what the server decides by; `ports` are those of Envoy's listeners."""
    tokens = ed_signer().jwks()
    gates = [
        # Without an ALLOW policy, what no DENY matches goes through.
        policy(
            "[{to: [{operation: {paths: [/admin, /admin/*, '/tenants/{*}/secrets']}}]},"
            " {to: [{operation: {hosts: [forbidden.example]}}]},"
            " {when: [{key: 'request.headers[x-role]', values: [blocked]}]},"
            " {when: [{key: 'request.headers[user-agent]', values: [bad-robot]}]}]",
            "DENY",
            name="gate",
            namespace="deny",
        ),
        policy(
            "[{to: [{operation: {methods: [GET], hosts: ['files.example:8080'], paths: ['/files/{*}/meta']}}],"
            " when: [{key: 'request.headers[x-api]', values: [v1, v2]}]}]",
            namespace="allow",
        ),
        policy("[{from: [{source: {ipBlocks: [127.0.0.2]}}]}]", namespace="tcp-ip"),
        policy(
            f"[{{to: [{{operation: {{ports: ['{ports['tcp-port']}']}}}}]}}]",
            name="port",
            namespace="istio-system",
            spec="selector: {matchLabels: {gate: port}}",
        ),
        policy("[{when: [{key: connection.sni, values: [good.example]}]}]", namespace="tcp-tls"),
        policy("[{to: [{operation: {methods: [GET]}}]}]", namespace="tcp-http-allow"),
        policy("[{to: [{operation: {paths: [/admin]}}]}]", "DENY", namespace="tcp-http-deny"),
        *(
            policy("[{}]", "CUSTOM", namespace=f"custom-{name}", spec=f"provider: {{name: {provider}}}")
            for name, provider in (("ok", "second"), ("down", "down"), ("open", "down-open"))
        ),
        policy(
            "[{to: [{operation: {paths: [/public, /e2e.Echo/Echo]}}]},"
            f" {{from: [{{source: {{principals: ['{CALLER}']}}}}]}}]",
            namespace="shaped",
        ),
        policy("[{to: [{operation: {paths: [/watched]}}]}]", "AUDIT", name="watch", namespace="marked"),
        policy(
            "[{to: [{operation: {paths: [/watched]}}]}]",
            "DENY",
            name="tried",
            namespace="marked",
            annotations='{istio.io/dry-run: "true"}',
        ),
        policy("[{to: [{operation: {paths: [/admin]}}]}]", "DENY", name="gate", namespace="marked"),
        policy("[{from: [{source: {requestPrincipals: ['*']}}]}]", namespace="tokens"),
    ]
    authentications = [
        str(Authentication(tokens, audiences=("shop",), namespace="tokens")),
        str(Authentication(tokens, namespace="shaped")),
    ]
    return "".join([*gates, *authentications, CASBIN, RESPONSES, mixer(lists_url), QUOTA])


# What the second server says about calls to `custom-ok`.
SECOND = (
    policy("[{to: [{operation: {paths: [/secret]}}]}]", "DENY", namespace="custom-ok")
    + """
apiVersion: garrison.dev/v1alpha1
kind: ResponsePolicy
metadata: {name: second, namespace: custom-ok}
spec:
  allowed:
    requestHeaders:
    - {name: x-second, value: "asked about ${request.path}"}
    - {name: x-both, value: second}
    setParameters: {second: "a/b"}
  denied:
  - {status: 418, body: "the second says no", headers: [{name: x-second, value: "no"}]}
"""
)

# ----------------------------------------------------------------------------------------------- upstreams


class _Upstream(BaseHTTPRequestHandler):
    """Answers with what arrived; `/list` is a list for Mixer."""

    protocol_version = "HTTP/1.1"
    seen: list[str]

    def do_GET(self) -> None:
        """Answer any call."""
        self.seen.append(self.headers.get("x-request-id", ""))
        body = json.dumps({"target": self.requestline.split(" ")[1], "headers": self.headers.items()})
        if self.path == "/list":
            body = "gold\nsilver\n"
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - the names that http.server looks for

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""


@contextmanager
def grpc_upstream() -> Iterator[int]:
    """Run a gRPC server that sends back what it gets; yields its port."""
    server = grpc.server(futures.ThreadPoolExecutor(2))
    echo: Any = grpc.unary_unary_rpc_method_handler(lambda message, _: message)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("e2e.Echo", {"Echo": echo}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


# --------------------------------------------------------------------------------------------------- Envoy


def http_filter(log: Path) -> dict[str, Any]:
    """Return the connection manager that sidecars have, with a route for each destination."""
    access_log = fragment("access_log", access_log_path=str(log))
    line = access_log["typed_config"]["log_format"]["json_format"]
    for name in ("code", "audit", "shadow_engine_result", "shadow_effective_policy_id", "caller"):
        line[f"authz_{name}"] = f"%DYNAMIC_METADATA(envoy.filters.http.ext_authz:{name})%"
    routes = []
    for destination in DESTINATIONS:
        for to_grpc in (True, False):
            extensions = {"destination.service": f"{destination}.svc.cluster.local"}
            to = {"name": "x-to", "string_match": {"exact": destination}}
            match = {"prefix": "/", "headers": [to], **({"grpc": {}} if to_grpc else {})}
            route = fragment("inbound_route", match=match, rate_limits=[], destination=extensions)
            route["route"]["cluster"] = "grpc_upstream" if to_grpc else "application"
            routes.append(route)
    manager = fragment(
        "inbound_http",
        access_log=[access_log],
        http_filters=[fragment("ext_authz"), fragment("router")],
        routes=routes,
    )
    return {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}


def tcp_filters(namespace: str) -> list[dict[str, Any]]:
    """Return the network filter, which has no routes: gRPC metadata names the destination."""
    label = "&destination.labels[gate]=port" if "port" in namespace else ""
    service = {
        "envoy_grpc": {"cluster_name": "garrison_request"},
        "timeout": "5s",
        "initial_metadata": [
            {
                "key": "garrison-destination",
                "value": f"destination.service=a.{namespace}.svc.cluster.local{label}",
            }
        ]
        if namespace != "tcp-nowhere"
        else [],
    }
    name, echo = "envoy.filters.network.ext_authz", "envoy.filters.network.tcp_proxy"
    return [
        typed(
            "filters.network.ext_authz.v3.ExtAuthz",
            name,
            stat_prefix=namespace,
            transport_api_version="V3",
            grpc_service=service,
            include_tls_session=True,
        ),
        typed("filters.network.tcp_proxy.v3.TcpProxy", echo, stat_prefix=namespace, cluster="echo"),
    ]


class Identities:
    """A CA, the TLS of Envoy's listeners, and of a caller that it issued an identity."""

    def __init__(self, folder: Path) -> None:
        self._authority: Authority = Hierarchy.create(
            TrustDomain("cluster.local"), now=datetime.now(UTC)
        ).authority()
        (folder / "caller.pem").write_bytes(b"".join(self._issue(CALLER)))
        self.caller = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.caller.check_hostname = False  # identities are URIs
        self.caller.load_verify_locations(cadata=self._authority.bundle_pem().decode())
        self.caller.load_cert_chain(folder / "caller.pem")

    def _issue(self, name: str) -> tuple[bytes, bytes]:
        key = new_private_key()
        identity, now = SpiffeId.parse(f"spiffe://{name}"), datetime.now(UTC)
        svid = self._authority.issue(identity, key.public_key(), now=now, ttl=timedelta(hours=1))
        return svid.chain_pem, private_key_pem(key)

    def listener_context(self) -> dict[str, Any]:
        """Return the TLS of a listener that asks for certificates of this CA."""
        chain, key = self._issue("cluster.local/ns/default/sa/envoy")
        roots = {"inline_string": self._authority.bundle_pem().decode()}
        own = {
            "certificate_chain": {"inline_string": chain.decode()},
            "private_key": {"inline_string": key.decode()},
        }
        return {"tls_certificates": [own], "validation_context": {"trusted_ca": roots}}


@dataclass(frozen=True)
class World:
    """What runs, and calls to it."""

    envoy: Envoy
    identities: Identities
    access_log: Path
    seen: list[str]

    def get(
        self,
        to: str,
        target: str,
        *headers: tuple[str, str],
        host: str | None = "a.example",
        method: str = "GET",
        mtls: bool = False,
    ) -> Answer:
        """Make a call to a destination; see that the upstream saw it only if it was let through."""
        request_id = str(uuid.uuid4())
        lines = [*([("host", host)] if host else []), ("x-to", to), ("x-request-id", request_id), *headers]
        port = self.envoy.ports["https" if mtls else "http"]
        answer = call(port, target, lines, method=method, tls=self.identities.caller if mtls else None)
        denied = answer.header("grpc-status") is not None
        assert (request_id in self.seen) == (answer.status == 200 and not denied)
        return answer

    def logged(self, to: str, target: str, *headers: tuple[str, str]) -> dict[str, Any]:
        """Make a call and return what Envoy's access log says of it."""
        request_id = str(uuid.uuid4())
        lines = [("host", "a"), ("x-to", to), ("x-request-id", request_id), *headers]
        call(self.envoy.ports["http"], target, lines)
        (line,) = log_lines(self.access_log, request_id)
        return line

    def echoed(self, to: str, source: str = "127.0.0.1", sni: str | None = None) -> bytes:
        """Send `ping` over TCP, over TLS with a server name; return what comes back: nothing if refused."""
        address = ("127.0.0.1", self.envoy.ports[to])
        with socket.create_connection(address, PATIENCE_SECONDS, (source, 0)) as plain:
            wrapped = self.identities.caller.wrap_socket(plain, server_hostname=sni) if sni else plain
            with wrapped as connection:
                connection.sendall(b"ping")
                try:
                    return connection.recv(4)
                except (ConnectionResetError, ssl.SSLError):
                    return b""

    def grpc(self, to: str, *metadata: tuple[str, str]) -> bytes:
        """Make a gRPC call through Envoy."""
        with grpc.insecure_channel(f"127.0.0.1:{self.envoy.ports['http']}") as channel:
            echo: Any = channel.unary_unary(GRPC_PATH)
            answer: bytes = echo(b"ping", metadata=(("x-to", to), *metadata), timeout=PATIENCE_SECONDS)
        return answer


def upstream_headers(answer: Answer) -> dict[str, list[str]]:
    """Return the header lines that the upstream saw."""
    found: dict[str, list[str]] = {}
    for name, value in json.loads(answer.body)["headers"]:
        found.setdefault(name.lower(), []).append(value)
    return found


def target_seen(answer: Answer) -> str:
    """Return the request target that the upstream saw."""
    target: str = json.loads(answer.body)["target"]
    return target


def token(**changes: Any) -> tuple[str, str]:
    """Return the header line with a good token, `changes` apart."""
    claims = {"exp": time.time() + 3600, "aud": "shop", **changes}
    return "authorization", f"Bearer {ed_signer().token(claims)}"


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Yield everything, running; it ends with the tests."""
    # pytest's own folders are too deep for the paths of Unix sockets.
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="garrison-e2e-")))
        seen: list[str] = []
        handler = type("Upstream", (_Upstream,), {"seen": seen})
        http_port = stack.enter_context(served(ThreadingHTTPServer(("127.0.0.1", 0), handler)))
        echo_port = stack.enter_context(served(EchoServer()))
        grpc_port = stack.enter_context(grpc_upstream())
        identities, access_log = Identities(folder), folder / "access.log"
        access_log.touch()
        manager, tls = http_filter(access_log), identities.listener_context()
        envoy = stack.enter_context(
            running_envoy(
                folder,
                [
                    listener("http", [manager]),
                    listener("https", [manager], tls),
                    listener("tcp-tls", tcp_filters("tcp-tls"), tls),
                    *(listener(name, tcp_filters(name)) for name in TCP),
                ],
                [
                    garrison_cluster(folder / "r.sock"),
                    cluster("application", http_port),
                    cluster("echo", echo_port),
                    cluster("grpc_upstream", grpc_port, http2=True),
                ],
            )
        )
        # The second server first: calls that come while it starts would be refused.
        for name, text in (
            ("second", SECOND),
            ("", policies(envoy.ports, f"http://127.0.0.1:{http_port}/list")),
        ):
            (folder / name).mkdir(exist_ok=True)
            settings = write_settings(folder / name, "" if name else providers(folder / "second" / "r.sock"))
            (folder / name / "policies" / "all.yaml").write_text(text)
            server = stack.enter_context(serving("--config", str(settings)))
            server.wait_for("ready")
        yield World(envoy, identities, access_log, seen)


def providers(second: Path) -> str:
    """Return the settings of three external authorizers; two of them are not there."""
    nobody = second.parent / "nobody.sock"
    return f"""
ext_authz_providers:
- {{name: second, address: "unix://{second}", timeout: 5s}}
- {{name: down, address: "unix://{nobody}", timeout: 5s, status_on_error: 503}}
- {{name: down-open, address: "unix://{nobody}", timeout: 5s, fail_open: true}}
"""


# --------------------------------------------------------------------------------- 1. AuthorizationPolicy


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        ("/admin", []),
        ("/admin/users", []),
        ("/admin/", []),
        ("/admin?x=/public", []),
        ("/tenants/7/secrets", []),
        ("//admin", []),
        ("/admin//users", []),
        ("/./admin", []),
        ("/x/../admin", []),
        ("/x/%2e%2e/admin", []),
        ("/x/.%2E/admin", []),
        ("/x\\..\\admin", []),
        ("/%61dmin", []),
        ("/adm%69n", []),
        ("/admin;x=y", []),
        ("/admin;/users", []),
        ("/;x/admin", []),
        ("/x/..;/admin", []),
        ("/x/..;a=b/admin;c", []),
        ("/tenants/7;x/secrets;y", []),
        ("/tenants/a=b/secrets", []),
        ("http://a.example/admin", []),
        ("/", [("x-role", "blocked")]),
        ("/", [("X-ROLE", "blocked")]),
        ("/", [("x-role", "fine"), ("x-role", "blocked")]),
        ("/", [("x-role", "blocked"), ("x-role", "fine")]),
        ("/", [("x-role", "  blocked\t")]),
        # Of this header Envoy keeps one line: it joins what comes twice, with raw headers too.
        ("/", [("user-agent", "fine"), ("user-agent", "bad-robot")]),
    ],
)
def test_no_way_around_a_deny(world: World, target: str, headers: list[tuple[str, str]]) -> None:
    """What a DENY names is denied, however path and headers are written."""
    assert world.get("a.deny", target, *headers).status == 403


@pytest.mark.parametrize(
    "host",
    [
        "forbidden.example",
        "forbidden.example:8080",
        "FORBIDDEN.Example",
        "forbidden.example.",
        "forbidden.example.:80",
        "forbidden.example:",
        "user@forbidden.example",
    ],
)
def test_no_way_around_a_deny_by_host(world: World, host: str) -> None:
    """What a DENY says of a host holds for each spelling of it, also in an absolute request target."""
    assert world.get("a.deny", "/", host=host).status == 403
    # Envoy itself has no use for an empty port there.
    absolute = world.get("a.deny", f"http://{host}/", host="a.example").status
    assert absolute == (400 if host.endswith(":") else 403)


@pytest.mark.parametrize("hosts", [("a.example", "forbidden.example"), ("forbidden.example", "a.example")])
def test_two_hosts_are_both_looked_at(world: World, hosts: tuple[str, str]) -> None:
    """Two Host lines, of which a DENY names one, are denied."""
    assert world.get("a.deny", "/", *(("host", host) for host in hosts), host=None).status == 403


@pytest.mark.parametrize("target", ["/admin%2fusers", "/x%5c..%5cadmin", "/admin#x"])
def test_envoy_refuses_what_two_readers_would_read_differently(world: World, target: str) -> None:
    """Escaped slashes and fragments get no further than Envoy."""
    assert world.get("a.deny", target).status == 400


@pytest.mark.parametrize("target", ["/", "/administrator", "/public?next=/admin", "/tenants/7/8/secrets"])
def test_a_deny_denies_nothing_else(world: World, target: str) -> None:
    """What no DENY names goes through, under the path that was decided on."""
    answer = world.get("a.deny", target, ("x-role", "reader"), host="not.forbidden.example")
    assert (answer.status, target_seen(answer)) == (200, target)


def test_an_allow_allows_what_it_says(world: World) -> None:
    """Template, host with port, method and header have to match, and do, in any spelling of equal meaning."""
    for target in ("/files/7/meta", "//files/7/meta", "/files/x/../7/meta?q=1", "/files/%37/meta"):
        for api in ("v1", "v2"):
            assert world.get("a.allow", target, ("x-api", api), host="Files.Example:8080").status == 200


@pytest.mark.parametrize(
    ("target", "host", "method", "api"),
    [
        ("/files/7/8/meta", "files.example:8080", "GET", ["v1"]),
        ("/files//meta", "files.example:8080", "GET", ["v1"]),
        ("/files/7/meta/", "files.example:8080", "GET", ["v1"]),
        ("/files/7/meta;x=y", "files.example:8080", "GET", ["v1"]),
        ("/FILES/7/meta", "files.example:8080", "GET", ["v1"]),
        ("/files/7/meta", "files.example", "GET", ["v1"]),
        ("/files/7/meta", "files.example:80", "GET", ["v1"]),
        ("/files/7/meta", "files.example.:8080", "GET", ["v1"]),
        ("/files/7/meta", "files.example:8080", "DELETE", ["v1"]),
        ("/files/7/meta", "files.example:8080", "GET", []),
        ("/files/7/meta", "files.example:8080", "GET", ["v3"]),
        ("/files/7/meta", "files.example:8080", "GET", [""]),
        # The upstream may read either line.
        ("/files/7/meta", "files.example:8080", "GET", ["v1", "v3"]),
        ("/files/7/meta", "files.example:8080", "GET", ["v3", "v1"]),
        ("/files/7/meta", "files.example:8080", "GET", ["v1,v3"]),
    ],
)
def test_an_allow_allows_nothing_else(
    world: World, target: str, host: str, method: str, api: list[str]
) -> None:
    """A call that differs in one thing from what is allowed is denied."""
    headers = [("x-api", value) for value in api]
    answer = world.get("a.allow", target, *headers, host=host, method=method)
    assert (answer.status, answer.body) == (403, "RBAC: access denied")


def test_a_call_to_nobody_knows_where_is_not_answered(world: World) -> None:
    """A route of no destination reaches nobody."""
    assert world.get("b.nowhere", "/").status == 404


# ------------------------------------------------------------------------------- 2. connections without HTTP


def test_connections_by_source(world: World) -> None:
    """An ALLOW by source address lets that address connect, and closes the others' connections."""
    assert world.echoed("tcp-ip", source="127.0.0.2") == b"ping"
    assert world.echoed("tcp-ip") == b""


def test_connections_by_port(world: World) -> None:
    """An ALLOW by port is about the port that Envoy was reached at."""
    assert world.echoed("tcp-port") == b"ping"
    assert world.echoed("tcp-other-port") == b""


def test_connections_by_server_name(world: World) -> None:
    """An ALLOW by SNI is about the name in the TLS handshake, in any case."""
    assert world.echoed("tcp-tls", sni="good.example") == b"ping"
    assert world.echoed("tcp-tls", sni="GOOD.example") == b"ping"
    assert world.echoed("tcp-tls", sni="other.example") == b""


def test_policies_about_requests_for_connections(world: World) -> None:
    """Where there is no request, an ALLOW about requests allows nothing, and a DENY about them denies."""
    assert world.echoed("tcp-http-allow") == b""
    assert world.echoed("tcp-http-deny") == b""


def test_connections_to_nobody_knows_where(world: World) -> None:
    """A filter that names no destination gets no connection through."""
    assert world.echoed("tcp-nowhere") == b""


# ------------------------------------------------------------------------------------------------ 3. CUSTOM


def test_custom_allows_with_its_header(world: World) -> None:
    """What the external authorizer adds reaches the upstream in place of the caller's copy, but not of ours."""
    answer = world.get("a.custom-ok", "/open", ("x-second", "mine"), ("x-both", "mine"))
    assert (answer.status, target_seen(answer)) == (200, "/open?second=a%2Fb")
    assert upstream_headers(answer)["x-second"] == ["asked about /open"]
    assert upstream_headers(answer)["x-both"] == ["ours"]


def test_custom_denies_in_its_own_words(world: World) -> None:
    """Status, headers and body of a denial are the external authorizer's."""
    answer = world.get("a.custom-ok", "/secret")
    assert (answer.status, answer.body) == (418, "the second says no")
    assert answer.header("x-second") == "no"


def test_custom_without_an_answer(world: World) -> None:
    """An external authorizer that is not there denies, unless the operator said otherwise."""
    assert world.get("a.custom-down", "/").status == 503
    assert world.get("a.custom-open", "/").status == 200


# ------------------------------------------------------------------------------------------------- 4. Mixer


def test_a_denier_denies(world: World) -> None:
    """What matches the rule is denied, with the handler's code and message."""
    answer = world.get("a.denier", "/", ("x-test", "yes"))
    assert (answer.status, answer.body) == (403, "PERMISSION_DENIED:refuse.denier.denier:Not today")


def test_the_sixth_call_of_five_is_over_the_quota(world: World) -> None:
    """Calls that are denied for another reason use nothing; who is over is told so, and others are not."""
    user = ("x-user", uuid.uuid4().hex)
    assert [world.get("a.quota", "/", user, method="PUT").status for _ in range(3)] == [403] * 3
    answers = [world.get("a.quota", "/", user) for _ in range(6)]
    assert [answer.status for answer in answers] == [200] * 5 + [429]
    assert answers[5].body == "RESOURCE_EXHAUSTED:Quota is exhausted for: requestcount"
    assert int(answers[5].header("retry-after") or 0) > 0
    assert world.get("a.quota", "/", ("x-user", uuid.uuid4().hex)).status == 200


def test_a_grpc_caller_over_its_quota(world: World) -> None:
    """Envoy makes UNAVAILABLE of 429; the caller is told RESOURCE_EXHAUSTED."""
    user = ("x-user", uuid.uuid4().hex)
    assert [world.get("a.quota", "/", user).status for _ in range(5)] == [200] * 5
    answer = world.get("a.quota", GRPC_PATH, ("content-type", "application/grpc"), user, method="POST")
    assert (answer.status, answer.header("grpc-status")) == (200, "8")


def test_header_operations_reach_the_upstream(world: World) -> None:
    """Headers are replaced, appended to and removed on the way, and added to the answer."""
    sent = [("x-replaced", "a"), ("x-replaced", "b"), ("x-appended", "first"), ("x-removed", "a")]
    answer = world.get("a.denier", "/", *sent, ("x-removed", "b"))
    seen = upstream_headers(answer)
    assert seen["x-replaced"] == ["by mixer"]
    assert ",".join(seen["x-appended"]) == "first,last"
    assert "x-removed" not in seen
    assert answer.header("x-answer") == "from mixer"


@pytest.mark.parametrize("client", ["gold", "SILVER", "always"])
def test_a_list_lets_its_entries_in(world: World, client: str) -> None:
    """Entries of a list that was fetched, and of its overrides, pass."""
    assert world.get("a.lists", "/", ("x-client", client)).status == 200


@pytest.mark.parametrize("clients", [("bronze",), (), ("",), ("gold", "bronze"), ("bronze", "gold")])
def test_a_list_keeps_others_out(world: World, clients: tuple[str, ...]) -> None:
    """What is not on the list is denied, and so is a header that says two things."""
    assert world.get("a.lists", "/", *(("x-client", client) for client in clients)).status >= 400


# ------------------------------------------------------------------------------------------------ 5. Casbin


@pytest.mark.parametrize(
    ("user", "path", "status"),
    [
        ("ann", "/orders/7", 200),
        ("ann", "//orders/7?x", 200),
        ("bob", "/orders/8", 200),
        ("bob", "/orders/7", 403),
        ("bob", "/orders//7", 403),
        ("bob", "/orders/%37", 403),
        ("eve", "/orders/7", 403),
        ("ann", "/orders/7/8", 403),
        ("role:clerk", "/orders/7", 403),
    ],
)
def test_casbin_decides(world: World, user: str, path: str, status: int) -> None:
    """The rows of a CasbinPolicy decide, on the path that the upstream gets."""
    assert world.get("a.casbin", path, ("x-user", user)).status == status


def test_casbin_without_a_subject(world: World) -> None:
    """A caller who does not say who they are, or says it twice, is denied."""
    assert world.get("a.casbin", "/orders/7").status == 403
    assert world.get("a.casbin", "/orders/7", ("x-user", "ann"), ("x-user", "bob")).status == 403


# ---------------------------------------------------------------------------------------- 6. ResponsePolicy


def test_headers_tell_the_upstream_who_calls(world: World) -> None:
    """The identity replaces every copy that the caller sent, and what is absent is removed."""
    sent = [("x-caller", "admin"), ("X-Caller", "root"), ("x-subject", "admin"), ("x-debug", "1")]
    seen = upstream_headers(world.get("a.shaped", "/", *sent, mtls=True))
    assert seen["x-caller"] == [CALLER]
    assert not {"x-subject", "x-debug"} & seen.keys()


def test_an_absent_identity_is_no_header(world: World) -> None:
    """Without an identity no copy of the header gets through; a token gives the other one."""
    sent = [("x-caller", "admin"), ("x-caller", "root"), ("x-subject", "admin")]
    answer = world.get("a.shaped", "/public", *sent, token())
    seen = upstream_headers(answer)
    assert "x-caller" not in seen
    assert seen["x-subject"] == ["a"]
    assert "authorization" not in seen
    assert answer.header("x-checked-by") == "garrison"


def query_seen(answer: Answer) -> list[str]:
    """Return the query parameters that the upstream saw, as they arrived."""
    path, _, query = target_seen(answer).partition("?")
    assert path == "/public"
    return query.split("&")


ENCODED_CALLER = CALLER.replace("/", "%2F")


@pytest.mark.parametrize(
    ("query", "mtls", "expected"),
    [
        ("caller=admin&debug=1&keep=%32&who=me&debug=3", True, ["keep=%32", f"caller={ENCODED_CALLER}"]),
        ("%63aller=admin&d%65bug=1;keep=2", True, ["keep=2", f"caller={ENCODED_CALLER}"]),
        # Who has no identity does not get one by saying so.
        ("caller=admin&keep=2;caller=root", False, ["keep=2"]),
        ("", False, []),
    ],
)
def test_query_parameters(world: World, query: str, mtls: bool, expected: list[str]) -> None:
    """Parameters are set, encoded, in place of every copy of the caller's, or removed; others stay."""
    assert query_seen(world.get("a.shaped", f"/public?{query}", mtls=mtls)) == [
        *expected,
        "who=a%26b%3Dc%20d",
    ]


def test_a_token_in_the_query_stays_with_envoy(world: World) -> None:
    """A token that came as a query parameter is taken out of it."""
    bearer = token()[1].removeprefix("Bearer ")
    answer = world.get("a.tokens", f"/x?a=%2F&access_token={bearer}&b=2")
    assert (answer.status, target_seen(answer)) == (200, "/x?a=%2F&b=2")


def test_the_denial_page(world: World) -> None:
    """A denial has the status, headers and body that the policy gives it."""
    answer = world.get("a.shaped", "/private")
    assert (answer.status, answer.body) == (451, '{"error": "RBAC: access denied"}')
    assert answer.header("content-type") == "application/json"
    assert answer.header("x-help") == "ask shaped"


@pytest.mark.parametrize(
    ("to", "metadata", "code", "message"),
    [
        ("a.allow", [], grpc.StatusCode.PERMISSION_DENIED, "RBAC: access denied"),
        (
            "a.denier",
            [("x-test", "yes")],
            grpc.StatusCode.PERMISSION_DENIED,
            "PERMISSION_DENIED:refuse.denier",
        ),
        ("a.casbin", [("x-user", "eve")], grpc.StatusCode.PERMISSION_DENIED, "RBAC: access denied"),
        ("a.tokens", [("authorization", "Bearer a.b.c")], grpc.StatusCode.UNAUTHENTICATED, ""),
        ("a.custom-down", [], grpc.StatusCode.UNAVAILABLE, ""),
    ],
)
def test_a_grpc_caller_gets_a_grpc_status(
    world: World, to: str, metadata: list[tuple[str, str]], code: grpc.StatusCode, message: str
) -> None:
    """A denial of a gRPC call is a gRPC status with its message, not a broken response."""
    with pytest.raises(grpc.RpcError) as caught:
        world.grpc(to, *metadata)
    error: Any = caught.value
    assert (error.code(), message in error.details()) == (code, True)
    # Not every client forgives another content type.
    raw = world.get(to, GRPC_PATH, ("content-type", "application/grpc"), *metadata, method="POST")
    assert raw.header("content-type") == "application/grpc"
    assert raw.header("grpc-status") == str(code.value[0])


def test_a_grpc_call_that_is_allowed(world: World) -> None:
    """A gRPC call goes through, and its answer comes back whole."""
    assert world.grpc("a.shaped") == b"ping"


# ---------------------------------------------------------------------------------------------- 7. access log


def test_the_access_log_says_why(world: World) -> None:
    """Decision, policy, rule, reason and snapshot of a denial are in Envoy's own access log."""
    line = world.logged("a.marked", "/admin")
    assert (line["code"], line["decision"], line["authz_code"]) == (403, "deny", "deny_matched")
    assert "marked/gate" in line["policy"]
    assert line["rule"] == 0
    assert line["reason"] == "AuthorizationPolicy marked/gate rule 0 denies it"
    assert re.fullmatch("[0-9a-f]{12}", line["snapshot"])
    assert line["authz_audit"] is None


def test_the_access_log_tells_audit_and_dry_runs(world: World) -> None:
    """An allowed call carries which AUDIT matched and what a dry run would have done."""
    line = world.logged("a.marked", "/watched")
    assert (line["code"], line["decision"]) == (200, "allow")
    assert "marked/watch" in line["authz_audit"]
    assert line["authz_shadow_engine_result"] == "denied"
    assert "marked/tried" in line["authz_shadow_effective_policy_id"]
    line = world.logged("a.marked", "/other")
    assert (line["authz_audit"], line["authz_shadow_engine_result"]) == (None, "allowed")


def test_metadata_of_a_response_policy_is_logged(world: World) -> None:
    """What a ResponsePolicy says as metadata can be logged; it is absent where the attribute is."""
    assert world.logged("a.shaped", "/public")["authz_caller"] is None


# ---------------------------------------------------------------------------------------------------- 8. JWT


def test_a_good_token(world: World) -> None:
    """A good token lets its bearer in, and stays with Envoy."""
    answer = world.get("a.tokens", "/", token())
    assert answer.status == 200
    assert "authorization" not in upstream_headers(answer)


@pytest.mark.parametrize(
    "bad",
    [
        token(exp=1_600_000_000),
        token(iss="https://stranger.example"),
        ("authorization", "Bearer a.b.c"),
        (
            "authorization",
            "Bearer " + ".".join(encode_part(part) for part in (b'{"alg":"none"}', b"{}", b"")),
        ),
    ],
    ids=["expired", "another issuer", "garbage", "none"],
)
def test_a_bad_token_is_challenged(world: World, bad: tuple[str, str]) -> None:
    """A bad token is answered 401, with a challenge that says what is wrong."""
    answer = world.get("a.tokens", "/", bad)
    assert answer.status == 401
    challenge = answer.header("www-authenticate")
    assert challenge is not None
    realm = "a.tokens.svc.cluster.local"
    assert challenge.startswith(f'Bearer realm="{realm}", error="invalid_token", error_description="')


def test_no_token_and_another_audience(world: World) -> None:
    """A token for somebody else and no token at all are refused, not challenged."""
    for headers in ([], [token(aud="bank")]):
        answer = world.get("a.tokens", "/", *headers)
        assert (answer.status, answer.header("www-authenticate")) == (403, None)
