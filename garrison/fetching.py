"""HTTP requests to what settings and policies name; blocking, so they run in threads.

A URL is the operator's, but where a name leads and where a redirect points is not: every connection goes
to an address that was looked at first (`garrison.urls`). No error has anything of headers, bodies or queries.

    fetcher = Fetcher()
    body = fetcher.get("https://issuer.example/keys").expect(200).body
    answer = fetcher.post(url, form_body({"token": token}), headers={"authorization": f"Basic {secret}"})
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlencode, urljoin, urlsplit

from garrison.errors import DependencyError
from garrison.urls import PORTS, Network, check_url, is_blocked, is_loopback, shown

TIMEOUT_SECONDS = 10.0
MAX_BODY_BYTES = 1024 * 1024
MAX_REDIRECTS = 3
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CHUNK_BYTES = 65_536
_MOST_REASON = 200
# What `_exchange` sets itself, or what would change where an answer ends.
_OWN_HEADERS = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-length",
        "content-type",
        "host",
        "transfer-encoding",
        "user-agent",
    }
)


@dataclass(frozen=True, slots=True)
class Body:
    """What is posted; see `form_body` and `json_body`."""

    content: bytes = field(repr=False)
    content_type: str


def form_body(fields: Mapping[str, str]) -> Body:
    """Return `fields` as `application/x-www-form-urlencoded`."""
    return Body(urlencode(fields).encode(), "application/x-www-form-urlencoded")


def json_body(value: Any) -> Body:
    """Return `value` as `application/json`."""
    return Body(json.dumps(value).encode(), "application/json")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered. Header names are in lower case; the values of one name are joined by `, `.

    `body` is whole, and empty unless the status is 2xx. `url` is the one that answered, after redirects.
    """

    url: str = field(repr=False)
    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    is_local: bool  # the server is on this machine

    def expect(self, *statuses: int) -> Answer:
        """Return this answer.

        Raises:
            DependencyError: its status is none of `statuses`.

        """
        if self.status not in statuses:
            raise DependencyError(f"`{shown(self.url)}` answers {self.status}")
        return self


