"""The commands that read and change the ledger, each with its exit code."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from support.ca_files import plain, run
from support.valkey import DURABLE, Valkey

from ca.ledger import LedgerRefusalError, token_hash
from ca.store.sqlite import LEDGER, SqliteLedger

WEB = "spiffe://cluster.local/ns/default/sa/web"


def crls_in(pem: bytes) -> list[x509.CertificateRevocationList]:
    """Return the CRLs in `pem`, in order."""
    end = b"-----END X509 CRL-----"
    return [x509.load_pem_x509_crl(part + end) for part in pem.split(end)[:-1]]


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    """Return the directory of a new CA."""
    assert run("init", "--dir", tmp_path / "pki", "--trust-domain", "cluster.local").exit_code == 0
    return tmp_path / "pki"


def issue(pki: Path, name: str = "web") -> dict[str, Any]:
    """Issue an SVID into a folder beside the CA."""
    issued: dict[str, Any] = plain(
        "issue", "--dir", pki, f"spiffe://cluster.local/{name}", "--out", pki.parent / name
    )
    return issued


def test_what_is_issued_is_listed(pki: Path) -> None:
    """Newest first, with who asked; by identity and in pages."""
    web, api = issue(pki), issue(pki, "api")
    listed = plain("list", "--dir", pki)
    assert [one["serial"] for one in listed["certificates"]] == [api["serial"], web["serial"]]
    first = listed["certificates"][0]
    assert (first["status"], first["attested_by"], first["sha256"]) == ("valid", "cli", api["sha256"])
    assert "uid" in first["requester"]
    only = plain("list", "--dir", pki, "--spiffe-id", "spiffe://cluster.local/web", "--valid")
    assert [one["serial"] for one in only["certificates"]] == [web["serial"]]
    page = plain("list", "--dir", pki, "--limit", "1")
    rest = plain("list", "--dir", pki, "--limit", "1", "--cursor", page["cursor"])
    assert [one["serial"] for one in rest["certificates"]] == [web["serial"]]
    assert rest["cursor"] == ""
    text = run("list", "--dir", pki, "--limit", "1")
    assert f"--cursor {page['cursor']}" in text.stdout
    assert run("list", "--dir", pki, "--cursor", "x").exit_code == 2
    assert plain("list", "--dir", pki, "--expired")["certificates"] == []


def test_nothing_is_issued_that_cannot_be_recorded(pki: Path) -> None:
    """No file is written when the ledger is unusable or full."""
    SqliteLedger.of(pki).close()
    connection = sqlite3.connect(pki / LEDGER)
    connection.execute("DROP TABLE certificates")
    connection.close()
    result = run("issue", "--dir", pki, WEB, "--out", pki.parent / "web")
    assert (result.exit_code, result.stderr.count("\n")) == (3, 1)
    assert "nothing is issued" in result.stderr
    (pki / LEDGER).chmod(0o666)
    result = run("issue", "--dir", pki, WEB, "--out", pki.parent / "web")
    assert (result.exit_code, "others can write" in result.stderr) == (2, True)
    assert not (pki.parent / "web").exists()


@pytest.mark.parametrize("by", ["serial", "sha256", "file"])
def test_revoking_publishes_a_crl(pki: Path, by: str) -> None:
    """By serial number, fingerprint or file; the second time it is refused; the CRL has it."""
    issued, other = issue(pki), issue(pki, "api")
    name = pki.parent / "web" / "svid.pem" if by == "file" else issued[by]
    revoked = plain("revoke", "--dir", pki, name, "--reason", "key_compromise")
    assert (revoked["serial"], revoked["status"], revoked["reason"]) == (
        issued["serial"],
        "revoked",
        "key_compromise",
    )
    assert revoked["crl_number"] == 1
    again = run("revoke", "--dir", pki, name)
    assert (again.exit_code, "already" in again.stderr) == (3, True)
    result = run("crl", "--dir", pki)
    crl = x509.load_pem_x509_crl(result.stdout.encode())
    assert {f"{one.serial_number:x}" for one in crl} == {issued["serial"]}
    listed = plain("list", "--dir", pki, "--revoked")["certificates"]
    assert [one["serial"] for one in listed] == [issued["serial"]]
    assert plain("list", "--dir", pki, "--valid")["certificates"][0]["serial"] == other["serial"]


def test_what_cannot_be_revoked_is_said(pki: Path) -> None:
    """Unknown serial numbers, files that are none, certificates of somebody else."""
    issue(pki)
    for name, code in (("abc", 3), ("ab" * 32, 3), (pki / "ca-cert.pem", 3), (pki / "nothing.pem", 2)):
        assert run("revoke", "--dir", pki, name).exit_code == code
    assert run("revoke", "--dir", pki, pki / "ca-key.pem").exit_code == 2
    assert run("revoke", "--dir", pki, "abc", "--reason", "boredom").exit_code == 2
    assert run("list", "--dir", pki.parent).exit_code == 2
    assert not (pki.parent / LEDGER).exists()


def test_a_revocation_counts_without_the_key(pki: Path) -> None:
    """Where the CA's key is missing it is revoked all the same, with a warning that no CRL says so."""
    issued = issue(pki)
    (pki / "ca-key.pem").rename(pki.parent / "elsewhere")
    result = run("revoke", "--dir", pki, issued["serial"])
    assert (result.exit_code, "no CRL says so yet" in result.stderr) == (0, True)
    assert run("crl", "--dir", pki).exit_code == 2
    (pki.parent / "elsewhere").rename(pki / "ca-key.pem")
    assert plain("crl", "--dir", pki)["crls"][0]["revoked"] == 1


