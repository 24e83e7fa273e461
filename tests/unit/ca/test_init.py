"""However a CA comes to be, it is there whole or not at all, and no key is lost on the way."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from support.ca_files import OutsideRoot, done, run, secret
from support.faults import FaultyDisk, PowerCut

from ca.authority import Authority
from ca.keys import KeyType, new_private_key, parse_private_key
from garrison.errors import ConfigError

TRUST = ("--trust-domain", "cluster.local")
WEB = "spiffe://cluster.local/web"
ROOT = OutsideRoot.create()
KEYS = {
    KeyType.P256: "EC secp256r1",
    KeyType.P384: "EC secp384r1",
    KeyType.RSA_3072: "RSA 3072",
    KeyType.ED25519: "Ed25519",
}


def names(directory: Path) -> set[str]:
    """Return what lies in `directory`."""
    return {path.name for path in directory.iterdir()} if directory.exists() else set()


@pytest.mark.parametrize("kind", KeyType)
def test_every_type_of_key(tmp_path: Path, kind: KeyType) -> None:
    """A CA of each type loads, issues, and `ca inspect` names the type."""
    pki = tmp_path / "pki"
    done("init", "--dir", pki, *TRUST, "--key-type", kind)
    done("issue", "--dir", pki, WEB, "--out", tmp_path / "web")
    for name in ("root-cert.pem", "ca-cert.pem"):
        (shown,) = json.loads(done("inspect", pki / name, "--json").stdout)
        assert shown["key"] == KEYS[kind]
    assert json.loads(done("bundle", "--dir", pki, "--json").stdout)["keys"][0]["kty"] in {"EC", "RSA", "OKP"}


def test_lifetimes(tmp_path: Path) -> None:
    """They are what was asked for."""
    done("init", "--dir", tmp_path / "pki", *TRUST, "--root-lifetime", "30d", "--lifetime", "7d")
    for name, days in (("root-cert.pem", 30), ("ca-cert.pem", 7)):
        certificate = x509.load_pem_x509_certificate((tmp_path / "pki" / name).read_bytes())
        life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        assert timedelta(0) <= life - timedelta(days=days) <= timedelta(minutes=3)


@pytest.mark.parametrize(
    ("options", "exit_code", "message"),
    [
        (["--root-lifetime", "7d", "--lifetime", "8d"], 3, "no later than the root"),
        (["--lifetime", "59m"], 3, "lifetimes of CAs"),
        (["--root-lifetime", "36501d"], 3, "lifetimes of CAs"),
        (["--key-type", "p521"], 2, "p521"),
        (["--csr", "--from", "x"], 2, "exclude each other"),
        (["--csr", "--root-key-out", "x"], 2, "for a root that is made here"),
        (["--root-key-out", "x", "--no-root-key-kept"], 2, "exclude each other"),
        (["a.pem"], 2, "--take-answer"),
        (["--take-answer"], 2, "--take-answer"),
        (["--passphrase-file", "x", "--no-passphrase"], 2, "exclude each other"),
    ],
)
def test_what_init_refuses(tmp_path: Path, options: list[str], exit_code: int, message: str) -> None:
    """Each contradiction is said, and nothing is written."""
    result = run("init", "--dir", tmp_path / "pki", *TRUST, *options)
    assert (result.exit_code, message in result.stderr) == (exit_code, True), result.stderr
    assert names(tmp_path) == set()


def test_the_root_key_goes_elsewhere(tmp_path: Path) -> None:
    """It is written where it was asked, 0600, and not into the directory; never over a file."""
    out = tmp_path / "stick" / "root.key"
    out.parent.mkdir()
    words = ("init", "--dir", tmp_path / "pki", *TRUST, "--root-key-out", out)
    assert json.loads(done(*words, "--json").stdout)["root_key"] == str(out)
    assert "root-key.pem" not in names(tmp_path / "pki")
    assert names(out.parent) == {"root.key"}
    assert out.stat().st_mode & 0o777 == 0o600
    root = Authority.load(tmp_path / "pki").roots[0]
    assert parse_private_key(out.read_bytes()).public_key() == root.public_key()
    before = out.read_bytes()
    again = run("init", "--dir", tmp_path / "other", *TRUST, "--root-key-out", out)
    assert (again.exit_code, out.read_bytes()) == (2, before)
    assert not (tmp_path / "other").exists()
    second = run("init", "--dir", tmp_path / "pki", *TRUST, "--root-key-out", tmp_path / "stick" / "second")
    assert (second.exit_code, names(out.parent)) == (2, {"root.key"})


def test_no_root_key_is_kept(tmp_path: Path) -> None:
    """The CA issues without it."""
    done("init", "--dir", tmp_path / "pki", *TRUST, "--no-root-key-kept")
    assert names(tmp_path / "pki") == {"ca-key.pem", "ca-cert.pem", "cert-chain.pem", "root-cert.pem"}
    done("issue", "--dir", tmp_path / "pki", WEB, "--out", tmp_path / "web")


def requested(tmp_path: Path, *more: str | Path) -> Path:
    """Return the directory of a CA that waits for an answer."""
    done("init", "--dir", tmp_path / "pki", *TRUST, "--csr", *more)
    return tmp_path / "pki"


def answer(tmp_path: Path, pem: bytes, name: str = "answer.pem") -> Path:
    """Write the answer of the outside root."""
    (tmp_path / name).write_bytes(pem)
    return tmp_path / name


@pytest.mark.parametrize("kind", KeyType)
def test_an_outside_root(tmp_path: Path, kind: KeyType) -> None:
    """A request goes out, the answer comes in, and identities verify under the outside root."""
    pki = requested(tmp_path, "--key-type", kind)
    assert names(pki) == {"ca-key.pem", "ca-csr.pem"}
    csr = (pki / "ca-csr.pem").read_bytes()
    assert x509.load_pem_x509_csr(csr).is_signature_valid
    file = answer(tmp_path, ROOT.sign(csr))
    done("init", "--dir", pki, "--take-answer", file, answer(tmp_path, ROOT.pem, "root.pem"))
    authority = Authority.load(pki)
    assert authority.roots == (ROOT.certificate,)
    assert (pki / "ca-key.pem").stat().st_mode & 0o777 == 0o600
    done("issue", "--dir", pki, WEB, "--out", tmp_path / "web")


def test_a_waiting_key_may_be_encrypted(tmp_path: Path) -> None:
    """The passphrase is needed to see that the answer fits."""
    file = secret(tmp_path / "pass", "correct horse")
    pki = requested(tmp_path, "--passphrase-file", file)
    both = answer(tmp_path, ROOT.pem + ROOT.sign((pki / "ca-csr.pem").read_bytes()))
    words = ("init", "--dir", pki, "--take-answer", both)
    assert run(*words).exit_code == 4
    assert json.loads(done(*words, "--passphrase-file", file, "--json").stdout)["keys_encrypted"] is True


LONG = OutsideRoot.create(path_length=0)


@pytest.mark.parametrize(
    ("answered", "message"),
    [
        (lambda csr: ROOT.pem, "exactly one certificate for the waiting key, none is"),
        (
            lambda csr: ROOT.sign(csr, key=new_private_key()) + ROOT.pem,
            "exactly one certificate for the waiting",
        ),
        (lambda csr: ROOT.sign(csr) + ROOT.sign(csr) + ROOT.pem, "2 of them"),
        (ROOT.sign, "is missing: give every certificate"),
        (lambda csr: ROOT.sign(csr) + OutsideRoot.create().pem, "is missing"),
        (lambda csr: ROOT.sign(csr, uris=()) + ROOT.pem, "names no trust domain"),
        (lambda csr: ROOT.sign(csr, uris=["spiffe://other.test"]) + ROOT.pem, "names `other.test`"),
        (lambda csr: ROOT.sign(csr, uris=["spiffe://cluster.local/a"]) + ROOT.pem, "has no path"),
        (
            lambda csr: ROOT.sign(csr, uris=["spiffe://cluster.local", "urn:a"]) + ROOT.pem,
            "more than one URI",
        ),
        (lambda csr: ROOT.sign(csr, is_ca=False) + ROOT.pem, "not a CA"),
        (lambda csr: ROOT.sign(csr, ends=timedelta(minutes=-1)) + ROOT.pem, "expired"),
        (lambda csr: ROOT.sign(csr, starts=timedelta(hours=1)) + ROOT.pem, "not valid before"),
        (lambda csr: LONG.sign(csr) + LONG.pem, "would not verify"),
    ],
)
def test_answers_that_will_not_do(tmp_path: Path, answered: Callable[[bytes], bytes], message: str) -> None:
    """Each is refused for its reason, and the CA goes on waiting."""
    pki = requested(tmp_path)
    before = {name: (pki / name).read_bytes() for name in names(pki)}
    file = answer(tmp_path, answered((pki / "ca-csr.pem").read_bytes()))
    result = run("init", "--dir", pki, "--take-answer", file)
    assert (result.exit_code, message in result.stderr) == (3, True), result.stderr
    assert {name: (pki / name).read_bytes() for name in names(pki)} == before
    good = answer(tmp_path, ROOT.sign((pki / "ca-csr.pem").read_bytes()) + ROOT.pem)
    done("init", "--dir", pki, "--take-answer", good)
    again = run("init", "--dir", pki, "--take-answer", good)
    assert (again.exit_code, "never replaced" in again.stderr) == (2, True)


def test_an_answer_needs_a_request(tmp_path: Path) -> None:
    """Where nothing waits, nothing is taken; what is no certificate is named."""
    file = answer(tmp_path, ROOT.pem)
    (tmp_path / "pki").mkdir()
    result = run("init", "--dir", tmp_path / "pki", "--take-answer", file)
    assert (result.exit_code, "no request waits" in result.stderr) == (2, True)
    pki = requested(tmp_path / "b")
    assert "no PEM certificate" in run("init", "--dir", pki, "--take-answer", answer(tmp_path, b"x")).stderr
    assert (
        "not of `other.test`"
        in run("init", "--dir", pki, "--take-answer", file, "--trust-domain", "other.test").stderr
    )


def test_a_plugged_in_ca(tmp_path: Path) -> None:
    """Istio's four files become a CA, whose key is encrypted as any; the originals stay."""
    done("init", "--dir", tmp_path / "theirs", *TRUST)
    before = {name: (tmp_path / "theirs" / name).read_bytes() for name in names(tmp_path / "theirs")}
    file = secret(tmp_path / "pass", "correct horse")
    done("init", "--dir", tmp_path / "pki", "--from", tmp_path / "theirs", "--passphrase-file", file)
    assert names(tmp_path / "pki") == {"ca-key.pem", "ca-cert.pem", "cert-chain.pem", "root-cert.pem"}
    assert b"ENCRYPTED" in (tmp_path / "pki" / "ca-key.pem").read_bytes()
    assert {name: (tmp_path / "theirs" / name).read_bytes() for name in before} == before
    ours = Authority.load(tmp_path / "pki", lambda _: b"correct horse")
    assert ours.issuer.certificate == Authority.load(tmp_path / "theirs").issuer.certificate
    result = run("init", "--dir", tmp_path / "c", "--from", tmp_path / "theirs", "--trust-domain", "td")
    assert (result.exit_code, "not of `td`" in result.stderr, (tmp_path / "c").exists()) == (2, True, False)
    (tmp_path / "theirs" / "cert-chain.pem").unlink()
    result = run("init", "--dir", tmp_path / "c", "--from", tmp_path / "theirs")
    assert (result.exit_code, "cert-chain.pem" in result.stderr, (tmp_path / "c").exists()) == (
        2,
        True,
        False,
    )


