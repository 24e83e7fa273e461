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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol

from authz.attributes import Attributes, Claims
from authz.authn.forwarded import CERTIFICATE_HEADER, CertificateError, client_claims
from authz.authn.jwt import TokenRules
from authz.authn.places import Found, HeaderPlace, Place, find, is_compact_jws, taken_out
from authz.decision import (
    NO_MUTATIONS,
    Decision,
    HeaderAction,
    HeaderMutation,
    Mutations,
    ReasonCode,
    deny,
)

# As for JWTs; single authenticators take less.
MAX_CREDENTIAL_BYTES = 16 * 1024

ANONYMOUS = "anonymous"

# RFC 9110, section 11.2: a credential is a token68 or parameters, and a header value has no control
# characters. A comma may be Envoy's own, between two lines that it joined.
_CREDENTIAL = re.compile(r"[\x21-\x2b\x2d-\x7e]+")


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


_API_KEY = HeaderPlace("x-api-key")
_BASIC = HeaderPlace("authorization", "Basic ", ignore_case=True)
_BEARER = HeaderPlace("authorization", "Bearer ", ignore_case=True)
_CERTIFICATE = HeaderPlace(CERTIFICATE_HEADER)
DEFAULT_PLACES: Mapping[Kind | None, tuple[Place, ...]] = {
    Kind.API_KEYS: (_API_KEY,),
    Kind.BASIC: (_BASIC,),
    Kind.INTROSPECTION: (_BEARER,),
    Kind.TOKEN_REVIEW: (_BEARER,),
    # Nobody knows what it would look at, so whatever may be meant for it is refused.
    None: (_API_KEY, _BASIC, _BEARER),
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
    places: tuple[Place, ...]
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

    @property
    def places(self) -> Iterable[Place]:
        """Every place where a credential is looked for."""
        return (place for method in self.methods for place in method.places)

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
    """At most one of a denial and claims; and what is changed in a request that is let through."""

    denial: Decision | None = None
    claims: Claims | None = None
    mutations: Mutations = NO_MUTATIONS


NOTHING_FOUND = CredentialResult()


@dataclass(frozen=True, slots=True)
class _Credential:
    """A credential, and the method that it is for."""

    method: Method
    found: Found

    @property
    def text(self) -> str:
        return self.found.text


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
    found: Sequence[_Credential],
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


def _by_certificate(found: _Credential, attributes: Attributes) -> CredentialResult:
    try:
        claims = client_claims(found.text)
    except CertificateError as error:
        return _refused(found.method, attributes, str(error))
    return _accepted((found,), attributes, claims, ())


def _accepted(
    found: Sequence[_Credential],
    attributes: Attributes,
    claims: Claims,
    ignored: tuple[HeaderMutation, ...],
) -> CredentialResult:
    method = found[0].method
    # Last, so that no authenticator speaks for another one's issuer.
    established = {**claims, "iss": method.issuer}
    if method.forward:
        return CredentialResult(claims=established, mutations=_changes(ignored))
    changes = taken_out([one.found for one in found], attributes)
    if ignored:
        changes = replace(changes, request_headers=changes.request_headers + ignored)
    return CredentialResult(claims=established, mutations=changes)


def _changes(headers: tuple[HeaderMutation, ...]) -> Mutations:
    return Mutations(headers) if headers else NO_MUTATIONS


def _without_credential(
    rules: CredentialRules,
    attributes: Attributes,
    tokens: TokenRules | None,
    ignored: tuple[HeaderMutation, ...],
    *,
    identified: bool,
) -> CredentialResult:
    passes = CredentialResult(mutations=_changes(ignored)) if ignored else NOTHING_FOUND
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
        claims = {"iss": rules.anonymous, "sub": ANONYMOUS}
        return CredentialResult(claims=claims, mutations=_changes(ignored))
    return passes


def _is_preflight(attributes: Attributes) -> bool:
    """Fetch standard, section 3.2.2: a browser asks first, and never with credentials (as in Istio)."""
    return (
        attributes.method == "OPTIONS"
        and bool(attributes.header("origin"))
        and bool(attributes.header("access-control-request-method"))
    )


# ------------------------------------------------------------------------------------------------- finding


def _find(rules: CredentialRules, attributes: Attributes, tokens: TokenRules | None) -> list[_Credential]:
    """Return the credentials of a call; of methods that look at one place the first one has it."""
    taken: dict[tuple[str, str, str], _Credential] = {}
    for method in rules.methods:
        for found in _of_method(method, attributes):
            # What has the form of a JWT, where rules for JWTs look, is their business.
            if tokens is not None and is_compact_jws(found.text) and tokens.look_at(found):
                continue
            key = (type(found.place).__name__, found.place.name, found.value)
            taken.setdefault(key, _Credential(method, found))
    return [*taken.values()]


def _of_method(method: Method, attributes: Attributes) -> Iterable[Found]:
    if method.authenticator:
        return find(method.places, attributes)
    lines = attributes.headers(CERTIFICATE_HEADER) if _is_trusted(method, attributes) else ()
    return [Found(",".join(lines), _CERTIFICATE, "")] if lines else []


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
    return (HeaderMutation(CERTIFICATE_HEADER, action=HeaderAction.REMOVE),)


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
            for place in method.places:
                scheme = place.prefix.strip(" ") if isinstance(place, HeaderPlace) else ""
                if scheme and place.name == "authorization":
                    return f"{scheme} {realm}"
            return f"ApiKey {realm}"  # not registered, but a 401 must have one
        case None:
            return f"ApiKey {realm}" if method.authenticator else ""


def _realm(attributes: Attributes) -> str:
    """RFC 9110, section 11.5; the operator's name for the service, as a quoted string."""
    service = attributes.destination.service if attributes.destination is not None else ""
    escaped = service.replace("\\", "\\\\").replace('"', '\\"')
    return f'realm="{escaped}"'
