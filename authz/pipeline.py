"""One call, from attributes to outcome: the peer, CUSTOM, tokens, policies of every kind.

The order is Istio's: the connection; then CUSTOM, without identities from tokens; then tokens and other
credentials; then what never decides, what denies, what allows. Everything here is a function of its
arguments; the steps that may wait are left to the caller: asking an external authorizer (`Delegation`),
asking who knows a credential (`Inquiry`), charging rate limits and quotas (`Charge`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from authz import rate_limits
from authz.attributes import Attributes
from authz.authn import authentication, credentials, jwt, peers
from authz.authn.authentication import AuthenticationRules
from authz.authn.credentials import Answer, Inquiry
from authz.decision import (
    NO_MUTATIONS,
    Decision,
    Explanation,
    HeaderAction,
    HeaderMutation,
    Mutations,
    Outcome,
    ReasonCode,
    Step,
    Verdict,
    allow,
    deny,
)
from authz.environment import OFFLINE, Environment
from authz.mixer import evaluate as mixer
from authz.mixer import quotas
from authz.mixer.evaluate import HeaderOperation, Lists
from authz.mixer.quotas import QuotaAnswer, QuotaCharge
from authz.mixer.rules import DestinationRules
from authz.paths import change_query
from authz.policy.evaluate import custom_matches, evaluate, explained, marks
from authz.policy.index import DestinationPolicies
from authz.policy.shaping import shaped
from authz.rate_limits import LimitAnswer, LimitRequest

UNKNOWN_DESTINATION = deny(
    ReasonCode.UNKNOWN_DESTINATION,
    "the call names no destination: set `destination.service` in the filter's context_extensions",
)

_DENY = Verdict.DENY
_CHARGE_DENIALS = frozenset(
    {
        ReasonCode.QUOTA_EXHAUSTED,
        ReasonCode.QUOTA_UNAVAILABLE,
        ReasonCode.RATE_LIMIT_UNDETERMINED,
    }
)

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Delegation:
    """CUSTOM rules matched: each named provider has to allow before anything else is looked at."""

    decisions: tuple[Decision, ...]  # what denies when a provider does not allow
    providers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Charge:
    """Everything allowed the call: `outcome` is what it comes to if nothing that it is charged denies it.

    The first of `limits` has to be charged next (`limited`), after all of them `charges` (`charged`): so what
    a limit denies takes nothing of a quota.
    """

    charges: Sequence[QuotaCharge]
    outcome: Outcome
    limits: Sequence[LimitRequest] = ()


def decide(
    policies: DestinationPolicies | None,
    attributes: Attributes,
    clock: Clock,
    environment: Environment = OFFLINE,
) -> Outcome | Delegation | Inquiry | Charge:
    """Return what the call comes to, or who has to be asked first; `clock` gives seconds since the epoch."""
    if policies is None:
        return Outcome(UNKNOWN_DESTINATION)
    refused = None
    verifier = environment.bundles.current
    if verifier is not None or attributes.reported not in policies.peers.admitted:
        refused = peers.refusal(policies.peers, attributes, clock, verifier)
    if refused is None and policies.authentication is not None:
        refused = authentication.peer_denial(policies.authentication, attributes)
    if refused is not None:
        return finish(policies, Outcome(refused), attributes)
    if policies.has_custom:
        matched = custom_matches(policies, attributes)
        if matched:
            return Delegation(tuple(decision for _, decision in matched), tuple(name for name, _ in matched))
    return decide_here(policies, attributes, clock, environment)


def decide_here(
    policies: DestinationPolicies,
    attributes: Attributes,
    clock: Clock,
    environment: Environment = OFFLINE,
    answer: Answer | None = None,
) -> Outcome | Inquiry | Charge:
    """Return what the call comes to when every external authorizer that matters has allowed it.

    Tokens, credentials, DENY, ALLOW or roles, Mixer's rules, Casbin, limits, quotas: whatever applies has to
    let the call through. `answer` is what came of an `Inquiry` that this returned before.
    """
    mutations = NO_MUTATIONS
    if policies.tokens is not None:
        tokens = jwt.authenticate(policies.tokens, attributes, clock, environment.keys, environment.failures)
        if tokens.denial is not None:
            return finish(policies, Outcome(tokens.denial), attributes)
        attributes.claims, mutations = tokens.claims, tokens.mutations
    if policies.authentication is not None:
        denial = _origin(policies.authentication, attributes, clock, environment)
        if denial is not None:
            return finish(policies, Outcome(denial), attributes)
    if policies.credentials is not None:
        found = credentials.authenticate(
            policies.credentials,
            attributes,
            clock,
            environment.authenticators,
            tokens=policies.tokens,
            identified=attributes.claims is not None,
            answer=answer,
        )
        if isinstance(found, Inquiry):
            return found
        if found.denial is not None:
            return finish(policies, Outcome(found.denial), attributes)
        if found.claims is not None:
            attributes.claims = found.claims
        if found is not credentials.NOTHING_FOUND:
            mutations = _both(mutations, found.mutations)
    return _authorize(
        policies, Outcome(evaluate(policies, attributes), mutations), attributes, clock, environment
    )


def _authorize(
    policies: DestinationPolicies,
    outcome: Outcome,
    attributes: Attributes,
    clock: Clock,
    environment: Environment,
) -> Outcome | Charge:
    """Return what becomes of a call after policies and roles: Mixer, Casbin, remarks, charges."""
    if policies.mixer is not None and outcome.decision.allowed:
        _ask_mixer(policies.mixer, outcome, attributes, clock, environment.lists)
    if policies.casbin and outcome.decision.allowed:
        _ask_casbin(policies, outcome, attributes)
    if policies.has_marks:
        outcome.marks = {**outcome.marks, **marks(policies, attributes)}
    if policies.is_charged and outcome.decision.allowed:
        return _planned(policies, outcome, attributes, clock)
    return finish(policies, outcome, attributes)


def _planned(
    policies: DestinationPolicies,
    outcome: Outcome,
    attributes: Attributes,
    clock: Clock,
) -> Outcome | Charge:
    """Return what an allowed call is charged, or, if that is nothing, what it comes to."""
    limits = rate_limits.plan(policies.limits, attributes)
    if isinstance(limits, Decision):
        return finish(policies, Outcome(limits, marks=outcome.marks), attributes)
    charges = quotas.plan(policies.quotas, attributes, clock()) if policies.quotas is not None else ()
    if isinstance(charges, Decision):
        outcome = Outcome(charges, marks=outcome.marks)
    elif charges or limits:
        return Charge(charges, outcome, limits)
    return finish(policies, outcome, attributes)


def limited(
    policies: DestinationPolicies, charge: Charge, answer: LimitAnswer | None, attributes: Attributes
) -> Outcome | Charge:
    """Return what becomes of a call whose first limits were charged; None: nobody could tell."""
    outcome, left = charge.outcome, charge.limits[1:]
    told = answer.headers if answer is not None else ()
    headers = tuple(HeaderMutation(name, value) for name, value in told)
    refused = rate_limits.refusal(charge.limits[0], answer)
    if refused is not None:
        decision, seconds = refused
        mutations = Mutations(response_headers=headers + _retry_after(seconds))
        return finish(policies, Outcome(decision, mutations, outcome.marks), attributes)
    if headers:
        mutations = outcome.mutations
        headers = mutations.response_headers + headers
        outcome.mutations = replace(mutations, response_headers=headers, shaped=True)
    if left or charge.charges:
        return Charge(charge.charges, outcome, left)
    return finish(policies, outcome, attributes)


def _retry_after(seconds: int) -> tuple[HeaderMutation, ...]:
    # RFC 9110, section 10.2.3.
    return (HeaderMutation("retry-after", str(seconds)),) if seconds else ()


def charged(
    policies: DestinationPolicies,
    charge: Charge,
    answers: Sequence[QuotaAnswer] | None,
    attributes: Attributes,
) -> Outcome:
    """Return what a call comes to whose quotas were asked for; None: nobody could tell."""
    refused = quotas.refusal(charge.charges, answers)
    outcome = charge.outcome
    if refused is not None:
        decision, seconds = refused
        outcome = Outcome(decision, Mutations(response_headers=_retry_after(seconds)), outcome.marks)
    return finish(policies, outcome, attributes)


def _origin(
    rules: AuthenticationRules, attributes: Attributes, clock: Clock, environment: Environment
) -> Decision | None:
    """Take what the call's token proves to a v1alpha1 policy; return the denial if it had to prove more."""
    result = authentication.origin(rules, attributes, clock, environment.keys, environment.failures)
    if result.denial is not None:
        return result.denial
    if authentication.differs(result, attributes):
        return authentication.two_tokens(rules, attributes)
    if result.claims is not None:
        attributes.claims = result.claims
    return None


