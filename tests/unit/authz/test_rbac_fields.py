"""`rbac.istio.io/v1alpha1`: the fields of Istio 1.1 to 1.4, connections, and what is only tried."""

from __future__ import annotations

from typing import Any

import pytest
from support.checks import CALL, check_request, decide_on, federated, principal, role, snapshot
from support.policies import connection, problems_of, tokens, with_token

from authz.attributes import Attributes
from authz.policy.compile import MeshSettings
from authz.policy.evaluate import marks
from authz.service import DestinationResolver
from garrison.identity import TrustDomain

A = principal("a")
ANY = "[{}]"


@pytest.mark.parametrize(
    ("rule", "request_", "allowed"),
    [
        ('{hosts: ["a.com"]}', {"host": "A.com"}, True),
        ('{hosts: ["A.com"]}', {"host": "a.com"}, True),
        ('{hosts: ["a.com"]}', {"host": "a.com:80"}, False),
        ('{hosts: ["a.com:*", "a.com"]}', {"host": "a.com:80"}, True),
        ('{hosts: ["*.com"]}', {"host": "a.com"}, True),
        ('{hosts: ["*"]}', {"host": ""}, False),
        ('{not_hosts: ["a.com"]}', {"host": "b.com"}, True),
        ('{not_hosts: ["a.com"]}', {"host": "A.com"}, False),
        ('{not_hosts: ["a.com"]}', {"host": "a.com.:80"}, False),
        ('{not_hosts: ["a.com"]}', {"host": ""}, True),
        ('{not_paths: ["/a"]}', {"path": "/a?b"}, False),
        ('{not_paths: ["/a"]}', {"path": "/a;b"}, False),
        ('{not_paths: ["/a"]}', {"path": "/b"}, True),
        ('{not_paths: ["/a*"]}', {"path": "/a/b"}, False),
        ('{paths: ["/a*"], not_paths: ["/a/b"]}', {"path": "/a/b"}, False),
        ('{paths: ["/a*"], not_paths: ["/a/b"]}', {"path": "/a/c"}, True),
        ('{not_methods: ["GET"]}', {}, False),
        ('{not_methods: ["GET"]}', {"method": "PUT"}, True),
        ("{ports: [9080]}", {}, True),
        ("{ports: [80, 9080]}", {}, True),
        ("{ports: [80]}", {}, False),
        ("{not_ports: [9080]}", {}, False),
        ("{not_ports: [80]}", {}, True),
        ('{constraints: [{key: ":path", values: ["/a"]}]}', {"path": "/a?b"}, True),
        ('{constraints: [{key: ":method", values: ["GET"]}]}', {}, True),
        ('{constraints: [{key: ":method", values: ["PUT"]}]}', {}, False),
        ('{constraints: [{key: ":authority", values: ["Products"]}]}', {}, True),
        (
            '{constraints: [{key: "connection.sni", values: ["*.a.com"]}]}',
            {"extensions": {"connection.sni": "WWW.a.com"}},
            True,
        ),
        ('{constraints: [{key: "destination.ip", values: ["10.0.0.2", "::1"]}]}', {}, True),
        ('{constraints: [{key: "destination.port", values: ["9080"]}]}', {}, True),
        ('{services: ["*"], methods: ["GET"], hosts: ["b.com"]}', {}, False),
    ],
)
def test_rules(rule: str, request_: dict[str, Any], allowed: bool) -> None:
    """Not-forms exclude, in every reading of a host or path; hosts have no case."""
    assert decide_on(role(f"[{rule}]"), check_request(**request_)).allowed is allowed


