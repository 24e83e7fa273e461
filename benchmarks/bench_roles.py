"""What 100,000 roles cost a decision over what 10 cost: in one process, without transport.

Leaving the transport out is the stricter way: its cost is the same for any number of roles, and would bring
the ratio nearer to 1. For the same reason no decision is remembered here: every call looks its rules up.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice

from envoy.service.auth.v3.external_auth_pb2 import CheckResponse

from authz.policy import evaluate
from authz.policy.compile import MeshSettings
from authz.service import Authorization, DecisionLog, DestinationResolver
from authz.snapshot import build_snapshot
from benchmarks.report import Requirement, Row, Sample, Section
from benchmarks.run import BenchmarkError, Run
from benchmarks.workload import By, Shape, role_data, role_requests
from garrison.documents import Document
from garrison.process.heap import quiet_build
from garrison.transport import Call, Peer

# Most that many roles may cost over 10: spread over services, and all on one.
SPREAD_RATIO = 1.5
ONE_SERVICE_RATIO = 5.0

_FEW, _SOME, _MANY = 10, 1_000, 100_000
_MANY_QUICK = 10_000
_PER_SERVICE = 10
ALONE = (By.PATH, By.PREFIX, By.SUFFIX, By.CALLER)
# The same number of requests for each, so that caches of messages weigh the same.
_REQUESTS = 1_000
# Decisions between two looks at the clock: about a millisecond.
_BATCH = 50
_CALL = Call(Peer("benchmark"), ())


def spread(roles: int, by: By) -> Shape:
    """Return so many roles, ten for each service."""
    return Shape(roles, max(1, roles // _PER_SERVICE), by)


def describe(shape: Shape) -> str:
    """Return the name of a row."""
    where = f"over {shape.services:,} services" if shape.services > 1 else "on one service"
    return f"{shape.roles:,} roles {where}, by {shape.by}"


def roles(run: Run) -> Section:
    """Measure decisions under few and many roles in turn."""
    many = _MANY_QUICK if run.quick else _MANY
    pairs = [
        *(
            (spread(_FEW, by), spread(more, by), SPREAD_RATIO)
            for by in (By.PATH_AND_CALLER, By.PATH)
            for more in (_SOME, many)
        ),
        *((Shape(_FEW, 1, by), Shape(many, 1, by), ONE_SERVICE_RATIO) for by in ALONE),
    ]
    shapes = dict.fromkeys(shape for few, more, _ in pairs for shape in (few, more))
    services: dict[Shape, Authorization] = {}
    for shape in shapes:
        run.say(f"compiling {describe(shape)}")
        services[shape] = _service(shape)
    messages = {shape: role_requests(shape, _REQUESTS) for shape in shapes}
    with _nothing_remembered():
        samples = _measure(run, services, messages)
    ratios = [
        (f"{describe(more)}, over {few.roles}", samples[more].over(samples[few]), bound)
        for few, more, bound in pairs
    ]
    return Section(
        "Many roles",
        "`Authorization.check` in this process, without transport and without remembered decisions; "
        f"{_REQUESTS:,} calls, no two alike, each allowed by one role, which its own path or caller tells "
        "from the others. Ten roles for each service, or all on one. By path alone, anyone may call, "
        "and a thousand callers do under any number of roles; ten roles by caller have ten callers.",
        (
            *(Row(describe(shape), sample, "us CPU a decision") for shape, sample in samples.items()),
            *(Row(what, ratio, "times") for what, ratio, _ in ratios),
        ),
        tuple(Requirement(what, ratio, bound, at_least=False) for what, ratio, bound in ratios),
    )


@contextmanager
def _nothing_remembered() -> Iterator[None]:
    """Let no decision be taken from memory, and the collector not walk over compiled rules in any round."""
    longest = evaluate.MAX_REMEMBERED_LENGTH
    evaluate.MAX_REMEMBERED_LENGTH = 0
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        evaluate.MAX_REMEMBERED_LENGTH = longest


def _service(shape: Shape) -> Authorization:
    service = Authorization(DestinationResolver(), time.time, DecisionLog.NONE)
    with quiet_build():  # as a server does
        documents = [Document("roles.yaml", data) for data in role_data(shape)]
        service.use(build_snapshot(documents, MeshSettings(), [repr(shape).encode()]))
    return service


def _measure(
    run: Run, services: dict[Shape, Authorization], messages: dict[Shape, list[bytes]]
) -> dict[Shape, Sample]:
    for shape, service in services.items():
        answers = [CheckResponse.FromString(service.check(message, _CALL)) for message in messages[shape]]
        if denied := sum(answer.status.code != 0 for answer in answers):
            raise BenchmarkError(f"{denied} of {len(answers)} calls were denied with {describe(shape)}")
    costs: dict[Shape, list[float]] = {shape: [] for shape in services}
    for number in range(run.rounds):
        run.say(f"many roles, round {number + 1} of {run.rounds}")
        for shape, service in services.items():
            costs[shape].append(_cost_us(service, messages[shape], run.seconds / 6))
    return {shape: Sample.of(values) for shape, values in costs.items()}


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
