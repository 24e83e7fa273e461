"""The system knows which user is at the other end of a loopback connection."""

from __future__ import annotations

import os
import pwd
import socket
import sys
from pathlib import Path

import pytest

from garrison.transport import loopback_peer
from garrison.transport.loopback_peer import User, find_user

HEADER = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="this system has no /proc/net/tcp")
def test_a_real_connection() -> None:
    """Its user is this process's, by number and name."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as connection,
    ):
        uid = os.getuid()
        assert find_user(*connection.getsockname()) == User(uid, pwd.getpwuid(uid).pw_name)


@pytest.mark.skipif(sys.byteorder != "little", reason="the tables are those of a little-endian machine")
@pytest.mark.parametrize(
    ("host", "port", "expected"),
    [
        ("127.0.0.1", 0xC350, 4_000_001),
        ("127.0.0.1", 0xC351, 4_000_002),
        ("::1", 0xC352, 4_000_003),
        ("127.0.0.1", 0xC353, None),
    ],
)
def test_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, port: int, expected: int | None
) -> None:
    """Addresses of both families, IPv4 ones in IPv6 notation too; the other end's own address is not theirs."""
    rest = "01 00000000:00000000 00:00000000 00000000"
    four, six = tmp_path / "tcp", tmp_path / "tcp6"
    four.write_text(
        f"{HEADER}   0: 0100007F:23E6 0100007F:C350 {rest} 0 0 1\n"
        f"   1: 0100007F:C350 0100007F:23E6 {rest} 4000001 0 2\n"
    )
    mapped, own = "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"
    six.write_text(
        f"{HEADER}   0: {mapped}:C351 {mapped}:23E6 {rest} 4000002 0 2\n"
        f"   1: {own}:C352 {own}:23E6 {rest} 4000003 0 2\n"
    )
    monkeypatch.setattr(loopback_peer, "_TABLES", (four, six))
    found = find_user(host, port)
    assert (found.uid if found else None) == expected
    assert found is None or not found.name


@pytest.mark.parametrize("content", ["", HEADER, f"{HEADER}broken\n"])
def test_without_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    """Nobody is known."""
    table = tmp_path / "tcp"
    table.write_text(content)
    monkeypatch.setattr(loopback_peer, "_TABLES", (table, tmp_path / "none"))
    assert find_user("127.0.0.1", 1) is None
