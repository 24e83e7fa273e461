"""Documents -> compiled rules. Collects every problem before it fails; nothing is half applied.

Semantics are Istio 1.4's for `rbac.istio.io/v1alpha1`; where 1.4 widens a policy by accident (keys that it
does not know, values that it cannot parse) this is an error. `docs/semantics.md` lists the differences.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from authz.authn.jwt import DEFAULT_HEADERS, DEFAULT_PARAMETERS, JwtRule, KeySetError, TokenHeader, parse_jwks
from authz.decision import ReasonCode, allow
from authz.paths import PathNormalization
from authz.policy.documents import (
    KINDS,
    ClusterRbacConfig,
    RbacConfig,
    RequestAuthentication,
    Resource,
    ServiceRole,
    ServiceRoleBinding,
)
from authz.policy.documents import rbac as shape
from authz.policy.matchers import AddressMatcher, Condition, Matcher, StringMatcher
from authz.policy.rules import Enforcement, PolicySet, Rule, Subject, TokenPolicy
from garrison.documents import Diagnostic, Document, Field, Severity, validate
from garrison.identity import SCHEME, TrustDomain

# Istio 1.4's fallback: `cluster.local` in a policy means "our trust domain".
_LOCAL_TRUST_DOMAIN = "cluster.local"

# Constraint keys of a role that speak of the workload, and those that speak of the request.
_DESTINATION_KEYS = frozenset(
    {"destination.labels", "destination.name", "destination.namespace", "destination.user"}
)
_CONSTRAINT_KEYS = _DESTINATION_KEYS | {
    "destination.ip",
    "destination.port",
    "request.headers",
    "connection.sni",
}
# Property keys of a subject.
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
_KEYS_WITH_ARGUMENT = frozenset({"destination.labels", "request.headers", "request.auth.claims"})
_ADDRESS_KEYS = frozenset({"source.ip", "destination.ip"})


@dataclass(frozen=True, slots=True)
class MeshSettings:
    """What holds for the whole mesh and changes how policies read."""

    trust_domain: TrustDomain = field(default=TrustDomain(_LOCAL_TRUST_DOMAIN))
    trust_domain_aliases: tuple[TrustDomain, ...] = ()
    root_namespace: str = "istio-system"
    path_normalization: PathNormalization = PathNormalization.BASE

    @property
    def trust_domains(self) -> tuple[str, ...]:
        """The names of all trust domains that are ours."""
        return (self.trust_domain.name, *(alias.name for alias in self.trust_domain_aliases))


@dataclass(slots=True)
class _Loaded:
    """A validated document with the YAML it came from."""

    resource: Resource
    document: Document


@dataclass(slots=True)
class _Compiler:
    mesh: MeshSettings
    problems: list[Diagnostic] = field(default_factory=list)
    _matchers: dict[tuple[str, ...], StringMatcher] = field(default_factory=dict)

    def strings(self, patterns: Iterable[str]) -> StringMatcher:
        """Return the matcher for `patterns`; equal lists share one."""
        key = tuple(patterns)
        if key not in self._matchers:
            self._matchers[key] = StringMatcher.of(key)
        return self._matchers[key]

    def report(self, loaded: _Loaded, path: Field, code: str, message: str, hint: str = "") -> None:
        self.problems.append(loaded.document.error(path, code, message, hint))

    def warn(self, loaded: _Loaded, path: Field, code: str, message: str) -> None:
        document = loaded.document
        self.problems.append(
            Diagnostic(document.file, document.position(path), path, code, message, severity=Severity.WARNING)
        )


def compile_policies(
    documents: Sequence[Document], mesh: MeshSettings
) -> tuple[PolicySet | None, list[Diagnostic]]:
    """Return the compiled policies and all problems; no policies when one of the problems is an error."""
    compiler = _Compiler(mesh)
    loaded = _load(compiler, documents)
    policies = _compile(compiler, loaded)
    failed = any(problem.severity is Severity.ERROR for problem in compiler.problems)
    return (None if failed else policies), compiler.problems


def _load(compiler: _Compiler, documents: Sequence[Document]) -> list[_Loaded]:
    loaded: list[_Loaded] = []
    seen: dict[tuple[str, str, str], Document] = {}
    for document in _without_lists(documents):
        resource = _validate(compiler, document)
        if resource is None:
            continue
        key = (resource.kind, resource.metadata.namespace, resource.metadata.name)
        if key in seen:
            first = seen[key]
            where = f"{first.file}:{first.position(()).line}"
            compiler.problems.append(
                document.error(
                    ("metadata", "name"),
                    "duplicate_name",
                    f"there are two {resource.title}, the first at {where}",
                )
            )
            continue
        seen[key] = document
        loaded.append(_Loaded(resource, document))
    return loaded


def _without_lists(documents: Iterable[Document]) -> Iterable[Document]:
    for document in documents:
        if (
            isinstance(document.data, dict)
            and document.data.get("kind") == "List"
            and isinstance(document.data.get("items"), list)
        ):
            for index in range(len(document.data["items"])):
                yield document.part(("items", index))
        else:
            yield document


def _validate(compiler: _Compiler, document: Document) -> Resource | None:
    if not isinstance(document.data, dict):
        compiler.problems.append(document.error((), "dict_type", "expected a mapping with `kind`"))
        return None
    version, kind = document.data.get("apiVersion"), document.data.get("kind")
    model = KINDS.get((version, kind)) if isinstance(version, str) and isinstance(kind, str) else None
    if model is None:
        known = sorted({f"{name} ({group})" for group, name in KINDS})
        named = "`kind`" if kind is None else f"kind `{kind}` of `{version}`"
        message = f"{named} is missing" if kind is None else f"{named} is not known here"
        compiler.problems.append(
            document.error(("kind",), "unknown_kind", message, f"known: {', '.join(known)}")
        )
        return None
    result = validate(model, document)
    if isinstance(result, list):
        compiler.problems += result
        return None
    return result


def _compile(compiler: _Compiler, loaded: Sequence[_Loaded]) -> PolicySet:
    bindings: dict[tuple[str, str], list[_Loaded]] = defaultdict(list)
    subjects: dict[tuple[str, str], list[Subject]] = defaultdict(list)
    roles: dict[tuple[str, str], _Loaded] = {}
    tokens: list[TokenPolicy] = []
    for one in loaded:
        namespace = one.resource.metadata.namespace
        if isinstance(one.resource, ServiceRole):
            roles[namespace, one.resource.metadata.name] = one
        elif isinstance(one.resource, ServiceRoleBinding):
            key = (namespace, one.resource.spec.roleRef.name)
            bindings[key].append(one)
            subjects[key] += _subjects(compiler, one)
        elif isinstance(one.resource, RequestAuthentication):
            tokens.append(_token_policy(compiler, one))
    rules = [
        rule for key, one in roles.items() for rule in _rules(compiler, one, tuple(subjects.get(key, ())))
    ]
    rules.sort(key=lambda rule: (rule.policy, rule.index))
    enforcement = _enforcement(compiler, loaded)
    if not compiler.problems:  # a role that could not be read is not missing
        _warn_of_missing_roles(compiler, bindings, roles)
    return PolicySet(tuple(rules), tuple(tokens), enforcement, compiler.mesh.root_namespace)


def _warn_of_missing_roles(
    compiler: _Compiler,
    bindings: Mapping[tuple[str, str], Sequence[_Loaded]],
    roles: Mapping[tuple[str, str], _Loaded],
) -> None:
    for (namespace, name), granting in bindings.items():
        if (namespace, name) not in roles:
            message = f"namespace `{namespace}` has no ServiceRole `{name}`: nothing is granted"
            for one in granting:
                compiler.warn(one, ("spec", "roleRef", "name"), "missing_role", message)


def _rules(compiler: _Compiler, loaded: _Loaded, subjects: tuple[Subject, ...]) -> Iterable[Rule]:
    role = loaded.resource
    assert isinstance(role, ServiceRole)  # noqa: S101 - narrows the type for mypy; the caller sorted by kind
    for index, rule in enumerate(role.spec.rules):
        where: Field = ("spec", "rules", index)
        conditions = [
            condition
            for position, constraint in enumerate(rule.constraints)
            if (condition := _constraint(compiler, loaded, (*where, "constraints", position), constraint))
        ]
        decisions = tuple(
            allow(
                ReasonCode.ROLE_MATCHED,
                f"{role.title} rule {index} is granted by {subject.binding} {subject.field}",
                policy=role.title,
                rule=index,
                field_path=f"spec.rules[{index}]",
            )
            for subject in subjects
        )
        yield Rule(
            policy=role.title,
            namespace=role.metadata.namespace,
            index=index,
            services=compiler.strings(pattern.lower() for pattern in rule.services)
            if rule.services
            else None,
            destination=tuple(one for one in conditions if one.attribute in _DESTINATION_KEYS),
            methods=compiler.strings(rule.methods) if rule.methods else None,
            paths=compiler.strings(rule.paths) if rule.paths else None,
            constraints=tuple(one for one in conditions if one.attribute not in _DESTINATION_KEYS),
            subjects=subjects,
            decisions=decisions,
        )


def _constraint(
    compiler: _Compiler, loaded: _Loaded, where: Field, constraint: shape.Constraint
) -> Condition | None:
    key = _split_key(compiler, loaded, (*where, "key"), constraint.key, _CONSTRAINT_KEYS)
    if key is None:
        return None
    return _condition(compiler, loaded, (*where, "values"), key, constraint.values)


def _subjects(compiler: _Compiler, loaded: _Loaded) -> Iterable[Subject]:
    binding = loaded.resource
    assert isinstance(binding, ServiceRoleBinding)  # noqa: S101 - as above
    if binding.spec.mode == "PERMISSIVE":
        return  # "as if the binding did not exist"
    for index, subject in enumerate(binding.spec.subjects):
        where: Field = ("spec", "subjects", index)
        if subject.user is None and subject.group is None and not subject.properties:
            compiler.report(
                loaded,
                where,
                "empty_subject",
                "the subject names nobody",
                'for everybody, write `user: "*"`',
            )
            continue
        conditions: list[Condition] = []
        if subject.user is not None and subject.user != "*":
            conditions.append(_user(compiler, loaded, (*where, "user"), subject.user))
        if subject.group is not None:
            conditions.append(
                Condition(
                    "request.auth.claims",
                    "groups",
                    compiler.strings((subject.group,)),
                    every=False,
                    field=f"spec.subjects[{index}].group",
                )
            )
        for name, value in subject.properties.items():
            place = (*where, "properties", name)
            key = _split_key(compiler, loaded, place, name, _PROPERTY_KEYS)
            condition = _condition(compiler, loaded, place, key, (value,)) if key else None
            if condition is not None:
                conditions.append(condition)
        yield Subject(binding.title, f"spec.subjects[{index}]", tuple(conditions))


def _user(compiler: _Compiler, loaded: _Loaded, where: Field, user: str) -> Condition:
    namespace = loaded.resource.metadata.namespace
    if "/" in user or "*" in user:
        principals = _principals(compiler, loaded, where, user)
    else:
        principals = tuple(f"{domain}/ns/{namespace}/sa/{user}" for domain in compiler.mesh.trust_domains)
    return Condition(
        "source.principal",
        "",
        compiler.strings(principals),
        every=True,
        field=f"spec.subjects[{where[2]}].user",
    )


def _principals(compiler: _Compiler, loaded: _Loaded, where: Field, value: str) -> tuple[str, ...]:
    """Return what `value` stands for: our trust domains stand for each other (Istio 1.4, trustdomain)."""
    if value.startswith(SCHEME):
        hint = f"principals are written without `{SCHEME}`, so this matches nobody"
        compiler.warn(loaded, where, "principal_scheme", hint)
    domain, *rest = value.split("/")
    ours = compiler.mesh.trust_domains
    if len(rest) == 4 and (domain in ours or domain == _LOCAL_TRUST_DOMAIN):
        return tuple("/".join((name, *rest)) for name in ours)
    return (value,)


def _split_key(
    compiler: _Compiler, loaded: _Loaded, where: Field, key: str, known: frozenset[str]
) -> tuple[str, str] | None:
    """Return `request.headers[x-a]` as `("request.headers", "x-a")`; report keys that are not in `known`."""
    name, bracket, rest = key.partition("[")
    argument = rest[:-1] if rest.endswith("]") else ""
    if name not in known or (bool(bracket) and name not in _KEYS_WITH_ARGUMENT):
        compiler.report(
            loaded, where, "unknown_key", f"`{key}` is not known here", f"known: {', '.join(sorted(known))}"
        )
        return None
    if name in _KEYS_WITH_ARGUMENT and (not argument or "[" in argument or "]" in argument):
        compiler.report(loaded, where, "key_argument", f"`{key}` is not of the form `{name}[NAME]`")
        return None
    return name, argument


def _condition(
    compiler: _Compiler, loaded: _Loaded, where: Field, key: tuple[str, str], values: Sequence[str]
) -> Condition | None:
    attribute, argument = key
    matcher = _matcher(compiler, loaded, where, attribute, values)
    if matcher is None:
        return None
    if attribute == "request.headers":
        argument = argument.lower()
    if attribute == "source.user":
        attribute = "source.principal"
    every = not attribute.startswith("request.auth.")
    place = ".".join(str(part) for part in where[:1]) + "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in where[1:]
    )
    return Condition(attribute, argument, matcher, every, place)


def _matcher(
    compiler: _Compiler, loaded: _Loaded, where: Field, attribute: str, values: Sequence[str]
) -> Matcher | None:
    if attribute in _ADDRESS_KEYS:
        for value in values:
            try:
                AddressMatcher.of((value,))
            except ValueError:
                compiler.report(
                    loaded,
                    where,
                    "address",
                    f"`{value}` is neither an IP address nor a CIDR without host bits",
                )
                return None
        return AddressMatcher.of(values)
    if attribute == "destination.port":
        for value in values:
            if not (value.isascii() and value.isdigit() and int(value) <= 65535):
                compiler.report(loaded, where, "port", f"`{value}` is not a port")
                return None
        return compiler.strings(str(int(value)) for value in values)
    if attribute == "source.namespace":
        for value in values:
            if "*" in value[1:-1] or (len(value) > 1 and value[0] == value[-1] == "*"):
                compiler.report(loaded, where, "pattern", f"`{value}` has a `*` that is not at one end")
                return None
    if attribute in {"source.principal", "source.user"}:
        return compiler.strings(
            principal for value in values for principal in _principals(compiler, loaded, where, value)
        )
    return compiler.strings(values)


def _enforcement(compiler: _Compiler, loaded: Sequence[_Loaded]) -> Enforcement:
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
        compiler.report(
            one, ("spec",), "missing_field", f"`{name}` cannot be absent", f"use `{name}: {{}}` for none"
        )
    return Enforcement(
        policy=one.resource.title,
        mode=spec.mode,
        services=frozenset(service.lower() for service in target.services) if target else frozenset(),
        namespaces=frozenset(target.namespaces) if target else frozenset(),
        permissive=spec.enforcement_mode == "PERMISSIVE",
    )


def _token_policy(compiler: _Compiler, loaded: _Loaded) -> TokenPolicy:
    authentication = loaded.resource
    assert isinstance(authentication, RequestAuthentication)  # noqa: S101 - as above
    rules: list[JwtRule] = []
    for index, rule in enumerate(authentication.spec.jwtRules):
        try:
            keys = parse_jwks(rule.jwks)
        except KeySetError as error:
            compiler.report(loaded, ("spec", "jwtRules", index, "jwks"), "jwks", f"the key set {error}")
            continue
        explicit = bool(rule.fromHeaders or rule.fromParams)
        headers = tuple(TokenHeader(header.name.lower(), header.prefix) for header in rule.fromHeaders)
        rules.append(
            JwtRule(
                policy=authentication.title,
                issuer=rule.issuer,
                audiences=frozenset(rule.audiences),
                keys=keys,
                headers=headers if explicit else DEFAULT_HEADERS,
                parameters=tuple(rule.fromParams) if explicit else DEFAULT_PARAMETERS,
                forward=rule.forwardOriginalToken,
            )
        )
    labels = tuple(sorted(authentication.spec.selector.matchLabels.items()))
    return TokenPolicy(authentication.metadata.namespace, labels, tuple(rules))