def _ask_mixer(
    rules: DestinationRules, outcome: Outcome, attributes: Attributes, clock: Clock, lists: Lists
) -> None:
    result = mixer.check(rules, attributes, clock(), lists)
    if result.valid_duration != mixer.DEFAULT_VALID_DURATION:
        outcome.marks = {
            "valid_duration": f"{result.valid_duration.total_seconds():g}s",
            "valid_use_count": str(result.valid_use_count),
        }
    changes = _header_mutations(result.request_headers), _header_mutations(result.response_headers)
    if result.decision is not None:
        outcome.decision = result.decision
        if result.direct_response is not None:
            said = tuple(HeaderMutation(name, value) for name, value in result.direct_response.headers)
            changes = (), said
    if any(changes):
        outcome.mutations = replace(
            outcome.mutations,
            request_headers=outcome.mutations.request_headers + changes[0],
            response_headers=outcome.mutations.response_headers + changes[1],
            shaped=True,
        )


def _header_mutations(operations: Iterable[HeaderOperation]) -> tuple[HeaderMutation, ...]:
    return tuple(HeaderMutation(one.name, one.value, HeaderAction(one.operation)) for one in operations)


def _ask_casbin(policies: DestinationPolicies, outcome: Outcome, attributes: Attributes) -> None:
    ruling = policies.casbin_policies.check(policies.casbin, attributes)
    if ruling is None:
        return
    policy, rule, where = ruling.policy, ruling.rule, ruling.field
    if not ruling.allowed:
        code = ReasonCode.CASBIN_DENIED
        outcome.decision = deny(code, ruling.reason, policy=policy, rule=rule, field_path=where)
    elif outcome.decision.code is ReasonCode.NO_ALLOW_POLICY:
        outcome.decision = _allowed_by_casbin(ruling.reason, policy, rule, where)


