"""Stands before a shared store: asks it while it answers in time, and else says what each limit wants said.

A failure or a timeout opens the breaker of the store, or, in a Cluster, of the slot, which may be the only
one that fails. While it is open nobody waits: each limit's `on_store_failure` answers at once. A probe, which
reads, counts and writes as calls do, is sent right away and then at growing intervals; one that is answered
within the deadline closes the breaker. What fails again soon after is probed less often.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import structlog

from garrison.errors import DependencyError
from garrison.pauses import next_pause
from ratelimit.algorithm import SECOND, Limit, OnStoreFailure, Outcome
from ratelimit.charge import Spend, is_denied
from ratelimit.later import Later
from ratelimit.store.base import CounterStore, Held
from ratelimit.store.leases import Leases, own_outcome
from ratelimit.store.memory import MemoryStore
from ratelimit.store.redis import RedisStore, Result, StoreError
from ratelimit.store.refusals import Refusals

_log = structlog.get_logger(__name__)

_FIRST_DELAY_SECONDS = 0.05
_MAX_DELAY_SECONDS = 1.0
# A breaker that opens again within this time has not healed.
_HEALED_SECONDS = 5.0
# A new connection and a new look at the topology may take this long, beside the calls.
_PROBE_SECONDS = 2.0
_MAX_LOCAL_LIMITS = 10_000


class State(StrEnum):
    """Whether the store is asked."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class LocalAnswer(StrEnum):
    """Why a limit was answered without the store."""

    ALLOW = "allow"
    DENY = "deny"
    LOCAL = "local"
    OVER_LIMIT = "over_limit"
    LEASE = "lease"


@dataclass(eq=False, slots=True)
class Breaker:
    """The state of one store, or of one domain's slot; `since` is when it was last closed or opened."""

    domain: str
    since: float
    state: State = State.CLOSED
    reason: str = ""
    delay_seconds: float = 0.0
    probes: int = 0
    task: asyncio.Task[None] | None = None


