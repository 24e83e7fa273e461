"""`garrison.dev/v1alpha1` `RateLimitPolicy`: which rate limits `Check` charges."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from authz.policy.documents.kubernetes import STRICT, NonEmpty, Resource
from authz.policy.documents.security import TargetRef, WorkloadSelector


class LimitEntry(BaseModel):
    """An entry of a descriptor: `value` as it is, or that of an `attribute`."""

    model_config = STRICT
    key: NonEmpty
    value: NonEmpty | None = None
    attribute: NonEmpty | None = None
    default: NonEmpty | None = None
    whenAbsent: Literal["DENY", "SKIP"] | None = None  # noqa: N815


class LimitDescriptor(BaseModel):
    """What Envoy would send as one descriptor."""

    model_config = STRICT
    entries: Annotated[list[LimitEntry], Field(min_length=1, max_length=64)]
    hitsAddend: Annotated[int, Field(ge=1, le=1_000_000_000)] = 1  # noqa: N815


class RateLimitPolicySpec(BaseModel):
    """For which workloads, and what is charged."""

    model_config = STRICT
    selector: WorkloadSelector | None = None
    targetRef: TargetRef | None = None  # noqa: N815
    targetRefs: Annotated[list[TargetRef], Field(max_length=16)] = Field(default_factory=list)  # noqa: N815
    domain: NonEmpty
    descriptors: Annotated[list[LimitDescriptor], Field(min_length=1, max_length=64)]


class RateLimitPolicy(Resource):
    """Charges calls that everything else allows against rate limits."""

    kind: Literal["RateLimitPolicy"]
    spec: RateLimitPolicySpec
