"""`garrison new`: documents to start from. What it prints has been loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import yaml

from authz.policy.compile import MeshSettings, compile_policies
from authz.tools.options import fail, one_line
from garrison.documents import Severity, parse

_RBAC, _SECURITY = "rbac.istio.io/v1alpha1", "security.istio.io/v1"

_namespace = click.option("--namespace", default="default", show_default=True)


@click.group(epilog="\b\nExample:\n  garrison new role orders-reader --namespace shop --method GET")
def new() -> None:
    """Print a document to start from: a role, a binding, a policy or a token rule."""


@new.command(
    epilog="""\b
Example:
  garrison new role reader --namespace shop --service orders.shop.svc.cluster.local --method GET"""
)
@click.argument("name")
@_namespace
@click.option("--service", "services", multiple=True, help="repeatable; every one of the namespace if absent")
@click.option("--method", "methods", multiple=True, help="repeatable; any if absent")
@click.option("--path", "paths", multiple=True, help="such as /orders/*; repeatable; any if absent")
def role(
    name: str, namespace: str, services: Sequence[str], methods: Sequence[str], paths: Sequence[str]
) -> None:
    """Print a ServiceRole: what may be done."""
    rule = _present(services=services, methods=methods, paths=paths)
    _print(_RBAC, "ServiceRole", name, namespace, {"rules": [rule]})


@new.command(
    epilog="\b\nExample:\n  garrison new binding readers --namespace shop --role reader --user frontend"
)
@click.argument("name")
@_namespace
@click.option("--role", "role_name", required=True, help="the role of this namespace that is granted")
@click.option("--user", "users", multiple=True, help="a service account, a principal, or * for anybody")
@click.option("--group", "groups", multiple=True, help="a value of the claim `groups`")
def binding(name: str, namespace: str, role_name: str, users: Sequence[str], groups: Sequence[str]) -> None:
    """Print a ServiceRoleBinding: who may do it."""
    subjects = [{"user": user} for user in users] + [{"group": group} for group in groups]
    if not subjects:
        raise click.UsageError("give --user or --group; --user '*' is anybody")
    spec = {"roleRef": {"kind": "ServiceRole", "name": role_name}, "subjects": subjects}
    _print(_RBAC, "ServiceRoleBinding", name, namespace, spec)


@new.command(
    epilog="""\b
Example:
  garrison new policy orders --namespace shop --label app=orders --method GET \\
    --principal cluster.local/ns/shop/sa/frontend"""
)
@click.argument("name")
@_namespace
@click.option("--action", type=click.Choice(["ALLOW", "DENY", "AUDIT"]), default="ALLOW", show_default=True)
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="of the workloads it is for")
@click.option("--principal", "principals", multiple=True, help="who calls; repeatable")
@click.option("--source-namespace", "sources", multiple=True, help="where callers are; repeatable")
@click.option("--method", "methods", multiple=True, help="repeatable")
@click.option("--path", "paths", multiple=True, help="repeatable")
@click.option("--port", "ports", multiple=True, help="repeatable")
def policy(  # noqa: PLR0917 - what stands on the command line
    name: str,
    namespace: str,
    action: str,
    labels: Sequence[str],
    principals: Sequence[str],
    sources: Sequence[str],
    methods: Sequence[str],
    paths: Sequence[str],
    ports: Sequence[str],
) -> None:
    """Print an AuthorizationPolicy."""
    rule: dict[str, Any] = {}
    if source := _present(principals=principals, namespaces=sources):
        rule["from"] = [{"source": source}]
    if operation := _present(ports=ports, methods=methods, paths=paths):
        rule["to"] = [{"operation": operation}]
    spec = {**_selector(labels), "action": action, "rules": [rule]}
    _print(_SECURITY, "AuthorizationPolicy", name, namespace, spec)


@new.command(
    epilog="""\b
Example:
  garrison new jwt tokens --namespace shop --issuer https://login.example --jwks keys.json"""
)
@click.argument("name")
@_namespace
@click.option("--issuer", required=True, help="`iss` of the tokens")
@click.option("--jwks", required=True, type=click.Path(path_type=Path), help="file with its key set (JSON)")
@click.option("--audience", "audiences", multiple=True, help="repeatable; any if absent")
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="of the workloads it is for")
@click.option("--forward", is_flag=True, help="leave the token in the request")
def jwt(
    *,
    name: str,
    namespace: str,
    issuer: str,
    jwks: Path,
    audiences: Sequence[str],
    labels: Sequence[str],
    forward: bool,
) -> None:
    """Print a RequestAuthentication: whose tokens count."""
    try:
        keys = jwks.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{jwks}: {one_line(error)}")
    rule: dict[str, Any] = {"issuer": issuer, **_present(audiences=audiences), "jwks": keys}
    if forward:
        rule["forwardOriginalToken"] = True
    _print(_SECURITY, "RequestAuthentication", name, namespace, {**_selector(labels), "jwtRules": [rule]})


def _present(**lists: Sequence[str]) -> dict[str, list[str]]:
    return {name: list(values) for name, values in lists.items() if values}


def _selector(labels: Sequence[str]) -> dict[str, Any]:
    pairs = {}
    for label in labels:
        name, equals, value = label.partition("=")
        if not (name and equals):
            raise click.UsageError(f"`{label}` is not of the form NAME=VALUE")
        pairs[name] = value
    return {"selector": {"matchLabels": pairs}} if pairs else {}


def _print(version: str, kind: str, name: str, namespace: str, spec: dict[str, Any]) -> None:
    """Print a document that loads; end the process if it would not."""
    data = {
        "apiVersion": version,
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }
    text = yaml.safe_dump(data, sort_keys=False, width=100)
    documents, problems = parse(text.encode(), "<new>")
    if not problems:
        _, problems = compile_policies(documents, MeshSettings())
    wrong = [str(problem) for problem in problems if problem.severity is Severity.ERROR]
    if wrong:
        fail("\n".join(wrong))
    click.echo(text, nl=False)