@pytest.mark.parametrize(
    ("subject", "source", "allowed"),
    [
        ('{names: ["allUsers"]}', "", True),
        ('{names: ["allUsers", "x"]}', "", True),
        ('{names: ["allAuthenticatedUsers"]}', A, True),
        ('{names: ["allAuthenticatedUsers"]}', "", False),
        ('{names: ["allAuthenticatedUsers"]}', "CN=a", False),
        ('{names: ["cluster.local/ns/default/sa/a"]}', A, True),
        ('{names: ["cluster.local/ns/default/sa/a"]}', principal("b"), False),
        ('{names: ["cluster.local/ns/default/*"]}', A, True),
        ('{names: ["*/sa/a"]}', A, True),
        ('{names: ["a"]}', A, False),
        ('{not_names: ["cluster.local/ns/default/sa/a"]}', A, False),
        ('{not_names: ["cluster.local/ns/default/sa/a"]}', principal("b"), True),
        ('{not_names: ["cluster.local/ns/default/sa/a"]}', "", True),
        ('{not_names: ["CN=a"]}', "CN=a", False),
        ('{not_names: ["spiffe://cluster.local/ns/default/sa/a"]}', A, False),
        ('{not_names: ["allAuthenticatedUsers"]}', "", True),
        ('{not_names: ["allAuthenticatedUsers"]}', A, False),
        ('{not_names: ["allAuthenticatedUsers"]}', "CN=a", False),
        ('{not_names: ["allUsers"]}', "", False),
        ('{not_names: ["allUsers"]}', A, False),
        ('{names: ["allAuthenticatedUsers"], not_names: ["*/sa/a"]}', A, False),
        ('{names: ["allAuthenticatedUsers"], not_names: ["*/sa/a"]}', principal("b"), True),
        ('{namespaces: ["default"]}', A, True),
        ('{namespaces: ["def*"]}', A, True),
        ('{namespaces: ["*ult"]}', A, True),
        ('{namespaces: ["other"]}', A, False),
        ('{namespaces: ["*"]}', "", False),
        ('{not_namespaces: ["default"]}', A, False),
        ('{not_namespaces: ["other"]}', A, True),
        ('{not_namespaces: ["default"]}', "", True),
        ('{not_namespaces: ["default"]}', "spiffe://cluster.local/us/ns/default/sa/a", False),
        ('{ips: ["10.0.0.0/8"]}', "", True),
        ('{ips: ["10.1.0.0/16", "::1"]}', "", False),
        ('{not_ips: ["10.0.0.0/8"]}', "", False),
        ('{not_ips: ["10.1.0.0/16"]}', "", True),
        ('{groups: ["x"]}', A, False),
        ('{not_groups: ["x"]}', A, True),
        ('{names: ["*/sa/a"], namespaces: ["other"]}', A, False),
    ],
)
def test_subjects(subject: str, source: str, allowed: bool) -> None:
    """All fields of a subject must hold; without an identity only not-forms do."""
    assert decide_on(role(ANY, f"[{subject}]"), check_request(source=source)).allowed is allowed


@pytest.mark.parametrize(
    ("subject", "claims", "allowed"),
    [
        ("{group: x}", {"groups": ["w", "x"]}, True),
        ("{group: x}", {"groups": "x"}, True),
        ("{group: x}", {"groups": "w x"}, False),
        ("{group: x}", {}, False),
        ("{group: '*'}", {"groups": []}, False),
        ("{groups: [x, 'y*']}", {"groups": ["yz"]}, True),
        ("{groups: [x]}", {"groups": ["y"]}, False),
        ("{not_groups: [x]}", {"groups": ["w", "x"]}, False),
        ("{not_groups: [x]}", {"groups": ["w"]}, True),
        ("{not_groups: [x]}", {}, True),
        ("{groups: ['*'], not_groups: [x]}", {"groups": ["w"]}, True),
        ("{group: w, groups: [x]}", {"groups": ["w"]}, False),
        ("{properties: {request.auth.audiences: b}}", {"aud": ["a", "b"]}, True),
        ("{properties: {request.auth.presenter: b}}", {"azp": "b"}, True),
        ('{properties: {request.auth.principal: "https://issuer.example/a"}}', {}, True),
        ('{properties: {request.auth.principal: "https://issuer.example/*"}}', {"sub": "b"}, True),
        ('{properties: {request.auth.principal: "https://issuer.example/a"}}', {"sub": "b"}, False),
        ('{properties: {"request.auth.claims[e]": "*"}}', {"e": 1}, False),
        ('{properties: {"request.auth.claims[e]": "*"}}', {"e": ""}, False),
        ('{properties: {"request.auth.claims[e]": "*@x"}}', {"e": ["a@y", "a@x"]}, True),
    ],
)
def test_groups_and_claims(subject: str, claims: dict[str, Any], allowed: bool) -> None:
    """Groups are the claim `groups`; one element of a list suffices, and one excludes."""
    assert decide_on(tokens() + role(ANY, f"[{subject}]"), with_token(claims)).allowed is allowed


