"""Recorded or written requests -> decisions, without a server; and how decisions print."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, BinaryIO

from envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from google.protobuf import json_format

from authz.attributes import Attributes, Claims
from authz.authn.authentication import origin_rules, with_rules, without_origins
from authz.authn.jwt import JwtRule, TokenRules
from authz.decision import Decision, Explanation, Outcome
from authz.pipeline import decide, explain, undecided_offline
from authz.policy.index import DestinationPolicies
from authz.service import DestinationResolver
from authz.snapshot import Snapshot
from garrison.keys.jwks import KeySet, VerificationKey
from garrison.transport import Call, Peer

_CALL = Call(Peer("offline"), ())


@dataclass(frozen=True, slots=True)
class Vouched:
    """What a test vouches for in the place of signatures: claims, or the key that signed the token sent."""

    claims: Claims | None = None
    key: VerificationKey | None = None

    def applied(self, policies: DestinationPolicies) -> DestinationPolicies:
        """Return `policies` as they are once this is taken for true."""
        old = policies.authentication
        if self.claims is not None:
            return replace(
                policies,
                tokens=None,
                authentication=without_origins(old) if old else None,
                credentials=None,
            )
        if self.key is None:
            return policies
        keys = KeySet((self.key,))

        def trusting(rule: JwtRule) -> JwtRule:
            return replace(rule, keys=keys, verified={})

        tokens = policies.tokens
        if tokens is not None:
            tokens = TokenRules.of([trusting(rule) for rule in tokens.rules], tokens.realm)
        return replace(policies, tokens=tokens, authentication=with_rules(old, trusting) if old else None)


NOTHING = Vouched()


def token_rules(policies: DestinationPolicies) -> Sequence[JwtRule]:
    """Return the token rules of a destination, of documents old and new."""
    old = policies.authentication
    current = policies.tokens.rules if policies.tokens is not None else ()
    return [*current, *(origin_rules(old) if old else ())]


def policies_for(snapshot: Snapshot, request: Any) -> DestinationPolicies | None:
    """Return what applies to the destination of a CheckRequest, None when it names none."""
    context = request.attributes
    destination = DestinationResolver().resolve(context.context_extensions, context.request.http.host, _CALL)
    return snapshot.policies_for(destination) if destination is not None else None


def _prepare(
    snapshot: Snapshot, request: Any, vouched: Vouched
) -> tuple[DestinationPolicies | None, Attributes]:
    policies = policies_for(snapshot, request)
    destination = policies.destination if policies is not None else None
    mode = policies.path_normalization if policies is not None else snapshot.mesh.path_normalization
    attributes = Attributes(request.attributes, mode, destination)
    if policies is not None:
        policies = vouched.applied(policies)
        attributes.claims = vouched.claims
    return policies, attributes


def answer(snapshot: Snapshot, request: Any, now: float, vouched: Vouched = NOTHING) -> Decision:
    """Return the decision on a CheckRequest; `now` in seconds since the epoch."""
    result = decide(*_prepare(snapshot, request, vouched), lambda: now)
    return result.decision if isinstance(result, Outcome) else undecided_offline(result)


def explained(snapshot: Snapshot, request: Any, now: float, vouched: Vouched = NOTHING) -> Explanation:
    """Return the decision with every rule that applies to the destination."""
    return explain(*_prepare(snapshot, request, vouched), lambda: now)


# ------------------------------------------------------------------------------------------- recorded lines


@dataclass(frozen=True, slots=True)
class Recorded:
    """One line of a recording: a request, and when it came if the line says so (seconds since the epoch)."""

    identifier: Any
    request: Any
    at: float | None


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A line that is no recorded request, and why."""

    identifier: Any
    reason: str


def read_lines(source: BinaryIO) -> Iterator[Recorded | Unreadable]:
    """Yield every line of a recording, in order; whatever stands in it, one answer for each line."""
    for line in source:
        yield read_line(line)


