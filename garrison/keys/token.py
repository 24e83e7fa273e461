"""The parts of a JWT, read strictly (RFC 7515, RFC 8725), and whether a key signed it. Pure.

No key is chosen here, and no claim is judged: that is for who accepts tokens.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeGuard

import jwt

from garrison.errors import RequestError
from garrison.keys.jwks import VerificationKey, unique_names

# Real tokens are 0.5 to 4 KB; Envoy's whole header block is 60 KB by default.
MAX_TOKEN_BYTES = 16 * 1024
# Objects and lists inside each other; real claims have three or four.
MAX_NESTING = 32
# Far beyond every date; a longer number does not fit where times are computed with.
_MAX_TIME = 10**15

# PyJWT's own algorithms, by name; a key says which of them it may be used with, and HMAC is never among them.
_ALGORITHMS: Mapping[str, Any] = {
    name: algorithm
    for name, algorithm in jwt.algorithms.get_default_algorithms().items()
    if name.startswith(("RS", "PS", "ES", "EdDSA"))
}
# Tokens for another purpose, which an issuer may sign with the same key (RFC 8725, sections 2.8 and 3.11):
# they are good only where somebody names their type.
OTHER_PURPOSES = frozenset(
    {
        "authorization-response+jwt",  # JARM
        "dpop+jwt",  # RFC 9449
        "entity-statement+jwt",  # OpenID Federation
        "kb+jwt",  # SD-JWT key binding
        "logout+jwt",  # OpenID back-channel logout
        "oauth-authz-req+jwt",  # RFC 9101
        "secevent+jwt",  # RFC 8417
        "token-introspection+jwt",  # RFC 9701
    }
)


class TokenError(RequestError):
    """This is no token; the text is for operators and holds nothing of it."""


@dataclass(frozen=True, slots=True)
class Token:
    """The parts of a token, with no trust in any of them."""

    signed: bytes
    signature: bytes
    header: Mapping[str, Any]
    claims: Mapping[str, Any]

    @classmethod
    def of(cls, text: str) -> Token:
        """Return the parts of `text`.

        Raises:
            TokenError: it is too long, or no exact compact JWS (RFC 7515, section 7.1) of JSON objects.

        """
        if len(text) > MAX_TOKEN_BYTES:
            raise TokenError(f"the token has more than {MAX_TOKEN_BYTES} bytes")
        if not text.isascii():
            raise TokenError("the token is not base64url")
        parts = text.split(".")
        if len(parts) != 3 or not all(parts):
            raise TokenError("the token is not a JWT in compact form")
        header, claims = _decode_part(parts[0]), _decode_part(parts[1])
        signature = _decode_base64(parts[2])
        if "crit" in header or "b64" in header:
            raise TokenError("the token's header has an extension that is not understood")
        kid = header.get("kid")
        if kid is not None and not isinstance(kid, str):
            raise TokenError("the token's `kid` is not a string")
        return cls(f"{parts[0]}.{parts[1]}".encode(), signature, header, claims)

    @property
    def algorithm(self) -> Any:
        """What the header says of the algorithm: anything."""
        return self.header.get("alg")

    @property
    def kid(self) -> str | None:
        """The name of the key; compared, never used as a path or URL."""
        return self.header.get("kid")

    def is_signed_by(self, key: VerificationKey) -> bool:
        """Tell whether `key` made the signature; that the algorithm is one of its own, the caller looked."""
        try:
            good = _ALGORITHMS[self.header["alg"]].verify(self.signed, key.key, self.signature)
        except (jwt.PyJWTError, ValueError, TypeError):
            return False
        return good is True


def _decode_part(part: str) -> dict[str, Any]:
    try:
        text = _decode_base64(part).decode("utf-8")
        value = _JSON.decode(text)
    except (ValueError, RecursionError):
        raise TokenError("the token is not a JWT: its header or payload is not a JSON object") from None
    if not isinstance(value, dict):
        raise TokenError("the token is not a JWT: its header or payload is not a JSON object")
    if text.count("[") + text.count("{") > MAX_NESTING and _depth(value) > MAX_NESTING:
        raise TokenError(f"the token has more than {MAX_NESTING} lists and objects inside each other")
    return value


def _depth(value: Any) -> int:
    """Return how deep lists and objects stand inside each other, without recursion."""
    deepest, level = 0, [value]
    while level:
        level = [one for one in level if isinstance(one, dict | list)]
        deepest += bool(level)
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
    return deepest


def _decode_base64(part: str) -> bytes:
    """Decode base64url without padding, in the one spelling that RFC 7515, section 2, allows."""
    try:
        decoded = base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise TokenError("the token is not base64url") from None
    if base64.urlsafe_b64encode(decoded).rstrip(b"=").decode() != part:
        raise TokenError("the token is not base64url in its one canonical spelling")
    return decoded


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"`{name}` is not JSON")


_JSON = json.JSONDecoder(object_pairs_hook=unique_names, parse_constant=_no_constant)


def is_number(value: Any) -> TypeGuard[int | float]:
    """RFC 7519, section 2, NumericDate; `1e400` is infinite to Python, and a boolean is an int."""
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < _MAX_TIME
    return isinstance(value, float) and math.isfinite(value)


def audiences_of(claims: Mapping[str, Any]) -> set[str]:
    """Return the audiences in `aud` (RFC 7519, section 4.1.3): text, or a list of it."""
    audience = claims.get("aud")
    if isinstance(audience, str):
        return {audience}
    if isinstance(audience, list):
        return {item for item in audience if isinstance(item, str)}
    return set()
