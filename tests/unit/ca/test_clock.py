"""What commands do by a clock that is wrong: an error in one line, nothing issued, nothing lost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from support.ca_files import plain, run
from support.clocks import Clock
from support.ledgers import HOUR

from ca.audit import AuditHead
from ca.authority import Hierarchy
from ca.bundle import parse_certificates
from ca.keys import new_private_key
from ca.store.sqlite import LEDGER, SqliteLedger
from ca.verification import verify_svid
from garrison.errors import IssuanceError
from garrison.identity import TrustDomain

WEB = "spiffe://cluster.local/ns/default/sa/web"
NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
DAY = timedelta(days=1)


def make(pki: Path, clock: Clock, at: datetime) -> Path:
    """Make a CA with an SVID in `web`, and a signing request, by a clock that says `at`."""
    clock.now = at
    plain("init", "--dir", pki, "--trust-domain", "cluster.local", "--no-passphrase")
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    signed = csr.sign(new_private_key(), hashes.SHA256())
    (pki.parent / "request.pem").write_bytes(signed.public_bytes(Encoding.PEM))
    return pki


@pytest.fixture
def used(tmp_path: Path, clock: Clock) -> Path:
    """Return a CA with two days of history up to `NOW`: an old authority, an active, a prepared one."""
    pki = make(tmp_path / "pki", clock, NOW - 2 * DAY)
    plain("jwt", "mint", "--dir", pki, "--audience", "db", WEB)
    plain("authority", "prepare", "--dir", pki, "--new-root")
    plain("authority", "activate", "--dir", pki, "--now")
    clock.now = NOW
    plain("issue", "--dir", pki, WEB, "--out", tmp_path / "web")
    return pki


def state(pki: Path) -> dict[str, bytes]:
    """Return every file beside and in the directory of a CA but the ledger's."""
    return {
        str(path): path.read_bytes()
        for path in sorted(pki.parent.rglob("*"))
        if path.is_file() and not path.name.startswith(LEDGER)
    }


def head(pki: Path) -> AuditHead:
    """Return the end of the audit log."""
    ledger = SqliteLedger.of(pki)
    try:
        return ledger.audit_head()
    finally:
        ledger.close()


ISSUING: dict[str, Sequence[str]] = {
    "issue": ("issue", "--dir", "PKI", WEB, "--out", "BESIDE/out"),
    "sign": ("sign", "--dir", "PKI", "BESIDE/request.pem", WEB, "--out", "BESIDE/out"),
    "renew": ("renew", "--dir", "PKI", "BESIDE/web", "--force"),
    "crl": ("crl", "--dir", "PKI", "--out", "BESIDE/crl.pem"),
    "token": ("token", "create", "--dir", "PKI", "spiffe://cluster.local/agent"),
    "prepare": ("authority", "prepare", "--dir", "PKI"),
    "prepare a root": ("authority", "prepare", "--dir", "PKI", "--new-root"),
    "prepare a root elsewhere": (
        *("authority", "prepare", "--dir", "PKI", "--new-root"),
        *("--root-key-out", "BESIDE/root-key.pem"),
    ),
    "ask an outside root": ("authority", "prepare", "--dir", "PKI", "--csr"),
}
CHANGING: dict[str, Sequence[str]] = {
    "entry": ("entry", "create", "--dir", "PKI", WEB, "--selector", "unix:uid:1"),
    "federation": (
        *("federation", "create", "--dir", "PKI", "partner.test", "https://partner.test/bundle"),
        *("--profile", "https_web"),
    ),
    "activate": ("authority", "activate", "--dir", "PKI", "--now"),
    "taint": ("authority", "taint", "--dir", "PKI", "OLD"),
    "revoke the authority": ("authority", "revoke", "--dir", "PKI", "OLD", "--now"),
}


def arguments(pki: Path, command: Sequence[str]) -> list[str]:
    """Return the command for a CA."""
    named = {"PKI": str(pki)}
    if "OLD" in command:
        named["OLD"] = plain("authority", "list", "--dir", pki)[0]["authority"]
    return [named.get(one, one).replace("BESIDE", str(pki.parent)) for one in command]


