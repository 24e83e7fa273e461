"""The functions that expressions may call, one row each.

`conditional`, `conditionalString` and `matches` are not here: they look at one branch only, or need their
pattern when policies are compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from authz.mixer.expression.values import (
    EmptyMap,
    Value,
    ValueType,
    parse_dns_name,
    parse_email,
    parse_ip,
    parse_timestamp,
    parse_uri,
)


@dataclass(frozen=True, slots=True)
class Function:
    """A function's types; a method takes its target as its first argument."""

    arguments: tuple[ValueType, ...]
    result: ValueType
    call: Callable[..., Value]
    method: bool = False


def _match(text: str, pattern: str) -> bool:
    """Return whether `text` fits `pattern`: a trailing `*` is tried first, then a leading one."""
    if pattern.endswith("*"):
        return text.startswith(pattern[:-1])
    if pattern.startswith("*"):
        return text.endswith(pattern[1:])
    return text == pattern


def _to_lower(text: str) -> str:
    return text.lower()


def _starts_with(text: str, prefix: str) -> bool:
    return text.startswith(prefix)


def _ends_with(text: str, suffix: str) -> bool:
    return text.endswith(suffix)


_STRING = ValueType.STRING
FUNCTIONS: dict[str, Function] = {
    "match": Function((_STRING, _STRING), ValueType.BOOL, _match),
    "startsWith": Function((_STRING, _STRING), ValueType.BOOL, _starts_with, method=True),
    "endsWith": Function((_STRING, _STRING), ValueType.BOOL, _ends_with, method=True),
    "toLower": Function((_STRING,), _STRING, _to_lower),
    "emptyStringMap": Function((), ValueType.STRING_MAP, EmptyMap),
    "ip": Function((_STRING,), ValueType.IP_ADDRESS, parse_ip),
    "timestamp": Function((_STRING,), ValueType.TIMESTAMP, parse_timestamp),
    "dnsName": Function((_STRING,), ValueType.DNS_NAME, parse_dns_name),
    "email": Function((_STRING,), ValueType.EMAIL_ADDRESS, parse_email),
    "uri": Function((_STRING,), ValueType.URI, parse_uri),
}
