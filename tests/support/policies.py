"""Builders for AuthorizationPolicies, and for what their rules are tried on besides plain HTTP calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from envoy.service.auth.v3.external_auth_pb2 import CheckRequest

from authz.policy.compile import MeshSettings, compile_policies
from garrison.documents import parse
from support.checks import SERVICE, check_request
from support.tokens import Authentication, ed_signer


def policy(
    rules: str,
    action: str = "ALLOW",
    *,
    name: str = "p",
    namespace: str = "default",
    spec: str = "",
    annotations: str = "{}",
) -> str:
    """Return an AuthorizationPolicy with `rules` in YAML's flow style; `spec` holds further fields of it."""
    return f"""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: {name}, namespace: {namespace}, annotations: {annotations}}}
spec: {{action: {action}, rules: {rules}{", " + spec if spec else ""}}}
---
"""


def source(fields: str, action: str = "ALLOW") -> str:
    """Return a policy whose one rule has one source."""
    return policy(f"[{{from: [{{source: {fields}}}]}}]", action)


def operation(fields: str, action: str = "ALLOW") -> str:
    """Return a policy whose one rule has one operation."""
    return policy(f"[{{to: [{{operation: {fields}}}]}}]", action)


def when(key: str, values: str, action: str = "ALLOW", spelled: str = "values") -> str:
    """Return a policy whose one rule has one condition."""
    return policy(f'[{{when: [{{key: "{key}", {spelled}: {values}}}]}}]', action)


def tokens(namespace: str = "default") -> str:
    """Return the RequestAuthentication that takes the tokens of `with_token`."""
    return str(Authentication(ed_signer().jwks(), namespace=namespace))


def with_token(claims: Mapping[str, Any], **request: Any) -> Any:
    """Return a call with a verified token that has `claims`."""
    headers = {"authorization": f"Bearer {ed_signer().token(dict(claims))}", **request.pop("headers", {})}
    return check_request(headers=headers, **request)


def connection(
    *,
    source: str = "",
    sni: str = "",
    port: int = 9080,
    source_ip: str = "10.0.0.1",
    service: str | None = SERVICE,
    extensions: Mapping[str, str] | None = None,
) -> Any:
    """Return what Envoy's network filter sends for a connection: no request at all."""
    request = CheckRequest()
    context = request.attributes
    context.source.principal = source
    context.source.address.socket_address.address = source_ip
    context.destination.address.socket_address.address = "10.0.0.2"
    context.destination.address.socket_address.port_value = port
    if sni:
        context.tls_session.sni = sni
    if service is not None:
        context.context_extensions["destination.service"] = service
    for key, value in (extensions or {}).items():
        context.context_extensions[key] = value
    return request


def problems_of(text: str, mesh: MeshSettings | None = None) -> list[str]:
    """Return the diagnostics of `text`, printed."""
    documents, problems = parse(text.encode(), "p.yaml")
    _, more = compile_policies(documents, mesh or MeshSettings())
    return [str(problem) for problem in [*problems, *more]]
