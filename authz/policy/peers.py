"""`security.istio.io` PeerAuthentication: documents -> what holds for the peers of a destination.

Istio's precedence (`ComposePeerAuthentication`): port, workload, namespace, mesh; the narrowest that is not
UNSET wins. Of several in one scope the oldest counts. Files have no age: then the strictest does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from authz.authn.peers import BY_DEFAULT, PeerMode, PeerRules, Requirement
from authz.policy.compile import Compiler, Loaded, place
from authz.policy.documents import PeerAuthentication
from authz.policy.documents.security import Mode
from authz.policy.rules import PeerPolicy, Scope, Selector
from garrison.documents import Document, Field

# DISABLE takes less than PERMISSIVE: everything that it takes, PERMISSIVE takes too.
_STRICTNESS = {PeerMode.PERMISSIVE: 0, PeerMode.DISABLE: 1, PeerMode.STRICT: 2}
_MTLS = place(("spec", "mtls"))


def compile_peers(compiler: Compiler, loaded: Loaded, authentication: PeerAuthentication) -> PeerPolicy:
    """Return the compiled PeerAuthentication."""
    spec, metadata = authentication.spec, authentication.metadata
    labels = spec.selector.matchLabels if spec.selector else {}
    for name, value in labels.items():
        if "*" in name + value:
            where: Field = ("spec", "selector", "matchLabels", name)
            compiler.report(loaded, where, "selector", "labels have no wildcards")
    is_root = metadata.namespace == compiler.mesh.root_namespace
    if labels:
        scope = Scope.NOTHING if is_root else Scope.WORKLOAD
    else:
        scope = Scope.MESH if is_root else Scope.NAMESPACE
    if scope is Scope.NOTHING:
        message = (
            f"a selector in `{compiler.mesh.root_namespace}` selects nothing: this document protects nobody"
        )
        compiler.warn(loaded.document, ("spec", "selector"), "selector_in_root", message)
    return PeerPolicy(
        authentication.title,
        Selector(
            metadata.namespace,
            any_namespace=scope is Scope.MESH,
            labels=tuple(sorted(labels.items())),
        ),
        scope,
        _mode(spec.mtls.mode),
        tuple(_ports(compiler, loaded, authentication)),
        _created(compiler, loaded, metadata.creationTimestamp),
    )


def _mode(name: Mode) -> PeerMode | None:
    return None if name == "UNSET" else PeerMode(name)


def _ports(
    compiler: Compiler, loaded: Loaded, authentication: PeerAuthentication
) -> Iterable[tuple[int, PeerMode | None]]:
    spec, where = authentication.spec, ("spec", "portLevelMtls")
    if spec.portLevelMtls is None:
        return
    if not spec.portLevelMtls:
        compiler.report(loaded, where, "empty", "`portLevelMtls` is empty")
    if not (spec.selector and spec.selector.matchLabels):
        message = "ports are those of workloads: `portLevelMtls` needs a `selector` with labels"
        compiler.report(loaded, where, "selector", message)
    for text, tls in spec.portLevelMtls.items():
        # One spelling, so that no port stands twice.
        if not (text.isascii() and text.isdigit() and text[0] != "0" and int(text[:6]) <= 65535):
            compiler.report(loaded, (*where, text), "port", f"`{text}` is not a port")
            continue
        yield int(text), _mode(tls.mode)


def _created(compiler: Compiler, loaded: Loaded, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        message = f"`{text}` is not a time such as `2030-01-31T12:00:00Z`"
        compiler.report(loaded, ("metadata", "creationTimestamp"), "timestamp", message)
        return None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def warn_of_rivals(compiler: Compiler, policies: Iterable[tuple[PeerPolicy, Document]]) -> None:
    """Warn about documents for the same workloads: only one of them can be meant."""
    first: dict[object, PeerPolicy] = {}
    for policy, document in policies:
        if policy.scope is Scope.NOTHING:
            continue
        other = first.setdefault((policy.scope, policy.selector.namespace, policy.selector.labels), policy)
        if other is not policy:
            aged = policy.created is not None and other.created is not None
            rule = "the older one counts" if aged else "the stricter one counts"
            message = f"{other.title} is for the same workloads: {rule}"
            compiler.warn(document, ("metadata", "name"), "same_scope", message)


def peer_rules(policies: Sequence[PeerPolicy], trust_domains: frozenset[str]) -> PeerRules:
    """Return what holds for a destination, given the policies that select it and whose peers may call it."""
    wider = BY_DEFAULT
    for scope in (Scope.MESH, Scope.NAMESPACE):
        wider = _strictest([_mode_of(policy, wider) for policy in _counting(policies, scope)], wider)
    workload = _counting(policies, Scope.WORKLOAD)
    otherwise = _strictest([_mode_of(policy, wider) for policy in workload], wider)
    ports = {
        port: _strictest([_mode_of(policy, wider, port) for policy in workload], otherwise)
        for port in sorted({port for policy in workload for port, _ in policy.ports})
    }
    every = (otherwise, *ports.values())
    return PeerRules(
        trust_domains=trust_domains,
        otherwise=otherwise,
        ports=ports,
        unknown_port=_strictest(every, otherwise),
        is_permissive=all(one.mode is PeerMode.PERMISSIVE for one in every),
    )


def _counting(policies: Iterable[PeerPolicy], scope: Scope) -> list[PeerPolicy]:
    """Return the oldest of a scope; all of them if the age of one is not known."""
    found = sorted((one for one in policies if one.scope is scope), key=lambda one: one.title)
    ages = [one.created for one in found if one.created is not None]
    if len(ages) < len(found):
        return found
    return [one for one in found if one.created == min(ages)]


def _mode_of(policy: PeerPolicy, wider: Requirement, port: int | None = None) -> Requirement:
    mode = dict(policy.ports).get(port) if port is not None else None
    if mode is not None:
        return Requirement(mode, policy.title, place(("spec", "portLevelMtls", str(port))))
    return Requirement(policy.mode, policy.title, _MTLS) if policy.mode is not None else wider


def _strictest(found: Sequence[Requirement], otherwise: Requirement) -> Requirement:
    return max(found, key=lambda one: _STRICTNESS[one.mode], default=otherwise)
