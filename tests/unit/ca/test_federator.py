"""Bundles of other trust domains are polled, kept in the ledger, handed out, and withdrawn."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import structlog
from cryptography import x509

from ca.authority import Hierarchy
from ca.bundle import SpiffeBundle, format_spiffe_bundle
from ca.federation import Endpoint
from ca.federator import Bundles, Federator, Rules, Timing
from ca.ledger import EndpointProfile, FederatedBundle
from ca.store.sqlite import SqliteLedger
from garrison.errors import DependencyError
from garrison.identity import SpiffeId, TrustDomain

OURS, PARTNER, OTHER = TrustDomain("cluster.local"), TrustDomain("partner.test"), TrustDomain("other.test")
MADE = FederatedBundle(PARTNER, "https://partner.test/bundle", EndpointProfile.WEB)
MINUTE = timedelta(minutes=1)
START = datetime.fromisoformat("2030-01-02T03:04:05Z")
ROOT = Hierarchy.create(PARTNER, now=START).root
SUCCESSOR = Hierarchy.create(PARTNER, now=START).root


def document(sequence: int, *roots: x509.Certificate) -> bytes:
    """Return a bundle."""
    return format_spiffe_bundle(SpiffeBundle(roots, sequence=sequence, refresh_hint=300)).encode()


@dataclass
class Lab:
    """A federator whose clock and network are the test's."""

    ledger: SqliteLedger
    now: datetime = START
    answers: dict[TrustDomain, bytes | Exception] = field(default_factory=dict)
    asked: list[tuple[Endpoint, Sequence[x509.Certificate]]] = field(default_factory=list)
    others: dict[TrustDomain, SpiffeBundle] = field(default_factory=dict)
    before_answer: Callable[[], object] = bool  # does nothing

    def __post_init__(self) -> None:
        self.federator = self.new()

    def new(self) -> Federator:
        """Return what a process that starts now has."""
        return Federator(
            self.ledger,
            lambda: self.others,
            OURS,
            self._fetch,
            rules=Rules(max_stale=timedelta(hours=1)),
            timing=Timing(self._clock, lambda: self.now, lambda: 0.5),
        )

    def _clock(self) -> float:
        return (self.now - START).total_seconds()

    def _fetch(self, endpoint: Endpoint, roots: Sequence[x509.Certificate]) -> bytes:
        self.asked.append((endpoint, tuple(roots)))
        self.before_answer()
        answer = self.answers[endpoint.trust_domain]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def turn(self, after: timedelta = timedelta(0)) -> Bundles:
        """Let time pass, look, poll what is due, look again; return what is handed out then."""
        self.now += after
        await self.federator.look()
        await self.federator.refresh_due()
        await self.federator.look()
        return self.federator.bundles

    def put(self, bundle: FederatedBundle) -> None:
        """Do as another process does."""
        self.ledger.put_federated(bundle, now=self.now, by="test")


def run(tmp_path: Path, scenario: Callable[[Lab], Awaitable[None]]) -> None:
    """Run `scenario` with a new ledger."""
    ledger = SqliteLedger.of(tmp_path)
    try:
        asyncio.run(scenario(Lab(ledger)))  # type: ignore[arg-type]
    finally:
        ledger.close()


