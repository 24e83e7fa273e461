"""While the store fails nobody waits, each limit answers as it says, and the store is tried until it is back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest

from garrison.errors import DependencyError
from ratelimit.algorithm import SECOND, UNITS, Limit, OnStoreFailure, Outcome
from ratelimit.charge import Spend
from ratelimit.store.base import Held
from ratelimit.store.guard import GuardedStore, LocalAnswer, State
from ratelimit.store.memory import MemoryStore
from ratelimit.store.redis import RedisStore, Result, StoreError
from ratelimit.store.refusals import Refusals

DAY = UNITS["day"]
ALLOW, DENY, LOCAL = OnStoreFailure.ALLOW, OnStoreFailure.DENY, OnStoreFailure.LOCAL


class FaultyStore:
    """A store that fails when it is told to, and has a slot for each first letter of a domain."""

    def __init__(self) -> None:
        self.fails: dict[int, str] = {}
        self.probes = 0
        self.renewed = asyncio.Event()
        self.asked = 0
        self.closed = False
        self._memory = MemoryStore()

    def slot(self, domain: str) -> int:
        """Return the slot."""
        return ord(domain[0]) if domain else 0

    def submit(self, spends: Sequence[Spend], now: int) -> asyncio.Future[Result]:
        """Answer, or fail, in the next turn of the loop."""
        self.asked += 1
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        reason = self.fails.get(self.slot(spends[0].domain))
        result: Result = StoreError(reason) if reason else self._memory.spend(spends, now)
        loop.call_soon(future.set_result, result)
        return future

    async def probe(self, domain: str) -> None:
        """Fail or not."""
        self.probes += 1
        if reason := self.fails.get(self.slot(domain)):
            raise StoreError(reason)

    async def look(self, spends: Sequence[Spend], now: int) -> Held:
        """Return the buckets."""
        return await self._memory.look(spends, now)

    async def reset(self, spends: Sequence[Spend], now: int) -> Held:
        """Remove the buckets."""
        return await self._memory.reset(spends, now)

    async def renew(self, _domain: str) -> None:
        """Tell that it was asked for."""
        self.renewed.set()

    async def close(self) -> None:
        """Remember it."""
        self.closed = True


def guarded(store: FaultyStore, **more: Any) -> GuardedStore:
    """Return the guard of a store, on the loop's clock."""
    clock = asyncio.get_running_loop().time
    return GuardedStore(cast("RedisStore", store), clock, deadline_seconds=5.0, **more)


async def spend(guard: GuardedStore, *spends: Spend) -> list[Outcome]:
    """Return the outcomes of one call, now or later."""
    found = guard.spend(spends, 0)
    return found if isinstance(found, list) else await found


def limit(policy: OnStoreFailure, requests: int = 3, **more: Any) -> Limit:
    """Return a limit with a policy."""
    return Limit(requests, DAY, on_store_failure=policy, **more)


async def healed(guard: GuardedStore) -> None:
    """Wait until all breakers are closed."""
    async with asyncio.timeout(20):
        await asyncio.gather(*(breaker.task for breaker in guard.breakers() if breaker.task is not None))
    assert all(breaker.state is State.CLOSED for breaker in guard.breakers())


async def broken(**more: Any) -> tuple[FaultyStore, GuardedStore]:
    """Return a store that has failed, and its guard."""
    store = FaultyStore()
    guard = guarded(store, **more)
    store.fails[0] = "timeout"
    await spend(guard, Spend("x", limit(ALLOW), 1))
    return store, guard


