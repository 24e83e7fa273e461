"""`authentication.istio.io/v1alpha1`: Policy and MeshPolicy, compiled and found for a destination.

Nothing is merged: of all policies the most specific one counts alone. For a service with this port, for a
service, `default` of the namespace, `default` of the mesh; of two of one kind the first by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from authz.authn.authentication import (
    NO_POLICY,
    AuthenticationPolicy,
    AuthenticationRules,
    MatchKind,
    Origin,
    PathMatch,
    Peer,
    Trigger,
)
from authz.authn.jwt import DEFAULT_PLACES, JwtRule
from authz.authn.places import HeaderPlace, ParameterPlace, Place
from authz.destination import Destination
from authz.patterns import Pattern, PatternError
from authz.policy.compile import Compiler, Loaded
from authz.policy.documents import AuthenticationPolicy as PolicyDocument
from authz.policy.documents import MeshAuthenticationPolicy
from authz.policy.documents import authentication as shape
from authz.policy.rules import AuthenticationTarget, TargetedAuthentication
from garrison.documents import Document, Field
from garrison.keys.discovery import check_source
from garrison.keys.jwks import KeySet, KeySetError, KeySource, parse_jwks

DEFAULT_NAME = "default"


def compile_authentication(
    compiler: Compiler, loaded: Loaded, document: PolicyDocument | MeshAuthenticationPolicy
) -> TargetedAuthentication:
    """Return the compiled Policy or MeshPolicy."""
    is_mesh = isinstance(document, MeshAuthenticationPolicy)
    spec, name = document.spec, document.metadata.name
    if is_mesh:
        if name != DEFAULT_NAME:
            compiler.report(loaded, ("metadata", "name"), "singleton_name", "the name must be `default`")
        if spec.targets:
            compiler.report(loaded, ("spec", "targets"), "target", "a MeshPolicy is for all services")
    elif (name == DEFAULT_NAME) is bool(spec.targets):
        message = (
            "the policy called `default` is for the whole namespace: it has no targets"
            if spec.targets
            else "a policy without targets, so for the whole namespace, is called `default`"
        )
        where: Field = ("spec", "targets") if spec.targets else ("metadata", "name")
        compiler.report(loaded, where, "target", message)
    policy = AuthenticationPolicy(
        title=document.title,
        peers=tuple(_peers(compiler, loaded, spec.peers)),
        peer_is_optional=spec.peerIsOptional,
        origins=tuple(_origins(compiler, loaded, spec.origins, document.title)),
        origin_is_optional=spec.originIsOptional,
        use_origin=spec.principalBinding == "USE_ORIGIN",
    )
    return TargetedAuthentication(
        policy,
        None if is_mesh else document.metadata.namespace,
        tuple(_targets(compiler, loaded, spec.targets)),
    )


def _targets(
    compiler: Compiler, loaded: Loaded, targets: Sequence[shape.TargetSelector]
) -> Iterable[AuthenticationTarget]:
    for index, target in enumerate(targets):
        ports = []
        for number, port in enumerate(target.ports):
            where: Field = ("spec", "targets", index, "ports", number)
            if port.name is not None:
                message = f"which port is called `{port.name}` is not known here: write its number"
                compiler.report(loaded, (*where, "name"), "port", message)
            elif port.number is None or not 0 < port.number <= 65535:
                compiler.report(loaded, where, "port", "expected the `number` of a port")
            else:
                ports.append(port.number)
        yield AuthenticationTarget(target.name, tuple(sorted(target.labels.items())), tuple(ports))


def _peers(compiler: Compiler, loaded: Loaded, peers: Sequence[shape.PeerMethod]) -> Iterable[Peer]:
    for index, method in enumerate(peers):
        where: Field = ("spec", "peers", index)
        if "jwt" in method.model_fields_set:
            message = "no version of Istio authenticates peers by tokens: put this into `origins`"
            compiler.report(loaded, (*where, "jwt"), "unsupported_peer", message)
        elif "mtls" not in method.model_fields_set:
            compiler.report(loaded, where, "missing_field", "a method needs `mtls`")
        elif method.mtls is None:
            yield Peer.STRICT
        elif method.mtls.mode == "PERMISSIVE":
            yield Peer.PERMISSIVE
        else:
            yield Peer.TLS if method.mtls.allowTls else Peer.STRICT


def _origins(
    compiler: Compiler, loaded: Loaded, origins: Sequence[shape.OriginMethod], title: str
) -> Iterable[Origin]:
    seen: set[str] = set()
    for index, method in enumerate(origins):
        token, where = method.jwt, ("spec", "origins", index, "jwt")
        if token.issuer in seen:
            message = f"`{token.issuer}` stands twice: an issuer has one method"
            compiler.report(loaded, (*where, "issuer"), "issuer_twice", message)
        seen.add(token.issuer)
        keys = _keys(compiler, loaded, where, token)
        if keys is None:
            continue
        yield Origin(
            _token_rule(title, token, keys),
            tuple(
                _trigger(compiler, loaded, (*where, "triggerRules", number), rule)
                for number, rule in enumerate(token.triggerRules)
            ),
        )


def _token_rule(title: str, token: shape.Jwt, keys: KeySet | KeySource) -> JwtRule:
    """Return how tokens of the issuer are found and verified; the one place that makes such rules here."""
    explicit: tuple[Place, ...] = (
        *(HeaderPlace(name.lower(), "") for name in token.jwtHeaders),
        *map(ParameterPlace, token.jwtParams),
    )
    return JwtRule(
        policy=title,
        issuer=token.issuer,
        audiences=frozenset(token.audiences),
        keys=keys,
        places=explicit or DEFAULT_PLACES,
        forward=True,
    )


def _keys(compiler: Compiler, loaded: Loaded, where: Field, token: shape.Jwt) -> KeySet | KeySource | None:
    """Return inline keys, or where keys are fetched: at `jwks_uri`, else where OpenID discovery says."""
    if token.jwks is None:
        source = KeySource(token.jwksUri or "", token.issuer)
        if problem := check_source(source):
            at = "jwksUri" if token.jwksUri else "issuer"
            compiler.report(loaded, (*where, at), "jwks_uri", problem)
        return source
    if token.jwksUri is not None:
        compiler.report(loaded, where, "exclusive", "`jwks` and `jwksUri` exclude each other")
    try:
        return KeySet(parse_jwks(token.jwks))
    except KeySetError as error:
        compiler.report(loaded, (*where, "jwks"), "jwks", f"the key set {error}")
        return None


def _trigger(compiler: Compiler, loaded: Loaded, where: Field, rule: shape.TriggerRule) -> Trigger:
    def paths(name: str, found: Sequence[shape.StringMatch]) -> tuple[PathMatch, ...]:
        each = (_path(compiler, loaded, (*where, name, number), one) for number, one in enumerate(found))
        return tuple(one for one in each if one is not None)

    return Trigger(paths("excludedPaths", rule.excludedPaths), paths("includedPaths", rule.includedPaths))


def _path(compiler: Compiler, loaded: Loaded, where: Field, match: shape.StringMatch) -> PathMatch | None:
    given = [(kind, text) for kind in MatchKind if (text := getattr(match, kind.value)) is not None]
    if len(given) != 1:
        compiler.report(loaded, where, "one_of", "expected one of `exact`, `prefix`, `suffix` and `regex`")
        return None
    ((kind, text),) = given
    if kind is not MatchKind.REGEX:
        return PathMatch(kind, text)
    try:
        Pattern(text)  # by itself, so that it cannot close the group around it
        return PathMatch(kind, text, Pattern(rf"\A(?:{text})\z"))
    except PatternError as error:
        compiler.report(loaded, (*where, "regex"), "pattern", str(error))
        return None


def warn_of_equals(compiler: Compiler, policies: Iterable[tuple[TargetedAuthentication, Document]]) -> None:
    """Warn about policies for the same service and ports: the first by name counts alone."""
    first: dict[object, str] = {}
    for one, document in sorted(policies, key=lambda item: item[0].policy.title):
        for index, target in enumerate(one.targets):
            for port in target.ports or (0,):
                key = (one.namespace, target.name, target.labels, port)
                other = first.setdefault(key, one.policy.title)
                if other != one.policy.title:
                    message = f"{other} is for the same service and ports: it counts, and this does not"
                    compiler.warn(document, ("spec", "targets", index), "same_scope", message)


def authentication_rules(
    policies: Sequence[TargetedAuthentication], destination: Destination
) -> AuthenticationRules | None:
    """Return what holds for `destination`; `policies` are in order of their names."""
    ports: dict[int, AuthenticationPolicy] = {}
    found: dict[str, AuthenticationPolicy] = {}
    for one in policies:
        if one.namespace is None:
            found.setdefault("mesh", one.policy)
        elif one.namespace != destination.namespace:
            continue
        elif not one.targets:
            found.setdefault("namespace", one.policy)
        for target in one.targets:
            if one.namespace is None or not _is_target(target, destination):
                continue
            if not target.ports:
                found.setdefault("service", one.policy)
            for port in target.ports:
                ports.setdefault(port, one.policy)
    otherwise = found.get("service") or found.get("namespace") or found.get("mesh")
    if not ports and otherwise is None:
        return None
    return AuthenticationRules(ports, otherwise or NO_POLICY)


def _is_target(target: AuthenticationTarget, destination: Destination) -> bool:
    return target.name == destination.name and all(
        destination.labels.get(name) == value for name, value in target.labels
    )
