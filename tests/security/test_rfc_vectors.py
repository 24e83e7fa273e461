"""The examples that RFC 7515, RFC 7519, RFC 7797 and RFC 8037 print: good ones are good here, the others are not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.checks import NOW, check_request, decide_on, role
from support.tokens import Authentication, encode_part

from authz.decision import Decision
from garrison.keys.jwks import KeySetError, VerificationKey, parse_jwks
from garrison.keys.token import Token

# RFC 7515, appendix A.1.1: the claims of most examples, with their line breaks. They expire in 2011.
PAYLOAD = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ"
EXPIRY = 1300819380

HMAC_KEY = {
    "kty": "oct",
    "k": "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow",
}
RSA_KEY = {
    "kty": "RSA",
    "n": "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT"
    "-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS"
    "-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2"
    "ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ",
    "e": "AQAB",
}
P256_KEY = {
    "kty": "EC",
    "crv": "P-256",
    "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
    "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
}
P521_KEY = {
    "kty": "EC",
    "crv": "P-521",
    "x": "AekpBQ8ST8a8VcfVOTNl353vSrDCLLJXmPk06wTjxrrjcBpXp5EOnYG_NjFZ6OvLFV1jSfS9tsz4qUxcWceqwQGk",
    "y": "ADSmRA43Z1DSNx_RvcLI87cdL07l6jQyyBXMoxVg_l2Th-x3S1WDhjDly79ajL4Kkd0AZMaZmh9ubmf63e3kyMj2",
}
ED25519_KEY = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}

HS256 = f"eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.{PAYLOAD}.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
RS256 = (
    f"eyJhbGciOiJSUzI1NiJ9.{PAYLOAD}.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0"
    "Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1"
    "L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9"
    "Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw"
)
ES256 = (
    f"eyJhbGciOiJFUzI1NiJ9.{PAYLOAD}.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-"
    "Kg6NU1Q"
)
ES512 = (
    "eyJhbGciOiJFUzUxMiJ9.UGF5bG9hZA.AdwMgeerwtHoh-l192l60hp9wAHZFVJbLfD_UxMi70cwnZOYaRI1bKPWROc-mZZqwqT2SI-KGDKB34X"
    "O0aw_7XdtAG8GaSwFKdCAPZgoXD2YBJZCPEX3xKpRwcdOO8KpEHwJjyqOgzDO7iKvU8vcnwNrmxYbSW9ERBXukOXolLzeO_Jn"
)
EDDSA = (
    "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4"
    "ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"
)
UNSECURED = f"eyJhbGciOiJub25lIn0.{PAYLOAD}."


def ask(token: str, *keys: dict[str, Any], now: float = EXPIRY - 1) -> Decision:
    """Return the decision on a call with `token` where issuer `joe` has `keys`."""
    jwks = json.dumps({"keys": keys})
    policies = str(Authentication(jwks, issuer="joe")) + role(
        "[{}]", '[{properties: {"request.auth.claims[iss]": joe}}]'
    )
    return decide_on(policies, check_request(headers={"authorization": f"Bearer {token}"}), now)


@pytest.mark.parametrize(("token", "key"), [(RS256, RSA_KEY), (ES256, P256_KEY)])
def test_signed_examples_are_good_until_they_expire(token: str, key: dict[str, Any]) -> None:
    """RFC 7515, appendices A.2 and A.3: good one second before `exp`, refused at it and today."""
    assert ask(token, key).allowed
    for now in (EXPIRY, NOW):
        assert ask(token, key, now=now).reason == "the token has expired"


@pytest.mark.parametrize(("token", "key"), [(RS256, RSA_KEY), (ES256, P256_KEY)])
def test_signed_examples_with_one_bit_changed(token: str, key: dict[str, Any]) -> None:
    """The same signatures over another header or payload, or with one bit changed, prove nothing."""
    head, payload, signature = token.split(".")
    flipped = signature[:10] + ("A" if signature[10] != "A" else "B") + signature[11:]
    other = encode_part(b'{"iss":"joe","exp":1300819380,"http://example.com/is_root":false}')
    padded = encode_part(json.dumps({"alg": token_alg(token), "x": 1}).encode())
    for changed in (
        f"{head}.{payload}.{flipped}",
        f"{head}.{other}.{signature}",
        f"{padded}.{payload}.{signature}",
    ):
        assert ask(changed, key).reason == "the token's signature does not verify"


def token_alg(token: str) -> str:
    """Return `alg` of an example."""
    return "RS256" if token == RS256 else "ES256"


def test_keys_are_not_used_for_each_others_examples() -> None:
    """A key verifies what its own algorithms signed, whatever other keys there are."""
    assert ask(RS256, P256_KEY).http_status == 401
    assert ask(ES256, RSA_KEY).http_status == 401
    assert ask(RS256, P256_KEY, RSA_KEY).allowed


@pytest.mark.parametrize(("token", "key"), [(ES512, P521_KEY), (EDDSA, ED25519_KEY)])
def test_examples_whose_payload_is_no_claims_set(token: str, key: dict[str, Any]) -> None:
    """RFC 7515, A.4, and RFC 8037, A.4: the signature verifies, and what was signed is no JWT."""
    (verifying,) = parse_jwks(json.dumps({"keys": [key]}))
    head, payload, signature = token.split(".")
    parsed = Token(f"{head}.{payload}".encode(), decoded(signature), json.loads(decoded(head)), {})
    assert parsed.is_signed_by(verifying)
    tampered = Token(f"{head}.{payload}x".encode(), decoded(signature), json.loads(decoded(head)), {})
    assert not tampered.is_signed_by(verifying)
    assert ask(token, key).http_status == 401


def decoded(part: str) -> bytes:
    """Return what a part of a token encodes."""
    import base64  # noqa: PLC0415 - only here

    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def test_symmetric_example() -> None:
    """RFC 7515, A.1: a symmetric key is refused when it is loaded, and HS256 beside other keys."""
    with pytest.raises(KeySetError, match="symmetric"):
        parse_jwks(json.dumps({"keys": [HMAC_KEY]}))
    assert ask(HS256, RSA_KEY, P256_KEY).http_status == 401


@pytest.mark.parametrize("token", [UNSECURED, UNSECURED.rstrip("."), UNSECURED + "AA"])
def test_unsecured_example(token: str) -> None:
    """RFC 7519, section 6.1, and RFC 7515, A.5: an unsecured JWT proves nothing."""
    assert ask(token, RSA_KEY).http_status == 401


def test_detached_and_unencoded_payloads() -> None:
    """RFC 7797 (`b64`) and RFC 7515, appendix F (no payload): not tokens."""
    head, _, signature = RS256.split(".")
    unencoded = encode_part(b'{"alg":"RS256","b64":false,"crit":["b64"]}')
    for token in (
        f"{head}..{signature}",
        f"{unencoded}.$.02.{signature}",
        f"{unencoded}.{PAYLOAD}.{signature}",
    ):
        assert ask(token, RSA_KEY).http_status == 401


def test_json_serialization() -> None:
    """RFC 7515, A.6 and A.7: the JSON serialisations are for other protocols."""
    head, payload, signature = RS256.split(".")
    flattened = {"payload": payload, "protected": head, "signature": signature}
    for value in (
        flattened,
        {"payload": payload, "signatures": [{"protected": head, "signature": signature}]},
    ):
        assert ask(json.dumps(value, separators=(",", ":")), RSA_KEY).http_status == 401


def test_crit_example() -> None:
    """RFC 7515, appendix E: an extension that nobody knows must be refused, and the others with it."""
    head = "eyJhbGciOiJub25lIiwNCiAiY3JpdCI6WyJodHRwOi8vZXhhbXBsZS5jb20vVU5ERUZJTkVEIl0sDQogImh0dHA6Ly9leGFtcGxlLmNvbS9VTkRFRklORUQiOnRydWUNCn0"
    assert "crit" in json.loads(decoded(head))
    assert ask(f"{head}.RkFJTA.", RSA_KEY).http_status == 401
    assert ask(f"{head}.{PAYLOAD}.AA", RSA_KEY).http_status == 401


def test_nested_and_encrypted_tokens() -> None:
    """RFC 7519, A.1 and A.2: a JWE has five parts, a nested JWT is a string inside; neither is a token here."""
    nested = encode_part(b'{"alg":"RS256","cty":"JWT"}')
    assert (
        ask(f"{nested}.{encode_part(RS256.encode())}.{RS256.rpartition('.')[2]}", RSA_KEY).http_status == 401
    )
    assert (
        ask(
            ".".join([encode_part(b'{"alg":"RSA1_5","enc":"A128CBC-HS256"}'), "a", "b", "c", "d"]), RSA_KEY
        ).http_status
        == 401
    )


def test_thumbprint_example_key_is_usable() -> None:
    """RFC 7638, section 3.1, prints a key with a `kid` that contains punctuation: such keys load."""
    (key,) = parse_jwks(json.dumps({"keys": [{**RSA_KEY, "kid": "2011-04-29", "alg": "RS256"}]}))
    assert key == VerificationKey("2011-04-29", key.key, ("RS256",))
