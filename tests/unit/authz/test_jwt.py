"""Tokens: what they prove, and 401 or 403 in exactly the right situations."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.checks import NOW, check_request, decide_on, principal, role, snapshot
from support.tokens import ISSUER, Authentication, Signer, ec_signer, ed_signer, forge, rsa_signer

from authz.decision import Decision
from garrison.keys.jwks import KeySetError, parse_jwks

EMAIL = role("[{}]", '[{properties: {"request.auth.claims[email]": "a@foo.com"}}]')


def bearer(token: str) -> dict[str, str]:
    """Return the headers that carry `token`."""
    return {"authorization": f"Bearer {token}"}


def ask(token: str | None, policies: str = "", **request: Any) -> Decision:
    """Return the decision for a call with `token` under the e-mail role."""
    text = policies or str(Authentication(rsa_signer().jwks())) + EMAIL
    headers = bearer(token) if token is not None else {}
    return decide_on(text, check_request(headers=headers, **request))


@pytest.mark.parametrize("signer", [rsa_signer(), ec_signer(), ed_signer()])
def test_a_good_token_of_each_key_type_allows(signer: Signer) -> None:
    """RSA, P-256 and Ed25519 tokens verify and their claims count."""
    assert ask(signer.token(), str(Authentication(signer.jwks())) + EMAIL).allowed


@pytest.mark.parametrize(
    ("claims", "status", "reason"),
    [
        ({"email": "b@foo.com"}, 403, "request.auth.claims[email] `b@foo.com` is not `a@foo.com`"),
        ({"email": None}, 403, "request.auth.claims[email] is absent"),
        ({"email": 5}, 403, "request.auth.claims[email] is absent"),
        ({"email": {"a@foo.com": 1}}, 403, "absent"),
        ({"email": "x a@foo.com"}, 403, "is not"),
        ({"exp": NOW}, 401, "the token has expired"),
        ({"exp": NOW - 1}, 401, "the token has expired"),
        ({"exp": None}, 401, "the token has no expiry"),
        ({"nbf": NOW + 1}, 401, "the token is not valid yet"),
        ({"iss": "https://stranger.example"}, 401, "the token's issuer is not one that is configured here"),
        ({"iss": None}, 401, "issuer"),
    ],
)
def test_claims(claims: dict[str, Any], status: int, reason: str) -> None:
    """A token that proves nothing is 401; one that proves the wrong thing is 403."""
    decision = ask(rsa_signer().token(claims))
    assert (decision.allowed, decision.http_status) == (False, status)
    assert reason in decision.reason


def test_list_claims_match_by_any_element() -> None:
    """A list claim matches when one of its strings does."""
    assert ask(rsa_signer().token({"email": ["x", "a@foo.com", 5]})).allowed


def test_no_token_passes_without_identity() -> None:
    """Without a token there is no 401: the role decides, and says which claim is absent."""
    decision = ask(None)
    assert (decision.http_status, decision.challenge) == (403, "")
    assert "request.auth.claims[email] is absent" in decision.reason


def test_a_strangers_signature_is_401_with_a_challenge() -> None:
    """A token signed by a key that is not configured, under the right `kid`, does not verify."""
    stranger = Signer(ec_signer("s").key, "ES256", "k1")
    policies = str(Authentication(Signer(ec_signer("t").key, "ES256", "k1").jwks())) + EMAIL
    decision = ask(stranger.token(), policies)
    assert (decision.http_status, decision.reason) == (401, "the token's signature does not verify")
    assert decision.challenge == (
        'Bearer realm="products.default.svc.cluster.local", error="invalid_token", '
        'error_description="the token\'s signature does not verify"'
    )


def test_an_invalid_token_is_401_even_where_anybody_may_go() -> None:
    """A bad token is refused before roles are looked at."""
    policies = str(Authentication(rsa_signer().jwks())) + role("[{}]")
    assert ask(None, policies).allowed
    assert ask("nonsense", policies).http_status == 401


def test_audiences() -> None:
    """A valid token for somebody else is 403; one of the audiences suffices."""
    policies = str(Authentication(rsa_signer().jwks(), audiences=("web", "api"))) + EMAIL
    assert ask(rsa_signer().token({"aud": "api"}), policies).allowed
    assert ask(rsa_signer().token({"aud": ["x", "web"]}), policies).allowed
    audiences: list[Any] = ["other", None, [], 5]
    for audience in audiences:
        assert ask(rsa_signer().token({"aud": audience}), policies).http_status == 403


def test_selector_and_namespace_choose_the_workloads() -> None:
    """A RequestAuthentication is for its namespace, or for all when it stands in the root namespace."""
    token = rsa_signer().token()
    extensions = {"destination.labels[app]": "products"}
    selected = str(Authentication(rsa_signer().jwks(), selector="selector: {matchLabels: {app: products}}"))
    assert ask(token, selected + EMAIL, extensions=extensions).allowed
    assert ask(token, selected + EMAIL).http_status == 403
    assert ask(token, str(Authentication(rsa_signer().jwks(), namespace="other")) + EMAIL).http_status == 403
    assert ask(token, str(Authentication(rsa_signer().jwks(), namespace="istio-system")) + EMAIL).allowed


def test_token_locations() -> None:
    """Explicit locations replace the defaults; a token elsewhere is no token."""
    token = rsa_signer().token()
    default = str(Authentication(rsa_signer().jwks())) + EMAIL
    assert decide_on(default, check_request(path=f"/?access_token={token}")).allowed
    assert decide_on(default, check_request(headers={"authorization": f"bearer {token}"})).allowed
    assert not decide_on(default, check_request(headers={"authorization": f"Basic {token}"})).allowed
    places = "fromHeaders: [{name: X-Token, prefix: 'T '}]\n    fromParams: [t]"
    explicit = str(Authentication(rsa_signer().jwks(), extra=places)) + EMAIL
    assert decide_on(explicit, check_request(headers={"x-token": f"T {token}"})).allowed
    assert decide_on(explicit, check_request(path=f"/?t={token}")).allowed
    assert decide_on(explicit, check_request(headers=bearer(token))).http_status == 403


def test_two_tokens_are_refused() -> None:
    """Which of two tokens speaks for the caller would be a guess."""
    first, second = rsa_signer().token(), rsa_signer().token({"sub": "b"})
    policies = str(Authentication(rsa_signer().jwks())) + EMAIL
    request = check_request(headers=bearer(first), path=f"/?access_token={second}")
    assert decide_on(policies, request).http_status == 401
    twice = check_request(headers=bearer(first), path=f"/?access_token={first}")
    assert decide_on(policies, twice).allowed
    joined = check_request(headers={"authorization": f"Bearer {first},Bearer {second}"})
    assert decide_on(policies, joined).http_status == 401
    repeated = check_request(
        raw_headers=[("authorization", bearer(token)["authorization"].encode()) for token in (first, second)]
    )
    assert decide_on(policies, repeated).http_status == 401


def test_a_verified_token_is_remembered_but_not_past_its_expiry() -> None:
    """The second call does not verify again, and expiry still counts."""
    compiled = snapshot(str(Authentication(rsa_signer().jwks())) + EMAIL)
    request = check_request(headers=bearer(rsa_signer().token({"exp": NOW + 10})))
    assert decide_on(compiled, request).allowed
    assert decide_on(compiled, request, NOW + 9).allowed
    assert decide_on(compiled, request, NOW + 10).http_status == 401


def test_claims_and_peer_must_both_hold() -> None:
    """The ingress speaks for a user only with that user's token."""
    policies = str(Authentication(rsa_signer().jwks())) + role(
        "[{}]", '[{user: ingress, properties: {"request.auth.claims[email]": "a@foo.com"}}]'
    )
    token = rsa_signer().token()
    assert ask(token, policies, source=principal("ingress")).allowed
    assert not ask(token, policies, source=principal("other")).allowed
    assert not ask(None, policies, source=principal("ingress")).allowed


