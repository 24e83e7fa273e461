"""`Check` with the demo's policies: the same process with the `ngh2` and the `grpcio` transport."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.report import Requirement, Row, Section
from benchmarks.run import Round, Run, measure, rehearse, sample
from benchmarks.servers import Server, start_server
from benchmarks.workload import CHECK, DENIALS, HEALTH, MIX, check_requests, describe, write_policies

REQUIRED_RATIO = 12.0


def start(run: Run, transport: str, decisions: str = "denied") -> Server:
    """Start a server with the demo's policies on a loopback port."""
    policies = run.folder / "policies"
    if not policies.is_dir():
        write_policies(policies, run.tokens)
    settings = {
        "policies": [str(policies)],
        "request": {"listen": ["tcp://127.0.0.1:0"], "transport": transport},
        "log": {"decisions": decisions},
    }
    return start_server(run.children, run.folder, f"{transport}-{decisions}", settings)


def transports(run: Run) -> Section:
    """Measure both transports in turn, with the decision log at its default."""
    messages = check_requests(MIX, run.tokens)
    servers = {"ngh2": start(run, "ngh2"), "grpcio": start(run, "grpcio")}
    for server in servers.values():
        rehearse(server, MIX, messages)
    loaded: dict[str, list[Round]] = {name: [] for name in servers}
    single: dict[str, list[Round]] = {name: [] for name in servers}
    empty: dict[str, list[Round]] = {name: [] for name in servers}
    for number in range(run.rounds):
        run.say(f"Check, round {number + 1} of {run.rounds}")
        for name, server in servers.items():
            loaded[name].append(measure(server, CHECK, messages, run.seconds))
        for name, server in servers.items():
            empty[name].append(measure(server, HEALTH, [b""], run.seconds / 3))
        for name, server in servers.items():
            single[name].append(measure(server, CHECK, messages, run.seconds / 3, connections=1, streams=1))
    for server in servers.values():
        run.children.stop(server.child)
    rows = [row for name in servers for row in _rows(name, loaded[name], single[name])]
    rows += [Row(f"{name}: CPU, a health check", sample(empty[name], _cost), "us a call") for name in servers]
    alone = sample(empty["grpcio"], _cost).over(sample(empty["ngh2"], _cost))
    ratio = sample(loaded["grpcio"], _cost).over(sample(loaded["ngh2"], _cost))
    what = "decisions per CPU-second, ngh2 over grpcio"
    return Section(
        "Check, the demo's policies",
        f"{describe(MIX)} of {sum(map(len, messages)) // len(messages)} bytes on average; 4 connections with "
        "32 calls in flight each over loopback TCP; denials are logged, which is the default, to a file. A "
        "health check is the least that a call can be: it shows what the transports cost alone.",
        (
            *rows,
            Row("health checks per CPU-second, ngh2 over grpcio", alone, "times"),
            Row(what, ratio, "times"),
        ),
        (Requirement(what, ratio, REQUIRED_RATIO, at_least=True),),
    )


def _rows(name: str, loaded: Sequence[Round], single: Sequence[Round]) -> list[Row]:
    return [
        Row(f"{name}: decisions", sample(loaded, lambda one: 1e6 / one.cpu_us_per_call), "per CPU-second"),
        Row(f"{name}: CPU", sample(loaded, _cost), "us a call"),
        Row(f"{name}: latency under full load, p50", sample(loaded, lambda one: one.result.p50_us), "us"),
        Row(f"{name}: latency under full load, p99", sample(loaded, lambda one: one.result.p99_us), "us"),
        Row(f"{name}: latency, one call at a time, p50", sample(single, lambda one: one.result.p50_us), "us"),
        Row(f"{name}: latency, one call at a time, p99", sample(single, lambda one: one.result.p99_us), "us"),
    ]


def _cost(one: Round) -> float:
    return one.cpu_us_per_call


def decision_log(run: Run) -> Section:
    """Measure what logging denials costs: in the mix, and when every call is denied."""
    mixes = {"mix": MIX, "denials": DENIALS}
    messages = {name: check_requests(mix, run.tokens) for name, mix in mixes.items()}
    servers = {"logged": start(run, "ngh2"), "not logged": start(run, "ngh2", "none")}
    measured: dict[tuple[str, str], list[Round]] = {}
    for server in servers.values():
        for name, mix in mixes.items():
            rehearse(server, mix, messages[name])
    for number in range(run.rounds):
        run.say(f"decision log, round {number + 1} of {run.rounds}")
        for mix_name in mixes:
            for name, server in servers.items():
                one = measure(server, CHECK, messages[mix_name], run.seconds / 2)
                measured.setdefault((mix_name, name), []).append(one)
    for server in servers.values():
        run.children.stop(server.child)
    labels = {"mix": "the mix above", "denials": "nothing but denials"}
    return Section(
        "What logging denials costs",
        "ngh2; `log.decisions` is `denied` (the default) or `none`; lines go to a file.",
        tuple(
            Row(f"{labels[mix_name]}, {name}", sample(rounds, _cost), "us CPU a call")
            for (mix_name, name), rounds in measured.items()
        ),
    )
