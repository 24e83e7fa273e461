"""Tokens: JWT -> claims, or the reason why not.

The rules are RFC 7519 (claims), RFC 7515 (signature), RFC 8725 (practice: algorithms bound to the key, never
`none`, never HMAC, `crit` refused, explicit types) and Istio's `RequestAuthentication` (where tokens are
looked for, 401 and 403). Stricter than Istio: `exp` is required, and there is no leeway unless a policy says
so.

What was verified is remembered by the hash of what was sent, so that a token is verified once, not once a
call: by its rule (the signature is good) and by its destination (what the whole call proves). Neither
outlives the token's times or the key that verified it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from hashlib import sha256
from typing import Any, TypeAlias

from authz.attributes import Attributes, Claims
from authz.authn.failures import Failures
from authz.authn.places import (
    CookiePlace,
    Found,
    HeaderPlace,
    ParameterPlace,
    Place,
    find,
    is_compact_jws,
    looks_at,
    may_have_parameter,
    taken_out,
)
from authz.decision import (
    NO_MUTATIONS,
    Decision,
    HeaderAction,
    HeaderMutation,
    Mutations,
    ReasonCode,
    deny,
)
from garrison.identity import SpiffeId
from garrison.keys.jwks import NO_KEYS, Keys, KeySet, KeySource, VerificationKey
from garrison.keys.token import MAX_TOKEN_BYTES, OTHER_PURPOSES, Token, TokenError, audiences_of, is_number

# Tokens that each rule, and each destination, remembers. One entry is about 2 KB.
MAX_CACHED_TOKENS = 10_000
# How long a token that proved nothing is refused without another look, and how many of them.
REFUSED_SECONDS = 1.0
MAX_REFUSED_TOKENS = 10_000

# JWT-SVID, section 3.1: the algorithms of RFC 7518 that are not symmetric; not EdDSA.
_SVID_ALGORITHMS = ("RS", "PS", "ES")
_SVID_TYPES = frozenset({"jwt", "jose"})

# RFC 6750, section 2: where a bearer token stands unless a rule says otherwise (Istio's defaults too).
DEFAULT_PLACES: tuple[Place, ...] = (
    HeaderPlace("authorization", "Bearer ", ignore_case=True),
    ParameterPlace("access_token"),
)

Clock = Callable[[], float]


class Profile(StrEnum):
    """What kind of tokens a rule is about."""

    JWT = "jwt"
    JWT_SVID = "jwt-svid"


@dataclass(frozen=True, slots=True)
class ClaimHeader:
    """A header that tells the upstream a claim; `claim` is its name, or a path with dots."""

    header: str
    claim: str


@dataclass(frozen=True, slots=True)
class _Verified:
    """Claims whose signature `key` verified, and when they hold (seconds since the epoch)."""

    claims: Claims
    keys: KeySet
    key: VerificationKey
    begin: float
    end: float


@dataclass(frozen=True, slots=True, eq=False)
class JwtRule:
    """One issuer: which keys verify its tokens, for whom and of which kind, and where they are looked for.

    Without `issuer` (only with fetched keys) the rule is for tokens whose issuer no other rule names. For
    JWT-SVIDs `issuer` is `spiffe://<trust domain>`, and the subject has to be in it.
    """

    policy: str
    issuer: str
    audiences: frozenset[str]
    keys: KeySet | KeySource
    places: tuple[Place, ...]
    forward: bool
    payload_header: str = ""
    claim_headers: tuple[ClaimHeader, ...] = ()
    space_delimited: frozenset[str] = frozenset()
    leeway_seconds: float = 0.0
    types: frozenset[str] = frozenset()  # of the header `typ`, in lower case; none: any but other purposes'
    profile: Profile = Profile.JWT
    # What was verified, by the token's hash.
    verified: dict[bytes, _Verified] = field(default_factory=dict, repr=False)

    @property
    def output_headers(self) -> Iterable[str]:
        """The headers that only this rule may set."""
        if self.payload_header:
            yield self.payload_header
        yield from (one.header for one in self.claim_headers)


@dataclass(frozen=True, slots=True)
class TokenResult:
    """A denial, or what follows from the call's tokens: claims (None: no token came) and changes."""

    denial: Decision | None = None
    claims: Claims | None = None
    mutations: Mutations = NO_MUTATIONS


# A result, from when until when it holds, the source of the keys if they were fetched, and the keys.
_Proof: TypeAlias = tuple[TokenResult, float, float, KeySource | None, KeySet]


