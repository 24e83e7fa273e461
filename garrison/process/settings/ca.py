"""The CA: SDS, certificates for callers that attest themselves, rotation, OpenID discovery, federation."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from ca.federation import DEFAULT_MAX_STALE
from ca.issuer import MAX_TTL, MIN_TTL
from ca.jwt_keys import DEFAULT_KEY_LIFETIME, MIN_KEY_LIFETIME
from ca.rotation import OVERLAP
from ca.store.opening import LedgerPlace, parse_where
from ca.store.redis_server import Safety
from ca.store.sentinels import SentinelPlace
from garrison.identity import SpiffeId
from garrison.process.settings.attestation import CaTokenReviewSettings, TokenIssuerSettings
from garrison.process.settings.listeners import TlsSettings
from garrison.process.settings.types import (
    STRICT,
    Duration,
    FileMode,
    FilePath,
    ListenAddress,
    RedisUrl,
    SentinelAuth,
    check_distinct,
    from_text,
)
from garrison.redis_address import Credentials, RedisAddress
from garrison.transport.address import Scheme
from garrison.transport.tls import TlsFiles

LedgerWhere = Annotated[Path | RedisAddress, from_text(parse_where)]


class CaTlsSettings(BaseModel):
    """PEM files of the CA's own TLS listeners; callers are verified with the CA's own roots."""

    model_config = STRICT
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


class RotationSettings(BaseModel):
    """When authorities follow each other; see `docs/reference/rotation.md`."""

    model_config = STRICT
    enabled: bool = Field(default=True, description="prepare, activate and retire authorities by schedule")
    overlap: Duration = Field(
        default=OVERLAP,
        description="how long a root is published at least before anything is signed under it",
    )


class OidcSettings(BaseModel):
    """HTTP for those who verify our tokens: OpenID discovery, keys, and the SPIFFE bundle."""

    model_config = STRICT
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

    model_config = STRICT
    listen: ListenAddress | None = Field(
        default=None, description="tls:// address of our bundle for profile https_spiffe; none: not served"
    )
    spiffe_id: Annotated[SpiffeId, from_text(SpiffeId.parse)] | None = Field(
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

    model_config = STRICT
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
        check_distinct([one.issuer for one in value])
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
