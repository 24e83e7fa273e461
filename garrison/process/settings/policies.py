"""What decisions rest on besides policies: keys, the channel of bundles, tokens, other authorizers."""

from __future__ import annotations

import ssl
from datetime import timedelta
from importlib import import_module
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, ValidationInfo, field_validator, model_validator

from authz.authn.failures import DEFAULT_OVERALL, DEFAULT_PER_SENDER
from authz.casbin_policy import AdapterFactory
from authz.providers import GrpcProvider
from garrison.distribution.announcement import Trust
from garrison.distribution.bundle import DEFAULT_MAX_BUNDLE_BYTES
from garrison.distribution.channel import Channel
from garrison.distribution.follower import Followed
from garrison.distribution.keys import PublicKey
from garrison.documents import Diagnostic
from garrison.documents.diagnostic import Position
from garrison.errors import ConfigError
from garrison.fetching import Fetcher
from garrison.keys.state import KeyRules
from garrison.process.settings.types import STRICT, Duration, FilePath, ListenAddress, RedisUrl, from_text
from garrison.transport.address import Address, Scheme
from garrison.urls import parse_network

TrustedKey = Annotated[PublicKey, from_text(PublicKey.parse)]
ChannelName = Annotated[str, from_text(lambda text: Channel(text).name)]
FetchedNetwork = Annotated[IPv4Network | IPv6Network, from_text(parse_network)]


class KeysSettings(BaseModel):
    """Keys of token issuers that are fetched; see `docs/reference/keys.md`."""

    model_config = STRICT
    refresh: Duration = Field(
        default=timedelta(minutes=20), description="how long keys live whose issuer does not say"
    )
    max_stale: Duration = Field(
        default=timedelta(days=1), description="how long keys are used that the issuer no longer confirms"
    )
    ca: FilePath | None = Field(
        default=None, description="roots that issuers are verified with (PEM); none: those of the system"
    )
    cache: FilePath | None = Field(
        default=None, description="folder that remembers keys for a start while an issuer is away"
    )
    blocked_ranges: list[FetchedNetwork] = Field(
        default=[], description="networks that keys, Mixer's lists and bundles are not fetched from"
    )

    @field_validator("refresh", "max_stale")
    @classmethod
    def _long_enough(cls, value: timedelta, info: ValidationInfo) -> timedelta:
        most = timedelta(days=1) if info.field_name == "refresh" else timedelta(days=365)
        if not timedelta(minutes=1) <= value <= most:
            raise ValueError(f"`{info.field_name}` is between 1m and {most.days}d")
        return value

    def rules(self) -> KeyRules:
        """Return what these settings say about times."""
        return KeyRules(self.max_stale.total_seconds(), self.refresh.total_seconds())

    def fetcher(self) -> Fetcher:
        """Return what fetches keys.

        Raises:
            ConfigError: `ca` cannot be used.

        """
        if self.ca is not None:
            try:
                ssl.create_default_context(cafile=str(self.ca))
            except OSError as error:
                message = f"`{self.ca}` holds no certificates to verify with: {error}"
                problem = Diagnostic("settings", Position(1, 1), ("keys", "ca"), "ca", message)
                raise ConfigError([problem]) from error
        return Fetcher(ca=self.ca, blocked=self.blocked_ranges)


