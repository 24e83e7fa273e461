"""Logging: structlog, configured here and nowhere else; one JSON object a line unless a person is looking."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any, TextIO

import structlog

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure(level: str, format_: str, stream: TextIO | None = None) -> None:
    """Send the process's log lines to `stream` (standard error by default).

    `format_` is `json`, `console`, or `auto`: console on a terminal, JSON elsewhere.
    """
    target = stream or sys.stderr
    console = format_ == "console" or (format_ == "auto" and target.isatty())
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if console:
        processors.append(structlog.dev.ConsoleRenderer(colors=target.isatty()))
    else:
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_dumps)]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(target),
        cache_logger_on_first_use=True,
    )


def _dumps(event: Any, **_: Any) -> str:
    return json.dumps(event, default=str, separators=(",", ":"))
