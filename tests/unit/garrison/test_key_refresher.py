"""The refresher, with time of the test's own: against a fake at first, then against a real issuer."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs
from support.http_server import answer
from support.issuer import DISCOVERY, JWKS, TokenIssuer
from support.tokens import ed_signer

from garrison import refreshing
from garrison.errors import DependencyError
from garrison.fetching import MAX_BODY_BYTES, Fetcher
from garrison.keys.cache import KeyCache
from garrison.keys.jwks import KeySource
from garrison.keys.refresher import KeyRefresher, Timing, key_fetch
from garrison.keys.state import Fetched, KeyRules

SOURCE = KeySource("https://issuer.example/keys?key=secret")
OTHER = KeySource("", "https://other.example")


@pytest.fixture(autouse=True)
def _own_logger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log with a logger that no other test has used: under a server's configuration they are kept as they are."""
    monkeypatch.setattr("garrison.keys.refresher.log", structlog.get_logger())


class World:
    """Two clocks, and a server; it is down while `kids` is None."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.wall = 1_000_000_000.0
        self.kids: list[str] | None = ["a"]
        self.asked: list[KeySource] = []

    def sleep(self, seconds: float) -> None:
        """Let time go by."""
        self.now += seconds
        self.wall += seconds

    def fetch(self, source: KeySource) -> Fetched:
        """Answer as the issuer would."""
        self.asked.append(source)
        if self.kids is None:
            raise DependencyError("down")
        return Fetched(json.dumps({"keys": [ed_signer(kid).jwk() for kid in self.kids]}).encode())

    def refresher(self, cache: Path | None = None, **rules: float) -> KeyRefresher:
        """Return a refresher in this world, as after a start."""
        timing = Timing(lambda: self.now, lambda: self.wall, lambda: 1.0)
        return KeyRefresher(self.fetch, KeyRules(**rules), KeyCache(cache) if cache else None, timing)


def kids(refresher: KeyRefresher, source: KeySource = SOURCE) -> list[str | None] | None:
    """Return the IDs of the keys in force."""
    found = refresher.current(source)
    return None if found is None else [key.kid for key in found.keys]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another thread does."""
    while not condition():  # noqa: ASYNC110 - threads set no asyncio events
        await asyncio.sleep(0.001)


def run(scenario: Awaitable[None]) -> None:
    """Run a scenario; it ends in time or fails."""

    async def bounded() -> None:
        async with asyncio.timeout(20):
            await scenario

    asyncio.run(bounded())


def test_prepared_keys_are_there() -> None:
    """After `prepare` keys can be read; they are fetched again when their time has come and not before."""

    async def scenario() -> None:
        world = World()
        refresher = world.refresher()
        assert refresher.current(SOURCE) is None
        await refresher.prepare([SOURCE, OTHER, SOURCE])
        assert kids(refresher) == kids(refresher, OTHER) == ["a"]
        await refresher.prepare([SOURCE])
        world.sleep(899)
        await refresher.refresh_due()
        assert len(world.asked) == 2
        world.sleep(1)
        await refresher.refresh_due()
        assert len(world.asked) == 4

    run(scenario())


def test_reading_keys_never_fetches() -> None:
    """However often keys are asked for, and missed, nothing is fetched on that path."""

    async def scenario() -> None:
        world = World()
        refresher = world.refresher()
        for _ in range(100):
            refresher.current(SOURCE)
            refresher.missed(SOURCE)
        await refresher.refresh_due()
        assert world.asked == []

    run(scenario())


def test_an_outage_ends_in_no_keys() -> None:
    """Keys hold until `max_stale`, then tokens are refused, and the next success brings them back."""

    async def scenario() -> None:
        world = World()
        refresher = world.refresher(max_stale_seconds=3600)
        await refresher.prepare([SOURCE])
        world.kids = None
        for _ in range(3):
            world.sleep(1000)
            await refresher.refresh_due()
        assert kids(refresher) == ["a"]
        world.sleep(599.9)
        assert kids(refresher) == ["a"]
        world.sleep(0.1)
        assert kids(refresher) is None
        await refresher.refresh_due()
        (status,) = refresher.status()
        assert (status.available, status.failures, status.fetched, status.failed) == (False, 4, 1, 4)
        assert (status.age_seconds, status.error) == (3600, "down")
        world.kids = ["a", "b"]
        world.sleep(300)
        await refresher.refresh_due()
        assert kids(refresher) == ["a", "b"]

    run(scenario())


