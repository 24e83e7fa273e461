"""JWT-SVIDs: issue and validate (SPIFFE JWT-SVID). Neither reads a clock; keys are arguments.

A token works for whoever holds it, and for its whole life: it is short, and for one audience if it can be.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from ca.bundle import SpiffeBundle, decode_base64url, refuse_constant, unique_members
from ca.issuer import MIN_TTL
from ca.jwt_keys import JwtKey
from ca.keys import PublicKey
from ca.registration import MAX_JWT_TTL
from garrison.errors import IssuanceError, RequestError
from garrison.identity import SpiffeId, TrustDomain

# How far the clocks of those who issue and those who validate may be apart.
LEEWAY = timedelta(seconds=10)
# Real tokens have about half a KB; more is not worth a look.
MAX_TOKEN_BYTES = 16 * 1024
MAX_AUDIENCES = 32
MAX_AUDIENCE_BYTES = 2048

# Section 2.1 and RFC 7518: which keys each algorithm takes. Not in it: `none`, HMAC, EdDSA.
_CURVES = {"ES256": "secp256r1", "ES384": "secp384r1", "ES512": "secp521r1"}
_RSA = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
_ALGORITHMS: Mapping[str, Any] = {
    name: algorithm
    for name, algorithm in jwt.algorithms.get_default_algorithms().items()
    if name in _CURVES or name in _RSA
}
# Section 2: no other header parameter is part of a JWT-SVID. A `crit` is refused with them.
_HEADERS = frozenset({"alg", "kid", "typ"})
_TYPES = frozenset({"JWT", "JOSE"})


@dataclass(frozen=True, slots=True)
class JwtSvid:
    """A validated token: whose it is, and all its claims."""

    spiffe_id: SpiffeId
    claims: Mapping[str, Any]


def algorithm_for(key: PublicKey) -> str:
    """Return the algorithm that tokens of this key are signed with: ES256 for the keys made here."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        return next(name for name, curve in _CURVES.items() if curve == key.curve.name)
    return "RS256"


def check_audience(audience: Sequence[str]) -> None:
    """Refuse an audience that no token is made for.

    Raises:
        RequestError: there is none, or there are too many, an empty or a too long one.

    """
    if not audience:
        raise RequestError("an audience is needed")
    if len(audience) > MAX_AUDIENCES:
        raise RequestError(f"more than {MAX_AUDIENCES} audiences")
    for one in audience:
        if not one or len(one.encode()) > MAX_AUDIENCE_BYTES:
            raise RequestError(f"an audience has 1 to {MAX_AUDIENCE_BYTES} bytes")


def issue_jwt_svid(
    key: JwtKey,
    spiffe_id: SpiffeId,
    audience: Sequence[str],
    *,
    now: datetime,
    ttl: timedelta,
    token_issuer: str | None = None,
) -> str:
    """Return a JWT-SVID for `spiffe_id`, which the caller must be entitled to.

    `token_issuer` becomes `iss`, which SPIFFE does not need and OpenID Connect does.

    Raises:
        IssuanceError: an ID without path, or a TTL out of range.
        RequestError: an audience that no token is made for.

    """
    check_audience(audience)
    if not spiffe_id.segments:
        raise IssuanceError(f"`{spiffe_id}` has no path, so it is no workload's")
    if not MIN_TTL <= ttl <= MAX_JWT_TTL:
        raise IssuanceError(f"the TTL of a token is {MIN_TTL} to {MAX_JWT_TTL}, not {ttl}")
    algorithm = algorithm_for(key.key.public_key())
    issued = math.floor(now.timestamp())
    claims: dict[str, Any] = {
        "sub": str(spiffe_id),
        "aud": list(dict.fromkeys(audience)),
        "iat": issued,
        "exp": issued + int(ttl.total_seconds()),
    }
    if token_issuer is not None:
        claims["iss"] = token_issuer
    header = {"alg": algorithm, "kid": key.kid, "typ": "JWT"}
    signed = b".".join(_encode(json.dumps(part).encode()) for part in (header, claims))
    signature = _ALGORITHMS[algorithm].sign(signed, key.key)
    return f"{signed.decode()}.{_encode(signature).decode()}"