@dataclass(frozen=True, slots=True, eq=False)
class TokenRules:
    """The rules for one destination; `realm` names it to callers (RFC 9110, section 11.5)."""

    rules: tuple[JwtRule, ...]
    realm: str
    places: Mapping[Place, tuple[JwtRule, ...]]
    headers: tuple[str, ...]  # every header in which a token can stand
    parameters: tuple[str, ...]  # every parameter
    # Where other credentials are looked for, too: what stands there and has not the form of a JWT is theirs.
    shared: tuple[Place, ...]
    no_token: TokenResult
    unchecked: TokenResult  # what a token comes to that is not looked at
    # What a call proved that brought one value of one of `headers`, and nothing else, by the hash of that
    # value; and from when until when such a call is refused.
    proved: dict[bytes, _Proof] = field(default_factory=dict, repr=False)
    refused: dict[bytes, tuple[TokenResult, float, float]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, rules: Sequence[JwtRule], realm: str = "", others: Iterable[Place] = ()) -> TokenRules | None:
        """Return `rules` by place; None when there are none. `others` is where other credentials stand."""
        if not rules:
            return None
        places = dict.fromkeys(place for rule in rules for place in rule.places)
        cleared = dict.fromkeys(name for rule in rules for name in rule.output_headers)
        changes = tuple(HeaderMutation(name, action=HeaderAction.REMOVE) for name in cleared)
        return cls(
            tuple(rules),
            "".join(character for character in realm if character.isprintable() and character not in '"\\'),
            {place: tuple(rule for rule in rules if place in rule.places) for place in places},
            tuple(dict.fromkeys(name for place in places if (name := _header_of(place)))),
            tuple(place.name for place in places if isinstance(place, ParameterPlace)),
            tuple(dict.fromkeys(others)),
            TokenResult(mutations=Mutations(changes) if changes else NO_MUTATIONS),
            TokenResult(_unchecked(rules[0].policy)),
        )

    @property
    def policy(self) -> str:
        """The first rule's policy, for what concerns all of them."""
        return self.rules[0].policy

    def look_at(self, found: Found) -> bool:
        """Return whether one of the rules looks where that was found."""
        return any(looks_at(place, found) for place in self.places)


def _header_of(place: Place) -> str:
    match place:
        case HeaderPlace(name):
            return name
        case CookiePlace():
            return "cookie"
        case _:
            return ""


class _Invalid(Exception):  # noqa: N818 - flow inside this module, never seen outside
    """The token proves nothing; the text is for operators and holds nothing of the token.

    `final` tells whether that stays so while keys and clock are what they are.
    """

    def __init__(self, reason: str, *, final: bool = True) -> None:
        super().__init__(reason)
        self.final = final


class _Unchecked(Exception):  # noqa: N818 - as above
    """The token was not looked at, because too many bad ones came from its sender."""


def authenticate(
    rules: TokenRules,
    attributes: Attributes,
    clock: Clock,
    keys: Keys = NO_KEYS,
    failures: Failures | None = None,
) -> TokenResult:
    """Return what the call's tokens prove under `rules`; `clock` gives seconds since the epoch.

    `keys` has what was fetched, `failures` bounds what senders of bad tokens can cost.
    """
    if attributes.method == "OPTIONS" and _is_preflight(attributes):
        return rules.no_token
    headers = rules.headers
    values = attributes.headers(headers[0]) if len(headers) == 1 else _tagged(headers, attributes)
    target = attributes.target if rules.parameters else ""
    if len(values) > 1 or ("?" in target and may_have_parameter(rules.parameters, target)):
        return _prove(rules, attributes, clock(), keys, failures)[0]
    if not values:
        return rules.no_token
    # The way of nearly every call: one header that can hold a token, and what it holds was seen before.
    try:
        digest = sha256(values[0].encode()).digest()
    except UnicodeEncodeError:
        return _prove(rules, attributes, clock(), keys, failures)[0]
    now = clock()
    known = rules.proved.get(digest)
    if known is not None:
        result, begin, end, source, proved_by = known
        if begin <= now < end and (source is None or keys.current(source) is proved_by):
            return result
    elif (refused := rules.refused.get(digest)) is not None and refused[1] <= now < refused[2]:
        return refused[0]
    elif failures is not None and not failures.allow(_sender(attributes), now):
        return rules.unchecked
    result, proof, final = _prove(rules, attributes, now, keys, failures)
    if proof is not None:
        _remember(rules.proved, digest, proof, MAX_CACHED_TOKENS)
    elif result.denial is not None and final:
        _remember(rules.refused, digest, (result, now, now + REFUSED_SECONDS), MAX_REFUSED_TOKENS)
    return result


