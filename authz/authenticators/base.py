"""What authenticators share: answers that are remembered, questions that are asked once, a circuit breaker.

Nothing here keeps a credential: answers are found by a keyed digest of it, and no answer is given past its
expiry. A question that could not be answered is not remembered.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import structlog

from authz.authn.credentials import Answer, Authenticator, Result
from garrison.answers import UnusableAnswerError
from garrison.errors import DependencyError

# One remembered answer takes about 1 KB.
MAX_REMEMBERED = 10_000
# Questions that wait for an answer, each with all calls that ask it; more are told that nobody knows.
MAX_RUNNING = 1_000
_THREADS = 4

log = structlog.get_logger()


class Managed(Authenticator, Protocol):
    """An authenticator as the server holds it."""

    results: dict[Result, int]  # how many credentials came to what

    @property
    def remembered(self) -> int:
        """How many answers are held in memory."""

    @property
    def is_open(self) -> bool | None:
        """Whether its circuit breaker is open; None where there is none."""

    async def close(self) -> None:
        """Let go of what it holds."""


def new_results() -> dict[Result, int]:
    """Return counts of nothing."""
    return dict.fromkeys(Result, 0)


class AnswerCache:
    """Answers by credential, bounded, each until its time is up or the credential expires.

    What is good and what is not are kept apart: whoever sends many bad credentials displaces no good ones.
    """

    def __init__(
        self,
        positive_seconds: float,
        negative_seconds: float,
        *,
        size: int = MAX_REMEMBERED,
        key: bytes | None = None,
    ) -> None:
        self._seconds = {True: positive_seconds, False: negative_seconds}
        self._size = size
        self._key = key or secrets.token_bytes(32)  # so that digests cannot be computed elsewhere
        # For each: from when, until when, the answer.
        self._answers: dict[bool, OrderedDict[bytes, tuple[float, float, Answer]]] = {
            True: OrderedDict(),
            False: OrderedDict(),
        }

    def __len__(self) -> int:
        return sum(map(len, self._answers.values()))

    def digest(self, credential: str) -> bytes:
        """Return what `credential` is remembered by."""
        return hashlib.blake2b(
            credential.encode("utf-8", "surrogateescape"), key=self._key, digest_size=32
        ).digest()

    def get(self, digest: bytes, now: float) -> Answer | None:
        """Return the answer, None when there is none that holds at `now` (seconds since the epoch)."""
        for answers in self._answers.values():
            found = answers.get(digest)
            if found is None:
                continue
            begin, end, answer = found
            # A clock that was set back must not make an answer live longer.
            if begin <= now < end:
                return answer
            del answers[digest]
        return None

    def put(self, digest: bytes, answer: Answer, now: float) -> None:
        """Remember what was answered at `now`."""
        if answer.result is Result.UNAVAILABLE:
            return
        good = answer.result is Result.ACCEPTED
        end = min(now + self._seconds[good], answer.expires)
        if not now < end:
            return
        self._answers[not good].pop(digest, None)
        answers = self._answers[good]
        answers[digest] = (now, end, answer)
        answers.move_to_end(digest)
        while len(answers) > self._size:
            answers.popitem(last=False)

    def clear(self) -> None:
        """Forget everything."""
        for answers in self._answers.values():
            answers.clear()


class BreakerState(StrEnum):
    """Closed: calls go through. Open: none does. Half open: one does, to see whether it works again."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """Stops asking who does not answer: opens after some failures in a row, then tries once at a time."""

    def __init__(
        self, failures: int = 5, open_seconds: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`clock` is monotonic, in seconds."""
        self._allowed, self._open_seconds, self._clock = failures, open_seconds, clock
        self._failures = 0
        self._closed_again_at = 0.0
        self.state = BreakerState.CLOSED

    def enter(self) -> bool:
        """Return whether to ask; who was told yes says later how it went (`succeeded`, `failed`, `left`)."""
        if self.state is BreakerState.OPEN and self._clock() >= self._closed_again_at:
            self.state = BreakerState.HALF_OPEN
            return True
        return self.state is BreakerState.CLOSED

    def succeeded(self) -> None:
        """Note an answer."""
        self._failures = 0
        self.state = BreakerState.CLOSED

    def failed(self) -> None:
        """Note that there was none."""
        self._failures += 1
        if self.state is BreakerState.HALF_OPEN or self._failures >= self._allowed:
            self.state = BreakerState.OPEN
            self._closed_again_at = self._clock() + self._open_seconds

    def left(self) -> None:
        """Note that nothing was learnt: the try was given up. The next one may try at once."""
        if self.state is BreakerState.HALF_OPEN:
            self.state = BreakerState.OPEN


class NoBreaker(Breaker):
    """For what runs in this process: it may be busy, but it is never away."""

    def enter(self) -> bool:
        """Return True."""
        return True

    def failed(self) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True)
class Caching:
    """For how many seconds good and bad answers are remembered."""

    positive_seconds: float = 60.0
    negative_seconds: float = 5.0


