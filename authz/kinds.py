"""Every kind of document that Garrison reads as policy: (apiVersion, kind) -> its shape."""

from __future__ import annotations

from authz.casbin_policy import API_VERSION, KIND, CasbinPolicy
from authz.mixer.documents import KINDS as MIXER_KINDS
from authz.policy.documents import (
    AuthenticationPolicy,
    AuthorizationPolicy,
    ClusterRbacConfig,
    CredentialAuthentication,
    MeshAuthenticationPolicy,
    PeerAuthentication,
    RateLimitPolicy,
    RbacConfig,
    RequestAuthentication,
    Resource,
    ResponsePolicy,
    ServiceRole,
    ServiceRoleBinding,
)

KINDS: dict[tuple[str, str], type[Resource]] = {
    ("rbac.istio.io/v1alpha1", "ServiceRole"): ServiceRole,
    ("rbac.istio.io/v1alpha1", "ServiceRoleBinding"): ServiceRoleBinding,
    ("rbac.istio.io/v1alpha1", "RbacConfig"): RbacConfig,
    ("rbac.istio.io/v1alpha1", "ClusterRbacConfig"): ClusterRbacConfig,
    ("security.istio.io/v1", "AuthorizationPolicy"): AuthorizationPolicy,
    ("security.istio.io/v1beta1", "AuthorizationPolicy"): AuthorizationPolicy,
    ("security.istio.io/v1", "PeerAuthentication"): PeerAuthentication,
    ("security.istio.io/v1beta1", "PeerAuthentication"): PeerAuthentication,
    ("security.istio.io/v1", "RequestAuthentication"): RequestAuthentication,
    ("security.istio.io/v1beta1", "RequestAuthentication"): RequestAuthentication,
    ("authentication.istio.io/v1alpha1", "Policy"): AuthenticationPolicy,
    ("authentication.istio.io/v1alpha1", "MeshPolicy"): MeshAuthenticationPolicy,
    **MIXER_KINDS,
    (API_VERSION, KIND): CasbinPolicy,
    ("garrison.dev/v1alpha1", "CredentialAuthentication"): CredentialAuthentication,
    ("garrison.dev/v1alpha1", "RateLimitPolicy"): RateLimitPolicy,
    ("garrison.dev/v1alpha1", "ResponsePolicy"): ResponsePolicy,
}
