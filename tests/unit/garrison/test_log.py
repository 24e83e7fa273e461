"""Log lines never make a call wait."""

from __future__ import annotations

import io
import json
import threading
from typing import Any

import pytest
import structlog

from garrison.telemetry import log as telemetry_log
from garrison.telemetry.log import LineWriter


class Stalled(io.StringIO):
    """A stream whose reader has stopped, until `going` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.going = threading.Event()

    def write(self, text: str) -> int:
        """Wait for the reader."""
        assert self.going.wait(20)
        return super().write(text)


def test_a_stalled_reader_costs_lines_not_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that do not fit are dropped and counted; what waits is written when the reader goes on."""
    monkeypatch.setattr(telemetry_log, "_MAX_WAITING_LINES", 10)
    stream = Stalled()
    writer = LineWriter(stream)
    for number in range(1000):
        writer.msg(str(number))
    assert 980 <= writer.dropped <= 990
    stream.going.set()
    writer.close()
    assert stream.getvalue().splitlines()[0] == "0"
    assert len(stream.getvalue().splitlines()) + writer.dropped == 1000


def test_lines_are_json_objects() -> None:
    """One object a line, with event, level, time and the fields."""
    stream = io.StringIO()
    before = structlog.get_config()
    writer = telemetry_log.configure("info", "json", stream)
    logger: Any = structlog.get_logger()
    logger.bind().info("event", path={"a": 1}, odd=object)
    writer.close()
    structlog.configure(**before)
    line = json.loads(stream.getvalue())
    assert (line["event"], line["level"], line["path"]) == ("event", "info", {"a": 1})
    assert line["timestamp"].endswith("Z")


def test_what_callers_can_cause_does_not_flood_the_log() -> None:
    """Of one such event only so many lines are written in a second; other events are not touched."""
    stream = io.StringIO()
    before = structlog.get_config()
    writer = telemetry_log.configure("info", "json", stream)
    logger: Any = structlog.get_logger().bind()
    for _ in range(500):
        logger.warning("provider_failed")
        logger.info("other")
    writer.close()
    structlog.configure(**before)
    events = [json.loads(line)["event"] for line in stream.getvalue().splitlines()]
    assert events.count("other") == 500
    assert 20 <= events.count("provider_failed") <= 60


def test_what_operators_did_is_always_written() -> None:
    """At every `log.level`, whatever the level of its own."""
    stream = io.StringIO()
    before = structlog.get_config()
    writer = telemetry_log.configure("error", "json", stream)
    structlog.get_logger().bind().warning("other")
    telemetry_log.audit.info("rate_limit_reset", peer="p")
    writer.close()
    structlog.configure(**before)
    (line,) = map(json.loads, stream.getvalue().splitlines())
    assert (line["event"], line["level"], line["peer"]) == ("rate_limit_reset", "info", "p")
