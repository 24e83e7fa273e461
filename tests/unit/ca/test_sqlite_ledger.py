"""The file of a ledger: private, of one version, damaged or full without a wrong answer."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from support.ledgers import API, ISSUER, NOW, certificate, entry

from ca.audit import AuditEvent, AuditHead, AuditRecord
from ca.ledger import CertificateQuery, LedgerUnavailableError
from ca.recording import NotRecordedError, record
from ca.store.database import Database
from ca.store.schema import STEPS, VERSION
from ca.store.sqlite import LEDGER, SqliteLedger
from garrison.errors import ConfigError


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqliteLedger]:
    """Return a ledger with three audit records."""
    opened = SqliteLedger.of(tmp_path)
    for number in range(1, 4):
        opened.record_issued([certificate(number)])
    yield opened
    opened.close()


def run(path: Path, *statements: str) -> None:
    """Change the file behind the ledger's back."""
    connection = sqlite3.connect(path / LEDGER)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def problem(path: Path) -> str:
    """Return why the ledger in `path` cannot be opened."""
    with pytest.raises(ConfigError) as error:
        SqliteLedger.of(path)
    assert error.value.diagnostics[0].file == str(path / LEDGER)
    return error.value.diagnostics[0].message


def test_only_the_owner_reads_it(ledger: SqliteLedger, tmp_path: Path) -> None:
    """The file and those beside it have mode 0600, whatever the umask says."""
    assert {path.name for path in tmp_path.iterdir()} == {LEDGER, f"{LEDGER}-wal", f"{LEDGER}-shm"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_it_flushes_every_commit(ledger: SqliteLedger) -> None:
    """Write-ahead log, and on disk when a transaction ends."""
    with ledger._database.reading() as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_newer_ledger_is_refused(tmp_path: Path) -> None:
    """What a newer version wrote is not touched, and the message says why."""
    SqliteLedger.of(tmp_path).close()
    run(tmp_path, f"PRAGMA user_version = {VERSION + 1}")
    before = (tmp_path / LEDGER).read_bytes()
    assert "newer Garrison" in problem(tmp_path)
    assert (tmp_path / LEDGER).read_bytes() == before


def test_an_older_file_is_migrated_in_one_step_or_not_at_all(tmp_path: Path) -> None:
    """A step that fails leaves the file as it was; the next try begins there."""
    path = tmp_path / "db"
    Database(path, ["CREATE TABLE a (x);"]).close()
    broken = ["CREATE TABLE a (x);", "CREATE TABLE b (x);\nINSERT INTO b VALUES (1);\nCREATE TABLE a (x);"]
    with pytest.raises(LedgerUnavailableError, match="already exists"):
        Database(path, broken)
    whole = ["CREATE TABLE a (x);", "CREATE TABLE b (x);\nINSERT INTO b VALUES (1);"]
    database = Database(path, whole)
    with database.reading() as connection:
        assert connection.execute("SELECT x FROM b").fetchall() == [(1,)]
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
    database.close()


def test_a_ledger_of_the_version_before_is_taken_over(tmp_path: Path) -> None:
    """Its registrations said nothing of tokens, which lived for 5 minutes; everything else stays as it was."""
    Database(tmp_path / LEDGER, STEPS[:1]).close()
    record = AuditRecord.after(AuditHead(), AuditEvent.ENTRY_CREATED, actor="root", details={}, now=NOW)
    connection = sqlite3.connect(tmp_path / LEDGER)
    with connection:
        connection.execute(
            "INSERT INTO entries VALUES (7, 'old', 'spiffe://cluster.local/web', '', '[\"unix:uid:1000\"]',"
            " 3600000000, '[\"web\"]', '[\"partner.test\"]', 'in', 1893553445000678, 'root')"
        )
        connection.execute(
            "INSERT INTO audit VALUES (?,?,?,?,?,?,?)",
            (1, record.previous, record.time, record.event, record.actor, record.details, record.hash),
        )
    connection.close()
    old = entry("old", dns_names=["web"], federates_with=["partner.test"], hint="in")
    assert old.registration.jwt_ttl == timedelta(minutes=5)
    ledger = SqliteLedger.of(tmp_path)
    assert ledger.entries() == (old,)
    new = entry("new", API, jwt_ttl=timedelta(minutes=9))
    ledger.add_entry(new)
    assert ledger.entries() == (old, new)
    assert ledger.delete_entry("old", now=NOW, by="root") == old
    assert ledger.verify_audit(record.head).intact
    ledger.close()
    connection = sqlite3.connect(tmp_path / LEDGER)
    assert connection.execute("PRAGMA user_version").fetchone() == (VERSION,)
    connection.close()


def test_every_statement_of_the_schema_is_run() -> None:
    """Splitting the steps into statements loses nothing: triggers have semicolons of their own."""
    made = sqlite3.connect(":memory:")
    for number, step in enumerate(STEPS, start=1):
        made.executescript(step)
        (found,) = made.execute("SELECT count(*) FROM sqlite_master WHERE sql IS NOT NULL").fetchone()
        assert found == sum(one.count("CREATE ") for one in STEPS[:number])
    made.close()


@pytest.mark.parametrize("content", [b"not a database, and long enough to have a header" * 40, b"x"])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    """A file that is no ledger is named, and stays as it is."""
    (tmp_path / LEDGER).write_bytes(content)
    (tmp_path / LEDGER).chmod(0o600)
    assert problem(tmp_path) == "it is not a ledger"
    assert (tmp_path / LEDGER).read_bytes() == content


def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    """A SQLite file with other tables is not made into a ledger."""
    run(tmp_path, "CREATE TABLE t (x)")
    (tmp_path / LEDGER).chmod(0o600)
    assert problem(tmp_path) == "it is not a ledger"


def test_a_file_that_others_can_write_is_refused(ledger: SqliteLedger, tmp_path: Path) -> None:
    """Who can write to it could revoke, register and forge the log."""
    (tmp_path / LEDGER).chmod(0o620)
    assert "others can write" in problem(tmp_path)


def test_a_link_or_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    """It is made where it is, not where somebody points to."""
    (tmp_path / LEDGER).symlink_to(tmp_path / "elsewhere")
    assert "cannot be opened" in problem(tmp_path)
    (tmp_path / LEDGER).unlink()
    (tmp_path / LEDGER).mkdir()
    assert "cannot be opened" in problem(tmp_path)
    assert "cannot be opened" in problem(tmp_path / "none")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET actor = 'x' WHERE sequence = 2",
        "DELETE FROM audit WHERE sequence = 3",
        "INSERT OR REPLACE INTO audit SELECT sequence, previous, time, event, 'x', details, hash FROM audit",
        "INSERT INTO audit VALUES (7, '', '', '', '', '', '')",
    ],
)
def test_the_audit_log_is_only_appended_to(ledger: SqliteLedger, tmp_path: Path, statement: str) -> None:
    """SQL that changes, cuts, replaces or skips records fails."""
    with pytest.raises(sqlite3.IntegrityError, match="only appended to"):
        run(tmp_path, statement)
    assert ledger.verify_audit().intact


