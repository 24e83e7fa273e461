"""Admin HTTP: health, metrics, version, rate limits, others' pages. In a thread off the request path."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from garrison.process.counter_pages import PREFIX, CounterPages
from garrison.transport.address import Address, Scheme


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    # A second process can listen before the first one stops.
    allow_reuse_port = True


class _Handler(WSGIRequestHandler):
    # Seconds without a byte after which a connection is dropped.
    timeout = 10

    def get_environ(self) -> WSGIEnvironment:
        """Return what WSGI says of a request, and the caller's port."""
        return {**super().get_environ(), "REMOTE_PORT": str(self.client_address[1])}

    def log_message(self, *_: Any) -> None:
        """Scrapes and probes are not worth a line each."""


class AdminServer:
    """Serves the admin pages until `close`."""

    def __init__(
        self,
        address: Address,
        registry: CollectorRegistry,
        ready: Callable[[], bool],
        version: Mapping[str, Any],
        *,
        details: Callable[[], Mapping[str, str]] = dict,
        counters: CounterPages | None = None,
        pages: Callable[[str], tuple[str, bytes] | None] = lambda _: None,
    ) -> None:
        """Listen on `address` (port 0: any free one); `details` are lines for `/healthz`.

        `counters` answers what is below `/ratelimit/`. `pages` returns type and content of a further path,
        None if there is nothing; threads call it.

        Raises:
            OSError: the address cannot be listened on.

        """
        self._registry = registry
        self._ready = ready
        self._version = version
        self._details = details
        self._counters = counters
        self._pages = pages
        self._server = make_server(address.host, address.port, self._answer, _Server, _Handler)
        self.address = Address(Scheme.TCP, host=address.host, port=self._server.server_port)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="admin", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        status, content_type, body = self._page(environ)
        start_response(status, [("content-type", content_type), ("content-length", str(len(body)))])
        return [body if environ.get("REQUEST_METHOD") != "HEAD" else b""]

    def _page(self, environ: WSGIEnvironment) -> tuple[str, str, bytes]:
        if self._counters is not None and environ.get("PATH_INFO", "").startswith(PREFIX):
            page = self._counters.answer(environ)
            return page.status, "application/json", json.dumps(page.content, default=str).encode() + b"\n"
        if environ.get("REQUEST_METHOD") not in {"GET", "HEAD"}:
            return "405 Method Not Allowed", "text/plain", b"only GET\n"
        match environ.get("PATH_INFO"):
            case "/healthz":
                # Alive, whatever it depends on is doing: restarting this process would mend none of that.
                lines = ["ok", *(f"{name}: {value}" for name, value in self._details().items())]
                return "200 OK", "text/plain", "".join(f"{line}\n" for line in lines).encode()
            case "/readyz":
                ready = self._ready()
                return (
                    ("200 OK" if ready else "503 Service Unavailable"),
                    "text/plain",
                    (b"ready\n" if ready else b"not ready\n"),
                )
            case "/metrics":
                return "200 OK", CONTENT_TYPE_LATEST, generate_latest(self._registry)
            case "/version":
                return "200 OK", "application/json", json.dumps(dict(self._version)).encode() + b"\n"
            case path:
                if (found := self._pages(path or "")) is not None:
                    return "200 OK", *found
                known = "/healthz /readyz /metrics /version"
                if self._counters is not None:
                    known += f" {PREFIX}config {PREFIX}counters {PREFIX}reset"
                return "404 Not Found", "text/plain", f"{known}\n".encode()
