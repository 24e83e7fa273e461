"""Credentials: where they are looked for, whose word counts, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from support.checks import NOW, check_request, principal, snapshot
from support.credentials import (
    IDENTIFIED,
    MESH,
    OPEN,
    Fixed,
    authentication,
    claims_of,
    come_to,
    good,
    outcome_of,
)
from support.policies import problems_of
from support.tokens import Authentication, ed_signer

from authz.authn.credentials import (
    Answer,
    Inquiry,
    Result,
)
from authz.decision import HeaderAction, HeaderMutation, ReasonCode
from authz.destination import Destination
from authz.lint import lint_policies
from authz.policy.compile import MeshSettings, compile_policies
from garrison.documents import parse

KEYS = "{authenticator: keys}"
PEOPLE = "{authenticator: people}"
OPAQUE = "{authenticator: opaque}"
ALICE = {"keys": Fixed({"alices-key": good("alice", groups=["a", "b"])})}
REALM = 'realm="products.default.svc.cluster.local"'


def removed(outcome: Any) -> list[str]:
    """Return the headers that an answer removes."""
    return [one.name for one in outcome.mutations.request_headers if one.action is HeaderAction.REMOVE]


# ------------------------------------------------------------------------------------------- what it establishes


def test_a_good_credential_is_an_identity_with_the_methods_own_issuer() -> None:
    """The name becomes `sub`, `iss` is the document's with the authenticator's name, claims come along."""
    text = authentication(f"[{KEYS}]") + IDENTIFIED
    claims = claims_of(text, check_request(headers={"x-api-key": "alices-key"}), ALICE)
    assert claims == {"iss": "default/clients/keys", "sub": "alice", "groups": ["a", "b"]}


def test_an_issuer_of_ones_own_replaces_the_default() -> None:
    """`issuer` is what policies then name."""
    text = authentication("[{authenticator: keys, issuer: partners}]") + (
        IDENTIFIED.replace("'*'", "partners/alice")
    )
    call = check_request(headers={"x-api-key": "alices-key"})
    assert outcome_of(text, call, ALICE).decision.allowed


def test_no_authenticator_speaks_for_another_issuer() -> None:
    """An `iss` among the claims is overwritten: opaque tokens are not JWTs of the identity provider."""
    opaque = {"opaque": Fixed({"t": good("alice", iss="https://login.example")})}
    text = authentication(f"[{OPAQUE}]") + IDENTIFIED
    claims = claims_of(text, check_request(headers={"authorization": "Bearer t"}), opaque)
    assert claims is not None
    assert claims["iss"] == "default/clients/opaque"


def test_claims_reach_policies_like_those_of_a_token() -> None:
    """`request.auth.claims`, `requestPrincipals` and groups of roles read them."""
    call = check_request(headers={"x-api-key": "alices-key"})
    when = "[{when: [{key: 'request.auth.claims[groups]', values: [b]}]}]"
    text = authentication(f"[{KEYS}]") + IDENTIFIED.replace(
        "[{from: [{source: {requestPrincipals: ['*']}}]}]", when
    )
    assert outcome_of(text, call, ALICE).decision.allowed
    other = {"keys": Fixed({"alices-key": good("alice", groups=["c"])})}
    assert outcome_of(text, call, other).decision.code is ReasonCode.NO_POLICY_MATCHED


@pytest.mark.parametrize(("begins", "expires", "allowed"), [(-1, 1, True), (1, 2, False), (-2, 0, False)])
def test_an_answer_counts_from_its_beginning_until_its_end(begins: int, expires: int, allowed: bool) -> None:
    """A key that is not valid yet, or not any more, is refused like one that nobody knows."""
    answer = Answer.accepted({"sub": "a"}, begins=NOW + begins, expires=NOW + expires)
    text = authentication(f"[{KEYS}]") + OPEN
    outcome = outcome_of(text, check_request(headers={"x-api-key": "k"}), {"keys": Fixed({"k": answer})})
    assert outcome.decision.allowed is allowed
    if not allowed:
        assert (outcome.decision.code, outcome.decision.http_status) == (ReasonCode.INVALID_CREDENTIAL, 401)


# ----------------------------------------------------------------------------------------------------- order


def test_without_a_credential_there_is_no_identity() -> None:
    """Nothing is required by default: policies decide on a call that nobody vouches for."""
    text = authentication(f"[{KEYS}]")
    assert outcome_of(text + IDENTIFIED, check_request()).decision.code is ReasonCode.NO_POLICY_MATCHED
    assert claims_of(text + OPEN, check_request()) is None


def test_a_method_without_its_credential_is_passed_over() -> None:
    """The next one has its turn."""
    people = {"people": Fixed({"YTpi": good("a")}), **ALICE}
    text = authentication(f"[{KEYS}, {PEOPLE}]") + IDENTIFIED
    claims = claims_of(text, check_request(headers={"authorization": "basic  YTpi"}), people)
    assert claims == {"iss": "default/clients/people", "sub": "a"}


def test_a_bad_credential_is_not_helped_by_a_good_one() -> None:
    """No falling through: who sends a wrong key is refused, whatever else may be known of the caller."""
    keys = {"keys": Fixed({"bad": Answer.refused("no client has this key")})}
    for methods in (f"[{KEYS}, {PEOPLE}]", f"[{PEOPLE}, {KEYS}]", f"[{KEYS}, {{anonymous: {{}}}}]"):
        outcome = outcome_of(
            authentication(methods) + OPEN, check_request(headers={"x-api-key": "bad"}), keys
        )
        decision = outcome.decision
        assert (decision.code, decision.http_status) == (ReasonCode.INVALID_CREDENTIAL, 401)
        assert decision.reason == "authenticator keys: no client has this key"
        assert decision.public == "the credential is not accepted"


def test_two_credentials_are_refused() -> None:
    """Both may be good, and still it would be a guess who calls."""
    both = {"people": Fixed({"YTpi": good("a")}), **ALICE}
    call = check_request(headers={"authorization": "Basic YTpi", "x-api-key": "alices-key"})
    decision = outcome_of(authentication(f"[{KEYS}, {PEOPLE}]") + OPEN, call, both).decision
    assert (decision.code, decision.http_status) == (ReasonCode.INVALID_CREDENTIAL, 401)
    assert "more than one" in decision.reason


def test_one_text_for_two_authenticators_is_two_credentials() -> None:
    """What it means to one of them says nothing about the other."""
    both = {"keys": Fixed({"x": good("a")}), "opaque": Fixed({"x": good("a")})}
    call = check_request(headers={"x-api-key": "x", "authorization": "Bearer x"})
    decision = outcome_of(authentication(f"[{KEYS}, {OPAQUE}]") + OPEN, call, both).decision
    assert (decision.code, decision.http_status) == (ReasonCode.INVALID_CREDENTIAL, 401)


def test_one_credential_in_two_places_is_one_and_leaves_both() -> None:
    """The same key as header, parameter and cookie; the upstream sees none of them."""
    places = "fromHeaders: [{name: x-api-key}], fromParams: [key], fromCookies: [key]"
    text = authentication(f"[{{authenticator: keys, {places}}}]") + IDENTIFIED
    call = check_request(
        path="/a?key=alices-key&b=1",
        headers={
            "x-api-key": "alices-key",
            "cookie": "a=1; key=alices-key; b=2",
            ":path": "/a?key=alices-key&b=1",
        },
    )
    outcome = outcome_of(text, call, ALICE)
    assert outcome.decision.allowed
    assert removed(outcome) == ["x-api-key"]
    replaced = {one.name: one.value for one in outcome.mutations.request_headers if one.value}
    assert replaced == {"cookie": "a=1; b=2", ":path": "/a?b=1"}
    assert outcome.mutations.shaped


def test_different_values_in_two_places_are_two_credentials() -> None:
    """Also for one method."""
    text = authentication("[{authenticator: keys, fromParams: [key, k2]}]") + OPEN
    call = check_request(path="/?key=alices-key&k2=other")
    assert outcome_of(text, call, ALICE).decision.http_status == 401


def test_the_first_document_by_title_has_a_place() -> None:
    """What two methods of two documents look for is asked of one authenticator, not shown to both."""
    pods = Fixed({"t": good("pod")})
    opaque = Fixed({"t": good("user")})
    text = (
        authentication("[{authenticator: pods}]", name="b")
        + authentication(f"[{OPAQUE}]", name="a")
        + IDENTIFIED
    )
    claims = claims_of(
        text, check_request(headers={"authorization": "Bearer t"}), {"pods": pods, "opaque": opaque}
    )
    assert claims is not None
    assert claims["sub"] == "user"
    assert pods.looked_up == []


# ---------------------------------------------------------------------------------------------------- places


@pytest.mark.parametrize(
    ("methods", "request_", "found"),
    [
        (KEYS, {"headers": {"x-api-key": "k"}}, "k"),
        (KEYS, {"headers": {"authorization": "Bearer k"}}, None),
        (KEYS, {"path": "/?x-api-key=k"}, None),
        (PEOPLE, {"headers": {"authorization": "Basic k"}}, "k"),
        (PEOPLE, {"headers": {"authorization": "BASIC   k "}}, "k"),
        (PEOPLE, {"headers": {"authorization": "Basick"}}, None),
        (PEOPLE, {"headers": {"authorization": "Bearer k"}}, None),
        (OPAQUE, {"headers": {"authorization": "bearer k"}}, "k"),
        (
            "{authenticator: keys, fromHeaders: [{name: X-Key, prefix: 'Token '}]}",
            {"headers": {"x-key": "Token k"}},
            "k",
        ),
        (
            "{authenticator: keys, fromHeaders: [{name: x-key, prefix: 'Token '}]}",
            {"headers": {"x-key": "token k"}},
            None,
        ),
        ("{authenticator: keys, fromHeaders: [{name: x-key}]}", {"headers": {"x-api-key": "k"}}, None),
        (
            "{authenticator: keys, fromHeaders: [{name: Authorization, prefix: 'ApiKey '}]}",
            {"headers": {"authorization": "apikey k"}},
            "k",
        ),
        ("{authenticator: keys, fromParams: [key]}", {"path": "/?a=b&key=%6b"}, "k"),
        ("{authenticator: keys, fromParams: [key]}", {"path": "/?a=b;k%65y=k#key=j"}, "k"),
        ("{authenticator: keys, fromParams: [key]}", {"path": "/key=k"}, None),
        ("{authenticator: keys, fromCookies: [key]}", {"headers": {"cookie": "a=b; key=k"}}, "k"),
        ("{authenticator: keys, fromCookies: [key]}", {"headers": {"cookie": "Key=k; akey=k; key"}}, None),
    ],
)
def test_a_credential_is_found_where_the_method_looks(
    methods: str, request_: dict[str, Any], found: str | None
) -> None:
    """And nowhere else: what stands in another place is no credential."""
    everybody = {name: Fixed() for name in ("keys", "people", "opaque")}
    result, _ = come_to(authentication(f"[{methods}]") + OPEN, check_request(**request_), everybody)
    assert (result.credential if isinstance(result, Inquiry) else None) == found


@pytest.mark.parametrize(
    "value",
    ["", " ", "a b", "a,b", "a\tb", "a\x00b", "k\u00e9y", "a" * 16_385],
    ids=lambda value: repr(value[:8]),
)
def test_what_cannot_be_a_credential_is_not_asked_about(value: str) -> None:
    """It is refused: lines that Envoy joined with a comma, spaces, control characters, nothing, too much."""
    keys = Fixed({value: good("alice")})
    outcome = outcome_of(
        authentication(f"[{KEYS}]") + OPEN, check_request(headers={"x-api-key": value}), {"keys": keys}
    )
    assert outcome.decision.code is ReasonCode.INVALID_CREDENTIAL
    assert keys.looked_up == []


@pytest.mark.parametrize("value", ["Bearer", "bearer ", "Bearer  "])
def test_a_scheme_without_a_credential_is_a_bad_one(value: str) -> None:
    """It is not nothing: the caller meant to say who it is."""
    call = check_request(headers={"authorization": value})
    decision = outcome_of(authentication(f"[{OPAQUE}]") + OPEN, call, {"opaque": Fixed()}).decision
    assert decision.code is ReasonCode.INVALID_CREDENTIAL


def test_lines_of_their_own_are_values_of_their_own() -> None:
    """With `encode_raw_headers`: the same key twice is one, two keys are refused, also if one is good."""
    text = authentication(f"[{KEYS}]") + OPEN
    same = check_request(raw_headers=[("x-api-key", b"alices-key"), ("x-api-key", b"alices-key")])
    assert outcome_of(text, same, ALICE).decision.allowed
    two = check_request(raw_headers=[("x-api-key", b"alices-key"), ("x-api-key", b"bobs-key")])
    assert outcome_of(text, two, ALICE).decision.http_status == 401


# ----------------------------------------------------------------------------------------------- what is removed


def test_the_credential_does_not_reach_the_upstream() -> None:
    """Unless the method says `forward`."""
    call = check_request(headers={"x-api-key": "alices-key"})
    assert removed(outcome_of(authentication(f"[{KEYS}]") + IDENTIFIED, call, ALICE)) == ["x-api-key"]
    forwarding = authentication("[{authenticator: keys, forward: true}]") + IDENTIFIED
    assert removed(outcome_of(forwarding, call, ALICE)) == []


def test_a_cookie_header_with_nothing_left_is_removed() -> None:
    """An empty one would be another request than the caller's."""
    text = authentication("[{authenticator: keys, fromCookies: [key]}]") + IDENTIFIED
    outcome = outcome_of(text, check_request(headers={"cookie": "key=alices-key"}), ALICE)
    assert outcome.mutations.request_headers == (HeaderMutation("cookie", "", HeaderAction.REMOVE),)