NEW = MeshSettings(
    trust_domain=TrustDomain("new"),
    trust_domain_aliases=(TrustDomain("old"),),
    federated_trust_domains=federated("other", "cluster.local").federated_trust_domains,
)


@pytest.mark.parametrize(
    ("subject", "domain", "allowed"),
    [
        ("{user: cluster.local/ns/default/sa/a}", "old", True),
        ("{user: new/ns/default/sa/a}", "old", True),
        ("{user: other/ns/default/sa/a}", "other", True),
        ("{user: other/ns/default/sa/a}", "new", False),
        ("{user: a}", "old", True),
        ("{user: a}", "cluster.local", False),
        ("{properties: {source.principal: cluster.local/ns/default/sa/a}}", "old", True),
        ("{names: [new/ns/default/sa/a]}", "new", True),
        ("{names: [new/ns/default/sa/a]}", "old", False),
        ("{names: [cluster.local/ns/default/sa/a]}", "new", False),
        ("{not_names: [new/ns/default/sa/a]}", "new", False),
        ("{not_names: [new/ns/default/sa/a]}", "old", False),
        ("{not_names: [cluster.local/ns/default/sa/a]}", "new", False),
        ("{not_names: [cluster.local/ns/default/sa/a]}", "cluster.local", False),
        ("{not_names: [new/ns/default/sa/a]}", "other", True),
    ],
)
def test_aliases(subject: str, domain: str, allowed: bool) -> None:
    """Our trust domains stand for each other in `user`; in `names` they do not, in `not_names` they do."""
    request = check_request(source=principal("a", trust_domain=domain))
    assert decide_on(snapshot(role(ANY, f"[{subject}]"), NEW), request).allowed is allowed


@pytest.mark.parametrize(
    ("rule", "subject", "allowed"),
    [
        ("{}", '{user: "*"}', True),
        ('{services: ["products*"]}', '{user: "a"}', True),
        ("{ports: [9080]}", '{user: "*"}', True),
        ("{not_ports: [9080]}", '{user: "*"}', False),
        ('{methods: ["*"]}', '{user: "*"}', False),
        ('{not_methods: ["GET"]}', '{user: "*"}', False),
        ('{paths: ["*"]}', '{user: "*"}', False),
        ('{not_paths: ["/a"]}', '{user: "*"}', False),
        ('{hosts: ["*"]}', '{user: "*"}', False),
        ('{not_hosts: ["a.com"]}', '{user: "*"}', False),
        ('{constraints: [{key: "request.headers[a]", values: ["*"]}]}', '{user: "*"}', False),
        ('{constraints: [{key: "connection.sni", values: ["www.a.com"]}]}', '{user: "*"}', True),
        ("{}", '{names: ["*/sa/a"]}', True),
        ("{}", '{namespaces: ["default"]}', True),
        ("{}", '{ips: ["10.0.0.1"]}', True),
        ("{}", '{group: "x"}', False),
        ("{}", '{not_groups: ["x"]}', False),
        ("{}", '{names: ["*/sa/a"], not_groups: ["x"]}', False),
        ("{}", '{properties: {"request.headers[a]": "*"}}', False),
        ("{}", '{properties: {request.auth.principal: "*"}}', False),
    ],
)
def test_connections(rule: str, subject: str, allowed: bool) -> None:
    """A rule or subject that needs HTTP allows no connection, not even by a not-form."""
    request = connection(source=A, sni="www.a.com")
    assert decide_on(role(f"[{rule}]", f"[{subject}]"), request).allowed is allowed