def test_answers_while_broken() -> None:
    """Allowing limits allow, denying ones deny, local ones count; modes keep their meaning."""

    async def scenario() -> None:
        _, guard = await broken(replicas=2)
        unknown = await spend(guard, Spend("a", limit(ALLOW), 9))
        assert [(one.allowed, one.is_known) for one in unknown] == [(True, False)]
        with pytest.raises(DependencyError):
            await spend(guard, Spend("d", limit(DENY), 1))
        with pytest.raises(DependencyError):
            await spend(guard, Spend("a", limit(ALLOW), 1, 0), Spend("d", limit(DENY), 1, 1))
        assert (await spend(guard, Spend("d", limit(DENY, shadow_mode=True), 1)))[0].allowed
        assert (await spend(guard, Spend("d", limit(DENY), -1)))[0].allowed
        local = [await spend(guard, Spend("l", limit(LOCAL, 7), 1)) for _ in range(4)]
        assert [outcome.allowed for (outcome,) in local] == [True, True, True, False]
        await guard.close()

    asyncio.run(scenario())


def test_quotas_while_broken() -> None:
    """A quota that denies is exhausted: it denies with all others, not while one of them has something left."""

    async def scenario() -> None:
        _, guard = await broken()
        quota, other = limit(DENY, quota_mode=True), limit(ALLOW, quota_mode=True)
        found = await spend(guard, Spend("d", quota, 1, 0), Spend("a", other, 1, 1))
        assert [outcome.allowed for outcome in found] == [False, True]
        with pytest.raises(DependencyError):
            await spend(guard, Spend("d", quota, 1))
        await guard.close()

    asyncio.run(scenario())


def test_a_share_is_never_nothing() -> None:
    """A local limit that is smaller than the number of replicas is one for each; zero stays zero."""

    async def scenario() -> None:
        _, guard = await broken(replicas=10)
        for requests, allowed in ((3, [True, False]), (0, [False, False])):
            local = limit(LOCAL, requests)
            found = [await spend(guard, Spend(f"l{requests}", local, 1)) for _ in range(2)]
            assert [outcome.allowed for (outcome,) in found] == allowed
        await guard.close()

    asyncio.run(scenario())


def test_nobody_asks_while_broken_and_it_heals() -> None:
    """An open breaker asks nothing but probes, on new connections from the second on; a good one closes it."""

    async def scenario() -> None:
        store, guard = await broken()
        for _ in range(10):
            await spend(guard, Spend("x", limit(ALLOW), 1))
        assert store.asked == 1
        async with asyncio.timeout(20):
            await store.renewed.wait()
        assert "timeout" in guard.describe()
        store.fails.clear()
        await healed(guard)
        assert guard.describe() == "closed"
        assert (await spend(guard, Spend("x", limit(DENY), 1)))[0].remaining == 2
        assert guard.failures["timeout"] >= 2
        assert guard.local_answers[LocalAnswer.ALLOW] == 11
        await guard.close()
        assert store.closed

    asyncio.run(scenario())


def test_what_fails_at_the_start_is_known() -> None:
    """Domains whose server does not answer at the start are answered without it from the first call on."""

    async def scenario() -> None:
        store = FaultyStore()
        guard = guarded(store)
        store.fails[ord("a")] = "auth"
        await guard.start(["a", "aa", "b"])
        states = {breaker.domain: breaker.state is State.CLOSED for breaker in guard.breakers()}
        assert states == {"a": False, "b": True}
        assert not (await spend(guard, Spend("x", limit(ALLOW), 1, domain="aa")))[0].is_known
        assert store.asked == 0
        await guard.close()

    asyncio.run(scenario())


def test_one_slot_breaks_alone() -> None:
    """In a Cluster a slot that fails does not keep others from being asked."""

    async def scenario() -> None:
        store = FaultyStore()
        guard = guarded(store)
        store.fails[ord("a")] = "connection"
        await spend(guard, Spend("x", limit(ALLOW), 1, domain="a"))
        assert (await spend(guard, Spend("x", limit(DENY), 1, domain="b")))[0].remaining == 2
        states = {breaker.domain: breaker.state is State.CLOSED for breaker in guard.breakers()}
        assert states == {"a": False, "b": True}
        await guard.close()

    asyncio.run(scenario())


