"""`Nodes` over real gRPC and mTLS: a node proves itself once, then serves its own workloads and no others."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from support.ca_api import CaLab, Holder, asynchronous, bearer, ca_lab, create, node_call, refusal

from ca.api.nodes import MAX_SVIDS, SERVICE, Nodes
from ca.bundle import JwtAuthority, SpiffeBundle, parse_spiffe_bundle
from ca.inspection import check_leaf
from ca.ledger import (
    CertificateQuery,
    EndpointProfile,
    Entry,
    FederatedBundle,
    RevocationReason,
    fingerprint_of,
    issuer_of,
)
from ca.protos import nodes_pb2 as pb
from ca.recording import Requester
from ca.registration import Registration
from ca.verification import verify_svid
from garrison.errors import IssuanceError, RequestError
from garrison.identity import TrustDomain
from garrison.transport.address import Address
from garrison.transport.listeners import RequestServer, Transport
from garrison.transport.tls import TlsFiles

NODE = "spiffe://cluster.local/agent/one"
OTHER = "spiffe://cluster.local/agent/two"
WEB = "spiffe://cluster.local/web"
API = "spiffe://cluster.local/api"
SECRET = "n" * 43
DENIED = grpc.StatusCode.PERMISSION_DENIED


@dataclass
class Node:
    """An agent that has joined, with a channel of its own."""

    lab: CaLab
    holder: Holder
    channel: grpc.aio.Channel

    async def call(self, request: Any) -> Any:
        """Call the method whose request this is."""
        return await node_call(self.channel, type(request).__name__.removesuffix("Request"), request)

    async def sign(self, *wanted: tuple[str, Holder]) -> Sequence[Any]:
        """Ask for SVIDs."""
        svids = [pb.SvidRequest(entry_id=entry_id, csr=holder.csr()) for entry_id, holder in wanted]
        return list((await self.call(pb.SignSvidsRequest(svids=svids))).results)


@contextlib.asynccontextmanager
async def joined(lab: CaLab, spiffe_id: str = NODE, secret: str = SECRET) -> AsyncIterator[Node]:
    """Join as a node with a token."""
    holder = Holder()
    async with lab.channel() as channel:
        token = bearer(lab.token(spiffe_id, secret))
        answer = await node_call(channel, "AttestNode", pb.AttestNodeRequest(csr=holder.csr()), token)
    holder.take(answer.svid.certificates)
    async with lab.channel(holder) as channel:
        yield Node(lab, holder, channel)


@asynchronous
async def test_a_node_joins_with_a_token(tmp_path: Path) -> None:
    """It gets the token's identity, which is registered from then on, and the roots."""
    async with ca_lab(tmp_path) as lab, lab.channel() as channel:
        holder = Holder()
        token = bearer(lab.token(NODE, SECRET))
        answer = await node_call(channel, "AttestNode", pb.AttestNodeRequest(csr=holder.csr(NODE)), token)
        chain = [x509.load_der_x509_certificate(one) for one in answer.svid.certificates]
        roots = [x509.load_der_x509_certificate(one) for one in answer.roots]
        spiffe_id, _ = verify_svid(chain[0], chain[1:], roots, lab.clock.now())
        assert str(spiffe_id) == answer.svid.spiffe_id == NODE
        assert answer.svid.expires_at == int(chain[0].not_valid_after_utc.timestamp())
        (entry,) = lab.ledger.entries()
        assert str(entry.registration.spiffe_id) == NODE
        assert [str(one) for one in entry.registration.selectors] == [f"x509:id:{NODE}"]
        again = pb.AttestNodeRequest(csr=holder.csr())
        code, _ = await refusal(node_call(channel, "AttestNode", again, token))
        assert code is grpc.StatusCode.UNAUTHENTICATED
        # A node that lost its keys joins with another token, and is registered once.
        await node_call(channel, "AttestNode", again, bearer(lab.token(NODE, "m" * 43)))
        assert len(lab.ledger.entries()) == 1


