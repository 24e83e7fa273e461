"""How requests reach a service: one handler interface, two HTTP/2 stacks behind it.

A service method is `bytes -> bytes` plus what is known about the call. It knows protobuf, never HTTP/2;
`h2` and `grpc` know HTTP/2, never protobuf.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from garrison.errors import GarrisonError
from garrison.identity import SpiffeId

if TYPE_CHECKING:
    from garrison.transport.unix_peer import PeerCredentials


class StatusCode(IntEnum):
    """gRPC status codes that Garrison answers with (gRPC "Status codes and their use")."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class StatusError(GarrisonError):
    """A handler's way to end a call with a gRPC status; `message` is shown to the caller."""

    def __init__(self, code: StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Peer:
    """Who opened the connection: one object per connection, shared by its calls.

    `spiffe_id` and `certificate` (DER) are set only after a verified mTLS handshake; `address` is
    `ip:port` for TCP and the socket's path for Unix sockets. `is_private`: nobody on the way reads along,
    because of TLS or because there is no way. `process` is who opened a Unix socket, where the transport
    asks the kernel itself (`h2`).
    """

    address: str
    spiffe_id: SpiffeId | None = None
    certificate: bytes | None = None
    is_private: bool = False
    process: PeerCredentials | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """What a handler may know about the call besides the message; calls that are alike may share one.

    `metadata` is the request's initial metadata in wire order: lower-case names, raw values, pseudo
    headers and `grpc-*` left in by either transport or not (do not rely on them).
    """

    peer: Peer
    metadata: Sequence[tuple[bytes, bytes]]


Handler = Callable[[bytes, Call], "bytes | Awaitable[bytes]"]
FaultHandler = Callable[[Exception], bytes]


@dataclass(frozen=True, slots=True)
class Method:
    """One unary method.

    `on_fault` answers when `handler` cannot: the message is too large, badly framed or compressed, or the
    handler raised. Its bytes are sent as an ordinary response with gRPC status OK. A method whose caller
    treats an RPC failure as consent (Envoy's `failure_mode_allow`) must have one. Without it the call ends
    with the `StatusError`'s status, or `INTERNAL`.
    """

    handler: Handler
    on_fault: FaultHandler | None = None


# Keyed by the full method path, such as `/envoy.service.auth.v3.Authorization/Check`.
Methods = Mapping[str, Method]
