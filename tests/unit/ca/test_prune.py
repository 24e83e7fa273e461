"""`ca ledger prune`: what ended long ago goes, by hand only; nothing that may still count."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.ca_files import plain, run
from support.clocks import Clock
from support.ledgers import HOUR, ISSUER, certificate

from ca.ledger import RevocationReason
from ca.store.sqlite import SqliteLedger

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def pki(tmp_path: Path, clock: Clock) -> Path:
    """Return a CA with 2,500 certificates that ended 100 days ago, one of them revoked, and 5 from today."""
    directory, clock.now = tmp_path / "pki", NOW - 101 * DAY
    plain("init", "--dir", directory, "--trust-domain", "cluster.local", "--no-passphrase")
    clock.now = NOW
    ledger = SqliteLedger.of(directory)
    old = NOW - 100 * DAY
    made = [certificate(issued_at=old, not_before=old, not_after=old + HOUR) for _ in range(2500)]
    ledger.record_issued(made)
    ledger.revoke(ISSUER, made[7].serial, RevocationReason.KEY_COMPROMISE, now=old, by="root")
    ledger.record_issued([certificate(issued_at=NOW, not_after=NOW + HOUR) for _ in range(5)])
    ledger.close()
    return directory


def test_old_records_go_and_the_log_stays_whole(pki: Path) -> None:
    """A dry run says how many; the revoked one is kept, and so is the record of each issue."""
    before = plain("audit", "--dir", pki)
    told = plain("ledger", "prune", "--dir", pki, "--expired-for", "90d", "--dry-run")
    assert told == {"expired_before": "2029-10-04T03:04:05Z", "would_remove": 2499}
    assert plain("audit", "--dir", pki) == before
    assert plain("ledger", "prune", "--dir", pki, "--expired-for", "90d")["removed"] == 2499
    left = plain("list", "--dir", pki)["certificates"]
    assert sorted(one["status"] for one in left) == ["revoked", *["valid"] * 5]
    after = plain("audit", "--dir", pki, "--head", before["head"])
    assert (after["intact"], after["records"]) == (True, before["records"] + 3)
    assert plain("ledger", "prune", "--dir", pki, "--expired-for", "90d")["removed"] == 0
    assert plain("audit", "--dir", pki)["head"] == after["head"]


def test_what_ended_lately_stays(pki: Path) -> None:
    """And nobody can ask for less than a week."""
    assert plain("ledger", "prune", "--dir", pki, "--expired-for", "100d")["removed"] == 0
    for age, code in (("6d", 3), ("0s", 3), ("36501d", 3), ("999999d", 3), ("x", 2)):
        assert run("ledger", "prune", "--dir", pki, "--expired-for", age).exit_code == code
    assert run("ledger", "prune", "--dir", pki).exit_code == 2
    assert len(plain("list", "--dir", pki, "--limit", "1000", "--expired")["certificates"]) == 1000


def test_a_clock_that_is_ahead_removes_nothing_that_counts(pki: Path, clock: Clock) -> None:
    """It goes by the newest record, which a CA in use has of today."""
    clock.now = NOW + 3000 * DAY
    told = plain("ledger", "prune", "--dir", pki, "--expired-for", "90d")
    assert told == {"expired_before": "2029-10-04T03:04:05Z", "removed": 2499}
    clock.now = NOW
    assert len(plain("list", "--dir", pki, "--valid")["certificates"]) == 5


def test_a_clock_that_is_behind_removes_nothing(pki: Path, clock: Clock) -> None:
    """It is an error, also when only a number was asked for."""
    clock.now = NOW - HOUR
    for more in ((), ("--dry-run",)):
        result = run("ledger", "prune", "--dir", pki, "--expired-for", "90d", *more)
        assert (result.exit_code, result.stderr.count("\n")) == (3, 1)
        assert "newest record" in result.stderr
    assert len(plain("list", "--dir", pki, "--limit", "1000")["certificates"]) == 1000


def test_a_pruned_ledger_can_be_moved(pki: Path, tmp_path: Path) -> None:
    """Its audit log says how many there were and how many went."""
    plain("ledger", "prune", "--dir", pki, "--expired-for", "90d")
    moved = plain(
        "ledger", "migrate", "--dir", pki, "--from", pki / "ledger.sqlite3", "--to", tmp_path / "new"
    )
    assert moved["certificates"] == 6
    copied = plain("list", "--dir", pki, "--ledger", tmp_path / "new")
    assert copied == plain("list", "--dir", pki)
