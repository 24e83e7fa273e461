"""Buckets in Redis or Valkey: shared by all who ask the same server, exact, bounded by its memory.

All calls that come up in one turn of the event loop go to the store together, as one script call for each
slot. The store's clock is the only one that counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha1
from typing import Any

import structlog

from garrison.errors import DependencyError
from ratelimit.algorithm import UNITS, Limit, Outcome
from ratelimit.later import Later
from ratelimit.store.base import CounterStore, Held, Spend
from ratelimit.store.connection import AnswerError
from ratelimit.store.servers import Servers
from ratelimit.store.wire import BUCKETS_SCRIPT, DEFAULT_PREFIX, SCRIPT, Keys, decode, decode_held, encode

_log = structlog.get_logger(__name__)

# For an operator's look or reset, which no call waits for.
_OPERATOR_SECONDS = 2.0
# Scripts of one slot that may be on their way at once; what comes up meanwhile makes the next batch.
_IN_FLIGHT = 2
DEFAULT_MAX_BATCH = 256
# When this process itself was late, an answer may be there and not read yet; that is given a moment.
_LATE_SECONDS = 0.002
# How often a call may be sent on to another node of a Cluster.
_MAX_REDIRECTIONS = 3
_PROBE = Limit(1, UNITS["second"])
# What a server that fails, or says what makes no sense, ends in here.
_FAILURES = (AnswerError, OSError, TypeError, ValueError, LookupError)


class StoreError(DependencyError):
    """The store did not answer, or not as it should; `reason` is one of a few words, for metrics."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the rate-limit store failed: {reason}")
        self.reason = reason


Result = list[Outcome] | StoreError


@dataclass(eq=False, slots=True)
class _Turn:
    """Calls that came up together, who waits for them, and until when."""

    calls: list[Sequence[Spend]] = field(default_factory=list)
    waiting: list[asyncio.Future[Result]] = field(default_factory=list)
    now: int = 0
    due: float = 0.0
    timer: asyncio.TimerHandle | None = None
    batch: _Batch | None = None


@dataclass(eq=False, slots=True)
class _Batch:
    """Turns that went to the store in one script, and how many of them still wait."""

    turns: list[_Turn]
    expected: int
    task: asyncio.Task[None] | None = None


@dataclass(eq=False, slots=True)
class _Slot:
    """One slot: the turns that wait, the one that is being filled, and how many scripts are on their way."""

    number: int
    turns: list[_Turn] = field(default_factory=list)
    filling: _Turn | None = None
    in_flight: int = 0


