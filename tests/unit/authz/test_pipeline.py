"""Several kinds on one destination: the order is fixed, and each that applies has to let a call through."""

from __future__ import annotations

from typing import Any

import pytest
from support.checks import NOW, answer, check_request, decide_on, principal, role, snapshot
from support.tokens import Authentication, rsa_signer

from authz.decision import ReasonCode
from authz.paths import PathNormalization
from authz.policy.compile import MeshSettings
from authz.tools.requests import explained

MIXER = """
apiVersion: config.istio.io/v1alpha2
kind: denier
metadata: {name: shut, namespace: istio-system}
spec: {status: {code: 7, message: closed}}
---
apiVersion: config.istio.io/v1alpha2
kind: checknothing
metadata: {name: any, namespace: istio-system}
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {name: closed, namespace: istio-system}
spec:
  match: request.headers["x-closed"] == "yes"
  actions: [{handler: shut.denier, instances: [any.checknothing]}]
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {name: tagged, namespace: istio-system}
spec:
  requestHeaderOperations: [{name: x-seen-by, values: ['"mixer"']}]
---
"""

CASBIN = """
apiVersion: garrison.dev/v1alpha1
kind: CasbinPolicy
metadata: {name: acl, namespace: default}
spec:
  request: [{attribute: source.principal}, {attribute: request.method}]
  model: |
    [request_definition]
    r = sub, act
    [policy_definition]
    p = sub, act
    [policy_effect]
    e = some(where (p.eft == allow))
    [matchers]
    m = r.sub == p.sub && r.act == p.act
  policy: |
    p, cluster.local/ns/default/sa/a, GET
---
"""

DENY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-put, namespace: default}
spec: {action: DENY, rules: [{to: [{operation: {methods: [PUT]}}]}]}
---
"""


CLOSED = {"x-closed": "yes"}


def test_every_kind_that_applies_has_to_let_the_call_through() -> None:
    """Roles, DENY, Mixer and Casbin each can deny what the others allow."""
    policies = snapshot(role("[{}]") + DENY + MIXER + CASBIN)
    good: dict[str, Any] = {"source": principal("a"), "headers": {"x-closed": "no"}}
    assert decide_on(policies, check_request(**good)).allowed
    by_casbin = decide_on(policies, check_request(**{**good, "source": principal("b")}))
    by_mixer = decide_on(policies, check_request(**{**good, "headers": CLOSED}))
    by_deny = decide_on(policies, check_request(**{**good, "method": "PUT", "headers": CLOSED}))
    assert by_casbin.code is ReasonCode.CASBIN_DENIED
    assert by_mixer.code is ReasonCode.MIXER_DENIED
    assert by_deny.code is ReasonCode.DENY_MATCHED
    nobody = snapshot(role("[{methods: [HEAD]}]") + MIXER + CASBIN)
    assert decide_on(nobody, check_request(**good)).code is ReasonCode.NO_ROLE_MATCHED


def test_tokens_come_before_policies() -> None:
    """An invalid token is a 401 even where a policy would have denied."""
    text = str(Authentication(rsa_signer().jwks())) + DENY + MIXER + CASBIN
    decision = decide_on(text, check_request(method="PUT", headers={"authorization": "Bearer x"}))
    assert decision.http_status == 401


def test_mixer_alone_allows_what_it_does_not_deny() -> None:
    """As in Istio, rules of Mixer take away and never grant; without roles there is nothing to grant."""
    assert decide_on(MIXER, check_request(headers={"x-closed": "no"})).allowed
    denied = decide_on(MIXER, check_request(headers=CLOSED))
    assert (denied.allowed, denied.policy) == (False, "rule istio-system/closed")


def test_casbin_alone_decides() -> None:
    """Where only a CasbinPolicy speaks of a destination, its rows allow; elsewhere nothing does."""
    allowed = decide_on(CASBIN, check_request(source=principal("a")))
    assert (allowed.allowed, allowed.policy, allowed.rule) == (True, "CasbinPolicy default/acl", 0)
    assert not decide_on(CASBIN, check_request(source=principal("b"))).allowed
    assert not decide_on(CASBIN, check_request(source=principal("a"), service="a.other.svc.x")).allowed


def test_mixers_header_operations_reach_the_upstream() -> None:
    """Operations of rules that match are made when the call is allowed."""
    response = answer(role("[{}]") + MIXER, headers={"x-closed": "no"})
    assert [(one.header.key, one.header.value) for one in response.ok_response.headers] == [
        ("x-seen-by", "mixer")
    ]
    assert not answer(role("[{methods: [PUT]}]") + MIXER).ok_response.headers


@pytest.mark.parametrize("text", [MIXER, CASBIN, DENY, role("[{}]")])
def test_an_unknown_destination_is_denied_by_every_kind(text: str) -> None:
    """Whatever there is, a call without a destination is denied."""
    assert decide_on(text, check_request(service=None)).code is ReasonCode.UNKNOWN_DESTINATION


def test_path_normalization_can_differ_by_namespace() -> None:
    """`namespace_path_normalization` decides how the paths of one namespace's services are read."""
    mesh = MeshSettings(namespace_path_normalization=(("legacy", PathNormalization.NONE),))
    text = role("[{paths: [/a/../b]}]", namespace="legacy") + role("[{paths: [/b]}]", namespace="default")
    policies = snapshot(text, mesh)
    legacy = check_request(path="/a/../b", service="x.legacy.svc.cluster.local")
    assert decide_on(policies, legacy).allowed
    assert decide_on(policies, check_request(path="/a/../b")).allowed
    assert not decide_on(snapshot(text), legacy).allowed


