"""Credentials other than JWTs: where they stand, who is asked about them, and what that makes of a call.

API keys, Basic passwords, opaque tokens, forwarded client certificates. The rules, in this order:

1. a method whose credential is absent is passed over; one that is there speaks for the caller, good or bad:
   a bad one is 401, whatever other methods there are;
2. two different credentials are 401: which one speaks for the caller would be a guess;
3. an authenticator that cannot answer is 503, never "nobody";
4. what was established becomes claims, whose `iss` is always the method's own issuer.

Everything here is a function of its arguments. What is not known without waiting is asked by the caller
(`Inquiry`), who comes back with the answer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Protocol

from authz.attributes import Attributes, Claims
from authz.authn.forwarded import CERTIFICATE_HEADER, CertificateError, client_claims
from authz.authn.jwt import TokenRules
from authz.decision import Decision, HeaderAction, HeaderMutation, ReasonCode, deny
from authz.paths import query_parameters

# As for JWTs; single authenticators take less.
MAX_CREDENTIAL_BYTES = 16 * 1024

ANONYMOUS = "anonymous"

# RFC 9110, section 11.2: a credential is a token68 or parameters, and a header value has no control
# characters. A comma may be Envoy's own, between two lines that it joined.
_CREDENTIAL = re.compile(r"[\x21-\x2b\x2d-\x7e]+")
# RFC 7515, section 3.1: three parts in base64url; a JWS for verification has none that is empty.
_COMPACT_JWS = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")


class Kind(StrEnum):
    """What an authenticator knows; says where its credentials stand and how they are asked for."""

    API_KEYS = "api_keys"
    BASIC = "basic"
    INTROSPECTION = "introspection"
    TOKEN_REVIEW = "token_review"  # noqa: S105 - a name


class Result(StrEnum):
    """What an authenticator makes of a credential."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    INSUFFICIENT = "insufficient"  # good, but not good for this: RFC 6750, section 3.1, `insufficient_scope`
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class Answer:
    """What an authenticator says of a credential.

    `claims` are what it establishes, with a `sub` that is a string and not empty, when it is accepted;
    `reason` says why it is not, for operators, without anything of the credential. `begins` and `expires` are
    seconds since the epoch: outside of them the answer says nothing.
    """

    result: Result
    claims: Claims = field(default_factory=dict)
    reason: str = ""
    begins: float = -math.inf
    expires: float = math.inf

    @classmethod
    def accepted(cls, claims: Claims, *, begins: float = -math.inf, expires: float = math.inf) -> Answer:
        """Return that the credential is good from `begins` until `expires`."""
        return cls(Result.ACCEPTED, claims, begins=begins, expires=expires)

    @classmethod
    def refused(cls, reason: str) -> Answer:
        """Return that the credential is no good."""
        return cls(Result.REFUSED, reason=reason)

    @classmethod
    def unavailable(cls, reason: str) -> Answer:
        """Return that nobody knows right now."""
        return cls(Result.UNAVAILABLE, reason=reason)


class Authenticator(Protocol):
    """Who knows which credentials are good. Neither method raises."""

    def known(self, credential: str, now: float) -> Answer | None:
        """Return the answer if it is at hand, without waiting; `now` is in seconds since the epoch."""

    async def ask(self, credential: str) -> Answer:
        """Return the answer, however long that takes within the authenticator's own limits."""


class Principals(Protocol):
    """A pattern of principals."""

    def matches(self, value: str | None) -> bool:
        """Return whether there is a principal and it fits."""


@dataclass(frozen=True, slots=True)
class CredentialHeader:
    """A header that may carry a credential, after `prefix`."""

    name: str
    prefix: str = ""

    def credential(self, value: str) -> str | None:
        """Return what of a header value is the credential, empty if only the prefix is there; else None."""
        prefix = self.prefix
        if self.name == "authorization":
            # RFC 9110, section 11.1: the scheme has no case.
            value_start, prefix = value[: len(prefix)].lower(), prefix.lower()
            if value.lower() == prefix.rstrip(" "):
                return ""
        else:
            value_start = value[: len(prefix)]
            if prefix and value == prefix.rstrip(" "):
                return ""
        return value[len(prefix) :].strip(" ") if value_start == prefix else None


