"""Where a server listens: the request path, the control path, admin HTTP."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from garrison.process.settings.types import STRICT, FileMode, FilePath, ListenAddress
from garrison.transport.address import Address, Scheme
from garrison.transport.tls import TlsFiles

# Envoy's largest header block (60 KiB by default) stands twice in a CheckRequest, and the body next to it;
# 64 MiB leaves room for every `max_request_bytes` in use.
_MAX_MESSAGE_BYTES = 64 * 1024 * 1024


class TlsSettings(BaseModel):
    """PEM files of a TLS listener; with `client_ca` the caller must present a certificate (mTLS)."""

    model_config = STRICT
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


class RequestSettings(BaseModel):
    """The request path: `Authorization`, `RateLimitService`, health."""

    model_config = STRICT
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

    model_config = STRICT
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

    model_config = STRICT
    listen: ListenAddress = Field(
        default=Address.parse("tcp://127.0.0.1:9190"), description="tcp:// address of admin HTTP"
    )

    @field_validator("listen")
    @classmethod
    def _tcp_only(cls, value: Address) -> Address:
        if value.scheme is not Scheme.TCP:
            raise ValueError("admin HTTP listens on `tcp://HOST:PORT` only")
        return value
