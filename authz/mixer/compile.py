"""Documents -> compiled rules. Every problem is a diagnostic at its place; nothing is half applied."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import TypeVar

from pydantic import BaseModel

from authz.mixer import documents as shape
from authz.mixer.attributes import KNOWN_TOO_LATE, OF_DESTINATION, VOCABULARY
from authz.mixer.expression import Expression, ExpressionError, ValueType, compile_expression
from authz.mixer.expression.tree import Logic, attributes_of
from authz.mixer.lists import EntryList, EntryType, ListError, ListSource, build_entries
from authz.mixer.loaded import Key, Loaded, spelled
from authz.mixer.quota_compile import compile_bindings, compile_limits
from authz.mixer.quotas import QuotaAction, QuotaAdapter
from authz.mixer.rules import (
    Action,
    Denier,
    DirectResponse,
    Handler,
    HeaderTemplate,
    Instance,
    ListChecker,
    MixerPolicies,
    Rule,
)
from authz.policy.documents.kubernetes import Resource
from garrison.documents import Diagnostic, Document, Field, Position, Severity, validate
from garrison.urls import check_url

Model = TypeVar("Model", bound=BaseModel)

# Which templates an adapter takes (section 2.7 of Mixer's adapters).
_TEMPLATES = {
    "denier": frozenset({"checknothing", "listentry", "quota"}),
    "listchecker": frozenset({"listentry"}),
    "memquota": frozenset({"quota"}),
    "redisquota": frozenset({"quota"}),
}
# `list` is the name of listchecker's directory, and some wrote that.
_ADAPTERS = {**{name: name for name in _TEMPLATES}, "list": "listchecker"}
# Fields of templates that `<action>.output.<field>` could name: none of the templates here has any.
_OUTPUTS: Mapping[str, frozenset[str]] = {
    "checknothing": frozenset(),
    "listentry": frozenset(),
    "quota": frozenset(),
}
# What a list can be asked about: text, and types whose value has one spelling.
_LISTED = frozenset(
    {
        ValueType.STRING,
        ValueType.IP_ADDRESS,
        ValueType.DNS_NAME,
        ValueType.EMAIL_ADDRESS,
        ValueType.URI,
    }
)
# RFC 9110, section 5.6.2.
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
# Headers by which HTTP itself works; Envoy owns them.
_PROTECTED = frozenset(
    {
        "host",
        "connection",
        "content-length",
        "transfer-encoding",
        "te",  # codespell:ignore te
        "trailer",
        "upgrade",
        "keep-alive",
    }
)
# `MovedPermanently` for 301, as istio.policy.v1beta1.HttpStatusCode spells codes.
_HTTP_CODES = {re.sub(r"[^A-Za-z]", "", status.phrase).lower(): status.value for status in HTTPStatus}
# An expression that starts so, or holds this, cannot be an unquoted scalar: its column is not known.
_NOT_PLAIN = re.compile(r"""^["'`|>@%&*!?\[\]{},#-]|: |:$| #|\n""")


def compile_mixer(
    loaded: Iterable[tuple[Resource, Document]], root_namespace: str, *, has_shared_store: bool | None = None
) -> tuple[MixerPolicies | None, list[Diagnostic]]:
    """Return the compiled rules and all problems; no rules when one of the problems is an error.

    `loaded` are validated documents with the YAML they came from; kinds of other groups are left alone.
    `has_shared_store` tells whether counts are shared (None: nobody knows here).
    """
    known = [Loaded(resource, document) for resource, document in loaded]
    compiler = _Compiler(
        [one for one in known if one.resource.apiVersion == shape.API_VERSION], has_shared_store
    )
    policies = compiler.compile(root_namespace)
    failed = any(problem.severity is Severity.ERROR for problem in compiler.problems)
    return (None if failed else policies), compiler.problems