class DistributionSettings(BaseModel):
    """Policies from a Redis channel that all replicas follow; see `docs/reference/distribution.md`."""

    model_config = STRICT
    redis: RedisUrl | None = Field(
        default=None, description="redis://, rediss:// (TLS) or unix:// URL; none: policies come from files"
    )
    redis_ca: FilePath | None = Field(
        default=None, description="roots that rediss:// is verified with (PEM); none: those of the system"
    )
    channel: ChannelName = Field(default="default", description="name of the channel")
    public_keys: list[TrustedKey] = Field(
        default=[], description="who may publish: `ed25519:…` as `garrison policies keygen` prints it"
    )
    unsigned_from_trusted_connection: bool = Field(
        default=False, description="believe whoever can write to Redis; needs rediss:// or unix://"
    )
    cache: FilePath | None = Field(
        default=None, description="folder that remembers the last good bundle for a start without Redis"
    )
    poll: Duration = Field(default=timedelta(seconds=5), description="how often to look, also untold")
    max_bundle_bytes: int = Field(
        default=DEFAULT_MAX_BUNDLE_BYTES, ge=1024, le=2**29, description="largest bundle that is taken"
    )
    replica: str = Field(
        default="",
        max_length=200,
        description="this replica's name in `garrison policies status`; none: host name and process id",
    )

    @field_validator("poll")
    @classmethod
    def _not_too_often(cls, value: timedelta) -> timedelta:
        if not timedelta(milliseconds=100) <= value <= timedelta(hours=1):
            raise ValueError("`poll` is between 100ms and 1h")
        return value

    @model_validator(mode="after")
    def _signed_or_trusted(self) -> Self:
        if self.redis is None:
            if self.public_keys or self.unsigned_from_trusted_connection:
                raise ValueError("`public_keys` and `unsigned_from_trusted_connection` need `redis`")
            return self
        if self.unsigned_from_trusted_connection:
            if self.public_keys:
                raise ValueError("either `public_keys` or `unsigned_from_trusted_connection`, not both")
            if not self.redis.is_trusted_connection:
                raise ValueError("`unsigned_from_trusted_connection` needs a `rediss://` or `unix://` URL")
        elif not self.public_keys:
            raise ValueError("`public_keys` says who may publish; without, nobody can be believed")
        return self

    def trust(self) -> Trust:
        """Return whose announcements are believed."""
        return Trust(self.channel, tuple(self.public_keys), self.unsigned_from_trusted_connection)

    def followed(self, replica: str) -> Followed:
        """Return what the follower is told; `replica` is its name unless the settings say another."""
        return Followed(
            self.trust(), self.replica or replica, self.max_bundle_bytes, self.poll.total_seconds()
        )


class TokenSettings(BaseModel):
    """What tokens may cost."""

    model_config = STRICT
    bad_signatures_per_second: int = Field(
        default=DEFAULT_OVERALL, ge=1, description="bad signatures looked at in one second, of all senders"
    )
    bad_signatures_per_sender: int = Field(
        default=DEFAULT_PER_SENDER, ge=1, description="the same of one address; above it, new tokens get 429"
    )


class ProviderSettings(BaseModel):
    """An external authorizer that CUSTOM policies may name: another ext_authz gRPC server."""

    model_config = STRICT
    name: Annotated[str, Field(pattern="^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    address: ListenAddress
    timeout: Duration = timedelta(milliseconds=200)
    fail_open: bool = False
    status_on_error: int = Field(default=403, ge=400, le=599)

    def provider(self) -> GrpcProvider:
        """Return what asks the server."""
        return GrpcProvider(
            self.name,
            _grpc_target(self.address),
            timeout_seconds=self.timeout.total_seconds(),
            fail_open=self.fail_open,
            status_on_error=self.status_on_error,
        )


def _grpc_target(address: Address) -> str:
    return f"unix:{address.path}" if address.scheme is Scheme.UNIX else f"{address.host}:{address.port}"


class CasbinAdapterSettings(BaseModel):
    """A Casbin store that CasbinPolicy documents may name: an adapter class and what it is made with."""

    model_config = STRICT
    name: Annotated[str, Field(min_length=1)]
    adapter: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]  # module:Class
    arguments: dict[str, str | int | bool] = {}

    def factory(self) -> AdapterFactory:
        """Return what makes the adapter.

        Raises:
            ConfigError: there is no such class.

        """
        module, _, name = self.adapter.partition(":")
        try:
            adapter: Any = getattr(import_module(module), name)
        except (ImportError, AttributeError) as error:
            where = ("casbin_adapters", self.name)
            message = f"`{self.adapter}` cannot be imported: {error}"
            problem = Diagnostic("settings", Position(1, 1), where, "adapter", message)
            raise ConfigError([problem]) from error
        return lambda: adapter(**self.arguments)
