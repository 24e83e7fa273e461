"""Rules that can never match, and rules that change nothing because another one does it all already."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import cast

from authz.attributes import Attributes
from authz.lint.implication import all_imply, contradiction, witness
from authz.lint.places import Findings
from authz.policy.index import RuleIndex
from authz.policy.matchers import Condition
from authz.policy.rules import Action, Alternative, Policy, PolicySet, Rule, Selector


def look(findings: Findings, policies: PolicySet) -> None:
    """Warn about every rule without an effect."""
    dead: set[int] = set()
    for policy in policies.policies:
        for rule in policy.rules:
            if _never(findings, policy, rule):
                dead.add(id(rule))
    groups: dict[tuple[object, ...], list[_Placed]] = defaultdict(list)
    for policy in policies.policies:
        for rule in policy.rules:
            if id(rule) not in dead and rule.sources and policy.action is not Action.CUSTOM:
                key = (policy.action, policy.shadow, policy.is_role)
                groups[key].append(_Placed(policy, rule))
    for (action, shadow, is_role), placed in groups.items():
        same = _Coverers(placed)
        for one in placed:
            _shadowed(findings, one, same.of(one))
        if action is Action.ALLOW and not shadow and not is_role:
            denying = _Coverers(groups.get((Action.DENY, False, False), []))
            for one in placed:
                for other in denying.of(one):
                    message = f"{_name(other)} denies everything that this rule allows"
                    findings.at(one.policy.title, _place(one), "always_denied", message)
                    break


# ------------------------------------------------------------------------------------------- never matches


def _never(findings: Findings, policy: Policy, rule: Rule) -> bool:
    """Return whether `rule` can never match; warn about whatever can never match in it."""
    fixed = (*policy.selector.conditions, *rule.when)
    place = f"spec.rules[{rule.index}]"
    if own := _outside_namespace(policy.selector):
        message = f"the rule is for namespace `{policy.selector.namespace}` only"
        findings.at(policy.title, own.field, "never_matches", message)
        return True
    if _report(findings, policy.title, place, fixed):
        return True
    operations = [
        _report(findings, policy.title, one.field or place, (*fixed, *one.conditions))
        for one in rule.operations
    ]
    sources = [
        _report(findings, one.origin or policy.title, one.field or place, (*rule.when, *one.conditions))
        for one in rule.sources
    ]
    return all(operations) or (bool(sources) and all(sources))


def _outside_namespace(selector: Selector) -> Condition | None:
    """Return a condition of a role that its own namespace does not satisfy."""
    for condition in selector.conditions:
        if condition.attribute == "destination.namespace" and not condition.matches((selector.namespace,)):
            return condition
    return None


def _report(findings: Findings, title: str, place: str, conditions: Sequence[Condition]) -> bool:
    nobody = next((one for one in conditions if one.attribute == "source.any"), None)
    if nobody is not None:
        findings.at(title, nobody.field, "never_matches", "everybody is excluded")
        return True
    found = contradiction(conditions)
    if found is None:
        return False
    one, other = found
    if other.negated:
        message = f"`{other.field}` excludes whatever `{one.field}` asks for"
    else:
        message = f"nothing fits both `{one.field}` ({one.matcher}) and `{other.field}` ({other.matcher})"
    findings.at(title, place, "never_matches", message)
    return True


# ------------------------------------------------------------------------------------------------ shadowed


@dataclass(frozen=True, slots=True)
class _Placed:
    policy: Policy
    rule: Rule


class _Witness:
    """Stands for the calls that a rule matches, as far as looking up rules goes."""

    def __init__(self, conditions: Iterable[Condition]) -> None:
        self._values: dict[tuple[str, str], list[str]] = {}
        for one in conditions:
            if not one.negated:
                self._values.setdefault((one.attribute, one.argument), []).extend(witness(one.matcher))
                # A weaker condition may look at more spellings of the same thing.
                self._values.setdefault((f"{one.attribute}.any", one.argument), []).extend(
                    witness(one.matcher)
                )

    def values(self, attribute: str, argument: str = "") -> Sequence[str]:
        return self._values.get((attribute, argument), ())


@dataclass(slots=True)
class _Coverers:
    """Finds rules that match whatever a given rule matches, without comparing each with each."""

    placed: Sequence[_Placed]
    _exact: dict[tuple[str, str], RuleIndex] = field(default_factory=dict)
    _others: dict[str, RuleIndex] = field(default_factory=dict)
    _everywhere: RuleIndex = field(default_factory=lambda: RuleIndex(()))
    _by_rule: dict[int, tuple[int, _Placed]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        exact: dict[tuple[str, str], list[Rule]] = defaultdict(list)
        others: dict[str, list[Rule]] = defaultdict(list)
        everywhere: list[Rule] = []
        for order, one in enumerate(self.placed):
            selector = one.policy.selector
            self._by_rule[id(one.rule)] = (order, one)
            if selector.any_namespace:
                everywhere.append(one.rule)
            elif services := _exact_services(selector):
                for service in services:
                    exact[selector.namespace, service].append(one.rule)
            else:
                others[selector.namespace].append(one.rule)
        self._exact = {key: RuleIndex(rules) for key, rules in exact.items()}
        self._others = {key: RuleIndex(rules) for key, rules in others.items()}
        self._everywhere = RuleIndex(everywhere)

    def of(self, covered: _Placed) -> Iterable[_Placed]:
        """Yield the rules that cover `covered`; of two that cover each other only the earlier one."""
        selector, rule = covered.policy.selector, covered.rule
        conditions = (
            *rule.when,
            *rule.sources[0].conditions,
            *(rule.operations[0].conditions if rule.operations else ()),
        )
        asked = cast("Attributes", _Witness(conditions))
        services = _exact_services(selector)
        near = [self._exact[selector.namespace, services[0]]] if self._is_known(selector, services) else []
        if selector.namespace in self._others:
            near.append(self._others[selector.namespace])
        own = self._by_rule.get(id(rule))
        seen: set[int] = set()
        for index in (*near, self._everywhere):
            for candidate in index.candidates(asked):
                order, other = self._by_rule[id(candidate)]
                if candidate is rule or id(candidate) in seen:
                    continue
                seen.add(id(candidate))
                if not _covers(other, covered):
                    continue
                if own is not None and order > own[0] and _covers(covered, other):
                    continue
                yield other

    def _is_known(self, selector: Selector, services: Sequence[str]) -> bool:
        return bool(services) and (selector.namespace, services[0]) in self._exact


def _exact_services(selector: Selector) -> tuple[str, ...]:
    services = selector.services or ()
    return () if any("*" in service for service in services) else services


def _covers(wide: _Placed, narrow: _Placed) -> bool:
    """Return whether `wide` certainly matches every call, to every workload, that `narrow` matches."""
    if not _selects_more(wide.policy.selector, narrow.policy.selector):
        return False
    workload = narrow.policy.selector.conditions
    for operation, source in product(narrow.rule.operations, narrow.rule.sources):
        premises = (*workload, *narrow.rule.when, *operation.conditions, *source.conditions)
        if not all_imply(premises, wide.rule.when):
            return False
        if not _one_implied(premises, wide.rule.operations) or not _one_implied(premises, wide.rule.sources):
            return False
    return True


def _one_implied(premises: Sequence[Condition], alternatives: Sequence[Alternative]) -> bool:
    return any(all_imply(premises, one.conditions) for one in alternatives)


def _selects_more(wide: Selector, narrow: Selector) -> bool:
    if wide.targets or narrow.targets:
        return wide == narrow
    if not wide.any_namespace and (narrow.any_namespace or wide.namespace != narrow.namespace):
        return False
    if not set(wide.labels) <= set(narrow.labels):
        return False
    if wide.services is not None:
        if narrow.services is None:
            return False
        if not all(any(_fits(one, other) for other in wide.services) for one in narrow.services):
            return False
    return all_imply(narrow.conditions, wide.conditions)


def _fits(service: str, pattern: str) -> bool:
    """Return whether `pattern` matches every service that `service`, a pattern as well, matches."""
    if pattern in {service, "*"}:
        return True
    if pattern.startswith("*"):
        return service.endswith(pattern[1:]) and not service.endswith("*")
    if pattern.endswith("*"):
        return service.startswith(pattern[:-1]) and not service.startswith("*")
    return False


def _shadowed(findings: Findings, one: _Placed, covering: Iterable[_Placed]) -> None:
    for other in covering:
        message = f"{_name(other)} already {_VERBS[one.policy.action]} all of this"
        findings.at(one.policy.title, _place(one), "shadowed_rule", message, "remove one of the two")
        return


_VERBS = {Action.ALLOW: "allows", Action.DENY: "denies", Action.AUDIT: "audits", Action.CUSTOM: "delegates"}


def _place(one: _Placed) -> str:
    return f"spec.rules[{one.rule.index}]"


def _name(one: _Placed) -> str:
    return f"{one.policy.title} rule {one.rule.index}"
