"""What a RequestAuthentication can say about tokens, and what follows from it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.checks import NOW, SERVICE, check_request, decide_on, outcome_on, role, snapshot
from support.tokens import ISSUER, Authentication, Signer, ec_signer, ed_signer, rsa_signer

from authz.authn import failures as failures_module
from authz.authn import jwt
from authz.authn.failures import Failures
from authz.decision import HeaderAction, HeaderMutation, Mutations, ReasonCode
from authz.environment import Environment
from garrison.errors import ConfigError
from garrison.keys.jwks import KeySet, KeySource, parse_jwks

ANYBODY = role("[{}]")


def removed(*names: str) -> tuple[HeaderMutation, ...]:
    """Return the removal of headers."""
    return tuple(HeaderMutation(name, action=HeaderAction.REMOVE) for name in names)


def rule(extra: str = "", **changes: Any) -> str:
    """Return policies with one rule of the RSA signer's, for anybody."""
    return str(Authentication(rsa_signer().jwks(), extra=extra, **changes)) + ANYBODY


def bearer(token: str, **headers: str) -> Any:
    """Return a call with a token."""
    return check_request(headers={"authorization": f"Bearer {token}", **headers})


def mutations(policies: str, request: Any) -> Mutations:
    """Return the changes to an allowed call."""
    outcome = outcome_on(policies, request)
    assert outcome.decision.allowed, outcome.decision
    return outcome.mutations


def reason(policies: str, request: Any, now: float = NOW) -> str:
    """Return why a call is 401."""
    decision = decide_on(policies, request, now)
    assert decision.http_status == 401, decision
    return decision.reason


class TestOutputs:
    """What the upstream is told of a token."""

    RULE = rule(
        "outputPayloadToHeader: X-Payload\n    outputClaimToHeaders: [{header: X-Sub, claim: sub}, "
        "{header: x-deep, claim: a.b-c.d}, {header: x-url, claim: 'https://x.example/role'}]\n"
        "    forwardOriginalToken: true"
    )

    def test_claims_and_payload_are_told(self) -> None:
        """The payload as it came, and claims by name or by path."""
        token = rsa_signer().token({"a": {"b-c": {"d": "deep"}}, "https://x.example/role": "admin"})
        assert mutations(self.RULE, bearer(token)).request_headers == (
            HeaderMutation("x-payload", token.split(".")[1]),
            HeaderMutation("x-sub", "a"),
            HeaderMutation("x-deep", "deep"),
            HeaderMutation("x-url", "admin"),
        )

    def test_what_the_caller_sent_there_is_removed_without_a_token(self) -> None:
        """A call without a token loses the headers that speak for one."""
        request = check_request(headers={"x-sub": "root", "x-payload": "forged"})
        assert mutations(self.RULE, request).request_headers == removed(
            "x-payload", "x-sub", "x-deep", "x-url"
        )

    def test_what_a_token_does_not_say_is_removed(self) -> None:
        """A claim that is absent leaves no header, whatever the caller sent."""
        token = rsa_signer().token({"sub": None})
        found = {one.name: one for one in mutations(self.RULE, bearer(token)).request_headers}
        assert found["x-sub"].action is HeaderAction.REMOVE
        assert found["x-payload"].value == token.split(".")[1]

    @pytest.mark.parametrize(
        ("value", "told"),
        [
            ("text", "text"),
            ("ünï", "ünï"),
            (5, "5"),
            (True, "true"),
            (False, "false"),
            (1.5, ""),
            (["a"], ""),
            ({"a": 1}, ""),
            ("", ""),
            ("two\r\nlines", ""),
            ("nul\x00", ""),
            (" padded ", ""),
        ],
    )
    def test_values(self, value: Any, told: str) -> None:
        """Strings, whole numbers and booleans are told as they are; what would have to be changed is not."""
        policies = rule("outputClaimToHeaders: [{header: x-v, claim: v}]\n    forwardOriginalToken: true")
        (change,) = mutations(policies, bearer(rsa_signer().token({"v": value}))).request_headers
        assert change == (HeaderMutation("x-v", told) if told else removed("x-v")[0])

    def test_headers_of_other_rules_are_removed(self) -> None:
        """A token of one issuer does not leave what the caller wrote into a header of another's."""
        other = Authentication(
            ec_signer("o").jwks(),
            issuer="https://o.example",
            name="other",
            extra="outputClaimToHeaders: [{header: x-other, claim: sub}]",
        )
        policies = rule("outputClaimToHeaders: [{header: x-ours, claim: sub}]") + str(other)
        changes = mutations(policies, bearer(rsa_signer().token(), **{"x-other": "root"})).request_headers
        assert changes == (*removed("authorization"), HeaderMutation("x-ours", "a"), *removed("x-other"))

    @pytest.mark.parametrize(
        ("field_", "code"),
        [
            ("outputPayloadToHeader: host", "output_header"),
            ("outputPayloadToHeader: ':path'", "output_header"),
            ("outputPayloadToHeader: 'a b'", "output_header"),
            ("outputClaimToHeaders: [{header: Content-Length, claim: a}]", "output_header"),
            ("outputClaimToHeaders: [{header: a, claim: a}, {header: A, claim: b}]", "output_header"),
            ("outputClaimToHeaders: [{header: a}]", "missing_field"),
        ],
    )
    def test_headers_that_cannot_be_set(self, field_: str, code: str) -> None:
        """A header that says how a message is read, or twice the same, is an error."""
        with pytest.raises(ConfigError) as caught:
            snapshot(rule(field_))
        assert [one.code for one in caught.value.diagnostics] == [code]


