"""SDS over real gRPC and a real Unix socket: who asks gets what it is entitled to, when it is due."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret
from envoy.service.discovery.v3.discovery_pb2 import (
    DeltaDiscoveryRequest,
    DeltaDiscoveryResponse,
    DiscoveryRequest,
    DiscoveryResponse,
)
from support.clocks import Clock

from ca.api.sds import SERVICE, SecretDiscovery
from ca.api.sds_files import FileSecrets
from ca.api.sds_secrets import TYPE_URL
from ca.attestation import Registrations
from ca.authority import Hierarchy
from ca.crl import build_crl
from ca.inspection import check_leaf
from ca.jwt_key_store import JwtKeyStore
from ca.ledger import CertificateQuery
from ca.local_identities import LocalIdentities
from ca.recording import Recorder, RecordingIssuer
from ca.registration import Registration
from ca.store.sqlite import SqliteLedger
from garrison.identity import TrustDomain
from garrison.transport.unix_peer import PeerCredentialListener, PeerCredentials

START = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
WEB = "spiffe://cluster.local/ns/default/sa/web"
API = "spiffe://cluster.local/ns/default/sa/api"
DOMAIN = "spiffe://cluster.local"
TIMEOUT = 10

HIERARCHY = Hierarchy.create(TrustDomain("cluster.local"), now=START)
AUTHORITY = HIERARCHY.authority()
ME = f"unix:uid:{os.getuid()}"
MY_EXECUTABLE = str(Path("/proc/self/exe").readlink())
MY_PATH = f"unix:path:{MY_EXECUTABLE}"


@dataclass
class Lab:
    """A running SDS server, a channel to it over the attested socket, and one straight to its inside."""

    sds: SecretDiscovery
    identities: LocalIdentities
    clock: Clock
    channel: grpc.aio.Channel
    inner_channel: grpc.aio.Channel
    socket: Path
    ledger: SqliteLedger

    def stream(self, channel: grpc.aio.Channel | None = None) -> Any:
        """Open `StreamSecrets`."""
        return (channel or self.channel).stream_stream(
            f"/{SERVICE}/StreamSecrets", DiscoveryRequest.SerializeToString, DiscoveryResponse.FromString
        )(timeout=TIMEOUT)

    def delta(self) -> Any:
        """Open `DeltaSecrets`."""
        return self.channel.stream_stream(
            f"/{SERVICE}/DeltaSecrets",
            DeltaDiscoveryRequest.SerializeToString,
            DeltaDiscoveryResponse.FromString,
        )(timeout=TIMEOUT)

    async def fetch(self, *names: str, type_url: str = TYPE_URL) -> Any:
        """Call `FetchSecrets`."""
        return await self.channel.unary_unary(
            f"/{SERVICE}/FetchSecrets", DiscoveryRequest.SerializeToString, DiscoveryResponse.FromString
        )(request(*names, type_url=type_url), timeout=TIMEOUT)


def registration(spiffe_id: str = WEB, *selectors: str, **options: Any) -> Registration:
    """Return a registration for this very process unless `selectors` say otherwise."""
    return Registration.parse(spiffe_id, selectors or (ME, MY_PATH), **options)


@contextlib.asynccontextmanager
async def lab(tmp_path: Path, *registrations: Registration) -> AsyncIterator[Lab]:
    """Run the server behind a peer-credential listener."""
    clock = Clock(START)
    ledger = SqliteLedger.of(tmp_path)
    recorder = Recorder(ledger)
    listener = PeerCredentialListener(tmp_path / "sds.sock")
    identities = LocalIdentities(
        Registrations(registrations),
        RecordingIssuer(lambda: AUTHORITY, recorder),
        peer_credentials=listener.credentials,
        jwt_keys=JwtKeyStore(tmp_path),
        number=lambda digest, now: ledger.publish_bundle(digest, now=now, by="test"),
        now=lambda: clock.now,
        jitter=lambda: 0.5,
    )
    sds = SecretDiscovery(
        identities, files=FileSecrets([tmp_path / "files"]), now=lambda: clock.now, sleep=clock.sleep
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(sds.handlers())
    server.add_insecure_port(listener.inner_target)
    await server.start()
    async with (
        listener,
        grpc.aio.insecure_channel(f"unix:{tmp_path / 'sds.sock'}") as channel,
        grpc.aio.insecure_channel(listener.inner_target) as inner_channel,
    ):
        try:
            yield Lab(sds, identities, clock, channel, inner_channel, tmp_path / "sds.sock", ledger)
        finally:
            await server.stop(0)
            await asyncio.to_thread(recorder.close)
            ledger.close()


def run(scenario: Callable[[Lab], Awaitable[None]], tmp_path: Path, *registrations: Registration) -> None:
    """Run `scenario` against a fresh lab; this process is WEB unless other registrations are given."""

    async def main() -> None:
        async with lab(tmp_path, *(registrations or (registration(),))) as running:
            await asyncio.wait_for(scenario(running), TIMEOUT)

    asyncio.run(main())


def request(
    *names: str, nonce: str = "", version: str = "", error: str = "", type_url: str = TYPE_URL
) -> Any:
    """Return a state-of-the-world request."""
    message = DiscoveryRequest(
        resource_names=names, response_nonce=nonce, version_info=version, type_url=type_url
    )
    if error:
        message.error_detail.message = error
    return message


def ack(response: Any, *names: str, error: str = "") -> Any:
    """Return the acknowledgement of `response`, or its refusal because of `error`."""
    return request(*names, nonce=response.nonce, version=response.version_info, error=error)


def unpack(response: Any) -> dict[str, Any]:
    """Return the secrets of a response by name."""
    found = {}
    for resource in response.resources:
        secret = Secret()
        packed = resource.resource if isinstance(response, DeltaDiscoveryResponse) else resource
        assert packed.Unpack(secret)
        found[secret.name] = secret
    return found


def leaf(secret: Any) -> x509.Certificate:
    """Return the leaf of a TLS secret, having checked it against its key and the intermediate."""
    chain = x509.load_pem_x509_certificates(secret.tls_certificate.certificate_chain.inline_bytes)
    key = load_pem_private_key(secret.tls_certificate.private_key.inline_bytes, None)
    assert secret.tls_certificate.private_key.inline_bytes.startswith(b"-----BEGIN PRIVATE KEY-----")
    assert chain[0].public_key() == key.public_key()
    assert chain[1:] == [HIERARCHY.issuer.certificate]
    return chain[0]


async def status(call: Awaitable[object]) -> tuple[grpc.StatusCode, str]:
    """Return the status that `call` fails with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def stream_status(stream: Any, message: Any) -> tuple[grpc.StatusCode, str]:
    """Return the status that ends `stream` after `message`."""
    await stream.write(message)
    while await stream.read() is not grpc.aio.EOF:
        pass
    return await stream.code(), await stream.details()


