"""Which server Sentinels call the master, and how many others they could make the master in its place."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from redis import exceptions

from garrison.redis_address import NOBODY, Credentials, RedisAddress, TlsFiles

# Several fit into the patience of a change: the one that is asked first may be on the machine that failed.
_ASK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class SentinelPlace:
    """What Sentinels call the server, those besides the one in a ledger's address, and their login."""

    master: str
    others: tuple[RedisAddress, ...] = ()
    credentials: Credentials = NOBODY


@dataclass(frozen=True, slots=True)
class Master:
    """Where the master is, and how many of its replicas may take its place."""

    host: str
    port: int
    successors: int


class Sentinels:
    """Asks one Sentinel after the other; one that does not answer is asked last from then on."""

    def __init__(self, addresses: Sequence[RedisAddress], place: SentinelPlace, tls: TlsFiles) -> None:
        self._master = place.master
        self._tls = tls
        login = place.credentials
        self._addresses = [
            replace(one, database=0, username=login.username, password=login.password) for one in addresses
        ]
        self._turn = threading.Lock()

    def find(self) -> Master:
        """Return the master as the first Sentinel sees it that answers and knows it.

        Raises:
            redis.RedisError: none does; that is what the last one said.

        """
        failure: Exception = exceptions.ConnectionError("there is no Sentinel")
        with self._turn:
            addresses = list(self._addresses)
        for address in addresses:
            try:
                return self._ask(address)
            except exceptions.RedisError as error:
                failure = error
            with self._turn:
                self._addresses.remove(address)
                self._addresses.append(address)
        raise failure

    def _ask(self, address: RedisAddress) -> Master:
        client: Any = address.connect(
            connect_seconds=_ASK_SECONDS, answer_seconds=_ASK_SECONDS, tls=self._tls
        )
        client.response_callbacks.clear()
        try:
            found = client.execute_command("SENTINEL", "get-master-addr-by-name", self._master)
            if not found:
                raise exceptions.ConnectionError(f"the Sentinel `{address}` knows no `{self._master}`")
            replicas = client.execute_command("SENTINEL", "replicas", self._master)
        finally:
            client.close()
        host, port = found
        return Master(host.decode(), int(port), sum(map(_may_succeed, replicas)))


def _may_succeed(told: Sequence[bytes]) -> bool:
    """Tell whether a replica may be made the master: not if its priority is 0."""
    facts = dict(zip(told[::2], told[1::2], strict=False))
    return facts.get(b"slave-priority") != b"0"
