"""The listener passes bytes on as they are, and knows who sent them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import structlog
import uvloop

from garrison.transport.unix_peer import (
    _SO_PEERPIDFD,
    PeerCredentialListener,
    PeerCredentials,
    _is_alive,
    read_credentials,
)

ME = str(Path("/proc/self/exe").readlink())
TIMEOUT = 10
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

LOOPS = pytest.mark.parametrize(
    "loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def run(scenario: Callable[[], Awaitable[None]], loop: LoopFactory = asyncio.new_event_loop) -> None:
    """Run `scenario` to its end, or fail."""

    async def main() -> None:
        await asyncio.wait_for(scenario(), TIMEOUT)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())


@contextlib.asynccontextmanager
async def listening(path: Path, serve: Serve, **options: int) -> AsyncIterator[PeerCredentialListener]:
    """Run a listener at `path` in front of `serve`."""
    listener = PeerCredentialListener(path, **options)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await serve(reader, writer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_unix_server(answer, listener.inner_target.removeprefix("unix:"))
    try:
        async with listener:
            yield listener
    finally:
        server.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say what was heard."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


async def nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Wait for the end."""
    await reader.read()


def names(directory: Path) -> list[str]:
    """Return what lies in `directory`."""
    return sorted(path.name for path in directory.iterdir())


def peer_of(writer: asyncio.StreamWriter) -> str:
    """Return the peer's address as gRPC would spell it."""
    name = writer.get_extra_info("peername")
    text = name.decode() if isinstance(name, bytes) else str(name)
    return "unix-abstract:" + text.lstrip("\0")


@LOOPS
def test_the_inner_address_names_the_caller(tmp_path: Path, loop: LoopFactory) -> None:
    """While a connection is open its address maps to pid, uid, gid and executable, then to nobody."""

    async def scenario() -> None:
        seen: list[str] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append(peer_of(writer))
            await echo(reader, writer)

        async with listening(tmp_path / "s", serve) as listener:
            reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            me = PeerCredentials(os.getpid(), os.getuid(), os.getgid(), ME)
            assert listener.credentials(seen[0]) == me
            assert listener.credentials("unix:") is None
            assert listener.credentials("ipv4:127.0.0.1:1") is None
            writer.close()
            await writer.wait_closed()
            while listener.credentials(seen[0]) is not None:  # noqa: ASYNC110 - bounded by the timeout of `run`
                await asyncio.sleep(0)

    run(scenario, loop)


@LOOPS
def test_half_close_reaches_the_other_side(tmp_path: Path, loop: LoopFactory) -> None:
    """A caller that has said all still hears the whole answer."""

    async def scenario() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            question = await reader.read()  # up to the end of what the caller says
            writer.write(question.upper())
            await writer.drain()

        async with listening(tmp_path / "s", serve):
            reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
            writer.write(b"question")
            writer.write_eof()
            assert await reader.read() == b"QUESTION"
            writer.close()

    run(scenario, loop)


@LOOPS
def test_much_data_passes_whole(tmp_path: Path, loop: LoopFactory) -> None:
    """Megabytes in both directions arrive complete and in order."""

    async def scenario() -> None:
        sent = os.urandom(1 << 16) * 64
        async with listening(tmp_path / "s", echo):
            reader, writer = await asyncio.open_unix_connection(tmp_path / "s")

            async def send() -> None:
                writer.write(sent)
                await writer.drain()
                writer.write_eof()

            _, received = await asyncio.gather(send(), reader.read())
            assert received == sent
            writer.close()

    run(scenario, loop)


@LOOPS
def test_a_slow_reader_slows_the_sender(tmp_path: Path, loop: LoopFactory) -> None:
    """What nobody reads is not collected without end: the sender is held up after a bounded amount."""

    async def scenario() -> None:
        go_on = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await go_on.wait()
            total = 0
            while data := await reader.read(1 << 20):
                total += len(data)
            writer.write(str(total).encode())

        async with listening(tmp_path / "s", serve):
            caller = socket.socket(socket.AF_UNIX)
            caller.setblocking(False)
            caller.connect(str(tmp_path / "s"))
            sent, idle = 0, 0
            while idle < 200:  # turns of the event loop in which nothing more was taken
                try:
                    sent += caller.send(bytes(1 << 16))
                    idle = 0
                except BlockingIOError:
                    idle += 1
                await asyncio.sleep(0)
            assert sent < 4 << 20
            go_on.set()
            caller.shutdown(socket.SHUT_WR)
            answer = await asyncio.get_running_loop().sock_recv(caller, 100)
            assert answer == str(sent).encode()
            caller.close()

    run(scenario, loop)


@LOOPS
def test_a_caller_that_goes_away_ends_the_inner_connection(tmp_path: Path, loop: LoopFactory) -> None:
    """The server hears of it, and no connection is kept for nobody."""

    async def scenario() -> None:
        ended = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                await reader.read()
            ended.set()

        async with listening(tmp_path / "s", serve) as listener:
            _, writer = await asyncio.open_unix_connection(tmp_path / "s")
            writer.write(b"x")
            writer.transport.abort()
            await ended.wait()
            while listener._splices:  # noqa: ASYNC110 - bounded by the timeout of `run`
                await asyncio.sleep(0)
            assert listener._peers == {}

    run(scenario, loop)


@LOOPS
def test_close_ends_open_connections(tmp_path: Path, loop: LoopFactory) -> None:
    """After `close` the caller sees the end, the socket is gone, and so is the inner directory."""

    async def scenario() -> None:
        async with listening(tmp_path / "s", nothing) as listener:
            reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
            writer.write(b"x")
            inner = Path(listener.inner_target.removeprefix("unix:")).parent
            assert stat.S_IMODE(inner.stat().st_mode) == 0o700
            await listener.close()
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
            assert not inner.exists()
            assert names(tmp_path) == []

    run(scenario, loop)


