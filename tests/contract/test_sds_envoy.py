"""A real Envoy takes its identity over our SDS, and enforces mutual TLS with it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest, DiscoveryResponse
from support.sds_envoy import CLIENT, ENVOY, call, client_context, eventually, running_envoy

from ca.api.sds import SERVICE, SecretDiscovery
from ca.api.sds_files import FileSecrets
from ca.attestation import Registrations
from ca.authority import Authority, Hierarchy
from ca.bundle import SpiffeBundle
from ca.crl import renew_crl
from ca.inspection import check_leaf
from ca.jwt_key_store import JwtKeyStore
from ca.keys import new_private_key, private_key_pem
from ca.ledger import IssuedCertificate, RevocationReason
from ca.local_identities import LocalIdentities
from ca.recording import Recorder, RecordingIssuer
from ca.registration import Registration
from ca.store.sqlite import SqliteLedger
from garrison.identity import SpiffeId, TrustDomain
from garrison.transport.unix_peer import PeerCredentialListener

WEB = "spiffe://cluster.local/ns/default/sa/web"
# Whoever may not connect sees one of these, depending on when Envoy's alert arrives.
REFUSED = (ssl.SSLError, ConnectionResetError, BrokenPipeError, EOFError)


@contextlib.asynccontextmanager
async def running_sds(
    directory: Path, authority: Authority, *registrations: Registration
) -> AsyncIterator[tuple[SecretDiscovery, LocalIdentities]]:
    """Serve SDS at the socket in `directory`, with the CRLs of the ledger that is there."""
    listener = PeerCredentialListener(directory / "sds.sock")
    ledger = SqliteLedger.of(directory)
    recorder = Recorder(ledger)
    identities = LocalIdentities(
        Registrations(registrations),
        RecordingIssuer(lambda: authority, recorder),
        peer_credentials=listener.credentials,
        jwt_keys=JwtKeyStore(directory),
        number=lambda digest, now: ledger.publish_bundle(digest, now=now, by="test"),
        crls=lambda: [one.der for one in ledger.crls()],
    )
    sds = SecretDiscovery(identities, files=FileSecrets([directory / "files"]))
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(sds.handlers())
    server.add_insecure_port(listener.inner_target)
    await server.start()
    async with listener:
        try:
            yield sds, identities
        finally:
            await server.stop(0)
            await asyncio.to_thread(recorder.close)
            ledger.close()


@pytest.mark.parametrize("api_type", ["GRPC", "DELTA_GRPC", "ADS"])
def test_envoy_serves_our_identity_and_demands_one(tmp_path: Path, api_type: str) -> None:
    """Our SVID gets in; no certificate and a stranger's do not; a forced rotation is in use within moments."""

    async def scenario() -> None:
        authority, stranger = (
            Hierarchy.create(TrustDomain("cluster.local"), now=datetime.now(UTC)).authority()
            for _ in range(2)
        )
        me = Registration.parse(WEB, [f"unix:uid:{os.getuid()}", f"unix:path:{ENVOY}"])
        async with (
            running_sds(tmp_path, authority, me) as (sds, identities),
            running_envoy(tmp_path, api_type) as envoy,
        ):
            port = await eventually(envoy.port, "the listener")
            ours = client_context(tmp_path, authority, authority)
            first = await eventually(lambda: call(port, ours), "an answer")
            assert str(check_leaf(first)) == WEB

            for own in (None, stranger):
                with pytest.raises(REFUSED):
                    await asyncio.to_thread(call, port, client_context(tmp_path, authority, own))
            with pytest.raises(ssl.SSLCertVerificationError):
                await asyncio.to_thread(call, port, client_context(tmp_path, stranger, authority))

            identities.rotate()

            def rotated() -> x509.Certificate | None:
                found = call(port, ours)
                return found if found.serial_number != first.serial_number else None

            second = await eventually(rotated, "the new certificate")
            assert str(check_leaf(second)) == WEB
            assert second.public_key() != first.public_key()
            assert sds.counters.nacks == 0
            assert sds.counters.streams == (1 if api_type == "ADS" else 2)  # without ADS, one per secret
            assert b"PRIVATE KEY" not in (tmp_path / "envoy.json").read_bytes()

    asyncio.run(scenario())


