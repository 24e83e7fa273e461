"""Files and ledger of a CA with several authorities: what is taken in, kept, published and destroyed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from support.ca_files import OutsideRoot, done, run, secret

from ca.authorities import Authorities
from ca.authority import CA_CERT, CA_KEY, CERT_CHAIN, ROOT_CERT, ROOT_KEY, Authority, Hierarchy, load_key
from ca.authority_files import FOLDER, ISSUERS, load_issuer
from ca.bundle import parse_certificates
from ca.crl import key_identifier_of
from ca.key_encryption import PLAIN, describe_encryption
from ca.keys import KeyType, key_file, new_ca_key, new_private_key
from ca.ledger import KeyState, KeyUse
from ca.passphrase import no_passphrase
from ca.rotation import Act, Policy, Step
from ca.store.sqlite import LEDGER, SqliteLedger
from ca.verification import verify_svid
from garrison.errors import ConfigError, IssuanceError
from garrison.identity import SpiffeId, TrustDomain

DOMAIN = TrustDomain("cluster.local")
WEB = SpiffeId(DOMAIN, ("web",))
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    """Return the directory of a CA that was made now."""
    directory = tmp_path / "pki"
    Hierarchy.create(DOMAIN, now=datetime.now(UTC)).save(directory)
    return directory


class Operator:
    """Changes a CA, with a clock of its own."""

    def __init__(self, directory: Path, passphrase: Any = no_passphrase) -> None:
        self.directory = directory
        self.ledger = SqliteLedger.of(directory)
        self.authorities = Authorities(directory, self.ledger, passphrase, policy=Policy(overlap=HOUR))
        self.now = datetime.now(UTC)

    def prepare(self, **options: Any) -> str:
        """Prepare, and return whom."""
        return self.authorities.prepare(now=self.now, by="test", **options).key_id

    def activate(self, key_id: str) -> None:
        """Activate once everybody has the root."""
        self.now += HOUR
        self.authorities.activate(key_id, now=self.now, by="test")

    def states(self) -> list[KeyState]:
        """Return the states of all, oldest first."""
        return [one.state for one in self.authorities.standings(self.now)]

    def leaf(self) -> x509.Certificate:
        """Return a leaf of who signs by the files and by the ledger, which has to verify."""
        view = self.authorities.view()
        assert not view.refusal
        plain = Authority.load(self.directory, self.authorities._passphrase)
        assert plain.issuer.certificate == view.authority.issuer.certificate
        svid = plain.issue(WEB, new_private_key().public_key(), now=self.now, ttl=HOUR)
        self.verify(svid.certificates)
        return svid.leaf

    def verify(self, certificates: tuple[x509.Certificate, ...]) -> None:
        """Verify against the published bundle."""
        verify_svid(certificates[0], certificates[1:], self.roots(), self.now)

    def roots(self) -> tuple[x509.Certificate, ...]:
        """Return the published bundle."""
        return parse_certificates((self.directory / ROOT_CERT).read_bytes())


@pytest.fixture
def operator(pki: Path) -> Iterator[Operator]:
    """Return who changes the CA in `pki`."""
    found = Operator(pki)
    yield found
    found.ledger.close()


def content(directory: Path) -> dict[str, bytes]:
    """Return all files, except those of the ledger."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.name.startswith(LEDGER)
    }


def test_a_ca_that_is_there_is_taken_in_as_it_is(operator: Operator) -> None:
    """The first look records who signs, and changes no file."""
    before = content(operator.directory)
    for _ in range(2):
        operator.authorities.reconcile(now=operator.now, by="test")
    assert operator.states() == [KeyState.ACTIVE]
    assert content(operator.directory) == before
    operator.leaf()


