"""Mixer's expression language: compile once, evaluate per call.

`compile_expression` gives an `Expression` or an `ExpressionError` with the column; `Expression.evaluate`
gives a value or an `EvaluationError`, and never anything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from authz.mixer.expression.check import check_types
from authz.mixer.expression.parser import parse_expression
from authz.mixer.expression.syntax import ExpressionError, format_expression
from authz.mixer.expression.tree import Checked, Source, attributes_of, required
from authz.mixer.expression.values import ABSENT, Absent, EvaluationError, StringMap, Value, ValueType

__all__ = [
    "ABSENT",
    "Absent",
    "EvaluationError",
    "Expression",
    "ExpressionError",
    "Source",
    "StringMap",
    "Value",
    "ValueType",
    "compile_expression",
    "format_expression",
    "parse_expression",
]


@dataclass(frozen=True, slots=True)
class Expression:
    """A checked expression: its text, its static type, its tree, and the attributes it can look at."""

    text: str
    type: ValueType
    tree: Checked
    attributes: frozenset[str]

    def evaluate(self, source: Source) -> Value:
        """Return the value for the call behind `source`.

        Raises:
            EvaluationError: something is absent without a default, or has no value of its type.

        """
        return required(self.tree, source)


def compile_expression(text: str, types: Mapping[str, ValueType]) -> Expression:
    """Return `text` as an expression over the attributes in `types`.

    Raises:
        ExpressionError: `text` is not an expression, or its types do not fit; with the column in `text`.

    """
    tree, kind = check_types(parse_expression(text), types)
    return Expression(text, kind, tree, frozenset(attributes_of(tree)))
