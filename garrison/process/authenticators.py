"""`authenticators:` of the settings -> who knows credentials, running, and what keeps them current."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from authz.authenticators import introspection
from authz.authenticators.api_keys import (
    ApiKeys,
    client_files,
    load_directory,
    load_file,
)
from authz.authenticators.base import Caching, CachingAuthenticator, Managed, NoBreaker, Threads
from authz.authenticators.basic import Passwords, UserGeneration, load_users
from authz.authenticators.introspection import Endpoint, Introspection
from authz.authenticators.redis_keys import Client, RedisKeys
from authz.authenticators.token_review import TokenReview
from authz.authn.credentials import Answer, Result
from garrison.answers import read_secret
from garrison.documents import Listing, list_files
from garrison.fetching import Fetcher
from garrison.process.reload import Reloader
from garrison.process.settings.authenticators import (
    ApiKeySettings,
    AuthenticatorSettings,
    BasicSettings,
    IntrospectionSettings,
    RedisKeySettings,
    TokenReviewSettings,
)
from garrison.token_review import MAX_ANSWER_BYTES, ApiServer

# How long a bad credential is not asked about again.
_NEGATIVE_SECONDS = 5.0
# Each takes 32 MiB and a core for a good tenth of a second.
_HASHING_THREADS = 2
_MAX_HASHING = 64
_ASKING_THREADS = 8
_MAX_ASKING = 256
# Each that waits has a connection of its own.
_MAX_REDIS_WAITING = 64


class Authenticators:
    """The authenticators of a process, by name; `reloaders` keep those that rest on files current."""

    def __init__(self, settings: Sequence[AuthenticatorSettings]) -> None:
        self.by_name: dict[str, Managed] = {}
        self.reloaders: list[Reloader[Any]] = []
        for one in settings:
            self.by_name[one.name] = self._make(one)

    def load(self) -> None:
        """Read all files for the first time.

        Raises:
            ConfigError: one of them cannot be used.

        """
        for reloader in self.reloaders:
            reloader.load()

    def _make(self, settings: AuthenticatorSettings) -> Managed:
        name = settings.name
        if settings.api_keys is not None:
            return self._api_keys(name, settings.api_keys)
        if settings.basic is not None:
            return self._basic(name, settings.basic)
        if settings.introspection is not None:
            return _introspection(name, settings.introspection)
        assert settings.token_review is not None  # noqa: S101 - there is exactly one kind
        return _token_review(name, settings.token_review)

    def _api_keys(self, name: str, settings: ApiKeySettings) -> Managed:
        if settings.redis is not None:
            return _redis_keys(name, settings.redis)
        keys = ApiKeys()
        if settings.file is not None:
            self._follow(name, settings.file, load_file, keys.use)
        elif settings.directory is not None:
            self._follow(name, settings.directory, load_directory, keys.use, list_clients)
        return keys

    def _basic(self, name: str, settings: BasicSettings) -> Managed:
        passwords, threads = Passwords(), Threads(f"basic-{name}", _HASHING_THREADS)
        authenticator = CachingAuthenticator(
            name,
            threads.question(passwords.verify),
            _caching(settings.cache),
            breaker=NoBreaker(),
            max_running=_MAX_HASHING,
            end=threads.close,
        )

        def use(generation: UserGeneration) -> None:
            passwords.use(generation)
            authenticator.forget()

        self._follow(name, settings.file, load_users, use)
        return authenticator

    def _follow(
        self,
        name: str,
        path: Path,
        load: Callable[[Path], Any],
        use: Callable[[Any], None],
        files: Callable[[Sequence[Path]], Listing] | None = None,
    ) -> None:
        self.reloaders.append(
            Reloader(f"authenticator_{name}", [path], lambda paths: load(paths[0]), use, files=files)
        )

    def results(self) -> dict[tuple[str, ...], int]:
        """Return how many credentials came to what, by authenticator and result."""
        return {
            (name, result.value): one.results[result]
            for name, one in self.by_name.items()
            for result in Result
        }

    def breakers(self) -> dict[str, bool]:
        """Return which circuit breakers are open."""
        found = {name: one.is_open for name, one in self.by_name.items()}
        return {name: is_open for name, is_open in found.items() if is_open is not None}

    def remembered(self) -> dict[str, int]:
        """Return how many keys or answers each one has in memory."""
        return {name: one.remembered for name, one in self.by_name.items()}

    async def close(self) -> None:
        """Let go of all of them."""
        for one in self.by_name.values():
            await one.close()


def _caching(positive: timedelta) -> Caching:
    seconds = positive.total_seconds()
    return Caching(seconds, min(_NEGATIVE_SECONDS, seconds))


def _redis_keys(name: str, settings: RedisKeySettings) -> Managed:
    def connect() -> Client:
        address = settings.url
        if settings.password_file is not None:
            address = replace(address, password=read_secret(settings.password_file))
        client: Client = address.connect_async(settings.ca)
        return client

    keys = RedisKeys(name, connect, settings.hash, timeout_seconds=settings.timeout.total_seconds())
    return CachingAuthenticator(
        name, keys, _caching(settings.cache), max_running=_MAX_REDIS_WAITING, end=keys.close
    )


def _introspection(name: str, settings: IntrospectionSettings) -> Managed:
    endpoint = Endpoint(
        settings.endpoint,
        settings.client_id,
        settings.client_secret_file,
        settings.token_type_hint,
        tuple(settings.scopes),
        frozenset(settings.audiences),
    )
    fetcher = Fetcher(
        settings.timeout.total_seconds(), ca=settings.ca, max_bytes=introspection.MAX_ANSWER_BYTES
    )
    return _in_threads(name, Introspection(endpoint, fetcher, time.time), settings.cache)


def _token_review(name: str, settings: TokenReviewSettings) -> Managed:
    server = ApiServer(settings.server, settings.token_file, tuple(settings.audiences))
    fetcher = Fetcher(settings.timeout.total_seconds(), ca=settings.ca, max_bytes=MAX_ANSWER_BYTES)
    return _in_threads(name, TokenReview(server, fetcher), settings.cache)


def _in_threads(name: str, ask: Callable[[str], Answer], cache: timedelta) -> Managed:
    threads = Threads(name, _ASKING_THREADS)
    return CachingAuthenticator(
        name, threads.question(ask), _caching(cache), max_running=_MAX_ASKING, end=threads.close
    )


def list_clients(folders: Sequence[Path]) -> Listing:
    """Return the state of each file in folders of API keys, which have no suffix to know them by."""
    found: dict[Path, Any] = {}
    for folder in folders:
        try:
            found.update(list_files(client_files(folder)))
        except OSError as error:
            found[folder] = (error.strerror or str(error)).lower()
    return found
