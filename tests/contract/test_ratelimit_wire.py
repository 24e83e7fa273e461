"""Golden messages: requests as Envoy 1.40 writes them, and the answers, byte for byte."""

from __future__ import annotations

import pytest

from garrison.documents import parse
from garrison.transport import Call, Peer
from ratelimit.algorithm import SECOND
from ratelimit.compile import compile_limits
from ratelimit.service import SHOULD_RATE_LIMIT, RateLimitService
from ratelimit.store.memory import MemoryStore

CONFIG = b"""\
domain: bookinfo
descriptors:
- key: destination
  value: ratings
  descriptors:
  - {key: user, rate_limit: {unit: minute, requests_per_unit: 1, name: ratings-per-user}}
- {key: path, rate_limit: {unit: hour, requests_per_unit: 500}}
- {key: open, rate_limit: {unlimited: true}}
"""
NOW = 1_700_002_800 * SECOND + 54_500_000_000  # 5.5 s before the end of a minute

# Recorded: domain `bookinfo`; (destination, ratings)(user, jason); (path, /x).
ENVOY_REQUEST = (
    "0a08626f6f6b696e666f12270a160a0b64657374696e6174696f6e1207726174696e6773"
    "0a0d0a047573657212056a61736f6e120c0a0a0a047061746812022f78"
)
# Put together after the API: descriptor (path, /x) with `hits_addend` 5 and `is_negative_hits`.
REFUND_REQUEST = "0a08626f6f6b696e666f1212" + "0a0a0a047061746812022f78" + "1a020805" + "2001"
UNLIMITED_REQUEST = "0a08626f6f6b696e666f120b" + "0a090a046f70656e120178"
UNKNOWN_DOMAIN_REQUEST = "0a01781205" + "0a030a0161"


def answers(*requests: str) -> list[str]:
    """Return the answers of one fresh service to `requests`, all in hexadecimal."""
    limits, diagnostics = compile_limits(parse(CONFIG, "f.yaml")[0])
    assert diagnostics == []
    service = RateLimitService(lambda: limits, MemoryStore(), lambda: NOW)
    handler = service.methods()[SHOULD_RATE_LIMIT].handler
    call = Call(Peer("127.0.0.1:1"), ())
    found = [handler(bytes.fromhex(request), call) for request in requests]
    return [answer.hex() for answer in found if isinstance(answer, bytes)]


def test_ok_then_over_limit() -> None:
    """Envoy's request is allowed once, then denied; the seconds until the reset are rounded up."""
    name = b"ratings-per-user".hex()
    assert answers(ENVOY_REQUEST, ENVOY_REQUEST) == [
        # overall OK; OK, {1, MINUTE, name}, 0 left, 6 s; OK, {500, HOUR}, 499 left, 3546 s
        "0801" + "121e" + "0801" + "1216080110021a10" + name + "22020806" + status(499),
        # overall OVER_LIMIT; OVER_LIMIT, …; OK, …, 498 left
        "0802" + "121e" + "0802" + "1216080110021a10" + name + "22020806" + status(498),
    ]


def status(left: int) -> str:
    """Return the second status: OK, 500 an hour, `left` of them left, 3546 seconds to go."""
    varint = bytes([left & 0x7F | 0x80, left >> 7]).hex()
    return "1211" + "0801" + "1205" + "08f4031003" + "18" + varint + "2203" + "08da1b"


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (REFUND_REQUEST, "0801" + status(500)),
        (UNLIMITED_REQUEST, "0801" + "1208" + "0801" + "18ffffffff0f"),
        (UNKNOWN_DOMAIN_REQUEST, "0801" + "1202" + "0801"),
    ],
)
def test_single_answers(request_: str, answer: str) -> None:
    """A refund charges nothing, unlimited and unknown domains pass."""
    assert answers(request_) == [answer]


@pytest.mark.parametrize(
    ("request_", "fault"),
    [("ff", "malformed_request"), ("", "empty_domain"), ("0a0178", "no_descriptors")],
)
def test_faults_are_over_limit(request_: str, fault: str) -> None:
    """A fault is overall OVER_LIMIT with the fault in one response header and in the metadata."""
    value = bytes([len(fault)]) + fault.encode()
    name = b"x-garrison-ratelimit-fault"
    header = b"\x0a" + bytes([len(name)]) + name + b"\x12" + value
    string = b"\x1a" + value
    entry = b"\x0a\x05fault\x12" + bytes([len(string)]) + string
    struct = b"\x0a" + bytes([len(entry)]) + entry
    expected = b"\x08\x02" + b"\x1a" + bytes([len(header)]) + header + b"\x32" + bytes([len(struct)]) + struct
    assert answers(request_) == [expected.hex()]
