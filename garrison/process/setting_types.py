"""How single settings read: the text of a file, variable or flag -> a parsed value."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict

from ca.store.opening import parse_where
from garrison.durations import parse_duration
from garrison.redis_address import RedisAddress

STRICT = ConfigDict(strict=True, extra="forbid", frozen=True, arbitrary_types_allowed=True)


def text(parser: Any) -> BeforeValidator:
    """Return a validator that parses text and leaves parsed defaults alone."""
    return BeforeValidator(lambda value: parser(value) if isinstance(value, str) else value)


Duration = Annotated[timedelta, text(parse_duration)]
FilePath = Annotated[Path, text(Path)]
RedisUrl = Annotated[RedisAddress, text(RedisAddress.parse)]
LedgerWhere = Annotated[Path | RedisAddress, text(parse_where)]