def test_a_whole_rotation(operator: Operator) -> None:
    """A new root is published before use, the old one until its last leaf, and its key goes with it."""
    operator.authorities.reconcile(now=operator.now, by="test")
    old = operator.leaf()
    first = load_key(operator.directory / CA_KEY)
    second = operator.prepare(new_root=True)
    assert operator.leaf().issuer == old.issuer
    assert len(operator.roots()) == 2
    assert len(parse_certificates((operator.directory / ISSUERS).read_bytes())) == 2
    with pytest.raises(IssuanceError, match="wait until"):
        operator.authorities.activate(second, now=operator.now, by="test")
    operator.activate(second)
    assert key_identifier_of(operator.authorities.view().authority.issuer.certificate) == second
    assert operator.leaf().issuer != old.issuer
    issuer = load_issuer(
        operator.directory, operator.authorities.standings(operator.now)[0].key_id, no_passphrase
    )
    assert issuer.key.public_key() == first.public_key()
    operator.now += 2 * DAY
    (step,) = operator.authorities.due(operator.now)
    assert step.act is Act.RETIRE
    operator.authorities.run(step, now=operator.now, by="test")
    assert operator.states() == [KeyState.REVOKED, KeyState.ACTIVE]
    assert len(operator.roots()) == 1
    assert len(list((operator.directory / FOLDER).iterdir())) == 1
    assert old.issuer not in {root.subject for root in operator.roots()}
    operator.leaf()


def test_a_root_key_that_is_here_stays_here(operator: Operator) -> None:
    """Through a new intermediate, and the end of the one before, in which its only copy might have been."""
    operator.authorities.reconcile(now=operator.now, by="test")
    key = (operator.directory / ROOT_KEY).read_bytes()
    second = operator.prepare()
    operator.activate(second)
    assert len(operator.roots()) == 1
    operator.now += 2 * DAY
    for step in operator.authorities.due(operator.now):
        operator.authorities.run(step, now=operator.now, by="test")
    assert operator.states() == [KeyState.REVOKED, KeyState.ACTIVE]
    assert (operator.directory / ROOT_KEY).read_bytes() == key
    third = operator.prepare(new_root=True)
    operator.activate(third)
    assert (operator.directory / ROOT_KEY).read_bytes() != key
    Authority.load(operator.directory)


def test_a_root_key_that_is_elsewhere(operator: Operator, tmp_path: Path) -> None:
    """The schedule leaves the decision to an operator, who brings the key, or has a new root made."""
    elsewhere = tmp_path / "root-key.pem"
    (operator.directory / ROOT_KEY).rename(elsewhere)
    operator.authorities.reconcile(now=operator.now, by="test")
    (one,) = operator.authorities.standings(operator.now)
    with pytest.raises(IssuanceError, match=r"--root-key.*--new-root.*--csr"):
        operator.prepare()
    operator.now = one.root_starts + (one.root_ends - one.root_starts) / 2
    assert [step.act for step in operator.authorities.due(operator.now)] == [Act.PREPARE_ROOT]
    with pytest.raises(IssuanceError, match="an operator has to decide"):
        operator.authorities.run(Step(Act.PREPARE_ROOT, one.key_id), now=operator.now, by="test")
    assert operator.states() == [KeyState.ACTIVE]

    operator.now = datetime.now(UTC)
    with pytest.raises(IssuanceError, match="key"):
        operator.prepare(new_root=False, root_key=new_private_key())
    second = operator.prepare(new_root=False, root_key=load_key(elsewhere))
    operator.activate(second)
    assert not list(operator.directory.rglob(ROOT_KEY))
    assert len(operator.roots()) == 1
    operator.leaf()
    saved: list[bytes] = []
    third = operator.prepare(new_root=True, save_root_key=saved.append)
    operator.activate(third)
    assert not list(operator.directory.rglob(ROOT_KEY))
    assert b"PRIVATE KEY" in saved[0]
    operator.leaf()


