"""`ShouldRateLimit`: counters in memory and in Valkey, with and without batches, and a store that fails."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time

from envoy.service.ratelimit.v3.rls_pb2 import RateLimitResponse

from benchmarks.load import LoadResult, load
from benchmarks.report import Requirement, Row, Sample, Section
from benchmarks.run import BenchmarkError, Round, Run, measure, sample
from benchmarks.servers import Measured, Server, start_server
from benchmarks.stores import Valkey
from benchmarks.workload import SHOULD_RATE_LIMIT, rate_limit_requests
from garrison.demo.mesh import example_folder
from garrison.demo.topology import RATE_LIMIT_DOMAIN
from ratelimit.algorithm import UNITS, Limit
from ratelimit.charge import Spend
from ratelimit.store.connection import Endpoint, open_connection
from ratelimit.store.redis import DEFAULT_MAX_BATCH, RedisStore
from ratelimit.store.servers import SingleServer

_USERS = 20_000
_DEADLINE_MILLISECONDS = 10
_MAX_PAUSED_US = (_DEADLINE_MILLISECONDS + 5) * 1000.0
# Nobody is over it, so that every call is counted by the server.
_LIMITS = f"""\
domain: {RATE_LIMIT_DOMAIN}
descriptors:
- {{key: user, rate_limit: {{unit: hour, requests_per_unit: 1000000, on_store_failure: allow}}}}
"""
_CALLERS = 64
_INCR_CONNECTIONS = 50


def rate_limit(run: Run) -> Section:
    """Measure the service with each store, and what a batch saves."""
    messages = rate_limit_requests(_USERS)
    memory, resident = _memory(run, messages)
    valkey = Valkey(run, "valkey")
    redis, valkey_us, paused, longest = _redis(run, messages, valkey)
    alone, together, incr_us = _batches(run, valkey.socket, valkey.measured)
    valkey.stop()
    from_memory = sample(memory, lambda one: 1e6 / one.cpu_us_per_call)
    from_redis = sample(redis, lambda one: 1e6 / one.cpu_us_per_call)
    return Section(
        "ShouldRateLimit",
        f"ngh2; {_USERS:,} users asked for in turn; 4 connections with 32 calls in flight each over loopback "
        "TCP. Memory: the demo's limit of five a minute, calls within it and over it. Valkey: a limit that "
        f"nobody exceeds, over a Unix socket. Store: {_CALLERS} callers without a transport, one call in a "
        f"script against all that wait. INCR: {_INCR_CONNECTIONS} connections, each waiting for its answer. "
        "Paused: Valkey is stopped in the middle of a light load, 8 calls in flight; deadline 10 ms.",
        (
            Row("from memory", from_memory, "calls per CPU-second"),
            Row("from memory: CPU", sample(memory, lambda one: one.cpu_us_per_call), "us a call"),
            Row("from memory: latency, p99", sample(memory, lambda one: one.result.p99_us), "us"),
            Row("from memory: resident", Sample.of([resident]), "MiB"),
            Row("from Valkey", from_redis, "calls per CPU-second"),
            Row("from Valkey: CPU", sample(redis, lambda one: one.cpu_us_per_call), "us a call"),
            Row("from Valkey: latency, p99", sample(redis, lambda one: one.result.p99_us), "us"),
            Row("from Valkey: its own CPU", valkey_us, "us a call"),
            Row("INCR, unpipelined: Valkey's CPU", incr_us, "us a command"),
            Row("Valkey's CPU: a call over an INCR", valkey_us.over(incr_us), "times"),
            Row("store: one call in a script", alone, "calls per CPU-second"),
            Row("store: batched", together, "calls per CPU-second"),
            Row("Valkey paused: latency, p99", paused, "us"),
            Row("Valkey paused: longest", longest, "us"),
        ),
        (
            Requirement("from memory, calls per CPU-second", from_memory, 25_000, at_least=True),
            Requirement("from Valkey, calls per CPU-second", from_redis, 12_000, at_least=True),
            Requirement("store: batched over one call in a script", together.over(alone), 6, at_least=True),
            Requirement("Valkey paused: p99 in us", paused, _MAX_PAUSED_US, at_least=False),
        ),
    )


def _memory(run: Run, messages: Sequence[bytes]) -> tuple[list[Round], float]:
    settings = {
        "limits": [str(example_folder() / "limits")],
        "request": {"listen": ["tcp://127.0.0.1:0"], "transport": "ngh2"},
    }
    server = start_server(run.children, run.folder, "ratelimit", settings)
    # The first pass makes every user's bucket and is one call of the five; none is over the limit yet.
    _rehearse(server, messages, 2)
    rounds: list[Round] = []
    for number in range(run.rounds):
        run.say(f"ShouldRateLimit from memory, round {number + 1} of {run.rounds}")
        rounds.append(measure(server, SHOULD_RATE_LIMIT, messages, run.seconds))
    resident = server.resident_mib()
    run.children.stop(server.child)
    return rounds, resident


def _rehearse(server: Server, messages: Sequence[bytes], passes: int) -> None:
    """Send every message, and see that all are allowed and counted.

    Raises:
        BenchmarkError: one is not; figures about that would be worthless.

    """
    codes: set[tuple[int, bool]] = set()

    def look(answer: bytes) -> None:
        response = RateLimitResponse.FromString(answer)
        codes.add((response.overall_code, response.statuses[0].HasField("current_limit")))

    for _ in range(passes):
        result = asyncio.run(
            load(server.request, SHOULD_RATE_LIMIT, messages, calls=len(messages), on_answer=look)
        )
        if result.errors:
            raise BenchmarkError(f"{result.errors} calls failed")
    if codes != {(RateLimitResponse.OK, True)}:
        raise BenchmarkError(f"the first calls of a user were not all allowed and counted: {codes}")


def _redis(run: Run, messages: Sequence[bytes], valkey: Valkey) -> tuple[list[Round], Sample, Sample, Sample]:
    """Return what the service and the server spend; p99 and maximum of calls while the server is paused."""
    limits = run.folder / "limits.yaml"
    limits.write_text(_LIMITS, encoding="utf-8")
    settings = {
        "limits": [str(limits)],
        "request": {"listen": ["tcp://127.0.0.1:0"], "transport": "ngh2"},
        "rate_limit": {
            "redis": [valkey.url],
            # Under full load, with the client on the same cores, an answer may take longer than in service.
            "deadline": "1s",
        },
    }
    server = start_server(run.children, run.folder, "ratelimit-redis", settings)
    _rehearse(server, messages, 1)
    rounds: list[Round] = []
    server_us: list[float] = []
    for number in range(run.rounds):
        run.say(f"ShouldRateLimit from Valkey, round {number + 1} of {run.rounds}")
        before = valkey.measured.cpu_seconds()
        rounds.append(measure(server, SHOULD_RATE_LIMIT, messages, run.seconds))
        server_us.append((valkey.measured.cpu_seconds() - before) * 1e6 / rounds[-1].result.calls)
    run.children.stop(server.child)
    settings["rate_limit"] = {"redis": [valkey.url], "deadline": f"{_DEADLINE_MILLISECONDS}ms"}
    server = start_server(run.children, run.folder, "ratelimit-paused", settings)
    paused: list[LoadResult] = []
    for number in range(run.rounds):
        run.say(f"Valkey paused, round {number + 1} of {run.rounds}")
        paused.append(asyncio.run(_paused(server, messages, valkey, run.seconds)))
    run.children.stop(server.child)
    p99 = Sample.of(one.p99_us for one in paused)
    return rounds, Sample.of(server_us), p99, Sample.of(one.max_us for one in paused)


async def _paused(server: Server, messages: Sequence[bytes], valkey: Valkey, seconds: float) -> LoadResult:
    """Return what comes of a light load, in the middle of which the server is paused."""
    loop = asyncio.get_running_loop()
    pause = loop.call_later(seconds / 2, valkey.send_signal, signal.SIGSTOP)
    try:
        result = await load(
            server.request, SHOULD_RATE_LIMIT, messages, seconds=seconds, connections=4, streams=2
        )
    finally:
        pause.cancel()
        valkey.send_signal(signal.SIGCONT)
    if result.errors:
        raise BenchmarkError(f"{result.errors} calls failed while Valkey was paused")
    # Until the breaker has closed again.
    await asyncio.sleep(1.5)
    return result


@dataclass(frozen=True, slots=True)
class _Way:
    """One way to ask the store: how many calls one script takes, and how many calls are measured."""

    max_batch: int
    calls: int


def _batches(run: Run, socket: Path, valkey: Measured) -> tuple[Sample, Sample, Sample]:
    """Return calls per CPU-second without and with batches, and Valkey's microseconds for an INCR."""
    few = 4 if run.quick else 1
    alone, together = _Way(1, 10_000 // few), _Way(DEFAULT_MAX_BATCH, 80_000 // few)
    rates: dict[_Way, list[float]] = {alone: [], together: []}
    incr: list[float] = []
    for number in range(run.rounds):
        run.say(f"batches, round {number + 1} of {run.rounds}")
        for way, found in rates.items():
            found.append(asyncio.run(_ask_store(socket, way)))
        incr.append(asyncio.run(_incr(socket, valkey, 40_000 // few)))
    return Sample.of(rates[alone]), Sample.of(rates[together]), Sample.of(incr)


async def _ask_store(socket: Path, way: _Way) -> float:
    store = RedisStore(SingleServer(Endpoint(path=str(socket))), max_batch=way.max_batch)
    limit = Limit(1_000_000, UNITS["hour"])
    calls = iter([[Spend(f"hour|bench|user={number % 5000}", limit, 1)] for number in range(way.calls)])

    async def caller() -> None:
        for call in calls:
            (outcome,) = await store.spend(call, 0)
            if not outcome.allowed:
                raise BenchmarkError("a call within its limit was denied")

    try:
        seconds = await _spent(process_time, [caller() for _ in range(_CALLERS)])
    finally:
        await store.close()
    return way.calls / seconds


async def _incr(socket: Path, valkey: Measured, commands: int) -> float:
    """Return the microseconds that the server spends on an INCR that is sent alone."""
    connections = [await open_connection(Endpoint(path=str(socket))) for _ in range(_INCR_CONNECTIONS)]
    left = iter(range(commands))

    async def caller(number: int) -> None:
        for _ in left:
            await connections[number].ask("INCR", f"bench-incr-{number}")

    begin = perf_counter()
    seconds = await _spent(valkey.cpu_seconds, [caller(number) for number in range(_INCR_CONNECTIONS)])
    if perf_counter() - begin < seconds / 2:
        raise BenchmarkError("the server spent more time than there was")
    for connection in connections:
        connection.close()
    return seconds * 1e6 / commands


async def _spent(clock: Callable[[], float], work: Sequence[Awaitable[None]]) -> float:
    """Return how far `clock` goes while the work is done."""
    begin = clock()
    await asyncio.gather(*work)
    return clock() - begin
