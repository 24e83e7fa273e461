"""An agent's parts against a CA over real TLS: attested once, renewed, and steady while the server is away."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from support.agents import NODE, SECRET, WEB, agent_parts
from support.ca_api import DOMAIN, CaLab, asynchronous, ca_lab
from support.tokens import ec_signer

from ca.agent.node import Evidence, NotAttestedError, parse_svid
from ca.agent.remote_identities import MAX_BATCH
from ca.agent.server import ServerAwayError, ServerNotTrustedError
from ca.agent.state import AgentState, NodeSvid
from ca.api.identities import EntitlementError
from ca.attestors.jwt import TrustedIssuer
from ca.authority import Hierarchy
from ca.bundle import SpiffeBundle
from ca.inspection import check_key_pair
from ca.jwt_key_store import JwtKeyStore
from ca.jwt_svid import issue_jwt_svid
from ca.keys import new_private_key
from ca.ledger import EndpointProfile, Entry, FederatedBundle, RevocationReason, issuer_of
from ca.protos import nodes_pb2 as pb
from ca.recording import Requester
from ca.registration import Registration
from ca.verification import verify_svid
from garrison.errors import ConfigError, IssuanceError
from garrison.identity import SpiffeId, TrustDomain
from garrison.keys.jwks import KeySet, parse_jwks
from garrison.transport import StatusCode, StatusError
from garrison.transport.unix_peer import PeerCredentials

HIERARCHY = Hierarchy.create(DOMAIN, now=datetime.now(UTC))
STRANGER = PeerCredentials(2, 2, 2, "/bin/other")


def tokens_left(lab: CaLab) -> int:
    """Return how many join tokens were not used."""
    return sum(one.used_at is None for one in lab.ledger.tokens())


@asynchronous
async def test_a_node_attests_once(tmp_path: Path) -> None:
    """Its token is for the first start; the next goes on with what is in the state, for its user only."""
    async with ca_lab(tmp_path) as lab:
        async with agent_parts(lab, tmp_path) as agent:
            await agent.identities.keep()
            first = agent.node.svid
            assert first is not None
            assert str(first.svid.spiffe_id) == NODE
            for file in (agent.state.directory / "node.pem", agent.state.directory / "bundle.json"):
                assert stat.S_IMODE(file.stat().st_mode) == 0o600
            assert stat.S_IMODE(agent.state.directory.stat().st_mode) == 0o700
        async with agent_parts(lab, tmp_path, Evidence()) as agent:
            await agent.identities.keep()
            assert agent.node.svid is not None
            assert agent.node.svid.svid == first.svid
            assert agent.calls["AttestNode"] == 0
            assert agent.identities.is_serving
        assert tokens_left(lab) == 0


@asynchronous
async def test_a_join_token_works_once(tmp_path: Path) -> None:
    """A second node with the same token, and one without any, are told what to do; they do not ask for ever."""
    async with ca_lab(tmp_path) as lab:
        async with agent_parts(lab, tmp_path) as agent:
            await agent.identities.keep()
        (tmp_path / "two").mkdir()
        async with agent_parts(lab, tmp_path / "two", Evidence(join_token=SECRET)) as agent:
            for _ in range(3):
                with pytest.raises(NotAttestedError, match=r"refuse.*`ca token create --dir"):
                    await agent.identities.keep()
            assert agent.calls["AttestNode"] == 1
        async with agent_parts(lab, tmp_path / "two", Evidence()) as agent:
            with pytest.raises(NotAttestedError, match="was not attested yet and there is no join token"):
                await agent.identities.keep()


@asynchronous
async def test_a_server_that_the_bundle_does_not_vouch_for(tmp_path: Path) -> None:
    """It gets no token, and the reason says that it is not trusted; with the right bundle the token works."""
    async with ca_lab(tmp_path) as lab:
        stranger = Hierarchy.create(DOMAIN, now=lab.clock.now()).authority().bundle_pem()
        async with agent_parts(lab, tmp_path, bundle=stranger) as agent:
            with pytest.raises(ServerNotTrustedError, match="not to be trusted"):
                await agent.node.ensure()
            with pytest.raises(ServerAwayError):  # and it is not asked again at once
                await agent.node.ensure()
        assert tokens_left(lab) == 1
        evidence = Evidence(join_token=SECRET)
        async with agent_parts(lab, tmp_path, evidence) as agent:
            await agent.identities.keep()
            assert agent.identities.is_serving


@asynchronous
async def test_a_server_of_another_name_is_not_trusted(tmp_path: Path) -> None:
    """A certificate of the right CA for another host is refused."""
    async with ca_lab(tmp_path) as lab, agent_parts(lab, tmp_path) as agent:
        agent.server._name = "ca.example"
        with pytest.raises(ServerNotTrustedError, match="not to be trusted"):
            await agent.node.ensure()
        assert tokens_left(lab) == 1


@asynchronous
async def test_a_state_that_cannot_be_written_costs_no_token(tmp_path: Path) -> None:
    """What the token would be given for could not be kept, so it is not sent."""
    async with ca_lab(tmp_path) as lab, agent_parts(lab, tmp_path) as agent:
        agent.state.directory.rmdir()
        with pytest.raises(ConfigError, match="cannot be written"):
            await agent.node.ensure()
        assert tokens_left(lab) == 1


def test_a_state_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """A directory with a key in it is its user's alone; damaged files are named."""
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(ConfigError, match="chmod 700"):
        AgentState(tmp_path / "open")
    state = AgentState(tmp_path / "state")
    assert state.load_node() is None
    (tmp_path / "state" / "node.pem").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"node\.pem"):
        state.load_node()
    (tmp_path / "state" / "bundle.json").write_bytes(b"{}")
    with pytest.raises(ConfigError, match=r"bundle\.json"):
        state.load_roots()