class TestPlaces:
    """Where tokens are looked for."""

    def test_a_cookie(self) -> None:
        """A token in a cookie counts, and the other cookies go on."""
        token = rsa_signer().token()
        policies = rule("fromCookies: [session]")
        request = check_request(headers={"cookie": f"theme=dark; session={token}"})
        assert mutations(policies, request).request_headers == (HeaderMutation("cookie", "theme=dark"),)
        assert decide_on(policies, check_request(headers={"cookie": "session=bad"})).http_status == 401
        assert mutations(policies, bearer("not looked at")).request_headers == ()

    def test_cookies_of_the_next_call_are_its_own(self) -> None:
        """What is remembered of a cookie header is not given to a call with other cookies."""
        policies = snapshot(rule("fromCookies: [session]"))
        token = rsa_signer().token()
        for theme in ("dark", "light", "dark"):
            outcome = outcome_on(
                policies, check_request(headers={"cookie": f"theme={theme}; session={token}"})
            )
            assert outcome.mutations.request_headers == (HeaderMutation("cookie", f"theme={theme}"),)

    def test_different_tokens_in_two_places(self) -> None:
        """A cookie and a header that disagree are refused, the same token twice is one."""
        policies = rule("fromCookies: [session]\n    fromHeaders: [{name: x-t}]")
        first, second = rsa_signer().token(), rsa_signer().token({"sub": "b"})
        request = check_request(headers={"cookie": f"session={first}", "x-t": second})
        assert reason(policies, request) == "more than one token was sent"
        twice = check_request(headers={"cookie": f"session={first}", "x-t": first})
        assert mutations(policies, twice).request_headers == removed("x-t", "cookie")

    def test_one_header_is_not_taken_for_another(self) -> None:
        """What was proved by a value in one header is not proved by it in another one."""
        one = Authentication(
            rsa_signer().jwks(), extra="fromHeaders: [{name: x-a}]", name="a", audiences=("x",)
        )
        two = Authentication(
            rsa_signer().jwks(), extra="fromHeaders: [{name: x-b}]", name="b", audiences=("y",)
        )
        policies = snapshot(str(one) + str(two) + ANYBODY)
        token = rsa_signer().token({"aud": "x"})
        for _ in range(2):
            assert decide_on(policies, check_request(headers={"x-a": token})).allowed
            assert decide_on(policies, check_request(headers={"x-b": token})).http_status == 403


