"""(what applies to the destination, attributes) -> Decision. Pure: no clock, no I/O, no await.

Deny is where it starts; only a rule whose every part matched allows. Why a call was denied is worked out
after the fact, from the same compiled rules, so that allowing costs nothing extra.

The order is Istio's: DENY before ALLOW; where no ALLOW policy applies, what is not denied is allowed. Roles
take the place of ALLOW where no AuthorizationPolicy is enforced, and then nothing is allowed without one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from authz.attributes import Attributes
from authz.decision import Decision, ReasonCode, Step, allow, deny
from authz.policy.index import DestinationPolicies, RuleIndex, Stage
from authz.policy.matchers import Condition
from authz.policy.rules import Alternative, Rule

# A denial looks at this many rules for its nearest miss; `garrison check --explain` looks at all.
MAX_EXPLAINED_RULES = 16
# Decisions that a snapshot remembers, and how long the method and path of one may be: about 20 MB at most.
MAX_REMEMBERED = 20_000
MAX_REMEMBERED_LENGTH = 256
# Headers that are called like this hold credentials; reasons, and so logs and metadata, never show them.
_SECRET_HEADERS = re.compile("auth|cookie|credential|key|passw|secret|session|signature|token")

_NO_ALLOW_POLICY = allow(
    ReasonCode.NO_ALLOW_POLICY, "no policy denies it and no ALLOW policy applies here", policy=""
)


def stage_of(policies: DestinationPolicies, attributes: Attributes) -> Stage:
    """Return the rules for this call: those for HTTP, or those for other connections."""
    return policies.tcp if attributes.is_tcp else policies.http


def evaluate(policies: DestinationPolicies, attributes: Attributes) -> Decision:
    """Return the decision for a call whose tokens, if any, have been verified into `attributes.claims`."""
    key = _remembered_by(policies, attributes)
    if key is None:
        return _evaluate(policies, attributes)
    memo = policies.memo
    decision = memo.get(key)
    if decision is None:
        decision = _evaluate(policies, attributes)
        if len(memo) >= MAX_REMEMBERED:
            memo.clear()
        memo[key] = decision
    return decision


def _remembered_by(policies: DestinationPolicies, attributes: Attributes) -> tuple[Any, ...] | None:
    """Return everything that the decision depends on; None when that is too much to remember."""
    memo_on = policies.memo_on
    if memo_on is None:
        return None
    method, path = attributes.method, attributes.path
    # A call without a path may still have bytes of one, which conditions that deny look at.
    if not method or not path or len(method) + len(path) > MAX_REMEMBERED_LENGTH:
        return None
    if not memo_on:
        return (policies.number, method, path, attributes.reported)
    key: list[Any] = [policies.number, method, path, attributes.reported]
    for attribute, argument in memo_on:
        values = attributes.values(attribute, argument)
        if len(values) > 1 or (values and _length(values[0]) > MAX_REMEMBERED_LENGTH):
            return None
        key.append(values[0] if values else None)
    return tuple(key)


def _length(value: str | tuple[str, str]) -> int:
    return len(value) if isinstance(value, str) else len(value[0]) + len(value[1])


def _evaluate(policies: DestinationPolicies, attributes: Attributes) -> Decision:
    stage = stage_of(policies, attributes)
    if stage.deny is not None:
        denied = first_match(stage.deny, attributes)
        if denied is not None:
            return denied
    if policies.not_enforced is not None:
        return policies.not_enforced
    if stage.allow is None:
        return _NO_ALLOW_POLICY
    return first_match(stage.allow, attributes) or _nearest_miss(policies, stage.allow, attributes)


def first_match(index: RuleIndex, attributes: Attributes) -> Decision | None:
    """Return the decision of a rule that matches, None when none does."""
    for rule in index.candidates(attributes):
        decision = match(rule, attributes)
        if decision is not None:
            return decision
    return None


def match(rule: Rule, attributes: Attributes) -> Decision | None:
    """Return the rule's decision when its operations, `when` and sources match, else None."""
    for operation in rule.operations:
        if _hold(operation.conditions, attributes):
            break
    else:
        return None
    if not _hold(rule.when, attributes):
        return None
    for source, decision in zip(rule.sources, rule.decisions, strict=True):
        if _hold(source.conditions, attributes):
            return decision
    return None


def _hold(conditions: tuple[Condition, ...], attributes: Attributes) -> bool:
    for condition in conditions:  # a loop, not all(): this is the inner loop of every decision
        if not condition.matches(attributes.values(condition.attribute, condition.argument)):
            return False
    return True


def custom_matches(policies: DestinationPolicies, attributes: Attributes) -> list[tuple[str, Decision]]:
    """Return each provider that has to allow the call, by name, with the decision that denies otherwise.

    Istio asks one provider at most; with several, each has to allow.
    """
    found: dict[str, Decision] = {}
    custom = stage_of(policies, attributes).custom
    for rule in custom.candidates(attributes) if custom is not None else ():
        if rule.provider not in found and (decision := match(rule, attributes)) is not None:
            found[rule.provider] = decision
    return sorted(found.items(), key=lambda item: item[0])