def test_evidence_comes_from_one_place(tmp_path: Path) -> None:
    """A file is read anew each time; two sources, an empty file and a missing one are refused."""
    file = tmp_path / "token"
    evidence = Evidence.of(None, file, {})
    with pytest.raises(ConfigError, match="no such file"):
        evidence.read()
    for content in (b"", b"a b", b"\xff", b"x" * 70_000):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match="token"):
            evidence.read()
    for text in ("one", "two"):
        file.write_text(f"{text}\n")
        assert evidence.read() == text
    with pytest.raises(ConfigError, match="only one of"):
        Evidence.of(file, None, {"GARRISON_AGENT_JOIN_TOKEN": "x"})
    assert Evidence.of(None, None, {"GARRISON_AGENT_JOIN_TOKEN": " x "}).read() == "x"
    assert "secret" not in repr(Evidence(join_token="secret"))


@asynchronous
async def test_callers_get_the_entries_of_this_node(tmp_path: Path) -> None:
    """Selectors decide; SVIDs verify, have keys of the agent, and are there before anybody asks."""
    async with ca_lab(tmp_path) as lab, agent_parts(lab, tmp_path) as agent:
        await lab.register("web", WEB, "unix:uid:1", parent_id=NODE, dns_names=["web"], hint="h")
        await lab.register("far", WEB, "unix:uid:2", parent_id="spiffe://cluster.local/agent/two")
        await lab.register("own", "spiffe://cluster.local/own", "unix:uid:1")
        with pytest.raises(StatusError) as early:
            agent.caller()
        assert early.value.code is StatusCode.UNAVAILABLE
        await agent.identities.keep()
        caller = agent.caller()
        assert [str(one.spiffe_id) for one in caller.registrations] == [WEB]
        with pytest.raises(EntitlementError):
            agent.caller(STRANGER)
        held = await agent.identities.svid(caller, caller.registrations[0])
        spiffe_id, _ = verify_svid(
            held.svid.leaf, held.svid.certificates[1:], lab.authority.roots, lab.clock.now()
        )
        assert str(spiffe_id) == WEB
        check_key_pair(held.svid.leaf, held.key)
        assert agent.calls["SignSvids"] == 1
        assert b"PRIVATE" not in (agent.state.directory / "bundle.json").read_bytes()


