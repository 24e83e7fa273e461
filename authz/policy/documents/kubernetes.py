"""What every Kubernetes-style document has."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

STRICT = ConfigDict(strict=True, extra="forbid", frozen=True)

NonEmpty = Annotated[str, StringConstraints(min_length=1)]


class Metadata(BaseModel):
    """`metadata`; what an API server adds to it is accepted and means nothing here."""

    model_config = STRICT
    name: NonEmpty
    namespace: NonEmpty = "default"
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    uid: str | None = None
    resourceVersion: str | None = None  # noqa: N815
    generation: int | None = None
    creationTimestamp: str | None = None  # noqa: N815
    managedFields: list[Any] | None = None  # noqa: N815
    ownerReferences: list[Any] | None = None  # noqa: N815
    finalizers: list[str] | None = None
    selfLink: str | None = None  # noqa: N815


class Resource(BaseModel):
    """A document with `apiVersion`, `kind` and `metadata`; kinds add `spec`."""

    model_config = STRICT
    apiVersion: str  # noqa: N815
    kind: str
    metadata: Metadata
    status: dict[str, Any] | None = Field(default=None, description="written by controllers; ignored")

    @property
    def title(self) -> str:
        """The document's name in decisions and messages: `<kind> <namespace>/<name>`."""
        return f"{self.kind} {self.metadata.namespace}/{self.metadata.name}"
