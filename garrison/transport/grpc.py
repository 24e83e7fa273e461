"""The same methods on grpcio's asyncio server, beside everything that streams.

What differs from `h2`, because grpcio's core decides it before any of our code runs:

- compressed messages are decompressed;
- a message of more than twice the limit is refused with a status, `on_fault` cannot answer for it;
- at a drain, calls that the core has read but not yet handed over end as CANCELLED: callers need a retry
  policy that covers it (nothing was done for such a call).
"""

from __future__ import annotations

import base64
import inspect
import ssl
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import unquote

import grpc
from grpc_reflection.v1alpha import reflection

from garrison.transport import Call, Method, Methods, Peer, StatusError
from garrison.transport.address import Address, Scheme
from garrison.transport.faults import answer_fault
from garrison.transport.h2 import Limits
from garrison.transport.sockets import UnixPath, address_error
from garrison.transport.tls import TlsFiles, check_files, load_server_credentials, spiffe_id_of
from garrison.transport.wire import too_large

_CODES = {code.value[0]: code for code in grpc.StatusCode}
_Context = grpc.aio.ServicerContext[bytes, bytes]


class GrpcServer:
    """Serves unary methods and `handlers` on any number of addresses. Belongs to the loop that starts it."""

    def __init__(
        self,
        methods: Methods,
        *,
        handlers: Sequence[grpc.GenericRpcHandler] = (),
        reflection_services: Sequence[str] = (),
        tls: TlsFiles | None = None,
        limits: Limits | None = None,
        unix_mode: int = 0o600,
    ) -> None:
        self._methods = methods
        self._handlers = handlers
        self._reflection_services = reflection_services
        self._tls = tls
        self._limits = limits or Limits()
        self._unix_mode = unix_mode
        self._paths: list[UnixPath] = []
        self._server: grpc.aio.Server | None = None

    async def start(self, addresses: Sequence[Address]) -> tuple[Address, ...]:
        """Listen; return the addresses with their actual ports.

        Raises:
            ConfigError: an address or a TLS file cannot be used; nothing listens then.

        """
        limits = self._limits
        server = grpc.aio.server(
            options=(
                ("grpc.so_reuseport", 1),
                ("grpc.max_receive_message_length", min(2 * limits.max_message_bytes, 2**31 - 1)),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_concurrent_streams", limits.max_concurrent_streams),
                ("grpc.max_metadata_size", limits.max_header_list_bytes),
                ("grpc.absolute_max_metadata_size", limits.max_header_list_bytes),
            )
        )
        unix_path = next((address.path for address in addresses if address.scheme is Scheme.UNIX), "")
        server.add_generic_rpc_handlers(
            (_Unary(self._methods, limits.max_message_bytes, unix_path), *self._handlers)
        )
        if self._reflection_services:
            names = (*self._reflection_services, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
        try:
            actual = tuple(self._bind(server, address) for address in addresses)
            await server.start()
        except BaseException:
            self._withdraw()
            await server.stop(None)
            raise
        self._server = server
        return actual

    def reload_tls(self, files: TlsFiles) -> None:
        """Use other TLS files for new connections.

        Raises:
            ConfigError: they cannot be used; the old ones stay in force.

        """
        check_files(files)
        self._tls = files

    async def drain(self, grace_seconds: float) -> None:
        """Stop listening, finish the calls in flight; after `grace_seconds` cut off the rest."""
        if self._server is not None:
            self._withdraw()
            await self._server.stop(grace_seconds)
            self._server = None

    def _bind(self, server: grpc.aio.Server, address: Address) -> Address:
        try:
            if address.scheme is Scheme.UNIX:
                path = UnixPath(address, self._unix_mode)
                path.prepare()
                server.add_insecure_port(f"unix:{path.temporary}")
                path.protect()
                path.publish()
                self._paths.append(path)
                return address
            host = f"[{address.host}]" if ":" in address.host else address.host
            target = f"{host}:{address.port}"
            if address.scheme is Scheme.TLS:
                port = server.add_secure_port(target, load_server_credentials(self._tls_files))
            else:
                port = server.add_insecure_port(target)
        except (RuntimeError, OSError) as error:
            raise address_error(address, f"cannot listen: {error}") from error
        return Address(address.scheme, host=address.host, port=port)

    def _tls_files(self) -> TlsFiles:
        if self._tls is None:
            raise ValueError("a TLS address needs TLS files")
        return self._tls

    def _withdraw(self) -> None:
        for path in self._paths:
            path.withdraw()
        self._paths = []


class _Unary(grpc.GenericRpcHandler):
    def __init__(self, methods: Methods, max_message_bytes: int, unix_path: str) -> None:
        self._handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            path: grpc.unary_unary_rpc_method_handler(_behaviour(path, method, max_message_bytes, unix_path))
            for path, method in methods.items()
        }

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        return self._handlers.get(handler_call_details.method)


def _behaviour(
    path: str, method: Method, max_message_bytes: int, unix_path: str
) -> Callable[[bytes, _Context], Awaitable[bytes]]:
    async def behave(message: bytes, context: _Context) -> bytes:
        try:
            if len(message) > max_message_bytes:
                raise too_large(max_message_bytes)  # noqa: TRY301 - one place turns failures into answers
            answer = method.handler(message, Call(_peer(context, unix_path), _metadata(context)))
            if inspect.isawaitable(answer):
                answer = await answer
            if not isinstance(answer, bytes):
                raise TypeError(f"handler returned {type(answer).__name__}")  # noqa: TRY301
        except Exception as error:  # noqa: BLE001 - whatever a handler raises ends its call only
            answer_or_status = answer_fault(path, method, error)
            if isinstance(answer_or_status, StatusError):
                await context.abort(_CODES[answer_or_status.code], answer_or_status.message)
            return answer_or_status
        return answer

    return behave


def _metadata(context: _Context) -> list[tuple[bytes, bytes]]:
    """Return the metadata as it was on the wire: grpcio has decoded the values of `-bin` names."""
    return [
        (name.encode(), value.encode() if isinstance(value, str) else base64.b64encode(value).rstrip(b"="))
        for name, value in context.invocation_metadata() or ()
    ]


def _peer(context: _Context, unix_path: str) -> Peer:
    scheme, _, rest = context.peer().partition(":")
    address = unix_path if scheme == "unix" else unquote(rest)
    known = context.auth_context()
    for text in known.get("x509_pem_cert", ()):
        certificate = ssl.PEM_cert_to_DER_cert(text.decode("ascii"))
        return Peer(address, spiffe_id=spiffe_id_of(certificate), certificate=certificate, is_private=True)
    is_tls = b"ssl" in known.get("transport_security_type", ())
    return Peer(address, is_private=is_tls or scheme in {"unix", "unix-abstract"})
