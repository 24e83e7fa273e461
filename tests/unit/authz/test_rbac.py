"""`rbac.istio.io/v1alpha1`: who may do what, and that absence never matches."""

from __future__ import annotations

from typing import Any

import pytest
from support.checks import SERVICE, check_request, decide_on, federated, principal, role, snapshot

from authz.decision import ReasonCode
from authz.policy.compile import MeshSettings
from garrison.identity import TrustDomain

ANY = '[{services: ["*"]}]'

# The role and the binding that every Istio 1.0 tutorial starts from.
PRODUCTS = """
apiVersion: "rbac.istio.io/v1alpha1"
kind: ServiceRole
metadata:
  name: products-viewer
  namespace: default
spec:
  rules:
  - services: ["products.default.svc.cluster.local"]
    methods: ["GET", "HEAD"]
---
apiVersion: "rbac.istio.io/v1alpha1"
kind: ServiceRoleBinding
metadata:
  name: test-binding-products
  namespace: default
spec:
  subjects:
  - user: "service-account-a"
  - user: "istio-ingress-service-account"
    properties:
      request.auth.claims[email]: "a@foo.com"
  roleRef:
    kind: ServiceRole
    name: "products-viewer"
"""


@pytest.mark.parametrize(
    ("source", "method", "allowed"),
    [
        (principal("service-account-a"), "GET", True),
        (principal("service-account-a"), "HEAD", True),
        (principal("service-account-a"), "POST", False),
        (principal("service-account-a"), "get", False),
        (principal("service-account-a", namespace="other"), "GET", False),
        (principal("service-account-a", trust_domain="other.local"), "GET", False),
        (principal("service-account-a") + "/x", "GET", False),
        (principal("service-account-b"), "GET", False),
        (principal("istio-ingress-service-account"), "GET", False),
        ("", "GET", False),
        ("service-account-a", "GET", False),
        ("spiffe://cluster.local/ns/default/sa/../sa/service-account-a", "GET", False),
        ("spiffe://CLUSTER.local/ns/default/sa/service-account-a", "GET", False),
    ],
)
def test_products_viewer(source: str, method: str, allowed: bool) -> None:
    """A bare user is a service account of the binding's namespace in our trust domain, and nobody else."""
    policies = snapshot(PRODUCTS, federated("other.local"))
    assert decide_on(policies, check_request(source=source, method=method)).allowed is allowed


def test_an_allowing_decision_names_document_rule_and_subject() -> None:
    """Operators see which document, rule and subject let a call through."""
    decision = decide_on(PRODUCTS, check_request(source=principal("service-account-a")))
    assert (decision.policy, decision.rule, decision.field) == (
        "ServiceRole default/products-viewer",
        0,
        "spec.rules[0]",
    )
    assert "ServiceRoleBinding default/test-binding-products spec.subjects[0]" in decision.reason


def test_a_denial_tells_the_nearest_miss() -> None:
    """The reason says how near the call came: the claim that is absent."""
    decision = decide_on(PRODUCTS, check_request(source=principal("istio-ingress-service-account")))
    assert "products-viewer rule 0: the rule matched, but no subject did" in decision.reason
    assert "request.auth.claims[email] is absent" in decision.reason
    assert decision.public == "RBAC: access denied"


def test_aliases_stand_for_the_trust_domain() -> None:
    """A bare user matches in every trust domain that is ours."""
    mesh = MeshSettings(trust_domain_aliases=(TrustDomain("old.local"),))
    request = check_request(source=principal("service-account-a", trust_domain="old.local"))
    assert decide_on(snapshot(PRODUCTS, mesh), request).allowed
    assert not decide_on(PRODUCTS, request).allowed


@pytest.mark.parametrize(
    ("user", "source", "allowed"),
    [
        ("*", "", True),
        ("cluster.local/ns/x/sa/y", principal("y", "x"), True),
        ("cluster.local/ns/x/sa/y", principal("y", "z"), False),
        ("cluster.local/ns/x/*", principal("y", "x"), True),
        ("cluster.local/ns/x/*", principal("y", "xx"), False),
        ("*/sa/y", principal("y", "x"), True),
        ("*/sa/y", "", False),
        ("*y", principal("y", "x"), True),
        ("spiffe://cluster.local/ns/x/sa/y", principal("y", "x"), False),
        ("other.local/ns/x/sa/y", principal("y", "x", "other.local"), True),
    ],
)
def test_users_with_a_slash_or_a_star_match_the_whole_principal(
    user: str, source: str, allowed: bool
) -> None:
    """`*` alone is anybody; other patterns compare the principal without its scheme."""
    policies = snapshot(role(ANY, f'[{{user: "{user}"}}]'), federated("other.local"))
    assert decide_on(policies, check_request(source=source)).allowed is allowed