def test_encrypted_keys_are_followed_by_encrypted_ones(tmp_path: Path) -> None:
    """With the same passphrase; `ca passphrase` changes that of all, `ca backup` takes all along."""
    pki, one, two = (
        tmp_path / "pki",
        secret(tmp_path / "1", "first words"),
        secret(tmp_path / "2", "other words"),
    )
    done("init", "--dir", pki, "--trust-domain", "cluster.local", "--passphrase-file", one)
    done("authority", "prepare", "--dir", pki, "--new-root", "--passphrase-file", one)
    keys = list(pki.rglob("*-key.pem"))
    assert len(keys) == 4
    done("passphrase", "--dir", pki, "--passphrase-file", one, "--new-passphrase-file", two)
    assert all(describe_encryption(path.read_bytes()) != PLAIN for path in keys)
    wrong = run("authority", "activate", "--dir", pki, "--now", "--passphrase-file", one)
    assert wrong.exit_code == 4
    done("authority", "activate", "--dir", pki, "--now", "--passphrase-file", two)
    done("issue", "--dir", pki, str(WEB), "--out", tmp_path / "web", "--passphrase-file", two)

    archive = tmp_path / "pki.tar"
    done("backup", "--dir", pki, "--out", archive)
    done("restore", archive, "--dir", tmp_path / "again")
    assert content(tmp_path / "again") == content(pki)
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "again").rglob("*-key.pem"))
    listed = json.loads(done("authority", "list", "--dir", tmp_path / "again", "--json").stdout)
    assert [one["state"] for one in listed] == ["old", "active"]
    plain = tmp_path / "plain"
    shutil.copytree(pki, plain)
    done("passphrase", "--dir", plain, "--passphrase-file", two, "--remove")
    refused = run("backup", "--dir", plain, "--out", tmp_path / "plain.tar")
    assert refused.exit_code == 3
    assert f"{FOLDER}/" in refused.stderr


@pytest.mark.parametrize("kind", list(KeyType))
def test_the_kind_of_key_is_kept(tmp_path: Path, kind: KeyType) -> None:
    """As the active one, unless another is asked for."""
    hierarchy = Hierarchy.create(DOMAIN, now=datetime.now(UTC), new_private_key=lambda: new_ca_key(kind))
    hierarchy.save(tmp_path / "pki")
    operator = Operator(tmp_path / "pki")
    operator.activate(operator.prepare(new_root=True))
    made = Authority.load(operator.directory).issuer.key
    assert type(made) is type(hierarchy.issuer.key)
    operator.activate(operator.prepare(kind=KeyType.P384))
    curve: Any = Authority.load(operator.directory).issuer.key
    assert curve.curve.name == "secp384r1"
    operator.leaf()
    operator.ledger.close()


def test_an_outside_root(tmp_path: Path, pki: Path) -> None:
    """Request and answer, also of a root that starts before ours; the root of the answer is published."""
    root = OutsideRoot.create()
    request = Path(
        json.loads(done("authority", "prepare", "--dir", pki, "--csr", "--json").stdout)["request"]
    )
    assert "waits already" in run("authority", "prepare", "--dir", pki, "--csr").stderr
    (tmp_path / "answer.pem").write_bytes(root.sign(request.read_bytes()) + root.pem)
    made = json.loads(
        done("authority", "prepare", "--dir", pki, "--answer", tmp_path / "answer.pem", "--json").stdout
    )
    assert made["state"] == "prepared"
    assert root.certificate in parse_certificates((pki / ROOT_CERT).read_bytes())
    again = run("authority", "prepare", "--dir", pki, "--answer", tmp_path / "answer.pem")
    assert "is prepared already" in again.stderr
    done("authority", "activate", "--dir", pki, "--now")
    done("issue", "--dir", pki, str(WEB), "--out", tmp_path / "web")
    done("verify", tmp_path / "web" / "svid.pem", "--bundle", tmp_path / "web" / "bundle.pem")
    # Its key is not here, so the next one needs another request, or a root of our own.
    assert run("authority", "prepare", "--dir", pki).exit_code == 3
    assert not (pki / ROOT_KEY).exists()