@pytest.mark.parametrize("name", [one for one in ISSUING if one != "renew"])
def test_a_ca_of_the_future_issues_nothing(tmp_path: Path, clock: Clock, name: str) -> None:
    """It was made by a clock that was ahead, or this one is behind: the error says from when it is valid."""
    pki = make(tmp_path / "pki", clock, NOW + HOUR)
    before, clock.now = state(pki), NOW
    result = run(*arguments(pki, ISSUING[name]))
    assert (result.exit_code, result.stderr.count("\n")) == (3, 1), result.output
    assert "not valid before 2030-01-02T04:02:05Z" in result.stderr
    assert state(pki) == before
    clock.now = NOW + HOUR
    assert run(*arguments(pki, ISSUING[name])).exit_code == 0


def test_a_token_of_the_future_is_not_made(tmp_path: Path, clock: Clock) -> None:
    """Neither by a CA that is not valid yet, nor with a key that nobody could know by now."""
    mint = ("--audience", "db", WEB)
    pki = make(tmp_path / "pki", clock, NOW + HOUR)
    plain("jwt", "mint", "--dir", pki, *mint)
    clock.now = NOW
    result = run("jwt", "mint", "--dir", pki, *mint)
    assert (result.exit_code, "not valid before" in result.stderr) == (3, True)
    other = make(tmp_path / "other", clock, NOW - DAY)
    clock.now = NOW
    plain("jwt", "mint", "--dir", other, *mint)
    clock.now = NOW - HOUR
    result = run("jwt", "mint", "--dir", other, *mint)
    assert (result.exit_code, "is the clock right?" in result.stderr) == (3, True)
    clock.now = NOW - timedelta(minutes=5)
    assert run("jwt", "mint", "--dir", other, *mint).exit_code == 0


def test_no_ca_of_the_future_is_taken_in(tmp_path: Path, clock: Clock) -> None:
    """One that is plugged in; for the answer of an outside root see `test_init`."""
    Hierarchy.create(TrustDomain("cluster.local"), now=NOW + HOUR).save(tmp_path / "made")
    result = run("init", "--dir", tmp_path / "pki", "--from", tmp_path / "made", "--no-passphrase")
    assert (result.exit_code, "not valid before" in result.stderr) == (3, True)
    assert not (tmp_path / "pki").exists()


@pytest.mark.parametrize("name", [*ISSUING, *CHANGING])
def test_a_clock_behind_the_newest_record_gives_nothing(used: Path, clock: Clock, name: str) -> None:
    """An hour behind what is recorded: refused with both times, and every file is as it was."""
    if name == "activate":
        plain("authority", "prepare", "--dir", used)
    if name == "revoke the authority":
        plain("authority", "taint", "--dir", used, plain("authority", "list", "--dir", used)[0]["authority"])
    command = arguments(used, (ISSUING | CHANGING)[name])
    before, end = state(used), head(used)
    clock.now = NOW - HOUR
    result = run(*command)
    assert (result.exit_code, result.stderr.count("\n")) == (3, 1), result.output
    assert "says 2030-01-02T02:04:05Z, and the newest record of the ledger is of 2030" in result.stderr
    assert "ca clock --accept" in result.stderr
    assert (state(used), head(used)) == (before, end)
    clock.now = NOW - timedelta(minutes=1)
    assert run(*command).exit_code == 0


def test_a_bundle_is_published_without_a_number(used: Path, clock: Clock) -> None:
    """Its number would be a change; the roots are what they are, whatever the clock says."""
    clock.now = NOW - HOUR
    result = run("bundle", "--dir", used, "--format", "spiffe")
    assert (result.exit_code, "newest record" in result.stderr) == (0, True)
    assert "spiffe_sequence" not in json.loads(result.stdout)