@dataclass(frozen=True, slots=True)
class Places:
    """Where credentials are looked for."""

    headers: tuple[CredentialHeader, ...] = ()
    parameters: tuple[str, ...] = ()
    cookies: tuple[str, ...] = ()


_API_KEY = CredentialHeader("x-api-key")
_BASIC = CredentialHeader("authorization", "Basic ")
_BEARER = CredentialHeader("authorization", "Bearer ")
DEFAULT_PLACES = {
    Kind.API_KEYS: Places((_API_KEY,)),
    Kind.BASIC: Places((_BASIC,)),
    Kind.INTROSPECTION: Places((_BEARER,)),
    Kind.TOKEN_REVIEW: Places((_BEARER,)),
    # Nobody knows what it would look at, so whatever may be meant for it is refused.
    None: Places((_API_KEY, _BASIC, _BEARER)),
}


@dataclass(frozen=True, slots=True, eq=False)
class Method:
    """One way to prove who one is; `authenticator` is empty for a forwarded certificate.

    `kind` is None where the settings have no such authenticator.
    """

    policy: str
    authenticator: str
    kind: Kind | None
    issuer: str
    places: Places
    forward: bool = False
    trusted_peers: Principals | None = None  # of a forwarded certificate


@dataclass(frozen=True, slots=True, eq=False)
class CredentialRules:
    """The methods for one destination, in their order.

    `required` is the first document that insists on an identity, empty when none does; `anonymous` is the
    issuer of callers without a credential, empty where those have no identity.
    """

    methods: tuple[Method, ...]
    required: str = ""
    anonymous: str = ""

    @property
    def policy(self) -> str:
        """The first method's document, for what concerns all of them."""
        return self.methods[0].policy if self.methods else ""

    @classmethod
    def of(cls, rules: Sequence[CredentialRules]) -> CredentialRules | None:
        """Return several documents' rules as one; None when there are none."""
        if not rules:
            return None
        return cls(
            tuple(method for one in rules for method in one.methods),
            next((one.required for one in rules if one.required), ""),
            next((one.anonymous for one in rules if one.anonymous), ""),
        )


@dataclass(frozen=True, slots=True)
class Inquiry:
    """An authenticator has to be asked before the call can be decided."""

    authenticator: str
    credential: str = field(repr=False)
    policy: str = ""


@dataclass(frozen=True, slots=True)
class CredentialResult:
    """At most one of a denial and claims; and what is removed from a request that is let through."""

    denial: Decision | None = None
    claims: Claims | None = None
    headers: tuple[HeaderMutation, ...] = ()
    parameters: tuple[str, ...] = ()
    shaped: bool = False  # `headers` hold values of the call


NOTHING_FOUND = CredentialResult()


@dataclass(frozen=True, slots=True)
class _Found:
    method: Method
    text: str = field(repr=False)
    header: str = ""
    parameter: str = ""
    cookie: str = ""


def takes_opaque(rules: CredentialRules | None, header: str, value: str) -> bool:
    """Return whether a credential method takes this value of a header, so that JWT rules leave it alone.

    That is: one looks there, for something with this prefix, and what is there has not the form of a JWS.
    """
    if rules is None:
        return False
    for method in rules.methods:
        for place in method.places.headers:
            text = place.credential(value) if place.name == header else None
            if text is not None:
                return not is_compact_jws(text)
    return False


def takes_opaque_parameter(rules: CredentialRules | None, name: str, value: str) -> bool:
    """Return the same for a query parameter."""
    return (
        rules is not None
        and any(name in method.places.parameters for method in rules.methods)
        and not is_compact_jws(value)
    )


def takes_opaque_cookie(rules: CredentialRules | None, name: str, value: str) -> bool:
    """Return the same for a cookie."""
    return (
        rules is not None
        and any(name in method.places.cookies for method in rules.methods)
        and not is_compact_jws(value)
    )


