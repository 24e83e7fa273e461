"""What the benchmarks send: the demo's policies, and calls as the demo's Envoys would ask about them.

Deterministic but for the signing key of a run: the same messages in the same order every time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from envoy.service.ratelimit.v3.rls_pb2 import RateLimitRequest

from garrison.demo.mesh import example_folder
from garrison.demo.tokens import TOKEN_ISSUER, Tokens
from garrison.demo.topology import RATE_LIMIT_DOMAIN, full_name

CHECK = "/envoy.service.auth.v3.Authorization/Check"
HEALTH = "/grpc.health.v1.Health/Check"
SHOULD_RATE_LIMIT = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"

_PREFIX = "spiffe://cluster.local/ns/default/sa/"
_INGRESS = "istio-ingress-service-account"
_REVIEWS_VERSIONS = ("v2", "v3")
# Requests differ in id, path and user, as traffic does; after this many distinct ones they repeat.
ROUNDS = 50


@dataclass(frozen=True, slots=True)
class Ask:
    """One call of the mix; `email` is whose token it carries."""

    caller: str
    service: str
    path: str
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()
    email: str = ""
    allowed: bool = True


_DETAILS_VERSION = (("x-details-version", "v1"),)

# One page view after the other: 18 of 20 calls are allowed, 3 of 20 carry a JWT.
MIX = (
    Ask(_INGRESS, "productpage", "/productpage?u={round}"),
    Ask("bookinfo-productpage", "details", "/details/{round}", headers=_DETAILS_VERSION),
    Ask("bookinfo-productpage", "reviews", "/reviews/{round}"),
    Ask("bookinfo-reviews-v2", "ratings", "/ratings/{round}"),
    Ask(_INGRESS, "products", "/api/v1/products/{round}", email="a@foo.com"),
    Ask(_INGRESS, "productpage", "/productpage?u={round}"),
    Ask("bookinfo-productpage", "details", "/details/{round}", headers=_DETAILS_VERSION),
    Ask("bookinfo-productpage", "reviews", "/reviews/{round}"),
    Ask("bookinfo-reviews-v3", "ratings", "/ratings/{round}"),
    Ask("bookinfo-reviews-v1", "ratings", "/ratings/{round}", allowed=False),
    Ask("service-account-a", "products", "/api/v1/products/{round}"),
    Ask(_INGRESS, "productpage", "/login", method="POST"),
    Ask("bookinfo-productpage", "details", "/details/{round}", headers=_DETAILS_VERSION),
    Ask("bookinfo-productpage", "reviews", "/reviews/{round}"),
    Ask("bookinfo-reviews-v3", "ratings", "/ratings/{round}"),
    Ask(_INGRESS, "products", "/api/v1/products/{round}", email="a@foo.com"),
    Ask("bookinfo-productpage", "details", "/details/{round}", headers=_DETAILS_VERSION),
    Ask("bookinfo-productpage", "reviews", "/reviews/{round}"),
    Ask("bookinfo-reviews-v2", "ratings", "/ratings/{round}"),
    Ask(_INGRESS, "products", "/api/v1/products/{round}", email="b@foo.com", allowed=False),
)
DENIALS = tuple(ask for ask in MIX if not ask.allowed)


def describe(mix: Sequence[Ask]) -> str:
    """Return what a reader of the figures has to know about `mix`."""
    allowed = sum(ask.allowed for ask in mix)
    tokens = sum(bool(ask.email) for ask in mix)
    return (
        f"{allowed} of {len(mix)} calls allowed, {tokens} with a JWT, {ROUNDS * len(mix)} distinct requests"
    )


def check_requests(mix: Sequence[Ask], tokens: Tokens) -> list[bytes]:
    """Return the serialised `CheckRequest`s of `mix`, `ROUNDS` times over with what varies varied."""
    distinct = ROUNDS // 10
    signed = {ask.email: [tokens.sign(ask.email) for _ in range(distinct)] for ask in mix if ask.email}
    return [
        _check_request(
            ask, round_, round_ * len(mix) + place, signed[ask.email][round_ % distinct] if ask.email else ""
        )
        for round_ in range(ROUNDS)
        for place, ask in enumerate(mix)
    ]


def _check_request(ask: Ask, round_: int, number: int, token: str) -> bytes:
    path = ask.path.format(round=round_)
    message = CheckRequest()
    context = message.attributes
    context.source.principal = _PREFIX + ask.caller
    context.source.address.socket_address.address = "10.24.3.17"
    context.source.address.socket_address.port_value = 40_000 + number % 20_000
    context.destination.principal = _PREFIX + f"bookinfo-{ask.service}"
    context.destination.address.socket_address.address = "10.24.7.9"
    context.destination.address.socket_address.port_value = 9080
    context.request.time.seconds = 1_800_000_000 + number
    context.request.time.nanos = 123_456_000
    http = context.request.http
    http.id = str(8_000_000_000_000_000_000 + number)
    http.method, http.path, http.host, http.scheme = ask.method, path, ask.service, "https"
    http.protocol = "HTTP/2"
    # As Envoy with `encode_raw_headers`: the header map stays empty, values are bytes.
    for name, value in _headers(ask, path, number, token):
        line = http.header_map.headers.add()
        line.key, line.raw_value = name, value.encode()
    for name, value in _destination(ask.service).items():
        context.context_extensions[name] = value
    context.metadata_context.SetInParent()
    context.route_metadata_context.SetInParent()
    serialized: bytes = message.SerializeToString()
    return serialized


def _headers(ask: Ask, path: str, number: int, token: str) -> Iterator[tuple[str, str]]:
    yield ":authority", ask.service
    yield ":path", path
    yield ":method", ask.method
    yield ":scheme", "https"
    yield from BROWSER_HEADERS
    yield "x-request-id", f"6f1d7a2e-54b1-4c1e-9d39-0a62f0{number:06d}"
    yield "x-forwarded-proto", "https"
    yield "end-user", f"user-{number % ROUNDS}"
    yield from ask.headers
    if token:
        yield "authorization", f"Bearer {token}"


BROWSER_HEADERS = (
    ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"),
    ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
    ("accept-language", "en-GB,en;q=0.7,de;q=0.3"),
    ("accept-encoding", "gzip, deflate, br, zstd"),
    ("cache-control", "no-cache"),
    ("cookie", "session=eyJ1c2VyIjoiamFzb24ifQ.aBcDeFgHiJkLmNoPqRsTuVwXyZ; theme=dark"),
    ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
)


def _destination(service: str) -> dict[str, str]:
    app = "productpage" if service == "products" else service
    return {
        "destination.service": full_name(service),
        "destination.namespace": "default",
        "destination.labels[app]": app,
    }


def rate_limit_requests(users: int) -> list[bytes]:
    """Return a `RateLimitRequest` of the demo's ratings route for each of `users` users."""
    return [_rate_limit_request(f"user-{number}") for number in range(users)]


