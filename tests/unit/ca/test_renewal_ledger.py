"""`ca renew` and the ledger: what is renewed is recorded, and what was revoked is not renewed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ca.cli import ca

WEB = "spiffe://cluster.local/ns/default/sa/web"


def run(*arguments: str | Path) -> Result:
    """Run `ca`."""
    return CliRunner().invoke(ca, [str(argument) for argument in arguments])


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    """Make a CA, and an SVID in `web` beside it."""
    directory = tmp_path / "pki"
    arguments: list[str | Path] = [
        "init",
        "--dir",
        directory,
        "--trust-domain",
        "cluster.local",
        "--no-passphrase",
    ]
    assert run(*arguments).exit_code == 0
    assert run("issue", "--dir", directory, WEB, "--out", tmp_path / "web").exit_code == 0
    return directory


def serials(pki: Path) -> list[str]:
    """Return the serial numbers that are recorded, newest first."""
    listed = json.loads(run("list", "--dir", pki, "--json").output)
    return [one["serial"] for one in listed["certificates"]]


def test_a_renewed_svid_is_recorded(pki: Path) -> None:
    """The new certificate is in the ledger beside the old one."""
    web = pki.parent / "web"
    (before,) = serials(pki)
    result = run("renew", "--dir", pki, web, "--force", "--json")
    assert result.exit_code == 0, result.output
    assert serials(pki) == [json.loads(result.output)["serial"], before]


def test_a_revoked_svid_is_not_renewed(pki: Path) -> None:
    """Revoking ends renewal: nothing is issued, and the files stay as they are."""
    web = pki.parent / "web"
    held = (web / "svid.pem").read_bytes()
    assert run("revoke", "--dir", pki, web / "svid.pem", "--reason", "key_compromise").exit_code == 0
    result = run("renew", "--dir", pki, web, "--force")
    assert result.exit_code == 3
    assert "was revoked (key_compromise)" in result.output
    assert (web / "svid.pem").read_bytes() == held
    assert len(serials(pki)) == 1
