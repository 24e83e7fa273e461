"""`security.istio.io`, `v1` and `v1beta1` (one schema under two names)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from authz.policy.documents.kubernetes import STRICT, NonEmpty, Resource

Values = list[NonEmpty]
MaybeValues = Annotated[Values, Field(min_length=1)] | None


class WorkloadSelector(BaseModel):
    """The workloads that a document is for; no labels select every workload of the namespace."""

    model_config = STRICT
    matchLabels: dict[NonEmpty, str] = Field(default_factory=dict)  # noqa: N815


class TargetRef(BaseModel):
    """A gateway or service that a document is for, in the document's own namespace."""

    model_config = STRICT
    group: str = ""
    kind: Literal["Gateway", "GatewayClass", "Service", "ServiceEntry"]
    name: NonEmpty
    namespace: str = ""


class Source(BaseModel):
    """Who calls: all fields must hold, one value of a list suffices."""

    model_config = STRICT
    principals: MaybeValues = None
    notPrincipals: MaybeValues = None  # noqa: N815
    requestPrincipals: MaybeValues = None  # noqa: N815
    notRequestPrincipals: MaybeValues = None  # noqa: N815
    namespaces: MaybeValues = None
    notNamespaces: MaybeValues = None  # noqa: N815
    serviceAccounts: MaybeValues = None  # noqa: N815
    notServiceAccounts: MaybeValues = None  # noqa: N815
    trustDomains: MaybeValues = None  # noqa: N815
    notTrustDomains: MaybeValues = None  # noqa: N815
    ipBlocks: MaybeValues = None  # noqa: N815
    notIpBlocks: MaybeValues = None  # noqa: N815
    remoteIpBlocks: MaybeValues = None  # noqa: N815
    notRemoteIpBlocks: MaybeValues = None  # noqa: N815


class From(BaseModel):
    """One source."""

    model_config = STRICT
    source: Source


class Operation(BaseModel):
    """What is done: all fields must hold, one value of a list suffices."""

    model_config = STRICT
    hosts: MaybeValues = None
    notHosts: MaybeValues = None  # noqa: N815
    ports: MaybeValues = None
    notPorts: MaybeValues = None  # noqa: N815
    methods: MaybeValues = None
    notMethods: MaybeValues = None  # noqa: N815
    paths: MaybeValues = None
    notPaths: MaybeValues = None  # noqa: N815


class To(BaseModel):
    """One operation."""

    model_config = STRICT
    operation: Operation


class When(BaseModel):
    """A further attribute and what it must or must not be."""

    model_config = STRICT
    key: NonEmpty
    values: Values = Field(default_factory=list)
    notValues: Values = Field(default_factory=list)  # noqa: N815


class AuthorizationRule(BaseModel):
    """Some source, some operation, and every condition; what is absent is not restricted."""

    model_config = STRICT
    from_: Annotated[list[From], Field(min_length=1)] | None = Field(default=None, alias="from")
    to: Annotated[list[To], Field(min_length=1)] | None = None
    when: Annotated[list[When], Field(min_length=1)] | None = None


class Provider(BaseModel):
    """The external authorizer of a CUSTOM policy, by its name in the settings."""

    model_config = STRICT
    name: NonEmpty


class AuthorizationPolicySpec(BaseModel):
    """The rules, what they do, and for which workloads."""

    model_config = STRICT
    selector: WorkloadSelector | None = None
    targetRef: TargetRef | None = None  # noqa: N815
    targetRefs: Annotated[list[TargetRef], Field(max_length=16)] = Field(default_factory=list)  # noqa: N815
    action: Literal["ALLOW", "DENY", "AUDIT", "CUSTOM"] = "ALLOW"
    provider: Provider | None = None
    rules: Annotated[list[AuthorizationRule], Field(max_length=512)] = Field(default_factory=list)


class AuthorizationPolicy(Resource):
    """Allows, denies, audits or delegates calls to the workloads it selects."""

    kind: Literal["AuthorizationPolicy"]
    spec: AuthorizationPolicySpec = AuthorizationPolicySpec()


class JwtHeader(BaseModel):
    """A header that may carry the token, after `prefix`."""

    model_config = STRICT
    name: NonEmpty
    prefix: str = ""


class ClaimToHeader(BaseModel):
    """A header that tells the upstream a claim; dots lead into claims that are objects."""

    model_config = STRICT
    header: NonEmpty
    claim: NonEmpty


class JwtRule(BaseModel):
    """An issuer whose tokens are accepted, and where its keys are: in `jwks`, at `jwksUri`, or discovered."""

    model_config = STRICT
    issuer: str = ""
    audiences: Values = Field(default_factory=list)
    jwks: NonEmpty | None = None
    jwksUri: NonEmpty | None = None  # noqa: N815
    timeout: NonEmpty | None = None
    fromHeaders: list[JwtHeader] = Field(default_factory=list)  # noqa: N815
    fromParams: Values = Field(default_factory=list)  # noqa: N815
    fromCookies: Values = Field(default_factory=list)  # noqa: N815
    forwardOriginalToken: bool = False  # noqa: N815
    outputPayloadToHeader: str = ""  # noqa: N815
    outputClaimToHeaders: list[ClaimToHeader] = Field(default_factory=list)  # noqa: N815
    spaceDelimitedClaims: Annotated[Values, Field(max_length=64)] = Field(default_factory=list)  # noqa: N815


class RequestAuthenticationSpec(BaseModel):
    """Which tokens are verified, for which workloads."""

    model_config = STRICT
    selector: WorkloadSelector | None = None
    targetRef: TargetRef | None = None  # noqa: N815
    targetRefs: Annotated[list[TargetRef], Field(max_length=16)] = Field(default_factory=list)  # noqa: N815
    jwtRules: Annotated[list[JwtRule], Field(max_length=4096)] = Field(default_factory=list)  # noqa: N815


Mode = Literal["UNSET", "DISABLE", "PERMISSIVE", "STRICT"]


class MutualTls(BaseModel):
    """Whether peers must, may or must not present a certificate; UNSET leaves it to the wider document."""

    model_config = STRICT
    mode: Mode = "UNSET"


class PeerAuthenticationSpec(BaseModel):
    """How the workloads may be reached; single ports may differ."""

    model_config = STRICT
    selector: WorkloadSelector | None = None
    mtls: MutualTls = MutualTls()
    portLevelMtls: dict[NonEmpty, MutualTls] | None = None  # noqa: N815


class PeerAuthentication(Resource):
    """Says whether the workloads it selects take mTLS, plaintext or both."""

    kind: Literal["PeerAuthentication"]
    spec: PeerAuthenticationSpec = PeerAuthenticationSpec()


class RequestAuthentication(Resource):
    """Verifies the tokens that calls bring; a call without a token passes and has no request principal."""

    kind: Literal["RequestAuthentication"]
    spec: RequestAuthenticationSpec = RequestAuthenticationSpec()
