"""What 10,000 roles cost a decision over what 10 cost: in one process, without transport.

Leaving the transport out is the stricter way: its cost is the same for any number of roles, and would bring
the ratio nearer to 1.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from itertools import cycle, islice

from envoy.service.auth.v3.external_auth_pb2 import CheckResponse

from authz.policy.compile import MeshSettings
from authz.service import Authorization, DecisionLog, DestinationResolver
from authz.snapshot import build_snapshot
from benchmarks.report import Requirement, Row, Sample, Section
from benchmarks.run import BenchmarkError, Run
from benchmarks.workload import Shape, role_documents, role_requests
from garrison.documents import parse
from garrison.transport import Call, Peer

REQUIRED_RATIO = 1.5

_FEW, _SPREAD, _ONE_SERVICE = (
    "10 roles, 10 services",
    "10,000 roles, 1,000 services",
    "10,000 roles, one service",
)
_PREFIXES = "10,000 roles, one service, for anyone, by prefix"
SHAPES = {
    _FEW: Shape(10, 10),
    _SPREAD: Shape(10_000, 1_000),
    _ONE_SERVICE: Shape(10_000, 1),
    _PREFIXES: Shape(10_000, 1, prefixes=True),
}
# The same number of distinct requests for each, so that caches of messages weigh the same.
_REQUESTS = 1_000
# Decisions between two looks at the clock: about a millisecond, and 100 times that in the worst shape.
_BATCH = 50
_CALL = Call(Peer("benchmark"), ())


def roles(run: Run) -> Section:
    """Measure decisions under few and many roles in turn."""
    services: dict[str, Authorization] = {}
    messages: dict[str, list[bytes]] = {}
    load_seconds: dict[str, float] = {}
    for name, shape in SHAPES.items():
        if run.quick and name == _PREFIXES:
            continue
        run.say(f"compiling {name}")
        begin = time.process_time()
        services[name] = _service(role_documents(shape))
        load_seconds[name] = time.process_time() - begin
        messages[name] = role_requests(shape, _REQUESTS)
    gc.collect()
    # As a server does not: the collector's walks over 40,000 compiled rules would land in any round.
    gc.freeze()
    try:
        samples = _measure(run, services, messages)
    finally:
        gc.unfreeze()
    few = samples[_FEW]
    spread = samples[_SPREAD].over(few)
    what = f"{_SPREAD} over {_FEW}"
    rows = [Row(name, sample, "us CPU a decision") for name, sample in samples.items()]
    rows.append(Row(what, spread, "times"))
    rows += [
        Row(f"{name} over {_FEW}", samples[name].over(few), "times")
        for name in (_ONE_SERVICE, _PREFIXES)
        if name in samples
    ]
    rows.append(Row("reading and compiling 10,000 roles", Sample.of([load_seconds[_SPREAD]]), "s CPU"))
    return Section(
        "Many roles",
        "`Authorization.check` in this process, without transport; every call is allowed by one role. A role "
        "has one exact path and one caller; `by prefix`, a path prefix and any caller.",
        tuple(rows),
        (Requirement(what, spread, REQUIRED_RATIO, at_least=False),),
    )


def _service(documents: bytes) -> Authorization:
    parsed, problems = parse(documents, "roles.yaml")
    if problems:
        raise BenchmarkError(f"the roles cannot be read: {problems[0]}")
    service = Authorization(DestinationResolver(), time.time, DecisionLog.NONE)
    service.use(build_snapshot(parsed, MeshSettings(), [documents]))
    return service


def _measure(
    run: Run, services: dict[str, Authorization], messages: dict[str, list[bytes]]
) -> dict[str, Sample]:
    for name, service in services.items():
        answers = [CheckResponse.FromString(service.check(message, _CALL)) for message in messages[name]]
        if denied := sum(answer.status.code != 0 for answer in answers):
            raise BenchmarkError(f"{denied} of {len(answers)} calls were denied with {name}")
    costs: dict[str, list[float]] = {name: [] for name in services}
    for number in range(run.rounds):
        run.say(f"many roles, round {number + 1} of {run.rounds}")
        for name, service in services.items():
            costs[name].append(_cost_us(service, messages[name], run.seconds / 4))
    return {name: Sample.of(values) for name, values in costs.items()}


def _cost_us(service: Authorization, messages: Sequence[bytes], seconds: float) -> float:
    """Return the CPU microseconds of one decision, from at least `seconds` of CPU time."""
    endless = cycle(messages)
    decisions = 0
    begin = now = time.process_time()
    while now - begin < seconds:
        for message in islice(endless, _BATCH):
            service.check(message, _CALL)
        decisions += _BATCH
        now = time.process_time()
    return (now - begin) / decisions * 1e6
