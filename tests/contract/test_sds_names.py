"""SDS beyond `default`: ADS, federated trust domains, and files that callers may name."""

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
from cryptography import x509
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret
from envoy.service.discovery.v3.discovery_pb2 import (
    DeltaDiscoveryRequest,
    DeltaDiscoveryResponse,
    DiscoveryRequest,
    DiscoveryResponse,
)
from support.clocks import Clock
from support.local_identities import local_identities

from ca.api.sds import AGGREGATED, SecretDiscovery
from ca.api.sds_files import FILE_INTERVAL, FileSecrets
from ca.api.sds_secrets import TYPE_URL
from ca.attestation import Registrations
from ca.authority import Hierarchy
from ca.bundle import SpiffeBundle, format_certificates
from ca.keys import new_private_key, private_key_pem
from ca.local_identities import LocalIdentities
from ca.registration import Registration
from garrison.identity import SpiffeId, TrustDomain
from garrison.transport.unix_peer import PeerCredentialListener

START = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
WEB = "spiffe://cluster.local/ns/default/sa/web"
PARTNER = "spiffe://partner.test"
TIMEOUT = 15
AUTHORITY = Hierarchy.create(TrustDomain("cluster.local"), now=START).authority()
PARTNERS = Hierarchy.create(TrustDomain("partner.test"), now=START)
CLUSTER = "type.googleapis.com/envoy.config.cluster.v3.Cluster"


@dataclass
class Lab:
    """A running SDS and ADS server."""

    sds: SecretDiscovery
    identities: LocalIdentities
    clock: Clock
    channel: grpc.aio.Channel
    files: Path

    def stream(self, *, delta: bool = False) -> Any:
        """Open a stream of ADS."""
        name = "DeltaAggregatedResources" if delta else "StreamAggregatedResources"
        request = DeltaDiscoveryRequest if delta else DiscoveryRequest
        response = DeltaDiscoveryResponse if delta else DiscoveryResponse
        return self.channel.stream_stream(
            f"/{AGGREGATED}/{name}", request.SerializeToString, response.FromString
        )(timeout=TIMEOUT)

    async def refusal(self, *names: str, type_url: str = TYPE_URL) -> grpc.StatusCode:
        """Return the status of a stream that asks for `names`."""
        stream = self.stream()
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await stream.write(ask(*names, type_url=type_url))
        found: grpc.StatusCode = await stream.code()
        return found

    def put(self, name: str, content: bytes) -> Path:
        """Write a file into the listed folder, whole."""
        path = self.files / name
        aside = self.files / ".aside"
        aside.write_bytes(content)
        aside.replace(path)
        return path

    def pair(self, stem: str = "tls") -> str:
        """Write a certificate with its key, and return the name they have over SDS."""
        key = new_private_key()
        svid = AUTHORITY.issue(SpiffeId.parse(WEB), key.public_key(), now=START, ttl=timedelta(hours=1))
        chain = self.put(f"{stem}.crt", svid.chain_pem)
        return f"file-cert:{chain}~{self.put(f'{stem}.key', private_key_pem(key))}"


@contextlib.asynccontextmanager
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    """Run the server for this process."""
    clock = Clock(START)
    files = tmp_path / "files"
    files.mkdir()
    listener = PeerCredentialListener(tmp_path / "sds.sock")
    me = Registration.parse(WEB, [f"unix:uid:{os.getuid()}"], federates_with=["partner.test"])
    async with local_identities(
        tmp_path,
        AUTHORITY,
        [me],
        peer_credentials=listener.credentials,
        now=lambda: clock.now,
        jitter=lambda: 0.5,
    ) as identities:
        sds = SecretDiscovery(
            identities, files=FileSecrets([files]), now=lambda: clock.now, sleep=clock.sleep
        )
        server = grpc.aio.server()
        server.add_generic_rpc_handlers(sds.handlers())
        server.add_insecure_port(listener.inner_target)
        await server.start()
        async with listener, grpc.aio.insecure_channel(f"unix:{tmp_path / 'sds.sock'}") as channel:
            try:
                yield Lab(sds, identities, clock, channel, files)
            finally:
                await server.stop(0)


def run(scenario: Callable[[Lab], Awaitable[None]], tmp_path: Path) -> None:
    """Run `scenario` against a fresh lab."""

    async def main() -> None:
        async with lab(tmp_path) as running:
            await asyncio.wait_for(scenario(running), TIMEOUT)

    asyncio.run(main())


