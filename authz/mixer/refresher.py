"""Keeps lists up to date, off the request path.

    refresher = ListRefresher()
    await refresher.prepare(policies.sources)   # before a snapshot comes into force: its lists are there
    ...                                         # swap the snapshot
    refresher.retain(policies.sources)          # after it: lists that nobody asks for any more are dropped
    task = asyncio.create_task(refresher.run()) # once, for the life of the process

Requests read `current`; it never waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from authz.mixer.lists import MAX_LIST_BYTES, EntryList, ListSource, ListState, failed, in_force, succeeded
from garrison.errors import DependencyError
from garrison.fetching import Fetcher

# How long a reload waits for lists it has never seen. Those that come later deny until they do.
PREPARE_SECONDS = 10.0
_CONCURRENT_FETCHES = 4


@dataclass(frozen=True, slots=True)
class ListStatus:
    """What operators want to know of a list."""

    url: str
    available: bool
    age_seconds: float | None  # since it was last confirmed; None when it never was
    failures: int  # in a row
    error: str


def list_fetch(fetcher: Fetcher) -> Callable[[str], bytes]:
    """Return what fetches the body of a list from a URL."""
    return lambda url: fetcher.get(url).expect(200).body


class ListRefresher:
    """The lists of this process, by source. For one event loop."""

    def __init__(
        self,
        fetch: Callable[[str], bytes] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`fetch` runs in a thread, returns a body or raises `DependencyError`; `clock` is monotonic."""
        self._fetch = fetch or list_fetch(Fetcher(max_bytes=MAX_LIST_BYTES))
        self._clock = clock
        self._states: dict[ListSource, ListState] = {}
        self._running: dict[ListSource, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._slots = asyncio.Semaphore(_CONCURRENT_FETCHES)

    def current(self, source: ListSource) -> EntryList | None:
        """Return the list to decide by; None when there is none, and then the answer is no."""
        state = self._states.get(source)
        return in_force(source, state, self._clock()) if state is not None else None

    def status(self) -> list[ListStatus]:
        """Return how every list is doing, by URL."""
        now = self._clock()
        found = [
            ListStatus(
                source.url,
                in_force(source, state, now) is not None,
                None if state.entries is None else now - state.confirmed_at,
                state.failures,
                state.error,
            )
            for source, state in self._states.items()
        ]
        return sorted(found, key=lambda one: one.url)

    async def prepare(self, sources: Iterable[ListSource], timeout_seconds: float = PREPARE_SECONDS) -> None:
        """Fetch the lists among `sources` that were never asked for; lists already known stay as they are.

        Returns when each has been tried once, or after `timeout_seconds`. Failures are in `status`.
        """
        for source in set(sources) - self._states.keys():
            self._states[source] = ListState(next_fetch_at=self._clock())
        waited = {
            self._start(one) for one in set(sources) if self._states[one].next_fetch_at <= self._clock()
        }
        if waited:
            await asyncio.wait(waited, timeout=timeout_seconds)

    def retain(self, sources: Iterable[ListSource]) -> None:
        """Forget every list that is not in `sources`."""
        kept = set(sources)
        self._states = {source: state for source, state in self._states.items() if source in kept}
        for source, task in self._running.items():
            if source not in kept:
                task.cancel()

    async def refresh_due(self) -> None:
        """Fetch every list whose time has come, and wait for them."""
        now = self._clock()
        due = {self._start(source) for source, state in self._states.items() if state.next_fetch_at <= now}
        if due:
            await asyncio.wait(due)

    async def run(self) -> None:
        """Keep all lists up to date until cancelled."""
        try:
            while True:
                self._changed.clear()
                now = self._clock()
                for source, state in list(self._states.items()):
                    if state.next_fetch_at <= now:
                        self._start(source)
                idle = [one for source, one in self._states.items() if source not in self._running]
                soonest = min((state.next_fetch_at for state in idle), default=None)
                # 50 ms at least: a clock that stands still must not make this spin.
                wait = None if soonest is None else max(0.05, soonest - self._clock())
                # Not `wait_for`: until Python 3.12 it can lose a cancellation.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._changed.wait()
        finally:
            for task in self._running.values():
                task.cancel()

    def _start(self, source: ListSource) -> asyncio.Task[None]:
        """Return the task that fetches `source`, a new one unless one is under way."""
        task = self._running.get(source)
        if task is None:
            task = asyncio.create_task(self._refresh(source))
            self._running[source] = task
            task.add_done_callback(lambda _: self._ended(source))
            self._changed.set()
        return task

    def _ended(self, source: ListSource) -> None:
        del self._running[source]
        self._changed.set()

    async def _refresh(self, source: ListSource) -> None:
        async with self._slots:
            state = self._states.get(source, ListState())
            new = await asyncio.to_thread(self._next_state, source, state)
        if source in self._states:
            self._states[source] = new

    def _next_state(self, source: ListSource, state: ListState) -> ListState:
        """Fetch and parse, in a thread: large lists take their time."""
        asked_at = self._clock()
        try:
            body = self._fetch(source.url)
        except DependencyError as error:
            return failed(source, state, str(error), self._clock())
        except Exception as error:  # noqa: BLE001 - whatever it is, the old list stays and the loop goes on
            return failed(source, state, f"{type(error).__name__}: {error}", self._clock())
        # The list is as old as the question, not as the answer.
        return succeeded(source, state, body, asked_at)