def test_files_that_somebody_put_there_win(operator: Operator, tmp_path: Path) -> None:
    """Another CA in the same place, as one plugs in Istio's: it signs, what the first signed still verifies."""
    operator.authorities.reconcile(now=operator.now, by="test")
    svid = Authority.load(operator.directory).issue(
        WEB, new_private_key().public_key(), now=operator.now, ttl=HOUR
    )
    other = Hierarchy.create(DOMAIN, now=operator.now)
    other.save(tmp_path / "other")
    for name in (CA_CERT, CA_KEY, CERT_CHAIN, ROOT_CERT, ROOT_KEY):
        shutil.copy(tmp_path / "other" / name, operator.directory / name)
    operator.authorities.reconcile(now=operator.now, by="test")
    assert operator.states() == [KeyState.OLD, KeyState.ACTIVE]
    assert operator.authorities.view().authority.issuer.certificate == other.issuer.certificate
    operator.verify(svid.certificates)
    operator.leaf()


def test_a_command_that_reads_while_another_authority_takes_over(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets the one or the other, never an error about files that do not fit together."""
    operator.authorities.reconcile(now=operator.now, by="test")
    second = operator.prepare(new_root=True)
    operator.now += HOUR
    reads: list[Path] = []

    def load_key_late(path: Path, passphrase: Any) -> Any:
        reads.append(path)
        if len(reads) == 1:
            # The certificates were read already.
            monkeypatch.setattr("ca.authority.load_key", load_key)
            operator.authorities.activate(second, now=operator.now, by="test")
            monkeypatch.setattr("ca.authority.load_key", load_key_late)
        return load_key(path, passphrase)

    monkeypatch.setattr("ca.authority.load_key", load_key_late)
    found = Authority.load(operator.directory)
    assert key_identifier_of(found.issuer.certificate) == second
    (operator.directory / CA_KEY).unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        Authority.load(operator.directory)


def test_a_ledger_that_is_lost(operator: Operator) -> None:
    """An authority that was old signs no more, though nobody remembers that; its root stays."""
    operator.authorities.reconcile(now=operator.now, by="test")
    operator.activate(operator.prepare(new_root=True))
    operator.ledger.close()
    for path in operator.directory.glob(f"{LEDGER}*"):
        path.unlink()
    again = Operator(operator.directory)
    again.now = operator.now
    again.authorities.reconcile(now=again.now, by="test")
    assert sorted(again.states()) == [KeyState.ACTIVE, KeyState.OLD]
    assert len(again.roots()) == 2
    again.leaf()
    again.ledger.close()


def test_roots_of_others_stay(operator: Operator) -> None:
    """What an operator appended to the bundle is not ours to remove; what was revoked does not come back."""
    foreign = Hierarchy.create(DOMAIN, now=operator.now).root
    file = operator.directory / ROOT_CERT
    mine = operator.roots()[0]
    file.write_bytes(file.read_bytes() + foreign.public_bytes(Encoding.PEM))
    operator.authorities.reconcile(now=operator.now, by="test")
    operator.activate(operator.prepare(new_root=True))
    (old, _) = operator.authorities.standings(operator.now)
    operator.authorities.taint(old.key_id, now=operator.now, by="test")
    with pytest.raises(IssuanceError, match="a moment ago"):
        operator.authorities.revoke(old.key_id, now=operator.now, by="test")
    operator.now += HOUR
    operator.authorities.revoke(old.key_id, now=operator.now, by="test")
    assert foreign in operator.roots()
    assert mine not in operator.roots()
    file.write_bytes(file.read_bytes() + mine.public_bytes(Encoding.PEM))
    operator.authorities.reconcile(now=operator.now, by="test")
    assert mine not in operator.roots()


def test_a_directory_that_cannot_be_written(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mounted Secret is served as it is, and nothing is rotated in it."""
    monkeypatch.setattr("ca.authority_files.os.access", lambda path, mode: False)
    before = content(operator.directory)
    operator.authorities.reconcile(now=operator.now, by="test")
    operator.leaf()
    with pytest.raises(ConfigError, match="cannot be written"):
        operator.prepare(new_root=True)
    assert content(operator.directory) == before


def test_two_that_prepare_at_the_same_time(operator: Operator, tmp_path: Path) -> None:
    """On one directory the second one is refused; in one ledger the first one counts, for all."""
    other = Operator(operator.directory)
    first = operator.prepare(new_root=True)
    with pytest.raises(IssuanceError, match=f"{first} is prepared already"):
        other.prepare(new_root=True)
    (active, _) = other.authorities.standings(other.now)
    other.authorities.run(Step(Act.PREPARE_ROOT, active.key_id), now=other.now, by="a slower server")
    other.ledger.close()
    foreign = Hierarchy.create(DOMAIN, now=operator.now).authority()
    certificate = foreign.issuer.certificate
    operator.authorities._reconciler._record(
        foreign.chain, foreign.roots[0], KeyState.PREPARED, operator.now, "another replica"
    )
    assert operator.states() == [KeyState.ACTIVE, KeyState.PREPARED, KeyState.PREPARED]
    operator.authorities.reconcile(now=operator.now, by="test")
    assert operator.states() == [KeyState.ACTIVE, KeyState.PREPARED, KeyState.REVOKED]
    assert certificate not in parse_certificates((operator.directory / ISSUERS).read_bytes())


def test_an_active_authority_that_is_elsewhere(operator: Operator) -> None:
    """Without its key nothing is signed, and it is said whose is missing; the bundle is served."""
    operator.authorities.reconcile(now=operator.now, by="test")
    second = operator.prepare(new_root=True)
    operator.activate(second)
    folder = next(path for path in (operator.directory / FOLDER).iterdir() if second.startswith(path.name))
    old = next(path for path in (operator.directory / FOLDER).iterdir() if path != folder)
    for name in (CA_CERT, CA_KEY, CERT_CHAIN, ROOT_KEY):
        shutil.copy(old / name, operator.directory / name)
    shutil.rmtree(folder)
    again = Authorities(operator.directory, operator.ledger)
    view = again.view()
    assert second in view.refusal
    assert len(view.authority.roots) == 2
    (row,) = [key for key in operator.ledger.keys(KeyUse.X509) if key.state is KeyState.ACTIVE]
    assert row.key_id == second


def test_the_commands(pki: Path, tmp_path: Path) -> None:
    """Every refusal is one line with the next step, and exit code 3; a wrong command line is 2."""
    assert "no authority is recorded yet" in done("authority", "list", "--dir", pki).stdout
    assert run("authority", "activate", "--dir", pki).exit_code == 3
    made = json.loads(done("authority", "prepare", "--dir", pki, "--new-root", "--json").stdout)
    assert "ca authority activate" in made["next"]
    assert (made["state"], made["changed_at"] is not None) == ("prepared", True)
    early = run("authority", "activate", "--dir", pki)
    assert (early.exit_code, early.stderr.count("\n")) == (3, 1)
    assert "wait until" in early.stderr
    shown = json.loads(
        done("authority", "activate", "--dir", pki, made["authority"][:8], "--now", "--json").stdout
    )
    first = shown["before"]
    assert "ca authority taint" in shown["next"]
    for arguments, text in (
        (("activate", first), "only a prepared one"),
        (("revoke", first), "taint it first"),
        (("taint", made["authority"]), "prepare and activate another first"),
        (("taint", "zz"), "`ca authority list` shows all"),
        (("taint", "ab"), "`ca authority list` shows all"),
    ):
        result = run("authority", arguments[0], "--dir", pki, *arguments[1:])
        assert (result.exit_code, text in result.stderr) == (3, True), result.stderr
    done("authority", "taint", "--dir", pki, first)
    assert "a moment ago" in run("authority", "revoke", "--dir", pki, first).stderr
    done("authority", "revoke", "--dir", pki, first, "--now")
    listed = done("authority", "list", "--dir", pki).stdout
    assert listed.splitlines()[0].split()[1] == "revoked"
    for wrong in (
        ("--csr", "--answer"),
        ("--answer",),
        ("file.pem",),
        ("--csr", "--new-root"),
        ("--root-key-out", "x"),
        ("--new-root", "--root-key", "x"),
    ):
        assert run("authority", "prepare", "--dir", pki, *wrong).exit_code == 2
    out = tmp_path / "root.key"
    done("authority", "prepare", "--dir", pki, "--new-root", "--root-key-out", out)
    assert out.stat().st_mode & 0o777 == 0o600
    done("authority", "activate", "--dir", pki, "--now")
    assert not (pki / ROOT_KEY).exists()
    done("authority", "prepare", "--dir", pki, "--root-key", out)
    done("bundle", "--dir", pki)
    # Not only the files of the one that signs are looked at: that of the old one has its root's key.
    found = json.loads(done("lint", "--dir", pki, "--json").stdout)
    assert [FOLDER in str(one) for one in found if one["code"] == "root_key_here"] == [True]
    assert FOLDER in json.loads(done("status", "--dir", pki, "--json").stdout)["next"][0]


def test_what_a_tainted_authority_signed_is_renewed_and_revoked_by_it(pki: Path, tmp_path: Path) -> None:
    """`ca renew` replaces it though it is not due; a CRL of the old authority names what was revoked."""
    web, other = tmp_path / "web", tmp_path / "other"
    for out in (web, other):
        done("issue", "--dir", pki, str(WEB), "--out", out)
    done("authority", "prepare", "--dir", pki, "--new-root")
    shown = json.loads(done("authority", "activate", "--dir", pki, "--now", "--json").stdout)
    assert json.loads(done("renew", "--dir", pki, web, "--json").stdout)["renewed"] is False
    serial = x509.load_pem_x509_certificate((other / "svid.pem").read_bytes()).serial_number
    revoked = json.loads(done("revoke", "--dir", pki, other / "svid.pem", "--json").stdout)
    assert revoked["crl_number"] == 1
    ledger = SqliteLedger.of(pki)
    (crl,) = ledger.crls()
    assert crl.issuer == shown["before"]
    found = x509.load_der_x509_crl(crl.der)
    assert found.get_revoked_certificate_by_serial_number(serial) is not None
    done("authority", "taint", "--dir", pki, shown["before"])
    assert json.loads(done("renew", "--dir", pki, web, "--json").stdout)["renewed"] is True
    leaf = x509.load_pem_x509_certificate((web / "svid.pem").read_bytes())
    (recorded,) = ledger.find(serial=leaf.serial_number)
    assert recorded.issuer == shown["authority"]
    ledger.close()


def test_an_istio_root_without_a_name_gets_a_new_intermediate(tmp_path: Path) -> None:
    """As its key is there, though the root names no trust domain."""
    pki, root = tmp_path / "pki", OutsideRoot.create()
    done("init", "--dir", pki, "--trust-domain", "cluster.local", "--csr", "--no-passphrase")
    (tmp_path / "a.pem").write_bytes(root.sign((pki / "ca-csr.pem").read_bytes()) + root.pem)
    done("init", "--dir", pki, "--take-answer", tmp_path / "a.pem")
    (tmp_path / "root.key").write_bytes(key_file(root.key, None))
    done("authority", "prepare", "--dir", pki, "--root-key", tmp_path / "root.key")
    done("authority", "activate", "--dir", pki, "--now")
    done("issue", "--dir", pki, str(WEB), "--out", tmp_path / "web")
    done("verify", tmp_path / "web" / "svid.pem", "--bundle", tmp_path / "web" / "bundle.pem")
