"""What every transport owes its callers: the same tests over `ngh2` and grpcio."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import ssl
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from support.ca_files import ca_usage

from garrison.errors import ConfigError
from garrison.transport import Call, Method, Methods, StatusCode, StatusError
from garrison.transport.address import Address
from garrison.transport.h2 import Limits
from garrison.transport.health import SERVICE, Health
from garrison.transport.listeners import RequestServer, Transport
from garrison.transport.tls import TlsFiles

LOOPBACK = Address.parse("tcp://127.0.0.1:0")
TLS_LOOPBACK = Address.parse("tls://127.0.0.1:0")
CALL_SECONDS = 20.0
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@pytest.fixture(params=list(Transport))
def kind(request: pytest.FixtureRequest) -> Transport:
    """Run the test once per transport."""
    found: Transport = request.param
    return found


def run(scenario: Coroutine[Any, Any, None]) -> None:
    """Run a scenario that may not hang."""

    async def bounded() -> None:
        async with asyncio.timeout(60):
            await scenario

    asyncio.run(bounded())


async def echo_later(message: bytes, _call: Call) -> bytes:
    """Answer after other calls had their turn."""
    await asyncio.sleep(0)
    return message


def fail(message: bytes, _call: Call) -> bytes:
    """Raise what the message asks for."""
    if message == b"status":
        raise StatusError(StatusCode.PERMISSION_DENIED, "no, 100 % nö\n")
    raise RuntimeError("the password is hunter2")


async def fail_later(message: bytes, call: Call) -> bytes:
    """Raise, but not at once."""
    await asyncio.sleep(0)
    return fail(message, call)


def describe(_message: bytes, call: Call) -> bytes:
    """Say who is calling, with which metadata."""
    wanted = [f"{name.decode()}={value!r}" for name, value in call.metadata if name.startswith(b"x-")]
    return "\n".join([str(call.peer.spiffe_id), call.peer.address, *wanted]).encode()


def deny(error: Exception) -> bytes:
    """Answer for a handler that could not."""
    return f"denied: {type(error).__name__}".encode()


METHODS: Methods = {
    "/t.T/Echo": Method(lambda message, _call: message),
    "/t.T/EchoLater": Method(echo_later),
    "/t.T/Fail": Method(fail),
    "/t.T/FailLater": Method(fail_later),
    "/t.T/Guarded": Method(fail, deny),
    "/t.T/GuardedLater": Method(fail_later, deny),
    "/t.T/GuardedEcho": Method(lambda message, _call: message, deny),
    "/t.T/Describe": Method(describe),
    "/t.T/Nonsense": Method(lambda _message, _call: None),  # type: ignore[arg-type,return-value]
}


@asynccontextmanager
async def serving(
    kind: Transport, methods: Methods = METHODS, address: Address = LOOPBACK, **options: Any
) -> AsyncIterator[RequestServer]:
    """Serve for the length of a block."""
    server = RequestServer(kind, [address], methods, **options)
    await server.start()
    try:
        yield server
    finally:
        await server.drain(5)


def target(server: RequestServer) -> str:
    """Spell the server's address as grpcio does."""
    address = server.addresses[0]
    return f"unix:{address.path}" if address.path else f"{address.host}:{address.port}"


def channel(server: RequestServer, **options: Any) -> grpc.aio.Channel:
    """Open a channel of its own connection."""
    pool = [("grpc.use_local_subchannel_pool", 1), *UNLIMITED]
    return grpc.aio.insecure_channel(target(server), options=[*pool, *options.items()])


async def call(
    open_channel: grpc.aio.Channel,
    path: str,
    message: bytes = b"",
    timeout: float = CALL_SECONDS,  # noqa: ASYNC109 - grpcio's name for the deadline
    metadata: Sequence[tuple[str, str | bytes]] = (),
) -> bytes:
    """Make one call."""
    method: Any = open_channel.unary_unary(path)
    answer: bytes = await method(message, timeout=timeout, metadata=tuple(metadata))
    return answer