def test_a_removed_key_is_not_used_any_more() -> None:
    """What the issuer took away is gone with the next fetch; equal keys stay the same set."""

    async def scenario() -> None:
        world = World()
        world.kids = ["a", "b"]
        refresher = world.refresher()
        await refresher.prepare([SOURCE])
        before = refresher.current(SOURCE)
        world.sleep(900)
        await refresher.refresh_due()
        assert refresher.current(SOURCE) is before
        world.kids = ["b"]
        world.sleep(900)
        await refresher.refresh_due()
        assert kids(refresher) == ["b"]

    run(scenario())


def test_an_unknown_key_is_asked_for_by_the_running_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """`missed` wakes the task; a flood of misses makes one fetch."""
    monkeypatch.setattr(refreshing, "_LONGEST_WAIT_SECONDS", 3600)

    async def scenario() -> None:
        world = World()
        refresher = world.refresher()
        await refresher.prepare([SOURCE])
        task = asyncio.create_task(refresher.run())
        await asyncio.sleep(0)
        world.kids = ["b"]
        world.sleep(10)
        for _ in range(1000):
            refresher.missed(SOURCE)
        await until(lambda: kids(refresher) == ["b"])
        for _ in range(1000):
            refresher.missed(SOURCE)
            await asyncio.sleep(0)
        assert len(world.asked) == 2
        task.cancel()
        await asyncio.wait([task])

    run(scenario())


def test_a_source_that_hangs_does_not_hold_up_the_others() -> None:
    """`prepare` gives up waiting; other sources and later snapshots get their keys."""

    async def scenario() -> None:
        world, release = World(), threading.Event()

        def fetch(source: KeySource) -> Fetched:
            if source == OTHER:
                release.wait(20)
            return world.fetch(source)

        refresher = KeyRefresher(fetch)
        await refresher.prepare([SOURCE, OTHER], timeout_seconds=0.05)
        assert kids(refresher) == ["a"]
        assert kids(refresher, OTHER) is None
        release.set()
        await until(lambda: kids(refresher, OTHER) == ["a"])

    run(scenario())


def test_sources_that_nobody_needs_are_forgotten() -> None:
    """After `retain` only the sources of the snapshot in force are kept and fetched."""

    async def scenario() -> None:
        world = World()
        refresher = world.refresher()
        await refresher.prepare([SOURCE, OTHER])
        refresher.retain([OTHER])
        assert refresher.current(SOURCE) is None
        refresher.missed(SOURCE)
        world.sleep(900)
        world.asked.clear()
        await refresher.refresh_due()
        assert world.asked == [OTHER]
        assert [one.name for one in refresher.status()] == ["https://other.example"]

    run(scenario())


@pytest.mark.parametrize("error", [ZeroDivisionError("oops"), ValueError("embedded null byte")])
def test_any_failure_of_a_fetch_keeps_the_refresher_alive(error: Exception) -> None:
    """A bug in fetching is a failure of that source, not of the loop."""

    async def scenario() -> None:
        def broken(_: KeySource) -> Fetched:
            raise error

        refresher = KeyRefresher(broken)
        await refresher.prepare([SOURCE])
        assert refresher.status()[0].error == f"{type(error).__name__}: {error}"

    run(scenario())


# -------------------------------------------------------------------------------------------------- cache