async def failure(stream: Any, message: Any) -> tuple[grpc.StatusCode, str]:
    """Return the status of `stream`, however the client library reports it."""
    try:
        return await stream_status(stream, message)
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""


def test_default_and_rootca_arrive(tmp_path: Path) -> None:
    """A registered caller gets its chain with key, and the roots, each under the name it asked for."""

    async def scenario(lab: Lab) -> None:
        stream = lab.stream()
        await stream.write(request("default", "ROOTCA"))
        response = await stream.read()
        secrets = unpack(response)
        assert list(secrets) == ["default", "ROOTCA"]
        assert str(check_leaf(leaf(secrets["default"]))) == WEB
        assert secrets["ROOTCA"].validation_context.trusted_ca.inline_bytes == AUTHORITY.bundle_pem()
        assert response.type_url == TYPE_URL
        assert response.version_info
        assert response.nonce
        stream.cancel()

    run(scenario, tmp_path)


def test_names_are_spiffe_ids_too(tmp_path: Path) -> None:
    """Identities and the trust domain can be asked for by their IDs; `default` is the first registration."""

    async def scenario(lab: Lab) -> None:
        secrets = unpack(await lab.fetch(API, WEB, DOMAIN, "default"))
        assert str(check_leaf(leaf(secrets[API]))) == API
        assert str(check_leaf(leaf(secrets[WEB]))) == WEB
        assert leaf(secrets["default"]) == leaf(secrets[WEB])
        assert secrets[DOMAIN].validation_context.trusted_ca.inline_bytes == AUTHORITY.bundle_pem()

    run(scenario, tmp_path, registration(WEB), registration(API, ME))