async def failure(
    open_channel: grpc.aio.Channel, path: str, message: bytes = b""
) -> tuple[grpc.StatusCode, str]:
    """Make one call that must fail, and return its status."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(open_channel, path, message)
    return caught.value.code(), caught.value.details() or ""


@pytest.mark.parametrize("path", ["/t.T/Echo", "/t.T/EchoLater"])
@pytest.mark.parametrize("message", [b"", b"x", b"y" * 70_000, bytes(5 << 20)], ids=len)
def test_a_message_comes_back_whole(kind: Transport, path: str, message: bytes) -> None:
    """Handlers get the message and callers the answer, of any size, from plain and awaiting handlers."""

    async def scenario() -> None:
        async with serving(kind) as server, channel(server) as client:
            assert await call(client, path, message) == message

    run(scenario())


@pytest.mark.parametrize("path", ["/t.T/Fail", "/t.T/FailLater"])
def test_a_status_error_is_the_status_of_the_call(kind: Transport, path: str) -> None:
    """A handler's `StatusError` reaches the caller with code and message."""

    async def scenario() -> None:
        async with serving(kind) as server, channel(server) as client:
            status = await failure(client, path, b"status")
            assert status == (grpc.StatusCode.PERMISSION_DENIED, "no, 100 % nö\n")

    run(scenario())


@pytest.mark.parametrize("path", ["/t.T/Fail", "/t.T/FailLater", "/t.T/Nonsense"])
def test_a_bug_tells_the_caller_nothing(kind: Transport, path: str) -> None:
    """Any other exception ends the call with `INTERNAL` and a constant text."""

    async def scenario() -> None:
        async with serving(kind) as server, channel(server) as client:
            assert await failure(client, path) == (grpc.StatusCode.INTERNAL, "internal error")

    run(scenario())


@pytest.mark.parametrize("path", ["/t.T/Guarded", "/t.T/GuardedLater"])
@pytest.mark.parametrize(("message", "error"), [(b"status", b"StatusError"), (b"", b"RuntimeError")])
def test_a_guarded_method_answers_its_faults(
    kind: Transport, path: str, message: bytes, error: bytes
) -> None:
    """With `on_fault` no failure of the handler is a failure of the call."""

    async def scenario() -> None:
        async with serving(kind) as server, channel(server) as client:
            assert await call(client, path, message) == b"denied: " + error

    run(scenario())


def test_a_message_over_the_limit_is_a_fault(kind: Transport) -> None:
    """A message of one byte too many never reaches its handler; the next call is answered."""

    async def scenario() -> None:
        limits = Limits(max_message_bytes=100_000)
        async with serving(kind, limits=limits) as server, channel(server) as client:
            assert await call(client, "/t.T/GuardedEcho", bytes(100_001)) == b"denied: StatusError"
            assert (await failure(client, "/t.T/Echo", bytes(100_001)))[
                0
            ] == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert await call(client, "/t.T/Echo", bytes(100_000)) == bytes(100_000)

    run(scenario())


def test_an_unknown_method_is_unimplemented(kind: Transport) -> None:
    """A path that nobody serves is `UNIMPLEMENTED`."""

    async def scenario() -> None:
        async with serving(kind) as server, channel(server) as client:
            assert (await failure(client, "/t.T/None", b"x"))[0] == grpc.StatusCode.UNIMPLEMENTED

    run(scenario())


def test_metadata_reaches_the_handler_as_sent(kind: Transport) -> None:
    """Metadata keeps order and repetition; `-bin` values stay as they are on the wire (base64)."""

    async def scenario() -> None:
        async with serving(kind) as server, channel(server) as client:
            sent: list[tuple[str, str | bytes]] = [
                ("x-a", "1"),
                ("x-b-bin", b"\xff\x00\xfe\x01"),
                ("x-a", "2"),
            ]
            lines = (await call(client, "/t.T/Describe", metadata=sent)).decode().splitlines()
            assert lines[0] == "None"
            assert lines[1].startswith("127.0.0.1:")
            assert lines[2:] == ["x-a=b'1'", "x-a=b'2'", "x-b-bin=b'/wD+AQ'"]

    run(scenario())


def test_many_calls_share_a_connection(kind: Transport) -> None:
    """Hundreds of calls in flight on one connection each get their own answer."""

    async def scenario() -> None:
        async with serving(kind) as server, channel(server) as client:
            paths = ["/t.T/Echo", "/t.T/EchoLater"]
            calls = [call(client, paths[i % 2], b"%d" % i * (i % 7 * 1000 + 1)) for i in range(400)]
            answers = await asyncio.gather(*calls)
            assert answers == [b"%d" % i * (i % 7 * 1000 + 1) for i in range(400)]

    run(scenario())


