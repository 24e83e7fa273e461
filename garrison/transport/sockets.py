"""Listening sockets that a second process can take over without a gap.

TCP: `SO_REUSEPORT`, so the second one listens before the first one stops. Unix: bound under a temporary
name and renamed over the old one, so the path always leads to somebody who listens. What is already in
the queue of a socket that closes is accepted and served.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import structlog

from garrison.documents import Diagnostic, Position
from garrison.errors import ConfigError
from garrison.transport.address import Address

_log = structlog.get_logger(__name__)

_BACKLOG = 4096
# Connections accepted before the loop may do something else.
_ACCEPT_AT_ONCE = 64
_RETRY_SECONDS = 0.5


def address_error(address: Address, message: str) -> ConfigError:
    """Return the error for an address that cannot be listened on."""
    return ConfigError([Diagnostic(str(address), Position(1, 1), (), "address", message)])


def bind_tcp(address: Address) -> list[socket.socket]:
    """Listen on every IP address of `address.host`, all with the same port.

    Raises:
        ConfigError: the host is unknown or the port is taken.

    """
    sockets: list[socket.socket] = []
    port = address.port
    try:
        found = socket.getaddrinfo(
            address.host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_ADDRCONFIG
        )
        targets = dict.fromkeys((family, name) for family, _, _, _, name in found)
        for family, name in targets:
            sock = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                # Alone, `::` means every address of the machine; beside an IPv4 socket it would clash.
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, len(targets) > 1)
            sock.bind((name[0], port, *name[2:]))
            port = sock.getsockname()[1]
            sock.setblocking(False)
            sock.listen(_BACKLOG)
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise address_error(address, f"cannot listen: {error.strerror or error}") from error
    return sockets


class UnixPath:
    """A Unix socket's place in the file system: prepared aside, put in place by a rename."""

    def __init__(self, address: Address, mode: int) -> None:
        self._address = address
        self._path = Path(address.path)
        self._mode = mode
        self._inode: tuple[int, int] | None = None
        # The process's own name, so that two that start together do not meet; short, because a socket's
        # path may have 107 bytes only.
        self.temporary = self._path.with_name(f".{os.getpid():x}.{id(self) & 0xFFFF:x}")

    def prepare(self) -> None:
        """Check that the path may be taken, and clear the temporary name.

        Raises:
            ConfigError: something that is not a socket is there; it is not ours to replace.

        """
        try:
            self.temporary.unlink(missing_ok=True)
            taken = not stat.S_ISSOCK(self._path.lstat().st_mode)
        except FileNotFoundError:
            taken = False
        except OSError as error:
            raise address_error(self._address, f"cannot listen: {error.strerror or error}") from error
        if taken:
            raise address_error(self._address, "the path is taken by something that is not a socket")

    def protect(self) -> None:
        """Set the permissions of the socket under the temporary name."""
        self.temporary.chmod(self._mode)

    def publish(self) -> None:
        """Put the socket that listens under the temporary name in place."""
        found = self.temporary.lstat()
        self._inode = (found.st_dev, found.st_ino)
        self.temporary.rename(self._path)

    def withdraw(self) -> None:
        """Remove the socket, unless the path leads to a successor by now."""
        try:
            found = self._path.lstat()
            if (found.st_dev, found.st_ino) == self._inode:
                self._path.unlink()
        except OSError:
            return


def bind_unix(address: Address, path: UnixPath) -> socket.socket:
    """Listen on a Unix socket, in place of whoever listens there now.

    Raises:
        ConfigError: the path cannot be used.

    """
    path.prepare()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(path.temporary))
        path.protect()
        sock.setblocking(False)
        sock.listen(_BACKLOG)
        path.publish()
    except OSError as error:
        sock.close()
        path.temporary.unlink(missing_ok=True)
        raise address_error(address, f"cannot listen: {error.strerror or error}") from error
    return sock


class Acceptor:
    """Accepts on one listening socket and hands every connection to `serve`."""

    def __init__(self, listening: socket.socket, serve: Callable[[socket.socket], None]) -> None:
        self._listening = listening
        self._serve = serve
        self._loop = asyncio.get_running_loop()
        self._retry: asyncio.TimerHandle | None = None
        self._listen()

    def _listen(self) -> None:
        self._retry = None
        self._loop.add_reader(self._listening, self._accept)

    def _accept(self) -> bool:
        """Accept what is there; return whether the queue may hold more."""
        for _ in range(_ACCEPT_AT_ONCE):
            try:
                connection, _ = self._listening.accept()
            except (BlockingIOError, InterruptedError):
                return False
            except ConnectionError:
                # The caller left while it was queued.
                continue
            except OSError as error:
                # Out of descriptors or memory: wait until calls have ended.
                _log.error("cannot accept", error=str(error))
                self._loop.remove_reader(self._listening)
                self._retry = self._loop.call_later(_RETRY_SECONDS, self._listen)
                return False
            connection.setblocking(False)
            self._serve(connection)
        return True

    def close(self) -> None:
        """Accept what is queued, then stop listening."""
        while self._accept():
            pass
        if self._retry is not None:
            self._retry.cancel()
        self._loop.remove_reader(self._listening)
        self._listening.close()