# --------------------------------------------------------------------------------------------- required, anonymous


def test_a_required_credential_is_asked_for() -> None:
    """401 with a challenge for each scheme; where no credential came, Bearer has no error (RFC 6750, 3.1)."""
    text = authentication(f"[{KEYS}, {OPAQUE}, {PEOPLE}]", required=True) + OPEN
    decision = outcome_of(text, check_request()).decision
    assert (decision.code, decision.http_status) == (ReasonCode.CREDENTIAL_REQUIRED, 401)
    assert decision.policy == "CredentialAuthentication default/clients"
    assert decision.challenge == f'ApiKey {REALM}, Bearer {REALM}, Basic {REALM}, charset="UTF-8"'


@pytest.mark.parametrize(
    ("method", "challenge"),
    [
        (KEYS, f"ApiKey {REALM}"),
        ("{authenticator: keys, fromHeaders: [{name: authorization, prefix: 'Key '}]}", f"Key {REALM}"),
        (PEOPLE, f'Basic {REALM}, charset="UTF-8"'),
        (OPAQUE, f'Bearer {REALM}, error="invalid_token"'),
        ("{authenticator: pods}", f'Bearer {REALM}, error="invalid_token"'),
    ],
)
def test_a_refusal_says_how_to_come_again(method: str, challenge: str) -> None:
    """RFC 9110, section 15.5.2."""
    refusing = Fixed({"bad": Answer.refused("no")})
    headers = (
        {"x-api-key": "bad"} if method == KEYS else {"authorization": f"{challenge.split(maxsplit=1)[0]} bad"}
    )
    names = dict.fromkeys(("keys", "people", "opaque", "pods"), refusing)
    decision = outcome_of(
        authentication(f"[{method}]") + OPEN, check_request(headers=headers), names
    ).decision
    assert (decision.http_status, decision.challenge) == (401, challenge)


