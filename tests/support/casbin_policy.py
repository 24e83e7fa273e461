"""Builders for Casbin policies and what they decide."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from authz.attributes import Attributes
from authz.casbin_policy import (
    AdapterFactory,
    CasbinDecision,
    CasbinPolicies,
    CasbinPolicy,
    compile_casbin,
    load_sources,
)
from authz.destination import Destination
from authz.paths import PathNormalization
from garrison.documents import Document, parse, validate
from support.checks import check_request

HERE = Destination("products.default.svc.cluster.local", "default", labels={"app": "products"})
ALLOW_OVERRIDE = "some(where (p.eft == allow))"
ALLOW_AND_DENY = "some(where (p.eft == allow)) && !some(where (p.eft == deny))"
THREE_TERMS = '["request.headers[x-sub]", "request.headers[x-obj]", "request.headers[x-act]"]'
ACL = "r.sub == p.sub && r.obj == p.obj && r.act == p.act"


def model(
    matcher: str = ACL,
    *,
    request: str = "sub, obj, act",
    policy: str = "sub, obj, act",
    effect: str = ALLOW_OVERRIDE,
    roles: str = "",
) -> str:
    """Return a model's text; `roles` is the content of `[role_definition]`."""
    section = f"[role_definition]\n{roles}\n" if roles else ""
    return (
        f"[request_definition]\nr = {request}\n[policy_definition]\np = {policy}\n{section}"
        f"[policy_effect]\ne = {effect}\n[matchers]\nm = {matcher}\n"
    )


def document(
    model_text: str,
    rows: str,
    request: str = THREE_TERMS,
    *,
    name: str = "c",
    namespace: str = "default",
    labels: str = "{}",
) -> str:
    """Return a `CasbinPolicy` with everything inline; the model starts in line 8."""
    return (
        "apiVersion: garrison.dev/v1alpha1\n"
        "kind: CasbinPolicy\n"
        f"metadata: {{name: {name}, namespace: {namespace}}}\n"
        "spec:\n"
        f"  selector: {{matchLabels: {labels}}}\n"
        f"  request: {request}\n"
        f"  model: |\n{textwrap.indent(model_text, '    ')}"
        f"  policy: |\n{textwrap.indent(rows.strip() + chr(10), '    ')}---\n"
    )


def compiled(
    text: str,
    file: str = "p.yaml",
    adapters: Mapping[str, AdapterFactory] | None = None,
    max_cached: int | None = None,
) -> tuple[CasbinPolicies | None, list[str]]:
    """Return the policies in `text` and every diagnostic, printed."""
    documents, problems = parse(text.encode(), file)
    loaded: list[tuple[CasbinPolicy, Document]] = []
    for one in documents:
        policy = validate(CasbinPolicy, one)
        if isinstance(policy, list):
            problems += policy
        else:
            loaded.append((policy, one))
    policies, more = compile_casbin(loaded, "istio-system", load_sources(loaded, adapters or {}))
    if problems:
        policies = None
    if policies is not None and max_cached is not None:
        policies = CasbinPolicies(policies.policies, "istio-system", max_cached)
    return policies, [str(problem) for problem in [*problems, *more]]


def policies_of(text: str, **options: Any) -> CasbinPolicies:
    """Return the policies in `text`, which must be right."""
    policies, problems = compiled(text, **options)
    assert problems == []
    assert policies is not None
    return policies


def attributes(
    destination: Destination = HERE, mode: PathNormalization = PathNormalization.BASE, **call: Any
) -> Attributes:
    """Return the attributes of a call."""
    return Attributes(check_request(**call).attributes, mode, destination)


def call_of(terms: Sequence[str]) -> Attributes:
    """Return a call whose terms, as in `THREE_TERMS`, are `terms`."""
    names = ("x-sub", "x-obj", "x-act")
    return attributes(headers=dict(zip(names, terms, strict=True)))


def decide(policies: CasbinPolicies, call: Attributes) -> CasbinDecision:
    """Return the decision for a call to `HERE`, which some policy must be for."""
    destination = call.destination or HERE
    decision = policies.check(policies.policies_for(destination), call)
    assert decision is not None
    return decision


def problems_of(text: str, **options: Any) -> list[str]:
    """Return the printed diagnostics of a text that must not compile."""
    policies, problems = compiled(text, **options)
    assert policies is None
    return problems