def test_a_deadline_ends_the_call_and_its_handler(kind: Transport) -> None:
    """When the caller's deadline passes, the call is `DEADLINE_EXCEEDED` and the handler is cancelled."""

    async def scenario() -> None:
        cancelled = asyncio.Event()

        async def hang(_message: bytes, _call: Call) -> bytes:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
            return b""

        async with serving(kind, {**METHODS, "/t.T/Hang": Method(hang)}) as server, channel(server) as client:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(client, "/t.T/Hang", timeout=0.1)
            assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            await cancelled.wait()
            assert await call(client, "/t.T/Echo", b"next") == b"next"

    run(scenario())


def test_a_caller_that_gives_up_cancels_its_handler(kind: Transport) -> None:
    """A cancelled call does not go on working for nobody."""

    async def scenario() -> None:
        started, cancelled = asyncio.Event(), asyncio.Event()

        async def hang(_message: bytes, _call: Call) -> bytes:
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
            return b""

        async with serving(kind, {"/t.T/Hang": Method(hang)}) as server, channel(server) as client:
            method: Any = client.unary_unary("/t.T/Hang")
            pending = method(b"")
            await started.wait()
            pending.cancel()
            await cancelled.wait()

    run(scenario())


def test_health_follows_what_it_is_told(kind: Transport) -> None:
    """`Check` answers per service, and NOT_FOUND for one that is unknown."""

    async def scenario() -> None:
        health = Health(["t.T"])
        responses = health_pb2.HealthCheckResponse

        async with serving(kind, health.methods) as server, channel(server) as client:

            async def status(service: str) -> int:
                request = health_pb2.HealthCheckRequest(service=service).SerializeToString()
                answer = await call(client, f"/{SERVICE}/Check", request)
                return int(responses.FromString(answer).status)

            assert await status("t.T") == responses.NOT_SERVING
            health.set_serving(serving=True)
            assert [await status(""), await status("t.T")] == [responses.SERVING] * 2
            health.set_serving(serving=False, service="t.T")
            assert [await status(""), await status("t.T")] == [responses.SERVING, responses.NOT_SERVING]
            request = health_pb2.HealthCheckRequest(service="other").SerializeToString()
            assert (await failure(client, f"/{SERVICE}/Check", request))[0] == grpc.StatusCode.NOT_FOUND
            garbage = await failure(client, f"/{SERVICE}/Check", b"\xff")
            assert garbage[0] == grpc.StatusCode.INVALID_ARGUMENT
            health.close()
            assert await status("") == responses.NOT_SERVING

    run(scenario())


def test_health_can_be_watched_under_grpcio() -> None:
    """`Watch` tells every change, and ends when the server is about to."""

    async def scenario() -> None:
        health = Health(["t.T"])
        options: dict[str, Any] = {"handlers": [health.handler], "reflection_services": [SERVICE]}
        async with serving(Transport.GRPCIO, health.methods, **options) as server, channel(server) as client:
            request = health_pb2.HealthCheckRequest(service="t.T").SerializeToString()
            method: Any = client.unary_stream(f"/{SERVICE}/Watch")
            watch = method(request)
            seen = [health_pb2.HealthCheckResponse.FromString(await watch.read()).status]
            health.set_serving(serving=True)
            seen.append(health_pb2.HealthCheckResponse.FromString(await watch.read()).status)
            health.close()
            seen.append(health_pb2.HealthCheckResponse.FromString(await watch.read()).status)
            assert seen == [2, 1, 2]
            assert await watch.read() is grpc.aio.EOF

    run(scenario())


def test_services_describe_themselves_under_grpcio() -> None:
    """Reflection lists the services it was given."""

    async def scenario() -> None:
        options: dict[str, Any] = {"reflection_services": [SERVICE]}
        async with serving(Transport.GRPCIO, METHODS, **options) as server, channel(server) as client:
            request = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
            path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
            method: Any = client.stream_stream(path)
            stream = method()
            await stream.write(request)
            answer = reflection_pb2.ServerReflectionResponse.FromString(await stream.read())
            await stream.done_writing()
            assert SERVICE in {service.name for service in answer.list_services_response.service}

    run(scenario())


