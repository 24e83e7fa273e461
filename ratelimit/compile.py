"""Rate-limit documents -> `Limits`; what is wrong with them is collected, not raised one by one."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from garrison.documents import Diagnostic, Document, Field, Severity, load, validate
from garrison.durations import parse_duration
from garrison.errors import ConfigError
from ratelimit.algorithm import SECOND, UNITS, Algorithm, Limit, OnStoreFailure, Unit
from ratelimit.descriptors import domain_text, key_text, shared_text, value_text
from ratelimit.documents import DescriptorSpec, LimitsDocument, MatchSpec, RateLimitSpec
from ratelimit.patterns import Cidr, Pattern, Regex, Wildcard
from ratelimit.tree import Branch, Domain, Limits, Node, Unlimited
from ratelimit.zones import CALENDAR_UNITS, calendar_unit

# Envoy writes the name between quotes into `x-ratelimit-limit` and escapes nothing.
_UNSAFE_IN_NAME = re.compile(r"[^ !#-\[\]-~]")
# The largest unit first.
_BY_LENGTH = sorted(UNITS.values(), key=lambda unit: -unit.window)
# Fields that are text, whatever it looks like.
_TEXTS = ("domain", "key", "value")
MAX_WINDOW_SECONDS = 10 * 365 * 86400


@dataclass(frozen=True, slots=True)
class Options:
    """What the process decides for all documents.

    `quota_mode` makes every limit one of a quota; `merge_domains` lets several documents share a domain;
    `on_store_failure` holds for limits that do not say otherwise.
    """

    quota_mode: bool = False
    merge_domains: bool = False
    on_store_failure: OnStoreFailure = OnStoreFailure.DENY


DEFAULTS = Options()


def load_limits(paths: Sequence[Path], options: Options = DEFAULTS) -> Limits:
    """Return the limits in the files and folders `paths`.

    Raises:
        ConfigError: with every problem in every file. Warnings alone raise nothing.

    """
    documents, diagnostics = load(paths)
    limits, problems = compile_limits(documents, options)
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


def compile_limits(
    documents: Sequence[Document], options: Options = DEFAULTS
) -> tuple[Limits, list[Diagnostic]]:
    """Return the limits in `documents`, and what is wrong; with an error the limits are not to be used."""
    diagnostics: list[Diagnostic] = []
    roots: dict[str, _Level] = {}
    first: dict[str, Document] = {}
    replacing: set[str] = set()
    for document in map(_with_texts, documents):
        spec = validate(LimitsDocument, document)
        if isinstance(spec, list):
            diagnostics += sorted(spec, key=lambda problem: problem.position)
            continue
        if (other := first.setdefault(spec.domain, document)) is not document and not options.merge_domains:
            where = f"{other.file}:{other.position(('domain',)).line}"
            message = f"the domain `{spec.domain}` is defined twice, first in {where}"
            diagnostics.append(document.error(("domain",), "duplicate_domain", message))
            roots.pop(spec.domain, None)
        compiler = _Compiler(document, options)
        compiler.fill(roots.setdefault(spec.domain, _Level()), spec.descriptors, ("descriptors",), _Above())
        diagnostics += compiler.diagnostics
        if compiler.has_replaces:
            replacing.add(spec.domain)
    domains = {
        name: Domain(
            name,
            domain_text(name),
            level.branches(),
            name in replacing,
            options.quota_mode,
            options.on_store_failure,
        )
        for name, level in roots.items()
    }
    return Limits(domains, _version(documents, options)), diagnostics


def _with_texts(document: Document) -> Document:
    """Return `document` with domain, keys and values as text, also where no quotes make them that.

    envoyproxy/ratelimit takes `value: 8080` for a string. An empty `value:`, to it any value, stays an error:
    a template that filled in nothing would make an `unlimited` rule one for everybody.
    """
    if not _has_bare_texts(document.data):
        return document
    return document.read_as(_merge_texts(document.data, document.written()))


def _has_bare_texts(data: Any) -> bool:
    if not isinstance(data, dict):
        return False
    below = data.get("descriptors")
    return any(not isinstance(data.get(name, ""), str) for name in _TEXTS) or (
        isinstance(below, list) and any(map(_has_bare_texts, below))
    )


def _merge_texts(data: Any, written: Any) -> Any:
    if not isinstance(data, dict):
        return data
    merged = dict(data)
    for name in _TEXTS:
        if isinstance(data.get(name), bool | int | float):
            merged[name] = written[name]
    if isinstance(below := data.get("descriptors"), list):
        merged["descriptors"] = [
            _merge_texts(one, text) for one, text in zip(below, written["descriptors"], strict=True)
        ]
    return merged


def _version(documents: Sequence[Document], options: Options) -> str:
    texts = sorted(json.dumps(document.data, sort_keys=True, default=str) for document in documents)
    if options != DEFAULTS:
        texts.append(repr(options))
    return sha256("\n".join(texts).encode()).hexdigest()[:16]


class _Value(NamedTuple):
    """What a node says about values: an exact one, a pattern, or (both empty) any."""

    exact: str
    pattern: Pattern | None

    @property
    def shown(self) -> str:
        """The value as messages and metrics know it."""
        return self.pattern.text.removeprefix("value:") if self.pattern else self.exact

    @property
    def identity(self) -> str:
        """What only the same value has."""
        return self.pattern.text if self.pattern else f"exact:{self.exact}"


class _Above(NamedTuple):
    """What a node knows of those before it."""

    metric: str = ""
    names_values: bool = False
    node: Node | None = None


@dataclass(slots=True)
class _Level:
    """The nodes of one level while it is being filled, by key, and where each stands."""

    seen: dict[tuple[str, str], tuple[Document, Field]] = field(default_factory=dict)
    nodes: dict[str, list[tuple[_Value, Node]]] = field(default_factory=dict)

    def branches(self) -> dict[str, Branch]:
        """Return what the level has become."""
        return {
            key: Branch(
                text=key_text(key),
                exact={value.exact: node for value, node in values if value.exact},
                patterns=tuple((value.pattern, node) for value, node in values if value.pattern),
                any_value=next((node for value, node in values if not value.shown), None),
            )
            for key, values in self.nodes.items()
        }


class _Compiler:
    """Turns the descriptors of one document into nodes and collects what is wrong with them."""

    def __init__(self, document: Document, options: Options) -> None:
        self.diagnostics: list[Diagnostic] = []
        self.has_replaces = False
        self._document = document
        self._options = options

    def fill(self, level: _Level, specs: Sequence[DescriptorSpec], path: Field, above: _Above) -> None:
        """Add one list of descriptors, which stands at `path`, to `level`."""
        for index, spec in enumerate(specs):
            here = (*path, index)
            value = self._value(spec, here)
            if value is None:
                continue
            self._check_duplicate(level, spec.key, value, here)
            siblings = level.nodes.setdefault(spec.key, [])
            if "*" in spec.value:
                before = [sibling.identity for sibling, _ in siblings]
                self._check_reachable(before, spec.value, here)
            siblings.append((value, self._node(spec, value, here, above)))

    def _check_duplicate(self, level: _Level, key: str, value: _Value, here: Field) -> None:
        document, first = level.seen.setdefault((key, value.identity), (self._document, here))
        if first == here and document is self._document:
            return
        where = f"line {document.position(first).line}"
        if document is not self._document:
            where = f"{document.file}:{document.position(first).line}"
        what = f"`{key}`" + (f" with value `{value.shown}`" if value.shown else " without a value")
        self._error(here, "duplicate_descriptor", f"{what} stands twice here, first in {where}")

    def _check_reachable(self, before: Sequence[str], value: str, path: Field) -> None:
        """Warn if one of the values `before`, of the same key, takes all that the wildcard `value` could."""
        for identity in before:
            kind, _, other = identity.partition(":")
            # What matches the text of a wildcard, its `*` read as a character, matches all that it matches.
            if kind == "value" and other != value and Wildcard.parse(other).matches(value):
                message = f"`{other}` stands before `{value}` and takes all its values"
                self._warn((*path, "value"), "unreachable", message, "put the wider one last")
                return

    def _value(self, spec: DescriptorSpec, path: Field) -> _Value | None:
        if spec.match is not None:
            if spec.value:
                self._contradiction((*path, "match"), "value", "match")
            pattern = self._pattern(spec.match, (*path, "match"))
            return _Value("", pattern) if pattern is not None else None
        return _Value("", Wildcard.parse(spec.value)) if "*" in spec.value else _Value(spec.value, None)

    def _pattern(self, match: MatchSpec, path: Field) -> Pattern | None:
        given = [name for name in MatchSpec.model_fields if getattr(match, name) is not None]
        if len(given) != 1:
            known = "`, `".join(MatchSpec.model_fields)
            self._error(path, "bad_match", f"a match is exactly one of `{known}`")
            return None
        text = getattr(match, given[0])
        parsers: dict[str, Callable[[str], Pattern]] = {
            "prefix": Wildcard.prefix,
            "suffix": Wildcard.suffix,
            "regex": Regex.parse,
            "cidr": Cidr.parse,
        }
        try:
            return parsers[given[0]](text)
        except ValueError as error:
            self._error((*path, given[0]), "bad_match", str(error))
            return None

    def _node(self, spec: DescriptorSpec, value: _Value, path: Field, above: _Above) -> Node:
        if spec.deduplicate is not None:
            return self._once(spec, path, above)
        if spec.share_threshold and value.pattern is None:
            message = "`share_threshold` needs a value with `*`, or a `match`"
            self._error((*path, "share_threshold"), "contradiction", message)
        shown: str | None = value.shown
        name = f"{spec.key}_{shown}" if shown else spec.key
        label = f"{above.metric}.{name}" if above.metric else name
        if spec.value_to_metric and not value.exact and not spec.share_threshold:
            shown = None
        names_values = above.names_values or shown is None or spec.detailed_metric
        shared = shared_text(spec.key, value.pattern.text) if spec.share_threshold and value.pattern else ""
        limits, unlimited = self._rules(spec, path, label)
        replaces = {_UNSAFE_IN_NAME.sub("_", one.name) for limit in _specs(spec) for one in limit.replaces}
        self.has_replaces = self.has_replaces or bool(replaces)
        node = Node(
            limits,
            unlimited,
            {},
            text=key_text(spec.key) + value_text(value.exact) if value.exact else shared,
            replaces=frozenset(replaces),
            metadata=spec.metadata or None,
            metric=shown,
            detailed_metric=spec.detailed_metric,
            names_values=names_values,
        )
        below = _Level()
        inherited = _Above(label, above.names_values or shown is None, node)
        self.fill(below, spec.descriptors, (*path, "descriptors"), inherited)
        return replace(node, children=below.branches())

    def _once(self, spec: DescriptorSpec, path: Field, above: _Above) -> Node:
        """Return the node of an entry whose value identifies the call."""
        here = (*path, "deduplicate")
        once_for = self._duration(spec.deduplicate or "", here)
        if spec.value or spec.match is not None:
            self._error(here, "contradiction", "an entry that identifies calls has any value")
        if spec.rate_limit or spec.rate_limits or spec.descriptors or spec.metadata:
            message = "an entry that identifies calls has no limits and nothing below it"
            self._error(here, "contradiction", message, "they belong to the descriptor around it")
        if above.node is None or not above.node.limits:
            self._error(here, "no_effect", "there is no limit here whose hits could be counted once")
        return Node((), None, {}, once_for=max(once_for, 1))

    def _rules(
        self, spec: DescriptorSpec, path: Field, label: str
    ) -> tuple[tuple[Limit, ...], Unlimited | None]:
        if spec.rate_limit is not None and spec.rate_limits:
            self._contradiction((*path, "rate_limits"), "rate_limit", "rate_limits")
        single = spec.rate_limit is not None
        wheres: list[Field] = [(*path, "rate_limits", index) for index in range(len(spec.rate_limits))]
        limits: list[Limit] = []
        unlimited: Unlimited | None = None
        for one, where in zip(_specs(spec), [(*path, "rate_limit")] if single else wheres, strict=False):
            position = self._document.position(where)
            source = f"{self._document.file}:{position.line}:{position.column}"
            if one.unlimited:
                self._check_unlimited(one, where)
                unlimited = Unlimited(source)
                continue
            limit = self._limit(spec, one, where, source, label, counts=single)
            if limit is None:
                continue
            if any(other.kind == limit.kind for other in limits):
                self._error(where, "duplicate_limit", "there is another limit of this kind with this window")
            limits.append(limit)
        if unlimited is not None and len(wheres) > 1:
            self._error(path, "contradiction", "one of several limits cannot be `unlimited`")
        for mode in ("shadow_mode", "quota_mode", "best_effort"):
            if getattr(spec, mode) and not limits:
                what = {"shadow_mode": "be a shadow", "quota_mode": "be a quota"}.get(mode, "give a part")
                self._warn((*path, mode), "no_effect", f"there is no limit here that could {what}")
        if spec.metadata and not limits:
            self._warn(
                (*path, "metadata"), "no_effect", "there is no limit here whose metadata this could be"
            )
        return tuple(limits), unlimited

    def _limit(
        self,
        spec: DescriptorSpec,
        limit: RateLimitSpec,
        where: Field,
        source: str,
        label: str,
        *,
        counts: bool,
    ) -> Limit | None:
        algorithm = Algorithm(limit.algorithm or Algorithm.FIXED_WINDOW)
        unit = self._unit(limit, algorithm, where)
        if limit.requests_per_unit is None:
            message = "the required field `requests_per_unit` is missing"
            self._error((*where, "requests_per_unit"), "missing_field", message)
        if limit.burst is not None and algorithm is not Algorithm.TOKEN_BUCKET:
            self._error((*where, "burst"), "contradiction", "only a `token_bucket` has a `burst`")
        if algorithm is Algorithm.CONCURRENCY and limit.denied_hits == "count":
            message = "whoever is denied holds no place that could be counted"
            self._error((*where, "denied_hits"), "contradiction", message)
        if limit.lease is not None and (algorithm is not Algorithm.FIXED_WINDOW or spec.best_effort):
            message = "only a `fixed_window` without `best_effort` can be taken in leases"
            self._error((*where, "lease"), "contradiction", message)
        if limit.name and any(one.name == limit.name for one in limit.replaces):
            self._error((*where, "replaces"), "contradiction", "a limit cannot replace itself")
        if unit is None or limit.requests_per_unit is None:
            return None
        name = _UNSAFE_IN_NAME.sub("_", limit.name)
        if name != limit.name:
            message = f"`{limit.name}` cannot stand in a header as it is"
            self._warn((*where, "name"), "unsafe_name", message, f"it is sent as `{name}`")
        if limit.denied_hits is not None:
            counts = limit.denied_hits == "count"
        else:
            counts = counts and algorithm is Algorithm.FIXED_WINDOW
        failure = limit.on_store_failure
        return Limit(
            limit.requests_per_unit,
            unit,
            name,
            spec.shadow_mode,
            source,
            algorithm,
            limit.burst or 0,
            spec.quota_mode or self._options.quota_mode,
            counts,
            spec.best_effort,
            OnStoreFailure(failure) if failure else self._options.on_store_failure,
            limit.lease or 0,
            label,
        )

    def _unit(self, limit: RateLimitSpec, algorithm: Algorithm, where: Field) -> Unit | None:
        """Return the window of a limit, None where none can be made of what is given."""
        if limit.window is not None:
            for name in ("unit", "unit_multiplier", "time_zone"):
                if getattr(limit, name) is not None:
                    self._contradiction((*where, name), "window", name)
            nanoseconds = self._duration(limit.window, (*where, "window"))
            return window_unit(nanoseconds) if nanoseconds else None
        if limit.unit is None:
            self._error((*where, "unit"), "missing_field", "the required field `unit` is missing")
            return None
        unit = UNITS[limit.unit]
        if limit.time_zone is not None:
            return self._calendar_unit(limit, algorithm, where)
        multiplier = limit.unit_multiplier or 1
        if unit.window * multiplier > MAX_WINDOW_SECONDS * SECOND:
            self._error((*where, "unit_multiplier"), "bad_window", "a window is at most 10 years")
            return None
        return times(unit, multiplier)

    def _calendar_unit(self, limit: RateLimitSpec, algorithm: Algorithm, where: Field) -> Unit | None:
        here = (*where, "time_zone")
        if limit.unit not in CALENDAR_UNITS or limit.unit_multiplier is not None:
            known = ", ".join(CALENDAR_UNITS)
            self._error(here, "contradiction", f"a time zone has calendar windows of one {known}")
        elif algorithm is not Algorithm.FIXED_WINDOW:
            self._error(here, "contradiction", "only a `fixed_window` can follow a calendar")
        else:
            try:
                return calendar_unit(limit.unit, limit.time_zone or "")
            except ValueError as error:
                self._error(here, "unknown_time_zone", str(error))
        return None

    def _duration(self, text: str, path: Field) -> int:
        """Return the nanoseconds that `text` spells, 0 if it spells none that can be a window."""
        try:
            duration = parse_duration(text)
        except ValueError as error:
            self._error(path, "bad_window", str(error))
            return 0
        if not 0 < duration.total_seconds() <= MAX_WINDOW_SECONDS:
            self._error(path, "bad_window", "a window is between 1ms and 10 years")
            return 0
        return round(duration.total_seconds() * 1000) * (SECOND // 1000)

    def _check_unlimited(self, limit: RateLimitSpec, where: Field) -> None:
        for name in RateLimitSpec.model_fields:
            given = getattr(limit, name)
            if name not in {"unlimited", "name", "replaces"} and given is not None:
                self._contradiction((*where, name), "unlimited", name)

    def _contradiction(self, path: Field, one: str, other: str) -> None:
        message = f"`{one}` and `{other}` contradict each other"
        self._error(path, "contradiction", message, "keep one of them")

    def _error(self, path: Field, code: str, message: str, help_: str = "") -> None:
        self.diagnostics.append(self._document.error(path, code, message, help_))

    def _warn(self, path: Field, code: str, message: str, help_: str = "") -> None:
        problem = self._document.error(path, code, message, help_)
        self.diagnostics.append(dataclasses.replace(problem, severity=Severity.WARNING))


def _specs(spec: DescriptorSpec) -> Sequence[RateLimitSpec]:
    return [spec.rate_limit] if spec.rate_limit is not None else spec.rate_limits


def times(unit: Unit, multiplier: int) -> Unit:
    """Return the window of `multiplier` units."""
    if multiplier == 1:
        return unit
    return Unit(f"{multiplier}*{unit.name}", unit.wire, unit.window * multiplier, multiplier)


def window_unit(nanoseconds: int) -> Unit:
    """Return a window of any length: so many of the largest unit that fits, or one that has no name."""
    for unit in _BY_LENGTH:
        if nanoseconds % unit.window == 0:
            return times(unit, nanoseconds // unit.window)
    return Unit(f"{nanoseconds // (SECOND // 1000)}ms", 0, nanoseconds)
