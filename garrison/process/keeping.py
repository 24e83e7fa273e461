"""What the control process keeps running is started again when it ends: at once, unless it ends too often."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from garrison.pauses import next_pause

# Who ran for so long is well: its end is the first of a new row.
_WELL_SECONDS = 10.0
_FIRST_DELAY_SECONDS = 0.1
_MAX_DELAY_SECONDS = 10.0


def next_delay(previous: float | None, lived_seconds: float) -> float:
    """Return how long to wait before the next start, after `previous` before this one (None: the first)."""
    if previous is None or lived_seconds >= _WELL_SECONDS:
        return 0.0
    return next_pause(previous, _FIRST_DELAY_SECONDS, _MAX_DELAY_SECONDS)


async def keep_running(
    run: Callable[[], Awaitable[str]],
    ended: Callable[[str, float], None],
    stop: asyncio.Event,
    *,
    monotonic: Callable[[], float] = time.monotonic,
    wait: Callable[[asyncio.Event, float], Awaitable[None]] | None = None,
) -> None:
    """Await `run` again and again until `stop` is set.

    `run` says how it ended, and is not cancelled here; `ended` is told so, and in how many seconds it is run
    again. `wait` takes the place of the wait for `stop`, in tests.
    """
    delay: float | None = None
    while not stop.is_set():
        began = monotonic()
        how = await run()
        if stop.is_set():
            return
        delay = next_delay(delay, monotonic() - began)
        ended(how, delay)
        await (wait or _wait)(stop, delay)


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()


def describe_exit(code: int) -> str:
    """Return how a process ended, from its return code."""
    return f"signal {-code}" if code < 0 else f"exit code {code}"