def test_the_realm_is_quoted() -> None:
    """Whatever the operator calls the service."""
    compiled = snapshot(authentication(f"[{KEYS}]", required=True, namespace="istio-system") + OPEN, MESH)
    call = check_request(service='a"b\\c')
    call.attributes.context_extensions["destination.namespace"] = "default"
    assert compiled.policies_for(Destination('a"b\\c', "default")).credentials is not None
    assert outcome_of(compiled, call).decision.challenge == 'ApiKey realm="a\\"b\\\\c"'


def test_anonymous_is_an_identity_by_choice() -> None:
    """Policies can name who has no credential."""
    text = authentication(f"[{{anonymous: {{}}}}, {KEYS}]") + IDENTIFIED.replace(
        "'*'", "default/clients/anonymous/anonymous"
    )
    assert outcome_of(text, check_request(), ALICE).decision.allowed
    # It is the last to be looked at, wherever it stands.
    call = check_request(headers={"x-api-key": "alices-key"})
    assert not outcome_of(text, call, ALICE).decision.allowed


def test_anonymous_does_not_satisfy_another_documents_requirement() -> None:
    """One document cannot take back what another one insists on."""
    text = authentication(f"[{KEYS}]", required=True) + authentication("[{anonymous: {}}]", name="any") + OPEN
    assert outcome_of(text, check_request(), ALICE).decision.code is ReasonCode.CREDENTIAL_REQUIRED


