"""`authentication.istio.io/v1alpha1`: whether a call is authenticated as a policy asks (Istio 1.1 to 1.4).

The peer by its certificate, the origin by a token; each 401 with Istio's body. Where Istio's parts differ,
the stricter reading counts: see `docs/semantics.md`, Differences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from authz.attributes import Attributes
from authz.authn import jwt
from authz.authn.failures import Failures
from authz.authn.jwt import JwtRule, TokenResult, TokenRules
from authz.authn.peers import workload_port
from authz.decision import Decision, ReasonCode, deny
from authz.patterns import Pattern, PatternError
from garrison.keys.jwks import NO_KEYS, Keys

_PEER_FAILED = "Peer authentication failed."
_ORIGIN_FAILED = "Origin authentication failed."
# Sets of origins that paths trigger: each is put together once. Policies have few.
_MAX_KNOWN = 256


class Peer(StrEnum):
    """How a peer may come."""

    STRICT = "STRICT"  # with an identity
    TLS = "TLS"  # over TLS, with or without a certificate (`allow_tls`)
    PERMISSIVE = "PERMISSIVE"  # in any way


class MatchKind(StrEnum):
    """How a path is compared."""

    EXACT = "exact"
    PREFIX = "prefix"
    SUFFIX = "suffix"
    REGEX = "regex"


@dataclass(frozen=True, slots=True)
class PathMatch:
    """One of the paths of a trigger rule; `pattern` is anchored at both ends."""

    kind: MatchKind
    text: str
    pattern: Pattern | None = None

    def fits(self, path: str, *, unless_known: bool) -> bool:
        """Return whether `path` fits; `unless_known` for one that is too long to be looked at."""
        match self.kind:
            case MatchKind.EXACT:
                return path == self.text
            case MatchKind.PREFIX:
                return path.startswith(self.text)
            case MatchKind.SUFFIX:
                return path.endswith(self.text)
        try:
            return self.pattern is not None and self.pattern.found_in(path)
        except PatternError:
            return unless_known


@dataclass(frozen=True, slots=True)
class Trigger:
    """For which paths a token is asked for."""

    excluded: tuple[PathMatch, ...]
    included: tuple[PathMatch, ...]

    def matches(self, readings: Sequence[str], *, is_whole: bool) -> bool:
        """Return whether the token is asked for; `readings` are all that the path may stand for.

        A path is excluded if every reading of it is, and included if one of them is. One that is not known as
        a whole is not excluded, and included.
        """
        if is_whole and all(
            any(one.fits(path, unless_known=False) for one in self.excluded) for path in readings
        ):
            return False
        return (
            not self.included
            or not is_whole
            or any(one.fits(path, unless_known=True) for one in self.included for path in readings)
        )


@dataclass(frozen=True, slots=True)
class Origin:
    """An issuer of tokens, and for which paths they are asked for."""

    rule: JwtRule
    triggers: tuple[Trigger, ...]


@dataclass(frozen=True, slots=True, eq=False)
class AuthenticationPolicy:
    """A compiled `Policy` or `MeshPolicy`."""

    title: str
    peers: tuple[Peer, ...]
    peer_is_optional: bool
    origins: tuple[Origin, ...]
    origin_is_optional: bool
    use_origin: bool  # `principal_binding: USE_ORIGIN`
    # The rules of the origins that a path triggers, by their numbers.
    _known: dict[tuple[int, ...], TokenRules | None] = field(default_factory=dict, repr=False)

    def rules(self, triggered: tuple[int, ...]) -> TokenRules | None:
        """Return the token rules of some of the origins."""
        if triggered not in self._known:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known[triggered] = TokenRules.of([self.origins[number].rule for number in triggered])
        return self._known[triggered]


@dataclass(frozen=True, slots=True, eq=False)
class AuthenticationRules:
    """What holds for one destination: the policies of single ports, and that of all others."""

    ports: Mapping[int, AuthenticationPolicy]
    otherwise: AuthenticationPolicy


def origin_rules(rules: AuthenticationRules) -> list[JwtRule]:
    """Return the token rules of all policies."""
    policies = dict.fromkeys((*rules.ports.values(), rules.otherwise))
    return [one.rule for policy in policies for one in policy.origins]


def with_rules(rules: AuthenticationRules, change: Callable[[JwtRule], JwtRule]) -> AuthenticationRules:
    """Return the same with other token rules, for tests of policies."""

    def changed(policy: AuthenticationPolicy) -> AuthenticationPolicy:
        origins = tuple(replace(one, rule=change(one.rule)) for one in policy.origins)
        return replace(policy, origins=origins, _known={})

    return AuthenticationRules(
        {port: changed(policy) for port, policy in rules.ports.items()}, changed(rules.otherwise)
    )


def without_origins(rules: AuthenticationRules) -> AuthenticationRules:
    """Return the same as it is once the origin is known, for tests of policies."""

    def changed(policy: AuthenticationPolicy) -> AuthenticationPolicy:
        return replace(policy, origins=(), use_origin=False, _known={})

    return AuthenticationRules(
        {port: changed(policy) for port, policy in rules.ports.items()}, changed(rules.otherwise)
    )


# Where nothing is asked: no policy speaks of the other ports.
NO_POLICY = AuthenticationPolicy("", (), False, (), False, False)
_UNKNOWN_PORT = AuthenticationPolicy("", (), False, (), False, False)
# Nothing is asked.
_PASSED = TokenResult()


def policy_for(rules: AuthenticationRules, attributes: Attributes) -> AuthenticationPolicy:
    """Return the one policy that counts; one that nobody can meet where it depends on a port nobody knows."""
    if not rules.ports:
        return rules.otherwise
    port = workload_port(attributes)
    return _UNKNOWN_PORT if port is None else rules.ports.get(port, rules.otherwise)


def peer_denial(rules: AuthenticationRules, attributes: Attributes) -> Decision | None:
    """Return the denial of a peer that is not authenticated as asked, None when nothing is in its way."""
    policy = policy_for(rules, attributes)
    if policy is _UNKNOWN_PORT:
        reason = "the policies for this service are for single ports, and nobody knows the port of this call"
        return _unauthenticated(ReasonCode.PEER_AUTHENTICATION_FAILED, policy, "", reason, attributes)
    if not policy.peers or policy.peer_is_optional:
        return None
    if any(_passes(peer, attributes) for peer in policy.peers):
        return None
    came = "without a certificate" if not attributes.reported else "with a certificate that has no SPIFFE ID"
    reason = f"{policy.title} asks for mTLS, and the peer came {came}"
    return _unauthenticated(ReasonCode.PEER_AUTHENTICATION_FAILED, policy, "spec.peers", reason, attributes)


def _passes(peer: Peer, attributes: Attributes) -> bool:
    return (
        peer is Peer.PERMISSIVE
        or attributes.peer is not None
        or (peer is Peer.TLS and (attributes.is_tls or bool(attributes.reported)))
    )


def origin(
    rules: AuthenticationRules,
    attributes: Attributes,
    clock: Callable[[], float],
    keys: Keys = NO_KEYS,
    failures: Failures | None = None,
) -> TokenResult:
    """Return what the call's token proves, a denial if one had to prove something and does not, or neither.

    What the peer has to prove, `peer_denial` has been asked before.
    """
    policy = policy_for(rules, attributes)
    if not (policy.origins or policy.use_origin):
        return _PASSED
    result = _authenticate(policy, attributes, clock, keys, failures)
    if result is None:
        return _PASSED
    if result.claims is not None or policy.origin_is_optional:
        return TokenResult(claims=result.claims)
    wrong = result.denial
    if wrong is not None and wrong.code is ReasonCode.TOO_MANY_BAD_TOKENS:  # it was not looked at
        return TokenResult(wrong)
    why = wrong.reason if wrong is not None else "the call has no token"
    return TokenResult(
        _unauthenticated(
            ReasonCode.ORIGIN_AUTHENTICATION_FAILED,
            policy,
            "spec.origins",
            f"{policy.title} asks for a token: {why}",
            attributes,
            is_wrong=wrong is not None,
        )
    )


def _authenticate(
    policy: AuthenticationPolicy,
    attributes: Attributes,
    clock: Callable[[], float],
    keys: Keys,
    failures: Failures | None,
) -> TokenResult | None:
    """Return what the token proves to the origins that the path triggers, None if it triggers none.

    The one place that verifies tokens for this API group.
    """
    if not policy.origins:  # and yet the principal is to be the origin's
        return _PASSED
    triggered = tuple(number for number, one in enumerate(policy.origins) if _is_triggered(one, attributes))
    rules = policy.rules(triggered)
    return jwt.authenticate(rules, attributes, clock, keys, failures) if rules is not None else None


def _is_triggered(one: Origin, attributes: Attributes) -> bool:
    if not one.triggers:
        return True
    target = attributes.target
    # Bytes that are not UTF-8 and CONNECT leave no path.
    is_whole = bool(target) and attributes.path is not None
    readings = [target, *attributes.values("request.path.any")]
    return any(trigger.matches(readings, is_whole=is_whole) for trigger in one.triggers)


def differs(result: TokenResult, attributes: Attributes) -> bool:
    """Return whether another document has taken another token of this call."""
    return result.claims is not None and attributes.claims is not None and result.claims != attributes.claims


def two_tokens(rules: AuthenticationRules, attributes: Attributes) -> Decision:
    """Return the denial of a call with two tokens, of which each satisfies one document."""
    policy = policy_for(rules, attributes)
    reason = f"{policy.title} and a RequestAuthentication take two different tokens of this call"
    return _unauthenticated(
        ReasonCode.ORIGIN_AUTHENTICATION_FAILED, policy, "spec.origins", reason, attributes, is_wrong=True
    )


def _unauthenticated(
    code: ReasonCode,
    policy: AuthenticationPolicy,
    where: str,
    reason: str,
    attributes: Attributes,
    *,
    is_wrong: bool = False,
) -> Decision:
    """Return a 401. RFC 6750, section 3.1: no error code where no token came."""
    service = attributes.destination.service if attributes.destination else ""
    realm = "".join(one for one in service if one.isalnum() or one in ".-_*:")
    challenge = f'Bearer realm="{realm}"' + (', error="invalid_token"' if is_wrong else "")
    public = _PEER_FAILED if code is ReasonCode.PEER_AUTHENTICATION_FAILED else _ORIGIN_FAILED
    return deny(
        code,
        reason,
        http_status=401,
        public=public,
        policy=policy.title,
        field_path=where,
        challenge=challenge,
    )
