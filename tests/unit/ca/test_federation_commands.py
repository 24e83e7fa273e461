"""`ca federation`: relationships are made, shown, refreshed and deleted, each with its exit code."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from support.ca_files import done, run
from support.certificates import certify
from support.http_server import Answer, answer, serving

from ca.authority import Hierarchy
from ca.bundle import SpiffeBundle, format_certificates, format_spiffe_bundle
from ca.store.sqlite import SqliteLedger
from garrison.identity import TrustDomain

PARTNER = "partner.test"
URL = "https://partner.test/bundle"
BY_SVID = ("--profile", "https_spiffe", "--endpoint-id", "spiffe://partner.test/bundles")


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    """Return the directory of a new CA."""
    done("init", "--dir", tmp_path / "pki", "--trust-domain", "cluster.local")
    return tmp_path / "pki"


@pytest.fixture(scope="module")
def partner() -> Hierarchy:
    """Return the CA of the partner."""
    return Hierarchy.create(TrustDomain(PARTNER), now=datetime.now(UTC))


def plain(command: str, pki: Path, *arguments: str | Path) -> Any:
    """Run `ca federation` with `--json`, and return what it says."""
    return json.loads(done("federation", command, "--dir", pki, *arguments, "--json").stdout)


def refused(code: int, command: str, pki: Path, *arguments: str | Path) -> str:
    """Run what must fail with an exit code and one line; return that line."""
    result = run("federation", command, "--dir", pki, *arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    return result.stderr


def test_a_relationship_has_a_life(pki: Path, partner: Hierarchy, tmp_path: Path) -> None:
    """Made with a first bundle, listed, shown, not made twice, deleted, gone; all of it is in the audit log."""
    first = tmp_path / "first.pem"
    first.write_bytes(format_certificates([partner.root]))
    made = plain("create", pki, PARTNER, URL, *BY_SVID, "--bundle", first)
    assert (made["profile"], made["endpoint_id"]) == ("https_spiffe", "spiffe://partner.test/bundles")
    assert (made["roots"], made["jwt_keys"], made["sequence"]) == (1, [], None)
    assert plain("list", pki) == [made]
    assert PARTNER in done("federation", "list", "--dir", pki).stdout
    shown = plain("show", pki, PARTNER)
    assert {name: shown[name] for name in made} == made
    assert len(shown["bundle"]["keys"]) == 1
    pem = done("federation", "show", "--dir", pki, PARTNER, "--pem").stdout_bytes
    assert x509.load_pem_x509_certificates(pem) == [partner.root]
    assert "already" in refused(3, "create", pki, PARTNER, URL)
    assert plain("delete", pki, PARTNER) == made
    for command in ("show", "delete", "refresh"):
        assert "there is no federation with `partner.test`" in refused(2, command, pki, PARTNER)
    assert plain("list", pki) == []
    ledger = SqliteLedger.of(pki)
    assert [str(record.event) for record in ledger.audit()][-2:] == ["federation_set", "federation_deleted"]
    ledger.close()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("cluster.local", URL), 3, "our own trust domain"),
        ((PARTNER, "http://partner.test/"), 3, "not an https:// URL"),
        ((PARTNER, "https://me@partner.test/"), 3, "user or password"),
        ((PARTNER, URL, *BY_SVID), 3, "cannot be verified without --bundle"),
        ((PARTNER, URL, "--profile", "https_spiffe"), 3, "goes with profile https_spiffe"),
        ((PARTNER, URL, *BY_SVID[2:]), 3, "goes with profile https_spiffe"),
        ((PARTNER, URL, "--bundle", "/nowhere"), 2, "no such file"),
        (("Partner", URL), 2, "trust domain"),
        ((PARTNER, URL, "--endpoint-id", "bundles"), 2, "spiffe://"),
        ((PARTNER, URL, "--profile", "http"), 2, "http"),
    ],
)
def test_what_must_not_be_made_is_not(pki: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    """Refused by rule or by form, and the ledger has nothing of it."""
    assert message in refused(code, "create", pki, *arguments)
    assert plain("list", pki) == []


def test_a_first_bundle_of_somebody_else_is_refused(pki: Path, tmp_path: Path) -> None:
    """A root that names another trust domain, and what is no bundle."""
    file = tmp_path / "first.json"
    other = Hierarchy.create(TrustDomain("other.test"), now=datetime.now(UTC)).root
    file.write_text(format_spiffe_bundle(SpiffeBundle((other,))))
    assert "root of `other.test`" in refused(3, "create", pki, PARTNER, URL, "--bundle", file)
    file.write_text("{}")
    assert "not a SPIFFE bundle" in refused(2, "create", pki, PARTNER, URL, "--bundle", file)


def test_an_endpoint_of_a_third_domain_needs_no_first_bundle(pki: Path) -> None:
    """It is verified with the bundle of its own domain, which may come later."""
    elsewhere = (*BY_SVID[:3], "spiffe://host.test/bundles")
    plain("create", pki, PARTNER, URL, *elsewhere)
    assert "there is no root of `host.test`" in run("federation", "refresh", "--dir", pki).stderr


def test_bundles_are_fetched_on_demand(pki: Path, partner: Hierarchy, tmp_path: Path) -> None:
    """Of all or of some; what changed is said; one that fails leaves the others, and ends with 2."""
    context, roots = certify(tmp_path, "127.0.0.1")
    served = format_spiffe_bundle(SpiffeBundle((partner.root,), sequence=3, refresh_hint=60)).encode()
    answers: dict[str, Answer] = {"/bundle": answer(served), "/none": answer(b"no", 404)}
    with serving(answers, context) as base:
        plain("create", pki, PARTNER, f"{base}/bundle")
        (found,) = plain("refresh", pki, "--web-roots", roots)
        assert (found["changed"], found["sequence"], found["refresh_hint_seconds"]) == (True, 3, 60)
        assert plain("refresh", pki, PARTNER, "--web-roots", roots)[0]["changed"] is False
        plain("create", pki, "absent.test", f"{base}/none")
        result = run("federation", "refresh", "--dir", pki, "--web-roots", roots)
        assert (result.exit_code, result.stdout) == (2, "partner.test  as it was\n")
        assert "absent.test: " in result.stderr
        assert "answers 404" in result.stderr
        answers["/bundle"] = answer(served.replace(b'"spiffe_sequence": 3', b'"spiffe_sequence": 2'))
        assert "its number is 2, after 3" in refused(2, "refresh", pki, PARTNER, "--web-roots", roots)
        assert "certificate verify failed" in refused(2, "refresh", pki, PARTNER)
    assert plain("show", pki, PARTNER)["sequence"] == 3
    assert "there is no root" in refused(2, "show", pki, "absent.test", "--pem")
