"""Publishers and followers over a real Valkey: what is taken, what is refused, what happens in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from redis.exceptions import NoPermissionError
from support.valkey import Valkey

from garrison.distribution.announcement import Action, Announcement, Trust, seal
from garrison.distribution.bundle import BundleFile, digest, pack
from garrison.distribution.cache import DiskCache
from garrison.distribution.channel import Channel, Report, parse_report
from garrison.distribution.follower import Followed, Follower
from garrison.distribution.keys import PublicKey
from garrison.distribution.publisher import Publisher
from garrison.documents import Diagnostic, Position
from garrison.errors import ConfigError, DependencyError, RequestError
from garrison.redis_address import RedisAddress

PATIENCE_SECONDS = 20
KEY = Ed25519PrivateKey.from_private_bytes(b"\1" * 32)
STRANGER = Ed25519PrivateKey.from_private_bytes(b"\2" * 32)
TRUST = Trust("default", [PublicKey.of(KEY.public_key())])
NAMES = Channel("default")
NOW_MS = 1_800_000_000_000
A, B, C = (pack([BundleFile("policy.yaml", text)]) for text in (b"a", b"b", b"c"))
BROKEN = pack([BundleFile("policy.yaml", b"broken")])


@pytest.fixture
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """Run a server for one test."""
    with Valkey(tmp_path_factory.mktemp("v")) as server:
        yield server


@pytest.fixture
def redis(valkey: Valkey) -> Iterator[Any]:
    """Return a client that does what attackers would."""
    client = valkey.client()
    yield client
    client.close()


@pytest.fixture
def publisher(redis: Any) -> Publisher:
    """Return somebody who may publish."""
    return Publisher(redis, TRUST)


class Replica:
    """A follower and what it put in force; a bundle whose file says `broken` is refused."""

    def __init__(self, valkey: Valkey, *, name: str = "one", cache: Path | None = None, **more: Any) -> None:
        self.installed: list[bytes] = []
        followed = Followed(more.get("trust", TRUST), name, more.get("max_bundle_bytes", 10_000), 0.1)
        address = RedisAddress.parse(valkey.url)
        if "username" in more:
            address = replace(address, username=more["username"], password="any")
        self.follower = Follower(
            followed,
            address.connect_async,
            self._install,
            DiskCache(cache, followed.trust.channel) if cache else None,
            clock=lambda: 1_800_000_000.0,
            jitter=lambda: 0.0,
        )

    async def _install(self, files: Sequence[BundleFile]) -> str:
        content = files[0].content
        if content == b"broken":
            raise ConfigError([Diagnostic("bundle:policy.yaml", Position(1, 1), (), "wrong", "it is broken")])
        self.installed.append(content)
        return f"snapshot-{content.decode()}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Follower]:
        """Follow for the length of a block."""
        await self.follower.restore()
        task = asyncio.create_task(self.follower.run())
        try:
            await self.follower.attempt()
            yield self.follower
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def until(holds: Callable[[], object]) -> None:
    """Wait until something holds; fail when it does not in a long time."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not holds():  # noqa: ASYNC110 - it may hold in another process
            await asyncio.sleep(0.005)


def announce(redis: Any, sealed: bytes, bundle: bytes | None = None) -> None:
    """Write what somebody with access to Redis, but without a key, can write."""
    if bundle is not None:
        redis.set(NAMES.bundle(digest(bundle)), bundle)
    redis.set(NAMES.current, sealed)
    redis.publish(NAMES.news, b"look")


def announcement_of(bundle: bytes, sequence: int = NOW_MS) -> Announcement:
    """Return the announcement of a bundle."""
    return Announcement(Action.PUBLISH, digest(bundle), "default", NOW_MS, sequence, len(bundle))


