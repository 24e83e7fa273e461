"""`rbac.istio.io/v1alpha1`, as Istio 1.0 to 1.4 understood it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from authz.policy.documents.kubernetes import STRICT, NonEmpty, Resource

Patterns = list[NonEmpty]


class Constraint(BaseModel):
    """An attribute of the call and the values it may have."""

    model_config = STRICT
    key: NonEmpty
    values: Annotated[Patterns, Field(min_length=1)]


class AccessRule(BaseModel):
    """What may be done: all fields must hold; one value of a list suffices; an absent list means any."""

    model_config = STRICT
    services: Patterns = []
    methods: Patterns = []
    paths: Patterns = []
    constraints: list[Constraint] = []


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
    properties: dict[NonEmpty, str] = {}


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
    services: Patterns = []
    namespaces: Patterns = []


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
