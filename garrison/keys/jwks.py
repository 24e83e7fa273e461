"""Keys that tokens are verified with: JWK Sets (RFC 7517), and where those come from.

A key says which algorithms it may be used with (RFC 8725, section 3.1); a token never does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

_RSA_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVE_ALGORITHMS = {"secp256r1": ("ES256",), "secp384r1": ("ES384",), "secp521r1": ("ES512",)}
# What keys for signatures are for: RFC 7517, section 4.2; SPIFFE Trust Domain and Bundle, section 4.2.2.
_USES = ("sig", "jwt-svid")
# RFC 7518, section 3.3: RSA keys of 2048 bits or more.
_MIN_RSA_BITS = 2048
# What is larger makes every token with its `kid` expensive; real keys have up to 4096 bits and e = 65537.
_MAX_RSA_BITS = 8192
_MAX_RSA_EXPONENT = 2**32


class KeySetError(ValueError):
    """A JWKS that cannot be used; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A public key, the algorithms it may be used with, and for what: `sig`, or `jwt-svid` (SPIFFE)."""

    kid: str | None
    key: Any
    algorithms: tuple[str, ...]
    use: str = "sig"


def parse_jwks(text: str, *, skip_unusable: bool = False) -> tuple[VerificationKey, ...]:
    """Return the signature keys in the JWK Set `text` (RFC 7517, section 5).

    Entries with an unknown `kty` or another `use` are left out, as section 5 asks. With `skip_unusable` so is
    every other entry that cannot be used: a key that an issuer adds must not take away those beside it.

    Raises:
        KeySetError: not a JWK Set, no usable key in it, a symmetric or private key, or a weak RSA key.

    """
    try:
        document = json.loads(text, object_pairs_hook=unique_names)
    except (ValueError, RecursionError) as error:
        raise KeySetError(f"is not JSON: {error}") from error
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise KeySetError("has no list `keys`")
    keys: list[VerificationKey] = []
    unusable: KeySetError | None = None
    for index, entry in enumerate(entries):
        try:
            key = _verification_key(index, entry)
        except KeySetError as error:
            if not skip_unusable:
                raise
            unusable = unusable or error
        else:
            keys += [key] if key is not None else []
    if not keys:
        raise unusable or KeySetError("has no key that verifies signatures")
    return tuple(keys)


def _verification_key(index: int, entry: Any) -> VerificationKey | None:
    if not isinstance(entry, dict):
        raise KeySetError(f"keys[{index}] is not an object")
    if entry.get("kty") == "oct":
        raise KeySetError(f"keys[{index}] is a symmetric key; whoever verifies with it could sign with it")
    if entry.get("kty") not in {"RSA", "EC", "OKP"} or entry.get("use", "sig") not in _USES:
        return None
    if "d" in entry:
        raise KeySetError(f"keys[{index}] holds a private key")
    kid = entry.get("kid")
    if kid is not None and not isinstance(kid, str):
        raise KeySetError(f"keys[{index}].kid is not a string")
    try:
        key = jwt.PyJWK(entry, algorithm=_declared_algorithm(entry)).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError) as error:
        raise KeySetError(f"keys[{index}] is not a usable key: {error}") from error
    algorithms = _algorithms_for(index, key)
    declared = entry.get("alg")
    if declared is not None:
        if declared not in algorithms:
            raise KeySetError(f"keys[{index}].alg `{declared}` does not fit the key")
        algorithms = (declared,)
    return VerificationKey(kid, key, algorithms, entry.get("use", "sig"))


def _declared_algorithm(entry: Mapping[str, Any]) -> str:
    """PyJWK wants an algorithm to build a key with; which one it is does not matter to the key."""
    return {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA"}[entry["kty"]]


def _algorithms_for(index: int, key: Any) -> tuple[str, ...]:
    if isinstance(key, RSAPublicKey):
        if key.key_size < _MIN_RSA_BITS:
            raise KeySetError(
                f"keys[{index}] is an RSA key of {key.key_size} bits, fewer than {_MIN_RSA_BITS}"
            )
        if key.key_size > _MAX_RSA_BITS or key.public_numbers().e > _MAX_RSA_EXPONENT:
            raise KeySetError(f"keys[{index}] is an RSA key that takes too long to verify with")
        return _RSA_ALGORITHMS
    if isinstance(key, EllipticCurvePublicKey) and key.curve.name in _CURVE_ALGORITHMS:
        return _CURVE_ALGORITHMS[key.curve.name]
    if isinstance(key, Ed25519PublicKey):
        return ("EdDSA",)
    raise KeySetError(f"keys[{index}] has a curve that is not supported")


@dataclass(frozen=True, slots=True)
class KeySource:
    """A key set that is fetched: `url` is where it is; empty: OpenID discovery at `issuer` says where.

    `url` is `https://`, `http://` or `file:///`.
    """

    url: str
    issuer: str = ""
    timeout_seconds: float = 5.0


@dataclass(frozen=True, slots=True, eq=False)
class KeySet:
    """The keys of one issuer, as they were at one time; two sets are never equal, even with the same keys."""

    keys: tuple[VerificationKey, ...]


class Keys(Protocol):
    """What was fetched; never waits, so a token is verified with what is there."""

    def current(self, source: KeySource) -> KeySet | None:
        """Return the keys to verify with; None when there are none, and then no token of theirs is good."""

    def missed(self, source: KeySource) -> None:
        """Note that a token names a key which is not there: it may be new."""


class _NoKeys:
    """Nothing was ever fetched."""

    def current(self, source: KeySource) -> KeySet | None:
        del source
        return None

    def missed(self, source: KeySource) -> None:
        del source


NO_KEYS: Keys = _NoKeys()


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the members of a JSON object; refuse one with the same name twice."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name stands twice")
    return result
