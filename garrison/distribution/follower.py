"""A replica's side: hear of announcements, look, check everything, hand over, tell how it went.

What is said on the channel is only a hint to look at once; what counts is the announcement that is stored.
Looking every few seconds as well makes lost messages harmless.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import redis
import redis.asyncio
import structlog

from garrison.distribution.announcement import MAX_ANNOUNCEMENT_BYTES, Announcement, Trust, unseal
from garrison.distribution.bundle import BundleFile, digest, unpack
from garrison.distribution.cache import DiskCache
from garrison.distribution.channel import Channel, Report, shorten
from garrison.distribution.refusal import Refusal, RefusalError
from garrison.errors import ConfigError
from garrison.pauses import give_or_take, next_pause

log = structlog.get_logger()

# So large a piece is read without keeping the event loop from answering calls.
_PIECE_BYTES = 1024 * 1024
# Whoever may publish could make us look all the time: no more often than this.
_REST_SECONDS = 0.05
_FIRST_PAUSE_SECONDS = 0.1
_MAX_PAUSE_SECONDS = 10.0
_REPORTS_PER_LIFE = 3
# A server that starts waits for its first look: longer than it takes to find that nobody answers.
_ATTEMPT_SECONDS = 5.0
_DAY_SECONDS = 86_400

# Puts files in force and returns the version of their snapshot.
Install = Callable[[Sequence[BundleFile]], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Followed:
    """What a follower is told: whom to believe, how much to take, how often to look (seconds), its name."""

    trust: Trust
    replica: str
    max_bundle_bytes: int
    poll_seconds: float


class Follower:
    """Follows one channel with `run`, until that is cancelled.

    `install` gets the files of a bundle that is in order; it returns the version of what it put in force, or
    raises ConfigError and leaves what was in force. `clock` is the time in seconds since 1970, `jitter` a
    random number from 0 to 1. `results` counts bundles by what became of them.
    """

    def __init__(
        self,
        followed: Followed,
        connect: Callable[[], redis.asyncio.Redis],
        install: Install,
        cache: DiskCache | None,
        *,
        clock: Callable[[], float],
        jitter: Callable[[], float],
    ) -> None:
        self._followed = followed
        self._channel = Channel(followed.trust.channel)
        self._connect = connect
        self._install = install
        self._cache = cache
        self._clock = clock
        self._jitter = jitter
        self.results: Counter[str] = Counter({"ok": 0})
        self.connected = False
        self.in_force: Announcement | None = None
        self._attempted = asyncio.Event()
        self._sealed = b""
        self._settled = b""
        self._newest = (-1, b"")
        self._snapshot = ""
        self._since = 0.0
        self._error = ""
        self._reported: tuple[object, float] = (None, 0.0)

    async def restore(self) -> None:
        """Put the bundle in force that is remembered on disk, if it is there and still to be trusted."""
        if self._cache is None:
            return
        try:
            sealed = await asyncio.to_thread(self._cache.announcement)
            if sealed is None:
                return
            announcement = self._believe(sealed)
            bundle = await asyncio.to_thread(self._cache.bundle, announcement.bundle, announcement.size)
            await self._use(announcement, sealed, await asyncio.to_thread(_files, [bundle], announcement))
        except RefusalError as refused:
            self._refuse(refused, where="cache")

    async def attempt(self) -> None:
        """Wait until `run` has looked once, or found nobody, but not for long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_ATTEMPT_SECONDS):
                await self._attempted.wait()

    async def run(self) -> None:
        """Follow the channel; come back by oneself whenever Redis was away."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                async with self._connect() as client:
                    await self._follow(client)
            except (redis.RedisError, OSError) as error:
                if self.connected:
                    pause = _FIRST_PAUSE_SECONDS
                if self.connected or not self._attempted.is_set():
                    log.warning("distribution_lost", error=shorten(str(error)), in_force=self._version())
                self.connected = False
                self._attempted.set()
            except Exception:
                log.exception("distribution_failed", in_force=self._version())
                self.connected = False
                self._attempted.set()
            _raise_if_cancelled()
            # Replicas that lost the same Redis at one moment must not all come back at one moment.
            await asyncio.sleep(give_or_take(pause, 0.5, self._jitter()))
            pause = next_pause(pause, _FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS)

    async def _follow(self, client: Any) -> None:
        async with client.pubsub(ignore_subscribe_messages=True) as news:
            # First listen, then look: what is announced in between is heard.
            await news.subscribe(self._channel.news)
            while True:
                await self._look(client)
                await self._report(client)
                if not self.connected:
                    log.info("distribution_followed", channel=self._channel.name, in_force=self._version())
                self.connected = True
                self._attempted.set()
                await asyncio.sleep(_REST_SECONDS)
                await news.get_message(timeout=self._followed.poll_seconds)
                _raise_if_cancelled()

    async def _look(self, client: Any) -> None:
        # One byte more than may be: enough to refuse it.
        sealed: bytes = await client.getrange(self._channel.current, 0, MAX_ANNOUNCEMENT_BYTES)
        if not sealed or sealed == self._settled:
            return
        try:
            if sealed != self._sealed:
                await self._take(client, sealed)
            self._error = ""
        except RefusalError as refused:
            # A bundle that is missing may still come: the announcement is looked at again.
            self._settled = b"" if refused.code is Refusal.MISSING else sealed
            self._refuse(refused, where="channel")
        else:
            self._settled = sealed

    async def _take(self, client: Any, sealed: bytes) -> None:
        announcement = self._believe(sealed)
        if self.in_force is not None and announcement.bundle == self.in_force.bundle:
            await self._use(announcement, sealed, None)
            await self._remember(announcement, sealed, None)
            return
        pieces = await self._fetch(client, announcement)
        await self._use(announcement, sealed, await asyncio.to_thread(_files, pieces, announcement))
        await self._remember(announcement, sealed, pieces)

    def _believe(self, sealed: bytes) -> Announcement:
        """Return the announcement if it is ours, newer than every other one, and not too large."""
        announcement = unseal(sealed, self._followed.trust)
        newest, seen = self._newest
        if announcement.sequence < newest or (announcement.sequence == newest and sealed != seen):
            message = f"sequence {announcement.sequence} is not above {newest}: an old announcement again"
            raise RefusalError(Refusal.REPLAYED, message)
        self._newest = (announcement.sequence, sealed)
        if announcement.size > self._followed.max_bundle_bytes:
            most = self._followed.max_bundle_bytes
            raise RefusalError(
                Refusal.OVERSIZE, f"the bundle has {announcement.size} bytes, {most} are taken"
            )
        return announcement

    async def _fetch(self, client: Any, announcement: Announcement) -> list[bytes]:
        """Return the bundle in pieces, of the size that was announced."""
        key = self._channel.bundle(announcement.bundle)
        try:
            stored = await client.strlen(key)
        except redis.ResponseError as error:
            raise RefusalError(
                Refusal.ALTERED, f"the bundle cannot be read: {shorten(str(error))}"
            ) from error
        if stored != announcement.size:
            if stored == 0:
                raise RefusalError(Refusal.MISSING, f"the bundle {announcement.version} is not in Redis")
            raise RefusalError(Refusal.ALTERED, "the bundle has not the size that was announced")
        return [
            await client.getrange(key, start, min(start + _PIECE_BYTES, stored) - 1)
            for start in range(0, stored, _PIECE_BYTES)
        ]

    async def _use(
        self, announcement: Announcement, sealed: bytes, files: Sequence[BundleFile] | None
    ) -> None:
        """Put `files` in force; None: they are, and were only announced once more."""
        if files is not None:
            try:
                self._snapshot = await self._install(files)
            except ConfigError as error:
                first = str(error.diagnostics[0]) if error.diagnostics else "refused"
                raise RefusalError(Refusal.POLICIES, first) from error
            except Exception as error:
                log.exception("bundle_failed", version=announcement.version)
                raise RefusalError(Refusal.INTERNAL, f"internal error: {type(error).__name__}") from error
            self._since = self._clock()
        self.in_force, self._sealed = announcement, sealed
        self._error = ""
        self.results["ok"] += 1
        log.info(
            "bundle_in_force",
            version=announcement.version,
            sequence=announcement.sequence,
            action=announcement.action.value,
            snapshot=self._snapshot,
        )

    async def _remember(
        self, announcement: Announcement, sealed: bytes, pieces: Sequence[bytes] | None
    ) -> None:
        """Save what is in force; for a bundle that is saved already the newer announcement counts as well."""
        if self._cache is None:
            return
        try:
            bundle = None if pieces is None else b"".join(pieces)
            await asyncio.to_thread(self._cache.save, sealed, announcement.bundle, bundle)
        except OSError as error:
            log.warning("bundle_not_remembered", error=str(error))

    def _refuse(self, refused: RefusalError, where: str) -> None:
        text = f"{refused.code.value}: {refused}"
        if text != self._error:
            self.results[refused.code.value] += 1
            log.error(
                "bundle_refused",
                code=refused.code.value,
                error=str(refused),
                where=where,
                in_force=self._version(),
            )
        self._error = text

    async def _report(self, client: Any) -> None:
        """Tell how we are; that a replica may not write is no reason not to follow."""
        now = self._clock()
        state = (self.in_force, self._error)
        if state == self._reported[0] and 0 <= now - self._reported[1] < self._followed.poll_seconds:
            return
        self._reported = (state, now)
        report = Report(
            replica=self._followed.replica,
            bundle=self._version(),
            snapshot=self._snapshot,
            sequence=self.in_force.sequence if self.in_force else 0,
            since=self._since,
            seen=now,
            error=shorten(self._error),
        )
        life = int(self._followed.poll_seconds * _REPORTS_PER_LIFE) + 10
        names = self._channel
        async with client.pipeline(transaction=False) as step:
            step.set(names.replica(report.replica), report.encode(), ex=life)
            step.zadd(names.replicas, {report.replica: now})
            step.zremrangebyscore(names.replicas, "-inf", now - _DAY_SECONDS)
            with suppress(redis.ResponseError):
                await step.execute()

    def _version(self) -> str:
        return self.in_force.version if self.in_force else ""


def _raise_if_cancelled() -> None:
    """Make up for what the Redis client may do: take a cancellation for the end of a timeout of its own."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _files(pieces: Sequence[bytes], announcement: Announcement) -> tuple[BundleFile, ...]:
    """Return the files of the bundle if it is the one that was announced; runs in a thread."""
    bundle = b"".join(pieces)
    if digest(bundle) != announcement.bundle:
        raise RefusalError(Refusal.ALTERED, "the bundle is not the one that was announced")
    return unpack(bundle)
