"""Process settings: defaults, then the file, then the environment, then flags; later ones win.

Every leaf of `Settings` has one name in three spellings: `request.transport` in the file,
`GARRISON_REQUEST_TRANSPORT` in the environment, `--request-transport` as a flag. A name that no setting has
is an error in each of them.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from importlib import import_module
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from authz.askers import Askers
from authz.authn.failures import DEFAULT_OVERALL, DEFAULT_PER_SENDER, Failures
from authz.authn.peers import FederatedDomain
from authz.casbin_policy import AdapterFactory
from authz.destination import Destination, destination_from_attributes
from authz.paths import PathNormalization
from authz.policy.compile import MeshSettings
from authz.providers import GrpcProvider
from authz.service import DecisionLog
from ca.federation import DEFAULT_MAX_STALE
from ca.issuer import MAX_TTL, MIN_TTL
from ca.jwt_keys import DEFAULT_KEY_LIFETIME, MIN_KEY_LIFETIME
from ca.registration import DEFAULT_JWT_TTL, Registration, Selector
from ca.rotation import OVERLAP
from ca.store.opening import LedgerPlace
from ca.store.redis_server import Safety
from ca.store.sentinels import SentinelPlace
from garrison.distribution.announcement import Trust
from garrison.distribution.bundle import DEFAULT_MAX_BUNDLE_BYTES
from garrison.distribution.channel import Channel
from garrison.distribution.follower import Followed
from garrison.distribution.keys import PublicKey
from garrison.documents import Diagnostic, Document, parse, validate
from garrison.documents.diagnostic import Position
from garrison.errors import ConfigError
from garrison.fetching import Fetcher
from garrison.identity import SpiffeId, TrustDomain
from garrison.keys.state import KeyRules
from garrison.process.attestation_settings import (
    CaTokenReviewSettings,
    TokenIssuerSettings,
    check_issuers,
)
from garrison.process.authenticators import AuthenticatorSettings, path_fields
from garrison.process.quota import StoreOptions
from garrison.process.setting_types import STRICT as _STRICT
from garrison.process.setting_types import Duration, FilePath, LedgerWhere, RedisUrl
from garrison.process.setting_types import text as _text
from garrison.redis_address import Credentials, RedisAddress
from garrison.transport.address import Address, Scheme
from garrison.transport.tls import TlsFiles
from garrison.urls import parse_network
from ratelimit.algorithm import OnStoreFailure
from ratelimit.compile import Options as LimitsOptions
from ratelimit.quotas import QuotaOptions
from ratelimit.response import HeaderNames, ResponseOptions

ENVIRONMENT_PREFIX = "GARRISON_"
# Kubernetes gives these to containers when a Service is called `garrison`; GARRISON_ENVOY is the demo's, and
# the passphrases are no settings, so that nothing prints them.
_NOT_OURS = re.compile(
    r"GARRISON_(SERVICE_(HOST|PORT.*)|PORT(_.*)?|ENVOY|CONFIG|CA_PASSPHRASE|CA_NEW_PASSPHRASE|AGENT_.*)"
)

# Envoy's largest header block (60 KiB by default) stands twice in a CheckRequest, and the body next to it;
# 64 MiB leaves room for every `max_request_bytes` in use.
_MAX_MESSAGE_BYTES = 64 * 1024 * 1024


def _member(names: type[StrEnum]) -> BeforeValidator:
    """Return a validator that takes the name of a member."""

    def parse_member(text: str) -> StrEnum:
        if text not in set(names):
            raise ValueError(f"`{text}` is none of {', '.join(names)}")
        return names(text)

    return _text(parse_member)


ListenAddress = Annotated[Address, _text(Address.parse)]
Domain = Annotated[TrustDomain, _text(TrustDomain.parse)]
Federated = Annotated[FederatedDomain, _text(FederatedDomain.parse)]
Normalization = Annotated[PathNormalization, _member(PathNormalization)]
Decisions = Annotated[DecisionLog, _member(DecisionLog)]
TrustedKey = Annotated[PublicKey, _text(PublicKey.parse)]
ChannelName = Annotated[str, _text(lambda text: Channel(text).name)]
FetchedNetwork = Annotated[IPv4Network | IPv6Network, _text(parse_network)]
SentinelAuth = Annotated[Credentials, _text(Credentials.parse)]
StoreFailure = Annotated[OnStoreFailure, _member(OnStoreFailure)]
# A token (RFC 9110, 5.6.2), as every field name is.
HeaderName = Annotated[str, Field(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")]
FileMode = Annotated[int, _text(lambda text: int(text, 8)), Field(ge=0, le=0o777)]


class TlsSettings(BaseModel):
    """PEM files of a TLS listener; with `client_ca` the caller must present a certificate (mTLS)."""

    model_config = _STRICT
    certificate: FilePath | None = Field(default=None, description="certificate chain, leaf first (PEM)")
    private_key: FilePath | None = Field(default=None, description="the certificate's private key (PEM)")
    client_ca: FilePath | None = Field(default=None, description="roots that callers are verified with (PEM)")

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("`certificate` and `private_key` go together")
        if self.client_ca is not None and self.certificate is None:
            raise ValueError("`client_ca` needs `certificate` and `private_key`")
        return self

    def files(self) -> TlsFiles | None:
        """Return the files for the transport, None without a certificate."""
        if self.certificate is None or self.private_key is None:
            return None
        return TlsFiles(self.certificate, self.private_key, self.client_ca)


class CaTlsSettings(BaseModel):
    """PEM files of the CA's own TLS listeners; callers are verified with the CA's own roots."""

    model_config = _STRICT
    certificate: FilePath | None = Field(default=None, description="certificate chain, leaf first (PEM)")
    private_key: FilePath | None = Field(default=None, description="the certificate's private key (PEM)")

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("`certificate` and `private_key` go together")
        return self

    def files(self, roots: Path) -> TlsFiles | None:
        """Return the files for the transport, None without a certificate."""
        if self.certificate is None or self.private_key is None:
            return None
        return TlsFiles(self.certificate, self.private_key, roots, is_client_optional=True)


class RequestSettings(BaseModel):
    """The request path: `Authorization`, `RateLimitService`, health."""

    model_config = _STRICT
    listen: list[ListenAddress] = Field(
        default=[Address.parse("tcp://127.0.0.1:9191")],
        description="where Envoys ask: tcp://, tls:// or unix://",
    )
    transport: Literal["ngh2", "grpcio"] = Field(default="ngh2", description="the HTTP/2 stack")
    max_message_bytes: int = Field(default=_MAX_MESSAGE_BYTES, ge=1024, description="largest request message")
    unix_mode: FileMode = Field(default=0o600, description="permissions of Unix sockets, such as 0660")
    require_asker_svid: bool = Field(
        default=False, description="answer Check only to sidecars with an SVID, about their own workload"
    )
    tls: TlsSettings = TlsSettings()

    @model_validator(mode="after")
    def _askers_can_show_one(self) -> Self:
        if self.require_asker_svid:
            if self.tls.client_ca is None:
                raise ValueError(
                    "`require_asker_svid` needs `tls.client_ca`: without, nobody can show an SVID"
                )
            if all(address.scheme is not Scheme.TLS for address in self.listen):
                raise ValueError("`require_asker_svid` needs a `tls://` address: only there are SVIDs shown")
        return self


class ControlSettings(BaseModel):
    """The control path: SDS, the Workload API, RLQS, health, reflection."""

    model_config = _STRICT
    listen: list[ListenAddress] = Field(
        default=[Address.parse("tcp://127.0.0.1:9192")],
        description="where SDS, Workload API, RLQS, health are; identities are given on unix:// only",
    )
    unix_mode: FileMode = Field(
        default=0o600, description="permissions of Unix sockets; 0666 for Envoys of other users"
    )
    tls: TlsSettings = TlsSettings()


class AdminSettings(BaseModel):
    """Admin HTTP: /healthz, /readyz, /metrics, /version, /ratelimit/…"""

    model_config = _STRICT
    listen: ListenAddress = Field(
        default=Address.parse("tcp://127.0.0.1:9190"), description="tcp:// address of admin HTTP"
    )

    @field_validator("listen")
    @classmethod
    def _tcp_only(cls, value: Address) -> Address:
        if value.scheme is not Scheme.TCP:
            raise ValueError("admin HTTP listens on `tcp://HOST:PORT` only")
        return value


class RotationSettings(BaseModel):
    """When authorities follow each other; see `docs/reference/rotation.md`."""

    model_config = _STRICT
    enabled: bool = Field(default=True, description="prepare, activate and retire authorities by schedule")
    overlap: Duration = Field(
        default=OVERLAP,
        description="how long a root is published at least before anything is signed under it",
    )


class OidcSettings(BaseModel):
    """HTTP for those who verify our tokens: OpenID discovery, keys, and the SPIFFE bundle."""

    model_config = _STRICT
    listen: ListenAddress | None = Field(
        default=None, description="tcp:// or tls:// address of discovery, keys and bundle; none: not served"
    )
    issuer: str | None = Field(
        default=None,
        pattern=r"^https?://[^/?#@\s]+(/[^?#\s]*[^/?#\s])?$",
        description="`iss` of JWT-SVIDs, the URL under which verifiers find `listen`; none: no `iss`",
    )
    tls: TlsSettings = TlsSettings()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.listen is None:
            return self
        if self.listen.scheme is Scheme.UNIX:
            raise ValueError("`listen` is `tcp://HOST:PORT` or `tls://HOST:PORT`")
        if self.listen.scheme is Scheme.TLS and self.tls.certificate is None:
            raise ValueError("a `tls://` address needs `tls.certificate` and `tls.private_key`")
        if self.tls.client_ca is not None:
            raise ValueError("`tls.client_ca` would keep verifiers out: what is served here is public")
        return self


class FederationSettings(BaseModel):
    """Bundles of other trust domains, which `ca federation` names, and ours for them."""

    model_config = _STRICT
    listen: ListenAddress | None = Field(
        default=None, description="tls:// address of our bundle for profile https_spiffe; none: not served"
    )
    spiffe_id: Annotated[SpiffeId, _text(SpiffeId.parse)] | None = Field(
        default=None, description="the SPIFFE ID that `listen` has, of our trust domain"
    )
    poll: Duration | None = Field(
        default=None, description="how often bundles are fetched; none: as their endpoints hint"
    )
    max_stale: Duration = Field(
        default=DEFAULT_MAX_STALE,
        description="how long a bundle counts that its endpoint no longer confirms",
    )
    web_roots: FilePath | None = Field(
        default=None,
        description="roots that https_web endpoints are verified with (PEM); none: those of the system",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.listen is None) != (self.spiffe_id is None):
            raise ValueError("`listen` and `spiffe_id` go together")
        if self.listen is not None and self.listen.scheme is not Scheme.TLS:
            raise ValueError("`listen` is `tls://HOST:PORT`")
        if self.spiffe_id is not None and not self.spiffe_id.segments:
            raise ValueError(f"`{self.spiffe_id}` has no path, so no endpoint can be it")
        if self.poll is not None and not timedelta(seconds=1) <= self.poll <= timedelta(days=1):
            raise ValueError("`poll` is between 1s and 24h")
        if not timedelta(minutes=1) <= self.max_stale <= timedelta(days=365):
            raise ValueError("`max_stale` is between 1m and 365d")
        return self


class CaSettings(BaseModel):
    """The CA: SDS, certificates for callers that attest themselves, agents."""

    model_config = _STRICT
    dir: FilePath | None = Field(default=None, description="folder that `ca init` wrote; none: no CA")
    ledger: LedgerWhere | None = Field(
        default=None,
        description="file or redis://, rediss:// (TLS) or unix:// URL of the CA's ledger; none: "
        "`ledger.sqlite3` in `ca.dir`",
    )
    ledger_ca: FilePath | None = Field(
        default=None, description="roots that a rediss:// ledger is verified with (PEM); none: the system's"
    )
    ledger_safety: Literal["require", "warn"] = Field(
        default="require", description="a Redis that may lose what it confirms: refuse it, or only warn"
    )
    ledger_replicas: int = Field(
        default=0, ge=0, le=16, description="how many replicas of Redis must have a change of the ledger too"
    )
    ledger_certificate: FilePath | None = Field(
        default=None, description="certificate for a rediss:// ledger that wants one of its clients (PEM)"
    )
    ledger_private_key: FilePath | None = Field(
        default=None, description="the certificate's private key (PEM)"
    )
    ledger_sentinel_master: str = Field(
        default="",
        description="what Sentinels call the ledger's server; then `ledger` is where one of them is",
    )
    ledger_sentinels: list[RedisUrl] = Field(
        default=[], description="URLs of further Sentinels, which differ from `ledger` in host and port"
    )
    ledger_sentinel_auth: SentinelAuth | None = Field(
        default=None, description="`PASSWORD` or `USER:PASSWORD` for the Sentinels themselves"
    )
    crl_in_sds: bool = Field(
        default=False, description="send the CRL with the trust bundle, so that Envoys refuse revoked peers"
    )
    passphrase_file: FilePath | None = Field(
        default=None,
        description="file with the passphrase of an encrypted CA key; none: `GARRISON_CA_PASSPHRASE`",
    )
    jwt_key_lifetime: Duration = Field(
        default=DEFAULT_KEY_LIFETIME, description="how long a key signs JWT-SVIDs before the next one does"
    )
    sds_file_folders: list[FilePath] = Field(
        default=[], description="folders whose files callers of SDS may name; none: no files"
    )
    oidc: OidcSettings = OidcSettings()
    rotation: RotationSettings = RotationSettings()
    listen: list[ListenAddress] = Field(
        default=[],
        description="where agents and signing requests are answered: unix://, and tls:// with or without "
        "a client certificate",
    )
    unix_mode: FileMode = Field(
        default=0o600, description="permissions of Unix sockets; 0666 for workloads of other users"
    )
    tls: CaTlsSettings = CaTlsSettings()
    max_ttl: Duration = Field(
        default=MAX_TTL, description="longest life of a certificate that may be asked for"
    )
    token_issuers: list[TokenIssuerSettings] = Field(default=[], description="whose JWTs say who a caller is")
    token_review: CaTokenReviewSettings = CaTokenReviewSettings()
    federation: FederationSettings = FederationSettings()

    @field_validator("jwt_key_lifetime")
    @classmethod
    def _long_enough(cls, value: timedelta) -> timedelta:
        if value < MIN_KEY_LIFETIME:
            raise ValueError(f"a key signs for at least {MIN_KEY_LIFETIME}, so that all know it before")
        return value

    @field_validator("max_ttl")
    @classmethod
    def _within_what_the_ca_signs(cls, value: timedelta) -> timedelta:
        if not MIN_TTL <= value <= MAX_TTL:
            raise ValueError("`max_ttl` is between 1s and 24h")
        return value

    @field_validator("token_issuers")
    @classmethod
    def _issuers_differ(cls, value: list[TokenIssuerSettings]) -> list[TokenIssuerSettings]:
        check_issuers(value)
        return value

    @model_validator(mode="after")
    def _listens_over_tls(self) -> Self:
        if self.listen and self.dir is None:
            raise ValueError("`listen` needs `dir`: without there is no CA")
        schemes = {address.scheme for address in self.listen}
        if Scheme.TCP in schemes:
            raise ValueError(
                "`listen` takes `tls://HOST:PORT` and `unix:///PATH`: no certificate without TLS"
            )
        if Scheme.TLS in schemes and self.tls.certificate is None:
            raise ValueError("`listen` needs `tls.certificate` and `tls.private_key`")
        return self

    @model_validator(mode="after")
    def _for_redis(self) -> Self:
        if not isinstance(self.ledger, RedisAddress) and (
            self.ledger_ca or self.ledger_replicas or self.ledger_certificate or self.ledger_sentinel_master
        ):
            raise ValueError(
                "`ledger_ca`, `ledger_replicas`, `ledger_certificate` and `ledger_sentinel_master` are for a "
                "ledger in Redis"
            )
        if not self.ledger_sentinel_master and (self.ledger_sentinels or self.ledger_sentinel_auth):
            raise ValueError("`ledger_sentinels` and `ledger_sentinel_auth` go with `ledger_sentinel_master`")
        self.ledger_place()
        return self

    def ledger_place(self) -> LedgerPlace:
        """Return where the ledger is.

        Raises:
            ValueError: what is said of it does not go together.

        """
        sentinels = SentinelPlace(
            self.ledger_sentinel_master,
            tuple(self.ledger_sentinels),
            self.ledger_sentinel_auth or Credentials(),
        )
        return LedgerPlace(
            self.ledger,
            self.ledger_ca,
            Safety(self.ledger_safety),
            self.ledger_replicas,
            self.ledger_certificate,
            self.ledger_private_key,
            sentinels if self.ledger_sentinel_master else None,
        )


class KeysSettings(BaseModel):
    """Keys of token issuers that are fetched; see `docs/reference/keys.md`."""

    model_config = _STRICT
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

    model_config = _STRICT
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

    model_config = _STRICT
    bad_signatures_per_second: int = Field(
        default=DEFAULT_OVERALL, ge=1, description="bad signatures looked at in one second, of all senders"
    )
    bad_signatures_per_sender: int = Field(
        default=DEFAULT_PER_SENDER, ge=1, description="the same of one address; above it, new tokens get 429"
    )


class RateLimitSettings(BaseModel):
    """How limits are read and answered; what they are stands in the files of `limits`."""

    model_config = _STRICT
    shadow_mode: bool = Field(
        default=False, description="allow every call; statuses and counts stay as they are"
    )
    quota_mode: bool = Field(default=False, description="treat every limit as if it had `quota_mode: true`")
    merge_domain_config: bool = Field(
        default=False, description="let several documents define descriptors of one domain"
    )
    response_headers: bool = Field(
        default=False, description="answer with headers of the limit that has least remaining"
    )
    limit_header: HeaderName = Field(default="RateLimit-Limit", description="its number of requests")
    remaining_header: HeaderName = Field(default="RateLimit-Remaining", description="what is left of it")
    reset_header: HeaderName = Field(default="RateLimit-Reset", description="seconds until its reset")
    response_dynamic_metadata: bool = Field(
        default=False,
        description="answer with the request and the `metadata` of what passed, for Envoy's filters",
    )
    redis: list[RedisUrl] = Field(
        default=[], description="redis://, rediss:// (TLS) or unix:// URLs of servers; none: counts in memory"
    )
    redis_mode: Literal["single", "sentinel", "cluster"] = Field(
        default="single",
        description="what the servers in `redis` are: the only one, Sentinels, or nodes of a Cluster",
    )
    redis_ca: FilePath | None = Field(
        default=None, description="roots that rediss:// is verified with (PEM); none: those of the system"
    )
    redis_certificate: FilePath | None = Field(
        default=None, description="certificate for servers that want one of their clients (PEM)"
    )
    redis_private_key: FilePath | None = Field(
        default=None, description="the certificate's private key (PEM)"
    )
    sentinel_master: str = Field(default="", description="what the Sentinels call the server")
    sentinel_auth: SentinelAuth | None = Field(
        default=None, description="`PASSWORD` or `USER:PASSWORD` for the Sentinels themselves"
    )
    key_prefix: str = Field(
        default="garrison",
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="what keys on the servers start with",
    )
    deadline: Duration = Field(
        default=timedelta(milliseconds=10),
        description="how long a call waits for the servers; Envoy waits 20 ms",
    )
    on_store_failure: StoreFailure = Field(
        default=OnStoreFailure.DENY,
        description="what limits answer without the servers, unless they say otherwise",
    )
    replicas: int = Field(
        default=1,
        ge=1,
        le=10_000,
        description="by how many `local` limits are divided: processes like this one",
    )
    embedded_max_bytes: int = Field(
        default=256 * 2**20,
        ge=16 * 2**20,
        le=2**40,
        description="most memory of the embedded Valkey, where several workers have no `redis`",
    )
    max_buckets: int = Field(default=200_000, ge=1, le=100_000_000, description="most counters in memory")

    @field_validator("deadline")
    @classmethod
    def _in_time(cls, value: timedelta) -> timedelta:
        if not timedelta(milliseconds=1) <= value <= timedelta(seconds=1):
            raise ValueError("`deadline` is between 1ms and 1s")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.redis_certificate is None) != (self.redis_private_key is None):
            raise ValueError("`redis_certificate` and `redis_private_key` go together")
        if self.redis_mode == "single" and len(self.redis) > 1:
            raise ValueError("several servers need `redis_mode: sentinel` or `redis_mode: cluster`")
        if self.redis_mode != "single" and not self.redis:
            raise ValueError(f"`redis_mode: {self.redis_mode}` needs `redis`")
        if (self.redis_mode == "sentinel") != bool(self.sentinel_master):
            raise ValueError("`sentinel_master` and `redis_mode: sentinel` go together")
        if self.redis_mode != "single" and any(address.scheme == "unix" for address in self.redis):
            raise ValueError("Sentinels and Clusters are reached by redis:// and rediss://")
        if self.redis_mode == "cluster" and any(address.database for address in self.redis):
            raise ValueError("a Cluster has no other database than 0")
        if len({(one.scheme, one.database, one.username, one.password) for one in self.redis}) > 1:
            raise ValueError("the URLs in `redis` differ in nothing but host and port")
        return self

    def store_options(self) -> StoreOptions:
        """Return where counts live."""
        return StoreOptions(
            self.redis,
            self.redis_mode,
            self.sentinel_master,
            self.sentinel_auth or Credentials(),
            self.redis_ca,
            self.redis_certificate,
            self.redis_private_key,
            self.key_prefix,
            self.deadline.total_seconds(),
            self.replicas,
            self.max_buckets,
        )

    def limits_options(self) -> LimitsOptions:
        """Return what limits are compiled with."""
        return LimitsOptions(self.quota_mode, self.merge_domain_config, self.on_store_failure)

    def response_options(self) -> ResponseOptions:
        """Return what answers hold."""
        names = HeaderNames(self.limit_header, self.remaining_header, self.reset_header)
        headers = names if self.response_headers else None
        return ResponseOptions(self.shadow_mode, headers, self.response_dynamic_metadata)


class RlqsSettings(BaseModel):
    """How limits are given out over RLQS; what they are stands in the files of `limits`."""

    model_config = _STRICT
    assignment_ttl: Duration = Field(
        default=timedelta(seconds=15),
        description="how long an Envoy may use what it was assigned; it reports, and is assigned, every 5s",
    )
    replicas: int = Field(
        default=1, ge=1, le=1000, description="how many Garrisons give out equal parts of every limit"
    )
    max_streams: int = Field(default=1000, ge=1, description="most Envoys")
    max_buckets: int = Field(default=10_000, ge=1, description="most buckets of one Envoy")
    max_total_buckets: int = Field(default=100_000, ge=1, description="most buckets of all Envoys")

    @field_validator("assignment_ttl")
    @classmethod
    def _outlives_a_report(cls, value: timedelta) -> timedelta:
        # Envoy drops parts of a second, and reports every five.
        if value % timedelta(seconds=1) or not timedelta(seconds=6) <= value <= timedelta(hours=1):
            raise ValueError("`assignment_ttl` is a number of whole seconds between 6s and 1h")
        return value

    def options(self, *, shadow_mode: bool) -> QuotaOptions:
        """Return what the service is told."""
        seconds = self.assignment_ttl // timedelta(seconds=1)
        return QuotaOptions(
            seconds, self.replicas, self.max_streams, self.max_buckets, self.max_total_buckets, shadow_mode
        )


class LogSettings(BaseModel):
    """What is logged, on standard error."""

    model_config = _STRICT
    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="least level")
    format: Literal["auto", "json", "console"] = Field(
        default="auto", description="auto: console on a terminal, else JSON lines"
    )
    decisions: Decisions = Field(default=DecisionLog.DENIED, description="which decisions get a line")
    decisions_per_second: int = Field(
        default=100, ge=0, description="most decisions that get a line in one second; the rest are counted"
    )


class WorkloadSettings(BaseModel):
    """A workload: the identity it gets over SDS, how it proves who it is, and the service that it is."""

    model_config = _STRICT
    spiffe_id: Annotated[SpiffeId, _text(SpiffeId.parse)]
    selectors: list[Annotated[Selector, _text(Selector.parse)]] = []
    svid_ttl: Duration = timedelta(hours=1)
    dns_names: list[str] = []
    jwt_ttl: Duration = DEFAULT_JWT_TTL
    federates_with: list[Domain] = []
    hint: str = ""
    service: str = ""
    namespace: str = ""
    labels: dict[str, str] = {}
    may_ask_about: list[Annotated[str, Field(pattern=r"^(\*|\*?[^*]+|[^*]+\*)$")]] = []

    @model_validator(mode="after")
    def _registers(self) -> Self:
        self.registration()
        return self

    def registration(self) -> Registration | None:
        """Return who gets the SVID, None without selectors.

        Raises:
            ValueError: the CA would refuse it.

        """
        if not self.selectors:
            return None
        return Registration(
            self.spiffe_id,
            tuple(self.selectors),
            self.svid_ttl,
            tuple(self.dns_names),
            federates_with=tuple(self.federates_with),
            jwt_ttl=self.jwt_ttl,
            hint=self.hint,
        )


class TrustBundleSettings(BaseModel):
    """Who vouches for the peers of a trust domain: PEM, its roots and the intermediates that issue.

    Or the bundle that its federation gives, with further intermediates from a file.
    """

    model_config = _STRICT
    trust_domain: Domain
    file: FilePath | None = None
    federation: bool = False
    intermediates: FilePath | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.file is not None) is self.federation:
            raise ValueError("roots come from a `file` or, with `federation: true`, from federation")
        if self.intermediates is not None and not self.federation:
            raise ValueError("`intermediates` go with `federation: true`; otherwise put them into `file`")
        return self


class FederatedBundleSettings(BaseModel):
    """What workloads are given to verify another trust domain with: a SPIFFE bundle, or roots in PEM."""

    model_config = _STRICT
    trust_domain: Domain
    file: FilePath


class ProviderSettings(BaseModel):
    """An external authorizer that CUSTOM policies may name: another ext_authz gRPC server."""

    model_config = _STRICT
    name: Annotated[str, Field(pattern="^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    address: ListenAddress
    timeout: Duration = timedelta(milliseconds=200)
    fail_open: bool = False
    status_on_error: int = Field(default=403, ge=400, le=599)


class CasbinAdapterSettings(BaseModel):
    """A Casbin store that CasbinPolicy documents may name: an adapter class and what it is made with."""

    model_config = _STRICT
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


class Settings(BaseModel):
    """Everything `garrison serve` can be told."""

    model_config = _STRICT
    trust_domain: Domain = Field(default=TrustDomain("cluster.local"), description="the mesh's trust domain")
    trust_domain_aliases: list[Domain] = Field(default=[], description="other names of the trust domain")
    federated_trust_domains: list[Federated] = Field(
        default=[],
        description="trust domains that may call too: `partner.example`, or `partner.example=shop`",
    )
    root_namespace: str = Field(default="istio-system", description="namespace of mesh-wide policies")
    path_normalization: Normalization = Field(
        default=PathNormalization.BASE, description="NONE, BASE, MERGE_SLASHES or DECODE_AND_MERGE_SLASHES"
    )
    namespace_path_normalization: dict[str, Normalization] = Field(
        default={}, description="the same for single namespaces, such as `{legacy: NONE}`"
    )
    require_peer_certificate: bool = Field(
        default=False, description="refuse peers with an identity whose certificate Envoy did not include"
    )
    policies: list[FilePath] = Field(default=[], description="policy files and folders, watched")
    limits: list[FilePath] = Field(default=[], description="rate-limit files and folders, watched")
    destination_from_host: bool = Field(
        default=False, description="take the destination from the Host header when nothing else names it"
    )
    drain_grace: Duration = Field(
        default=timedelta(seconds=10), description="how long calls in flight may take to finish at SIGTERM"
    )
    workers: int = Field(
        default=1,
        ge=1,
        le=64,
        description="processes for the request path; above 1 each has addresses of its own",
    )
    request: RequestSettings = RequestSettings()
    control: ControlSettings = ControlSettings()
    admin: AdminSettings = AdminSettings()
    ca: CaSettings = CaSettings()
    keys: KeysSettings = KeysSettings()
    rate_limit: RateLimitSettings = RateLimitSettings()
    rlqs: RlqsSettings = RlqsSettings()
    log: LogSettings = LogSettings()
    tokens: TokenSettings = TokenSettings()
    distribution: DistributionSettings = DistributionSettings()
    workloads: list[WorkloadSettings] = Field(default=[], description="who gets which identity")
    trust_bundles: list[TrustBundleSettings] = Field(
        default=[], description="what the certificates of peers are verified with, for each trust domain"
    )
    federated_bundles: list[FederatedBundleSettings] = Field(
        default=[], description="what workloads are given to verify other trust domains with"
    )
    casbin_adapters: list[CasbinAdapterSettings] = Field(
        default=[], description="Casbin stores that CasbinPolicy documents may name"
    )
    ext_authz_providers: list[ProviderSettings] = Field(
        default=[], description="who CUSTOM policies may delegate to"
    )
    authenticators: list[AuthenticatorSettings] = Field(
        default=[], description="who knows which credentials are good"
    )

    @field_validator("federated_trust_domains")
    @classmethod
    def _not_ours(cls, value: list[FederatedDomain], info: ValidationInfo) -> list[FederatedDomain]:
        ours = {info.data.get("trust_domain"), *info.data.get("trust_domain_aliases", ())}
        for one in value:
            if one.trust_domain in ours:
                raise ValueError(f"`{one.trust_domain}` is ours, so it may call everywhere")
        return value

    @field_validator("workloads")
    @classmethod
    def _known_trust_domains(
        cls, value: list[WorkloadSettings], info: ValidationInfo
    ) -> list[WorkloadSettings]:
        seen: set[SpiffeId] = set()
        for workload in value:
            if "trust_domain" in info.data and workload.spiffe_id.trust_domain != info.data["trust_domain"]:
                raise ValueError(
                    f"`{workload.spiffe_id}` is not in trust domain `{info.data['trust_domain']}`"
                )
            if workload.spiffe_id in seen:
                raise ValueError(f"`{workload.spiffe_id}` stands twice")
            seen.add(workload.spiffe_id)
        return value

    @model_validator(mode="after")
    def _can_verify(self) -> Self:
        seen: set[TrustDomain] = set()
        known = {self.trust_domain, *self.trust_domain_aliases}
        known |= {one.trust_domain for one in self.federated_trust_domains}
        for bundle in self.trust_bundles:
            if bundle.trust_domain in seen:
                raise ValueError(f"`trust_bundles` has `{bundle.trust_domain}` twice: put both into one file")
            if bundle.trust_domain not in known:
                raise ValueError(
                    f"`trust_bundles` has `{bundle.trust_domain}`, which is neither ours nor federated"
                )
            if bundle.federation and bundle.trust_domain == self.trust_domain:
                raise ValueError(
                    f"`trust_bundles` has `{bundle.trust_domain}` from federation, but it is ours: "
                    "with `ca.dir` our own CA vouches for it"
                )
            if bundle.federation and self.ca.dir is None:
                raise ValueError(
                    "`federation: true` in `trust_bundles` needs `ca.dir`, whose ledger has federations"
                )
            seen.add(bundle.trust_domain)
        if self.require_peer_certificate and not self.trust_bundles and self.ca.dir is None:
            raise ValueError("`require_peer_certificate` needs `trust_bundles` or `ca.dir` to verify with")
        return self

    @model_validator(mode="after")
    def _federates_with_others(self) -> Self:
        endpoint = self.ca.federation.spiffe_id
        if endpoint is not None and endpoint.trust_domain != self.trust_domain:
            raise ValueError(f"`ca.federation.spiffe_id` is not in trust domain `{self.trust_domain}`")
        if self.ca.federation.listen is not None and self.ca.dir is None:
            raise ValueError("`ca.federation.listen` needs `ca.dir`: without, there is no bundle to serve")
        names = [one.trust_domain for one in self.federated_bundles]
        if self.trust_domain in names:
            raise ValueError(f"`federated_bundles` has `{self.trust_domain}`, which is ours: `ca.dir` has it")
        if twice := sorted(str(name) for name in set(names) if names.count(name) > 1):
            raise ValueError(f"`federated_bundles` has `{twice[0]}` twice")
        return self

    @model_validator(mode="after")
    def _workers_listen_apart(self) -> Self:
        if self.workers == 1:
            return self
        taken = [(address, "control.listen") for address in self.control.listen]
        taken.append((self.admin.listen, "admin.listen"))
        if self.ca.oidc.listen is not None:
            taken.append((self.ca.oidc.listen, "ca.oidc.listen"))
        if self.ca.federation.listen is not None:
            taken.append((self.ca.federation.listen, "ca.federation.listen"))
        for number in range(self.workers):
            for configured in self.request.listen:
                address = configured.of_worker(number)
                for other, owner in taken:
                    if address.overlaps(other):
                        raise ValueError(f"worker {number} would listen on `{address}`, which is {owner}'s")
                taken.append((address, f"worker {number}"))
        return self

    @field_validator("authenticators")
    @classmethod
    def _names_differ(cls, value: list[AuthenticatorSettings]) -> list[AuthenticatorSettings]:
        names = [one.name for one in value]
        if twice := sorted(name for name in set(names) if names.count(name) > 1):
            raise ValueError(f"`{twice[0]}` stands twice")
        return value

    @property
    def mesh(self) -> MeshSettings:
        """The part that policies are compiled with."""
        return MeshSettings(
            self.trust_domain,
            tuple(self.trust_domain_aliases),
            self.root_namespace,
            self.path_normalization,
            tuple(sorted(self.namespace_path_normalization.items())),
            frozenset(provider.name for provider in self.ext_authz_providers),
            federated_trust_domains=tuple(sorted(set(self.federated_trust_domains))),
            authenticators=tuple(sorted((one.name, one.kind.value) for one in self.authenticators)),
            has_shared_store=bool(self.rate_limit.redis) or self.workers > 1,
        )

    def adapters(self) -> dict[str, AdapterFactory]:
        """Return the Casbin stores, by name.

        Raises:
            ConfigError: a class cannot be imported.

        """
        return {adapter.name: adapter.factory() for adapter in self.casbin_adapters}

    def providers(self) -> dict[str, GrpcProvider]:
        """Return the external authorizers, by name."""
        return {
            provider.name: GrpcProvider(
                provider.name,
                _grpc_target(provider.address),
                timeout_seconds=provider.timeout.total_seconds(),
                fail_open=provider.fail_open,
                status_on_error=provider.status_on_error,
            )
            for provider in self.ext_authz_providers
        }

    def failures(self) -> Failures:
        """Return what bounds the cost of bad tokens."""
        return Failures(self.tokens.bad_signatures_per_sender, self.tokens.bad_signatures_per_second)

    def registrations(self) -> list[Registration]:
        """Return who gets which SVID over SDS."""
        found = [workload.registration() for workload in self.workloads]
        return [registration for registration in found if registration is not None]

    def askers(self) -> Askers | None:
        """Return which sidecar may ask about which destination, None if whoever can ask may."""
        if not self.request.require_asker_svid:
            return None
        listed = {one.spiffe_id: one.may_ask_about for one in self.workloads if one.may_ask_about}
        return Askers(self.mesh.trust_domains, self.destinations(), listed)

    def destinations(self) -> dict[SpiffeId, Destination]:
        """Return the destination that each workload's SVID stands for."""
        found: dict[SpiffeId, Destination] = {}
        for workload in self.workloads:
            attributes = {
                "destination.service": workload.service,
                "destination.namespace": workload.namespace or workload.spiffe_id.namespace or "",
                "destination.user": workload.spiffe_id.service_account or "",
                **{f"destination.labels[{name}]": value for name, value in workload.labels.items()},
            }
            if destination := destination_from_attributes(attributes):
                found[workload.spiffe_id] = destination
        return found