def test_a_crl_is_written_to_a_file(pki: Path, tmp_path: Path) -> None:
    """In PEM or DER, the same until it is due."""
    (made,) = plain("crl", "--dir", pki, "--out", tmp_path / "crl.pem")["crls"]
    (again,) = plain("crl", "--dir", pki, "--out", tmp_path / "crl.der", "--format", "der")["crls"]
    assert (made["number"], again["number"], made["revoked"]) == (1, 1, 0)
    pem = x509.load_pem_x509_crl((tmp_path / "crl.pem").read_bytes())
    assert pem == x509.load_der_x509_crl((tmp_path / "crl.der").read_bytes())
    assert run("crl", "--dir", pki, "--format", "der").exit_code == 2


@pytest.fixture
def rotated(pki: Path) -> tuple[Path, list[str]]:
    """Return a CA and its authorities: the active, the prepared, the old one; of the old one one is revoked."""
    issued = issue(pki)
    plain("revoke", "--dir", pki, issued["serial"])
    plain("authority", "prepare", "--dir", pki, "--new-root")
    plain("authority", "activate", "--dir", pki, "--now")
    plain("authority", "prepare", "--dir", pki, "--new-root")
    states = {one["state"]: one["authority"] for one in plain("authority", "list", "--dir", pki)}
    return pki, [states[name] for name in ("active", "prepared", "old")]


def issuers_of(pem: str) -> list[str]:
    """Return who signed each of the CRLs in `pem`."""
    found = crls_in(pem.encode())
    identifiers = [
        one.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        for one in found
    ]
    return [one.hex() for one in identifiers if one is not None]


def test_every_authority_that_is_not_revoked_has_its_crl(rotated: tuple[Path, list[str]]) -> None:
    """In one file, the active one's first; each lists what its own authority signed; revoked ones are gone."""
    pki, names = rotated
    printed = run("crl", "--dir", pki).stdout
    assert issuers_of(printed) == names
    assert [len(one) for one in crls_in(printed.encode())] == [0, 0, 1]
    crls = plain("crl", "--dir", pki)["crls"]
    assert [(one["issuer"], one["authority"], one["revoked"]) for one in crls] == [
        (names[0], "active", 0),
        (names[1], "prepared", 0),
        (names[2], "old", 1),
    ]
    assert "".join(one["crl"] for one in crls) == printed
    run("authority", "taint", "--dir", pki, names[2])
    assert plain("crl", "--dir", pki)["crls"][2]["authority"] == "tainted"
    assert run("authority", "revoke", "--dir", pki, names[2], "--now").exit_code == 0
    assert issuers_of(run("crl", "--dir", pki).stdout) == names[:2]