@dataclass(slots=True)
class _Compiler:
    loaded: list[Loaded]
    has_shared_store: bool | None = None
    problems: list[Diagnostic] = field(default_factory=list)
    types: dict[str, ValueType] = field(default_factory=lambda: dict(VOCABULARY))
    handlers: dict[Key, Handler | None] = field(default_factory=dict)
    instances: dict[Key, Instance | None] = field(default_factory=dict)
    # Names that may be used although nothing runs: they only report.
    silent: set[Key] = field(default_factory=set)

    def report(self, one: Loaded, where: Field, code: str, message: str, hint: str = "") -> None:
        self.problems.append(one.document.error(where, code, message, hint))

    def warn(self, one: Loaded, where: Field, code: str, message: str, hint: str = "") -> None:
        problem = one.document.error(where, code, message, hint)
        self.problems.append(replace(problem, severity=Severity.WARNING))

    def compile(self, root_namespace: str) -> MixerPolicies:
        for one in self.loaded:
            if isinstance(one.resource, shape.AttributeManifest):
                self._manifest(one, one.resource)
        # Limits speak of instances, so instances come first.
        for one in sorted(self.loaded, key=_is_handler):
            self._part(one)
        by_namespace: dict[str, list[Rule]] = defaultdict(list)
        for one in sorted(self.loaded, key=lambda one: one.key):
            if isinstance(one.resource, shape.Rule) and (rule := self._rule(one, one.resource)):
                by_namespace[rule.namespace].append(rule)
        sources = {
            handler.adapter.source
            for handler in self.handlers.values()
            if handler is not None and isinstance(handler.adapter, ListChecker) and handler.adapter.source
        }
        sent = {
            (namespace, action.quota.lower())
            for namespace, rules in by_namespace.items()
            for rule in rules
            for action in rule.quotas
        }
        bindings = compile_bindings(self, self.loaded, root_namespace, sent)
        return MixerPolicies(
            root_namespace,
            {namespace: tuple(rules) for namespace, rules in by_namespace.items()},
            self.types,
            frozenset(sources),
            bindings,
        )

    def _manifest(self, one: Loaded, manifest: shape.AttributeManifest) -> None:
        for name, info in manifest.spec.attributes.items():
            known = self.types.setdefault(name, info.value_type)
            if known is not info.value_type:
                where = spelled(one, ("spec", "attributes", name), "valueType")
                message = f"`{name}` is declared as {info.value_type} here and is {known} elsewhere"
                self.report(one, where, "attribute_type", message)

    def _part(self, one: Loaded) -> None:
        """Compile a handler or instance, or say that a kind is ignored or not supported."""
        resource = one.resource
        if isinstance(resource, shape.Unsupported):
            what = shape.UNSUPPORTED[resource.kind]
            message = f"kind `{resource.kind}` is not supported yet: no {what} from Mixer configuration"
            self.report(one, ("kind",), "unsupported_kind", message)
        elif isinstance(resource, shape.ReportOnly):
            self._ignore(one, resource.kind)
        elif isinstance(resource, shape.Handler):
            self._handler(one, resource.spec)
        elif isinstance(resource, shape.Instance):
            self._instance(one, resource.spec)
        elif isinstance(resource, shape.Denier):
            self._put(one, self._denier(one, resource.spec or shape.DenierParams(), ("spec",)))
        elif isinstance(resource, shape.ListChecker):
            self._put(one, self._list(one, resource.spec or shape.ListParams(), ("spec",)))
        elif isinstance(resource, shape.ListEntry):
            self.instances[one.key] = self._list_entry(one, resource.spec, ("spec",))
        elif isinstance(resource, shape.CheckNothing):
            self.instances[one.key] = Instance(one.full_name, "checknothing")
        elif isinstance(resource, shape.Quota):
            params = resource.spec or shape.QuotaParams()
            self.instances[one.key] = self._quota(one, params, ("spec",))
        elif isinstance(resource, shape.MemQuota | shape.RedisQuota):
            self._put(one, self._limits(one, resource.spec, ("spec",)))

    def _put(self, one: Loaded, adapter: Denier | ListChecker | QuotaAdapter | None) -> None:
        self.handlers[one.key] = None if adapter is None else Handler(one.full_name, adapter)

    def _ignore(self, one: Loaded, what: str) -> None:
        self.silent.add(one.key)
        message = f"`{what}` only reports: ignored"
        self.warn(one, ("kind",), "report_only", message, "metrics come from Envoy's access logs")

    def _handler(self, one: Loaded, spec: shape.HandlerSpec) -> None:
        self.handlers[one.key] = None  # known, so that references to it are no second error
        if spec.adapter or spec.connection is not None:
            where: Field = ("spec", "adapter" if spec.adapter else "connection")
            self.report(one, where, "unsupported_adapter", "adapters in other processes are not supported")
            return
        if spec.compiled_adapter in shape.REPORT_ADAPTERS:
            self._ignore(one, spec.compiled_adapter)
            return
        adapter = _ADAPTERS.get(spec.compiled_adapter)
        where = spelled(one, ("spec",), "compiledAdapter")
        if adapter == "denier":
            denier = self._params(one, shape.DenierParams)
            if denier is not None:
                self._put(one, self._denier(one, denier, ("spec", "params")))
        elif adapter == "listchecker":
            checker = self._params(one, shape.ListParams)
            if checker is not None:
                self._put(one, self._list(one, checker, ("spec", "params")))
        elif adapter == "memquota":
            memory = self._params(one, shape.MemQuotaParams)
            if memory is not None:
                self._put(one, self._limits(one, memory, ("spec", "params")))
        elif adapter == "redisquota":
            shared = self._params(one, shape.RedisQuotaParams)
            if shared is not None:
                self._put(one, self._limits(one, shared, ("spec", "params")))
        elif spec.compiled_adapter in shape.UNSUPPORTED:
            message = f"the adapter `{spec.compiled_adapter}` is not supported yet"
            self.report(one, where, "unsupported_adapter", message)
        else:
            message = f"unknown adapter `{spec.compiled_adapter}`"
            self.report(one, where, "unknown_adapter", message, f"known: {', '.join(sorted(_TEMPLATES))}")

    def _instance(self, one: Loaded, spec: shape.InstanceSpec) -> None:
        self.instances[one.key] = None
        if spec.attribute_bindings:
            where = spelled(one, ("spec",), "attributeBindings")
            message = "attribute bindings are not supported: no template here produces attributes"
            self.report(one, where, "unsupported_bindings", message)
            return
        template = spec.compiled_template or spec.template
        if template in shape.REPORT_TEMPLATES:
            self._ignore(one, template)
        elif template == "checknothing":
            if self._params(one, shape.CheckNothingParams) is not None:
                self.instances[one.key] = Instance(one.full_name, template)
        elif template == "listentry":
            entry = self._params(one, shape.ListEntryParams)
            if entry is not None:
                self.instances[one.key] = self._list_entry(one, entry, ("spec", "params"))
        elif template == "quota":
            quota = self._params(one, shape.QuotaParams)
            if quota is not None:
                self.instances[one.key] = self._quota(one, quota, ("spec", "params"))
        else:
            unsupported = template in shape.UNSUPPORTED
            where = spelled(one, ("spec",), "compiledTemplate")
            message = f"the template `{template}` is not {'supported yet' if unsupported else 'known here'}"
            code = "unsupported_template" if unsupported else "unknown_template"
            self.report(one, where, code, message, "known: checknothing, listentry, quota")

    def _params(self, one: Loaded, model: type[Model]) -> Model | None:
        """Return `spec.params` as the parameters of an adapter or template."""
        base: Field = ("spec", "params")
        if one.document.data["spec"].get("params") is None:
            result = validate(model, Document(one.document.file, {}))
        else:
            result = validate(model, one.document.part(base))
        if not isinstance(result, list):
            return result
        for problem in result:
            path = (*base, *problem.field)
            # Without `params` there is no position inside them.
            position = problem.position if problem.position != Position(1, 1) else one.document.position(base)
            self.problems.append(replace(problem, field=path, position=position))
        return None

    def _denier(self, one: Loaded, params: shape.DenierParams, base: Field) -> Denier | None:
        status = params.status
        direct: DirectResponse | None = None
        if status.details:
            direct = self._direct_response(one, status.details[0], (*base, "status", "details", 0))
            if direct is None:
                return None
        return Denier(status.code, status.message, params.valid_duration, params.valid_use_count, direct)

    def _direct_response(
        self, one: Loaded, detail: shape.DirectHttpResponse, base: Field
    ) -> DirectResponse | None:
        code = _HTTP_CODES.get(detail.code.lower()) if isinstance(detail.code, str) else detail.code
        if detail.code in {0, "", "Empty"}:
            code = 0
        if code is None or (code != 0 and not 200 <= code <= 599):
            self.report(one, (*base, "code"), "http_status", f"`{detail.code}` is not an HTTP status")
            return None
        for name, value in detail.headers.items():
            where = (*base, "headers", name)
            if not self._header_name(one, where, name):
                return None
            if _CONTROL.search(value):
                self.report(one, where, "header_value", "a header value has no control characters")
                return None
        return DirectResponse(code, detail.body, tuple(detail.headers.items()))

    def _list(self, one: Loaded, params: shape.ListParams, base: Field) -> ListChecker | None:
        before = len(self.problems)
        entry_type = EntryType(params.entry_type)
        overrides: EntryList | None = None
        try:
            overrides = build_entries(entry_type, params.overrides)
        except ListError as error:
            where: Field = (*base, "overrides") if error.entry < 0 else (*base, "overrides", error.entry)
            self.report(one, where, "list_entry", str(error))
        source: ListSource | None = None
        if params.provider_url:
            if problem := check_url(params.provider_url):
                self.report(one, spelled(one, base, "providerUrl"), "list_url", problem)
            if params.refresh_interval < shape.SECOND:
                where = spelled(one, base, "refreshInterval")
                self.report(one, where, "list_refresh", "the refresh interval is at least `1s`")
            if params.ttl < params.refresh_interval:
                self.report(one, (*base, "ttl"), "list_ttl", "the ttl is shorter than the refresh interval")
            source = ListSource(
                params.provider_url,
                entry_type,
                params.refresh_interval / shape.SECOND,
                params.ttl / shape.SECOND,
            )
        if overrides is None or len(self.problems) > before:
            return None
        return ListChecker(
            overrides, source, params.blacklist, params.caching_interval, params.caching_use_count
        )

    def _list_entry(self, one: Loaded, params: shape.ListEntryParams, base: Field) -> Instance | None:
        value = self.expression(one, (*base, "value"), params.value, _LISTED)
        return None if value is None else Instance(one.full_name, "listentry", value)

    def _quota(self, one: Loaded, params: shape.QuotaParams, base: Field) -> Instance | None:
        types = frozenset(ValueType) - {ValueType.STRING_MAP}
        found = {
            name: self.expression(one, (*base, "dimensions", name), text, types)
            for name, text in params.dimensions.items()
        }
        if None in found.values():
            return None
        dimensions = tuple((name, value) for name, value in found.items() if value is not None)
        return Instance(one.full_name, "quota", dimensions=dimensions)

    def _limits(
        self, one: Loaded, params: shape.MemQuotaParams | shape.RedisQuotaParams, base: Field
    ) -> QuotaAdapter | None:
        if isinstance(params, shape.RedisQuotaParams):
            if self.has_shared_store is False:
                message = "a redisquota counts for all replicas, and the settings name no `rate_limit.redis`"
                self.report(one, base, "no_shared_store", message, "a memquota counts in one process")
            if params.redis_server_url:
                where = spelled(one, base, "redisServerUrl")
                message = "this is not used: counts are where the setting `rate_limit.redis` says"
                self.warn(one, where, "unused_redis_url", message)
        elif not params.min_deduplication_duration:
            where = spelled(one, base, "minDeduplicationDuration")
            self.report(one, where, "quota_duration", "a duration for deduplication is longer than `0s`")
        names: dict[str, Instance | None] = {}
        for limit in params.quotas:
            key = self._find(one, limit.name, "instance", self.instances)
            names[limit.name] = self.instances[key] if key is not None else None
        return compile_limits(self, one, params, base, names)

    def _rule(self, one: Loaded, rule: shape.Rule) -> Rule | None:
        spec = rule.spec
        before = len(self.problems)
        found = [
            action for index, given in enumerate(spec.actions) if (action := self._action(one, index, given))
        ]
        quotas = [
            quota
            for action in found
            for instance in action.instances
            if instance.template == "quota" and (quota := self._quota_action(one, action, instance))
        ]
        actions = [action for one in found if (action := one.without("quota")).instances or not one.instances]
        outputs = {f"{given.name}.output.": given for given in spec.actions if given.name}
        request = self._headers(one, "requestHeaderOperations", spec.request_header_operations, outputs)
        response = self._headers(one, "responseHeaderOperations", spec.response_header_operations, outputs)
        late = not (actions or quotas or request or response)
        match: Expression | None = None
        if spec.match.strip():
            match = self.expression(one, ("spec", "match"), spec.match, {ValueType.BOOL}, late=late)
        if len(self.problems) > before:
            return None
        if late:
            if not spec.actions:
                self.warn(one, ("spec",), "no_effect", "the rule has no actions and no header operations")
            return None
        if spec.sampling is not None:
            self.report(one, ("spec", "sampling"), "sampling", "checks are not sampled: each call is checked")
            return None
        return Rule(
            rule.title,
            rule.metadata.namespace,
            match,
            _selectors(match),
            tuple(actions),
            tuple(request),
            tuple(response),
            tuple(quotas),
        )

    def _quota_action(self, one: Loaded, action: Action, instance: Instance) -> QuotaAction | None:
        definition = None
        if isinstance(action.handler.adapter, QuotaAdapter):
            definition = action.handler.adapter.quotas.get(instance.name)
            if definition is None:
                message = f"`{action.handler.name}` has no limit for `{instance.name}`"
                where: Field = ("spec", "actions", action.index)
                self.report(one, where, "no_quota_limit", message, "name it in the handler's `quotas`")
                return None
        name = instance.name.rsplit(".", 2)[0]
        return QuotaAction(
            action.index, name, action.handler.name, instance.name, instance.dimensions, definition
        )

    def _action(self, one: Loaded, index: int, action: shape.Action) -> Action | None:
        base: Field = ("spec", "actions", index)
        key = self._resolve(one, (*base, "handler"), action.handler, "handler")
        if key in self.silent:
            return None
        handler = self.handlers[key] if key is not None else None
        found = [
            instance
            for position, name in enumerate(action.instances)
            if (instance := self._bound(one, (*base, "instances", position), name, handler))
        ]
        if not action.instances:
            self.report(one, base, "no_instances", f"`{action.handler}` gets no instance, so it never runs")
        return None if handler is None else Action(index, handler, tuple(found))

    def _bound(self, one: Loaded, where: Field, name: str, handler: Handler | None) -> Instance | None:
        key = self._resolve(one, where, name, "instance")
        if key is None:
            return None
        adapter = _adapter_name(handler)
        instance = self.instances.get(key)
        template = key[0] if instance is None else instance.template
        wrong = key in self.silent or (instance is not None and template not in _TEMPLATES[adapter])
        if handler is not None and wrong:
            takes = ", ".join(sorted(_TEMPLATES[adapter]))
            message = f"`{handler.name}` is a {adapter} and takes no {template}"
            self.report(one, where, "wrong_template", message, f"it takes: {takes}")
            return None
        return instance

    def _resolve(self, one: Loaded, where: Field, name: str, what: str) -> tuple[str, str, str] | None:
        """Return the key that `name` stands for: `name`, `name.kind`, `name.kind.namespace`."""
        known = self.silent | (self.handlers if what == "handler" else self.instances).keys()
        key = self._find(one, name, what, known)
        if key is not None:
            return key
        candidates = _candidates(one, name, what)
        if any(
            key in candidates for key in ((*one.key,) for one in self.loaded) if key[0] in shape.UNSUPPORTED
        ):
            return None  # it has a diagnostic of its own
        names = sorted(f"{key[2]}.{key[0]}.{key[1]}" for key in known)
        hint = f"known: {', '.join(names[:10])}" if names else ""
        self.report(one, where, f"unknown_{what}", f"unknown {what} `{name}`", hint)
        return None

    def _find(self, one: Loaded, name: str, what: str, known: Container[Key]) -> Key | None:
        return next((key for key in _candidates(one, name, what) if key in known), None)

    def _headers(
        self,
        one: Loaded,
        name: str,
        operations: list[shape.HeaderOperation],
        outputs: Mapping[str, shape.Action],
    ) -> list[HeaderTemplate]:
        found: list[HeaderTemplate] = []
        base = spelled(one, ("spec",), name)
        for index, operation in enumerate(operations):
            where = (*base, index)
            if not self._header_name(one, (*where, "name"), operation.name):
                continue
            if (operation.operation == "REMOVE") is bool(operation.values):
                needs = "takes no values" if operation.values else "needs a value"
                self.report(one, where, "header_values", f"{operation.operation} {needs}")
                continue
            values = [
                self._header_value(one, (*where, "values", position), text, outputs)
                for position, text in enumerate(operation.values)
            ]
            compiled = tuple(value for value in values if value is not None)
            found.append(HeaderTemplate(operation.name.lower(), operation.operation, compiled))
        return found

    def _header_value(
        self, one: Loaded, where: Field, text: str, outputs: Mapping[str, shape.Action]
    ) -> Expression | None:
        for prefix, action in outputs.items():
            if prefix in text:
                templates = ", ".join(sorted(_OUTPUTS))
                message = f"the instances of action `{action.name}` have no output"
                self.report(one, where, "no_output", message, f"none of these templates has: {templates}")
                return None
        return self.expression(one, where, text, {ValueType.STRING})

    def _header_name(self, one: Loaded, where: Field, name: str) -> bool:
        if _TOKEN.fullmatch(name) and name.lower() not in _PROTECTED:
            return True
        reason = (
            "is set by Envoy alone" if name.lower() in _PROTECTED or name[:1] == ":" else "is no header name"
        )
        self.report(one, where, "header_name", f"`{name}` {reason}")
        return False

    def expression(
        self, one: Loaded, where: Field, text: str, wanted: Iterable[ValueType], *, late: bool = False
    ) -> Expression | None:
        try:
            expression = compile_expression(text, self.types)
        except ExpressionError as error:
            document = one.document
            position = _inside(document.position(where), text, error.column)
            message = f"{error.message} (character {error.column} of the expression)"
            self.problems.append(Diagnostic(document.file, position, where, error.code, message, error.help))
            return None
        if expression.type not in wanted:
            kinds = " or ".join(sorted(wanted))
            self.report(one, where, "expression_type", f"expected {kinds}, this is {expression.type}")
            return None
        too_late = sorted(expression.attributes & KNOWN_TOO_LATE)
        if too_late and not late:
            self.report(one, where, "known_too_late", f"`{too_late[0]}` is not known when a call is checked")
            return None
        return expression


