"""Compiled policies -> the few rules that can matter to a call.

First by destination, then by whatever tells the rules of that destination apart best: each rule is filed
under the patterns of one attribute that it cannot match without, and a call looks only under its own values.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from authz.attributes import Attributes
from authz.authn.jwt import TokenRules
from authz.casbin_policy import CasbinPolicies, CompiledPolicy
from authz.decision import Decision, ReasonCode, allow
from authz.destination import Destination
from authz.mixer.rules import DestinationRules
from authz.paths import PathNormalization
from authz.policy.matchers import Condition, StringMatcher
from authz.policy.rules import Action, Enforcement, Policy, PolicySet, Rule, Selector
from authz.policy.shaping import Shape

# Fewer rules than this are faster walked than looked up.
_WORTH_INDEXING = 8
# Set by the gateway controller on the pods of a Gateway; what it says picks `targetRefs`.
_GATEWAY_LABEL = "gateway.networking.k8s.io/gateway-name"

Dimension = tuple[str, str]  # (attribute, argument)


@dataclass(slots=True)
class _Filed:
    """Rules filed under the patterns of one attribute; a value is looked up once per length of pattern."""

    exact: dict[str, list[Rule]] = field(default_factory=lambda: defaultdict(list))
    prefixes: dict[str, list[Rule]] = field(default_factory=lambda: defaultdict(list))
    suffixes: dict[str, list[Rule]] = field(default_factory=lambda: defaultdict(list))
    prefix_lengths: tuple[int, ...] = ()
    suffix_lengths: tuple[int, ...] = ()

    def add(self, rule: Rule, matcher: StringMatcher) -> None:
        for pattern in matcher.exact:
            self.exact[pattern].append(rule)
        for pattern in matcher.prefixes:
            self.prefixes[pattern].append(rule)
        for pattern in matcher.suffixes:
            self.suffixes[pattern].append(rule)

    def close(self) -> None:
        self.exact, self.prefixes, self.suffixes = dict(self.exact), dict(self.prefixes), dict(self.suffixes)
        self.prefix_lengths = tuple(sorted({len(pattern) for pattern in self.prefixes}))
        self.suffix_lengths = tuple(sorted({len(pattern) for pattern in self.suffixes}))

    def find(self, value: str) -> Iterable[Rule]:
        yield from self.exact.get(value, ())
        for length in self.prefix_lengths:
            if length > len(value):
                break
            yield from self.prefixes.get(value[:length], ())
        for length in self.suffix_lengths:
            if length > len(value):
                break
            yield from self.suffixes.get(value[len(value) - length :], ())


class RuleIndex:
    """The rules of one destination and action; `rules` are all of them, in their order."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        # A role that is bound to nobody is shown in explanations and never looked at otherwise.
        live = [rule for rule in rules if rule.sources]
        self._filed: dict[Dimension, _Filed] = {}
        self._rest: tuple[Rule, ...] = tuple(live)
        if len(live) >= _WORTH_INDEXING:
            self._file(live)

    def candidates(self, attributes: Attributes) -> Iterable[Rule]:
        """Return every rule that can match, and few others."""
        if not self._filed:
            return self._rest
        found: list[Rule] = []
        for (attribute, argument), filed in self._filed.items():
            for value in attributes.values(attribute, argument):
                found += filed.find(value)
        found += self._rest
        return found

    def _file(self, rules: Sequence[Rule]) -> None:
        keys = [_keys(rule) for rule in rules]
        # The attribute with the most different patterns tells rules apart best.
        spread: Counter[Dimension] = Counter()
        seen: set[tuple[Dimension, str]] = set()
        for dimensions in keys:
            for dimension, matchers in dimensions.items():
                for pattern in (text for matcher in matchers for text in _patterns(matcher)):
                    if (dimension, pattern) not in seen:
                        seen.add((dimension, pattern))
                        spread[dimension] += 1
        rest: list[Rule] = []
        for rule, dimensions in zip(rules, keys, strict=True):
            if not dimensions:
                rest.append(rule)
                continue
            best = max(dimensions, key=lambda dimension: (spread[dimension], dimension))
            filed = self._filed.setdefault(best, _Filed())
            for matcher in dimensions[best]:
                filed.add(rule, matcher)
        for filed in self._filed.values():
            filed.close()
        self._rest = tuple(rest)


def _patterns(matcher: StringMatcher) -> Iterable[str]:
    yield from matcher.exact
    yield from (f"{prefix}*" for prefix in matcher.prefixes)
    yield from (f"*{suffix}" for suffix in matcher.suffixes)


def _keys(rule: Rule) -> dict[Dimension, list[StringMatcher]]:
    """Return the attributes that `rule` cannot match without, and the patterns one of which must fit."""
    found = _required([*rule.when])
    for alternatives in (rule.operations, rule.sources):
        each = [_required(alternative.conditions) for alternative in alternatives]
        for dimension in set(each[0]).intersection(*each[1:]) if each else ():
            found[dimension] = [matcher for required in each for matcher in required[dimension]]
    return found


