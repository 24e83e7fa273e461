"""Tree -> checked tree: every name known, every type right, every constant usable."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from authz.mixer.expression.functions import FUNCTIONS, Function
from authz.mixer.expression.syntax import (
    Call,
    Chain,
    Comparison,
    ExpressionError,
    Index,
    Literal,
    Name,
    Node,
)
from authz.mixer.expression.tree import (
    Apply,
    Attribute,
    Checked,
    Conditional,
    Constant,
    Default,
    Equality,
    Logic,
    Lookup,
    Matches,
    NumberSum,
    Order,
    TextSum,
)
from authz.mixer.expression.values import EvaluationError, ValueType, parse_duration
from authz.patterns import Pattern, PatternError

_ORDERED = frozenset({ValueType.INT64, ValueType.DOUBLE, ValueType.STRING, ValueType.TIMESTAMP})
_ADDED = frozenset({ValueType.INT64, ValueType.DOUBLE, ValueType.STRING})
_SPECIAL = frozenset({"conditional", "conditionalString", "matches"})
_METHODS = frozenset({"matches"} | {name for name, one in FUNCTIONS.items() if one.method})


def check_types(node: Node, types: Mapping[str, ValueType]) -> tuple[Checked, ValueType]:
    """Return the checked tree of `node` and its type; `types` holds every attribute there is.

    Raises:
        ExpressionError: an unknown attribute or function, a wrong type, or a constant that is none.

    """
    return _Checker(types).check(node)


@dataclass(frozen=True, slots=True)
class _Checker:
    types: Mapping[str, ValueType]

    def check(self, node: Node) -> tuple[Checked, ValueType]:
        if isinstance(node, Literal):
            return _literal(node)
        if isinstance(node, Name):
            return self._attribute(node)
        if isinstance(node, Index):
            target = self._expect(node.target, ValueType.STRING_MAP, "`[]` needs")
            return Lookup(target, self._expect(node.key, ValueType.STRING, "a key is")), ValueType.STRING
        if isinstance(node, Comparison):
            return self._comparison(node), ValueType.BOOL
        if isinstance(node, Chain):
            return self._chain(node)
        return self._call(node)

    def _expect(self, node: Node, wanted: ValueType, what: str) -> Checked:
        checked, found = self.check(node)
        if found is not wanted:
            raise _wrong_type(node, f"{what} {wanted}, this is {found}")
        return checked

    def _attribute(self, node: Name) -> tuple[Checked, ValueType]:
        found = self.types.get(node.text)
        if found is None:
            close = difflib.get_close_matches(node.text, self.types, n=1)
            hint = f"did you mean `{close[0]}`?" if close else "declare it in an attributemanifest"
            raise ExpressionError("unknown_attribute", f"unknown attribute `{node.text}`", node.column, hint)
        return Attribute(node.text), found

    def _comparison(self, node: Comparison) -> Checked:
        left, kind = self.check(node.left)
        right = self._expect(node.right, kind, f"`{node.operator}` compares {kind} with")
        if node.operator in {"==", "!="}:
            if kind is ValueType.STRING_MAP:
                raise _wrong_type(node, f"`{node.operator}` does not compare STRING_MAPs")
            return Equality(left, right, node.operator == "!=")
        if kind not in _ORDERED:
            raise _wrong_type(node, f"`{node.operator}` does not compare {kind}s")
        if node.operator.startswith(">"):
            left, right = right, left
        return Order(left, right, node.operator.endswith("="))

    def _chain(self, node: Chain) -> tuple[Checked, ValueType]:
        if node.operator in {"&&", "||"}:
            operands = tuple(
                self._expect(one, ValueType.BOOL, f"`{node.operator}` joins") for one in node.operands
            )
            return Logic(node.operator == "||", operands), ValueType.BOOL
        first, kind = self.check(node.operands[0])
        others = [
            self._expect(one, kind, f"all sides of `{node.operator}` here are") for one in node.operands[1:]
        ]
        operands = (first, *others)
        if node.operator == "|":
            return Default(operands), kind
        if kind not in _ADDED:
            raise _wrong_type(node, f"`+` does not add {kind}s")
        return (TextSum if kind is ValueType.STRING else NumberSum)(operands), kind

    def _call(self, node: Call) -> tuple[Checked, ValueType]:
        function = FUNCTIONS.get(node.name)
        if function is None and node.name not in _SPECIAL:
            known = sorted(_SPECIAL | set(FUNCTIONS))
            close = difflib.get_close_matches(node.name, known, n=1)
            hint = f"did you mean `{close[0]}`?" if close else f"known: {', '.join(known)}"
            raise ExpressionError("unknown_function", f"unknown function `{node.name}`", node.column, hint)
        if (node.target is not None) is not (node.name in _METHODS):
            form = f"value.{node.name}(…)" if node.name in _METHODS else f"{node.name}(…)"
            raise ExpressionError("call_form", f"`{node.name}` is called as `{form}`", node.column)
        if node.name == "matches":
            return self._matches(node), ValueType.BOOL
        if function is None:
            return self._conditional(node)
        return self._apply(node, function)

    def _apply(self, node: Call, function: Function) -> tuple[Checked, ValueType]:
        given = node.arguments if node.target is None else (node.target, *node.arguments)
        _count(node, len(function.arguments) - (node.target is not None))
        arguments = tuple(
            self._expect(argument, wanted, f"`{node.name}` takes a")
            for argument, wanted in zip(given, function.arguments, strict=True)
        )
        constants = [argument.value for argument in arguments if isinstance(argument, Constant)]
        if len(constants) < len(arguments):
            return Apply(node.name, function.call, arguments), function.result
        try:
            return Constant(function.call(*constants)), function.result
        except EvaluationError as error:
            column = given[0].column if given else node.column
            raise ExpressionError("constant", str(error), column) from error

    def _matches(self, node: Call) -> Checked:
        _count(node, 1)
        if not isinstance(node.target, Literal) or not isinstance(node.target.value, str):
            raise ExpressionError(
                "pattern_not_constant",
                "the pattern of `matches` is not a string literal",
                node.column,
                "only the policy's author writes patterns",
            )
        try:
            pattern = Pattern(node.target.value)
        except PatternError as error:
            raise ExpressionError("pattern", str(error), node.target.column) from error
        return Matches(pattern, self._expect(node.arguments[0], ValueType.STRING, "`matches` takes a"))

    def _conditional(self, node: Call) -> tuple[Checked, ValueType]:
        _count(node, 3)
        condition = self._expect(node.arguments[0], ValueType.BOOL, f"the condition of `{node.name}` is")
        then, kind = self.check(node.arguments[1])
        if node.name == "conditionalString" and kind is not ValueType.STRING:
            raise _wrong_type(node.arguments[1], f"`conditionalString` chooses a STRING, this is {kind}")
        otherwise = self._expect(node.arguments[2], kind, f"both branches of `{node.name}` here are")
        return Conditional(condition, then, otherwise), kind


def _literal(node: Literal) -> tuple[Checked, ValueType]:
    value = node.value
    if isinstance(value, bool):
        return Constant(value), ValueType.BOOL
    if isinstance(value, int):
        return Constant(value), ValueType.INT64
    if isinstance(value, float):
        return Constant(value), ValueType.DOUBLE
    try:
        return Constant(parse_duration(value)), ValueType.DURATION
    except EvaluationError:
        return Constant(value), ValueType.STRING


def _count(node: Call, wanted: int) -> None:
    if len(node.arguments) != wanted:
        message = (
            f"`{node.name}` takes {wanted} argument{'' if wanted == 1 else 's'}, not {len(node.arguments)}"
        )
        raise ExpressionError("argument_count", message, node.column)


def _wrong_type(node: Node, message: str) -> ExpressionError:
    is_duration = isinstance(node, Literal) and "DURATION" in message
    hint = "a string that reads as a duration (`5s`, `0`) is a DURATION" if is_duration else ""
    return ExpressionError("expression_type", message, node.column, hint)
