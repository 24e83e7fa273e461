"""Who is on the other end of a Unix socket, for a grpcio server that cannot tell.

gRPC gives a handler no peer credentials. So the public socket is ours: for each connection we ask the kernel
who opened it (`SO_PEERCRED`, unix(7)), connect to the gRPC server's own socket from a random abstract
address, and pass bytes both ways. The server then sees that address as `context.peer()`, and
`credentials` maps it back.

The server's own socket lies in a directory that only this user can enter. Who connects to it directly has
no credentials here, and so no identity.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import select
import socket
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import structlog

from garrison.run_folder import RunFolder

# `unix-abstract:` is how gRPC spells an abstract address.
PEER_PREFIX = "unix-abstract:"
_UCRED = struct.Struct("3i")
# linux/socket.h; Python has no name for it. Kernels before 6.5 do not know it.
_SO_PEERPIDFD = 77
_BACKLOG = 128
# How long a full backlog of the inner server is waited for, in steps.
_CONNECT_TRIES = 50
_CONNECT_PAUSE_SECONDS = 0.02
# How long to wait for a free file descriptor.
_ACCEPT_PAUSE_SECONDS = 0.1
# Bytes waiting for a slow reader before the other side is no longer read.
_HIGH_WATER_BYTES = 256 * 1024

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class PeerCredentials:
    """The process that opened a connection, as the kernel knew it at that moment.

    `gid` is the process's effective group only. `path` is the executable; None if it could not be read (the
    process belongs to somebody else, or is gone already).
    """

    pid: int
    uid: int
    gid: int
    path: str | None


class PeerCredentialListener:
    """Listens on `path`, passes connections on to `inner_target`, and knows who opened each.

    Bind the gRPC server to `inner_target` and start it, then `start` the listener. The socket appears
    complete and with `mode`, replacing one that a process before us left or still holds.
    """

    def __init__(self, path: Path, *, mode: int = 0o600, max_connections: int = 1024) -> None:
        self._path = path
        self._mode = mode
        self._max_connections = max_connections
        self._folder = RunFolder()
        self._inner_path = self._folder.path / "grpc.sock"
        self._listening: socket.socket | None = None
        self._identity: tuple[int, int] | None = None
        self._opening: set[asyncio.Task[None]] = set()
        self._peers: dict[str, PeerCredentials] = {}
        self._splices: set[_Splice] = set()

    @property
    def inner_target(self) -> str:
        """Where the gRPC server must listen, in gRPC's spelling."""
        return f"unix:{self._inner_path}"

    def credentials(self, peer: str) -> PeerCredentials | None:
        """Return who is behind a gRPC `context.peer()`; None if that is no open connection of ours."""
        return self._peers.get(peer)

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            OSError: the socket cannot be made, or `path` is something other than a socket.

        """
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(self._path.lstat().st_mode):
                raise FileExistsError(errno.EEXIST, "exists and is not a socket", str(self._path))
        temporary = self._path.with_name(f".{secrets.token_hex(4)}")
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listening.setblocking(False)
            listening.bind(str(temporary))
            # Nobody can connect before `listen`, so nobody does before the mode is right.
            temporary.chmod(self._mode)
            listening.listen(_BACKLOG)
            found = temporary.stat()
            temporary.replace(self._path)
        except BaseException:
            listening.close()
            temporary.unlink(missing_ok=True)
            raise
        self._listening, self._identity = listening, (found.st_dev, found.st_ino)
        asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    async def stop_accepting(self) -> None:
        """Take no new connections; the open ones go on. A socket that a successor put there stays."""
        if self._listening is None:
            return
        self._unlink_if_ours()
        asyncio.get_running_loop().remove_reader(self._listening)
        # Who connected before the name was gone must not be reset: a restart loses no call.
        with contextlib.suppress(OSError):
            while True:
                self._take(self._listening.accept()[0])
        self._listening.close()
        self._listening = None
        if self._opening:
            await asyncio.wait(self._opening)

    async def close(self) -> None:
        """Stop listening and end every connection; stop the gRPC server gracefully before."""
        await self.stop_accepting()
        for task in self._opening:
            task.cancel()
        if self._opening:
            await asyncio.wait(self._opening)
        for splice in list(self._splices):
            splice.abort()
        while self._splices:
            await asyncio.wait([splice.ended for splice in self._splices])
        self._folder.remove()

    async def __aenter__(self) -> Self:
        """Start."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        await self.close()

    def _unlink_if_ours(self) -> None:
        with contextlib.suppress(OSError):
            found = self._path.lstat()
            if (found.st_dev, found.st_ino) == self._identity:
                self._path.unlink()

    def _accept(self, listening: socket.socket) -> None:
        try:
            client, _ = listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            # Out of descriptors, most likely. Asking again at once would only spin.
            _log.warning("unix socket cannot accept", path=str(self._path), error=str(error))
            loop = asyncio.get_running_loop()
            loop.remove_reader(listening)
            loop.call_later(_ACCEPT_PAUSE_SECONDS, self._accept_again, listening)
            return
        self._take(client)

    def _accept_again(self, listening: socket.socket) -> None:
        if listening is self._listening:
            asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    def _take(self, client: socket.socket) -> None:
        client.setblocking(False)
        # Asked here and now, while the process that connected is most likely still there.
        try:
            found = read_credentials(client)
        except OSError as error:
            _log.warning("unix peer has no credentials", path=str(self._path), error=str(error))
            client.close()
            return
        if len(self._peers) >= self._max_connections:
            _log.warning("unix socket has too many connections", path=str(self._path), uid=found.uid)
            client.close()
            return
        name = f"garrison-{secrets.token_hex(16)}"
        peer = f"{PEER_PREFIX}{name}"
        self._peers[peer] = found
        task = asyncio.create_task(self._open(client, name, peer))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, client: socket.socket, name: str, peer: str) -> None:
        loop = asyncio.get_running_loop()
        inner = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        splice = _Splice()
        try:
            inner.setblocking(False)
            inner.bind(f"\0{name}")
            await _connect(inner, str(self._inner_path))
            await loop.create_connection(lambda: splice.server, sock=inner)
            await loop.connect_accepted_socket(lambda: splice.client, client)
        except (OSError, asyncio.CancelledError) as error:
            self._peers.pop(peer, None)
            splice.abort()
            inner.close()
            client.close()
            if isinstance(error, asyncio.CancelledError):
                raise
            _log.warning("unix connection cannot be passed on", path=str(self._path), error=str(error))
            return
        self._splices.add(splice)
        splice.ended.add_done_callback(lambda _: self._forget(splice, peer))

    def _forget(self, splice: _Splice, peer: str) -> None:
        self._peers.pop(peer, None)
        self._splices.discard(splice)


