"""The compiled form of Mixer's configuration. Immutable and plain: no closures, nothing of YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from authz.destination import Destination
from authz.mixer.attributes import DestinationAttributes
from authz.mixer.expression import EvaluationError, Expression, ValueType
from authz.mixer.lists import EntryList, ListSource
from authz.mixer.quotas import DestinationQuotas, QuotaAction, QuotaAdapter, QuotaBinding, QuotaRule


@dataclass(frozen=True, slots=True)
class DirectResponse:
    """The HTTP response that takes the place of the usual one."""

    code: int
    body: str
    headers: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Denier:
    """Gives one answer, whatever it is asked. Times in nanoseconds."""

    status: int
    message: str
    valid_duration: int
    valid_use_count: int
    direct_response: DirectResponse | None = None


@dataclass(frozen=True, slots=True)
class ListChecker:
    """Looks a value up in `overrides` and, if there is a `source`, in what it provides."""

    overrides: EntryList
    source: ListSource | None
    blacklist: bool
    valid_duration: int
    valid_use_count: int


@dataclass(frozen=True, slots=True)
class Handler:
    """An adapter under its full name, `<name>.<kind>.<namespace>`."""

    name: str
    adapter: Denier | ListChecker | QuotaAdapter


@dataclass(frozen=True, slots=True)
class Instance:
    """What a handler is asked about; `value` only for `listentry`, `dimensions` only for `quota`."""

    name: str
    template: str
    value: Expression | None = None
    dimensions: tuple[tuple[str, Expression], ...] = ()


@dataclass(frozen=True, slots=True)
class Action:
    """A handler with its instances; `index` is that in the document."""

    index: int
    handler: Handler
    instances: tuple[Instance, ...]

    def without(self, template: str) -> Action:
        """Return the action with its other instances only."""
        left = tuple(one for one in self.instances if one.template != template)
        return self if len(left) == len(self.instances) else Action(self.index, self.handler, left)


@dataclass(frozen=True, slots=True)
class HeaderTemplate:
    """A header operation whose values depend on the call. `name` is in lower case."""

    name: str
    operation: str
    values: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """One `rule`; `match` is None when it matches everything."""

    policy: str
    namespace: str
    match: Expression | None
    # The parts of `match`, joined by `&&`, that look at nothing but the destination.
    selectors: tuple[Expression, ...]
    actions: tuple[Action, ...]
    request_headers: tuple[HeaderTemplate, ...]
    response_headers: tuple[HeaderTemplate, ...]
    quotas: tuple[QuotaAction, ...] = ()

    @property
    def checks(self) -> bool:
        """Whether there is anything to do but to send quotas."""
        return bool(self.actions or self.request_headers or self.response_headers)


def _can_match(rule: Rule, known: DestinationAttributes) -> bool:
    """Return False only when no call to the destination can match `rule`."""
    for selector in rule.selectors:
        try:
            if selector.evaluate(known) is False:
                return False
        except EvaluationError:
            continue  # told for each call, with its reason
    return True


@dataclass(frozen=True, slots=True)
class DestinationRules:
    """The rules that can match a call to one destination, in the order in which they are asked.

    `speaks` tells whether any rule is for it, of whatever kind.
    """

    rules: tuple[Rule, ...]
    types: Mapping[str, ValueType]
    quotas: DestinationQuotas | None = None
    speaks: bool = False


Rules: TypeAlias = tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class MixerPolicies:
    """Everything compiled: rules by namespace, and the lists that they need.

    Rules of the root namespace are for every destination, others for those of their own namespace.
    """

    root_namespace: str
    by_namespace: Mapping[str, Rules]
    types: Mapping[str, ValueType]
    sources: frozenset[ListSource]
    bindings: tuple[QuotaBinding, ...] = ()

    def for_destination(self, destination: Destination) -> DestinationRules:
        """Return the rules for calls to `destination`; worth keeping per destination."""
        known = DestinationAttributes(destination)
        names = dict.fromkeys((self.root_namespace, destination.namespace))
        found = [rule for name in names for rule in self.by_namespace.get(name, ())]
        rules = [rule for rule in found if _can_match(rule, known)]
        checking = tuple(rule for rule in rules if rule.checks)
        return DestinationRules(checking, self.types, self._quotas(destination, found), bool(rules))

    def _quotas(self, destination: Destination, rules: list[Rule]) -> DestinationQuotas | None:
        where = destination.service, destination.namespace, destination.name
        specs = {
            id(spec): spec
            for binding in self.bindings
            if any(service.fits(*where) for service in binding.services)
            for spec in binding.rules
        }
        if not specs:
            return None
        # Also those that cannot match: what they say of a quota makes it known, and costs nothing.
        sending = tuple(QuotaRule(rule.policy, rule.match, rule.quotas) for rule in rules if rule.quotas)
        return DestinationQuotas(tuple(specs.values()), sending, self.types)
