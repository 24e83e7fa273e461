"""The agent's process: the socket for callers, the line to the server, health, status, and a drained end."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import structlog
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct

from ca.agent.node import Evidence, Node
from ca.agent.remote_identities import RemoteIdentities
from ca.agent.server import NodesServer
from ca.agent.state import AgentState, load_bootstrap
from ca.api.sds import AGGREGATED as ADS
from ca.api.sds import SERVICE as SDS
from ca.api.sds import SecretDiscovery
from ca.api.workload import SERVICE as WORKLOAD
from ca.api.workload import WorkloadApi
from garrison.errors import GarrisonError
from garrison.transport import Call, Method
from garrison.transport.address import Address, Scheme
from garrison.transport.grpc import GrpcServer
from garrison.transport.health import SERVICE as HEALTH
from garrison.transport.health import Health
from garrison.transport.sockets import address_error
from garrison.transport.unix_peer import PeerCredentialListener

# Takes and returns `google.protobuf.Struct`; what is in it is documented in docs/reference/agent.md.
STATUS = "/garrison.ca.v1.Agent/Status"
STATUS_FIELDS = (
    "serving",
    "problem",
    "node",
    "node_expires_at",
    "node_renews_at",
    "server",
    "last_contact",
    "last_error",
    "failures",
    "asked_again_at",
    "entries",
    "bundle_sequence",
    "renewals",
    "streams",
    "denials",
    "pid",
    "svids",
)
# After a bug of ours: neither give up, nor try in a tight loop.
_BUG_PAUSE_SECONDS = 5.0

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """Everything an agent can be told; durations are checked by who reads them.

    `server_name` is what the server's certificate must say if that is not the host of `server`; `sends_crl`
    is whether CRLs go with the roots over SDS.
    """

    server: Address
    bundle: Path
    state: Path
    socket: Path
    evidence: Evidence
    server_name: str | None = None
    socket_mode: int = 0o666
    sends_crl: bool = False
    sync_interval: timedelta = timedelta(seconds=5)
    longest_pause: timedelta = timedelta(minutes=1)
    drain_grace: timedelta = timedelta(seconds=10)


class Agent:
    """Builds every part, runs them until SIGTERM, and drains."""

    def __init__(self, settings: AgentSettings) -> None:
        """Take up the state.

        Raises:
            ConfigError: it or the bootstrap bundle cannot be used.

        """
        self._settings = settings
        self._stop = asyncio.Event()
        state = AgentState(settings.state)
        # Those that an operator pinned, and those that the server told later: a root may be replaced
        # without anybody going to every node.
        pinned, told = load_bootstrap(settings.bundle), state.load_roots()
        self._roots = tuple(dict.fromkeys((*pinned, *told)))
        self._server = NodesServer(
            settings.server,
            lambda: self._roots,
            name=settings.server_name,
            longest_pause=settings.longest_pause,
        )
        self._listener: PeerCredentialListener | None = None
        self._identities = RemoteIdentities(
            self._server,
            Node(self._server, state, settings.evidence),
            state,
            peer_credentials=lambda peer: self._listener.credentials(peer) if self._listener else None,
            use_roots=lambda roots: setattr(self, "_roots", tuple(dict.fromkeys((*pinned, *roots)))),
            sync_interval=settings.sync_interval,
            longest_pause=settings.longest_pause,
        )
        self._sds = SecretDiscovery(self._identities, sends_crl=settings.sends_crl)
        self._workload = WorkloadApi(self._identities)
        self._health = Health([SDS, ADS, WORKLOAD])

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain.

        Raises:
            NotAttestedError: this node has no identity and cannot get one by itself.
            ConfigError: the socket, the state or the evidence cannot be used.

        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        path = self._settings.socket
        listener = self._listener = PeerCredentialListener(path, mode=self._settings.socket_mode)
        inner = Address(Scheme.UNIX, path=listener.inner_target.removeprefix("unix:"))
        server = GrpcServer(
            {**self._health.methods, STATUS: Method(self._status)},
            handlers=[self._health.handler, *self._sds.handlers(), *self._workload.handlers()],
            reflection_services=[HEALTH, SDS, ADS, WORKLOAD],
        )
        keeping = asyncio.create_task(self._keep())
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await server.start([inner])
            try:
                path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                await listener.start()
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
                raise address_error(Address(Scheme.UNIX, path=str(path)), reason) from error
            _log.info("agent listening", pid=os.getpid(), socket=str(path), server=str(self._settings.server))
            await asyncio.wait({keeping, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if keeping.done():
                keeping.result()
            grace = self._settings.drain_grace.total_seconds()
            _log.info("draining", grace_seconds=grace)
        finally:
            for task in (keeping, stopping):
                task.cancel()
            await asyncio.gather(keeping, stopping, return_exceptions=True)
            self._health.close()
            self._sds.close()
            self._workload.close()
            await listener.stop_accepting()
            await server.drain(self._settings.drain_grace.total_seconds())
            await listener.close()
            await self._identities.close()
            await self._server.close()
        _log.info("stopped")

    async def _keep(self) -> None:
        while True:
            try:
                pause = (await self._identities.keep()).total_seconds()
            except GarrisonError:
                raise  # the node cannot help itself
            except Exception:  # noqa: BLE001 - a bug here must not end what is served
                _log.exception("agent failed")
                pause = _BUG_PAUSE_SECONDS
            self._health.set_serving(serving=self._identities.is_serving)
            await asyncio.sleep(pause)

    def _status(self, _message: bytes, _call: Call) -> bytes:
        sds, workload = self._sds.counters, self._workload.counters
        values = {
            **self._identities.status(),
            "pid": os.getpid(),
            "server": str(self._settings.server),
            "streams": sds.streams + workload.streams,
            "denials": sds.denials + workload.denials,
        }
        return ParseDict(values, Struct()).SerializeToString()


def parse_status(message: bytes) -> dict[str, Any]:
    """Return what `Status` answered, in the order in which people look at it.

    Raises:
        ValueError: it is no answer of an agent.

    """
    try:
        found = MessageToDict(Struct.FromString(message))
    except DecodeError as error:
        raise ValueError("it is no answer of an agent") from error
    if not set(STATUS_FIELDS) <= found.keys():
        raise ValueError("it is no answer of an agent")
    # A Struct has no order and no whole numbers.
    return {
        name: int(found[name]) if isinstance(found[name], float) else found[name] for name in STATUS_FIELDS
    }