def test_one_authority_is_chosen_by_the_start_of_its_id(
    rotated: tuple[Path, list[str]], tmp_path: Path
) -> None:
    """Also as DER, which holds one: that of the active authority where none is named."""
    pki, names = rotated
    assert issuers_of(run("crl", "--dir", pki, "--authority", names[2][:12]).stdout) == [names[2]]
    out = tmp_path / "crl.der"
    for arguments, name in (((), names[0]), (("--authority", names[2]), names[2])):
        (made,) = plain("crl", "--dir", pki, "--format", "der", "--out", out, *arguments)["crls"]
        assert (made["issuer"], made["file"]) == (name, str(out))
        found = x509.load_der_x509_crl(out.read_bytes())
        assert issuers_of(found.public_bytes(Encoding.PEM).decode()) == [name]
    for wrong in ("ffffffffffff", "x", ""):
        assert run("crl", "--dir", pki, "--authority", wrong).exit_code == 3


def test_crls_are_listed_without_a_key(rotated: tuple[Path, list[str]], tmp_path: Path) -> None:
    """What is stored, and what is not yet; nothing is made."""
    pki, names = rotated
    for file in (pki / "ca-key.pem", *(pki / "authorities").rglob("ca-key.pem")):
        file.write_text("no key")
    head = plain("audit", "--dir", pki)["head"]
    listed = plain("crl", "--dir", pki, "--list")["crls"]
    assert [(one["issuer"], one["number"]) for one in listed] == [
        (names[0], None),
        (names[1], None),
        (names[2], 1),
    ]
    assert all("crl" not in one for one in listed)
    lines = run("crl", "--dir", pki, "--list").stdout.splitlines()
    assert lines[0] == f"{names[0]}  active    none yet"
    assert lines[2].startswith(f"{names[2]}  old       number 1, 1 revoked, until 20")
    assert plain("audit", "--dir", pki)["head"] == head
    assert run("crl", "--dir", pki, "--list", "--out", tmp_path / "x").exit_code == 2


def test_an_authority_without_its_key_keeps_its_last_crl(rotated: tuple[Path, list[str]]) -> None:
    """A warning says that there is no newer one; where it was asked for by name that is an error."""
    pki, names = rotated
    plain("crl", "--dir", pki)
    for file in (pki / "authorities").rglob("ca-key.pem"):
        file.unlink()
    result = run("crl", "--dir", pki)
    assert (result.exit_code, issuers_of(result.stdout)) == (0, names)
    assert result.stderr.count("Warning: no new CRL of authority") == 2
    assert run("crl", "--dir", pki, "--authority", names[2]).exit_code == 2


def test_entries_are_made_shown_and_deleted(pki: Path) -> None:
    """Every option is kept; a second one like it, a bad one and one of another domain are refused."""
    arguments: list[str | Path] = [
        "entry",
        "create",
        "--dir",
        pki,
        WEB,
        "--selector",
        "unix:uid:7",
        "--selector",
        "unix:gid:8",
    ]
    made = plain(
        *arguments,
        *("--ttl", "5m", "--jwt-ttl", "90s", "--dns", "web", "--federates-with", "partner.test"),
        *("--hint", "in"),
    )
    assert made["jwt_ttl_seconds"] == 90
    assert made["selectors"] == ["unix:uid:7", "unix:gid:8"]
    assert (made["ttl_seconds"], made["dns_names"], made["federates_with"]) == (
        300,
        ["web"],
        ["partner.test"],
    )
    assert run(*arguments).exit_code == 3
    shown = plain("entry", "show", "--dir", pki, made["entry"])
    assert {**shown, "selectors": made["selectors"]} == made
    assert plain("entry", "list", "--dir", pki) == [shown]
    assert made["entry"] in run("entry", "list", "--dir", pki).stdout
    assert plain("entry", "delete", "--dir", pki, made["entry"]) == shown
    assert plain("entry", "list", "--dir", pki) == []
    for name in ("show", "delete"):
        assert run("entry", name, "--dir", pki, made["entry"]).exit_code in {2, 3}
    for wrong in (
        ["spiffe://other/web", "--selector", "unix:uid:1"],
        [WEB, "--selector", "unix:uid:x"],
        [WEB, "--selector", "unix:uid:1", "--ttl", "25h"],
        [WEB, "--selector", "unix:uid:1", "--jwt-ttl", "61m"],
        [WEB, "--selector", "unix:uid:1", "--jwt-ttl", "0s"],
        ["web", "--selector", "unix:uid:1"],
        [WEB, "--selector", "unix:uid:1", "--parent", "spiffe://other/agent"],
    ):
        assert run("entry", "create", "--dir", pki, *wrong).exit_code == 3, wrong
    assert run("entry", "create", "--dir", pki, WEB).exit_code == 2
    assert plain("entry", "list", "--dir", pki) == []


