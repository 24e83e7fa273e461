"""`authenticators:` of the settings: who knows which credentials are good."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, Field, field_validator, model_validator

from authz.authn.credentials import Kind
from authz.policy.credentials import RESERVED_NAMES
from garrison.process.settings.types import STRICT, Duration, FilePath, RedisUrl, types_in
from garrison.redis_address import RedisAddress
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
        types = types_in(model.model_fields[name].annotation)
        if Path in types and value is not None:
            yield data, name
        elif isinstance(value, dict):
            (inner,) = (one for one in types if isinstance(one, type) and issubclass(one, BaseModel))
            yield from _path_fields(inner, value)
