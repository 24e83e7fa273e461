"""(what applies to the destination, attributes) -> Decision. Pure: no clock, no I/O, no await.

Deny is where it starts; only a rule whose every part matched allows. Why a call was denied is worked out
after the fact, from the same compiled rules, so that allowing costs nothing extra.
"""

from __future__ import annotations

from collections.abc import Iterable

from authz.attributes import Attributes
from authz.decision import Decision, ReasonCode, Step, deny
from authz.policy.index import DestinationPolicies
from authz.policy.matchers import Condition
from authz.policy.rules import Rule

# A denial looks at this many rules for its nearest miss; `garrison check --explain` looks at all.
MAX_EXPLAINED_RULES = 16


def evaluate(policies: DestinationPolicies, attributes: Attributes) -> Decision:
    """Return the decision for a call whose tokens, if any, have been verified into `attributes.claims`."""
    if policies.not_enforced is not None:
        return policies.not_enforced
    method, path = attributes.method, attributes.path
    for rule in policies.candidates(path, attributes.principal):
        if rule.methods is not None and not rule.methods.matches(method):
            continue
        if rule.paths is not None and not rule.paths.matches(path):
            continue
        if not _hold(rule.constraints, attributes):
            continue
        for subject, decision in zip(rule.subjects, rule.decisions, strict=True):
            if _hold(subject.conditions, attributes):
                return decision
    return _nearest_miss(policies, attributes)


def _hold(conditions: tuple[Condition, ...], attributes: Attributes) -> bool:
    for condition in conditions:  # a loop, not all(): this is the inner loop of every decision
        if not condition.matches(attributes.values(condition.attribute, condition.argument)):
            return False
    return True


def steps(rules: Iterable[Rule], attributes: Attributes) -> Iterable[Step]:
    """Yield, for each rule, whether it matches and if not, what did not."""
    for rule in rules:
        yield _step(rule, attributes)


def _step(rule: Rule, attributes: Attributes) -> Step:
    where = f"spec.rules[{rule.index}]"
    method, path = attributes.method, attributes.path
    if rule.methods is not None and not rule.methods.matches(method):
        return Step(rule.policy, rule.index, matched=False, field=f"{where}.methods", depth=1,
                    detail=f"request.method {_shown(method)} is none of {rule.methods}")  # fmt: skip
    if rule.paths is not None and not rule.paths.matches(path):
        return Step(rule.policy, rule.index, matched=False, field=f"{where}.paths", depth=2,
                    detail=f"request.path {_shown(path)} is none of {rule.paths}")  # fmt: skip
    for condition in rule.constraints:
        if failure := _failure(condition, attributes):
            return Step(
                rule.policy, rule.index, matched=False, field=condition.field, depth=3, detail=failure
            )
    return _subject_step(rule, attributes)


def _subject_step(rule: Rule, attributes: Attributes) -> Step:
    """Return the step of a rule that matched the request: some subject fits, or which came nearest."""
    nearest = Step(
        rule.policy, rule.index, matched=False, field="", depth=4, detail="the role is bound to nobody"
    )
    for subject in rule.subjects:
        failures = [
            (condition.field, failure)
            for condition in subject.conditions
            if (failure := _failure(condition, attributes))
        ]
        if not failures:
            detail = f"granted by {subject.binding} {subject.field}"
            return Step(
                rule.policy, rule.index, matched=True, field=f"spec.rules[{rule.index}]", detail=detail
            )
        field, detail = failures[0]
        depth = 5 + len(subject.conditions) - len(failures)
        if depth > nearest.depth:
            text = f"the rule matched, but no subject did: {subject.binding} {field}: {detail}"
            nearest = Step(rule.policy, rule.index, matched=False, field=field, depth=depth, detail=text)
    return nearest


def _failure(condition: Condition, attributes: Attributes) -> str:
    """Return why `condition` does not hold, in words; empty when it holds."""
    values = attributes.values(condition.attribute, condition.argument)
    if condition.matches(values):
        return ""
    if not values:
        return f"{condition.name} is absent"
    return f"{condition.name} {', '.join(_shown(value) for value in values)} is not {condition.matcher}"


def _shown(value: str | None) -> str:
    """Return `value` for a reason: printable, short, in backticks."""
    if value is None:
        return "(absent)"
    text = value if len(value) <= 200 else value[:200] + "…"
    return f"`{text.encode('unicode_escape').decode('ascii') if not text.isprintable() else text}`"


def _nearest_miss(policies: DestinationPolicies, attributes: Attributes) -> Decision:
    service, namespace = policies.destination.service, policies.destination.namespace
    if not policies.rules:
        return deny(ReasonCode.NO_ROLE_MATCHED, f"no role covers {service} in namespace {namespace}")
    nearest: Step | None = None
    for step in steps(policies.rules[:MAX_EXPLAINED_RULES], attributes):
        if nearest is None or step.depth > nearest.depth:
            nearest = step
    assert nearest is not None  # noqa: S101 - there is at least one rule
    reason = f"no role allows it; nearest: {nearest.policy} rule {nearest.rule}: {nearest.detail}"
    return deny(ReasonCode.NO_ROLE_MATCHED, reason)