@lru_cache(maxsize=4096)
def _allowed_by_casbin(reason: str, policy: str, rule: int, where: str) -> Decision:
    """Return one object for equal decisions: answers that allow are kept by identity."""
    return allow(ReasonCode.POLICY_MATCHED, reason, policy=policy, rule=rule, field_path=where)


def finish(policies: DestinationPolicies, outcome: Outcome, attributes: Attributes) -> Outcome:
    """Return `outcome` as it goes to the caller: shaped, and in the form that its protocol wants."""
    if policies.shapes:
        outcome = shaped(policies.shapes, outcome, attributes)
    if outcome.decision.verdict is _DENY:
        outcome.grpc = attributes.is_grpc
    elif outcome.mutations.set_parameters or outcome.mutations.remove_parameters:
        outcome.mutations = _with_new_query(outcome.mutations, attributes)
    return outcome


def _with_new_query(mutations: Mutations, attributes: Attributes) -> Mutations:
    """Return `mutations` with a new `:path` in place of changes to parameters.

    Envoy 1.40 can change the query too, but with `validate_mutations` it refuses every value that needs
    encoding, and without it encodes none; and it leaves a caller's `%61dmin=` beside the `admin=` it sets.
    """
    target = attributes.header(":path") or ""
    changes = mutations.request_headers
    if target.startswith("/"):  # not `*`, and not CONNECT, which have no query
        added = dict(mutations.set_parameters)
        removed = (*mutations.remove_parameters, *added)
        # The path of a gRPC call is its method, which a query would make another one.
        changed = change_query(target, removed, {} if attributes.is_grpc else added)
        if changed != target:
            changes = (*changes, HeaderMutation(":path", changed))
    return replace(mutations, request_headers=changes, set_parameters=(), remove_parameters=(), shaped=True)