def test_another_executable_of_the_same_user_gets_nothing(tmp_path: Path) -> None:
    """What Envoy may have is refused to this test, which runs as the same user on the same socket."""

    async def scenario() -> None:
        authority = Hierarchy.create(TrustDomain("cluster.local"), now=datetime.now(UTC)).authority()
        envoys = Registration.parse(WEB, [f"unix:uid:{os.getuid()}", f"unix:path:{ENVOY}"])
        async with (
            running_sds(tmp_path, authority, envoys),
            grpc.aio.insecure_channel(f"unix:{tmp_path / 'sds.sock'}") as channel,
        ):
            fetch: Any = channel.unary_unary(
                f"/{SERVICE}/FetchSecrets", DiscoveryRequest.SerializeToString, DiscoveryResponse.FromString
            )
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await fetch(DiscoveryRequest(resource_names=["default"]), timeout=10)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED

    asyncio.run(scenario())


def test_envoy_without_a_registration_serves_nobody(tmp_path: Path) -> None:
    """An Envoy that is not entitled is denied, and without an identity it ends every connection."""

    async def scenario() -> None:
        authority = Hierarchy.create(TrustDomain("cluster.local"), now=datetime.now(UTC)).authority()
        other = Registration.parse(WEB, [f"unix:uid:{os.getuid()}", "unix:path:/usr/bin/another-envoy"])
        async with (
            running_sds(tmp_path, authority, other) as (sds, _),
            running_envoy(tmp_path, "GRPC") as envoy,
        ):
            await eventually(lambda: sds.counters.denials >= 2 or None, "the denials")
            port = await eventually(envoy.port, "the listener")
            with pytest.raises((*REFUSED, ConnectionRefusedError)):  # before or after it gave up waiting
                await asyncio.to_thread(call, port, client_context(tmp_path, authority, authority))
            assert sds.counters.responses == 0

    asyncio.run(scenario())


def test_envoy_refuses_a_revoked_peer(tmp_path: Path) -> None:
    """Once its certificate is on the CRL, a peer gets no new connection; another one of its kind does."""

    async def scenario() -> None:
        authority = Hierarchy.create(TrustDomain("cluster.local"), now=datetime.now(UTC)).authority()
        me = Registration.parse(WEB, [f"unix:uid:{os.getuid()}", f"unix:path:{ENVOY}"])
        ledger = SqliteLedger.of(tmp_path)
        # An empty list is enough to make Envoy look: without any it would take the absence for consent.
        renew_crl(ledger, authority.issuer, now=datetime.now(UTC), by="test")
        async with (
            running_sds(tmp_path, authority, me) as (sds, identities),
            running_envoy(tmp_path, "GRPC") as envoy,
        ):
            port = await eventually(envoy.port, "the listener")
            revoked = client_context(tmp_path, authority, authority)
            own = x509.load_pem_x509_certificate((tmp_path / "client.pem").read_bytes())
            await eventually(lambda: call(port, revoked), "an answer")
            now = datetime.now(UTC)
            issued = IssuedCertificate.of(own, CLIENT, now=now, requester="test", attested_by="test")
            ledger.record_issued([issued])
            reason = RevocationReason.KEY_COMPROMISE
            ledger.revoke(issued.issuer, issued.serial, reason, now=now, by="test")
            renew_crl(ledger, authority.issuer, now=now, by="test")
            identities.tell_bundle()

            def is_refused() -> bool | None:
                try:
                    call(port, revoked)
                except REFUSED:
                    return True
                return None

            await eventually(is_refused, "the revocation")
            other = client_context(tmp_path, authority, authority)
            assert str(check_leaf(await asyncio.to_thread(call, port, other))) == WEB
            assert sds.counters.nacks == 0
        ledger.close()

    asyncio.run(scenario())


def new_authority(trust_domain: str = "cluster.local") -> Authority:
    """Return a CA of its own."""
    return Hierarchy.create(TrustDomain(trust_domain), now=datetime.now(UTC)).authority()


def partner_context(directory: Path, ours: Authority, partner: Authority) -> ssl.SSLContext:
    """Return a TLS client of the partner's trust domain that trusts us."""
    context = client_context(directory, ours, None)
    key = new_private_key()
    identity = SpiffeId(partner.trust_domain, ("client",))
    svid = partner.issue(identity, key.public_key(), now=datetime.now(UTC), ttl=timedelta(hours=1))
    (directory / "partner.pem").write_bytes(svid.chain_pem + private_key_pem(key))
    context.load_cert_chain(directory / "partner.pem")
    return context