@pytest.mark.parametrize(
    ("statement", "broken_at", "problem"),
    [
        ("UPDATE audit SET actor = 'x' WHERE sequence = 2", 2, "does not have its hash"),
        ("UPDATE audit SET details = '{}' WHERE sequence = 1", 1, "does not have its hash"),
        ("UPDATE audit SET hash = 'x' WHERE sequence = 3", 3, "does not have its hash"),
        ("UPDATE audit SET previous = hash WHERE sequence = 2", 2, "does not name the hash"),
        ("DELETE FROM audit WHERE sequence = 2", 2, "missing"),
        ("DELETE FROM audit WHERE sequence = 1", 1, "missing"),
        ("UPDATE audit SET sequence = -1 WHERE sequence = 1", 1, "missing"),
    ],
)
def test_verifying_names_the_first_broken_record(
    ledger: SqliteLedger, tmp_path: Path, statement: str, broken_at: int, problem: str
) -> None:
    """Who can drop the triggers can change a record, but not unseen."""
    run(tmp_path, "DROP TRIGGER audit_is_not_changed", "DROP TRIGGER audit_is_not_cut", statement)
    verdict = ledger.verify_audit()
    assert (verdict.intact, verdict.broken_at) == (False, broken_at)
    assert problem in verdict.problem
    assert verdict.head.sequence == broken_at - 1


