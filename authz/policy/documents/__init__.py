"""The shape of policy YAML: one module per API group, pydantic models only.

Unknown fields are errors in every kind: a field that is ignored is a policy that says something else than
its author thinks.
"""

from __future__ import annotations

from authz.policy.documents.authentication import AuthenticationPolicy, MeshAuthenticationPolicy
from authz.policy.documents.credentials import CredentialAuthentication
from authz.policy.documents.kubernetes import Metadata, Resource
from authz.policy.documents.rate_limits import RateLimitPolicy
from authz.policy.documents.rbac import ClusterRbacConfig, RbacConfig, ServiceRole, ServiceRoleBinding
from authz.policy.documents.response import ResponsePolicy
from authz.policy.documents.security import (
    AuthorizationPolicy,
    PeerAuthentication,
    RequestAuthentication,
)

__all__ = [
    "AuthenticationPolicy",
    "AuthorizationPolicy",
    "ClusterRbacConfig",
    "CredentialAuthentication",
    "MeshAuthenticationPolicy",
    "Metadata",
    "PeerAuthentication",
    "RateLimitPolicy",
    "RbacConfig",
    "RequestAuthentication",
    "Resource",
    "ResponsePolicy",
    "ServiceRole",
    "ServiceRoleBinding",
]
