"""JWT-SVIDs: what is issued, and that every rule of the standard refuses what breaks it (JWT-SVID, sections 2 and 3)."""

from __future__ import annotations

import base64
import hmac
import json
from datetime import datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from ca.bundle import JwtAuthority, SpiffeBundle, format_jwk_set
from ca.jwt_keys import JwtKey
from ca.jwt_svid import LEEWAY, MAX_TOKEN_BYTES, issue_jwt_svid, validate_jwt_svid
from ca.keys import new_private_key
from garrison.errors import IssuanceError, RequestError
from garrison.identity import SpiffeId, TrustDomain

WEB = SpiffeId.parse("spiffe://cluster.local/ns/default/sa/web")
DOMAIN = WEB.trust_domain
OTHER = TrustDomain("other.test")
EC = new_private_key()
KEYS: dict[str, Any] = {
    "ES256": EC,
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "ES512": ec.generate_private_key(ec.SECP521R1()),
    "RS256": rsa.generate_private_key(65537, 2048),
}
BUNDLE = SpiffeBundle(
    jwt_authorities=tuple(JwtAuthority(name, key.public_key()) for name, key in KEYS.items())
)
BUNDLES = {
    DOMAIN: BUNDLE,
    OTHER: SpiffeBundle(jwt_authorities=(JwtAuthority("ES256", new_private_key().public_key()),)),
}


def token(
    now: datetime,
    *,
    algorithm: str = "ES256",
    key: Any = None,
    kid: str | None = None,
    header: Any = None,
    **claims: Any,
) -> str:
    """Return a good token with changes; a claim of None is left out."""
    moment = int(now.timestamp())
    all_claims = {"sub": str(WEB), "aud": ["db"], "exp": moment + 300, "iat": moment, **claims}
    headers = {"kid": kid or algorithm, **(header or {})}
    return jwt.encode(
        {name: value for name, value in all_claims.items() if value is not None},
        key or KEYS.get(algorithm) or KEYS["RS256"],
        algorithm=algorithm,
        headers=headers,
    )


def encode(part: Any) -> str:
    """Return a part of a token."""
    content = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def refusal(text: str, now: datetime, audience: str = "db") -> str:
    """Return why a token is refused."""
    with pytest.raises(RequestError) as caught:
        validate_jwt_svid(text, audience, BUNDLES, now=now)
    return str(caught.value)


def test_an_issued_token_says_what_it_should(now: datetime) -> None:
    """ES256, `kid`, `typ`; subject, audiences without repetition, whole seconds; `iss` only if there is one."""
    key = JwtKey(EC, now)
    text = issue_jwt_svid(key, WEB, ["db", "cache", "db"], now=now, ttl=timedelta(minutes=5))
    assert jwt.get_unverified_header(text) == {"alg": "ES256", "kid": key.kid, "typ": "JWT"}
    issued = int(now.timestamp())
    expected = {"sub": str(WEB), "aud": ["db", "cache"], "iat": issued, "exp": issued + 300}
    found = jwt.decode(
        text, EC.public_key(), ["ES256"], audience="db", options={"verify_exp": False, "verify_iat": False}
    )
    assert found == expected
    with_issuer = issue_jwt_svid(
        key, WEB, ["db"], now=now, ttl=timedelta(minutes=5), token_issuer="https://x"
    )
    bundles = {DOMAIN: SpiffeBundle(jwt_authorities=(JwtAuthority(key.kid, EC.public_key()),))}
    assert validate_jwt_svid(with_issuer, "db", bundles, now=now).claims["iss"] == "https://x"


def test_what_is_not_issued(now: datetime) -> None:
    """No path, no time, too much time, no audience."""
    key = JwtKey(EC, now)
    minute = timedelta(minutes=1)
    for spiffe_id, ttl in ((DOMAIN.spiffe_id, minute), (WEB, timedelta(0)), (WEB, timedelta(hours=2))):
        with pytest.raises(IssuanceError):
            issue_jwt_svid(key, spiffe_id, ["db"], now=now, ttl=ttl)
    for audience in ([], [""], ["db", ""]):
        with pytest.raises(RequestError):
            issue_jwt_svid(key, WEB, audience, now=now, ttl=minute)


