"""What a serving CA does as its authorities follow each other: in which order, how fast, and when it fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ca.authorities import Authorities
from ca.authority import ROOT_CERT, ROOT_KEY, Authority, CaCertificates, Hierarchy, Lifetimes
from ca.authority_files import ISSUERS
from ca.bundle import parse_certificates
from ca.crl import key_identifier_of
from ca.keys import new_private_key
from ca.ledger import KeyState, LedgerUnavailableError
from ca.memory import CaMemory
from ca.recording import NotRecordedError, Requester
from ca.rotation import Policy, activate
from ca.store.sqlite import LEDGER, SqliteLedger
from ca.verification import verify_svid
from garrison.errors import IssuanceError
from garrison.identity import SpiffeId, TrustDomain

DOMAIN = TrustDomain("cluster.local")
WEB = SpiffeId(DOMAIN, ("web",))
START = datetime.now(UTC)
DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)


class Clock:
    """A clock that is set."""

    now = START

    def __call__(self) -> datetime:
        """Return the time."""
        return self.now


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    """Return a CA whose root lives for 40 days, its intermediates for 20."""
    directory = tmp_path / "pki"
    Hierarchy.create(DOMAIN, now=START, lifetimes=Lifetimes(40 * DAY, 20 * DAY)).save(directory)
    return directory


class Server:
    """A memory that is told when to look, and what it told others."""

    def __init__(self, pki: Path, at: datetime = START) -> None:
        self.clock = Clock()
        self.clock.now = at
        self.ledger = SqliteLedger.of(pki)
        self.authorities = Authorities(pki, self.ledger, policy=Policy(overlap=MINUTE))
        self.memory = CaMemory(
            self.ledger,
            Authority.load(pki),
            (),
            now=self.clock,
            authorities=self.authorities,
            rotate=True,
        )
        self.told: list[str] = []

    def look(self, times: int = 1) -> list[str]:
        """Look so many times, and return what others were told."""
        self.told = []
        asyncio.run(self._run(times))
        return self.told

    async def _run(self, times: int) -> None:
        looks = 0

        async def sleep(seconds: float) -> None:
            nonlocal looks
            looks += 1
            if looks == times:
                raise asyncio.CancelledError

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ca.memory.asyncio.sleep", sleep)
            with pytest.raises(asyncio.CancelledError):
                await self.memory.run(
                    lambda _: self.told.append("registrations"),
                    self._tell_bundle,
                    reissue=lambda: self.told.append("reissue"),
                )

    def _tell_bundle(self) -> None:
        self.told.append(f"bundle of {len(self.memory.issuer.authority.roots)}")

    def signer(self) -> str:
        """Return who signs, as leaves tell it."""
        return self.memory.issuer.authority.issuer.certificate.subject.rfc4514_string()

    def states(self) -> list[KeyState]:
        """Return the states of all authorities."""
        return [one.state for one in self.memory.standings]

    async def issue(self) -> None:
        """Issue a leaf, and verify it."""
        now = self.clock.now
        svid = await self.memory.issuer.issue(
            WEB,
            new_private_key().public_key(),
            requester=Requester("test", "unix"),
            now=now,
            ttl=timedelta(hours=1),
        )
        verify_svid(svid.leaf, svid.certificates[1:], self.memory.issuer.authority.roots, now)


@pytest.fixture
def server(pki: Path) -> Iterator[Server]:
    """Return a serving CA."""
    found = Server(pki)
    yield found
    found.memory.close()


def test_years_by_schedule(server: Server) -> None:
    """Twice a day for four lives of roots somebody signs, and what is signed verifies; roots come and go."""
    most = 0
    signers = set()
    while server.clock.now < START + 160 * DAY:
        server.clock.now += timedelta(hours=12)
        server.look(2)
        signers.add(server.signer())
        most = max(most, len(server.memory.issuer.authority.roots))
        asyncio.run(_recorded(server))
        assert server.states().count(KeyState.ACTIVE) == 1
        left = server.memory.seconds_left()
        assert min(left.values()) > 3600
    assert server.memory.rotation_problem == ""
    assert len(signers) >= 8
    assert most == 2
    rotations = server.memory.rotations
    assert rotations["prepare_root"] >= 4
    assert rotations["activate"] == len(signers) - 1
    assert rotations["failed"] == 0


async def _recorded(server: Server) -> None:
    authority, now = server.memory.issuer.authority, server.clock.now
    svid = authority.issue(WEB, new_private_key().public_key(), now=now, ttl=timedelta(hours=1))
    verify_svid(svid.leaf, svid.certificates[1:], authority.roots, now)


def by_hand(server: Server, change: Callable[[Authorities, datetime], object]) -> None:
    """Change something from elsewhere."""
    ledger = SqliteLedger.of(server.authorities._directory)
    change(
        Authorities(server.authorities._directory, ledger, policy=Policy(overlap=MINUTE)), server.clock.now
    )
    ledger.close()


def test_a_root_is_pushed_before_it_signs(server: Server) -> None:
    """Even when both come in one look, the bundle goes first and the authority follows in the next one."""
    first = server.signer()

    def at_once(authorities: Authorities, now: datetime) -> None:
        made = authorities.prepare(now=now, by="test", new_root=True)
        authorities.activate(made.key_id, now=now, by="test", at_once=True)

    by_hand(server, at_once)
    assert server.look() == ["bundle of 2"]
    assert server.signer() == first
    assert server.look() == []
    assert server.signer() != first
    # Each that is trusted has its CRL.
    assert len(server.memory.crls) == 2


def test_a_taint_is_told_once(server: Server) -> None:
    """Holders replace what they have; also when the authority was revoked before anybody looked."""
    asyncio.run(server.issue())
    first = server.memory.standings[0].key_id

    def rotate(authorities: Authorities, now: datetime) -> None:
        made = authorities.prepare(now=now, by="test", new_root=True)
        authorities.activate(made.key_id, now=now, by="test", at_once=True)

    by_hand(server, rotate)
    server.look(2)
    by_hand(server, lambda one, now: one.taint(first, now=now, by="test"))
    assert server.look(3) == ["reissue"]
    server.clock.now += MINUTE
    by_hand(server, lambda one, now: one.revoke(first, now=now, by="test"))
    assert server.look(3) == ["bundle of 1"]
    assert len(server.memory.crls) == 1

    asyncio.run(server.issue())
    second = server.memory.active
    assert second is not None
    by_hand(server, rotate)
    server.look(2)
    by_hand(server, lambda one, now: one.taint(second.key_id, now=now, by="test"))
    by_hand(server, lambda one, now: one.revoke(second.key_id, now=now, by="test", at_once=True))
    assert server.look(3) == ["bundle of 1", "reissue"]


def test_what_fails_is_told_and_tried_again(server: Server, pki: Path) -> None:
    """A root key that is not there: the CA goes on as it is, says so, and rotates once it can."""
    key = (pki / ROOT_KEY).read_bytes()
    (pki / ROOT_KEY).unlink()
    server.clock.now += 11 * DAY
    server.look(2)
    assert "the key of the root is not here" in server.memory.rotation_problem
    assert "rotation fails" in server.memory.describe()
    assert server.memory.rotations == {"failed": 1}
    asyncio.run(server.issue())
    (pki / ROOT_KEY).write_bytes(key)
    server.look(2)
    assert server.states() == [KeyState.ACTIVE]  # not before a minute is over
    server.clock.now += MINUTE
    server.look(2)
    assert server.states() == [KeyState.ACTIVE, KeyState.PREPARED]
    assert server.memory.rotation_problem == ""


def test_nothing_is_signed_without_an_active_authority(server: Server) -> None:
    """When the one that is active is elsewhere, issuing ends with the reason, and comes back with it."""
    foreign = Hierarchy.create(DOMAIN, now=START).authority()
    public = CaCertificates(foreign.issuer.certificate, foreign.chain, foreign.roots, DOMAIN)

    def by_another_replica(authorities: Authorities, now: datetime) -> None:
        there = authorities._reconciler
        there._take_in(public, there.known(), now, "another replica")
        there._publish(there.known(), now, "another replica")

    by_hand(server, by_another_replica)
    server.look(3)
    with pytest.raises(IssuanceError, match="is active, but cannot be used"):
        asyncio.run(server.issue())
    assert server.memory.describe().startswith("nothing is issued")
    assert len(server.memory.issuer.authority.roots) == 2


def test_a_ledger_that_does_not_answer_changes_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The authority in force goes on, but nothing can be recorded, so nothing leaves."""

    def broken(*arguments: object, **named: object) -> None:
        raise LedgerUnavailableError("broken disk")

    for name in ("keys", "entries_version", "record_issued"):
        monkeypatch.setattr(SqliteLedger, name, broken)
    assert server.look(3) == []
    with pytest.raises(NotRecordedError):
        asyncio.run(server.issue())
    monkeypatch.undo()
    server.look()
    asyncio.run(server.issue())