def test_an_explanation_shows_every_stage() -> None:
    """Tokens, roles, Mixer and Casbin stand in the order in which they are asked."""
    policies = snapshot(str(Authentication(rsa_signer().jwks())) + role("[{}]") + DENY + MIXER + CASBIN)
    explanation = explained(policies, check_request(source=principal("b"), headers=CLOSED), NOW)
    stages = list(dict.fromkeys(stage for stage, _ in explanation.steps))
    assert stages == ["TOKENS", "DENY", "ALLOW", "MIXER", "CASBIN"]
    found = {(step.policy, step.matched) for _, step in explanation.steps}
    assert ("rule istio-system/closed", True) in found
    assert ("CasbinPolicy default/acl", False) in found


def test_an_explanation_shows_what_is_asked_of_the_peer() -> None:
    """Whether the peer meets what is asked, and the token what a v1alpha1 policy asks; nothing where none does."""
    authentication = """
apiVersion: authentication.istio.io/v1alpha1
kind: Policy
metadata: {name: default}
spec: {peers: [{mtls: {}}], origins: [{jwt: {issuer: 'https://a'}}]}
---
"""
    strict = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: p}
spec: {mtls: {mode: STRICT}}
---
"""

    def steps(text: str, source: str) -> list[tuple[str, bool]]:
        explanation = explained(snapshot(role("[{}]") + text), check_request(source=source), NOW)
        return [(name, step.matched) for name, step in explanation.steps]

    allowed = ("ALLOW", True)
    assert steps("", principal("a")) == [allowed]
    assert steps(strict, principal("a")) == [("PEER", True), allowed]
    assert steps(strict, "") == [("PEER", False), allowed]
    assert steps("", principal("a", trust_domain="x")) == [("PEER", False), allowed]
    assert steps(authentication, principal("a")) == [("ORIGIN", False), allowed]
    assert steps(authentication, "") == [("PEER", False), ("ORIGIN", False), allowed]


def test_how_long_mixers_answer_holds_is_remarked() -> None:
    """`valid_duration` and `valid_use_count` of the handlers are in the metadata."""
    remarks = dict(answer(role("[{}]") + MIXER, headers=CLOSED).dynamic_metadata)
    assert (remarks["valid_duration"], remarks["valid_use_count"]) == ("5s", "1000")
