"""`ca inspect, verify, lint, sign, renew, status`: right answers, exit codes, and nothing done when refused."""

from __future__ import annotations

import base64
import contextlib
import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from support.ca_files import OutsideRoot, done, run, secret
from support.faults import FaultyDisk, PowerCut

from ca.handshake import parse_address, presented_chain
from ca.inspection import check_leaf
from ca.keys import KeyType
from ca.renewal import MIN_RETRY, is_due, renewal_time, retry_time
from garrison.errors import DependencyError

TRUST = ("--trust-domain", "cluster.local")
WEB = "spiffe://cluster.local/ns/default/sa/web"
NOW = datetime(2030, 1, 2, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    """Return a CA with an SVID beside it in `web`."""
    done("init", "--dir", tmp_path / "pki", *TRUST)
    done("issue", "--dir", tmp_path / "pki", WEB, "--out", tmp_path / "web", "--dns", "web")
    return tmp_path / "pki"


def csr(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey, *uris: str) -> bytes:
    """Return a signing request that asks for names."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "admin")])
    )
    if uris:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
        builder = builder.add_extension(names, critical=False)
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, digest).public_bytes(Encoding.PEM)


P256 = ec.generate_private_key(ec.SECP256R1())
GOOD = csr(P256)


# ---------------------------------------------------------------------------------------------- sign


def test_sign_takes_the_key_and_nothing_else(pki: Path, tmp_path: Path) -> None:
    """Whatever names the request holds, those of the certificate come from the command."""
    request = tmp_path / "request.pem"
    request.write_bytes(csr(P256, "spiffe://cluster.local/ns/default/sa/admin", "spiffe://other.test/x"))
    shown = json.loads(done("sign", "--dir", pki, request, WEB, "--out", tmp_path / "out", "--json").stdout)
    leaf = x509.load_pem_x509_certificate((tmp_path / "out" / "svid.pem").read_bytes())
    assert (str(check_leaf(leaf)), leaf.public_key()) == (WEB, P256.public_key())
    assert shown["names"] == [f"URI:{WEB}"]
    assert leaf.subject == x509.Name([])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"svid.pem", "bundle.pem"}
    again = run("sign", "--dir", pki, request, WEB, "--out", tmp_path / "out")
    assert (again.exit_code, "--force" in again.stderr) == (2, True)


def _tampered() -> bytes:
    der = bytearray(x509.load_pem_x509_csr(GOOD).public_bytes(Encoding.DER))
    der[-5] ^= 1
    return (
        b"-----BEGIN CERTIFICATE REQUEST-----\n"
        + base64.encodebytes(der)
        + b"-----END CERTIFICATE REQUEST-----\n"
    )


@pytest.mark.parametrize(
    ("request_pem", "spiffe_id", "exit_code", "message"),
    [
        (b"", WEB, 2, "exactly one PEM block"),
        (b"garbage", WEB, 2, "exactly one PEM block"),
        (GOOD + GOOD, WEB, 2, "exactly one PEM block"),
        (GOOD[:-40], WEB, 2, "exactly one PEM block"),
        (GOOD.replace(b"MII", b"MIJ", 1)[:200] + GOOD[210:], WEB, 2, "malformed"),
        (GOOD + b"\n" * 17_000, WEB, 2, "more than 16384 bytes"),
        (_tampered(), WEB, 2, "does not verify"),
        (csr(ed25519.Ed25519PrivateKey.generate()), WEB, 3, "only P-256, P-384"),
        (csr(ec.generate_private_key(ec.SECP521R1())), WEB, 3, "only P-256, P-384"),
        (csr(rsa.generate_private_key(65537, 1024)), WEB, 3, "only P-256, P-384"),
        (GOOD, "spiffe://other.test/a", 3, "outside this CA's trust domain"),
        (GOOD, "spiffe://cluster.local", 3, "has no path"),
        (GOOD, "http://cluster.local/a", 2, "does not start with"),
        (GOOD, "spiffe:///a", 2, "empty"),
        (GOOD, f"spiffe://{'a' * 256}/a", 2, "at most 255"),
        (GOOD, "spiffe://a:b@cluster.local/a", 2, "characters"),
        (GOOD, "spiffe://cluster.local:80/a", 2, "characters"),
        (GOOD, "spiffe://cluster.local/a?b", 2, "characters"),
        (GOOD, "spiffe://cluster.local/a#b", 2, "characters"),
        (GOOD, "spiffe://cluster.local/%61", 2, "characters"),
        (GOOD, "spiffe://cluster.local//a", 2, "empty path segment"),
        (GOOD, "spiffe://cluster.local/a/", 2, "empty path segment"),
        (GOOD, "spiffe://cluster.local/./a", 2, "relative"),
        (GOOD, "spiffe://cluster.local/../a", 2, "relative"),
        (GOOD, "spiffe://cluster.local/a\n", 2, "characters"),
        (GOOD, "spiffe://[::1]/a", 2, "characters"),
        (GOOD, "spiffe://Cluster.local/a", 2, "characters"),
        (GOOD, f"spiffe://cluster.local/{'a' * 2048}", 2, "at most 2048"),
    ],
)
def test_what_is_not_signed(
    pki: Path, tmp_path: Path, *, request_pem: bytes, spiffe_id: str, exit_code: int, message: str
) -> None:
    """Each bad request and each bad ID is refused for its reason, and no file appears."""
    result = run("sign", "--dir", pki, "-", spiffe_id, "--out", tmp_path / "out", stdin=request_pem)
    assert (result.exit_code, message in result.stderr) == (exit_code, True), result.stderr
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------- verify, lint


def test_verify_says_who_and_under_which_root(pki: Path, tmp_path: Path) -> None:
    """Identity, end and root; both forms of a bundle; the key; standard input."""
    web = tmp_path / "web"
    (tmp_path / "bundle.json").write_bytes(done("bundle", "--dir", pki, "--json").stdout_bytes)
    for bundle in (web / "bundle.pem", tmp_path / "bundle.json"):
        words = ("verify", web / "svid.pem", "--bundle", bundle, "--key", web / "svid.key", "--json")
        shown = json.loads(done(*words).stdout)
        root = x509.load_pem_x509_certificate((pki / "root-cert.pem").read_bytes())
        assert (shown["spiffe_id"], shown["root_sha256"]) == (WEB, root.fingerprint(hashes.SHA256()).hex())
        assert len(shown["chain"]) == 3
    done("verify", "-", "--bundle", web / "bundle.pem", stdin=(web / "svid.pem").read_bytes())


@pytest.mark.parametrize("kind", KeyType)
def test_verify_of_every_type_of_key(tmp_path: Path, kind: KeyType) -> None:
    """The library's verifier and, for Ed25519, our own agree with the issuer; a stranger's root does not do."""
    for name in ("pki", "stranger"):
        done("init", "--dir", tmp_path / name, *TRUST, "--key-type", kind)
    done("issue", "--dir", tmp_path / "pki", WEB, "--out", tmp_path / "web")
    svid = tmp_path / "web" / "svid.pem"
    done("verify", svid, "--bundle", tmp_path / "pki" / "root-cert.pem")
    result = run("verify", svid, "--bundle", tmp_path / "stranger" / "root-cert.pem")
    assert (result.exit_code, "does not verify" in result.stderr) == (3, True)
    leaf_only = x509.load_pem_x509_certificate(svid.read_bytes()).public_bytes(Encoding.PEM)
    assert run("verify", "-", "--bundle", tmp_path / "pki" / "root-cert.pem", stdin=leaf_only).exit_code == 3


@pytest.mark.parametrize("kind", [KeyType.P256, KeyType.ED25519])
@pytest.mark.parametrize(
    ("change", "exit_code", "message"),
    [
        (lambda d: ["--at", "2100-01-01T00:00:00Z"], 3, "expired"),
        (lambda d: ["--at", "2001-01-01"], 3, "not valid before"),
        (lambda d: ["--at", "soon"], 2, "is not a time"),
        (
            lambda d: ["--spiffe-id", "spiffe://cluster.local/other"],
            3,
            "not of `spiffe://cluster.local/other`",
        ),
        (lambda d: ["--key", d / "pki" / "ca-key.pem"], 3, "do not belong together"),
        (lambda d: ["--bundle", d / "nowhere"], 2, "no such file"),
        (lambda d: ["--bundle", d / "web" / "svid.key"], 2, "no PEM certificate"),
        (lambda d: ["--bundle", d / "empty.json"], 3, "no root to verify with"),
        (lambda d: ["--bundle", d / "other" / "root-cert.pem"], 3, "signing certificate of `other.test`"),
        (lambda d: ["--bundle", d / "web" / "svid.pem"], 3, "not a CA"),
    ],
)
def test_what_does_not_verify(
    tmp_path: Path, kind: KeyType, change: Callable[[Path], list[str | Path]], exit_code: int, message: str
) -> None:
    """Each reason is told, whichever verifier it is; an unreadable bundle is an error, not an empty one."""
    done("init", "--dir", tmp_path / "pki", *TRUST, "--key-type", kind)
    done("init", "--dir", tmp_path / "other", "--trust-domain", "other.test", "--key-type", kind)
    done("issue", "--dir", tmp_path / "pki", WEB, "--out", tmp_path / "web")
    (tmp_path / "empty.json").write_text('{"keys": []}')
    bundle = ("--bundle", tmp_path / "web" / "bundle.pem")
    result = run("verify", tmp_path / "web" / "svid.pem", *bundle, *change(tmp_path))
    assert (result.exit_code, message in result.stderr) == (exit_code, True), result.stderr


def test_a_signing_certificate_is_nobodys_identity(pki: Path) -> None:
    """It verifies, and yet is refused as an SVID."""
    result = run("verify", pki / "ca-cert.pem", "--bundle", pki / "root-cert.pem")
    assert (result.exit_code, "needs a path" in result.stderr) == (3, True)


def test_lint_finds_nothing_in_what_we_issue(pki: Path, tmp_path: Path) -> None:
    """Leaf, intermediate and root are clean; a CA with plain keys has warnings, an open key is an error."""
    assert done("lint", tmp_path / "web" / "svid.pem", pki / "root-cert.pem").stdout == ""
    codes = [one["code"] for one in json.loads(done("lint", "--dir", pki, "--json").stdout)]
    assert sorted(codes) == ["plain_key", "plain_key", "root_key_here"]
    (pki / "ca-key.pem").chmod(0o644)
    result = run("lint", "--dir", pki)
    assert (result.exit_code, "open_key" in result.stdout) == (3, True)


def test_lint_names_every_mistake(tmp_path: Path) -> None:
    """A certificate with several is told all of them."""
    root = OutsideRoot.create(path_length=None)
    bad = root.sign(GOOD, uris=["spiffe://cluster.local/a", "urn:b"], ends=timedelta(minutes=-1), is_ca=True)
    (tmp_path / "bad.pem").write_bytes(bad + root.pem)
    result = run("lint", tmp_path / "bad.pem", "--json")
    assert result.exit_code == 3
    found = {(one["where"][-1], one["code"]) for one in json.loads(result.stdout)}
    assert {("1", "profile"), ("1", "expired"), ("1", "no_key_identifier")} <= found
    assert {("2", "no_trust_domain"), ("2", "no_path_length")} <= found


# ----------------------------------------------------------------------------------------- inspect, status


def test_inspect_says_what_it_is_and_how_long_it_lasts(pki: Path, tmp_path: Path) -> None:
    """Several files at once; whether each certificate is an SVID."""
    shown = json.loads(done("inspect", tmp_path / "web" / "svid.pem", pki / "root-cert.pem", "--json").stdout)
    checks = [one["spiffe_check"] for one in shown]
    assert checks == ["a leaf X509-SVID", "a signing X509-SVID", "a signing X509-SVID"]
    assert 3500 < shown[0]["seconds_left"] <= 3600
    assert shown[2]["time_left"].endswith(" days")


def test_inspect_shows_what_a_server_presents(pki: Path, tmp_path: Path) -> None:
    """The chain comes over a real handshake, though nothing in it is trusted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "web" / "svid.pem", tmp_path / "web" / "svid.key")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with context.wrap_socket(connection, server_side=True) as tls:
                tls.recv(1)

        thread = threading.Thread(target=answer)
        thread.start()
        port = listener.getsockname()[1]
        shown = json.loads(done("inspect", f"127.0.0.1:{port}", "--json").stdout)
        thread.join()
    written = json.loads(done("inspect", tmp_path / "web" / "svid.pem", "--json").stdout)
    assert [one["sha256"] for one in shown] == [one["sha256"] for one in written]


