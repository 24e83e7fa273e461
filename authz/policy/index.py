"""Compiled policies -> the few rules that can matter to a call.

First by destination, then by whatever tells the rules of that destination apart best: each rule is filed
under the patterns of one attribute that it cannot match without, and a call looks only under its own values.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import merge
from itertools import chain, count, islice
from operator import is_
from typing import Any, overload

from authz.attributes import Attributes
from authz.authn.authentication import AuthenticationRules
from authz.authn.credentials import CredentialRules
from authz.authn.jwt import TokenRules
from authz.authn.peers import PeerRules
from authz.casbin_policy import CasbinPolicies, CompiledPolicy
from authz.decision import Decision, ReasonCode, allow
from authz.destination import Destination
from authz.mixer.quotas import DestinationQuotas
from authz.mixer.rules import DestinationRules
from authz.paths import PathNormalization
from authz.policy.authentication import authentication_rules
from authz.policy.matchers import Condition, StringMatcher
from authz.policy.peers import peer_rules
from authz.policy.rate_limits import domain_rules
from authz.policy.rules import Action, Enforcement, Policy, PolicySet, Rule, Selector
from authz.policy.shaping import Shape
from authz.rate_limits import DomainRules

# Fewer rules than this are faster walked than looked up.
_WORTH_INDEXING = 8
# So many policies of one place are indexed when they are loaded, not by the first call: that takes some 10
# microseconds for each.
_WORTH_GROUPING = 100
# Sorting so many takes about a millisecond, in which no other thread runs.
_SORTED_AT_ONCE = 1_000
# Set by the gateway controller on the pods of a Gateway; what it says picks `targetRefs`.
_GATEWAY_LABEL = "gateway.networking.k8s.io/gateway-name"

Dimension = tuple[str, str]  # (attribute, argument)


@dataclass(slots=True)
class _Filed:
    """Rules filed under the patterns of one attribute; a value is looked up once per length of pattern."""

    exact: dict[str, list[Rule]] = field(default_factory=dict)
    prefixes: dict[str, list[Rule]] = field(default_factory=dict)
    suffixes: dict[str, list[Rule]] = field(default_factory=dict)
    prefix_lengths: tuple[int, ...] = ()
    suffix_lengths: tuple[int, ...] = ()

    def add(self, rule: Rule, matcher: StringMatcher) -> None:
        for pattern in matcher.exact:
            self.exact.setdefault(pattern, []).append(rule)
        for pattern in matcher.prefixes:
            self.prefixes.setdefault(pattern, []).append(rule)
        for pattern in matcher.suffixes:
            self.suffixes.setdefault(pattern, []).append(rule)

    def close(self) -> None:
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
    """The rules of one destination and action; `rules` are all of them, in their order.

    `reads` are the attributes that their conditions look at.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules: Sequence[Rule] = tuple(rules)
        self.reads = frozenset(
            (condition.attribute, condition.argument) for rule in rules for condition in _conditions(rule)
        )
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
        # The attribute with the most different patterns tells rules apart best.
        spread: dict[Dimension, set[str]] = defaultdict(set)
        for rule in rules:
            for dimension, matchers in _keys(rule).items():
                for matcher in matchers:
                    spread[dimension].update(_patterns(matcher))
        rest: list[Rule] = []
        for rule in rules:
            # Once more: to keep all of them would leave the collector a long list to walk at one go.
            dimensions = _keys(rule)
            if not dimensions:
                rest.append(rule)
                continue
            best = max(dimensions, key=lambda dimension: (len(spread[dimension]), dimension))
            filed = self._filed.setdefault(best, _Filed())
            for matcher in dimensions[best]:
                filed.add(rule, matcher)
        for filed in self._filed.values():
            filed.close()
        self._rest = tuple(rest)


class _JoinedIndex(RuleIndex):
    """Several indexes as one, for what was worked out in parts."""

    def __init__(self, parts: Sequence[RuleIndex]) -> None:
        self.rules = _Merged([part.rules for part in parts])
        self.reads = frozenset().union(*(part.reads for part in parts))
        self._parts = parts

    def candidates(self, attributes: Attributes) -> Iterable[Rule]:
        return chain.from_iterable(part.candidates(attributes) for part in self._parts)


