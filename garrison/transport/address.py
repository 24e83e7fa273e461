"""Where a server listens: `tcp://host:port`, `tls://host:port` or `unix:///path`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import PurePosixPath

_HOST_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^:/\[\]]+):(?P<port>[0-9]{1,5})")
# sun_path holds 108 bytes with its closing NUL (unix(7)).
_MAX_UNIX_PATH_BYTES = 107
# Between the ports of workers: neighbours of a configured port are often taken by other listeners of ours.
_PORTS_BETWEEN_WORKERS = 10


class Scheme(StrEnum):
    """What stands before `://`."""

    TCP = "tcp"
    TLS = "tls"
    UNIX = "unix"


@dataclass(frozen=True, slots=True)
class Address:
    """A listening address. `host` and `port` are set for TCP and TLS, `path` for Unix sockets."""

    scheme: Scheme
    host: str = ""
    port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Return the address that `text` spells.

        Raises:
            ValueError: it spells none; the message says what would be right.

        """
        scheme, separator, rest = text.partition("://")
        if not separator or scheme not in set(Scheme):
            raise ValueError(f"`{text}` does not start with `tcp://`, `tls://` or `unix://`")
        if scheme == Scheme.UNIX:
            if not rest.startswith("/"):
                raise ValueError(f"`{text}` needs an absolute path, as in `unix:///run/garrison.sock`")
            if len(rest.encode()) > _MAX_UNIX_PATH_BYTES:
                raise ValueError(f"the socket path in `{text}` is longer than {_MAX_UNIX_PATH_BYTES} bytes")
            return cls(Scheme.UNIX, path=rest)
        match = _HOST_PORT.fullmatch(rest)
        if match is None or int(match["port"]) > 65535:
            raise ValueError(f"`{text}` is not `{scheme}://HOST:PORT`")
        return cls(Scheme(scheme), host=match["host"].strip("[]"), port=int(match["port"]))

    def of_worker(self, number: int) -> Address:
        """Return where worker `number` (from 0) listens in place of this address.

        `unix:///run/request.sock` becomes `unix:///run/request.0.sock`; of ports each worker has one, ten
        apart. Port 0, any free one, stays.

        Raises:
            ValueError: the path is too long with a number, or the port too large.

        """
        if self.scheme is Scheme.UNIX:
            path = PurePosixPath(self.path)
            return Address.parse(f"unix://{path.with_name(f'{path.stem}.{number}{path.suffix}')}")
        port = self.port + _PORTS_BETWEEN_WORKERS * number if self.port else 0
        if port > 65535:
            raise ValueError(f"worker {number} of `{self}` would need port {port}")
        return replace(self, port=port)

    def overlaps(self, other: Address) -> bool:
        """Return whether two listeners would share what arrives, or one would take the place of the other."""
        if Scheme.UNIX in {self.scheme, other.scheme}:
            return self.path == other.path
        everywhere = {"0.0.0.0", "::"}  # noqa: S104 - compared with, not listened on
        same_host = self.host == other.host or not everywhere.isdisjoint((self.host, other.host))
        return bool(self.port) and self.port == other.port and same_host

    def __str__(self) -> str:
        if self.scheme is Scheme.UNIX:
            return f"unix://{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"
