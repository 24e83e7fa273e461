"""Limits of quotas, and what calls cost: documents -> `authz/mixer/quotas.py`."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Protocol

from authz.mixer import documents as shape
from authz.mixer.attributes import KNOWN_TOO_LATE, from_text
from authz.mixer.expression import EvaluationError, ValueType
from authz.mixer.loaded import Loaded, spelled
from authz.mixer.quotas import (
    BoundService,
    Clause,
    Override,
    QuotaAdapter,
    QuotaBinding,
    QuotaDefinition,
    QuotaLimit,
    SpecRule,
    text_of,
)
from authz.mixer.rules import Instance
from authz.patterns import Pattern, PatternError
from garrison.documents import Field

_MILLISECOND = 1_000_000
_YEAR = 366 * 86_400 * shape.SECOND
# memquota: ten steps in a second. More than so many in a window would make its counters large.
_STEPS_PER_SECOND = 10
MAX_STEPS = 600


class Problems(Protocol):
    """Where mistakes go, and the types of attributes."""

    types: dict[str, ValueType]

    def report(self, one: Loaded, where: Field, code: str, message: str, hint: str = "") -> None:
        """Record an error."""

    def warn(self, one: Loaded, where: Field, code: str, message: str, hint: str = "") -> None:
        """Record what is allowed and probably not meant."""


def compile_limits(
    problems: Problems,
    one: Loaded,
    params: shape.MemQuotaParams | shape.RedisQuotaParams,
    base: Field,
    instances: Mapping[str, Instance | None],
) -> QuotaAdapter | None:
    """Return the handler, None after reporting what is wrong; `instances` are those that it names."""
    quotas: dict[str, QuotaDefinition] = {}
    good = True
    limits: Sequence[shape.MemQuotaLimit | shape.RedisQuotaLimit] = params.quotas
    for index, given in enumerate(limits):
        where = (*base, "quotas", index)
        instance = instances[given.name]
        if instance is None or instance.template != "quota":
            message = f"no quota instance is called `{given.name}`, so this limit is for nothing"
            problems.warn(one, (*where, "name"), "unused_limit", message)
            continue
        if instance.name in quotas:
            problems.report(one, (*where, "name"), "two_limits", f"`{given.name}` has a limit already")
            good = False
        definition = _definition(problems, one, given, where, instance)
        if definition is None:
            good = False
        else:
            quotas[instance.name] = definition
    kind = "memquota" if isinstance(params, shape.MemQuotaParams) else "redisquota"
    return QuotaAdapter(kind, quotas) if good else None


def _definition(
    problems: Problems,
    one: Loaded,
    given: shape.MemQuotaLimit | shape.RedisQuotaLimit,
    where: Field,
    instance: Instance,
) -> QuotaDefinition | None:
    window = _window(problems, one, given, where)
    if window is None:
        return None
    types = {name: expression.type for name, expression in instance.dimensions}
    overrides: list[Override] = []
    listed: Sequence[shape.MemQuotaOverride | shape.RedisQuotaOverride] = given.overrides
    for index, override in enumerate(listed):
        place = (*where, "overrides", index)
        length, steps = window
        if isinstance(override, shape.MemQuotaOverride):
            own = _window(problems, one, override, place)
            if own is None:
                return None
            length, steps = own
        dimensions = _dimensions(problems, one, place, override.dimensions, types)
        if dimensions is None:
            continue
        hidden = next(
            (n for n, other in enumerate(overrides) if set(other.dimensions) <= set(dimensions)), None
        )
        if hidden is not None:
            message = "an earlier override fits whenever this one does"
            problems.warn(one, place, "unreachable_override", message)
        overrides.append(Override(dimensions, QuotaLimit(override.max_amount, length, steps)))
    return QuotaDefinition(QuotaLimit(given.max_amount, *window), tuple(overrides))


def _dimensions(
    problems: Problems,
    one: Loaded,
    place: Field,
    given: Mapping[str, str],
    types: Mapping[str, ValueType],
) -> tuple[tuple[str, str], ...] | None:
    """Return the values in the form in which they are compared; None, with a warning, if none ever fits."""
    found: list[tuple[str, str]] = []
    for name, text in given.items():
        where = (*place, "dimensions", name)
        if name not in types:
            message = f"the quota has no dimension `{name}`, so this override never applies"
            problems.warn(one, where, "unreachable_override", message)
            return None
        try:
            found.append((name, text_of(from_text(types[name], text))))
        except EvaluationError:
            message = f"`{text}` is no {types[name]}, so this override never applies"
            problems.warn(one, where, "unreachable_override", message)
            return None
    return tuple(found)


def _window(
    problems: Problems,
    one: Loaded,
    given: shape.MemQuotaLimit | shape.MemQuotaOverride | shape.RedisQuotaLimit,
    where: Field,
) -> tuple[int, int] | None:
    """Return the length of the window and its steps, 0 for a fixed window."""
    length = given.valid_duration
    if not _MILLISECOND <= length <= _YEAR or length % _MILLISECOND:
        message = "a quota is for whole milliseconds, at most a year"
        hint = "what is never given back cannot be counted here: no call releases it" if not length else ""
        problems.report(one, spelled(one, where, "validDuration"), "quota_duration", message, hint)
        return None
    if not isinstance(given, shape.RedisQuotaLimit):
        seconds = -(-length // shape.SECOND)
        return seconds * shape.SECOND, min(_STEPS_PER_SECOND * seconds, MAX_STEPS)
    if given.rate_limit_algorithm == "FIXED_WINDOW":
        return length, 0
    if not 0 < given.bucket_duration < length:
        message = "a rolling window has a bucket duration above 0 and below its valid duration"
        problems.report(one, spelled(one, where, "bucketDuration"), "quota_duration", message)
        return None
    return length, min(-(-length // given.bucket_duration), MAX_STEPS)


def compile_bindings(
    problems: Problems,
    loaded: Iterable[Loaded],
    root_namespace: str,
    sent: Container[tuple[str, str]],
) -> tuple[QuotaBinding, ...]:
    """Return what is charged where; `sent` are the quotas that rules send, with the rules' namespaces."""
    known = sorted(loaded, key=lambda one: one.key)
    specs: dict[tuple[str, str], tuple[SpecRule, ...]] = {}
    for one in known:
        if isinstance(one.resource, shape.QuotaSpec):
            specs[one.key[1:]] = _spec(problems, one, one.resource)
    found: list[QuotaBinding] = []
    bound: set[tuple[str, str]] = set()
    for one in known:
        if not isinstance(one.resource, shape.QuotaSpecBinding):
            continue
        rules: list[SpecRule] = []
        for index, reference in enumerate(one.resource.spec.quota_specs):
            key = reference.namespace or one.key[1], reference.name
            bound.add(key)
            if key in specs:
                rules += specs[key]
            else:
                where = (*spelled(one, ("spec",), "quotaSpecs"), index)
                message = f"unknown QuotaSpec `{reference.name}` in namespace `{key[0]}`"
                problems.report(one, where, "unknown_quota_spec", message)
        services = [
            service
            for index, given in enumerate(one.resource.spec.services)
            if (service := _service(problems, one, index, given))
        ]
        _refuse_unsent(problems, one, rules, services, root_namespace, sent)
        found.append(QuotaBinding(tuple(services), tuple(rules)))
    for one in known:
        if isinstance(one.resource, shape.QuotaSpec) and one.key[1:] not in bound:
            message = "no QuotaSpecBinding names this, so it charges nothing"
            problems.warn(one, ("metadata", "name"), "unbound_quota_spec", message)
    return tuple(found)