@asynchronous
async def test_svids_are_asked_for_together(tmp_path: Path) -> None:
    """Whatever is missing goes in as few calls as the server allows, each for another key."""
    async with ca_lab(tmp_path) as lab, agent_parts(lab, tmp_path) as agent:
        for number in range(MAX_BATCH + 1):
            await lab.register(
                f"e{number}", f"spiffe://cluster.local/w{number}", "unix:uid:1", parent_id=NODE
            )
        await agent.identities.keep()
        assert agent.calls["SignSvids"] == 2
        caller = agent.caller()
        found = await asyncio.gather(*(agent.identities.svid(caller, one) for one in caller.registrations))
        assert len({held.svid.leaf.serial_number for held in found}) == MAX_BATCH + 1
        assert agent.calls["SignSvids"] == 2


@asynchronous
async def test_renewal_at_half_life_is_told(tmp_path: Path) -> None:
    """Nothing before, a new key and SVID after, and word to who streams; the node itself is renewed too."""
    async with ca_lab(tmp_path) as lab, agent_parts(lab, tmp_path) as agent:
        await lab.register("web", WEB, "unix:uid:1", parent_id=NODE)
        await agent.identities.keep()
        caller = agent.caller()
        first = await agent.identities.svid(caller, caller.registrations[0])
        node = agent.node.svid
        agent.clock.off = timedelta(minutes=29)
        await agent.identities.keep()
        assert (await agent.identities.svid(caller, caller.registrations[0])).svid == first.svid
        change = asyncio.ensure_future(agent.identities.changes.next())
        await asyncio.sleep(0)
        agent.clock.off = timedelta(minutes=31)
        await agent.identities.keep()
        await asyncio.wait_for(change, 5)
        second = await agent.identities.svid(caller, caller.registrations[0])
        assert second.svid.leaf.serial_number != first.svid.leaf.serial_number
        assert second.key != first.key
        assert node is not None
        assert agent.node.svid is not None
        assert agent.node.svid.svid.leaf.serial_number != node.svid.leaf.serial_number
        assert agent.state.load_node() is not None
        assert tokens_left(lab) == 0


@asynchronous
async def test_while_the_server_is_away(tmp_path: Path) -> None:
    """Held SVIDs are given as long as they live and never longer; when it is back, all that is due is renewed."""
    async with ca_lab(tmp_path) as lab, agent_parts(lab, tmp_path) as agent:
        await lab.register("web", WEB, "unix:uid:1", parent_id=NODE)
        await agent.identities.keep()
        await lab.register("api", "spiffe://cluster.local/api", "unix:uid:2", parent_id=NODE)
        caller = agent.caller()
        web = caller.registrations[0]
        first = await agent.identities.svid(caller, web)
        await agent.line.cut()
        agent.clock.off = timedelta(minutes=40)
        pauses = []
        for _ in range(12):
            pause = await agent.identities.keep()
            pauses.append(pause)
            agent.clock.off += pause
            held = await agent.identities.svid(caller, web)
            assert held.svid == first.svid
            assert agent.clock.now() < held.renew_at <= held.svid.not_after
        # Exponential, and then at the limit.
        assert [round(one.total_seconds(), 1) for one in pauses[:4]] == [0.5, 1.0, 2.0, 4.0]
        assert timedelta(seconds=29) < pauses[-1] <= timedelta(seconds=30)
        asked = agent.calls.total()
        with pytest.raises(ServerAwayError):
            await agent.identities.sign_jwt(caller, web, ["db"])
        assert agent.calls.total() == asked + 1
        assert agent.identities.is_serving
        # Back in time: everything due is renewed with the first call that gets through.
        await agent.line.mend()
        agent.clock.off += timedelta(minutes=1)
        await agent.identities.keep()
        second = await agent.identities.svid(caller, web)
        assert second.svid.leaf.serial_number != first.svid.leaf.serial_number
        assert agent.caller(STRANGER).registrations
        # Away for longer than anything lives.
        await agent.line.cut()
        agent.clock.off += timedelta(hours=2)
        await agent.identities.keep()
        with pytest.raises(ServerAwayError):
            await agent.identities.svid(caller, web)
        # It is said what to do: this node cannot renew itself any more, and its token was used.
        await agent.line.mend()
        agent.clock.off += timedelta(minutes=1)
        await agent.identities.keep()
        assert not agent.identities.is_serving
        assert "expired at" in agent.identities.problem
        assert "`ca token create" in agent.identities.problem