def test_dns_names_and_ttl_come_from_the_registration(tmp_path: Path) -> None:
    """What the certificate says is what was registered."""

    async def scenario(lab: Lab) -> None:
        certificate = leaf(unpack(await lab.fetch("default"))["default"])
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == ["web.default"]
        assert certificate.not_valid_after_utc == START + timedelta(minutes=10)

    run(scenario, tmp_path, registration(WEB, svid_ttl=timedelta(minutes=10), dns_names=["web.default"]))


@pytest.mark.parametrize(
    "selectors",
    [
        (f"unix:uid:{os.getuid() + 1}",),
        (ME, "unix:path:/usr/bin/somebody-else"),
        (ME, f"unix:gid:{os.getgid() + 1}"),
    ],
)
def test_a_process_that_is_not_entitled_is_refused(tmp_path: Path, selectors: tuple[str, ...]) -> None:
    """Another user, group or executable than registered gets PERMISSION_DENIED and a log line says who."""

    async def scenario(lab: Lab) -> None:
        with structlog.testing.capture_logs() as logs:
            for name in ("default", "ROOTCA", WEB, "anything"):
                code, text = await failure(lab.stream(), request(name))
                assert code is grpc.StatusCode.PERMISSION_DENIED
                assert "no registration matches this caller" in text
            assert (await status(lab.fetch("default")))[0] is grpc.StatusCode.PERMISSION_DENIED
        denied = [entry for entry in logs if entry["event"] == "sds denied"]
        assert len(denied) == 5
        assert {(entry["uid"], entry["path"]) for entry in denied} == {(os.getuid(), MY_EXECUTABLE)}
        assert lab.sds.counters.denials == 5

    run(scenario, tmp_path, registration(WEB, *selectors))


@pytest.mark.parametrize("name", [API, "spiffe://cluster.local/", "spiffe://other.test", "rootca", "*"])
def test_a_name_that_is_not_the_callers_is_refused(tmp_path: Path, name: str) -> None:
    """Knowing the name of an identity does not give it; nothing else of the request is answered either."""

    async def scenario(lab: Lab) -> None:
        with structlog.testing.capture_logs() as logs:
            code, text = await failure(lab.stream(), request("default", name))
        assert (code, f"may not have `{name}`" in text) == (grpc.StatusCode.PERMISSION_DENIED, True)
        assert [entry["name"] for entry in logs if entry["event"] == "sds denied"] == [name]

    run(scenario, tmp_path, registration(WEB), registration(API, "unix:uid:4000000000"))


def test_a_caller_without_credentials_is_refused(tmp_path: Path) -> None:
    """Who comes to the inner server by another way than the attested socket is nobody."""

    async def scenario(lab: Lab) -> None:
        # Nothing is written: the stream may have ended by then, and the client would report that instead.
        stream = lab.stream(lab.inner_channel)
        assert await stream.code() is grpc.StatusCode.PERMISSION_DENIED
        assert "attested" in await stream.details()

    run(scenario, tmp_path)


def test_an_svid_is_renewed_at_half_its_life(tmp_path: Path) -> None:
    """Key and certificate are replaced and pushed at half-life, not before; the bundle stays what it was."""

    async def scenario(lab: Lab) -> None:
        stream = lab.stream()
        await stream.write(request("default", "ROOTCA"))
        first = await stream.read()
        await stream.write(ack(first, "default", "ROOTCA"))
        lab.clock.advance(timedelta(minutes=29))
        waiting = asyncio.ensure_future(stream.read())
        await stream.write(ack(first, "default", "ROOTCA"))
        lab.clock.advance(timedelta(minutes=2))
        second = await waiting
        old, new = leaf(unpack(first)["default"]), leaf(unpack(second)["default"])
        assert new.not_valid_after_utc == START + timedelta(minutes=31, hours=1)
        assert old.public_key() != new.public_key()
        assert second.version_info != first.version_info
        assert second.nonce != first.nonce
        stream.cancel()

    run(scenario, tmp_path)


