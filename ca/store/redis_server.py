"""One Redis or Valkey that keeps a ledger: changes that are whole or not made, answers that can be relied on.

How a change is made. The hashes of the audit log's chain are made here, since a script in Redis has no
SHA-256. So a change is built on the head of the log that was seen last, and the script (`commit.lua`) takes
it only if that is still the head and every value it rests on is still there. Whoever loses against somebody
else builds it again; who has lost often gets a turn for itself. Two processes never both succeed on one
head, and so never get one serial number or one token.

What is not known. When a connection breaks, the change may have been made. It is sent again, the same one
on the same head, until it is known: the script makes it once, and says "done" also if it was made before.
After `PATIENCE_SECONDS` the caller is told that the ledger is unavailable. A change that was still under
way may then be made later, for nobody: a certificate is recorded that never left, a token is used up that
opened nothing. Never the other way round.

What can be relied on. Redis keeps what it confirmed if `appendonly` is `yes` and `appendfsync` is `always`,
and throws nothing away if `maxmemory-policy` is `noeviction`. Every new connection looks (`complaints`). A
server that knows less than it has shown before, since it was restored or a replica took over too early, is
not used any more.

Sentinels. They are asked before each connection who the master is, and whenever one fails. A change counts
when `replicas` have it, and those have to be all that may become the master, so a new one has every change
that counts. What was merely seen on the old one may be gone: it was confirmed to nobody.
"""

from __future__ import annotations

import contextlib
import random
import secrets
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

import redis
from redis import exceptions

from ca.audit import AuditEvent, AuditHead, AuditRecord, ClockError, Details
from ca.ledger import LedgerRefusalError, LedgerUnavailableError
from ca.store.sentinels import SentinelPlace, Sentinels
from garrison.documents import Diagnostic, Position
from garrison.errors import ConfigError
from garrison.identity import TrustDomain
from garrison.redis_address import RedisAddress, TlsFiles

# For one change with everything that it takes; servers that restart, or are replaced, are back in less.
PATIENCE_SECONDS = 5.0
ANSWER_SECONDS = 2.0
_REPLICA_MILLISECONDS = 1000
_PAUSE_SECONDS = 0.05
_TURN_PAUSE_SECONDS = 0.002
_LOSSES_BEFORE_TURN = 4
_MAX_REDIRECTS = 5
# Lua's stack has room for some thousands.
_MAX_ARGUMENTS = 1000
# 2: registrations say how long tokens live. What version 1 wrote is read as it is, but a process that knows
# only version 1 could not read what is added: so from the first opening on it is refused.
_VERSION = 2
_OLDER = b"1"
_UPGRADE = """
if redis.call('HGET', KEYS[1], 'version') == ARGV[1] then
    redis.call('HSET', KEYS[1], 'version', ARGV[2])
end
"""
_LOADING = "loading"
_SCRIPT = resources.files("ca.store").joinpath("commit.lua").read_text(encoding="utf-8")
# Nothing was done, and it may pass.
_PASSING = (
    exceptions.AskError,
    exceptions.BusyLoadingError,
    exceptions.ClusterDownError,
    exceptions.MasterDownError,
    exceptions.ReadOnlyError,
    exceptions.TryAgainError,
)
# These are `ConnectionError`s of the client, but trying again changes nothing.
_FINAL = (exceptions.AuthenticationError, exceptions.AuthorizationError)

_Result = TypeVar("_Result")
Text = str | bytes | int
# Which server is asked, by a number that rises with every other one, and the last record that it showed.
_Seen = tuple[int, AuditHead]
Opening = Literal["usual", "existing", "empty"]


class Safety(StrEnum):
    """What to do about a Redis that may lose or give away what is in it."""

    REQUIRE = "require"
    WARN = "warn"


@dataclass(frozen=True, slots=True)
class RedisPlace:
    """Where a ledger is in Redis: `ca` are the roots for `rediss://` (PEM), the system's by default.

    A change counts when `replicas` of the server have it too, as far as they have confirmed it. `certificate`
    and `private_key` are this client's own. With `sentinels`, `address` is where one of them is, and how to
    be let in by the server.
    """

    address: RedisAddress
    ca: Path | None = None
    safety: Safety = Safety.REQUIRE
    replicas: int = 0
    certificate: Path | None = None
    private_key: Path | None = None
    sentinels: SentinelPlace | None = None

    @property
    def tls(self) -> TlsFiles:
        """The files for `rediss://`."""
        return TlsFiles(self.ca, self.certificate, self.private_key)