@asynchronous
async def test_a_new_caller_while_the_server_is_away(tmp_path: Path) -> None:
    """Who is registered and whose SVID is not held is told to come back."""
    async with ca_lab(tmp_path) as lab, agent_parts(lab, tmp_path) as agent:
        await lab.register("web", WEB, "unix:uid:1", parent_id=NODE)
        await agent.identities.keep()
        caller = agent.caller()
        agent.identities._held.clear()
        await agent.line.cut()
        with pytest.raises(ServerAwayError):
            await agent.identities.svid(caller, caller.registrations[0])


@asynchronous
async def test_entries_come_and_go(tmp_path: Path) -> None:
    """An entry that is deleted is nobody's at the next look, and its SVID is forgotten."""
    async with ca_lab(tmp_path) as lab, agent_parts(lab, tmp_path) as agent:
        await lab.register("web", WEB, "unix:uid:1", parent_id=NODE)
        await agent.identities.keep()
        caller = agent.caller()
        change = asyncio.ensure_future(agent.identities.changes.next())
        await asyncio.sleep(0)
        lab.ledger.delete_entry("web", now=lab.clock.now(), by="test")
        await lab.memory.refresh()
        await agent.identities.keep()
        await asyncio.wait_for(change, 5)
        with pytest.raises(EntitlementError):
            agent.caller()
        with pytest.raises(IssuanceError, match="not this node's any more"):
            await agent.identities.svid(caller, caller.registrations[0])
        assert agent.identities.is_serving


@asynchronous
async def test_a_node_that_is_cast_out_serves_nobody(tmp_path: Path) -> None:
    """Its entry deleted or its SVID revoked: callers are denied, and it is asked rarely; it may come back."""
    async with ca_lab(tmp_path) as lab, agent_parts(lab, tmp_path) as agent:
        await lab.register("web", WEB, "unix:uid:1", parent_id=NODE)
        await agent.identities.keep()
        (entry,) = (one for one in lab.ledger.entries() if one.entry_id.startswith("node-"))
        lab.ledger.delete_entry(entry.entry_id, now=lab.clock.now(), by="test")
        await lab.memory.refresh()
        pauses = [await agent.identities.keep() for _ in range(8)]
        assert pauses[-1] == timedelta(seconds=30)
        with pytest.raises(EntitlementError):
            agent.caller()
        assert not agent.identities.is_serving
        assert agent.identities.problem.startswith("the server refuses this node")
        lab.ledger.add_entry(entry)
        await lab.memory.refresh()
        await agent.identities.keep()
        assert agent.identities.is_serving
        assert agent.caller().registrations
        assert agent.node.svid is not None
        leaf = agent.node.svid.svid.leaf
        lab.ledger.revoke(
            issuer_of(leaf),
            leaf.serial_number,
            RevocationReason.KEY_COMPROMISE,
            now=lab.clock.now(),
            by="test",
        )
        await agent.identities.keep()
        with pytest.raises(EntitlementError):
            agent.caller()


@asynchronous
async def test_federated_bundles_are_for_entries_that_federate(tmp_path: Path) -> None:
    """A caller gets our bundle, and those of the domains that its own entries name."""
    async with ca_lab(tmp_path) as lab, agent_parts(lab, tmp_path) as agent:
        partner = TrustDomain("partner.example")
        document = json.dumps({"keys": []}).encode()
        lab.ledger.put_federated(
            FederatedBundle(partner, "https://partner.example/", EndpointProfile.WEB, None, document),
            now=lab.clock.now(),
            by="test",
        )
        await lab.register("web", WEB, "unix:uid:1", parent_id=NODE, federates_with=["partner.example"])
        await lab.register("api", "spiffe://cluster.local/api", "unix:uid:2", parent_id=NODE)
        await agent.identities.keep()
        assert set(agent.identities.bundles(agent.caller())) == {DOMAIN, partner}
        assert set(agent.identities.bundles(agent.caller(STRANGER))) == {DOMAIN}
        own = agent.identities.bundles(agent.caller())[DOMAIN]
        assert own.x509_authorities == lab.authority.roots


