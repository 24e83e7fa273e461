"""The load client counts what came of its calls."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from benchmarks.load import LoadResult, load
from garrison.transport import Call, Method, StatusCode, StatusError
from garrison.transport.address import Address
from garrison.transport.h2_server import H2Server


def sometimes(message: bytes, _call: Call) -> bytes:
    """Refuse every message that says so."""
    if message == b"no":
        raise StatusError(StatusCode.PERMISSION_DENIED, "no")
    return message


def run(address: str, messages: list[bytes], **options: Any) -> LoadResult:
    """Load a server of our own."""

    async def scenario() -> LoadResult:
        server = H2Server({"/t.T/Sometimes": Method(sometimes)})
        (actual,) = await server.start([Address.parse(address)])
        result = await load(actual, "/t.T/Sometimes", messages, **options)
        await server.drain(5)
        return result

    return asyncio.run(scenario())


@pytest.mark.parametrize("scheme", ["tcp", "unix"])
def test_a_number_of_calls(scheme: str, tmp_path: Path) -> None:
    """Exactly so many calls are made, and refusals are errors."""
    address = "tcp://127.0.0.1:0" if scheme == "tcp" else f"unix://{tmp_path}/s"
    result = run(address, [b"yes", b"yes", b"no"], calls=300, connections=2, streams=8)
    assert (result.calls, result.errors, result.last_answer) == (200, 100, b"yes")
    assert 0 < result.p50_us <= result.p90_us <= result.p99_us <= result.max_us


def test_a_length_of_time() -> None:
    """Calls are made until the time is over, and all are collected."""
    result = run("tcp://127.0.0.1:0", [b"yes"], seconds=0.05, connections=1, streams=4)
    assert result.calls > 0
    assert result.errors == 0
    assert result.seconds >= 0.05


def test_an_end_before_the_time_is_over() -> None:
    """Whoever has seen enough ends the load; what was under way is collected."""

    async def scenario() -> LoadResult:
        server = H2Server({"/t.T/Sometimes": Method(sometimes)})
        (actual,) = await server.start([Address.parse("tcp://127.0.0.1:0")])
        stop = asyncio.Event()

        def enough(_answer: bytes) -> None:
            stop.set()

        result = await load(actual, "/t.T/Sometimes", [b"yes"], seconds=600.0, on_answer=enough, stop=stop)
        await server.drain(5)
        return result

    result = asyncio.run(scenario())
    assert result.calls > 0
    assert result.errors == 0


def test_fewer_calls_than_streams() -> None:
    """Connections that get no call at all end as well."""
    result = run("tcp://127.0.0.1:0", [b"yes"], calls=1, connections=3, streams=4)
    assert (result.calls, result.errors) == (1, 0)


@pytest.mark.parametrize("bounds", [{}, {"calls": 1, "seconds": 1.0}])
def test_a_load_is_bounded(bounds: dict[str, Any]) -> None:
    """Exactly one bound must be given."""
    with pytest.raises(ValueError, match="either"):
        asyncio.run(load(Address.parse("tcp://127.0.0.1:1"), "/t.T/X", [b""], **bounds))