def read_line(line: bytes) -> Recorded | Unreadable:
    """Return what a line `{"id": …, "request": …, "at": …}` holds."""
    identifier: Any = None
    try:
        entry = json.loads(line.decode())
        if not isinstance(entry, dict):
            raise ValueError("the line is not a JSON object")  # noqa: TRY004, TRY301 - caught below
        identifier = entry.get("id")
        if unknown := sorted(set(entry) - {"id", "request", "at"}):
            raise ValueError(f"unknown field `{unknown[0]}`; known: id, request, at")  # noqa: TRY301
        at = parse_time(entry["at"], "at") if "at" in entry else None
        return Recorded(identifier, parse_request(entry.get("request")), at)
    except (ValueError, RecursionError, OverflowError) as error:
        return Unreadable(identifier, " ".join(str(error).split()) or type(error).__name__)


def parse_request(data: Any) -> Any:
    """Return the CheckRequest in protobuf JSON data.

    Raises:
        ValueError: it is none; the message says why.

    """
    if not isinstance(data, dict):
        raise ValueError("`request` is not a JSON object")  # noqa: TRY004 - one family for bad input
    try:
        request = json_format.ParseDict(data, CheckRequest())
        # What comes over the wire has passed this: it refuses text that is not UTF-8.
        return CheckRequest.FromString(request.SerializeToString())
    except json_format.ParseError as error:
        raise ValueError(f"`request` is not a CheckRequest: {error}") from error


def parse_time(value: Any, name: str) -> float:
    """Return seconds since the epoch for an RFC 3339 time; `name` stands in messages.

    Raises:
        ValueError: it is none.

    """
    if not isinstance(value, str) or len(value) < 20 or value[10] not in "Tt":
        raise ValueError(f"`{name}` is not an RFC 3339 time such as `2026-01-31T12:00:00Z`")
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError(f"`{name}` is not an RFC 3339 time such as `2026-01-31T12:00:00Z`") from None
    if moment.tzinfo is None:
        raise ValueError(f"`{name}` has no time zone")
    return moment.timestamp()


# ------------------------------------------------------------------------------------------------ rendering


def decision_json(decision: Decision) -> dict[str, Any]:
    """Return a decision as JSON data."""
    return {
        "decision": decision.verdict.value,
        "http_status": decision.http_status,
        "policy": decision.policy or None,
        "rule": decision.rule if decision.rule >= 0 else None,
        "reason": decision.reason,
    }


def explanation_json(explanation: Explanation) -> dict[str, Any]:
    """Return a decision and what led to it as JSON data."""
    decision = explanation.decision
    answer = {
        **decision_json(decision),
        "field": decision.field or None,
        "code": decision.code.value,
    }
    if explanation.attributes:
        answer["attributes"] = explanation.attributes
        answer["considered"] = [
            {
                "stage": stage,
                "policy": step.policy,
                "rule": step.rule,
                "matched": step.matched,
                "field": step.field,
                "detail": step.detail,
            }
            for stage, step in explanation.steps
        ]
    return answer


def explanation_text(explanation: Explanation) -> str:
    """Return a decision and, if there is an explanation, the tree of rules that were considered."""
    decision = explanation.decision
    rule = f" rule {decision.rule}" if decision.rule >= 0 else ""
    where = f"{decision.policy}{rule}{' ' + decision.field if decision.field else ''}"
    lines = [
        f"{decision.verdict.value.upper()} (HTTP {decision.http_status})",
        f"decided by: {where or ('no policy denies it' if decision.allowed else 'nothing allows it')}",
        f"reason: {decision.reason}",
    ]
    if explanation.attributes:
        lines.append("attributes:")
        lines += [f"  {name}: {value}" for name, value in explanation.attributes.items()]
        lines.append("rules considered:" if explanation.steps else "rules considered: none")
        stage = ""
        for name, step in explanation.steps:
            if name != stage:
                stage = name
                lines.append(f"  {stage}")
            mark = "+" if step.matched else "-"
            number = f" rule {step.rule}" if step.rule >= 0 else ""
            lines.append(f"    {mark} {step.policy}{number}: {step.detail}")
    return "\n".join(lines)
