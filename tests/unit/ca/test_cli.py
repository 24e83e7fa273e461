"""The `ca` command does what it says, writes nothing when it refuses, and never shows a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import click
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from support.ca_files import run

from ca.bundle import parse_spiffe_bundle
from ca.cli import ca
from ca.inspection import check_leaf
from ca.keys import new_private_key

WEB = "spiffe://cluster.local/ns/default/sa/web"


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    """Return the directory of a new CA."""
    assert run("init", "--dir", tmp_path / "pki", "--trust-domain", "cluster.local").exit_code == 0
    return tmp_path / "pki"


def names(directory: Path) -> set[str]:
    """Return what lies in `directory`."""
    return {path.name for path in directory.iterdir()} if directory.exists() else set()


def test_init_makes_a_ca_and_says_what(tmp_path: Path) -> None:
    """The output names the root by its fingerprint, and `ca inspect` agrees."""
    result = run("init", "--dir", tmp_path / "pki", "--trust-domain", "cluster.local", "--json")
    made = json.loads(result.output)
    shown = json.loads(run("inspect", tmp_path / "pki" / "root-cert.pem", "--json").output)
    assert made["root_sha256"] == shown[0]["sha256"]
    assert made["trust_domain"] == "cluster.local"
    assert names(tmp_path / "pki") == {
        "root-cert.pem",
        "root-key.pem",
        "ca-cert.pem",
        "ca-key.pem",
        "cert-chain.pem",
    }


def test_init_never_replaces_a_ca(pki: Path) -> None:
    """A second `init` is refused, and the keys stay."""
    before = (pki / "ca-key.pem").read_bytes()
    result = run("init", "--dir", pki, "--trust-domain", "cluster.local")
    assert (result.exit_code, "never replaced" in result.stderr) == (2, True)
    assert (pki / "ca-key.pem").read_bytes() == before


def test_issue_writes_chain_key_and_bundle(pki: Path, tmp_path: Path) -> None:
    """The three files fit together, and only the owner can read the key."""
    out = tmp_path / "web"
    result = run(
        "issue", "--dir", pki, WEB, "--out", out, "--ttl", "1h30m", "--dns", "web", "--dns", "web.default"
    )
    assert result.exit_code == 0, result.stderr
    assert names(out) == {"svid.pem", "svid.key", "bundle.pem"}
    leaf, intermediate = x509.load_pem_x509_certificates((out / "svid.pem").read_bytes())
    assert str(check_leaf(leaf)) == WEB
    assert intermediate == x509.load_pem_x509_certificate((pki / "ca-cert.pem").read_bytes())
    key = load_pem_private_key((out / "svid.key").read_bytes(), None)
    assert key.public_key() == leaf.public_key()
    assert (out / "svid.key").stat().st_mode & 0o777 == 0o600
    assert (out / "bundle.pem").read_bytes() == (pki / "root-cert.pem").read_bytes()
    dns = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert dns.get_values_for_type(x509.DNSName) == ["web", "web.default"]
    left = leaf.not_valid_after_utc - datetime.now(UTC)
    assert 5300 < left.total_seconds() <= 5400


@pytest.mark.parametrize("taken", ["svid.pem", "svid.key", "bundle.pem"])
def test_issue_replaces_only_when_told(pki: Path, tmp_path: Path, taken: str) -> None:
    """If one of the files is there, none is written; `--force` writes all."""
    out = tmp_path / "web"
    out.mkdir()
    (out / taken).write_text("mine")
    result = run("issue", "--dir", pki, WEB, "--out", out)
    assert (result.exit_code, taken in result.stderr) == (2, True)
    assert names(out) == {taken}
    assert (out / taken).read_text() == "mine"
    assert run("issue", "--dir", pki, WEB, "--out", out, "--force").exit_code == 0
    assert (out / taken).read_text() != "mine"
    assert names(out) == {"svid.pem", "svid.key", "bundle.pem"}
    assert (out / "svid.key").stat().st_mode & 0o777 == 0o600


def test_a_dangling_link_counts_as_a_file(pki: Path, tmp_path: Path) -> None:
    """A link to nowhere in place of the key is not followed."""
    out = tmp_path / "web"
    out.mkdir()
    (out / "svid.key").symlink_to(tmp_path / "elsewhere")
    assert run("issue", "--dir", pki, WEB, "--out", out).exit_code == 2
    assert run("issue", "--dir", pki, WEB, "--out", out, "--force").exit_code == 0
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["spiffe://other.test/a"], 3, "outside this CA's trust domain"),
        (["spiffe://cluster.local"], 3, "has no path"),
        ([WEB, "--ttl", "24h1s"], 3, "a TTL is"),
        ([WEB, "--ttl", "999999h"], 3, "a TTL is"),
        ([WEB, "--ttl", "0s"], 3, "a TTL is"),
        ([WEB, "--dns", "*.example.org"], 3, "DNS name"),
        ([WEB, "--ttl", "soon"], 2, "is not a duration"),
        ([WEB, "--ttl", "-1h"], 2, "is not a duration"),
        ([WEB, "--ttl", "9999999h"], 2, "is not a duration"),
        (["cluster.local/a"], 2, "does not start with"),
        (["spiffe://cluster.local/a/"], 2, "empty path segment"),
        (["spiffe://cluster.local/\udcff"], 2, "path characters"),
        ([], 2, "Missing argument"),
    ],
)
def test_what_issue_refuses(
    pki: Path, tmp_path: Path, arguments: list[str], exit_code: int, message: str
) -> None:
    """Each refusal has its exit code and reason, and leaves nothing behind."""
    result = run("issue", "--dir", pki, "--out", tmp_path / "web", *arguments)
    assert (result.exit_code, message in result.stderr) == (exit_code, True), result.stderr
    assert not (tmp_path / "web").exists()


def test_show_tells_everything_in_both_forms(pki: Path, tmp_path: Path) -> None:
    """Every certificate of the file is described, as text and as JSON."""
    run("issue", "--dir", pki, WEB, "--out", tmp_path / "web")
    text = run("inspect", tmp_path / "web" / "svid.pem").output
    data = json.loads(run("inspect", tmp_path / "web" / "svid.pem", "--json").output)
    assert [entry["ca"] for entry in data] == [False, True]
    leaf = x509.load_pem_x509_certificate((tmp_path / "web" / "svid.pem").read_bytes())
    assert data[0]["spiffe_id"] == WEB
    assert data[0]["subject"] == ""
    assert data[0]["issuer"] == data[1]["subject"]
    assert data[0]["names"] == [f"URI:{WEB}"]
    assert data[0]["serial"] == f"{leaf.serial_number:x}"
    assert data[0]["key"] == "EC secp256r1"
    assert data[0]["key_usage"] == ["digitalSignature"]
    assert data[0]["extended_key_usage"] == ["serverAuth", "clientAuth"]
    assert data[0]["sha256"] == leaf.fingerprint(hashes.SHA256()).hex()
    assert data[1]["path_length"] == 0
    for entry in data:
        for value in (entry["sha256"], entry["serial"], entry["not_after"], entry["issuer"]):
            assert value in text


def test_show_reads_der_requests_bundles_and_stdin(pki: Path) -> None:
    """Whatever a certificate comes in, it is shown."""
    pem = (pki / "root-cert.pem").read_bytes()
    expected = json.loads(run("inspect", pki / "root-cert.pem", "--json").output)
    der = x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
    bundle = run("bundle", "--dir", pki, "--format", "spiffe").output.encode()
    for form in (pem, der, bundle, b"a comment\n" + pem):
        assert json.loads(run("inspect", "-", "--json", stdin=form).output) == expected
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .sign(new_private_key(), hashes.SHA256())
    )
    for encoding in (Encoding.PEM, Encoding.DER):
        shown = json.loads(run("inspect", "-", "--json", stdin=request.public_bytes(encoding)).output)
        assert (shown[0]["type"], shown[0]["signature_valid"]) == ("certificate request", True)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"{",
        b"{}",
        b'{"keys": 1}',
        b'{"keys": [1]}',
        b'{"keys": [{"use": "x509-svid", "x5c": ["!"]}]}',
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        b"[" * 100_000,
        b'{"keys":' + b"[" * 100_000,
        b"\xff\xfe\x00",
    ],
)
def test_show_of_garbage_is_one_line(content: bytes) -> None:
    """Anything else ends with exit code 2 and one line."""
    result = run("inspect", "-", stdin=content)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("Error: standard input: ")
    assert result.stderr.count("\n") == 1


def test_a_hostile_name_cannot_write_to_the_terminal() -> None:
    """Control characters in a name are shown escaped."""
    key = new_private_key()
    hostile = x509.UniformResourceIdentifier("spiffe://td/a\x1b[2J\nca: yes")
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a\x1b[2J\nca: yes")])
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .add_extension(x509.SubjectAlternativeName([hostile]), critical=True)
        .sign(key, hashes.SHA256())
    )
    output = run("inspect", "-", stdin=request.public_bytes(Encoding.PEM)).output
    assert "\x1b" not in output
    assert not any(line.startswith("ca:") for line in output.splitlines())


def test_show_does_not_show_keys(pki: Path) -> None:
    """A key file is named for what it is, and nothing of it is printed."""
    result = run("inspect", pki / "ca-key.pem")
    assert (result.exit_code, "PRIVATE KEY" in result.stderr, result.stdout) == (2, True, "")


def test_bundle_comes_as_pem_and_as_spiffe(pki: Path) -> None:
    """Both forms hold the root; the SPIFFE form has no key ID and one certificate per entry."""
    pem = run("bundle", "--dir", pki).output.encode()
    assert pem == (pki / "root-cert.pem").read_bytes()
    text = run("bundle", "--dir", pki, "--format", "spiffe").output
    assert parse_spiffe_bundle(text).x509_authorities == tuple(x509.load_pem_x509_certificates(pem))
    (entry,) = json.loads(text)["keys"]
    assert (entry["use"], entry["kty"], entry["crv"], len(entry["x5c"])) == ("x509-svid", "EC", "P-256", 1)
    assert "kid" not in entry
    assert run("bundle", "--dir", pki, "--json").output == text


@pytest.mark.parametrize(
    "arguments",
    [
        lambda d: ["bundle", "--dir", d / "nowhere"],
        lambda d: ["issue", "--dir", d / "nowhere", WEB, "--out", d / "x"],
        lambda d: ["inspect", d / "nowhere"],
        lambda d: ["inspect", d],
        lambda d: ["init", "--dir", d / "file", "--trust-domain", "td"],
        lambda d: ["init", "--dir", d / "file" / "pki", "--trust-domain", "td"],
        lambda d: ["init", "--dir", d / "new", "--trust-domain", "TD"],
        lambda d: ["init", "--dir", d / "new", "--trust-domain", "spiffe://td"],
        lambda d: ["init", "--dir", d / ("x" * 300), "--trust-domain", "td"],
        lambda d: ["frobnicate"],
    ],
)
def test_unusable_paths_and_words_are_exit_code_2(
    tmp_path: Path, arguments: Callable[[Path], list[str | Path]]
) -> None:
    """What cannot be used is said in a sentence."""
    (tmp_path / "file").write_text("")
    result = run(*arguments(tmp_path))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Error: " in result.stderr


def test_a_minted_token_is_good_for_its_audience_only(pki: Path, tmp_path: Path) -> None:
    """`jwt mint` prints a token alone, `jwt validate` takes it from a file or standard input, and says what it claims."""
    token = run("jwt", "mint", "--dir", pki, "--audience", "db", "--ttl", "1m", "--issuer", "https://x", WEB)
    assert token.exit_code == 0
    (tmp_path / "token").write_text(token.output)
    for source, stdin in (("-", token.output.encode()), (tmp_path / "token", b"")):
        result = run("jwt", "validate", "--dir", pki, "--audience", "db", "--json", source, stdin=stdin)
        found = json.loads(result.output)
        assert found["spiffe_id"] == found["claims"]["sub"] == WEB
        assert found["claims"]["iss"] == "https://x"
        assert found["claims"]["exp"] - found["claims"]["iat"] == 60
    result = run("jwt", "validate", "--dir", pki, "--audience", "mail", tmp_path / "token")
    assert (result.exit_code, "another audience" in result.output) == (3, True)
    result = run("jwt", "validate", "--dir", pki, "--audience", "db", "-", stdin=b"\xff\xfe")
    assert (result.exit_code, "malformed" in result.output) == (3, True)


def test_minting_makes_one_key_and_uses_it_again(pki: Path) -> None:
    """The key is in the bundle, its file is closed to others, and nothing private is printed."""
    minted = [
        json.loads(run("jwt", "mint", "--dir", pki, "--audience", "db", "--json", WEB).output)
        for _ in range(2)
    ]
    assert minted[0]["kid"] == minted[1]["kid"]
    assert (pki / "jwt-keys.json").stat().st_mode & 0o777 == 0o600
    text = run("bundle", "--dir", pki, "--json").output
    assert [one.kid for one in parse_spiffe_bundle(text).jwt_authorities] == [minted[0]["kid"]]
    assert "PRIVATE" not in text + json.dumps(minted)


def test_the_sequence_of_a_bundle_rises_with_its_content(pki: Path) -> None:
    """The same bundle has the same number, one with another key a greater one."""

    def sequence() -> int:
        number = parse_spiffe_bundle(run("bundle", "--dir", pki, "--json").output).sequence
        assert number is not None
        return number

    first = sequence()
    assert sequence() == first
    run("jwt", "mint", "--dir", pki, "--audience", "db", WEB)
    assert sequence() > first


@pytest.mark.parametrize(
    "arguments",
    [
        ("--audience", "db", "spiffe://other.test/a"),
        ("--audience", "db", "spiffe://cluster.local"),
        ("--audience", "db", "--ttl", "2h", WEB),
        ("--audience", "", WEB),
    ],
)
def test_what_mint_refuses(pki: Path, arguments: tuple[str, ...]) -> None:
    """Another domain, no path, too long a life, no audience: no token."""
    result = run("jwt", "mint", "--dir", pki, *arguments)
    assert result.exit_code in {2, 3}
    assert result.output.startswith("Error: ")


def _commands(group: click.Group, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _commands(command, (*above, name))
        else:
            yield (*above, name)


@pytest.mark.parametrize("command", list(_commands(ca)), ids=" ".join)
def test_help_has_an_example_and_the_exit_codes(command: tuple[str, ...]) -> None:
    """Every command tells how it is used and how it ends."""
    text = run(*command, "--help").output
    assert f"ca {' '.join(command)} " in text
    assert "Example:" in text
    assert "Exit codes:" in text
    assert "--json" in text


def test_the_console_command_ends_with_the_exit_code(tmp_path: Path) -> None:
    """The process itself exits as documented, with nothing of Python on stderr."""
    command: list[str | Path] = [
        sys.executable,
        "-c",
        "from ca.cli import main; main()",
        "bundle",
        "--dir",
        tmp_path,
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=20, env=dict(os.environ)
    )
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    assert "Traceback" not in done.stderr


def secret(path: Path, text: str) -> Path:
    """Write a passphrase file."""
    path.write_text(text)
    path.chmod(0o600)
    return path


@pytest.fixture
def locked_pki(tmp_path: Path) -> Path:
    """Return the directory of a new CA whose passphrase is in the file `pass`."""
    file = secret(tmp_path / "pass", "correct horse\n")
    where = ("--dir", tmp_path / "locked", "--trust-domain", "cluster.local")
    assert run("init", *where, "--passphrase-file", file).exit_code == 0
    return tmp_path / "locked"


def test_init_with_a_passphrase_encrypts_both_keys(locked_pki: Path, tmp_path: Path) -> None:
    """Nothing in the directory can be read as a key without it."""
    for name in ("ca-key.pem", "root-key.pem"):
        pem = (locked_pki / name).read_bytes()
        assert pem.startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
        load_pem_private_key(pem, b"correct horse")
        assert (locked_pki / name).stat().st_mode & 0o777 == 0o600


def test_init_without_a_passphrase_says_so(tmp_path: Path) -> None:
    """A warning goes to standard error unless it was meant; --json has it in a field."""
    result = run("init", "--dir", tmp_path / "a", "--trust-domain", "td")
    assert "keys are not encrypted" in result.stderr
    quiet = run("init", "--dir", tmp_path / "b", "--trust-domain", "td", "--no-passphrase")
    assert (quiet.exit_code, quiet.stderr) == (0, "")
    as_json = run("init", "--dir", tmp_path / "c", "--trust-domain", "td", "--json")
    assert json.loads(as_json.stdout)["keys_encrypted"] is False


@pytest.mark.parametrize("way", ["file", "environment"])
def test_issue_with_the_passphrase(
    locked_pki: Path, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes from a file or from the environment, and is needed."""
    words: list[str | Path] = ["issue", "--dir", locked_pki, WEB, "--out", tmp_path / "web"]
    result = run(*words)
    assert (result.exit_code, "GARRISON_CA_PASSPHRASE" in result.stderr) == (4, True)
    if way == "file":
        words += ["--passphrase-file", tmp_path / "pass"]
    else:
        monkeypatch.setenv("GARRISON_CA_PASSPHRASE", "correct horse")
    assert run(*words).exit_code == 0
    # What a workload loads is never encrypted.
    load_pem_private_key((tmp_path / "web" / "svid.key").read_bytes(), None)


