"""API keys from Redis: a hash whose fields are SHA-256 digests, and whose values say who has the key.

    HSET garrison:api-keys <64 hexadecimal digits> '{"name": "alice", "claims": {"groups": ["readers"]}}'

The key itself never goes there.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog
from pydantic import ValidationError
from redis.exceptions import RedisError

from authz.authenticators.api_keys import UNKNOWN_KEY
from authz.authenticators.clients import MAX_KEY_LENGTH, ClientRecord, digest_of
from authz.authn.credentials import Answer
from garrison.errors import DependencyError
from garrison.keys.jwks import unique_names

_MAX_RECORD_BYTES = 64 * 1024

log = structlog.get_logger()


class Client(Protocol):
    """What of an asynchronous Redis client is used."""

    def hget(self, name: str, key: str) -> Awaitable[object]:
        """Return a field of a hash, None when there is none."""

    async def aclose(self) -> None:
        """Close the connections."""


class RedisKeys:
    """Asks Redis whose key a credential is; the question of a `CachingAuthenticator`."""

    def __init__(
        self, name: str, connect: Callable[[], Client], hash_name: str, *, timeout_seconds: float
    ) -> None:
        """`connect` makes a client, in the event loop that uses it; `hash_name` is the key of the hash."""
        self._name = name
        self._connect = connect
        self._hash_name = hash_name
        self._timeout_seconds = timeout_seconds
        self._client: Client | None = None

    async def __call__(self, credential: str) -> Answer:
        """Return whose key it is.

        Raises:
            DependencyError: Redis did not answer in time.

        """
        if len(credential) > MAX_KEY_LENGTH:
            return UNKNOWN_KEY
        if self._client is None:
            self._client = self._connect()
        try:
            async with asyncio.timeout(self._timeout_seconds):
                found = await self._client.hget(self._hash_name, digest_of(credential))
        except (RedisError, OSError, TimeoutError) as error:
            raise DependencyError(f"Redis did not answer: {type(error).__name__}") from error
        if found is None:
            return UNKNOWN_KEY
        try:
            return parse_record(found).answer()
        except ValueError as error:
            # Not a failure of Redis: one bad record must not keep others from being asked for.
            log.warning("client_record_refused", authenticator=self._name, reason=str(error))
            return Answer.unavailable("the client's record in Redis cannot be used")

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()


def parse_record(content: object) -> ClientRecord:
    """Return the record in a field's value, as JSON.

    Raises:
        ValueError: it is none; the message names fields, and repeats no value.

    """
    if not isinstance(content, bytes) or len(content) > _MAX_RECORD_BYTES:
        raise ValueError(f"a record is JSON of at most {_MAX_RECORD_BYTES} bytes")
    try:
        data = json.loads(content.decode(), object_pairs_hook=unique_names)
    except (ValueError, RecursionError) as error:
        raise ValueError("a record is JSON without names that stand twice") from error
    try:
        return ClientRecord.model_validate(data)
    except ValidationError as error:
        fields = sorted({".".join(map(str, one["loc"])) or "record" for one in error.errors()})
        raise ValueError(f"wrong: {', '.join(fields)}") from error
