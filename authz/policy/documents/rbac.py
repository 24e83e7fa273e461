"""`rbac.istio.io/v1alpha1`, as Istio 1.0 to 1.4 understood it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from authz.policy.documents.kubernetes import STRICT, NonEmpty, Resource

Patterns = list[NonEmpty]
Port = Annotated[int, Field(ge=0, le=65535)]


class Constraint(BaseModel):
    """An attribute of the call and the values it may have."""

    model_config = STRICT
    key: NonEmpty
    values: Annotated[Patterns, Field(min_length=1)]


class AccessRule(BaseModel):
    """What may be done: all fields must hold; one value of a list suffices; an absent list means any."""

    model_config = STRICT
    services: Patterns = Field(default_factory=list)
    methods: Patterns = Field(default_factory=list)
    not_methods: Patterns = Field(default_factory=list)
    paths: Patterns = Field(default_factory=list)
    not_paths: Patterns = Field(default_factory=list)
    hosts: Patterns = Field(default_factory=list)
    not_hosts: Patterns = Field(default_factory=list)
    ports: list[Port] = Field(default_factory=list)
    not_ports: list[Port] = Field(default_factory=list)
    constraints: list[Constraint] = Field(default_factory=list)


class ServiceRoleSpec(BaseModel):
    """A role's rules; one that holds suffices."""

    model_config = STRICT
    rules: Annotated[list[AccessRule], Field(min_length=1)]


class ServiceRole(Resource):
    """A set of permissions on services of the document's own namespace."""

    kind: Literal["ServiceRole"]
    spec: ServiceRoleSpec


class Subject(BaseModel):
    """Who is meant: all fields must hold."""

    model_config = STRICT
    user: NonEmpty | None = None
    group: NonEmpty | None = None
    properties: dict[NonEmpty, str] = Field(default_factory=dict)
    names: Patterns = Field(default_factory=list)
    not_names: Patterns = Field(default_factory=list)
    groups: Patterns = Field(default_factory=list)
    not_groups: Patterns = Field(default_factory=list)
    namespaces: Patterns = Field(default_factory=list)
    not_namespaces: Patterns = Field(default_factory=list)
    ips: Patterns = Field(default_factory=list)
    not_ips: Patterns = Field(default_factory=list)


class RoleRef(BaseModel):
    """The role that a binding grants, in the binding's own namespace."""

    model_config = STRICT
    kind: Literal["ServiceRole"]
    name: NonEmpty
    apiGroup: str | None = None  # noqa: N815


class ServiceRoleBindingSpec(BaseModel):
    """Who gets the role."""

    model_config = STRICT
    subjects: Annotated[list[Subject], Field(min_length=1)]
    roleRef: RoleRef  # noqa: N815
    mode: Literal["ENFORCED", "PERMISSIVE"] = "ENFORCED"


class ServiceRoleBinding(Resource):
    """Grants a role to subjects."""

    kind: Literal["ServiceRoleBinding"]
    spec: ServiceRoleBindingSpec


class Target(BaseModel):
    """Services and namespaces, compared as they are written."""

    model_config = STRICT
    services: Patterns = Field(default_factory=list)
    namespaces: Patterns = Field(default_factory=list)


class RbacConfigSpec(BaseModel):
    """Where roles are enforced."""

    model_config = STRICT
    mode: Literal["OFF", "ON", "ON_WITH_INCLUSION", "ON_WITH_EXCLUSION"]
    inclusion: Target | None = None
    exclusion: Target | None = None
    enforcement_mode: Literal["ENFORCED", "PERMISSIVE"] = "ENFORCED"


class RbacConfig(Resource):
    """The switch of Istio 1.0; a `ClusterRbacConfig` replaces it as a whole."""

    kind: Literal["RbacConfig"]
    spec: RbacConfigSpec


class ClusterRbacConfig(Resource):
    """The switch of Istio 1.1 to 1.4."""

    kind: Literal["ClusterRbacConfig"]
    spec: RbacConfigSpec