PREFLIGHT = {"origin": "https://a.example", "access-control-request-method": "PUT"}


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("OPTIONS", PREFLIGHT, 200),
        ("GET", PREFLIGHT, 401),
        ("options", PREFLIGHT, 401),
        ("OPTIONS", {**PREFLIGHT, "origin": ""}, 401),
        ("OPTIONS", {"origin": "https://a.example"}, 401),
        ("OPTIONS", {"access-control-request-method": "PUT"}, 401),
    ],
)
def test_a_preflight_has_no_credentials(method: str, headers: dict[str, str], status: int) -> None:
    """A browser sends it without; policies still decide, and it has no identity."""
    text = authentication(f"[{KEYS}, {{authenticator: people}}]", required=True)
    call = check_request(method=method, headers=headers)
    assert outcome_of(text + OPEN, call).decision.http_status == status
    if status == 200:
        assert outcome_of(text + IDENTIFIED, call).decision.code is ReasonCode.NO_POLICY_MATCHED


def test_a_preflight_is_not_anonymous_where_a_credential_is_required() -> None:
    """It is let through to the policies without an identity, not with one that others have to do without."""
    text = authentication(f"[{KEYS}]", required=True) + authentication("[{anonymous: {}}]", name="any")
    assert claims_of(text + OPEN, check_request(method="OPTIONS", headers=PREFLIGHT)) is None


