"""`garrison.dev/v1alpha1`, kind `CasbinPolicy`: shape only. The format is in `docs/reference/casbin.md`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from authz.policy.documents.kubernetes import STRICT, NonEmpty, Resource

API_VERSION = "garrison.dev/v1alpha1"
KIND = "CasbinPolicy"


class Selector(BaseModel):
    """The workloads that a policy is for; no labels select every workload of the namespace."""

    model_config = STRICT
    matchLabels: dict[NonEmpty, str] = {}  # noqa: N815


class Term(BaseModel):
    """One of `r`'s terms: an attribute of the call behind a fixed prefix, or a fixed text."""

    model_config = STRICT
    attribute: NonEmpty | None = None
    prefix: str = ""
    literal: NonEmpty | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        """Read `source.principal` as `{attribute: source.principal}`."""
        return {"attribute": value} if isinstance(value, str) else value


class AdapterRef(BaseModel):
    """A store of policy rows that the operator listed in the settings under `name`."""

    model_config = STRICT
    name: NonEmpty


class CasbinPolicySpec(BaseModel):
    """A Casbin model, its policy rows, and what the call's terms are."""

    model_config = STRICT
    selector: Selector = Selector()
    model: NonEmpty | None = None
    modelFile: NonEmpty | None = None  # noqa: N815
    policy: str | None = None
    policyFile: NonEmpty | None = None  # noqa: N815
    adapter: AdapterRef | None = None
    request: Annotated[list[Term], Field(min_length=1, max_length=16)]


class CasbinPolicy(Resource):
    """Decides calls by a Casbin model; a call to a selected workload needs its consent."""

    kind: Literal["CasbinPolicy"]
    spec: CasbinPolicySpec
