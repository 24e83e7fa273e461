"""`rbac.istio.io/v1alpha1`: roles, bindings and the switch, with the semantics of Istio 1.4."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from operator import is_

from authz.decision import ReasonCode, allow
from authz.policy.compile import Compiler, Loaded, place
from authz.policy.documents import ClusterRbacConfig, RbacConfig, ServiceRole, ServiceRoleBinding
from authz.policy.documents import rbac as shape
from authz.policy.matchers import Condition, EitherMatcher, Matcher, MetadataMatcher, StringMatcher
from authz.policy.rules import Action, Alternative, Enforcement, Policy, Rule, Selector
from garrison.documents import Document, Field

# Constraint keys that speak of the workload, and so choose whether a rule applies at all.
_DESTINATION_KEYS = frozenset(
    {"destination.labels", "destination.name", "destination.namespace", "destination.user"}
)
_CONSTRAINT_KEYS = _DESTINATION_KEYS | {
    "destination.ip",
    "destination.port",
    "request.headers",
    "connection.sni",
    "experimental.envoy.filters",
}
_PROPERTY_KEYS = frozenset(
    {
        "source.ip",
        "source.namespace",
        "source.principal",
        "source.user",
        "request.auth.principal",
        "request.auth.audiences",
        "request.auth.presenter",
        "request.auth.claims",
        "request.headers",
    }
)
_WITH_ARGUMENT = frozenset({"destination.labels", "request.headers", "request.auth.claims"})
# Fields of a subject, and properties that say the same: Istio 1.2 and later refuse both together.
_SAME_AS = (
    (("names", "not_names"), frozenset({"source.principal", "source.user"})),
    (("groups", "not_groups"), frozenset({"request.auth.claims[groups]"})),
    (("namespaces", "not_namespaces"), frozenset({"source.namespace"})),
    (("ips", "not_ips"), frozenset({"source.ip"})),
)
_AUTHENTICATED = "allAuthenticatedUsers"

Key = tuple[str, str]  # (namespace, role)


@dataclass(frozen=True, slots=True)
class Grant:
    """A compiled binding: a role and who has it. `shadow` ones (mode PERMISSIVE) are only tried."""

    role: Key
    subjects: tuple[Alternative, ...]
    shadow: bool


class Role:
    """A compiled role: a policy for each of its rules, bound to nobody so far."""

    __slots__ = ("_bound", "_to", "key", "rules")

    def __init__(self, key: Key, rules: tuple[Policy, ...]) -> None:
        self.key = key
        self.rules = rules
        # A role and its subjects seldom change: what they came to the last time is most often right.
        self._to: tuple[tuple[Alternative, ...], tuple[Alternative, ...] | None] = ((), None)
        self._bound = rules

    def bound(
        self, subjects: tuple[Alternative, ...], shadow: tuple[Alternative, ...] | None
    ) -> tuple[Policy, ...]:
        """Return the policies of the role with these subjects; `shadow` are those of bindings to be tried."""
        before, tried_before = self._to
        if not (_are_same(subjects, before) and _are_same(shadow, tried_before)):
            bound = tuple(_bound(rule, subjects, shadow=False) for rule in self.rules)
            if shadow is not None:
                bound += tuple(_bound(rule, shadow, shadow=True) for rule in self.rules)
            self._to, self._bound = (subjects, shadow), bound
        return self._bound


def _are_same(one: Sequence[Alternative] | None, two: Sequence[Alternative] | None) -> bool:
    """Return whether these are the very same objects: cheaper than equal, and never wrong."""
    if one is None or two is None:
        return one is two
    return len(one) == len(two) and all(map(is_, one, two))


def bind(roles: Iterable[Role], grants: Iterable[Grant]) -> Iterable[Policy]:
    """Yield a policy for each rule of each role, with the subjects of every binding that grants the role."""
    enforced: dict[Key, list[Alternative]] = {}
    shadow: dict[Key, list[Alternative]] = {}
    for grant in grants:
        granted = shadow if grant.shadow else enforced
        granted.setdefault(grant.role, []).extend(grant.subjects)
    for role in roles:
        tried = shadow.pop(role.key, None)
        yield from role.bound(tuple(enforced.pop(role.key, ())), tuple(tried) if tried is not None else None)


def warn_of_missing_roles(
    compiler: Compiler, roles: Iterable[Role], grants: Iterable[tuple[Grant, Document]]
) -> None:
    """Warn of bindings that grant nothing because their role is not there."""
    there = {role.key for role in roles}
    for grant, document in grants:
        if grant.role not in there:
            namespace, name = grant.role
            message = f"namespace `{namespace}` has no ServiceRole `{name}`: nothing is granted"
            compiler.warn(document, ("spec", "roleRef", "name"), "missing_role", message)
    while there:  # one by one, as in `compile_policies`
        there.pop()


def compile_grant(compiler: Compiler, loaded: Loaded, binding: ServiceRoleBinding) -> Grant:
    """Return the compiled binding."""
    return Grant(
        (binding.metadata.namespace, binding.spec.roleRef.name),
        tuple(_subjects(compiler, loaded, binding)),
        shadow=binding.spec.mode == "PERMISSIVE",
    )


def compile_role(compiler: Compiler, loaded: Loaded, role: ServiceRole) -> Role:
    """Return the compiled role."""
    key = (role.metadata.namespace, role.metadata.name)
    return Role(key, tuple(_rules(compiler, loaded, role)))


def _rules(compiler: Compiler, loaded: Loaded, role: ServiceRole) -> Iterable[Policy]:
    for index, rule in enumerate(role.spec.rules):
        where: Field = ("spec", "rules", index)
        conditions = [*_operation(compiler, loaded, where, rule)]
        for position, constraint in enumerate(rule.constraints):
            at = (*where, "constraints", position)
            condition = _constraint(compiler, loaded, at, constraint)
            if condition is not None:
                conditions.append(condition)
        compiled = Rule(
            policy=role.title,
            index=index,
            action=Action.ALLOW,
            operations=(
                Alternative(
                    place(where), tuple(one for one in conditions if one.attribute not in _DESTINATION_KEYS)
                ),
            ),
            sources=(),
            when=(),
            decisions=(),
        )
        selector = Selector(
            role.metadata.namespace,
            services=tuple(pattern.lower() for pattern in rule.services) or None,
            conditions=tuple(one for one in conditions if one.attribute in _DESTINATION_KEYS),
        )
        # What a connection does not have, no condition of a role matches, except a negative one: those drop
        # the rule, or the subject (Istio 1.3).
        tcp = () if any(map(_needs_http, conditions)) else (compiled,)
        yield Policy(role.title, selector, Action.ALLOW, (compiled,), tcp, is_role=True)


def _bound(policy: Policy, subjects: tuple[Alternative, ...], *, shadow: bool) -> Policy:
    """Return the policy of one rule of a role with its subjects."""
    (rule,) = policy.rules
    bound = Rule(
        policy=rule.policy,
        index=rule.index,
        action=rule.action,
        operations=rule.operations,
        sources=subjects,
        when=rule.when,
        decisions=tuple(
            allow(
                ReasonCode.ROLE_MATCHED,
                f"granted by {subject.origin} {subject.field}",
                policy=rule.policy,
                rule=rule.index,
                field_path=rule.operations[0].field,
            )
            for subject in subjects
        ),
    )
    tcp = (_for_tcp(bound),) if policy.tcp else ()
    return Policy(policy.title, policy.selector, policy.action, (bound,), tcp, shadow=shadow, is_role=True)


def _needs_http(condition: Condition) -> bool:
    return condition.negated and condition.attribute.startswith("request.")


def _for_tcp(rule: Rule) -> Rule:
    kept = [number for number, one in enumerate(rule.sources) if not any(map(_needs_http, one.conditions))]
    if len(kept) == len(rule.sources):
        return rule
    return replace(
        rule,
        sources=tuple(rule.sources[number] for number in kept),
        decisions=tuple(rule.decisions[number] for number in kept),
    )


def _operation(
    compiler: Compiler, loaded: Loaded, where: Field, rule: shape.AccessRule
) -> Iterable[Condition]:
    both = (("methods", "request.method"), ("paths", "request.path"), ("hosts", "request.host"))
    for name, attribute in both:
        for spelled, negated in ((name, False), (f"not_{name}", True)):
            values = getattr(rule, spelled)
            if not values:
                continue
            # Hosts compare without case; what excludes looks at every reading of a path or host.
            patterns = [value.lower() for value in values] if name == "hosts" else values
            source = f"{attribute}.any" if negated and name != "methods" else attribute
            yield Condition(
                source,
                "",
                compiler.strings(patterns),
                every=not negated,
                field=place((*where, spelled)),
                negated=negated,
                name=attribute,
            )
    for spelled, negated in (("ports", False), ("not_ports", True)):
        ports = getattr(rule, spelled)
        if ports:
            yield Condition(
                "destination.port",
                "",
                compiler.strings(str(port) for port in ports),
                every=not negated,
                field=place((*where, spelled)),
                negated=negated,
                name="destination.port",
            )
    if rule.methods and rule.not_methods:
        compiler.report(loaded, where, "exclusive", "`methods` and `not_methods` exclude each other")
    if rule.ports and rule.not_ports:
        compiler.report(loaded, where, "exclusive", "`ports` and `not_ports` exclude each other")
    if (rule.ports or rule.not_ports) and any(one.key == "destination.port" for one in rule.constraints):
        message = "a constraint on `destination.port` excludes `ports` and `not_ports`"
        compiler.report(loaded, where, "exclusive", message)


def _constraint(
    compiler: Compiler, loaded: Loaded, where: Field, constraint: shape.Constraint
) -> Condition | None:
    key = _pseudo_header(constraint.key) or compiler.split_key(
        loaded, (*where, "key"), constraint.key, _CONSTRAINT_KEYS, _WITH_ARGUMENT
    )
    if key is None:
        return None
    return _condition(compiler, loaded, (*where, "values"), key, constraint.values, constraint.key)


def _pseudo_header(key: str) -> tuple[str, str] | None:
    """Istio took these as constraint keys without documenting them."""
    attribute = {":path": "request.path", ":method": "request.method", ":authority": "request.host"}.get(key)
    return (attribute, "") if attribute else None


def _subjects(compiler: Compiler, loaded: Loaded, binding: ServiceRoleBinding) -> Iterable[Alternative]:
    for index, subject in enumerate(binding.spec.subjects):
        where: Field = ("spec", "subjects", index)
        if subject == shape.Subject():
            hint = 'for everybody, write `user: "*"`'
            compiler.report(loaded, where, "empty_subject", "the subject names nobody", hint)
            continue
        for fields, same in _SAME_AS:
            if same & set(subject.properties) and any(getattr(subject, name) for name in fields):
                message = f"`{fields[0]}` excludes the property `{min(same)}`"
                compiler.report(loaded, where, "exclusive", message)
        conditions = [
            *_user(compiler, loaded, where, subject),
            *_names(compiler, loaded, where, subject),
            *_groups(compiler, where, subject),
            *_lists(compiler, loaded, where, subject),
        ]
        for name, value in subject.properties.items():
            at = (*where, "properties", name)
            key = compiler.split_key(loaded, at, name, _PROPERTY_KEYS, _WITH_ARGUMENT)
            condition = _condition(compiler, loaded, at, key, (value,), name) if key else None
            if condition is not None:
                conditions.append(condition)
        yield Alternative(place(where), tuple(conditions), binding.title)


def _user(compiler: Compiler, loaded: Loaded, where: Field, subject: shape.Subject) -> Iterable[Condition]:
    user, at = subject.user, (*where, "user")
    if user is None or user == "*":
        return
    if "/" in user or "*" in user:
        matcher = compiler.principals(loaded, at, (user,))
    else:
        namespace = loaded.resource.metadata.namespace
        matcher = compiler.strings(f"{name}/ns/{namespace}/sa/{user}" for name in compiler.mesh.trust_domains)
    yield Condition("source.principal", "", matcher, every=True, field=place(at), name="source.principal")


def _names(compiler: Compiler, loaded: Loaded, where: Field, subject: shape.Subject) -> Iterable[Condition]:
    """`names` and `not_names` (1.2 and later): principals, `allUsers` and `allAuthenticatedUsers`."""
    for spelled, values, negated in (
        ("names", subject.names, False),
        ("not_names", subject.not_names, True),
    ):
        at = (*where, spelled)
        if "*" in values:
            compiler.report(loaded, at, "star", f"`*` is not allowed in `{spelled}`", "write `allUsers`")
            continue
        if not values:
            continue
        if "allUsers" in values:
            if negated:
                # Everybody is excluded: a condition that nothing satisfies.
                yield Condition(
                    "source.any", "", compiler.strings(("*",)), every=False, field=place(at), negated=True
                )
            continue
        patterns = ["*" if value == _AUTHENTICATED else value for value in values]
        # Istio 1.4 knows aliases for `user` only; to exclude, they count here too.
        patterns = list(compiler.without_scheme(loaded, at, patterns, denies=negated))
        matcher: Matcher = compiler.strings(patterns)
        if negated:
            matcher = EitherMatcher((matcher, compiler.principals(loaded, at, patterns)))
        yield Condition(
            "source.principal.any" if negated else "source.principal",
            "",
            matcher,
            every=not negated,
            field=place(at),
            negated=negated,
            name="source.principal",
        )


def _groups(compiler: Compiler, where: Field, subject: shape.Subject) -> Iterable[Condition]:
    for spelled, values, negated in (
        ("group", [subject.group] if subject.group else [], False),
        ("groups", subject.groups, False),
        ("not_groups", subject.not_groups, True),
    ):
        if values:
            yield Condition(
                "request.auth.claims",
                "groups",
                compiler.strings(values),
                every=False,
                field=place((*where, spelled)),
                negated=negated,
                name="request.auth.claims[groups]",
            )


def _lists(compiler: Compiler, loaded: Loaded, where: Field, subject: shape.Subject) -> Iterable[Condition]:
    for name, attribute in (("namespaces", "source.namespace"), ("ips", "source.ip")):
        for spelled, negated in ((name, False), (f"not_{name}", True)):
            values = getattr(subject, spelled)
            if values:
                at = (*where, spelled)
                condition = _condition(
                    compiler, loaded, at, (attribute, ""), values, attribute, negated=negated
                )
                if condition is not None:
                    yield condition


def _condition(  # noqa: PLR0917 - what it is about, then what it says
    compiler: Compiler,
    loaded: Loaded,
    where: Field,
    key: tuple[str, str],
    values: Sequence[str],
    name: str,
    *,
    negated: bool = False,
) -> Condition | None:
    attribute, argument = key
    matcher = _matcher(compiler, loaded, where, attribute, values)
    if matcher is None:
        return None
    if attribute == "source.user":
        attribute = "source.principal"
    if negated and attribute == "source.namespace":
        attribute = "source.namespace.any"
    # Claims and metadata may be lists, of which one element suffices; else every value must match.
    every = not negated and not attribute.startswith(("request.auth.", "experimental."))
    return Condition(attribute, argument, matcher, every, place(where), negated, name)


def _matcher(
    compiler: Compiler, loaded: Loaded, where: Field, attribute: str, values: Sequence[str]
) -> Matcher | None:
    if attribute in {"source.ip", "destination.ip"}:
        return compiler.addresses(loaded, where, values)
    if attribute == "destination.port":
        return compiler.ports(loaded, where, values)
    if attribute == "source.namespace":
        for value in values:
            if "*" in value[1:-1] or (len(value) > 1 and value[0] == value[-1] == "*"):
                compiler.report(loaded, where, "pattern", f"`{value}` has a `*` that is not at one end")
                return None
    if attribute in {"source.principal", "source.user"}:
        return compiler.principals(loaded, where, values)
    if attribute == "experimental.envoy.filters":
        return MetadataMatcher.of(values)
    if attribute in {"request.host", "connection.sni"}:
        values = [value.lower() for value in values]
    matcher: StringMatcher = compiler.strings(values)
    return matcher


def compile_enforcement(compiler: Compiler, loaded: Sequence[Loaded]) -> Enforcement:
    """Return the switch: a ClusterRbacConfig, else a RbacConfig, else none."""
    configs = [one for one in loaded if isinstance(one.resource, ClusterRbacConfig | RbacConfig)]
    for one in configs:
        if one.resource.metadata.name != "default":
            compiler.report(one, ("metadata", "name"), "singleton_name", "the name must be `default`")
    cluster = [one for one in configs if isinstance(one.resource, ClusterRbacConfig)]
    # 1.1: a ClusterRbacConfig replaces the RbacConfig as a whole.
    chosen = cluster or configs
    if not chosen:
        return Enforcement()
    if len(chosen) > 1:
        compiler.report(chosen[1], ("kind",), "duplicate_name", "there can be only one of these")
    one = chosen[0]
    assert isinstance(one.resource, ClusterRbacConfig | RbacConfig)  # noqa: S101 - as above
    spec = one.resource.spec
    target = {"ON_WITH_INCLUSION": spec.inclusion, "ON_WITH_EXCLUSION": spec.exclusion}.get(spec.mode)
    if spec.mode.startswith("ON_WITH") and target is None:
        name = spec.mode.removeprefix("ON_WITH_").lower()
        hint = f"use `{name}: {{}}` for none"
        compiler.report(one, ("spec",), "missing_field", f"`{name}` cannot be absent", hint)
    return Enforcement(
        policy=one.resource.title,
        mode=spec.mode,
        services=frozenset(service.lower() for service in target.services) if target else frozenset(),
        namespaces=frozenset(target.namespaces) if target else frozenset(),
        permissive=spec.enforcement_mode == "PERMISSIVE",
    )
