"""`ShouldRateLimit` with the demo's limits on `ngh2`, counters in memory."""

from __future__ import annotations

import asyncio

from envoy.service.ratelimit.v3.rls_pb2 import RateLimitResponse

from benchmarks.load import load
from benchmarks.report import Row, Sample, Section
from benchmarks.run import BenchmarkError, Round, Run, measure, sample
from benchmarks.servers import start_server
from benchmarks.workload import SHOULD_RATE_LIMIT, rate_limit_requests
from garrison.demo.mesh import example_folder

_USERS = 20_000


def rate_limit(run: Run) -> Section:
    """Measure `ShouldRateLimit` for many users in turn."""
    settings = {
        "limits": [str(example_folder() / "limits")],
        "request": {"listen": ["tcp://127.0.0.1:0"], "transport": "ngh2"},
    }
    server = start_server(run.children, run.folder, "ratelimit", settings)
    messages = rate_limit_requests(_USERS)
    codes: list[int] = []
    for _ in range(2):
        # The first pass makes every user's bucket and is one call of the five; none is over the limit yet.
        result = asyncio.run(
            load(
                server.request,
                SHOULD_RATE_LIMIT,
                messages,
                calls=_USERS,
                on_answer=lambda answer: codes.append(RateLimitResponse.FromString(answer).overall_code),
            )
        )
        if result.errors:
            raise BenchmarkError(f"{result.errors} calls failed")
    if set(codes) != {RateLimitResponse.OK}:
        raise BenchmarkError("the first two calls of a user were not all within the limit")
    rounds: list[Round] = []
    for number in range(run.rounds):
        run.say(f"ShouldRateLimit, round {number + 1} of {run.rounds}")
        rounds.append(measure(server, SHOULD_RATE_LIMIT, messages, run.seconds))
    memory = server.resident_mib()
    run.children.stop(server.child)
    return Section(
        "ShouldRateLimit, counters in memory",
        f"ngh2; the demo's limit of five a minute for each of {_USERS:,} users, asked for in turn: calls "
        "within the limit and over it; 4 connections with 32 calls in flight each over loopback TCP.",
        (
            Row("calls", sample(rounds, lambda one: 1e6 / one.cpu_us_per_call), "per CPU-second"),
            Row("CPU", sample(rounds, lambda one: one.cpu_us_per_call), "us a call"),
            Row("latency under full load, p99", sample(rounds, lambda one: one.result.p99_us), "us"),
            Row("memory of the process", Sample.of([memory]), "MiB"),
        ),
    )
