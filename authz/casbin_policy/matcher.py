"""Casbin matchers: text -> a checked expression -> a function of a row's and a call's terms.

pycasbin hands a matcher to a general evaluator that knows powers, attribute access and comprehensions, and
finds mistakes when a call reaches them. Here the expression is checked when it is loaded, against a grammar
in which nothing can be unbounded, of the wrong type, or made from a caller's text:

    condition: comparison | call | condition && condition | condition || condition | !condition | True | False
    comparison: text == text | text != text | text in (text, …) | text not in (text, …)
    call: keyMatch…(text, pattern) | g(r.X, role) | g(r.X, role, text)
    text: r.X | p.X | "…" | text + text          pattern, role: p.X | "…"

The values of `r` and `p` are strings always.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable, Collection, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter

from casbin.util import util as casbin_util

from authz.casbin_policy.patterns import FUNCTIONS, TextMatcher
from authz.casbin_policy.roles import Roles

Names = Mapping[str, str]
Condition = Callable[[Names], bool]
Text = Callable[[Names], str]

MAX_MATCHER_CHARACTERS = 10_000
# Conditions nest as Python calls when they are decided.
MAX_MATCHER_DEPTH = 50

_LITERAL = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|\'[^\'\\]*(?:\\.[^\'\\]*)*\'')
# What pycasbin rewrites wherever it stands, in quotes too.
_REWRITTEN = re.compile(r"&&|\|\||!|#|\b[rp]\d*\.|\beval\(")


class MatcherError(ValueError):
    """A matcher that is refused; the message says why, in words for its author."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern that a matcher needs: `function` on the values of `column`, or on `literal`."""

    function: str
    column: str
    literal: str = ""


@dataclass(frozen=True, slots=True)
class RoleCall:
    """A call of a role definition: `g(term, column[, domain])`; a literal role has no `column`.

    `domain` is None without one; else the name of a term or column, or a literal in quotes.
    """

    definition: str
    term: str
    column: str
    domain: str | None = None


@dataclass(slots=True)
class Uses:
    """What an expression needs and compares, for checks that know rows and terms."""

    patterns: set[Pattern] = field(default_factory=set)
    roles: set[RoleCall] = field(default_factory=set)
    equal: set[tuple[str, str]] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Required:
    """What must hold for a row to match, whatever else: an index can be built on it."""

    equal: tuple[tuple[str, str], ...]
    roles: tuple[RoleCall, ...]