def _both(first: Mutations, second: Mutations) -> Mutations:
    return Mutations(
        first.request_headers + second.request_headers,
        remove_parameters=first.remove_parameters + second.remove_parameters,
    )


def explain(policies: DestinationPolicies | None, attributes: Attributes, clock: Clock) -> Explanation:
    """Return the decision for a call with every rule that applies to its destination."""
    vouched = attributes.claims is not None
    result = decide(policies, attributes, clock)
    decision = result.decision if isinstance(result, Outcome) else undecided_offline(result)
    explanation = Explanation(decision, described(attributes))
    if policies is not None:
        stages = list(explained(policies, attributes))
        explanation.steps += _peer_steps(policies, attributes, clock)
        explanation.steps += [one for one in stages if one[0] == "CUSTOM"]
        explanation.steps += _token_steps(policies, attributes, clock)
        if policies.authentication is not None:
            explanation.steps += _origin_steps(policies.authentication, attributes, clock)
        explanation.steps += _credential_steps(policies, attributes, clock, vouched=vouched)
        explanation.steps += [one for one in stages if one[0] != "CUSTOM"]
        explanation.steps += _mixer_steps(policies, attributes, clock)
        explanation.steps += [
            ("CASBIN", Step(one.policy, one.rule, matched=one.allowed, field=one.field, detail=one.reason))
            for one in policies.casbin_policies.decisions(policies.casbin, attributes)
        ]
        explanation.steps += _charge_steps(policies, result, attributes, clock)
    return explanation


def _peer_steps(
    policies: DestinationPolicies, attributes: Attributes, clock: Clock
) -> Iterable[tuple[str, Step]]:
    """Yield a step where peers have to meet something, or this one does not."""
    denial = peers.refusal(policies.peers, attributes, clock, OFFLINE.bundles.current)
    if denial is None and policies.authentication is not None:
        denial = authentication.peer_denial(policies.authentication, attributes)
    if denial is not None:
        yield "PEER", Step(denial.policy, -1, matched=False, field=denial.field, detail=denial.reason)
    elif not policies.peers.is_permissive:
        asked = policies.peers.requirement(attributes)
        yield "PEER", Step(asked.policy, -1, matched=True, field=asked.field, detail=f"meets {asked.mode}")


def _token_steps(
    policies: DestinationPolicies, attributes: Attributes, clock: Clock
) -> Iterable[tuple[str, Step]]:
    if policies.tokens is None:
        return
    result = jwt.authenticate(policies.tokens, attributes, clock)
    if result.denial is not None:
        yield "TOKENS", Step(result.denial.policy, -1, matched=False, field="", detail=result.denial.reason)
    else:
        detail = "no token" if result.claims is None else f"a token of {result.claims.get('iss')} is good"
        yield (
            "TOKENS",
            Step(policies.tokens.policy, -1, matched=result.claims is not None, field="", detail=detail),
        )


def _origin_steps(
    rules: AuthenticationRules, attributes: Attributes, clock: Clock
) -> Iterable[tuple[str, Step]]:
    policy = authentication.policy_for(rules, attributes)
    if not (policy.origins or policy.use_origin):
        return
    result = authentication.origin(rules, attributes, clock)
    if result.denial is not None:
        detail = result.denial.reason
    else:
        detail = "asks for no token" if result.claims is None else f"takes one of {result.claims.get('iss')}"
    yield "ORIGIN", Step(policy.title, -1, matched=result.denial is None, field="spec.origins", detail=detail)


