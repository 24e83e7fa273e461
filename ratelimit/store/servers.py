"""Which server counts for which domain, and the connections to them."""

from __future__ import annotations

import asyncio
from binascii import crc_hqx
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from ratelimit.store.connection import AnswerError, Connection, Endpoint, open_connection
from ratelimit.store.wire import tag

SLOTS = 16384
# For one new connection, TLS and password included.
_OPEN_SECONDS = 2.0
# For one Sentinel or node to say who serves what. Several of them fit into the time of a probe: the one that
# is asked first may have failed together with the server that is looked for.
_ASK_SECONDS = 0.5


class Servers(Protocol):
    """Finds the connection for a slot. Slots are numbers; a script is for the keys of one of them."""

    def slot(self, domain: str) -> int:
        """Return the slot that all keys of `domain` are in."""

    async def connection(self, slot: int) -> Connection:
        """Return an open connection to the server of `slot`.

        Raises:
            AnswerError: the server does not let this client in.
            OSError: it cannot be reached.

        """

    async def renew(self, slot: int) -> None:
        """Look again who serves `slot`, on new connections: what is known may be wrong.

        Raises: as `connection`.

        """

    def redirect(self, slot: int, host: str, port: int) -> None:
        """Take `slot` to be with another server, which its old one named."""

    async def at(self, host: str, port: int) -> Connection:
        """Return a connection to a server that another one named. Raises: as `connection`."""

    def close(self) -> None:
        """Close all connections."""


class Connections:
    """Open connections by endpoint; each is opened once, however many wait for it."""

    def __init__(self) -> None:
        self._open: dict[Endpoint, Connection] = {}
        self._opening: dict[Endpoint, asyncio.Task[Connection]] = {}

    async def get(self, endpoint: Endpoint) -> Connection:
        """Return an open connection to `endpoint`. Raises: as `open_connection`."""
        connection = self._open.get(endpoint)
        if connection is not None and connection.is_open:
            return connection
        task = self._opening.get(endpoint)
        if task is None:
            task = self._opening[endpoint] = asyncio.create_task(_open(endpoint))
            task.add_done_callback(lambda done: self._opened(endpoint, done))
        # Whoever gives up waiting does not end it for the others.
        return await asyncio.shield(task)

    def _opened(self, endpoint: Endpoint, task: asyncio.Task[Connection]) -> None:
        self._opening.pop(endpoint, None)
        if not task.cancelled() and task.exception() is None:
            self._open[endpoint] = task.result()

    def drop(self, endpoint: Endpoint) -> None:
        """Close the connection to `endpoint`, if any."""
        connection = self._open.pop(endpoint, None)
        if connection is not None:
            connection.close()

    def close(self) -> None:
        """Close all connections, and open no more."""
        for task in list(self._opening.values()):
            task.cancel()
        for endpoint in list(self._open):
            self.drop(endpoint)


async def _open(endpoint: Endpoint) -> Connection:
    async with asyncio.timeout(_OPEN_SECONDS):
        return await open_connection(endpoint)


class Informants:
    """Nodes that know who serves what; they are asked in turn until one answers.

    Who does not answer in time is asked last from then on, also by whoever has no time to ask all of them.
    """

    def __init__(self, nodes: Sequence[Endpoint]) -> None:
        self.nodes = list(nodes)

    async def ask(self, *command: str) -> tuple[Endpoint, Any]:
        """Return the first answer that is not empty, and whose it is.

        Raises:
            AnswerError: the last one does not let this client in, or refuses to say.
            OSError: the last one cannot be reached, does not answer, or knows nothing.

        """
        failure: Exception = ConnectionError("there is nobody to ask")
        for node in list(self.nodes):
            try:
                async with asyncio.timeout(_ASK_SECONDS):
                    answer = await _ask(node, *command)
            except (AnswerError, OSError) as error:
                failure = error
            else:
                if answer:
                    return node, answer
                failure = ConnectionError("who was asked knows nothing")
            # Others may have changed the list meanwhile.
            if node in self.nodes:
                self.nodes.remove(node)
                self.nodes.append(node)
        raise failure


async def _ask(node: Endpoint, *command: str) -> Any:
    """Ask on a connection of its own: one that is open may be stuck."""
    connection = await open_connection(node)
    try:
        return await connection.ask(*command)
    finally:
        connection.close()