@dataclass(frozen=True, slots=True)
class Matcher:
    """A checked expression. Holds no state: any number of calls can be in it at once."""

    condition: Condition
    uses: Uses
    required: Required

    def eval(self, names: Names) -> bool:
        """Return whether a row matches a call (pycasbin's name for it)."""
        return self.condition(names)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The names that an expression may use; `patterns` is filled once rows are known."""

    terms: Collection[str]
    columns: Collection[str]
    roles: Mapping[str, Roles]
    domains: Collection[str]
    patterns: MutableMapping[tuple[str, str], TextMatcher]


def parse_matcher(expression: str, vocabulary: Vocabulary) -> Matcher:
    """Return the checked matcher of `expression`, in which `r.` and `p.` are `r_` and `p_` already.

    Raises:
        MatcherError: the expression is not of the grammar above, or names something unknown.

    """
    if len(expression) > MAX_MATCHER_CHARACTERS:
        raise MatcherError(f"the expression has more than {MAX_MATCHER_CHARACTERS} characters")
    parser = _Parser(vocabulary)
    node = _parse(python_expression(expression))
    return Matcher(parser.condition(node), parser.uses, _required(node, vocabulary))


def refuse_rewritten_literals(expression: str) -> None:
    """Refuse text in quotes that pycasbin would change.

    Raises:
        MatcherError: there is some; the message names it.

    """
    for literal in _LITERAL.findall(expression):
        if found := _REWRITTEN.search(literal):
            raise MatcherError(f"{literal} has `{found[0]}` in quotes, which Casbin would rewrite")


def python_expression(expression: str) -> str:
    """Return `expression` with `and`, `or`, `not` for `&&`, `||`, `!`, as pycasbin rewrites it."""
    expression = expression.replace("&&", " and ").replace("||", " or ")
    return re.sub(r"!(?!=)", " not ", expression)


def has_eval(expression: str) -> bool:
    """Return whether `expression` asks for `eval(p.X)`: a part of the matcher that each row brings."""
    return casbin_util.has_eval(expression) is not None


def with_rules(expression: str, rules: Mapping[str, str]) -> str:
    """Return `expression` with each `eval(p_X)` replaced by the rule in `rules`, as pycasbin does per row.

    Raises:
        MatcherError: `eval` of something that is not a column, or a rule that is not an expression by itself.

    """
    texts: list[str] = []
    for name in casbin_util.get_eval_value(expression):
        if name not in rules:
            raise MatcherError("`eval` is for columns of `p` only: the text of a call is never evaluated")
        refuse_rewritten_literals(rules[name])
        rule = casbin_util.escape_assertion(rules[name])
        _parse(python_expression(rule))  # by itself, so that no bracket in it can close one of the matcher's
        if has_eval(rule):
            raise MatcherError(f"`{rule}` has an `eval` of its own")
        texts.append(rule)
    return str(casbin_util.replace_eval(expression, texts))


def _parse(expression: str) -> ast.expr:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `"\d"` is how patterns are written
            module = ast.parse(expression.strip())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else "too deeply nested"
        raise MatcherError(f"`{expression.strip()}` is not an expression: {reason}") from error
    # pycasbin would take the first of several statements and leave out the rest.
    if len(module.body) != 1 or not isinstance(module.body[0], ast.Expr):
        raise MatcherError(f"`{expression.strip()}` is not one expression")
    _refuse_deep(module.body[0].value)
    return module.body[0].value


def _refuse_deep(node: ast.expr) -> None:
    level: list[ast.AST] = [node]
    for _ in range(MAX_MATCHER_DEPTH):
        level = [child for one in level for child in ast.iter_child_nodes(one)]
    if level:
        raise MatcherError(f"the expression is nested more than {MAX_MATCHER_DEPTH} levels deep")


@dataclass(slots=True)
class _Parser:
    vocabulary: Vocabulary
    uses: Uses = field(default_factory=Uses)

    def condition(self, node: ast.expr) -> Condition:
        if isinstance(node, ast.BoolOp):
            parts = tuple(self.condition(part) for part in node.values)
            return _all(parts) if isinstance(node.op, ast.And) else _any(parts)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            inner = self.condition(node.operand)
            return lambda names: not inner(names)
        if isinstance(node, ast.Compare):
            return self._comparison(node)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.Constant) and isinstance(node.value, bool):
            value = node.value
            return lambda _: value
        raise MatcherError(f"`{ast.unparse(node)}` is not a condition")

    def _comparison(self, node: ast.Compare) -> Condition:
        if len(node.ops) != 1:
            raise MatcherError(f"`{ast.unparse(node)}` compares more than two things")
        operator, right = node.ops[0], node.comparators[0]
        a = self.text(node.left)
        if isinstance(operator, ast.Eq | ast.NotEq):
            b = self.text(right)
            if isinstance(node.left, ast.Name) and isinstance(right, ast.Name):
                self.uses.equal |= {(node.left.id, right.id), (right.id, node.left.id)}
            if isinstance(operator, ast.Eq):
                return lambda names: a(names) == b(names)
            return lambda names: a(names) != b(names)
        if isinstance(operator, ast.In | ast.NotIn):  # codespell:ignore notin
            if not isinstance(right, ast.Tuple | ast.List):
                hint = "in a text it would look for a part of it; a list of one is written `('x',)`"
                raise MatcherError(f"`{ast.unparse(node)}`: `in` needs a list: {hint}")
            items = tuple(self.text(item) for item in right.elts)
            if isinstance(operator, ast.In):
                return lambda names: a(names) in [item(names) for item in items]
            return lambda names: a(names) not in [item(names) for item in items]
        raise MatcherError(f"`{ast.unparse(node)}`: terms are texts, so there is no order to compare by")

    def text(self, node: ast.expr) -> Text:
        if isinstance(node, ast.Name):
            if node.id not in self.vocabulary.terms and node.id not in self.vocabulary.columns:
                raise MatcherError(f"`{_shown(node.id)}` is not defined in this model")
            name: Text = itemgetter(node.id)
            return name
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            value = node.value
            return lambda _: value
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            a, b = self.text(node.left), self.text(node.right)
            return lambda names: a(names) + b(names)
        raise MatcherError(f"`{ast.unparse(node)}` is not a text: use r.X, p.X or a text in quotes")

    def _call(self, node: ast.Call) -> Condition:
        if not isinstance(node.func, ast.Name) or node.keywords:
            raise MatcherError(f"`{ast.unparse(node)}` is not a function known here")
        name = node.func.id
        if name in self.vocabulary.roles:
            return self._role_call(name, node)
        if name in FUNCTIONS:
            return self._match_call(name, node)
        if name == "timeMatch":
            raise MatcherError("`timeMatch` is not supported: a decision must not depend on the clock")
        known = ", ".join([*FUNCTIONS, *self.vocabulary.roles])
        raise MatcherError(f"`{name}` is not a function known here: known are {known}")

    def _match_call(self, name: str, node: ast.Call) -> Condition:
        if len(node.args) != 2:
            raise MatcherError(f"`{ast.unparse(node)}`: `{name}` takes a text and a pattern")
        text, pattern = self.text(node.args[0]), self._column_or_literal(node.args[1], "pattern")
        self.uses.patterns.add(Pattern(name, pattern[0], pattern[1]))
        compiled = self.vocabulary.patterns
        if not pattern[0]:
            key = (name, pattern[1])
            return lambda names: compiled[key](text(names))
        column = pattern[0]
        return lambda names: compiled[name, names[column]](text(names))

    def _role_call(self, name: str, node: ast.Call) -> Condition:
        with_domain = name in self.vocabulary.domains
        if len(node.args) != (3 if with_domain else 2):
            raise MatcherError(f"`{ast.unparse(node)}` has not as many arguments as `{name}` is defined with")
        first = node.args[0]
        if not (isinstance(first, ast.Name) and first.id in self.vocabulary.terms):
            raise MatcherError(f"`{ast.unparse(node)}`: the first argument of `{name}` is one of `r`'s terms")
        term = first.id
        column, literal = self._column_or_literal(node.args[1], "role")
        roles = self.vocabulary.roles[name]
        role: Text = itemgetter(column) if column else lambda _: literal
        if not with_domain:
            self.uses.roles.add(RoleCall(name, term, column))
            return lambda names: role(names) in roles.roles_of(names[term])
        domain = self.text(node.args[2])
        self.uses.roles.add(RoleCall(name, term, column, ast.unparse(node.args[2])))
        return lambda names: role(names) in roles.roles_of(names[term], domain(names))

    def _column_or_literal(self, node: ast.expr, what: str) -> tuple[str, str]:
        if isinstance(node, ast.Name) and node.id in self.vocabulary.columns:
            return node.id, ""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return "", node.value
        raise MatcherError(
            f"`{ast.unparse(node)}` cannot be a {what}: use p.X or a text in quotes, never a caller's text"
        )


def _all(parts: tuple[Condition, ...]) -> Condition:
    if len(parts) == 2:
        a, b = parts
        return lambda names: a(names) and b(names)
    return lambda names: all(part(names) for part in parts)


def _any(parts: tuple[Condition, ...]) -> Condition:
    return lambda names: any(part(names) for part in parts)


def _required(node: ast.expr, vocabulary: Vocabulary) -> Required:
    equal: list[tuple[str, str]] = []
    roles: list[RoleCall] = []
    for part in _conjuncts(node):
        if isinstance(part, ast.Compare) and isinstance(part.ops[0], ast.Eq):
            pair = _term_and_column(part.left, part.comparators[0], vocabulary)
            if pair is not None:
                equal.append(pair)
        elif isinstance(part, ast.Call) and isinstance(part.func, ast.Name):
            name = part.func.id
            if name in vocabulary.roles and isinstance(part.args[0], ast.Name):
                column = part.args[1]
                domain = part.args[2] if len(part.args) == 3 else None
                # The domain must be the call's: a row's own domain is known only once the row is found.
                fits = domain is None or (isinstance(domain, ast.Name) and domain.id in vocabulary.terms)
                if isinstance(column, ast.Name) and fits:
                    domain_term = domain.id if isinstance(domain, ast.Name) else None
                    roles.append(RoleCall(name, part.args[0].id, column.id, domain_term))
    return Required(tuple(equal), tuple(roles))


def _conjuncts(node: ast.expr) -> Sequence[ast.expr]:
    if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
        return [part for value in node.values for part in _conjuncts(value)]
    return [node]


def _term_and_column(a: ast.expr, b: ast.expr, vocabulary: Vocabulary) -> tuple[str, str] | None:
    if isinstance(a, ast.Name) and isinstance(b, ast.Name):
        for term, column in ((a.id, b.id), (b.id, a.id)):
            if term in vocabulary.terms and column in vocabulary.columns:
                return term, column
    return None


def _shown(name: str) -> str:
    return re.sub(r"^([rp])_", r"\1.", name)
