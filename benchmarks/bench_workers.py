"""One worker against two: `Check`, and `ShouldRateLimit` with counts in Valkey."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.load import load
from benchmarks.report import Row, Sample, Section
from benchmarks.run import BenchmarkError, Run, rehearse
from benchmarks.servers import Server, family_cpu_seconds, start_server
from benchmarks.stores import Valkey
from benchmarks.workload import (
    CHECK,
    MIX,
    SHOULD_RATE_LIMIT,
    check_requests,
    rate_limit_requests,
    write_policies,
)
from garrison.demo.topology import RATE_LIMIT_DOMAIN

_USERS = 20_000
_CONNECTIONS, _STREAMS = 4, 32
_VALKEY = "valkey-server"
# Nobody is over it, so that every call is counted by the server.
_LIMITS = f"""\
domain: {RATE_LIMIT_DOMAIN}
descriptors:
- {{key: user, rate_limit: {{unit: hour, requests_per_unit: 1000000}}}}
"""


@dataclass(frozen=True, slots=True)
class _Way:
    """A server with some number of workers, and the Valkey that it counts in if that is not its own."""

    server: Server
    valkey: Valkey | None = None


@dataclass(frozen=True, slots=True)
class _Figures:
    """What one load came to."""

    per_second: float
    garrison_us: float
    valkey_us: float


def workers(run: Run) -> Section:
    """Measure both numbers of workers in turn, round by round."""
    ways = _start(run)
    checks, limits = check_requests(MIX, run.tokens), rate_limit_requests(_USERS)
    for way in ways.values():
        for endpoint in way.server.endpoints:
            worker = Server(way.server.child, endpoint, way.server.admin, (endpoint,))
            rehearse(worker, MIX, checks)
            _load(worker, SHOULD_RATE_LIMIT, limits, 0.2)
    found: dict[tuple[str, int], list[_Figures]] = {}
    for number in range(run.rounds):
        run.say(f"one worker and two, round {number + 1} of {run.rounds}")
        for name, method, messages in (
            ("Check", CHECK, checks),
            ("ShouldRateLimit", SHOULD_RATE_LIMIT, limits),
        ):
            for count, way in ways.items():
                found.setdefault((name, count), []).append(_measure(way, method, messages, run.seconds))
    for way in ways.values():
        run.children.stop(way.server.child)
        if way.valkey is not None:
            way.valkey.stop()
    return Section(
        "One worker and two",
        f"ngh2, loopback TCP; {_CONNECTIONS} connections with {_STREAMS} calls in flight each, spread over "
        "the workers; the demo's policies, and a limit that nobody exceeds, counted in Valkey: with two "
        "workers the embedded one, with one worker one that the settings name. CPU: of all processes of "
        "Garrison, without Valkey's. The load client, Valkey and the workers share the cores, so that with "
        "two cores calls a second say what is left for the workers, and only CPU a call says what a worker "
        "costs.",
        tuple(
            row
            for name in ("Check", "ShouldRateLimit")
            for row in _rows(name, found[name, 1], found[name, 2])
        ),
    )


def _start(run: Run) -> dict[int, _Way]:
    policies, limits = run.folder / "policies", run.folder / "limits.yaml"
    if not policies.is_dir():
        write_policies(policies, run.tokens)
    limits.write_text(_LIMITS, encoding="utf-8")
    valkey = Valkey(run, "workers")
    # Under full load, with the client on the same cores, an answer may take longer than in service.
    settings: dict[str, Any] = {
        "policies": [str(policies)],
        "limits": [str(limits)],
        "request": {"listen": ["tcp://127.0.0.1:0"], "transport": "ngh2"},
        "rate_limit": {"deadline": "1s"},
    }
    one = {**settings, "rate_limit": {"deadline": "1s", "redis": [valkey.url]}}
    two = {**settings, "workers": 2}
    return {
        1: _Way(start_server(run.children, run.folder, "one-worker", one), valkey),
        2: _Way(start_server(run.children, run.folder, "two-workers", two)),
    }


def _measure(way: _Way, method: str, messages: Sequence[bytes], seconds: float) -> _Figures:
    pid = way.server.child.pid

    def spent() -> tuple[float, float]:
        own = family_cpu_seconds(pid, _VALKEY)
        valkey = own if way.valkey is None else way.valkey.measured.cpu_seconds()
        return family_cpu_seconds(pid) - own, valkey

    before = spent()
    calls, took = _load(way.server, method, messages, seconds)
    garrison, valkey = (after - earlier for after, earlier in zip(spent(), before, strict=True))
    return _Figures(calls / took, garrison * 1e6 / calls, valkey * 1e6 / calls)


def _load(server: Server, method: str, messages: Sequence[bytes], seconds: float) -> tuple[int, float]:
    """Return how many calls were answered by all workers, and in which time.

    Raises:
        BenchmarkError: a call failed, or none was answered.

    """
    connections = _CONNECTIONS // len(server.endpoints)

    async def all_workers() -> tuple[int, int, float]:
        results = await asyncio.gather(
            *(
                load(one, method, messages, seconds=seconds, connections=connections, streams=_STREAMS)
                for one in server.endpoints
            )
        )
        calls, errors = sum(one.calls for one in results), sum(one.errors for one in results)
        return calls, errors, max(one.seconds for one in results)

    calls, errors, took = asyncio.run(all_workers())
    if errors or not calls:
        raise BenchmarkError(f"{server.child.name}: {errors} calls failed, {calls} were answered")
    return calls, took


def _rows(name: str, one: Sequence[_Figures], two: Sequence[_Figures]) -> list[Row]:
    found: list[Row] = []
    for what, unit, read in (
        ("calls", "per second", lambda figures: figures.per_second),
        ("CPU", "us a call", lambda figures: figures.garrison_us),
        ("Valkey's CPU", "us a call", lambda figures: figures.valkey_us),
    ):
        samples = Sample.of(map(read, one)), Sample.of(map(read, two))
        if not all(samples[0].values):  # `Check` asks no Valkey
            continue
        found += [
            Row(f"{name}, 1 worker: {what}", samples[0], unit),
            Row(f"{name}, 2 workers: {what}", samples[1], unit),
            Row(f"{name}, 2 workers over 1: {what}", samples[1].over(samples[0]), "times"),
        ]
    return found
