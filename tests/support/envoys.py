"""A real Envoy in a process of its own, put together from the shipped fragments, and raw calls through it."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from garrison.envoy_binary import find_envoy
from garrison.envoy_config import fill, load_template
from support.serving import PATIENCE_SECONDS

ANY_PORT = {"socket_address": {"address": "127.0.0.1", "port_value": 0}}
Found = TypeVar("Found")


def eventually(look: Callable[[], Found | None], what: str) -> Found:
    """Return what `look` finds, asking it again until it finds something."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError, LookupError):
            found = look()
            if found is not None:
                return found
        time.sleep(0.02)
    raise AssertionError(f"waited in vain for {what}")


def fragment(name: str, /, **values: Any) -> Any:
    """Return a fragment of the template that Garrison ships, filled in."""
    return fill(load_template()[name], values)


def typed(kind: str, name: str, /, **fields: Any) -> dict[str, Any]:
    """Return an extension; `kind` is its message below `envoy.extensions`."""
    return {"name": name, "typed_config": {"@type": f"type.googleapis.com/envoy.extensions.{kind}", **fields}}


def listener(
    name: str, filters: Sequence[Mapping[str, Any]], tls: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return a listener at a free port of the loopback interface, over TLS if `tls` is its common context."""
    chain: dict[str, Any] = {"filters": list(filters)}
    if tls is not None:
        kind = "transport_sockets.tls.v3.DownstreamTlsContext"
        chain["transport_socket"] = typed(
            kind, "envoy.transport_sockets.tls", common_tls_context=tls, require_client_certificate=True
        )
    return {"name": name, "address": ANY_PORT, "filter_chains": [chain]}


def cluster(name: str, port: int, *, http2: bool = False) -> dict[str, Any]:
    """Return a cluster of one server at a port of the loopback interface."""
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    filled: dict[str, Any] = fragment("application_cluster", endpoints=[{"endpoint": {"address": address}}])
    filled["name"] = filled["load_assignment"]["cluster_name"] = name
    if http2:
        filled["typed_extension_protocol_options"] = fragment("http2")
    return filled


def garrison_cluster(socket: Path) -> dict[str, Any]:
    """Return the cluster that decides, as the template has it."""
    endpoints = [{"endpoint": {"address": {"pipe": {"path": str(socket)}}}}]
    filled: dict[str, Any] = fragment(
        "garrison_cluster", name="garrison_request", endpoints=endpoints, http2=fragment("http2")
    )
    return filled


class Envoy:
    """A running Envoy whose listeners are all there."""

    def __init__(self, admin: str) -> None:
        self._admin = admin
        eventually(lambda: self.admin("/ready").startswith("LIVE") or None, "a live Envoy")
        statuses = json.loads(self.admin("/listeners?format=json"))["listener_statuses"]
        self.ports = {
            status["name"]: int(status["local_address"]["socket_address"]["port_value"])
            for status in statuses
        }

    def admin(self, path: str) -> str:
        """Ask the admin interface."""
        with urllib.request.urlopen(f"http://{self._admin}{path}", timeout=5) as response:
            return str(response.read().decode())


@contextmanager
def running_envoy(
    folder: Path, listeners: Sequence[Mapping[str, Any]], clusters: Sequence[Mapping[str, Any]]
) -> Iterator[Envoy]:
    """Run an Envoy for the length of a block; its files are in `folder`."""
    config, admin = folder / "envoy.json", folder / "admin"
    bootstrap = fragment(
        "bootstrap",
        node_id="test",
        node_cluster="test",
        admin_address=ANY_PORT,
        listeners=list(listeners),
        clusters=list(clusters),
    )
    config.write_text(json.dumps(bootstrap))
    options = ["--disable-hot-restart", "--concurrency", "1", "--file-flush-interval-msec", "50"]
    with (folder / "envoy.log").open("wb") as log:
        command: list[str | Path] = [find_envoy(), "-c", config, "--admin-address-path", admin]
        process = subprocess.Popen([*command, *options, "--log-level", "warning"], stdout=log, stderr=log)

    def address() -> str | None:
        assert process.poll() is None, (folder / "envoy.log").read_text()
        return admin.read_text() or None

    try:
        yield Envoy(eventually(address, "Envoy's admin address"))
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)


@dataclass(frozen=True)
class Answer:
    """What a caller got; header names in lower case, one entry for each line."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: str

    def header(self, name: str) -> str | None:
        """Return the only value of a header, None when it is not there."""
        values = [value for key, value in self.headers if key == name]
        assert len(values) <= 1, values
        return values[0] if values else None


def call(
    port: int,
    target: str,
    headers: Sequence[tuple[str, str]] = (),
    *,
    method: str = "GET",
    tls: ssl.SSLContext | None = None,
) -> Answer:
    """Send exactly this request line and these header lines (Host only if it is among them)."""
    connection = (
        http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
        if tls is None
        else http.client.HTTPSConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS, context=tls)
    )
    with contextlib.closing(connection):
        # http.client would tidy the target and the host; what is tested here is how untidy ones are judged.
        connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        for name, value in headers:
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        lines = tuple((name.lower(), value) for name, value in response.getheaders())
        return Answer(response.status, lines, response.read().decode())


def log_lines(file: Path, request_id: str) -> list[dict[str, Any]]:
    """Return the access log's lines about one request, once there are any."""

    def found() -> list[dict[str, Any]] | None:
        whole = re.findall(r"^(\{.*\})\n", file.read_text(), re.MULTILINE)
        lines = [json.loads(line) for line in whole]
        return [line for line in lines if line["request_id"] == request_id] or None

    return eventually(found, f"the access log of {request_id}")