@asynchronous
async def test_a_node_renews_itself(tmp_path: Path) -> None:
    """With its SVID it gets the next one, as a node and as any Istio client would."""
    async with ca_lab(tmp_path) as lab, joined(lab) as node:
        answer = await node.call(pb.AttestNodeRequest(csr=Holder().csr()))
        assert answer.svid.spiffe_id == NODE
        chain = await create(node.channel, Holder().csr())
        assert str(check_leaf(x509.load_pem_x509_certificate(chain[0].encode()))) == NODE


@asynchronous
async def test_a_node_gets_its_own_entries(tmp_path: Path) -> None:
    """Those that name it as parent, with all that an agent needs; nothing again while nothing changes."""
    async with ca_lab(tmp_path) as lab, joined(lab) as node:
        first = await node.call(pb.FetchEntriesRequest())
        assert not first.entries
        assert first.version
        await lab.register(
            "web",
            WEB,
            "unix:uid:1000",
            parent_id=NODE,
            svid_ttl=timedelta(minutes=5),
            dns_names=["web.example"],
            federates_with=["partner.example"],
            hint="main",
        )
        second = await node.call(pb.FetchEntriesRequest(version=first.version))
        assert list(second.entries) == [
            pb.Entry(
                entry_id="web",
                spiffe_id=WEB,
                selectors=["unix:uid:1000"],
                svid_ttl=300,
                dns_names=["web.example"],
                federates_with=["partner.example"],
                hint="main",
            )
        ]
        # What is not its own does not concern it.
        await lab.register("api", API, "unix:uid:1000", parent_id=OTHER)
        await lab.register("direct", API, "unix:uid:1000")
        third = await node.call(pb.FetchEntriesRequest(version=second.version))
        assert third == pb.FetchEntriesResponse(version=second.version, unchanged=True)
        lab.ledger.delete_entry("web", now=lab.clock.now(), by="test")
        await lab.memory.refresh()
        assert not (await node.call(pb.FetchEntriesRequest(version=second.version))).entries


@asynchronous
async def test_a_node_gets_svids_for_its_workloads(tmp_path: Path) -> None:
    """Several at once, each for its own key and recorded with the node's name; one that is refused alone."""
    async with ca_lab(tmp_path) as lab, joined(lab) as node:
        await lab.register("web", WEB, "unix:uid:1", parent_id=NODE, dns_names=["web.example"])
        await lab.register("api", API, "unix:uid:2", parent_id=NODE, svid_ttl=timedelta(minutes=5))
        await lab.register("foreign", WEB, "unix:uid:1", parent_id=OTHER)
        keys = [Holder() for _ in range(4)]
        results = await node.sign(
            ("web", keys[0]), ("foreign", keys[1]), ("api", keys[2]), ("nothing", keys[3])
        )
        assert [one.code for one in results] == [0, 7, 0, 7]
        # Whether another node's entry exists is not told apart.
        assert results[1].reason.replace("foreign", "nothing") == results[3].reason
        for result, holder, name in ((results[0], keys[0], WEB), (results[2], keys[2], API)):
            leaf = x509.load_der_x509_certificate(result.svid.certificates[0])
            assert (str(check_leaf(leaf)), leaf.public_key()) == (name, holder.key.public_key())
            (record,) = lab.ledger.find(fingerprint=fingerprint_of(leaf))
            assert (record.attested_by, record.requester.startswith(f"{NODE}, entry ")) == ("node", True)
        names = x509.load_der_x509_certificate(results[0].svid.certificates[0]).extensions
        found = names.get_extension_for_class(x509.SubjectAlternativeName).value
        assert found.get_values_for_type(x509.DNSName) == ["web.example"]
        life = results[2].svid.expires_at - lab.clock.now().timestamp()
        assert 0 < life <= 300
        assert [one["reason"] for one in await lab.denials(2)] == ["not_entitled", "not_entitled"]


