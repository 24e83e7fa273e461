"""Calls into the mesh from where a workload's application makes them, and what the peer's Envoy logged."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from garrison.demo.topology import full_name

TIMEOUT_SECONDS = 10.0
_POLL_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class Call:
    """A call that the application of the member `caller` makes to `service` through its sidecar.

    With the caller `ingress` it comes from outside, and `service` only says where it should end up.
    """

    caller: str
    service: str
    path: str
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; header names in lower case. `request_id` finds the call in access logs."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    request_id: str


@dataclass(frozen=True, slots=True)
class Decided:
    """What the Envoy in front of the destination logged about a call; `added_ms` is what asking cost."""

    decision: str = ""
    policy: str = ""
    reason: str = ""
    snapshot: str = ""
    added_ms: float | None = None


def send(connection: http.client.HTTPConnection, call: Call) -> Answer:
    """Make `call` over `connection`, which leads to the caller's outbound listener.

    Raises:
        OSError, http.client.HTTPException: no answer came.

    """
    host = {} if call.caller == "ingress" else {"host": full_name(call.service)}
    connection.request(call.method, call.path, call.body or None, {**host, **call.headers})
    response = connection.getresponse()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, response.read(), headers.get("x-request-id", ""))


def connect(port: int) -> http.client.HTTPConnection:
    """Return a connection to a loopback port, opened by its first request."""
    return http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket, for Envoy's admin interface."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        """Open the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class JsonLines:
    """A file of JSON lines that somebody else appends to; a line that is no JSON object is passed over."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new(self) -> list[dict[str, Any]]:
        """Return what was completed since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            complete, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(complete) + len(newline)
        values = [_object(line) for line in complete.splitlines()]
        return [value for value in values if value is not None]


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


class AccessLogs:
    """The access logs of all sidecars, searched by request id."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = {name: JsonLines(path) for name, path in files.items()}
        self._entries: dict[tuple[str, str], dict[str, Any]] = {}

    def find(self, members: Iterable[str], request_id: str, timeout_seconds: float = 3.0) -> Decided | None:
        """Return what one of `members` logged about the call, waiting for Envoy to write it; else None."""
        names = tuple(members)
        deadline = time.monotonic() + timeout_seconds
        while True:
            for name in names:
                self._read(name)
                entry = self._entries.get((name, request_id))
                if entry is not None:
                    return _decided(entry)
            if time.monotonic() > deadline:
                return None
            time.sleep(_POLL_SECONDS)

    def _read(self, name: str) -> None:
        for entry in self._files[name].new():
            self._entries[name, str(entry.get("request_id"))] = entry


def _decided(entry: Mapping[str, Any]) -> Decided:
    micros = entry.get("ext_authz_us")
    return Decided(
        decision=_string(entry.get("decision")),
        policy=_string(entry.get("policy")),
        reason=_string(entry.get("reason")),
        snapshot=_string(entry.get("snapshot")),
        added_ms=float(micros) / 1000 if isinstance(micros, int | float | str) and micros != "-" else None,
    )


def _string(value: Any) -> str:
    return "" if value is None or value == "-" else str(value)
