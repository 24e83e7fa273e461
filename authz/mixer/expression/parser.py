"""Tokens -> tree, by Go's precedences. Every loop and recursion is bounded by the tree's depth."""

from __future__ import annotations

import math

from authz.mixer.expression.lexer import Token, TokenKind, tokenize
from authz.mixer.expression.syntax import (
    MAX_DEPTH,
    PRECEDENCE,
    Call,
    Chain,
    Comparison,
    ExpressionError,
    Index,
    Literal,
    Name,
    Node,
)

_CHAINED = frozenset({"||", "&&", "|", "+"})
_MAX_INT64 = 2**63 - 1


def parse_expression(text: str) -> Node:
    """Return the tree of `text`.

    Raises:
        ExpressionError: `text` is not an expression, too long, or nested too deeply.

    """
    parser = _Parser(tokenize(text))
    node = parser.binary(1)
    parser.expect("", "the end")
    return node


class _Parser:
    """A cursor over tokens; `_opened` counts the brackets it stands in, which cost stack."""

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._at = 0
        self._opened = 0

    def binary(self, lowest: int) -> Node:
        """Parse operators that bind at least as strongly as `lowest` (precedence climbing)."""
        left = self._postfix()
        growing = ""  # the operator of a chain that this loop started and may extend
        while True:
            sign = self._tokens[self._at]
            own = PRECEDENCE.get(sign.text, 0) if sign.kind is TokenKind.SIGN else 0
            if own < lowest or own == 0:
                return left
            self._at += 1
            right = self.binary(own + 1)
            if growing == sign.text and isinstance(left, Chain):
                left = self._chain(sign.text, (*left.operands, right), left.column)
            elif sign.text in _CHAINED:
                left, growing = self._chain(sign.text, (left, right), left.column), sign.text
            else:
                left = Comparison(sign.text, left, right, sign.column, self._depth(left, right))
                growing = ""

    def _chain(self, operator: str, operands: tuple[Node, ...], column: int) -> Chain:
        return Chain(operator, operands, column, self._depth(*operands))

    def _depth(self, *children: Node) -> int:
        depth = 1 + max((child.depth for child in children), default=0)
        if depth > MAX_DEPTH:
            raise self._too_deep()
        return depth

    def _too_deep(self) -> ExpressionError:
        column = self._tokens[self._at].column
        return ExpressionError("expression_too_deep", f"nested more than {MAX_DEPTH} levels deep", column)

    def _postfix(self) -> Node:
        node = self._primary()
        while True:
            sign = self._tokens[self._at]
            if sign.kind is not TokenKind.SIGN or sign.text not in {".", "[", "("}:
                return node
            self._at += 1
            if sign.text == ".":
                node = self._selected(node)
            elif sign.text == "[":
                key = self._within("]")
                node = Index(node, key, sign.column, self._depth(node, key))
            elif isinstance(node, Name) and "." not in node.text:
                arguments = self._arguments()
                node = Call(node.text, None, arguments, node.column, self._depth(*arguments))
            else:
                raise ExpressionError("expression_syntax", "this cannot be called", sign.column)

    def _selected(self, node: Node) -> Node:
        name = self._tokens[self._at]
        if name.kind is not TokenKind.NAME:
            raise ExpressionError("expression_syntax", "expected a name after `.`", name.column)
        self._at += 1
        if self._tokens[self._at].text == "(" and self._tokens[self._at].kind is TokenKind.SIGN:
            self._at += 1
            arguments = self._arguments()
            return Call(name.text, node, arguments, name.column, self._depth(node, *arguments))
        if not isinstance(node, Name):
            raise ExpressionError(
                "expression_syntax", f"`.{name.text}` follows something unnamed", name.column
            )
        return Name(f"{node.text}.{name.text}", node.column)

    def _primary(self) -> Node:
        token = self._tokens[self._at]
        self._at += 1
        if token.kind is TokenKind.STRING:
            return Literal(token.text, token.column)
        if token.kind is TokenKind.INTEGER:
            return Literal(_integer(token), token.column)
        if token.kind is TokenKind.FLOAT:
            number = float(token.text)
            if math.isinf(number):
                raise ExpressionError("expression_syntax", "this number is too large", token.column)
            return Literal(number, token.column)
        if token.kind is TokenKind.NAME:
            if token.text.lower() in {"true", "false"} and self._tokens[self._at].text != "(":
                return Literal(token.text.lower() == "true", token.column)
            return Name(token.text, token.column)
        if token.text == "(":
            return self._within(")")
        found = f"`{token.text}`" if token.text else "the end"
        raise ExpressionError("expression_syntax", f"expected a value, found {found}", token.column)

    def _within(self, closing: str) -> Node:
        self._opened += 1
        if self._opened > MAX_DEPTH:
            raise self._too_deep()
        node = self.binary(1)
        self.expect(closing, f"`{closing}`")
        self._opened -= 1
        return node

    def _arguments(self) -> tuple[Node, ...]:
        self._opened += 1
        if self._opened > MAX_DEPTH:
            raise self._too_deep()
        arguments: list[Node] = []
        while not self._is_sign(")"):
            arguments.append(self.binary(1))
            if not self._is_sign(")"):
                self.expect(",", "`,` or `)`")
        self.expect(")", "`)`")
        self._opened -= 1
        return tuple(arguments)

    def _is_sign(self, text: str) -> bool:
        token = self._tokens[self._at]
        return token.kind is TokenKind.SIGN and token.text == text

    def expect(self, text: str, described: str) -> None:
        """Take the sign `text` (empty: the end of the input) or fail."""
        token = self._tokens[self._at]
        kind = TokenKind.SIGN if text else TokenKind.END
        if token.kind is not kind or token.text != text:
            found = f"`{token.text}`" if token.kind is not TokenKind.END else "the end"
            raise ExpressionError("expression_syntax", f"expected {described}, found {found}", token.column)
        self._at += 1


def _integer(token: Token) -> int:
    number = int(token.text) if len(token.text) <= 19 else _MAX_INT64 + 1
    if number > _MAX_INT64:
        raise ExpressionError("expression_syntax", "this number does not fit 64 bits", token.column)
    if len(token.text) > 1 and token.text[0] == "0":
        raise ExpressionError("expression_syntax", "numbers are decimal, without leading zeros", token.column)
    return number
