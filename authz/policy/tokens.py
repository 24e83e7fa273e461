"""RequestAuthentication -> token rules.

What Istio's fields cannot say stands in annotations of the document, as an API server would drop unknown
fields; it holds for all of the document's rules.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from authz.authn.jwt import DEFAULT_PLACES, ClaimHeader, JwtRule, Profile
from authz.authn.places import CookiePlace, HeaderPlace, ParameterPlace, Place
from authz.policy.compile import Compiler, Loaded
from authz.policy.documents import RequestAuthentication
from authz.policy.documents import security as shape
from authz.policy.rules import TokenPolicy
from authz.policy.security import selector_of
from garrison.documents import Field
from garrison.durations import parse_duration
from garrison.identity import SCHEME, TrustDomain
from garrison.keys.discovery import check_source
from garrison.keys.jwks import KeySet, KeySetError, KeySource, parse_jwks

_PREFIX = "garrison.dev/"
CLOCK_SKEW = "garrison.dev/clock-skew"
TYPES = "garrison.dev/token-types"
PROFILE = "garrison.dev/token-profile"
_ANNOTATIONS = (CLOCK_SKEW, PROFILE, TYPES)

MAX_CLOCK_SKEW_SECONDS = 300.0
# Of a fetch that hangs, a process that stops waits for the end.
MAX_TIMEOUT_SECONDS = 30.0
_DEFAULT_TIMEOUT_SECONDS = 5.0  # Istio, reference of `timeout`

_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?s")  # a protobuf Duration in JSON
_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]+(/[a-z0-9!#$&^_.+-]+)?")
_HEADER_NAME = re.compile(r"[-_A-Za-z0-9]+")  # Istio, reference of `outputClaimToHeaders`
# They say how the message is read and where it goes, not who sent it.
_NOT_OUTPUT = frozenset(
    {
        "connection",
        "content-length",
        "host",
        "keep-alive",
        "te",  # codespell:ignore te
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


@dataclass(frozen=True, slots=True)
class _Manner:
    """What the annotations of a document say."""

    leeway_seconds: float
    types: frozenset[str]
    profile: Profile


def compile_tokens(compiler: Compiler, loaded: Loaded, authentication: RequestAuthentication) -> TokenPolicy:
    """Return the compiled RequestAuthentication."""
    manner = _manner(compiler, loaded)
    rules = [
        compiled
        for index, rule in enumerate(authentication.spec.jwtRules)
        if (compiled := _Rule(compiler, loaded, ("spec", "jwtRules", index), rule, manner).compile())
    ]
    selector = selector_of(compiler, loaded, authentication.spec, authentication.metadata.namespace)
    return TokenPolicy(selector, tuple(rules))


def _manner(compiler: Compiler, loaded: Loaded) -> _Manner:
    found = loaded.resource.metadata.annotations

    def report(name: str, message: str, hint: str = "") -> None:
        compiler.report(loaded, ("metadata", "annotations", name), "annotation", message, hint)

    for name in found:
        if name.startswith(_PREFIX) and name not in _ANNOTATIONS:
            report(name, f"`{name}` is not known here", f"known: {', '.join(_ANNOTATIONS)}")
    leeway = 0.0
    if (text := found.get(CLOCK_SKEW)) is not None:
        try:
            leeway = parse_duration(text).total_seconds()
        except ValueError as error:
            report(CLOCK_SKEW, str(error))
        if leeway > MAX_CLOCK_SKEW_SECONDS:
            report(CLOCK_SKEW, f"clocks that differ by more than {MAX_CLOCK_SKEW_SECONDS:g}s are not in step")
    types = [one.strip().lower() for one in found.get(TYPES, "").split(",")]
    if TYPES in found and not all(map(_TYPE.fullmatch, types)):
        report(TYPES, f"`{found[TYPES]}` is not a list of types such as `at+jwt, JWT`")
    profile = found.get(PROFILE, Profile.JWT.value)
    if profile not in set(Profile):
        report(PROFILE, f"`{profile}` is none of {', '.join(Profile)}")
        profile = Profile.JWT.value
    return _Manner(
        leeway,
        frozenset(one.removeprefix("application/") for one in types if one),
        Profile(profile),
    )


class _Rule:
    """Compiles one of the `jwtRules`."""

    def __init__(
        self, compiler: Compiler, loaded: Loaded, where: Field, rule: shape.JwtRule, manner: _Manner
    ) -> None:
        self._compiler = compiler
        self._loaded = loaded
        self._where = where
        self._rule = rule
        self._manner = manner

    def compile(self) -> JwtRule | None:
        """Return the compiled rule, None when there are no keys to verify its tokens with."""
        rule, manner = self._rule, self._manner
        keys = self._keys()
        if manner.profile is Profile.JWT_SVID:
            self._check_svid()
        headers = self._output_headers()
        if keys is None:
            return None
        return JwtRule(
            policy=self._loaded.resource.title,
            issuer=rule.issuer,
            audiences=frozenset(rule.audiences),
            keys=keys,
            places=self._places(),
            forward=rule.forwardOriginalToken,
            payload_header=rule.outputPayloadToHeader.lower(),
            claim_headers=headers,
            space_delimited=frozenset(rule.spaceDelimitedClaims),
            leeway_seconds=manner.leeway_seconds,
            types=manner.types,
            profile=manner.profile,
        )

    def _places(self) -> tuple[Place, ...]:
        rule = self._rule
        explicit: tuple[Place, ...] = (
            *(HeaderPlace(one.name.lower(), one.prefix) for one in rule.fromHeaders),
            *map(ParameterPlace, rule.fromParams),
            *map(CookiePlace, rule.fromCookies),
        )
        return explicit or DEFAULT_PLACES

    def _keys(self) -> KeySet | KeySource | None:
        """Return the keys or where they come from, None after reporting that there is nothing of the kind."""
        rule = self._rule
        if rule.jwks and rule.jwksUri:
            self._report("jwks", "exclusive", "only one of `jwks` and `jwksUri` can be there")
        if rule.jwks:
            if not rule.issuer:
                self._report("", "missing_field", "a rule with `jwks` needs an `issuer`")
            try:
                return KeySet(parse_jwks(rule.jwks))
            except KeySetError as error:
                self._report("jwks", "jwks", f"the key set {error}")
                return None
        source = KeySource(rule.jwksUri or "", rule.issuer, self._timeout())
        if not rule.jwksUri and not rule.issuer:
            self._report("", "missing_field", "a rule needs an `issuer` or a `jwksUri`")
            return None
        where = "jwksUri" if rule.jwksUri else "issuer"
        if problem := check_source(source):
            hint = "without `jwks` and `jwksUri`, OpenID discovery at the issuer says where the keys are"
            self._report(where, "jwks_uri", problem, "" if rule.jwksUri else hint)
            return None
        if (rule.jwksUri or rule.issuer).startswith("http:"):
            message = "keys that come over http:// can be replaced by whoever is on the way"
            self._compiler.warn(self._loaded.document, (*self._where, where), "insecure_keys", message)
        return source

    def _timeout(self) -> float:
        text = self._rule.timeout
        if not text:
            return _DEFAULT_TIMEOUT_SECONDS
        try:
            seconds = float(text[:-1]) if _SECONDS.fullmatch(text) else parse_duration(text).total_seconds()
        except ValueError as error:
            self._report("timeout", "duration", str(error))
            return _DEFAULT_TIMEOUT_SECONDS
        if not 0 < seconds <= MAX_TIMEOUT_SECONDS:
            self._report("timeout", "duration", f"`{text}` is not between 0s and {MAX_TIMEOUT_SECONDS:g}s")
        return seconds

    def _output_headers(self) -> tuple[ClaimHeader, ...]:
        rule = self._rule
        found = [ClaimHeader(one.header.lower(), one.claim) for one in rule.outputClaimToHeaders]
        places = [("outputClaimToHeaders", number, "header") for number in range(len(found))]
        names: list[tuple[Field, str]] = list(zip(places, (one.header for one in found), strict=True))
        if rule.outputPayloadToHeader:
            names.append((("outputPayloadToHeader",), rule.outputPayloadToHeader.lower()))
        seen: set[str] = set()
        for where, name in names:
            path = (*self._where, *where)
            if not _HEADER_NAME.fullmatch(name) or name in _NOT_OUTPUT:
                message = f"`{name}` is no header that can tell the upstream something"
                self._compiler.report(self._loaded, path, "output_header", message)
            elif name in seen:
                message = f"`{name}` is set twice by this rule"
                self._compiler.report(self._loaded, path, "output_header", message)
            seen.add(name)
        return tuple(found)

    def _check_svid(self) -> None:
        """Report what a rule for JWT-SVIDs lacks (SPIFFE JWT-SVID, section 3)."""
        issuer = self._rule.issuer
        try:
            TrustDomain.parse(issuer.removeprefix(SCHEME))
            known = issuer.startswith(SCHEME)
        except ValueError:
            known = False
        if not known:
            message = "the issuer of JWT-SVIDs is a trust domain, such as `spiffe://cluster.local`"
            self._report("issuer", "jwt_svid", message)
        if not self._rule.audiences:
            self._report("", "jwt_svid", "JWT-SVIDs are for somebody: the rule needs `audiences`")

    def _report(self, name: str, code: str, message: str, hint: str = "") -> None:
        where = (*self._where, name) if name else self._where
        self._compiler.report(self._loaded, where, code, message, hint)