@pytest.mark.parametrize(
    "algorithm", ["ES256", "ES384", "ES512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]
)
def test_every_algorithm_of_the_standard_is_good(now: datetime, algorithm: str) -> None:
    """(2.1) Elliptic curves and RSA, with or without `kid`, `typ` JWT, JOSE or none."""
    kid = algorithm if algorithm in KEYS else "RS256"
    for typ in ({}, {"typ": "JWT"}, {"typ": "JOSE"}, {"typ": None}):
        assert (
            validate_jwt_svid(
                token(now, algorithm=algorithm, kid=kid, header=typ), "db", BUNDLES, now=now
            ).spiffe_id
            == WEB
        )
    parts = token(now, algorithm=algorithm, kid=kid).split(".")
    assert len(parts) == 3
    assert json.loads(base64.urlsafe_b64decode(parts[0] + "=="))["alg"] == algorithm


def test_a_token_without_kid_is_tried_with_each_key(now: datetime) -> None:
    """(2.2) `kid` is optional."""
    text = jwt.encode(
        {"sub": str(WEB), "aud": "db", "exp": int(now.timestamp()) + 9}, KEYS["ES384"], algorithm="ES384"
    )
    assert "kid" not in jwt.get_unverified_header(text)
    assert validate_jwt_svid(text, "db", BUNDLES, now=now).spiffe_id == WEB


@pytest.mark.parametrize("algorithm", ["EdDSA", "HS256", "none", "ES256K", "es256", "", None, 1, ["ES256"]])
def test_other_algorithms_are_refused(now: datetime, algorithm: Any) -> None:
    """(2.1) Symmetric ones, EdDSA, `none`, and what is no algorithm at all."""
    header, claims, signature = token(now).split(".")
    changed = json.loads(base64.urlsafe_b64decode(header + "==")) | {"alg": algorithm}
    assert "algorithm" in refusal(f"{encode(changed)}.{claims}.{signature}", now)
    assert refusal(f"{encode(changed)}.{claims}.", now)


def test_a_public_key_is_no_secret(now: datetime) -> None:
    """An HMAC with the published key as its secret, and a signature of EdDSA, are refused by their names."""
    published = format_jwk_set(BUNDLE.jwt_authorities).encode()
    signed = f"{encode({'alg': 'HS256', 'kid': 'ES256'})}.{token(now).split('.')[1]}"
    forged = hmac.digest(published, signed.encode(), "sha256")
    assert "algorithm" in refusal(f"{signed}.{encode(forged)}", now)
    assert "algorithm" in refusal(
        token(now, algorithm="EdDSA", key=ed25519.Ed25519PrivateKey.generate()), now
    )


@pytest.mark.parametrize("name", ["crit", "jku", "x5u", "x5c", "jwk", "cty", "b64", "zip", "enc"])
def test_other_header_parameters_are_refused(now: datetime, name: str) -> None:
    """(2) Only `alg`, `kid` and `typ` are part of a JWT-SVID."""
    header, claims, signature = token(now).split(".")
    changed = json.loads(base64.urlsafe_b64decode(header + "==")) | {name: "x"}
    assert "header parameter" in refusal(f"{encode(changed)}.{claims}.{signature}", now)


@pytest.mark.parametrize("typ", ["at+jwt", "wit+jwt", "jwt", 1, ""])
def test_other_types_are_refused(now: datetime, typ: Any) -> None:
    """(2.3) JWT or JOSE, in capitals."""
    header, claims, signature = token(now).split(".")
    changed = json.loads(base64.urlsafe_b64decode(header + "==")) | {"typ": typ}
    assert "type" in refusal(f"{encode(changed)}.{claims}.{signature}", now)


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"sub": None}, "no subject"),
        ({"sub": ""}, "not a SPIFFE ID"),
        ({"sub": "web"}, "not a SPIFFE ID"),
        ({"sub": "spiffe://cluster.local/a/../b"}, "not a SPIFFE ID"),
        ({"sub": "spiffe://cluster.local"}, "not a workload"),
        ({"sub": "spiffe://nobody.test/a"}, "no bundle"),
        ({"sub": "spiffe://other.test/a"}, "no key"),
        ({"aud": None}, "no audience"),
        ({"aud": []}, "another audience"),
        ({"aud": ["mail"]}, "another audience"),
        ({"aud": "d"}, "another audience"),
        ({"aud": ["DB"]}, "another audience"),
        ({"aud": {"db": 1}}, "no audience"),
        ({"aud": ["db", 1]}, "no audience"),
        ({"exp": None}, "no `exp`"),
        ({"exp": "9999999999"}, "not a time"),
        ({"exp": True}, "not a time"),
        ({"exp": 1e400}, "malformed"),
        ({"exp": 10**30}, "not a time"),
        ({"exp": 1}, "expired"),
        ({"nbf": 9999999999}, "not reached"),
        ({"iat": 9999999999}, "not reached"),
        ({"nbf": "x"}, "not a time"),
    ],
)
def test_claims_that_are_refused(now: datetime, claims: dict[str, Any], reason: str) -> None:
    """(3) Subject, audience and expiry are required, and each is what it must be."""
    moment = int(now.timestamp())
    known = {"sub": str(WEB), "aud": ["db"], "exp": moment + 300, **claims}
    content = {name: value for name, value in known.items() if value is not None}
    signed = f"{encode({'alg': 'ES256', 'kid': 'ES256'})}.{encode(content)}"
    signature = jwt.algorithms.get_default_algorithms()["ES256"].sign(signed.encode(), EC)
    assert reason in refusal(f"{signed}.{encode(signature)}", now)


