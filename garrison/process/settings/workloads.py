"""The identities of workloads, and what those of other trust domains are verified with."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Self

from pydantic import BaseModel, Field, model_validator

from ca.registration import DEFAULT_JWT_TTL, Registration, Selector
from garrison.identity import SpiffeId
from garrison.process.settings.types import STRICT, Domain, Duration, FilePath, from_text


class WorkloadSettings(BaseModel):
    """A workload: the identity it gets over SDS, how it proves who it is, and the service that it is."""

    model_config = STRICT
    spiffe_id: Annotated[SpiffeId, from_text(SpiffeId.parse)]
    selectors: list[Annotated[Selector, from_text(Selector.parse)]] = []
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

    model_config = STRICT
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

    model_config = STRICT
    trust_domain: Domain
    file: FilePath
