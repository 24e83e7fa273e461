"""Keeps the keys of token issuers up to date, off the request path, from URLs, discovery and files.

Requests read `current` and may tell of a miss; neither waits. How to use it is in `garrison.refreshing`.
"""

from __future__ import annotations

import asyncio
import os
import random
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from garrison.errors import DependencyError
from garrison.fetching import MAX_BODY_BYTES, Fetcher
from garrison.keys.cache import KeyCache, Remembered
from garrison.keys.discovery import (
    check_source,
    discovery_url,
    file_of,
    jwks_uri_of,
    lifetime_of,
    name_of,
)
from garrison.keys.jwks import KeySet, KeySetError, KeySource
from garrison.keys.state import Fetched, KeyRules, KeyState, failed, in_force, missed, restored, succeeded
from garrison.refreshing import Refresher, clock

log = structlog.get_logger()

_MOST_KIDS_LOGGED = 20
_MOST_OF_A_KID = 80
_MOST_OF_A_REASON = 300

Fetch = Callable[[KeySource], Fetched]


@dataclass(frozen=True, slots=True)
class KeyStatus:
    """What operators want to know of a source: `name` is its URL or issuer."""

    name: str
    available: bool
    age_seconds: float | None  # since the issuer last confirmed them; None when it never did
    failures: int  # in a row
    error: str
    fetched: int
    failed: int


@dataclass(frozen=True, slots=True)
class Timing:
    """Time and chance: seconds of a clock that never runs backwards, seconds since 1970, 0 to 1."""

    clock: Callable[[], float] = clock
    wall: Callable[[], float] = time.time
    jitter: Callable[[], float] = random.random


class KeyRefresher(Refresher[KeySource, KeyState]):
    """The keys of this process, by source. For one event loop."""

    def __init__(
        self,
        fetch: Fetch,
        rules: KeyRules | None = None,
        cache: KeyCache | None = None,
        timing: Timing | None = None,
    ) -> None:
        """`fetch` runs in a thread, returns keys or raises `DependencyError` or `KeySetError`."""
        self._timing = timing or Timing()
        super().__init__(self._timing.clock)
        self._fetch = fetch
        self._rules = rules or KeyRules()
        self._cache = cache

    def current(self, source: KeySource) -> KeySet | None:
        """Return the keys to verify with; None when there are none, and then no token of theirs is good."""
        state = self._states.get(source)
        return in_force(self._rules, state, self._clock()) if state is not None else None

    def missed(self, source: KeySource) -> None:
        """Note that a token names a key which is not there; in the event loop's thread."""
        state = self._states.get(source)
        if state is not None and (sooner := missed(state, self._clock())) is not state:
            self._hasten(source, sooner)

    async def run(self) -> None:
        """Keep all keys up to date until cancelled."""
        if self._cache is not None:
            await asyncio.to_thread(self._cache.prune, self._timing.wall() - self._rules.max_stale_seconds)
        await super().run()

    def status(self) -> list[KeyStatus]:
        """Return how every source is doing, by name."""
        now = self._clock()
        found = [
            KeyStatus(
                name_of(source),
                in_force(self._rules, state, now) is not None,
                None if state.keys is None else now - state.confirmed_at,
                state.failures,
                state.error,
                state.fetched,
                state.failed,
            )
            for source, state in self._states.items()
        ]
        return sorted(found, key=lambda one: one.name)

    def _first_state(self, source: KeySource, /) -> KeyState:
        """Return what the cache has; the source is asked at once in any case."""
        now = self._clock()
        state = KeyState(next_fetch_at=now)
        if self._cache is None or file_of(source):
            return state
        try:
            found = self._cache.read(source)
            return self._restored(source, state, found, now) if found is not None else state
        except Exception as error:  # noqa: BLE001 - whatever it is, the issuer itself is asked
            log.warning("keys_cache_refused", source=name_of(source), error=_reason(error))
            return state

    def _restored(self, source: KeySource, state: KeyState, found: Remembered, now: float) -> KeyState:
        age = self._timing.wall() - found.confirmed_at
        if age < 0:
            raise DependencyError("the keys were confirmed in the future: the clock is wrong, or was")
        if not age < self._rules.max_stale_seconds:
            raise DependencyError("the keys are too old")
        state = restored(state, found.body, now - age)
        log.info("keys_restored", source=name_of(source), kids=_kids(state), age_seconds=round(age))
        return state

    def _next_state(self, source: KeySource, state: KeyState, /) -> KeyState:
        asked_at, asked_wall = self._clock(), self._timing.wall()
        try:
            fetched = self._fetch(source)
            new = succeeded(self._rules, source, state, fetched, asked_at)
        except Exception as error:  # noqa: BLE001 - whatever it is, the old keys stay and the loop goes on
            return self._failed(source, state, _reason(error))
        if new.keys is not state.keys:
            log.info("keys_fetched", source=name_of(source), kids=_kids(new))
        elif state.failures:
            log.info("keys_confirmed", source=name_of(source), kids=_kids(new))
        self._remember(source, Remembered(fetched.body, asked_wall))
        return new

    def _failed(self, source: KeySource, state: KeyState, reason: str) -> KeyState:
        now = self._clock()
        new = failed(self._rules, source, state, reason, now, jitter=self._timing.jitter())
        if reason != state.error:
            there = in_force(self._rules, new, now) is not None
            left = round(new.confirmed_at + self._rules.max_stale_seconds - now) if there else 0
            log.warning("keys_not_fetched", source=name_of(source), error=reason, usable_seconds=left)
        if new.closed and not state.closed:
            log.error("keys_closed", source=name_of(source), error=reason, failures=new.failures)
        return new

    def _remember(self, source: KeySource, keys: Remembered) -> None:
        if self._cache is None or file_of(source):
            return
        try:
            self._cache.write(source, keys)
        except OSError as error:
            log.warning("keys_not_remembered", source=name_of(source), error=_reason(error))