def _grpc_target(address: Address) -> str:
    return f"unix:{address.path}" if address.scheme is Scheme.UNIX else f"{address.host}:{address.port}"


@dataclass(frozen=True, slots=True)
class Leaf:
    """One setting: its path, type and description."""

    path: tuple[str, ...]
    annotation: Any
    description: str
    default: Any

    @property
    def name(self) -> str:
        """The setting as the file spells it: `request.transport`."""
        return ".".join(self.path)

    @property
    def variable(self) -> str:
        """The setting as the environment spells it."""
        return ENVIRONMENT_PREFIX + "_".join(self.path).upper()

    @property
    def flag(self) -> str:
        """The setting as the command line spells it."""
        return "--" + "-".join(self.path).replace("_", "-")

    @property
    def is_list(self) -> bool:
        """Whether the setting holds several values."""
        return get_origin(self.annotation) is list


# Lists of mappings can only be written in the file.
_OF_OBJECTS = (
    list[WorkloadSettings],
    list[ProviderSettings],
    list[CasbinAdapterSettings],
    list[TrustBundleSettings],
    list[FederatedBundleSettings],
    list[AuthenticatorSettings],
    list[TokenIssuerSettings],
)


def leaves(model: type[BaseModel] = Settings, path: tuple[str, ...] = ()) -> Iterator[Leaf]:
    """Yield every setting that has one value or a list of plain values."""
    for name, info in model.model_fields.items():
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from leaves(annotation, (*path, name))
        elif get_origin(annotation) is not dict and annotation not in _OF_OBJECTS:
            yield Leaf((*path, name), annotation, info.description or "", info.default)


