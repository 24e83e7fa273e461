"""What authenticators remember, what they ask once, and when they stop asking."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from authz.authenticators.base import (
    AnswerCache,
    Breaker,
    BreakerState,
    Caching,
    CachingAuthenticator,
    NoBreaker,
    Threads,
    audiences_of,
)
from authz.authn.credentials import Answer, Result
from garrison.answers import UnusableAnswerError
from garrison.errors import DependencyError

GOOD = Answer.accepted({"sub": "a"})
BAD = Answer.refused("no")
AWAY = Answer.unavailable("away")


class Clock:
    """A clock that a test moves."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the time."""
        return self.now


# ----------------------------------------------------------------------------------------------------- cache


@pytest.mark.parametrize(("answer", "until"), [(GOOD, 60.0), (BAD, 5.0), (AWAY, 0.0)])
def test_an_answer_is_remembered_for_its_time(answer: Answer, until: float) -> None:
    """Good ones longer than bad ones; that nobody knows is not remembered at all."""
    cache = AnswerCache(60.0, 5.0)
    cache.put(b"k", answer, 1000.0)
    for after in (0.0, 4.9, 5.0, 59.9, 60.0):
        assert cache.get(b"k", 1000.0 + after) == (answer if after < until else None), after


_TIMES = st.floats(0, 200)


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.booleans(), _TIMES, _TIMES)), _TIMES)
def test_no_answer_outlives_its_expiry_or_its_time(
    puts: list[tuple[bytes, bool, float, float]], now: float
) -> None:
    """Whatever is put in whatever order, also by a clock that jumps: the last word counts, within its bounds."""
    cache = AnswerCache(60.0, 5.0, size=2)
    last: dict[bytes, tuple[Answer, float, float]] = {}
    for key, good, at, expires in puts:
        answer = Answer.accepted({"sub": "a"}, expires=expires) if good else BAD
        cache.put(key, answer, at)
        if at < (end := min(at + (60.0 if good else 5.0), answer.expires)):
            last[key] = (answer, at, end)
    for key in (b"a", b"b", b"c"):
        found = cache.get(key, now)
        if found is not None:
            answer, begin, end = last[key]
            assert found is answer
            assert begin <= now < end
    assert len(cache) <= 4


def test_bad_credentials_displace_no_good_one() -> None:
    """Whoever sends many of them only makes others of them be asked about again."""
    cache = AnswerCache(60.0, 5.0, size=10)
    cache.put(b"good", GOOD, 0.0)
    for number in range(1000):
        cache.put(b"%d" % number, BAD, 0.0)
    assert cache.get(b"good", 1.0) is GOOD
    assert len(cache) == 11


def test_a_new_answer_replaces_the_opposite_one() -> None:
    """A key that was refused and is good now is good, and the other way round."""
    cache = AnswerCache(60.0, 60.0)
    for answer in (BAD, GOOD, BAD):
        cache.put(b"k", answer, 0.0)
        assert cache.get(b"k", 1.0) is answer


def test_no_credential_is_in_memory() -> None:
    """Only a digest that differs from process to process."""
    cache, other = AnswerCache(60.0, 5.0), AnswerCache(60.0, 5.0)
    assert cache.digest("secret") == cache.digest("secret")
    assert cache.digest("secret") != other.digest("secret")
    cache.put(cache.digest("secret"), GOOD, 0.0)
    assert "secret" not in repr(vars(cache))


# --------------------------------------------------------------------------------------------------- breaker


def test_a_breaker_opens_after_failures_in_a_row_and_tries_one_at_a_time() -> None:
    """One success closes it, one failure of the try opens it again."""
    clock = Clock()
    breaker = Breaker(3, 10.0, clock)
    for _ in range(2):
        breaker.failed()
    breaker.succeeded()
    for _ in range(3):
        assert breaker.enter()
        breaker.failed()
    assert str(breaker.state) == "open"
    clock.now += 9.9
    assert not breaker.enter()
    clock.now += 0.1
    assert breaker.enter()
    assert str(breaker.state) == "half_open"
    assert not breaker.enter()
    breaker.failed()
    assert not breaker.enter()
    clock.now += 10.0
    assert breaker.enter()
    breaker.left()
    assert breaker.enter(), "a try that was given up is free for the next call"
    breaker.succeeded()
    assert breaker.state is BreakerState.CLOSED