# --------------------------------------------------------------------------------------------- faults


def _loads(pki: Path) -> bool:
    try:
        Authority.load(pki)
    except ConfigError:
        return False
    return True


def _walk(
    tmp_path: Path,
    prepare: Callable[[Path], object],
    words: Callable[[Path], list[str | Path]],
    check: Callable[[Path], object],
    *,
    power: bool,
) -> int:
    """Let `words` fail at each operation; afterwards the CA loads, or the same command can be repeated."""
    for step in range(1, 300):
        here = tmp_path / str(step)
        here.mkdir()
        prepare(here)
        with pytest.MonkeyPatch.context() as patch:
            disk = FaultyDisk(patch, step, power=power)
            try:
                result = run(*words(here))
                assert result.exit_code in {0, 2}, result.stderr
                assert "Traceback" not in result.stderr
            except PowerCut:
                pass
            reached = disk.failed
        if not _loads(here / "pki"):
            done(*words(here))
        assert _loads(here / "pki"), step
        check(here)
        if not reached:
            return step
    raise AssertionError("more steps than foreseen")


@pytest.mark.parametrize("power", [False, True], ids=["full disk", "power cut"])
def test_init_survives_a_fault_at_every_step(tmp_path: Path, power: bool) -> None:
    """A new CA, with its root key in the directory."""
    steps = _walk(
        tmp_path,
        lambda here: None,
        lambda here: ["init", "--dir", here / "pki", *TRUST],
        lambda here: parse_private_key((here / "pki" / "root-key.pem").read_bytes()),
        power=power,
    )
    assert steps > 20