def test_a_forced_rotation_reaches_every_stream(tmp_path: Path) -> None:
    """`rotate` replaces what is held at once, in either protocol variant; bundle-only streams hear nothing."""

    async def scenario(lab: Lab) -> None:
        world, delta, roots = lab.stream(), lab.delta(), lab.stream()
        await world.write(request(WEB))
        await delta.write(DeltaDiscoveryRequest(resource_names_subscribe=["default", "ROOTCA"]))
        await roots.write(request("ROOTCA"))
        before = [leaf(unpack(await world.read())[WEB]), leaf(unpack(await delta.read())["default"])]
        answer = await roots.read()
        lab.identities.rotate()
        after = await world.read(), await delta.read()
        assert list(unpack(after[1])) == ["default"]
        assert before[0] != leaf(unpack(after[0])[WEB])
        assert before[1] != leaf(unpack(after[1])["default"])
        await roots.write(ack(answer, "ROOTCA", DOMAIN))
        assert list(unpack(await roots.read())) == ["ROOTCA", DOMAIN]
        for stream in (world, delta, roots):
            stream.cancel()

    run(scenario, tmp_path)


def test_close_ends_every_stream(tmp_path: Path) -> None:
    """A server that drains lets its Envoys go at once: streams never end by themselves."""

    async def scenario(lab: Lab) -> None:
        world, roots = lab.stream(), lab.stream()
        for stream, name in ((world, WEB), (roots, "ROOTCA")):
            await stream.write(request(name))
            await stream.read()
        lab.sds.close()
        for stream in (world, roots, lab.stream()):
            assert await stream.code() is grpc.StatusCode.OK

    run(scenario, tmp_path)


def test_a_stream_keeps_one_key_while_it_is_valid(tmp_path: Path) -> None:
    """Names added later come with the same SVID; nothing is issued for the sake of an answer."""

    async def scenario(lab: Lab) -> None:
        stream = lab.stream()
        await stream.write(request("default"))
        first = await stream.read()
        await stream.write(ack(first, "default", WEB))
        second = unpack(await stream.read())
        assert leaf(second["default"]) == leaf(second[WEB]) == leaf(unpack(first)["default"])
        stream.cancel()

    run(scenario, tmp_path)


def test_a_refused_response_is_counted_and_not_repeated(tmp_path: Path) -> None:
    """A NACK is logged with its reason; the next response is the next change."""

    async def scenario(lab: Lab) -> None:
        stream = lab.stream()
        await stream.write(request("default"))
        first = await stream.read()
        with structlog.testing.capture_logs() as logs:
            await stream.write(ack(first, "default", error="key does not match"))
            await stream.write(ack(first, "default", "ROOTCA"))
            second = await stream.read()
        assert list(unpack(second)) == ["default", "ROOTCA"]
        assert int(second.nonce) == int(first.nonce) + 1
        assert lab.sds.counters.nacks == 1
        refused = next(entry for entry in logs if entry["event"] == "sds response refused")
        assert (refused["reason"], refused["names"]) == ("key does not match", ("default",))
        stream.cancel()

    run(scenario, tmp_path)


def test_a_reconnecting_caller_is_answered(tmp_path: Path) -> None:
    """The first request of a stream gets an answer whatever version it carries from an earlier one."""

    async def scenario(lab: Lab) -> None:
        first = await lab.fetch("ROOTCA")
        for version in (first.version_info, "stale"):
            stream = lab.stream()
            await stream.write(request("ROOTCA", version=version))
            assert (await stream.read()).version_info == first.version_info
            stream.cancel()

    run(scenario, tmp_path)