class TestTimes:
    """`exp`, `nbf`, `iat`, with and without leeway."""

    @pytest.mark.parametrize("claim", ["nbf", "iat"])
    def test_the_future(self, claim: str) -> None:
        """A token from the future is refused until then, also when it was refused a moment before."""
        policies = snapshot(rule())
        request = bearer(rsa_signer().token({claim: NOW + 0.5}))
        assert decide_on(policies, request).http_status == 401
        assert decide_on(policies, request, NOW + 0.4).http_status == 401
        assert decide_on(policies, request, NOW + 0.5).allowed

    def test_leeway(self) -> None:
        """Clock skew widens both ends, and not further."""
        policies = snapshot(rule(annotations="garrison.dev/clock-skew: 30s"))
        token = bearer(rsa_signer().token({"nbf": NOW, "iat": NOW, "exp": NOW + 60}))
        for at, good in ((-31, False), (-30, True), (0, True), (89, True), (90, False), (-31, False)):
            assert decide_on(policies, token, NOW + at).allowed is good, at

    @pytest.mark.parametrize("claim", ["exp", "nbf", "iat"])
    @pytest.mark.parametrize("value", ["1", True, [], {}, 10**400, -(10**400)])
    def test_what_is_no_time(self, claim: str, value: Any) -> None:
        """A time that is no number, or one beyond every date, is refused, never an error of ours."""
        assert reason(rule(), bearer(rsa_signer().token({claim: value})))

    @given(st.integers(-100, 100), st.integers(-100, 100), st.integers(0, 100), st.integers(-300, 300))
    def test_window(self, begin: int, length: int, skew: int, at: int) -> None:
        """A token holds exactly from `nbf - skew` until before `exp + skew`."""
        policies = rule(annotations=f"garrison.dev/clock-skew: {skew}s")
        token = ed_signer().token({"nbf": NOW + begin, "exp": NOW + begin + length})
        policies = policies.replace(json.dumps(rsa_signer().jwks()), json.dumps(ed_signer().jwks()))
        good = begin - skew <= at < begin + length + skew
        assert decide_on(policies, bearer(token), NOW + at).allowed is good


class TestTypes:
    """`typ`."""

    @pytest.mark.parametrize(
        ("kind", "plain", "configured"),
        [
            ("JWT", True, False),
            ("at+jwt", True, True),
            ("application/AT+JWT", True, True),
            ("x-own", True, False),
            ("logout+jwt", False, False),
            ("application/secevent+JWT", False, False),
            ("dpop+jwt", False, False),
            ("", True, False),
            (None, True, False),
        ],
    )
    def test_types(self, kind: str | None, plain: bool, configured: bool) -> None:
        """Tokens for another purpose are refused; where types are named, only those are good."""
        request = bearer(rsa_signer().token(header={"typ": kind}))
        assert decide_on(rule(), request).allowed is plain
        policies = rule(annotations="garrison.dev/token-types: 'at+jwt, application/other+jwt'")
        assert decide_on(policies, request).allowed is configured

    def test_a_type_that_is_no_string(self) -> None:
        """`typ` has to be a string."""
        signer = rsa_signer()
        token = signer.token(header={"typ": None})
        assert decide_on(rule(), bearer(token)).allowed
        head = json.dumps({"alg": "RS256", "kid": "k1", "typ": ["JWT"]}).encode()
        assert reason(rule(), bearer(resigned(signer, head, token)))


def resigned(signer: Signer, header: bytes, token: str) -> str:
    """Return the claims of `token` signed under exactly this header."""
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415 - only here
    from cryptography.hazmat.primitives.asymmetric import padding  # noqa: PLC0415
    from support.tokens import encode_part  # noqa: PLC0415

    signed = f"{encode_part(header)}.{token.split('.')[1]}"
    signature = signer.key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
    return f"{signed}.{encode_part(signature)}"


@pytest.mark.parametrize(("depth", "good"), [(30, True), (31, True), (32, False), (500, False)])
@pytest.mark.parametrize("wide", [False, True])
def test_nesting(depth: int, good: bool, wide: bool) -> None:
    """More than 32 lists and objects inside each other are refused, even when they are signed; width is not."""
    value: Any = "x"
    for _ in range(depth):
        value = [value, "y"] if wide else {"a": value}
    assert decide_on(rule(), bearer(rsa_signer().token({"deep": value}))).allowed is good


