"""Compiled rules -> the few that can matter to a call: by destination first, then by path and principal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from authz.authn.jwt import JwtRule
from authz.decision import Decision, ReasonCode, allow
from authz.destination import Destination
from authz.policy.matchers import Condition, StringMatcher
from authz.policy.rules import Enforcement, PolicySet, Rule

# Fewer rules than this are faster walked than looked up.
_WORTH_INDEXING = 8


@dataclass(frozen=True, slots=True, eq=False)
class DestinationPolicies:
    """Everything that applies to one destination.

    `rules` holds all of them in their order. The three groups after it hold those that are bound to somebody,
    so that a call looks only at the rules whose exact path or exact caller it has, and at the rest.
    `not_enforced` is the decision where the configuration switches roles off.
    """

    destination: Destination
    tokens: tuple[JwtRule, ...]
    not_enforced: Decision | None
    rules: tuple[Rule, ...]
    by_path: Mapping[str, tuple[Rule, ...]]
    by_principal: Mapping[str, tuple[Rule, ...]]
    rest: tuple[Rule, ...]

    def candidates(self, path: str | None, principal: str | None) -> Iterable[Rule]:
        """Return the rules that can match a call with this path and this peer."""
        found = self.rest
        if self.by_path and path is not None:
            found = self.by_path.get(path, ()) + found
        if self.by_principal and principal is not None:
            found = self.by_principal.get(principal, ()) + found
        return found


class PolicyIndex:
    """Finds what applies to a destination; built once for a snapshot."""

    def __init__(self, policies: PolicySet) -> None:
        self._policies = policies
        self._by_service: dict[tuple[str, str], list[Rule]] = defaultdict(list)
        self._by_pattern: dict[str, list[Rule]] = defaultdict(list)
        for rule in policies.rules:
            if rule.services is not None and _is_exact(rule.services):
                for service in rule.services.exact:
                    self._by_service[rule.namespace, service].append(rule)
            else:
                self._by_pattern[rule.namespace].append(rule)

    def policies_for(self, destination: Destination) -> DestinationPolicies:
        """Return what applies to `destination`; only roles of its own namespace do."""
        namespace, service = destination.namespace, destination.service
        found = list(self._by_service.get((namespace, service), ()))
        found += [
            rule
            for rule in self._by_pattern.get(namespace, ())
            if rule.services is None or rule.services.matches(service)
        ]
        rules = sorted(
            (rule for rule in found if _fits_workload(rule, destination)),
            key=lambda rule: (rule.policy, rule.index),
        )
        by_path, by_principal, rest = _group(rules)
        return DestinationPolicies(
            destination=destination,
            tokens=tuple(self._tokens(destination)),
            not_enforced=_not_enforced(self._policies.enforcement, destination),
            rules=tuple(rules),
            by_path=by_path,
            by_principal=by_principal,
            rest=rest,
        )

    def _tokens(self, destination: Destination) -> Iterable[JwtRule]:
        for policy in self._policies.tokens:
            in_scope = policy.namespace in {destination.namespace, self._policies.root_namespace}
            if in_scope and all(destination.labels.get(name) == value for name, value in policy.labels):
                yield from policy.rules


def _not_enforced(enforcement: Enforcement, destination: Destination) -> Decision | None:
    """Return the allowing decision where the operator switched roles off; absence never does."""
    listed = destination.service in enforcement.services or destination.namespace in enforcement.namespaces
    enforced = {
        "OFF": False,
        "ON": True,
        "ON_WITH_INCLUSION": listed,
        "ON_WITH_EXCLUSION": not listed,
    }[enforcement.mode]
    if enforced and not enforcement.permissive:
        return None
    why = "enforcement_mode PERMISSIVE" if enforced else f"mode {enforcement.mode}"
    reason = f"{enforcement.policy} does not enforce roles here: {why}"
    return allow(ReasonCode.NOT_ENFORCED, reason, policy=enforcement.policy, field_path="spec.mode")


def _fits_workload(rule: Rule, destination: Destination) -> bool:
    return all(condition.matches(workload_values(condition, destination)) for condition in rule.destination)


def workload_values(condition: Condition, destination: Destination) -> Sequence[str]:
    """Return what `destination` has for one of the `destination.*` conditions."""
    if condition.attribute == "destination.labels":
        value = destination.labels.get(condition.argument)
        return () if value is None else (value,)
    value = {
        "destination.name": destination.name,
        "destination.namespace": destination.namespace,
        "destination.user": destination.user,
    }[condition.attribute]
    return (value,) if value else ()


Groups = tuple[dict[str, tuple[Rule, ...]], dict[str, tuple[Rule, ...]], tuple[Rule, ...]]


def _group(rules: Sequence[Rule]) -> Groups:
    bound = [rule for rule in rules if rule.subjects]
    if len(bound) < _WORTH_INDEXING:
        return {}, {}, tuple(bound)
    by_path: dict[str, list[Rule]] = defaultdict(list)
    by_principal: dict[str, list[Rule]] = defaultdict(list)
    rest: list[Rule] = []
    for rule in bound:
        principals = _exact_principals(rule)
        if rule.paths is not None and _is_exact(rule.paths):
            for path in rule.paths.exact:
                by_path[path].append(rule)
        elif principals is not None:
            for principal in principals:
                by_principal[principal].append(rule)
        else:
            rest.append(rule)
    return (
        {path: tuple(found) for path, found in by_path.items()},
        {principal: tuple(found) for principal, found in by_principal.items()},
        tuple(rest),
    )


def _is_exact(matcher: StringMatcher) -> bool:
    return not (matcher.prefixes or matcher.suffixes or matcher.present)


def _exact_principals(rule: Rule) -> set[str] | None:
    """Return the principals that alone can satisfy a subject of `rule`; None when others could."""
    principals: set[str] = set()
    for subject in rule.subjects:
        exact = next(
            (
                condition.matcher.exact
                for condition in subject.conditions
                if condition.attribute == "source.principal"
                and isinstance(condition.matcher, StringMatcher)
                and _is_exact(condition.matcher)
            ),
            None,
        )
        if exact is None:
            return None
        principals |= exact
    return principals
