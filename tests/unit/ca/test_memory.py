"""A server follows its ledger, whoever else changes it and whatever goes wrong with it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import structlog
from cryptography import x509
from support.ledgers import API, WEB, certificate, entry

from ca.attestation import Registrations
from ca.authority import Authority
from ca.crl import RENEW_AFTER
from ca.keys import new_private_key
from ca.ledger import RevocationReason
from ca.memory import CaMemory
from ca.recording import Requester
from ca.registration import Registration
from ca.store.sqlite import SqliteLedger
from garrison.errors import IssuanceError
from garrison.identity import SpiffeId

CONFIGURED = Registration.parse(str(WEB), ["unix:uid:1"])
LIMIT_SECONDS = 20


class Following:
    """A memory that is followed, a clock that is set, and what the callbacks were told."""

    def __init__(self, ledger: SqliteLedger, authority: Authority, now: datetime) -> None:
        self.now = now
        self.memory = CaMemory(ledger, authority, [CONFIGURED], now=lambda: self.now)
        self.registrations: list[tuple[Registration, ...]] = []
        self.pushes = 0
        self._told = asyncio.Event()

    def use(self, registrations: Registrations) -> None:
        """Take in registrations."""
        self.registrations.append(tuple(registrations))
        self._told.set()

    def push(self) -> None:
        """Count a push."""
        self.pushes += 1
        self._told.set()

    async def told(self) -> None:
        """Wait until something was told since the last time."""
        await asyncio.wait_for(self._told.wait(), LIMIT_SECONDS)
        self._told.clear()

    @contextlib.asynccontextmanager
    async def running(self):  # type: ignore[no-untyped-def]  # noqa: ANN201
        """Follow for the length of a block."""
        task = asyncio.create_task(self.memory.run(self.use, self.push))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqliteLedger]:
    """Return the ledger as another process has it."""
    opened = SqliteLedger.of(tmp_path)
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ca.memory.LOOK_SECONDS", 0.01)


def test_registrations_and_revocations_of_others_are_followed(
    ledger: SqliteLedger, tmp_path: Path, authority: Authority, now: datetime
) -> None:
    """Each is told once; those of the settings come first; a foreign trust domain's are left out."""

    async def main() -> None:
        own = SqliteLedger.of(tmp_path)
        following = Following(own, authority, now)
        assert tuple(following.memory.registrations) == (CONFIGURED,)
        assert len(following.memory.crls) == 1
        async with following.running():
            added = entry("1", API)
            ledger.add_entry(added)
            await following.told()
            assert following.registrations == [(CONFIGURED, added.registration)]
            with structlog.testing.capture_logs() as logs:
                ledger.add_entry(entry("2", SpiffeId.parse("spiffe://other/web")))
                ledger.delete_entry("1", now=now, by="root")
                await following.told()
            assert following.registrations[-1] == (CONFIGURED,)
            assert "registrations of another trust domain" in [one["event"] for one in logs]
            issued = certificate(issuer=authority.issuer.key_identifier, not_after=now + timedelta(hours=1))
            ledger.record_issued([issued])
            ledger.revoke(issued.issuer, issued.serial, RevocationReason.SUPERSEDED, now=now, by="root")
            await following.told()
            assert following.pushes == 1
            page = following.memory.page("/ca/crl")
            assert page is not None
            assert [one.serial_number for one in x509.load_der_x509_crl(page[1])] == [issued.serial]
            following.now = now + RENEW_AFTER
            await following.told()
            assert ledger.crls()[0].number == 3
        assert following.memory.page("/ca/other") is None
        following.memory.close()

    asyncio.run(main())


