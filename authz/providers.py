"""External authorizers: other ext_authz gRPC servers that CUSTOM policies delegate to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import structlog
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse
from google.protobuf.message import DecodeError

# Envoy may emit them as they are, so that one header becomes two (1.40, without `validate_mutations`).
_LINE_ENDS = re.compile(r"[\r\n\0]")
_CHECK = "/envoy.service.auth.v3.Authorization/Check"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ProviderAnswer:
    """What a provider said: `denial` is None when it allows, else why not; `response` is its own message."""

    denial: str | None
    http_status: int = 403
    response: Any = None


class Provider(Protocol):
    """Somebody who can be asked; never raises."""

    async def ask(self, message: bytes) -> ProviderAnswer:
        """Return the answer to a serialised CheckRequest."""


class _Unknown:
    async def ask(self, message: bytes) -> ProviderAnswer:
        del message
        return ProviderAnswer("is not in the settings")


# Istio: what matches a CUSTOM policy with an undefined provider is denied.
UNKNOWN_PROVIDER: Provider = _Unknown()


class GrpcProvider:
    """A provider behind a gRPC channel.

    An answer counts as consent only with an explicit status OK: Envoy takes an empty message for one, we do
    not. `fail_open` is the operator's word for what an unreachable provider means; otherwise it denies with
    `status_on_error`.
    """

    def __init__(
        self,
        name: str,
        target: str,
        *,
        timeout_seconds: float,
        fail_open: bool = False,
        status_on_error: int = 403,
    ) -> None:
        self.name = name
        self._target = target
        self._timeout_seconds = timeout_seconds
        self._fail_open = fail_open
        self._status_on_error = status_on_error
        self._channel: grpc.aio.Channel | None = None
        self._call: Any = None  # gRPC's stubs have no type for calls of plain bytes
        self.failures = 0

    async def ask(self, message: bytes) -> ProviderAnswer:
        """Return the provider's answer, or what its silence means."""
        if self._call is None:
            # In the event loop that uses it, which is not there yet when the settings are read.
            self._channel = grpc.aio.insecure_channel(self._target)
            self._call = self._channel.unary_unary(_CHECK)
        try:
            response = CheckResponse.FromString(await self._call(message, timeout=self._timeout_seconds))
        except (grpc.aio.AioRpcError, DecodeError) as error:
            why = error.code().name if isinstance(error, grpc.aio.AioRpcError) else "not a CheckResponse"
            return self._failed(why)
        _clean(response, message)
        if not response.HasField("status"):
            return self._failed("an answer without a status")
        if response.status.code == 0:
            return ProviderAnswer(None, response=response)
        if response.HasField("error_response"):
            return self._failed("an error")
        status = int(response.denied_response.status.code)
        return ProviderAnswer("denies it", status if 300 <= status <= 599 else 403, response)

    async def close(self) -> None:
        """Close the channel."""
        if self._channel is not None:
            await self._channel.close()

    def _failed(self, why: str) -> ProviderAnswer:
        self.failures += 1
        log.warning("provider_failed", provider=self.name, reason=why, fail_open=self._fail_open)
        if self._fail_open:
            return ProviderAnswer(None)
        return ProviderAnswer(f"did not answer: {why}", self._status_on_error)


def _clean(response: Any, message: bytes) -> None:
    """Remove line ends from a provider's answer, and what would make another call of the one decided on.

    Of the pseudo-headers only `:path` may change, and of it only the query.
    """
    ok = response.ok_response
    for option in (*ok.headers, *ok.response_headers_to_add, *response.denied_response.headers):
        option.header.value = _LINE_ENDS.sub("", option.header.value)
    for option in list(ok.headers):
        name = option.header.key.lower()
        if name == "host" or (name.startswith(":") and not _keeps_path(name, option.header.value, message)):
            ok.headers.remove(option)


def _keeps_path(name: str, value: str, message: bytes) -> bool:
    sent: str = CheckRequest.FromString(message).attributes.request.http.path
    return name == ":path" and value.partition("?")[0] == sent.partition("?")[0]
