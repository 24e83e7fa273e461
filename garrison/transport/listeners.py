"""One server for the process to start and drain, whichever HTTP/2 stack is behind it."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import grpc

from garrison.transport import Methods
from garrison.transport.address import Address, Scheme
from garrison.transport.grpc import GrpcServer
from garrison.transport.h2 import Limits
from garrison.transport.h2_server import H2Server
from garrison.transport.sockets import address_error
from garrison.transport.tls import TlsFiles


class Transport(StrEnum):
    """The HTTP/2 stack under a server."""

    NGH2 = "ngh2"
    GRPCIO = "grpcio"


class RequestServer:
    """Answers gRPC calls on `addresses` from `start` to `drain`.

    `handlers` and `reflection_services` (names of services to describe) need grpcio. Unix sockets get the
    permissions `unix_mode`. A second server on the same addresses takes over: start it, then drain this one.
    """

    def __init__(
        self,
        kind: Transport,
        addresses: Sequence[Address],
        methods: Methods,
        *,
        tls: TlsFiles | None = None,
        limits: Limits | None = None,
        handlers: Sequence[grpc.GenericRpcHandler] = (),
        reflection_services: Sequence[str] = (),
        unix_mode: int = 0o600,
    ) -> None:
        self.kind = kind
        self.addresses = tuple(addresses)
        self._tls = tls
        self._server: H2Server | GrpcServer
        if kind is Transport.NGH2:
            if handlers or reflection_services:
                raise ValueError("streaming services need the grpcio transport")
            self._server = H2Server(methods, tls=tls, limits=limits, unix_mode=unix_mode)
        else:
            self._server = GrpcServer(
                methods,
                handlers=handlers,
                reflection_services=reflection_services,
                tls=tls,
                limits=limits,
                unix_mode=unix_mode,
            )

    async def start(self) -> None:
        """Listen on all addresses; from now on `addresses` has the actual ports.

        Raises:
            ConfigError: an address or a TLS file cannot be used; nothing listens then.

        """
        for address in self.addresses:
            if address.scheme is Scheme.TLS and self._tls is None:
                raise address_error(address, "needs a certificate and a key")
        self.addresses = await self._server.start(self.addresses)

    def reload_tls(self, files: TlsFiles) -> None:
        """Use other TLS files for new connections."""
        self._server.reload_tls(files)

    async def drain(self, grace_seconds: float) -> None:
        """Stop listening, answer what was sent, tell callers to go elsewhere; end within `grace_seconds`."""
        await self._server.drain(grace_seconds)