def test_a_new_relationship_is_asked_at_once_and_then_as_it_hints(tmp_path: Path) -> None:
    """What came is in the ledger; the next poll is not before the hint has passed."""

    async def scenario(lab: Lab) -> None:
        assert await lab.turn() == {}
        lab.answers[PARTNER] = document(1, ROOT)
        lab.put(MADE)
        bundles = await lab.turn()
        assert bundles[PARTNER].x509_authorities == (ROOT,)
        (stored,) = lab.ledger.federated()
        assert (stored.sequence, stored.fetched_at) == (1, START)
        lab.answers[PARTNER] = document(2, ROOT, SUCCESSOR)
        await lab.turn(5 * MINUTE - timedelta(seconds=1))
        assert len(lab.asked) == 1
        bundles = await lab.turn(timedelta(seconds=1))
        assert bundles[PARTNER].x509_authorities == (ROOT, SUCCESSOR)
        (status,) = lab.federator.status()
        assert (status.name, status.available, status.fetched, status.failed) == ("partner.test", True, 2, 0)
        assert status.age_seconds == 0

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    "answer",
    [DependencyError("no answer"), RuntimeError("a bug"), b"<html>", document(1, ROOT), b'{"keys": []}'],
)
def test_a_failure_keeps_what_is_known_and_waits_for_the_next_poll(
    tmp_path: Path, answer: bytes | Exception
) -> None:
    """Not a bundle, an older one, no answer: one line in the log, no second try before the time."""

    async def scenario(lab: Lab) -> None:
        lab.answers[PARTNER] = document(2, ROOT)
        lab.put(MADE)
        await lab.turn()
        lab.answers[PARTNER] = answer
        with structlog.testing.capture_logs() as logs:
            for minutes in (5, 1, 4, 5):
                assert (await lab.turn(minutes * MINUTE))[PARTNER].sequence == 2
        assert [one["event"] for one in logs] == ["federated bundle not refreshed"]
        assert len(lab.asked) == 4
        assert lab.federator.status()[0].failed == 3
        lab.answers[PARTNER] = document(3, ROOT)
        with structlog.testing.capture_logs() as logs:
            assert (await lab.turn(5 * MINUTE))[PARTNER].sequence == 3
        assert [one["event"] for one in logs] == ["federated bundle refreshed"]

    run(tmp_path, scenario)


def test_a_start_during_an_outage_has_what_was_known_until_it_is_too_old(tmp_path: Path) -> None:
    """At once, before anything is fetched; after `max_stale` nobody there is trusted, until it is confirmed."""

    async def scenario(lab: Lab) -> None:
        lab.answers[PARTNER] = document(1, ROOT)
        lab.put(MADE)
        await lab.turn()
        lab.answers[PARTNER] = DependencyError("no answer")
        lab.federator = lab.new()
        assert lab.federator.bundles[PARTNER].x509_authorities == (ROOT,)
        assert PARTNER in await lab.turn(60 * MINUTE)
        with structlog.testing.capture_logs() as logs:
            assert await lab.turn(timedelta(seconds=1)) == {}
        assert "federated bundle too old" in [one["event"] for one in logs]
        assert lab.new().bundles == {}
        assert not lab.federator.status()[0].available
        lab.answers[PARTNER] = document(1, ROOT)
        assert PARTNER in await lab.turn(5 * MINUTE)

    run(tmp_path, scenario)


def test_what_was_deleted_does_not_come_back(tmp_path: Path) -> None:
    """Not even if its bundle was under way when it was deleted; and nobody asks for it any more."""

    async def scenario(lab: Lab) -> None:
        lab.answers[PARTNER] = document(1, ROOT)
        lab.put(MADE)
        await lab.turn()
        lab.answers[PARTNER] = document(2, SUCCESSOR)
        lab.before_answer = lambda: lab.ledger.delete_federated(PARTNER, now=lab.now, by="test")
        assert await lab.turn(5 * MINUTE) == {}
        assert lab.ledger.federated() == ()
        asked = len(lab.asked)
        assert await lab.turn(60 * MINUTE) == {}
        assert len(lab.asked) == asked
        assert lab.federator.status() == []

    run(tmp_path, scenario)


def test_one_that_is_made_again_is_asked_again(tmp_path: Path) -> None:
    """Deleted and created between two looks, it has no bundle: the last poll's does not count."""

    async def scenario(lab: Lab) -> None:
        lab.answers[PARTNER] = document(1, ROOT)
        lab.put(MADE)
        await lab.turn()
        lab.ledger.delete_federated(PARTNER, now=lab.now, by="test")
        lab.put(MADE)
        assert PARTNER in await lab.turn(MINUTE)
        assert len(lab.asked) == 2

    run(tmp_path, scenario)