def _candidates(one: Loaded, name: str, what: str) -> list[Key]:
    """Return the keys that `name` may stand for: `name`, `name.kind`, `name.kind.namespace`."""
    own = one.resource.metadata.namespace
    candidates = [(what, own, name)]
    first, _, last = name.rpartition(".")
    if first:
        candidates += [(last, own, first), (what, last, first)]
        middle, _, kind = first.rpartition(".")
        if middle:
            candidates.insert(0, (kind, last, middle))
    return candidates


def _is_handler(one: Loaded) -> bool:
    return isinstance(one.resource, shape.Handler | shape.MemQuota | shape.RedisQuota)


def _adapter_name(handler: Handler | None) -> str:
    adapter = handler.adapter if handler is not None else None
    if isinstance(adapter, Denier):
        return "denier"
    return adapter.kind if isinstance(adapter, QuotaAdapter) else "listchecker"


def _inside(position: Position, text: str, column: int) -> Position:
    """Return the position of a character of an expression, if it stands in the YAML as it is."""
    if _NOT_PLAIN.search(text):
        return position
    return Position(position.line, position.column + column - 1)


def _selectors(match: Expression | None) -> tuple[Expression, ...]:
    """Return the parts of a conjunction that are the same for all calls to a destination."""
    if match is None:
        return ()
    tree = match.tree
    parts = tree.operands if isinstance(tree, Logic) and not tree.deciding else (tree,)
    found = [(part, frozenset(attributes_of(part))) for part in parts]
    return tuple(
        Expression(match.text, ValueType.BOOL, part, names)
        for part, names in found
        if names <= OF_DESTINATION
    )
