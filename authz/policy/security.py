"""`security.istio.io`: AuthorizationPolicy, with today's semantics.

Which values of an attribute a condition looks at depends on which way it leans. Where a match would allow, it
must hold for the attribute as it was sent, in every value. Where a match would deny, any value suffices, and
spellings that an upstream may take for the same thing count as well: `<attribute>.any` in
`authz.attributes` (a host without its port, a path without matrix parameters).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from authz.decision import Decision, ReasonCode, allow, deny
from authz.policy.compile import Compiler, Loaded, place
from authz.policy.documents import AuthorizationPolicy
from authz.policy.documents import security as shape
from authz.policy.documents.credentials import CredentialAuthenticationSpec
from authz.policy.documents.rate_limits import RateLimitPolicySpec
from authz.policy.matchers import (
    Condition,
    EitherMatcher,
    GlobMatcher,
    Matcher,
    MetadataMatcher,
    RequestPrincipalMatcher,
    StringMatcher,
    TemplateMatcher,
)
from authz.policy.rules import ANYTHING, Action, Alternative, Policy, Rule, Selector
from garrison.documents import Field

DRY_RUN = "istio.io/dry-run"
# Go's ParseBool.
_DRY_RUN_VALUES = {
    **dict.fromkeys(("1", "t", "T", "true", "True", "TRUE"), True),
    **dict.fromkeys(("0", "f", "F", "false", "False", "FALSE"), False),
}

# Field of a source or operation -> attribute that it reads.
_SOURCE_FIELDS = {
    "principals": "source.principal",
    "requestPrincipals": "request.auth.pair",
    "namespaces": "source.namespace",
    "serviceAccounts": "source.serviceAccount",
    "trustDomains": "source.trustDomain",
    "ipBlocks": "source.ip",
    "remoteIpBlocks": "remote.ip",
}
_OPERATION_FIELDS = {
    "hosts": "request.host",
    "ports": "destination.port",
    "methods": "request.method",
    "paths": "request.path",
}
_WHEN_KEYS = frozenset(
    {
        "request.headers",
        "source.ip",
        "remote.ip",
        "destination.ip",
        "source.namespace",
        "source.principal",
        "source.serviceAccount",
        "source.trustDomain",
        "request.auth.principal",
        "request.auth.audiences",
        "request.auth.presenter",
        "request.auth.claims",
        "destination.port",
        "connection.sni",
        "experimental.envoy.filters",
    }
)
_WITH_ARGUMENT = frozenset({"request.headers", "request.auth.claims"})
_MAX_SERVICE_ACCOUNTS = 16  # in one list, as in Istio
# Attributes of which a denying condition looks at more readings.
_HAS_ANY = frozenset(
    {
        "remote.ip",
        "request.headers",
        "request.host",
        "request.path",
        "source.namespace",
        "source.principal",
        "source.serviceAccount",
        "source.trustDomain",
    }
)
# Attributes with several values of which one is meant: claims, and metadata of other filters.
_LISTS = ("request.auth.", "experimental.")
# CUSTOM runs before tokens are looked at and without identities (Istio, reference of `action`).
_NOT_FOR_CUSTOM = (
    "request.auth.",
    "source.principal",
    "source.namespace",
    "source.serviceAccount",
    "source.trustDomain",
)


def compile_authorization(compiler: Compiler, loaded: Loaded, policy: AuthorizationPolicy) -> Policy:
    """Return the compiled AuthorizationPolicy."""
    return _Authorization(compiler, loaded, policy).compile()


def refuse_dry_run(compiler: Compiler, loaded: Loaded) -> None:
    """Report a document of another kind that is marked as to be tried: it would be in force."""
    if DRY_RUN in loaded.resource.metadata.annotations:
        where = ("metadata", "annotations", DRY_RUN)
        compiler.report(loaded, where, "dry_run", "only an AuthorizationPolicy can be tried out")


class _Authorization:
    """Compiles one AuthorizationPolicy."""

    def __init__(self, compiler: Compiler, loaded: Loaded, policy: AuthorizationPolicy) -> None:
        self._compiler = compiler
        self._loaded = loaded
        self._policy = policy
        self._action = Action(policy.spec.action)

    def compile(self) -> Policy:
        self._check_shape()
        spec = self._policy.spec
        rules, tcp = [], []
        for index, rule in enumerate(spec.rules):
            compiled = self._rule(index, rule)
            rules.append(compiled)
            if (connection := self._for_tcp(compiled)) is not None:
                tcp.append(connection)
        return Policy(
            self._policy.title,
            selector_of(self._compiler, self._loaded, spec, self._policy.metadata.namespace),
            self._action,
            tuple(rules),
            tuple(tcp),
            shadow=self._is_dry_run(),
        )

    def _check_shape(self) -> None:
        spec = self._policy.spec
        custom = self._action is Action.CUSTOM
        if custom and spec.provider is None:
            self._report(("spec",), "missing_field", "CUSTOM needs a `provider`")
        if not custom and spec.provider is not None:
            self._report(("spec", "provider"), "exclusive", "only CUSTOM has a provider")
        if custom and spec.provider is not None and spec.provider.name not in self._compiler.mesh.providers:
            # Istio: requests that match are denied. They are here, too; the operator should know.
            message = f"no provider `{spec.provider.name}` in the settings: what matches is denied"
            where = ("spec", "provider", "name")
            self._compiler.warn(self._loaded.document, where, "unknown_provider", message)
        if self._action in {Action.DENY, Action.CUSTOM} and not spec.rules:
            self._report(("spec",), "missing_field", f"{self._action} needs `rules`")

    def _is_dry_run(self) -> bool:
        text = self._policy.metadata.annotations.get(DRY_RUN)
        if text is None:
            return False
        where = ("metadata", "annotations", DRY_RUN)
        if text not in _DRY_RUN_VALUES:
            self._report(where, "dry_run", f"`{text}` is neither true nor false")
        elif self._action in {Action.AUDIT, Action.CUSTOM}:
            self._report(where, "dry_run", "only ALLOW and DENY can be tried without being enforced")
        return _DRY_RUN_VALUES.get(text, False)

    def _rule(self, index: int, rule: shape.AuthorizationRule) -> Rule:
        where: Field = ("spec", "rules", index)
        sources = tuple(
            Alternative(place(at := (*where, "from", number, "source")), tuple(self._source(at, one.source)))
            for number, one in enumerate(rule.from_ or ())
        )
        operations = tuple(
            Alternative(
                place(at := (*where, "to", number, "operation")), tuple(self._operation(at, one.operation))
            )
            for number, one in enumerate(rule.to or ())
        )
        when = tuple(
            condition
            for number, one in enumerate(rule.when or ())
            for condition in self._when((*where, "when", number), one)
        )
        sources = sources or ANYTHING
        return Rule(
            policy=self._policy.title,
            index=index,
            action=self._action,
            operations=operations or ANYTHING,
            sources=sources,
            when=when,
            decisions=tuple(self._decision(index, source) for source in sources),
            provider=self._policy.spec.provider.name if self._policy.spec.provider else "",
        )

    def _decision(self, index: int, source: Alternative) -> Decision:
        title, where = self._policy.title, f"spec.rules[{index}]"
        make = deny if self._action in {Action.DENY, Action.CUSTOM} else allow
        code = ReasonCode.DENY_MATCHED if make is deny else ReasonCode.POLICY_MATCHED
        by = f" by {source.field}" if source.field else ""
        verb = {
            Action.ALLOW: "allows",
            Action.DENY: "denies",
            Action.AUDIT: "audits",
            Action.CUSTOM: "delegates",
        }
        reason = f"{title} rule {index} {verb[self._action]} it{by}"
        return make(code, reason, policy=title, rule=index, field_path=where)

    def _source(self, where: Field, source: shape.Source) -> Iterable[Condition]:
        if source == shape.Source():
            self._report(where, "empty", "the source is empty")
        accounts = source.serviceAccounts or source.notServiceAccounts
        if accounts and (
            source.principals or source.notPrincipals or source.namespaces or source.notNamespaces
        ):
            self._report(where, "exclusive", "`serviceAccounts` excludes `principals` and `namespaces`")
        yield from self._fields(where, source, _SOURCE_FIELDS)

    def _operation(self, where: Field, operation: shape.Operation) -> Iterable[Condition]:
        if operation == shape.Operation():
            self._report(where, "empty", "the operation is empty")
        yield from self._fields(where, operation, _OPERATION_FIELDS)

    def _fields(
        self, where: Field, holder: shape.Source | shape.Operation, fields: dict[str, str]
    ) -> Iterable[Condition]:
        for name, attribute in fields.items():
            for spelled, negated in ((name, False), (f"not{name[0].upper()}{name[1:]}", True)):
                values = getattr(holder, spelled)
                if values:
                    yield from self._conditions(
                        (*where, spelled), attribute, "", values, spelled, negated=negated
                    )

    def _when(self, where: Field, when: shape.When) -> Iterable[Condition]:
        if not when.values and not when.notValues:
            self._report(where, "missing_field", "a condition needs `values` or `notValues`")
        key = self._compiler.split_key(self._loaded, (*where, "key"), when.key, _WHEN_KEYS, _WITH_ARGUMENT)
        if key is None:
            return
        attribute = "request.auth.pair" if key[0] == "request.auth.principal" else key[0]
        for spelled, values, negated in (
            ("values", when.values, False),
            ("notValues", when.notValues, True),
        ):
            if values:
                at = (*where, spelled)
                yield from self._conditions(at, attribute, key[1], values, when.key, negated=negated)

    def _conditions(
        self, where: Field, attribute: str, argument: str, values: Sequence[str], name: str, *, negated: bool
    ) -> Iterable[Condition]:
        if self._action is Action.CUSTOM and attribute.startswith(_NOT_FOR_CUSTOM):
            self._report(where, "not_for_custom", f"`{name}` is not known when CUSTOM is decided")
            return
        # Does a match of this condition lean towards denying the call?
        denies = (self._action is not Action.ALLOW) is not negated
        matcher = self._matcher(where, attribute, values, denies=denies)
        if matcher is None:
            return
        if denies and attribute in _HAS_ANY:
            attribute += ".any"
        every = not denies and not attribute.startswith(_LISTS)
        yield Condition(attribute, argument, matcher, every, place(where), negated, name)

    def _matcher(
        self, where: Field, attribute: str, values: Sequence[str], *, denies: bool
    ) -> Matcher | None:
        compiler, loaded = self._compiler, self._loaded
        if attribute in {"source.ip", "remote.ip", "destination.ip"}:
            return compiler.addresses(loaded, where, values)
        if attribute == "destination.port":
            return compiler.ports(loaded, where, values)
        match attribute:
            case "source.principal":
                return compiler.principals(loaded, where, values, denies=denies, patterns=True)
            case "source.namespace":
                # Plain patterns can be looked up; a star in the middle cannot.
                plain = all(value.count("*") <= 1 and "*" not in value[1:-1] for value in values)
                return compiler.strings(values) if plain else GlobMatcher.of(values)
            case "source.serviceAccount":
                return self._service_accounts(where, values)
            case "source.trustDomain":
                return self._trust_domains(where, values)
            case "request.auth.pair":
                return RequestPrincipalMatcher.of(values)
            case "experimental.envoy.filters":
                return MetadataMatcher.of(values)
            case "request.host" | "connection.sni":
                return compiler.strings(value.lower() for value in values)
            case "request.path":
                return self._paths(where, values, denies=denies)
            case _:
                return compiler.strings(values)

    def _service_accounts(self, where: Field, values: Sequence[str]) -> Matcher | None:
        if len(values) > _MAX_SERVICE_ACCOUNTS:
            message = f"there can be {_MAX_SERVICE_ACCOUNTS} service accounts, not {len(values)}"
            self._report(where, "service_account", message)
        for number, value in enumerate(values):
            if "*" in value or value.count("/") > 1 or len(value) > 320 or not all(value.split("/")):
                message = f"`{value}` is neither `ACCOUNT` nor `NAMESPACE/ACCOUNT`"
                self._report((*where, number), "service_account", message)
                return None
        namespace = self._policy.metadata.namespace
        return StringMatcher(frozenset(value if "/" in value else f"{namespace}/{value}" for value in values))

    def _trust_domains(self, where: Field, values: Sequence[str]) -> Matcher | None:
        for number, value in enumerate(values):
            if "/" in value or value.count("*") > 1 or "*" in value[1:-1]:
                self._report((*where, number), "trust_domain", f"`{value}` is no trust domain")
                return None
        ours = self._compiler.mesh.trust_domains
        found = [name for value in values for name in (ours if value in ours else (value,))]
        return self._compiler.strings(found)

    def _paths(self, where: Field, values: Sequence[str], *, denies: bool) -> Matcher | None:
        templates = [value for value in values if "{" in value or "}" in value]
        if not templates:
            return self._compiler.strings(values)
        for number, value in enumerate(values):
            try:
                TemplateMatcher.of([value] if value in templates else [])
            except ValueError as error:
                self._report((*where, number), "path_template", str(error))
                return None
        matcher = TemplateMatcher.of(templates, wide=denies)
        others = [value for value in values if value not in templates]
        return EitherMatcher((self._compiler.strings(others), matcher)) if others else matcher

    def _for_tcp(self, rule: Rule) -> Rule | None:
        """Return the rule for connections that are not HTTP (Istio: less is allowed, more is denied)."""
        alternatives = (*rule.operations, *rule.sources)
        http = any(_is_http(one) for alternative in alternatives for one in alternative.conditions)
        if self._action is Action.ALLOW:
            return None if http or any(_is_http(one) for one in rule.when) else rule
        return Rule(
            policy=rule.policy,
            index=rule.index,
            action=rule.action,
            operations=tuple(_without_http(alternative) for alternative in rule.operations),
            sources=tuple(_without_http(alternative) for alternative in rule.sources),
            when=tuple(one for one in rule.when if not _is_http(one)),
            decisions=rule.decisions,
            provider=rule.provider,
        )

    def _report(self, where: Field, code: str, message: str, hint: str = "") -> None:
        self._compiler.report(self._loaded, where, code, message, hint)


def _is_http(condition: Condition) -> bool:
    return condition.attribute.startswith("request.")


def _without_http(alternative: Alternative) -> Alternative:
    return Alternative(
        alternative.field,
        tuple(one for one in alternative.conditions if not _is_http(one)),
        alternative.origin,
    )


def selector_of(
    compiler: Compiler,
    loaded: Loaded,
    spec: shape.AuthorizationPolicySpec
    | shape.RequestAuthenticationSpec
    | CredentialAuthenticationSpec
    | RateLimitPolicySpec,
    namespace: str,
) -> Selector:
    """Return the workloads that `selector` or `targetRefs` name."""
    references = spec.targetRefs or ([spec.targetRef] if spec.targetRef else [])
    if sum((spec.selector is not None, spec.targetRef is not None, bool(spec.targetRefs))) > 1:
        message = "only one of `selector`, `targetRef` and `targetRefs` can be there"
        compiler.report(loaded, ("spec",), "exclusive", message)
    for number, reference in enumerate(references):
        where = ("spec", "targetRefs", number) if spec.targetRefs else ("spec", "targetRef")
        if reference.namespace:
            compiler.report(loaded, (*where, "namespace"), "target", "a target has no namespace")
        if reference.group != _GROUPS[reference.kind] and not (
            reference.kind == "Service" and reference.group == "core"
        ):
            message = f"the group of a {reference.kind} is `{_GROUPS[reference.kind]}`"
            compiler.report(loaded, (*where, "group"), "target", message)
        if reference.kind == "GatewayClass" and namespace != compiler.mesh.root_namespace:
            message = f"a GatewayClass is a target only in namespace `{compiler.mesh.root_namespace}`"
            compiler.report(loaded, where, "target", message)
    labels = spec.selector.matchLabels if spec.selector else {}
    for name, value in labels.items():
        if "*" in name + value:
            compiler.report(
                loaded, ("spec", "selector", "matchLabels", name), "selector", "labels have no wildcards"
            )
    return Selector(
        namespace,
        any_namespace=namespace == compiler.mesh.root_namespace,
        labels=tuple(sorted(labels.items())),
        targets=tuple((reference.kind, reference.name) for reference in references),
    )


_GROUPS = {
    "Gateway": "gateway.networking.k8s.io",
    "GatewayClass": "gateway.networking.k8s.io",
    "Service": "",
    "ServiceEntry": "networking.istio.io",
}
