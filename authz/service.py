"""`envoy.service.auth.v3.Authorization`: bytes in, bytes out.

Whatever happens, the answer is a CheckResponse with an explicit status. Envoy takes a failed RPC for an
error, not a denial, and lets the call through where the operator set `failure_mode_allow` (Envoy 1.40).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import structlog
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from google.protobuf.message import DecodeError

from authz.attributes import Attributes
from authz.authn.jwt import NO_TOKEN, TokenResult
from authz.decision import Decision, ReasonCode, Verdict, deny
from authz.destination import (
    METADATA_KEY,
    Destination,
    attributes_from_metadata,
    destination_from_attributes,
)
from authz.pipeline import decide, described
from authz.response import ResponseWriter
from authz.snapshot import Snapshot
from garrison.identity import SpiffeId
from garrison.transport import Call, Method, Methods

CHECK = "/envoy.service.auth.v3.Authorization/Check"

_MALFORMED = deny(ReasonCode.MALFORMED_REQUEST, "the CheckRequest cannot be decoded")
_FAULT = deny(ReasonCode.MALFORMED_REQUEST, "the call cannot be read: too large, badly framed or compressed")
_INTERNAL = deny(
    ReasonCode.INTERNAL_ERROR, "an internal error; the log has its stack", http_status=500, public=""
)
_NO_SNAPSHOT = deny(ReasonCode.NO_SNAPSHOT, "no policies have been loaded", http_status=503, public="")

log = structlog.get_logger()

DestinationKey = tuple[tuple[tuple[str, str], ...], bytes, SpiffeId | None, str]


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
    """The service. `use` swaps the snapshot that the next call is decided on.

    `decisions` counts answers by (verdict, code), for the metrics.
    """

    def __init__(
        self,
        resolver: DestinationResolver,
        clock: Callable[[], float],
        decision_log: DecisionLog = DecisionLog.DENIED,
    ) -> None:
        """`clock` gives seconds since the epoch."""
        self._resolver = resolver
        self._clock = clock
        self._logged = {DecisionLog.NONE: (), DecisionLog.DENIED: (False,), DecisionLog.ALL: (False, True)}[
            decision_log
        ]
        self._snapshot: Snapshot | None = None
        self._writer = ResponseWriter("")
        self._last_resort = self._writer.write(_INTERNAL)
        self.decisions: dict[tuple[Verdict, ReasonCode], int] = {}

    def use(self, snapshot: Snapshot) -> None:
        """Decide on `snapshot` from the next call on."""
        self._snapshot, self._writer = snapshot, ResponseWriter(snapshot.version)

    @property
    def snapshot(self) -> Snapshot | None:
        """The snapshot in force."""
        return self._snapshot

    def methods(self) -> Methods:
        """Return the service's methods for a transport."""
        return {CHECK: Method(self.check, self.on_fault)}

    def check(self, message: bytes, call: Call) -> bytes:
        """Return the serialised CheckResponse for a serialised CheckRequest; never raises."""
        try:
            return self._check(message, call)
        except Exception:
            log.exception("check_failed")
            self._count(_INTERNAL)
            return self._last_resort

    def on_fault(self, error: Exception) -> bytes:
        """Return the denial for a call that `check` could not be given."""
        log.warning("check_unreadable", error=type(error).__name__)
        self._count(_FAULT)
        return self._writer.write(_FAULT)

    def _check(self, message: bytes, call: Call) -> bytes:
        snapshot, writer = self._snapshot, self._writer
        try:
            context = CheckRequest.FromString(message).attributes
        except DecodeError:
            return self._answer(writer, _MALFORMED)
        if snapshot is None:
            return self._answer(writer, _NO_SNAPSHOT)
        destination = self._resolver.resolve(context.context_extensions, context.request.http.host, call)
        attributes = Attributes(context, snapshot.mesh.path_normalization, destination)
        decision, tokens = decide(snapshot, attributes, self._clock())
        return self._answer(writer, decision, tokens, attributes)

    def _answer(
        self,
        writer: ResponseWriter,
        decision: Decision,
        tokens: TokenResult = NO_TOKEN,
        attributes: Attributes | None = None,
    ) -> bytes:
        self._count(decision)
        if decision.allowed in self._logged:
            self._log(decision, attributes)
        return writer.write(decision, tokens)

    def _count(self, decision: Decision) -> None:
        key = (decision.verdict, decision.code)
        self.decisions[key] = self.decisions.get(key, 0) + 1

    def _log(self, decision: Decision, attributes: Attributes | None) -> None:
        log.info(
            "check",
            decision=decision.verdict.value,
            code=decision.code.value,
            policy=decision.policy,
            rule=decision.rule,
            reason=decision.reason,
            snapshot=self._snapshot.version if self._snapshot else "",
            **(described(attributes) if attributes is not None else {}),
        )
