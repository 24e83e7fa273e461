"""The keys for JWT-SVIDs in the directory of a CA, shared by all processes that use it."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog

from ca.atomic_files import write_file
from ca.jwt_keys import DEFAULT_KEY_LIFETIME, JwtKey, KeyRing, advance
from ca.keys import PrivateKey, new_private_key, parse_private_key, private_key_pem
from garrison.documents import Diagnostic, Position
from garrison.errors import ConfigError

JWT_KEYS = "jwt-keys.json"

_log = structlog.get_logger()


class JwtKeyStore:
    """Keeps `jwt-keys.json` of `directory` current. Threads and processes may share it.

    Keys are on disk before anybody can see them, so a token outlives a restart.
    """

    def __init__(
        self,
        directory: Path,
        *,
        lifetime: timedelta = DEFAULT_KEY_LIFETIME,
        new_key: Callable[[], PrivateKey] = new_private_key,
    ) -> None:
        self._directory = directory
        self._path = directory / JWT_KEYS
        self._lifetime = lifetime
        self._new_key = new_key
        self._ring = KeyRing()
        self._seen: tuple[int, int, int] | None = None
        self._complaint = ""
        self._turn = threading.Lock()

    def published(self) -> KeyRing:
        """Return the keys as they are on disk, without making any; an empty ring where there are none.

        Raises:
            ConfigError: the file cannot be used.

        """
        with self._turn:
            self._read()
            return self._ring

    def ring(self, now: datetime) -> KeyRing:
        """Return the keys as they have to be at `now`, with those that are due made and written.

        Raises:
            ConfigError: the file cannot be read or written, and no keys are known.

        """
        with self._turn:
            try:
                self._keep(now)
            except (ConfigError, OSError) as error:
                if not self._ring.keys:
                    if isinstance(error, ConfigError):
                        raise
                    raise _problem(self._path, f"cannot be written: {error.strerror or error}") from error
                # Tokens that are out must go on to verify; what is due is tried again at the next look.
                if str(error) != self._complaint:
                    self._complaint = str(error)
                    _log.error("jwt keys cannot be kept", file=str(self._path), reason=str(error))
            return self._ring

    def _keep(self, now: datetime) -> None:
        self._read()
        if advance(self._ring, now, lifetime=self._lifetime, new_key=self._new_key) is self._ring:
            return
        with locked(self._directory):
            self._read()  # somebody else may have had the same thought
            ring = advance(self._ring, now, lifetime=self._lifetime, new_key=self._new_key)
            if ring is not self._ring:
                write_file(self._path, _format(ring), mode=0o600, replace=True)
                self._read()

    def _read(self) -> None:
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                seen = status.st_ino, status.st_mtime_ns, status.st_size
                if seen != self._seen:
                    self._ring = _parse(self._path, file.read())
                    self._seen = seen
        except FileNotFoundError:
            if self._ring.keys:
                raise
        except OSError as error:
            raise _problem(self._path, f"cannot be read: {error.strerror or error}") from error


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep other processes from changing counted files of `directory` meanwhile.

    Raises:
        OSError: it cannot be opened.

    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _format(ring: KeyRing) -> bytes:
    keys = [
        {
            "kid": key.kid,
            "active_from": f"{key.active_from:%FT%TZ}",
            "private_key": private_key_pem(key.key).decode(),
        }
        for key in ring.keys
    ]
    return json.dumps({"keys": keys}, indent=2).encode() + b"\n"


def _parse(path: Path, content: bytes) -> KeyRing:
    try:
        keys = [
            (
                entry["kid"],
                JwtKey(
                    parse_private_key(entry["private_key"].encode()),
                    datetime.strptime(entry["active_from"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC),
                ),
            )
            for entry in json.loads(content)["keys"]
        ]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _problem(path, f"it does not hold keys for tokens: {error}") from error
    if any(kid != key.kid for kid, key in keys):
        raise _problem(path, "a `kid` in it is not that of its key")
    return KeyRing(tuple(sorted((key for _, key in keys), key=lambda key: key.active_from)))


def _problem(path: Path, message: str) -> ConfigError:
    return ConfigError([Diagnostic(str(path), Position(1, 1), (), "jwt_keys", message)])