def _required(conditions: Sequence[Condition]) -> dict[Dimension, list[StringMatcher]]:
    return {
        (condition.attribute, condition.argument): [condition.matcher]
        for condition in conditions
        if not condition.negated
        and isinstance(condition.matcher, StringMatcher)
        and not condition.matcher.present
    }


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """Rules that are looked at together, None where there are none.

    `allow` is None where nothing has to allow; where something has to and nothing does, it has no rules.
    """

    custom: RuleIndex | None
    audit: RuleIndex | None
    deny: RuleIndex | None
    allow: RuleIndex | None
    shadow_deny: RuleIndex | None
    shadow_allow: RuleIndex | None


# What a remembered decision may depend on; all of it follows from the method, the path and the peer's name.
_MEMORABLE = frozenset(
    {
        "request.method",
        "request.path",
        "request.path.any",
        "source.any",
        "source.principal",
        "source.principal.any",
        "source.namespace",
        "source.namespace.any",
        "source.serviceAccount",
        "source.serviceAccount.any",
        "source.trustDomain",
        "source.trustDomain.any",
    }
)


# What else it may depend on: a few attributes whose values then are part of what it is remembered by.
_MEMORABLE_VALUES = ("request.headers", "request.auth.")
_MAX_MEMORABLE_VALUES = 3


def _memo_on(stage: Stage) -> tuple[Dimension, ...] | None:
    """Return the attributes whose values a decision must be remembered by; None if it cannot be."""
    rules = [rule for index in (stage.deny, stage.allow) if index is not None for rule in index.rules]
    read = {
        (condition.attribute, condition.argument)
        for rule in rules
        for conditions in (
            rule.when,
            *(alternative.conditions for alternative in (*rule.operations, *rule.sources)),
        )
        for condition in conditions
        if condition.attribute not in _MEMORABLE
    }
    if len(read) > _MAX_MEMORABLE_VALUES or any(
        not attribute.startswith(_MEMORABLE_VALUES) for attribute, _ in read
    ):
        return None
    return tuple(sorted(read))


@dataclass(frozen=True, slots=True, eq=False)
class DestinationPolicies:
    """Everything that applies to one destination.

    `by_roles` tells whether roles have to allow, not AuthorizationPolicies; `not_enforced` is the decision
    where the configuration switches roles off.
    """

    destination: Destination
    tokens: TokenRules | None
    http: Stage
    tcp: Stage
    by_roles: bool
    not_enforced: Decision | None
    mixer: DestinationRules | None
    casbin: tuple[CompiledPolicy, ...]
    casbin_policies: CasbinPolicies
    shapes: tuple[Shape, ...]
    path_normalization: PathNormalization
    has_custom: bool
    has_marks: bool  # whether rules apply that never decide
    # Decisions by (these policies, method, path, peer, values of the attributes in `memo_on`); None there: no
    # decision can be remembered.
    memo: dict[Any, Decision]
    memo_on: tuple[Dimension, ...] | None