@asynchronous
async def test_an_svid_that_does_not_verify_is_not_handed_out(tmp_path: Path) -> None:
    """A server that sends an SVID of another key: the caller gets nothing, and no second call at once."""
    async with ca_lab(tmp_path) as lab, agent_parts(lab, tmp_path) as agent:
        await agent.identities.keep()
        await lab.register("web", WEB, "unix:uid:1", parent_id=NODE, svid_ttl=timedelta(minutes=20))
        real = agent.server.call
        seen: list[Any] = []

        async def swapped(request: Any, answer: Any, **options: Any) -> Any:
            found = await real(request, answer, **options)
            if answer.DESCRIPTOR.name == "SignSvidsResponse":
                seen.append(found)
                found.results[0].CopyFrom(seen[0].results[0])
            return found

        agent.server.call = swapped  # type: ignore[method-assign]  # a server that is not ours
        await agent.identities.keep()
        caller = agent.caller()
        first = await agent.identities.svid(caller, caller.registrations[0])
        agent.clock.off = timedelta(minutes=11)
        for _ in range(3):
            await agent.identities.keep()
        assert len(seen) == 2
        held = await agent.identities.svid(caller, caller.registrations[0])
        assert held.svid == first.svid
        check_key_pair(held.svid.leaf, held.key)
        agent.clock.off = timedelta(minutes=21)
        for reason in ("not valid|expired|does not verify", "refused a moment ago"):
            with pytest.raises(IssuanceError, match=reason):
                await agent.identities.svid(caller, caller.registrations[0])
        assert len(seen) == 3


@asynchronous
async def test_tokens_are_kept_until_half_their_life(tmp_path: Path) -> None:
    """The same for the same audiences, another for others; while the server is away until shortly before the end."""
    (tmp_path / "keys").mkdir()
    store = JwtKeyStore(tmp_path / "keys")

    async def mint(
        entry: Entry, audiences: Sequence[str], _requester: Requester, now: datetime
    ) -> tuple[str, datetime]:
        ttl, spiffe_id = entry.registration.jwt_ttl, entry.registration.spiffe_id
        token = issue_jwt_svid(store.ring(now).signing(now), spiffe_id, audiences, now=now, ttl=ttl)
        return token, now + ttl

    def bundle() -> SpiffeBundle:
        authorities = store.ring(datetime.now(UTC)).authorities()
        return SpiffeBundle(HIERARCHY.authority().roots, authorities, sequence=7)

    async with (
        ca_lab(tmp_path, hierarchy=HIERARCHY, mint_jwt=mint, bundle=bundle) as lab,
        agent_parts(lab, tmp_path) as agent,
    ):
        await lab.register("web", WEB, "unix:uid:1", parent_id=NODE)
        await agent.identities.keep()
        caller = agent.caller()
        web = caller.registrations[0]
        assert agent.identities.status()["bundle_sequence"] == 7
        first = await agent.identities.sign_jwt(caller, web, ["db"])
        assert await agent.identities.sign_jwt(caller, web, ["db"]) == first
        assert await agent.identities.sign_jwt(caller, web, ["db", "x"]) != first
        agent.clock.off = timedelta(seconds=151)
        await agent.line.cut()
        assert await agent.identities.sign_jwt(caller, web, ["db"]) == first
        await agent.line.mend()
        agent.clock.off = timedelta(seconds=200)
        assert await agent.identities.sign_jwt(caller, web, ["db"]) != first
        await agent.line.cut()
        agent.clock.off = timedelta(seconds=600)
        with pytest.raises(ServerAwayError):
            await agent.identities.sign_jwt(caller, web, ["db"])


@asynchronous
async def test_what_a_caller_asks_survives_what_happens_to_others(tmp_path: Path) -> None:
    """A call in flight ends by itself while the node renews itself and goes on over another connection."""
    slow, go_on = asyncio.Event(), asyncio.Event()

    async def mint(*_: Any) -> tuple[str, datetime]:
        slow.set()
        await go_on.wait()
        raise IssuanceError("no key")

    async with ca_lab(tmp_path, mint_jwt=mint) as lab, agent_parts(lab, tmp_path) as agent:
        await lab.register("web", WEB, "unix:uid:1", parent_id=NODE)
        await agent.identities.keep()
        caller = agent.caller()
        asked = asyncio.ensure_future(agent.identities.sign_jwt(caller, caller.registrations[0], ["db"]))
        await asyncio.wait_for(slow.wait(), 5)
        agent.node.renew_at = agent.clock.now()
        await agent.identities.keep()
        assert agent.calls["AttestNode"] == 2
        go_on.set()
        with pytest.raises(ServerAwayError, match="no key"):
            await asyncio.wait_for(asked, 5)


