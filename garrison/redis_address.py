"""Where Redis is, and whether the way there can be trusted."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

_SCHEMES = frozenset({"redis", "rediss", "unix"})
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_DEFAULT_PORT = 6379
_CONNECT_SECONDS = 2.0
# For one answer; bundles come in pieces.
_ANSWER_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Credentials:
    """A password, with or without a user. Prints as neither."""

    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str) -> Credentials:
        """Return what `PASSWORD` or `USER:PASSWORD` spells."""
        user, colon, password = text.partition(":")
        return cls(user, password) if colon else cls(None, user or None)

    def __str__(self) -> str:
        return "***" if self.password else ""


NOBODY = Credentials()


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files for `rediss://`: roots, the system's by default, and the client's own certificate and key."""

    ca: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """`redis://`, `rediss://` (TLS, verified) or `unix://`. Prints without user and password."""

    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""
    database: int = 0
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str) -> RedisAddress:
        """Return the address that `text` spells.

        The Redis client's own URLs can switch off the verification of certificates; these cannot: of a query
        only `db` is known.

        Raises:
            ValueError: it spells none; the message does not repeat it, because there may be a password in it.

        """
        try:
            parts = urlsplit(text)
            port = parts.port
            query = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        except ValueError as error:
            raise ValueError("this is no Redis URL") from error
        if parts.scheme not in _SCHEMES or parts.fragment:
            raise ValueError("a Redis URL is `redis://HOST:PORT`, `rediss://HOST:PORT` or `unix:///PATH`")
        where = unquote(parts.path)
        database = query.pop("db", "0")
        if parts.scheme != "unix":
            database = where.strip("/") or database
        if query:
            raise ValueError("a Redis URL has no parameter but `db`")
        if not (database.isascii() and database.isdigit() and len(database) < 6):
            raise ValueError("the database in a Redis URL is a number")
        if parts.scheme == "unix":
            if parts.hostname or not where.startswith("/"):
                raise ValueError("a `unix://` URL needs an absolute path, as in `unix:///run/redis.sock`")
            return cls(
                "unix",
                path=where,
                database=int(database),
                username=_decoded(parts.username),
                password=_decoded(parts.password),
            )
        if not parts.hostname:
            raise ValueError("the Redis URL names no host")
        return cls(
            parts.scheme,
            parts.hostname,
            port or _DEFAULT_PORT,
            database=int(database),
            username=_decoded(parts.username),
            password=_decoded(parts.password),
        )

    @property
    def is_trusted_connection(self) -> bool:
        """Whether nobody on the way can read or change what is said: verified TLS, or a Unix socket."""
        return self.scheme in {"rediss", "unix"}

    def __str__(self) -> str:
        database = f"?db={self.database}" if self.database else ""
        if self.scheme == "unix":
            return f"unix://{self.path}{database}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{database}"

    @property
    def is_this_machine(self) -> bool:
        """Whether it is on this machine, as far as the address itself says: a socket, or loopback."""
        return self.scheme == "unix" or self.host in _LOOPBACK

    def connect(
        self,
        tls: TlsFiles | None = None,
        *,
        connect_seconds: float = _CONNECT_SECONDS,
        answer_seconds: float = _ANSWER_SECONDS,
        on_connect: Callable[[Any], None] | None = None,
    ) -> redis.Redis:
        """Return a blocking client; `tls` is for `rediss://`, with the system's roots by default.

        `answer_seconds` is how long it waits for one answer, `on_connect` what each new connection is handed
        to instead of logging in: it calls the connection's own `on_connect` first. It raises a `RedisError`
        where the connection is not to be used.
        """
        tls = tls or TlsFiles()
        arguments = self._arguments(tls.ca) | {
            "socket_connect_timeout": connect_seconds,
            "socket_timeout": answer_seconds,
        }
        if self.scheme == "rediss" and tls.certificate is not None:
            arguments |= {"ssl_certfile": str(tls.certificate), "ssl_keyfile": str(tls.private_key)}
        # Typed for a function of nothing, but called with the connection.
        arguments["redis_connect_func"] = on_connect
        return redis.Redis(**arguments, retry=Retry(NoBackoff(), 0))

    def connect_async(self, ca: Path | None = None) -> redis.asyncio.Redis:
        """Return a client for an event loop; `ca` as for `connect`. It does not try again by itself."""
        return redis.asyncio.Redis(**self._arguments(ca), retry=AsyncRetry(NoBackoff(), 0))

    def _arguments(self, ca: Path | None) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "db": self.database,
            "username": self.username,
            "password": self.password,
            "socket_connect_timeout": _CONNECT_SECONDS,
            "socket_timeout": _ANSWER_SECONDS,
            # Version 3 brings notices of its own, which nobody here needs.
            "protocol": 2,
        }
        if self.scheme == "unix":
            return {**arguments, "unix_socket_path": self.path}
        arguments |= {"host": self.host, "port": self.port}
        if self.scheme == "rediss":
            arguments |= {
                "ssl": True,
                "ssl_cert_reqs": "required",
                "ssl_check_hostname": True,
                "ssl_min_version": ssl.TLSVersion.TLSv1_2,
                "ssl_ca_certs": str(ca) if ca else None,
            }
        return arguments


def _decoded(text: str | None) -> str | None:
    return unquote(text) if text else None