def key_fetch(fetcher: Fetcher) -> Fetch:
    """Return what gets the keys of a source, with `fetcher` where it is not a file.

    Each of the two requests of a discovery has the source's time limit.
    """

    def fetch(source: KeySource) -> Fetched:
        if problem := check_source(source):
            raise DependencyError(problem)
        if path := file_of(source):
            return Fetched(_read_file(path))
        timeout = source.timeout_seconds
        if source.url:
            answer = fetcher.get(source.url, timeout_seconds=timeout).expect(200)
        else:
            found = fetcher.get(discovery_url(source.issuer), timeout_seconds=timeout).expect(200)
            url = jwks_uri_of(source.issuer, found.body)
            answer = fetcher.get(url, timeout_seconds=timeout, told_by=found).expect(200)
        return Fetched(answer.body, lifetime_of(answer.headers))

    return fetch


def _read_file(path: str) -> bytes:
    """Return what a plain file holds; whoever named it answers for who can write to it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise DependencyError(f"`{path}` is not a file")
            content = file.read(MAX_BODY_BYTES + 1)
    except OSError as error:
        raise DependencyError(f"`{path}` cannot be read: {(error.strerror or str(error)).lower()}") from error
    if len(content) > MAX_BODY_BYTES:
        raise DependencyError(f"`{path}` has more than {MAX_BODY_BYTES} bytes")
    return content


def _kids(state: KeyState) -> list[str]:
    keys = state.keys.keys if state.keys is not None else ()
    return [(key.kid or "")[:_MOST_OF_A_KID] for key in keys[:_MOST_KIDS_LOGGED]]


def _reason(error: Exception) -> str:
    if isinstance(error, DependencyError):
        return str(error)
    what = "the key set" if isinstance(error, KeySetError) else f"{type(error).__name__}:"
    return f"{what} {error}"[:_MOST_OF_A_REASON]
