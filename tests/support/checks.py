"""Builders for policies, CheckRequests and decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse

from authz.attributes import Attributes
from authz.authn.credentials import Inquiry
from authz.authn.peers import FederatedDomain
from authz.decision import Decision, Outcome
from authz.environment import OFFLINE, Environment
from authz.pipeline import Charge, Delegation, decide, undecided_offline
from authz.policy.compile import MeshSettings
from authz.service import Authorization, DecisionLog, DestinationResolver
from authz.snapshot import Snapshot, build_snapshot
from garrison.documents import parse
from garrison.transport import Call, Peer

SERVICE = "products.default.svc.cluster.local"
NOW = 1_800_000_000.0
CALL = Call(Peer("test"), ())


def principal(account: str, namespace: str = "default", trust_domain: str = "cluster.local") -> str:
    """Return the SPIFFE ID that Envoy reports for a service account."""
    return f"spiffe://{trust_domain}/ns/{namespace}/sa/{account}"


def federated(*names: str) -> MeshSettings:
    """Return a mesh that takes peers of these trust domains, besides its own."""
    return MeshSettings(federated_trust_domains=tuple(map(FederatedDomain.parse, names)))


def check_request(
    *,
    source: str = "",
    method: str = "GET",
    path: str = "/",
    headers: Mapping[str, str] | None = None,
    raw_headers: Sequence[tuple[str, bytes]] = (),
    service: str | None = SERVICE,
    extensions: Mapping[str, str] | None = None,
    host: str = "products",
    source_ip: str = "10.0.0.1",
) -> Any:
    """Return a CheckRequest as Envoy sends it; `service=None` names no destination."""
    request = CheckRequest()
    context = request.attributes
    context.source.principal = source
    context.source.address.socket_address.address = source_ip
    context.destination.address.socket_address.address = "10.0.0.2"
    context.destination.address.socket_address.port_value = 9080
    http = context.request.http
    http.method, http.path, http.host, http.protocol = method, path, host, "HTTP/1.1"
    for name, value in (headers or {}).items():
        http.headers[name] = value
    for name, raw in raw_headers:
        line = http.header_map.headers.add()
        line.key, line.raw_value = name, raw
    if service is not None:
        context.context_extensions["destination.service"] = service
    for name, value in (extensions or {}).items():
        context.context_extensions[name] = value
    return request


def snapshot(text: str, mesh: MeshSettings | None = None) -> Snapshot:
    """Return the compiled snapshot of the policies in `text`."""
    documents, problems = parse(text.encode(), "policy.yaml")
    assert problems == []
    return build_snapshot(documents, mesh or MeshSettings(), [text.encode()])


def decide_on(policies: Snapshot | str, request: Any, now: float = NOW) -> Decision:
    """Return the decision for `request`."""
    result = result_on(policies, request, now)
    return result.decision if isinstance(result, Outcome) else undecided_offline(result)


def outcome_on(
    policies: Snapshot | str, request: Any, now: float = NOW, environment: Environment = OFFLINE
) -> Outcome:
    """Return what `request` comes to, which nobody else has to be asked about."""
    result = result_on(policies, request, now, environment)
    assert isinstance(result, Outcome)
    return result


def result_on(
    policies: Snapshot | str, request: Any, now: float = NOW, environment: Environment = OFFLINE
) -> Outcome | Delegation | Inquiry | Charge:
    """Return what the pipeline makes of `request`."""
    compiled = snapshot(policies) if isinstance(policies, str) else policies
    context = request.attributes
    destination = DestinationResolver().resolve(context.context_extensions, context.request.http.host, CALL)
    applying = compiled.policies_for(destination) if destination is not None else None
    mode = applying.path_normalization if applying is not None else compiled.mesh.path_normalization
    attributes = Attributes(context, mode, destination, request.SerializeToString())
    return decide(applying, attributes, lambda: now, environment)


def answer(text: str, **request: Any) -> Any:
    """Return the CheckResponse of a service with the policies in `text` to a call."""
    service = Authorization(DestinationResolver(), lambda: NOW, DecisionLog.NONE)
    service.use(snapshot(text))
    written = service.check(check_request(**request).SerializeToString(), CALL)
    assert isinstance(written, bytes)
    return CheckResponse.FromString(written)


def role(rules: str, subjects: str = '[{user: "*"}]', name: str = "r", namespace: str = "default") -> str:
    """Return a ServiceRole with `rules` and a binding to `subjects`, both in YAML's flow style."""
    return f"""
apiVersion: rbac.istio.io/v1alpha1
kind: ServiceRole
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{rules: {rules}}}
---
apiVersion: rbac.istio.io/v1alpha1
kind: ServiceRoleBinding
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  roleRef: {{kind: ServiceRole, name: {name}}}
  subjects: {subjects}
---
"""