class _Merged(Sequence[Rule]):
    """Sorted sequences as one that is sorted; put together when somebody reads it, and only so far."""

    def __init__(self, parts: Sequence[Sequence[Rule]]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __iter__(self) -> Iterator[Rule]:
        return merge(*self._parts, key=lambda rule: (rule.policy, rule.index))

    @overload
    def __getitem__(self, at: int) -> Rule: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Rule]: ...
    def __getitem__(self, at: int | slice) -> Rule | Sequence[Rule]:
        if isinstance(at, slice) and at.start is None and at.step is None and (at.stop or -1) >= 0:
            return tuple(islice(self, at.stop))
        return tuple(self)[at]


def _conditions(rule: Rule) -> Iterable[Condition]:
    yield from rule.when
    for alternative in (*rule.operations, *rule.sources):
        yield from alternative.conditions


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
    read = {
        (attribute, argument)
        for index in (stage.deny, stage.allow)
        if index is not None
        for attribute, argument in index.reads
        if attribute not in _MEMORABLE
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
    peers: PeerRules
    authentication: AuthenticationRules | None
    tokens: TokenRules | None
    credentials: CredentialRules | None
    http: Stage
    tcp: Stage
    by_roles: bool
    not_enforced: Decision | None
    mixer: DestinationRules | None
    quotas: DestinationQuotas | None
    limits: tuple[DomainRules, ...]
    is_charged: bool  # whether allowed calls are charged: for `quotas`, or `limits`
    casbin: tuple[CompiledPolicy, ...]
    casbin_policies: CasbinPolicies
    shapes: tuple[Shape, ...]
    path_normalization: PathNormalization
    has_custom: bool
    has_marks: bool  # whether rules apply that never decide
    # Decisions by (`number`, method, path, peer, values of the attributes in `memo_on`); None there: no
    # decision can be remembered. A number, as these policies themselves would be a reference cycle.
    number: int
    memo: dict[Any, Decision]
    memo_on: tuple[Dimension, ...] | None


# (action, whether it is only tried, whether it comes from a role)
Class = tuple[Action, bool, bool]
# Where a policy applies: a namespace (None: any), what of a destination it asks for, and its value. A
# destination looks only at places that can be its own.
Place = tuple[str | None, str, object]


class _Group:
    """Many policies that apply to whatever is in one place: put in order and indexed when they are loaded."""

    def __init__(self, policies: Sequence[Policy]) -> None:
        rules: dict[tuple[Class, bool], list[Rule]] = {}
        for policy in _in_order(policies):
            for tcp in (False, True):
                one = rules.setdefault((_class(policy), tcp), [])
                one += policy.tcp if tcp else policy.rules
        self._indexes: dict[tuple[Class, bool], RuleIndex] = {}
        for (what, tcp), found in rules.items():
            http = self._indexes.get((what, False))
            is_same = http is not None and len(http.rules) == len(found) and all(map(is_, http.rules, found))
            self._indexes[what, tcp] = http if http is not None and is_same else RuleIndex(found)

    def has(self, what: Class) -> bool:
        """Return whether there is any policy of this class, with rules or without."""
        return (what, False) in self._indexes

    def index(self, what: Class, *, tcp: bool) -> RuleIndex | None:
        """Return the rules of a class, None if there are none."""
        found = self._indexes.get((what, tcp))
        return found if found is not None and found.rules else None


def _class(policy: Policy) -> Class:
    return policy.action, policy.shadow, policy.is_role


def _in_order(policies: Sequence[Policy]) -> Iterable[Policy]:
    """Yield policies by name, sorted in steps: one large sort would stop all other threads."""

    def order(policy: Policy) -> tuple[str, int]:
        return policy.title, policy.rules[0].index if policy.rules else -1

    size = _SORTED_AT_ONCE
    steps = [sorted(policies[at : at + size], key=order) for at in range(0, len(policies), size)]
    return steps[0] if len(steps) == 1 else merge(*steps, key=order)


def _places(selector: Selector) -> Iterable[Place]:
    """Yield the places of which a destination must be in one for `selector` to select it."""
    scope = None if selector.any_namespace else selector.namespace
    services = selector.services
    if selector.targets:
        yield scope, "", ""
    elif selector.labels:
        yield scope, "label", selector.labels[0]
    elif services is None or "*" in services:
        yield scope, "", ""
    else:
        for service in dict.fromkeys(services):
            if service.startswith("*"):
                yield scope, "suffix", service[1:]
            elif service.endswith("*"):
                yield scope, "prefix", service[:-1]
            else:
                yield scope, "service", service


def _is_all(selector: Selector) -> bool:
    """Return whether whatever is in one of the places of `selector` is selected, and in no other of them."""
    services = selector.services or ()
    if selector.targets or selector.conditions or len(selector.labels) + bool(services) > 1:
        return False
    return len(services) <= 1 or not any("*" in service for service in services)


class PolicyIndex:
    """Finds what applies to a destination; built once for a snapshot."""

    def __init__(self, policies: PolicySet) -> None:
        self._policies = policies
        self._has_roles = policies.has_roles
        self._has_authorization = any(not policy.is_role for policy in policies.policies)
        self._memo: dict[Any, Decision] = {}
        self._numbers = count()
        self._domains: dict[str, frozenset[str]] = {}
        self._peer_rules: dict[Any, PeerRules] = {}
        self._by_place: dict[Place, list[Policy]] = {}
        for policy in policies.policies:
            for place in _places(policy.selector):
                self._by_place.setdefault(place, []).append(policy)
        self._groups: dict[Place, _Group] = {}
        self._lengths: dict[tuple[str | None, str], set[int]] = defaultdict(set)
        for place, found in self._by_place.items():
            scope, what, value = place
            if what in {"prefix", "suffix"} and isinstance(value, str):
                self._lengths[scope, what].add(len(value))
            # What few policies come to is worked out by the first call, many would keep it waiting.
            if len(found) >= _WORTH_GROUPING:
                together = [policy for policy in found if _is_all(policy.selector)]
                if len(together) >= _WORTH_GROUPING:
                    self._groups[place] = _Group(together)
                    found[:] = [policy for policy in found if not _is_all(policy.selector)]

    def _places_of(self, destination: Destination) -> Iterable[Place]:
        service = destination.service
        for scope in (destination.namespace, None):
            yield scope, "", ""
            yield scope, "service", service
            for length in self._lengths.get((scope, "prefix"), ()):
                if length <= len(service):
                    yield scope, "prefix", service[:length]
            for length in self._lengths.get((scope, "suffix"), ()):
                if length <= len(service):
                    yield scope, "suffix", service[len(service) - length :]
            for label in destination.labels.items():
                yield scope, "label", label

    def policies_for(self, destination: Destination) -> DestinationPolicies:
        """Return what applies to `destination`."""
        places = [*self._places_of(destination)]
        groups = [self._groups[place] for place in places if place in self._groups]
        # By identity: a policy for several patterns may be in several of the places.
        near = {id(policy): policy for place in places for policy in self._by_place.get(place, ())}
        found = [*_in_order([one for one in near.values() if selects(one.selector, destination)])]
        mixer = self._policies.mixer.for_destination(destination)
        casbin = self._policies.casbin.policies_for(destination)
        # Istio 1.4: where an ALLOW policy is enforced, roles are not looked at. Elsewhere they have to allow,
        # unless this mesh has none and something else speaks of the destination: then what none denies is
        # allowed (Istio, which starts from there).
        others = bool(self._has_authorization or mixer.speaks or casbin)
        enforced = (not self._has_roles and others) or _has(found, groups, _ALLOW)
        credentials = CredentialRules.of(
            [one.rules for one in self._policies.credentials if selects(one.selector, destination)]
        )
        limits = domain_rules(one for one in self._policies.limits if selects(one.selector, destination))
        tcp = self._stage(found, groups, enforced=enforced, tcp=True)
        http = self._stage(found, groups, enforced=enforced, tcp=False)
        return DestinationPolicies(
            destination=destination,
            peers=self._peers(destination),
            authentication=authentication_rules(self._policies.authentication, destination),
            tokens=TokenRules.of(
                [
                    rule
                    for policy in self._policies.tokens
                    if selects(policy.selector, destination)
                    for rule in policy.rules
                ],
                destination.service,
                credentials.places if credentials is not None else (),
            ),
            credentials=credentials,
            http=http,
            tcp=tcp,
            by_roles=not enforced,
            mixer=mixer if mixer.rules else None,
            quotas=mixer.quotas,
            limits=limits,
            is_charged=mixer.quotas is not None or bool(limits),
            casbin=casbin,
            casbin_policies=self._policies.casbin,
            shapes=tuple(shape for shape in self._policies.shapes if selects(shape.selector, destination)),
            path_normalization=self._policies.namespace_path_normalization.get(
                destination.namespace, self._policies.path_normalization
            ),
            has_custom=http.custom is not None or tcp.custom is not None,
            has_marks=bool(http.audit or http.shadow_deny or http.shadow_allow),
            number=next(self._numbers),
            memo=self._memo,
            memo_on=_memo_on(http),
            not_enforced=None if enforced else not_enforced(self._policies.enforcement, destination),
        )

    def _peers(self, destination: Destination) -> PeerRules:
        """Return what holds for the peers of `destination`; equal rules are one object."""
        found = peer_rules(
            [one for one in self._policies.peers if selects(one.selector, destination)],
            self._trust_domains(destination.namespace),
        )
        key = found.trust_domains, found.otherwise, tuple(found.ports.items())
        return self._peer_rules.setdefault(key, found)

    def _trust_domains(self, namespace: str) -> frozenset[str]:
        """Return whose peers may call, one object for each namespace that has its own federation."""
        domains = self._policies.trust_domains
        own = namespace if any(one.namespace == namespace for one in domains.federated) else ""
        if own not in self._domains:
            self._domains[own] = domains.for_namespace(own)
        return self._domains[own]

    def _stage(
        self, found: Sequence[Policy], groups: Sequence[_Group], *, enforced: bool, tcp: bool
    ) -> Stage:
        def index(*classes: Class) -> RuleIndex | None:
            rules = [
                rule
                for what in classes
                for policy in found
                if _class(policy) == what
                for rule in (policy.tcp if tcp else policy.rules)
            ]
            parts = [RuleIndex(rules)] if rules else []
            parts += [
                part
                for group in groups
                for what in classes
                if (part := group.index(what, tcp=tcp)) is not None
            ]
            if len(parts) > 1:
                return _JoinedIndex(parts)
            return parts[0] if parts else None

        if not enforced:
            allow_rules = index(_ROLE) or RuleIndex(())
        elif _has(found, groups, _ALLOW):
            allow_rules = index(_ALLOW) or RuleIndex(())
        else:
            allow_rules = None
        tried = _has(found, groups, _SHADOW_ALLOW)  # one without rules is tried, too, and allows nothing
        if enforced:
            shadow_allow = index(_SHADOW_ALLOW)
        elif self._policies.enforcement.permissive:  # "global permissive" tries every binding
            shadow_allow = index(_SHADOW_ALLOW, _SHADOW_ROLE, _ROLE)
            tried = True
        else:
            shadow_allow = index(_SHADOW_ALLOW, _SHADOW_ROLE)
        if shadow_allow is None and tried:
            shadow_allow = RuleIndex(())
        return Stage(
            custom=index((Action.CUSTOM, False, False)),
            audit=index((Action.AUDIT, False, False)),
            deny=index((Action.DENY, False, False)),
            allow=allow_rules,
            shadow_deny=index((Action.DENY, True, False)),
            shadow_allow=shadow_allow,
        )


_ALLOW: Class = (Action.ALLOW, False, False)
_SHADOW_ALLOW: Class = (Action.ALLOW, True, False)
_ROLE: Class = (Action.ALLOW, False, True)
_SHADOW_ROLE: Class = (Action.ALLOW, True, True)


def _has(found: Sequence[Policy], groups: Sequence[_Group], what: Class) -> bool:
    return any(_class(policy) == what for policy in found) or any(group.has(what) for group in groups)


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