@dataclass(frozen=True, slots=True)
class Key:
    """A key of the ledger, and the type of its value."""

    name: str
    type: str


class Change:
    """What a caller wants changed, built on `head`: what has to hold, what is written, what the log says."""

    def __init__(self, head: AuditHead) -> None:
        self.base = head
        self.head = head
        self.refusals: list[LedgerRefusalError | None] = []
        self._expectations: list[tuple[Key, Text, bytes | None]] = []
        self._records: list[AuditRecord] = []
        self._writes: dict[tuple[str, Key], list[Text]] = {}

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not self._records and not self._writes

    @property
    def next_sequence(self) -> int:
        """The sequence of the next record: a number that no other change has."""
        return self.head.sequence + 1

    def expect(
        self, key: Key, field: Text, value: bytes | None, otherwise: LedgerRefusalError | None = None
    ) -> None:
        """Make the change only if a field of a hash has this value (None: is not there).

        `otherwise` is why it is refused then; without, it is built again from what is there.
        """
        self._expectations.append((key, field, value))
        self.refusals.append(otherwise)

    def record(self, event: AuditEvent, *, now: Any, by: str, details: Details) -> AuditHead:
        """Add a record to the audit log."""
        record = AuditRecord.after(self.head, event, actor=by, details=details, now=now)
        self._records.append(record)
        self.head = record.head
        return self.head

    def put(self, key: Key, field: Text, value: Text) -> None:
        """Set a field of a hash."""
        self._write("HSET", key, field, value)

    def drop(self, key: Key, field: Text) -> None:
        """Remove a field of a hash."""
        self._write("HDEL", key, field)

    def rank(self, key: Key, member: Text, score: int, *, only_up: bool = False) -> None:
        """Put a member into a sorted set; `only_up`: unless it is there with a higher score."""
        self._write("ZADD GT" if only_up else "ZADD", key, score, member)

    def unrank(self, key: Key, member: Text) -> None:
        """Remove a member of a sorted set."""
        self._write("ZREM", key, member)

    def count(self, key: Key, field: Text) -> None:
        """Add one to a field of a hash; once for each change."""
        self._write("HINCRBY", key, field, 1)

    def _write(self, command: str, key: Key, *arguments: Text) -> None:
        self._writes.setdefault((command, key), []).extend(arguments)

    def commands(self) -> Iterator[tuple[Text, ...]]:
        """Yield the commands that write, without what has to hold and without records."""
        return ((command, key.name, *arguments) for command, key, arguments in self._written())

    def _written(self) -> Iterator[tuple[str, Key, list[Text]]]:
        for (words, key), arguments in self._writes.items():
            command, *options = words.split()
            for start in range(0, len(arguments), _MAX_ARGUMENTS):
                yield command, key, [*options, *arguments[start : start + _MAX_ARGUMENTS]]

    def script(self, first: Sequence[Key], attempt: str, *, hungry: bool) -> tuple[list[str], list[Text]]:
        """Return keys and arguments for `commit.lua`."""
        numbers = {key: number for number, key in enumerate(first, start=1)}

        def number_of(key: Key) -> int:
            return numbers.setdefault(key, len(numbers) + 1)

        rest: list[Text] = [len(self._expectations)]
        for key, field, value in self._expectations:
            rest += [number_of(key), field, *(("-", "") if value is None else ("=", value))]
        rest.append(len(self._records))
        for one in self._records:
            rest += [one.previous, one.time, one.event, _bytes(one.actor), one.details, one.hash]
        for command, key, arguments in self._written():
            rest += [command, number_of(key), len(arguments), *arguments]
        types = ",".join(key.type for key in numbers)
        start_of_all: list[Text] = [types, self.base.sequence, self.base.hash, attempt, int(hungry)]
        return [key.name for key in numbers], [*start_of_all, *rest]