class GuardedStore(CounterStore):
    """A `Store` that always answers within the deadline of the one that it guards. Belongs to one event loop.

    `replicas` is by how many local limits are divided, so that all processes together allow about what the
    limit says. `monotonic` returns seconds.
    """

    def __init__(
        self,
        store: RedisStore,
        monotonic: Callable[[], float],
        *,
        deadline_seconds: float,
        replicas: int = 1,
        local: MemoryStore | None = None,
    ) -> None:
        self.failures: Counter[str] = Counter()
        # With all keys from the start: metrics are read from another thread.
        self.local_answers: Counter[LocalAnswer] = Counter(dict.fromkeys(LocalAnswer, 0))
        self._store = store
        self._monotonic = monotonic
        self._deadline_seconds = deadline_seconds
        self._replicas = replicas
        self._local = local or MemoryStore()
        self._refusals = Refusals()
        self._leases = Leases()
        self._breakers: dict[int, Breaker] = {}
        # By identity, with the limit itself so that it stays the same one.
        self._local_limits: dict[int, tuple[Limit, Limit]] = {}

    def breakers(self) -> Sequence[Breaker]:
        """Return the breakers: none before the first call, then one, or one for each slot of a Cluster."""
        return list(self._breakers.values())

    @property
    def refused(self) -> int:
        """New buckets that local limits had no room for."""
        return self._local.refused

    def spend(self, spends: Sequence[Spend], now: int) -> list[Outcome] | Awaitable[list[Outcome]]:
        """Apply `spends`; at once where the store need not or cannot be asked.

        Raises:
            DependencyError: the store cannot tell, and a limit wants that to deny.

        """
        # Only a call that depends on nothing else can be answered from what was taken in advance.
        leased = len(spends) == 1 and spends[0].limit.lease > 1 and not spends[0].once
        if leased and (outcome := self._leases.spend(spends[0], self._monotonic())) is not None:
            self.local_answers[LocalAnswer.LEASE] += 1
            return [outcome]
        breaker = self._breaker(spends[0].domain)
        if breaker.state is not State.CLOSED:
            return self._fall_back(spends, now)
        if len(self._refusals):
            refused = self._refusals.answer(spends, self._monotonic())
            if refused is not None:
                self.local_answers[LocalAnswer.OVER_LIMIT] += len(refused)
                return refused
        if leased:
            at = self._monotonic()
            asked = self._leases.ask(spends[0], at)
            future = self._store.submit([asked], now)
            # Whether or not somebody is still waiting then: what was taken in advance is there for others.
            future.add_done_callback(lambda done: self._leases.answered(asked, _only(done), at))
            return Later(self._finish_lease, breaker, asked, now, future)
        return Later(self._finish, breaker, spends, now, self._store.submit(spends, now))

    async def look(self, spends: Sequence[Spend], now: int) -> Held:
        """Return the buckets of `spends` in the store, whatever is known of them here.

        Raises:
            DependencyError: the store does not answer, or is not asked because it did not.

        """
        self._require_store(spends[0].domain)
        return await self._store.look(spends, now)

    async def reset(self, spends: Sequence[Spend], now: int) -> Held:
        """Remove the buckets of `spends` from the store; return what they were. Raises: as `look`."""
        self._require_store(spends[0].domain)
        return await self._store.reset(spends, now)

    def forget(self, keys: Sequence[str]) -> None:
        """Forget who is known to be over, what was taken in advance, and what was counted here meanwhile."""
        at = self._monotonic()
        self._refusals.forget(keys, at)
        self._leases.forget(keys, at)
        self._local.drop(keys)

    def _require_store(self, domain: str) -> None:
        breaker = self._breaker(domain)
        if breaker.state is not State.CLOSED:
            raise DependencyError(f"the rate-limit store does not answer ({breaker.reason})")

    async def start(self, domains: Sequence[str]) -> None:
        """Connect to the servers of `domains`, so that the first calls need not; give up after a while.

        A server that does not answer now is one that fails: its breaker is open.
        """
        breakers = {id(breaker): breaker for breaker in map(self._breaker, domains)}.values()
        await asyncio.gather(*(self._start(breaker) for breaker in breakers))

    async def _start(self, breaker: Breaker) -> None:
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                await self._store.probe(breaker.domain)
        except StoreError as error:
            self._open(breaker, error.reason)
        except TimeoutError:
            self._open(breaker, "timeout")

    async def close(self) -> None:
        """Stop probing and close the connections."""
        for breaker in self._breakers.values():
            if breaker.task is not None:
                breaker.task.cancel()
                await asyncio.gather(breaker.task, return_exceptions=True)
        await self._store.close()

    def describe(self) -> str:
        """Return the state in one line, for people."""
        at = self._monotonic()
        told = [
            f"{breaker.state} for {at - breaker.since:.1f} s ({breaker.reason})"
            for breaker in list(self._breakers.values())
            if breaker.state is not State.CLOSED
        ]
        return "; ".join(told) or State.CLOSED.value

    def _breaker(self, domain: str) -> Breaker:
        slot = self._store.slot(domain)
        breaker = self._breakers.get(slot)
        if breaker is None:
            breaker = self._breakers[slot] = Breaker(domain, self._monotonic())
        return breaker

    async def _finish(
        self, breaker: Breaker, spends: Sequence[Spend], now: int, future: asyncio.Future[Result]
    ) -> list[Outcome]:
        found = await future
        if isinstance(found, StoreError):
            self._open(breaker, found.reason)
            return self._fall_back(spends, now)
        self._refusals.learn(spends, found, self._monotonic())
        return found

    async def _finish_lease(
        self, breaker: Breaker, asked: Spend, now: int, future: asyncio.Future[Result]
    ) -> list[Outcome]:
        (outcome,) = await self._finish(breaker, [asked], now, future)
        return [own_outcome(asked, outcome)]

    # -- the breaker

    def _open(self, breaker: Breaker, reason: str) -> None:
        if breaker.state is not State.CLOSED:
            return
        at = self._monotonic()
        healed = at - breaker.since > _HEALED_SECONDS
        breaker.delay_seconds = 0.0 if healed else _next_delay(breaker.delay_seconds)
        breaker.state, breaker.since, breaker.reason = State.OPEN, at, reason
        breaker.probes = 0
        self.failures[reason] += 1
        _log.warning("rate_limit_store_open", reason=reason, domain=breaker.domain)
        breaker.task = asyncio.get_running_loop().create_task(self._heal(breaker))

    async def _heal(self, breaker: Breaker) -> None:
        """Probe until the store answers in time."""
        while breaker.state is not State.CLOSED:
            await asyncio.sleep(breaker.delay_seconds)
            breaker.state = State.HALF_OPEN
            reason = await self._probe(breaker)
            if reason:
                breaker.state, breaker.reason = State.OPEN, reason
                breaker.delay_seconds = _next_delay(breaker.delay_seconds)
                self.failures[reason] += 1
        seconds = self._monotonic() - breaker.since
        breaker.since, breaker.reason, breaker.task = self._monotonic(), "", None
        _log.info("rate_limit_store_closed", seconds_open=round(seconds, 3), domain=breaker.domain)

    async def _probe(self, breaker: Breaker) -> str:
        """Return what is wrong with the store; nothing if it is as it should be, which closes the breaker."""
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                if breaker.probes:
                    # More than one slow answer is worth; but what goes on failing may be elsewhere by now.
                    await self._store.renew(breaker.domain)
                    await self._store.probe(breaker.domain)
                breaker.probes += 1
                begin = self._monotonic()
                await self._store.probe(breaker.domain)
        except StoreError as error:
            return error.reason
        except TimeoutError:
            return "timeout"
        if self._monotonic() - begin > self._deadline_seconds:
            return "slow"
        breaker.state = State.CLOSED
        return ""

    # -- answers without the store

    def _fall_back(self, spends: Sequence[Spend], now: int) -> list[Outcome]:
        """Return what the limits of a call want said while the store does not answer."""
        outcomes: list[Outcome | None] = []
        local: list[Spend] = []
        for spend in spends:
            limit = spend.limit
            policy = limit.on_store_failure
            self.local_answers[LocalAnswer(policy)] += 1
            if policy is OnStoreFailure.LOCAL:
                outcomes.append(None)
                local.append(spend._replace(limit=self._share(limit)))
            elif policy is OnStoreFailure.ALLOW or limit.shadow_mode or spend.cost < 0:
                outcomes.append(Outcome(allowed=True, remaining=limit.capacity, reset=SECOND, is_known=False))
            elif limit.quota_mode:
                outcomes.append(Outcome(allowed=False, remaining=0, reset=SECOND, is_known=False))
            else:
                raise DependencyError("the rate-limit store is not there, and a limit denies without it")
        counted = iter(self._local.spend(local, now) if local else ())
        found = [outcome if outcome is not None else next(counted) for outcome in outcomes]
        looked = any(outcome.is_known and not outcome.allowed for outcome in found)
        if not looked and is_denied(spends, found):
            raise DependencyError("the rate-limit store is not there, and all quotas deny without it")
        return found

    def _share(self, limit: Limit) -> Limit:
        """Return this process's part of a limit: at least one, of anything but nothing."""
        known = self._local_limits.get(id(limit))
        if known is not None:
            return known[1]
        share = replace(
            limit,
            requests_per_unit=_part(limit.requests_per_unit, self._replicas),
            burst=_part(limit.burst, self._replicas),
        )
        if len(self._local_limits) >= _MAX_LOCAL_LIMITS:
            self._local_limits.clear()
        self._local_limits[id(limit)] = limit, share
        return share


def _only(future: asyncio.Future[Result]) -> Outcome | None:
    """Return the outcome of a call with one spend, None if there is none."""
    found = None if future.cancelled() else future.result()
    return found[0] if isinstance(found, list) else None


def _part(number: int, replicas: int) -> int:
    return max(number // replicas, 1) if number else 0


def _next_delay(seconds: float) -> float:
    return next_pause(seconds, _FIRST_DELAY_SECONDS, _MAX_DELAY_SECONDS)