def test_the_life_of_tokens_is_five_minutes_if_nobody_says_otherwise(pki: Path) -> None:
    """As in the settings of a server; a backup keeps what was said."""
    made = plain("entry", "create", "--dir", pki, WEB, "--selector", "unix:uid:7")
    assert made["jwt_ttl_seconds"] == 300
    other = plain("entry", "create", "--dir", pki, WEB, "--selector", "unix:uid:8", "--jwt-ttl", "1h")
    plain("backup", "--dir", pki, "--out", pki.parent / "a.tar", "--allow-unencrypted")
    plain("restore", pki.parent / "a.tar", "--dir", pki.parent / "again")
    assert plain("entry", "list", "--dir", pki.parent / "again") == [made, other]
    assert "3600" in run("entry", "show", "--dir", pki, other["entry"]).stdout


def test_a_token_is_shown_once_and_kept_as_a_hash(pki: Path) -> None:
    """The secret is in the output and nowhere else; it burns, and the list says so."""
    made = plain("token", "create", "--dir", pki, "spiffe://cluster.local/agent")
    secret = made.pop("token")
    assert all(secret.encode() not in path.read_bytes() for path in pki.iterdir())
    assert plain("token", "list", "--dir", pki) == [made]
    ledger = SqliteLedger.of(pki)
    grant = ledger.burn_token(token_hash(secret), now=datetime.now(UTC), by="x")
    assert str(grant.spiffe_id) == "spiffe://cluster.local/agent"
    with pytest.raises(LedgerRefusalError):
        ledger.burn_token(token_hash(secret), now=datetime.now(UTC), by="x")
    ledger.close()
    assert [one["status"] for one in plain("token", "list", "--dir", pki)] == ["used"]
    assert f"{made['id']}  used" in run("token", "list", "--dir", pki).stdout
    assert plain("token", "delete", "--dir", pki, made["id"])["id"] == made["id"]
    assert run("token", "delete", "--dir", pki, made["id"]).exit_code == 2
    for wrong in (["spiffe://other/agent"], ["spiffe://cluster.local"], [WEB, "--ttl", "25h"]):
        assert run("token", "create", "--dir", pki, *wrong).exit_code == 3


def test_audit_verifies_and_says_where_it_is_broken(pki: Path) -> None:
    """Its exit code is for scripts; printed lines can be checked by any program; a head is found again."""
    issue(pki)
    run("entry", "create", "--dir", pki, WEB, "--selector", "unix:uid:7")
    whole = plain("audit", "--dir", pki)
    assert (whole["intact"], whole["records"], whole["broken_at"]) == (True, 2, None)
    lines = run("audit", "--dir", pki, "--print").stdout.splitlines()[:2]
    assert f"2:{hashlib.sha256(lines[1].encode()).hexdigest()}" == whole["head"]
    assert json.loads(lines[1])[1] == hashlib.sha256(lines[0].encode()).hexdigest()
    assert run("audit", "--dir", pki, "--head", whole["head"]).exit_code == 0
    assert run("audit", "--dir", pki, "--head", f"2:{'ab' * 32}").exit_code == 5
    assert run("audit", "--dir", pki, "--head", "2").exit_code == 2
    connection = sqlite3.connect(pki / LEDGER)
    connection.execute("DROP TRIGGER audit_is_not_changed")
    connection.execute("UPDATE audit SET actor = 'nobody' WHERE sequence = 1")
    connection.commit()
    connection.close()
    broken = run("audit", "--dir", pki, "--json")
    assert broken.exit_code == 5
    assert json.loads(broken.stdout)["broken_at"] == 1


