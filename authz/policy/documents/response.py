"""`garrison.dev/v1alpha1` `ResponsePolicy`: what an answer changes besides allowing or denying."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, StringConstraints

from authz.policy.documents.kubernetes import STRICT, NonEmpty, Resource
from authz.policy.documents.security import WorkloadSelector

# RFC 9110, section 5.1: a field name is a token; pseudo headers and Host are not ours to set.
HeaderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}$")]


class HeaderChange(BaseModel):
    """One header; `value` may hold attributes, as in `${source.principal}`."""

    model_config = STRICT
    name: HeaderName
    value: str = ""
    action: Literal["REPLACE", "APPEND", "REMOVE"] = "REPLACE"


class Allowed(BaseModel):
    """What an allowed call carries on."""

    model_config = STRICT
    requestHeaders: list[HeaderChange] = Field(default_factory=list)  # noqa: N815
    responseHeaders: list[HeaderChange] = Field(default_factory=list)  # noqa: N815
    setParameters: dict[NonEmpty, str] = Field(default_factory=dict)  # noqa: N815
    removeParameters: list[NonEmpty] = Field(default_factory=list)  # noqa: N815
    metadata: dict[NonEmpty, str] = Field(default_factory=dict)


class Denied(BaseModel):
    """What a denied caller sees; `body` may hold attributes and `${reason}`, the public text."""

    model_config = STRICT
    forStatus: Annotated[list[int], Field(min_length=1)] | None = None  # noqa: N815
    status: Annotated[int, Field(ge=300, le=599)] | None = None
    contentType: NonEmpty = "text/plain"  # noqa: N815
    body: str | None = None
    headers: list[HeaderChange] = Field(default_factory=list)


class ResponsePolicySpec(BaseModel):
    """For which workloads, and what."""

    model_config = STRICT
    selector: WorkloadSelector | None = None
    allowed: Allowed = Allowed()
    denied: list[Denied] = Field(default_factory=list)


class ResponsePolicy(Resource):
    """Shapes the answers for the workloads it selects."""

    kind: Literal["ResponsePolicy"]
    spec: ResponsePolicySpec