@asynchronous
async def test_signing_requests_of_a_node_are_checked(tmp_path: Path) -> None:
    """A bad one, one for somebody else, none, and too many at once."""
    async with ca_lab(tmp_path) as lab, joined(lab) as node:
        await lab.register("web", WEB, "unix:uid:1", parent_id=NODE)
        csrs = [b"x", Holder().csr(API), Holder().csr()[:-30], Holder().csr(WEB)]
        request = pb.SignSvidsRequest(svids=[pb.SvidRequest(entry_id="web", csr=one) for one in csrs])
        assert [one.code for one in (await node.call(request)).results] == [3, 3, 3, 0]
        for count in (0, MAX_SVIDS + 1):
            svids = [pb.SvidRequest(entry_id="web", csr=Holder().csr())] * count
            code, _ = await refusal(node.call(pb.SignSvidsRequest(svids=svids)))
            assert code is grpc.StatusCode.INVALID_ARGUMENT


@asynchronous
async def test_only_a_registered_node_is_answered(tmp_path: Path) -> None:
    """Not without a certificate, not with a token, not after its entry was deleted or its SVID revoked."""
    requests = [
        pb.FetchEntriesRequest(),
        pb.SignSvidsRequest(svids=[pb.SvidRequest(entry_id="web", csr=Holder().csr())]),
        pb.FetchBundleRequest(),
        pb.MintJwtRequest(entry_id="web", audiences=["a"]),
    ]
    async with ca_lab(tmp_path) as lab, joined(lab) as node, lab.channel() as channel:
        await lab.register("web", WEB, "unix:uid:1", parent_id=NODE)
        for request in requests:
            method = type(request).__name__.removesuffix("Request")
            token = bearer(lab.token(NODE, method.ljust(43, "x")))
            for metadata in ([], [token]):
                code, _ = await refusal(node_call(channel, method, request, *metadata))
                assert code is grpc.StatusCode.UNAUTHENTICATED
            async with lab.local() as local:
                code, _ = await refusal(node_call(local, method, request))
                assert code is grpc.StatusCode.UNAUTHENTICATED
        (entry,) = (one for one in lab.ledger.entries() if one.entry_id.startswith("node-"))
        lab.ledger.delete_entry(entry.entry_id, now=lab.clock.now(), by="test")
        await lab.memory.refresh()
        for request in [*requests, pb.AttestNodeRequest(csr=Holder().csr())]:
            assert (await refusal(node.call(request)))[0] is DENIED
        lab.ledger.add_entry(entry)
        await lab.memory.refresh()
        await node.call(pb.FetchEntriesRequest())
        leaf = node.holder.chain[0]
        lab.ledger.revoke(
            issuer_of(leaf),
            leaf.serial_number,
            RevocationReason.KEY_COMPROMISE,
            now=lab.clock.now(),
            by="test",
        )
        for request in [*requests, pb.AttestNodeRequest(csr=Holder().csr())]:
            assert (await refusal(node.call(request)))[0] is grpc.StatusCode.UNAUTHENTICATED


@asynchronous
async def test_the_svid_of_a_workload_is_no_node(tmp_path: Path) -> None:
    """A workload that got its SVID from an agent cannot ask in the agent's place."""
    async with ca_lab(tmp_path) as lab, joined(lab) as node:
        await lab.register("web", WEB, "unix:uid:1", parent_id=NODE)
        holder = Holder()
        (result,) = await node.sign(("web", holder))
        holder.take(result.svid.certificates)
        async with lab.channel(holder) as channel:
            assert (await refusal(node_call(channel, "FetchEntries", pb.FetchEntriesRequest())))[0] is DENIED