@pytest.mark.parametrize(
    ("rule", "request_", "allowed"),
    [
        ('{services: ["products.default.svc.cluster.local"]}', {}, True),
        ('{services: ["prod*"]}', {}, True),
        ('{services: ["*.default.svc.cluster.local"]}', {}, True),
        ('{services: ["PRODUCTS.default.svc.cluster.local"]}', {}, True),
        ('{services: ["details.default.svc.cluster.local"]}', {}, False),
        ('{services: ["product*s"]}', {}, False),
        ("{}", {}, True),
        ('{paths: ["/a"]}', {"path": "/a"}, True),
        ('{paths: ["/a"]}', {"path": "/a?b=c"}, True),
        ('{paths: ["/a"]}', {"path": "/a#b"}, True),
        ('{paths: ["/a"]}', {"path": "/A"}, False),
        ('{paths: ["/a"]}', {"path": "/a/"}, False),
        ('{paths: ["/public/*"]}', {"path": "/public/../admin"}, False),
        ('{paths: ["/public/*"]}', {"path": "/public/%2e%2e/admin"}, False),
        ('{paths: ["*/end"]}', {"path": "/x/end"}, True),
        ('{paths: ["*/end"]}', {"path": "/x?y=/end"}, False),
        ('{paths: ["*"]}', {"path": ""}, False),
        ('{methods: ["*"]}', {"method": ""}, False),
        ('{methods: ["G*"]}', {}, True),
        (
            '{constraints: [{key: "request.headers[X-Key]", values: ["a", "b"]}]}',
            {"headers": {"x-key": "b"}},
            True,
        ),
        (
            '{constraints: [{key: "request.headers[x-key]", values: ["a"]}]}',
            {"headers": {"x-key": "A"}},
            False,
        ),
        (
            '{constraints: [{key: "request.headers[x-key]", values: ["a"]}]}',
            {"headers": {"x-key": "a,b"}},
            False,
        ),
        ('{constraints: [{key: "request.headers[x-key]", values: ["a"]}]}', {}, False),
        ('{constraints: [{key: "request.headers[x-key]", values: ["*"]}]}', {}, False),
        ('{constraints: [{key: "request.headers[x-key]", values: ["*"]}]}', {"headers": {"x-key": ""}}, True),
        (
            '{constraints: [{key: "request.headers[x-key]", values: ["a"]}]}',
            {"raw_headers": [("X-Key", b"a"), ("x-key", b"b")]},
            False,
        ),
        (
            '{constraints: [{key: "request.headers[x-key]", values: ["a"]}]}',
            {"raw_headers": [("x-key", b"a"), ("x-key", b"a")]},
            True,
        ),
        (
            '{constraints: [{key: "request.headers[x-key]", values: ["a*"]}]}',
            {"raw_headers": [("x-key", b"\xff")]},
            False,
        ),
        (
            '{constraints: [{key: "destination.labels[v]", values: ["1"]}]}',
            {"extensions": {"destination.labels[v]": "1"}},
            True,
        ),
        ('{constraints: [{key: "destination.labels[v]", values: ["*"]}]}', {}, False),
        ('{constraints: [{key: "destination.name", values: ["products"]}]}', {}, True),
        ('{constraints: [{key: "destination.namespace", values: ["default"]}]}', {}, True),
        ('{constraints: [{key: "destination.user", values: ["p"]}]}', {}, False),
        (
            '{constraints: [{key: "destination.user", values: ["p"]}]}',
            {"extensions": {"destination.user": "cluster.local/ns/default/sa/p"}},
            True,
        ),
        ('{constraints: [{key: "destination.port", values: ["9080"]}]}', {}, True),
        ('{constraints: [{key: "destination.port", values: ["80"]}]}', {}, False),
        ('{constraints: [{key: "destination.ip", values: ["10.0.0.0/8"]}]}', {}, True),
        ('{constraints: [{key: "destination.ip", values: ["11.0.0.0/8"]}]}', {}, False),
        ('{constraints: [{key: "connection.sni", values: ["*"]}]}', {}, False),
        (
            '{constraints: [{key: "request.headers[a]", values: ["1"]}, {key: "request.headers[a]", values: ["2"]}]}',
            {"headers": {"a": "1"}},
            False,
        ),
    ],
)
def test_rules(rule: str, request_: dict[str, Any], allowed: bool) -> None:
    """All fields of a rule must hold; values are alternatives; what is absent matches nothing."""
    assert decide_on(role(f"[{rule}]"), check_request(**request_)).allowed is allowed


