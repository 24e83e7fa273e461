"""A few pages over HTTP, from a thread of their own, off the request path."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIEnvironment

from garrison.transport.address import Address, Scheme
from garrison.transport.tls import TlsFiles, load_server_context

PROTOCOLS = ("http/1.1",)
# Status line, content type, body.
Page = tuple[str, str, bytes]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    # A second process can listen before the first one stops.
    allow_reuse_port = True
    tls: ssl.SSLContext | None = None

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept; the handshake is left to the connection's own thread, where a slow one holds up nobody."""
        connection, address = super().get_request()
        if self.tls is not None:
            connection = self.tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a caller that goes away or does not speak TLS is no news."""


class _Handler(WSGIRequestHandler):
    # Seconds without a byte after which a connection is dropped.
    timeout = 10

    def get_environ(self) -> WSGIEnvironment:
        """Return what WSGI says of a request, and the caller's port."""
        return {**super().get_environ(), "REMOTE_PORT": str(self.client_address[1])}

    def log_message(self, *_: Any) -> None:
        """Scrapes and probes are not worth a line each."""


def only_get(page: Callable[[str], Page]) -> Callable[[WSGIEnvironment], Page]:
    """Return what answers GET and HEAD with what `page` returns for the path, and nothing else."""

    def answer(environ: WSGIEnvironment) -> Page:
        if environ.get("REQUEST_METHOD") not in {"GET", "HEAD"}:
            return "405 Method Not Allowed", "text/plain", b"only GET\n"
        return page(environ.get("PATH_INFO", ""))

    return answer


class PageServer:
    """Answers each request with what `answer` returns for it, until `close`. Threads call it."""

    def __init__(
        self,
        name: str,
        address: Address,
        answer: Callable[[WSGIEnvironment], Page],
        tls: TlsFiles | ssl.SSLContext | None = None,
    ) -> None:
        """Listen on `address` (port 0: any free one), with TLS if there are files or a context for it.

        Raises:
            OSError: the address cannot be listened on.
            ConfigError: a TLS file cannot be used.

        """
        self._page = answer
        context = load_server_context(tls, protocols=PROTOCOLS) if isinstance(tls, TlsFiles) else tls
        self._server = _Server((address.host, address.port), _Handler)
        self._server.tls = context
        self._server.set_app(self._answer)
        scheme = Scheme.TCP if tls is None else Scheme.TLS
        self.address = Address(scheme, host=address.host, port=self._server.server_port)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name=name, daemon=True
        )
        self._thread.start()

    def reload_tls(self, files: TlsFiles) -> None:
        """Use other TLS files for new connections.

        Raises:
            ConfigError: they cannot be used; the old ones stay in force.

        """
        self._server.tls = load_server_context(files, protocols=PROTOCOLS)

    def use_tls(self, context: ssl.SSLContext) -> None:
        """Use another TLS context for new connections."""
        self._server.tls = context

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        with contextlib.suppress(OSError):
            self._server.server_close()
        self._thread.join()

    def _answer(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        status, content_type, body = self._page(environ)
        start_response(status, [("content-type", content_type), ("content-length", str(len(body)))])
        return [body if environ.get("REQUEST_METHOD") != "HEAD" else b""]