def test_registrations_are_the_same_until_they_change_and_those_of_nodes_are_found_by_node(
    ledger: SqliteLedger, tmp_path: Path, authority: Authority, now: datetime
) -> None:
    """The index is kept while only others' entries come and go; what has no parent is no node's to give."""
    nodes = [SpiffeId.parse(f"spiffe://cluster.local/node/{name}") for name in "ab"]

    async def main() -> None:
        memory = Following(SqliteLedger.of(tmp_path), authority, now).memory
        before = memory.registrations
        ledger.add_entry(
            entry("other", SpiffeId.parse("spiffe://other/web"), parent_id="spiffe://other/node")
        )
        await memory.refresh()
        assert memory.registrations is before
        assert memory.node_entries == {}
        ledger.add_entry(entry("direct", API))
        given = [
            entry(name, API, f"unix:uid:{name}", parent_id=str(nodes[place]))
            for name, place in (("3", 0), ("2", 1), ("1", 0))
        ]
        for one in given:
            ledger.add_entry(one)
        await memory.refresh()
        assert len(memory.registrations) == 5
        assert memory.registrations.direct(API) is not None
        assert {node: list(mine.values()) for node, mine in memory.node_entries.items()} == {
            nodes[0]: [given[0], given[2]],
            nodes[1]: [given[1]],
        }
        assert list(memory.node_entries[nodes[0]]) == ["3", "1"]
        memory.close()

    asyncio.run(main())


def test_an_expired_ca_still_follows_registrations_and_complains_once(
    ledger: SqliteLedger, tmp_path: Path, authority: Authority
) -> None:
    """What cannot be signed keeps nothing else from being right, and does not fill the log."""

    async def main() -> None:
        with structlog.testing.capture_logs() as logs:
            own = SqliteLedger.of(tmp_path)
            following = Following(own, authority, authority.not_after)
            async with following.running():
                for number in range(3):
                    ledger.add_entry(entry(str(number), API, f"unix:uid:{number}"))
                    await following.told()
            assert following.memory.page("/ca/crl") is None
            assert following.memory.crl_pem() == b""
            following.memory.close()
        reasons = [one["reason"] for one in logs if one["event"] == "ledger not followed"]
        assert len(reasons) == 1
        assert "expired" in reasons[0]

    asyncio.run(main())


def test_a_ledger_that_fails_for_a_while_is_followed_again(
    ledger: SqliteLedger, tmp_path: Path, authority: Authority, now: datetime
) -> None:
    """What is in force stays in force meanwhile."""

    class Failing(SqliteLedger):
        failing = False

        def entries_version(self) -> int:
            if self.failing:
                raise ZeroDivisionError
            return super().entries_version()

    async def main() -> None:
        own = Failing(tmp_path / "ledger.sqlite3")
        following = Following(own, authority, now)
        with structlog.testing.capture_logs() as logs:
            async with following.running():
                own.failing = True
                async with asyncio.timeout(LIMIT_SECONDS):
                    while "ledger not followed" not in [one["event"] for one in logs]:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                assert tuple(following.memory.registrations) == (CONFIGURED,)
                ledger.add_entry(entry("1", API))
                own.failing = False
                await following.told()
                assert len(following.registrations[-1]) == 2
        following.memory.close()

    asyncio.run(main())


def test_a_clock_that_is_behind_ends_issuing_until_it_is_right(
    ledger: SqliteLedger, tmp_path: Path, authority: Authority, now: datetime
) -> None:
    """Others' newest record says so: nothing is signed, the stored CRL goes on to be served; all said once."""

    async def main() -> None:
        own = SqliteLedger.of(tmp_path)
        following = Following(own, authority, now)
        stored = following.memory.crls
        async with following.running():
            ledger.add_entry(entry("1", API, at=now + timedelta(hours=1)))
            with structlog.testing.capture_logs() as logs:
                await following.told()
                key = new_private_key().public_key()
                with pytest.raises(IssuanceError, match="the clock of this machine"):
                    await following.memory.issuer.issue(
                        WEB, key, requester=Requester("x", "unix"), now=now, ttl=timedelta(hours=1)
                    )
                following.now = now - timedelta(hours=8)
                ledger.add_entry(entry("2", WEB, at=now + timedelta(hours=1)))
                await following.told()
            assert [one["event"] for one in logs].count("issuing ended") == 1
            assert "ledger not followed" not in [one["event"] for one in logs]
            assert following.memory.crls == stored
            assert "nothing is issued: the clock of this machine" in following.memory.describe()
            following.now = now + timedelta(hours=1)
            ledger.add_entry(entry("3", WEB, "unix:uid:3", at=now + timedelta(hours=1)))
            await following.told()
            assert following.memory.clock_problem == ""
            await following.memory.issuer.issue(
                WEB, key, requester=Requester("x", "unix"), now=following.now, ttl=timedelta(hours=1)
            )
        following.memory.close()

    asyncio.run(main())