def test_stop_accepting_keeps_what_is_open(tmp_path: Path) -> None:
    """A draining server finishes its connections, and those that were waiting, while new ones go elsewhere."""

    async def scenario() -> None:
        async with listening(tmp_path / "s", echo) as listener:
            reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
            waiting = socket.socket(socket.AF_UNIX)
            waiting.connect(str(tmp_path / "s"))
            await listener.stop_accepting()
            with pytest.raises(FileNotFoundError):
                await asyncio.open_unix_connection(tmp_path / "s")
            writer.write(b"still here")
            assert await reader.readexactly(10) == b"still here"
            waiting.setblocking(False)
            waiting.sendall(b"me too")
            assert await asyncio.get_running_loop().sock_recv(waiting, 10) == b"me too"
            waiting.close()
            writer.close()

    run(scenario)


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_the_socket_has_its_mode_whatever_the_umask(tmp_path: Path, mode: int) -> None:
    """Who may connect is what was configured."""

    async def scenario() -> None:
        async with listening(tmp_path / "s", echo, mode=mode):
            assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == mode
            assert names(tmp_path) == ["s"]

    run(scenario)


def test_a_successor_takes_the_path_over(tmp_path: Path) -> None:
    """The new process replaces the socket at once, and the old one leaves the new one alone when it ends."""

    async def scenario() -> None:
        async def old(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"old")

        async def new(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"new")

        async def ask() -> bytes:
            reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
            answer = await reader.read()
            writer.close()
            return answer

        async with listening(tmp_path / "s", old) as first:
            assert await ask() == b"old"
            async with listening(tmp_path / "s", new):
                assert await ask() == b"new"
                await first.close()
                assert await ask() == b"new"
            assert names(tmp_path) == []

    run(scenario)


def test_something_else_is_not_replaced(tmp_path: Path) -> None:
    """A path that holds a file is an error, and the file stays."""

    async def scenario() -> None:
        (tmp_path / "s").write_text("precious")
        with pytest.raises(FileExistsError, match="not a socket"):
            async with listening(tmp_path / "s", echo):
                pass
        assert names(tmp_path) == ["s"]
        assert (tmp_path / "s").read_text() == "precious"

    run(scenario)


def test_too_many_connections_are_turned_away(tmp_path: Path) -> None:
    """One more than allowed is closed at once; those before it go on."""

    async def scenario() -> None:
        async with listening(tmp_path / "s", echo, max_connections=1):
            reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
            writer.write(b"1")
            await reader.readexactly(1)
            with structlog.testing.capture_logs() as logs:
                refused, other = await asyncio.open_unix_connection(tmp_path / "s")
                assert await refused.read() == b""
            assert logs[0]["event"] == "unix socket has too many connections"
            other.close()
            writer.write(b"2")
            assert await reader.readexactly(1) == b"2"
            writer.close()

    run(scenario)


def test_without_an_inner_server_the_caller_is_cut_off(tmp_path: Path) -> None:
    """Nobody waits for a server that is not there."""

    async def scenario() -> None:
        with structlog.testing.capture_logs() as logs:
            async with PeerCredentialListener(tmp_path / "s") as listener:
                reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
                assert await reader.read() == b""
                writer.close()
                assert listener._peers == {}
        assert logs[0]["event"] == "unix connection cannot be passed on"

    run(scenario)


def _knows_process_handles(connection: socket.socket) -> bool:
    try:
        os.close(connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD))
    except OSError as error:
        return error.errno != errno.ENOPROTOOPT
    return True


def test_a_process_that_is_gone_has_no_path(tmp_path: Path) -> None:
    """A caller that ended before it was looked at keeps its uid, which is certain, and loses its path."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        code = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
        with subprocess.Popen([sys.executable, "-S", "-c", code, str(tmp_path / "s")]) as caller:
            assert caller.wait(TIMEOUT) == 0
            connection, _ = listener.accept()
    with connection:
        assert read_credentials(connection) == PeerCredentials(caller.pid, os.getuid(), os.getgid(), None)
        if _knows_process_handles(connection):
            assert not _is_alive(connection)


def test_another_living_process_is_named(tmp_path: Path) -> None:
    """The executable of another process is read while it runs."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        code = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.recv(1)"
        with subprocess.Popen([sys.executable, "-S", "-c", code, str(tmp_path / "s")]) as caller:
            connection, _ = listener.accept()
            with connection:
                assert read_credentials(connection) == PeerCredentials(
                    caller.pid, os.getuid(), os.getgid(), ME
                )
                assert _is_alive(connection)
            assert caller.wait(TIMEOUT) == 0


@LOOPS
def test_a_server_that_only_ends_is_heard(tmp_path: Path, loop: LoopFactory) -> None:
    """A server that closes at once, without a word, ends the caller's connection too."""

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def scenario() -> None:
        async with listening(tmp_path / "s", hang_up):
            for _ in range(50):
                reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
                assert await reader.read() == b""
                writer.close()

    run(scenario, loop)


@LOOPS
def test_what_the_server_says_at_once_is_heard(tmp_path: Path, loop: LoopFactory) -> None:
    """A server that greets before the client's side is ready (HTTP/2 SETTINGS) is heard, every time."""
    path = tmp_path / "s"

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        await writer.drain()

    async def scenario() -> None:
        async with listening(path, greet):
            for _ in range(100):
                reader, writer = await asyncio.open_unix_connection(str(path))
                assert await reader.readexactly(5) == b"hello"
                writer.close()
                await writer.wait_closed()

    run(scenario, loop)
