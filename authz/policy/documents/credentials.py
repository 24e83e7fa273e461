"""`garrison.dev/v1alpha1` `CredentialAuthentication`: ways besides JWTs to prove who one is."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from authz.policy.documents.kubernetes import STRICT, NonEmpty, Resource
from authz.policy.documents.response import HeaderName
from authz.policy.documents.security import TargetRef, Values, WorkloadSelector


class CredentialHeader(BaseModel):
    """A header that may carry the credential, after `prefix`."""

    model_config = STRICT
    name: HeaderName
    prefix: str = ""


class ForwardedClientCertificate(BaseModel):
    """`x-forwarded-client-cert`, believed of the peers that match."""

    model_config = STRICT
    trustedPeers: Annotated[Values, Field(min_length=1)]  # noqa: N815


class Anonymous(BaseModel):
    """Callers without any credential, by explicit choice."""

    model_config = STRICT


class CredentialMethod(BaseModel):
    """A way to prove who one is: exactly one of an authenticator, a forwarded certificate, and anonymous."""

    model_config = STRICT
    authenticator: NonEmpty | None = None
    fromHeaders: list[CredentialHeader] = Field(default_factory=list)  # noqa: N815
    fromParams: Values = Field(default_factory=list)  # noqa: N815
    fromCookies: Values = Field(default_factory=list)  # noqa: N815
    forwardedClientCertificate: ForwardedClientCertificate | None = None  # noqa: N815
    anonymous: Anonymous | None = None
    issuer: NonEmpty | None = None
    forward: bool = False


class CredentialAuthenticationSpec(BaseModel):
    """Which credentials are looked for, in this order, for which workloads, and whether one has to come."""

    model_config = STRICT
    selector: WorkloadSelector | None = None
    targetRef: TargetRef | None = None  # noqa: N815
    targetRefs: Annotated[list[TargetRef], Field(max_length=16)] = Field(default_factory=list)  # noqa: N815
    required: bool = False
    methods: Annotated[list[CredentialMethod], Field(min_length=1, max_length=64)]


class CredentialAuthentication(Resource):
    """Finds out who calls by API keys, passwords, opaque tokens or forwarded certificates."""

    kind: Literal["CredentialAuthentication"]
    spec: CredentialAuthenticationSpec