def test_a_preflight_with_a_bad_credential_is_refused() -> None:
    """It is let off bringing one, not answering for one."""
    keys = {"keys": Fixed({"bad": Answer.refused("no")})}
    call = check_request(method="OPTIONS", headers={**PREFLIGHT, "x-api-key": "bad"})
    assert outcome_of(authentication(f"[{KEYS}]") + OPEN, call, keys).decision.http_status == 401


# ------------------------------------------------------------------------------------------------ authenticators


def test_an_authenticator_that_does_not_answer_is_no_consent() -> None:
    """503 with a code of its own, whatever the policies say; the caller is told nothing."""
    keys = {"keys": Fixed({"k": Answer.unavailable("it did not answer in time")})}
    decision = outcome_of(
        authentication(f"[{KEYS}]") + OPEN, check_request(headers={"x-api-key": "k"}), keys
    ).decision
    assert (decision.code, decision.http_status) == (ReasonCode.AUTHENTICATOR_UNAVAILABLE, 503)
    assert decision.public == ""
    assert decision.reason == "authenticator keys: it did not answer in time"


def test_a_good_credential_for_something_else_is_403() -> None:
    """RFC 6750, section 3.1: `insufficient_scope`."""
    opaque = {"opaque": Fixed({"t": Answer(Result.INSUFFICIENT, reason="scope `orders` is missing")})}
    call = check_request(headers={"authorization": "Bearer t"})
    decision = outcome_of(authentication(f"[{OPAQUE}]") + OPEN, call, opaque).decision
    assert (decision.code, decision.http_status) == (ReasonCode.INSUFFICIENT_SCOPE, 403)
    assert decision.challenge == f'Bearer {REALM}, error="insufficient_scope"'


def test_an_authenticator_that_the_settings_lack_refuses() -> None:
    """Policies that are ahead of the settings warn when they are loaded, and let nobody in."""
    text = authentication(f"[{KEYS}]", required=True) + OPEN
    assert any(
        "unknown_authenticator" in one and "warning" in one for one in problems_of(text, MeshSettings())
    )
    unaware = snapshot(text)
    for headers in ({"x-api-key": "k"}, {"authorization": "Basic YTpi"}, {"authorization": "Bearer t"}):
        decision = outcome_of(unaware, check_request(headers=headers)).decision
        assert (decision.code, decision.http_status) == (ReasonCode.UNKNOWN_AUTHENTICATOR, 401)
    assert outcome_of(unaware, check_request()).decision.code is ReasonCode.CREDENTIAL_REQUIRED


