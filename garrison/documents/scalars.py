"""What a scalar without quotes means: YAML 1.1 as Kubernetes tooling reads it.

`no` is a boolean and `010` is eight, so that the strict models can say "expected a string" where the author
meant one.
"""

from __future__ import annotations

import re

Scalar = str | bool | int | float | None

_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"), True),
    **dict.fromkeys(("false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"), False),
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
}
_NUMBER_START = frozenset("0123456789+-.")
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)")
_PREFIXED_INTEGER = re.compile(r"([-+]?)0([xob]?)([0-9a-fA-F_]+)")
_FLOAT = re.compile(r"[-+]?(?:[0-9][0-9_]*)?\.?[0-9_]*(?:[eE][-+]?[0-9]+)?")
_SPECIAL_FLOAT = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
# Reading digits takes time that grows with their square; Python itself refuses 4,300.
_MAX_DIGITS = 4000


def resolve_plain(text: str) -> Scalar:
    """Return the value of a scalar that stands without quotes."""
    if text in _WORDS:
        return _WORDS[text]
    return _number(text) if text[0] in _NUMBER_START else text


def _number(text: str) -> Scalar:
    if len(text) >= _MAX_DIGITS:
        return text
    if _INTEGER.fullmatch(text):
        return int(text.replace("_", ""))
    if match := _PREFIXED_INTEGER.fullmatch(text):
        sign, kind, digits = match.groups()
        base = {"x": 16, "o": 8, "b": 2, "": 8}[kind]
        try:
            return int(sign + digits.replace("_", ""), base)
        except ValueError:
            return text
    if _SPECIAL_FLOAT.fullmatch(text):
        return float(text.lower().replace(".", "", 1))
    if any(digit in text for digit in "0123456789") and "." in text and _FLOAT.fullmatch(text):
        try:
            return float(text.replace("_", ""))
        except ValueError:
            return text
    return text
