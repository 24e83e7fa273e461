"""One run: how long it measures, where its files are, what it starts, and one measured load."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from envoy.service.auth.v3.external_auth_pb2 import CheckResponse

from benchmarks.load import LoadResult, load
from benchmarks.report import Sample
from benchmarks.servers import Server
from benchmarks.workload import CHECK, Ask, outcomes
from garrison.demo.children import Children
from garrison.demo.tokens import Tokens
from garrison.errors import GarrisonError


class BenchmarkError(GarrisonError):
    """The run cannot be finished, or what it measured is not what it meant to measure."""


@dataclass(frozen=True, slots=True)
class Run:
    """What the benchmarks share. `say` prints progress."""

    folder: Path
    children: Children
    tokens: Tokens
    quick: bool
    say: Callable[[str], None]

    @property
    def rounds(self) -> int:
        """How often each thing is measured."""
        return 3 if self.quick else 5

    @property
    def seconds(self) -> float:
        """How long a round loads a server."""
        return 0.5 if self.quick else 1.5


@contextmanager
def running(*, quick: bool, say: Callable[[str], None]) -> Iterator[Run]:
    """Yield a run in a temporary folder; stop what it started and remove the folder afterwards."""
    with TemporaryDirectory(prefix="garrison-bench-") as folder:
        children = Children()
        try:
            yield Run(Path(folder), children, Tokens(), quick=quick, say=say)
        finally:
            children.close()


@dataclass(frozen=True, slots=True)
class Round:
    """One measured load: what the client saw and what the server's process spent on it."""

    result: LoadResult
    cpu_us: float

    @property
    def cpu_us_per_call(self) -> float:
        """CPU time of the server for each answered call."""
        return self.cpu_us / self.result.calls


def measure(
    server: Server,
    method: str,
    messages: Sequence[bytes],
    seconds: float,
    *,
    connections: int = 4,
    streams: int = 32,
) -> Round:
    """Load `server` for `seconds` and return what that cost it.

    Raises:
        BenchmarkError: a call failed, or none was answered.

    """
    before = server.cpu_seconds()
    result = asyncio.run(
        load(server.request, method, messages, seconds=seconds, connections=connections, streams=streams)
    )
    cpu_us = (server.cpu_seconds() - before) * 1e6
    if result.errors or not result.calls:
        raise BenchmarkError(
            f"{server.child.name}: {result.errors} calls failed, {result.calls} were answered"
        )
    return Round(result, cpu_us)


def sample(rounds: Sequence[Round], read: Callable[[Round], float]) -> Sample:
    """Return what `read` finds in each round."""
    return Sample.of(map(read, rounds))


def rehearse(server: Server, mix: Sequence[Ask], messages: Sequence[bytes], method: str = CHECK) -> None:
    """Send every message twice, to warm caches, and hold the answers to what `mix` expects.

    Raises:
        BenchmarkError: a call failed or was not answered as expected; figures about it would be worthless.

    """
    allowed = 0

    def count(answer: bytes) -> None:
        nonlocal allowed
        allowed += CheckResponse.FromString(answer).status.code == 0

    calls = 2 * len(messages)
    result = asyncio.run(
        load(server.request, method, messages, calls=calls, connections=1, streams=32, on_answer=count)
    )
    expected = outcomes(mix)["allow"] * calls
    if result.errors or allowed != round(expected):
        raise BenchmarkError(
            f"{server.child.name} allowed {allowed} of {calls} calls, not {expected:g}; "
            f"{result.errors} failed"
        )