def test_a_restart_during_an_outage_has_the_keys_of_before(tmp_path: Path) -> None:
    """From the cache, while the issuer does not answer, for as long as they would have held anyway."""

    async def scenario() -> None:
        world = World()
        await world.refresher(tmp_path).prepare([SOURCE, OTHER])
        world.kids = None
        world.sleep(80_000)
        world.now = 5.0  # another process, perhaps another boot
        release = threading.Event()

        def hang(source: KeySource) -> Fetched:
            release.wait(20)
            return world.fetch(source)

        timing = Timing(lambda: world.now, lambda: world.wall, lambda: 1.0)
        refresher = KeyRefresher(hang, KeyRules(), KeyCache(tmp_path), timing)
        await refresher.prepare([SOURCE, OTHER], timeout_seconds=0.01)
        assert kids(refresher) == kids(refresher, OTHER) == ["a"]
        assert [one.age_seconds for one in refresher.status()] == [80_000, 80_000]
        release.set()
        await until(lambda: all(one.failures == 1 for one in refresher.status()))
        world.sleep(6399)
        assert kids(refresher) == ["a"]
        world.sleep(1)
        assert kids(refresher) is None

    run(scenario())


@pytest.mark.parametrize("seconds", [86_400, 1e6, -1])
def test_a_restart_does_not_make_old_keys_young(tmp_path: Path, seconds: float) -> None:
    """What is older than `max_stale`, or was confirmed in the future, is not used at all."""

    async def scenario() -> None:
        world = World()
        await world.refresher(tmp_path).prepare([SOURCE])
        world.kids = None
        world.wall += seconds
        refresher = world.refresher(tmp_path)
        with capture_logs() as logs:
            await refresher.prepare([SOURCE])
        assert refresher.current(SOURCE) is None
        assert "keys_cache_refused" in [one["event"] for one in logs]

    run(scenario())


def test_each_confirmation_is_remembered(tmp_path: Path) -> None:
    """The time in the cache is that of the last confirmation, also when the keys are the same."""

    async def scenario() -> None:
        world = World()
        refresher = world.refresher(tmp_path)
        await refresher.prepare([SOURCE])
        world.sleep(900)
        await refresher.refresh_due()
        found = KeyCache(tmp_path).read(SOURCE)
        assert found is not None
        assert found.confirmed_at == world.wall

    run(scenario())


def test_a_cache_that_cannot_be_used_is_no_obstacle(tmp_path: Path) -> None:
    """Damaged files are reported and the issuer is asked; a folder that cannot be written to is reported."""

    async def scenario() -> None:
        world = World()
        await world.refresher(tmp_path / "cache").prepare([SOURCE])
        (file,) = (tmp_path / "cache").iterdir()
        file.write_bytes(file.read_bytes()[:-10])
        with capture_logs() as logs:
            refresher = world.refresher(tmp_path / "cache")
            await refresher.prepare([SOURCE])
        assert [one["event"] for one in logs] == ["keys_cache_refused", "keys_fetched"]
        (tmp_path / "file").write_text("")
        with capture_logs() as logs:
            other = world.refresher(tmp_path / "file")
            await other.prepare([SOURCE])
        assert [one["event"] for one in logs] == ["keys_cache_refused", "keys_fetched", "keys_not_remembered"]
        assert kids(refresher) == kids(other) == ["a"]

    run(scenario())


def test_old_files_go_when_the_refresher_starts(tmp_path: Path) -> None:
    """Sources that no policy names any more leave nothing behind for ever."""

    async def scenario() -> None:
        world = World()
        await world.refresher(tmp_path).prepare([SOURCE])
        world.wall = 1e11
        refresher = world.refresher(tmp_path)
        task = asyncio.create_task(refresher.run())
        await until(lambda: not list(tmp_path.iterdir()))
        task.cancel()
        await asyncio.wait([task])

    run(scenario())


# --------------------------------------------------------------------------------------------------- logs


def test_changes_of_state_are_logged_once() -> None:
    """New keys, the first failure, closing, and coming back; not each try, and no query of a URL."""

    async def scenario() -> list[Any]:
        world = World()
        refresher = world.refresher(max_stale_seconds=3600)
        with capture_logs() as logs:
            await refresher.prepare([SOURCE])
            world.kids = None
            for _ in range(10):
                world.sleep(900)
                await refresher.refresh_due()
            world.kids = ["a"]
            world.sleep(900)
            await refresher.refresh_due()
            world.kids = ["a", "b"]
            world.sleep(900)
            await refresher.refresh_due()
        return [{name: value for name, value in one.items() if name != "log_level"} for one in logs]

    structlog.reset_defaults()
    source = "https://issuer.example/keys"
    assert asyncio.run(scenario()) == [
        {"event": "keys_fetched", "source": source, "kids": ["a"]},
        {"event": "keys_not_fetched", "source": source, "error": "down", "usable_seconds": 2700},
        {"event": "keys_closed", "source": source, "error": "down", "failures": 4},
        {"event": "keys_confirmed", "source": source, "kids": ["a"]},
        {"event": "keys_fetched", "source": source, "kids": ["a", "b"]},
    ]