def load_settings(
    file: Path | None, environment: Mapping[str, str], flags: Mapping[str, str | tuple[str, ...]]
) -> Settings:
    """Return the settings; `flags` maps a setting's name (`request.transport`) to its text or texts.

    Relative paths in the file are relative to the file's folder, others to the working directory.

    Raises:
        ConfigError: a setting is unknown or wrong; each is named with where it came from.

    """
    return load_settings_and_data(file, environment, flags)[0]


def parse_settings(data: Mapping[str, Any]) -> Settings:
    """Return the settings that `load_settings_and_data` returned as `data`, in another process perhaps."""
    return Settings.model_validate(data)


def load_settings_and_data(
    file: Path | None, environment: Mapping[str, str], flags: Mapping[str, str | tuple[str, ...]]
) -> tuple[Settings, dict[str, Any]]:
    """Do as `load_settings` does, and return as well what all sources say together, as plain data."""
    problems: list[Diagnostic] = []
    data: dict[str, Any] = {}
    document = Document("settings", data)
    if file is not None:
        document, problems = _read(file)
        data = document.data
        if not problems:
            checked = validate(Settings, document)
            problems = checked if isinstance(checked, list) else []
        if problems:
            raise ConfigError(problems)
        _anchor_paths(data, file.parent)
    origins: dict[tuple[str, ...], str] = {}
    for origin, leaf, value in [*_from_environment(environment, problems), *_from_flags(flags)]:
        _put(data, leaf.path, _value(leaf, value))
        origins[leaf.path] = origin
    merged = Document(document.file, data, dict.fromkeys(_paths(data), Position(1, 1)))
    result = validate(Settings, merged)
    if isinstance(result, list):
        problems += [_at_origin(problem, origins) for problem in result]
    if problems or isinstance(result, list):
        raise ConfigError(problems)
    return result, data