Question = Callable[[str], Awaitable[Answer]]


class CachingAuthenticator:
    """Asks a question that takes time, once for calls that come together, and remembers the answer.

    `question` raises DependencyError where nobody answers. For one event loop.
    """

    def __init__(
        self,
        name: str,
        question: Question,
        caching: Caching,
        *,
        breaker: Breaker | None = None,
        clock: Callable[[], float] = time.time,
        max_running: int = MAX_RUNNING,
        end: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`clock` gives seconds since the epoch; at most `max_running` credentials are asked about at once.

        `end` lets go of what the question uses.
        """
        self.name = name
        self.results = new_results()
        self.breaker = breaker or Breaker()
        self._question = question
        self._cache = AnswerCache(caching.positive_seconds, caching.negative_seconds)
        self._clock = clock
        self._max_running = max_running
        self._end = end
        self._generation = 0
        self._logged_at, self._unlogged = 0, 0
        self._running: dict[tuple[int, bytes], asyncio.Task[Answer]] = {}

    def known(self, credential: str, now: float) -> Answer | None:
        """Return the answer that is remembered."""
        found = self._cache.get(self._cache.digest(credential), now)
        if found is not None:
            self.results[found.result] += 1
        return found

    async def ask(self, credential: str) -> Answer:
        """Return the answer; calls with one credential share one question."""
        answer = await self._asked(credential)
        self.results[answer.result] += 1
        return answer

    async def _asked(self, credential: str) -> Answer:
        digest = self._cache.digest(credential)
        # It may have been answered while this call was on its way.
        if (found := self._cache.get(digest, self._clock())) is not None:
            return found
        key = (self._generation, digest)
        task = self._running.get(key)
        if task is None:
            if len(self._running) >= self._max_running:
                return Answer.unavailable("it is asked about too many others at once")
            task = self._running[key] = asyncio.create_task(self._answer(credential, digest))
            task.add_done_callback(lambda _: self._running.pop(key, None))
        # One of those who wait may give up; the others still want to know.
        return await asyncio.shield(task)

    async def _answer(self, credential: str, digest: bytes) -> Answer:
        if not self.breaker.enter():
            return Answer.unavailable("it did not answer before, and is not asked for a while")
        generation, asked_at, ended = self._generation, self._clock(), False
        try:
            answer = await self._question(credential)
            self.breaker.succeeded()
            ended = True
        except DependencyError as error:
            if isinstance(error, UnusableAnswerError):
                self.breaker.succeeded()
            else:
                self.breaker.failed()
            ended = True
            self._log(error)
            return Answer.unavailable(str(error))
        except Exception:
            self.breaker.failed()
            ended = True
            log.exception("authenticator_failed", authenticator=self.name)
            return Answer.unavailable("an internal error; the log has its stack")
        finally:
            if not ended:  # cancelled
                self.breaker.left()
        if generation == self._generation:
            # The answer is as old as the question.
            self._cache.put(digest, answer, asked_at)
        return answer

    def _log(self, error: DependencyError) -> None:
        # A caller may send many credentials that a server has no usable answer for.
        now = int(self._clock())
        if now != self._logged_at:
            log.warning(
                "authenticator_failed", authenticator=self.name, reason=str(error), unlogged=self._unlogged
            )
            self._logged_at, self._unlogged = now, 0
        else:
            self._unlogged += 1

    def forget(self) -> None:
        """Remember nothing that was answered before, or is being answered."""
        self._generation += 1
        self._cache.clear()

    @property
    def remembered(self) -> int:
        """How many answers are held in memory."""
        return len(self._cache)

    @property
    def is_open(self) -> bool | None:
        """Whether the circuit breaker lets nothing through; None where there is none."""
        if isinstance(self.breaker, NoBreaker):
            return None
        return self.breaker.state is not BreakerState.CLOSED

    async def close(self) -> None:
        """Stop asking."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        if self._end is not None:
            await self._end()


class Threads:
    """A few threads for what blocks: hashing, and asking over HTTP."""

    def __init__(self, name: str, count: int = _THREADS) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)

    def question(self, ask: Callable[[str], Answer]) -> Question:
        """Return a question that runs `ask` in one of the threads."""

        async def asked(credential: str) -> Answer:
            return await asyncio.get_running_loop().run_in_executor(self._pool, ask, credential)

        return asked

    async def close(self) -> None:
        """Let running work end, in the background; what waits is dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def numeric_date(value: object) -> float | None:
    """Return a time of a token in seconds since the epoch (RFC 7519, section 2), None when it is none."""
    # A boolean is an int; and an int may be too large for a float.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e15 else None


def audiences_of(claims: Mapping[str, object]) -> frozenset[str]:
    """Return the strings in the claim `aud`: one, or a list of them (RFC 7519, section 4.1.3)."""
    audience = claims.get("aud")
    found = [audience] if isinstance(audience, str) else audience if isinstance(audience, list) else []
    return frozenset(one for one in found if isinstance(one, str))
