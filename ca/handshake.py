"""The certificates that a TLS server presents, whoever signed them."""

from __future__ import annotations

import re
import socket
import ssl
from ipaddress import ip_address

from cryptography import x509

from garrison.errors import DependencyError

TIMEOUT_SECONDS = 10.0
_ADDRESS = re.compile(
    r"(?:https://)?(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<name>[^:/\[\]\s]+)):(?P<port>[0-9]{1,5})/?"
)


def parse_address(text: str) -> tuple[str, int] | None:
    """Return host and port of `host:port`, `[v6]:port` or `https://host:port`; None if it is none of them."""
    match = _ADDRESS.fullmatch(text)
    if match is None or not 0 < int(match["port"]) < 65536:
        return None
    return match["v6"] or match["name"], int(match["port"])


def presented_chain(
    host: str, port: int, *, server_name: str | None = None, timeout_seconds: float = TIMEOUT_SECONDS
) -> tuple[x509.Certificate, ...]:
    """Return what the server sends in a handshake, leaf first; nothing of it is verified.

    `server_name` is asked for (SNI), else `host` if it is a name. No client certificate is shown; a server of
    TLS 1.3 that wants one presents its own all the same.

    Raises:
        DependencyError: it cannot be reached in time, or the handshake fails.

    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # To look at certificates is not to trust them: no data follows.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    name = server_name or (None if _is_address(host) else host)
    where = f"{host}:{port}"
    try:
        with (
            socket.create_connection((host, port), timeout_seconds) as connection,
            context.wrap_socket(connection, server_hostname=name) as tls,
        ):
            return peer_certificates(tls)
    except TimeoutError as error:
        raise DependencyError(f"`{where}` did not answer within {timeout_seconds:g} s") from error
    except ssl.SSLError as error:
        reason = error.reason or str(error)
        raise DependencyError(f"the TLS handshake with `{where}` failed: {reason.lower()}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DependencyError(f"`{where}` cannot be reached: {str(reason).lower()}") from error


def peer_certificates(tls: ssl.SSLSocket) -> tuple[x509.Certificate, ...]:
    """Return what the other side of a connection presented, leaf first; at least one.

    Raises:
        DependencyError: there is none, or one that cannot be read.

    """
    try:
        found = tuple(x509.load_der_x509_certificate(der) for der in _unverified_chain(tls))
    except (ValueError, x509.InvalidVersion) as error:
        raise DependencyError("the server presents a certificate that cannot be read") from error
    if not found:
        raise DependencyError("the server presents no certificate")
    return found


def _unverified_chain(tls: ssl.SSLSocket) -> list[bytes]:
    public = getattr(tls, "get_unverified_chain", None)
    if public is not None:  # Python 3.13
        return [bytes(der) for der in public()]
    # The same method, before it had a public name.
    chain = getattr(tls, "_sslobj").get_unverified_chain() or []  # noqa: B009 - says that it is private
    return [ssl.PEM_cert_to_DER_cert(one.public_bytes()) for one in chain]


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
