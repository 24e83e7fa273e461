"""Listening sockets lose no connection when they close, and take nothing that is not theirs."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from garrison.transport.address import Address
from garrison.transport.sockets import Acceptor, UnixPath, bind_tcp, bind_unix


def test_queued_connections_are_served_at_close() -> None:
    """Connections that the kernel has completed but nobody has accepted are not reset."""

    async def scenario() -> None:
        (listening,) = bind_tcp(Address.parse("tcp://127.0.0.1:0"))
        served: list[socket.socket] = []
        acceptor = Acceptor(listening, served.append)
        # Blocking calls: the loop has no turn in which to accept.
        callers = [socket.create_connection(listening.getsockname()) for _ in range(100)]
        acceptor.close()
        assert len(served) == 100
        for sock in [*served, *callers]:
            sock.close()

    asyncio.run(scenario())


def test_two_may_listen_on_one_port() -> None:
    """A successor listens before its predecessor stops."""
    (first,) = bind_tcp(Address.parse("tcp://127.0.0.1:0"))
    (second,) = bind_tcp(Address.parse(f"tcp://127.0.0.1:{first.getsockname()[1]}"))
    first.close()
    second.close()


def test_a_unix_path_changes_hands_without_a_gap(tmp_path: Path) -> None:
    """The path always leads to a listener, and the predecessor's end does not remove the successor's socket."""
    address = Address.parse(f"unix://{tmp_path}/s.sock")
    paths = [UnixPath(address, 0o600), UnixPath(address, 0o660)]
    listeners = [bind_unix(address, path) for path in paths]
    paths[0].withdraw()
    listeners[0].close()
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(address.path)
    assert Path(address.path).stat().st_mode & 0o777 == 0o660
    paths[1].withdraw()
    listeners[1].close()
    assert not Path(address.path).exists()
