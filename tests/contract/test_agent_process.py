"""A real `ca agent` between a real server and real clients: SPIFFE's own, and an Envoy."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from support import workload_client
from support.ca_api import DOMAIN, asynchronous, server_files
from support.ca_files import run
from support.sds_envoy import ENVOY, call, client_context, eventually, running_envoy
from support.serving import Serving, serving, write_settings
from support.tokens import ec_signer

from ca.agent.process import STATUS_FIELDS
from ca.authority import Authority, Hierarchy
from ca.inspection import check_leaf
from ca.ledger import CertificateQuery, Entry, JoinToken, token_hash
from ca.protos import workload_pb2
from ca.registration import Registration
from ca.store.sqlite import SqliteLedger
from garrison.identity import SpiffeId

NODE = "spiffe://cluster.local/agent/one"
WEB = "spiffe://cluster.local/web"
API = "spiffe://cluster.local/api"
ME = f"unix:uid:{os.getuid()}"
SECRET = "s" * 43
PATIENCE_SECONDS = 30


def free_port() -> int:
    """Return a port that nobody listens on now: the server must come back on the same one."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Lab:
    """A CA with its ledger, and the processes around it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pki = folder / "pki"
        Hierarchy.create(DOMAIN, now=datetime.now(UTC)).save(self.pki)
        server_files(folder, Authority.load(self.pki), is_client_optional=True)
        self.ledger = SqliteLedger.of(self.pki)
        self.port = free_port()
        self.socket = folder / "sds.sock"

    def token(self, secret: str = SECRET) -> Path:
        """Return a file with a join token for the node."""
        now = datetime.now(UTC)
        made = JoinToken(token_hash(secret), SpiffeId.parse(NODE), now, now + timedelta(minutes=5), "test")
        self.ledger.add_token(made)
        file = self.folder / "token"
        file.write_text(f"{secret}\n")
        return file

    def register(self, entry_id: str, spiffe_id: str, *selectors: str, **options: Any) -> None:
        """Register a workload of the node."""
        registration = Registration.parse(spiffe_id, selectors, parent_id=NODE, **options)
        self.ledger.add_entry(Entry(entry_id, registration, datetime.now(UTC), "test"))

    @contextlib.contextmanager
    def server(self, more: str = "") -> Iterator[Serving]:
        """Run the server, always on the same port."""
        tls = f"{{certificate: {self.folder}/tls.pem, private_key: {self.folder}/tls.key}}"
        listen = f'listen: ["tls://127.0.0.1:{self.port}"], tls: {tls}'
        file = write_settings(self.folder, f"ca: {{dir: {self.pki}, {listen}{more}}}")
        with serving("--config", str(file)) as server:
            server.wait_for("ready")
            yield server

    @contextlib.contextmanager
    def agent(self, *arguments: str | Path, state: str = "state", **environment: str) -> Iterator[Serving]:
        """Run an agent."""
        options = {
            "--server": f"localhost:{self.port}",
            "--bundle": self.pki / "root-cert.pem",
            "--state": self.folder / state,
            "--socket": self.socket,
            "--sync-interval": "1s",
            "--max-backoff": "1s",
            "--log-format": "json",
        }
        flags = [str(one) for pair in options.items() for one in pair]
        agent = Serving([*flags, *map(str, arguments)], environment, ("ca", "agent"))
        try:
            yield agent
        finally:
            agent.close()

    async def x509(self) -> Any:
        """Return what the SPIFFE client gets: ID, serial number and length of the chain, or an error."""
        return await workload_client.ask(self.socket, "x509")

    def status(self) -> dict[str, Any]:
        """Return what `ca agent status` prints."""
        result = run("agent", "status", "--socket", self.socket, "--json")
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    async def identities(self) -> list[str]:
        """Return the SPIFFE IDs that this process may have, none if that is denied."""
        return [one[0] for one in found] if isinstance(found := await self.x509(), list) else []


@pytest.fixture
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Return a CA in a folder with a name short enough for sockets."""
    made = Lab(tmp_path_factory.mktemp("s"))
    yield made
    made.ledger.close()


