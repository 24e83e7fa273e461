"""Fetches a list over HTTP, for the refresher; blocking, so it runs in a thread.

A list's URL is the operator's, but where a name leads and where a redirect points is not: every connection
goes to an address that was looked at first, and never to link-local or cloud metadata addresses.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

from authz.mixer.expression.values import Address
from authz.mixer.lists import MAX_LIST_BYTES
from garrison.errors import DependencyError

TIMEOUT_SECONDS = 10.0
MAX_REDIRECTS = 3
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CHUNK_BYTES = 65_536
_PORTS = {"http": 80, "https": 443}
# Metadata services that are not link-local: AWS (IPv6), Alibaba, Azure's wire server, Oracle's old one.
_METADATA = frozenset(
    ip_address(text) for text in ("fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192")
)
# RFC 6052, section 2.1: the last 32 bits are an IPv4 address.
_NAT64 = ip_network("64:ff9b::/96")


def check_url(url: str) -> str:
    """Return what is wrong with `url` as the address of a list; empty when nothing is."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return f"`{url}` is not a URL"
    if parts.scheme not in _PORTS:
        return f"`{url}` is neither http:// nor https://"
    if not parts.hostname or port == 0:
        return f"`{url}` names no host"
    if parts.username is not None or parts.password is not None:
        return "a URL with a user or password is not supported"
    if not url.isascii() or any(character <= " " or character == "\x7f" for character in url):
        return f"`{url}` has characters that a URL cannot have"
    return ""


def is_blocked(address: Address) -> bool:
    """Return whether no list may be fetched from `address`: link-local, metadata, and what is no host."""
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return True
        embedded = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if embedded is None and address in _NAT64:
            embedded = ip_address(int(address) & 0xFFFFFFFF)  # type: ignore[assignment]
        if embedded is not None and is_blocked(embedded):
            return True
    return (
        address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or (address.is_reserved and not address.is_loopback and address not in _NAT64)
        or address in _METADATA
    )


class Fetcher:
    """Fetches lists. Resolver and trust are arguments so that tests need neither DNS nor a public CA."""

    def __init__(
        self,
        timeout_seconds: float = TIMEOUT_SECONDS,
        resolve: Callable[[str, int], list[str]] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._timeout = timeout_seconds
        self._resolve = resolve or _resolve
        self._tls = tls or ssl.create_default_context()

    def __call__(self, url: str) -> bytes:
        """Return the body behind `url`, the whole of it.

        Raises:
            DependencyError: no answer in time, not 200, too large, cut off, or at an address that is blocked.

        """
        deadline = time.monotonic() + self._timeout
        local = True  # redirects lead back to this machine only from this machine
        try:
            for _ in range(MAX_REDIRECTS + 1):
                if problem := check_url(url):
                    raise DependencyError(problem)
                body, target, local = self._get(urlsplit(url), deadline, local=local)
                if target is None:
                    return body
                target = urljoin(url, target)
                if url.startswith("https:") and not target.startswith("https:"):
                    raise DependencyError(f"`{url}` redirects to a URL without TLS")
                url = target
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            raise DependencyError(
                f"`{url}` cannot be fetched: {str(error) or type(error).__name__}"
            ) from error
        raise DependencyError(f"`{url}`: more than {MAX_REDIRECTS} redirects")

    def _get(self, url: SplitResult, deadline: float, *, local: bool) -> tuple[bytes, str | None, bool]:
        """Return the body, or where it is to be found; and whether the server is on this machine."""
        host, port = url.hostname or "", url.port or _PORTS[url.scheme]
        held = [self._connect(host, port, deadline, local=local)]
        # A server may answer a byte at a time: each read is quick, and only this ends the whole.
        watchdog = threading.Timer(max(0.0, deadline - time.monotonic()), _cut, (held,))
        watchdog.daemon = True
        watchdog.start()
        try:
            is_local = ip_address(held[0].getpeername()[0]).is_loopback
            if url.scheme == "https":
                secured = self._tls.wrap_socket(held[0], server_hostname=host, do_handshake_on_connect=False)
                held[0] = secured
                secured.do_handshake()
            connection = http.client.HTTPConnection(host, port)
            connection.sock = held[0]
            target = f"{url.path or '/'}?{url.query}" if url.query else url.path or "/"
            headers = {"Host": url.netloc, "Accept-Encoding": "identity", "User-Agent": "garrison"}
            connection.request("GET", target, headers=headers)
            response = connection.getresponse()
            if response.status in _REDIRECTS and (location := response.getheader("location")):
                return b"", location, is_local
            if response.status != 200:
                raise DependencyError(f"`{url.geturl()}` answers {response.status}")
            return _read(response, deadline), None, is_local
        finally:
            watchdog.cancel()
            held[0].close()

    def _connect(self, host: str, port: int, deadline: float, *, local: bool) -> socket.socket:
        """Connect to the first address of `host` that answers; all of them must be allowed."""
        found = [ip_address(text) for text in self._resolve(host, port)]
        refused = [one for one in found if is_blocked(one) or (one.is_loopback and not local)]
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


def _resolve(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _cut(held: list[socket.socket]) -> None:
    with contextlib.suppress(OSError):  # it may be closed already
        # Not SSLSocket's own, which would turn reads that follow into plain ones.
        socket.socket.shutdown(held[0], socket.SHUT_RDWR)


def _read(response: Any, deadline: float) -> bytes:
    length = response.getheader("content-length")
    chunked = (response.getheader("transfer-encoding") or "").lower() == "chunked"
    if length is None and not chunked:
        raise DependencyError("the server does not say where the list ends")
    body = bytearray()
    while piece := response.read1(_CHUNK_BYTES):
        body += piece
        if len(body) > MAX_LIST_BYTES:
            raise DependencyError(f"the list has more than {MAX_LIST_BYTES} bytes")
    if time.monotonic() >= deadline:
        raise DependencyError("the list did not come in time")
    if not chunked and str(len(body)) != str(length).strip():
        raise DependencyError("the list was cut off")
    return bytes(body)