def _rate_limit_request(user: str) -> bytes:
    message = RateLimitRequest(domain=RATE_LIMIT_DOMAIN)
    message.descriptors.add().entries.add(key="user", value=user)
    serialized: bytes = message.SerializeToString()
    return serialized


def write_policies(folder: Path, tokens: Tokens) -> None:
    """Write the demo's policies below `folder`, trusting `tokens`, and a role that `bench_envoy` needs."""
    folder.mkdir(parents=True)
    for source in sorted((example_folder() / "policies").glob("*.yaml")):
        documents = list(yaml.safe_load_all(source.read_text(encoding="utf-8")))
        for document in documents:
            for rule in document["spec"].get("jwtRules", ()):
                if rule["issuer"] == TOKEN_ISSUER:
                    rule["jwks"] = tokens.jwks()
        (folder / source.name).write_text(yaml.safe_dump_all(documents), encoding="utf-8")
    (folder / "bench.yaml").write_text(_ANYONE, encoding="utf-8")


# Load comes to Envoy without a client certificate, so this service has a role for callers without identity.
OPEN_SERVICE = "bench.default.svc.cluster.local"
_ANYONE = f"""
apiVersion: rbac.istio.io/v1alpha1
kind: ServiceRole
metadata: {{name: bench-viewer, namespace: default}}
spec:
  rules:
  - services: ["{OPEN_SERVICE}"]
    methods: ["GET"]
    paths: ["/asked/*"]
---
apiVersion: rbac.istio.io/v1alpha1
kind: ServiceRoleBinding
metadata: {{name: anyone-views-bench, namespace: default}}
spec:
  subjects: [{{user: "*"}}]
  roleRef: {{kind: ServiceRole, name: bench-viewer}}
"""


