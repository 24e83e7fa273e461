"""Rate limits that `Check` charges: which descriptors a call is, as plain data. Pure; `RateLimits` counts.

A `RateLimitPolicy` names the descriptors; how much there is of each say the files of rate limits, which this
does not know. Values are those that policies see: a claim of a token that nobody verified is absent. What
cannot be told denies, unless the policy says otherwise: a call that nobody charges would have no limit.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from authz.attributes import Attributes
from authz.decision import Decision, ReasonCode, deny

_SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class EntryRule:
    """One entry: its key, and `value`, or without one the value of an attribute.

    Where the attribute is absent it is `default`; without one the descriptor does not apply (`skips`), or
    else the call is denied. `spelled` is the attribute as the policy has it.
    """

    key: str
    value: str = ""
    attribute: str = ""
    argument: str = ""
    spelled: str = ""
    default: str = ""
    skips: bool = False


@dataclass(frozen=True, slots=True)
class DescriptorRule:
    """One descriptor of a policy, the `index`-th, and how many hits a call counts for."""

    policy: str
    index: int
    entries: tuple[EntryRule, ...]
    hits: int


@dataclass(frozen=True, slots=True)
class DomainRules:
    """What calls to one destination are charged in one domain, by all policies."""

    domain: str
    descriptors: tuple[DescriptorRule, ...]


class LimitDescriptor(NamedTuple):
    """Charge `hits` to whatever limits these entries; `policy` and `rule` say who wants that."""

    entries: tuple[tuple[str, str], ...]
    hits: int
    policy: str
    rule: int


class LimitRequest(NamedTuple):
    """All descriptors of a call in one domain."""

    domain: str
    descriptors: tuple[LimitDescriptor, ...]


@dataclass(frozen=True, slots=True)
class OverLimit:
    """A limit that denies: the place of its descriptor in the request, and what operators call it."""

    descriptor: int
    limit: str


@dataclass(frozen=True, slots=True)
class LimitAnswer:
    """What came of a request: what denies it (nothing: it may pass), and what the caller is told.

    `wait` is in how many nanoseconds there will be enough again (0: not known, or never).
    """

    over: tuple[OverLimit, ...] = ()
    wait: int = 0
    headers: tuple[tuple[str, str], ...] = ()


class RateLimits(Protocol):
    """Who counts."""

    def spend(self, request: LimitRequest) -> LimitAnswer | Awaitable[LimitAnswer]:
        """Charge all descriptors of `request`, as a rate-limit service would that Envoy had asked.

        Raises:
            DependencyError: at once or when awaited: nobody can tell.

        """


def plan(rules: Iterable[DomainRules], attributes: Attributes) -> tuple[LimitRequest, ...] | Decision:
    """Return what a call is charged, domain by domain, or the denial if that cannot be told."""
    found: list[LimitRequest] = []
    for domain in rules:
        descriptors: list[LimitDescriptor] = []
        for rule in domain.descriptors:
            entries = _entries(rule, attributes)
            if isinstance(entries, Decision):
                return entries
            if entries is not None:
                descriptors.append(LimitDescriptor(entries, rule.hits, rule.policy, rule.index))
        if descriptors:
            found.append(LimitRequest(domain.domain, tuple(descriptors)))
    return tuple(found)


def _entries(rule: DescriptorRule, attributes: Attributes) -> tuple[tuple[str, str], ...] | Decision | None:
    """Return the entries for a call; None where the descriptor does not apply to it."""
    found: list[tuple[str, str]] = []
    for index, entry in enumerate(rule.entries):
        value = entry.value
        if not value:
            # What is there and empty tells callers apart no better than what is absent.
            values = {_text(one) for one in attributes.values(entry.attribute, entry.argument)} - {""}
            if len(values) > 1:
                return _undetermined(rule, index, f"`{entry.spelled}` has {len(values)} values")
            if values:
                (value,) = values
                if not _is_text(value):
                    return _undetermined(rule, index, f"`{entry.spelled}` is not UTF-8")
            elif entry.default:
                value = entry.default
            elif entry.skips:
                return None
            else:
                return _undetermined(rule, index, f"`{entry.spelled}` is absent")
        found.append((entry.key, value))
    return tuple(found)


def _text(value: object) -> str:
    # Of a list in another filter's metadata each element is a tuple.
    return value[0] if isinstance(value, tuple) else str(value)


def _is_text(value: str) -> bool:
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _undetermined(rule: DescriptorRule, entry: int, why: str) -> Decision:
    return deny(
        ReasonCode.RATE_LIMIT_UNDETERMINED,
        f"{why}: nobody can tell which limit counts",
        policy=rule.policy,
        rule=rule.index,
        field_path=f"spec.descriptors[{rule.index}].entries[{entry}]",
    )


def refusal(request: LimitRequest, answer: LimitAnswer | None) -> tuple[Decision, int] | None:
    """Return the denial and in how many seconds to come again (0: not known); None if the call may pass.

    Without an `answer` nobody can tell, which denies.
    """
    if answer is None:
        reason = f"the store does not answer, and a limit of domain `{request.domain}` denies without it"
        code = ReasonCode.RATE_LIMIT_UNAVAILABLE
        return _denied(request, 0, code, reason, 503, "the rate limit is not available"), 0
    if not answer.over:
        return None
    said = "; ".join(
        f"({', '.join(key for key, _ in request.descriptors[one.descriptor].entries)}): {one.limit}"
        for one in answer.over
    )
    reason = f"over the limit of domain `{request.domain}` for {said}"
    code, first = ReasonCode.RATE_LIMITED, answer.over[0].descriptor
    return _denied(request, first, code, reason, 429, "rate limit exceeded"), -(-answer.wait // _SECOND)


def _denied(  # noqa: PLR0917 - the parts of one decision
    request: LimitRequest, at: int, code: ReasonCode, reason: str, http_status: int, public: str
) -> Decision:
    one = request.descriptors[at]
    return deny(
        code,
        reason,
        http_status=http_status,
        public=public,
        policy=one.policy,
        rule=one.rule,
        field_path=f"spec.descriptors[{one.rule}]",
    )


def described(request: LimitRequest) -> Sequence[tuple[LimitDescriptor, str]]:
    """Return each descriptor with what it would be charged, for people."""
    return [
        (one, f"would take {one.hits} of domain {request.domain}: " + ", ".join(map("=".join, one.entries)))
        for one in request.descriptors
    ]
