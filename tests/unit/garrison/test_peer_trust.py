"""Bundles of federation beside those of files: what counts, from when, and until when."""

from __future__ import annotations

import asyncio
import json
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from support.checks import NOW, principal
from support.peer_certificates import AT, CertificateAuthority, encoded

from authz.authn.certificates import CertificateVerifier, TrustBundle
from authz.bundles import TrustFile, load_bundles
from ca.authority import Authority, Hierarchy
from ca.bundle import SpiffeBundle
from ca.keys import new_private_key
from garrison.identity import SpiffeId, TrustDomain
from garrison.process.link import WorkerLink, frame
from garrison.process.peer_trust import PeerTrust, as_message, federated_trust, parse_message

OURS, PARTNER = TrustDomain("cluster.local"), TrustDomain("partner.example")
A, THEIRS = SpiffeId.parse(principal("a")), SpiffeId.parse("spiffe://partner.example/ns/x/sa/a")
OWN = CertificateAuthority()
OLD, NEW = (Hierarchy.create(PARTNER, now=AT).authority() for _ in range(2))
FILES = CertificateVerifier(
    {"cluster.local": TrustBundle((OWN.certificate,)), "partner.example": TrustBundle(())}
)


def leaf(authority: Authority, identity: SpiffeId = THEIRS) -> str:
    """Return a leaf, as Envoy sends it."""
    key = new_private_key().public_key()
    return encoded(authority.issue(identity, key, now=AT, ttl=timedelta(hours=1)).leaf)


def bundle(*authorities: Authority) -> SpiffeBundle:
    """Return what federation gives of these."""
    roots = tuple(root for one in authorities for root in one.roots)
    return SpiffeBundle(roots, x509_intermediates=tuple(one.chain[0] for one in authorities))


def problem(trust: PeerTrust, certificate: str, identity: SpiffeId = THEIRS) -> str | None:
    """Return why a certificate does not prove an identity now."""
    assert trust.in_force.current is not None
    return trust.in_force.current.problem(certificate, identity, NOW)


def trusting(*wanted: TrustDomain) -> PeerTrust:
    """Return what wants these, with the bundles of files in force."""
    trust = PeerTrust(wanted)
    trust.use_files(FILES)
    return trust


def test_a_federated_peer_is_verified_while_its_bundle_says_so() -> None:
    """Nobody before the first bundle; a rotated root at once, the old one until it is left out; then nobody."""
    trust, first, second = trusting(PARTNER), leaf(OLD), leaf(NEW)
    assert "there is no root of `partner.example`: its federation has given none" in str(
        problem(trust, first)
    )
    trust.use_federation({PARTNER: bundle(OLD)})
    assert problem(trust, first) is None
    assert "does not verify" in str(problem(trust, second))
    trust.use_federation({PARTNER: bundle(OLD, NEW)})
    assert problem(trust, first) is problem(trust, second) is None
    trust.use_federation({PARTNER: bundle(NEW)})
    assert "does not verify" in str(problem(trust, first))  # though it was proven before
    assert problem(trust, second) is None
    for nothing in ({}, {PARTNER: SpiffeBundle()}):
        trust.use_federation({PARTNER: bundle(NEW)})
        assert problem(trust, second) is None
        trust.use_federation(nothing)
        assert "there is no root of `partner.example`" in str(problem(trust, second))


def test_files_and_federation_change_apart() -> None:
    """A reload of files keeps what federation gave, and the other way round."""
    trust, theirs, ours = trusting(PARTNER), leaf(OLD), encoded(OWN.issue())
    assert problem(trust, ours, A) is None
    trust.use_federation({PARTNER: bundle(OLD)})
    assert (problem(trust, ours, A), problem(trust, theirs)) == (None, None)
    other = CertificateAuthority("another")
    files = {"cluster.local": TrustBundle((other.certificate,)), "partner.example": TrustBundle(())}
    trust.use_files(CertificateVerifier(files, required=True))
    assert problem(trust, theirs) is None
    assert problem(trust, ours, A) is not None
    assert trust.in_force.current is not None
    assert trust.in_force.current.required


def test_only_wanted_trust_domains_come_from_federation() -> None:
    """Workloads may federate with more: authorization asks for each by name. Nothing replaces ours."""
    trust = trusting(PARTNER)
    elsewhere = TrustDomain("else.example")
    stranger = Hierarchy.create(elsewhere, now=AT).authority()
    trust.use_federation({elsewhere: bundle(stranger), OURS: bundle(OLD)})
    name = SpiffeId(elsewhere, ("a",))
    assert "there is no trust bundle for `else.example`" in str(problem(trust, leaf(stranger, name), name))
    assert problem(trust, encoded(OWN.issue()), A) is None


