"""Text -> tokens: Go's lexical rules for what Mixer's expressions use."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from authz.mixer.expression.syntax import MAX_LENGTH, ExpressionError


class TokenKind(StrEnum):
    """What a token is."""

    NAME = "name"
    INTEGER = "integer"
    FLOAT = "float"
    STRING = "string"
    SIGN = "sign"
    END = "end"


@dataclass(frozen=True, slots=True)
class Token:
    """A token; `text` of a string is what it says, not how it is written."""

    kind: TokenKind
    text: str
    column: int


_TOKEN = re.compile(
    r"""
    (?P<space>[ \t\r\n]+)
  | (?P<float>[0-9]+\.[0-9]*(?:[eE][+-]?[0-9]+)?|\.[0-9]+(?:[eE][+-]?[0-9]+)?|[0-9]+[eE][+-]?[0-9]+)
  | (?P<integer>[0-9]+)
  | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
  | (?P<string>"(?:[^"\\\n]|\\.)*"|`[^`]*`)
  | (?P<sign>\|\||&&|==|!=|<=|>=|[<>+|()\[\],.])
    """,
    re.VERBOSE,
)
_ESCAPE = re.compile(
    r"\\(?:([abfnrtv\\\"])|([0-7]{3})|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8}))"
)
_SIMPLE = {
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "v": "\v",
    "\\": "\\",
    '"': '"',
}


def tokenize(text: str) -> list[Token]:
    """Return the tokens of `text`, the last of kind END.

    Raises:
        ExpressionError: `text` is too long or holds something that is no token.

    """
    if len(text) > MAX_LENGTH:
        raise ExpressionError(
            "expression_too_long", f"an expression has at most {MAX_LENGTH} characters", MAX_LENGTH + 1
        )
    tokens: list[Token] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise _no_token(text, at)
        group = match.lastgroup or "space"
        if group != "space":
            spelled = match[0]
            tokens.append(
                Token(TokenKind(group), _unquote(spelled, at) if group == "string" else spelled, at + 1)
            )
        at = match.end()
    tokens.append(Token(TokenKind.END, "", len(text) + 1))
    return tokens


def _no_token(text: str, at: int) -> ExpressionError:
    character = text[at]
    if character in '"`':
        return ExpressionError("expression_syntax", "this string does not end", at + 1)
    hint = {
        "!": "there is no negation: compare with `== false`",
        "=": "equality is `==`",
        "&": "conjunction is `&&`",
        "'": "strings stand in double quotes or backticks",
        "-": "there are no negative numbers and no subtraction",
    }.get(character, "")
    return ExpressionError("expression_syntax", f"`{character}` is not expected here", at + 1, hint)


def _unquote(spelled: str, at: int) -> str:
    if spelled[0] == "`":
        return spelled[1:-1].replace("\r", "")  # as Go does in raw strings
    body = spelled[1:-1]
    if "\\" not in body:
        return body
    # Octal and hexadecimal escapes are bytes, the others characters: put together as bytes, read as UTF-8.
    pieces: list[bytes] = []
    position = 0
    try:
        while position < len(body):
            if body[position] != "\\":
                pieces.append(body[position].encode())
                position += 1
                continue
            match = _ESCAPE.match(body, position)
            if match is None:
                raise ExpressionError(
                    "expression_syntax",
                    f"`{body[position : position + 2]}` is not an escape sequence",
                    at + position + 2,
                    "a raw string in backticks needs none",
                )
            pieces.append(_escaped(match))
            position = match.end()
        return b"".join(pieces).decode()
    except (OverflowError, ValueError) as error:
        if isinstance(error, ExpressionError):
            raise
        raise ExpressionError("expression_syntax", "this string is not valid UTF-8", at + 1) from error


def _escaped(match: re.Match[str]) -> bytes:
    simple, octal, byte, short, long = match.groups()
    if simple:
        return _SIMPLE[simple].encode()
    if octal:
        return bytes((int(octal, 8),))
    if byte:
        return bytes((int(byte, 16),))
    return chr(int(short or long, 16)).encode()
