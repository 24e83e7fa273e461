"""The store of rate limits, from the settings."""

from __future__ import annotations

import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from garrison.documents import Diagnostic, Position
from garrison.errors import ConfigError
from garrison.redis_address import NOBODY, Credentials, RedisAddress
from ratelimit.store.connection import Endpoint
from ratelimit.store.guard import GuardedStore
from ratelimit.store.memory import MemoryStore
from ratelimit.store.redis import RedisStore
from ratelimit.store.servers import ClusterServers, SentinelServer, Servers, SingleServer

Mode = Literal["single", "sentinel", "cluster"]


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """Where counts live. Without addresses: in memory, `max_buckets` of them.

    `master` is what Sentinels call the server; `sentinel` are the credentials for them. `certificate` and
    `private_key` are this client's own, for servers that ask for one.
    """

    addresses: Sequence[RedisAddress] = ()
    mode: Mode = "single"
    master: str = ""
    sentinel: Credentials = NOBODY
    ca: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    prefix: str = "garrison"
    deadline_seconds: float = 0.01
    replicas: int = 1
    max_buckets: int = 200_000


def build_store(options: StoreOptions) -> MemoryStore | GuardedStore:
    """Return the store; one on servers connects when it is asked first.

    Raises:
        ConfigError: a certificate or key cannot be read.

    """
    if not options.addresses:
        return MemoryStore(options.max_buckets)
    store = RedisStore(find_servers(options), options.prefix, deadline_seconds=options.deadline_seconds)
    return GuardedStore(
        store,
        time.monotonic,
        deadline_seconds=options.deadline_seconds,
        replicas=options.replicas,
        local=MemoryStore(options.max_buckets),
    )


def find_servers(options: StoreOptions) -> Servers:
    """Return the servers; raises as `build_store`."""
    endpoints = [_endpoint(address, options) for address in options.addresses]
    if options.mode == "cluster":
        return ClusterServers(endpoints)
    if options.mode == "sentinel":
        user, password = options.sentinel.username, options.sentinel.password
        sentinels = [
            replace(endpoint, username=user, password=password, database=0) for endpoint in endpoints
        ]
        return SentinelServer(sentinels, options.master, endpoints[0])
    return SingleServer(endpoints[0])


def _endpoint(address: RedisAddress, options: StoreOptions) -> Endpoint:
    return Endpoint(
        address.host,
        address.port,
        address.path,
        address.database,
        address.username,
        address.password,
        _tls(options) if address.scheme == "rediss" else None,
    )


def _tls(options: StoreOptions) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if options.certificate is not None:
            context.load_cert_chain(options.certificate, options.private_key)
    except (OSError, ssl.SSLError) as error:
        file = str(options.certificate or options.ca or "")
        message = f"cannot be used for TLS: {type(error).__name__}"
        where = Diagnostic(file, Position(1, 1), ("rate_limit", "redis"), "tls", message)
        raise ConfigError([where]) from error
    return context
