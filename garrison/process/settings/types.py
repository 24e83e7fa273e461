"""How single settings read: the text of a file, variable or flag -> a parsed value."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, ConfigDict, Field

from garrison.durations import parse_duration
from garrison.identity import TrustDomain
from garrison.redis_address import Credentials, RedisAddress
from garrison.transport.address import Address

STRICT = ConfigDict(strict=True, extra="forbid", frozen=True, arbitrary_types_allowed=True)


def from_text(parser: Any) -> BeforeValidator:
    """Return a validator that parses text and leaves parsed defaults alone."""
    return BeforeValidator(lambda value: parser(value) if isinstance(value, str) else value)


def member_of(names: type[StrEnum]) -> BeforeValidator:
    """Return a validator that takes the name of a member."""

    def parse_member(text: str) -> StrEnum:
        if text not in set(names):
            raise ValueError(f"`{text}` is none of {', '.join(names)}")
        return names(text)

    return from_text(parse_member)


Duration = Annotated[timedelta, from_text(parse_duration)]
FilePath = Annotated[Path, from_text(Path)]
FileMode = Annotated[int, from_text(lambda text: int(text, 8)), Field(ge=0, le=0o777)]
Domain = Annotated[TrustDomain, from_text(TrustDomain.parse)]
ListenAddress = Annotated[Address, from_text(Address.parse)]
RedisUrl = Annotated[RedisAddress, from_text(RedisAddress.parse)]
SentinelAuth = Annotated[Credentials, from_text(Credentials.parse)]


def types_in(annotation: Any) -> set[Any]:
    """Return the annotation and everything that it is made of."""
    return {annotation}.union(*map(types_in, get_args(annotation)))


def check_distinct(names: Sequence[str]) -> None:
    """Refuse a name that stands twice: which one is meant would be a guess.

    Raises:
        ValueError: there is one.

    """
    if twice := sorted(name for name in set(names) if names.count(name) > 1):
        raise ValueError(f"`{twice[0]}` stands twice")
