"""DER (X.690) as far as we write it ourselves: elements, whole numbers and times. Pure."""

from __future__ import annotations

import base64
from datetime import datetime

INTEGER, BIT_STRING, OCTET_STRING, ENUMERATED = 0x02, 0x03, 0x04, 0x0A
UTC_TIME, GENERALIZED_TIME, SEQUENCE = 0x17, 0x18, 0x30
TRUE = b"\x01\x01\xff"
# Characters in a line (RFC 7468, section 2).
_PEM_LINE = 64
# The first that no UTCTime can say (RFC 5280, 4.1.2.5).
_FIRST_GENERALIZED_YEAR = 2050


def element(tag: int, content: bytes) -> bytes:
    """Return an element with its head."""
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes((tag, 0x80 | len(length))) + length + content


def explicit_tag(number: int) -> int:
    """Return the tag of an element that holds another: `[number] EXPLICIT`."""
    return 0xA0 | number


def integer(value: int) -> bytes:
    """Return a whole number that is not negative."""
    return element(INTEGER, value.to_bytes(value.bit_length() // 8 + 1))


def bit_string(content: bytes) -> bytes:
    """Return a bit string of whole bytes."""
    return element(BIT_STRING, b"\0" + content)


def time(moment: datetime) -> bytes:
    """Return a moment (UTC, whole seconds) as RFC 5280, 4.1.2.5, wants it."""
    if moment.year < _FIRST_GENERALIZED_YEAR:
        return element(UTC_TIME, moment.strftime("%y%m%d%H%M%SZ").encode())
    return element(GENERALIZED_TIME, moment.strftime("%Y%m%d%H%M%SZ").encode())


def first(data: bytes) -> tuple[bytes, int]:
    """Return the first element of well-formed `data` with its head, and how long the head is."""
    size, head = data[1], 2
    if size >= 0x80:
        head += size & 0x7F
        size = int.from_bytes(data[2:head])
    return data[: head + size], head


def elements(data: bytes) -> list[bytes]:
    """Return the elements that well-formed `data` consists of."""
    found, at = [], 0
    while at < len(data):
        one, _ = first(data[at:])
        found.append(one)
        at += len(one)
    return found


def content(data: bytes) -> bytes:
    """Return what is in the first element of well-formed `data`."""
    whole, head = first(data)
    return whole[head:]


def pem(label: str, data: bytes) -> bytes:
    """Return `data` as a PEM block (RFC 7468), ending in a newline."""
    text = base64.b64encode(data).decode()
    lines = (text[at : at + _PEM_LINE] for at in range(0, len(text), _PEM_LINE))
    return "\n".join((f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", "")).encode()