def test_request_principal_audiences_and_presenter() -> None:
    """`request.auth.principal` is issuer/subject; audiences and presenter are `aud` and `azp`."""
    properties = f'{{request.auth.principal: "{ISSUER}/a", request.auth.audiences: "web", request.auth.presenter: "p"}}'
    policies = str(Authentication(rsa_signer().jwks())) + role("[{}]", f"[{{properties: {properties}}}]")
    assert ask(rsa_signer().token({"aud": ["x", "web"], "azp": "p"}), policies).allowed
    assert not ask(rsa_signer().token({"aud": ["x", "web"]}), policies).allowed


@pytest.mark.parametrize(
    ("jwks", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "has no list `keys`"),
        ('{"keys": []}', "has no key that verifies signatures"),
        ('{"keys": [5]}', r"keys\[0\] is not an object"),
        ('{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}', "symmetric"),
        ('{"keys": [{"kty": "RSA", "n": "!", "e": "AQAB"}]}', r"keys\[0\] is not a usable key"),
        (json.dumps({"keys": [rsa_signer().jwk(d="x")]}), "private key"),
        (rsa_signer().jwks(alg="ES256"), "does not fit the key"),
        (rsa_signer().jwks(alg="HS256"), "does not fit the key"),
        (rsa_signer().jwks(alg="none"), "does not fit the key"),
        (rsa_signer("weak", 1024).jwks(), "1024 bits"),
        ('{"keys": [], "keys": []}', "a name stands twice"),
    ],
)
def test_unusable_key_sets(jwks: str, message: str) -> None:
    """A key set that could verify what it should not is refused when it is loaded."""
    with pytest.raises(KeySetError, match=message):
        parse_jwks(jwks)


