"""What documents say, or fail to say, to each other."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from authz.authn.keys import parse_jwks
from authz.authn.peers import PeerMode
from authz.lint.places import Findings, Places, titles
from authz.policy.documents import (
    ClusterRbacConfig,
    RbacConfig,
    RequestAuthentication,
    ServiceRole,
    ServiceRoleBinding,
)
from authz.policy.matchers import Condition
from authz.policy.rules import Action, LimitPolicy, Policy, PolicySet, Rule, Scope, Selector
from authz.rate_limits import EntryRule
from garrison.documents import Field

_CLAIMS = "request.auth."


def look(findings: Findings, places: Places, policies: PolicySet) -> None:
    """Warn about documents that are of no use together with the others, or more than their authors think."""
    _unbound_roles(findings, places)
    _services_elsewhere(findings, places)
    _replaced_roles(findings, policies)
    _enforcement(findings, places)
    _denied_connections(findings, policies)
    _peers_without_effect(findings, policies)
    _origins_missing(findings, policies)
    _tokens(findings, places)
    _claims_without_tokens(findings, policies)


def _unbound_roles(findings: Findings, places: Places) -> None:
    bound = {(one.metadata.namespace, one.spec.roleRef.name) for one in places.of_kind(ServiceRoleBinding)}
    for role in places.of_kind(ServiceRole):
        if (role.metadata.namespace, role.metadata.name) not in bound:
            message = "no ServiceRoleBinding grants this role: it allows nothing"
            findings.add(role.title, ("metadata", "name"), "unbound_role", message)


def _services_elsewhere(findings: Findings, places: Places) -> None:
    for role in places.of_kind(ServiceRole):
        namespace = role.metadata.namespace
        for index, rule in enumerate(role.spec.rules):
            for number, service in enumerate(rule.services):
                parts = service.lower().split(".")
                if "*" in service or len(parts) < 3 or parts[2] != "svc" or parts[1] == namespace:
                    continue
                message = f"`{service}` is a service of namespace `{parts[1]}`, the role is for `{namespace}`"
                help_ = f"put the role into namespace `{parts[1]}`"
                path = ("spec", "rules", index, "services", number)
                findings.add(role.title, path, "service_elsewhere", message, help_)


def _replaced_roles(findings: Findings, policies: PolicySet) -> None:
    """Where an ALLOW policy is enforced for every workload, no role is looked at (Istio 1.4)."""
    whole: dict[str, str] = {}
    for policy in policies.policies:
        selector = policy.selector
        if policy.is_role or policy.shadow or policy.action is not Action.ALLOW:
            continue
        if selector.labels or selector.targets or selector.conditions:
            continue
        whole.setdefault("" if selector.any_namespace else selector.namespace, policy.title)
    for policy in policies.policies:
        title = whole.get(policy.selector.namespace) or whole.get("")
        if policy.is_role and title:
            message = f"{title} is enforced for every workload here, so this role is not looked at"
            findings.add(policy.title, ("metadata", "name"), "replaced_role", message)


def _enforcement(findings: Findings, places: Places) -> None:
    cluster = next(places.of_kind(ClusterRbacConfig), None)
    configs: list[ClusterRbacConfig | RbacConfig] = [
        *places.of_kind(ClusterRbacConfig),
        *places.of_kind(RbacConfig),
    ]
    for config in configs:
        if cluster is not None and isinstance(config, RbacConfig):
            message = f"{cluster.title} replaces this document as a whole"
            findings.add(config.title, ("kind",), "replaced_config", message)
        for part, target in (("inclusion", config.spec.inclusion), ("exclusion", config.spec.exclusion)):
            if target is None:
                continue
            if config.spec.mode != f"ON_WITH_{part.upper()}":
                message = f"with mode `{config.spec.mode}`, `{part}` is not looked at"
                findings.add(config.title, ("spec", part), "unused_target", message)
            for kind, names in (("services", target.services), ("namespaces", target.namespaces)):
                for index, name in enumerate(names):
                    if "*" in name:
                        message = f"`{name}` is compared as it is written, and no name has a `*`"
                        findings.add(config.title, ("spec", part, kind, index), "config_star", message)


def _denied_connections(findings: Findings, policies: PolicySet) -> None:
    """Istio warns of this as well: on connections that are not HTTP the rest of the rule denies alone."""
    for policy in policies.policies:
        if policy.action is not Action.DENY:
            continue
        for rule in policy.rules:
            if not any(_is_http(one) for one in _conditions(rule)) or _names_ports(rule):
                continue
            message = "on connections that are not HTTP this denies more: only what is not HTTP in it counts"
            path = ("spec", "rules", rule.index)
            findings.add(
                policy.title,
                path,
                "deny_without_ports",
                message,
                "name the HTTP ports in `to.operation.ports`",
            )


def _conditions(rule: Rule) -> Iterable[Condition]:
    yield from rule.when
    for alternative in (*rule.operations, *rule.sources):
        yield from alternative.conditions


def _peers_without_effect(findings: Findings, policies: PolicySet) -> None:
    """UNSET changes nothing; nor does PERMISSIVE for the mesh, where nothing else speaks of the mesh."""
    mesh = [one for one in policies.peers if one.scope is Scope.MESH]
    for policy in policies.peers:
        if policy.scope is Scope.NOTHING or any(mode is not None for _, mode in policy.ports):
            continue
        is_default = policy.mode is PeerMode.PERMISSIVE and mesh == [policy]
        if policy.mode is None or is_default:
            message = "this changes nothing: " + (
                "plaintext and mTLS are taken without it, too" if is_default else "it sets no mode"
            )
            findings.add(policy.title, ("spec",), "peer_no_effect", message)


def _origins_missing(findings: Findings, policies: PolicySet) -> None:
    for targeted in policies.authentication:
        policy = targeted.policy
        if policy.use_origin and not policy.origins and not policy.origin_is_optional:
            message = "the principal is to be the origin's, and there are no `origins`: every call is denied"
            findings.add(policy.title, ("spec",), "no_origins", message)


def _is_http(condition: Condition) -> bool:
    return condition.attribute.startswith("request.")


def _names_ports(rule: Rule) -> bool:
    def has_port(conditions: Iterable[Condition]) -> bool:
        return any(one.attribute == "destination.port" and not one.negated for one in conditions)

    return has_port(rule.when) or all(has_port(one.conditions) for one in rule.operations)


def _tokens(findings: Findings, places: Places) -> None:
    for authentication in places.of_kind(RequestAuthentication):
        title = authentication.title
        for index, rule in enumerate(authentication.spec.jwtRules):
            kids = Counter(key.kid for key in parse_jwks(rule.jwks)) if rule.jwks else Counter()
            twice = sorted(kid for kid, count in kids.items() if kid is not None and count > 1)
            path = ("spec", "jwtRules", index, "jwks")
            if twice:
                message = f"several keys have the `kid` {titles(twice)}"
                findings.add(title, path, "ambiguous_kid", message, "give each key its own")
            elif None in kids and kids.total() > 1:
                message = "one of several keys has no `kid`: it is tried for every token"
                findings.add(title, path, "ambiguous_kid", message, "give each key its own")


def _claims_without_tokens(findings: Findings, policies: PolicySet) -> None:
    """Say so only if some tokens are verified: else the other documents are probably in another place."""
    namespaces: dict[str, list[Selector]] = defaultdict(list)
    for targeted in policies.authentication:
        if targeted.policy.origins:
            namespaces[targeted.namespace or ""].append(Selector(targeted.namespace or ""))
    selectors = [one.selector for one in policies.tokens if one.rules]
    for selector in (*selectors, *(one.selector for one in policies.credentials)):
        namespaces["" if selector.any_namespace else selector.namespace].append(selector)
    if not namespaces or "" in namespaces:
        return
    for policy in policies.policies:
        if policy.selector.any_namespace or policy.selector.namespace in namespaces:
            continue
        for title, condition in _asking_for_claims(policy):
            message = f"in namespace `{policy.selector.namespace}` no token is verified and no credential"
            findings.at(title, condition.field, "claims_without_tokens", message)
    for limits in policies.limits:
        if limits.selector.any_namespace or limits.selector.namespace in namespaces:
            continue
        for path, entry in _entries(limits):
            if entry.attribute.startswith(_CLAIMS):
                message = f"in namespace `{limits.selector.namespace}` no token is verified and no credential"
                findings.add(limits.title, (*path, "attribute"), "claims_without_tokens", message)


def _entries(limits: LimitPolicy) -> Iterable[tuple[Field, EntryRule]]:
    for rule in limits.rules.descriptors:
        for number, entry in enumerate(rule.entries):
            yield ("spec", "descriptors", rule.index, "entries", number), entry


def _asking_for_claims(policy: Policy) -> Iterable[tuple[str, Condition]]:
    for rule in policy.rules:
        for one in rule.when:
            if one.attribute.startswith(_CLAIMS) and not one.negated:
                yield policy.title, one
        for alternative in (*rule.operations, *rule.sources):
            for one in alternative.conditions:
                if one.attribute.startswith(_CLAIMS) and not one.negated:
                    yield alternative.origin or policy.title, one