def _credential_steps(
    policies: DestinationPolicies, attributes: Attributes, clock: Clock, *, vouched: bool
) -> Iterable[tuple[str, Step]]:
    if policies.credentials is None:
        return
    if policies.tokens is not None:
        vouched = jwt.authenticate(policies.tokens, attributes, clock).claims is not None
    result = credentials.authenticate(
        policies.credentials,
        attributes,
        clock,
        OFFLINE.authenticators,
        tokens=policies.tokens,
        identified=vouched,
    )
    title = policies.credentials.policy
    if isinstance(result, Inquiry):
        detail = f"authenticator {result.authenticator} is not asked offline"
        yield "CREDENTIALS", Step(title, -1, matched=False, field="", detail=detail)
    elif result.denial is not None:
        denial = result.denial
        yield "CREDENTIALS", Step(denial.policy, -1, matched=False, field="", detail=denial.reason)
    elif result.claims is not None:
        detail = f"the caller is known to {result.claims['iss']}"
        yield "CREDENTIALS", Step(title, -1, matched=True, field="", detail=detail)
    else:
        yield "CREDENTIALS", Step(title, -1, matched=False, field="", detail="no credential")


def _mixer_steps(
    policies: DestinationPolicies, attributes: Attributes, clock: Clock
) -> Iterable[tuple[str, Step]]:
    if policies.mixer is None:
        return
    denial = mixer.check(policies.mixer, attributes, clock(), OFFLINE.lists).decision
    for rule in policies.mixer.rules:
        denies = denial is not None and denial.policy == rule.policy
        detail = denial.reason if denial is not None and denies else "does not deny it"
        yield "MIXER", Step(rule.policy, -1, matched=denies, field="", detail=detail)


def _charge_steps(
    policies: DestinationPolicies, result: object, attributes: Attributes, clock: Clock
) -> Iterable[tuple[str, Step]]:
    """Yield what the call would be charged; offline nothing is."""
    reached = isinstance(result, Charge) or (
        isinstance(result, Outcome) and result.decision.code in _CHARGE_DENIALS
    )
    if not reached:
        return
    limits = rate_limits.plan(policies.limits, attributes)
    if isinstance(limits, Decision):
        yield "RATE LIMIT", Step(limits.policy, limits.rule, matched=False, field="", detail=limits.reason)
        return
    for request in limits:
        for descriptor, detail in rate_limits.described(request):
            step = Step(descriptor.policy, descriptor.rule, matched=True, field="", detail=detail)
            yield "RATE LIMIT", step
    if policies.quotas is None:
        return
    planned = quotas.plan(policies.quotas, attributes, clock())
    if isinstance(planned, Decision):
        yield "QUOTA", Step(planned.policy, planned.rule, matched=False, field="", detail=planned.reason)
        return
    for one in planned:
        told = f" (override {one.override})" if one.override >= 0 else ""
        detail = f"would take {one.amount} of {one.quota} at {one.handler}: {one.limit}{told}"
        yield "QUOTA", Step(one.policy, one.rule, matched=True, field="", detail=detail)


def undecided_offline(undecided: Delegation | Inquiry | Charge) -> Decision:
    """Return the denial of a call about which somebody would have to be asked; nothing is charged."""
    if isinstance(undecided, Charge):
        return undecided.outcome.decision
    if isinstance(undecided, Inquiry):
        reason = f"authenticator {undecided.authenticator} is not asked offline"
        code = ReasonCode.AUTHENTICATOR_UNAVAILABLE
        return deny(code, reason, http_status=503, public="", policy=undecided.policy)
    return _delegated_offline(undecided)


def _delegated_offline(delegation: Delegation) -> Decision:
    first, names = delegation.decisions[0], ", ".join(delegation.providers)
    return deny(
        ReasonCode.CUSTOM_DENIED,
        f"{first.reason}; it is up to {names}, which is not asked offline",
        policy=first.policy,
        rule=first.rule,
        field_path=first.field,
    )


def described(attributes: Attributes) -> dict[str, str]:
    """Return the attributes that tell an operator which call this was; no header, no token."""
    names = (
        "destination.service",
        "destination.namespace",
        "source.principal",
        "source.ip",
        "request.method",
        "request.path",
        "request.host",
        "request.auth.principal",
    )
    found = {name: ", ".join(attributes.values(name)) for name in names}
    return {name: value for name, value in found.items() if value}