def test_streaming_services_need_grpcio() -> None:
    """Handlers that `ngh2` cannot serve are refused when the server is built."""
    with pytest.raises(ValueError, match="grpcio"):
        RequestServer(Transport.NGH2, [LOOPBACK], METHODS, handlers=[Health([]).handler])


class Answers:
    """What callers got, with a way to wait for more."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self._more = asyncio.Event()
        self.stop = False

    async def call_until_stopped(self, client: grpc.aio.Channel, path: str) -> None:
        """Keep one call in flight until told to stop."""
        while not self.stop:
            self.seen.append(await call(client, path, b"x"))
            self._more.set()

    async def more(self, count: int) -> None:
        """Wait for so many more answers."""
        wanted = len(self.seen) + count
        while len(self.seen) < wanted:
            self._more.clear()
            await self._more.wait()


# grpcio ends calls that its core has read but not yet handed to Python with CANCELLED when it stops.
# Nothing was done for them, so a retry policy (Envoy's or the client's own) makes them whole.
RETRIES = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.01s",
                    "maxBackoff": "0.1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
                },
            }
        ]
    }
)


@pytest.mark.parametrize("scheme", ["tcp", "unix"])
def test_a_take_over_loses_no_call(kind: Transport, scheme: str, tmp_path: Path) -> None:
    """A second server starts on the same address, the first one drains, and callers see no error.

    The client does what every gRPC client does: calls that a GOAWAY left out go to a new connection. Only
    grpcio's server needs a retry policy as well.
    """

    async def scenario() -> None:
        address = LOOPBACK if scheme == "tcp" else Address.parse(f"unix://{tmp_path}/s.sock")
        first = RequestServer(kind, [address], {"/t.T/Who": Method(lambda _m, _c: b"first")})
        await first.start()
        second = RequestServer(kind, first.addresses, {"/t.T/Who": Method(lambda _m, _c: b"second")})
        answers = Answers()
        options = {"grpc.service_config": RETRIES} if kind is Transport.GRPCIO else {}
        clients = [channel(first, **options) for _ in range(3)]
        async with asyncio.TaskGroup() as callers:
            for client in clients * 8:
                callers.create_task(answers.call_until_stopped(client, "/t.T/Who"))
            await answers.more(50)
            await second.start()
            await first.drain(10)
            await answers.more(50)
            answers.stop = True
        assert set(answers.seen) == {b"first", b"second"}
        assert answers.seen[-1] == b"second"
        for client in clients:
            await client.close()
        await second.drain(5)

    run(scenario())


def test_a_drain_waits_for_calls_in_flight(kind: Transport) -> None:
    """A call that has begun when the drain begins is answered; the drain ends after it."""

    async def scenario() -> None:
        started, release = asyncio.Event(), asyncio.Event()

        async def slow(_message: bytes, _call: Call) -> bytes:
            started.set()
            await release.wait()
            return b"done"

        server = RequestServer(kind, [LOOPBACK], {"/t.T/Slow": Method(slow)})
        await server.start()
        async with channel(server) as client:
            pending = asyncio.create_task(call(client, "/t.T/Slow"))
            await started.wait()
            draining = asyncio.create_task(server.drain(30))
            await asyncio.sleep(0.05)
            assert not draining.done()
            release.set()
            assert await pending == b"done"
            await draining

    run(scenario())


def test_a_drain_ends_with_its_grace(kind: Transport) -> None:
    """A call that does not end in time is cut off; the drain is over all the same."""

    async def scenario() -> None:
        started = asyncio.Event()

        async def hang(_message: bytes, _call: Call) -> bytes:
            started.set()
            await asyncio.Event().wait()
            return b""

        server = RequestServer(kind, [LOOPBACK], {"/t.T/Hang": Method(hang)})
        await server.start()
        async with channel(server) as client:
            pending = asyncio.create_task(failure(client, "/t.T/Hang"))
            await started.wait()
            async with asyncio.timeout(10):
                await server.drain(0.1)
            assert (await pending)[0] in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}

    run(scenario())


def test_a_unix_socket_is_private_and_removed(kind: Transport, tmp_path: Path) -> None:
    """The socket has the permissions asked for, names the peer, and goes when its server does."""

    async def scenario() -> None:
        path = tmp_path / "s.sock"
        async with serving(kind, address=Address.parse(f"unix://{path}")) as server:
            assert path.stat().st_mode & 0o777 == 0o600
            async with channel(server) as client:
                assert (await call(client, "/t.T/Describe")).decode().splitlines()[1] == str(path)
        assert os.listdir(tmp_path) == []  # noqa: PTH208

    run(scenario())


def test_a_unix_path_of_something_else_is_left_alone(kind: Transport, tmp_path: Path) -> None:
    """A path that holds a file is an error that names it, and the file stays."""

    async def scenario() -> None:
        path = tmp_path / "precious"
        path.write_text("data", encoding="utf-8")
        server = RequestServer(kind, [LOOPBACK, Address.parse(f"unix://{path}")], METHODS)
        with pytest.raises(ConfigError, match="not a socket") as caught:
            await server.start()
        assert str(path) in str(caught.value)
        assert path.read_text(encoding="utf-8") == "data"

    run(scenario())


def test_an_address_that_cannot_be_had_is_named(kind: Transport) -> None:
    """An address that is not this machine's is an error that names it."""

    async def scenario() -> None:
        server = RequestServer(kind, [Address.parse("tcp://192.0.2.1:9191")], METHODS)
        with pytest.raises(ConfigError, match=r"tcp://192\.0\.2\.1:9191.*cannot listen"):
            await server.start()

    run(scenario())


