"""How callers of the CA prove who they are; see `docs/reference/attestation.md`."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from ca.attestors.jwt import TrustedIssuer
from garrison.fetching import Fetcher
from garrison.keys.discovery import check_source
from garrison.keys.jwks import KeySet, KeySetError, KeySource, parse_jwks
from garrison.process.settings.types import STRICT, Duration, FilePath
from garrison.token_review import MAX_ANSWER_BYTES, ApiServer, NotAuthenticated, ReviewedUser, ask
from garrison.urls import check_url

_IN_POD = Path("/var/run/secrets/kubernetes.io/serviceaccount")
Audience = Annotated[str, Field(min_length=1)]


class TokenIssuerSettings(BaseModel):
    """An issuer whose JWTs say who a caller is, and where its keys are; without, its discovery says where."""

    model_config = STRICT
    issuer: Annotated[str, Field(min_length=1)]
    audiences: Annotated[list[Audience], Field(min_length=1)]
    jwks_uri: str = ""
    jwks_file: FilePath | None = None
    jwks: str = ""
    kubernetes: bool = False

    @model_validator(mode="after")
    def _has_one_place_of_keys(self) -> Self:
        if sum(map(bool, (self.jwks_uri, self.jwks_file, self.jwks))) > 1:
            raise ValueError("only one of `jwks_uri`, `jwks_file` and `jwks` says where the keys are")
        if self.jwks_file is not None and not self.jwks_file.is_absolute():
            return self  # anchored when the file of settings is known
        if problem := self._problem():
            raise ValueError(problem)
        return self

    def _problem(self) -> str:
        keys = self._keys()
        return check_source(keys) if isinstance(keys, KeySource) else ""

    def _keys(self) -> KeySource | KeySet:
        if self.jwks:
            try:
                return KeySet(parse_jwks(self.jwks))
            except KeySetError as error:
                raise ValueError(f"`jwks` {error}") from error
        if self.jwks_file is not None:
            return KeySource(self.jwks_file.absolute().as_uri())
        return KeySource(self.jwks_uri, "" if self.jwks_uri else self.issuer)

    def trusted(self) -> TrustedIssuer:
        """Return the issuer as attestors know it."""
        return TrustedIssuer(self.issuer, frozenset(self.audiences), self._keys(), self.kubernetes)


class CaTokenReviewSettings(BaseModel):
    """A Kubernetes API server that is asked about tokens; the defaults are those inside a pod."""

    model_config = STRICT
    audiences: list[Audience] = Field(
        default=[], description="ask about tokens for one of these audiences; none: nothing is asked"
    )
    server: str = Field(
        default="https://kubernetes.default.svc", description="https:// URL of the API server"
    )
    ca: FilePath = Field(default=_IN_POD / "ca.crt", description="roots that it is verified with (PEM)")
    token_file: FilePath = Field(
        default=_IN_POD / "token", description="our own token, which may create TokenReviews"
    )
    timeout: Duration = Field(default=timedelta(seconds=2), description="how long it may take to answer")

    @field_validator("server")
    @classmethod
    def _over_tls(cls, value: str) -> str:
        if problem := check_url(value):
            raise ValueError(problem)
        if not value.startswith("https://"):
            raise ValueError("tokens are sent to `https://` only")
        return value

    @field_validator("timeout")
    @classmethod
    def _in_time(cls, value: timedelta) -> timedelta:
        if not timedelta(milliseconds=10) <= value <= timedelta(seconds=30):
            raise ValueError("`timeout` is between 10ms and 30s")
        return value

    def review(self) -> Any:
        """Return what asks, None without audiences."""
        if not self.audiences:
            return None
        server = ApiServer(self.server, self.token_file, tuple(self.audiences))
        fetcher = Fetcher(self.timeout.total_seconds(), ca=self.ca, max_bytes=MAX_ANSWER_BYTES)

        def review(token: str) -> ReviewedUser | NotAuthenticated:
            return ask(server, fetcher, token)

        return review
