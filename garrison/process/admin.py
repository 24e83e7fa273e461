"""Admin HTTP: health, metrics, version, rate limits, others' pages. In a thread off the request path."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any
from wsgiref.types import WSGIEnvironment

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from garrison.process.counter_pages import PREFIX, CounterPages
from garrison.process.pages import Page, PageServer, only_get
from garrison.transport.address import Address


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
        self._server = PageServer("admin", address, self._answer)
        self.address = self._server.address

    def close(self) -> None:
        """Stop listening."""
        self._server.close()

    def _answer(self, environ: WSGIEnvironment) -> Page:
        if self._counters is not None and environ.get("PATH_INFO", "").startswith(PREFIX):
            page = self._counters.answer(environ)
            return page.status, "application/json", json.dumps(page.content, default=str).encode() + b"\n"
        return only_get(self._page)(environ)

    def _page(self, path: str) -> Page:
        match path:
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
            case _:
                if (found := self._pages(path)) is not None:
                    return "200 OK", *found
                known = "/healthz /readyz /metrics /version"
                if self._counters is not None:
                    known += f" {PREFIX}config {PREFIX}counters {PREFIX}reset"
                return "404 Not Found", "text/plain", f"{known}\n".encode()