class _Script:
    """A script, and what it is called in the server."""

    __slots__ = ("sha", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        # Names the script to the server; nobody is protected by it.
        self.sha = sha1(text.encode(), usedforsecurity=False).hexdigest()


_CHARGE, _BUCKETS = _Script(SCRIPT), _Script(BUCKETS_SCRIPT)


class RedisStore(CounterStore):
    """A `Store` that answers later. Belongs to one event loop.

    No call waits longer than `deadline_seconds` from when it came up. `max_batch` is how many calls one
    script takes. `clock` takes the place of the server's: for tests and replays, never for servers that share
    their counts.
    """

    def __init__(
        self,
        servers: Servers,
        prefix: str = DEFAULT_PREFIX,
        *,
        deadline_seconds: float | None = None,
        max_batch: int = DEFAULT_MAX_BATCH,
        clock: Callable[[], int] | None = None,
    ) -> None:
        self._servers = servers
        self._keys = Keys(prefix)
        self._deadline_seconds = deadline_seconds
        self._max_batch = max_batch
        self._clock = clock
        self._slots: dict[int, _Slot] = {}

    def spend(self, spends: Sequence[Spend], now: int) -> Awaitable[list[Outcome]]:
        """Apply `spends` at the server's time; `now` is about that.

        Raises:
            DependencyError: when awaited: the store cannot tell.

        """
        return Later(_outcomes, self.submit(spends, now))

    def submit(self, spends: Sequence[Spend], now: int) -> asyncio.Future[Result]:
        """Do as `spend` does, and return what the outcomes, or a failure, will be in."""
        number = self.slot(spends[0].domain)
        slot = self._slots.get(number)
        if slot is None:
            slot = self._slots[number] = _Slot(number)
        turn = slot.filling
        loop = asyncio.get_running_loop()
        if turn is None or len(turn.calls) >= self._max_batch:
            turn = slot.filling = self._begin_turn(loop, slot, now)
        future: asyncio.Future[Result] = loop.create_future()
        turn.calls.append(spends)
        turn.waiting.append(future)
        return future

    async def look(self, spends: Sequence[Spend], now: int) -> Held:
        """Return the buckets of `spends` at the server's time; `now` plays no part. Changes nothing.

        Raises:
            StoreError: the store does not answer.

        """
        return await self._buckets(spends, now, "look")

    async def reset(self, spends: Sequence[Spend], now: int) -> Held:
        """Remove the buckets of `spends`, in one step; return what they were. Raises: as `look`."""
        return await self._buckets(spends, now, "reset")

    def forget(self, keys: Sequence[str]) -> None:
        """Nothing is known besides the buckets."""

    async def _buckets(self, spends: Sequence[Spend], _now: int, what: str) -> Held:
        start = self._keys.domain(spends[0].domain)
        keys = [self._keys.bucket(start, spend) for spend in spends]
        keys += [start + key for spend in spends for key in spend.once_keys]
        slot = self.slot(spends[0].domain)
        try:
            async with asyncio.timeout(_OPERATOR_SECONDS):
                answer = await self._send_script(slot, _BUCKETS, len(keys), *keys, len(spends), what)
            held = decode_held([spend.limit for spend in spends], answer)
        except (AnswerError, OSError, TypeError, ValueError) as error:
            raise StoreError(_reason(error)) from error
        return held if self._clock is None else held._replace(now=self._clock())

    def slot(self, domain: str) -> int:
        """Return the number of the slot that `domain` is in: what fails, fails for all domains of a slot."""
        return self._servers.slot(domain)

    async def probe(self, domain: str) -> None:
        """Have the server read, count and write for `domain`.

        Raises:
            StoreError: it did not.

        """
        slot = self.slot(domain)
        await self._run(slot, [[Spend(f"{_PROBE.kind}|probe", _PROBE, 1, domain=domain)]], 0)

    async def renew(self, domain: str) -> None:
        """Look again where the server of `domain` is, on new connections.

        Raises:
            StoreError: it cannot be found.

        """
        try:
            await self._servers.renew(self.slot(domain))
        except _FAILURES as error:
            raise StoreError(_reason(error)) from error

    async def close(self) -> None:
        """Close the connections."""
        self._servers.close()

    def _begin_turn(self, loop: asyncio.AbstractEventLoop, slot: _Slot, now: int) -> _Turn:
        turn = _Turn(now=now)
        slot.turns.append(turn)
        loop.call_soon(self._flush, slot)
        if self._deadline_seconds is not None:
            turn.due = loop.time() + self._deadline_seconds
            turn.timer = loop.call_later(self._deadline_seconds, self._expire, loop, slot, turn)
        return turn

    def _expire(self, loop: asyncio.AbstractEventLoop, slot: _Slot, turn: _Turn) -> None:
        """Give up on the calls of a turn."""
        if turn.due and loop.time() - turn.due > _LATE_SECONDS:
            turn.due = 0.0
            turn.timer = loop.call_later(_LATE_SECONDS, self._expire, loop, slot, turn)
            return
        batch = turn.batch
        if batch is None:
            slot.turns.remove(turn)
            if slot.filling is turn:
                slot.filling = None
        else:
            batch.expected -= 1
            if not batch.expected and batch.task is not None:
                # The answer may still come; the connection knows that nobody waits for it.
                batch.task.cancel()
        _settle(turn, StoreError("timeout"))

    def _flush(self, slot: _Slot) -> None:
        slot.filling = None
        while slot.turns and slot.in_flight < _IN_FLIGHT:
            turns = [slot.turns.pop(0)]
            calls = len(turns[0].calls)
            while slot.turns and calls + len(slot.turns[0].calls) <= self._max_batch:
                calls += len(slot.turns[0].calls)
                turns.append(slot.turns.pop(0))
            slot.in_flight += 1
            batch = _Batch(turns, len(turns))
            for turn in turns:
                turn.batch = batch
            batch.task = asyncio.create_task(self._send(slot, batch))
            # Not at the end of `_send`: a task that is cancelled before its first step never gets there.
            batch.task.add_done_callback(lambda _: self._sent(slot))

    def _sent(self, slot: _Slot) -> None:
        slot.in_flight -= 1
        self._flush(slot)

    async def _send(self, slot: _Slot, batch: _Batch) -> None:
        turns = batch.turns
        result: list[list[Outcome]] | StoreError
        try:
            calls = turns[0].calls if len(turns) == 1 else [one for turn in turns for one in turn.calls]
            result = await self._run(slot.number, calls, turns[-1].now)
        except StoreError as error:
            result = error
        except Exception:  # noqa: BLE001 - a bug here; those who wait are to hear of it all the same
            _log.exception("rate_limit_store_failed")
            result = StoreError("bug")
        at = 0
        for turn in turns:
            end = at + len(turn.calls)
            _settle(turn, result if isinstance(result, StoreError) else result[at:end])
            at = end

    async def _run(self, slot: int, calls: Sequence[Sequence[Spend]], now: int) -> list[list[Outcome]]:
        """Run the script for `calls`, which are in one slot."""
        time = self._clock() if self._clock is not None else 0
        keys, argument = encode(calls, self._keys, time, now)
        try:
            answer = await self._send_script(slot, _CHARGE, len(keys), *keys, argument)
            return decode(calls, answer)
        except _FAILURES as error:
            raise StoreError(_reason(error)) from error

    async def _send_script(self, slot: int, script: _Script, *arguments: str | bytes | int) -> Any:
        """Return the script's answer, from whichever node of a Cluster has the slot by now.

        Each of the errors that are followed here says that nothing was done.
        """
        connection = await self._servers.connection(slot)
        asking = False
        for _ in range(_MAX_REDIRECTIONS + 1):
            if asking:
                connection.send("ASKING")
            answer = await connection.send("EVALSHA", script.sha, *arguments)
            if isinstance(answer, AnswerError) and answer.code == "NOSCRIPT":
                # A server that was restarted, or one that has just become the master.
                if asking:
                    connection.send("ASKING")
                answer = await connection.send("EVAL", script.text, *arguments)
            if not isinstance(answer, AnswerError) or answer.code not in {"MOVED", "ASK"}:
                break
            asking = answer.code == "ASK"
            _, _, address = answer.text.split()[:3]
            host, _, port = address.rpartition(":")
            if asking:
                connection = await self._servers.at(host, int(port))
            else:
                self._servers.redirect(slot, host, int(port))
                connection = await self._servers.connection(slot)
        if isinstance(answer, AnswerError):
            raise answer
        return answer


def _settle(turn: _Turn, result: list[list[Outcome]] | StoreError) -> None:
    if turn.timer is not None:
        turn.timer.cancel()
    for index, future in enumerate(turn.waiting):
        if not future.done():
            future.set_result(result if isinstance(result, StoreError) else result[index])


async def _outcomes(future: asyncio.Future[Result]) -> list[Outcome]:
    found = await future
    if isinstance(found, StoreError):
        raise found
    return found


# What servers answer with; what they say besides may hold secrets and has no bound.
_REASONS = {
    "NOAUTH": "auth",
    "WRONGPASS": "auth",
    "NOPERM": "auth",
    "OOM": "out_of_memory",
    "READONLY": "read_only",
    "LOADING": "loading",
    "MISCONF": "not_writable",
    "NOREPLICAS": "not_writable",
    "BUSY": "busy",
    "CLUSTERDOWN": "cluster_down",
    "TRYAGAIN": "cluster_moving",
    "CROSSSLOT": "cluster_moving",
    "MOVED": "cluster_moving",
    "ASK": "cluster_moving",
}


def _reason(error: Exception) -> str:
    """Return one of a few words for what went wrong."""
    if isinstance(error, AnswerError):
        # Old servers put what went wrong inside a script behind "ERR Error running script (…):".
        words = {word.strip("-:") for word in error.text.split()[:12]}
        found = next((one for code, one in _REASONS.items() if code in words), None)
        return found or ("auth" if "AUTH" in words else "error")
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, OSError):
        return "connection"
    return "answer"