def _refuse_unsent(  # noqa: PLR0917 - what a binding brings together
    problems: Problems,
    one: Loaded,
    rules: Iterable[SpecRule],
    services: Iterable[BoundService],
    root_namespace: str,
    sent: Container[tuple[str, str]],
) -> None:
    """Report quotas that no rule sends to a handler, where the namespace of the service is told."""
    for service in services:
        if not service.namespace:
            continue
        for name in sorted({name for rule in rules for name, _ in rule.charges}):
            places = {root_namespace, service.namespace}
            if not any((place, name.lower()) in sent for place in places):
                message = f"no rule for namespace `{service.namespace}` sends quota `{name}` to a handler"
                problems.report(one, ("spec",), "unknown_quota", message)


def _spec(problems: Problems, one: Loaded, resource: shape.QuotaSpec) -> tuple[SpecRule, ...]:
    found: list[SpecRule] = []
    for index, rule in enumerate(resource.spec.rules):
        matches = tuple(
            _match(problems, one, ("spec", "rules", index, "match", number, "clause"), given)
            for number, given in enumerate(rule.match)
        )
        charges = tuple((given.quota, given.charge) for given in rule.quotas)
        found.append(SpecRule(resource.title, matches, charges))
    return tuple(found)


def _match(problems: Problems, one: Loaded, where: Field, given: shape.AttributeMatch) -> tuple[Clause, ...]:
    found = (_clause(problems, one, (*where, name), name, match) for name, match in given.clause.items())
    return tuple(clause for clause in found if clause is not None)


def _clause(
    problems: Problems, one: Loaded, where: Field, name: str, match: shape.StringMatch
) -> Clause | None:
    kind = problems.types.get(name)
    if kind is not ValueType.STRING or name in KNOWN_TOO_LATE:
        what = "is not known when a call is checked" if name in KNOWN_TOO_LATE else f"is a {kind}"
        message = f"`{name}` {what if kind else 'is not known'}: a clause needs a STRING"
        problems.report(one, where, "clause_attribute", message)
        return None
    if sum(one is not None for one in (match.exact, match.prefix, match.regex)) > 1:
        problems.report(one, where, "clause_match", "one of `exact`, `prefix` and `regex`")
        return None
    regex: Pattern | None = None
    if match.regex is not None:
        try:
            Pattern(match.regex)  # by itself, or it could leave the group that it is put into
            regex = Pattern(rf"\A(?:{match.regex})\z")
        except PatternError as error:
            problems.report(one, (*where, "regex"), "clause_match", str(error))
            return None
    return Clause(name, match.exact, match.prefix, regex)


def _service(problems: Problems, one: Loaded, index: int, given: shape.IstioService) -> BoundService | None:
    where = ("spec", "services", index)
    own = one.resource.metadata.namespace
    if given.service:
        host = given.service.lower()
        if "*" not in host:
            return BoundService(host=host)
        piece = host.strip("*")
        if "*" in piece:
            message = f"`{given.service}` has a `*` in the middle, which no service has"
            problems.report(one, (*where, "service"), "service_pattern", message)
            return None
        return BoundService(piece=piece)
    if not given.name:
        problems.report(one, where, "service_pattern", "a service has a `name` or is a `service`")
        return None
    namespace = given.namespace or own
    if given.domain:
        return BoundService(host=f"{given.name}.{namespace}.{given.domain}".lower(), namespace=namespace)
    return BoundService(given.name.lower(), namespace)
