"""A real `garrison serve` gives identities to the SPIFFE project's client, and others verify them over HTTPS."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jwt
import pytest
from support.certificates import certify
from support.serving import Serving
from support.workload_client import ask

from ca.authority import Authority, Hierarchy
from ca.bundle import SpiffeBundle, format_spiffe_bundle, parse_spiffe_bundle
from garrison.identity import TrustDomain
from garrison.process.oidc import OidcPages

WEB = "spiffe://cluster.local/ns/default/sa/web"
ISSUER = "https://identity.test/ca"


@dataclass
class Lab:
    """A running server, and how to reach its pages."""

    serving: Serving
    folder: Path
    base: str
    context: ssl.SSLContext

    def get(self, path: str, method: str = "GET") -> tuple[int, str, bytes]:
        """Return status, content type and body of a page."""
        request = urllib.request.Request(self.base + path, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10, context=self.context) as response:
                return response.status, response.headers["content-type"], response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers["content-type"], error.read()

    def ask(self, *command: str) -> Any:
        """Ask the SPIFFE project's client."""
        return asyncio.run(ask(self.folder / "control.sock", *command))


def settings(folder: Path) -> Path:
    """Write the settings of a server with everything about identities."""
    partner = Hierarchy.create(TrustDomain("partner.test"), now=datetime.now(UTC))
    (folder / "partner.json").write_text(format_spiffe_bundle(SpiffeBundle((partner.root,))))
    document = {
        "trust_domain": "cluster.local",
        "request": {"listen": ["tcp://127.0.0.1:0"]},
        "admin": {"listen": "tcp://127.0.0.1:0"},
        "control": {"listen": [f"unix://{folder / 'control.sock'}"]},
        "ca": {
            "dir": "pki",
            "oidc": {
                "listen": "tls://127.0.0.1:0",
                "issuer": ISSUER,
                "tls": {"certificate": "cert.pem", "private_key": "key.pem"},
            },
        },
        "workloads": [
            {
                "spiffe_id": WEB,
                "selectors": [f"unix:uid:{os.getuid()}"],
                "hint": "internal",
                "federates_with": ["partner.test"],
            }
        ],
        "federated_bundles": [{"trust_domain": "partner.test", "file": "partner.json"}],
    }
    (folder / "settings.yaml").write_text(json.dumps(document))
    return folder / "settings.yaml"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Return a server with a CA, the Workload API, and pages over TLS."""
    folder = tmp_path_factory.mktemp("oidc")
    Hierarchy.create(TrustDomain("cluster.local"), now=datetime.now(UTC)).save(folder / "pki")
    _, root = certify(folder, "127.0.0.1")
    context = ssl.create_default_context(cafile=str(root))
    serving = Serving(["--config", str(settings(folder))])
    try:
        address = serving.wait_for("oidc_listening")["address"]
        serving.wait_for("ready")
        yield Lab(serving, folder, address.replace("tls://", "https://"), context)
        assert serving.stop() == 0
    finally:
        serving.close()


def test_a_token_of_a_workload_verifies_by_the_published_keys(lab: Lab) -> None:
    """PyJWT, which knows nothing of us, fetches the keys and verifies: issuer, audience, signature."""
    ((_, token, _),) = lab.ask("jwt", "db")
    keys = jwt.PyJWKClient(lab.base + "/keys", ssl_context=lab.context)
    key = keys.get_signing_key_from_jwt(token)
    claims = jwt.decode(token, key, algorithms=["ES256"], audience="db", issuer=ISSUER)
    assert claims["sub"] == WEB


def test_discovery_leads_to_the_keys(lab: Lab) -> None:
    """(OpenID Connect Discovery 1.0, 3) The issuer is the configured one, and the keys are below it."""
    status, content_type, body = lab.get("/.well-known/openid-configuration")
    assert (status, content_type) == (200, "application/json")
    found = json.loads(body)
    assert found["issuer"] == ISSUER
    assert found["jwks_uri"] == f"{ISSUER}/keys"
    assert found["id_token_signing_alg_values_supported"] == ["ES256"]
    for key in json.loads(lab.get("/keys")[2])["keys"]:
        assert set(key) == {"use", "kid", "alg", "kty", "crv", "x", "y"}


def test_the_bundle_is_that_of_the_workload_api(lab: Lab) -> None:
    """(SPIFFE Federation, 5.1) JSON over GET, the latest; with roots, keys, number and hint."""
    status, content_type, body = lab.get("/bundle")
    assert (status, content_type) == (200, "application/json")
    bundle = parse_spiffe_bundle(body)
    assert bundle.x509_authorities == Authority.load(lab.folder / "pki").roots
    found = lab.ask("jwt-bundles", "cluster.local", "partner.test")
    assert found == {"cluster.local": sorted(one.kid for one in bundle.jwt_authorities), "partner.test": []}
    assert bundle.refresh_hint == 300
    assert bundle.sequence is not None
    assert parse_spiffe_bundle(lab.get("/bundle")[2]).sequence == bundle.sequence


def test_other_paths_and_methods_are_refused(lab: Lab) -> None:
    """Nothing but these pages, and nothing private in them."""
    assert lab.get("/")[0] == lab.get("/keys/")[0] == lab.get("/../pki/ca-key.pem")[0] == 404
    assert lab.get("/keys", "POST")[0] == 405
    status, _, body = lab.get("/keys", "HEAD")
    assert (status, body) == (200, b"")


def test_x509_svids_and_federated_bundles_are_served(lab: Lab) -> None:
    """The Workload API of the process gives what the settings say."""
    ((name, _, length),) = lab.ask("x509")
    assert (name, length) == (WEB, 2)
    assert lab.ask("x509-bundles", "cluster.local", "partner.test") == {"cluster.local": 1, "partner.test": 1}


def test_a_slow_handshake_holds_up_nobody(lab: Lab) -> None:
    """Who connects and says nothing does not keep others from their pages."""
    host, port = lab.base.removeprefix("https://").split(":")
    with socket.create_connection((host, int(port)), timeout=5):
        assert lab.get("/keys")[0] == 200


def test_without_an_issuer_there_is_no_discovery() -> None:
    """Tokens without `iss` cannot be found by one."""
    pages = OidcPages(SpiffeBundle, None)
    assert pages.page("/.well-known/openid-configuration")[0].startswith("404")
    assert pages.page("/keys") == ("200 OK", "application/json", b'{"keys": []}')