def test_a_replica_follows(valkey: Valkey, publisher: Publisher) -> None:
    """What is there at the start and what is published later is put in force, each once, and reported."""

    async def scenario() -> None:
        publisher.publish(A, KEY, NOW_MS)
        replica = Replica(valkey)
        async with replica.running():
            assert replica.installed == [b"a"]
            publisher.publish(B, KEY, NOW_MS)
            await until(lambda: replica.installed == [b"a", b"b"])
            await until(lambda: publisher.replicas()[0].bundle == digest(B)[:12])
        report = publisher.replicas()[0]
        assert (report.replica, report.snapshot, report.error) == ("one", "snapshot-b", "")
        assert report.since == 1_800_000_000.0

    asyncio.run(scenario())


def test_two_replicas_converge_and_roll_back(valkey: Valkey, publisher: Publisher) -> None:
    """Both have each version, also the one that started later; one call takes both back."""

    async def scenario() -> None:
        publisher.publish(A, KEY, NOW_MS)
        one, two = Replica(valkey, name="one"), Replica(valkey, name="two")
        async with one.running():
            publisher.publish(B, KEY, NOW_MS)
            await until(lambda: one.installed == [b"a", b"b"])
            async with two.running():
                assert two.installed == [b"b"]
                done = publisher.rollback(None, KEY, NOW_MS)
                assert (done.action, done.bundle) == (Action.ROLLBACK, digest(A))
                await until(lambda: one.installed == [b"a", b"b", b"a"])
                await until(lambda: two.installed == [b"b", b"a"])
                await until(lambda: {one.bundle for one in publisher.replicas()} == {digest(A)[:12]})

    asyncio.run(scenario())


def test_lost_messages_do_not_matter(valkey: Valkey, redis: Any) -> None:
    """A bundle that nobody told of is found by looking."""

    async def scenario() -> None:
        replica = Replica(valkey)
        async with replica.running():
            redis.set(NAMES.bundle(digest(A)), A)
            redis.set(NAMES.current, seal(announcement_of(A), KEY))
            await until(lambda: replica.installed == [b"a"])

    asyncio.run(scenario())


def refused(valkey: Valkey, publisher: Publisher, write: Callable[[], object], **more: Any) -> Report:
    """Let `write` happen while A is in force; return the report of a replica that refused it."""
    found: list[Report] = []

    async def scenario() -> None:
        publisher.publish(A, KEY, NOW_MS)
        replica = Replica(valkey, **more)
        async with replica.running() as follower:
            write()
            await until(lambda: publisher.replicas()[0].error)
            found.append(publisher.replicas()[0])
            assert replica.installed == [b"a"]
            assert follower.connected
            # And it is none the worse for it.
            publisher.publish(C, KEY, NOW_MS + 10_000)
            await until(lambda: replica.installed == [b"a", b"c"])
            await until(lambda: not publisher.replicas()[0].error)
        assert found[0].error.partition(":")[0] in follower.results

    asyncio.run(scenario())
    return found[0]


def test_a_strangers_announcement_is_refused(valkey: Valkey, redis: Any, publisher: Publisher) -> None:
    """Access to Redis is not enough to change policies: neither a key of one's own helps, nor none."""
    for key in (STRANGER, None):
        report = refused(
            valkey,
            publisher,
            lambda key=key: announce(redis, seal(announcement_of(B, NOW_MS + 5), key), B),  # type: ignore[misc]
        )
        assert report.error.startswith("signature: ")
        assert report.bundle == digest(A)[:12]
        redis.flushall()


def test_a_tampered_bundle_is_refused(valkey: Valkey, redis: Any, publisher: Publisher) -> None:
    """The announcement is good, the bundle under its name is another one, of the same length or not."""

    def write(content: bytes) -> None:
        redis.set(NAMES.bundle(digest(B)), content)
        announce(redis, seal(announcement_of(B, NOW_MS + 5), KEY))

    assert refused(valkey, publisher, lambda: write(C)).error.startswith("altered: ")
    redis.flushall()
    assert refused(valkey, publisher, lambda: write(B + b"x")).error.startswith("altered: ")