@pytest.mark.parametrize("power", [False, True], ids=["full disk", "power cut"])
def test_a_root_key_elsewhere_survives_a_fault_at_every_step(tmp_path: Path, power: bool) -> None:
    """Whenever there is a CA, its root key is at its place or beside it under the name of the certificate."""

    def check(here: Path) -> None:
        root = Authority.load(here / "pki").roots[0]
        keys = [parse_private_key(path.read_bytes()) for path in here.glob("root.key*")]
        assert root.public_key() in [key.public_key() for key in keys]

    steps = _walk(
        tmp_path,
        lambda here: None,
        lambda here: ["init", "--dir", here / "pki", *TRUST, "--root-key-out", here / "root.key"],
        check,
        power=power,
    )
    assert steps > 25


@pytest.mark.parametrize("power", [False, True], ids=["full disk", "power cut"])
def test_an_outside_root_survives_a_fault_at_every_step(tmp_path: Path, power: bool) -> None:
    """The waiting key is never replaced or lost, whether the request or the answer was interrupted."""
    csrs: dict[Path, bytes] = {}

    def prepare(here: Path) -> None:
        pki = requested(here)
        csrs[here] = (pki / "ca-csr.pem").read_bytes()
        answer(here, ROOT.sign(csrs[here]) + ROOT.pem)

    steps = _walk(
        tmp_path,
        prepare,
        lambda here: ["init", "--dir", here / "pki", "--take-answer", here / "answer.pem"],
        lambda here: None,
        power=power,
    )
    assert steps > 10
    for step in range(1, 300):
        here = tmp_path / f"request{step}"
        here.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            disk = FaultyDisk(patch, step, power=power)
            with contextlib.suppress(PowerCut):
                run("init", "--dir", here / "pki", *TRUST, "--csr")
            reached = disk.failed
        result = run("init", "--dir", here / "pki", *TRUST, "--csr")
        assert result.exit_code == 0 or "never replaced" in result.stderr
        csr = x509.load_pem_x509_csr((here / "pki" / "ca-csr.pem").read_bytes())
        key = parse_private_key((here / "pki" / "ca-key.pem").read_bytes())
        assert csr.public_key() == key.public_key()
        if not reached:
            break


@pytest.mark.parametrize("power", [False, True], ids=["full disk", "power cut"])
def test_a_change_of_passphrase_survives_a_fault_at_every_step(
    tmp_path: Path, power: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both keys have the new passphrase or both none; the keys are those from before."""
    monkeypatch.setattr("ca.key_encryption.PBKDF2_ROUNDS", 1000)
    secret(tmp_path / "pass", "correct horse")
    for step in range(1, 300):
        pki = tmp_path / str(step) / "pki"
        done("init", "--dir", pki, *TRUST)
        with pytest.MonkeyPatch.context() as patch:
            disk = FaultyDisk(patch, step, power=power)
            with contextlib.suppress(PowerCut):
                run("passphrase", "--dir", pki, "--new-passphrase-file", tmp_path / "pass")
            reached = disk.failed
        authority = Authority.load(pki, lambda _: b"correct horse")
        forms = {b"ENCRYPTED" in (pki / name).read_bytes() for name in ("ca-key.pem", "root-key.pem")}
        assert len(forms) == 1, step
        root_key = parse_private_key((pki / "root-key.pem").read_bytes(), lambda: b"correct horse")
        assert root_key.public_key() == authority.roots[0].public_key()
        if not reached:
            assert forms == {True}
            break
