"""Admin HTTP: `/healthz`, `/readyz`, `/metrics`, `/version`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from garrison.process.pages import Page, PageServer
from garrison.transport.address import Address


class AdminServer:
    """Serves the admin pages until `close`."""

    def __init__(
        self,
        address: Address,
        registry: CollectorRegistry,
        ready: Callable[[], bool],
        version: Mapping[str, Any],
        details: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        """Listen on `address` (port 0: any free one); `details` are lines for `/healthz`.

        Raises:
            OSError: the address cannot be listened on.

        """
        self._registry = registry
        self._ready = ready
        self._version = version
        self._details = details
        self._server = PageServer("admin", address, self._page)
        self.address = self._server.address

    def close(self) -> None:
        """Stop listening."""
        self._server.close()

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
                return "404 Not Found", "text/plain", b"/healthz /readyz /metrics /version\n"