class SingleServer(Servers):
    """One server, always the same."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._connections = Connections()

    def slot(self, _domain: str) -> int:
        """Return the only one."""
        return 0

    async def connection(self, _slot: int) -> Connection:
        """Return the connection."""
        return await self._connections.get(self._endpoint)

    async def renew(self, _slot: int) -> None:
        """Connect again."""
        self._connections.drop(self._endpoint)

    def redirect(self, _slot: int, _host: str, _port: int) -> None:
        """Stay: there is no other server."""

    async def at(self, _host: str, _port: int) -> Connection:
        """Refuse: there is no other server."""
        raise ConnectionError("the server is part of a Cluster")

    def close(self) -> None:
        """Close the connection."""
        self._connections.close()


class SentinelServer(SingleServer):
    """The server that Sentinels call `master`; they are asked before each new connection.

    `server` is how to be let in there; its host and port come from the first Sentinel that knows them.
    """

    def __init__(self, sentinels: Sequence[Endpoint], master: str, server: Endpoint) -> None:
        super().__init__(server)
        self._sentinels = Informants(sentinels)
        self._master = master
        self._is_found = False

    async def connection(self, slot: int) -> Connection:
        """Return the connection to the master."""
        if not self._is_found:
            await self._find()
        return await super().connection(slot)

    async def renew(self, slot: int) -> None:
        """Ask the Sentinels again, and connect again."""
        await super().renew(slot)
        await self._find()
        role = await (await super().connection(slot)).ask("ROLE")
        if role[0] != b"master":
            await super().renew(slot)
            raise AnswerError("READONLY the Sentinels name a server that is no master yet")

    async def _find(self) -> None:
        _, (host, port) = await self._sentinels.ask("SENTINEL", "get-master-addr-by-name", self._master)
        self._endpoint = replace(self._endpoint, host=host.decode(), port=int(port), path="")
        self._is_found = True


class ClusterServers(Servers):
    """The nodes of a Cluster. A domain's keys are in one slot, by their hash tag.

    `seeds` are asked who serves what, and all nodes that are known from the last answer.
    """

    def __init__(self, seeds: Sequence[Endpoint]) -> None:
        self._seeds = list(seeds)
        self._informants = Informants(seeds)
        self._connections = Connections()
        self._slots: dict[str, int] = {}
        self._masters: list[Endpoint | None] = [None] * SLOTS
        self._looking: asyncio.Task[None] | None = None

    def slot(self, domain: str) -> int:
        """Return the slot of the domain's hash tag (CRC16 of XMODEM, as the Cluster specification says)."""
        slot = self._slots.get(domain)
        if slot is None:
            slot = self._slots[domain] = crc_hqx(tag(domain).encode(), 0) % SLOTS
        return slot

    async def connection(self, slot: int) -> Connection:
        """Return the connection to the slot's master."""
        if self._masters[slot] is None:
            await self._look()
        master = self._masters[slot]
        if master is None:
            raise ConnectionError("no node of the Cluster serves this slot")
        return await self._connections.get(master)

    async def renew(self, slot: int) -> None:
        """Ask the nodes again who serves what; connect again to the slot's master."""
        master = self._masters[slot]
        if master is not None:
            self._connections.drop(master)
        await self._look()

    def redirect(self, slot: int, host: str, port: int) -> None:
        """Take the slot to be with the node that its old one named."""
        old = self._masters[slot] or self._seeds[0]
        self._masters[slot] = self._node(host or old.host, port)

    async def at(self, host: str, port: int) -> Connection:
        """Return a connection to a node by name."""
        return await self._connections.get(self._node(host, port))

    def close(self) -> None:
        """Close all connections."""
        if self._looking is not None:
            self._looking.cancel()
        self._connections.close()

    def _node(self, host: str, port: int) -> Endpoint:
        return replace(self._seeds[0], host=host, port=port)

    async def _look(self) -> None:
        """Ask who serves what; once, however many wait for the answer."""
        if self._looking is None:
            self._looking = asyncio.create_task(self._load_slots())
            self._looking.add_done_callback(self._looked)
        await asyncio.shield(self._looking)

    def _looked(self, task: asyncio.Task[None]) -> None:
        self._looking = None
        if not task.cancelled():
            task.exception()  # nobody may be waiting any more

    async def _load_slots(self) -> None:
        informant, ranges = await self._informants.ask("CLUSTER", "SLOTS")
        masters: list[Endpoint | None] = [None] * SLOTS
        known = {informant: None}
        for first, last, *nodes in ranges:
            # A node that does not know its own address leaves it out.
            found = [
                self._node(host.decode() if host else informant.host, int(port)) for host, port, *_ in nodes
            ]
            known |= dict.fromkeys(found)
            masters[first : last + 1] = [found[0]] * (last + 1 - first)
        self._masters = masters
        self._informants.nodes = list(known | dict.fromkeys(self._seeds))