# -- TLS


class Authority:
    """A CA for one test."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._sign(self._name, self._key.public_key(), [], ca=True)
        self.pem = certificate.public_bytes(serialization.Encoding.PEM)
        self.path = folder / f"{name}.pem"
        self.path.write_bytes(self.pem)

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        names: Sequence[x509.GeneralName],
        *,
        ca: bool,
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=5))
            .not_valid_after(now + dt.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            # RFC 5280, 4.2.1.1 and 4.2.1.2: Python 3.13 insists on both.
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        )
        if ca:
            builder = builder.add_extension(ca_usage(), critical=True)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def issue(self, name: str, *names: x509.GeneralName, client_ca: Path | None = None) -> TlsFiles:
        """Write a leaf certificate and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._sign(subject, key.public_key(), names, ca=False)
        files = TlsFiles(self.folder / f"{name}.pem", self.folder / f"{name}.key", client_ca)
        files.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return files


LOCALHOST = x509.DNSName("localhost")


def uri(text: str) -> x509.GeneralName:
    """Make a URI SAN."""
    return x509.UniformResourceIdentifier(text)


def tls_channel(
    server: RequestServer, authority: Authority, client: TlsFiles | None = None
) -> grpc.aio.Channel:
    """Open a TLS channel, with a client certificate or without."""
    credentials = grpc.ssl_channel_credentials(
        authority.pem,
        client.key.read_bytes() if client else None,
        client.certificate.read_bytes() if client else None,
    )
    options = [("grpc.ssl_target_name_override", "localhost"), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.secure_channel(target(server), credentials, options=options)


@pytest.mark.parametrize("size", [1, 3 << 20])
def test_tls_without_client_certificates(kind: Transport, tmp_path: Path, size: int) -> None:
    """A TLS listener answers, and nobody has an identity."""

    async def scenario() -> None:
        authority = Authority(tmp_path)
        files = authority.issue("server", LOCALHOST)
        async with (
            serving(kind, address=TLS_LOOPBACK, tls=files) as server,
            tls_channel(server, authority) as client,
        ):
            assert (await call(client, "/t.T/Describe")).decode().splitlines()[0] == "None"
            assert await call(client, "/t.T/Echo", bytes(size)) == bytes(size)

    run(scenario())


@pytest.mark.parametrize(
    ("names", "identity"),
    [
        (["spiffe://td/ns/default/sa/web"], "spiffe://td/ns/default/sa/web"),
        (["spiffe://td/a", "spiffe://td/b"], "None"),
        (["http://td/a"], "None"),
        (["spiffe://td"], "None"),
        (["spiffe://TD/a"], "None"),
        ([], "None"),
    ],
)
def test_mtls_names_the_caller(kind: Transport, tmp_path: Path, names: list[str], identity: str) -> None:
    """The one SPIFFE ID of a verified certificate is the caller's; anything else names nobody."""

    async def scenario() -> None:
        authority = Authority(tmp_path)
        files = authority.issue("server", LOCALHOST, client_ca=authority.path)
        holder = authority.issue("client", *[uri(name) for name in names])
        async with (
            serving(kind, address=TLS_LOOPBACK, tls=files) as server,
            tls_channel(server, authority, holder) as client,
        ):
            assert (await call(client, "/t.T/Describe")).decode().splitlines()[0] == identity

    run(scenario())


def test_mtls_refuses_who_shows_no_good_certificate(kind: Transport, tmp_path: Path) -> None:
    """No certificate, or a stranger's: no connection. The next good caller is served."""

    async def scenario() -> None:
        authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
        files = authority.issue("server", LOCALHOST, client_ca=authority.path)
        forged = stranger.issue("forged", uri("spiffe://td/admin"))
        holder = authority.issue("client", uri("spiffe://td/a"))
        async with serving(kind, address=TLS_LOOPBACK, tls=files) as server:
            for bad in (None, forged):
                async with tls_channel(server, authority, bad) as client:
                    assert (await failure(client, "/t.T/Echo"))[0] == grpc.StatusCode.UNAVAILABLE
            async with tls_channel(server, authority, holder) as client:
                assert await call(client, "/t.T/Echo", b"x") == b"x"

    run(scenario())


def test_tls_can_be_reloaded(kind: Transport, tmp_path: Path) -> None:
    """New connections meet the new certificate; files that cannot be used leave the last good ones."""

    async def scenario() -> None:
        old, new = Authority(tmp_path, "old"), Authority(tmp_path, "new")
        files = old.issue("server-old", LOCALHOST)
        async with serving(kind, address=TLS_LOOPBACK, tls=files) as server:
            async with tls_channel(server, old) as client:
                assert await call(client, "/t.T/Echo", b"1") == b"1"
            server.reload_tls(new.issue("server-new", LOCALHOST))
            async with tls_channel(server, new) as client:
                assert await call(client, "/t.T/Echo", b"2") == b"2"
            with pytest.raises(ConfigError, match=r"missing\.pem"):
                server.reload_tls(TlsFiles(tmp_path / "missing.pem", files.key))
            async with tls_channel(server, new) as client:
                assert await call(client, "/t.T/Echo", b"3") == b"3"

    run(scenario())


def test_a_tls_address_needs_files(kind: Transport) -> None:
    """A TLS address without certificate is an error, never a plain-text listener."""

    async def scenario() -> None:
        with pytest.raises(ConfigError, match="needs a certificate"):
            await RequestServer(kind, [TLS_LOOPBACK], METHODS).start()

    run(scenario())


def test_old_tls_is_refused(kind: Transport, tmp_path: Path) -> None:
    """No handshake below TLS 1.2."""

    async def scenario() -> None:
        authority = Authority(tmp_path)
        files = authority.issue("server", LOCALHOST)
        context = ssl.create_default_context(cadata=authority.pem.decode())
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["h2"])
        async with serving(kind, address=TLS_LOOPBACK, tls=files) as server:
            address = server.addresses[0]
            _, writer = await asyncio.open_connection(
                address.host, address.port, ssl=context, server_hostname="localhost"
            )
            assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
            writer.transport.abort()
            context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
            with pytest.warns(DeprecationWarning, match="TLSv1_1"):
                context.maximum_version = ssl.TLSVersion.TLSv1_1
            with pytest.raises((ssl.SSLError, OSError)):
                await asyncio.open_connection(
                    address.host, address.port, ssl=context, server_hostname="localhost"
                )

    run(scenario())


def test_tls_without_h2_is_hung_up_on(tmp_path: Path) -> None:
    """A TLS client that does not negotiate HTTP/2 by ALPN gets nothing."""

    async def scenario() -> None:
        authority = Authority(tmp_path)
        files = authority.issue("server", LOCALHOST)
        context = ssl.create_default_context(cadata=authority.pem.decode())
        async with serving(Transport.NGH2, address=TLS_LOOPBACK, tls=files) as server:
            address = server.addresses[0]
            reader, writer = await asyncio.open_connection(
                address.host, address.port, ssl=context, server_hostname="localhost"
            )
            with suppress(OSError):
                assert await reader.read() == b""
            writer.transport.abort()

    run(scenario())