def test_a_ledger_may_lie_elsewhere(pki: Path, tmp_path: Path) -> None:
    """For a CA in a folder that cannot be written to."""
    elsewhere = tmp_path / "state.sqlite3"
    issued = plain("issue", "--dir", pki, WEB, "--out", tmp_path / "web", "--ledger", elsewhere)
    listed = plain("list", "--dir", pki, "--ledger", elsewhere)["certificates"]
    assert [one["serial"] for one in listed] == [issued["serial"]]
    assert not (pki / LEDGER).exists()


@pytest.fixture
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """Run a server that keeps what it confirms."""
    with Valkey(tmp_path_factory.mktemp("v"), *DURABLE) as server:
        yield server


def test_a_ledger_may_be_in_redis(
    pki: Path, tmp_path: Path, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command works with it, named by option or environment; nothing is written beside the CA."""
    with valkey.client() as client:
        client.acl_setuser("ca", enabled=True, passwords=["+s3cret"], keys=["*"], categories=["+@all"])
        url = f"unix://ca:s3cret@{valkey.socket}"
        issued = plain("issue", "--dir", pki, WEB, "--out", tmp_path / "web", "--ledger", url)
        monkeypatch.setenv("GARRISON_CA_LEDGER", url)
        made = plain("token", "create", "--dir", pki, "spiffe://cluster.local/agent")
        assert [one["id"] for one in plain("token", "list", "--dir", pki)] == [made["id"]]
        entry = plain("entry", "create", "--dir", pki, WEB, "--selector", "unix:uid:7")
        assert plain("entry", "list", "--dir", pki) == [entry]
        assert plain("revoke", "--dir", pki, issued["serial"])["crl_number"] == 1
        listed = plain("list", "--dir", pki, "--revoked")["certificates"]
        assert [one["serial"] for one in listed] == [issued["serial"]]
        whole = plain("audit", "--dir", pki)
        assert (whole["intact"], whole["records"]) == (True, 5)
        assert not (pki / LEDGER).exists()
        (name, fields), *rest = client.xrange("garrison:ca:{cluster.local}:log")
        client.delete("garrison:ca:{cluster.local}:log")
        for one, content in ((name, {**fields, b"actor": b"nobody"}), *rest):
            client.xadd("garrison:ca:{cluster.local}:log", content, id=one)
    broken = run("audit", "--dir", pki, "--json")
    assert (broken.exit_code, json.loads(broken.stdout)["broken_at"]) == (5, 1)


def test_a_redis_that_cannot_be_used_is_one_line(
    pki: Path, tmp_path: Path, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No ledger, nothing issued, no password shown; a warning where the operator wants no more."""
    out = tmp_path / "web"
    arguments = ("issue", "--dir", pki, WEB, "--out", out)
    for url, code, said in (
        ("http://x:s3cret@y", 2, "a Redis URL is"),
        ("redis://x:s3cret@y?ssl_cert_reqs=none", 2, "no parameter but `db`"),
        ("redis://x:s3cret@192.0.2.1", 2, "use `rediss://`"),
        (f"unix://x:s3cret@{valkey.socket}", 2, "invalid username-password pair"),
    ):
        result = run(*arguments, "--ledger", url)
        assert (result.exit_code, said in result.stderr) == (code, True), result.stderr
        assert "s3cret" not in result.output
        assert not out.exists()
    with valkey.client() as client:
        client.config_set("appendfsync", "everysec")
    monkeypatch.setenv("GARRISON_CA_LEDGER", valkey.url)
    result = run(*arguments)
    assert (result.exit_code, "`appendfsync` is `everysec`" in result.stderr) == (2, True)
    result = run(*arguments, "--ledger-safety", "warn", "--json")
    assert (result.exit_code, result.stderr.startswith("Warning: ")) == (0, True)
    assert json.loads(result.stdout)["spiffe_id"] == WEB
