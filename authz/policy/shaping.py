"""`ResponsePolicy`: documents -> compiled shapes -> what one answer changes.

A template names attributes as policies do: `${source.principal}`, `${request.headers[x-a]}`. What is absent
is never an empty header that an upstream might believe: a header whose value needs an absent attribute is
removed instead, so a copy that the client sent does not get through either. So is a query parameter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from authz.attributes import ATTRIBUTES, Attributes
from authz.decision import Decision, HeaderAction, HeaderMutation, Outcome
from authz.policy.compile import Compiler, Loaded
from authz.policy.documents import response as shape
from authz.policy.documents.response import ResponsePolicy
from authz.policy.rules import Selector
from garrison.documents import Field

_EXPRESSION = re.compile(r"\$\{([^{}]*)\}")
_ATTRIBUTE = re.compile(r"([a-z.A-Z]+)(?:\[([^\[\]]+)\])?")
_WITH_ARGUMENT = frozenset({"destination.labels", "request.headers", "request.auth.claims"})
REASON = "reason"
# Of these an upstream or Envoy itself makes routing out of what a caller might have chosen.
_NOT_OURS = frozenset({"host", "content-length", "transfer-encoding", "connection"})


@dataclass(frozen=True, slots=True)
class Template:
    """Text with attributes in it: literals, and `(attribute, argument)` between them."""

    parts: tuple[str | tuple[str, str], ...]

    def fill(self, attributes: Attributes, reason: str = "") -> str | None:
        """Return the text for a call; None when an attribute is absent."""
        text = ""
        for part in self.parts:
            if isinstance(part, str):
                text += part
            elif part == (REASON, ""):
                text += reason
            else:
                values = attributes.values(*part)
                if not values:
                    return None
                text += ",".join(values)
        return text


@dataclass(frozen=True, slots=True)
class Change:
    """A header and what it becomes."""

    name: str
    value: Template
    action: HeaderAction


@dataclass(frozen=True, slots=True)
class DeniedShape:
    """What denials with one of `statuses` (any, when empty) look like."""

    statuses: frozenset[int]
    status: int | None
    content_type: str
    body: Template | None
    headers: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Shape:
    """A compiled ResponsePolicy."""

    title: str
    selector: Selector
    request_headers: tuple[Change, ...]
    response_headers: tuple[Change, ...]
    set_parameters: tuple[tuple[str, Template], ...]
    remove_parameters: tuple[str, ...]
    metadata: tuple[tuple[str, Template], ...]
    denied: tuple[DeniedShape, ...]


def compile_shapes(compiler: Compiler, loaded: Sequence[Loaded]) -> Iterable[Shape]:
    """Yield the compiled ResponsePolicies."""
    for one in loaded:
        if isinstance(one.resource, ResponsePolicy):
            yield _Shaper(compiler, one, one.resource).compile()


class _Shaper:
    """Compiles one ResponsePolicy."""

    def __init__(self, compiler: Compiler, loaded: Loaded, policy: ResponsePolicy) -> None:
        self._compiler = compiler
        self._loaded = loaded
        self._policy = policy

    def compile(self) -> Shape:
        spec, namespace = self._policy.spec, self._policy.metadata.namespace
        allowed, where = spec.allowed, ("spec", "allowed")
        labels = spec.selector.matchLabels if spec.selector else {}
        return Shape(
            title=self._policy.title,
            selector=Selector(
                namespace,
                any_namespace=namespace == self._compiler.mesh.root_namespace,
                labels=tuple(sorted(labels.items())),
            ),
            request_headers=self._changes((*where, "requestHeaders"), allowed.requestHeaders),
            response_headers=self._changes((*where, "responseHeaders"), allowed.responseHeaders),
            set_parameters=self._named((*where, "setParameters"), allowed.setParameters),
            remove_parameters=tuple(allowed.removeParameters),
            metadata=self._named((*where, "metadata"), allowed.metadata),
            denied=tuple(
                DeniedShape(
                    frozenset(one.forStatus or ()),
                    one.status,
                    one.contentType,
                    self._template(("spec", "denied", index, "body"), one.body, reason=True)
                    if one.body is not None
                    else None,
                    self._changes(("spec", "denied", index, "headers"), one.headers),
                )
                for index, one in enumerate(spec.denied)
            ),
        )

    def _changes(self, where: Field, changes: Sequence[shape.HeaderChange]) -> tuple[Change, ...]:
        compiled = []
        for index, change in enumerate(changes):
            name = change.name.lower()
            if name in _NOT_OURS:
                message = f"`{change.name}` belongs to the connection and cannot be changed"
                self._compiler.report(self._loaded, (*where, index, "name"), "header", message)
            value = self._template((*where, index, "value"), change.value)
            compiled.append(Change(name, value, HeaderAction(change.action)))
        return tuple(compiled)

    def _named(self, where: Field, named: Mapping[str, str]) -> tuple[tuple[str, Template], ...]:
        return tuple((name, self._template((*where, name), value)) for name, value in named.items())

    def _template(self, where: Field, text: str, *, reason: bool = False) -> Template:
        parts: list[str | tuple[str, str]] = []
        at = 0
        for found in _EXPRESSION.finditer(text):
            parts += [text[at : found.start()]] if found.start() > at else []
            at = found.end()
            parts.append(self._attribute(where, found[1], reason=reason))
        parts += [text[at:]] if at < len(text) else []
        return Template(tuple(parts))

    def _attribute(self, where: Field, text: str, *, reason: bool) -> tuple[str, str]:
        match = _ATTRIBUTE.fullmatch(text)
        name, argument = (match[1], match[2] or "") if match else ("", "")
        known = name in ATTRIBUTES and not name.endswith(".any") and name != "request.auth.pair"
        if text == REASON and reason:
            return REASON, ""
        if not known or bool(argument) != (name in _WITH_ARGUMENT):
            message = f"`${{{text}}}` is no attribute"
            self._compiler.report(self._loaded, where, "unknown_attribute", message, "see docs/attributes.md")
        return name, argument.lower() if name == "request.headers" else argument


def shaped(shapes: Sequence[Shape], outcome: Outcome, attributes: Attributes) -> Outcome:
    """Return `outcome` with what `shapes` add to it, in the order of their names."""
    if outcome.decision.allowed:
        return _allowed(shapes, outcome, attributes)
    for one in shapes:
        for denied in one.denied:
            if not denied.statuses or outcome.decision.http_status in denied.statuses:
                return _denied(denied, outcome, attributes)
    return outcome


def _allowed(shapes: Sequence[Shape], outcome: Outcome, attributes: Attributes) -> Outcome:
    mutations, marks = outcome.mutations, dict(outcome.marks)
    for one in shapes:
        parameters = [(name, template.fill(attributes)) for name, template in one.set_parameters]
        mutations = replace(
            mutations,
            request_headers=mutations.request_headers + _mutations(one.request_headers, attributes),
            response_headers=mutations.response_headers + _mutations(one.response_headers, attributes),
            set_parameters=mutations.set_parameters
            + tuple((name, value) for name, value in parameters if value is not None),
            # As with headers: what cannot be told is not what the caller says it is.
            remove_parameters=mutations.remove_parameters
            + one.remove_parameters
            + tuple(name for name, value in parameters if value is None),
            shaped=True,
        )
        for name, template in one.metadata:
            value = template.fill(attributes)
            if value is not None:
                marks[name] = value
    return Outcome(outcome.decision, mutations, marks)


def _mutations(changes: Sequence[Change], attributes: Attributes) -> tuple[HeaderMutation, ...]:
    found = []
    for change in changes:
        value = change.value.fill(attributes)
        action = change.action if value is not None else HeaderAction.REMOVE
        found.append(HeaderMutation(change.name, value or "", action))
    return tuple(found)


def _denied(denied: DeniedShape, outcome: Outcome, attributes: Attributes) -> Outcome:
    decision: Decision = outcome.decision
    if denied.body is not None:
        body = denied.body.fill(attributes, decision.public)
        decision = replace(decision, public=body if body is not None else decision.public)
    if denied.status is not None:
        decision = replace(decision, http_status=denied.status)
    headers = (HeaderMutation("content-type", denied.content_type), *_mutations(denied.headers, attributes))
    response_headers = outcome.mutations.response_headers + headers
    mutations = replace(outcome.mutations, response_headers=response_headers, shaped=True)
    return Outcome(decision, mutations, outcome.marks)
