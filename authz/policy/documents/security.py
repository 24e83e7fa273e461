"""`security.istio.io`, `v1` and `v1beta1` (one schema under two names)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from authz.policy.documents.kubernetes import STRICT, NonEmpty, Resource


class WorkloadSelector(BaseModel):
    """The workloads that a document is for; no labels select every workload of the namespace."""

    model_config = STRICT
    matchLabels: dict[NonEmpty, str] = {}  # noqa: N815


class JwtHeader(BaseModel):
    """A header that may carry the token, after `prefix`."""

    model_config = STRICT
    name: NonEmpty
    prefix: str = ""


class JwtRule(BaseModel):
    """An issuer whose tokens are accepted."""

    model_config = STRICT
    issuer: NonEmpty
    audiences: list[NonEmpty] = []
    jwks: NonEmpty
    fromHeaders: list[JwtHeader] = []  # noqa: N815
    fromParams: list[NonEmpty] = []  # noqa: N815
    forwardOriginalToken: bool = False  # noqa: N815


class RequestAuthenticationSpec(BaseModel):
    """Which tokens are verified, for which workloads."""

    model_config = STRICT
    selector: WorkloadSelector = WorkloadSelector()
    jwtRules: Annotated[list[JwtRule], Field(max_length=4096)] = []  # noqa: N815


class RequestAuthentication(Resource):
    """Verifies the tokens that calls bring; a call without a token passes and has no request principal."""

    kind: Literal["RequestAuthentication"]
    spec: RequestAuthenticationSpec = RequestAuthenticationSpec()