# ------------------------------------------------------------------------------------------------ sources


def fetcher(issuer: TokenIssuer, **options: Any) -> Fetcher:
    """Return a fetcher that trusts the issuer's certificate."""
    return Fetcher(ca=issuer.ca, **options)


def test_keys_come_from_a_url_and_by_discovery(tmp_path: Path) -> None:
    """Both bring the same keys; headers say how long they live."""
    with TokenIssuer(tmp_path, path="/tenant/1") as issuer:
        issuer.headers = {"cache-control": "max-age=7200"}
        fetch = key_fetch(fetcher(issuer))
        by_url = fetch(KeySource(issuer.jwks_uri))
        assert by_url == Fetched(issuer.jwks(), 7200)
        assert fetch(KeySource("", issuer.issuer)) == by_url
        assert issuer.asked == {JWKS: 2, "/tenant/1" + DISCOVERY: 1}


def test_the_type_that_a_server_states_does_not_matter(tmp_path: Path) -> None:
    """A key set is what reads as one, whatever its content type."""
    with TokenIssuer(tmp_path) as issuer:
        issuer.headers = {"content-type": "text/html"}
        assert key_fetch(fetcher(issuer))(KeySource(issuer.jwks_uri)).body == issuer.jwks()


def test_the_refresher_follows_a_real_issuer(tmp_path: Path) -> None:
    """Rotation is noticed on an unknown key; an outage changes nothing until the keys are too old."""

    async def scenario(issuer: TokenIssuer) -> None:
        world = World()
        timing = Timing(lambda: world.now, lambda: world.wall, lambda: 1.0)
        refresher = KeyRefresher(key_fetch(fetcher(issuer)), KeyRules(), None, timing)
        source = KeySource("", issuer.issuer)
        await refresher.prepare([source])
        task = asyncio.create_task(refresher.run())
        assert kids(refresher, source) == ["k1"]
        issuer.rotate()
        world.sleep(10)
        refresher.missed(source)
        await until(lambda: kids(refresher, source) == ["k2"])
        issuer.is_up = False
        world.sleep(10)
        refresher.missed(source)
        await until(lambda: refresher.status()[0].failures == 1)
        assert kids(refresher, source) == ["k2"]
        world.sleep(86_400)
        assert kids(refresher, source) is None
        issuer.is_up = True
        await until(lambda: kids(refresher, source) == ["k2"])
        task.cancel()
        await asyncio.wait([task])

    with TokenIssuer(tmp_path) as issuer:
        run(scenario(issuer))


def refused(issuer: TokenIssuer, source: KeySource, **options: Any) -> str:
    """Return why there are no keys of `source`."""

    async def scenario() -> str:
        refresher = KeyRefresher(key_fetch(fetcher(issuer, **options)))
        await refresher.prepare([source])
        assert refresher.current(source) is None
        return refresher.status()[0].error

    return asyncio.run(scenario())


def test_what_is_no_key_set_is_a_failure(tmp_path: Path) -> None:
    """Errors, other documents, too much, too slow, packed: each leaves things as they were, with a reason."""
    with TokenIssuer(tmp_path) as issuer:
        source = KeySource(issuer.jwks_uri, timeout_seconds=10)
        quick = KeySource(issuer.jwks_uri, timeout_seconds=0.2)
        for given, asked, reason in (
            (answer(b"", 500), source, "answers 500"),
            (answer(b"<html>"), source, "is not JSON"),
            (answer(b'{"keys": []}'), source, "no key that verifies"),
            (answer(b'{"a": "' + b"x" * MAX_BODY_BYTES + b'"}'), source, "more than 1048576 bytes"),
            (answer(issuer.jwks(), content_encoding="gzip"), source, "encoding"),
            (answer(issuer.jwks(), content_length="100000"), source, "was cut off"),
            (issuer.drip, quick, "/keys`"),
            (issuer.hang, quick, "/keys`"),
        ):
            issuer.answers[JWKS] = given
            assert reason in refused(issuer, asked), reason