def _read(file: Path) -> tuple[Document, list[Diagnostic]]:
    name = str(file)
    empty = Document(name, {})
    try:
        text = file.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        return empty, [Diagnostic(name, Position(1, 1), (), "unreadable", f"cannot be read: {reason}")]
    documents, problems = parse(text, name)
    if len(documents) > 1:
        second = documents[1].position(())
        problems.append(Diagnostic(name, second, (), "two_documents", "there can be only one document"))
    document = documents[0] if documents else empty
    if not isinstance(document.data, dict):
        problems.append(document.error((), "dict_type", "expected a mapping of settings"))
    return document, problems


def _from_environment(
    environment: Mapping[str, str], problems: list[Diagnostic]
) -> Iterator[tuple[str, Leaf, str | tuple[str, ...]]]:
    known = {leaf.variable: leaf for leaf in leaves()}
    for name in sorted(environment):
        if not name.startswith(ENVIRONMENT_PREFIX) or _NOT_OURS.fullmatch(name):
            continue
        leaf = known.get(name)
        if leaf is None:
            message = f"no setting is called `{name}`"
            problems.append(Diagnostic("environment", Position(1, 1), (), "unknown_setting", message))
            continue
        text = environment[name]
        value = tuple(part.strip() for part in text.split(",") if part.strip()) if leaf.is_list else text
        yield f"environment {name}", leaf, value


