"""The values that expressions work on, and how text becomes one.

Every type has one canonical form, so that `==` of two values is Python's `==`:

| type | value |
| --- | --- |
| STRING | str |
| INT64 | int |
| DOUBLE | float |
| BOOL | bool |
| TIMESTAMP | int, nanoseconds since the epoch |
| DURATION | int, nanoseconds |
| IP_ADDRESS | `ipaddress` object; an IPv4-mapped IPv6 address is the IPv4 address |
| EMAIL_ADDRESS | str, its domain as a DNS_NAME |
| DNS_NAME | str, lower case, IDNA, without trailing dot |
| URI | str, scheme and host in lower case |
| STRING_MAP | `StringMap` |
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from enum import Enum, StrEnum
from ipaddress import AddressValueError, IPv4Address, IPv6Address, ip_address
from typing import Literal, Protocol, TypeAlias, runtime_checkable
from urllib.parse import urlsplit, urlunsplit


class ValueType(StrEnum):
    """The static type of an attribute or expression, spelled as in `attributemanifest`."""

    STRING = "STRING"
    INT64 = "INT64"
    DOUBLE = "DOUBLE"
    BOOL = "BOOL"
    TIMESTAMP = "TIMESTAMP"
    IP_ADDRESS = "IP_ADDRESS"
    EMAIL_ADDRESS = "EMAIL_ADDRESS"
    URI = "URI"
    DNS_NAME = "DNS_NAME"
    DURATION = "DURATION"
    STRING_MAP = "STRING_MAP"


class _Absent(Enum):
    """The type of `ABSENT`, so that checkers can tell it from a value."""

    ABSENT = "absent"


# An attribute or map key that is not there. Only `|` and `conditional` pass it on.
ABSENT = _Absent.ABSENT
Absent: TypeAlias = Literal[_Absent.ABSENT]
Address: TypeAlias = IPv4Address | IPv6Address


@runtime_checkable
class StringMap(Protocol):
    """A STRING_MAP: text by key, looked up one at a time."""

    def get(self, key: str) -> str | Absent:
        """Return the text under `key`.

        Raises:
            EvaluationError: there is no single answer, as with a header sent twice.

        """


Value: TypeAlias = str | int | float | bool | Address | StringMap


class EvaluationError(ValueError):
    """An expression has no value for this call; the message says why."""


class EmptyMap:
    """The value of `emptyStringMap()`."""

    __slots__ = ()

    def get(self, key: str) -> str | Absent:  # noqa: ARG002 - the shape of StringMap
        """Return ABSENT."""
        return ABSENT


_MAX_INT64 = 2**63 - 1
_INTEGER = re.compile(r"-?[0-9]{1,19}")
_DECIMAL = re.compile(r"-?[0-9]{1,300}(?:\.[0-9]{1,300})?")
# RFC 3339, section 5.6.
_TIMESTAMP = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?"
    r"(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))"
)
_NANOSECONDS = {
    "ns": 1,
    "us": 1_000,
    "\u00b5s": 1_000,  # micro sign
    "\u03bcs": 1_000,  # Greek mu
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_DURATION_PART = re.compile(r"([0-9]{0,19})(?:\.([0-9]{0,19}))?(ns|us|\u00b5s|\u03bcs|ms|s|m|h)")
# RFC 1035, section 2.3.4; more than that is no name, and IDNA is slow on long text.
_MAX_DNS_NAME = 253
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
# RFC 5322, `atext`, with dots.
_LOCAL_PART = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.\-\u0080-\ud7ff\ue000-\U0010ffff]{1,64}")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_NOT_IN_URI = re.compile(r"[\x00-\x20\x7f]")


def parse_int64(text: str) -> int:
    """Return the INT64 in `text`, decimal.

    Raises:
        EvaluationError: not a whole number of 64 bits.

    """
    number = int(text) if _INTEGER.fullmatch(text) else _MAX_INT64 + 1
    if not -_MAX_INT64 - 1 <= number <= _MAX_INT64:
        raise EvaluationError(f"`{text[:40]}` is not a whole number of 64 bits")
    return number


def parse_double(text: str) -> float:
    """Return the DOUBLE in `text`; no infinity and no NaN, which compares to nothing.

    Raises:
        EvaluationError: not a decimal number.

    """
    if not _DECIMAL.fullmatch(text):
        raise EvaluationError(f"`{text[:40]}` is not a decimal number")
    return float(text)


def parse_bool(text: str) -> bool:
    """Return the BOOL in `text`, `true` or `false`.

    Raises:
        EvaluationError: something else.

    """
    if text not in {"true", "false"}:
        raise EvaluationError(f"`{text[:40]}` is neither `true` nor `false`")
    return text == "true"


def parse_ip(text: str) -> Address:
    """Return the IP_ADDRESS in `text`; a zone (`%eth0`) is refused.

    Raises:
        EvaluationError: not an address.

    """
    try:
        address = ip_address(text)
    except (AddressValueError, ValueError):
        raise EvaluationError(f"`{text[:60]}` is not a valid IP address") from None
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            raise EvaluationError(f"`{text[:60]}` is not a valid IP address")
        return address.ipv4_mapped or address
    return address


def parse_timestamp(text: str) -> int:
    """Return the TIMESTAMP that `text` spells by RFC 3339, in nanoseconds since the epoch.

    Raises:
        EvaluationError: not of that form, or no such day.

    """
    match = _TIMESTAMP.fullmatch(text)
    if match is None:
        raise EvaluationError(f"`{text[:60]}` is not an RFC 3339 timestamp")
    date, clock, fraction, sign, hours, minutes = match.groups()
    try:
        moment = datetime.fromisoformat(f"{date}T{clock}").replace(tzinfo=UTC)
    except ValueError:
        raise EvaluationError(f"`{text[:60]}` is not an RFC 3339 timestamp") from None
    offset = (int(hours) * 60 + int(minutes)) * 60 if sign else 0
    if offset >= 86_400:
        raise EvaluationError(f"`{text[:60]}` is not an RFC 3339 timestamp")
    whole = moment - datetime(1970, 1, 1, tzinfo=UTC)
    seconds = whole.days * 86_400 + whole.seconds + (offset if sign == "-" else -offset)
    return seconds * 1_000_000_000 + int((fraction or "").ljust(9, "0"))


def parse_duration(text: str) -> int:
    """Return the DURATION that `text` spells as Go does (`1h30m`, `-1.5s`, `0`), in nanoseconds.

    Raises:
        EvaluationError: not of that form, or longer than 64 bits hold.

    """
    rest = text[1:] if text[:1] in {"+", "-"} else text
    if rest == "0":
        return 0
    total, at = 0, 0
    while at < len(rest):
        part = _DURATION_PART.match(rest, at)
        if part is None or not (part[1] or part[2]):
            break
        unit = _NANOSECONDS[part[3]]
        total += int(part[1] or "0") * unit
        if part[2]:
            total += int(part[2]) * unit // 10 ** len(part[2])
        at = part.end()
    if not rest or at != len(rest) or total > _MAX_INT64:
        raise EvaluationError(f"`{text[:60]}` is not a duration such as `1h30m` or `250ms`")
    return -total if text[0] == "-" else total


def parse_dns_name(text: str) -> str:
    """Return the DNS_NAME in `text`, in lower case, as ASCII (IDNA), without its trailing dot.

    Raises:
        EvaluationError: not a domain name.

    """
    name = text.removesuffix(".")
    if not name.isascii() and len(name) <= _MAX_DNS_NAME:
        try:
            name = name.encode("idna").decode("ascii")
        except UnicodeError:
            name = ""
    name = name.lower()
    if not 0 < len(name) <= _MAX_DNS_NAME or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise EvaluationError(f"`{text[:60]}` is not a DNS name")
    return name


def parse_email(text: str) -> str:
    """Return the EMAIL_ADDRESS in `text`: the local part as it is, the domain as a DNS_NAME.

    Raises:
        EvaluationError: not a bare address (`local@domain`).

    """
    local, _, domain = text.rpartition("@")
    if not _LOCAL_PART.fullmatch(local):
        raise EvaluationError(f"`{text[:60]}` is not an e-mail address")
    try:
        return f"{local}@{parse_dns_name(domain)}"
    except EvaluationError:
        raise EvaluationError(f"`{text[:60]}` is not an e-mail address") from None


def parse_uri(text: str) -> str:
    """Return the URI in `text`, with scheme and host in lower case and the rest as it is.

    Raises:
        EvaluationError: empty, with spaces or control characters, or with a broken authority.

    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise EvaluationError(f"`{text[:60]}` is not a URI") from None
    if not text or _NOT_IN_URI.search(text):
        raise EvaluationError(f"`{text[:60]}` is not a URI")
    if not _SCHEME.match(text) and not parts.netloc:
        return text
    user, at, host = parts.netloc.rpartition("@")
    if port is None:
        host = host.removesuffix(":")
    if parts.scheme in {"http", "https"}:
        host = host.removesuffix(".")
    return urlunsplit((parts.scheme, f"{user}{at}{host.lower()}", parts.path, parts.query, parts.fragment))
