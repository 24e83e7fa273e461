"""The classic attacks on JWT verifiers (RFC 8725), one by one: none of them proves anything."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checks import NOW, check_request, decide_on, role, snapshot
from support.tokens import (
    ISSUER,
    Authentication,
    Signer,
    ec_signer,
    ed_signer,
    encode_part,
    forge,
    rsa_signer,
)

from authz.decision import Decision
from garrison.keys.jwks import KeySetError, parse_jwks

GOOD: dict[str, Any] = {"iss": ISSUER, "sub": "a", "exp": NOW + 60, "email": "a@foo.com"}
POLICIES = snapshot(
    str(Authentication(rsa_signer().jwks()))
    + role("[{}]", '[{properties: {"request.auth.claims[email]": "a@foo.com"}}]')
)


def ask(token: str) -> Decision:
    """Return the decision for a call with `token`."""
    return decide_on(POLICIES, check_request(headers={"authorization": f"Bearer {token}"}))


def hmac_token(header: dict[str, Any], secret: bytes) -> str:
    """Return a token signed with HMAC-SHA256."""
    signed = f"{encode_part(json.dumps(header).encode())}.{encode_part(json.dumps(GOOD).encode())}"
    return f"{signed}.{encode_part(hmac.new(secret, signed.encode(), hashlib.sha256).digest())}"


def test_the_control() -> None:
    """The same call with an honest token is allowed, so the denials below are for the token."""
    assert ask(rsa_signer().token()).allowed


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", "", None, 5])
def test_alg_none(algorithm: Any) -> None:
    """An unsigned token is refused in every spelling, with and without a signature part."""
    header = {"alg": algorithm, "typ": "JWT"}
    assert ask(forge(header, GOOD)).http_status == 401
    assert ask(forge(header, GOOD, b"")).http_status == 401
    assert ask(forge(header, GOOD, b"").rstrip(".")).http_status == 401


def test_hmac_with_the_public_key() -> None:
    """A public key is no HMAC secret (algorithm confusion, CVE-2016-5431 and its kin)."""
    pem = rsa_signer().public_pem()
    for secret in (pem, pem.strip(), rsa_signer().jwks().encode()):
        assert ask(hmac_token({"alg": "HS256", "kid": "k1"}, secret)).http_status == 401


@pytest.mark.parametrize(
    "extra",
    [
        {"jwk": ec_signer("evil").jwk()},
        {"jku": "https://evil.example/jwks.json"},
        {"x5u": "https://evil.example/cert.pem"},
        {"x5c": ["MIIB"]},
        {"kid": "../../../../dev/null"},
        {"kid": "' OR 1=1 --"},
        {"kid": ["k1"]},
        {"kid": {"k1": 1}},
        {"kid": "k1\x00"},
        {"crit": ["exp"]},
        {"crit": []},
        {"b64": False},
    ],
)
def test_headers_that_bring_or_choose_a_key(extra: dict[str, Any]) -> None:
    """Keys come from the policy, never from the token; extensions that are not understood are refused."""
    token = ec_signer("evil").token(GOOD, {"kid": "k1"})
    _, payload, signature = token.split(".")
    header = encode_part(json.dumps({"alg": "ES256", "kid": "k1", **extra}).encode())
    assert ask(f"{header}.{payload}.{signature}").http_status == 401


@pytest.mark.parametrize(
    "payload",
    [
        b'{"iss":"https://issuer.example","exp":9999999999,"exp":1,"email":"a@foo.com"}',
        json.dumps(GOOD).encode("utf-16"),
        b"\xef\xbb\xbf" + json.dumps(GOOD).encode(),
        b"[" * 5000,
        b'{"a":' * 5000,
        b"null",
        b"[]",
        b'"a"',
        b"\xff\xfe",
        b'{"iss":"https://issuer.example","exp":NaN}',
        b'{"iss":"https://issuer.example","exp":Infinity}',
    ],
)
def test_payloads_that_parsers_disagree_on(payload: bytes) -> None:
    """Duplicate names, other encodings, deep nesting and JSON that is none are refused."""
    assert ask(forge({"alg": "RS256", "kid": "k1"}, payload)).http_status == 401


@pytest.mark.parametrize("exp", ["9999999999", True, 1e400, -1, 0, [NOW + 60], {"a": 1}])
def test_expiry_of_the_wrong_kind_even_when_signed(exp: Any) -> None:
    """`exp` is a finite number; a signature does not make anything else of it."""
    payload = json.dumps({**GOOD, "exp": exp}).replace("Infinity", "1e400").encode()
    signed = f"{encode_part(json.dumps({'alg': 'RS256', 'kid': 'k1'}).encode())}.{encode_part(payload)}"
    signature = rsa_signer().key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
    assert ask(f"{signed}.{encode_part(signature)}").http_status == 401


def test_signature_malleability() -> None:
    """Another spelling of the same base64, white space or padding is another string, and refused."""
    token = rsa_signer().token()
    head, payload, signature = token.split(".")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    sibling = alphabet[alphabet.index(signature[-1]) ^ 1]
    for changed in (
        f"{head}.{payload}.{signature}=",
        f"{head}.{payload}.{signature}==",
        f"{head}.{payload}.{signature[:-1]}{sibling}",
        f"{head}.{payload}.{signature}\n",
        f"{head}.{payload} .{signature}",
        f"{head}.{payload}.{signature}.",
        f"{head}.{payload}.{signature}.{signature}",
        f"{head}..{signature}",
        token.replace("-", "+").replace("_", "/") + ("x" if "-" not in token and "_" not in token else ""),
    ):
        assert ask(changed).http_status == 401, changed


def test_tokens_of_another_issuer_are_not_replayed() -> None:
    """A valid token of one configured issuer does not pass as another's."""
    other = str(Authentication(ec_signer("o").jwks(), issuer="https://other.example", name="other"))
    policies = snapshot(str(Authentication(rsa_signer().jwks())) + other + role("[{}]"))

    def allowed(token: str) -> bool:
        return decide_on(policies, check_request(headers={"authorization": f"Bearer {token}"})).allowed

    assert allowed(ec_signer("o").token({"iss": "https://other.example"}))
    assert not allowed(ec_signer("o").token({"iss": ISSUER}))
    assert not allowed(rsa_signer().token({"iss": "https://other.example"}))