@asynchronous
async def test_a_node_gets_the_bundles_that_it_needs(tmp_path: Path) -> None:
    """Our own, and those of domains that its entries federate with; nothing again while nothing changes."""
    async with ca_lab(tmp_path) as lab, joined(lab) as node:
        for name in ("partner.example", "stranger.example", "silent.example"):
            document = None if name.startswith("silent") else json.dumps({"keys": [], "x": name}).encode()
            lab.ledger.put_federated(
                FederatedBundle(TrustDomain(name), f"https://{name}/", EndpointProfile.WEB, None, document),
                now=lab.clock.now(),
                by="test",
            )
        first = await node.call(pb.FetchBundleRequest())
        assert list(first.bundles) == ["cluster.local"]
        own = json.loads(first.bundles["cluster.local"])
        assert len(own["keys"]) == 1
        assert (first.sequence, "spiffe_sequence" in own) == (0, False)
        options = ["partner.example", "silent.example"]
        await lab.register("web", WEB, "unix:uid:1", parent_id=NODE, federates_with=options)
        lab.ledger.publish_bundle("digest", now=lab.clock.now(), by="test")
        second = await node.call(pb.FetchBundleRequest(version=first.version))
        assert sorted(second.bundles) == ["cluster.local", "partner.example"]
        assert (second.sequence, json.loads(second.bundles["cluster.local"])["spiffe_sequence"]) == (1, 1)
        third = await node.call(pb.FetchBundleRequest(version=second.version))
        assert third == pb.FetchBundleResponse(version=second.version, unchanged=True, sequence=1)


@asynchronous
async def test_the_bundle_is_the_one_of_everywhere(tmp_path: Path) -> None:
    """Numbered and with the keys for tokens, if the server has one; configured partners stand beside those of the ledger."""
    key = JwtAuthority("k1", Holder().key.public_key())
    partner = TrustDomain("partner.example")
    own: list[SpiffeBundle] = []

    async with ca_lab(
        tmp_path, bundle=lambda: own[0], federated=lambda: {partner: SpiffeBundle(sequence=3)}
    ) as lab:
        own.append(SpiffeBundle(lab.authority.roots, (key,), sequence=9, refresh_hint=300))
        async with joined(lab) as node:
            first = await node.call(pb.FetchBundleRequest())
            assert first.sequence == 9
            assert list(first.bundles) == ["cluster.local"]
            assert parse_spiffe_bundle(first.bundles["cluster.local"]) == own[0]
            await lab.register("web", WEB, "unix:uid:1", parent_id=NODE, federates_with=["partner.example"])
            second = await node.call(pb.FetchBundleRequest(version=first.version))
            assert parse_spiffe_bundle(second.bundles["partner.example"]).sequence == 3
            own[0] = SpiffeBundle(lab.authority.roots, (), sequence=10)
            third = await node.call(pb.FetchBundleRequest(version=second.version))
            assert (third.unchanged, third.sequence) == (False, 10)


@asynchronous
async def test_a_token_that_cannot_be_made(tmp_path: Path) -> None:
    """Without a key it can be had later; with an audience that no token is made for it cannot."""
    failures: list[Exception] = [IssuanceError("there is no key"), RequestError("a bad audience")]

    async def mint(*_: Any) -> tuple[str, datetime]:
        raise failures.pop(0)

    async with ca_lab(tmp_path, mint_jwt=mint) as lab, joined(lab) as node:
        await lab.register("web", WEB, "unix:uid:1", parent_id=NODE)
        for code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INVALID_ARGUMENT):
            found, _ = await refusal(node.call(pb.MintJwtRequest(entry_id="web", audiences=["a"])))
            assert found is code


@asynchronous
async def test_jwts_are_made_where_the_ca_can(tmp_path: Path) -> None:
    """Without a signer the method says so; with one, for the node's own entries and real audiences."""
    asked: list[tuple[str, tuple[str, ...], str]] = []
    ends = datetime(2031, 1, 1, tzinfo=UTC)

    async def mint(
        entry: Entry, audiences: Sequence[str], requester: Requester, now: datetime
    ) -> tuple[str, datetime]:
        assert now < ends
        asked.append((entry.entry_id, tuple(audiences), requester.name))
        return "a.b.c", ends

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with ca_lab(tmp_path / "a") as lab, joined(lab) as node:
        code, _ = await refusal(node.call(pb.MintJwtRequest(entry_id="web", audiences=["a"])))
        assert code is grpc.StatusCode.UNIMPLEMENTED
    async with ca_lab(tmp_path / "b", mint_jwt=mint) as lab, joined(lab) as node:
        await lab.register("web", WEB, "unix:uid:1", parent_id=NODE)
        answer = await node.call(pb.MintJwtRequest(entry_id="web", audiences=["a", "b", "a"]))
        assert answer == pb.MintJwtResponse(token="a.b.c", expires_at=int(ends.timestamp()))
        assert asked == [("web", ("a", "b"), f"{NODE}, entry web")]
        for entry_id, audiences in (("web", []), ("web", [""]), ("web", [str(one) for one in range(17)])):
            code, _ = await refusal(node.call(pb.MintJwtRequest(entry_id=entry_id, audiences=audiences)))
            assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert (await refusal(node.call(pb.MintJwtRequest(entry_id="api", audiences=["a"]))))[0] is DENIED
        assert len(asked) == 1