def test_a_subject_that_needs_http_leaves_the_others_in_force() -> None:
    """Only the subject is dropped for connections, and the decision names the right one."""
    decision = decide_on(role(ANY, "[{not_groups: [x]}, {user: a}]"), connection(source=A))
    assert decision.allowed
    assert "spec.subjects[1]" in decision.reason


def test_metadata_constraints() -> None:
    """A list of another filter's metadata matches by one element."""
    request = check_request()
    field = request.attributes.metadata_context.filter_metadata["envoy.filters.http.x"].fields["k"]
    for element in ("a", "b"):
        field.list_value.values.add().string_value = element
    for value, allowed in (("[b]", True), ("[c]", False), ("b", False), ("*", False)):
        rule = f'[{{constraints: [{{key: "experimental.envoy.filters.http.x[k]", values: ["{value}"]}}]}}]'
        assert decide_on(role(rule), request).allowed is allowed


@pytest.mark.parametrize(
    ("rule", "subject", "expected"),
    [
        (
            "{methods: [GET], not_methods: [PUT]}",
            "{user: a}",
            "`methods` and `not_methods` exclude each other",
        ),
        ("{ports: [1], not_ports: [2]}", "{user: a}", "`ports` and `not_ports` exclude each other"),
        (
            '{ports: [1], constraints: [{key: destination.port, values: ["1"]}]}',
            "{user: a}",
            "a constraint on `destination.port` excludes `ports` and `not_ports`",
        ),
        ("{ports: [65536]}", "{user: a}", "spec.rules[0].ports[0]"),
        ("{ports: ['80']}", "{user: a}", "spec.rules[0].ports[0]"),
        (
            "{}",
            "{names: ['*']}",
            "spec.subjects[0].names: `*` is not allowed in `names` (write `allUsers`) [star]",
        ),
        ("{}", "{not_names: [a, '*']}", "`*` is not allowed in `not_names`"),
        ("{}", "{names: [a], properties: {source.principal: b}}", "`names` excludes the property"),
        ("{}", "{not_names: [a], properties: {source.user: b}}", "`names` excludes the property"),
        ("{}", "{groups: [a], properties: {'request.auth.claims[groups]': b}}", "[exclusive]"),
        ("{}", "{namespaces: [a], properties: {source.namespace: b}}", "[exclusive]"),
        ("{}", "{ips: ['::1'], properties: {source.ip: '::1'}}", "[exclusive]"),
        ("{}", "{ips: ['::1', x]}", "spec.subjects[0].ips[1]: `x` is neither an IP address"),
        ("{}", "{namespaces: ['a*b']}", "has a `*` that is not at one end"),
        ("{}", "{properties: {source.ip: x}}", "spec.subjects[0].properties['source.ip']: `x` is neither"),
        ("{}", "{name: [a]}", "(did you mean `names`?)"),
        ("{constraints: [{key: 'destination.lables[a]', values: [b]}]}", "{user: a}", "is not known here"),
    ],
)
def test_mistakes(rule: str, subject: str, expected: str) -> None:
    """What cannot be meant is refused, where it stands."""
    found = problems_of(role(f"[{rule}]", f"[{subject}]"))
    assert any(expected in problem for problem in found), found


def marks_of(text: str, request: Any) -> dict[str, str]:
    """Return what bindings that are only tried say about `request`."""
    compiled = snapshot(text)
    context = request.attributes
    destination = DestinationResolver().resolve(context.context_extensions, "", CALL)
    assert destination is not None
    attributes = Attributes(context, compiled.mesh.path_normalization, destination)
    return dict(marks(compiled.policies_for(destination), attributes))


def config(spec: str) -> str:
    """Return the ClusterRbacConfig."""
    return (
        "apiVersion: rbac.istio.io/v1alpha1\nkind: ClusterRbacConfig\n"
        f"metadata: {{name: default}}\nspec: {spec}\n---\n"
    )


PERMISSIVE = config('{mode: "ON", enforcement_mode: PERMISSIVE}')
ALLOWED = {"shadow_engine_result": "allowed", "shadow_effective_policy_id": "ServiceRole default/r"}
DENIED = {"shadow_engine_result": "denied", "shadow_effective_policy_id": "none"}