def test_a_cut_end_shows_only_against_a_head_written_down(ledger: SqliteLedger, tmp_path: Path) -> None:
    """That is what writing it down is for."""
    head = ledger.audit_head()
    run(tmp_path, "DROP TRIGGER audit_is_not_cut", "DELETE FROM audit WHERE sequence = 3")
    assert ledger.verify_audit().intact
    assert ledger.verify_audit(head).broken_at == 3


def test_a_full_disk_issues_nothing_and_loses_nothing(ledger: SqliteLedger) -> None:
    """The certificate does not leave, what was recorded stays, and with space again all goes on."""
    with ledger._database.reading() as connection:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")
    big = [certificate(requester="x" * 10_000)]
    with pytest.raises(NotRecordedError, match=r"nothing is issued.*full"):
        record(ledger, big)
    assert {one.serial for one in ledger.issued(CertificateQuery(), now=NOW).certificates} == {1, 2, 3}
    assert ledger.verify_audit().head.sequence == 3
    with ledger._database.reading() as connection:
        connection.execute(f"PRAGMA max_page_count = {pages + 1000}")
    record(ledger, big)
    assert ledger.find(serial=big[0].serial) == tuple(big)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE certificates SET spiffe_id = 'web'",
        "UPDATE certificates SET kind = 'other'",
        "UPDATE certificates SET not_after = 9223372036854775807",
    ],
)
def test_a_damaged_row_is_no_certificate(ledger: SqliteLedger, tmp_path: Path, statement: str) -> None:
    """A value that we never write is a failure of the ledger, not a crash."""
    run(tmp_path, statement)
    with pytest.raises(LedgerUnavailableError, match="damaged"):
        ledger.find(serial=1)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET selectors = '[]'",
        "UPDATE entries SET selectors = '[\"unix:uid:x\"]'",
        "UPDATE entries SET selectors = '7'",
        "UPDATE entries SET svid_ttl = 0",
    ],
)
def test_a_damaged_registration_is_nobodys(ledger: SqliteLedger, tmp_path: Path, statement: str) -> None:
    """A registration that could not have been made entitles nobody."""
    ledger.add_entry(entry("1"))
    run(tmp_path, statement)
    with pytest.raises(LedgerUnavailableError, match="damaged"):
        ledger.entries()


def test_a_file_that_went_bad_is_a_failure(ledger: SqliteLedger, tmp_path: Path) -> None:
    """A table that is gone, or a log that refuses, is an unavailable ledger: nothing half done."""
    run(tmp_path, "DROP TABLE certificates")
    with pytest.raises(LedgerUnavailableError, match="no such table"):
        ledger.find(serial=1)
    with pytest.raises(NotRecordedError):
        record(ledger, [certificate()])
    assert ledger.audit_head().sequence == 3
    run(tmp_path, "CREATE TRIGGER closed BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'closed'); END")
    with pytest.raises(LedgerUnavailableError, match="closed"):
        ledger.append_audit(AuditEvent.ISSUANCE_DENIED, now=NOW, by="x", details={})


def test_a_closed_ledger_answers_no_more(ledger: SqliteLedger) -> None:
    """Who still asks gets an error, not a file that is open again."""
    ledger.close()
    with pytest.raises(LedgerUnavailableError, match="closed"):
        ledger.crl(ISSUER)
