"""The compiled form: what documents of every kind become once they are checked.

Plain data without closures, so that something other than `evaluate` can read it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from authz.authn.authentication import AuthenticationPolicy
from authz.authn.credentials import CredentialRules
from authz.authn.jwt import JwtRule
from authz.authn.keys import KeySource
from authz.authn.peers import PeerMode, TrustDomains
from authz.casbin_policy import CasbinPolicies
from authz.decision import Decision
from authz.mixer.rules import MixerPolicies
from authz.paths import PathNormalization
from authz.policy.matchers import Condition
from authz.rate_limits import DomainRules

if TYPE_CHECKING:
    from authz.policy.shaping import Shape


class Action(StrEnum):
    """What a matching rule does."""

    ALLOW = "ALLOW"
    DENY = "DENY"
    AUDIT = "AUDIT"
    CUSTOM = "CUSTOM"


@dataclass(frozen=True, slots=True)
class Alternative:
    """Conditions that must all hold; one of a rule's alternatives suffices. No conditions: anything."""

    field: str
    conditions: tuple[Condition, ...]
    origin: str = ""  # the other document that it comes from, such as the binding


# "Anything", for rules that do not restrict what is done or who does it.
ANYTHING = (Alternative("", ()),)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: some operation, some source and all of `when` must match.

    No sources at all means nobody (a role that is not bound), so a rule for anybody has `ANYTHING`.
    `decisions` holds the decision for each source, ready to be returned.
    """

    policy: str
    index: int
    action: Action
    operations: tuple[Alternative, ...]
    sources: tuple[Alternative, ...]
    when: tuple[Condition, ...]
    decisions: tuple[Decision, ...]
    provider: str = ""  # of CUSTOM


@dataclass(frozen=True, slots=True)
class Selector:
    """The workloads that a policy is for.

    `services` are patterns of `destination.service` (roles), `labels` the destination's labels, `conditions`
    read its other attributes; `targets` are gateway-style references `(kind, name)`. `any_namespace` is for
    policies of the root namespace.
    """

    namespace: str
    any_namespace: bool = False
    services: tuple[str, ...] | None = None
    labels: tuple[tuple[str, str], ...] = ()
    conditions: tuple[Condition, ...] = ()
    targets: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    """A compiled document, or one rule of a role: a selector and what is enforced where it selects.

    `tcp` holds the rules as they are for connections that are not HTTP. `shadow` rules are evaluated and
    reported, never enforced.
    """

    title: str
    selector: Selector
    action: Action
    rules: tuple[Rule, ...]
    tcp: tuple[Rule, ...]
    shadow: bool = False
    is_role: bool = False


@dataclass(frozen=True, slots=True)
class TokenPolicy:
    """The token rules of one `RequestAuthentication` and the workloads that they are for."""

    selector: Selector
    rules: tuple[JwtRule, ...]


class Scope(StrEnum):
    """How wide a `PeerAuthentication` is; the narrower one wins."""

    MESH = "mesh"
    NAMESPACE = "namespace"
    WORKLOAD = "workload"
    NOTHING = "nothing"  # a selector in the root namespace, which Istio does not look at


@dataclass(frozen=True, slots=True)
class PeerPolicy:
    """A compiled `PeerAuthentication`. A mode of None is UNSET: what the wider scope says.

    `created` is its age, in seconds since the epoch; None for documents that no API server has stamped.
    """

    title: str
    selector: Selector
    scope: Scope
    mode: PeerMode | None
    ports: tuple[tuple[int, PeerMode | None], ...]
    created: float | None


@dataclass(frozen=True, slots=True)
class AuthenticationTarget:
    """A service that a `Policy` is for, by its short name; no ports: all of them."""

    name: str
    labels: tuple[tuple[str, str], ...]
    ports: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TargetedAuthentication:
    """A `Policy` and the services of its namespace that it is for (none: all); a `MeshPolicy` has neither."""

    policy: AuthenticationPolicy
    namespace: str | None
    targets: tuple[AuthenticationTarget, ...]


@dataclass(frozen=True, slots=True)
class CredentialPolicy:
    """The rules of one `CredentialAuthentication` and the workloads that they are for."""

    title: str
    selector: Selector
    rules: CredentialRules


@dataclass(frozen=True, slots=True)
class LimitPolicy:
    """What one `RateLimitPolicy` charges, and the workloads that it is for."""

    title: str
    selector: Selector
    rules: DomainRules


@dataclass(frozen=True, slots=True)
class Enforcement:
    """Where roles are enforced. Without a `ClusterRbacConfig` (`policy` is empty): wherever there are any."""

    policy: str = ""
    mode: str = "ON"
    services: frozenset[str] = frozenset()
    namespaces: frozenset[str] = frozenset()
    permissive: bool = False


NO_MIXER = MixerPolicies("", {}, {}, frozenset())


@dataclass(frozen=True, slots=True)
class PolicySet:
    """Everything that was loaded, compiled."""

    policies: tuple[Policy, ...]
    tokens: tuple[TokenPolicy, ...]
    enforcement: Enforcement
    trust_domains: TrustDomains
    peers: tuple[PeerPolicy, ...] = ()
    authentication: tuple[TargetedAuthentication, ...] = ()  # by title
    credentials: tuple[CredentialPolicy, ...] = ()  # by title
    limits: tuple[LimitPolicy, ...] = ()
    shapes: tuple[Shape, ...] = ()
    mixer: MixerPolicies = NO_MIXER
    casbin: CasbinPolicies = field(default_factory=CasbinPolicies)
    key_sources: tuple[KeySource, ...] = ()  # keys that have to be fetched
    # Files beside the documents that they were compiled from, and what those held.
    files: tuple[Path, ...] = ()
    sources: tuple[bytes, ...] = ()
    path_normalization: PathNormalization = PathNormalization.BASE
    namespace_path_normalization: Mapping[str, PathNormalization] = field(default_factory=dict)
    has_roles: bool = False  # whether there is any role, binding or switch: `rbac.istio.io` is in use