def read_credentials(connection: socket.socket) -> PeerCredentials:
    """Return who opened `connection`, a connected Unix socket.

    A process number may be given away again at any time. So the executable is believed only if the process
    was still alive after it was read: by the connection's own process handle where the kernel has those
    (6.5), else by an open `/proc` directory, which belongs to one process for good.

    Raises:
        OSError: the kernel does not tell.

    """
    size = _UCRED.size
    pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    path = _executable(pid)
    if path is not None and not _is_alive(connection):
        path = None
    return PeerCredentials(pid, uid, gid, path)


def _executable(pid: int) -> str | None:
    try:
        directory = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        started = _start_time(directory)
        path = os.readlink("exe", dir_fd=directory)
        return path if _start_time(directory) == started else None
    except OSError:
        return None
    finally:
        os.close(directory)


def _start_time(proc: int) -> bytes:
    """Return field 22 of proc_pid_stat(5): with the number, it names one process since boot."""
    descriptor = os.open("stat", os.O_RDONLY, dir_fd=proc)
    with os.fdopen(descriptor, "rb") as file:
        # The second field is a name in parentheses that may hold anything, also parentheses.
        return file.read().rpartition(b")")[2].split()[19]


def _is_alive(connection: socket.socket) -> bool:
    """Tell whether the process that connected still runs; True where the kernel has no process handles."""
    try:
        handle = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as error:
        return error.errno == errno.ENOPROTOOPT  # any other error: it is gone
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)  # readable once the process has ended
        return not poll.poll(0)
    finally:
        os.close(handle)


async def _connect(connection: socket.socket, path: str) -> None:
    """Connect to a Unix socket; a full backlog is EAGAIN there, not something to wait on (connect(2))."""
    for _ in range(_CONNECT_TRIES):
        try:
            connection.connect(path)
        except BlockingIOError:
            await asyncio.sleep(_CONNECT_PAUSE_SECONDS)
        else:
            return
    raise TimeoutError("the inner server does not accept")


class _Splice:
    """Two connections; what one says the other hears. `ended` is done when both are closed."""

    def __init__(self) -> None:
        self.client = _Side(self)
        self.server = _Side(self)
        self.client.other, self.server.other = self.server, self.client
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def side_lost(self) -> None:
        if self.client.lost and self.server.lost and not self.ended.done():
            self.ended.set_result(None)

    def abort(self) -> None:
        for side in (self.client, self.server):
            if side.transport is not None:
                side.transport.abort()


class _Side(asyncio.Protocol):
    """One of the two connections of a splice."""

    other: _Side

    def __init__(self, splice: _Splice) -> None:
        self.transport: asyncio.Transport | None = None
        self.lost = False
        self._splice = splice
        self._eof = False
        self._early: list[bytes] = []  # said before there was somebody to tell

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=_HIGH_WATER_BYTES)
        if self.other.lost:
            self.transport.abort()
        else:
            self.other.tell_early(self.transport)

    def tell_early(self, other: asyncio.Transport) -> None:
        """Tell `other`, which has just come, what was said before."""
        if self._early and self.transport is not None:
            other.writelines(self._early)
            self._early.clear()
            self.transport.resume_reading()
        if self._eof:
            with contextlib.suppress(OSError):
                other.write_eof()

    def data_received(self, data: bytes) -> None:
        if self.other.transport is not None:
            self.other.transport.write(data)
            return
        # A server speaks first, before its client's side is made. Pausing in `connection_made` would not
        # prevent that: uvloop starts to read after it.
        if not self._early and self.transport is not None:
            self.transport.pause_reading()
        self._early.append(data)

    def eof_received(self) -> bool:
        """Pass the half-close on and stay open for the answer, unless both sides have spoken."""
        self._eof = True
        other = self.other
        if other.transport is None:
            return True  # passed on when there is somebody to tell
        if other.transport.is_closing() or other._eof:  # noqa: SLF001 - its twin
            self._close_both()
            return False
        with contextlib.suppress(OSError):  # it went away just now, and will say so itself
            other.transport.write_eof()
        return True

    def pause_writing(self) -> None:
        if self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other.transport is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - how it ended changes nothing
        self.lost = True
        if self.other.transport is not None:
            self.other.transport.close()  # after what is still to be written
        self._splice.side_lost()

    def _close_both(self) -> None:
        for side in (self, self.other):
            if side.transport is not None:
                side.transport.close()
