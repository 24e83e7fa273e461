"""The refresher, with a clock and a server of the test's own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler

from support.http_server import answer, serving

from authz.mixer.lists import EntryType, ListSource
from authz.mixer.refresher import ListRefresher
from garrison.errors import DependencyError

SOURCE = ListSource("http://lists.example/x", EntryType.STRINGS, refresh_seconds=60, ttl_seconds=300)
OTHER = ListSource("http://lists.example/y", EntryType.STRINGS, refresh_seconds=60, ttl_seconds=300)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another thread does."""
    while not condition():  # noqa: ASYNC110 - threads set no asyncio events
        await asyncio.sleep(0)


class World:
    """A clock and a server; `body` is None while the server is down."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.body: bytes | None = b"a\n"
        self.asked: list[str] = []

    def clock(self) -> float:
        """Return the time."""
        return self.now

    def fetch(self, url: str) -> bytes:
        """Return the body."""
        self.asked.append(url)
        if self.body is None:
            raise DependencyError("down")
        return self.body

    def refresher(self) -> ListRefresher:
        """Return a refresher in this world."""
        return ListRefresher(self.fetch, self.clock)


def test_a_prepared_list_is_there() -> None:
    """After `prepare` a list can be read, and is not fetched again before its time."""

    async def scenario() -> None:
        world = World()
        refresher = world.refresher()
        assert refresher.current(SOURCE) is None
        await refresher.prepare([SOURCE, OTHER, SOURCE])
        assert sorted(world.asked) == [SOURCE.url, OTHER.url]
        assert refresher.current(SOURCE) is not None
        await refresher.prepare([SOURCE])
        await refresher.refresh_due()
        assert len(world.asked) == 2
        world.now += 60
        await refresher.refresh_due()
        assert len(world.asked) == 4

    asyncio.run(scenario())


def test_an_outage_ends_in_no_list() -> None:
    """The old list holds until its ttl, then there is none, and the next success brings it back."""

    async def scenario() -> None:
        world = World()
        refresher = world.refresher()
        await refresher.prepare([SOURCE])
        world.body = None
        for _ in range(4):
            world.now += 60
            await refresher.refresh_due()
        assert refresher.current(SOURCE) is not None
        world.now += 60
        assert refresher.current(SOURCE) is None
        status = refresher.status()[0]
        assert (status.available, status.failures, status.age_seconds) == (False, 4, 300)
        assert status.error == "down"
        world.body = b"b\n"
        await refresher.refresh_due()
        back = refresher.current(SOURCE)
        assert back is not None
        assert back.holds("b")

    asyncio.run(scenario())


def test_a_failing_provider_does_not_stop_a_reload() -> None:
    """`prepare` tries once and returns; the list is missing, and a later prepare does not wait for it."""

    async def scenario() -> None:
        world = World()
        world.body = None
        refresher = world.refresher()
        await refresher.prepare([SOURCE])
        assert refresher.current(SOURCE) is None
        await refresher.prepare([SOURCE])
        assert world.asked == [SOURCE.url]

    asyncio.run(scenario())


def test_a_slow_provider_does_not_stop_a_reload() -> None:
    """`prepare` waits no longer than it was told; the fetch goes on and its list comes later."""

    async def scenario() -> None:
        release = threading.Event()

        def slow(_: str) -> bytes:
            release.wait(10)
            return b"a\n"

        refresher = ListRefresher(slow)
        await refresher.prepare([SOURCE], timeout_seconds=0.01)
        assert refresher.current(SOURCE) is None
        release.set()
        await until(lambda: refresher.current(SOURCE) is not None)

    asyncio.run(asyncio.wait_for(scenario(), 10))


def test_lists_that_nobody_needs_are_forgotten() -> None:
    """After `retain` only the lists of the snapshot in force are kept and fetched."""

    async def scenario() -> None:
        world = World()
        refresher = world.refresher()
        await refresher.prepare([SOURCE, OTHER])
        refresher.retain([OTHER])
        assert refresher.current(SOURCE) is None
        assert refresher.current(OTHER) is not None
        world.now += 60
        world.asked.clear()
        await refresher.refresh_due()
        assert world.asked == [OTHER.url]

    asyncio.run(scenario())


def test_any_failure_of_a_fetch_keeps_the_refresher_alive() -> None:
    """A bug in fetching is a failure of that list, not of the loop."""

    async def scenario() -> None:
        def broken(_: str) -> bytes:
            raise ZeroDivisionError("oops")

        refresher = ListRefresher(broken)
        await refresher.prepare([SOURCE])
        assert refresher.status()[0].error == "ZeroDivisionError: oops"

    asyncio.run(scenario())


def test_run_fetches_what_is_prepared_later_and_ends_when_cancelled() -> None:
    """One task serves all lists, also those that a later snapshot brings."""

    async def scenario() -> None:
        world = World()
        refresher = world.refresher()
        task = asyncio.create_task(refresher.run())
        await refresher.prepare([SOURCE])
        world.now += 61
        await refresher.prepare([OTHER])
        await until(lambda: world.asked.count(SOURCE.url) >= 2)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(asyncio.wait_for(scenario(), 10))


def test_the_refresher_follows_a_real_server() -> None:
    """A changed list comes into force by itself, and goes on being used while the server is down."""
    bodies = [b"a\n"]

    def newest(handler: BaseHTTPRequestHandler) -> None:
        answer(bodies[-1])(handler)

    def holds(refresher: ListRefresher, source: ListSource, value: str) -> bool:
        entries = refresher.current(source)
        return entries is not None and entries.holds(value)

    async def follow() -> None:
        refresher = ListRefresher()
        with serving({"/": newest}) as url:
            source = ListSource(url + "/", EntryType.STRINGS, 0.05, 300)
            await refresher.prepare([source])
            assert holds(refresher, source, "a")
            task = asyncio.create_task(refresher.run())
            bodies.append(b"b\n")
            await until(lambda: holds(refresher, source, "b"))
        await until(lambda: refresher.status()[0].failures > 0)
        assert refresher.status()[0].available
        assert "cannot be fetched" in refresher.status()[0].error
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(asyncio.wait_for(follow(), 10))