def ask(*names: str, nonce: str = "", version: str = "", type_url: str = TYPE_URL) -> Any:
    """Return a state-of-the-world request."""
    return DiscoveryRequest(
        resource_names=names, response_nonce=nonce, version_info=version, type_url=type_url
    )


def unpack(response: Any) -> dict[str, Any]:
    """Return the secrets of a response by name."""
    found = {}
    for resource in response.resources:
        secret = Secret()
        packed = resource.resource if isinstance(response, DeltaDiscoveryResponse) else resource
        assert packed.Unpack(secret)
        found[secret.name] = secret
    return found


def roots(secret: Any) -> list[x509.Certificate]:
    """Return whom a validation context trusts."""
    return x509.load_pem_x509_certificates(secret.validation_context.trusted_ca.inline_bytes)


def test_names_accumulate_on_one_ads_stream(tmp_path: Path) -> None:
    """A second name before anything was acknowledged is not stale, and late acknowledgements change nothing."""

    async def scenario(lab: Lab) -> None:
        stream = lab.stream()
        await stream.write(ask("default"))
        await stream.write(ask("default", "ROOTCA"))
        first, second = await stream.read(), await stream.read()
        assert list(unpack(first)) == ["default"]
        assert list(unpack(second)) == ["default", "ROOTCA"]
        assert unpack(first)["default"] == unpack(second)["default"]
        for response in (first, second):
            await stream.write(ask("default", "ROOTCA", nonce=response.nonce, version=response.version_info))
        lab.identities.rotate()
        third = await stream.read()
        assert list(unpack(third)) == ["default", "ROOTCA"]
        assert int(third.nonce) == 3
        assert lab.sds.counters.streams == 1
        stream.cancel()

    run(scenario, tmp_path)


def test_delta_over_ads_works_alike(tmp_path: Path) -> None:
    """Subscriptions add up on one stream; only what changed is sent."""

    async def scenario(lab: Lab) -> None:
        stream = lab.stream(delta=True)
        for name in ("default", "ROOTCA"):
            await stream.write(DeltaDiscoveryRequest(type_url=TYPE_URL, resource_names_subscribe=[name]))
            assert list(unpack(await stream.read())) == [name]
        lab.identities.rotate()
        assert list(unpack(await stream.read())) == ["default"]
        stream.cancel()

    run(scenario, tmp_path)


@pytest.mark.parametrize("type_url", ["", CLUSTER])
def test_ads_serves_named_secrets_only(tmp_path: Path, type_url: str) -> None:
    """ADS carries all types, so a request without one is an error, like one of another type."""

    async def scenario(lab: Lab) -> None:
        assert await lab.refusal("default", type_url=type_url) is grpc.StatusCode.INVALID_ARGUMENT

    run(scenario, tmp_path)


def test_a_federated_domain_has_its_own_secret(tmp_path: Path) -> None:
    """It is never merged with ours, is not there before it is configured, and is replaced when it changes."""

    async def scenario(lab: Lab) -> None:
        assert await lab.refusal(PARTNER) is grpc.StatusCode.PERMISSION_DENIED
        lab.identities.use_federated({TrustDomain("partner.test"): SpiffeBundle((PARTNERS.root,))})
        stream = lab.stream()
        await stream.write(ask("ROOTCA", PARTNER))
        secrets = unpack(await stream.read())
        assert roots(secrets["ROOTCA"]) == list(AUTHORITY.roots)
        assert roots(secrets[PARTNER]) == [PARTNERS.root]
        other = Hierarchy.create(TrustDomain("partner.test"), now=START).root
        lab.identities.use_federated({TrustDomain("partner.test"): SpiffeBundle((PARTNERS.root, other))})
        assert roots(unpack(await stream.read())[PARTNER]) == [PARTNERS.root, other]
        stream.cancel()

    run(scenario, tmp_path)