def is_compact_jws(text: str) -> bool:
    """Return whether `text` has the form of a JWS in compact serialisation (RFC 7515, section 3.1)."""
    return _COMPACT_JWS.fullmatch(text) is not None


def authenticate(
    rules: CredentialRules,
    attributes: Attributes,
    clock: Callable[[], float],
    authenticators: Mapping[str, Authenticator],
    *,
    tokens: TokenRules | None = None,
    identified: bool = False,
    answer: Answer | None = None,
) -> CredentialResult | Inquiry:
    """Return who the caller is by `rules`, or whom to ask about it.

    `identified` is whether a JWT said so before, by `tokens`. `answer` is what the authenticator of the last
    `Inquiry` said. `clock` gives seconds since the epoch.
    """
    found = _find(rules, attributes, tokens)
    ignored = _untrusted_certificate(rules, attributes)
    if not found:
        return _without_credential(rules, attributes, tokens, ignored, identified=identified)
    first = found[0]
    if any(other.text != first.text or other.method is not first.method for other in found[1:]):
        return _refused(first.method, attributes, "more than one credential was sent")
    if identified:
        return _refused(first.method, attributes, "a token and another credential were sent")
    if not first.method.authenticator:
        return _by_certificate(first, attributes)
    if len(first.text) > MAX_CREDENTIAL_BYTES:
        return _refused(first.method, attributes, f"it has more than {MAX_CREDENTIAL_BYTES} bytes")
    if not _CREDENTIAL.fullmatch(first.text):
        return _refused(first.method, attributes, "it is empty, or has characters that no credential has")
    name = first.method.authenticator
    authenticator = authenticators.get(name)
    if authenticator is None:
        return CredentialResult(
            _unauthorized(
                first.method,
                attributes,
                ReasonCode.UNKNOWN_AUTHENTICATOR,
                f"authenticator {name} is not in the settings",
            )
        )
    if answer is None:
        answer = authenticator.known(first.text, clock())
        if answer is None:
            return Inquiry(name, first.text, first.method.policy)
    return _judged(found, attributes, answer, clock(), ignored)


def _judged(
    found: Sequence[_Found],
    attributes: Attributes,
    answer: Answer,
    now: float,
    ignored: tuple[HeaderMutation, ...],
) -> CredentialResult:
    """Return what the authenticator's answer makes of the call."""
    method = found[0].method
    name = method.authenticator
    match answer.result:
        case Result.UNAVAILABLE:
            reason = f"authenticator {name}: {answer.reason}"
            code = ReasonCode.AUTHENTICATOR_UNAVAILABLE
            return CredentialResult(deny(code, reason, http_status=503, public="", policy=method.policy))
        case Result.INSUFFICIENT:
            reason = f"authenticator {name}: {answer.reason}"
            # RFC 6750, section 3.1.
            challenge = f'Bearer {_realm(attributes)}, error="insufficient_scope"'
            code = ReasonCode.INSUFFICIENT_SCOPE
            return CredentialResult(
                deny(code, reason, public=answer.reason, policy=method.policy, challenge=challenge)
            )
        case Result.REFUSED:
            return _refused(method, attributes, answer.reason)
        case Result.ACCEPTED:
            if not answer.begins <= now < answer.expires:
                why = "it has expired" if answer.begins <= now else "it is not valid yet"
                return _refused(method, attributes, why)
            return _accepted(found, attributes, answer.claims, ignored)


def _by_certificate(found: _Found, attributes: Attributes) -> CredentialResult:
    try:
        claims = client_claims(found.text)
    except CertificateError as error:
        return _refused(found.method, attributes, str(error))
    return _accepted((found,), attributes, claims, ())


