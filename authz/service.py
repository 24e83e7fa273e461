"""`envoy.service.auth.v3.Authorization`: bytes in, bytes out.

Whatever happens, the answer is a CheckResponse with an explicit status. Envoy takes a failed RPC for an
error, not a denial, and lets the call through where the operator set `failure_mode_allow` (Envoy 1.40).
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

import structlog
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, OkHttpResponse
from google.protobuf.message import DecodeError

from authz.askers import Askers
from authz.attributes import Attributes
from authz.authn.credentials import Inquiry
from authz.decision import Decision, Outcome, ReasonCode, Verdict, deny
from authz.destination import (
    METADATA_KEY,
    Destination,
    attributes_from_metadata,
    destination_from_attributes,
)
from authz.environment import OFFLINE, Environment
from authz.mixer.quotas import QuotaAnswer
from authz.pipeline import Charge, Delegation, charged, decide, decide_here, described, limited
from authz.policy.index import DestinationPolicies
from authz.providers import UNKNOWN_PROVIDER, Provider, ProviderAnswer
from authz.rate_limits import LimitAnswer
from authz.response import Counts, ResponseWriter
from authz.snapshot import Snapshot
from garrison.errors import DependencyError
from garrison.identity import SpiffeId
from garrison.transport import Call, Method, Methods

CHECK = "/envoy.service.auth.v3.Authorization/Check"

_MALFORMED = Outcome(deny(ReasonCode.MALFORMED_REQUEST, "the CheckRequest cannot be decoded"))
_FAULT = Outcome(
    deny(ReasonCode.MALFORMED_REQUEST, "the call cannot be read: too large, badly framed or compressed")
)
_INTERNAL = Outcome(
    deny(ReasonCode.INTERNAL_ERROR, "an internal error; the log has its stack", http_status=500, public="")
)
_NO_SNAPSHOT = Outcome(
    deny(ReasonCode.NO_SNAPSHOT, "no policies have been loaded", http_status=503, public="")
)
_DENY = Verdict.DENY
# Operators name few destinations; more than this many distinct ones are worked out anew for each call.
_MAX_KNOWN = 10_000
# Seconds since the epoch, as floats, are no finer than a quarter of this.
_RESOLUTION = 1e-6

log = structlog.get_logger()

Answers = LimitAnswer | Sequence[QuotaAnswer]
DestinationKey = tuple[tuple[tuple[str, str], ...], bytes, SpiffeId | None, str]


class _Asked(NamedTuple):
    """A call of which something is being charged."""

    charge: Charge
    answer: Awaitable[Answers]


@dataclass(slots=True)
class DestinationResolver:
    """Finds the destination of a call; see `authz.destination` for the order of its sources."""

    workloads: Mapping[SpiffeId, Destination] = field(default_factory=dict)
    from_host: bool = False
    _known: dict[DestinationKey, Destination | None] = field(default_factory=dict)

    def resolve(self, extensions: Mapping[str, str], host: str, call: Call) -> Destination | None:
        """Return the destination, None when nothing names one."""
        metadata, peer = b"", None
        if not extensions.get("destination.service"):  # else nothing else is looked at
            peer = call.peer.spiffe_id
            for name, value in call.metadata:
                if name == METADATA_KEY:
                    metadata = value
        key = (tuple(extensions.items()), metadata, peer, host if self.from_host else "")
        try:
            return self._known[key]
        except KeyError:
            pass
        destination = self._resolve(dict(extensions), metadata, peer, host)
        if len(self._known) >= 10_000:
            self._known.clear()
        self._known[key] = destination
        return destination

    def _resolve(
        self, extensions: Mapping[str, str], metadata: bytes, peer: SpiffeId | None, host: str
    ) -> Destination | None:
        destination = destination_from_attributes(extensions)
        if destination is None and metadata:
            destination = destination_from_attributes(attributes_from_metadata(metadata))
        if destination is None and peer is not None:
            destination = self.workloads.get(peer)
        if destination is None and self.from_host:
            name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
            destination = destination_from_attributes({"destination.service": name})
        return destination


class DecisionLog(StrEnum):
    """Which decisions get a log line."""

    NONE = "none"
    DENIED = "denied"
    ALL = "all"


class Authorization:
    """The service. `use` swaps the snapshot that the next call is decided on."""

    def __init__(
        self,
        resolver: DestinationResolver,
        clock: Callable[[], float],
        decision_log: DecisionLog = DecisionLog.DENIED,
        *,
        decision_log_lines: int = 100,
        providers: Mapping[str, Provider] | None = None,
        environment: Environment = OFFLINE,
        askers: Askers | None = None,
    ) -> None:
        """Serve decisions.

        `clock` gives seconds since the epoch; at most `decision_log_lines` decisions are logged in a second,
        `unlogged` counts the others; `providers` are who CUSTOM policies may ask, `askers` says who may ask
        us (None: whoever can).
        """
        self._resolver = resolver
        self._clock = clock
        self._providers = providers or {}
        self._environment = environment
        self._askers = askers
        self._log_denied = decision_log is not DecisionLog.NONE
        self._log_allowed = decision_log is DecisionLog.ALL
        # A flood of denials must not take the CPU: a line costs more than a decision. Nor must its lines come
        # all at the beginning of each second, where they would hold up whoever calls then.
        self._lines = _Allowance(decision_log_lines)
        self.unlogged = 0
        self._counts: Counts = {}
        self._snapshot: Snapshot | None = None
        self._writer = ResponseWriter("", self._counts)
        self._last_resort: bytes = self._writer.build(_INTERNAL).SerializeToString()
        # What applies to the destinations that routes name, by the operator's own words.
        self._known: dict[tuple[tuple[str, ...], tuple[str, ...]], DestinationPolicies] = {}

    def use(self, snapshot: Snapshot) -> None:
        """Decide on `snapshot` from the next call on."""
        self._snapshot, self._known = snapshot, {}
        self._writer = ResponseWriter(snapshot.version, self._counts)

    @property
    def snapshot(self) -> Snapshot | None:
        """The snapshot in force."""
        return self._snapshot

    @property
    def decisions(self) -> dict[tuple[Verdict, ReasonCode], int]:
        """How many calls were answered, by verdict and code."""
        return {key: count[0] for key, count in list(self._counts.items()) if count[0]}

    def methods(self) -> Methods:
        """Return the service's methods for a transport."""
        return {CHECK: Method(self.check, self.on_fault)}

    def check(self, message: bytes, call: Call) -> bytes | Awaitable[bytes]:
        """Return the serialised CheckResponse for a serialised CheckRequest; never raises."""
        try:
            snapshot, writer = self._snapshot, self._writer
            try:
                context = CheckRequest.FromString(message).attributes
            except DecodeError:
                return self._answer(writer, _MALFORMED)
            if snapshot is None:
                return self._answer(writer, _NO_SNAPSHOT)
            extensions = context.context_extensions
            names = tuple(extensions)
            known = (names, tuple(map(extensions.__getitem__, names)))
            policies = self._known.get(known) or self._find(snapshot, known, context, call)
            if policies is not None:
                destination, mode = policies.destination, policies.path_normalization
            else:
                destination, mode = None, snapshot.mesh.path_normalization
            attributes = Attributes(context, mode, destination, message)
            if self._askers is not None:
                refused = self._askers.refusal(call.peer.spiffe_id, destination)
                if refused is not None:
                    refusal = Outcome(refused)
                    refusal.grpc = attributes.is_grpc
                    return self._answer(writer, refusal, attributes)
            outcome = decide(policies, attributes, self._clock, self._environment)
            if isinstance(outcome, Outcome):
                return self._answer(writer, outcome, attributes)
            assert policies is not None  # noqa: S101 - without policies nobody has to be asked
            if isinstance(outcome, Charge):
                return self._charge(writer, outcome, policies, attributes)
            if isinstance(outcome, Inquiry):
                return self._inquire(writer, outcome, policies, attributes)
            return self._delegate(message, outcome, policies, attributes)
        except Exception:
            log.exception("check_failed")
            return self._internal_error()

    def on_fault(self, error: Exception) -> bytes:
        """Return the denial for a call that `check` could not be given."""
        log.warning("check_unreadable", error=type(error).__name__)
        return self._writer.write(_FAULT)

    def _find(
        self, snapshot: Snapshot, known: tuple[tuple[str, ...], tuple[str, ...]], context: Any, call: Call
    ) -> DestinationPolicies | None:
        extensions = dict(zip(*known, strict=True))
        destination = self._resolver.resolve(extensions, context.request.http.host, call)
        if destination is None:
            return None
        policies = snapshot.policies_for(destination)
        # Only what the route itself names is the same for every call with these extensions.
        if extensions.get("destination.service") and len(self._known) < _MAX_KNOWN:
            self._known[known] = policies
        return policies

    def _charge(
        self, writer: ResponseWriter, charge: Charge, policies: DestinationPolicies, attributes: Attributes
    ) -> bytes | Awaitable[bytes]:
        """Return the answer to a call that is charged; at once if whoever counts answers at once."""
        reached = self._advance(charge, policies, attributes)
        if isinstance(reached, Outcome):
            return self._answer(writer, reached, attributes)
        return self._charge_later(writer, reached, policies, attributes)

    async def _charge_later(
        self, writer: ResponseWriter, asked: _Asked, policies: DestinationPolicies, attributes: Attributes
    ) -> bytes:
        try:
            return self._answer(writer, await self._settled(asked, policies, attributes), attributes)
        except Exception:
            log.exception("check_failed")
            return self._internal_error()

    def _advance(
        self, left: Outcome | Charge, policies: DestinationPolicies, attributes: Attributes
    ) -> Outcome | _Asked:
        """Charge limits and quotas, one after the other, as long as the answers come at once."""
        while isinstance(left, Charge):
            answer = self._spend(left)
            if isinstance(answer, Awaitable):
                return _Asked(left, answer)
            left = _next(left, answer, policies, attributes)
        return left

    async def _settled(
        self, left: Outcome | Charge | _Asked, policies: DestinationPolicies, attributes: Attributes
    ) -> Outcome:
        """Return what a call comes to once its limits and quotas are charged."""
        while not isinstance(left, Outcome):
            if isinstance(left, Charge):
                left = self._advance(left, policies, attributes)
                continue
            try:
                answer: Answers | None = await left.answer
            except DependencyError:
                answer = None
            left = _next(left.charge, answer, policies, attributes)
        return left

    def _spend(self, charge: Charge) -> Answers | Awaitable[Answers] | None:
        try:
            if charge.limits:
                return self._environment.limits.spend(charge.limits[0])
            return self._environment.quotas.spend(charge.charges)
        except DependencyError:
            return None

    async def _delegate(
        self, message: bytes, delegation: Delegation, policies: DestinationPolicies, attributes: Attributes
    ) -> bytes:
        writer = self._writer
        try:
            allowed: list[Any] = []
            for name, decision in zip(delegation.providers, delegation.decisions, strict=True):
                provider = self._providers.get(name, UNKNOWN_PROVIDER)
                answer = await provider.ask(message)
                if answer.denial is not None:
                    return self._denied_by(writer, name, decision, answer, attributes)
                allowed.append(answer.response)
            outcome = decide_here(policies, attributes, self._clock, self._environment)
            if isinstance(outcome, Inquiry):
                outcome = await self._answered(outcome, policies, attributes)
            outcome = await self._settled(outcome, policies, attributes)
            if not outcome.decision.allowed or not any(allowed):
                return self._answer(writer, outcome, attributes)
            return self._merged(writer, outcome, allowed, attributes)
        except Exception:
            log.exception("check_failed")
            return self._internal_error()

    async def _inquire(
        self,
        writer: ResponseWriter,
        inquiry: Inquiry,
        policies: DestinationPolicies,
        attributes: Attributes,
    ) -> bytes:
        """Return the answer to a call whose credential somebody has to be asked about."""
        try:
            return self._answer(writer, await self._answered(inquiry, policies, attributes), attributes)
        except Exception:
            log.exception("check_failed")
            return self._internal_error()

    async def _answered(
        self, inquiry: Inquiry, policies: DestinationPolicies, attributes: Attributes
    ) -> Outcome:
        """Return what the call comes to when its credential's authenticator has been asked."""
        answer = await self._environment.authenticators[inquiry.authenticator].ask(inquiry.credential)
        outcome = decide_here(policies, attributes, self._clock, self._environment, answer)
        assert not isinstance(outcome, Inquiry)  # noqa: S101 - a call has one credential, this was its answer
        return await self._settled(outcome, policies, attributes)

    def _denied_by(
        self,
        writer: ResponseWriter,
        name: str,
        decision: Decision,
        answer: ProviderAnswer,
        attributes: Attributes,
    ) -> bytes:
        """Return the provider's own denial, with our metadata."""
        outcome = Outcome(
            deny(
                ReasonCode.CUSTOM_DENIED,
                f"{decision.reason}: {name} {answer.denial}",
                http_status=answer.http_status,
                policy=decision.policy,
                rule=decision.rule,
                field_path=decision.field,
            )
        )
        response = writer.build(outcome)
        if answer.response is not None and answer.response.HasField("denied_response"):
            response.denied_response.CopyFrom(answer.response.denied_response)
            response.denied_response.status.code = answer.http_status
        self._answer(writer, outcome, attributes)
        serialized: bytes = response.SerializeToString()
        return serialized

    def _merged(
        self, writer: ResponseWriter, outcome: Outcome, allowed: list[Any], attributes: Attributes
    ) -> bytes:
        """Return our answer with the headers that the providers set; of two for one header, ours counts."""
        self._answer(writer, outcome, attributes)
        response = writer.build(outcome)
        merged = OkHttpResponse()
        for theirs in allowed:
            if theirs is not None:
                merged.MergeFrom(theirs.ok_response)
        merged.MergeFrom(response.ok_response)  # Envoy goes through them in order
        response.ok_response.CopyFrom(merged)
        serialized: bytes = response.SerializeToString()
        return serialized

    def _answer(
        self, writer: ResponseWriter, outcome: Outcome, attributes: Attributes | None = None
    ) -> bytes:
        if self._log_denied if outcome.decision.verdict is _DENY else self._log_allowed:
            self._log(outcome.decision, attributes)
        return writer.write(outcome)

    def _internal_error(self) -> bytes:
        self._counts.setdefault((Verdict.DENY, ReasonCode.INTERNAL_ERROR), [0])[0] += 1
        return self._last_resort

    def _log(self, decision: Decision, attributes: Attributes | None) -> None:
        if not self._lines.take(self._clock()):
            self.unlogged += 1
            return
        log.info(
            "check",
            decision=decision.verdict.value,
            code=decision.code.value,
            policy=decision.policy,
            rule=decision.rule,
            reason=decision.reason,
            snapshot=self._snapshot.version if self._snapshot else "",
            unlogged=self.unlogged,
            **(described(attributes) if attributes is not None else {}),
        )


class _Allowance:
    """So many in a second, evenly (GCRA); a fifth of them may come at once."""

    def __init__(self, per_second: int) -> None:
        self._step = 1 / per_second if per_second else 0.0
        self._ahead = max(per_second // 5 - 1, 0) * self._step + _RESOLUTION
        self._until = -math.inf

    def take(self, now: float) -> bool:
        """Take one at `now` (seconds; a clock that may be set), or tell that there is none."""
        if not self._step:
            return False
        if self._until > now + self._ahead + self._step:  # the clock was set back
            self._until = now
        if self._until > now + self._ahead:
            return False
        self._until = max(self._until, now) + self._step
        return True


def _next(
    charge: Charge, answer: Answers | None, policies: DestinationPolicies, attributes: Attributes
) -> Outcome | Charge:
    """Return what becomes of a call whose limits, or else quotas, were charged; None: nobody could tell."""
    if isinstance(answer, LimitAnswer) or (answer is None and charge.limits):
        return limited(policies, charge, answer, attributes)
    return charged(policies, charge, answer, attributes)