@pytest.mark.parametrize("gone", [{}, {TrustDomain("partner.test"): SpiffeBundle()}])
def test_a_federated_domain_that_goes_is_replaced_by_trust_in_nobody(
    tmp_path: Path, gone: dict[TrustDomain, SpiffeBundle]
) -> None:
    """Envoy keeps what is not sent any more, and takes everybody when it is told no root: it gets a dead one."""

    async def scenario(lab: Lab) -> None:
        lab.identities.use_federated({TrustDomain("partner.test"): SpiffeBundle((PARTNERS.root,))})
        stream = lab.stream()
        await stream.write(ask(PARTNER))
        assert roots(unpack(await stream.read())[PARTNER]) == [PARTNERS.root]
        lab.identities.use_federated(gone)
        (nobody,) = roots(unpack(await stream.read())[PARTNER])
        assert nobody not in (PARTNERS.root, *AUTHORITY.roots)
        nobody.verify_directly_issued_by(nobody)
        stream.cancel()

    run(scenario, tmp_path)


@pytest.mark.parametrize("delta", [False, True])
def test_a_domain_that_went_while_envoy_was_away_is_replaced_too(tmp_path: Path, *, delta: bool) -> None:
    """Who comes back with a version holds roots of a domain that is gone; who has none is denied as ever."""

    async def scenario(lab: Lab) -> None:
        assert await lab.refusal(PARTNER) is grpc.StatusCode.PERMISSION_DENIED
        stream = lab.stream(delta=delta)
        if delta:
            request = DeltaDiscoveryRequest(type_url=TYPE_URL, resource_names_subscribe=[PARTNER])
            request.initial_resource_versions[PARTNER] = "1"
        else:
            request = ask(PARTNER)
            request.version_info = "1"
        await stream.write(request)
        response = await stream.read()
        if delta:
            secret = Secret()
            assert response.resources[0].resource.Unpack(secret)
        else:
            secret = unpack(response)[PARTNER]
        (nobody,) = roots(secret)
        assert nobody not in (PARTNERS.root, *AUTHORITY.roots)
        stream.cancel()

    run(scenario, tmp_path)


def test_a_stream_ends_when_what_it_subscribed_to_is_taken_away(tmp_path: Path) -> None:
    """A caller that loses its last registration, or the one that it named, is told so."""

    async def scenario(lab: Lab) -> None:
        other = Registration.parse("spiffe://cluster.local/other", [f"unix:uid:{os.getuid()}"])
        streams = [lab.stream(), lab.stream()]
        await streams[0].write(ask(WEB))
        await streams[1].write(ask("default"))
        for stream in streams:
            await stream.read()
        lab.identities.use_registrations(Registrations([other]))
        assert await streams[0].code() is grpc.StatusCode.PERMISSION_DENIED
        secret = unpack(await streams[1].read())["default"].tls_certificate
        leaf = x509.load_pem_x509_certificates(secret.certificate_chain.inline_bytes)[0]
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [str(other.spiffe_id)]
        lab.identities.use_registrations(Registrations())
        assert await streams[1].code() is grpc.StatusCode.PERMISSION_DENIED

    run(scenario, tmp_path)


def test_files_are_served_and_followed(tmp_path: Path) -> None:
    """A pair and roots come by their names, and again when the files were replaced."""

    async def scenario(lab: Lab) -> None:
        name = lab.pair()
        trusted = f"file-root:{lab.put('roots.pem', format_certificates([PARTNERS.root]))}"
        stream = lab.stream()
        await stream.write(ask(name, trusted))
        first = unpack(await stream.read())
        assert (
            first[name].tls_certificate.certificate_chain.inline_bytes == (lab.files / "tls.crt").read_bytes()
        )
        assert roots(first[trusted]) == [PARTNERS.root]
        lab.pair()
        lab.clock.advance(FILE_INTERVAL)
        second = unpack(await stream.read())
        assert second[name] != first[name]
        assert second[trusted] == first[trusted]
        stream.cancel()

    run(scenario, tmp_path)


def test_what_envoy_would_refuse_is_not_sent(tmp_path: Path) -> None:
    """A key that is not the certificate's keeps the last pair in force, and other names go on; mended, it is sent."""

    async def scenario(lab: Lab) -> None:
        name = lab.pair()
        stream = lab.stream()
        await stream.write(ask(name))
        first = unpack(await stream.read())
        lab.put("tls.key", private_key_pem(new_private_key()))
        lab.clock.advance(FILE_INTERVAL)
        await stream.write(ask(name, "ROOTCA", nonce="1"))
        second = unpack(await stream.read())
        assert second[name] == first[name]
        assert roots(second["ROOTCA"]) == list(AUTHORITY.roots)
        assert await lab.refusal(name) is grpc.StatusCode.UNAVAILABLE
        lab.pair()
        lab.clock.advance(FILE_INTERVAL)
        assert unpack(await stream.read())[name] != first[name]
        stream.cancel()

    run(scenario, tmp_path)


