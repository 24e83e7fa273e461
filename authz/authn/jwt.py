"""Tokens: JWT -> claims, or the reason why not.

The rules are RFC 7519 (claims), RFC 7515 (signature), RFC 8725 (practice: algorithms bound to the key, never
`none`, never HMAC, `crit` refused) and Istio's `RequestAuthentication` (where tokens are looked for, 401 and
403). Stricter than Istio: `exp` is required and there is no leeway.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeGuard
from urllib.parse import parse_qsl, urlsplit

import jwt

from authz.attributes import Attributes, Claims
from authz.authn.keys import VerificationKey, unique_names
from authz.decision import Decision, ReasonCode, deny

# Real tokens are 0.5 to 4 KB; Envoy's whole header block is 60 KB by default.
MAX_TOKEN_BYTES = 16 * 1024
# JWTs seen once are not verified again until they expire. One entry is about 2 KB.
MAX_CACHED_TOKENS = 10_000

_SIGNATURES = jwt.PyJWS()


@dataclass(frozen=True, slots=True)
class TokenHeader:
    """A header that may carry a token, after `prefix`."""

    name: str
    prefix: str
    ignore_case: bool = False


# RFC 6750, section 2: where a bearer token stands unless a rule says otherwise (Istio's defaults too).
DEFAULT_HEADERS = (TokenHeader("authorization", "Bearer ", ignore_case=True),)
DEFAULT_PARAMETERS = ("access_token",)


@dataclass(frozen=True, slots=True, eq=False)
class JwtRule:
    """One issuer: which keys verify its tokens, for which audiences, and where they are looked for."""

    policy: str
    issuer: str
    audiences: frozenset[str]
    keys: tuple[VerificationKey, ...]
    headers: tuple[TokenHeader, ...]
    parameters: tuple[str, ...]
    forward: bool
    verified: dict[str, Claims] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class TokenRules:
    """The rules for one destination, by the places where they look for tokens."""

    headers: tuple[tuple[TokenHeader, tuple[JwtRule, ...]], ...]
    parameters: Mapping[str, tuple[JwtRule, ...]]
    policy: str  # the first rule's, for what concerns all of them
    # What a header value that brought the only token of a call proved, from when until when.
    proved: dict[str, tuple[TokenResult, float, float]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, rules: Sequence[JwtRule]) -> TokenRules | None:
        """Return `rules` by place; None when there are none."""
        if not rules:
            return None
        headers = dict.fromkeys(header for rule in rules for header in rule.headers)
        parameters = dict.fromkeys(name for rule in rules for name in rule.parameters)
        return cls(
            tuple((header, tuple(rule for rule in rules if header in rule.headers)) for header in headers),
            {name: tuple(rule for rule in rules if name in rule.parameters) for name in parameters},
            rules[0].policy,
        )


@dataclass(frozen=True, slots=True)
class Token:
    """A token, where it was found, and the rules that look there."""

    text: str
    header: str  # empty when it was a query parameter
    parameter: str
    rules: tuple[JwtRule, ...]


@dataclass(frozen=True, slots=True)
class TokenResult:
    """Exactly one of: a denial; claims (and what to strip before forwarding); or neither: no token came."""

    denial: Decision | None = None
    claims: Claims | None = None
    strip_headers: tuple[str, ...] = ()
    strip_parameters: tuple[str, ...] = ()


NO_TOKEN = TokenResult()


class _Invalid(Exception):  # noqa: N818 - flow inside this module, never seen outside
    """The token proves nothing; the text is for operators and holds nothing of the token."""


def authenticate(rules: TokenRules, attributes: Attributes, clock: Callable[[], float]) -> TokenResult:
    """Return what the call's tokens prove under `rules`; `clock` gives seconds since the epoch."""
    if len(rules.headers) > 1 or _may_have_parameter(rules, attributes.target):
        return _authenticate(rules, attributes, clock)
    # The way of nearly every call: one place where a token can be, and one token there that was seen before.
    values = attributes.headers(rules.headers[0][0].name) if rules.headers else ()
    if not values:
        return NO_TOKEN
    known = rules.proved.get(values[0]) if len(values) == 1 else None
    if known is not None:
        result, begin, end = known
        if begin <= clock() < end:
            return result
    result = _authenticate(rules, attributes, clock)
    if result.claims is not None and len(values) == 1:
        if len(rules.proved) >= MAX_CACHED_TOKENS:
            del rules.proved[next(iter(rules.proved))]
        rules.proved[values[0]] = (result, result.claims.get("nbf", -math.inf), result.claims["exp"])
    return result


