"""Mixer's quotas: what a call is charged, as plain data. Pure; who counts is told by `Quotas`.

A QuotaSpec that is bound to the destination says which quotas a call costs how much of; rules send the quota
to handlers, which say how much there is. A call gets everything that it is charged for, or nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from authz.attributes import Attributes
from authz.decision import Decision, ReasonCode, deny
from authz.mixer.attributes import CallAttributes
from authz.mixer.expression import ABSENT, EvaluationError, Expression, Value, ValueType
from authz.patterns import Pattern, PatternError

SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class QuotaLimit:
    """At most `max_amount` in `window` (nanoseconds): a fixed one, or one that rolls on in `steps` steps."""

    max_amount: int
    window: int
    steps: int = 0

    def __str__(self) -> str:
        kind = "rolling" if self.steps else "fixed"
        return f"{self.max_amount} in {self.window / SECOND:g}s ({kind} window)"


@dataclass(frozen=True, slots=True)
class Override:
    """Another limit for calls all of whose named dimensions read so."""

    dimensions: tuple[tuple[str, str], ...]
    limit: QuotaLimit


@dataclass(frozen=True, slots=True)
class QuotaDefinition:
    """How much there is of a quota: the first override that fits, else `limit`."""

    limit: QuotaLimit
    overrides: tuple[Override, ...] = ()

    def limit_for(self, dimensions: Mapping[str, str]) -> tuple[QuotaLimit, int]:
        """Return the limit and the index of its override, -1 for none."""
        for index, override in enumerate(self.overrides):
            if all(dimensions.get(name) == text for name, text in override.dimensions):
                return override.limit, index
        return self.limit, -1


@dataclass(frozen=True, slots=True)
class QuotaAdapter:
    """A memquota or redisquota (`kind`): definitions by the full name of the quota instance."""

    kind: str
    quotas: Mapping[str, QuotaDefinition]


@dataclass(frozen=True, slots=True)
class QuotaAction:
    """A rule's action for one quota; without a `definition` (a denier) nothing is ever granted."""

    index: int
    quota: str
    handler: str
    instance: str
    dimensions: tuple[tuple[str, Expression], ...]
    definition: QuotaDefinition | None


@dataclass(frozen=True, slots=True)
class QuotaRule:
    """A rule that sends quotas to handlers."""

    policy: str
    match: Expression | None
    actions: tuple[QuotaAction, ...]


@dataclass(frozen=True, slots=True)
class Clause:
    """What an attribute has to be: exactly `exact`, starting with `prefix`, all of `regex`, or just there."""

    attribute: str
    exact: str | None = None
    prefix: str | None = None
    regex: Pattern | None = None

    def matches(self, call: CallAttributes) -> bool:
        """Return whether the call has such an attribute; one that cannot be told counts as such."""
        try:
            found = [call.value(self.attribute)]
            if self.attribute == "request.path":
                # With a query, or without: nobody gets round a quota by adding one.
                found.append(call.value("request.url_path"))
            return any(one is not ABSENT and self._fits(str(one)) for one in found)
        except (EvaluationError, PatternError):
            return True

    def _fits(self, text: str) -> bool:
        if self.exact is not None:
            return text == self.exact
        if self.prefix is not None:
            return text.startswith(self.prefix)
        return self.regex is None or self.regex.found_in(text)


@dataclass(frozen=True, slots=True)
class SpecRule:
    """A rule of a QuotaSpec: what a call costs that meets one of `matches`, or any call without any."""

    policy: str
    matches: tuple[tuple[Clause, ...], ...]
    charges: tuple[tuple[str, int], ...]

    def applies(self, call: CallAttributes) -> bool:
        """Return whether the call is charged."""
        return not self.matches or any(all(one.matches(call) for one in match) for match in self.matches)


@dataclass(frozen=True, slots=True)
class BoundService:
    """A service that a binding names: by short name and namespace, by full name, or by a piece of it."""

    name: str = ""
    namespace: str = ""
    host: str = ""
    piece: str | None = None

    def fits(self, service: str, namespace: str, name: str) -> bool:
        """Return whether a destination is meant."""
        if self.piece is not None:
            return self.piece in service
        if self.host:
            return self.host == service
        return (self.name, self.namespace) == (name.lower(), namespace)


@dataclass(frozen=True, slots=True)
class QuotaBinding:
    """Rules of QuotaSpecs, and the services that they are for."""

    services: tuple[BoundService, ...]
    rules: tuple[SpecRule, ...]


@dataclass(frozen=True, slots=True)
class DestinationQuotas:
    """What calls to one destination are charged."""

    specs: tuple[SpecRule, ...]
    rules: tuple[QuotaRule, ...]
    types: Mapping[str, ValueType]


class QuotaCharge(NamedTuple):
    """Take `amount` of a quota; calls with one `key` share what there is. `rule` is an action's index."""

    quota: str
    policy: str
    rule: int
    handler: str
    key: tuple[tuple[str, str], ...]
    limit: QuotaLimit
    amount: int
    override: int = -1


