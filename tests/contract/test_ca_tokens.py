"""A CA whose key is in a token (SoftHSM): it signs there, and never leaves it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.ca_files import OutsideRoot, secret

from ca.token_keys import parse_uri

MODULES = [
    Path(folder) / "softhsm" / "libsofthsm2.so"
    for folder in ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/lib/x86_64-linux-gnu")
]
MODULE = next((path for path in MODULES if path.exists()), None)
pytest.importorskip("pkcs11", reason="the extra `pkcs11` is not installed")
NEEDS_SOFTHSM = pytest.mark.skipif(MODULE is None, reason="no SoftHSM (softhsm2) here")
WEB = "spiffe://cluster.local/web"
PIN = "12345678"
_MAKE = """
import sys, pkcs11, pkcs11.util.ec as ecs
from pkcs11 import Attribute, KeyType
session = pkcs11.lib(sys.argv[1]).get_token(token_label="ca").open(rw=True, user_pin=sys.argv[2])
named = {Attribute.EC_PARAMS: ecs.encode_named_curve_parameters("secp256r1")}
for name in ("ec-key", "twice", "twice"):
    session.create_domain_parameters(KeyType.EC, named, local=True).generate_keypair(store=True, label=name)
session.generate_keypair(KeyType.RSA, 3072, store=True, label="rsa-key")
"""


class Token:
    """A token with keys, for the `ca` command in processes of its own: a module is loaded once in each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "tokens").mkdir()
        (folder / "softhsm.conf").write_text(f"directories.tokendir = {folder}/tokens\n")
        self.environment = {**os.environ, "SOFTHSM2_CONF": str(folder / "softhsm.conf")}
        label = ["--label", "ca", "--pin", PIN, "--so-pin", "87654321"]
        self._run(["softhsm2-util", "--init-token", "--free", *label])
        self._run([sys.executable, "-c", _MAKE, str(MODULE), PIN])
        self.pin = secret(folder / "pin", PIN)

    def uri(self, name: str) -> str:
        """Return the URI of a key."""
        return f"pkcs11:token=ca;object={name}?module-path={MODULE}"

    def ca(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run the `ca` command."""
        program = [sys.executable, "-c", "from ca.cli import main; main()"]
        return subprocess.run(
            [*program, *words], capture_output=True, text=True, env=self.environment, timeout=60, check=False
        )

    def _run(self, words: list[str]) -> None:
        subprocess.run(words, env=self.environment, check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Token:
    """Return a new token."""
    return Token(tmp_path_factory.mktemp("token"))


@NEEDS_SOFTHSM
@pytest.mark.parametrize("name", ["ec-key", "rsa-key"])
def test_the_key_signs_in_the_token(token: Token, tmp_path: Path, name: str) -> None:
    """A CA on it issues what verifies; its directory holds the key's URI and nothing else of it."""
    pki, pin = tmp_path / "pki", ("--passphrase-file", token.pin)
    where = ("--dir", pki, "--trust-domain", "cluster.local")
    done = token.ca("init", *where, "--key-uri", token.uri(name), *pin, "--no-root-key-kept")
    assert done.returncode == 0, done.stderr
    assert (pki / "ca-key.pem").read_text() == token.uri(name) + "\n"
    done = token.ca("issue", "--dir", pki, WEB, "--out", tmp_path / "web", *pin)
    assert done.returncode == 0, done.stderr
    done = token.ca("verify", tmp_path / "web" / "svid.pem", "--bundle", pki / "root-cert.pem")
    assert done.returncode == 0, done.stderr
    status = json.loads(token.ca("status", "--dir", pki, "--json").stdout)
    assert status["ca-key.pem_encryption"] == "in a token (PKCS#11)"
    assert token.ca("issue", "--dir", pki, WEB, "--out", tmp_path / "x").returncode == 4
    wrong = secret(tmp_path / "wrong", "87654321x")
    refused = token.ca("issue", "--dir", pki, WEB, "--out", tmp_path / "x", "--passphrase-file", wrong)
    assert (refused.returncode, "PIN" in refused.stderr, (tmp_path / "x").exists()) == (4, True, False)


@NEEDS_SOFTHSM
def test_a_request_is_signed_in_the_token(token: Token, tmp_path: Path) -> None:
    """Under an outside root as well the key stays where it is."""
    pki, pin = tmp_path / "pki", ("--passphrase-file", token.pin)
    where = ("--dir", pki, "--trust-domain", "cluster.local")
    done = token.ca("init", *where, "--csr", "--key-uri", token.uri("ec-key"), *pin)
    assert done.returncode == 0, done.stderr
    root = OutsideRoot.create()
    (tmp_path / "answer.pem").write_bytes(root.sign((pki / "ca-csr.pem").read_bytes()) + root.pem)
    done = token.ca("init", "--dir", pki, "--take-answer", tmp_path / "answer.pem", *pin)
    assert done.returncode == 0, done.stderr


@NEEDS_SOFTHSM
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("object=ec-key", "object=none", "it names 0 private"),
        ("object=ec-key", "object=twice", "it names 2 private"),
        ("token=ca", "token=none", "no such token"),
        ("libsofthsm2", "nothing", "cannot be"),
    ],
)
def test_what_is_not_in_the_token(token: Token, tmp_path: Path, old: str, new: str, message: str) -> None:
    """It is said in a line, and no CA appears."""
    where = ("--dir", tmp_path / "pki", "--trust-domain", "cluster.local", "--passphrase-file", token.pin)
    refused = token.ca("init", *where, "--key-uri", token.uri("ec-key").replace(old, new))
    assert (refused.returncode, message in refused.stderr) == (2, True), refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "pki").exists()


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "pkcs11:",
        "pkcs11:token=a;object=b",
        "pkcs11:token=a?module-path=/x",
        "pkcs11:object=b?module-path=/x",
        "pkcs11:token=a;object=b;object=c?module-path=/x",
        "pkcs11:token=a;object=b;manufacturer=c?module-path=/x",
        "pkcs11:token=a;object=b?module-path=/x&pin-value=1234",
        "pkcs11:token=a;object=b;type=cert?module-path=/x",
        "pkcs11:token=a;object=?module-path=/x",
        "pkcs11:token=a;object=b c?module-path=/x",
        "pkcs11:token=a;object=b?module-path=/" + "x" * 2100,
    ],
)
def test_uris_that_are_refused(uri: str) -> None:
    """What is not understood is not skipped; a PIN does not stand in a file."""
    with pytest.raises(ValueError, match="PKCS#11 URI"):
        parse_uri(uri)
