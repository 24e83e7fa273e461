"""What callers notice while the store of rate limits fails, for each way to fail, until it is well again."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

from envoy.service.ratelimit.v3.rls_pb2 import RateLimitResponse

from benchmarks.load import LoadResult, load
from benchmarks.report import Requirement, Sample, Section, Table
from benchmarks.run import BenchmarkError, Run
from benchmarks.servers import start_server
from benchmarks.stores import FAULTS, Fault
from benchmarks.workload import SHOULD_RATE_LIMIT, rate_limit_requests
from garrison.demo.topology import RATE_LIMIT_DOMAIN
from garrison.transport.address import Address

_USERS = 1_000
_DEADLINE_MILLISECONDS = 10
_MAX_P99_MILLISECONDS = _DEADLINE_MILLISECONDS + 5.0
_CALLS_PER_SECOND = 1_000
# So that the load does not wait for answers: calls fall due whatever became of earlier ones.
_CONNECTIONS, _STREAMS = 4, 64
# Of the calls that are due, so many have to be made, or the figures say nothing about this rate.
_LEAST_OFFERED = 0.9
# How long the load goes on after the store has answered again.
_AFTER_SECONDS = 1.0
# So many before a fault, so that the fault is what the figures tell of.
_WELL_ANSWERS = 500
_PATIENCE_SECONDS = 60.0
_LOOK_SECONDS = 0.01
# Nobody is over it, so that every call is counted by the store or answered without it.
_LIMITS = f"""\
domain: {RATE_LIMIT_DOMAIN}
descriptors:
- {{key: user, rate_limit: {{unit: hour, requests_per_unit: 1000000, on_store_failure: allow}}}}
"""
_HEADINGS = (
    "calls",
    "p50 ms",
    "p99 ms",
    "longest ms",
    "by the store",
    "without it",
    "ms until open",
    "ms until healed",
)


@dataclass(slots=True)
class _Answers:
    """Who answered; when first somebody did without the store, and when first the store did again.

    Times are of `perf_counter`; `ended` is when the fault is over, as far as anybody can end it.
    """

    store: int = 0
    fallback: int = 0
    first: float = 0.0
    back: float = 0.0
    ended: float = math.inf
    in_a_row: int = 0

    async def wait_until(self, holds: Callable[[], bool], loading: asyncio.Task[LoadResult]) -> bool:
        """Wait until something holds of the answers; return whether it did while there was a load."""
        while not holds() and not loading.done():  # noqa: ASYNC110 - a thousand answers set no event
            await asyncio.sleep(_LOOK_SECONDS)
        return holds()

    def take(self, answer: bytes) -> None:
        """Note one answer."""
        now = perf_counter()
        if not RateLimitResponse.FromString(answer).statuses[0].HasField("current_limit"):
            self.fallback += 1
            self.in_a_row = 0
            self.first = self.first or now
            return
        self.store += 1
        self.in_a_row += 1
        if self.first and now > self.ended:
            self.back = self.back or now


@dataclass(frozen=True, slots=True)
class _Failure:
    """One failure from before it to after it."""

    result: LoadResult
    answers: _Answers
    open_seconds: float
    healed_seconds: float

    def cells(self) -> tuple[float, ...]:
        """Return the figures of `_HEADINGS`."""
        result, answers = self.result, self.answers
        milliseconds = (result.p50_us / 1e3, result.p99_us / 1e3, result.max_us / 1e3)
        times = (self.open_seconds * 1e3, self.healed_seconds * 1e3)
        return (result.calls, *milliseconds, answers.store, answers.fallback, *times)


def failures(run: Run) -> Section:
    """Measure each fault under a steady load, from before it begins until after it has healed."""
    rounds = 1 if run.quick else 3
    hold_seconds = 1.0 if run.quick else 2.0
    lines: dict[str, tuple[Sample, ...]] = {}
    for name, kind in FAULTS.items():
        found: list[_Failure] = []
        for number in range(rounds):
            run.say(f"store {name}, round {number + 1} of {rounds}")
            found.append(_fail(run, kind(run), hold_seconds))
        lines[name] = tuple(map(Sample.of, zip(*(one.cells() for one in found), strict=True)))
    p99, longest = _HEADINGS.index("p99 ms"), _HEADINGS.index("longest ms")
    return Section(
        "ShouldRateLimit while Valkey fails",
        f"`garrison serve` with ngh2 and a deadline of {_DEADLINE_MILLISECONDS} ms; {_CALLS_PER_SECOND:,} "
        "calls a second, evenly. Latencies are of all calls from half a second before the fault to a second "
        "after the store has answered again; `longest` is the longest of all rounds, the rest are "
        f"medians of {rounds}. A fault that does not end by itself is ended after {hold_seconds:g} s, and "
        "the time until healed counts from then, else from its begin. No call failed.",
        requirements=tuple(
            Requirement(f"{name}: p99 in ms", samples[p99], _MAX_P99_MILLISECONDS, at_least=False)
            for name, samples in lines.items()
        ),
        table=Table(
            _HEADINGS,
            # The longest call of all rounds, not of the one in the middle.
            {
                name: (*samples[:longest], Sample.of([max(samples[longest].values)]), *samples[longest + 1 :])
                for name, samples in lines.items()
            },
        ),
    )


def _fail(run: Run, fault: Fault, hold_seconds: float) -> _Failure:
    limits = run.folder / "limits.yaml"
    limits.write_text(_LIMITS, encoding="utf-8")
    settings = {
        "limits": [str(limits)],
        "request": {"listen": ["tcp://127.0.0.1:0"], "transport": "ngh2"},
        "rate_limit": {**fault.settings, "deadline": f"{_DEADLINE_MILLISECONDS}ms"},
    }
    server = start_server(run.children, run.folder, "failures", settings)
    found = asyncio.run(_watch(server.request, fault, 0.0 if fault.is_brief else hold_seconds))
    code = run.children.stop(server.child)
    fault.stop()
    if code:
        raise BenchmarkError(f"garrison serve ended with exit code {code}")
    return found


async def _watch(address: Address, fault: Fault, hold_seconds: float) -> _Failure:
    """Fail in the middle of a load.

    Raises:
        BenchmarkError: a call failed, the load was not what it should be, or the store did not heal.

    """
    messages = rate_limit_requests(_USERS)
    # Once as fast as it goes: the first calls of a process are no part of a failure.
    await load(address, SHOULD_RATE_LIMIT, messages, calls=len(messages), connections=1, streams=8)
    answers, stop = _Answers(), asyncio.Event()
    loading = asyncio.create_task(
        load(
            address,
            SHOULD_RATE_LIMIT,
            messages,
            connections=_CONNECTIONS,
            streams=_STREAMS,
            seconds=_PATIENCE_SECONDS,
            rate=_CALLS_PER_SECOND,
            on_answer=answers.take,
            stop=stop,
        )
    )
    if not await answers.wait_until(lambda: answers.in_a_row >= _WELL_ANSWERS, loading):
        raise BenchmarkError("the store did not answer before its failure")
    answers.fallback, answers.first = 0, 0.0
    begin = perf_counter()
    await fault.cause()
    await asyncio.sleep(hold_seconds)
    answers.ended = perf_counter() if hold_seconds else begin
    await fault.end()
    # A fault that nobody noticed needs no healing.
    healed = await answers.wait_until(
        lambda: bool(answers.back) or (not answers.first and perf_counter() - begin > _AFTER_SECONDS), loading
    )
    await asyncio.sleep(_AFTER_SECONDS)
    stop.set()
    result = await loading
    if not healed:
        raise BenchmarkError(f"the store did not heal within {_PATIENCE_SECONDS:g} s")
    if result.errors:
        raise BenchmarkError(f"{result.errors} calls failed while the store did")
    if result.calls < _LEAST_OFFERED * _CALLS_PER_SECOND * result.seconds:
        raise BenchmarkError(f"only {result.calls_per_second:.0f} calls a second were made")
    if not answers.back:
        return _Failure(result, answers, 0.0, 0.0)
    return _Failure(result, answers, answers.first - begin, answers.back - answers.ended)
