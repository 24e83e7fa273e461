"""Rate-limit documents -> `Limits`, immutable and looked up without a search.

Matching, entry by entry, all entries of a descriptor, in their order:
1. the value as it is written;
2. wildcards of that key, in file order, the first that matches;
3. the key without a value, which is also where an empty value goes, skipping 1 and 2.
A step once taken is not taken back. The limit is that of the node which the last entry reaches; a node
without one, and no node, mean no limit. Keys and values are kept apart: (`a`, `b`) is not (`a_b`).
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from garrison.documents import Diagnostic, Document, Field, Severity, load, validate
from garrison.errors import ConfigError
from ratelimit.algorithm import UNITS, Limit
from ratelimit.descriptors import Entry
from ratelimit.documents import UNSUPPORTED, DescriptorSpec, LimitsDocument, RateLimitSpec

# Envoy writes the name between quotes into `x-ratelimit-limit` and escapes nothing.
_UNSAFE_IN_NAME = re.compile(r"[^ !#-\[\]-~]")


@dataclass(frozen=True, slots=True)
class Unlimited:
    """A rule that says there is no limit, which is reported as such."""

    source: str = ""


Rule = Limit | Unlimited


@dataclass(frozen=True, slots=True)
class Wildcard:
    """A value with `*`, each for zero or more characters: the literal parts between them, in order."""

    parts: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Wildcard:
        """Return the wildcard that `text` spells; it holds at least one `*`."""
        return cls(tuple(text.split("*")))

    def matches(self, value: str) -> bool:
        """Return whether the whole of `value` has the parts in order, the outer two at its ends."""
        first, *middle, last = self.parts
        end = len(value) - len(last)
        at = len(first)
        if at > end or not value.startswith(first) or not value.endswith(last):
            return False
        for part in middle:
            found = value.find(part, at, end)
            if found < 0:
                return False
            at = found + len(part)
        return True


@dataclass(frozen=True, slots=True)
class Node:
    """Where a path of entries leads: its rule, if any, and what may follow."""

    rule: Rule | None
    children: Mapping[str, Branch]


@dataclass(frozen=True, slots=True)
class Branch:
    """All nodes of one key at one level."""

    exact: Mapping[str, Node]
    wildcards: tuple[tuple[Wildcard, Node], ...]
    any_value: Node | None

    def find(self, value: str) -> Node | None:
        """Return the node that `value` leads to."""
        if value:
            node = self.exact.get(value)
            if node is not None:
                return node
            for wildcard, node in self.wildcards:
                if wildcard.matches(value):
                    return node
        return self.any_value


@dataclass(frozen=True, slots=True)
class Domain:
    """The limits of one domain."""

    name: str
    root: Mapping[str, Branch]

    def find(self, entries: Sequence[Entry]) -> Rule | None:
        """Return the rule for a descriptor with these entries, or None where nothing is limited."""
        level = self.root
        rule: Rule | None = None
        for key, value in entries:
            branch = level.get(key)
            node = branch.find(value) if branch is not None else None
            if node is None:
                return None
            level, rule = node.children, node.rule
        return rule


@dataclass(frozen=True, slots=True)
class Limits:
    """Everything that is configured. `version` is a hash of the content, whatever files it stood in."""

    domains: Mapping[str, Domain]
    version: str
    warnings: tuple[Diagnostic, ...] = ()


def load_limits(paths: Sequence[Path]) -> Limits:
    """Return the limits in the files and folders `paths`.

    Raises:
        ConfigError: with every problem in every file. Warnings alone raise nothing.

    """
    documents, diagnostics = load(paths)
    limits, problems = compile_limits(documents)
    errors = [problem for problem in (*diagnostics, *problems) if problem.severity is Severity.ERROR]
    if errors:
        raise ConfigError(errors)
    return replace(limits, warnings=tuple(problems))


def is_limits(document: Document) -> bool:
    """Return whether `document` looks like rate limits, not like a policy."""
    data = document.data
    return isinstance(data, dict) and "kind" not in data and ("domain" in data or "descriptors" in data)


def lint(documents: Sequence[Document]) -> list[Diagnostic]:
    """Return every problem and warning in those of `documents` that look like rate limits."""
    return compile_limits([document for document in documents if is_limits(document)])[1]


def compile_limits(documents: Sequence[Document]) -> tuple[Limits, list[Diagnostic]]:
    """Return the limits in `documents`, and what is wrong; with an error the limits are not to be used."""
    diagnostics: list[Diagnostic] = []
    domains: dict[str, Domain] = {}
    first: dict[str, Document] = {}
    for document in documents:
        spec = validate(LimitsDocument, document)
        if isinstance(spec, list):
            diagnostics += sorted(map(_explain, spec), key=lambda problem: problem.position)
            continue
        if (other := first.setdefault(spec.domain, document)) is not document:
            where = f"{other.file}:{other.position(('domain',)).line}"
            message = f"the domain `{spec.domain}` is defined twice, first in {where}"
            diagnostics.append(document.error(("domain",), "duplicate_domain", message))
        compiler = _Compiler(document)
        domains[spec.domain] = Domain(spec.domain, compiler.level(spec.descriptors, ("descriptors",)))
        diagnostics += compiler.diagnostics
    return Limits(domains, _version(documents)), diagnostics


def _version(documents: Sequence[Document]) -> str:
    texts = sorted(json.dumps(document.data, sort_keys=True, default=str) for document in documents)
    return sha256("\n".join(texts).encode()).hexdigest()[:16]


def _explain(problem: Diagnostic) -> Diagnostic:
    name = problem.field[-1] if problem.field else ""
    if problem.code == "unknown_field" and name in UNSUPPORTED:
        return dataclasses.replace(problem, help="envoyproxy/ratelimit has it, Garrison does not yet")
    return problem


class _Compiler:
    """Turns the descriptors of one document into branches and collects what is wrong with them."""

    def __init__(self, document: Document) -> None:
        self.diagnostics: list[Diagnostic] = []
        self._document = document

    def level(self, specs: Sequence[DescriptorSpec], path: Field) -> dict[str, Branch]:
        """Return the branches of one list of descriptors, which stands at `path`."""
        seen: dict[Entry, Field] = {}
        nodes: dict[str, list[tuple[str, Node]]] = {}
        for index, spec in enumerate(specs):
            here = (*path, index)
            first = seen.setdefault((spec.key, spec.value), here)
            if first != here:
                line = self._document.position(first).line
                what = f"`{spec.key}`" + (f" with value `{spec.value}`" if spec.value else " without a value")
                self._error(here, "duplicate_descriptor", f"{what} stands twice here, first in line {line}")
            siblings = nodes.setdefault(spec.key, [])
            if "*" in spec.value:
                self._check_reachable([value for value, _ in siblings], spec.value, here)
            node = Node(self._rule(spec, here), self.level(spec.descriptors, (*here, "descriptors")))
            siblings.append((spec.value, node))
        return {key: _branch(values) for key, values in nodes.items()}

    def _check_reachable(self, before: Sequence[str], value: str, path: Field) -> None:
        """Warn if one of the values `before`, of the same key, takes all that the wildcard `value` could."""
        for other in before:
            # What matches the text of a wildcard, its `*` read as a character, matches all that it matches.
            if "*" in other and other != value and Wildcard.parse(other).matches(value):
                message = f"`{other}` stands before `{value}` and takes all its values"
                self._warn((*path, "value"), "unreachable", message, "put the wider one last")
                return

    def _rule(self, spec: DescriptorSpec, path: Field) -> Rule | None:
        limit = spec.rate_limit
        if spec.shadow_mode and (limit is None or limit.unlimited):
            self._warn((*path, "shadow_mode"), "no_effect", "there is no limit here that could be a shadow")
        if limit is None:
            return None
        where = (*path, "rate_limit")
        position = self._document.position(where)
        source = f"{self._document.file}:{position.line}:{position.column}"
        if limit.unlimited:
            self._check_unlimited(limit, where)
            return Unlimited(source)
        if limit.unit is None:
            self._error((*where, "unit"), "missing_field", "the required field `unit` is missing")
        if limit.requests_per_unit is None:
            message = "the required field `requests_per_unit` is missing"
            self._error((*where, "requests_per_unit"), "missing_field", message)
        if limit.unit is None or limit.requests_per_unit is None:
            return None
        name = _UNSAFE_IN_NAME.sub("_", limit.name)
        if name != limit.name:
            message = f"`{limit.name}` cannot stand in a header as it is"
            self._warn((*where, "name"), "unsafe_name", message, f"it is sent as `{name}`")
        return Limit(limit.requests_per_unit, UNITS[limit.unit], name, spec.shadow_mode, source)

    def _check_unlimited(self, limit: RateLimitSpec, where: Field) -> None:
        for field, value in (("unit", limit.unit), ("requests_per_unit", limit.requests_per_unit)):
            if value is not None:
                message = f"`unlimited` and `{field}` contradict each other"
                self._error((*where, field), "contradiction", message, "keep one of them")

    def _error(self, path: Field, code: str, message: str, help_: str = "") -> None:
        self.diagnostics.append(self._document.error(path, code, message, help_))

    def _warn(self, path: Field, code: str, message: str, help_: str = "") -> None:
        problem = self._document.error(path, code, message, help_)
        self.diagnostics.append(dataclasses.replace(problem, severity=Severity.WARNING))


def _branch(values: Sequence[tuple[str, Node]]) -> Branch:
    return Branch(
        exact={value: node for value, node in values if value and "*" not in value},
        wildcards=tuple((Wildcard.parse(value), node) for value, node in values if "*" in value),
        any_value=next((node for value, node in values if not value), None),
    )
