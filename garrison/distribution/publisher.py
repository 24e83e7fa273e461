"""What publishers do in Redis: put a bundle there, announce it, go back to an older one, look around."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import redis
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from garrison.distribution.announcement import Action, Announcement, Trust, seal, unseal, unverified
from garrison.distribution.bundle import VERSION_LENGTH, digest
from garrison.distribution.channel import Channel, Report, parse_report
from garrison.distribution.refusal import RefusalError
from garrison.errors import DependencyError, RequestError

DEFAULT_KEEP = 10
_ATTEMPTS = 10
_MAX_REPLICAS = 10_000


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of a channel's log: what it claims, and why that is not to be believed ("": it is)."""

    announcement: Announcement | None
    doubt: str


class Publisher:
    """One channel, seen by who publishes on it. `trust` says whose announcements count as ours."""

    def __init__(self, client: redis.Redis, trust: Trust) -> None:
        # Commands of this client are typed for blocking and asyncio at once.
        self._client: Any = client
        self._trust = trust
        self._channel = Channel(trust.channel)

    def publish(
        self, bundle: bytes, key: Ed25519PrivateKey | None, now_ms: int, keep: int = DEFAULT_KEEP
    ) -> Announcement:
        """Store `bundle` and announce it, in one step; keep the bundles of the last `keep` announcements.

        Raises:
            DependencyError: Redis does not answer, or others publish without pause.

        """
        name = digest(bundle)

        def decide(_: Sequence[Entry]) -> tuple[Action, str, int]:
            return Action.PUBLISH, name, len(bundle)

        return self._announce(decide, key, now_ms, bundle, keep)

    def rollback(self, version: str | None, key: Ed25519PrivateKey | None, now_ms: int) -> Announcement:
        """Announce an older bundle again: the one called `version`, or the one before the current one.

        Raises:
            RequestError: there is no such bundle.
            DependencyError: Redis does not answer, or others publish without pause.

        """

        def decide(log: Sequence[Entry]) -> tuple[Action, str, int]:
            target = _find(log, version) if version else _before(log)
            if self._client.strlen(self._channel.bundle(target.bundle)) != target.size:
                raise RequestError(f"the bundle of version `{target.version}` is not in Redis any more")
            return Action.ROLLBACK, target.bundle, target.size

        return self._announce(decide, key, now_ms)

    def history(self) -> list[Entry]:
        """Return the log, the newest first. An entry that holds no announcement is in it with the reason.

        Raises:
            DependencyError: Redis does not answer.

        """
        with _translated():
            return self._read(self._client.lrange(self._channel.log, 0, -1))

    def current(self) -> Entry | None:
        """Return what replicas find now; None when nothing was ever published.

        Raises:
            DependencyError: Redis does not answer.

        """
        with _translated():
            sealed = self._client.get(self._channel.current)
        return self._read([sealed])[0] if sealed else None

    def replicas(self) -> list[Report]:
        """Return what the replicas say of themselves, by name; those that are gone are not in it.

        Raises:
            DependencyError: Redis does not answer.

        """
        with _translated():
            names = self._client.zrange(self._channel.replicas, 0, _MAX_REPLICAS - 1)
            keys = [self._channel.replica(name.decode("utf-8", "replace")) for name in names]
            found = self._client.mget(keys) if keys else []
        reports = [parse_report(data) for data in found if data]
        return sorted((report for report in reports if report), key=lambda report: report.replica)

    def _read(self, log: Iterable[bytes]) -> list[Entry]:
        entries = []
        for sealed in log:
            try:
                entries.append(Entry(unseal(sealed, self._trust), ""))
            except RefusalError as refused:
                entries.append(Entry(unverified(sealed), str(refused)))
        return entries

    def _announce(
        self,
        decide: Callable[[Sequence[Entry]], tuple[Action, str, int]],
        key: Ed25519PrivateKey | None,
        now_ms: int,
        bundle: bytes | None = None,
        keep: int = 0,
    ) -> Announcement:
        names = self._channel
        with _translated():
            for _ in range(_ATTEMPTS):
                with self._client.pipeline() as step:
                    # Whoever announces between here and `execute` makes this attempt void.
                    step.watch(names.current, names.log)
                    sealed_log = step.lrange(names.log, 0, -1)
                    current = step.get(names.current)
                    log = self._read(sealed_log)
                    action, name, size = decide(log)
                    known = [*log, *self._read([current] if current else [])]
                    announcement = Announcement(
                        action, name, names.name, now_ms, _next_sequence(known, now_ms), size
                    )
                    sealed = seal(announcement, key)
                    step.multi()
                    step.set(names.current, sealed)
                    step.lpush(names.log, sealed)
                    if bundle is not None:
                        step.set(names.bundle(name), bundle)
                        step.ltrim(names.log, 0, keep - 1)
                        for old in _unused([sealed, *sealed_log], keep):
                            step.delete(names.bundle(old))
                    step.publish(names.news, announcement.version)
                    try:
                        step.execute()
                    except redis.WatchError:
                        continue
                    return announcement
        raise DependencyError("others publish on this channel at the same time; nothing was announced")


def _believed(log: Iterable[Entry]) -> list[Announcement]:
    """Return the announcements of ours, the newest first, in whatever order somebody put them."""
    found = [entry.announcement for entry in log if entry.announcement and not entry.doubt]
    return sorted(found, key=lambda one: one.sequence, reverse=True)


def _next_sequence(known: Iterable[Entry], now_ms: int) -> int:
    """Return a number above every one that was announced by one of us, even if Redis has lost them all."""
    return max(now_ms, *(one.sequence + 1 for one in _believed(known)), 0)


def _find(log: Sequence[Entry], version: str) -> Announcement:
    if len(version) >= VERSION_LENGTH:
        for one in _believed(log):
            if one.bundle.startswith(version):
                return one
    raise RequestError(f"no version `{version}` is in the history of this channel")


def _before(log: Sequence[Entry]) -> Announcement:
    """Return what was current before the current bundle was last published.

    So rolling back twice goes back two versions, not back and forth.
    """
    if log and log[0].doubt:
        raise RequestError(f"{log[0].doubt}: name the version to go back to")
    believed = _believed(log)
    if believed:
        current = believed[0].bundle
        published = (
            index
            for index, one in enumerate(believed)
            if one.bundle == current and one.action is Action.PUBLISH
        )
        for one in believed[next(published, 0) + 1 :]:
            if one.bundle != current:
                return one
    raise RequestError("the history of this channel holds no version before the current one")


def _unused(sealed: Sequence[bytes], keep: int) -> Iterator[str]:
    """Yield the bundles that only those announcements name that are dropped from the log."""
    kept, dropped = [
        {one.bundle for one in map(unverified, part) if one is not None}
        for part in (sealed[:keep], sealed[keep:])
    ]
    yield from sorted(dropped - kept)


@contextmanager
def _translated() -> Iterator[None]:
    """Turn what the Redis client raises into DependencyError."""
    try:
        yield
    except (redis.RedisError, OSError) as error:
        raise DependencyError(f"Redis: {' '.join(str(error).split())}") from error