def _accepted(
    found: Sequence[_Found],
    attributes: Attributes,
    claims: Claims,
    ignored: tuple[HeaderMutation, ...],
) -> CredentialResult:
    method = found[0].method
    # Last, so that no authenticator speaks for another one's issuer.
    established = {**claims, "iss": method.issuer}
    if method.forward:
        return CredentialResult(claims=established, headers=ignored)
    if len(found) == 1 and (name := found[0].header):
        return CredentialResult(claims=established, headers=_removal(name) + ignored)
    removed = tuple(
        mutation
        for name in dict.fromkeys(one.header for one in found if one.header)
        for mutation in _removal(name)
    )
    parameters = tuple(dict.fromkeys(one.parameter for one in found if one.parameter))
    cookies = {one.cookie for one in found if one.cookie}
    if not cookies:
        return CredentialResult(claims=established, headers=removed + ignored, parameters=parameters)
    rest = "; ".join(
        kept for line in attributes.headers("cookie") if (kept := without_cookies(line, cookies))
    )
    action = HeaderAction.REPLACE if rest else HeaderAction.REMOVE
    removed += (HeaderMutation("cookie", rest, action),)
    return CredentialResult(
        claims=established, headers=removed + ignored, parameters=parameters, shaped=bool(rest)
    )


@lru_cache(maxsize=1024)
def _removal(header: str) -> tuple[HeaderMutation]:
    """Return what removes a header that a policy names: the same object for each call."""
    return (HeaderMutation(header, action=HeaderAction.REMOVE),)


def _without_credential(
    rules: CredentialRules,
    attributes: Attributes,
    tokens: TokenRules | None,
    ignored: tuple[HeaderMutation, ...],
    *,
    identified: bool,
) -> CredentialResult:
    passes = CredentialResult(headers=ignored) if ignored else NOTHING_FOUND
    if identified:
        return passes
    if rules.required and not _is_preflight(attributes):
        challenges = list(dict.fromkeys(filter(None, (_challenge(one, attributes) for one in rules.methods))))
        if tokens is not None and not any(one.startswith("Bearer ") for one in challenges):
            challenges.append(f"Bearer {_realm(attributes)}")
        return CredentialResult(
            deny(
                ReasonCode.CREDENTIAL_REQUIRED,
                f"{rules.required} requires a credential, and none was sent",
                http_status=401,
                public="a credential is required",
                policy=rules.required,
                challenge=", ".join(challenges),
            )
        )
    if rules.anonymous and not rules.required:
        return CredentialResult(claims={"iss": rules.anonymous, "sub": ANONYMOUS}, headers=ignored)
    return passes


def _is_preflight(attributes: Attributes) -> bool:
    """Fetch standard, section 3.2.2: a browser asks first, and never with credentials (as in Istio)."""
    return (
        attributes.method == "OPTIONS"
        and bool(attributes.header("origin"))
        and bool(attributes.header("access-control-request-method"))
    )


# ------------------------------------------------------------------------------------------------- finding


def _find(rules: CredentialRules, attributes: Attributes, tokens: TokenRules | None) -> list[_Found]:
    """Return the credentials of a call; of methods that look at one place the first one has it."""
    taken: dict[tuple[str, str, str, str], _Found] = {}
    for method in rules.methods:
        for found, value in _of_method(method, attributes, tokens):
            taken.setdefault((found.header, found.parameter, found.cookie, value), found)
    return [*taken.values()]


def _of_method(
    method: Method, attributes: Attributes, tokens: TokenRules | None
) -> Iterator[tuple[_Found, str]]:
    """Yield the credentials that one method finds, each with all that stands there."""
    if not method.authenticator:
        lines = attributes.headers(CERTIFICATE_HEADER) if _is_trusted(method, attributes) else ()
        if lines:
            yield _Found(method, ",".join(lines), header=CERTIFICATE_HEADER), ""
        return
    places = method.places
    for header in places.headers:
        for value in attributes.headers(header.name):
            text = header.credential(value)
            if text is not None and not _is_token(tokens, header, value, text):
                yield _Found(method, text, header=header.name), value
    if places.parameters and "?" in attributes.target:
        for name, value in query_parameters(attributes.target):
            if name in places.parameters and not (
                tokens is not None and name in tokens.parameters and is_compact_jws(value)
            ):
                yield _Found(method, value, parameter=name), value
    if places.cookies:
        for line in attributes.headers("cookie"):
            for name, value in cookies_of(line):
                if name in places.cookies:
                    yield _Found(method, value, cookie=name), value