def test_many_claims_beside_each_other() -> None:
    """A token with many lists is not a nested one."""
    assert decide_on(rule(), bearer(rsa_signer().token({"lists": [[], {}] * 100}))).allowed


@pytest.mark.parametrize(
    ("claims", "email"), [({"roles": "a b"}, True), ({"roles": ["a b"]}, False), ({"roles": "ab"}, False)]
)
def test_space_delimited_claims(claims: dict[str, Any], email: bool) -> None:
    """A claim that is named so is a list of its words; other strings stay as they are."""
    asked = role("[{}]", '[{properties: {"request.auth.claims[roles]": "b"}}]')
    split = str(Authentication(rsa_signer().jwks(), extra="spaceDelimitedClaims: [roles]")) + asked
    whole = str(Authentication(rsa_signer().jwks())) + asked
    request = bearer(rsa_signer().token(claims))
    assert decide_on(split, request).allowed is email
    assert not decide_on(whole, request).allowed


@pytest.mark.parametrize(
    ("method", "headers", "good"),
    [
        ("OPTIONS", {"origin": "https://a.example", "access-control-request-method": "PUT"}, True),
        ("OPTIONS", {"origin": "", "access-control-request-method": "PUT"}, False),
        ("OPTIONS", {"access-control-request-method": "PUT"}, False),
        ("OPTIONS", {"origin": "https://a.example"}, False),
        ("GET", {"origin": "https://a.example", "access-control-request-method": "PUT"}, False),
    ],
)
def test_preflight(method: str, headers: dict[str, str], good: bool) -> None:
    """A CORS preflight is nobody's call: its token is not looked at, and proves nothing."""
    request = check_request(method=method, headers={"authorization": "Bearer bad", **headers})
    assert decide_on(rule(), request).allowed is good
    asked = str(Authentication(rsa_signer().jwks())) + role(
        "[{}]", '[{properties: {"request.auth.principal": "*"}}]'
    )
    good_token = {"authorization": f"Bearer {rsa_signer().token()}", **headers}
    assert decide_on(asked, check_request(method=method, headers=good_token)).allowed is not good


@dataclass
class Fetched:
    """Keys as a fetcher would have them."""

    sets: dict[KeySource, KeySet] = field(default_factory=dict)
    asked: list[KeySource] = field(default_factory=list)

    def current(self, source: KeySource) -> KeySet | None:
        """Return the keys of `source`."""
        return self.sets.get(source)

    def missed(self, source: KeySource) -> None:
        """Note that a key was missed."""
        self.asked.append(source)


def from_uri(uri: str = "https://issuer.example/keys", issuer: str = ISSUER, extra: str = "") -> str:
    """Return policies whose keys are fetched."""
    where = f"jwksUri: {uri}" if uri else ""
    return f"""
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: fetched}}
spec:
  jwtRules:
  - issuer: "{issuer}"
    {where}
    {extra}
---
{ANYBODY}"""


def keys_of(*signers: Signer) -> KeySet:
    """Return the key set of `signers`."""
    return KeySet(parse_jwks(json.dumps({"keys": [one.jwk() for one in signers]})))


