"""What ends is started again: at once, then ever later, and at once again when it was well for a while."""

from __future__ import annotations

import asyncio

import pytest

from garrison.process.keeping import describe_exit, keep_running, next_delay


@pytest.mark.parametrize(
    ("previous", "lived", "expected"),
    [
        (None, 0.0, 0.0),
        (0.0, 0.0, 0.1),
        (0.1, 9.9, 0.2),
        (8.0, 0.0, 10.0),
        (10.0, 0.0, 10.0),
        (10.0, 10.0, 0.0),
    ],
)
def test_delays_grow_until_it_is_well(previous: float | None, lived: float, expected: float) -> None:
    """The first restart is at once; what ends within 10 s of its start waits twice as long as before."""
    assert next_delay(previous, lived) == expected


def test_it_is_kept_running_until_told_to_stop() -> None:
    """A fake child that ends at once is started again with growing delays, and not after `stop`."""
    told: list[tuple[str, float]] = []
    waited: list[float] = []

    async def scenario() -> int:
        stop = asyncio.Event()
        runs = 0

        async def run() -> str:
            nonlocal runs
            runs += 1
            if runs == 4:
                stop.set()
            return f"run {runs}"

        async def wait(_: asyncio.Event, seconds: float) -> None:
            waited.append(seconds)

        await keep_running(
            run, lambda how, delay: told.append((how, delay)), stop, monotonic=lambda: 0.0, wait=wait
        )
        return runs

    assert asyncio.run(scenario()) == 4
    assert told == [("run 1", 0.0), ("run 2", 0.1), ("run 3", 0.2)]
    assert waited == [0.0, 0.1, 0.2]


def test_an_end_is_named() -> None:
    """Signals are told from exit codes."""
    assert (describe_exit(-9), describe_exit(2)) == ("signal 9", "exit code 2")