def test_a_missing_file_heals(tmp_path: Path) -> None:
    """In a listed folder a file that is not there yet is UNAVAILABLE: Envoy asks again."""

    async def scenario(lab: Lab) -> None:
        name = f"file-root:{lab.files / 'later.pem'}"
        assert await lab.refusal(name) is grpc.StatusCode.UNAVAILABLE
        lab.put("later.pem", format_certificates([PARTNERS.root]))
        stream = lab.stream()
        await stream.write(ask(name))
        assert roots(unpack(await stream.read())[name]) == [PARTNERS.root]
        stream.cancel()

    run(scenario, tmp_path)


def test_no_other_file_can_be_had(tmp_path: Path) -> None:
    """Not by path, by link, by a folder that is a link, or by odd names; and nothing tells what exists."""

    async def scenario(lab: Lab) -> None:
        pem = format_certificates([PARTNERS.root])
        secret = tmp_path / "secret.pem"
        secret.write_bytes(pem)
        sibling = tmp_path / "files-of-others"
        sibling.mkdir()
        (sibling / "a.pem").write_bytes(pem)
        (lab.files / "link.pem").symlink_to(secret)
        (lab.files / "folder").symlink_to(tmp_path)
        (lab.files / "dangling.pem").symlink_to(tmp_path / "nowhere.pem")
        os.mkfifo(lab.files / "fifo")
        good = lab.put("a.pem", pem)
        unreadable = [] if os.getuid() == 0 else [lab.put("mine.pem", pem)]
        for hidden in unreadable:
            hidden.chmod(0o000)
        for path in (
            secret,
            tmp_path / "nowhere.pem",
            tmp_path / "nowhere" / "at-all.pem",
            sibling / "a.pem",
            lab.files / "link.pem",
            lab.files / "dangling.pem",
            lab.files / "folder" / "secret.pem",
            lab.files / "folder" / "nowhere.pem",
            f"{lab.files}/../secret.pem",
            f"{lab.files}/x/../a.pem",
            lab.files,
            lab.files / "fifo",
            "/dev/zero",
            "/proc/self/environ",
            "a.pem",
            "",
            f"{good}\0",
            f"{good}~{good}",
            *unreadable,
        ):
            assert await lab.refusal(f"file-root:{path}") is grpc.StatusCode.PERMISSION_DENIED, path
        assert await lab.refusal(f"file-cert:{good}") is grpc.StatusCode.PERMISSION_DENIED
        stream = lab.stream()
        await stream.write(ask(f"file-root:{good}"))
        assert len((await stream.read()).resources) == 1
        stream.cancel()

    run(scenario, tmp_path)


def test_a_link_inside_the_folder_is_followed(tmp_path: Path) -> None:
    """Mounted volumes are links to folders that are exchanged."""

    async def scenario(lab: Lab) -> None:
        (lab.files / "..2030").mkdir()
        (lab.files / "..2030" / "a.pem").write_bytes(format_certificates([PARTNERS.root]))
        (lab.files / "..data").symlink_to("..2030")
        (lab.files / "a.pem").symlink_to("..data/a.pem")
        stream = lab.stream()
        await stream.write(ask(f"file-root:{lab.files / 'a.pem'}"))
        assert len((await stream.read()).resources) == 1
        stream.cancel()

    run(scenario, tmp_path)


def test_a_swapped_link_ends_the_stream(tmp_path: Path) -> None:
    """What was good when it was asked for is looked at each time it is read."""

    async def scenario(lab: Lab) -> None:
        outside = tmp_path / "secret.pem"
        outside.write_bytes(format_certificates([PARTNERS.root]))
        path = lab.put("a.pem", outside.read_bytes())
        stream = lab.stream()
        await stream.write(ask(f"file-root:{path}"))
        await stream.read()
        (lab.files / "link").symlink_to(outside)
        (lab.files / "link").replace(path)
        lab.clock.advance(FILE_INTERVAL)
        assert await stream.code() is grpc.StatusCode.PERMISSION_DENIED

    run(scenario, tmp_path)