def test_leases_save_questions() -> None:
    """Of ten hits one goes to the store; while the store fails what is left of the lease is used first."""

    async def scenario() -> None:
        store = FaultyStore()
        guard = guarded(store)
        leased = limit(DENY, 25, lease=10)
        found = [await spend(guard, Spend("k", leased, 1)) for _ in range(22)]
        assert [outcome.remaining for (outcome,) in found] == list(range(24, 2, -1))
        assert store.asked == 3
        store.fails[0] = "timeout"
        await spend(guard, Spend("other", limit(ALLOW), 1))
        for expected in (2, 1, 0):
            assert (await spend(guard, Spend("k", leased, 1)))[0].remaining == expected
        with pytest.raises(DependencyError):
            await spend(guard, Spend("k", leased, 1))
        assert guard.local_answers[LocalAnswer.LEASE] == 22
        store.fails.clear()
        await healed(guard)
        guard.spend([Spend("gone", leased, 1)], 0)  # whose caller goes away before it is awaited
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert (await spend(guard, Spend("gone", leased, 1)))[0].remaining == 23
        assert store.asked == 5
        await guard.close()

    asyncio.run(scenario())


def test_what_is_over_is_not_asked_again() -> None:
    """Who has nothing left is denied here, for a moment; whoever gives back makes the store be asked again."""

    async def scenario() -> None:
        store = FaultyStore()
        guard = guarded(store)
        three = limit(DENY)
        for _ in range(4):
            await spend(guard, Spend("k", three, 1))
        assert store.asked == 4
        (known,) = await spend(guard, Spend("k", three, 1))
        assert (known.allowed, known.remaining, store.asked) == (False, 0, 4)
        assert 0 < known.reset <= 86400 * SECOND
        await spend(guard, Spend("k", three, 1, 0), Spend("other", three, 1, 1))
        assert store.asked == 5
        await spend(guard, Spend("k", three, -3))
        assert store.asked == 6
        await spend(guard, Spend("k", three, 1))
        assert store.asked == 7
        assert guard.local_answers[LocalAnswer.OVER_LIMIT] == 1
        await guard.close()

    asyncio.run(scenario())


def test_a_counter_that_is_reset_is_admitted_at_once() -> None:
    """What is remembered of it and what was taken in advance is forgotten, also of an answer that is on its way."""

    async def scenario() -> None:
        store = FaultyStore()
        guard = guarded(store)
        call, leased = Spend("k", limit(DENY), 1), Spend("l", limit(DENY, 20, lease=5), 1)
        for _ in range(4):
            await spend(guard, call)
        await spend(guard, leased)
        late, late_lease = guard.spend([call], 0), guard.spend([leased._replace(key="m")], 0)
        assert isinstance(late, list), "it is known to be over"
        guard._refusals = Refusals()
        late = guard.spend([call], 0)
        assert not isinstance(late, list)
        assert not isinstance(late_lease, list)
        guard.forget(["k", "l", "m"])
        for one in (call, leased, leased._replace(key="m")):
            await guard.reset([one], 0)
        assert not (await late)[0].allowed
        await late_lease
        assert [(await spend(guard, call))[0].remaining for _ in range(3)] == [2, 1, 0]
        assert [(await spend(guard, leased))[0].remaining for _ in range(2)] == [19, 18]
        assert guard.local_answers[LocalAnswer.LEASE] == 0
        (held,) = (await guard.look([leased._replace(key="m")], 0)).buckets
        assert held is None
        await guard.close()

    asyncio.run(scenario())


def test_a_reset_forgets_what_was_counted_here_meanwhile() -> None:
    """While the store fails nothing is reset; once it is, the next failure starts with a new local count as well."""

    async def scenario() -> None:
        store, guard = await broken()
        call = Spend("k", limit(LOCAL, 1), 1)
        assert [(await spend(guard, call))[0].allowed for _ in range(2)] == [True, False]
        for method in (guard.look, guard.reset):
            with pytest.raises(DependencyError, match="does not answer"):
                await method([call], 0)
        store.fails.clear()
        await healed(guard)
        guard.forget(["k"])
        await guard.reset([call], 0)
        store.fails[0] = "timeout"
        assert [(await spend(guard, call))[0].allowed for _ in range(2)] == [True, False]
        await guard.close()

    asyncio.run(scenario())