# ----------------------------------------------------------------------------------------------- authenticator


class Backend:
    """Somebody who is asked, and counts it."""

    def __init__(self, answer: Answer | Exception = GOOD) -> None:
        self.answer = answer
        self.asked: list[str] = []
        self.arrivals: asyncio.Queue[str] = asyncio.Queue()
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self, credential: str) -> Answer:
        """Answer, as soon as `go` is set."""
        self.asked.append(credential)
        self.arrivals.put_nowait(credential)
        answer = self.answer
        await self.go.wait()
        if isinstance(answer, Exception):
            raise answer
        return answer


def run(scenario: Callable[[], Awaitable[Any]]) -> Any:
    """Run a scenario in an event loop."""

    async def main() -> Any:
        return await scenario()

    return asyncio.run(main())


def test_calls_with_one_credential_share_one_question() -> None:
    """Until it is answered; then the answer is known without asking, until it is forgotten."""

    async def scenario() -> None:
        clock, backend = Clock(), Backend()
        backend.go.clear()
        caching = CachingAuthenticator("a", backend, Caching(60.0, 5.0), clock=clock)
        assert caching.known("k", clock.now) is None
        calls = [asyncio.create_task(caching.ask("k")) for _ in range(20)]
        other = asyncio.create_task(caching.ask("other"))
        for _ in range(2):
            await backend.arrivals.get()
        backend.go.set()
        assert await asyncio.gather(*calls, other) == [GOOD] * 21
        assert sorted(backend.asked) == ["k", "other"]
        assert caching.known("k", clock.now) is GOOD
        assert caching.results[Result.ACCEPTED] == 22
        caching.forget()
        assert caching.known("k", clock.now) is None
        assert caching.remembered == 0
        await caching.close()

    run(scenario)


def test_who_gives_up_does_not_take_the_answer_from_others() -> None:
    """A call that is cancelled leaves the question to those who still wait."""

    async def scenario() -> None:
        backend = Backend()
        backend.go.clear()
        caching = CachingAuthenticator("a", backend, Caching())
        first, second = asyncio.create_task(caching.ask("k")), asyncio.create_task(caching.ask("k"))
        await backend.arrivals.get()
        first.cancel()
        backend.go.set()
        assert await second is GOOD
        assert first.cancelled() or await asyncio.gather(first, return_exceptions=True)
        assert backend.asked == ["k"]
        await caching.close()

    run(scenario)


def test_what_was_asked_before_forgetting_is_not_remembered() -> None:
    """An answer from an old file must not count after the new one is in force."""

    async def scenario() -> None:
        clock, backend = Clock(), Backend()
        backend.go.clear()
        caching = CachingAuthenticator("a", backend, Caching(), clock=clock)
        old = asyncio.create_task(caching.ask("k"))
        await backend.arrivals.get()
        caching.forget()
        backend.answer = BAD
        backend.go.set()
        assert await old is GOOD
        assert caching.known("k", clock.now) is None
        backend.go.clear()
        backend.answer = GOOD
        old = asyncio.create_task(caching.ask("k"))
        await backend.arrivals.get()
        caching.forget()
        backend.answer = BAD
        new = asyncio.create_task(caching.ask("k"))
        # Whoever comes later does not share a question that was asked before.
        async with asyncio.timeout(20):
            await backend.arrivals.get()
        backend.go.set()
        assert list(await asyncio.gather(old, new)) == [GOOD, BAD]
        assert caching.known("k", clock.now) is BAD
        await caching.close()

    run(scenario)