def test_an_answer_is_taken_only_as_what_was_asked_for() -> None:
    """Another key, ID or CA, nothing at all, and bytes that are no certificate are refused."""
    now, key = datetime.now(UTC), new_private_key()
    authority, stranger = HIERARCHY.authority(), Hierarchy.create(DOMAIN, now=now).authority()
    web = SpiffeId.parse(WEB)
    svid = authority.issue(web, key.public_key(), now=now, ttl=timedelta(hours=1))
    ders = [one.public_bytes(Encoding.DER) for one in svid.certificates]
    good = pb.X509Svid(spiffe_id=WEB, certificates=ders)
    assert parse_svid(good, key, authority.roots, web, now) == svid
    for message, own, roots, expected, at, reason in (
        (good, new_private_key(), authority.roots, web, now, "do not belong together"),
        (good, key, stranger.roots, web, now, "verify|issuer"),
        (good, key, authority.roots, SpiffeId.parse(NODE), now, "not of `spiffe://cluster.local/agent/one`"),
        (good, key, authority.roots, web, now + timedelta(hours=2), "valid|expired"),
        (pb.X509Svid(certificates=ders[:1]), key, authority.roots, web, now, "verify|issuer"),
        (pb.X509Svid(), key, authority.roots, web, now, "no certificate"),
        (pb.X509Svid(certificates=[b"x"]), key, authority.roots, web, now, "malformed"),
    ):
        with pytest.raises(IssuanceError, match=reason):
            parse_svid(message, own, roots, expected, at)


@asynchronous
async def test_a_bad_bundle_holds_up_nothing_else(tmp_path: Path) -> None:
    """A partner's is left out; with ours bad the one before stays, and a deleted entry is gone all the same."""
    async with ca_lab(tmp_path) as lab, agent_parts(lab, tmp_path) as agent:
        partner = TrustDomain("partner.example")
        lab.ledger.put_federated(
            FederatedBundle(partner, "https://partner.example/", EndpointProfile.WEB, None, b'{"keys": 1}'),
            now=lab.clock.now(),
            by="test",
        )
        await lab.register("web", WEB, "unix:uid:1", parent_id=NODE, federates_with=["partner.example"])
        await agent.identities.keep()
        caller = agent.caller()
        assert set(agent.identities.bundles(caller)) == {DOMAIN}
        real = agent.server.call

        async def emptied(request: Any, answer: Any, **options: Any) -> Any:
            found = await real(request, answer, **options)
            if answer.DESCRIPTOR.name == "FetchBundleResponse":
                return pb.FetchBundleResponse(version="x", bundles={str(DOMAIN): b'{"keys": []}'})
            return found

        agent.server.call = emptied  # type: ignore[method-assign]  # a server that is not ours
        lab.ledger.delete_entry("web", now=lab.clock.now(), by="test")
        await lab.memory.refresh()
        await agent.identities.keep()
        assert "no roots of `cluster.local`" in agent.identities.problem
        assert agent.identities.bundles(caller)[DOMAIN].x509_authorities == lab.authority.roots
        with pytest.raises(EntitlementError):
            agent.caller()


@asynchronous
async def test_what_is_revoked_is_told(tmp_path: Path) -> None:
    """The CRL that the server publishes reaches the node with the next look, and who streams hears of it."""
    async with ca_lab(tmp_path) as lab, agent_parts(lab, tmp_path) as agent:
        await lab.register("web", WEB, "unix:uid:1", parent_id=NODE)
        await agent.identities.keep()
        caller = agent.caller()
        leaf = (await agent.identities.svid(caller, caller.registrations[0])).svid.leaf

        def listed() -> bool:
            crls = map(x509.load_der_x509_crl, agent.identities.crls())
            return any(
                one.get_revoked_certificate_by_serial_number(leaf.serial_number) is not None for one in crls
            )

        assert not listed()
        lab.ledger.revoke(
            issuer_of(leaf),
            leaf.serial_number,
            RevocationReason.KEY_COMPROMISE,
            now=lab.clock.now(),
            by="test",
        )
        await lab.memory.refresh()
        change = asyncio.ensure_future(agent.identities.changes.next())
        await asyncio.sleep(0)
        await agent.identities.keep()
        await asyncio.wait_for(change, 5)
        assert listed()
        assert agent.identities.is_serving