class LedgerServer:
    """The server, for one ledger: that of the CA of `trust_domain`. Safe to use from several threads."""

    def __init__(
        self,
        place: RedisPlace,
        trust_domain: TrustDomain,
        warn: Callable[[str], None],
        *,
        opening: Opening = "usual",
        patience_seconds: float = PATIENCE_SECONDS,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        """Connect, and make the ledger if there is none.

        `opening` may be `existing`, which makes none, or `empty`: there must be none, and nobody else can use
        it before `activate`.

        Raises:
            ConfigError: the server may lose what it confirms, or holds something else under these names.
            LedgerUnavailableError: it does not answer.

        """
        # The braces keep all keys in one slot of a Redis Cluster, so that they change together.
        self.trust_domain = trust_domain
        self._prefix = f"garrison:ca:{{{trust_domain}}}:"
        self.state = self.key("state", "hash")
        self.log = self.key("log", "stream")
        self._turn = self.key("turn", "string")
        self._place = place
        self._warn = warn
        self._warned: set[str] = set()
        self._patience_seconds = patience_seconds
        self._answer_seconds = answer_seconds
        self._name = secrets.token_hex(8)
        self._writing = threading.Lock()
        self._heads = threading.Lock()
        # The last record that was seen, and the last one that no successor of the server can lack.
        self._head = self._kept = AuditHead()
        # Rises with every other server.
        self._epoch = 0
        self._closed = False
        self._sentinels: Sentinels | None = None
        addresses = [place.address]
        if place.sentinels is not None:
            addresses += place.sentinels.others
            self._sentinels = Sentinels(addresses, place.sentinels, place.tls)
        # With Sentinels: nobody has said yet, or not since something went wrong, who the master is.
        self._is_lost = self._sentinels is not None
        for address in addresses:
            self._check_address(address)
        self._target = place.address
        self._client = self._connect(place.address)
        try:
            self._open(opening)
        except BaseException:
            self.close()
            raise

    def __str__(self) -> str:
        return str(self._place.address)

    def key(self, name: str, type_: str) -> Key:
        """Return a key of this ledger."""
        return Key(self._prefix + name, type_)

    def close(self) -> None:
        """Close all connections."""
        self._closed = True
        self._client.close()

    def read(self, *commands: Sequence[Text]) -> list[Any]:
        """Return the answers to some commands that read, all as of one moment.

        Raises:
            LedgerUnavailableError: the server does not answer, or has lost what it knew.

        """
        return self._read(commands)[1]

    def read_head(self) -> AuditHead:
        """Return the last record of the log. Raises: as `read`."""
        return self._read(())[0]

    def _read(self, commands: Sequence[Sequence[Text]]) -> tuple[AuditHead, list[Any]]:
        def ask(client: Any, seen: _Seen) -> tuple[_Seen, list[Any]]:
            with client.pipeline(transaction=True) as steps:
                steps.execute_command("HMGET", self.state.name, "version", "sequence", "hash", "time")
                for command in commands:
                    steps.execute_command(*command)
                return seen, steps.execute()

        deadline = time.monotonic() + self._patience_seconds
        seen, ((version, sequence, digest, at), *answers) = self._patiently(ask, deadline)
        if version is None:
            raise LedgerUnavailableError(f"`{self}`: the ledger is gone")
        head = _head_of(sequence, digest, at)
        self._advance(seen, head)
        return head, answers

    def commit(self, decide: Callable[[Change], _Result]) -> _Result:
        """Make the change that `decide` builds, and return what it returned.

        It is called again, with a new change, whenever others were faster; it may `read`.

        Raises:
            LedgerRefusalError: as `decide` raises it, or as the change expects.
            ClockError: see `AuditRecord.after`.
            LedgerUnavailableError: the change was not made, or nobody knows: see the top of this module.

        """
        deadline = time.monotonic() + self._patience_seconds
        if not self._writing.acquire(timeout=self._patience_seconds):
            raise LedgerUnavailableError(f"`{self}`: it is too slow; nothing was changed")
        try:
            losses = 0
            while True:
                change = Change(self._head)
                try:
                    result = decide(change)
                except ClockError:
                    # By the head that was seen last, and somebody may have set that right meanwhile.
                    if self.read_head().sequence == change.base.sequence:
                        raise
                    continue
                if change.is_empty:
                    return result
                seen, answer = self._send(change, deadline, hungry=losses >= _LOSSES_BEFORE_TURN)
                match answer[0]:
                    case b"done":
                        # It may have been made by an attempt before this one: more has been seen since.
                        self._advance((seen[0], change.base), change.head, is_kept=True)
                        return result
                    case b"moved":
                        losses += 1
                        self._advance(seen, _head_of(*answer[1:]))
                    case b"wait":
                        time.sleep(_TURN_PAUSE_SECONDS * (1 + random.random()))  # noqa: S311 - spreads load
                    case _:
                        refusal = change.refusals[answer[1] - 1]
                        if refusal is not None:
                            raise refusal
                if time.monotonic() > deadline:
                    message = f"`{self}`: others change the ledger without pause; nothing was changed"
                    raise LedgerUnavailableError(message)
        finally:
            self._writing.release()

    def _send(self, change: Change, deadline: float, *, hungry: bool) -> tuple[_Seen, Any]:
        keys, arguments = change.script(
            (self.state, self.log, self._turn), f"{self._name}:{secrets.token_hex(8)}", hungry=hungry
        )

        def run(client: Any, seen: _Seen) -> tuple[_Seen, Any]:
            with client.pipeline(transaction=False) as steps:
                steps.execute_command("EVAL", _SCRIPT, len(keys), *keys, *arguments)
                if self._place.replicas:
                    steps.execute_command("WAIT", self._place.replicas, _REPLICA_MILLISECONDS)
                answer, *confirmed = steps.execute()
            if answer[0] == b"done" and confirmed and confirmed[0] < self._place.replicas:
                share = f"{confirmed[0]} of {self._place.replicas} replicas"
                message = f"`{self}`: {share} confirm the change, which is made but may be lost"
                raise LedgerUnavailableError(message)
            return seen, answer

        return self._patiently(run, deadline)

    def _open(self, opening: Opening) -> None:
        first = {"usual": _VERSION, "empty": _LOADING}.get(opening)

        def make(client: Any, _: _Seen) -> Any:
            with client.pipeline(transaction=True) as steps:
                if first is not None:
                    steps.execute_command("HSETNX", self.state.name, "version", first)
                    steps.execute_command("HSETNX", self.state.name, "sequence", 0)
                    steps.execute_command("HSETNX", self.state.name, "hash", AuditHead().hash)
                steps.execute_command("HGET", self.state.name, "version")
                return steps.execute()

        try:
            answers = self._patiently(make, time.monotonic() + self._patience_seconds)
        except LedgerUnavailableError as error:
            if isinstance(error.__cause__, _UnsafeServerError):
                raise self._problem("unsafe_ledger", str(error.__cause__)) from error
            raise
        version = answers[-1]
        if opening == "empty" and answers[0]:
            return
        if version == _OLDER and opening == "usual":
            self._upgrade()
            version = str(_VERSION).encode()
        if version is None:
            raise self._problem("no_ledger", f"there is no ledger of `{self.trust_domain}` here")
        if version == _LOADING.encode():
            message = f"a ledger is being copied here, or that was interrupted: delete `{self._prefix}*` then"
            raise self._problem("unfinished_ledger", message)
        if version not in {_OLDER, str(_VERSION).encode()}:
            found = version.decode(errors="replace")[:20]
            message = f"it was written by a newer Garrison (version `{found}`, this one knows {_VERSION})"
            raise self._problem("newer_ledger", message)
        if opening == "empty":
            raise self._problem("ledger_exists", f"there is a ledger of `{self.trust_domain}` here already")
        self.read()

    def _upgrade(self) -> None:
        def upgrade(client: Any, _: _Seen) -> Any:
            return client.execute_command("EVAL", _UPGRADE, 1, self.state.name, _OLDER, _VERSION)

        self._patiently(upgrade, time.monotonic() + self._patience_seconds)

    def load(self, commands: Sequence[Sequence[Text]]) -> None:
        """Run commands that write, before `activate`.

        Raises:
            LedgerUnavailableError: one of them may not have been run, or twice.

        """
        try:
            with self._client.pipeline(transaction=False) as steps:
                for command in commands:
                    steps.execute_command(*command)
                steps.execute()
        except redis.RedisError as error:
            raise LedgerUnavailableError(f"`{self}`: {error}") from error

    def activate(self) -> None:
        """Let everybody use what was loaded. Raises: as `load`."""
        self.load([("HSET", self.state.name, "version", _VERSION)])

    def discard(self) -> None:
        """Remove everything of this ledger. Raises: as `load`."""
        try:
            names = self._names()
        except redis.RedisError as error:
            raise LedgerUnavailableError(f"`{self}`: {error}") from error
        # The state last: what is left by an interruption must not look like a new ledger.
        for name in sorted(names, key=lambda one: one == self.state.name.encode()):
            self.load([("UNLINK", name)])

    def _names(self) -> list[bytes]:
        found: set[bytes] = set()
        cursor = b"0"
        while True:
            # Nothing in a trust domain's name has a meaning in a pattern.
            command = ("SCAN", cursor, "MATCH", f"{self._prefix}*", "COUNT", 1000)
            cursor, names = self._client.execute_command(*command)
            found.update(names)
            if cursor == b"0":
                return sorted(found)

    def _advance(self, seen: _Seen, now: AuditHead, *, is_kept: bool = False) -> None:
        """Take note of the head, which `is_kept` whatever happens; `seen` was before the server was asked."""
        epoch, before = seen
        if now.sequence < before.sequence or (now.sequence == before.sequence and now != before):
            message = (
                f"`{self}`: the ledger went back from record {before.sequence} to {now.sequence}: it has lost"
                " what was recorded, or is another one"
            )
            raise LedgerUnavailableError(message)
        with self._heads:
            # What was seen on the server before this one may be nowhere.
            if now.sequence > self._head.sequence and (is_kept or epoch == self._epoch):
                self._head = now
            if now.sequence > self._kept.sequence and (is_kept or not self._place.replicas):
                self._kept = now

    def _patiently(self, action: Callable[[Any, _Seen], _Result], deadline: float) -> _Result:
        """Run `action` until the server answers; it is told what has been seen of that server before."""
        redirects = 0
        while True:
            if self._closed:
                raise LedgerUnavailableError(f"`{self}`: it is closed")
            try:
                if self._is_lost:
                    self._use(self._master())
                    self._is_lost = False
                with self._heads:
                    client, seen = self._client, (self._epoch, self._head)
                return action(client, seen)
            except exceptions.MovedError as error:
                redirects += 1
                if redirects > _MAX_REDIRECTS:
                    raise LedgerUnavailableError(f"`{self}`: the Cluster sends from node to node") from error
                self._follow(error)
                continue
            except (*_FINAL, _UnsafeServerError) as error:
                raise LedgerUnavailableError(f"`{self}`: {error}") from error
            except (
                exceptions.ConnectionError,
                exceptions.TimeoutError,
                _NotTheMasterError,
                *_PASSING,
            ) as error:
                failure: redis.RedisError = error
            except redis.RedisError as error:
                raise LedgerUnavailableError(f"`{self}`: {error}") from error
            # Another node may have taken over, which the address that was given leads to.
            if self._sentinels is None:
                self._use(self._place.address)
            else:
                self._is_lost = True
            if time.monotonic() + _PAUSE_SECONDS > deadline:
                message = f"`{self}`: it does not answer, so what was asked may or may not be done: {failure}"
                raise LedgerUnavailableError(message) from failure
            time.sleep(_PAUSE_SECONDS)

    def _follow(self, moved: exceptions.MovedError) -> None:
        # A node that does not know its own address leaves it out.
        target = replace(self._target, host=moved.host or self._target.host, port=moved.port)
        try:
            self._check_address(target)
        except ConfigError as error:
            raise LedgerUnavailableError(f"`{self}`: {error.diagnostics[0].message}") from error
        self._use(target)

    def _master(self) -> RedisAddress:
        """Return where the Sentinels say that the master is.

        Raises:
            redis.RedisError: none of them knows.
            _UnsafeServerError: it is not to be used, or one could take over that lacks changes.

        """
        assert self._sentinels is not None  # noqa: S101 - the callers looked
        found = self._sentinels.find()
        if found.successors > self._place.replicas:
            complaint = (
                f"{found.successors} replicas may become the master, and a change counts when "
                f"{self._place.replicas} have it: set `ledger_replicas: {found.successors}`"
            )
            if self._place.safety is Safety.REQUIRE:
                raise _UnsafeServerError(complaint)
            self._warn_once(f"`{self}`: {complaint}")
        master = replace(self._place.address, host=found.host, port=found.port)
        try:
            self._check_address(master)
        except ConfigError as error:
            raise _UnsafeServerError(error.diagnostics[0].message) from error
        return master

    def _use(self, target: RedisAddress) -> None:
        if target == self._target:
            return
        new = self._connect(target)
        with self._heads:
            old, self._client, self._target = self._client, new, target
            self._epoch += 1
            self._head = self._kept
        old.close()

    def _connect(self, address: RedisAddress) -> Any:
        # Commands of this client are typed for blocking and asyncio at once.
        client: Any = address.connect(
            self._place.tls, answer_seconds=self._answer_seconds, on_connect=self._check_connection
        )
        # Answers as the server gives them, whatever a version of the client makes of them.
        client.response_callbacks.clear()
        return client

    def _check_address(self, address: RedisAddress) -> None:
        if address.scheme == "rediss":
            try:
                context = ssl.create_default_context(cafile=self._place.ca)
            except (OSError, ssl.SSLError) as error:
                message = f"`{self._place.ca}` has no roots for TLS: {type(error).__name__}"
                raise self._problem("tls", message) from error
            self._check_certificate(context)
        if address.is_trusted_connection or address.is_this_machine:
            return
        message = (
            f"`{address}` is not on this machine, and whoever is on the way could change who is registered:"
            " use `rediss://`"
        )
        if self._place.safety is Safety.REQUIRE:
            raise self._problem("plaintext_ledger", message)
        self._warn_once(message)

    def _check_certificate(self, context: ssl.SSLContext) -> None:
        certificate, key = self._place.certificate, self._place.private_key
        if certificate is not None:
            try:
                # A key that is encrypted must not have somebody asked for its passphrase.
                context.load_cert_chain(certificate, key, password=bytes)
            except (OSError, ssl.SSLError) as error:
                message = f"`{certificate}` with `{key}` is no certificate for TLS: {type(error).__name__}"
                raise self._problem("tls", message) from error

    def _check_connection(self, connection: Any) -> None:
        connection.on_connect()
        told = _told(connection)
        if self._sentinels is not None:
            master = self._master()
            # An old master that comes back takes itself for one until it is told otherwise.
            if (connection.host, connection.port) != (master.host, master.port):
                raise _NotTheMasterError(f"the Sentinels name `{master}` now")
            if told.get("role") != "master":
                raise _NotTheMasterError("the Sentinels name a server that is not the master yet")
        for fatal, complaint in complaints(told):
            if fatal or self._place.safety is Safety.REQUIRE:
                raise _UnsafeServerError(complaint)
            self._warn_once(f"`{self}`: {complaint}")

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            self._warn(message)

    def _problem(self, code: str, message: str) -> ConfigError:
        return ConfigError([Diagnostic(str(self), Position(1, 1), (), code, message)])


class _NotTheMasterError(redis.RedisError):
    """Sentinels are changing the master: wait until they have."""


class _UnsafeServerError(redis.RedisError):
    """The server may lose what it confirms, or is not the one that changes."""


def complaints(told: Mapping[str, str]) -> Iterator[tuple[bool, str]]:
    """Yield what is wrong with a server that tells this of itself, and whether it makes it useless.

    `told` has the names of `CONFIG GET`, and `role` from `INFO`; what is missing, the server does not tell.
    """
    if told.get("role", "master") != "master":
        yield True, "the server is a replica, which is behind and takes no changes"
    policy = told.get("maxmemory-policy")
    if policy != "noeviction":
        problem = "it must be `noeviction`, or the server throws away what it knows"
        yield policy is not None, f"`maxmemory-policy` is {_shown(policy)}: {problem}"
    for name, wanted in (("appendonly", "yes"), ("appendfsync", "always")):
        if told.get(name) != wanted:
            problem = f"with anything but `{wanted}` the server may forget what it confirmed"
            yield False, f"`{name}` is {_shown(told.get(name))}: {problem}"


def _shown(value: str | None) -> str:
    return "not told" if value is None else f"`{value}`"


def _told(connection: Any) -> dict[str, str]:
    """Return what the server tells; `CONFIG` is not for everybody, `INFO` tells less."""
    told: dict[str, str] = {}
    with contextlib.suppress(exceptions.ResponseError):
        facts = dict(
            line.split(":", 1) for line in _ask(connection, "INFO").decode().splitlines() if ":" in line
        )
        told["role"] = facts.get("role", "")
        told["maxmemory-policy"] = facts.get("maxmemory_policy", "")
        told["appendonly"] = "yes" if facts.get("aof_enabled") == "1" else "no"
    for name in ("maxmemory-policy", "appendonly", "appendfsync"):
        with contextlib.suppress(exceptions.ResponseError):
            answer = _ask(connection, "CONFIG", "GET", name)
            if len(answer) > 1:
                told[name] = answer[1].decode()
    return told


def _ask(connection: Any, *command: str) -> Any:
    connection.send_command(*command, check_health=False)
    return connection.read_response()


def _head_of(sequence: Any, digest: Any, at: Any) -> AuditHead:
    try:
        # A ledger that nobody has written to since versions without the time of the head has none.
        return AuditHead(int(sequence), digest.decode(), (at or b"").decode())
    except (ValueError, TypeError, AttributeError) as error:
        raise LedgerUnavailableError("the ledger is damaged: it does not say where its log ends") from error


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def stored_record(record: AuditRecord, attempt: str) -> list[Text]:
    """Return the fields of a record as `commit.lua` writes them."""
    return [
        *("previous", record.previous, "time", record.time, "event", record.event),
        *("actor", _bytes(record.actor), "details", record.details, "hash", record.hash, "attempt", attempt),
    ]
