"""Outcome -> CheckResponse. The only writer of ext_authz response messages.

An empty CheckResponse allows, and Envoy 1.40 looks at nothing but `status.code`: so every answer sets it, and
a denial also carries `denied_response`. Control characters are removed from header values, because Envoy
emits CR and LF as given.
"""

from __future__ import annotations

import re
from typing import Any

from envoy.config.core.v3.base_pb2 import HeaderValue, HeaderValueOption
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse, DeniedHttpResponse, OkHttpResponse
from envoy.type.v3.http_status_pb2 import HttpStatus
from google.protobuf.struct_pb2 import Struct
from google.rpc.status_pb2 import Status

from authz.decision import (
    NO_MUTATIONS,
    Decision,
    HeaderAction,
    HeaderMutation,
    Mutations,
    Outcome,
    ReasonCode,
    Verdict,
)
from garrison.transport import StatusCode

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# Distinct answers that are kept serialised; reasons hold request data, so they must not pile up.
_MAX_KEPT = 4096

_ALLOW = Verdict.ALLOW
_EXHAUSTED = frozenset({ReasonCode.QUOTA_EXHAUSTED, ReasonCode.RATE_LIMITED})

Counts = dict[tuple[Verdict, ReasonCode], list[int]]


class ResponseWriter:
    """Writes and counts the answers of one snapshot, each distinct one once.

    `counts` maps (verdict, code) to a list of one number; writers of later snapshots go on counting in it.
    """

    def __init__(self, snapshot_version: str, counts: Counts) -> None:
        self._version = snapshot_version
        self._counts = counts
        self._kept: dict[object, tuple[Decision, bytes, list[int]]] = {}

    def write(self, outcome: Outcome) -> bytes:
        """Return the serialised CheckResponse for `outcome`, and count it."""
        decision, mutations = outcome.decision, outcome.mutations
        if outcome.marks or mutations.shaped or outcome.grpc:
            self._counter(decision)[0] += 1
            written: bytes = self.build(outcome).SerializeToString()
            return written
        # Allowing decisions were made when the policies were compiled; denials are made anew for each call.
        key: object = id(decision) if decision.verdict is _ALLOW else decision
        if mutations is not NO_MUTATIONS:
            key = (key, mutations)
        kept = self._kept.get(key)
        if kept is None:
            kept = self._keep(key, outcome)
        kept[2][0] += 1
        return kept[1]

    def _keep(self, key: object, outcome: Outcome) -> tuple[Decision, bytes, list[int]]:
        if len(self._kept) >= _MAX_KEPT:
            self._kept.clear()
        # The decision is kept alive with its bytes: an `id` is only unique among living objects.
        decision = outcome.decision
        kept = (decision, self.build(outcome).SerializeToString(), self._counter(decision))
        self._kept[key] = kept
        return kept

    def _counter(self, decision: Decision) -> list[int]:
        return self._counts.setdefault((decision.verdict, decision.code), [0])

    def build(self, outcome: Outcome) -> Any:
        """Return the CheckResponse for `outcome`, not yet serialised."""
        decision = outcome.decision
        response = CheckResponse(dynamic_metadata=self._metadata(outcome))
        if decision.allowed:
            response.status.CopyFrom(Status(code=StatusCode.OK))
            response.ok_response.CopyFrom(_ok(outcome.mutations))
        else:
            code = StatusCode.UNAUTHENTICATED if decision.http_status == 401 else StatusCode.PERMISSION_DENIED
            response.status.CopyFrom(Status(code=code, message=decision.public))
            response.denied_response.CopyFrom(_denied(decision, outcome))
        return response

    def _metadata(self, outcome: Outcome) -> Struct:
        decision = outcome.decision
        metadata = Struct()
        metadata.update(
            {
                "decision": decision.verdict.value,
                "code": decision.code.value,
                "policy": decision.policy,
                "rule": decision.rule,
                "field": decision.field,
                "reason": decision.reason,
                "snapshot": self._version,
                **outcome.marks,
            }
        )
        return metadata


def _ok(mutations: Mutations) -> OkHttpResponse:
    removed = [one.name for one in mutations.request_headers if one.action is HeaderAction.REMOVE]
    return OkHttpResponse(
        # Of `headers` Envoy 1.40 honours only `append`; unset means overwrite.
        headers=[_option(one) for one in mutations.request_headers if one.action is not HeaderAction.REMOVE],
        headers_to_remove=removed,
        response_headers_to_add=[_response_option(one) for one in mutations.response_headers],
    )


def _denied(decision: Decision, outcome: Outcome) -> DeniedHttpResponse:
    changes = [one for one in outcome.mutations.response_headers if one.action is not HeaderAction.REMOVE]
    headers = [_header("www-authenticate", decision.challenge)] if decision.challenge else []
    # A gRPC caller gets status and message in trailers, from Envoy; a content type would be in its way.
    if outcome.grpc:
        if decision.code in _EXHAUSTED:
            # Of HTTP 429 Envoy makes UNAVAILABLE, which callers retry at once.
            headers.append(_header("grpc-status", str(int(StatusCode.RESOURCE_EXHAUSTED))))
        changes = [one for one in changes if one.name != "content-type"]
    elif all(one.name != "content-type" for one in changes):
        headers.append(_header("content-type", "text/plain"))
    return DeniedHttpResponse(
        status=HttpStatus(code=decision.http_status),
        headers=headers + [_header(one.name, one.value) for one in changes],
        body=decision.public,
    )


def _header(name: str, value: str) -> HeaderValueOption:
    return HeaderValueOption(header=HeaderValue(key=name, value=_CONTROL.sub("", value)))


def _option(mutation: HeaderMutation) -> HeaderValueOption:
    option = _header(mutation.name, mutation.value)
    option.append.value = mutation.action is HeaderAction.APPEND
    return option


def _response_option(mutation: HeaderMutation) -> HeaderValueOption:
    option = _header(mutation.name, mutation.value)
    option.append_action = (
        HeaderValueOption.APPEND_IF_EXISTS_OR_ADD
        if mutation.action is HeaderAction.APPEND
        else HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
    )
    return option
