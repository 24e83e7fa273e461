"""Real files and a real ledger through any sequence of commands, clock steps and disks that fail midway."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from support.faults import FaultyDisk, PowerCut

from ca.authorities import Authorities
from ca.authority import ROOT_CERT, Authority, Hierarchy, Lifetimes
from ca.bundle import parse_certificates
from ca.keys import new_private_key
from ca.ledger import IssuedCertificate, KeyState, KeyUse
from ca.rotation import Policy
from ca.store.sqlite import SqliteLedger
from ca.verification import verify_svid
from garrison.errors import GarrisonError
from garrison.identity import SpiffeId, TrustDomain

DOMAIN = TrustDomain("cluster.local")
WEB = SpiffeId(DOMAIN, ("web",))
START = datetime.now(UTC)
DAY = timedelta(days=1)
KEY = new_private_key().public_key()
# 0: the disk works. A power cut at the n-th operation ends the command.
FAULT = st.one_of(st.just(0), st.integers(1, 70))


class Operated(RuleBasedStateMachine):
    """A CA whose operator has no luck."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.pki = Path(self.folder.name) / "pki"
        Hierarchy.create(DOMAIN, now=START, lifetimes=Lifetimes(60 * DAY, 20 * DAY)).save(self.pki)
        self.now = START
        self.leaves: list[tuple[x509.Certificate, ...]] = []
        self.start()

    def start(self) -> None:
        """Start as a server does."""
        self.ledger = SqliteLedger.of(self.pki)
        self.authorities = Authorities(self.pki, self.ledger, policy=Policy(overlap=timedelta(hours=1)))
        self.authorities.reconcile(now=self.now, by="test")

    def teardown(self) -> None:
        """Remove everything."""
        self.ledger.close()
        self.folder.cleanup()

    @contextlib.contextmanager
    def disk(self, fault: int) -> Iterator[None]:
        """Run a command that may be refused; with a fault, the process ends there and starts again."""
        with pytest.MonkeyPatch.context() as patch:
            disk = FaultyDisk(patch, fault or 10**9, power=True)
            with contextlib.suppress(GarrisonError, PowerCut, OSError):
                yield
            failed = disk.failed
        if failed:
            self.ledger.close()
            self.start()

    @rule(hours=st.integers(1, 24 * 6))
    def wait(self, hours: int) -> None:
        """Let time pass, with a server that does what is due."""
        self.now += timedelta(hours=hours)
        self.leaves = [leaf for leaf in self.leaves if leaf[0].not_valid_after_utc > self.now]
        for _ in range(6):
            steps = self.authorities.due(self.now)
            if not steps:
                return
            self.authorities.run(steps[0], now=self.now, by="schedule")
        raise AssertionError("the schedule does not come to rest")

    @rule(new_root=st.booleans(), fault=FAULT)
    def prepare(self, new_root: bool, fault: int) -> None:
        """Prepare."""
        with self.disk(fault):
            self.authorities.prepare(now=self.now, by="test", new_root=new_root)

    @rule(data=st.data(), fault=FAULT, command=st.sampled_from(["activate", "taint", "revoke"]))
    def change(self, data: st.DataObject, fault: int, command: str) -> None:
        """Change one that is there."""
        key_id = data.draw(st.sampled_from([one.key_id for one in self.authorities.standings(self.now)]))
        with self.disk(fault):
            getattr(self.authorities, command)(key_id, now=self.now, by="test")

    @rule()
    def issue(self) -> None:
        """Issue a leaf, from the files that commands read."""
        svid = Authority.load(self.pki).issue(WEB, KEY, now=self.now, ttl=DAY)
        issued = IssuedCertificate.of(svid.leaf, WEB, now=self.now, requester="test", attested_by="cli")
        self.ledger.record_issued([issued])
        self.leaves.append(svid.certificates)

    @rule()
    def restart(self) -> None:
        """Start again."""
        self.ledger.close()
        self.start()

    @invariant()
    def somebody_signs(self) -> None:
        """Exactly one is active, by the ledger as by the files, and no key of a living one is lost."""
        view = self.authorities.view()
        assert not view.refusal
        rows = self.ledger.keys(KeyUse.X509)
        states = [row.state for row in rows]
        assert states.count(KeyState.ACTIVE) == 1
        assert states.count(KeyState.PREPARED) <= 1
        assert len(view.issuers) == len(states) - states.count(KeyState.REVOKED)
        assert Authority.load(self.pki).issuer.certificate == view.authority.issuer.certificate

    @invariant()
    def leaves_verify(self) -> None:
        """Whatever was signed and has not ended verifies with the bundle on disk, but for what was revoked."""
        roots = parse_certificates((self.pki / ROOT_CERT).read_bytes())
        assert roots == self.authorities.view().authority.roots
        revoked = {row.key_id for row in self.ledger.keys(KeyUse.X509) if row.state is KeyState.REVOKED}
        for leaf, *chain in self.leaves:
            (recorded,) = self.ledger.find(serial=leaf.serial_number)
            if recorded.issuer not in revoked:
                verify_svid(leaf, chain, roots, self.now)


Operated.TestCase.settings = settings(max_examples=40, stateful_step_count=15, deadline=None)
TestOperated = Operated.TestCase