def _tagged(headers: Iterable[str], attributes: Attributes) -> Sequence[str]:
    """Return the values of several headers, each so that it is not mistaken for another header's."""
    return [f"{name}\0{value}" for name in headers for value in attributes.headers(name)]


def _remember(memory: dict[bytes, Any], digest: bytes, value: object, most: int) -> None:
    if len(memory) >= most and digest not in memory:
        del memory[next(iter(memory))]
    memory[digest] = value


def _is_preflight(attributes: Attributes) -> bool:
    """Return whether a browser asks what it may send (Fetch, section 4.8): it sends no credentials then."""
    return bool(attributes.header("origin") and attributes.headers("access-control-request-method"))


def _keys_of(rule: JwtRule, keys: Keys) -> KeySet | None:
    return keys.current(rule.keys) if isinstance(rule.keys, KeySource) else rule.keys


def _prove(
    rules: TokenRules, attributes: Attributes, now: float, keys: Keys, failures: Failures | None
) -> tuple[TokenResult, _Proof | None, bool]:
    """Find and verify the call's tokens; return the result, what it rests on, and whether a denial is final.

    Several different tokens are refused: which of them speaks for the caller would be a guess (RFC 6750,
    section 2, allows one).
    """
    found = find(rules.places, attributes)
    if rules.shared:
        found = [one for one in found if is_compact_jws(one.text) or not _is_shared(rules, one)]
    if not found:
        return rules.no_token, None, False
    if any(one.text != found[0].text for one in found):
        denial = _unauthorized("more than one token was sent", rules.policy, rules.realm)
        return TokenResult(denial), None, True
    candidates = tuple(dict.fromkeys(rule for one in found for rule in rules.places[one.place]))
    verifier = _Verifier(now, keys, failures, _sender(attributes))
    try:
        rule, verified = verifier.verify(found[0].text, candidates)
    except _Invalid as error:
        denial = _unauthorized(str(error), candidates[0].policy, rules.realm)
        return TokenResult(denial), None, error.final
    except _Unchecked:
        return rules.unchecked, None, False
    if not _is_audience(rule, verified.claims):
        reason = f"the token's audience is none of {', '.join(sorted(rule.audiences))}"
        denial = deny(
            ReasonCode.AUDIENCE_NOT_ALLOWED,
            reason,
            public="Audiences in Jwt are not allowed",
            policy=rule.policy,
        )
        return TokenResult(denial), None, True
    mutations = _mutations(rules, rule, found, verified.claims, attributes)
    result = TokenResult(claims=_as_read(rule, verified.claims), mutations=mutations)
    source = rule.keys if isinstance(rule.keys, KeySource) else None
    return result, (result, verified.begin, verified.end, source, verified.keys), False


def _is_shared(rules: TokenRules, found: Found) -> bool:
    return any(looks_at(place, found) for place in rules.shared)


def _sender(attributes: Attributes) -> str:
    addresses = attributes.values("source.ip")
    return addresses[0] if addresses else ""


def _mutations(
    rules: TokenRules, rule: JwtRule, found: Sequence[Found], claims: Claims, attributes: Attributes
) -> Mutations:
    """Return what a good token changes: it is taken out, and what the upstream is told of it is set.

    A header that a rule sets is removed where this token has nothing for it: what the caller sent there must
    not look like ours. Envoy removes after it has set, so each header is in one of both.
    """
    changes = NO_MUTATIONS if rule.forward else taken_out(found, attributes)
    outputs = rules.no_token.mutations.request_headers
    if not outputs:
        return changes
    told = _told(rule, found[0].text, claims)
    ours = (HeaderMutation(one.name, told[one.name]) if one.name in told else one for one in outputs)
    names = {one.name for one in outputs}
    others = (one for one in changes.request_headers if one.name not in names)
    return replace(changes, request_headers=(*others, *ours))


def _told(rule: JwtRule, text: str, claims: Claims) -> dict[str, str]:
    """Return the headers that tell the upstream of the token, by name."""
    told: dict[str, str] = {}
    if rule.payload_header:
        told[rule.payload_header] = text.split(".")[1]
    for one in rule.claim_headers:
        value = _claim_text(_claim_at(claims, one.claim))
        if value:
            told[one.header] = value
    return told