def test_a_wrong_passphrase_issues_nothing(locked_pki: Path, tmp_path: Path) -> None:
    """It has an exit code of its own, and nothing is written."""
    wrong = secret(tmp_path / "wrong", "incorrect horse")
    result = run("issue", "--dir", locked_pki, WEB, "--out", tmp_path / "web", "--passphrase-file", wrong)
    assert (result.exit_code, "passphrase is wrong" in result.stderr) == (4, True)
    assert not (tmp_path / "web").exists()


def test_bundle_needs_no_passphrase(locked_pki: Path) -> None:
    """What is public can be had without a secret."""
    assert run("bundle", "--dir", locked_pki).output.encode() == (locked_pki / "root-cert.pem").read_bytes()


def test_passphrase_changes_adds_and_removes(pki: Path, tmp_path: Path) -> None:
    """Plain to encrypted to another to plain: the keys stay the same."""
    before = (pki / "ca-key.pem").read_bytes(), (pki / "root-key.pem").read_bytes()
    one, two = secret(tmp_path / "one", "first passphrase"), secret(tmp_path / "two", "second passphrase")
    assert run("passphrase", "--dir", pki, "--new-passphrase-file", one).exit_code == 0
    load_pem_private_key((pki / "ca-key.pem").read_bytes(), b"first passphrase")
    assert run("passphrase", "--dir", pki, "--new-passphrase-file", two).exit_code == 4
    done = run("passphrase", "--dir", pki, "--passphrase-file", one, "--new-passphrase-file", two)
    assert done.exit_code == 0, done.stderr
    load_pem_private_key((pki / "root-key.pem").read_bytes(), b"second passphrase")
    assert run("passphrase", "--dir", pki, "--passphrase-file", one, "--remove").exit_code == 4
    assert run("passphrase", "--dir", pki, "--passphrase-file", two, "--remove").exit_code == 0
    assert ((pki / "ca-key.pem").read_bytes(), (pki / "root-key.pem").read_bytes()) == before


def test_passphrase_needs_a_new_one(pki: Path, tmp_path: Path) -> None:
    """Neither silence nor a short one is taken for consent."""
    assert run("passphrase", "--dir", pki).exit_code == 4
    short = secret(tmp_path / "short", "1234567")
    assert run("passphrase", "--dir", pki, "--new-passphrase-file", short).exit_code == 2
    assert run("passphrase", "--dir", pki, "--new-passphrase-file", short, "--remove").exit_code == 2
    assert (pki / "ca-key.pem").read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")