def test_delta_follows_the_subscriptions(tmp_path: Path) -> None:
    """Only what was added is sent, and after unsubscribing nothing more."""

    async def scenario(lab: Lab) -> None:
        stream = lab.delta()
        await stream.write(DeltaDiscoveryRequest(type_url=TYPE_URL, resource_names_subscribe=["ROOTCA"]))
        first = await stream.read()
        assert [resource.name for resource in first.resources] == ["ROOTCA"]
        await stream.write(
            DeltaDiscoveryRequest(response_nonce=first.nonce, resource_names_subscribe=["default", WEB])
        )
        second = await stream.read()
        assert [resource.name for resource in second.resources] == ["default", WEB]
        await stream.write(
            DeltaDiscoveryRequest(response_nonce=second.nonce, resource_names_unsubscribe=["default"])
        )
        await stream.write(DeltaDiscoveryRequest(resource_names_subscribe=["ROOTCA"]))
        assert list(unpack(await stream.read())) == ["ROOTCA"]
        lab.identities.rotate()
        assert list(unpack(await stream.read())) == [WEB]
        assert (await failure(stream, DeltaDiscoveryRequest(resource_names_subscribe=["nobody"])))[
            0
        ] is grpc.StatusCode.PERMISSION_DENIED

    run(scenario, tmp_path)


def test_malformed_requests_get_a_clean_status(tmp_path: Path) -> None:
    """No names, another type, or no protobuf at all: an error for this call, and the next one is answered."""

    async def scenario(lab: Lab) -> None:
        assert (await failure(lab.stream(), request()))[0] is grpc.StatusCode.INVALID_ARGUMENT
        assert (await failure(lab.delta(), DeltaDiscoveryRequest()))[0] is grpc.StatusCode.INVALID_ARGUMENT
        assert (await status(lab.fetch()))[0] is grpc.StatusCode.INVALID_ARGUMENT
        wrong = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
        assert (await status(lab.fetch("default", type_url=wrong)))[0] is grpc.StatusCode.INVALID_ARGUMENT
        assert (await failure(lab.stream(), request("default", type_url=wrong)))[
            0
        ] is grpc.StatusCode.INVALID_ARGUMENT
        garbage: Any = lab.channel.unary_unary(f"/{SERVICE}/FetchSecrets")
        assert (await status(garbage(b"\xff\xff\xff", timeout=TIMEOUT)))[0] is not grpc.StatusCode.OK
        assert list(unpack(await lab.fetch("ROOTCA"))) == ["ROOTCA"]

    run(scenario, tmp_path)


def test_an_expired_ca_is_unavailable_and_a_stream_survives_it(tmp_path: Path) -> None:
    """When the CA cannot issue, new callers are told to come back; who has an SVID keeps its stream."""

    async def scenario(lab: Lab) -> None:
        stream = lab.stream()
        await stream.write(request("default"))
        first = await stream.read()
        lab.clock.advance(AUTHORITY.not_after - START)
        code, text = await status(lab.fetch("default"))
        assert (code, "expired" in text) == (grpc.StatusCode.UNAVAILABLE, True)
        assert lab.sds.counters.issue_failures >= 1
        await stream.write(ack(first, "ROOTCA"))
        assert list(unpack(await stream.read())) == ["ROOTCA"]
        stream.cancel()

    run(scenario, tmp_path)


def test_no_stream_is_left_behind(tmp_path: Path) -> None:
    """When a caller ends its stream or breaks it off, the server forgets it."""

    async def scenario(lab: Lab) -> None:
        polite, rude = lab.stream(), lab.stream()
        for stream in (polite, rude):
            await stream.write(request("default"))
            await stream.read()
        assert lab.sds.counters.streams == 2
        await polite.done_writing()
        assert await polite.read() is grpc.aio.EOF
        assert await polite.code() is grpc.StatusCode.OK
        rude.cancel()
        while lab.sds.counters.streams:  # noqa: ASYNC110 - waits for the server, bounded by the lab's timeout
            await asyncio.sleep(0)

    run(scenario, tmp_path)