def _from_flags(
    flags: Mapping[str, str | tuple[str, ...]],
) -> Iterator[tuple[str, Leaf, str | tuple[str, ...]]]:
    for leaf in leaves():
        if leaf.name in flags:
            yield f"flag {leaf.flag}", leaf, flags[leaf.name]


def _value(leaf: Leaf, value: str | tuple[str, ...]) -> Any:
    if isinstance(value, tuple):
        return list(value)
    if leaf.annotation in {int, bool}:
        documents, _ = parse(value.encode(), leaf.name)
        return documents[0].data if documents else value
    return value


def _put(data: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for part in path[:-1]:
        data = data.setdefault(part, {})
    data[path[-1]] = value


def _anchor_paths(data: dict[str, Any], folder: Path) -> None:
    """Make the file's relative paths relative to the file's folder."""
    for leaf in leaves():
        holder: Any = data
        for part in leaf.path[:-1]:
            holder = holder.get(part, {})
        value = holder.get(leaf.path[-1])
        if value is None or Path not in _types(leaf.annotation):
            continue
        if RedisAddress in _types(leaf.annotation) and "://" in value:
            continue
        anchored = [str(folder / one) for one in value] if isinstance(value, list) else str(folder / value)
        holder[leaf.path[-1]] = anchored
    for bundle in (*data.get("trust_bundles", ()), *data.get("federated_bundles", ())):
        for name in {"file", "intermediates"} & bundle.keys():
            bundle[name] = str(folder / bundle[name])
    for issuer in data.get("ca", {}).get("token_issuers", ()):
        if "jwks_file" in issuer:
            issuer["jwks_file"] = str(folder / issuer["jwks_file"])
    for section, name in path_fields(data.get("authenticators", ())):
        section[name] = str(folder / section[name])


def _types(annotation: Any) -> set[Any]:
    return {annotation}.union(*(_types(argument) for argument in get_args(annotation)))


def _paths(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    yield path
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _paths(item, (*path, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _paths(item, (*path, index))


def _at_origin(problem: Diagnostic, origins: Mapping[tuple[str, ...], str]) -> Diagnostic:
    for path, origin in origins.items():
        if problem.field[: len(path)] == path:
            return Diagnostic(
                origin, Position(1, 1), problem.field, problem.code, problem.message, problem.help
            )
    return problem