class Fetcher:
    """Makes requests, one connection each; may be used by several threads.

    Servers are verified with the roots of the system, or those in the file `ca` instead, which is read again
    when it changes. `resolve` gives the addresses of a host and port.
    """

    def __init__(
        self,
        timeout_seconds: float = TIMEOUT_SECONDS,
        resolve: Callable[[str, int], list[str]] | None = None,
        tls: ssl.SSLContext | None = None,
        *,
        ca: Path | None = None,
        max_bytes: int = MAX_BODY_BYTES,
        blocked: Sequence[Network] = (),
        check_peer: Callable[[ssl.SSLSocket], None] = lambda _: None,
    ) -> None:
        """`timeout_seconds` is for a whole call, redirects included, but for the lookup of names.

        `max_bytes` is the largest body that is taken; nothing in `blocked` is ever connected to. `check_peer`
        is called after each handshake, before anything is sent, and raises DependencyError to end it.
        """
        self._check_peer = check_peer
        self._timeout = timeout_seconds
        self._resolve = resolve or _resolve
        self._tls: Callable[[], ssl.SSLContext]
        if ca is None:
            default = tls or ssl.create_default_context()
            self._tls = lambda: default
        else:
            self._tls = _Roots(ca).context
        self._max_bytes = max_bytes
        self._blocked = tuple(blocked)

    def get(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_seconds: float | None = None,
        told_by: Answer | None = None,
    ) -> Answer:
        """Return the answer to a GET. A few redirects are followed, `headers` only to the same origin.

        `told_by` is the answer that named `url`, if one did: as with a redirect, a server elsewhere cannot
        send us to this machine.

        Raises:
            DependencyError: no answer in time, too large, cut off, or at an address that is blocked.

        """
        deadline = time.monotonic() + (self._timeout if timeout_seconds is None else timeout_seconds)
        local = told_by is None or told_by.is_local
        sent = headers or {}
        for _ in range(MAX_REDIRECTS + 1):
            answer = self._send("GET", url, None, sent, deadline, local=local)
            target = answer.headers.get("location", "")
            if answer.status not in _REDIRECTS or not target:
                return answer
            target = _target(url, target)
            if url.startswith("https:") and not target.startswith("https:"):
                raise DependencyError(f"`{shown(url)}` redirects to a URL without TLS")
            if _origin(target) != _origin(url):
                sent = {}
            # Redirects lead back to this machine only from this machine.
            url, local = target, answer.is_local
        raise DependencyError(f"`{shown(url)}`: more than {MAX_REDIRECTS} redirects")

    def post(
        self,
        url: str,
        body: Body,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_seconds: float | None = None,
    ) -> Answer:
        """Return the answer to a POST; a redirect is an answer as any other, and is not followed.

        Raises:
            DependencyError: as in `get`.

        """
        deadline = time.monotonic() + (self._timeout if timeout_seconds is None else timeout_seconds)
        return self._send("POST", url, body, headers or {}, deadline, local=True)

    def _send(
        self,
        method: str,
        url: str,
        body: Body | None,
        headers: Mapping[str, str],
        deadline: float,
        *,
        local: bool,
    ) -> Answer:
        if problem := check_url(url):
            raise DependencyError(problem)
        _check_headers(headers)
        try:
            return self._exchange(method, urlsplit(url), body, headers, deadline, local=local)
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            reason = (str(error) or type(error).__name__)[:_MOST_REASON]
            raise DependencyError(f"`{shown(url)}` cannot be fetched: {reason}") from error

    def _exchange(
        self,
        method: str,
        url: SplitResult,
        body: Body | None,
        headers: Mapping[str, str],
        deadline: float,
        *,
        local: bool,
    ) -> Answer:
        host, port = url.hostname or "", url.port or PORTS[url.scheme]
        held = [self._connect(host, port, deadline, local=local)]
        # A server may answer a byte at a time: each read is quick, and only this ends the whole.
        watchdog = threading.Timer(max(0.0, deadline - time.monotonic()), _cut, (held,))
        watchdog.daemon = True
        watchdog.start()
        try:
            is_local = is_loopback(ip_address(held[0].getpeername()[0]))
            if url.scheme == "https":
                secured = self._tls().wrap_socket(
                    held[0], server_hostname=host, do_handshake_on_connect=False
                )
                held[0] = secured
                # The watchdog may just have cut what is no longer the connection.
                if time.monotonic() >= deadline:
                    raise TimeoutError("timed out")
                secured.do_handshake()
                self._check_peer(secured)
            connection = http.client.HTTPConnection(host, port)
            connection.sock = held[0]
            sent = {"Host": url.netloc, "Accept-Encoding": "identity", "User-Agent": "garrison"}
            if body is not None:
                sent["Content-Type"] = body.content_type
            target = f"{url.path or '/'}?{url.query}" if url.query else url.path or "/"
            connection.request(method, target, body.content if body else None, {**sent, **headers})
            response = connection.getresponse()
            return Answer(
                url.geturl(),
                response.status,
                _joined(response.getheaders()),
                self._read(response, deadline, shown(url.geturl())) if 200 <= response.status < 300 else b"",
                is_local,
            )
        finally:
            watchdog.cancel()
            held[0].close()

    def _connect(self, host: str, port: int, deadline: float, *, local: bool) -> socket.socket:
        """Connect to the first address of `host` that answers; all of them must be allowed."""
        found = [ip_address(text) for text in self._resolve(host, port)]
        refused = [one for one in found if is_blocked(one, self._blocked) or (is_loopback(one) and not local)]
        if refused or not found:
            what = f"`{refused[0]}`, which is not allowed" if refused else "no address"
            raise DependencyError(f"`{host}` leads to {what}")
        problem: OSError | None = None
        for address in found:
            try:
                remaining = max(0.001, deadline - time.monotonic())
                return socket.create_connection((str(address), port), timeout=remaining)
            except OSError as error:
                problem = error
        raise problem or OSError("no address")

    def _read(self, response: http.client.HTTPResponse, deadline: float, url: str) -> bytes:
        encoding = response.getheader("content-encoding") or "identity"
        if encoding.lower() != "identity":
            raise DependencyError(f"`{url}`: the server sends an encoding that was not asked for")
        length = response.getheader("content-length")
        chunked = (response.getheader("transfer-encoding") or "").lower() == "chunked"
        if length is None and not chunked and response.status != 204:
            raise DependencyError(f"`{url}`: the server does not say where the body ends")
        body = bytearray()
        while piece := response.read1(_CHUNK_BYTES):
            body += piece
            if len(body) > self._max_bytes:
                raise DependencyError(f"`{url}`: the body has more than {self._max_bytes} bytes")
        if time.monotonic() >= deadline:
            raise DependencyError(f"`{url}`: the body did not come in time")
        if length is not None and not chunked and str(len(body)) != length.strip():
            raise DependencyError(f"`{url}`: the body was cut off")
        return bytes(body)


class _Roots:
    """The roots in a file, as they are now."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen: tuple[int, ...] = ()
        self._context: ssl.SSLContext | None = None

    def context(self) -> ssl.SSLContext:
        """Return what verifies with them; a file that is not usable keeps the roots that were there."""
        with contextlib.suppress(OSError):  # ssl.SSLError is one
            status = self._file.stat()
            seen = (status.st_ino, status.st_size, status.st_mtime_ns)
            if seen != self._seen:
                self._context = ssl.create_default_context(cafile=str(self._file))
                self._seen = seen
        if self._context is None:
            raise DependencyError(f"`{self._file}` holds no certificates to verify with")
        return self._context


def _resolve(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _cut(held: list[socket.socket]) -> None:
    with contextlib.suppress(OSError):  # it may be closed already
        # Not SSLSocket's own, which would turn reads that follow into plain ones.
        socket.socket.shutdown(held[0], socket.SHUT_RDWR)


def _target(url: str, location: str) -> str:
    """Return where an answer of `url` redirects to."""
    try:
        target = urljoin(url, location)
    except ValueError as error:
        raise DependencyError(f"`{shown(url)}` redirects to what is not a URL") from error
    if problem := check_url(target):
        raise DependencyError(f"`{shown(url)}` redirects: {problem}")
    return target


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower()


def _joined(headers: Sequence[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in headers:
        key = name.lower()
        found[key] = f"{found[key]}, {value}" if key in found else value
    return found


def _check_headers(headers: Mapping[str, str]) -> None:
    """Refuse what `http.client` would refuse with the value in its message."""
    for name, value in headers.items():
        if name.lower() in _OWN_HEADERS:
            raise DependencyError(f"the header `{name}` cannot be set")
        if not name.isascii() or not name.replace("-", "").isalnum():
            raise DependencyError("a header has a name that HTTP does not allow")
        if not value.isascii() or not value.isprintable():
            raise DependencyError(f"the header `{name}` has characters that HTTP does not allow")