def test_a_bundle_of_another_type_is_refused(valkey: Valkey, redis: Any, publisher: Publisher) -> None:
    """A list in the place of a bundle is an error of that bundle, not of the connection."""

    def write() -> None:
        redis.lpush(NAMES.bundle(digest(B)), b"x")
        announce(redis, seal(announcement_of(B, NOW_MS + 5), KEY))

    assert refused(valkey, publisher, write).error.startswith("altered: ")


def test_an_old_announcement_is_refused(valkey: Valkey, redis: Any, publisher: Publisher) -> None:
    """What was once signed cannot be passed off as new, by whoever kept it."""

    async def scenario() -> None:
        publisher.publish(A, KEY, NOW_MS)
        old = redis.get(NAMES.current)
        publisher.publish(B, KEY, NOW_MS)
        replica = Replica(valkey)
        async with replica.running() as follower:
            assert replica.installed == [b"b"]
            announce(redis, old, A)
            await until(lambda: follower.results["replayed"] == 1)
            await until(lambda: publisher.replicas()[0].error.startswith("replayed: "))
            # Of the same sequence, but not the same: neither.
            current = replace(announcement_of(A, follower.in_force.sequence))  # type: ignore[union-attr]
            announce(redis, seal(current, KEY), A)
            await until(lambda: str(current.sequence) in publisher.replicas()[0].error)
            assert replica.installed == [b"b"]

    asyncio.run(scenario())


def test_an_oversized_bundle_is_not_fetched(valkey: Valkey, redis: Any, publisher: Publisher) -> None:
    """The announced size is looked at before the bundle is; so is that of the announcement."""
    large = pack([BundleFile("policy.yaml", b"x" * 10_001)])
    report = refused(valkey, publisher, lambda: publisher.publish(large, KEY, NOW_MS + 5))
    assert report.error.startswith("oversize: ")
    redis.flushall()
    report = refused(valkey, publisher, lambda: announce(redis, b"x" * 10_000))
    assert report.error.startswith("oversize: ")


def test_a_bundle_that_comes_late_is_taken(valkey: Valkey, redis: Any) -> None:
    """An announcement whose bundle is not there yet is looked at again."""

    async def scenario() -> None:
        replica = Replica(valkey)
        async with replica.running() as follower:
            announce(redis, seal(announcement_of(A), KEY))
            await until(lambda: follower.results["missing"] == 1)
            redis.set(NAMES.bundle(digest(A)), A)
            await until(lambda: replica.installed == [b"a"])

    asyncio.run(scenario())


def test_policies_that_do_not_load_leave_the_old_ones(valkey: Valkey, publisher: Publisher) -> None:
    """A bundle that this replica cannot compile is refused once, with the first problem in the report."""
    report = refused(valkey, publisher, lambda: publisher.publish(BROKEN, KEY, NOW_MS + 5))
    assert report.error == "policies: bundle:policy.yaml:1:1: it is broken [wrong]"


def test_redis_goes_and_comes_back_empty(valkey: Valkey, publisher: Publisher, redis: Any) -> None:
    """What is in force stays; the replica comes back by itself; the next publication counts as newer."""

    async def scenario() -> None:
        publisher.publish(A, KEY, NOW_MS)
        replica = Replica(valkey)
        async with replica.running() as follower:
            valkey.kill()
            await until(lambda: not follower.connected)
            assert follower.in_force is not None
            valkey.start()
            await until(lambda: follower.connected)
            assert replica.installed == [b"a"]
            redis.close()
            publisher.publish(B, KEY, NOW_MS + 1)
            await until(lambda: replica.installed == [b"a", b"b"])

    asyncio.run(scenario())


