"""An agent's parts in front of a CA of the test, with a line between them that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ca.agent.node import Evidence, Node
from ca.agent.remote_identities import RemoteIdentities
from ca.agent.server import NodesServer
from ca.agent.state import AgentState, load_bootstrap
from ca.api.identities import Caller, admit_again
from garrison.transport.address import Address, Scheme
from garrison.transport.unix_peer import PeerCredentials
from support.ca_api import CaLab

NODE = "spiffe://cluster.local/agent/one"
WEB = "spiffe://cluster.local/web"
SECRET = "n" * 43
PROCESS = PeerCredentials(1, 1, 1, "/bin/web")


class Line:
    """A TCP connection to a server that can be cut and mended; `port` stays the same."""

    def __init__(self, port: int) -> None:
        self.port = 0
        self._to = port
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []

    async def mend(self, to: int | None = None) -> None:
        """Let connections through, to another port if given."""
        self._to = to or self._to
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """End every connection and take no new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_connection("127.0.0.1", self._to)
        self._writers += [writer, outer]
        await asyncio.gather(_pump(reader, outer), _pump(inner, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


class CountingServer(NodesServer):
    """Counts what is asked, by method."""

    calls: Counter[str]

    async def call(self, request: Any, answer: Any, **options: Any) -> Any:
        """Call, and count."""
        self.calls[type(request).__name__.removesuffix("Request")] += 1
        return await super().call(request, answer, **options)


@dataclass
class AgentClock:
    """The real time, and how far off it is."""

    off: timedelta = timedelta(0)

    def now(self) -> datetime:
        """Return the time."""
        return datetime.now(UTC) + self.off


@dataclass
class Parts:
    """An agent without its process."""

    line: Line
    server: CountingServer
    state: AgentState
    identities: RemoteIdentities
    clock: AgentClock
    node: Node
    pinned: Path
    calls: Counter[str] = field(default_factory=Counter)

    def caller(self, process: PeerCredentials = PROCESS) -> Caller:
        """Return a process with what it may have."""
        return admit_again(self.identities, process)


@contextlib.asynccontextmanager
async def agent_parts(
    lab: CaLab,
    folder: Path,
    evidence: Evidence | None = None,
    *,
    bundle: bytes | None = None,
    line: Line | None = None,
    chance: float = 0.5,
) -> AsyncIterator[Parts]:
    """Build an agent's parts on `folder`; `evidence` is a fresh join token if not given."""
    if evidence is None:
        evidence = Evidence(join_token=lab.token(NODE, SECRET))
    pinned = folder / "pinned.pem"
    pinned.write_bytes(bundle if bundle is not None else lab.authority.bundle_pem())
    own_line = line is None
    if line is None:
        line = Line(lab.tls.port)
        await line.mend()
    clock, roots = AgentClock(), load_bootstrap(pinned)
    state = AgentState(folder / "state")
    server = CountingServer(
        Address(Scheme.TLS, host="127.0.0.1", port=line.port),
        lambda: roots,
        name="localhost",
        now=clock.now,
        chance=lambda: chance,
    )
    server.calls = Counter()
    node = Node(server, state, evidence, now=clock.now, chance=lambda: chance)
    identities = RemoteIdentities(
        server, node, state, peer_credentials=lambda _: PROCESS, now=clock.now, chance=lambda: chance
    )
    try:
        yield Parts(line, server, state, identities, clock, node, pinned, server.calls)
    finally:
        await identities.close()
        await server.close()
        if own_line:
            await line.cut()