def test_keys_for_other_uses_are_left_out() -> None:
    """Unknown types and encryption keys do not spoil a set (RFC 7517, section 5)."""
    keys = [{"kty": "XYZ"}, rsa_signer().jwk(use="enc"), ec_signer("e").jwk()]
    assert [key.kid for key in parse_jwks(json.dumps({"keys": keys}))] == ["e"]


def test_forged_tokens_carry_nothing_into_reasons() -> None:
    """What a caller writes into a token never shows up in a reason."""
    decision = ask(forge({"alg": "RS256", "kid": "evil-kid"}, {"iss": ISSUER, "exp": NOW + 1, "x": "evil"}))
    assert decision.http_status == 401
    assert "evil" not in decision.reason + decision.challenge + decision.public


def test_two_rules_for_one_issuer_are_both_tried() -> None:
    """Keys and audiences of every rule with the token's issuer count, in whatever order they stand."""
    first = Authentication(ec_signer("one").jwks(), audiences=("a",), name="one")
    second = Authentication(rsa_signer().jwks(), audiences=("b",), name="two")
    third = Authentication(rsa_signer().jwks(), audiences=("c",), name="three")
    for order in ((first, second, third), (third, second, first)):
        policies = "".join(map(str, order)) + EMAIL
        assert ask(rsa_signer().token({"aud": "b"}), policies).allowed
        assert ask(rsa_signer().token({"aud": "c"}), policies).allowed
        assert ask(rsa_signer().token({"aud": "a"}), policies).http_status == 403
        assert ask(ec_signer("one").token({"aud": "a"}), policies).allowed


def test_reasons_do_not_show_credentials() -> None:
    """A header that is called like a credential is named in a reason, its values are not."""
    policies = role('[{constraints: [{key: "request.headers[x-token]", values: ["right-secret"]}]}]')
    decision = decide_on(policies, check_request(headers={"x-token": "wrong-secret"}))
    assert "request.headers[x-token] does not fit" in decision.reason
    assert "secret" not in decision.reason