class TestFetchedKeys:
    """Keys that come from elsewhere."""

    SOURCE = KeySource("https://issuer.example/keys", ISSUER)

    @pytest.mark.parametrize(
        ("policies", "source"),
        [
            (from_uri(), SOURCE),
            (from_uri(""), KeySource("", ISSUER)),
            (from_uri("file:///etc/keys.json"), KeySource("file:///etc/keys.json", ISSUER)),
            (from_uri(extra="timeout: 1.5s"), KeySource(SOURCE.url, ISSUER, 1.5)),
            (from_uri(extra="timeout: 500ms"), KeySource(SOURCE.url, ISSUER, 0.5)),
            (from_uri(issuer=""), KeySource(SOURCE.url, "")),
        ],
    )
    def test_sources(self, policies: str, source: KeySource) -> None:
        """What has to be fetched is part of the compiled policies."""
        assert snapshot(policies).policies.key_sources == (source,)

    @pytest.mark.parametrize(
        ("policies", "code"),
        [
            (from_uri("ftp://a.example/keys"), "jwks_uri"),
            (from_uri("https://"), "jwks_uri"),
            (from_uri("https://a.example:0/"), "jwks_uri"),
            (from_uri("https://[::1"), "jwks_uri"),
            (from_uri("https://user:secret@a.example/"), "jwks_uri"),
            (from_uri("'https://a.example/ b'"), "jwks_uri"),
            (from_uri("file://host/keys"), "jwks_uri"),
            (from_uri("file:keys"), "jwks_uri"),
            (from_uri("", "not-a-url"), "jwks_uri"),
            (from_uri("", "file:///etc/passwd"), "jwks_uri"),
            (from_uri("", ""), "missing_field"),
            (from_uri(extra="timeout: 0s"), "duration"),
            (from_uri(extra="timeout: 31s"), "duration"),
            (from_uri(extra="timeout: soon"), "duration"),
            (from_uri(extra=f"jwks: '{ed_signer().jwks()}'"), "exclusive"),
            (from_uri("", "", extra=f"jwks: '{ed_signer().jwks()}'"), "missing_field"),
        ],
    )
    def test_what_cannot_be_fetched(self, policies: str, code: str) -> None:
        """A source that is none is an error at the rule, without a password in it."""
        with pytest.raises(ConfigError) as caught:
            snapshot(policies)
        assert [one.code for one in caught.value.diagnostics] == [code]
        assert "secret" not in str(caught.value)

    def test_no_keys_no_token(self) -> None:
        """Without keys every token is 401 and calls without one pass (CVE-2026-31837: there is no other key)."""
        policies = snapshot(from_uri())
        decision = decide_on(policies, bearer(rsa_signer().token()))
        assert (decision.http_status, decision.reason) == (
            401,
            "there are no keys of the token's issuer, or they are too old",
        )
        assert decide_on(policies, check_request()).allowed

    def test_keys_come_and_go(self) -> None:
        """A token is good from the moment its key is there until the moment it is gone, remembered or not."""
        policies, keys = snapshot(from_uri()), Fetched()
        old, new = rsa_signer("old"), ec_signer("new")
        first, second = bearer(old.token()), bearer(new.token())

        def good(request: Any) -> bool:
            return outcome_on(policies, request, NOW, Environment(keys=keys)).decision.allowed

        assert not good(first)
        keys.sets[self.SOURCE] = keys_of(old)
        assert good(first)
        assert good(first)
        assert not good(second)
        keys.sets[self.SOURCE] = keys_of(old, new)
        assert good(first)
        assert good(second)
        keys.sets[self.SOURCE] = keys_of(new)
        assert not good(first)
        assert good(second)
        del keys.sets[self.SOURCE]
        assert not good(second)

    def test_a_key_of_the_same_name_is_another_key(self) -> None:
        """When a `kid` gets a new key, tokens of the old one are refused though they were remembered."""
        policies, keys = snapshot(from_uri()), Fetched({self.SOURCE: keys_of(ec_signer("same"))})
        request = bearer(ec_signer("same").token())
        assert outcome_on(policies, request, NOW, Environment(keys=keys)).decision.allowed
        keys.sets[self.SOURCE] = keys_of(Signer(ed_signer("x").key, "EdDSA", "same"))
        assert outcome_on(policies, request, NOW, Environment(keys=keys)).decision.http_status == 401

    def test_an_unknown_key_is_asked_for(self) -> None:
        """A `kid` that is not there is reported each time; a bad signature is not."""
        policies, keys = snapshot(from_uri()), Fetched({self.SOURCE: keys_of(rsa_signer("a"))})
        stranger = bearer(Signer(rsa_signer("other").key, "RS256", "a").token())
        outcome_on(policies, stranger, NOW, Environment(keys=keys))
        assert keys.asked == []
        for _ in range(2):
            outcome_on(policies, bearer(rsa_signer("b").token()), NOW, Environment(keys=keys))
        assert keys.asked == [self.SOURCE, self.SOURCE]

    def test_a_rule_without_issuer_takes_what_no_other_rule_names(self) -> None:
        """Keys without an issuer do not speak for an issuer that has keys of its own."""
        policies = snapshot(from_uri(issuer="") + str(Authentication(ec_signer("own").jwks(), name="own")))
        keys = Fetched({KeySource(self.SOURCE.url): keys_of(rsa_signer())})

        def good(token: str) -> bool:
            return outcome_on(policies, bearer(token), NOW, Environment(keys=keys)).decision.allowed

        assert good(rsa_signer().token({"iss": "https://anybody.example"}))
        assert good(rsa_signer().token({"iss": None}))
        assert not good(rsa_signer().token())
        assert good(ec_signer("own").token())


