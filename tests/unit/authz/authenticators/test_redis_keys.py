"""API keys from a real Valkey: by digest, with a deadline, and one bad record is nobody else's trouble."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.valkey import Valkey

from authz.authenticators.base import Breaker, Caching, CachingAuthenticator
from authz.authenticators.clients import digest_of
from authz.authenticators.redis_keys import RedisKeys, parse_record
from authz.authn.credentials import Answer, Result
from garrison.redis_address import RedisAddress


@pytest.fixture
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """Run a server."""
    with Valkey(tmp_path_factory.mktemp("v")) as server:
        yield server


def keys_of(valkey: Valkey, caching: Caching, **more: Any) -> CachingAuthenticator:
    """Return what asks the server."""
    address = RedisAddress.parse(valkey.url)
    keys = RedisKeys("keys", lambda: address.connect_async(None), "api-keys", timeout_seconds=5.0)
    return CachingAuthenticator("keys", keys, caching, end=keys.close, **more)


def put(valkey: Valkey, key: str, record: Any) -> None:
    """Store a record for a key."""
    client = valkey.client()
    client.hset("api-keys", digest_of(key), record if isinstance(record, str) else json.dumps(record))
    client.close()


def test_a_key_is_found_by_its_digest(valkey: Valkey) -> None:
    """Name, claims and times come from the record; what is not there is nobody's."""
    put(valkey, "key-a", {"name": "alice", "claims": {"groups": ["x"]}, "expires": "2100-01-01T00:00:00Z"})

    async def scenario() -> None:
        keys = keys_of(valkey, Caching(0.0, 0.0))
        found = await keys.ask("key-a")
        assert (found.result, found.claims) == (Result.ACCEPTED, {"groups": ["x"], "sub": "alice"})
        assert found.expires == 4_102_444_800.0
        for wrong in ("key-b", digest_of("key-a"), "x" * 513):
            assert (await keys.ask(wrong)).result is Result.REFUSED
        await keys.close()

    asyncio.run(scenario())


def test_a_removed_key_is_refused_when_its_time_in_memory_is_over(valkey: Valkey) -> None:
    """And not before: that is what the time is for."""
    put(valkey, "key-a", {"name": "alice"})
    now = [1000.0]

    async def scenario() -> None:
        keys = keys_of(valkey, Caching(10.0, 2.0), clock=lambda: now[0])
        assert (await keys.ask("key-a")).result is Result.ACCEPTED
        client = valkey.client()
        client.delete("api-keys")
        client.close()
        assert keys.known("key-a", 1009.9) == Answer.accepted({"sub": "alice"})
        now[0] = 1010.0
        assert keys.known("key-a", 1010.0) is None
        assert (await keys.ask("key-a")).result is Result.REFUSED
        await keys.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "record",
    [
        "",
        "alice",
        "[]",
        '{"name": "a", "name": "b"}',
        {},
        {"name": "a/b"},
        {"name": "a", "hashes": []},
        {"name": "a", "claims": {"iss": "x"}},
        {"name": "a", "expires": "s3cret"},
        "[" * 50_000,
    ],
    ids=lambda record: str(record)[:30],
)
def test_a_record_that_cannot_be_used_is_no_identity(valkey: Valkey, record: Any) -> None:
    """Nobody knows whose key it is; the breaker stays closed for all others."""
    put(valkey, "bad", record)
    put(valkey, "good", {"name": "alice"})

    async def scenario() -> None:
        keys = keys_of(valkey, Caching(), breaker=Breaker(1))
        assert (await keys.ask("bad")).result is Result.UNAVAILABLE
        assert (await keys.ask("good")).result is Result.ACCEPTED
        await keys.close()

    asyncio.run(scenario())


def test_no_message_holds_a_value() -> None:
    """Only which fields are wrong."""
    with pytest.raises(ValueError, match="wrong: expires") as caught:
        parse_record(b'{"name": "a", "expires": "s3cret"}')
    assert "s3cret" not in str(caught.value)


def test_without_redis_nobody_is_let_in_and_nothing_is_remembered(valkey: Valkey) -> None:
    """It comes back by itself; what was known stays known for its time."""
    put(valkey, "key-a", {"name": "alice"})
    put(valkey, "key-b", {"name": "bob"})

    async def scenario() -> None:
        ticks = [0.0]
        keys = keys_of(
            valkey, Caching(60.0, 2.0), breaker=Breaker(2, 5.0, lambda: ticks[0]), clock=lambda: 1000.0
        )
        assert (await keys.ask("key-a")).result is Result.ACCEPTED
        valkey.kill()
        for _ in range(3):
            assert (await keys.ask("key-b")).result is Result.UNAVAILABLE
        assert keys.is_open
        known = keys.known("key-a", 1001.0)
        assert known is not None
        assert known.result is Result.ACCEPTED
        valkey.start()
        put(valkey, "key-b", {"name": "bob"})
        assert (await keys.ask("key-b")).result is Result.UNAVAILABLE
        ticks[0] = 5.0
        assert (await keys.ask("key-b")).result is Result.ACCEPTED
        assert not keys.is_open
        await keys.close()

    asyncio.run(scenario())


def test_redis_has_a_deadline() -> None:
    """A server that takes the question and says nothing is one that does not answer."""

    class Silent:
        async def hget(self, name: str, key: str) -> object:
            return await asyncio.get_running_loop().create_future()

        async def aclose(self) -> None:
            """Do nothing."""

    async def scenario() -> None:
        keys = RedisKeys("keys", Silent, "api-keys", timeout_seconds=0.01)
        caching = CachingAuthenticator("keys", keys, Caching(), end=keys.close)
        answer = await caching.ask("k")
        assert (answer.result, answer.reason) == (Result.UNAVAILABLE, "Redis did not answer: TimeoutError")
        await caching.close()

    asyncio.run(scenario())


def test_the_file_of_a_folder_is_not_used_here(tmp_path: Path) -> None:
    """Closing what was never asked does nothing."""
    keys = RedisKeys("keys", lambda: pytest.fail("nobody asked"), "h", timeout_seconds=1.0)
    asyncio.run(keys.close())
