"""`CasbinPolicy` documents -> `CasbinPolicies`. Every mistake is found here, at its line, not by a call.

What pycasbin accepts and then leaves out, ignores or raises about while it decides is an error: a policy that
says something else than its author thinks is worse than one that does not load.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from casbin.constant import constants
from casbin.util import util as casbin_util

from authz.casbin_policy.definition import Mistake, ModelText, Row, parse_model, parse_rows
from authz.casbin_policy.documents import CasbinPolicy, Term
from authz.casbin_policy.engine import Engine
from authz.casbin_policy.matcher import (
    Matcher,
    MatcherError,
    Uses,
    Vocabulary,
    has_eval,
    parse_matcher,
    refuse_rewritten_literals,
    with_rules,
)
from authz.casbin_policy.patterns import FUNCTIONS, PatternError, TextMatcher
from authz.casbin_policy.policies import CasbinPolicies, CompiledPolicy
from authz.casbin_policy.roles import Roles
from authz.casbin_policy.sources import Sources, Unreadable
from authz.casbin_policy.terms import WITH_ARGUMENT, WITHOUT_ARGUMENT, RequestTerm
from garrison.documents import Diagnostic, Document, Field, Severity, format_field
from garrison.documents.diagnostic import Position

# A decision that has to look at this many rows takes about a millisecond.
MANY_ROWS = 1000

# Effects under which a call that no row allows is denied.
_CLOSED_EFFECTS = frozenset(
    {
        constants.ALLOW_OVERRIDE_EFFECT,
        constants.ALLOW_AND_DENY_EFFECT,
        constants.PRIORITY_EFFECT,
        constants.SUBJECT_PRIORITY_EFFECT,
    }
)


def compile_casbin(
    loaded: Iterable[tuple[CasbinPolicy, Document]], root_namespace: str, sources: Sources
) -> tuple[CasbinPolicies | None, list[Diagnostic]]:
    """Return the compiled policies and all problems; no policies when one of the problems is an error."""
    compiled: list[CompiledPolicy] = []
    problems: list[Diagnostic] = []
    for policy, document in loaded:
        compiler = _Compiler(policy, document, sources)
        one = compiler.compile()
        problems += compiler.problems
        if one is not None:
            compiled.append(one)
    failed = any(problem.severity is Severity.ERROR for problem in problems)
    return (None if failed else CasbinPolicies(compiled, root_namespace)), problems


@dataclass(frozen=True, slots=True)
class _Text:
    """A text and where it stands: in its own file, or in a field of the document (`file` is None)."""

    text: str
    field: Field
    file: str | None = None


@dataclass(slots=True)
class _Compiler:
    policy: CasbinPolicy
    document: Document
    sources: Sources
    problems: list[Diagnostic] = field(default_factory=list)

    def compile(self) -> CompiledPolicy | None:
        """Return the compiled document; None when there is a problem that is not a warning."""
        terms = self._terms()
        model_source = self._text("model", "modelFile")
        rows_source = self._rows_source()
        if model_source is None or rows_source is None:
            return None
        model, mistakes = parse_model(model_source.text)
        self._report(model_source, mistakes)
        if isinstance(rows_source, _Text):
            rows, mistakes = parse_rows(rows_source.text)
            self._report(rows_source, mistakes)
            where = rows_source
        else:
            rows, where = list(rows_source), _Text("", ("spec", "adapter", "name"))
        if model is None:
            return None
        self._report(model_source, _model_mistakes(model))
        self._check_request(model)
        if not self._failed:
            self._report(where, _row_mistakes(model, rows))
        return None if self._failed else self._build(model, model_source, rows, where, terms)

    @property
    def _failed(self) -> bool:
        return any(problem.severity is Severity.ERROR for problem in self.problems)

    def _build(
        self,
        model: ModelText,
        model_source: _Text,
        rows: Sequence[Row],
        where: _Text,
        terms: Sequence[RequestTerm],
    ) -> CompiledPolicy | None:
        ours = [row for row in rows if row.key == "p"]
        links = {key: Roles(row for row in rows if row.key == key) for key in model.roles}
        patterns: dict[tuple[str, str], TextMatcher] = {}
        vocabulary = Vocabulary(
            terms=[f"r_{name}" for name in model.names("r")],
            columns=[f"p_{name}" for name in model.names("p")],
            roles=links,
            domains=[key for key in model.roles if len(model.names(key)) == 3],
            patterns=patterns,
        )
        definition = model.definitions["m"]
        matchers: dict[str, Matcher] = {}
        try:
            refuse_rewritten_literals(definition.value)
            expression: str = casbin_util.remove_comments(casbin_util.escape_assertion(definition.value))
            # What holds for every row: an `eval` may bring anything, so it counts as true.
            anything = dict.fromkeys(vocabulary.columns, "True")
            shared = parse_matcher(with_rules(expression, anything), vocabulary)
        except MatcherError as error:
            mistake = Mistake(definition.line, definition.column, "matcher", str(error))
            self._report(model_source, [mistake])
            return None
        if has_eval(expression):
            self._report(where, _rule_matchers(expression, ours, vocabulary, matchers))
        else:
            matchers[expression] = shared
        uses = _all_uses(shared, matchers.values())
        self._report(where, _compile_patterns(ours, uses, vocabulary, patterns))
        self._report(where, _role_collisions(rows, uses, vocabulary, terms))
        if self._failed:
            return None
        try:
            engine = Engine(model, rows, links, matchers, shared.required)
        except RuntimeError as error:  # pycasbin: links in a circle under subjectPriority
            self._report(model_source, [Mistake(0, 0, "model", str(error))])
            return None
        self._warn(engine, ours, where)
        named = zip(terms, model.names("r"), strict=True)
        return CompiledPolicy(
            title=self.policy.title,
            namespace=self.policy.metadata.namespace,
            labels=tuple(sorted(self.policy.spec.selector.matchLabels.items())),
            terms=tuple(replace(term, name=f"r.{name}") for term, name in named),
            engine=engine,
            source=format_field(where.field),
            where=where.file or format_field(where.field),
        )

    def _warn(self, engine: Engine, rows: Sequence[Row], where: _Text) -> None:
        if not rows:
            message = "the policy has no `p` rows: every call to the selected workloads is denied"
            self._add(where, Mistake(0, 0, "no_rows", message), Severity.WARNING)
        elif len(rows) >= MANY_ROWS and not engine.indexed:
            message = f"each new call looks at all {len(rows)} rows"
            hint = "with `r.X == p.Y &&` or `g(r.X, p.Y) &&` in the matcher it would look at a few"
            self._add(where, Mistake(0, 0, "all_rows", message, hint), Severity.WARNING)

    def _text(self, inline: str, file: str) -> _Text | None:
        spec = self.policy.spec
        text, path = getattr(spec, inline), getattr(spec, file)
        if (text is None) == (path is None):
            self._error(("spec",), "one_of", f"exactly one of `{inline}` and `{file}` is needed")
            return None
        return _Text(text, ("spec", inline)) if text is not None else self._file(path, ("spec", file))

    def _file(self, path: str, where: Field) -> _Text | None:
        read = self.sources.files.get((self.document.file, path), Unreadable("was not read"))
        if isinstance(read, Unreadable):
            self._error(where, "unreadable", f"`{path}` {read.message}")
            return None
        return _Text(read, where, str(Path(self.document.file).parent / path))

    def _rows_source(self) -> _Text | Sequence[Row] | None:
        spec = self.policy.spec
        if [spec.policy, spec.policyFile, spec.adapter].count(None) != 2:
            message = "exactly one of `policy`, `policyFile` and `adapter` is needed"
            self._error(("spec",), "one_of", message)
            return None
        if spec.policy is not None:
            return _Text(spec.policy, ("spec", "policy"))
        if spec.policyFile is not None:
            return self._file(spec.policyFile, ("spec", "policyFile"))
        name = spec.adapter.name if spec.adapter else ""
        rows = self.sources.rows.get(name)
        if rows is None:
            known = ", ".join(sorted(self.sources.rows)) or "none"
            hint = f"listed in the settings: {known}"
            self._error(("spec", "adapter", "name"), "unknown_adapter", f"`{name}` is not an adapter", hint)
        elif isinstance(rows, Unreadable):
            self._error(("spec", "adapter", "name"), "unreadable", f"`{name}` {rows.message}")
            return None
        return rows

    def _terms(self) -> list[RequestTerm]:
        return [
            self._term(term, ("spec", "request", index))
            for index, term in enumerate(self.policy.spec.request)
        ]

    def _term(self, term: Term, where: Field) -> RequestTerm:
        if term.attribute is None or term.literal is not None:
            if term.attribute is not None or term.literal is None or term.prefix:
                message = "a term is either `attribute`, with or without `prefix`, or `literal`"
                self._error(where, "term", message)
            return RequestTerm("", literal=term.literal or "")
        name, bracket, rest = term.attribute.partition("[")
        argument = rest.removesuffix("]")
        # `request.auth.claims[a][b]` is claim `b` inside claim `a`; nothing else nests.
        parts = argument.split("][") if name == "request.auth.claims" else [argument]
        if name not in WITH_ARGUMENT | WITHOUT_ARGUMENT:
            known = f"known: {', '.join(sorted(WITH_ARGUMENT | WITHOUT_ARGUMENT))}"
            self._error(
                where, "unknown_attribute", f"`{term.attribute}` is not an attribute for terms", known
            )
        elif name in WITHOUT_ARGUMENT:
            if bracket:
                self._error(where, "attribute", f"`{name}` has no `[…]`")
        elif rest == argument or not all(parts) or set("".join(parts)) & set("[]"):
            self._error(where, "attribute", f"`{term.attribute}` is not of the form `{name}[NAME]`")
        elif name == "request.headers" and (argument.startswith(":") or argument.lower() == "host"):
            message = f"`{argument}` is not normalised: use `request.path`, `.method` or `.host`"
            self._error(where, "attribute", message)
        argument = argument.lower() if name == "request.headers" else argument
        return RequestTerm("", name, argument if name in WITH_ARGUMENT else "", term.prefix)

    def _check_request(self, model: ModelText) -> None:
        defined, given = len(model.names("r")), len(self.policy.spec.request)
        if defined != given:
            message = f"the model's `r` has {defined} terms, but `request` gives {given}"
            self._error(("spec", "request"), "request_size", message)

    def _report(self, source: _Text, mistakes: Iterable[Mistake]) -> None:
        for mistake in mistakes:
            self._add(source, mistake, Severity.ERROR)

    def _add(self, source: _Text, mistake: Mistake, severity: Severity) -> None:
        if source.file is not None and mistake.line:
            file, position = source.file, Position(mistake.line, mistake.column)
        else:
            file, position = self.document.file, self._position(source, mistake)
        self.problems.append(
            Diagnostic(file, position, source.field, mistake.code, mistake.message, mistake.help, severity)
        )

    def _position(self, source: _Text, mistake: Mistake) -> Position:
        start = self.document.position(source.field)
        if not mistake.line:
            return start
        if "\n" not in source.text:
            return Position(start.line, start.column + mistake.column - 1)
        # A text of several lines is a block: it starts below its `|`, two columns behind its key by custom.
        key = self.document.keys.get(source.field, start)
        return Position(start.line + mistake.line, key.column + 1 + mistake.column)

    def _error(self, where: Field, code: str, message: str, hint: str = "") -> None:
        self.problems.append(self.document.error(where, code, message, hint))


def _model_mistakes(model: ModelText) -> Iterator[Mistake]:
    for key in ("r", "p"):
        definition = model.definitions[key]
        names = model.names(key)
        for name in names:
            if not (name.isidentifier() and name.isascii()):
                message = f"`{name}` is not a name"
                yield Mistake(definition.line, definition.column, "model_name", message)
        if len(set(names)) != len(names):
            message = f"`{definition.value}` has a name twice"
            yield Mistake(definition.line, definition.column, "model_name", message)
    for definition in model.roles.values():
        names = tuple(name.strip() for name in definition.value.split(","))
        if "(" in definition.value:
            message = "conditional roles are not supported: a decision must not depend on the clock"
            yield Mistake(definition.line, definition.column, "model_role", message)
        elif names not in {("_", "_"), ("_", "_", "_")}:
            message = f"`{definition.value}` is neither `_, _` nor `_, _, _`"
            yield Mistake(definition.line, definition.column, "model_role", message)
    yield from _effect_mistakes(model)


def _effect_mistakes(model: ModelText) -> Iterator[Mistake]:
    definition = model.definitions["e"]
    effect = _effect(model)
    if effect == constants.DENY_OVERRIDE_EFFECT:
        message = "this effect allows every call that no row denies"
        hint = "write `some(where (p.eft == allow)) && !some(where (p.eft == deny))`"
        yield Mistake(definition.line, definition.column, "open_effect", message, hint)
    elif effect not in _CLOSED_EFFECTS:
        known = "; ".join(sorted(_CLOSED_EFFECTS)).replace("p_eft", "p.eft")
        message = f"`{definition.value}` is not an effect of Casbin"
        yield Mistake(definition.line, definition.column, "effect", message, f"known: {known}")
    elif effect == constants.SUBJECT_PRIORITY_EFFECT and "g" not in model.definitions:
        message = "this effect needs the role definition `g`"
        yield Mistake(definition.line, definition.column, "effect", message)


def _effect(model: ModelText) -> str:
    text = model.definitions["e"].value
    return str(casbin_util.remove_comments(casbin_util.escape_assertion(text)))


def _row_mistakes(model: ModelText, rows: Sequence[Row]) -> Iterator[Mistake]:
    columns = model.names("p")
    sizes = {key: len(model.names(key)) for key in model.roles} | {"p": len(columns)}
    effect = columns.index("eft") if "eft" in columns else None
    priority = columns.index("priority") if "priority" in columns else None
    ignores_deny = _effect(model) == constants.ALLOW_OVERRIDE_EFFECT
    for row in rows:
        size = sizes.get(row.key)
        if size is None:
            known = f"known: {', '.join(sorted(sizes))}"
            yield Mistake(row.line, 1, "row_key", f"`{row}`: the model defines no `{row.key}`", known)
        elif len(row) != size:
            message = f"`{row}` has {len(row)} values, but `{row.key}` is defined with {size}"
            yield Mistake(row.line, 1, "row_size", message)
        elif "" in row:
            yield Mistake(row.line, 1, "row_empty", f"`{row}` has an empty value: no call has one")
        elif row.key == "p" and effect is not None and row[effect] not in {"allow", "deny"}:
            yield Mistake(row.line, 1, "row_effect", f"`{row}`: the effect is neither `allow` nor `deny`")
        elif row.key == "p" and effect is not None and row[effect] == "deny" and ignores_deny:
            message = f"`{row}`: `deny` rows are not looked at under the effect of this model"
            hint = "write `e = some(where (p.eft == allow)) && !some(where (p.eft == deny))`"
            yield Mistake(row.line, 1, "row_ignored", message, hint)
        elif row.key == "p" and priority is not None and not _is_number(row[priority]):
            yield Mistake(row.line, 1, "row_priority", f"`{row}`: the priority is not a whole number")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19


def _rule_matchers(
    expression: str, rows: Iterable[Row], vocabulary: Vocabulary, matchers: dict[str, Matcher]
) -> Iterator[Mistake]:
    """Fill `matchers` with the expression of each row, its `eval`s replaced as pycasbin replaces them."""
    for row in rows:
        try:
            text = with_rules(expression, dict(zip(vocabulary.columns, row, strict=True)))
            if text not in matchers:
                matchers[text] = parse_matcher(text, vocabulary)
        except MatcherError as error:
            yield Mistake(row.line, 1, "row_rule", f"`{row}`: {error}")


def _all_uses(shared: Matcher, matchers: Iterable[Matcher]) -> Uses:
    uses = Uses()
    for matcher in (shared, *matchers):
        uses.patterns |= matcher.uses.patterns
        uses.roles |= matcher.uses.roles
        uses.equal |= matcher.uses.equal
    return uses


def _compile_patterns(
    rows: Sequence[Row], uses: Uses, vocabulary: Vocabulary, patterns: dict[tuple[str, str], TextMatcher]
) -> Iterator[Mistake]:
    columns = list(vocabulary.columns)
    for pattern in sorted(uses.patterns, key=lambda one: (one.function, one.column, one.literal)):
        places: Iterable[tuple[str, int]] = [(pattern.literal, 0)]
        if pattern.column:
            places = [(row[columns.index(pattern.column)], row.line) for row in rows]
        for text, line in places:
            if (pattern.function, text) in patterns:
                continue
            try:
                patterns[pattern.function, text] = FUNCTIONS[pattern.function](text)
            except PatternError as error:
                yield Mistake(line, 1, "pattern", f"{pattern.function}: {error}")


def _role_collisions(
    rows: Iterable[Row], uses: Uses, vocabulary: Vocabulary, terms: Sequence[RequestTerm]
) -> Iterator[Mistake]:
    """Refuse role names that a caller could bear: Casbin does not tell users from roles.

    A token whose `sub` is `admin` would have every right of the role `admin`.
    """
    by_name = dict(zip(vocabulary.terms, terms, strict=True))
    compared: dict[str, set[str]] = {}
    for call in uses.roles:
        others = {name for name, column in uses.equal if column == call.column and name in by_name}
        compared.setdefault(call.definition, set()).update({call.term}, others)
    seen: set[tuple[str, str]] = set()
    for row in rows:
        for name in sorted(compared.get(row.key, ())):
            if (row.key, row[1]) not in seen and by_name[name].can_be(row[1]):
                seen.add((row.key, row[1]))
                what = f"`{row}`: the role `{row[1]}` can also be the value of `{name.replace('_', '.', 1)}`"
                hint = "give the term a prefix such as `user:`, and roles another such as `role:`"
                yield Mistake(row.line, 1, "role_collision", f"{what}, whose bearer would have it", hint)