class TestSvids:
    """JWT-SVIDs by their own profile."""

    ID = "spiffe://cluster.local/ns/default/sa/a"
    GOOD: ClassVar[dict[str, Any]] = {"iss": None, "sub": ID, "aud": ["orders"], "email": None}

    def policies(self, jwks: str = "", subject: str = "*") -> str:
        """Return policies that want a JWT-SVID of cluster.local."""
        return str(
            Authentication(
                jwks or ec_signer().jwks(use="jwt-svid"),
                issuer="spiffe://cluster.local",
                audiences=("orders",),
                annotations="garrison.dev/token-profile: jwt-svid",
            )
        ) + role("[{}]", f'[{{properties: {{"request.auth.principal": "{subject}"}}}}]')

    def test_a_good_one(self) -> None:
        """The trust domain stands for the issuer, whatever the token says of one."""
        for issuer in (None, "https://oidc.cluster.example", ISSUER):
            token = ec_signer().token({**self.GOOD, "iss": issuer})
            policies = self.policies(subject=f"spiffe://cluster.local/{self.ID}")
            assert decide_on(policies, bearer(token)).allowed
        assert not decide_on(self.policies(subject=f"{ISSUER}/*"), bearer(token)).allowed

    @pytest.mark.parametrize(
        "changes",
        [
            {"sub": "spiffe://other.example/ns/default/sa/a"},
            {"sub": "spiffe://cluster.local"},
            {"sub": "spiffe://cluster.local/a/../b"},
            {"sub": "SPIFFE://cluster.local/a"},
            {"sub": "a"},
            {"sub": None},
            {"sub": 5},
            {"aud": None},
            {"aud": []},
            {"exp": None},
            {"exp": NOW},
        ],
    )
    def test_what_is_none(self, changes: dict[str, Any]) -> None:
        """Subject, audience and expiry are required, and the subject is in the rule's trust domain."""
        assert reason(self.policies(), bearer(ec_signer().token({**self.GOOD, **changes})))

    def test_another_audience(self) -> None:
        """An SVID for somebody else is 403."""
        token = ec_signer().token({**self.GOOD, "aud": "billing"})
        assert decide_on(self.policies(), bearer(token)).http_status == 403

    @pytest.mark.parametrize(
        ("kind", "good"), [("JWT", True), ("JOSE", True), (None, True), ("at+jwt", False)]
    )
    def test_types(self, kind: str | None, good: bool) -> None:
        """`typ` is JWT or JOSE if it is there (JWT-SVID, section 2.2)."""
        token = ec_signer().token(self.GOOD, {"typ": kind})
        assert decide_on(self.policies(), bearer(token)).allowed is good

    def test_algorithms(self) -> None:
        """EdDSA is none of the profile's algorithms."""
        policies = self.policies(ed_signer().jwks(use="jwt-svid"))
        assert "kid" in reason(policies, bearer(ed_signer().token(self.GOOD)))

    def test_keys_for_svids_verify_nothing_else(self) -> None:
        """A key of a SPIFFE bundle does not sign tokens of an issuer."""
        policies = str(Authentication(ec_signer().jwks(use="jwt-svid"))) + ANYBODY
        assert "kid" in reason(policies, bearer(ec_signer().token()))

    def test_x509_authorities_in_the_bundle_are_left_out(self) -> None:
        """A SPIFFE bundle holds keys of both kinds; those of X.509 sign no tokens."""
        keys = [rsa_signer("x").jwk(use="x509-svid", kid=None), ec_signer().jwk(use="jwt-svid")]
        assert [key.kid for key in parse_jwks(json.dumps({"keys": keys}))] == ["k1"]

    @pytest.mark.parametrize(
        ("issuer", "audiences"),
        [
            ("cluster.local", ("a",)),
            ("spiffe://", ("a",)),
            ("spiffe://A/b", ("a",)),
            ("spiffe://cluster.local", ()),
        ],
    )
    def test_rules_that_lack_something(self, issuer: str, audiences: tuple[str, ...]) -> None:
        """The rule names a trust domain and at least one audience."""
        text = Authentication(
            ec_signer().jwks(),
            issuer=issuer,
            audiences=audiences,
            annotations="garrison.dev/token-profile: jwt-svid",
        )
        with pytest.raises(ConfigError) as caught:
            snapshot(str(text))
        assert [one.code for one in caught.value.diagnostics] == ["jwt_svid"]


