"""Logging: structlog, configured here and nowhere else; one JSON object a line unless a person is looking.

Lines are written by a thread of their own. Whoever reads them may stall (a full pipe, a slow disk); calls
must be answered all the same. What does not fit into the queue is dropped and counted.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import queue
import sys
import threading
import time
from collections import Counter
from typing import Any, TextIO

import structlog

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


# About 10 MB of lines at most.
_MAX_WAITING_LINES = 20_000
# How long the end of the process waits for lines that are still to be written.
_FLUSH_SECONDS = 2.0

# What one bad caller or one dead upstream can make happen with every call.
_FLOODING = frozenset({"check_unreadable", "provider_failed", "check_failed", "rate_limit_reset_refused"})
_FLOODING_LINES_PER_SECOND = 20

# For lines that are written whatever `log.level` says: what operators did.
audit: Any = structlog.wrap_logger(
    None,
    wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
    cache_logger_on_first_use=False,
)

_encode = json.JSONEncoder(default=str, separators=(",", ":")).encode


class LineWriter:
    """Writes lines to a stream without making the caller wait; `dropped` counts those that did not fit."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._waiting: queue.Queue[str | None] = queue.Queue(_MAX_WAITING_LINES)
        self.dropped = 0
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def msg(self, line: str) -> None:
        """Queue one line."""
        try:
            self._waiting.put_nowait(line)
        except queue.Full:
            self.dropped += 1

    # structlog calls the method that is named like the level.
    log = debug = info = warning = error = critical = exception = msg

    def close(self) -> None:
        """Write what is waiting, for a short while, and stop."""
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=_FLUSH_SECONDS)
            self._thread.join(_FLUSH_SECONDS)

    def _write(self) -> None:
        while (line := self._waiting.get()) is not None:
            # A reader that went away must not end the thread.
            with contextlib.suppress(OSError, ValueError):
                self._stream.write(line + "\n")
                if self._waiting.empty():
                    self._stream.flush()


def configure(
    level: str, format_: str, stream: TextIO | None = None, worker: int | None = None
) -> LineWriter:
    """Send the process's log lines to `stream` (standard error by default); return their writer.

    `format_` is `json`, `console`, or `auto`: console on a terminal, JSON elsewhere. The lines of a worker
    carry its number.
    """
    target = stream or sys.stderr
    writer = LineWriter(target)
    atexit.register(writer.close)
    console = format_ == "console" or (format_ == "auto" and target.isatty())
    processors: list[Any] = [
        _Throttle(),
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if worker is not None:
        processors.append(_Worker(worker))
    if console:
        processors.append(structlog.dev.ConsoleRenderer(colors=target.isatty()))
    else:
        processors += [structlog.processors.format_exc_info, _render]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=lambda *_: writer,
        cache_logger_on_first_use=True,
    )
    return writer


class _Throttle:
    """Drops lines of events that callers can cause at will, above a number of them in a second."""

    def __init__(self) -> None:
        self._second = 0
        self._lines: Counter[str] = Counter()

    def __call__(self, _logger: Any, _method: str, event: Any) -> Any:
        name = event["event"]
        if name in _FLOODING:
            second = int(time.monotonic())
            if second != self._second:
                self._second = second
                self._lines.clear()
            self._lines[name] += 1
            if self._lines[name] > _FLOODING_LINES_PER_SECOND:
                raise structlog.DropEvent
        return event


class _Worker:
    """Adds the number of the worker."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __call__(self, _logger: Any, _method: str, event: Any) -> Any:
        event["worker"] = self._number
        return event


def _render(_logger: Any, _method: str, event: Any) -> str:
    return _encode(event)