def _may_have_parameter(rules: TokenRules, target: str) -> bool:
    if "?" not in target:
        return False
    if "%" in target:
        return bool(rules.parameters)
    return any(name in target for name in rules.parameters)


def _authenticate(rules: TokenRules, attributes: Attributes, clock: Callable[[], float]) -> TokenResult:
    """Find and verify the call's tokens.

    Several different tokens are refused: which of them speaks for the caller would be a guess (RFC 6750,
    section 2, allows one).
    """
    tokens = find_tokens(rules, attributes)
    if not tokens:
        return NO_TOKEN
    token, candidates = tokens[0], tokens[0].rules
    if len(tokens) > 1:
        if any(other.text != token.text for other in tokens):
            return TokenResult(_unauthorized("more than one token was sent", rules.policy))
        candidates = tuple(dict.fromkeys(rule for found in tokens for rule in found.rules))
    try:
        rule, claims = _verify(token.text, candidates, clock())
    except _Invalid as error:
        return TokenResult(_unauthorized(str(error), candidates[0].policy))
    if not _is_audience(rule, claims):
        reason = f"the token's audience is none of {', '.join(sorted(rule.audiences))}"
        return TokenResult(
            deny(
                ReasonCode.AUDIENCE_NOT_ALLOWED,
                reason,
                public="Audiences in Jwt are not allowed",
                policy=rule.policy,
            )
        )
    if rule.forward:
        return TokenResult(claims=claims)
    return TokenResult(
        claims=claims,
        strip_headers=tuple(found.header for found in tokens if found.header),
        strip_parameters=tuple(found.parameter for found in tokens if found.parameter),
    )


def _is_audience(rule: JwtRule, claims: Claims) -> bool:
    return not rule.audiences or not rule.audiences.isdisjoint(_audiences(claims))


def find_tokens(rules: TokenRules, attributes: Attributes) -> list[Token]:
    """Return the tokens at the places that `rules` name; a token elsewhere is no token (Istio)."""
    tokens: list[Token] = []
    for header, looking in rules.headers:
        prefix = header.prefix
        for value in attributes.headers(header.name):
            start = value[: len(prefix)]
            if start == prefix or (header.ignore_case and start.lower() == prefix.lower()):
                tokens.append(Token(value[len(prefix) :].strip(" "), header.name, "", looking))
    target = attributes.target
    if _may_have_parameter(rules, target):
        for name, value in parse_qsl(urlsplit(target).query, keep_blank_values=True):
            if name in rules.parameters:
                tokens.append(Token(value, "", name, rules.parameters[name]))
    return tokens


def _verify(text: str, rules: Sequence[JwtRule], now: float) -> tuple[JwtRule, Claims]:
    """Return the rule that verifies the token and is meant by it; several rules may share an issuer."""
    for rule in rules:
        claims = rule.verified.get(text)
        if claims is not None and (len(rules) == 1 or _is_audience(rule, claims)):
            _check_times(claims, now)
            return rule, claims
    header, claims = _decode(text)
    issuer = claims.get("iss")
    failure = _Invalid("the token's issuer is not one that is configured here")
    verified: JwtRule | None = None
    for rule in rules:
        if rule.issuer != issuer:
            continue
        try:
            _verify_signature(text, header, rule.keys)
        except _Invalid as error:
            failure = error
            continue
        _check_times(claims, now)
        if len(rule.verified) >= MAX_CACHED_TOKENS:
            del rule.verified[next(iter(rule.verified))]
        rule.verified[text] = claims
        if _is_audience(rule, claims):
            return rule, claims
        verified = verified or rule
    if verified is not None:
        return verified, claims
    raise failure


