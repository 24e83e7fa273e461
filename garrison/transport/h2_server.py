"""The `ngh2` server: sockets, TLS and the life of its connections. What they say is `h2`'s business."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence

import structlog

from garrison.errors import ConfigError
from garrison.transport import Methods, Peer
from garrison.transport.address import Address, Scheme
from garrison.transport.h2 import H2Connection, Limits, Shared
from garrison.transport.sockets import Acceptor, UnixPath, bind_tcp, bind_unix
from garrison.transport.tls import TlsFiles, load_server_context, spiffe_id_of
from garrison.transport.unix_peer import PeerCredentials, read_credentials

_log = structlog.get_logger(__name__)

# How long connections that were cut off may take to be gone.
_ABORT_SECONDS = 1.0


class H2Server:
    """Serves unary methods on any number of addresses. Belongs to the loop that starts it."""

    def __init__(
        self,
        methods: Methods,
        *,
        tls: TlsFiles | None = None,
        limits: Limits | None = None,
        unix_mode: int = 0o600,
    ) -> None:
        self._shared = Shared(methods, limits or Limits())
        self._tls = tls
        self._unix_mode = unix_mode
        self._context: ssl.SSLContext | None = None
        self._acceptors: list[Acceptor] = []
        self._paths: list[UnixPath] = []
        # Connections whose TLS handshake is under way.
        self._arriving: set[asyncio.Task[None]] = set()
        self._draining = False
        self._sweep: asyncio.TimerHandle | None = None

    async def start(self, addresses: Sequence[Address]) -> tuple[Address, ...]:
        """Listen; return the addresses with their actual ports.

        Raises:
            ConfigError: an address or a TLS file cannot be used; nothing listens then.

        """
        if self._tls is not None:
            self._context = load_server_context(self._tls)
        actual: list[Address] = []
        bound: list[tuple[socket.socket, Callable[[socket.socket], None]]] = []
        try:
            for address in addresses:
                found, listening = self._bind(address)
                actual.append(found)
                bound += [(sock, self._server_of(found)) for sock in listening]
        except ConfigError:
            for sock, _ in bound:
                sock.close()
            self._withdraw()
            raise
        self._acceptors = [Acceptor(sock, serve) for sock, serve in bound]
        self._schedule_sweep()
        return tuple(actual)

    def reload_tls(self, files: TlsFiles) -> None:
        """Use other TLS files for new connections.

        Raises:
            ConfigError: they cannot be used; the old ones stay in force.

        """
        self._context = load_server_context(files)

    async def drain(self, grace_seconds: float) -> None:
        """Stop listening, answer every call that was sent, close; after `grace_seconds` cut off the rest."""
        if self._draining:
            return
        loop = asyncio.get_running_loop()
        end = loop.time() + grace_seconds
        for acceptor in self._acceptors:
            acceptor.close()
        self._withdraw()
        self._draining = True
        for connection in list(self._shared.connections):
            connection.drain()
        await self._until_gone(end)
        for connection in list(self._shared.connections):
            connection.close()
        for task in self._arriving:
            task.cancel()
        await self._until_gone(loop.time() + _ABORT_SECONDS)
        if self._sweep is not None:
            self._sweep.cancel()

    async def _until_gone(self, end: float) -> None:
        loop = asyncio.get_running_loop()
        gone = self._shared.gone
        while (self._shared.connections or self._arriving) and loop.time() < end:
            gone.clear()
            waiting = [asyncio.ensure_future(gone.wait()), *self._arriving]
            await asyncio.wait(waiting, timeout=end - loop.time(), return_when=asyncio.FIRST_COMPLETED)
            waiting[0].cancel()

    def _bind(self, address: Address) -> tuple[Address, list[socket.socket]]:
        if address.scheme is Scheme.UNIX:
            path = UnixPath(address, self._unix_mode)
            listening = [bind_unix(address, path)]
            self._paths.append(path)
            return address, listening
        listening = bind_tcp(address)
        port = int(listening[0].getsockname()[1])
        return Address(address.scheme, host=address.host, port=port), listening

    def _withdraw(self) -> None:
        for path in self._paths:
            path.withdraw()
        self._paths = []

    def _server_of(self, address: Address) -> Callable[[socket.socket], None]:
        shared = self._shared
        loop = asyncio.get_running_loop()

        def protocol() -> H2Connection:
            return H2Connection(shared, lambda transport: _identify(transport, address))

        async def arrive(sock: socket.socket) -> None:
            context = self._context if address.scheme is Scheme.TLS else None
            timeout = shared.limits.handshake_seconds if context else None
            try:
                _, connection = await loop.connect_accepted_socket(
                    protocol, sock, ssl=context, ssl_handshake_timeout=timeout
                )
            except (OSError, ssl.SSLError) as error:
                _log.info("connection refused", listener=str(address), error=str(error))
                sock.close()
                return
            if self._draining:
                connection.drain()

        def serve(sock: socket.socket) -> None:
            task = loop.create_task(arrive(sock))
            self._arriving.add(task)
            task.add_done_callback(self._arriving.discard)

        return serve

    def _schedule_sweep(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweep = loop.call_later(self._shared.limits.sweep_seconds, self._run_sweep)

    def _run_sweep(self) -> None:
        self._schedule_sweep()
        for connection in list(self._shared.connections):
            connection.sweep()


def _identify(transport: asyncio.BaseTransport, listener: Address) -> Peer | None:
    """Return who is at the other end; None if it does not speak HTTP/2 over our TLS."""
    if listener.scheme is Scheme.UNIX:
        return Peer(listener.path, is_private=True, process=_process_of(transport))
    name = transport.get_extra_info("peername")
    if name is None:
        return None
    host, port = name[0], name[1]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if listener.scheme is Scheme.TCP:
        return Peer(address)
    tls = transport.get_extra_info("ssl_object")
    if tls is None or tls.selected_alpn_protocol() != "h2":
        return None
    # Without a client CA no certificate is asked for, so one that is here has been verified.
    certificate = tls.getpeercert(binary_form=True)
    if certificate is None:
        return Peer(address, is_private=True)
    return Peer(address, spiffe_id=spiffe_id_of(certificate), certificate=certificate, is_private=True)


def _process_of(transport: asyncio.BaseTransport) -> PeerCredentials | None:
    try:
        return read_credentials(transport.get_extra_info("socket"))
    except OSError as error:
        _log.warning("unix peer has no credentials", error=str(error))
        return None