def test_huge_tokens_are_refused_before_they_are_parsed() -> None:
    """5 MB of token costs no more than its length check."""
    assert "more than" in ask("a" * 5_000_000).reason
    assert "more than" in ask(rsa_signer().token({"x": "y" * 20_000})).reason


@pytest.mark.parametrize(
    "signature",
    [
        b"\x00" * 64,
        b"\x00" * 63 + b"\x01",
        b"\xff" * 64,
        b"",
        b"\x00" * 32,
        b"\x30\x06\x02\x01\x00\x02\x01\x00",
    ],
)
def test_psychic_signatures(signature: bytes) -> None:
    """CVE-2022-21449: an ECDSA signature of zeros, or one in another form, verifies nothing."""
    policies = snapshot(str(Authentication(ec_signer().jwks())) + role("[{}]"))
    token = forge({"alg": "ES256", "kid": "k1"}, GOOD, signature or b"x")
    request = check_request(headers={"authorization": f"Bearer {token}"})
    assert decide_on(policies, request).http_status == 401


def test_ed25519_signatures_have_one_form() -> None:
    """RFC 8032, section 5.1.7: a signature whose scalar has the group's order added to it is refused."""
    policies = snapshot(str(Authentication(ed_signer().jwks())) + role("[{}]"))
    signed, _, signature = ed_signer().token().rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    scalar = int.from_bytes(raw[32:], "little") + 2**252 + 27742317777372353535851937790883648493
    again = encode_part(raw[:32] + scalar.to_bytes(32, "little"))
    for text, good in ((f"{signed}.{signature}", True), (f"{signed}.{again}", False)):
        assert decide_on(policies, check_request(headers={"authorization": f"Bearer {text}"})).allowed is good


def test_a_key_is_used_with_its_own_algorithm() -> None:
    """A key whose `alg` is PS256 does not verify RS256 tokens that its owner signed (RFC 8725, section 3.1)."""
    policies = snapshot(str(Authentication(rsa_signer().jwks(alg="PS256"))) + role("[{}]"))
    for algorithm, good in (("PS256", True), ("RS256", False)):
        token = Signer(rsa_signer().key, algorithm).token()
        assert (
            decide_on(policies, check_request(headers={"authorization": f"Bearer {token}"})).allowed is good
        )