class QuotaAnswer(NamedTuple):
    """Whether a charge was granted; if not, in how many nanoseconds it would be (0: not known, or never)."""

    granted: bool
    wait: int = 0


class Quotas(Protocol):
    """Who counts."""

    def spend(self, charges: Sequence[QuotaCharge]) -> list[QuotaAnswer] | Awaitable[list[QuotaAnswer]]:
        """Take all `charges` of a call, or none if one of them is not granted; return an answer for each.

        Raises:
            DependencyError: at once or when awaited: nobody can tell.

        """


def text_of(value: Value) -> str:
    """Return a dimension's value as text, one for each value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def plan(quotas: DestinationQuotas, attributes: Attributes, now: float) -> Sequence[QuotaCharge] | Decision:
    """Return what a call is charged, or the denial if nobody can tell; `now` in seconds since the epoch."""
    call = CallAttributes(attributes, now, quotas.types)
    amounts: dict[str, tuple[str, str, int]] = {}
    for spec in quotas.specs:
        if spec.applies(call):
            for name, amount in spec.charges:
                _, policy, before = amounts.get(name.lower(), (name, spec.policy, 0))
                amounts[name.lower()] = name, policy, before + amount
    if not amounts:
        return ()
    known: set[str] = set()
    charges: dict[tuple[str, str], QuotaCharge] = {}
    for rule in quotas.rules:
        asked = [one for one in rule.actions if one.quota.lower() in amounts]
        known.update(one.quota.lower() for one in asked)
        if not asked or not _matches(rule, call):
            continue
        for action in asked:
            found = _charge(rule, action, amounts[action.quota.lower()][2], call)
            if isinstance(found, Decision):
                return found
            # Two rules that send it to the same handler are one charge.
            charges.setdefault((action.handler, action.instance), found)
    for lower, (name, policy, _) in amounts.items():
        if lower not in known:
            reason = f"INTERNAL: no rule for this destination says what quota {name} is"
            return _unknown(reason, policy, -1)
    return tuple(charges.values())


def _matches(rule: QuotaRule, call: CallAttributes) -> bool:
    """Return whether a rule matches; one that cannot be told does."""
    try:
        return rule.match is None or rule.match.evaluate(call) is True
    except EvaluationError:
        return True


def _charge(
    rule: QuotaRule, action: QuotaAction, amount: int, call: CallAttributes
) -> QuotaCharge | Decision:
    if action.definition is None:
        reason = f"RESOURCE_EXHAUSTED: {action.handler} never grants quota {action.quota}"
        return exhausted((action.quota,), reason, rule.policy, action.index)
    try:
        dimensions = {name: text_of(one.evaluate(call)) for name, one in action.dimensions}
    except EvaluationError as error:
        reason = f"INTERNAL: {action.instance}: {error}"
        return _unknown(reason, rule.policy, action.index)
    limit, override = action.definition.limit_for(dimensions)
    key = (("handler", action.handler), ("quota", action.instance), *sorted(dimensions.items()))
    return QuotaCharge(action.quota, rule.policy, action.index, action.handler, key, limit, amount, override)


def refusal(
    charges: Sequence[QuotaCharge], answers: Sequence[QuotaAnswer] | None
) -> tuple[Decision, int] | None:
    """Return the denial and in how many seconds to come again (0: not known); None if all was granted.

    Without `answers` nobody can tell, which denies.
    """
    first = charges[0]
    if answers is None:
        reason = "UNAVAILABLE: the store of quotas does not answer"
        return _unknown(reason, first.policy, first.rule, "UNAVAILABLE:the quota is not available", 503), 0
    over = [(one, answer) for one, answer in zip(charges, answers, strict=True) if not answer.granted]
    if not over:
        return None
    names = tuple(dict.fromkeys(one.quota for one, _ in over))
    said = "; ".join(f"{one.amount} of {one.quota} asked of {one.handler}, {one.limit}" for one, _ in over)
    decision = exhausted(names, f"RESOURCE_EXHAUSTED: {said}", over[0][0].policy, over[0][0].rule)
    waits = [-(-answer.wait // SECOND) if one.amount <= one.limit.max_amount else 0 for one, answer in over]
    return decision, max(waits) if all(waits) else 0


def exhausted(names: Sequence[str], reason: str, policy: str, rule: int) -> Decision:
    """Return the denial of a call that does not get its quotas, with the words of Istio's proxy."""
    return deny(
        ReasonCode.QUOTA_EXHAUSTED,
        reason,
        http_status=429,
        public=f"RESOURCE_EXHAUSTED:Quota is exhausted for: {','.join(names)}",
        policy=policy,
        rule=rule,
        field_path=f"spec.actions[{rule}]",
    )


def _unknown(
    reason: str,
    policy: str,
    rule: int,
    public: str = "INTERNAL:the quota could not be checked",
    http_status: int = 500,
) -> Decision:
    return deny(
        ReasonCode.QUOTA_UNAVAILABLE,
        reason,
        http_status=http_status,
        public=public,
        policy=policy,
        rule=rule,
        field_path=f"spec.actions[{rule}]" if rule >= 0 else "spec",
    )