@asynchronous
async def test_a_node_that_asks_too_often_is_slowed_down(tmp_path: Path) -> None:
    """Calls above its rate are refused, and another node's are not."""
    async with ca_lab(tmp_path) as lab, joined(lab) as node, joined(lab, OTHER, "o" * 43) as other:
        calls = [node.call(pb.FetchBundleRequest()) for _ in range(400)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        codes = {one.code() for one in answers if isinstance(one, grpc.aio.AioRpcError)}
        assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        await other.call(pb.FetchBundleRequest())


@asynchronous
async def test_nodes_over_grpcio(tmp_path: Path) -> None:
    """The control path serves them too: there, whoever has no certificate of ours does not get a connection."""
    async with ca_lab(tmp_path) as lab, joined(lab) as node:
        files = TlsFiles(tmp_path / "tls.pem", tmp_path / "tls.key", tmp_path / "roots.pem")
        address = Address.parse("tls://127.0.0.1:0")
        server = RequestServer(Transport.GRPCIO, [address], Nodes(lab.issuing).methods(), tls=files)
        await server.start()
        target = f"localhost:{server.addresses[0].port}"
        for holder, is_in in ((node.holder, True), (None, False)):
            key, chain = holder.credentials if holder is not None else (None, None)
            credentials = grpc.ssl_channel_credentials(lab.authority.bundle_pem(), key, chain)
            async with grpc.aio.secure_channel(target, credentials) as channel:
                call = node_call(channel, "FetchEntries", pb.FetchEntriesRequest())
                if is_in:
                    assert (await call).version
                else:
                    assert (await refusal(call))[0] is grpc.StatusCode.UNAVAILABLE
        await server.drain(1)


@asynchronous
async def test_messages_that_are_none(tmp_path: Path) -> None:
    """Bytes that are no message, and one that is too large."""
    async with ca_lab(tmp_path) as lab, joined(lab) as node:
        for method in ("AttestNode", "FetchEntries", "SignSvids", "FetchBundle", "MintJwt"):
            call: Any = node.channel.unary_unary(f"/{SERVICE}/{method}")
            for message in (b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a" * ((4 << 20) + 1)):
                code, _ = await refusal(call(message, timeout=10))
                assert code is grpc.StatusCode.INVALID_ARGUMENT
        issued = lab.ledger.issued(CertificateQuery(), now=lab.clock.now()).certificates
        assert len(issued) == 1


@asynchronous
async def test_a_registration_can_name_a_node_by_its_user(tmp_path: Path) -> None:
    """An agent on the machine of the CA needs no token: the kernel vouches for it."""
    local_node = Registration.parse(NODE, [f"unix:uid:{os.getuid()}"])
    async with ca_lab(tmp_path, local_node) as lab, lab.local() as channel:
        holder = Holder()
        answer = await node_call(channel, "AttestNode", pb.AttestNodeRequest(csr=holder.csr()))
        assert answer.svid.spiffe_id == NODE
        assert not lab.ledger.entries()
        holder.take(answer.svid.certificates)
        async with lab.channel(holder) as own:
            assert (await node_call(own, "FetchEntries", pb.FetchEntriesRequest())).version


def test_limits_are_what_the_proto_says() -> None:
    """The full batch fits into what is taken."""
    largest = pb.SvidRequest(entry_id="x" * 64, csr=b"x" * 16_384)
    request = pb.SignSvidsRequest(svids=[largest] * MAX_SVIDS)
    assert request.ByteSize() < 4 << 20
