"""JWTs of configured issuers, for the audience of this CA: Kubernetes' projected tokens, or any other.

RFC 7519 (claims), RFC 7515 (signature), RFC 8725 (practice): a key says which algorithms it is for, `exp` and
`aud` are required, and a token that its issuer's rule refuses is not tried elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from ca.attestors.base import MAX_VALUES, Attested, Reason, Refused, selectors
from ca.attestors.kubernetes import claimed_account
from ca.registration import SelectorKind
from garrison.keys.jwks import NO_KEYS, Keys, KeySet, KeySource, VerificationKey
from garrison.keys.token import OTHER_PURPOSES, Token, audiences_of, is_number

ATTESTED_BY = "jwt"
# Clocks of issuers may be a little ahead of ours: for `nbf` and `iat` only, never for `exp`.
LEEWAY = timedelta(seconds=30)
_MOST_SHOWN = 200


@dataclass(frozen=True, slots=True)
class TrustedIssuer:
    """An issuer of tokens: its keys, and the audiences of which a token needs one.

    `is_kubernetes`: its tokens say of which pod and service account they are. Only a cluster's own issuer may
    be trusted to say so.
    """

    issuer: str
    audiences: frozenset[str]
    keys: KeySource | KeySet
    is_kubernetes: bool = False


class JwtAttestor:
    """Verifies tokens of these issuers; no I/O: keys are there or are not."""

    def __init__(self, issuers: Sequence[TrustedIssuer], keys: Keys = NO_KEYS) -> None:
        self._issuers = {one.issuer: one for one in issuers}
        self._keys = keys

    def knows(self, token: Token) -> bool:
        """Tell whether the token names one of the issuers; that it is theirs is not looked at."""
        issuer = token.claims.get("iss")
        return isinstance(issuer, str) and issuer in self._issuers

    def attest(self, token: Token, *, now: datetime) -> Attested | Refused:
        """Return what the bearer of `token` has proved."""
        issuer = token.claims.get("iss")
        trusted = self._issuers.get(issuer) if isinstance(issuer, str) else None
        if trusted is None:
            return Refused(Reason.UNKNOWN_ISSUER, "the token's issuer is not one that is configured")
        refused = self._check(token, trusted, now.timestamp())
        if refused is not None:
            return refused
        subject = token.claims.get("sub")
        if not isinstance(subject, str) or not subject:
            return Refused(Reason.MALFORMED, "the token has no subject (`sub`)")
        pairs = [(SelectorKind.JWT_ISSUER, trusted.issuer), (SelectorKind.JWT_SUBJECT, subject)]
        pairs += [(SelectorKind.JWT_CLAIM, text) for text in _claims(token.claims)]
        if trusted.is_kubernetes:
            account = claimed_account(token.claims)
            if isinstance(account, Refused):
                return account
            pairs += account.pairs
        shown = subject if subject.isprintable() else repr(subject)
        return Attested(selectors(pairs), f"{shown[:_MOST_SHOWN]} of {trusted.issuer}", ATTESTED_BY)

    def _check(self, token: Token, trusted: TrustedIssuer, now: float) -> Refused | None:
        """Return why the token is no good. What costs little is looked at first."""
        kind = token.header.get("typ")
        if kind is not None and not isinstance(kind, str):
            return Refused(Reason.MALFORMED, "the token's `typ` is not a string")
        if (kind or "").lower().removeprefix("application/") in OTHER_PURPOSES:
            return Refused(Reason.WRONG_TYPE, "the token's `typ` says that it is for another purpose")
        refused = _check_times(token.claims, now)
        if refused is not None:
            return refused
        if trusted.audiences.isdisjoint(audiences_of(token.claims)):
            wanted = ", ".join(sorted(trusted.audiences))
            return Refused(Reason.WRONG_AUDIENCE, f"the token's audience is none of {wanted}")
        return self._check_signature(token, trusted)

    def _check_signature(self, token: Token, trusted: TrustedIssuer) -> Refused | None:
        source = trusted.keys
        found = self._keys.current(source) if isinstance(source, KeySource) else source
        if found is None:
            return Refused(Reason.NO_KEYS, f"there are no keys of `{trusted.issuer}`, or they are too old")
        fitting = [key for key in found.keys if _fits(key, token)]
        if not fitting:
            if isinstance(source, KeySource):
                self._keys.missed(source)
            return Refused(Reason.BAD_SIGNATURE, "no key has the token's `kid` and `alg`")
        if not any(token.is_signed_by(key) for key in fitting):
            return Refused(Reason.BAD_SIGNATURE, "the token's signature does not verify")
        return None


def _fits(key: VerificationKey, token: Token) -> bool:
    named = token.kid is None or key.kid is None or token.kid == key.kid
    return key.use == "sig" and token.algorithm in key.algorithms and named


def _check_times(claims: Mapping[str, Any], now: float) -> Refused | None:
    expires = claims.get("exp")
    if not is_number(expires):
        return Refused(Reason.MALFORMED, "the token has no expiry (`exp`)")
    if not now < expires:
        return Refused(Reason.EXPIRED, "the token has expired")
    for name in ("nbf", "iat"):
        begins = claims.get(name)
        if begins is None:
            continue
        if not is_number(begins):
            return Refused(Reason.MALFORMED, f"the token's `{name}` is not a number")
        if now < begins - LEEWAY.total_seconds():
            return Refused(Reason.NOT_YET_VALID, f"the token is from the future (`{name}`)")
    return None


def _claims(claims: Mapping[str, Any]) -> Iterator[str]:
    """Yield `NAME=VALUE` for texts, whole numbers and booleans, and for each text in a list of texts."""
    for name, value in claims.items():
        if "=" in name:
            continue  # `a=b` being `c` would read like `a` being `b=c`
        match value:
            case bool():
                yield f"{name}={'true' if value else 'false'}"
            case str() | int():
                yield f"{name}={value}"
            case list() if len(value) <= MAX_VALUES:
                yield from (f"{name}={one}" for one in value if isinstance(one, str))
