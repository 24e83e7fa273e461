"""Who holds which API key, as files, folders and Redis say it: names, claims, times; of keys only hashes.

A key is drawn at random, so its SHA-256 cannot be reversed by trying: nobody gets 128 bits by guessing. A
password is not, and has its own module.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from authz.attributes import Claims
from authz.authn.credentials import Answer

_STRICT = ConfigDict(strict=True, extra="forbid", frozen=True)

# What our own command makes: 256 bits in base64url.
_KEY_BYTES = 32
# 128 bits in base64url are 22 characters; shorter keys might be guessed, and so might their hashes.
MIN_KEY_LENGTH = 22
MAX_KEY_LENGTH = 512
KEY_PATTERN = re.compile(r"[\x21-\x2b\x2d-\x7e]+")
# Of 22 random characters of base64url fewer than 10 different ones are not to be expected.
_MIN_DISTINCT = 10
HASH_PREFIX = "sha256:"
_HASH = re.compile(r"sha256:[0-9a-f]{64}")
# Without `/`, which ends the issuer in `request.auth.principal`.
NAME_PATTERN = r"^[^\x00-\x1f\x7f/]{1,253}$"
# What this service says itself, or what would be taken for a token's own word.
_RESERVED_CLAIMS = frozenset({"iss", "sub", "exp", "nbf", "iat", "active"})


def hash_key(key: str) -> str:
    """Return the hash that stands for a key where it is stored: `sha256:` and 64 hexadecimal digits."""
    return HASH_PREFIX + digest_of(key)


def digest_of(key: str) -> str:
    """Return the SHA-256 of a key, in hexadecimal."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def new_key() -> str:
    """Return a new key of 256 random bits; what it starts with tells scanners for secrets what it is."""
    return f"garrison_{secrets.token_urlsafe(_KEY_BYTES)}"


def weakness(key: str) -> str:
    """Return what makes `key` unfit to be stored as a plain hash, empty if nothing does."""
    if not KEY_PATTERN.fullmatch(key):
        return "a key has visible ASCII characters, and no comma"
    if len(key) > MAX_KEY_LENGTH:
        return f"a key has at most {MAX_KEY_LENGTH} characters"
    if len(key) < MIN_KEY_LENGTH or len(set(key)) < _MIN_DISTINCT:
        return f"a key has at least {MIN_KEY_LENGTH} random characters, or it can be found from its hash"
    return ""


def parse_hash(text: str) -> str:
    """Return the digest in `sha256:HEX`.

    Raises:
        ValueError: it is no hash; the message does not repeat it, because it may be a key.

    """
    if not _HASH.fullmatch(text):
        message = "this is no hash of an API key: it is `sha256:` and 64 lower-case hexadecimal digits"
        raise ValueError(
            f"{message}, as `garrison credentials hash-key` prints it; a key itself is never stored"
        )
    return text.removeprefix(HASH_PREFIX)


def _seconds(text: str | None) -> float | None:
    """Return a time as seconds since the epoch.

    Raises:
        ValueError: it is no time with a zone.

    """
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ValueError(f"`{text}` is no time such as `2030-01-31T12:00:00Z`")
    return moment.timestamp()


class ClientRecord(BaseModel):
    """What is known of a client besides the hashes of its keys."""

    model_config = _STRICT
    name: Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
    claims: dict[str, Any] = Field(default_factory=dict)
    not_before: str | None = None
    expires: str | None = None

    @field_validator("not_before", "expires")
    @classmethod
    def _is_time(cls, value: str | None) -> str | None:
        _seconds(value)
        return value

    @field_validator("claims")
    @classmethod
    def _says_nothing_of_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        if reserved := sorted(_RESERVED_CLAIMS & value.keys()):
            raise ValueError(f"the claim `{reserved[0]}` is not for a client to have")
        return value

    @model_validator(mode="after")
    def _is_once_valid(self) -> Self:
        begins, expires = _seconds(self.not_before), _seconds(self.expires)
        if begins is not None and expires is not None and expires <= begins:
            raise ValueError("`expires` is not after `not_before`")
        return self

    def answer(self) -> Answer:
        """Return what a good key of this client establishes."""
        begins, expires = _seconds(self.not_before), _seconds(self.expires)
        answer = Answer.accepted({**self.claims, "sub": self.name})
        return Answer(
            answer.result,
            answer.claims,
            begins=answer.begins if begins is None else begins,
            expires=answer.expires if expires is None else expires,
        )


class FileRecord(ClientRecord):
    """A client in a file: with its hashes, several while keys change."""

    hashes: Annotated[list[str], Field(min_length=1)]

    @field_validator("hashes")
    @classmethod
    def _are_hashes(cls, value: list[str]) -> list[str]:
        for one in value:
            parse_hash(one)
        return value


class KeyFile(BaseModel):
    """A file of API keys."""

    model_config = _STRICT
    keys: list[FileRecord]


@dataclass(frozen=True, slots=True)
class Client:
    """A client, and what its key establishes."""

    name: str
    answer: Answer


@dataclass(frozen=True, slots=True)
class Clients:
    """Clients by the digest of each of their keys."""

    by_digest: Mapping[str, Client] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.by_digest)


def client_named(name: str, claims: Claims | None = None) -> Client:
    """Return a client that is known by name only."""
    return Client(name, Answer.accepted({**(claims or {}), "sub": name}))