def _claim_at(claims: Claims, name: str) -> Any:
    """Return the claim called `name`, or the one that its dots lead to; None when there is none."""
    if name in claims:
        return claims[name]
    value: Any = claims
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _claim_text(value: Any) -> str:
    """Return a string, whole number or boolean as a header can hold it; empty for everything else."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    # A value is told as it is or not at all: without its line break it would be another one.
    if isinstance(value, str) and value.isprintable() and value == value.strip():
        return value
    return ""


def _as_read(rule: JwtRule, claims: Claims) -> Claims:
    """Return the claims as policies see them: lists in disguise as lists, the issuer as the rule names it."""
    changed: dict[str, Any] = {
        name: value.split() for name in rule.space_delimited if isinstance(value := claims.get(name), str)
    }
    if rule.profile is Profile.JWT_SVID:
        # An SVID's `iss` is not what was verified: the trust domain of its subject is.
        changed["iss"] = rule.issuer
    return {**claims, **changed} if changed else claims


def _is_audience(rule: JwtRule, claims: Claims) -> bool:
    return not rule.audiences or not rule.audiences.isdisjoint(audiences_of(claims))


@dataclass(frozen=True, slots=True)
class _Verifier:
    """Verifies tokens at one time, with the keys of that time."""

    now: float
    keys: Keys
    failures: Failures | None
    sender: str

    def verify(self, text: str, rules: Sequence[JwtRule]) -> tuple[JwtRule, _Verified]:
        """Return the rule that verifies the token and is meant by it; several rules may share an issuer.

        Raises:
            _Invalid: no rule does.
            _Unchecked: none was tried.

        """
        if len(text) > MAX_TOKEN_BYTES:
            raise _Invalid(f"the token has more than {MAX_TOKEN_BYTES} bytes")
        if not text.isascii():
            raise _Invalid("the token is not base64url")
        digest = sha256(text.encode()).digest()
        token: Token | None = None
        failure: _Invalid | None = None
        elsewhere: tuple[JwtRule, _Verified] | None = None
        for rule in rules:
            verified = self._known(rule, digest)
            if verified is None:
                token = token or self._looked_at(text)
                if not _is_meant(rule, rules, token):
                    continue
                try:
                    verified = self._verified(rule, token)
                except _Invalid as error:
                    failure = failure if failure is not None and not failure.final else error
                    continue
                _remember(rule.verified, digest, verified, MAX_CACHED_TOKENS)
            if _is_audience(rule, verified.claims):
                return rule, verified
            elsewhere = elsewhere or (rule, verified)
        if elsewhere is not None:
            return elsewhere
        raise failure or _Invalid("the token's issuer is not one that is configured here")

    def _looked_at(self, text: str) -> Token:
        if self.failures is not None and not self.failures.allow(self.sender, self.now):
            raise _Unchecked
        try:
            return Token.of(text)
        except TokenError as error:
            raise _Invalid(str(error)) from None

    def _known(self, rule: JwtRule, digest: bytes) -> _Verified | None:
        """Return what `rule` has verified before, unless a key is gone or the time is over since."""
        known = rule.verified.get(digest)
        if known is None or not known.begin <= self.now < known.end:
            return None
        keys = _keys_of(rule, self.keys)
        if keys is known.keys:
            return known
        if keys is None or known.key not in keys.keys:
            del rule.verified[digest]
            return None
        renewed = replace(known, keys=keys)
        rule.verified[digest] = renewed
        return renewed

    def _verified(self, rule: JwtRule, token: Token) -> _Verified:
        """Verify `token`; what costs little is looked at first."""
        _check_type(rule, token)
        begin, end = _times(rule, token.claims, self.now)
        if rule.profile is Profile.JWT_SVID:
            _check_svid(rule, token)
        keys = _keys_of(rule, self.keys)
        if keys is None:
            raise _Invalid("there are no keys of the token's issuer, or they are too old", final=False)
        fitting = [key for key in keys.keys if _fits(rule, key, token)]
        if not fitting:
            if isinstance(rule.keys, KeySource):
                self.keys.missed(rule.keys)
            raise _Invalid("no configured key has the token's `kid` and `alg`", final=False)
        for key in fitting:
            if token.is_signed_by(key):
                return _Verified(token.claims, keys, key, begin, end)
        if self.failures is not None:
            self.failures.count(self.sender, self.now)
        raise _Invalid("the token's signature does not verify")


def _is_meant(rule: JwtRule, rules: Sequence[JwtRule], token: Token) -> bool:
    """Return whether `rule` is for tokens of this issuer."""
    if rule.profile is Profile.JWT_SVID:
        return True  # its issuer is in the subject
    issuer = token.claims.get("iss")
    if rule.issuer:
        return bool(rule.issuer == issuer)
    return all(other.issuer != issuer for other in rules)


def _fits(rule: JwtRule, key: VerificationKey, token: Token) -> bool:
    if rule.profile is Profile.JWT_SVID:
        if not str(token.algorithm).startswith(_SVID_ALGORITHMS):
            return False
    elif key.use != "sig":
        return False
    return token.algorithm in key.algorithms and (
        token.kid is None or key.kid is None or token.kid == key.kid
    )


def _check_type(rule: JwtRule, token: Token) -> None:
    """Refuse a token whose header says that it is something else (RFC 8725, section 3.11)."""
    kind = token.header.get("typ")
    if kind is not None and not isinstance(kind, str):
        raise _Invalid("the token's `typ` is not a string")
    # RFC 7515, section 4.1.9: compared as media types are, and `application/` may be left out.
    kind = (kind or "").lower().removeprefix("application/")
    if rule.types:
        if kind not in rule.types:
            raise _Invalid("the token's `typ` is not one that is accepted here")
    elif rule.profile is Profile.JWT_SVID:
        if kind and kind not in _SVID_TYPES:
            raise _Invalid("the token's `typ` is not that of a JWT-SVID")
    elif kind in OTHER_PURPOSES:
        raise _Invalid("the token's `typ` says that it is for another purpose")


def _times(rule: JwtRule, claims: Claims, now: float) -> tuple[float, float]:
    """Return when the token holds, from its times and the rule's leeway, after checking that it does now."""
    expires, not_before, issued = claims.get("exp"), claims.get("nbf"), claims.get("iat")
    leeway = rule.leeway_seconds
    if not is_number(expires):
        raise _Invalid("the token has no expiry (`exp`)")
    end, begin = expires + leeway, -math.inf
    if not now < end:
        raise _Invalid("the token has expired")
    if not_before is not None:
        if not is_number(not_before):
            raise _Invalid("the token's `nbf` is not a number")
        begin = not_before - leeway
        if now < begin:
            raise _Invalid("the token is not valid yet (`nbf`)", final=False)
    if issued is not None:
        if not is_number(issued):
            raise _Invalid("the token's `iat` is not a number")
        if now < issued - leeway:
            raise _Invalid("the token was issued in the future (`iat`)", final=False)
        begin = max(begin, issued - leeway)
    return begin, end


