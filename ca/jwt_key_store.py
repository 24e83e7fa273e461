"""The keys for JWT-SVIDs in the directory of a CA, shared by all processes that use it."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from ca.atomic_files import write_file
from ca.authority import CA_KEY, is_encrypted
from ca.bundle import JwtAuthority
from ca.directory import locked
from ca.jwt_keys import DEFAULT_KEY_LIFETIME, JwtKey, KeyRing, advance, thumbprint
from ca.key_encryption import PLAIN, describe_encryption
from ca.keys import (
    PrivateKey,
    check_public_key,
    key_file,
    new_private_key,
    parse_private_key,
    public_key_pem,
)
from ca.passphrase import PassphraseSource
from garrison.documents import Diagnostic, Position
from garrison.errors import ConfigError, IssuanceError

JWT_KEYS = "jwt-keys.json"

_log = structlog.get_logger()


class JwtKeyStore:
    """Keeps `jwt-keys.json` of `directory` current. Threads and processes may share it.

    Keys are on disk before anybody can see them, so a token outlives a restart; they are encrypted if the key
    of the CA is, with the same passphrase.
    """

    def __init__(
        self,
        directory: Path,
        *,
        passphrase: PassphraseSource | None = None,
        lifetime: timedelta = DEFAULT_KEY_LIFETIME,
        new_key: Callable[[], PrivateKey] = new_private_key,
    ) -> None:
        self._directory = directory
        self._path = directory / JWT_KEYS
        self._passphrase = passphrase or PassphraseSource(None, {})
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

    def reencrypted(self, passphrase: bytes | None) -> bytes | None:
        """Return the file with its keys encrypted anew, or not at all; None where there is no file.

        Raises:
            ConfigError: the file cannot be used.

        """
        ring = self.published()
        return _format(ring, passphrase) if ring.keys else None

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
                write_file(self._path, _format(ring, self._secret()), mode=0o600, replace=True)
                self._read()

    def _read(self) -> None:
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                seen = status.st_ino, status.st_mtime_ns, status.st_size
                if seen != self._seen:
                    self._ring = _parse(self._path, file.read(), self._passphrase)
                    self._seen = seen
        except FileNotFoundError:
            if self._ring.keys:
                raise
        except OSError as error:
            raise _problem(self._path, f"cannot be read: {error.strerror or error}") from error

    def _secret(self) -> bytes | None:
        key = self._directory / CA_KEY
        return self._passphrase.to_read(self._path) if key.exists() and is_encrypted(key) else None


def published_authorities(directory: Path) -> tuple[JwtAuthority, ...]:
    """Return what tokens of the CA in `directory` are verified with; no private key is read.

    Raises:
        ConfigError: the file cannot be used.

    """
    path = directory / JWT_KEYS
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise _problem(path, f"cannot be read: {error.strerror or error}") from error
    try:
        found = [
            JwtAuthority(entry["kid"], check_public_key(load_pem_public_key(entry["public_key"].encode())))
            for entry in json.loads(content)["keys"]
        ]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, IssuanceError) as error:
        raise _problem(path, f"it does not hold keys for tokens: {error}") from error
    if any(one.kid != thumbprint(one.key) for one in found):
        raise _problem(path, "a `kid` in it is not that of its key")
    return tuple(found)


def has_plain_keys(path: Path) -> bool:
    """Tell whether a private key in the file is not encrypted.

    Raises:
        ConfigError: the file cannot be used.

    """
    try:
        keys = [entry["private_key"].encode() for entry in json.loads(path.read_bytes())["keys"]]
        return any(describe_encryption(key) == PLAIN for key in keys)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _problem(path, f"it does not hold keys for tokens: {error}") from error


def _format(ring: KeyRing, passphrase: bytes | None) -> bytes:
    keys = [
        {
            "kid": key.kid,
            "active_from": f"{key.active_from:%FT%TZ}",
            "public_key": public_key_pem(key.key.public_key()).decode(),
            "private_key": key_file(key.key, passphrase).decode(),
        }
        for key in ring.keys
    ]
    return json.dumps({"keys": keys}, indent=2).encode() + b"\n"


def _parse(path: Path, content: bytes, passphrase: PassphraseSource) -> KeyRing:
    try:
        keys = [
            (
                entry["kid"],
                JwtKey(
                    _private(path, entry["private_key"].encode(), passphrase),
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


def _private(path: Path, pem: bytes, passphrase: PassphraseSource) -> PrivateKey:
    key = parse_private_key(pem, lambda: passphrase.to_read(path))
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise TypeError("a key is of a kind that signs no tokens")
    return key


def _problem(path: Path, message: str) -> ConfigError:
    return ConfigError([Diagnostic(str(path), Position(1, 1), (), "jwt_keys", message)])
