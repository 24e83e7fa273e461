"""Compiled `CasbinPolicy` documents: what applies to a destination, and what it says of a call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from authz.attributes import Attributes
from authz.casbin_policy.engine import Engine, Ruling
from authz.casbin_policy.terms import MissingTerm, RequestTerm
from authz.destination import Destination

# A kept ruling is 0.3 KB with usual terms, 1.3 KB at most.
MAX_CACHED_DECISIONS = 10_000
MAX_CACHED_CHARACTERS = 1024


class CasbinCode(StrEnum):
    """Stable names of the ways a Casbin policy rules."""

    ALLOWED = "casbin_allowed"
    DENIED = "casbin_denied"
    NO_ROW = "casbin_no_row"
    TERM_UNUSABLE = "casbin_term_unusable"
    ERROR = "casbin_error"


@dataclass(frozen=True, slots=True)
class CasbinDecision:
    """What a policy says of a call.

    `policy` is `CasbinPolicy <namespace>/<name>`; `rule` the index of the row that decided among all rows as
    written, -1 when none did; `field` where the rows stand. `reason` is for operators and holds policy text
    and names of attributes, never a value of the call.
    """

    allowed: bool
    code: CasbinCode
    reason: str
    policy: str
    rule: int = -1
    field: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class CompiledPolicy:
    """One document, compiled; its rows come from the field `source`, `where` is that field or its file."""

    title: str
    namespace: str
    labels: tuple[tuple[str, str], ...]
    terms: tuple[RequestTerm, ...]
    engine: Engine
    source: str
    where: str


class CasbinPolicies:
    """All compiled policies of a snapshot, with one bounded memory of rulings for all of them."""

    def __init__(
        self,
        policies: Sequence[CompiledPolicy] = (),
        root_namespace: str = "istio-system",
        max_cached: int = MAX_CACHED_DECISIONS,
    ) -> None:
        self.policies = tuple(sorted(policies, key=lambda policy: policy.title))
        self._root_namespace = root_namespace
        # A ruling is a function of policy and terms alone: no clock, no counter, no mutable rows.
        self._ruling = lru_cache(maxsize=max_cached)(_ruling)

    def policies_for(self, destination: Destination) -> tuple[CompiledPolicy, ...]:
        """Return what applies to `destination`: its namespace's policies and those of the root namespace."""
        return tuple(
            policy
            for policy in self.policies
            if policy.namespace in {destination.namespace, self._root_namespace}
            and all(destination.labels.get(name) == value for name, value in policy.labels)
        )

    def check(self, policies: Sequence[CompiledPolicy], attributes: Attributes) -> CasbinDecision | None:
        """Return the first denial, else the last consent; None when no policy applies.

        Every policy that applies must allow the call: none of them can widen another. Never raises.
        """
        decision: CasbinDecision | None = None
        for decision in self.decisions(policies, attributes):
            if not decision.allowed:
                return decision
        return decision

    def decisions(
        self, policies: Sequence[CompiledPolicy], attributes: Attributes
    ) -> Iterator[CasbinDecision]:
        """Yield what each of `policies` says of a call, for explanations."""
        for policy in policies:
            try:
                yield self._decide(policy, attributes)
            except Exception as error:  # noqa: BLE001 - pycasbin documents no errors: any of them denies
                reason = f"{policy.title} could not decide: {type(error).__name__}"
                yield CasbinDecision(False, CasbinCode.ERROR, reason, policy.title)

    @property
    def cached(self) -> int:
        """How many rulings are kept; at most `max_cached`."""
        return self._ruling.cache_info().currsize

    def _decide(self, policy: CompiledPolicy, attributes: Attributes) -> CasbinDecision:
        terms: list[str] = []
        for term in policy.terms:
            value = term.read(attributes)
            if isinstance(value, MissingTerm):
                reason = f"{policy.title} cannot read `{term.name}`: {value.detail}"
                return CasbinDecision(
                    False, CasbinCode.TERM_UNUSABLE, reason, policy.title, field="spec.request"
                )
            terms.append(value)
        key = tuple(terms)
        short = sum(map(len, key)) <= MAX_CACHED_CHARACTERS
        ruling = self._ruling(policy, key) if short else _ruling(policy, key)
        return _decision(policy, ruling)


def _ruling(policy: CompiledPolicy, terms: tuple[str, ...]) -> Ruling:
    return policy.engine.decide(terms)


def _decision(policy: CompiledPolicy, ruling: Ruling) -> CasbinDecision:
    row = ruling.row
    if row is None:
        code = CasbinCode.ALLOWED if ruling.allowed else CasbinCode.NO_ROW
        reason = f"no row of {policy.title} matched"
        return CasbinDecision(ruling.allowed, code, reason, policy.title, field=policy.source)
    verb = "allows" if ruling.allowed else "denies"
    line = f" ({policy.where}, line {row.line})" if row.line else ""
    reason = f"{policy.title} {verb} by its row `{row}`{line}"
    code = CasbinCode.ALLOWED if ruling.allowed else CasbinCode.DENIED
    return CasbinDecision(ruling.allowed, code, reason, policy.title, row.ordinal, policy.source)