@pytest.mark.parametrize("error", [DependencyError("no answer"), RuntimeError("a bug")])
def test_a_failure_poisons_nothing(error: Exception) -> None:
    """It is an answer for those who asked, and the next call asks again; a flood of them opens the breaker."""

    async def scenario() -> None:
        clock, backend = Clock(), Backend(error)
        breaker = Breaker(2, 10.0, clock)
        caching = CachingAuthenticator("a", backend, Caching(), breaker=breaker, clock=clock)
        assert (await caching.ask("k")).result is Result.UNAVAILABLE
        assert caching.known("k", clock.now) is None
        assert not caching.is_open
        assert (await caching.ask("k")).result is Result.UNAVAILABLE
        assert caching.is_open
        assert (await caching.ask("k")).result is Result.UNAVAILABLE
        assert backend.asked == ["k", "k"], "an open breaker asks nobody"
        backend.answer = GOOD
        clock.now += 10.0
        assert await caching.ask("k") is GOOD
        assert not caching.is_open
        assert caching.results[Result.UNAVAILABLE] == 3
        await caching.close()

    run(scenario)


def test_unusable_answers_do_not_open_the_breaker_and_are_logged_once_a_second() -> None:
    """One caller's odd credentials must not keep others from being asked about, nor fill the log."""

    async def scenario() -> None:
        clock, backend = Clock(), Backend(UnusableAnswerError("no JSON"))
        caching = CachingAuthenticator("a", backend, Caching(), breaker=Breaker(2), clock=clock)
        with capture_logs() as lines:
            for number in range(10):
                assert (await caching.ask(str(number))).result is Result.UNAVAILABLE
            clock.now += 1
            await caching.ask("last")
        assert not caching.is_open
        assert [line["unlogged"] for line in lines] == [0, 9]
        await caching.close()

    run(scenario)


def test_too_many_credentials_at_once_are_told_that_nobody_knows() -> None:
    """A slow dependency does not pile up calls without end."""

    async def scenario() -> None:
        backend = Backend()
        backend.go.clear()
        caching = CachingAuthenticator("a", backend, Caching(), max_running=2, breaker=NoBreaker())
        waiting = [asyncio.create_task(caching.ask(str(number))) for number in range(2)]
        for _ in range(2):
            await backend.arrivals.get()
        assert (await caching.ask("2")).result is Result.UNAVAILABLE
        # Whoever asks what is being asked already waits with the others.
        waiting.append(asyncio.create_task(caching.ask("1")))
        assert caching.is_open is None
        backend.go.set()
        assert await asyncio.gather(*waiting) == [GOOD, GOOD, GOOD]
        assert await caching.ask("2") is GOOD
        await caching.close()

    run(scenario)


def test_an_answer_is_as_old_as_its_question() -> None:
    """What was true when it was asked may have ended while the answer was on its way."""

    async def scenario() -> None:
        clock, backend = Clock(), Backend()
        backend.go.clear()
        caching = CachingAuthenticator("a", backend, Caching(60.0, 5.0), clock=clock)
        asked = asyncio.create_task(caching.ask("k"))
        await backend.arrivals.get()
        clock.now += 59.0
        backend.go.set()
        await asked
        assert caching.known("k", clock.now + 0.9) is GOOD
        assert caching.known("k", clock.now + 1.0) is None
        await caching.close()

    run(scenario)


def test_closing_ends_what_is_under_way() -> None:
    """A server that stops does not wait for an identity provider."""

    async def scenario() -> None:
        ended = []

        async def end() -> None:
            ended.append(True)

        backend = Backend()
        backend.go.clear()
        caching = CachingAuthenticator("a", backend, Caching(), end=end)
        call = asyncio.create_task(caching.ask("k"))
        await backend.arrivals.get()
        await caching.close()
        assert ended == [True]
        with pytest.raises(asyncio.CancelledError):
            await call

    run(scenario)


def test_what_blocks_runs_in_threads() -> None:
    """And its answer comes back to the event loop."""

    async def scenario() -> None:
        threads = Threads("test", 1)
        assert await threads.question(Answer.refused)("why") == Answer.refused("why")
        await threads.close()

    run(scenario)


@pytest.mark.parametrize(
    ("claims", "expected"),
    [({}, set()), ({"aud": "a"}, {"a"}), ({"aud": ["a", 1, "b"]}, {"a", "b"}), ({"aud": {"a": 1}}, set())],
)
def test_audiences_are_one_or_several(claims: dict[str, object], expected: set[str]) -> None:
    """RFC 7519, section 4.1.3."""
    assert audiences_of(claims) == expected
