"""gRPC over HTTP/2, the parts without state: names, prefixes, timeouts, statuses.

Section names refer to gRPC's PROTOCOL-HTTP2 page.
"""

from __future__ import annotations

import re
import struct
from functools import lru_cache

from garrison.transport import StatusCode, StatusError

# "Length-Prefixed-Message": one byte of flags (1 = compressed), four of length, big-endian.
PREFIX = struct.Struct(">BI")
PREFIX_BYTES = PREFIX.size

# "Timeout": at most eight digits and a unit.
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNIT_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}

# Bytes that "Status-Message" leaves as they are: printable ASCII but for the percent sign.
_PLAIN = frozenset(range(0x20, 0x7F)) - {0x25}
# A message is for people; a longer one would only strain the peer's limit on header blocks.
_MAX_MESSAGE_CHARACTERS = 1024

_CONTENT_TYPE = (b"content-type", b"application/grpc")

Fields = list[tuple[bytes, bytes]]

RESPONSE: Fields = [(b":status", b"200"), _CONTENT_TYPE]
TRAILERS_OK: Fields = [(b"grpc-status", b"0")]


def is_grpc(content_type: bytes) -> bool:
    """Whether `content_type` is gRPC's own ("Content-Type"); `application/grpc-web` is another protocol."""
    return content_type == b"application/grpc" or content_type.startswith(
        (b"application/grpc+", b"application/grpc;")
    )


@lru_cache(maxsize=1024)
def parse_timeout(value: bytes) -> float:
    """Return the seconds that a `grpc-timeout` field spells.

    Raises:
        ValueError: the value does not follow the "Timeout" grammar.

    """
    match = _TIMEOUT.fullmatch(value)
    if match is None:
        raise ValueError("grpc-timeout is not one to eight digits and a unit")
    return int(match[1]) * _UNIT_SECONDS[match[2]]


def encode_message(message: str) -> bytes:
    """Return `message` percent-encoded for a `grpc-message` field."""
    text = message[:_MAX_MESSAGE_CHARACTERS].encode("utf-8", "replace")
    return b"".join(b"%c" % byte if byte in _PLAIN else b"%%%02X" % byte for byte in text)


def trailers_only(status: StatusError) -> Fields:
    """Return the one header block of a call that ends with `status` and no message ("Trailers-Only")."""
    fields = [*RESPONSE, (b"grpc-status", b"%d" % status.code)]
    return [*fields, (b"grpc-message", encode_message(status.message))] if status.message else fields


def http_error(status: int, message: str) -> Fields:
    """Return the header block for a request that is not gRPC; the gRPC status is for clients that look."""
    code = StatusCode.UNKNOWN if status == 415 else StatusCode.INTERNAL
    return [
        (b":status", b"%d" % status),
        _CONTENT_TYPE,
        (b"grpc-status", b"%d" % code),
        (b"grpc-message", encode_message(message)),
    ]


class MessageReader:
    """Puts together the one message of a unary request from DATA payloads cut at any byte.

    It never holds more than `limit` bytes: a longer message is refused at its prefix.
    """

    __slots__ = ("_buffer", "_end", "_limit")

    def __init__(self, limit: int) -> None:
        self._buffer = bytearray()
        self._end = 0
        self._limit = limit

    def __len__(self) -> int:
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Take the next bytes.

        Raises:
            StatusError: they cannot be part of one uncompressed message of at most `limit` bytes.

        """
        buffer = self._buffer
        if not self._end:
            missing = PREFIX_BYTES - len(buffer)
            buffer += data[:missing]
            data = data[missing:]
            if len(buffer) < PREFIX_BYTES:
                return
            flags, size = PREFIX.unpack(buffer)
            if flags:
                raise compressed(flags)
            if size > self._limit:
                raise too_large(self._limit)
            self._end = PREFIX_BYTES + size
        if len(buffer) + len(data) > self._end:
            raise StatusError(StatusCode.INTERNAL, "a unary request has bytes after its message")
        buffer += data

    def message(self) -> bytes:
        """Return the message; the request has ended.

        Raises:
            StatusError: it ended before its message did.

        """
        if not self._end or len(self._buffer) < self._end:
            raise StatusError(StatusCode.INTERNAL, "a unary request ended before its message")
        return bytes(memoryview(self._buffer)[PREFIX_BYTES:])


def compressed(flags: int) -> StatusError:
    """Return the answer to a message whose prefix has `flags` set: none were offered ("Compression")."""
    if flags == 1:
        return StatusError(StatusCode.UNIMPLEMENTED, "compressed messages are not supported")
    return StatusError(StatusCode.INTERNAL, "a message prefix has unknown flags")


def too_large(limit: int) -> StatusError:
    """Return the answer to a message of more than `limit` bytes."""
    return StatusError(StatusCode.RESOURCE_EXHAUSTED, f"a message has more than {limit} bytes")