@pytest.mark.parametrize(
    "header",
    [
        b'{"alg":"RS256","alg":"none","kid":"k1"}',
        b'{"alg":"none","alg":"RS256","kid":"k1"}',
        b'{"alg":"RS256","kid":"k1","kid":"k2"}',
        b'{"alg":"RS256","kid":"k1","crit":["exp"],"exp":1}',
        b'{"alg":["RS256"],"kid":"k1"}',
        b'{"alg":"RS256\\u0000","kid":"k1"}',
        b'{"alg":"rs256","kid":"k1"}',
        b'{"kid":"k1"}',
        b"[]",
        b"null",
    ],
)
def test_headers_that_parsers_disagree_on(header: bytes) -> None:
    """A header with a name twice, or without exactly one algorithm of the key's, is refused even when signed."""
    signed = f"{encode_part(header)}.{encode_part(json.dumps(GOOD).encode())}"
    signature = rsa_signer().key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
    assert ask(f"{signed}.{encode_part(signature)}").http_status == 401


@pytest.mark.parametrize(
    "email", ["a@foo.com\x00", "a@foo.com\x00@evil.example", " a@foo.com", "A@foo.com", "a@foo.com."]
)
def test_claims_that_only_look_right(email: str) -> None:
    """Embedded nulls, spaces and other spellings of a claim are other claims, though the token is good."""
    assert ask(rsa_signer().token({"email": email})).http_status == 403


@pytest.mark.parametrize(
    ("values", "status"),
    [
        (["Bearer {good}", "Bearer {good}"], 200),
        (["Bearer {good}", "Bearer {other}"], 401),
        (["Bearer {good}", "Bearer x"], 401),
        (["Bearer {good},x"], 401),
        (["Bearer {good}\x00"], 401),
        (["Bearer {good}\xff"], 401),
    ],
)
@pytest.mark.parametrize("raw", [True, False])
def test_repeated_and_joined_headers(values: list[str], status: int, raw: bool) -> None:
    """Two Authorization lines, joined or not, are one token only if they are the same."""
    tokens = {"good": rsa_signer().token(), "other": rsa_signer().token({"sub": "b"})}
    lines = [value.format(**tokens) for value in values]
    if raw:
        request = check_request(raw_headers=[("authorization", line.encode("latin-1")) for line in lines])
    else:
        request = check_request(headers={"authorization": ",".join(lines)})
        status = 200 if len(lines) == 1 and status == 200 else 401
    assert decide_on(POLICIES, request).http_status == status


@pytest.mark.parametrize(("bits", "exponent"), [(16384, 65537), (2048, 2**40 + 1)])
def test_keys_that_make_verifying_slow(bits: int, exponent: int) -> None:
    """A key set with an RSA key of absurd size or exponent is refused when it is loaded."""
    numbers = {"n": (1 << (bits - 1)) + 1, "e": exponent}
    members = {
        name: encode_part(value.to_bytes((value.bit_length() + 7) // 8, "big"))
        for name, value in numbers.items()
    }
    with pytest.raises(KeySetError):
        parse_jwks(json.dumps({"keys": [{"kty": "RSA", **members}]}))


@settings(max_examples=2000, deadline=None)
@given(st.text(max_size=300) | st.from_regex(r"[A-Za-z0-9_.-]{0,200}", fullmatch=True))
def test_no_text_is_a_token(text: str) -> None:
    """Whatever stands after `Bearer `, it is a denial and never an exception."""
    assert not ask(text).allowed


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_no_change_to_a_token_passes(data: st.DataObject) -> None:
    """Any single character changed, added or removed makes a good token prove nothing."""
    token = rsa_signer().token()
    at = data.draw(st.integers(0, len(token) - 1))
    new = data.draw(st.characters(codec="ascii", exclude_characters=token[at] + " "))
    for changed in (
        token[:at] + new + token[at + 1 :],
        token[:at] + token[at + 1 :],
        token[:at] + new + token[at:],
    ):
        if changed.strip(" ") != token:
            assert not ask(changed).allowed
