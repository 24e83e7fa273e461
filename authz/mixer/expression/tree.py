"""The checked tree: types are known and fit, functions are bound, constants are folded. Immutable.

Absence passes through an attribute, a map lookup, `|` and the chosen branch of `conditional`, and through
nothing else: an operator or function with an absent operand has no value (`EvaluationError`). `&&` and `||`
are decided by any operand that decides them, whatever stands beside it: `false && x` is false also when `x`
has no value, in either order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias, cast

from authz.mixer.expression.values import ABSENT, Absent, EvaluationError, StringMap, Value
from authz.patterns import Pattern, PatternError

# The longest text an expression may build; longer than any header Envoy takes.
MAX_TEXT = 65_536
_INT64 = range(-(2**63), 2**63)


class Source(Protocol):
    """Where attributes come from."""

    def value(self, name: str) -> Value | Absent:
        """Return the attribute `name`, ABSENT when the call has none.

        Raises:
            EvaluationError: it is there but has no value of its type.

        """


@dataclass(frozen=True, slots=True)
class Constant:
    """A value that is known when policies are compiled."""

    value: Value

    def evaluate(self, source: Source) -> Value | Absent:  # noqa: ARG002 - the shape of Checked
        """Return the value."""
        return self.value


@dataclass(frozen=True, slots=True)
class Attribute:
    """An attribute of the call."""

    name: str

    def evaluate(self, source: Source) -> Value | Absent:
        """Return what the call has."""
        return source.value(self.name)


@dataclass(frozen=True, slots=True)
class Lookup:
    """`map[key]`."""

    map: Checked
    key: Checked

    def evaluate(self, source: Source) -> Value | Absent:
        """Return the text under the key; absent when map, key or entry is."""
        found = self.map.evaluate(source)
        key = self.key.evaluate(source)
        if found is ABSENT or key is ABSENT:
            return ABSENT
        return cast("StringMap", found).get(cast("str", key))


@dataclass(frozen=True, slots=True)
class Default:
    """`a | b | …`: the first that is present."""

    options: tuple[Checked, ...]

    def evaluate(self, source: Source) -> Value | Absent:
        """Return the first value; errors are not absence and end the search."""
        for option in self.options:
            value = option.evaluate(source)
            if value is not ABSENT:
                return value
        return ABSENT


@dataclass(frozen=True, slots=True)
class Conditional:
    """`conditional(condition, then, otherwise)`; the other branch is not looked at."""

    condition: Checked
    then: Checked
    otherwise: Checked

    def evaluate(self, source: Source) -> Value | Absent:
        """Return the value of the chosen branch."""
        return (self.then if required(self.condition, source) else self.otherwise).evaluate(source)


@dataclass(frozen=True, slots=True)
class Logic:
    """`&&` (`deciding` is False) or `||` (`deciding` is True)."""

    deciding: bool
    operands: tuple[Checked, ...]

    def evaluate(self, source: Source) -> Value | Absent:
        """Return the truth value; an operand without one matters only when no other decides."""
        undecided: EvaluationError | None = None
        for operand in self.operands:
            try:
                if required(operand, source) is self.deciding:
                    return self.deciding
            except EvaluationError as error:
                undecided = undecided or error
        if undecided is not None:
            raise undecided
        return not self.deciding


@dataclass(frozen=True, slots=True)
class Equality:
    """`==`, or `!=` when `negated`; values are canonical, so types need no rules of their own."""

    left: Checked
    right: Checked
    negated: bool

    def evaluate(self, source: Source) -> Value | Absent:
        """Return whether both are equal."""
        return (required(self.left, source) == required(self.right, source)) is not self.negated


@dataclass(frozen=True, slots=True)
class Order:
    """`<` (or `<=` when `equal`); `>` is the same with sides swapped."""

    left: Checked
    right: Checked
    equal: bool

    def evaluate(self, source: Source) -> Value | Absent:
        """Return whether the left value comes first."""
        left = cast("int", required(self.left, source))
        right = cast("int", required(self.right, source))
        return left < right or (self.equal and left == right)


@dataclass(frozen=True, slots=True)
class TextSum:
    """`+` of STRINGs."""

    operands: tuple[Checked, ...]

    def evaluate(self, source: Source) -> Value | Absent:
        """Return the joined text."""
        text = "".join(cast("str", required(operand, source)) for operand in self.operands)
        if len(text) > MAX_TEXT:
            raise EvaluationError(f"a text of more than {MAX_TEXT} characters")
        return text


@dataclass(frozen=True, slots=True)
class NumberSum:
    """`+` of INT64s or of DOUBLEs."""

    operands: tuple[Checked, ...]

    def evaluate(self, source: Source) -> Value | Absent:
        """Return the sum."""
        total = sum(cast("float", required(operand, source)) for operand in self.operands)
        if isinstance(total, int) and total not in _INT64:
            raise EvaluationError("a sum that does not fit 64 bits")
        if total in {float("inf"), float("-inf")}:
            raise EvaluationError("a sum that is too large")
        return total


@dataclass(frozen=True, slots=True)
class Matches:
    """`pattern.matches(text)`."""

    pattern: Pattern
    text: Checked

    def evaluate(self, source: Source) -> Value | Absent:
        """Return whether the pattern is found anywhere in the text."""
        try:
            return self.pattern.found_in(cast("str", required(self.text, source)))
        except PatternError as error:
            raise EvaluationError(str(error)) from None


@dataclass(frozen=True, slots=True)
class Apply:
    """A function of values. `call` is a module-level function, one per `name`."""

    name: str
    call: Callable[..., Value]
    arguments: tuple[Checked, ...]

    def evaluate(self, source: Source) -> Value | Absent:
        """Return what the function makes of its arguments."""
        return self.call(*[required(argument, source) for argument in self.arguments])


Checked: TypeAlias = (
    Constant
    | Attribute
    | Lookup
    | Default
    | Conditional
    | Logic
    | Equality
    | Order
    | TextSum
    | NumberSum
    | Matches
    | Apply
)


def required(node: Checked, source: Source) -> Value:
    """Return the value of `node`.

    Raises:
        EvaluationError: it is absent, or has none.

    """
    value = node.evaluate(source)
    if value is ABSENT:
        raise EvaluationError(f"{_described(node)} is absent")
    return value


def _described(node: Checked) -> str:
    if isinstance(node, Attribute):
        return f"`{node.name}`"
    if isinstance(node, Lookup) and isinstance(node.map, Attribute):
        if isinstance(node.key, Constant):
            return f"`{node.map.name}[{node.key.value}]`"
        return f"an entry of `{node.map.name}`"
    if isinstance(node, Default):
        return " and ".join(_described(option) for option in node.options)
    if isinstance(node, Conditional):
        return "the chosen branch of `conditional`"
    return "a value"


def attributes_of(node: Checked) -> set[str]:
    """Return the names of all attributes in `node`."""
    if isinstance(node, Attribute):
        return {node.name}
    return {name for child in children(node) for name in attributes_of(child)}


def children(node: Checked) -> tuple[Checked, ...]:
    """Return the nodes right below `node`."""
    if isinstance(node, Constant | Attribute):
        return ()
    if isinstance(node, Lookup):
        return (node.map, node.key)
    if isinstance(node, Default):
        return node.options
    if isinstance(node, Conditional):
        return (node.condition, node.then, node.otherwise)
    if isinstance(node, Equality | Order):
        return (node.left, node.right)
    if isinstance(node, Matches):
        return (node.text,)
    if isinstance(node, Apply):
        return node.arguments
    return node.operands
