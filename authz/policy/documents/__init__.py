"""The shape of policy YAML: one module per API group, pydantic models only.

Unknown fields are errors in every kind: a field that is ignored is a policy that says something else than
its author thinks.
"""

from __future__ import annotations

from authz.policy.documents.kubernetes import Metadata, Resource
from authz.policy.documents.rbac import ClusterRbacConfig, RbacConfig, ServiceRole, ServiceRoleBinding
from authz.policy.documents.response import ResponsePolicy
from authz.policy.documents.security import AuthorizationPolicy, RequestAuthentication

KINDS: dict[tuple[str, str], type[Resource]] = {
    ("rbac.istio.io/v1alpha1", "ServiceRole"): ServiceRole,
    ("rbac.istio.io/v1alpha1", "ServiceRoleBinding"): ServiceRoleBinding,
    ("rbac.istio.io/v1alpha1", "RbacConfig"): RbacConfig,
    ("rbac.istio.io/v1alpha1", "ClusterRbacConfig"): ClusterRbacConfig,
    ("garrison.dev/v1alpha1", "ResponsePolicy"): ResponsePolicy,
    ("security.istio.io/v1", "AuthorizationPolicy"): AuthorizationPolicy,
    ("security.istio.io/v1beta1", "AuthorizationPolicy"): AuthorizationPolicy,
    ("security.istio.io/v1", "RequestAuthentication"): RequestAuthentication,
    ("security.istio.io/v1beta1", "RequestAuthentication"): RequestAuthentication,
}

__all__ = [
    "KINDS",
    "AuthorizationPolicy",
    "ClusterRbacConfig",
    "Metadata",
    "RbacConfig",
    "RequestAuthentication",
    "Resource",
    "ResponsePolicy",
    "ServiceRole",
    "ServiceRoleBinding",
]
