"""The control path: what streams, on grpcio, with the callers of Unix sockets known by the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import grpc

from garrison.transport import Methods, Peer
from garrison.transport.address import Address, Scheme
from garrison.transport.listeners import RequestServer, Transport
from garrison.transport.sockets import address_error
from garrison.transport.tls import TlsFiles
from garrison.transport.unix_peer import PEER_PREFIX, PeerCredentialListener, PeerCredentials


class ControlServer:
    """Serves `handlers` on `addresses`; `credentials` tells who is behind a connection of a Unix socket."""

    def __init__(self, addresses: Sequence[Address], tls: TlsFiles | None, unix_mode: int) -> None:
        self.addresses = tuple(addresses)
        self._tls = tls
        self._listeners = {
            address: PeerCredentialListener(Path(address.path), mode=unix_mode)
            for address in addresses
            if address.scheme is Scheme.UNIX
        }
        self._server: RequestServer | None = None

    def credentials(self, peer: str) -> PeerCredentials | None:
        """Return who is behind a gRPC `context.peer()`; None for TCP and for closed connections."""
        for listener in self._listeners.values():
            found = listener.credentials(peer)
            if found is not None:
                return found
        return None

    def process_of(self, peer: Peer) -> PeerCredentials | None:
        """Return the same for the caller of a unary method."""
        return self.credentials(f"{PEER_PREFIX}{peer.address}")

    async def start(
        self, methods: Methods, handlers: Sequence[grpc.GenericRpcHandler], services: Sequence[str]
    ) -> None:
        """Listen; `services` are described by reflection.

        Raises:
            ConfigError: an address cannot be used.

        """
        inner = [
            Address.parse(listener.inner_target.replace("unix:", "unix://", 1))
            if (listener := self._listeners.get(address))
            else address
            for address in self.addresses
        ]
        self._server = RequestServer(
            Transport.GRPCIO,
            inner,
            methods,
            tls=self._tls,
            handlers=handlers,
            reflection_services=services,
        )
        await self._server.start()
        actual = zip(self.addresses, self._server.addresses, strict=True)
        self.addresses = tuple(asked if asked.scheme is Scheme.UNIX else bound for asked, bound in actual)
        for address, listener in self._listeners.items():
            try:
                await listener.start()
            except OSError as error:
                raise address_error(address, (error.strerror or str(error)).lower()) from error

    def reload_tls(self, files: TlsFiles) -> None:
        """Use other TLS files for new connections."""
        if self._server is not None:
            self._server.reload_tls(files)

    async def drain(self, grace_seconds: float) -> None:
        """Take no new connections, let calls end, close."""
        for listener in self._listeners.values():
            await listener.stop_accepting()
        if self._server is not None:
            await self._server.drain(grace_seconds)
        for listener in self._listeners.values():
            await listener.close()