@pytest.mark.parametrize(
    "annotation",
    [
        "garrison.dev/clock-skw: 1s",
        "garrison.dev/clock-skew: soon",
        "garrison.dev/clock-skew: 301s",
        "garrison.dev/token-types: ''",
        "garrison.dev/token-types: 'at+jwt,'",
        "garrison.dev/token-types: 'a b'",
        "garrison.dev/token-profile: jwt_svid",
    ],
)
def test_annotations_that_say_nothing(annotation: str) -> None:
    """A slip in an annotation of ours is an error; those of others mean nothing."""
    with pytest.raises(ConfigError) as caught:
        snapshot(rule(annotations=annotation))
    assert [one.code for one in caught.value.diagnostics] == ["annotation"]
    assert caught.value.diagnostics[0].field[:2] == ("metadata", "annotations")
    assert decide_on(rule(annotations="example.com/garrison.dev: x"), check_request()).allowed


class TestMemory:
    """What is remembered of tokens."""

    def test_tokens_themselves_are_not_kept(self) -> None:
        """Memory holds hashes and claims, no token that could be sent again."""
        policies = snapshot(rule())
        token = rsa_signer().token()
        decide_on(policies, bearer(token))
        rules = tokens_of(policies)
        assert rules.proved
        assert rules.rules[0].verified
        held = repr((rules.proved, rules.rules[0].verified, rules.refused))
        assert token.rpartition(".")[2] not in held

    def test_memory_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Both kinds of memory forget the oldest, and go on."""
        monkeypatch.setattr(jwt, "MAX_CACHED_TOKENS", 3)
        monkeypatch.setattr(jwt, "MAX_REFUSED_TOKENS", 3)
        policies = snapshot(str(Authentication(ed_signer().jwks())) + ANYBODY)
        for number in range(10):
            assert decide_on(policies, bearer(ed_signer().token({"sub": str(number)}))).allowed
            assert decide_on(policies, bearer(f"bad.{number}.x")).http_status == 401
        rules = tokens_of(policies)
        assert (len(rules.proved), len(rules.refused), len(rules.rules[0].verified)) == (3, 3, 3)

    def test_a_reload_keeps_what_unchanged_documents_verified(self) -> None:
        """Equal documents compiled once share what their rules verified."""
        policies = snapshot(rule())
        decide_on(policies, bearer(rsa_signer().token()))
        rules = tokens_of(policies)
        again = jwt.TokenRules.of(rules.rules)
        assert again is not None
        assert again.rules[0].verified is rules.rules[0].verified

    def test_a_refused_token_is_not_verified_again_at_once(self) -> None:
        """Within a second the same bad token costs a look-up; then it is looked at again."""
        policies, failures = snapshot(rule()), Failures()
        request = bearer(Signer(rsa_signer("z").key, "RS256", "k1").token())
        environment = Environment(failures=failures)
        looked = []
        for at in (0.0, 0.1, 0.9, 1.0, -5.0):
            before = failures._overall
            assert outcome_on(policies, request, NOW + at, environment).decision.http_status == 401
            looked.append(failures._overall != before)
        assert looked == [True, False, False, True, True]


def tokens_of(policies: Any) -> Any:
    """Return the token rules of the tests' destination."""
    (found,) = policies._destinations.values()
    return found.tokens


