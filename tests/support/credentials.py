"""Builders for CredentialAuthentication documents, and authenticators that tests decide with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from authz.attributes import Attributes
from authz.authn.credentials import Answer, Authenticator, Inquiry
from authz.decision import Outcome
from authz.environment import Environment
from authz.pipeline import decide
from authz.service import DestinationResolver
from authz.snapshot import Snapshot
from support.checks import CALL, NOW, federated, snapshot
from support.policies import policy

KINDS = {"keys": "api_keys", "people": "basic", "opaque": "introspection", "pods": "token_review"}
# `other.example` is a trust domain whose peers may call.
MESH = replace(federated("other.example"), authenticators=tuple(sorted(KINDS.items())))
# Lets in whoever has an identity from claims.
IDENTIFIED = policy("[{from: [{source: {requestPrincipals: ['*']}}]}]", name="identified")
# Lets everybody in whom authentication has not refused.
OPEN = policy("[{}]", name="open")


def authentication(
    methods: str, *, required: bool = False, name: str = "clients", namespace: str = "default", spec: str = ""
) -> str:
    """Return a CredentialAuthentication with `methods` in YAML's flow style; `spec` holds further fields."""
    return f"""
apiVersion: garrison.dev/v1alpha1
kind: CredentialAuthentication
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{required: {str(required).lower()}, methods: {methods}{", " + spec if spec else ""}}}
---
"""


class Fixed:
    """An authenticator that knows what it is told, at once; of what it was not told, it has to be asked."""

    def __init__(self, answers: Mapping[str, Answer] | None = None) -> None:
        self.answers = dict(answers or {})
        self.looked_up: list[str] = []

    def known(self, credential: str, now: float) -> Answer | None:
        """Return what was told."""
        del now
        self.looked_up.append(credential)
        return self.answers.get(credential)

    async def ask(self, credential: str) -> Answer:
        """Return what was told, or that it is not good."""
        return self.answers.get(credential, Answer.refused("nobody knows it"))


def good(name: str, **claims: Any) -> Answer:
    """Return that a credential is `name`'s."""
    return Answer.accepted({"sub": name, **claims})


def come_to(
    policies: Snapshot | str,
    request: Any,
    authenticators: Mapping[str, Authenticator] | None = None,
    now: float = NOW,
) -> tuple[Outcome | Inquiry, Attributes]:
    """Return what a call comes to, and its attributes as they are afterwards."""
    compiled = snapshot(policies, MESH) if isinstance(policies, str) else policies
    context = request.attributes
    destination = DestinationResolver().resolve(context.context_extensions, context.request.http.host, CALL)
    assert destination is not None
    applying = compiled.policies_for(destination)
    attributes = Attributes(context, applying.path_normalization, destination, request.SerializeToString())
    environment = Environment(authenticators=authenticators or {})
    result = decide(applying, attributes, lambda: now, environment)
    assert isinstance(result, Outcome | Inquiry)
    return result, attributes


def outcome_of(
    policies: Snapshot | str,
    request: Any,
    authenticators: Mapping[str, Authenticator] | None = None,
    now: float = NOW,
) -> Outcome:
    """Return what a call comes to when nobody has to be asked."""
    result, _ = come_to(policies, request, authenticators, now)
    assert isinstance(result, Outcome)
    return result


def claims_of(
    policies: Snapshot | str, request: Any, authenticators: Mapping[str, Authenticator] | None = None
) -> Mapping[str, Any] | None:
    """Return the claims that an allowed call has."""
    result, attributes = come_to(policies, request, authenticators)
    assert isinstance(result, Outcome)
    assert result.decision.allowed, result.decision
    return attributes.claims