@asynchronous
async def test_a_jwt_attests_again_when_the_svid_has_expired(tmp_path: Path) -> None:
    """After a long absence the file is read anew: what is in it by then counts, without a restart."""
    claims = {"iss": "https://k8s.example", "sub": "node-1", "aud": "garrison"}
    issuer = TrustedIssuer(
        claims["iss"], frozenset({"garrison"}), KeySet(parse_jwks(ec_signer().jwks())), is_kubernetes=False
    )
    registration = Registration.parse(NODE, ["jwt:sub:node-1"])
    old_ca = Hierarchy.create(DOMAIN, now=datetime.now(UTC) - timedelta(days=2))
    file = tmp_path / "jwt"

    def write(**changes: Any) -> None:
        ends = int(datetime.now(UTC).timestamp()) + 300
        file.write_text(ec_signer().token({**claims, "exp": ends, **changes}))

    async with (
        ca_lab(tmp_path, registration, issuers=[issuer], hierarchy=old_ca) as lab,
        agent_parts(lab, tmp_path, Evidence(jwt_file=file)) as agent,
    ):
        write(sub="somebody")
        with pytest.raises(NotAttestedError, match="at its audit log"):
            await agent.identities.keep()
        write()
        await agent.identities.keep()
        await lab.register("web", WEB, "unix:uid:1", parent_id=NODE)
        await agent.identities.keep()
        first = agent.node.svid
        assert first is not None
        # As if it had been away: what it holds has expired.
        before = lab.clock.now() - timedelta(hours=2)
        old = lab.authority.issue(
            first.svid.spiffe_id, first.key.public_key(), now=before, ttl=timedelta(hours=1)
        )
        agent.node.svid = NodeSvid(old, first.key)
        write(jti="2")
        await agent.identities.keep()
        assert agent.node.svid.is_valid(agent.clock.now())
        assert agent.identities.is_serving
        assert agent.caller().registrations


@asynchronous
async def test_what_fails_at_once_is_one_failure(tmp_path: Path) -> None:
    """Ten callers that find the server away do not make the pause ten times as long."""
    async with ca_lab(tmp_path) as lab, agent_parts(lab, tmp_path) as agent:
        await lab.register("web", WEB, "unix:uid:1", parent_id=NODE)
        await agent.identities.keep()
        caller = agent.caller()
        await agent.line.cut()
        asked = [agent.identities.sign_jwt(caller, caller.registrations[0], [str(one)]) for one in range(10)]
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(one) for one in found} == {ServerAwayError}
        assert agent.server.attempts.failures == 1


@asynchronous
async def test_an_entry_that_goes_while_it_is_signed_is_not_held(tmp_path: Path) -> None:
    """The answer for an entry that was deleted meanwhile is forgotten."""
    async with ca_lab(tmp_path) as lab, agent_parts(lab, tmp_path) as agent:
        await agent.identities.keep()
        await lab.register("web", WEB, "unix:uid:1", parent_id=NODE)
        real = agent.server.call

        async def overtaken(request: Any, answer: Any, **options: Any) -> Any:
            found = await real(request, answer, **options)
            if answer.DESCRIPTOR.name == "SignSvidsResponse":
                agent.server.call = real  # type: ignore[method-assign]  # as it was
                lab.ledger.delete_entry("web", now=lab.clock.now(), by="test")
                await lab.memory.refresh()
                await agent.identities.keep()
            return found

        agent.server.call = overtaken  # type: ignore[method-assign]  # a server that is slow
        await agent.identities.keep()
        assert agent.identities.status()["entries"] == 0
        assert agent.identities.status()["svids"] == []
