"""Which user of this machine is at the other end of a TCP connection over loopback (Linux).

The system lists both ends of such a connection, each with the user who opened it (proc_net(5): the columns of
`/proc/net/tcp`). There is no credential in TCP itself.
"""

from __future__ import annotations

import pwd
import sys
from contextlib import suppress
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import NamedTuple

_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LOCAL, _UID = 1, 7


class User(NamedTuple):
    """A user of this machine; `name` is empty if the id has none."""

    uid: int
    name: str


def find_user(host: str, port: int) -> User | None:
    """Return who opened the loopback socket with this address; None if the system does not say."""
    ends = _spellings(host, port)
    for table in _TABLES:
        with suppress(OSError, ValueError, IndexError):
            for line in table.read_text().splitlines()[1:]:
                columns = line.split()
                if columns[_LOCAL] in ends:
                    uid = int(columns[_UID])
                    return User(uid, _name(uid))
    return None


def _spellings(host: str, port: int) -> set[str]:
    """Return how the tables write an address: words in the machine's byte order, in hexadecimal."""
    address = ip_address(host)
    packed = [address.packed]
    if isinstance(address, IPv4Address):
        packed.append(bytes(10) + b"\xff\xff" + address.packed)
    return {
        "".join(f"{int.from_bytes(raw[at : at + 4], sys.byteorder):08X}" for at in range(0, len(raw), 4))
        + f":{port:04X}"
        for raw in packed
    }


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""
