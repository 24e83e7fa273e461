"""The stateless parts of gRPC over HTTP/2 follow PROTOCOL-HTTP2."""

from __future__ import annotations

import itertools
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.transport import StatusCode, StatusError
from garrison.transport.wire import (
    PREFIX,
    MessageReader,
    encode_message,
    is_grpc,
    parse_timeout,
    trailers_only,
)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"0n", 0.0),
        (b"200m", 0.2),
        (b"99999999S", 99_999_999.0),
        (b"2H", 7200.0),
        (b"3M", 180.0),
        (b"5u", 5e-6),
    ],
)
def test_timeouts(value: bytes, seconds: float) -> None:
    """A timeout is up to eight digits and a unit."""
    assert parse_timeout(value) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value",
    [b"", b"1", b"S", b"-1S", b"+1S", b"1.5S", b" 1S", b"1S ", b"1s", b"1h", b"123456789S", b"1SS", b"1S\n"],
)
def test_what_is_no_timeout(value: bytes) -> None:
    """Every deviation from the grammar is refused."""
    with pytest.raises(ValueError, match="grpc-timeout"):
        parse_timeout(value)


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        (b"application/grpc", True),
        (b"application/grpc+proto", True),
        (b"application/grpc;charset=utf-8", True),
        (b"application/grpc-web", False),
        (b"application/grpcx", False),
        (b"", False),
    ],
)
def test_content_types(content_type: bytes, expected: bool) -> None:
    """Only gRPC itself is gRPC."""
    assert is_grpc(content_type) is expected


@given(st.text(max_size=300))
def test_messages_are_percent_encoded(message: str) -> None:
    """An encoded message is printable ASCII without line breaks, and decodes to itself."""
    encoded = encode_message(message)
    assert all(0x20 <= byte < 0x7F for byte in encoded)
    assert unquote(encoded.decode("ascii"), errors="strict") == message


def test_long_messages_are_cut() -> None:
    """A message cannot grow a header block without bound."""
    assert len(encode_message("\U0001f525" * 5000)) == 1024 * 12


def test_trailers_only() -> None:
    """A status is one header block, with a message only if there is one."""
    fields = dict(trailers_only(StatusError(StatusCode.NOT_FOUND, "")))
    assert fields == {b":status": b"200", b"content-type": b"application/grpc", b"grpc-status": b"5"}


def read(limit: int, parts: list[bytes]) -> bytes | int:
    """Feed a reader; return the message or the status it was refused with."""
    reader = MessageReader(limit)
    try:
        for part in parts:
            reader.feed(part)
            assert len(reader) <= limit + PREFIX.size
        return reader.message()
    except StatusError as error:
        return error.code


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    """Cut bytes at some positions."""
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@given(st.binary(max_size=50), st.lists(st.integers(0, 60), max_size=8))
def test_a_message_is_read_however_it_is_cut(message: bytes, cuts: list[int]) -> None:
    """Where the DATA frames end makes no difference."""
    assert read(50, split(PREFIX.pack(0, len(message)) + message, cuts)) == message


@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=8), st.integers(0, 20))
def test_cuts_never_change_the_outcome(data: bytes, cuts: list[int], limit: int) -> None:
    """Any bytes are accepted or refused whole or in parts alike, and never buffered beyond the limit."""
    whole = read(limit, [data])
    parts = read(limit, split(data, cuts))
    assert (parts == whole) or (isinstance(parts, int) and isinstance(whole, int))
    if isinstance(whole, bytes):
        assert data == PREFIX.pack(0, len(whole)) + whole
        assert len(whole) <= limit