def test_taking_away_waits_for_no_clock(used: Path, clock: Clock) -> None:
    """A certificate is revoked, entry and token are deleted; the CRL follows once the clock is right."""
    token = plain("token", "create", "--dir", used, "spiffe://cluster.local/agent")
    entry = plain("entry", "create", "--dir", used, WEB, "--selector", "unix:uid:1")
    clock.now = NOW - HOUR
    result = run("revoke", "--dir", used, used.parent / "web" / "svid.pem")
    assert (result.exit_code, "it is revoked, but no CRL says so yet" in result.stderr) == (0, True)
    plain("token", "delete", "--dir", used, token["id"])
    plain("entry", "delete", "--dir", used, entry["entry"])
    assert [one["status"] for one in plain("list", "--dir", used)["certificates"]] == ["revoked"]
    assert plain("audit", "--dir", used)["intact"]
    clock.now = NOW
    assert sum(one["revoked"] for one in plain("crl", "--dir", used)["crls"]) == 1


def test_what_is_not_due_needs_no_clock(used: Path, clock: Clock) -> None:
    """By a clock that is behind nothing is due: `renew` leaves alone what it would, as ever."""
    clock.now = NOW - HOUR
    assert plain("renew", "--dir", used, used.parent / "web")["renewed"] is False


def test_a_clock_that_is_ahead_issues_what_nobody_takes_yet(used: Path, clock: Clock) -> None:
    """It cannot be told from a right one. Nothing is lost: once it is right an operator says so, on record."""
    clock.now = NOW + HOUR
    plain("issue", "--dir", used, WEB, "--out", used.parent / "early")
    leaf, *chain = parse_certificates((used.parent / "early" / "svid.pem").read_bytes())
    roots = parse_certificates((used.parent / "early" / "bundle.pem").read_bytes())
    assert leaf.not_valid_before_utc == NOW + HOUR - timedelta(minutes=2)
    with pytest.raises(IssuanceError):
        verify_svid(leaf, chain, roots, NOW)
    assert plain("clock", "--dir", used)["problem"] is None
    clock.now = NOW + timedelta(minutes=1)
    told = run("clock", "--dir", used, "--json")
    assert told.exit_code == 3
    assert json.loads(told.stdout)["newest_record"].startswith("2030-01-02T04:04:05")
    assert "newest record" in json.loads(told.stdout)["problem"]
    assert run("issue", "--dir", used, WEB, "--out", used.parent / "late").exit_code == 3
    assert plain("clock", "--dir", used, "--accept")["problem"] is None
    plain("issue", "--dir", used, WEB, "--out", used.parent / "late")
    (line,) = [
        json.loads(one)
        for one in run("audit", "--dir", used, "--print").stdout.splitlines()
        if "clock_accepted" in one
    ]
    assert line[2].startswith("2030-01-02T03:05:05")
    assert "uid" in line[4]
    assert plain("audit", "--dir", used)["intact"]


def test_a_clock_is_not_accepted_for_nothing(tmp_path: Path, clock: Clock) -> None:
    """Where nothing is wrong nothing is recorded; a CA that is not valid stays what it is."""
    pki = make(tmp_path / "pki", clock, NOW)
    plain("token", "create", "--dir", pki, "spiffe://cluster.local/agent")
    end = head(pki)
    plain("clock", "--dir", pki, "--accept")
    assert head(pki) == end
    clock.now = NOW + 3651 * DAY
    told = run("clock", "--dir", pki, "--accept", "--json")
    assert (told.exit_code, "expired" in json.loads(told.stdout)["problem"]) == (3, True)


@pytest.mark.parametrize("name", ["issue", "sign", "renew", "crl", "token"])
def test_a_clock_years_ahead_issues_nothing(used: Path, clock: Clock, name: str) -> None:
    """By it the CA has expired."""
    before = state(used)
    clock.now = NOW + 3651 * DAY
    result = run(*arguments(used, ISSUING[name]))
    assert (result.exit_code, result.stderr.count("\n")) == (3, 1), result.output
    assert "expired" in result.stderr
    assert state(used) == before