def test_a_server_that_says_nothing_is_given_up() -> None:
    """The time is limited, and what is no server is said in a line."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(DependencyError, match=r"did not answer within 0.05 s"):
            presented_chain("127.0.0.1", port, timeout_seconds=0.05)
    result = run("inspect", f"127.0.0.1:{port}")
    assert (result.exit_code, "cannot be reached" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("localhost:443", ("localhost", 443)),
        ("https://a.example:8443/", ("a.example", 8443)),
        ("[::1]:1", ("::1", 1)),
        ("file.pem", None),
        ("a:0", None),
        ("a:65536", None),
        ("C:\\x", None),
        ("::1", None),
    ],
)
def test_addresses(text: str, address: tuple[str, int] | None) -> None:
    """What is no address is a file."""
    assert parse_address(text) == address


def test_status_says_what_to_do_next(tmp_path: Path) -> None:
    """From nothing over a request to a CA; weak encryption is named."""
    pki = tmp_path / "pki"
    assert "ca init" in run("status", "--dir", pki).stderr
    pki.mkdir()
    assert json.loads(done("status", "--dir", pki, "--json").stdout)["state"] == "empty"
    done("init", "--dir", pki, *TRUST, "--csr", "--passphrase-file", secret(tmp_path / "p", "correct horse"))
    waiting = json.loads(done("status", "--dir", pki, "--json").stdout)
    assert waiting["state"] == "waiting for an answer"
    assert "--take-answer" in waiting["next"][0]
    assert "600000 rounds" in waiting["ca-key.pem_encryption"]
    done("init", "--dir", tmp_path / "b", *TRUST)
    ready = json.loads(done("status", "--dir", tmp_path / "b", "--json").stdout)
    assert (ready["state"], ready["root_key_here"], ready["ca-key.pem_encryption"]) == ("ready", True, "none")
    assert any("ca passphrase" in one for one in ready["next"])
    assert "state:" in done("status", "--dir", tmp_path / "b").stdout
    (tmp_path / "b" / "ca-key.pem").unlink()
    assert json.loads(done("status", "--dir", tmp_path / "b", "--json").stdout)["state"] == "without its key"


# ------------------------------------------------------------------------------------------------ renew


def serial(web: Path) -> int:
    """Return the serial number of the SVID in `web`."""
    return x509.load_pem_x509_certificate((web / "svid.pem").read_bytes()).serial_number


def test_renew_waits_until_it_is_due(pki: Path, tmp_path: Path) -> None:
    """What is fresh is left alone with exit code 0; --expires-in and --force renew."""
    web = tmp_path / "web"
    before = serial(web)
    assert json.loads(done("renew", "--dir", pki, web, "--json").stdout)["renewed"] is False
    assert serial(web) == before
    old_key = (web / "svid.key").read_bytes()
    done("renew", "--dir", pki, web / "svid.pem", "--expires-in", "2h")
    assert serial(web) != before
    assert (web / "svid.key").read_bytes() != old_key
    assert (web / "svid.key").stat().st_mode & 0o777 == 0o600
    leaf = x509.load_pem_x509_certificate((web / "svid.pem").read_bytes())
    assert load_pem_private_key((web / "svid.key").read_bytes(), None).public_key() == leaf.public_key()
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert (str(check_leaf(leaf)), names.get_values_for_type(x509.DNSName)) == (WEB, ["web"])
    assert abs(leaf.not_valid_after_utc - datetime.now(UTC) - HOUR) < timedelta(minutes=2)
    done("renew", "--dir", pki, web, "--force", "--ttl", "2h")


def test_renew_of_what_another_ca_signed_is_refused(pki: Path, tmp_path: Path) -> None:
    """Who can write a file does not choose an identity; nothing is replaced."""
    done("init", "--dir", tmp_path / "stranger", *TRUST)
    done("issue", "--dir", tmp_path / "stranger", "spiffe://cluster.local/admin", "--out", tmp_path / "admin")
    before = (tmp_path / "admin" / "svid.pem").read_bytes()
    result = run("renew", "--dir", pki, tmp_path / "admin", "--force")
    assert (result.exit_code, "does not verify" in result.stderr) == (3, True)
    assert (tmp_path / "admin" / "svid.pem").read_bytes() == before


@pytest.mark.parametrize("power", [False, True], ids=["full disk", "power cut"])
def test_renew_survives_a_fault_at_every_step(pki: Path, tmp_path: Path, power: bool) -> None:
    """Afterwards, once `ca renew` has looked, key and certificate belong together, due or not."""
    web = tmp_path / "web"
    for step in range(1, 200):
        with pytest.MonkeyPatch.context() as patch:
            disk = FaultyDisk(patch, step, power=power)
            with contextlib.suppress(PowerCut):
                assert run("renew", "--dir", pki, web, "--force").exit_code in {0, 2}
            reached = disk.failed
        done("renew", "--dir", pki, web)
        leaf = x509.load_pem_x509_certificate((web / "svid.pem").read_bytes())
        key = load_pem_private_key((web / "svid.key").read_bytes(), None)
        assert key.public_key() == leaf.public_key(), step
        if not reached:
            assert step > 15
            return
    raise AssertionError("more steps than foreseen")


def test_renew_runs_a_command_without_a_shell(pki: Path, tmp_path: Path) -> None:
    """Its words are words; its failure is told, and the renewal stands."""
    touch = f"{sys.executable} -c \"import sys; open(sys.argv[1], 'w')\" '{tmp_path}/$(x) y'"
    done("renew", "--dir", pki, tmp_path / "web", "--force", "--exec", touch)
    assert (tmp_path / "$(x) y").exists()
    before = serial(tmp_path / "web")
    result = run("renew", "--dir", pki, tmp_path / "web", "--force", "--exec", "false")
    assert (result.exit_code, "exit code 1" in result.stderr) == (2, True)
    assert serial(tmp_path / "web") != before


def test_the_daemon_renews_when_told_and_ends_when_told(pki: Path, tmp_path: Path) -> None:
    """SIGHUP renews at once and runs the command, a failure is no end, SIGTERM is exit code 0."""
    web = tmp_path / "web"
    program = [sys.executable, "-c", "from ca.cli import main; main()", "renew", "--dir", str(pki), str(web)]
    mark = f"{sys.executable} -c \"open('{tmp_path}/reloaded', 'w')\""
    words = [*program, "--daemon", "--json", "--exec", mark]
    daemon = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert daemon.stdout is not None
    assert daemon.stderr is not None
    try:
        assert "renewing" in daemon.stdout.readline() + daemon.stdout.readline()
        before = serial(web)
        daemon.send_signal(signal.SIGHUP)
        _wait((tmp_path / "reloaded").exists)
        assert serial(web) != before
        (pki / "ca-key.pem").rename(pki / "away")
        daemon.send_signal(signal.SIGHUP)
        assert "not renewed" in daemon.stderr.readline()
        (pki / "away").rename(pki / "ca-key.pem")
        (tmp_path / "reloaded").unlink()
        daemon.send_signal(signal.SIGHUP)
        _wait((tmp_path / "reloaded").exists)
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(20) == 0
    finally:
        daemon.kill()
        daemon.wait()
        daemon.stdout.close()
        daemon.stderr.close()


def test_no_signal_is_lost_and_none_stops_the_daemon(pki: Path, tmp_path: Path) -> None:
    """Whenever they come: hundreds in a row, in the middle of anything, and it still renews, and ends when told."""
    web = tmp_path / "web"
    program = [sys.executable, "-c", "from ca.cli import main; main()", "renew", "--dir", str(pki), str(web)]
    daemon = subprocess.Popen([*program, "--daemon", "--json"], stdout=subprocess.PIPE, text=True)
    assert daemon.stdout is not None
    try:
        assert "renewing" in daemon.stdout.readline() + daemon.stdout.readline()
        for _ in range(300):
            daemon.send_signal(signal.SIGHUP)
            before = serial(web)  # takes a while, so they come at different moments
        daemon.send_signal(signal.SIGHUP)
        _wait(lambda: serial(web) != before)
        daemon.send_signal(signal.SIGTERM)
        daemon.communicate(timeout=30)
        assert daemon.returncode == 0
    finally:
        daemon.kill()


def _wait(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_times_of_renewal() -> None:
    """Two thirds of what is left, up to a twentieth sooner; or so long before the end; never in the past."""
    ends = NOW + 60 * HOUR
    assert renewal_time(NOW, ends, None, 0.0) == NOW + 40 * HOUR
    assert renewal_time(NOW, ends, None, 1.0) == NOW + 37 * HOUR
    assert renewal_time(NOW, ends, 10 * HOUR, 0.0) == NOW + 50 * HOUR
    assert renewal_time(NOW, ends, 100 * HOUR, 0.5) == NOW
    assert renewal_time(NOW, NOW - HOUR, None, 0.5) == NOW
    assert is_due(NOW, NOW - 2 * HOUR, NOW + HOUR, None)
    assert not is_due(NOW, NOW - 2 * HOUR, NOW + 2 * HOUR, None)
    assert is_due(NOW, NOW - 2 * HOUR, NOW + 2 * HOUR, 2 * HOUR)
    assert retry_time(NOW, NOW - HOUR, 0.0) == NOW + MIN_RETRY / 2
    assert NOW < retry_time(NOW, NOW + HOUR, 0.5) < NOW + HOUR / 10
