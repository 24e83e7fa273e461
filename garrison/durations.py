"""Durations as people write them: `30s`, `15m`, `1h30m`, `250ms`."""

from __future__ import annotations

import re
from datetime import timedelta

_UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_PART = re.compile(r"([0-9]{1,9})(ms|s|m|h|d)")
_WHOLE = re.compile(rf"(?:{_PART.pattern})+")


def parse_duration(text: str) -> timedelta:
    """Return the duration that `text` spells.

    Raises:
        ValueError: it spells none; the message says what would be right.

    """
    if not _WHOLE.fullmatch(text):
        raise ValueError(f"`{text}` is not a duration such as `30s`, `15m` or `1h30m`")
    milliseconds = sum(int(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    return timedelta(milliseconds=milliseconds)