def validate_jwt_svid(
    token: str, audience: str, bundles: Mapping[TrustDomain, SpiffeBundle], *, now: datetime
) -> JwtSvid:
    """Return what `token` says, if it is a JWT-SVID for `audience` that its own trust domain vouches for.

    Raises:
        RequestError: it is not; the message says why, without anything that only a key could prove.

    """
    if not audience:
        raise RequestError("an audience is needed")
    signed, header, claims, signature = _take_apart(token)
    algorithm = _check_header(header)
    spiffe_id = _subject(claims)
    bundle = bundles.get(spiffe_id.trust_domain)
    if bundle is None:
        raise RequestError(f"there is no bundle of trust domain `{spiffe_id.trust_domain}`")
    if not _is_signed(signed, signature, algorithm, header.get("kid"), bundle):
        raise RequestError("no key of its trust domain verifies the token")
    _check_claims(claims, audience, now.timestamp())
    return JwtSvid(spiffe_id, claims)


def _take_apart(token: str) -> tuple[bytes, dict[str, Any], dict[str, Any], bytes]:
    """Return what was signed, header, claims and signature of a compact JWS (section 3)."""
    parts = token.split(".")
    if len(token) > MAX_TOKEN_BYTES or len(parts) != 3:
        raise RequestError("it is not a JWS in compact form")
    try:
        header, claims = (
            json.loads(
                decode_base64url(part).decode("utf-8"),
                object_pairs_hook=unique_members,
                parse_constant=refuse_constant,
            )
            for part in parts[:2]
        )
        signature = decode_base64url(parts[2])
        if not isinstance(header, dict) or not isinstance(claims, dict):
            raise TypeError  # noqa: TRY301 - one place says what is wrong
    except (ValueError, TypeError, RecursionError) as error:
        raise RequestError("the token is malformed") from error
    return f"{parts[0]}.{parts[1]}".encode(), header, claims, signature


def _check_header(header: Mapping[str, Any]) -> str:
    """Return the algorithm (sections 2.1 to 2.3)."""
    if not header.keys() <= _HEADERS:
        raise RequestError("the token has a header parameter that is not part of a JWT-SVID")
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in _ALGORITHMS:
        raise RequestError("the token's algorithm is not one of a JWT-SVID")
    if "typ" in header and header["typ"] not in _TYPES:
        raise RequestError("the token's type is not one of a JWT-SVID")
    if not isinstance(header.get("kid", ""), str):
        raise RequestError("the token's `kid` is not a text")
    return algorithm


def _subject(claims: Mapping[str, Any]) -> SpiffeId:
    """Return whose token it claims to be (section 3.1)."""
    subject = claims.get("sub")
    if not isinstance(subject, str):
        raise RequestError("the token has no subject")
    try:
        spiffe_id = SpiffeId.parse(subject)
    except ValueError as error:
        raise RequestError("the token's subject is not a SPIFFE ID") from error
    if not spiffe_id.segments:
        raise RequestError("the token's subject is a trust domain, not a workload")
    return spiffe_id


def _is_signed(
    signed: bytes, signature: bytes, algorithm: str, kid: str | None, bundle: SpiffeBundle
) -> bool:
    # Without a `kid`, which is optional (section 2.2), any key may be it; the bundle bounds how many.
    for authority in bundle.jwt_authorities:
        if (
            kid in {None, authority.kid}
            and _fits(algorithm, authority.key)
            and _ALGORITHMS[algorithm].verify(signed, authority.key, signature)
        ):
            return True
    return False


def _fits(algorithm: str, key: PublicKey) -> bool:
    if isinstance(key, ec.EllipticCurvePublicKey):
        return _CURVES.get(algorithm) == key.curve.name
    return algorithm in _RSA


def _check_claims(claims: Mapping[str, Any], audience: str, now: float) -> None:
    """Check audience and times (sections 3.2 and 3.3)."""
    found = claims.get("aud")
    audiences = [found] if isinstance(found, str) else found
    if not isinstance(audiences, list) or not all(isinstance(one, str) for one in audiences):
        raise RequestError("the token has no audience")
    if audience not in audiences:
        raise RequestError("the token is for another audience")
    leeway = LEEWAY.total_seconds()
    if "exp" not in claims:
        raise RequestError("the token has no `exp`")
    if now >= _time(claims, "exp") + leeway:
        raise RequestError("the token has expired")
    for name in ("nbf", "iat"):
        if name in claims and now < _time(claims, name) - leeway:
            raise RequestError(f"the token is from the future: its `{name}` is not reached yet")


def _time(claims: Mapping[str, Any], name: str) -> float:
    value = claims[name]
    if type(value) not in {int, float} or not math.isfinite(value) or not 0 <= value <= 2**53:
        raise RequestError(f"the token's `{name}` is not a time")
    return float(value)


def _encode(content: bytes) -> bytes:
    return base64.urlsafe_b64encode(content).rstrip(b"=")
