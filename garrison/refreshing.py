"""Keeps something of several sources up to date in the background, so that whoever needs it never waits.

    await refresher.prepare(sources)              # before a snapshot comes into force: what it needs is there
    ...                                           # swap the snapshot
    refresher.retain(sources)                     # after it: what nobody needs any more is dropped
    task = asyncio.create_task(refresher.run())   # once, for the life of the process

When something is fetched again, and what holds meanwhile, is for the state of a source to say.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, Protocol, TypeVar

# How long a reload waits for what it has never seen. What comes later is missing until it does.
PREPARE_SECONDS = 10.0
# Threads of our own: servers that hang must not keep policies from being reloaded.
_CONCURRENT_FETCHES = 8
# A machine that slept does not notice that the time has come; and a clock that stands still must not make
# this spin.
_LONGEST_WAIT_SECONDS = 10.0
_SHORTEST_WAIT_SECONDS = 0.05
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def clock() -> float:
    """Return seconds that never run backwards and, where the system can tell, go on while it sleeps."""
    return time.clock_gettime(_CLOCK)


class Scheduled(Protocol):
    """What is known of a source."""

    @property
    def next_fetch_at(self) -> float:
        """When to fetch it again, in seconds of the refresher's clock."""


Source = TypeVar("Source", bound=Hashable)
State = TypeVar("State", bound=Scheduled)


class Refresher(ABC, Generic[Source, State]):
    """The states of sources, by source. For one event loop; one fetch of a source at a time."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._states: dict[Source, State] = {}
        self._running: dict[Source, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._pool = ThreadPoolExecutor(_CONCURRENT_FETCHES, "refresher")

    @abstractmethod
    def _first_state(self, source: Source, /) -> State:
        """Return what is known of a source that is new here. In a thread; does not raise."""

    @abstractmethod
    def _next_state(self, source: Source, state: State, /) -> State:
        """Fetch, and return what is known then. In a thread; does not raise."""

    async def prepare(self, sources: Iterable[Source], timeout_seconds: float = PREPARE_SECONDS) -> None:
        """Fetch what is new among `sources`; what is known already stays as it is.

        Returns when each new one has been tried once, or after `timeout_seconds`.
        """
        new = list(set(sources) - self._states.keys())
        if not new:
            return
        # Not in our threads: servers may hang in all of them.
        first = await asyncio.gather(*(asyncio.to_thread(self._first_state, one) for one in new))
        for source, state in zip(new, first, strict=True):
            self._states.setdefault(source, state)
        await asyncio.wait({self._start(source) for source in new}, timeout=timeout_seconds)

    def retain(self, sources: Iterable[Source]) -> None:
        """Forget everything that is not in `sources`."""
        kept = set(sources)
        self._states = {source: state for source, state in self._states.items() if source in kept}
        for source, task in self._running.items():
            if source not in kept:
                task.cancel()

    async def refresh_due(self) -> None:
        """Fetch everything whose time has come, and wait for it."""
        now = self._clock()
        due = {self._start(source) for source, state in self._states.items() if state.next_fetch_at <= now}
        if due:
            await asyncio.wait(due)

    async def run(self) -> None:
        """Keep everything up to date until cancelled."""
        try:
            while True:
                self._changed.clear()
                now = self._clock()
                for source, state in list(self._states.items()):
                    if state.next_fetch_at <= now:
                        self._start(source)
                idle = [one for source, one in self._states.items() if source not in self._running]
                soonest = min((state.next_fetch_at for state in idle), default=None)
                wait = _LONGEST_WAIT_SECONDS if soonest is None else soonest - self._clock()
                # Not `wait_for`: until Python 3.12 it can lose a cancellation.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(max(wait, _SHORTEST_WAIT_SECONDS), _LONGEST_WAIT_SECONDS)):
                        await self._changed.wait()
        finally:
            for task in self._running.values():
                task.cancel()

    def _hasten(self, source: Source, state: State) -> None:
        """Put `state` in the place of the one that is there: its time comes sooner."""
        self._states[source] = state
        self._changed.set()

    def _start(self, source: Source) -> asyncio.Task[None]:
        """Return the task that fetches `source`, a new one unless one is under way."""
        task = self._running.get(source)
        if task is None:
            task = asyncio.create_task(self._refresh(source))
            self._running[source] = task
            task.add_done_callback(lambda _: self._ended(source))
            self._changed.set()
        return task

    def _ended(self, source: Source) -> None:
        del self._running[source]
        self._changed.set()

    async def _refresh(self, source: Source) -> None:
        loop = asyncio.get_running_loop()
        new = await loop.run_in_executor(self._pool, self._next_state, source, self._states[source])
        if source in self._states:
            self._states[source] = new