def tried(subjects: str) -> str:
    """Return a role whose one binding is PERMISSIVE."""
    return role(ANY, subjects).replace("spec:\n", "spec:\n  mode: PERMISSIVE\n")


@pytest.mark.parametrize(
    ("text", "allowed", "expected"),
    [
        (tried("[{user: a}]"), False, ALLOWED),
        (tried("[{user: b}]"), False, DENIED),
        (role(ANY, "[{user: a}]"), True, {}),
        (PERMISSIVE + role(ANY, "[{user: a}]"), True, ALLOWED),
        (PERMISSIVE + role(ANY, "[{user: b}]"), True, DENIED),
        (PERMISSIVE + tried("[{user: a}]"), True, ALLOWED),
        (PERMISSIVE, True, DENIED),
        (role(ANY, "[{user: b}]") + tried("[{user: a}]").replace("name: r,", "name: q,"), False, None),
    ],
)
def test_permissive(text: str, allowed: bool, expected: dict[str, str] | None) -> None:
    """A tried binding grants nothing and is reported; global permissive tries all and allows everything."""
    request = check_request(source=A)
    assert decide_on(text, request).allowed is allowed
    if expected is not None:
        assert marks_of(text, request) == expected


def test_a_role_can_be_granted_and_tried_at_once() -> None:
    """Enforced bindings decide, PERMISSIVE ones of the same role are only reported."""
    text = (
        role(ANY, "[{user: a}]") + tried("[{user: b}]").replace("{name: r,", "{name: q,", 2).split("---")[1]
    )
    for account, allowed, expected in (("a", True, DENIED), ("b", False, ALLOWED)):
        request = check_request(source=principal(account))
        assert decide_on(text, request).allowed is allowed
        assert marks_of(text, request) == expected


@pytest.mark.parametrize(
    ("spec", "service", "allowed"),
    [
        ('{mode: "OFF"}', "products.default.svc.cluster.local", True),
        (
            "{mode: ON_WITH_INCLUSION, inclusion: {services: [Products.default.svc.cluster.local]}}",
            "products.default.svc.cluster.local",
            False,
        ),
        (
            "{mode: ON_WITH_INCLUSION, inclusion: {services: ['products*']}}",
            "products.default.svc.cluster.local",
            True,
        ),
        (
            "{mode: ON_WITH_INCLUSION, inclusion: {namespaces: [default]}}",
            "other.default.svc.cluster.local",
            False,
        ),
        (
            "{mode: ON_WITH_EXCLUSION, exclusion: {namespaces: [def]}}",
            "products.default.svc.cluster.local",
            False,
        ),
        ("{mode: ON_WITH_EXCLUSION, exclusion: {}}", "products.default.svc.cluster.local", False),
        (
            "{mode: ON_WITH_EXCLUSION, exclusion: {services: [products.default.svc.cluster.local]}}",
            "products.default.svc.cluster.local",
            True,
        ),
    ],
)
def test_inclusion_and_exclusion(spec: str, service: str, allowed: bool) -> None:
    """The lists name services and namespaces as they are, without patterns."""
    assert decide_on(config(spec), check_request(service=service)).allowed is allowed


def test_a_cluster_config_replaces_a_config() -> None:
    """Nothing of the older document counts beside the newer one."""
    older = config('{mode: "OFF"}').replace("ClusterRbacConfig", "RbacConfig")
    assert decide_on(older, check_request()).allowed
    assert not decide_on(older + config('{mode: "ON"}'), check_request()).allowed


def test_switching_roles_off_does_not_switch_off_policies() -> None:
    """`OFF` is about roles; a DENY policy still denies."""
    denying = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p}
spec: {action: DENY, rules: [{to: [{operation: {paths: [/x]}}]}]}
"""
    assert not decide_on(config('{mode: "OFF"}') + denying, check_request(path="/x")).allowed
    assert decide_on(config('{mode: "OFF"}') + denying, check_request(path="/a")).allowed