def _is_token(tokens: TokenRules | None, place: CredentialHeader, value: str, text: str) -> bool:
    """Return whether what stands there is the business of rules for JWTs."""
    return (
        tokens is not None
        and is_compact_jws(text)
        and any(
            header.name == place.name and value[: len(header.prefix)].lower() == header.prefix.lower()
            for header, _ in tokens.headers
        )
    )


def _is_trusted(method: Method, attributes: Attributes) -> bool:
    """Return whether the peer itself, as Envoy verified it, may say who its own caller is."""
    return method.trusted_peers is not None and method.trusted_peers.matches(attributes.principal)


def _untrusted_certificate(rules: CredentialRules, attributes: Attributes) -> tuple[HeaderMutation, ...]:
    """Return what removes a certificate that came from a peer who is not trusted to forward one.

    It proves nothing here, and the upstream should not take it for a proof either.
    """
    methods = [one for one in rules.methods if not one.authenticator]
    if not methods or any(_is_trusted(one, attributes) for one in methods):
        return ()
    if not attributes.headers(CERTIFICATE_HEADER):
        return ()
    return _removal(CERTIFICATE_HEADER)


def cookies_of(line: str) -> Iterable[tuple[str, str]]:
    """Yield names and values of the cookies in one header line (RFC 6265, section 4.2.1)."""
    for piece in line.split(";"):
        name, equals, value = piece.partition("=")
        if equals:
            yield name.strip(" \t"), value.strip(" \t")


def without_cookies(line: str, names: set[str]) -> str:
    """Return a header line without some cookies; the others stay as they were written, byte by byte."""
    pieces = [piece for piece in line.split(";") if _cookie_name(piece) not in names]
    # Envoy takes new values as UTF-8 only (1.40 ignores `raw_value`), so what is not has to go as well.
    return ";".join(piece for piece in pieces if _is_text(piece)).strip(" \t")


def _is_text(text: str) -> bool:
    return text.isascii() or text.encode("utf-8", "surrogateescape").decode("utf-8", "replace") == text


def _cookie_name(piece: str) -> str | None:
    name, equals, _ = piece.partition("=")
    return name.strip(" \t") if equals else None


# ------------------------------------------------------------------------------------------------- denials


def _refused(method: Method, attributes: Attributes, reason: str) -> CredentialResult:
    by = f"authenticator {method.authenticator}" if method.authenticator else "forwarded certificate"
    return CredentialResult(
        _unauthorized(method, attributes, ReasonCode.INVALID_CREDENTIAL, f"{by}: {reason}")
    )


def _unauthorized(method: Method, attributes: Attributes, code: ReasonCode, reason: str) -> Decision:
    """RFC 9110, section 15.5.2: a 401 has a challenge. The caller is not told why: that helps who guesses."""
    return deny(
        code,
        reason,
        http_status=401,
        public="the credential is not accepted",
        policy=method.policy,
        challenge=_challenge(method, attributes, refused=True),
    )


def _challenge(method: Method, attributes: Attributes, *, refused: bool = False) -> str:
    """Return how to ask for a credential of `method`, empty for certificates, which no header can ask for."""
    realm = _realm(attributes)
    match method.kind:
        case Kind.BASIC:
            return f'Basic {realm}, charset="UTF-8"'  # RFC 7617, section 2.1
        case Kind.INTROSPECTION | Kind.TOKEN_REVIEW:
            # RFC 6750, section 3.1: no error code where no credential came.
            return f'Bearer {realm}, error="invalid_token"' if refused else f"Bearer {realm}"
        case Kind.API_KEYS:
            for header in method.places.headers:
                scheme = header.prefix.strip(" ")
                if header.name == "authorization" and scheme:
                    return f"{scheme} {realm}"
            return f"ApiKey {realm}"  # not registered, but a 401 must have one
        case None:
            return f"ApiKey {realm}" if method.authenticator else ""


def _realm(attributes: Attributes) -> str:
    """RFC 9110, section 11.5; the operator's name for the service, as a quoted string."""
    service = attributes.destination.service if attributes.destination is not None else ""
    escaped = service.replace("\\", "\\\\").replace('"', '\\"')
    return f'realm="{escaped}"'
