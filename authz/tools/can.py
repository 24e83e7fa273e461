"""`garrison can`: one question, yes or no."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest

from authz.destination import destination_from_attributes
from authz.tools.options import FOUND, OK, fail, mesh_of, mesh_options, policies_option, snapshot_of
from authz.tools.requests import Vouched, explained, explanation_text
from garrison.identity import SCHEME, SpiffeId, TrustDomain


class _Pair(click.ParamType[tuple[str, str]]):
    name = "name=value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, equals, text = str(value).partition("=")
        if not (name and equals):
            self.fail(f"`{value}` is not of the form NAME=VALUE", param, ctx)
        return name, text


@click.command(
    epilog="""\b
USER is a service account of the service's namespace (frontend), NAMESPACE/ACCOUNT, a principal
(cluster.local/ns/shop/sa/frontend), or - for a caller without an identity.

\b
Exit codes: 0 yes, 1 no, 2 the question or the policies cannot be used.

\b
Example:
  garrison can frontend GET /orders/1 --policies policies/ --service orders.shop.svc.cluster.local"""
)
@click.argument("user")
@click.argument("method")
@click.argument("path")
@policies_option
@click.option("--service", required=True, help="who is called")
@click.option("--namespace", default="", help="its namespace, unless its name says so")
@click.option("--label", "labels", type=_Pair(), multiple=True, help="a label of the workload; repeatable")
@click.option("--header", "headers", type=_Pair(), multiple=True, help="a header of the request; repeatable")
@click.option("--claim", "claims", type=_Pair(), multiple=True, help="a verified claim; twice is a list")
@click.option("--host", default="", help="the Host header; the service if not given")
@click.option("--ip", default="", help="the caller's address")
@click.option("--explain", is_flag=True, help="show every rule that was considered, and why not")
@mesh_options
def can(  # noqa: PLR0917 - what stands on the command line
    user: str,
    method: str,
    path: str,
    policies: tuple[Path, ...],
    service: str,
    namespace: str,
    labels: tuple[tuple[str, str], ...],
    headers: tuple[tuple[str, str], ...],
    claims: tuple[tuple[str, str], ...],
    host: str,
    ip: str,
    explain: bool,  # noqa: FBT001 - a flag
    **options: Any,
) -> None:
    """Say whether USER may call METHOD PATH of a service, and why."""
    mesh = mesh_of(options)
    named = {"destination.service": service, "destination.namespace": namespace}
    named |= {f"destination.labels[{name}]": value for name, value in labels}
    destination = destination_from_attributes(named)
    if destination is None:
        fail("--service is empty")
    try:
        principal = _principal(user, mesh.trust_domain, destination.namespace)
    except ValueError as error:
        fail(str(error))
    request = CheckRequest()
    context = request.attributes
    context.source.principal = principal
    if ip:
        context.source.address.socket_address.address = ip
    http = context.request.http
    http.method, http.path, http.host, http.protocol = method, path, host or service, "HTTP/1.1"
    for name, value in headers:
        http.header_map.headers.add(key=name.lower(), raw_value=value.encode())
    for name, value in named.items():
        if value:
            context.context_extensions[name] = value
    snapshot = snapshot_of(policies, mesh)
    vouched = Vouched(claims=_claims(claims) if claims else None)
    explanation = explained(snapshot, request, time.time(), vouched)
    decision = explanation.decision
    by = f"{decision.policy} rule {decision.rule} " if decision.allowed and decision.rule >= 0 else ""
    click.echo(f"{'yes' if decision.allowed else 'no'}: {by}{decision.reason}")
    if explain:
        click.echo(explanation_text(explanation))
    sys.exit(OK if decision.allowed else FOUND)


def _principal(user: str, trust_domain: TrustDomain, namespace: str) -> str:
    """Return the SPIFFE ID that Envoy would report for `user`, empty for none.

    Raises:
        ValueError: `user` names nobody that there can be.

    """
    if user == "-":
        return ""
    slashes = user.removeprefix(SCHEME).count("/")
    if slashes > 1 or user.startswith(SCHEME):
        return str(SpiffeId.parse(SCHEME + user.removeprefix(SCHEME)))
    where, _, account = user.rpartition("/")
    if not (where or namespace):
        raise ValueError(f"which namespace is `{user}` in? write NAMESPACE/{user} or give --namespace")
    return str(SpiffeId.workload(trust_domain, where or namespace, account))


def _claims(pairs: tuple[tuple[str, str], ...]) -> Mapping[str, Any]:
    """Return claims: texts, or lists of texts where a name comes twice."""
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}