@pytest.mark.parametrize(
    ("properties", "request_", "allowed"),
    [
        ('{source.ip: "10.0.0.0/24"}', {}, True),
        ('{source.ip: "10.0.1.0/24"}', {}, False),
        ('{source.ip: "10.0.0.1"}', {"source_ip": "::ffff:10.0.0.1"}, True),
        ('{source.ip: "10.0.0.1"}', {"source_ip": "nonsense"}, False),
        ('{source.namespace: "default"}', {"source": principal("a")}, True),
        ('{source.namespace: "def*"}', {"source": principal("a")}, True),
        ('{source.namespace: "*"}', {}, False),
        ('{source.principal: "cluster.local/ns/default/sa/a"}', {"source": principal("a")}, True),
        ('{source.user: "cluster.local/ns/default/sa/a"}', {"source": principal("b")}, False),
        ('{source.principal: "*"}', {"source": principal("a")}, True),
        ('{source.principal: "*"}', {}, False),
        ('{"request.headers[end-user]": "jason"}', {"headers": {"end-user": "jason"}}, True),
        ('{"request.auth.claims[email]": "*"}', {}, False),
        ('{request.auth.principal: "*"}', {}, False),
        ('{request.auth.audiences: "*"}', {}, False),
    ],
)
def test_properties(properties: str, request_: dict[str, Any], allowed: bool) -> None:
    """Each property reads its attribute; one that is absent matches nothing, `*` included."""
    policies = role(ANY, f"[{{properties: {properties}}}]")
    assert decide_on(policies, check_request(**request_)).allowed is allowed


def test_user_and_properties_must_both_hold() -> None:
    """Inside one subject everything is required."""
    policies = role(ANY, '[{user: "a", properties: {"request.headers[h]": "1"}}]')
    assert not decide_on(policies, check_request(source=principal("a"))).allowed
    assert not decide_on(policies, check_request(headers={"h": "1"})).allowed
    assert decide_on(policies, check_request(source=principal("a"), headers={"h": "1"})).allowed


def test_roles_apply_to_their_own_namespace_only() -> None:
    """A role names services of other namespaces in vain."""
    policies = role(f'[{{services: ["{SERVICE}", "*"]}}]', namespace="other")
    assert not decide_on(policies, check_request()).allowed


def test_an_unknown_destination_is_denied() -> None:
    """Without a destination from the operator nothing is allowed, whatever the Host header says."""
    decision = decide_on(role(ANY), check_request(service=None, host=SERVICE))
    assert (decision.allowed, decision.code) == (False, ReasonCode.UNKNOWN_DESTINATION)


def test_no_policies_deny() -> None:
    """Enforcement is where it starts; an empty set of policies allows nothing."""
    assert not decide_on("", check_request()).allowed


def test_a_permissive_binding_grants_nothing() -> None:
    """`mode: PERMISSIVE` is as if the binding did not exist."""
    policies = role(ANY).replace("spec:\n", "spec:\n  mode: PERMISSIVE\n")
    assert not decide_on(policies, check_request()).allowed


@pytest.mark.parametrize(
    ("spec", "allowed"),
    [
        ("{mode: 'OFF'}", True),
        ("{mode: 'ON'}", False),
        ("{mode: ON_WITH_INCLUSION, inclusion: {namespaces: [default]}}", False),
        ("{mode: ON_WITH_INCLUSION, inclusion: {services: [products.default.svc.cluster.local]}}", False),
        ("{mode: ON_WITH_INCLUSION, inclusion: {}}", True),
        ("{mode: ON_WITH_EXCLUSION, exclusion: {namespaces: [default]}}", True),
        ("{mode: ON_WITH_EXCLUSION, exclusion: {namespaces: ['*']}}", False),
        ("{mode: 'ON', enforcement_mode: PERMISSIVE}", True),
    ],
)
def test_the_cluster_switch(spec: str, allowed: bool) -> None:
    """`ClusterRbacConfig` says where roles are enforced; lists compare without wildcards."""
    config = f"""
apiVersion: rbac.istio.io/v1alpha1
kind: ClusterRbacConfig
metadata: {{name: default}}
spec: {spec}
"""
    assert decide_on(config, check_request()).allowed is allowed
    assert not decide_on(config, check_request(service=None)).allowed