def test_what_a_command_left_half_done_is_finished(server: Server, pki: Path) -> None:
    """It died when the ledger knew who signs, and the files did not: the server puts them right at once."""
    made = server.authorities.prepare(now=server.clock.now, by="test", new_root=True)
    server.look(2)
    standings = server.authorities.standings(server.clock.now)
    changes = activate(standings, made.key_id, server.clock.now, Policy(), at_once=True)
    server.ledger.change_states(changes, now=server.clock.now, by="test")
    assert key_identifier_of(Authority.load(pki).issuer.certificate) != made.key_id
    server.look(1)
    assert key_identifier_of(Authority.load(pki).issuer.certificate) == made.key_id
    assert key_identifier_of(server.memory.issuer.authority.issuer.certificate) == made.key_id


def test_two_servers_of_one_directory_rotate_once(server: Server, pki: Path) -> None:
    """Whoever comes second finds it done, and follows."""
    other = Server(pki)
    for _ in range(8):
        for one in (server, other):
            one.clock.now += 10 * DAY / 8
            one.look(2)
    for one in (server, other):
        one.clock.now += 8 * DAY
        one.look(2)
        one.look(2)
    assert server.states() == other.states()
    assert server.memory.rotations + other.memory.rotations == {"prepare_intermediate": 1, "activate": 1}
    assert server.signer() == other.signer()
    assert parse_certificates((pki / ROOT_CERT).read_bytes()) == server.memory.issuer.authority.roots
    other.memory.close()
    assert (pki / LEDGER).exists()


def test_a_server_starts_by_a_clock_that_is_behind_and_changes_nothing(pki: Path) -> None:
    """Authorities that a crash left half done wait until the clock is right, and rotation with them."""
    first = Server(pki, START + 11 * DAY)
    first.look()
    assert [one.state for one in first.memory.standings] == [KeyState.ACTIVE, KeyState.PREPARED]
    first.memory.close()
    (pki / ISSUERS).unlink()
    second = Server(pki, START + 10 * DAY)
    assert "nothing is issued: the clock of this machine" in second.memory.describe()
    second.look()
    assert not (pki / ISSUERS).exists()
    second.clock.now = START + 18 * DAY
    second.look()
    assert (pki / ISSUERS).exists()
    assert second.memory.clock_problem == ""
    assert [one.state for one in second.memory.standings] == [KeyState.OLD, KeyState.ACTIVE]
    second.memory.close()


def test_a_ca_that_is_not_valid_yet_says_so(pki: Path) -> None:
    """It was made by a clock that was ahead."""
    server = Server(pki, START - timedelta(hours=1))
    assert "is not valid before" in server.memory.describe()
    server.memory.close()
