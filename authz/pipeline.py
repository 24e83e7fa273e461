"""One call, from attributes to decision: destination, authentication, policy."""

from __future__ import annotations

from authz.attributes import Attributes
from authz.authn import jwt
from authz.authn.jwt import NO_TOKEN, TokenResult
from authz.decision import Decision, Explanation, ReasonCode, deny
from authz.policy.evaluate import evaluate, explained
from authz.snapshot import Snapshot

UNKNOWN_DESTINATION = deny(
    ReasonCode.UNKNOWN_DESTINATION,
    "the call names no destination: set `destination.service` in the filter's context_extensions",
)


def decide(snapshot: Snapshot, attributes: Attributes, now: float) -> tuple[Decision, TokenResult]:
    """Return the decision for a call, and what its tokens proved; `now` in seconds since the epoch."""
    if attributes.destination is None:
        return UNKNOWN_DESTINATION, NO_TOKEN
    policies = snapshot.policies_for(attributes.destination)
    tokens = NO_TOKEN
    if policies.tokens:
        tokens = jwt.authenticate(policies.tokens, attributes, now)
        if tokens.denial is not None:
            return tokens.denial, tokens
        attributes.claims = tokens.claims
    return evaluate(policies, attributes), tokens


def explain(snapshot: Snapshot, attributes: Attributes, now: float) -> Explanation:
    """Return the decision for a call with every rule that applies to its destination."""
    decision, _ = decide(snapshot, attributes, now)
    explanation = Explanation(decision, described(attributes))
    if attributes.destination is not None:
        explanation.steps += explained(snapshot.policies_for(attributes.destination), attributes)
    return explanation


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