class TestFlood:
    """Senders of bad tokens."""

    def bad(self, number: int, source_ip: str = "10.0.0.1") -> Any:
        """Return a call whose token has a bad signature."""
        token = Signer(ed_signer("z").key, "EdDSA", "k1").token({"sub": str(number)})
        return check_request(headers={"authorization": f"Bearer {token}"}, source_ip=source_ip)

    def test_senders_of_too_many_are_not_looked_at(self) -> None:
        """Above the rate unknown tokens of that sender are 429, known ones and those of others go on."""
        policies = snapshot(str(Authentication(ed_signer().jwks())) + ANYBODY)
        environment = Environment(failures=Failures(per_sender=3, overall=5))

        def ask(request: Any, at: float = 0.0) -> int:
            decision = outcome_on(policies, request, NOW + at, environment).decision
            if decision.http_status == 429:
                assert (decision.code, decision.challenge) == (ReasonCode.TOO_MANY_BAD_TOKENS, "")
            return decision.http_status

        known = bearer(ed_signer().token())
        assert ask(known) == 200
        assert [ask(self.bad(number)) for number in range(4)] == [401, 401, 401, 429]
        assert ask(known) == 200
        new = ed_signer().token({"sub": "new"})
        assert ask(bearer(new)) == 429
        elsewhere = check_request(headers={"authorization": f"Bearer {new}"}, source_ip="10.0.0.2")
        assert ask(elsewhere) == 200
        assert [ask(self.bad(number, "10.0.0.2")) for number in range(10, 13)] == [401, 401, 429]
        assert [ask(self.bad(20), 1.0), ask(bearer(ed_signer().token({"sub": "later"})), 1.0)] == [401, 200]

    def test_a_clock_that_is_set_back_does_not_lock_anybody_out(self) -> None:
        """Failures of a later time than now are forgotten."""
        failures = Failures(per_sender=1, overall=1)
        failures.count("a", NOW)
        assert not failures.allow("a", NOW)
        assert failures.allow("a", NOW - 3600)

    def test_senders_that_keep_still_are_forgotten(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """However many addresses there are, memory is bounded by the rate."""
        monkeypatch.setattr(failures_module, "_MANY_SENDERS", 10)
        failures = Failures(per_sender=100, overall=1000)
        for number in range(1000):
            failures.count(str(number), NOW + number)
        assert len(failures._senders) <= 11

    @given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3000)), max_size=80))
    def test_rates_hold(self, events: list[tuple[str, int]]) -> None:
        """Over any stretch of time no more failures are looked at than its length and one burst allow."""
        per_sender, overall = 2, 3
        failures = Failures(per_sender, overall)
        seen: list[tuple[str, float]] = []
        for sender, milliseconds in sorted(events, key=lambda event: event[1]):
            now = NOW + milliseconds / 1000
            if failures.allow(sender, now):
                failures.count(sender, now)
                seen.append((sender, now))
        for first, (_, begin) in enumerate(seen):
            for last in range(first, len(seen)):
                stretch = seen[last][1] - begin
                found = [sender for sender, _ in seen[first : last + 1]]
                assert len(found) <= overall + overall * stretch + 1e-4
                for sender in set(found):
                    assert found.count(sender) <= per_sender + per_sender * stretch + 1e-4


def test_the_challenge_names_the_service() -> None:
    """The realm is the destination's service, without what would end the quotes (RFC 9110, 5.6.4)."""
    assert f'realm="{SERVICE}"' in decide_on(rule(), bearer("x")).challenge
    rules = jwt.TokenRules.of(snapshot(rule()).policies.tokens[0].rules, 'a"b\\c\r\nd')
    assert rules is not None
    assert rules.realm == "abcd"
