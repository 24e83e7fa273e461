"""Keeps Mixer's lists up to date, off the request path. Requests read `current`; it never waits."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from authz.mixer.lists import MAX_LIST_BYTES, EntryList, ListSource, ListState, failed, in_force, succeeded
from garrison.errors import DependencyError
from garrison.fetching import Fetcher
from garrison.refreshing import Refresher


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


class ListRefresher(Refresher[ListSource, ListState]):
    """The lists of this process, by source. For one event loop."""

    def __init__(
        self,
        fetch: Callable[[str], bytes] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`fetch` runs in a thread, returns a body or raises `DependencyError`; `clock` is monotonic."""
        super().__init__(clock)
        self._fetch = fetch or list_fetch(Fetcher(max_bytes=MAX_LIST_BYTES))

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

    def _first_state(self, _: ListSource, /) -> ListState:
        return ListState(next_fetch_at=self._clock())

    def _next_state(self, source: ListSource, state: ListState) -> ListState:
        """Fetch and parse: large lists take their time."""
        asked_at = self._clock()
        try:
            body = self._fetch(source.url)
        except DependencyError as error:
            return failed(source, state, str(error), self._clock())
        except Exception as error:  # noqa: BLE001 - whatever it is, the old list stays and the loop goes on
            return failed(source, state, f"{type(error).__name__}: {error}", self._clock())
        # The list is as old as the question, not as the answer.
        return succeeded(source, state, body, asked_at)