def _decode(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return header and claims, with no trust in either; what is not exactly a compact JWS is refused."""
    if len(text) > MAX_TOKEN_BYTES:
        raise _Invalid(f"the token has more than {MAX_TOKEN_BYTES} bytes")
    parts = text.split(".")
    if len(parts) != 3 or not all(parts):
        raise _Invalid("the token is not a JWT in compact form")
    header, claims = _decode_part(parts[0]), _decode_part(parts[1])
    _decode_base64(parts[2])
    if "crit" in header or "b64" in header:
        raise _Invalid("the token's header has an extension that is not understood")
    return header, claims


def _decode_part(part: str) -> dict[str, Any]:
    try:
        text = _decode_base64(part).decode("utf-8")
        value = json.loads(text, object_pairs_hook=unique_names, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise _Invalid("the token is not a JWT: its header or payload is not a JSON object") from None
    if not isinstance(value, dict):
        raise _Invalid("the token is not a JWT: its header or payload is not a JSON object")
    return value


def _decode_base64(part: str) -> bytes:
    """Decode base64url without padding, in the one spelling that RFC 7515, section 2, allows."""
    try:
        decoded = base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise _Invalid("the token is not base64url") from None
    if base64.urlsafe_b64encode(decoded).rstrip(b"=").decode() != part:
        raise _Invalid("the token is not base64url in its one canonical spelling")
    return decoded


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"`{name}` is not JSON")


def _verify_signature(text: str, header: Mapping[str, Any], keys: Sequence[VerificationKey]) -> None:
    algorithm, kid = header.get("alg"), header.get("kid")
    if kid is not None and not isinstance(kid, str):
        raise _Invalid("the token's `kid` is not a string")
    fitting = [
        key
        for key in keys
        if algorithm in key.algorithms and (kid is None or key.kid is None or kid == key.kid)
    ]
    if not fitting:
        raise _Invalid("no configured key has the token's `kid` and `alg`")
    for key in fitting:
        try:
            _SIGNATURES.decode(text, key.key, algorithms=[str(algorithm)])
        except jwt.PyJWTError:
            continue
        except (ValueError, TypeError):
            continue
        return
    raise _Invalid("the token's signature does not verify")


def _check_times(claims: Claims, now: float) -> None:
    expires, not_before, issued = claims.get("exp"), claims.get("nbf"), claims.get("iat")
    if not _is_number(expires):
        raise _Invalid("the token has no expiry (`exp`)")
    if not now < expires:
        raise _Invalid("the token has expired")
    if not_before is not None and not (_is_number(not_before) and not_before <= now):
        raise _Invalid("the token is not valid yet (`nbf`)")
    if issued is not None and not _is_number(issued):
        raise _Invalid("the token's `iat` is not a number")


def _is_number(value: Any) -> TypeGuard[int | float]:
    """RFC 7519, section 2, NumericDate; `1e400` is infinite to Python, and a boolean is an int."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _audiences(claims: Claims) -> set[str]:
    audience = claims.get("aud")
    if isinstance(audience, str):
        return {audience}
    if isinstance(audience, list):
        return {item for item in audience if isinstance(item, str)}
    return set()


def _unauthorized(reason: str, policy: str) -> Decision:
    # RFC 6750, section 3.1; the description holds only constant texts of this module.
    challenge = f'Bearer error="invalid_token", error_description="{reason.replace("`", "")}"'
    return deny(
        ReasonCode.INVALID_TOKEN, reason, http_status=401, public=reason, policy=policy, challenge=challenge
    )