def test_one_bundle_vouches_for_its_own_trust_domain() -> None:
    """A federated CA names one of us, or of a third domain: it proves nothing."""
    trust = trusting(PARTNER)
    trust.use_federation({PARTNER: bundle(OLD)})
    forger = CertificateAuthority()
    trust.use_federation({PARTNER: SpiffeBundle((forger.certificate,))})
    assert "does not verify" in str(problem(trust, encoded(forger.issue()), A))


def test_a_bundle_that_is_none_of_a_ca_counts_as_none() -> None:
    """A file of `federated_bundles` may hold anything; a leaf, or the root of another domain, is no root."""
    key = new_private_key().public_key()
    no_ca = OLD.issue(THEIRS, key, now=AT, ttl=timedelta(hours=1)).leaf
    other = Hierarchy.create(TrustDomain("else.example"), now=AT).root
    for wrong in (no_ca, other):
        assert federated_trust({PARTNER: SpiffeBundle((*OLD.roots, wrong))}, [PARTNER]) == {}


def test_intermediates_are_trusted_by_nobody() -> None:
    """They help to find a root; without their root they prove nothing. A file may give further ones."""
    trust = trusting(PARTNER)
    certificate = leaf(OLD)
    trust.use_federation({PARTNER: SpiffeBundle(NEW.roots, x509_intermediates=(OLD.chain[0],))})
    assert "does not verify" in str(problem(trust, certificate))
    trust.use_federation({PARTNER: SpiffeBundle(OLD.roots)})
    assert "does not verify" in str(problem(trust, certificate))
    trust.use_files(CertificateVerifier({"partner.example": TrustBundle((), (OLD.chain[0],))}))
    assert problem(trust, certificate) is None


def test_a_file_of_intermediates_makes_nobody_a_root(tmp_path: Path) -> None:
    """What issued itself in it does not count, whatever federation gives."""
    file = tmp_path / "theirs.pem"
    file.write_bytes(b"".join(one.public_bytes(Encoding.PEM) for one in (*NEW.roots, *NEW.chain)))
    verifier = load_bundles([TrustFile(PARTNER, file, has_roots=False)], required=False, federated=[PARTNER])
    trust = PeerTrust([PARTNER])
    trust.use_files(verifier)
    assert "there is no root of" in str(problem(trust, leaf(NEW)))
    trust.use_federation({PARTNER: SpiffeBundle(OLD.roots)})
    assert "does not verify" in str(problem(trust, leaf(NEW)))
    trust.use_federation({PARTNER: SpiffeBundle(NEW.roots)})
    assert problem(trust, leaf(NEW)) is None


def test_whoever_follows_is_told_of_changes_only() -> None:
    """A poll that brings the same bundle, or another key for tokens, changes nothing for peers."""
    told: list[Any] = []
    trust = PeerTrust([PARTNER], told.append)
    trust.use_files(FILES)
    trust.use_federation({PARTNER: bundle(OLD)})
    verifier = trust.in_force.current
    trust.use_federation({PARTNER: SpiffeBundle(OLD.roots, (), 7, 60, (OLD.chain[0],))})
    assert (len(told), trust.in_force.current is verifier) == (1, True)
    trust.use_federation({})
    assert told[1:] == [{}]


@pytest.mark.parametrize("late", [False, True], ids=["before it serves", "while it serves"])
def test_workers_verify_with_what_they_are_told(late: bool) -> None:
    """Bundles pass through JSON; what is told before a worker listens to it is not lost."""
    found = federated_trust({PARTNER: bundle(OLD, NEW)}, [PARTNER])
    message = json.loads(json.dumps(as_message(found)))
    assert parse_message(message) == found
    ours, theirs = socket.socketpair()
    ours.settimeout(20)

    async def follow(link: WorkerLink) -> None:
        known = asyncio.Event()
        trust = PeerTrust([PARTNER], lambda _: known.set())
        trust.use_files(FILES)
        if not late:
            ours.sendall(frame({"bundles": {}}) + frame({"bundles": message}) + frame({"request": 1}))
            await asyncio.to_thread(ours.recv, 1)  # it answers what was sent after the bundles
        trust.follow(link)
        if late:
            assert problem(trust, leaf(OLD)) is not None
            ours.sendall(frame({"bundles": message}))
        async with asyncio.timeout(20):
            await known.wait()
        assert problem(trust, leaf(OLD)) is None

    with ours, theirs:
        link = WorkerLink(theirs)
        ours.sendall(frame({"number": 0}))
        link.receive()
        link.watch(0)
        asyncio.run(follow(link))
        link.close()