class PolicyIndex:
    """Finds what applies to a destination; built once for a snapshot."""

    def __init__(self, policies: PolicySet) -> None:
        self._policies = policies
        self._has_roles = policies.has_roles
        self._has_authorization = any(not policy.is_role for policy in policies.policies)
        self._by_service: dict[tuple[str, str], list[Policy]] = defaultdict(list)
        self._by_namespace: dict[str, list[Policy]] = defaultdict(list)
        self._anywhere: list[Policy] = []
        self._memo: dict[Any, Decision] = {}
        for policy in policies.policies:
            selector = policy.selector
            if selector.any_namespace:
                self._anywhere.append(policy)
            elif selector.services is not None and not any("*" in service for service in selector.services):
                for service in dict.fromkeys(selector.services):
                    self._by_service[selector.namespace, service].append(policy)
            else:
                self._by_namespace[selector.namespace].append(policy)

    def policies_for(self, destination: Destination) -> DestinationPolicies:
        """Return what applies to `destination`."""
        namespace, service = destination.namespace, destination.service
        found = [
            policy
            for policy in (
                *self._by_service.get((namespace, service), ()),
                *self._by_namespace.get(namespace, ()),
                *self._anywhere,
            )
            if selects(policy.selector, destination)
        ]
        found.sort(key=lambda policy: (policy.title, policy.rules[0].index if policy.rules else -1))
        authorization = [policy for policy in found if not policy.is_role]
        mixer = self._policies.mixer.for_destination(destination)
        casbin = self._policies.casbin.policies_for(destination)
        # Istio 1.4: where an ALLOW policy is enforced, roles are not looked at. Elsewhere they have to allow,
        # unless this mesh has none and something else speaks of the destination: then what none denies is
        # allowed (Istio, which starts from there).
        others = bool(self._has_authorization or mixer.rules or casbin)
        enforced = (not self._has_roles and others) or any(
            policy.action is Action.ALLOW and not policy.shadow for policy in authorization
        )
        tcp = self._stage(found, enforced=enforced, tcp=True)
        http = self._stage(found, enforced=enforced, tcp=False)
        return DestinationPolicies(
            destination=destination,
            tokens=TokenRules.of(
                [
                    rule
                    for policy in self._policies.tokens
                    if selects(policy.selector, destination)
                    for rule in policy.rules
                ]
            ),
            http=http,
            tcp=tcp,
            by_roles=not enforced,
            mixer=mixer if mixer.rules else None,
            casbin=casbin,
            casbin_policies=self._policies.casbin,
            shapes=tuple(shape for shape in self._policies.shapes if selects(shape.selector, destination)),
            path_normalization=self._policies.namespace_path_normalization.get(
                namespace, self._policies.path_normalization
            ),
            has_custom=http.custom is not None or tcp.custom is not None,
            has_marks=bool(http.audit or http.shadow_deny or http.shadow_allow),
            memo=self._memo,
            memo_on=_memo_on(http),
            not_enforced=None if enforced else not_enforced(self._policies.enforcement, destination),
        )

    def _stage(self, found: Sequence[Policy], *, enforced: bool, tcp: bool) -> Stage:
        def index(rules: Sequence[Rule]) -> RuleIndex | None:
            return RuleIndex(rules) if rules else None

        def rules(action: Action, *, shadow: bool, role: bool = False) -> list[Rule]:
            return [
                rule
                for policy in found
                if (policy.action, policy.shadow, policy.is_role) == (action, shadow, role)
                for rule in (policy.tcp if tcp else policy.rules)
            ]

        def has(*, shadow: bool) -> bool:
            return any(
                policy.action is Action.ALLOW and policy.shadow is shadow and not policy.is_role
                for policy in found
            )

        if enforced:
            allow_rules = RuleIndex(rules(Action.ALLOW, shadow=False)) if has(shadow=False) else None
        else:
            allow_rules = RuleIndex(rules(Action.ALLOW, shadow=False, role=True))
        shadow_allow = rules(Action.ALLOW, shadow=True)
        tried = has(shadow=True)  # one without rules is tried, too, and allows nothing
        if not enforced:
            permissive = self._policies.enforcement.permissive  # "global permissive" tries every binding
            shadow_allow += rules(Action.ALLOW, shadow=True, role=True)
            shadow_allow += rules(Action.ALLOW, shadow=False, role=True) if permissive else []
            tried = tried or permissive
        return Stage(
            custom=index(rules(Action.CUSTOM, shadow=False)),
            audit=index(rules(Action.AUDIT, shadow=False)),
            deny=index(rules(Action.DENY, shadow=False)),
            allow=allow_rules,
            shadow_deny=index(rules(Action.DENY, shadow=True)),
            shadow_allow=RuleIndex(shadow_allow) if shadow_allow or tried else None,
        )


def selects(selector: Selector, destination: Destination) -> bool:
    """Return whether a policy with `selector` is for `destination` (Istio: policyattachment.go)."""
    if not selector.any_namespace and selector.namespace != destination.namespace:
        return False
    gateway = destination.labels.get(_GATEWAY_LABEL)
    if selector.targets:
        return gateway is not None and any(
            _is_target(kind, name, gateway, selector, destination) for kind, name in selector.targets
        )
    if selector.services is not None and not _fits_service(selector.services, destination.service):
        return False
    if any(destination.labels.get(name) != value for name, value in selector.labels):
        return False
    return all(
        condition.matches(_workload_values(condition, destination)) for condition in selector.conditions
    )


def _is_target(kind: str, name: str, gateway: str, selector: Selector, destination: Destination) -> bool:
    if kind == "Gateway":
        return selector.namespace == destination.namespace and name == gateway
    if kind == "GatewayClass":
        return name == "istio-waypoint" and selector.any_namespace
    return selector.namespace == destination.namespace and name in {destination.name, destination.service}


def _fits_service(patterns: Sequence[str], service: str) -> bool:
    return StringMatcher.of(patterns).matches(service)


def _workload_values(condition: Condition, destination: Destination) -> Sequence[str]:
    if condition.attribute == "destination.labels":
        value = destination.labels.get(condition.argument)
        return () if value is None else (value,)
    value = {
        "destination.name": destination.name,
        "destination.namespace": destination.namespace,
        "destination.user": destination.user,
    }[condition.attribute]
    return (value,) if value else ()


def not_enforced(enforcement: Enforcement, destination: Destination) -> Decision | None:
    """Return the allowing decision where the operator switched roles off; absence never does."""
    listed = destination.service in enforcement.services or destination.namespace in enforcement.namespaces
    enforced: Mapping[str, bool] = {
        "OFF": False,
        "ON": True,
        "ON_WITH_INCLUSION": listed,
        "ON_WITH_EXCLUSION": not listed,
    }
    if enforced[enforcement.mode] and not enforcement.permissive:
        return None
    why = "enforcement_mode PERMISSIVE" if enforced[enforcement.mode] else f"mode {enforcement.mode}"
    reason = f"{enforcement.policy} does not enforce roles here: {why}"
    return allow(ReasonCode.NOT_ENFORCED, reason, policy=enforcement.policy, field_path="spec.mode")
