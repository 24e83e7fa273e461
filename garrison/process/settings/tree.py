"""Everything `garrison serve` can be told: the settings of each area, and what must fit together."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Self, TypeVar

from pydantic import BaseModel, Field, ValidationInfo, field_validator, model_validator

from authz.askers import Askers
from authz.authn.failures import Failures
from authz.authn.peers import FederatedDomain
from authz.casbin_policy import AdapterFactory
from authz.destination import Destination, destination_from_attributes
from authz.paths import PathNormalization
from authz.policy.compile import MeshSettings
from authz.providers import GrpcProvider
from ca.registration import Registration
from garrison.identity import SpiffeId, TrustDomain
from garrison.process.settings.authenticators import AuthenticatorSettings
from garrison.process.settings.ca import CaSettings
from garrison.process.settings.listeners import AdminSettings, ControlSettings, RequestSettings
from garrison.process.settings.log import LogSettings
from garrison.process.settings.policies import (
    CasbinAdapterSettings,
    DistributionSettings,
    KeysSettings,
    ProviderSettings,
    TokenSettings,
)
from garrison.process.settings.rate_limits import RateLimitSettings, RlqsSettings
from garrison.process.settings.types import (
    STRICT,
    Domain,
    Duration,
    FilePath,
    check_distinct,
    from_text,
    member_of,
)
from garrison.process.settings.workloads import FederatedBundleSettings, TrustBundleSettings, WorkloadSettings

Federated = Annotated[FederatedDomain, from_text(FederatedDomain.parse)]
Normalization = Annotated[PathNormalization, member_of(PathNormalization)]

Named = TypeVar("Named", list[AuthenticatorSettings], list[CasbinAdapterSettings], list[ProviderSettings])


class Settings(BaseModel):
    """Everything `garrison serve` can be told."""

    model_config = STRICT
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
        for workload in value:
            if "trust_domain" in info.data and workload.spiffe_id.trust_domain != info.data["trust_domain"]:
                raise ValueError(
                    f"`{workload.spiffe_id}` is not in trust domain `{info.data['trust_domain']}`"
                )
        check_distinct([str(workload.spiffe_id) for workload in value])
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

    @field_validator("authenticators", "casbin_adapters", "ext_authz_providers")
    @classmethod
    def _names_differ(cls, value: Named) -> Named:
        check_distinct([one.name for one in value])
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
        return {provider.name: provider.provider() for provider in self.ext_authz_providers}

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
