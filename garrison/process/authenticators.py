"""`authenticators:` of the settings -> who knows credentials, running, and what keeps them current."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Self, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, Field, field_validator, model_validator

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
from authz.authn.credentials import Answer, Kind, Result
from authz.policy.credentials import RESERVED_NAMES
from garrison.answers import read_secret
from garrison.documents import Listing, list_files
from garrison.fetching import Fetcher
from garrison.process.reload import Reloader
from garrison.process.setting_types import STRICT, Duration, FilePath, RedisUrl
from garrison.redis_address import RedisAddress
from garrison.token_review import MAX_ANSWER_BYTES, ApiServer
from garrison.urls import check_url


def _is_guarded(url: str) -> str:
    """Return `url` if secrets can be sent there: over TLS, or on this machine."""
    if problem := check_url(url):
        raise ValueError(problem)
    parts = urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in {"localhost", "127.0.0.1", "::1"}:
        raise ValueError("tokens and secrets are sent there: `https://`, or `http://` on this machine")
    if parts.fragment or parts.username is not None:
        raise ValueError("the URL has no user and no fragment")
    return url


Url = Annotated[str, AfterValidator(_is_guarded)]


def _timeout(seconds: float) -> Any:
    return Field(default=timedelta(seconds=seconds), gt=timedelta(0), le=timedelta(seconds=30))


def _cache(seconds: float) -> Any:
    return Field(default=timedelta(seconds=seconds), ge=timedelta(0), le=timedelta(hours=1))


class RedisKeySettings(BaseModel):
    """A Redis hash of API keys; the password, if there is one, is in a file."""

    model_config = STRICT
    url: RedisUrl
    ca: FilePath | None = None
    password_file: FilePath | None = None
    hash: Annotated[str, Field(min_length=1)] = "garrison:api-keys"
    timeout: Duration = _timeout(0.5)
    cache: Duration = _cache(10)

    @field_validator("url")
    @classmethod
    def _no_password(cls, value: RedisAddress) -> RedisAddress:
        if value.password is not None:
            raise ValueError("a password is not written here but in a file: `password_file`")
        return value


class ApiKeySettings(BaseModel):
    """Where API keys are: exactly one of a file, a folder and Redis."""

    model_config = STRICT
    file: FilePath | None = None
    directory: FilePath | None = None
    redis: RedisKeySettings | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if sum(place is not None for place in (self.file, self.directory, self.redis)) != 1:
            raise ValueError("exactly one of `file`, `directory` and `redis` is needed")
        return self


class BasicSettings(BaseModel):
    """A file of names and hashed passwords."""

    model_config = STRICT
    file: FilePath
    cache: Duration = _cache(60)


class IntrospectionSettings(BaseModel):
    """An RFC 7662 endpoint, and what its tokens must be good for."""

    model_config = STRICT
    endpoint: Url
    client_id: Annotated[str, Field(min_length=1)]
    client_secret_file: FilePath
    ca: FilePath | None = None
    timeout: Duration = _timeout(2)
    cache: Duration = _cache(60)
    token_type_hint: str = ""
    scopes: list[Annotated[str, Field(pattern=r"^[\x21\x23-\x5b\x5d-\x7e]+$")]] = []
    audiences: list[Annotated[str, Field(min_length=1)]] = []


_IN_POD = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class TokenReviewSettings(BaseModel):
    """A Kubernetes API server; the defaults are those inside a pod."""

    model_config = STRICT
    server: Url = "https://kubernetes.default.svc"
    ca: FilePath | None = _IN_POD / "ca.crt"
    token_file: FilePath = _IN_POD / "token"
    audiences: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
    timeout: Duration = _timeout(2)
    cache: Duration = _cache(60)


class AuthenticatorSettings(BaseModel):
    """Who knows which credentials are good; `CredentialAuthentication` documents name them."""

    model_config = STRICT
    name: Annotated[str, Field(pattern="^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    api_keys: ApiKeySettings | None = None
    basic: BasicSettings | None = None
    introspection: IntrospectionSettings | None = None
    token_review: TokenReviewSettings | None = None

    @field_validator("name")
    @classmethod
    def _not_reserved(cls, value: str) -> str:
        if value in RESERVED_NAMES:
            raise ValueError(f"`{value}` is what issuers without an authenticator end in")
        return value

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if sum(getattr(self, kind.value) is not None for kind in Kind) != 1:
            raise ValueError(f"exactly one of {', '.join(f'`{kind.value}`' for kind in Kind)} is needed")
        return self

    @property
    def kind(self) -> Kind:
        """What this authenticator knows."""
        return next(kind for kind in Kind if getattr(self, kind.value, None) is not None)


def path_fields(data: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the mappings in `authenticators:` that hold paths, each with the path's key.

    `data` is as it stands in the file, and has been validated.
    """
    for one in data:
        yield from _path_fields(AuthenticatorSettings, one)


def _path_fields(model: type[BaseModel], data: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    for name, value in data.items():
        types = _types(model.model_fields[name].annotation)
        if Path in types and value is not None:
            yield data, name
        elif isinstance(value, dict):
            (inner,) = (one for one in types if isinstance(one, type) and issubclass(one, BaseModel))
            yield from _path_fields(inner, value)


def _types(annotation: Any) -> set[Any]:
    return {annotation}.union(*map(_types, get_args(annotation)))


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