def marks(policies: DestinationPolicies, attributes: Attributes) -> Mapping[str, str]:
    """Return what rules say that never decide: AUDIT, and those that are only tried (dry run, PERMISSIVE).

    The names of the results are those of Istio's Envoy metadata.
    """
    stage = stage_of(policies, attributes)
    if not (stage.audit or stage.shadow_deny or stage.shadow_allow):
        return {}
    found: dict[str, str] = {}
    if stage.audit is not None and (audited := first_match(stage.audit, attributes)) is not None:
        found["audit"] = audited.policy
    if stage.shadow_deny or stage.shadow_allow:
        tried = first_match(stage.shadow_deny, attributes) if stage.shadow_deny is not None else None
        result = "denied" if tried is not None else "allowed"
        if tried is None and stage.shadow_allow is not None:
            tried = first_match(stage.shadow_allow, attributes)
            result = "allowed" if tried is not None else "denied"
        found["shadow_engine_result"] = result
        found["shadow_effective_policy_id"] = tried.policy if tried is not None else "none"
    return found


def explained(policies: DestinationPolicies, attributes: Attributes) -> Iterable[tuple[str, Step]]:
    """Yield every rule that applies, in the order of evaluation, with the stage that it belongs to."""
    stage = stage_of(policies, attributes)
    for name, index in (
        ("CUSTOM", stage.custom),
        ("AUDIT", stage.audit),
        ("DENY", stage.deny),
        ("ALLOW", stage.allow),
        ("DENY, tried only", stage.shadow_deny),
        ("ALLOW, tried only", stage.shadow_allow),
    ):
        for rule in index.rules if index is not None else ():
            yield name, _step(rule, attributes)


def _step(rule: Rule, attributes: Attributes) -> Step:
    """Return whether a rule matches and, if not, what came nearest."""
    operation = _nearest(rule.operations, attributes)
    if operation is not None:
        field, detail, held = operation
        return Step(rule.policy, rule.index, matched=False, field=field, detail=detail, depth=1 + held)
    for condition in rule.when:
        if failure := _failure(condition, attributes):
            return Step(
                rule.policy, rule.index, matched=False, field=condition.field, detail=failure, depth=100
            )
    if not rule.sources:
        detail = "the rule matched, but the role is bound to nobody"
        return Step(rule.policy, rule.index, matched=False, field="", detail=detail, depth=200)
    source = _nearest(rule.sources, attributes)
    if source is not None:
        field, detail, held = source
        text = f"the rule matched, but no subject did: {detail}"
        return Step(rule.policy, rule.index, matched=False, field=field, detail=text, depth=201 + held)
    return Step(rule.policy, rule.index, matched=True, field=f"spec.rules[{rule.index}]", detail="matches")


def _nearest(alternatives: tuple[Alternative, ...], attributes: Attributes) -> tuple[str, str, int] | None:
    """Return None when an alternative holds, else field, words and conditions held of the nearest one."""
    nearest: tuple[str, str, int] | None = None
    for alternative in alternatives:
        failures = [
            (condition.field, failure)
            for condition in alternative.conditions
            if (failure := _failure(condition, attributes))
        ]
        if not failures:
            return None
        field, detail = failures[0]
        held = len(alternative.conditions) - len(failures)
        if nearest is None or held > nearest[2]:
            origin = f"{alternative.origin} {field}: " if alternative.origin else ""
            nearest = (field, f"{origin}{detail}", held)
    return nearest


def _failure(condition: Condition, attributes: Attributes) -> str:
    """Return why `condition` does not hold, in words; empty when it holds."""
    values = attributes.values(condition.attribute, condition.argument)
    if condition.matches(values):
        return ""
    name = condition.name or condition.attribute
    if not values:
        return f"{name} is absent"
    if condition.attribute == "request.headers" and _SECRET_HEADERS.search(condition.argument):
        return f"{name} does not fit"
    shown = ", ".join(_shown("/".join(value) if isinstance(value, tuple) else value) for value in values)
    wanted = str(condition.matcher)
    if condition.negated:
        return f"{name} {shown} is excluded by {wanted}"
    return f"{name} {shown} is {'none of' if ', ' in wanted else 'not'} {wanted}"


def _shown(value: str) -> str:
    """Return `value` for a reason: printable, short, in backticks."""
    text = value if len(value) <= 200 else value[:200] + "…"
    return f"`{text if text.isprintable() else text.encode('unicode_escape').decode('ascii')}`"


def _nearest_miss(policies: DestinationPolicies, index: RuleIndex, attributes: Attributes) -> Decision:
    destination = policies.destination
    roles = policies.by_roles
    code = ReasonCode.NO_ROLE_MATCHED if roles else ReasonCode.NO_POLICY_MATCHED
    kind = "role" if roles else "policy"
    if not index.rules:
        return deny(code, f"no {kind} covers {destination.service} in namespace {destination.namespace}")
    nearest: Step | None = None
    for rule in index.rules[:MAX_EXPLAINED_RULES]:
        step = _step(rule, attributes)
        if nearest is None or step.depth > nearest.depth:
            nearest = step
    assert nearest is not None  # noqa: S101 - there is at least one rule
    reason = f"no {kind} allows it; nearest: {nearest.policy} rule {nearest.rule}: {nearest.detail}"
    return deny(code, reason)