def test_a_stream_that_is_cancelled_twice_is_forgotten(tmp_path: Path) -> None:
    """A server of grpcio may cancel a call again while its stream is being torn down."""

    async def scenario(lab: Lab) -> None:
        tearing_down = asyncio.Event()

        async def requests() -> AsyncIterator[Any]:
            try:
                await asyncio.Event().wait()
            finally:
                tearing_down.set()
                await asyncio.Event().wait()
            yield

        class Context:
            """A call of this process."""

            def peer(self) -> str:
                return "unix:"

        lab.identities._peer_credentials = lambda _: PeerCredentials(
            os.getpid(), os.getuid(), os.getgid(), MY_EXECUTABLE
        )
        context: Any = Context()
        call = asyncio.ensure_future(lab.sds._stream_secrets(requests(), context))
        while not lab.sds.counters.streams:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        call.cancel()
        await tearing_down.wait()
        call.cancel()
        await asyncio.wait({call})
        assert call.cancelled()
        assert lab.sds.counters.streams == 0

    run(scenario, tmp_path)


def test_every_certificate_is_recorded_with_who_asked(tmp_path: Path) -> None:
    """What arrives is in the ledger, and so is what takes its place."""

    async def scenario(lab: Lab) -> None:
        stream = lab.stream()
        await stream.write(request("default"))
        await stream.read()
        lab.identities.rotate()
        await stream.read()
        found = lab.ledger.issued(CertificateQuery(), now=lab.clock.now).certificates
        assert [(str(one.spiffe_id), one.attested_by) for one in found] == [(WEB, "unix")] * 2
        assert f"uid {os.getuid()}" in found[0].requester
        assert f"pid {os.getpid()}" in found[0].requester

    run(scenario, tmp_path)


def test_without_a_record_nothing_leaves(tmp_path: Path) -> None:
    """A ledger that cannot be written is as good as no CA: what is held is kept, and nothing new is given."""

    async def scenario(lab: Lab) -> None:
        stream = lab.stream()
        await stream.write(request(WEB))
        await stream.read()
        lab.ledger.close()
        code, text = await status(lab.fetch(API))
        assert (code, "cannot be recorded" in text) == (grpc.StatusCode.UNAVAILABLE, True)
        lab.clock.advance(timedelta(minutes=31))
        async with asyncio.timeout(TIMEOUT):
            while not lab.identities.refused_renewals:  # noqa: ASYNC110 - a count tells nobody
                await asyncio.sleep(0.01)
        assert lab.sds.counters.streams == 1

    run(scenario, tmp_path, registration(), registration(API))


def test_registrations_change_while_streams_are_open(tmp_path: Path) -> None:
    """A new default is pushed; who may have nothing any more is ended."""

    async def scenario(lab: Lab) -> None:
        stream = lab.stream()
        await stream.write(request("default"))
        await stream.read()
        lab.identities.use_registrations(Registrations([registration(API)]))
        (secret,) = unpack(await stream.read()).values()
        assert str(check_leaf(leaf(secret))) == API
        lab.identities.use_registrations(Registrations())
        assert await stream.code() is grpc.StatusCode.PERMISSION_DENIED

    run(scenario, tmp_path)


def test_a_bundle_is_sent_again_when_it_is_told(tmp_path: Path) -> None:
    """Only to who subscribes to it, and without new keys."""

    async def scenario(lab: Lab) -> None:
        stream = lab.stream()
        await stream.write(request("ROOTCA"))
        first = await stream.read()
        crl = build_crl(HIERARCHY.issuer, [], number=1, revocations=0, now=lab.clock.now).der
        pem = x509.load_der_x509_crl(crl).public_bytes(Encoding.PEM)
        lab.identities._crls = lambda: [crl]
        lab.identities.tell_bundle()
        second = await stream.read()
        assert first.version_info != second.version_info
        context = unpack(second)["ROOTCA"].validation_context
        assert context.crl.inline_bytes == pem
        assert context.only_verify_leaf_cert_crl
        assert not unpack(first)["ROOTCA"].validation_context.HasField("crl")
        assert lab.ledger.issued(CertificateQuery(), now=lab.clock.now).certificates == ()

    run(scenario, tmp_path)