def test_the_cache_stands_in_for_redis(valkey: Valkey, publisher: Publisher, tmp_path: Path) -> None:
    """A restart without Redis starts with the last good bundle, and still knows what is old."""

    async def scenario() -> None:
        publisher.publish(A, KEY, NOW_MS)
        async with Replica(valkey, cache=tmp_path).running():
            pass
        valkey.kill()
        replica = Replica(valkey, cache=tmp_path)
        async with replica.running() as follower:
            assert replica.installed == [b"a"]
            assert not follower.connected
            valkey.start()
            await until(lambda: follower.connected)
            client = valkey.client()
            announce(client, seal(announcement_of(B, NOW_MS - 1), KEY), B)
            client.close()
            await until(lambda: follower.results["replayed"] == 1)
            assert replica.installed == [b"a"]

    asyncio.run(scenario())


def test_the_cache_knows_of_announcements_of_the_same_bundle(
    valkey: Valkey, redis: Any, publisher: Publisher, tmp_path: Path
) -> None:
    """A, then B unseen, then A again: after a restart, B is still old."""

    async def scenario() -> None:
        publisher.publish(A, KEY, NOW_MS)
        async with Replica(valkey, cache=tmp_path).running():
            pass
        publisher.publish(B, KEY, NOW_MS)
        old = redis.get(NAMES.current)
        publisher.publish(A, KEY, NOW_MS)
        async with Replica(valkey, cache=tmp_path).running():
            pass
        announce(redis, old)
        replica = Replica(valkey, cache=tmp_path)
        async with replica.running() as follower:
            assert follower.results["replayed"] == 1
            assert replica.installed == [b"a"]

    asyncio.run(scenario())


@pytest.mark.parametrize("harm", ["bundle", "announcement", "gone", "writable", "stranger"])
def test_a_spoilt_cache_is_not_used(
    valkey: Valkey, publisher: Publisher, redis: Any, tmp_path: Path, harm: str
) -> None:
    """The disk is believed no more than Redis; without a cache that can be believed, nothing is in force."""

    async def scenario() -> None:
        publisher.publish(A, KEY, NOW_MS)
        async with Replica(valkey, cache=tmp_path).running():
            pass
        redis.flushall()
        announcement = tmp_path / "default.announcement"
        bundle = tmp_path / f"default.bundle.{digest(A)}"
        if harm == "bundle":
            bundle.write_bytes(B)
        elif harm == "announcement":
            announcement.write_bytes(seal(announcement_of(A), STRANGER))
        elif harm == "gone":
            bundle.unlink()
        elif harm == "writable":
            announcement.chmod(0o666)
        replica = Replica(
            valkey,
            cache=tmp_path,
            trust=Trust("default", [PublicKey.of(STRANGER.public_key())]) if harm == "stranger" else TRUST,
        )
        async with replica.running() as follower:
            assert replica.installed == []
            assert follower.in_force is None
            if harm != "stranger":
                publisher.publish(A, KEY, NOW_MS)
                await until(lambda: replica.installed == [b"a"])

    asyncio.run(scenario())


def test_a_cache_that_cannot_be_written_costs_nothing(
    valkey: Valkey, publisher: Publisher, tmp_path: Path
) -> None:
    """The bundle is in force all the same."""

    async def scenario() -> None:
        publisher.publish(A, KEY, NOW_MS)
        file = tmp_path / "file"
        file.write_text("")
        replica = Replica(valkey, cache=file)
        async with replica.running():
            assert replica.installed == [b"a"]

    asyncio.run(scenario())


def test_unsigned_where_it_is_asked_for(valkey: Valkey, redis: Any) -> None:
    """On a channel that believes the connection, sequence numbers and hashes count as ever."""

    async def scenario() -> None:
        trust = Trust("default", (), True)
        publisher = Publisher(redis, trust)
        publisher.publish(A, None, NOW_MS)
        replica = Replica(valkey, trust=trust)
        async with replica.running() as follower:
            assert replica.installed == [b"a"]
            announce(redis, seal(announcement_of(B, NOW_MS - 1), None), B)
            await until(lambda: follower.results["replayed"] == 1)

    asyncio.run(scenario())