def test_discovery_is_not_believed_blindly(tmp_path: Path) -> None:
    """A document of another issuer, or one that leads to keys without TLS, brings no keys."""
    with TokenIssuer(tmp_path) as issuer:
        source = KeySource("", issuer.issuer)
        for document, reason in (
            ({"issuer": issuer.issuer + "/", "jwks_uri": issuer.jwks_uri}, "for another issuer"),
            ({"issuer": issuer.issuer, "jwks_uri": "http://127.0.0.1:1/"}, "without TLS"),
            ({"issuer": issuer.issuer, "jwks_uri": "https://169.254.169.254/"}, "which is not allowed"),
            ({"issuer": issuer.issuer}, "no `jwks_uri`"),
        ):
            issuer.answers[DISCOVERY] = answer(json.dumps(document).encode())
            assert reason in refused(issuer, source), reason
        assert issuer.asked[JWKS] == 0


def test_an_issuer_with_another_certificate_is_not_asked(tmp_path: Path) -> None:
    """TLS is verified with the CA of the settings alone, or the system's roots."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with TokenIssuer(tmp_path / "a") as issuer, TokenIssuer(tmp_path / "b") as other:
        for trusting in (Fetcher(ca=other.ca), Fetcher()):
            with pytest.raises(DependencyError, match="CERTIFICATE_VERIFY_FAILED"):
                key_fetch(trusting)(KeySource(issuer.jwks_uri))
        assert not issuer.asked


# -------------------------------------------------------------------------------------------------- files


def write_keys(file: Path, *names: str) -> None:
    """Put keys into `file` in one step."""
    new = file.with_suffix(".new")
    new.write_text(json.dumps({"keys": [ed_signer(name).jwk() for name in names]}))
    new.replace(file)


def test_files_are_followed(tmp_path: Path) -> None:
    """A replaced file counts within a second; a wrong or missing one leaves the keys until they are too old."""

    async def scenario() -> None:
        world = World()
        timing = Timing(lambda: world.now, lambda: world.wall, lambda: 1.0)
        file = tmp_path / "keys.json"
        source = KeySource(file.as_uri())
        cache = KeyCache(tmp_path / "cache")
        refresher = KeyRefresher(key_fetch(Fetcher()), KeyRules(max_stale_seconds=3600), cache, timing)
        await refresher.prepare([source])
        assert "cannot be read: no such file" in refresher.status()[0].error

        async def look() -> list[str | None] | None:
            world.sleep(1)
            await refresher.refresh_due()
            return kids(refresher, source)

        write_keys(file, "a", "b")
        assert await look() == ["a", "b"]
        before = refresher.current(source)
        assert await look() == ["a", "b"]
        assert refresher.current(source) is before
        write_keys(file, "b")
        assert await look() == ["b"]
        file.write_text('{"keys": [')
        assert await look() == ["b"]
        assert "is not JSON" in refresher.status()[0].error
        file.unlink()
        assert await look() == ["b"]
        world.sleep(3598)
        assert kids(refresher, source) is None
        write_keys(file, "c")
        assert await look() == ["c"]
        assert not (tmp_path / "cache").exists()

    run(scenario())


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/proc/self", "/a%00b"])
def test_files_that_are_none_are_refused(path: str) -> None:
    """Devices, folders and names that no file has are failures, and reading them does not hang."""
    with pytest.raises((DependencyError, ValueError)):
        key_fetch(Fetcher())(KeySource(f"file://{path}"))


def test_large_files_are_refused(tmp_path: Path) -> None:
    """A file may have as much as an answer."""
    file = tmp_path / "keys.json"
    file.write_bytes(b" " * (MAX_BODY_BYTES + 1))
    with pytest.raises(DependencyError, match="more than 1048576 bytes"):
        key_fetch(Fetcher())(KeySource(file.as_uri()))
