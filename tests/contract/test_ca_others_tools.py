"""What the CA issues holds before other people's tools: OpenSSL, GnuTLS, pkilint; for every type of CA key."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from support.ca_files import done

from ca.keys import KeyType

WEB = "spiffe://cluster.local/ns/default/sa/web"
# pkilint takes `spiffe://…` for malformed, because it knows only schemes of the web. This finding and no other.
FALSE_POSITIVE = "pkix.invalid_uri_syntax"


@pytest.fixture(scope="module", params=list(KeyType))
def issued(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a CA of each type in `pki`, and an SVID in `web`."""
    folder = tmp_path_factory.mktemp("issued")
    words = ("--trust-domain", "cluster.local", "--key-type", request.param)
    done("init", "--dir", folder / "pki", *words)
    done("issue", "--dir", folder / "pki", WEB, "--out", folder / "web", "--dns", "web.default")
    return folder


def call(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a tool."""
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command here")
def test_openssl_verifies_strictly(issued: Path) -> None:
    """`-x509_strict` for both purposes; not under the intermediate alone."""
    root, intermediate, svid = (
        issued / name for name in ("pki/root-cert.pem", "pki/ca-cert.pem", "web/svid.pem")
    )
    for purpose in ("sslserver", "sslclient"):
        words = ("openssl", "verify", "-x509_strict", "-check_ss_sig", "-purpose", purpose)
        result = call(*words, "-CAfile", root, "-untrusted", intermediate, svid)
        assert result.returncode == 0, result.stdout + result.stderr
        assert call(*words, "-no-CApath", "-no-CAfile", "-untrusted", intermediate, svid).returncode != 0


@pytest.mark.skipif(shutil.which("certtool") is None, reason="no certtool (gnutls-bin) here")
def test_gnutls_verifies(issued: Path) -> None:
    """GnuTLS trusts the chain at its medium profile."""
    words = ("certtool", "--verify", "--verify-profile", "medium", "--infile", issued / "web" / "svid.pem")
    result = call(*words, "--load-ca-certificate", issued / "pki" / "root-cert.pem")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Verified. The certificate is trusted" in result.stdout + result.stderr


@pytest.mark.parametrize("name", ["pki/root-cert.pem", "pki/ca-cert.pem", "web/svid.pem"])
def test_pkilint_finds_nothing_but_the_scheme(issued: Path, name: str) -> None:
    """RFC 5280 as pkilint reads it: no finding above information, but for one that is known to be wrong."""
    tool = Path(sys.executable).with_name("lint_pkix_cert")
    # It reads one certificate from a file, and runs two together.
    first = x509.load_pem_x509_certificate((issued / name).read_bytes())
    (issued / "one.pem").write_bytes(first.public_bytes(Encoding.PEM))
    result = call(tool, "lint", "-f", "JSON", issued / "one.pem")
    assert result.stdout, result.stderr
    found = [
        (finding["severity"], finding["code"], finding["message"])
        for one in json.loads(result.stdout)["results"]
        for finding in one["finding_descriptions"]
        if finding["severity"] not in {"INFO", "DEBUG"}
    ]
    uri = WEB if name == "web/svid.pem" else "spiffe://cluster.local"
    assert found == [("ERROR", FALSE_POSITIVE, f'Invalid URI syntax: "{uri}"')]