def _check_svid(rule: JwtRule, token: Token) -> None:
    """Refuse what is no JWT-SVID of the rule's trust domain (SPIFFE JWT-SVID, sections 2 to 4)."""
    subject = token.claims.get("sub")
    try:
        spiffe_id = SpiffeId.parse(subject) if isinstance(subject, str) else None
    except ValueError:
        spiffe_id = None
    if spiffe_id is None or not spiffe_id.segments:
        raise _Invalid("the token's subject is not the SPIFFE ID of a workload")
    if str(spiffe_id.trust_domain.spiffe_id) != rule.issuer:
        raise _Invalid("the token's subject is in another trust domain")
    if not audiences_of(token.claims):
        raise _Invalid("the token has no audience (`aud`)")


def bearer_challenge(realm: str, error: str = "", description: str = "") -> str:
    """Return the value of `WWW-Authenticate` (RFC 6750, section 3); the texts hold nothing of the call's."""
    parameters = {"realm": realm, "error": error, "error_description": description.replace("`", "")}
    shown = ", ".join(f'{name}="{value}"' for name, value in parameters.items() if value)
    return f"Bearer {shown}" if shown else "Bearer"


def _unchecked(policy: str) -> Decision:
    return deny(
        ReasonCode.TOO_MANY_BAD_TOKENS,
        "too many bad tokens came from this address; the token was not looked at",
        http_status=429,
        public="too many invalid tokens",
        policy=policy,
    )


def _unauthorized(reason: str, policy: str, realm: str) -> Decision:
    challenge = bearer_challenge(realm, "invalid_token", reason)
    return deny(
        ReasonCode.INVALID_TOKEN, reason, http_status=401, public=reason, policy=policy, challenge=challenge
    )
