"""A backup brings the same CA back, or says what is wrong with it; keys leave encrypted."""

from __future__ import annotations

import io
import sqlite3
import tarfile
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.ca_files import done, run, secret
from support.faults import FaultyDisk, PowerCut

from ca.archive import pack, unpack
from ca.authority import Authority

TRUST = ("--trust-domain", "cluster.local")
AT = datetime(2030, 1, 2, tzinfo=UTC)
ARCHIVE = pack({"ca-cert.pem": b"certificate", "ca-key.pem": b"key" * 100}, AT)


def contents(directory: Path) -> dict[str, bytes]:
    """Return every file of the directory."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    """Return a CA with encrypted keys."""
    file = secret(tmp_path / "pass", "correct horse")
    done("init", "--dir", tmp_path / "pki", *TRUST, "--passphrase-file", file)
    return tmp_path / "pki"


def test_a_restored_ca_is_the_same(pki: Path, tmp_path: Path) -> None:
    """Every file, its mode, and the ledger, which may be open at the time."""
    with closing(sqlite3.connect(pki / "ledger.sqlite3")) as ledger:
        ledger.execute("PRAGMA journal_mode=WAL")
        ledger.execute("CREATE TABLE issued (serial TEXT)")
        ledger.execute("INSERT INTO issued VALUES ('7')")
        ledger.commit()
        done("backup", "--dir", pki, "--out", tmp_path / "a.tar")
    assert (tmp_path / "a.tar").stat().st_mode & 0o777 == 0o600
    done("restore", tmp_path / "a.tar", "--dir", tmp_path / "b")
    ours, theirs = contents(pki), contents(tmp_path / "b")
    with closing(sqlite3.connect(tmp_path / "b" / "ledger.sqlite3")) as ledger:
        assert ledger.execute("SELECT serial FROM issued").fetchall() == [("7",)]
    for name in ("ca-key.pem", "root-key.pem", "ca-cert.pem", "cert-chain.pem", "root-cert.pem"):
        assert ours[name] == theirs[name]
        assert (pki / name).stat().st_mode == (tmp_path / "b" / name).stat().st_mode
    Authority.load(tmp_path / "b", lambda _: b"correct horse")


def test_plain_keys_do_not_leave_unseen(tmp_path: Path) -> None:
    """They are refused unless that was meant."""
    done("init", "--dir", tmp_path / "pki", *TRUST)
    words = ("backup", "--dir", tmp_path / "pki", "--out", tmp_path / "a.tar")
    result = run(*words)
    assert (result.exit_code, "not encrypted" in result.stderr) == (3, True)
    assert not (tmp_path / "a.tar").exists()
    done(*words, "--allow-unencrypted")
    assert run(*words, "--allow-unencrypted").exit_code == 2
    done(*words, "--allow-unencrypted", "--force")


def test_nothing_is_restored_over_anything(pki: Path, tmp_path: Path) -> None:
    """A directory with a file in it stays as it is."""
    done("backup", "--dir", pki, "--out", tmp_path / "a.tar")
    before = contents(pki)
    assert run("restore", tmp_path / "a.tar", "--dir", pki).exit_code == 2
    assert contents(pki) == before
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").write_text("x")
    assert run("restore", tmp_path / "a.tar", "--dir", tmp_path / "b").exit_code == 2
    assert contents(tmp_path / "b") == {"mine": b"x"}


def archived(*members: tuple[str, bytes], kind: bytes = tarfile.REGTYPE) -> bytes:
    """Return a tar archive of anything."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.type = len(content), kind
            archive.addfile(info, io.BytesIO(content))
    return written.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a backup"),
        (b"garbage" * 200, "not a backup"),
        (ARCHIVE[:1300], "cut short|damaged"),
        (ARCHIVE.replace(b"keykey", b"keykez", 1), "damaged"),
        (archived(("ca-cert.pem", b"x")), "manifest"),
        (archived(("manifest.json", b"[]")), "manifest"),
        (archived(("manifest.json", b'{"garrison_ca_backup": 2, "sha256": {}}')), "manifest"),
        (archived(("../ca-key.pem", b"x")), "no backup of a CA has"),
        (archived(("/etc/passwd", b"x")), "no backup of a CA has"),
        (archived(("ca-key.pem", b""), kind=tarfile.SYMTYPE), "no backup of a CA has"),
        (archived(("ca-key.pem", b"x"), ("ca-key.pem", b"y")), "no backup of a CA has"),
        (archived(("ca-key.pem", b"x" * 1_100_000)), "too large"),
    ],
)
def test_what_is_no_backup(tmp_path: Path, content: bytes, message: str) -> None:
    """It is said in a line, and the directory is not even made."""
    with pytest.raises(ValueError, match=message):
        unpack(content)
    (tmp_path / "a.tar").write_bytes(content)
    result = run("restore", tmp_path / "a.tar", "--dir", tmp_path / "b")
    assert (result.exit_code, (tmp_path / "b").exists()) == (2, False)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(ARCHIVE) - 1), st.integers(0, 255), st.integers(0, len(ARCHIVE)))
def test_a_damaged_archive_is_refused_or_the_same(position: int, value: int, end: int) -> None:
    """Whatever byte is changed and wherever it ends: the same files come out, or a ValueError."""
    damaged = bytearray(ARCHIVE)
    damaged[position] = value
    for content in (bytes(damaged), ARCHIVE[:end]):
        try:
            found = unpack(content)
        except ValueError:
            continue
        assert found == unpack(ARCHIVE)


@pytest.mark.parametrize("power", [False, True], ids=["full disk", "power cut"])
def test_restore_survives_a_fault_at_every_step(pki: Path, tmp_path: Path, power: bool) -> None:
    """Either the CA is there or the restore can be repeated."""
    done("backup", "--dir", pki, "--out", tmp_path / "a.tar")
    for step in range(1, 300):
        directory = tmp_path / f"r{step}"
        words = ("restore", tmp_path / "a.tar", "--dir", directory)
        with pytest.MonkeyPatch.context() as patch:
            disk = FaultyDisk(patch, step, power=power)
            try:
                result = run(*words)
                assert result.exit_code in {0, 2}
            except PowerCut:
                pass
            reached = disk.failed
        if run("status", "--dir", directory, "--json").stdout.find('"ready"') < 0:
            done(*words)
        assert contents(directory) == contents(pki)
        if not reached:
            break