def test_replicas_may_have_no_right_to_write(valkey: Valkey, publisher: Publisher, redis: Any) -> None:
    """Reading the channel is all that following takes; then there are no reports."""
    rights = f"on nopass resetchannels &{NAMES.news} %R~{NAMES.prefix}* +getrange +strlen +subscribe"
    redis.execute_command("ACL", "SETUSER", "replica", *rights.split())

    async def scenario() -> None:
        publisher.publish(A, KEY, NOW_MS)
        replica = Replica(valkey, username="replica")
        async with replica.running() as follower:
            assert replica.installed == [b"a"]
            assert follower.connected
        assert publisher.replicas() == []

    asyncio.run(scenario())


def test_the_rights_in_the_documentation_are_enough(valkey: Valkey, redis: Any) -> None:
    """Both users of the how-to can do their part, and the replica's not the publisher's."""
    page = (Path(__file__).parents[2] / "docs/howto/many-replicas.md").read_text()
    lines = [line.split() for line in page.splitlines() if line.startswith("ACL SETUSER")]
    assert [line[2] for line in lines] == ["replica", "publisher"]
    for line in lines:
        redis.execute_command(*(word.replace(">PASSWORD", ">any") for word in line))

    async def scenario() -> None:
        address = replace(RedisAddress.parse(valkey.url), username="publisher", password="any")
        with address.connect() as client:
            publisher = Publisher(client, TRUST)
            publisher.publish(A, KEY, NOW_MS)
            publisher.publish(B, KEY, NOW_MS)
            publisher.rollback(None, KEY, NOW_MS)
            for _ in range(2):
                publisher.publish(A, KEY, NOW_MS, keep=2)
            replica = Replica(valkey, username="replica")
            async with replica.running():
                assert replica.installed == [b"a"]
                await until(lambda: [report.bundle for report in publisher.replicas()] == [digest(A)[:12]])
        with replace(address, username="replica").connect() as client:
            for attempt in (
                lambda: Publisher(client, TRUST).publish(B, KEY, NOW_MS),
                lambda: client.set(NAMES.bundle(digest(A)), b""),
                lambda: client.set(NAMES.current, b""),
                lambda: client.publish(NAMES.news, b""),
            ):
                with pytest.raises((DependencyError, NoPermissionError)):
                    attempt()

    asyncio.run(scenario())


# ------------------------------------------------------------------------------------------- publishing


def test_sequences_grow_whatever_the_clock_says(publisher: Publisher, redis: Any) -> None:
    """Also when the clock stands still or goes back, and when Redis has lost everything."""
    sequences = [publisher.publish(A, KEY, now).sequence for now in (NOW_MS, NOW_MS, NOW_MS - 50_000)]
    assert sequences == [NOW_MS, NOW_MS + 1, NOW_MS + 2]
    redis.flushall()
    assert publisher.publish(A, KEY, NOW_MS + 60_000).sequence == NOW_MS + 60_000


def test_a_strangers_sequence_does_not_count(publisher: Publisher, redis: Any) -> None:
    """Nobody can use up the numbers without a key."""
    sealed = seal(announcement_of(A, 2**53 - 1), STRANGER)
    announce(redis, sealed, A)
    redis.lpush(NAMES.log, sealed)
    assert publisher.publish(B, KEY, NOW_MS).sequence == NOW_MS
    assert [entry.doubt != "" for entry in publisher.history()] == [False, True]


def test_rolling_back_goes_further_back_each_time(publisher: Publisher) -> None:
    """The one before the current one is the one before its publication, not the one that was just left."""
    for bundle in (A, B, C):
        publisher.publish(bundle, KEY, NOW_MS)
    assert publisher.rollback(None, KEY, NOW_MS).bundle == digest(B)
    assert publisher.rollback(None, KEY, NOW_MS).bundle == digest(A)
    with pytest.raises(RequestError, match="no version before"):
        publisher.rollback(None, KEY, NOW_MS)
    assert publisher.rollback(digest(C)[:12], KEY, NOW_MS).bundle == digest(C)
    assert [entry.announcement.bundle for entry in publisher.history() if entry.announcement] == [
        digest(bundle) for bundle in (C, A, B, C, B, A)
    ]


