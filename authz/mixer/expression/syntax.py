"""The tree that text parses to, before types are known, and how it prints.

The subset of Go's expression syntax that Mixer used. Columns count from 1 and do not take part in equality.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

# How deep a tree may be; parsing, checking and evaluating recurse. Chains of `&&`, `||`, `|`, `+` are flat.
MAX_DEPTH = 40
# Mixer's own samples stay below 600 characters.
MAX_LENGTH = 16_384


class ExpressionError(ValueError):
    """Text that is no expression, or one whose types do not fit; `column` counts from 1."""

    def __init__(self, code: str, message: str, column: int, help: str = "") -> None:  # noqa: A002
        super().__init__(message)
        self.code = code
        self.message = message
        self.column = column
        self.help = help


@dataclass(frozen=True, slots=True)
class Literal:
    """A string, number or boolean; strings that read as durations become DURATION when types are checked."""

    value: str | int | float | bool
    column: int = field(default=1, compare=False)
    depth: int = field(default=1, compare=False)


@dataclass(frozen=True, slots=True)
class Name:
    """A dotted name."""

    text: str
    column: int = field(default=1, compare=False)
    depth: int = field(default=1, compare=False)


@dataclass(frozen=True, slots=True)
class Index:
    """`target[key]`."""

    target: Node
    key: Node
    column: int = field(default=1, compare=False)
    depth: int = field(default=1, compare=False)


@dataclass(frozen=True, slots=True)
class Call:
    """`name(…)` or `target.name(…)`."""

    name: str
    target: Node | None
    arguments: tuple[Node, ...]
    column: int = field(default=1, compare=False)
    depth: int = field(default=1, compare=False)


@dataclass(frozen=True, slots=True)
class Chain:
    """Two or more operands of one of `||`, `&&`, `|`, `+`, which group from the left."""

    operator: str
    operands: tuple[Node, ...]
    column: int = field(default=1, compare=False)
    depth: int = field(default=1, compare=False)


@dataclass(frozen=True, slots=True)
class Comparison:
    """`left operator right` with one of `==`, `!=`, `<`, `<=`, `>`, `>=`."""

    operator: str
    left: Node
    right: Node
    column: int = field(default=1, compare=False)
    depth: int = field(default=1, compare=False)


Node: TypeAlias = Literal | Name | Index | Call | Chain | Comparison

# Go's precedences (The Go Programming Language Specification, "Operators"); `|` binds like `+`.
PRECEDENCE = {
    "||": 1,
    "&&": 2,
    "==": 3,
    "!=": 3,
    "<": 3,
    "<=": 3,
    ">": 3,
    ">=": 3,
    "+": 4,
    "|": 4,
}
_POSTFIX = 5
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def format_expression(node: Node) -> str:
    """Return text that parses to `node`."""
    return _format(node, 0)


def _format(node: Node, binding: int) -> str:
    if isinstance(node, Literal):
        text = _literal(node.value)
        # `1.x` would read as the number `1.` and a name.
        return f"({text})" if binding == _POSTFIX and not isinstance(node.value, str) else text
    if isinstance(node, Name):
        return node.text
    if isinstance(node, Index):
        return f"{_format(node.target, _POSTFIX)}[{_format(node.key, 0)}]"
    if isinstance(node, Call):
        target = "" if node.target is None else f"{_format(node.target, _POSTFIX)}."
        return f"{target}{node.name}({', '.join(_format(one, 0) for one in node.arguments)})"
    own = PRECEDENCE[node.operator]
    if isinstance(node, Chain):
        first, *others = node.operands
        # A first operand with the same operator would merge into this chain without its parentheses.
        left = own + 1 if isinstance(first, Chain) and first.operator == node.operator else own
        text = f" {node.operator} ".join([_format(first, left), *(_format(one, own + 1) for one in others)])
    else:
        text = f"{_format(node.left, own)} {node.operator} {_format(node.right, own + 1)}"
    return f"({text})" if own < binding else text


def _literal(value: str | float) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return f"{value!r}"
    return '"' + "".join(_character(one) for one in value) + '"'


def _character(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