async def until(look: Callable[[], Awaitable[Any]], what: str) -> Any:
    """Return what `look` returns once it returns something."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not (found := await look()):  # noqa: ASYNC110 - waits for another process, in bounded time
            await asyncio.sleep(0.05)
    assert found, what
    return found


@contextlib.asynccontextmanager
async def following(lab: Lab, command: str = "follow-x509") -> AsyncIterator[Callable[[], Awaitable[Any]]]:
    """Follow a stream with the SPIFFE client; yield what reads its next line."""
    process = await workload_client.start(lab.socket, command)

    async def following_line() -> Any:
        assert process.stdout is not None
        return json.loads(await asyncio.wait_for(process.stdout.readline(), PATIENCE_SECONDS))

    try:
        yield following_line
    finally:
        process.kill()
        await process.wait()


async def ends(lab: Lab, opened: asyncio.Event) -> grpc.StatusCode:
    """Return how a stream of X509-SVIDs ends; `opened` is set once it has said something."""
    async with grpc.aio.insecure_channel(f"unix:{lab.socket}") as channel:
        stream: Any = channel.unary_stream(
            "/SpiffeWorkloadAPI/FetchX509SVID",
            workload_pb2.X509SVIDRequest.SerializeToString,
            workload_pb2.X509SVIDResponse.FromString,
        )(workload_pb2.X509SVIDRequest(), metadata=[("workload.spiffe.io", "true")], timeout=PATIENCE_SECONDS)
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for _ in stream:
                opened.set()
        code: grpc.StatusCode = await stream.code()
        return code


def health(lab: Lab) -> int:
    """Return what the health service says."""
    with grpc.insecure_channel(f"unix:{lab.socket}") as channel:
        ask: Any = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            health_pb2.HealthCheckRequest.SerializeToString,
            health_pb2.HealthCheckResponse.FromString,
        )
        return int(ask(health_pb2.HealthCheckRequest(service="SpiffeWorkloadAPI"), timeout=10).status)


@asynchronous
async def test_workloads_of_a_node(lab: Lab) -> None:
    """X.509 and JWT for whom the server registered, live; status and health tell; a second use of the token fails."""
    lab.register("web", WEB, ME)
    file = lab.token()
    with lab.server() as server, lab.agent("--join-token-file", file) as agent:
        agent.wait_for("agent in order")
        ((name, serial, length),) = await lab.x509()
        assert (name, length) == (WEB, 2)
        issued = lab.ledger.issued(CertificateQuery(), now=datetime.now(UTC)).certificates
        assert {one.serial: one.requester for one in issued}[serial] == f"{NODE}, entry web"
        ((_, token, audience),) = await workload_client.ask(lab.socket, "jwt", "db")
        assert audience == ["db"]
        assert await workload_client.ask(lab.socket, "validate", token, "db") == [WEB, ["db"]]
        bundles = await workload_client.ask(lab.socket, "jwt-bundles", "cluster.local")
        assert len(bundles["cluster.local"]) == 1
        status = lab.status()
        assert (status["serving"], status["node"], status["entries"]) == (True, NODE, 1)
        assert status["bundle_sequence"] == 1
        assert tuple(status) == STATUS_FIELDS
        shown = run("agent", "status", "--socket", lab.socket).stdout
        assert re.search(rf"entries: +1\n(.*\n)*{WEB}: ?until ", shown)
        assert [one["spiffe_id"] for one in status["svids"]] == [WEB]
        assert health(lab) == health_pb2.HealthCheckResponse.SERVING
        # An entry more, and one less, while clients are there.
        lab.register("api", API, ME)
        await until(lambda: both(lab), "the second entry")
        opened = asyncio.Event()
        ending = asyncio.ensure_future(ends(lab, opened))
        await asyncio.wait_for(opened.wait(), PATIENCE_SECONDS)
        for entry in ("web", "api"):
            lab.ledger.delete_entry(entry, now=datetime.now(UTC), by="test")
        assert await asyncio.wait_for(ending, PATIENCE_SECONDS) is grpc.StatusCode.PERMISSION_DENIED
        assert await lab.identities() == []
        # Another node finds the token used.
        with lab.agent("--join-token-file", file, "--socket", lab.folder / "b.sock", state="two") as second:
            assert await asyncio.to_thread(second.wait) == 3
            text = await asyncio.to_thread(said, second)
            assert "the server refuses the join token" in text
            assert "ca token create" in text
            assert SECRET not in text
        assert agent.stop() == 0
        assert server.stop() == 0
    assert not lab.socket.exists()
    text = said(agent)
    assert SECRET not in text
    assert "PRIVATE KEY" not in text
    assert "Traceback" not in text


async def both(lab: Lab) -> bool:
    """Tell whether this process has two identities now."""
    return await lab.identities() == [WEB, API]


def said(process: Serving) -> str:
    """Return all lines of a process that has ended."""
    while (event := process._arriving.get(timeout=PATIENCE_SECONDS)) is not None:
        process.seen.append(event)
    process._arriving.put(None)
    return json.dumps(process.seen)


@asynchronous
async def test_the_server_goes_and_comes_back(lab: Lab) -> None:
    """Without it SVIDs are given on; a restarted agent needs no token and says `come back`; then all is renewed."""
    lab.register("web", WEB, ME, svid_ttl=timedelta(seconds=20))
    with contextlib.ExitStack() as running:
        server = running.enter_context(lab.server())
        agent = running.enter_context(lab.agent("--join-token-file", lab.token()))
        agent.wait_for("agent in order")
        async with following(lab) as line:
            ((_, first, _),) = await line()
            server.process.kill()
            agent.wait_for("server does not answer")
            ((_, held, _),) = await lab.x509()
            assert held == first
            assert lab.status()["failures"] >= 1
            assert health(lab) == health_pb2.HealthCheckResponse.SERVING
            # It is back before the SVID ends: renewed at half of its life, and streamed.
            server = running.enter_context(lab.server())
            ((_, second, _),) = await line()
            assert second != first
        assert agent.stop() == 0
        server.process.kill()
        agent = running.enter_context(lab.agent())
        agent.wait_for("server does not answer")
        found = await lab.x509()
        assert "knows nothing yet: the server does not answer" in found["error"]
        assert health(lab) == health_pb2.HealthCheckResponse.NOT_SERVING
        running.enter_context(lab.server())
        agent.wait_for("agent in order")
        assert await lab.identities() == [WEB]
        assert agent.stop() == 0
    issued = lab.ledger.issued(CertificateQuery(), now=datetime.now(UTC)).certificates
    assert sum(str(one.spiffe_id) == NODE for one in issued) == 1


@asynchronous
async def test_a_node_that_is_deleted_serves_nobody(lab: Lab) -> None:
    """Its streams end, its health turns, and the status says what to do."""
    lab.register("web", WEB, ME)
    with lab.server(), lab.agent("--join-token-file", lab.token()) as agent:
        agent.wait_for("agent in order")
        opened = asyncio.Event()
        ending = asyncio.ensure_future(ends(lab, opened))
        await asyncio.wait_for(opened.wait(), PATIENCE_SECONDS)
        (entry,) = (one for one in lab.ledger.entries() if one.entry_id.startswith("node-"))
        lab.ledger.delete_entry(entry.entry_id, now=datetime.now(UTC), by="test")
        assert await asyncio.wait_for(ending, PATIENCE_SECONDS) is grpc.StatusCode.PERMISSION_DENIED
        assert lab.status()["problem"].startswith("the server refuses this node")
        result = run("agent", "status", "--socket", lab.socket)
        assert result.exit_code == 3
        assert "does not serve" in result.stderr


def test_a_wrong_bundle_gets_no_token(lab: Lab) -> None:
    """A server that another root vouches for is told nothing; the log says why."""
    wrong = lab.folder / "wrong.pem"
    wrong.write_bytes(Hierarchy.create(DOMAIN, now=datetime.now(UTC)).authority().bundle_pem())
    with lab.server(), lab.agent("--join-token-file", lab.token(), "--bundle", wrong) as agent:
        event = agent.wait_for("server does not answer")
        assert "not to be trusted" in event["reason"]
        assert not lab.status()["serving"]
        assert agent.stop() == 0
    assert [one.used_at for one in lab.ledger.tokens()] == [None]


@asynchronous
async def test_a_node_shows_a_jwt(lab: Lab) -> None:
    """A projected token is evidence as well, from a file that is read when it is needed."""
    lab.register("web", WEB, ME)
    (lab.folder / "keys.json").write_text(ec_signer().jwks())
    issuer = "{issuer: https://k8s.example, audiences: [garrison], jwks_file: keys.json}"
    claims = {"iss": "https://k8s.example", "sub": "node-1", "aud": "garrison"}
    token = lab.folder / "jwt"
    token.write_text(ec_signer().token({**claims, "exp": int(datetime.now(UTC).timestamp()) + 300}))
    node = f'}}\nworkloads: [{{spiffe_id: {NODE}, selectors: ["jwt:sub:node-1"]}}]\nrate_limit: {{'
    with lab.server(f", token_issuers: [{issuer}]{node}"), lab.agent("--jwt-file", token) as agent:
        agent.wait_for("agent in order")
        assert await lab.identities() == [WEB]


@pytest.mark.parametrize("api_type", ["GRPC", "ADS"])
def test_envoy_takes_its_identity_from_the_agent(lab: Lab, api_type: str) -> None:
    """It serves with the agent's SVID, also when the server is gone, and gets the next one when it is back."""

    async def scenario() -> None:
        authority = Authority.load(lab.pki)
        lab.register("web", WEB, ME, f"unix:path:{ENVOY}", svid_ttl=timedelta(seconds=20))
        with contextlib.ExitStack() as running:
            server = running.enter_context(lab.server())
            agent = running.enter_context(lab.agent("--join-token-file", lab.token()))
            agent.wait_for("agent in order")
            assert await lab.identities() == []  # this process is no Envoy
            async with running_envoy(lab.folder, api_type) as envoy:
                port = await eventually(envoy.port, "the listener")
                ours = client_context(lab.folder, authority, authority)
                first = await eventually(lambda: call(port, ours), "an answer")
                assert str(check_leaf(first)) == WEB
                server.process.kill()
                agent.wait_for("server does not answer")
                assert await asyncio.to_thread(call, port, ours) == first
                running.enter_context(lab.server())

                def renewed() -> bool | None:
                    return call(port, ours).serial_number != first.serial_number or None

                await eventually(renewed, "the next SVID")

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ((), 2, "--server"),
        (("--server", "localhost:1"), 2, "--bundle"),
        (("--server", "tcp://localhost:1"), 2, "TLS only"),
        (("--server", "localhost"), 2, "HOST:PORT"),
        (("--socket-mode", "9"), 2, "mode such as"),
        (("--sync-interval", "0s"), 2, "0:00:01"),
    ],
)
def test_wrong_options(arguments: tuple[str, ...], code: int, text: str) -> None:
    """One line says what would be right."""
    result = run("agent", *arguments)
    assert result.exit_code == code
    assert text in result.stderr


def test_a_bundle_that_is_none(tmp_path: Path) -> None:
    """A file without roots would let nobody be verified, so there is no start."""
    empty = tmp_path / "roots.json"
    state = ("--state", tmp_path / "state", "--socket", tmp_path / "a.sock")
    for content, text in (('{"keys": []}', "holds no root"), ("x", "no PEM certificate")):
        empty.write_text(content)
        result = run("agent", "--server", "localhost:1", "--bundle", empty, *state)
        assert (result.exit_code, text in result.stderr) == (2, True), result.stderr
    result = run("agent", "status", "--socket", tmp_path / "a.sock")
    assert result.exit_code == 2
    assert "no agent answers there" in result.stderr
