"""Decision -> CheckResponse. The only writer of ext_authz response messages.

An empty CheckResponse allows, and Envoy 1.40 looks at nothing but `status.code`: so every answer sets it, and
a denial also carries `denied_response`. What goes into header values is made of our own constants, with
control characters removed, because Envoy emits CR and LF as given.
"""

from __future__ import annotations

import re

from envoy.config.core.v3.base_pb2 import HeaderValue, HeaderValueOption
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse, DeniedHttpResponse, OkHttpResponse
from envoy.type.v3.http_status_pb2 import HttpStatus
from google.protobuf.struct_pb2 import Struct
from google.rpc.status_pb2 import Status

from authz.authn.jwt import NO_TOKEN, TokenResult
from authz.decision import Decision
from garrison.transport import StatusCode

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# Distinct denials that are kept serialised; reasons hold request data, so they must not pile up.
_MAX_KEPT = 4096


class ResponseWriter:
    """Writes the responses of one snapshot, each distinct one once."""

    def __init__(self, snapshot_version: str) -> None:
        self._version = snapshot_version
        self._kept: dict[tuple[int | Decision, str, str], tuple[Decision, bytes]] = {}

    def write(self, decision: Decision, tokens: TokenResult = NO_TOKEN) -> bytes:
        """Return the serialised CheckResponse for `decision`."""
        # Allowing decisions were made when the policies were compiled; denials are made anew for each call.
        identity = id(decision) if decision.allowed else decision
        key = (identity, tokens.strip_header, tokens.strip_parameter)
        kept = self._kept.get(key)
        if kept is not None:
            return kept[1]
        written = self._write(decision, tokens)
        if len(self._kept) >= _MAX_KEPT:
            self._kept.clear()
        # The decision is kept alive with its bytes: an `id` is only unique among living objects.
        self._kept[key] = (decision, written)
        return written

    def _write(self, decision: Decision, tokens: TokenResult) -> bytes:
        response = CheckResponse(dynamic_metadata=self._metadata(decision))
        if decision.allowed:
            response.status.CopyFrom(Status(code=StatusCode.OK))
            response.ok_response.CopyFrom(_ok(tokens))
        else:
            code = StatusCode.UNAUTHENTICATED if decision.http_status == 401 else StatusCode.PERMISSION_DENIED
            response.status.CopyFrom(Status(code=code, message=decision.public))
            response.denied_response.CopyFrom(_denied(decision))
        serialized: bytes = response.SerializeToString()
        return serialized

    def _metadata(self, decision: Decision) -> Struct:
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
            }
        )
        return metadata


def _ok(tokens: TokenResult) -> OkHttpResponse:
    return OkHttpResponse(
        headers_to_remove=[tokens.strip_header] if tokens.strip_header else [],
        query_parameters_to_remove=[tokens.strip_parameter] if tokens.strip_parameter else [],
    )


def _denied(decision: Decision) -> DeniedHttpResponse:
    headers = [_header("content-type", "text/plain")]
    if decision.challenge:
        headers.append(_header("www-authenticate", decision.challenge))
    return DeniedHttpResponse(
        status=HttpStatus(code=decision.http_status), headers=headers, body=decision.public
    )


def _header(name: str, value: str) -> HeaderValueOption:
    return HeaderValueOption(header=HeaderValue(key=name, value=_CONTROL.sub("", value)))