def test_another_key_is_refused(now: datetime) -> None:
    """A stranger's key, a key under another's name, and a name that is not there."""
    stranger = new_private_key()
    assert "no key" in refusal(token(now, key=stranger), now)
    assert "no key" in refusal(token(now, kid="ES384"), now)
    assert "no key" in refusal(token(now, kid="nobody"), now)
    with pytest.raises(RequestError, match="no key"):
        validate_jwt_svid(token(now), "db", {DOMAIN: SpiffeBundle()}, now=now)


@pytest.mark.parametrize(
    ("algorithm", "kid"),
    [("RS256", "ES256"), ("PS512", "ES512"), ("ES256", "RS256"), ("ES256", "ES384"), ("ES512", "ES256")],
)
def test_an_algorithm_is_bound_to_its_kind_of_key(now: datetime, algorithm: str, kid: str) -> None:
    """(RFC 7518, 3.4) A key verifies with its own algorithms only: RSA with RS and PS, each curve with its one."""
    claims = {"sub": str(WEB), "aud": ["db"], "exp": int(now.timestamp()) + 300}
    signed = f"{encode({'alg': algorithm, 'kid': kid})}.{encode(claims)}"
    key, scheme = KEYS[kid], hashes.SHA256() if algorithm.endswith("256") else hashes.SHA512()
    if isinstance(key, rsa.RSAPrivateKey):
        signature = key.sign(signed.encode(), padding.PKCS1v15(), scheme)
    else:
        size = (key.curve.key_size + 7) // 8
        r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(scheme)))
        signature = r.to_bytes(size) + s.to_bytes(size)
    assert "no key" in refusal(f"{signed}.{encode(signature)}", now)


def test_what_is_no_compact_jws_is_refused(now: datetime) -> None:
    """(2) JSON serialization, other numbers of parts, padding, other alphabets, repeated members, too much."""
    good = token(now)
    header, claims, signature = good.split(".")
    twice = base64.urlsafe_b64encode(b'{"alg":"ES256","alg":"none"}').rstrip(b"=").decode()
    for text in (
        json.dumps({"payload": claims, "protected": header, "signature": signature}),
        f"{header}.{claims}",
        f"{good}.",
        f"{good}.x.y",
        f"{header}=.{claims}.{signature}",
        f"{header}.{claims}.{signature}==",
        f"{twice}.{claims}.{signature}",
        f"{encode([])}.{claims}.{signature}",
        f"{header}.{encode('x')}.{signature}",
        f"{header}.{encode(b'[' * 5000)}.{signature}",
        f" {good}",
        f"{good}\n",
        "x" * (MAX_TOKEN_BYTES + 1),
    ):
        assert refusal(text, now)


def test_the_end_comes_after_the_leeway(now: datetime) -> None:
    """(3.3) A little is allowed for clocks, and not more."""
    text = token(now)
    end = datetime.fromtimestamp(int(now.timestamp()) + 300, now.tzinfo)
    last = end + LEEWAY - timedelta(milliseconds=1)
    assert validate_jwt_svid(text, "db", BUNDLES, now=last).spiffe_id == WEB
    assert "expired" in refusal(text, end + LEEWAY)
    future = token(now + LEEWAY)
    assert validate_jwt_svid(future, "db", BUNDLES, now=now).spiffe_id == WEB
    assert "not reached" in refusal(token(now + LEEWAY + timedelta(seconds=1)), now)


def test_an_empty_audience_validates_nothing(now: datetime) -> None:
    """Who forgets to say who it is must not be told yes."""
    assert "audience" in refusal(token(now, aud=[""]), now, audience="")