def test_a_publication_after_a_rollback_goes_back_to_what_that_left(publisher: Publisher) -> None:
    """A, B, back to A, C: the one before C is A."""
    publisher.publish(A, KEY, NOW_MS)
    publisher.publish(B, KEY, NOW_MS)
    publisher.rollback(None, KEY, NOW_MS)
    publisher.publish(C, KEY, NOW_MS)
    assert publisher.rollback(None, KEY, NOW_MS).bundle == digest(A)


def test_rolling_back_to_nothing(publisher: Publisher, redis: Any) -> None:
    """No history, an unknown version, one that is gone, a current one by a stranger: an error, no change."""
    with pytest.raises(RequestError, match="no version before"):
        publisher.rollback(None, KEY, NOW_MS)
    publisher.publish(A, KEY, NOW_MS)
    publisher.publish(B, KEY, NOW_MS)
    for version in ("0" * 12, digest(A)[:4]):
        with pytest.raises(RequestError, match="no version `"):
            publisher.rollback(version, KEY, NOW_MS)
    redis.delete(NAMES.bundle(digest(A)))
    with pytest.raises(RequestError, match="not in Redis any more"):
        publisher.rollback(None, KEY, NOW_MS)
    redis.lpush(NAMES.log, seal(announcement_of(A), STRANGER))
    with pytest.raises(RequestError, match="name the version"):
        publisher.rollback(None, KEY, NOW_MS)
    current = publisher.current()
    assert current is not None
    assert current.announcement is not None
    assert current.announcement.bundle == digest(B)


def test_old_bundles_go(publisher: Publisher, redis: Any) -> None:
    """Bundles of announcements that are not kept are deleted, unless another announcement names them."""
    for bundle in (A, B, A, C):
        publisher.publish(bundle, KEY, NOW_MS, keep=2)
    assert len(publisher.history()) == 2
    assert {key.decode() for key in redis.keys(NAMES.bundle("*"))} == {
        NAMES.bundle(digest(bundle)) for bundle in (A, C)
    }


def test_publishers_at_the_same_moment(valkey: Valkey, publisher: Publisher, redis: Any) -> None:
    """Who comes second does it again: both are in the log, in one order."""
    other = valkey.client()
    meanwhile = [Publisher(other, TRUST)]
    read = publisher._read

    def read_slowly(log: Any) -> Any:
        while meanwhile:
            meanwhile.pop().publish(B, KEY, NOW_MS)
        return read(log)

    publisher._read = read_slowly  # type: ignore[method-assign]
    assert publisher.publish(A, KEY, NOW_MS).sequence == NOW_MS + 1
    other.close()
    found = [entry.announcement.bundle for entry in publisher.history() if entry.announcement]
    assert found == [digest(A), digest(B)]


def test_without_redis_nothing_is_published(valkey: Valkey, publisher: Publisher) -> None:
    """The failure is one of the things Garrison foresees."""
    valkey.kill()
    for attempt in (
        lambda: publisher.publish(A, KEY, NOW_MS),
        publisher.history,
        publisher.current,
        publisher.replicas,
    ):
        with pytest.raises(DependencyError, match="Redis"):
            attempt()


def test_reports_are_for_terminals(publisher: Publisher, redis: Any) -> None:
    """Whoever can write to Redis cannot make a terminal do anything; what is no report is left out."""
    good = Report("two", "b", "s", 1, 2.0, 3.0, "\x1b[2J\nall is well")
    for name, data in {"one": b"[]", "two": good.encode(), "three": b"x" * 5000, "four": b"{}"}.items():
        redis.set(NAMES.replica(name), data)
        redis.zadd(NAMES.replicas, {name: 1})
    assert [report.error for report in publisher.replicas()] == ["?[2J?all is well"]
    assert parse_report(good.encode().replace(b"2.0", b'"x"')) is None