class By(StrEnum):
    """What tells a role from the others of its service."""

    PATH_AND_CALLER = "exact path and caller"
    PATH = "exact path"
    PREFIX = "path prefix"
    SUFFIX = "path suffix"
    CALLER = "exact caller"


@dataclass(frozen=True, slots=True)
class Shape:
    """How many roles there are and over how many services they are spread.

    A role has one rule and one binding. What `by` does not name is open to any path or caller.
    """

    roles: int
    services: int
    by: By = By.PATH_AND_CALLER


def role_documents(shape: Shape) -> bytes:
    """Return the YAML of the roles and bindings of `shape`, in flow style."""
    return "\n---\n".join(map(json.dumps, role_data(shape))).encode()


def role_data(shape: Shape) -> Iterator[dict[str, Any]]:
    """Yield the roles and bindings of `shape`, as they are once their YAML is read."""
    for number in range(shape.roles):
        rule = {"services": [_service(shape, number)], "methods": ["GET"]}
        if shape.by is not By.CALLER:
            rule["paths"] = [_PATHS.get(shape.by, "/api/v1/item-{}").format(number)]
        user = f"account-{number}" if shape.by in _OF_ONE_CALLER else "*"
        metadata = {"name": f"role-{number}", "namespace": "default"}
        version = {"apiVersion": "rbac.istio.io/v1alpha1"}
        yield version | {"kind": "ServiceRole", "metadata": metadata, "spec": {"rules": [rule]}}
        yield version | {
            "kind": "ServiceRoleBinding",
            "metadata": metadata,
            "spec": {
                "subjects": [{"user": user}],
                "roleRef": {"kind": "ServiceRole", "name": metadata["name"]},
            },
        }


_OF_ONE_CALLER = frozenset({By.CALLER, By.PATH_AND_CALLER})
_PATHS = {By.PREFIX: "/api/v1/item-{}/*", By.SUFFIX: "*/item-{}"}


def _service(shape: Shape, number: int) -> str:
    return f"service-{number % shape.services}.default.svc.cluster.local"


def role_requests(shape: Shape, count: int) -> list[bytes]:
    """Return `count` different serialised `CheckRequest`s that roles of `shape`, evenly chosen, allow."""
    step = max(1, shape.roles // count)
    return [_role_request(shape, index * step % shape.roles, index) for index in range(count)]


def _role_request(shape: Shape, role: int, number: int) -> bytes:
    # The query is no part of what roles match.
    path = f"/api/v1/item-{role}" + ("/x" if shape.by is By.PREFIX else "") + f"?n={number}"
    caller = role if shape.by in _OF_ONE_CALLER else number
    return _check_request(
        Ask(f"account-{caller}", f"service-{role % shape.services}", path), number, number, ""
    )


def outcomes(mix: Sequence[Ask]) -> Mapping[str, float]:
    """Return the shares of allowed and denied calls that a right server answers `mix` with."""
    allowed = sum(ask.allowed for ask in mix) / len(mix)
    return {"allow": allowed, "deny": 1 - allowed}
