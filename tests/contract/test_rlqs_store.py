"""RLQS with counters in a real Valkey: RLS on any process sees what Envoys report."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from envoy.service.ratelimit.v3 import rls_pb2
from support.ratelimit import CALL, limits_of, request
from support.rlqs import first, reports
from support.valkey import Valkey

from garrison.process.quota import StoreOptions, build_store
from garrison.redis_address import RedisAddress
from ratelimit.quotas import QuotaOptions, Stream
from ratelimit.rlqs import RateLimitQuotaService
from ratelimit.rlqs_messages import parse_reports
from ratelimit.service import RateLimitService
from ratelimit.store.guard import GuardedStore, State

CONFIG = "domain: d\ndescriptors:\n- key: user\n  rate_limit: {unit: year, requests_per_unit: 60}\n"
USER = {"user": "u"}


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    """Yield a running server; its folder's path is short enough for a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="garrison-rlqs-") as folder, Valkey(Path(folder)) as server:
        yield server


def store_at(valkey: Valkey) -> GuardedStore:
    """Return what the process would use, with a deadline that no busy machine misses."""
    store = build_store(StoreOptions([RedisAddress.parse(valkey.url)], deadline_seconds=5.0))
    assert isinstance(store, GuardedStore)
    return store


def test_what_envoys_report_counts_in_a_shared_store(valkey: Valkey) -> None:
    """Also what they report while the store is away, once it is back."""
    limits = limits_of(CONFIG)

    async def scenario() -> None:
        store, other = store_at(valkey), store_at(valkey)
        service = RateLimitQuotaService(
            limits, store, clock=time.time_ns, monotonic=time.monotonic_ns, options=QuotaOptions()
        )
        stream = Stream(lambda: None)
        assert service.quotas.open(stream)

        async def report(message: object) -> None:
            (parsed,) = parse_reports(message.SerializeToString(), 10)  # type: ignore[attr-defined]
            await service._charge(service.quotas.receive(stream, parsed, time.monotonic_ns()))

        async def left() -> int:
            found = RateLimitService(lambda: limits, other, time.time_ns).should_rate_limit(
                request(USER).SerializeToString(), CALL
            )
            answer = found if isinstance(found, bytes) else await found
            return int(rls_pb2.RateLimitResponse.FromString(answer).statuses[0].limit_remaining)

        try:
            await report(first(USER))
            await report(reports((USER, 9, 3)))
            assert await left() == 60 - 10 - 1
            valkey.kill()
            await report(reports((USER, 5, 0)))
            assert store.breakers()[0].state is not State.CLOSED
            await report(reports((USER, 5, 0)))
            (subscription,) = stream.subscriptions.values()
            assert subscription.quota is not None
            assert subscription.quota.uncharged == 10
            assert subscription.quota.shares.capacity > 0
            valkey.start()
            while store.breakers()[0].state is not State.CLOSED:  # noqa: ASYNC110 - it heals by itself
                await asyncio.sleep(0.01)
            await report(reports((USER, 2, 0)))
            assert subscription.quota.uncharged == 0
            assert await left() == 60 - 12 - 1
        finally:
            await store.close()
            await other.close()

    asyncio.run(asyncio.wait_for(scenario(), 20))
