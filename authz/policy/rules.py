"""The compiled form: what documents become once they are checked.

Plain data without closures, so that something other than `evaluate` can read it too.
"""

from __future__ import annotations

from dataclasses import dataclass

from authz.authn.jwt import JwtRule
from authz.decision import Decision
from authz.policy.matchers import Condition, StringMatcher


@dataclass(frozen=True, slots=True)
class Subject:
    """Someone whom a binding names: every condition must hold; none at all means anyone."""

    binding: str
    field: str
    conditions: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a role, joined with the subjects of all bindings that grant the role.

    None for `services`, `methods` or `paths` means any. `decisions` holds the allowing decision for each
    subject, ready to be returned.
    """

    policy: str
    namespace: str
    index: int
    services: StringMatcher | None
    destination: tuple[Condition, ...]
    methods: StringMatcher | None
    paths: StringMatcher | None
    constraints: tuple[Condition, ...]
    subjects: tuple[Subject, ...]
    decisions: tuple[Decision, ...]


@dataclass(frozen=True, slots=True)
class TokenPolicy:
    """The token rules of one `RequestAuthentication` and the workloads that they are for."""

    namespace: str
    labels: tuple[tuple[str, str], ...]
    rules: tuple[JwtRule, ...]


@dataclass(frozen=True, slots=True)
class Enforcement:
    """Where roles are enforced: a `ClusterRbacConfig`, or everywhere when there is none."""

    policy: str = ""
    mode: str = "ON"
    services: frozenset[str] = frozenset()
    namespaces: frozenset[str] = frozenset()
    permissive: bool = False


@dataclass(frozen=True, slots=True)
class PolicySet:
    """Everything that was loaded, compiled."""

    rules: tuple[Rule, ...]
    tokens: tuple[TokenPolicy, ...]
    enforcement: Enforcement
    root_namespace: str