def test_an_svid_endpoint_is_verified_with_the_newest_bundle_of_its_own_domain(tmp_path: Path) -> None:
    """First the one that was given, then the one fetched last; never another domain's."""

    async def scenario(lab: Lab) -> None:
        by_svid = replace(
            MADE,
            profile=EndpointProfile.SPIFFE,
            endpoint_id=SpiffeId.parse("spiffe://partner.test/bundles"),
            document=document(1, ROOT),
            sequence=1,
            fetched_at=START,
        )
        lab.answers[PARTNER] = document(2, SUCCESSOR)
        lab.put(by_svid)
        await lab.turn()
        await lab.turn(5 * MINUTE)
        assert [roots for _, roots in lab.asked] == [(ROOT,), (SUCCESSOR,)]

    run(tmp_path, scenario)


def test_an_endpoint_of_a_third_domain_needs_that_domains_bundle(tmp_path: Path) -> None:
    """From its own relationship or a file; without, nobody is asked."""

    async def scenario(lab: Lab) -> None:
        lab.answers[PARTNER] = document(1, ROOT)
        made = replace(
            MADE, profile=EndpointProfile.SPIFFE, endpoint_id=SpiffeId.parse("spiffe://other.test/host")
        )
        lab.put(made)
        assert await lab.turn() == {}
        assert lab.asked == []
        (other,) = (Hierarchy.create(OTHER, now=START).root,)
        lab.others[OTHER] = SpiffeBundle((other,))
        assert PARTNER in await lab.turn(5 * MINUTE)
        assert [roots for _, roots in lab.asked] == [(other,)]

    run(tmp_path, scenario)


def test_our_own_trust_domain_is_never_taken_from_the_ledger(tmp_path: Path) -> None:
    """However it got there, it is neither asked for nor handed out."""

    async def scenario(lab: Lab) -> None:
        lab.put(replace(MADE, trust_domain=OURS, document=document(1, ROOT), fetched_at=START))
        assert await lab.turn() == {}
        assert lab.asked == []

    run(tmp_path, scenario)


def test_what_was_written_into_the_ledger_by_hand_is_not_handed_out(tmp_path: Path) -> None:
    """One line says so, and the others' bundles are there."""

    async def scenario(lab: Lab) -> None:
        lab.answers = {PARTNER: DependencyError("no answer"), OTHER: DependencyError("no answer")}
        lab.put(replace(MADE, document=document(1, ROOT), fetched_at=START))
        lab.put(replace(MADE, trust_domain=OTHER, document=b"{}", fetched_at=START))
        with structlog.testing.capture_logs() as logs:
            assert list(await lab.turn()) == [PARTNER]
        assert "federated bundle unusable" in [one["event"] for one in logs]

    run(tmp_path, scenario)


def test_a_ledger_that_cannot_be_read_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is known is handed out until it is too old; one line says why nothing is followed."""

    async def scenario(lab: Lab) -> None:
        lab.answers[PARTNER] = document(1, ROOT)
        lab.put(MADE)
        await lab.turn()

        def fail() -> tuple[FederatedBundle, ...]:
            raise DependencyError("the disk is gone")

        monkeypatch.setattr(lab.ledger, "federated", fail)
        with structlog.testing.capture_logs() as logs:
            for _ in range(3):
                assert PARTNER in await lab.turn(MINUTE)
        assert [one["event"] for one in logs] == ["federations not followed"]
        assert await lab.turn(60 * MINUTE) == {}

    run(tmp_path, scenario)


def test_following_tells_of_every_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle that comes and one that goes, each once."""
    monkeypatch.setattr("ca.federator.LOOK_SECONDS", 0.01)

    async def scenario(lab: Lab) -> None:
        told: asyncio.Queue[Bundles] = asyncio.Queue()
        following = asyncio.create_task(lab.federator.follow(told.put_nowait))
        try:
            lab.answers[PARTNER] = document(1, ROOT)
            lab.put(MADE)
            assert list(await asyncio.wait_for(told.get(), 20)) == [PARTNER]
            lab.ledger.delete_federated(PARTNER, now=lab.now, by="test")
            assert await asyncio.wait_for(told.get(), 20) == {}
            assert told.empty()
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    run(tmp_path, scenario)