@pytest.mark.parametrize("api_type", ["GRPC", "DELTA_GRPC"])
def test_a_federated_domain_gets_in_and_out(tmp_path: Path, api_type: str) -> None:
    """Trusting a partner's domain, its client gets in and ours does not; once it is gone, nobody gets in."""

    async def scenario() -> None:
        authority, partner = new_authority(), new_authority("partner.test")
        me = Registration.parse(WEB, [f"unix:uid:{os.getuid()}"], federates_with=["partner.test"])
        async with running_sds(tmp_path, authority, me) as (sds, identities):
            identities.use_federated({partner.trust_domain: SpiffeBundle(partner.roots)})
            async with running_envoy(tmp_path, api_type, "default", "spiffe://partner.test") as envoy:
                port = await eventually(envoy.port, "the listener")
                theirs = partner_context(tmp_path, authority, partner)
                await eventually(lambda: call(port, theirs), "an answer")
                with pytest.raises(REFUSED):
                    await asyncio.to_thread(call, port, client_context(tmp_path, authority, authority))
                identities.use_federated({})

                def refused() -> bool | None:
                    try:
                        call(port, theirs)
                    except REFUSED:
                        return True
                    return None

                await eventually(refused, "the refusal")
                for own in (theirs, client_context(tmp_path, authority, authority)):
                    with pytest.raises(REFUSED):
                        await asyncio.to_thread(call, port, own)
                with pytest.raises(REFUSED):
                    await asyncio.to_thread(call, port, client_context(tmp_path, authority, None))
                assert sds.counters.nacks == 0

    asyncio.run(scenario())


def test_a_bad_pair_of_files_spoils_nothing(tmp_path: Path) -> None:
    """A mismatched pair never reaches Envoy, so new roots go on to arrive; mended, the pair is in use (heals)."""

    async def scenario() -> None:
        authority, partner = new_authority(), new_authority("partner.test")
        files = tmp_path / "files"
        files.mkdir()
        certificate, private = files / "tls.crt", files / "tls.key"

        def put(path: Path, content: bytes) -> None:
            (files / ".aside").write_bytes(content)
            (files / ".aside").replace(path)

        def pair() -> int:
            key = new_private_key()
            svid = authority.issue(
                SpiffeId.parse(WEB), key.public_key(), now=datetime.now(UTC), ttl=timedelta(hours=1)
            )
            put(certificate, svid.chain_pem)
            put(private, private_key_pem(key))
            return svid.leaf.serial_number

        me = Registration.parse(WEB, [f"unix:uid:{os.getuid()}"], federates_with=["partner.test"])
        names = (f"file-cert:{certificate}~{private}", "spiffe://partner.test")
        async with running_sds(tmp_path, authority, me) as (sds, identities):
            identities.use_federated({partner.trust_domain: SpiffeBundle(partner.roots)})
            # Nothing there yet: Envoy asks again and again.
            async with running_envoy(tmp_path, "GRPC", *names) as envoy:
                await eventually(lambda: sds.counters.issue_failures or None, "the first refusal")
                first = pair()
                port = await eventually(envoy.port, "the listener")
                theirs = partner_context(tmp_path, authority, partner)
                found = await eventually(lambda: call(port, theirs), "an answer")
                assert found.serial_number == first

                put(private, private_key_pem(new_private_key()))
                failures = sds.counters.issue_failures
                successor = new_authority("partner.test")
                identities.use_federated({partner.trust_domain: SpiffeBundle(successor.roots)})
                await eventually(
                    lambda: sds.counters.issue_failures > failures or None, "the look at the bad pair"
                )
                new = partner_context(tmp_path, authority, successor)
                found = await eventually(lambda: call(port, new), "an answer under the new root")
                assert found.serial_number == first

                second = pair()

                def mended() -> bool | None:
                    return call(port, new).serial_number == second or None

                await eventually(mended, "the mended pair")
                assert sds.counters.nacks == 0

    asyncio.run(scenario())


def test_envoy_keeps_its_identity_while_the_server_is_away(tmp_path: Path) -> None:
    """Without a server Envoy serves what it has; it comes back with its last version and is answered."""

    async def scenario() -> None:
        authority = new_authority()
        me = Registration.parse(WEB, [f"unix:uid:{os.getuid()}"])
        context = client_context(tmp_path, authority, authority)
        async with contextlib.AsyncExitStack() as stack:
            async with running_sds(tmp_path, authority, me):
                envoy = await stack.enter_async_context(running_envoy(tmp_path, "GRPC"))
                port = await eventually(envoy.port, "the listener")
                first = await eventually(lambda: call(port, context), "an answer")
            again = await asyncio.to_thread(call, port, context)
            assert again.serial_number == first.serial_number
            async with running_sds(tmp_path, authority, me) as (sds, _):

                def renewed() -> bool | None:
                    return call(port, context).serial_number != first.serial_number or None

                await eventually(renewed, "the identity from the new server")
                assert sds.counters.nacks == 0

    asyncio.run(scenario())