def test_no_reason_holds_a_credential() -> None:
    """Nor does what is printed of an inquiry."""
    secret = "s3cret-s3cret"
    text = authentication(f"[{KEYS}]") + OPEN
    call = check_request(headers={"x-api-key": secret})
    for answer in (Answer.refused("no"), Answer.unavailable("no"), Answer(Result.INSUFFICIENT, reason="no")):
        assert secret not in repr(outcome_of(text, call, {"keys": Fixed({secret: answer})}).decision)
    assert secret not in repr(outcome_of(text, call, {}).decision)
    asked, _ = come_to(text, call, {"keys": Fixed()})
    assert isinstance(asked, Inquiry)
    assert secret not in repr(asked)


# ----------------------------------------------------------------------------------------------- beside tokens

SIGNER = ed_signer()
TOKENS = str(Authentication(SIGNER.jwks()))


def token() -> str:
    """Return a good token."""
    return SIGNER.token({"iss": "https://issuer.example", "sub": "alice", "exp": NOW + 60})


def test_a_token_satisfies_what_is_required() -> None:
    """Somebody is known; that it was not by one of the document's own methods does not matter."""
    text = TOKENS + authentication(f"[{KEYS}]", required=True) + IDENTIFIED
    call = check_request(headers={"authorization": f"Bearer {token()}"})
    assert outcome_of(text, call, ALICE).decision.allowed
    assert outcome_of(text, check_request(), ALICE).decision.challenge == f"ApiKey {REALM}, Bearer {REALM}"


def test_a_token_and_a_credential_are_two() -> None:
    """Both good, and still it would be a guess who calls."""
    text = TOKENS + authentication(f"[{KEYS}]") + OPEN
    call = check_request(headers={"authorization": f"Bearer {token()}", "x-api-key": "alices-key"})
    decision = outcome_of(text, call, ALICE).decision
    assert (decision.code, decision.http_status) == (ReasonCode.INVALID_CREDENTIAL, 401)


def test_what_has_the_form_of_a_jws_is_left_to_token_rules() -> None:
    """Where both look, one of them has it: a JWT is never shown to an introspection endpoint."""
    opaque = {"opaque": Fixed({token(): good("mallory")})}
    text = TOKENS + authentication(f"[{OPAQUE}]") + IDENTIFIED
    claims = claims_of(text, check_request(headers={"authorization": f"Bearer {token()}"}), opaque)
    assert claims is not None
    assert claims["sub"] == "alice"
    assert opaque["opaque"].looked_up == []
    # Without rules for tokens it is a token like any other.
    claims = claims_of(
        authentication(f"[{OPAQUE}]") + IDENTIFIED,
        check_request(headers={"authorization": f"Bearer {token()}"}),
        opaque,
    )
    assert claims is not None
    assert claims["sub"] == "mallory"


def test_token_rules_learn_what_is_not_theirs() -> None:
    """Where a method looks, too, what has not the form of a JWS is no token; elsewhere it is a bad one."""
    both = str(Authentication(ed_signer().jwks())) + authentication(f"[{OPAQUE}]") + OPEN
    opaque = {"opaque": Fixed({"abc": good("mallory")})}
    outcome = outcome_of(both, check_request(headers={"authorization": "Bearer abc"}), opaque)
    assert outcome.decision.allowed
    token = check_request(headers={"authorization": "bearer a.b.c"})
    assert outcome_of(both, token, opaque).decision.code is ReasonCode.INVALID_TOKEN
    parameter = check_request(path="/?access_token=abc")
    assert outcome_of(both, parameter, opaque).decision.code is ReasonCode.INVALID_TOKEN
    alone = str(Authentication(ed_signer().jwks())) + OPEN
    opaque_alone = check_request(headers={"authorization": "Bearer abc"})
    assert outcome_of(alone, opaque_alone, opaque).decision.code is ReasonCode.INVALID_TOKEN


# ------------------------------------------------------------------------------------------------- documents


@pytest.mark.parametrize(
    ("methods", "expected"),
    [
        ("[]", "[too_short]"),
        ("[{}]", "spec.methods[0]: exactly one of"),
        ("[{authenticator: keys, anonymous: {}}]", "spec.methods[0]: exactly one of"),
        ("[{anonymous: {}, fromParams: [a]}]", "only an `authenticator` has `fromParams`"),
        ("[{anonymous: {}, forward: true}]", "has nothing to forward"),
        ("[{anonymous: {}}, {anonymous: {}}]", "twice"),
        ("[{authenticator: keys, fromHeaders: [{name: 'x y'}]}]", "[string_pattern_mismatch]"),
        ("[{authenticator: keys, fromHeaders: [{name: Cookie}]}]", "`cookie` is no place for a credential"),
        ("[{authenticator: keys, fromHeaders: [{name: x-forwarded-client-cert}]}]", "is no place for"),
        ("[{authenticator: keys, fromHeaders: [{name: ':path'}]}]", "[string_pattern_mismatch]"),
        ("[{authenticator: keys, fromCookies: ['a=b']}]", "is no name of a cookie"),
        ("[{authenticator: opaque}, {authenticator: pods}]", "methods[0] looks there, too"),
        (
            "[{authenticator: keys}, {authenticator: keys, fromHeaders: [{name: X-API-Key}]}]",
            "looks there, too",
        ),
        ("[{forwardedClientCertificate: {trustedPeers: []}}]", "[too_short]"),
        ("[{authenticator: keys, frmParams: [a]}]", "did you mean `fromParams`?"),
        ("[{authenticator: keys, issuer: a}, {authenticator: people, issuer: a}]", "[shared_issuer]"),
    ],
)
def test_mistakes_are_named(methods: str, expected: str) -> None:
    """Each at its place, and nothing is loaded."""
    problems = problems_of(authentication(methods), MESH)
    assert any(expected in problem and "warning" not in problem for problem in problems), problems


def test_required_and_anonymous_exclude_each_other() -> None:
    """One document cannot mean both."""
    problems = problems_of(authentication("[{anonymous: {}}]", required=True), MESH)
    assert any("[exclusive]" in problem for problem in problems)


def test_an_issuer_has_one_source() -> None:
    """A JWT's `alice` and an API key's `alice` must not look the same to policies."""
    text = TOKENS + authentication("[{authenticator: keys, issuer: 'https://issuer.example'}]")
    assert any("[shared_issuer]" in problem for problem in problems_of(text, MESH))
    # The same authenticator may have one issuer in several documents: its names mean the same everywhere.
    text = authentication("[{authenticator: keys, issuer: a}]") + authentication(
        "[{authenticator: keys, issuer: a}]", name="more"
    )
    assert problems_of(text, MESH) == []


def test_credentials_are_where_claims_come_from() -> None:
    """The lint that looks for policies about claims that nobody establishes knows of them."""
    there = IDENTIFIED.replace("namespace: default", "namespace: shop")
    tokens = str(Authentication(SIGNER.jwks()))

    def codes(text: str) -> list[str]:
        documents, _ = parse(text.encode(), "p.yaml")
        compiled, problems = compile_policies(documents, MESH)
        assert compiled is not None
        return [one.code for one in (*problems, *lint_policies(documents, MESH, compiled))]

    assert codes(tokens + there) == ["claims_without_tokens"]
    assert codes(tokens + there + authentication(f"[{KEYS}]", namespace="shop")) == []
    assert codes(authentication(f"[{KEYS}]") + there) == ["claims_without_tokens"]


def test_selectors_say_where_it_applies() -> None:
    """As those of RequestAuthentication: namespace, labels, and the root namespace for all."""
    destination = Destination("products.default.svc.cluster.local", "default", labels={"app": "products"})
    elsewhere = Destination("products.other.svc.cluster.local", "other")
    for spec, namespace, expected in (
        ("", "default", (True, False)),
        ("", "istio-system", (True, True)),
        ("selector: {matchLabels: {app: products}}", "default", (True, False)),
        ("selector: {matchLabels: {app: orders}}", "default", (False, False)),
    ):
        compiled = snapshot(authentication(f"[{KEYS}]", namespace=namespace, spec=spec), MESH)
        found = tuple(compiled.policies_for(one).credentials is not None for one in (destination, elsewhere))
        assert found == expected, spec


def test_a_peer_is_still_a_peer() -> None:
    """What mTLS says and what a credential says are two attributes; neither replaces the other."""
    text = authentication(f"[{KEYS}]") + IDENTIFIED
    call = check_request(source=principal("frontend"), headers={"x-api-key": "alices-key"})
    _, attributes = come_to(text, call, ALICE)
    assert attributes.principal == "cluster.local/ns/default/sa/frontend"
    assert attributes.values("request.auth.principal") == ["default/clients/keys/alice"]
