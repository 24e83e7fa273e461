"""Trust bundles of a real server: verified with, watched, and kept when what replaces them is no bundle."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from support.checks import check_request, principal, role
from support.peer_certificates import encoded
from support.serving import serving, write_settings

from ca.authority import Hierarchy
from ca.keys import KeyType, new_ca_key, new_private_key
from garrison.identity import SpiffeId, TrustDomain

CHECK = "/envoy.service.auth.v3.Authorization/Check"


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder whose name is short enough for Unix sockets."""
    return tmp_path_factory.mktemp("s")


def hierarchy(name: str, kind: KeyType = KeyType.P256) -> Hierarchy:
    """Return a new CA."""
    return Hierarchy.create(
        TrustDomain(name), now=datetime.now(UTC), new_private_key=lambda: new_ca_key(kind)
    )


def certificate(of: Hierarchy, name: str) -> str:
    """Return the leaf of a new SVID, as Envoy sends it."""
    now = datetime.now(UTC)
    svid = of.authority().issue(
        SpiffeId.parse(name), new_private_key().public_key(), now=now, ttl=timedelta(hours=1)
    )
    return encoded(x509.load_pem_x509_certificates(svid.chain_pem)[0])


def bundle(of: Hierarchy) -> bytes:
    """Return root and intermediate in PEM."""
    return of.authority().bundle_pem() + of.issuer.certificate.public_bytes(Encoding.PEM)


def ask(address: str, name: str, certificate: str = "") -> str:
    """Return the code of a decision on a call of a peer."""
    request = check_request(source=name)
    request.attributes.source.certificate = certificate
    with grpc.insecure_channel(address.replace("unix://", "unix:")) as channel:
        method: Any = channel.unary_unary(CHECK)
        answer = method(request.SerializeToString(), timeout=20, wait_for_ready=True)
    return str(CheckResponse.FromString(answer).dynamic_metadata["code"])


def test_bundles_are_watched(folder: Path) -> None:
    """A replaced bundle counts from the next call on, for known certificates, too; a broken one does not."""
    old, new, partner = hierarchy("cluster.local"), hierarchy("cluster.local"), hierarchy("partner.example")
    (folder / "ours.pem").write_bytes(bundle(old))
    (folder / "theirs.pem").write_bytes(bundle(partner))
    file = write_settings(
        folder,
        """
federated_trust_domains: [partner.example]
require_peer_certificate: true
trust_bundles:
- {trust_domain: cluster.local, file: ours.pem}
- {trust_domain: partner.example, file: theirs.pem}
""",
    )
    (folder / "policies" / "role.yaml").write_text(role("[{}]"))
    ours, theirs = principal("a"), principal("a", trust_domain="partner.example")
    first, second, third = certificate(old, ours), certificate(new, ours), certificate(partner, theirs)
    with serving("--config", str(file)) as server:
        address = server.wait_for("ready")["request"][0]
        assert ask(address, ours, first) == "role_matched"
        assert ask(address, ours, second) == "peer_certificate_invalid"
        assert ask(address, ours) == "peer_certificate_missing"
        assert ask(address, theirs, third) == "role_matched"
        assert ask(address, theirs, first) == "peer_certificate_invalid"
        (folder / "ours.pem").write_bytes(bundle(new))
        server.wait_for("snapshot_swapped", lambda event: event["kind"] == "trust_bundles")
        assert ask(address, ours, first) == "peer_certificate_invalid"
        assert ask(address, ours, second) == "role_matched"
        (folder / "ours.pem").write_bytes(b"nothing")
        event = server.wait_for("snapshot_refused", lambda event: event["kind"] == "trust_bundles")
        assert "ours.pem" in str(event["diagnostics"])
        assert ask(address, ours, second) == "role_matched"
        assert server.stop() == 0


@pytest.mark.parametrize("kind", list(KeyType))
def test_our_own_ca_vouches_for_our_trust_domain(folder: Path, kind: KeyType) -> None:
    """With `ca.dir`, nothing else has to be configured, whatever keys the CA has."""
    ours, stranger = hierarchy("cluster.local", kind), hierarchy("cluster.local", kind)
    ours.save(folder / "ca")
    file = write_settings(folder, "ca: {dir: ca}")
    (folder / "policies" / "role.yaml").write_text(role("[{}]"))
    name = principal("a")
    with serving("--config", str(file)) as server:
        address = server.wait_for("ready")["request"][0]
        assert ask(address, name, certificate(ours, name)) == "role_matched"
        assert ask(address, name, certificate(stranger, name)) == "peer_certificate_invalid"
        assert ask(address, name) == "role_matched"
        assert server.stop() == 0


def test_a_bundle_that_cannot_be_used_is_an_error_at_the_start(folder: Path) -> None:
    """One line, exit code 2."""
    file = write_settings(folder, "trust_bundles: [{trust_domain: cluster.local, file: missing.pem}]")
    with serving("--config", str(file)) as server:
        assert server.wait() == 2
        lines = []
        while (event := server._arriving.get()) is not None:
            lines.append(event.get("text", ""))
    (line,) = [line for line in lines if line.startswith("error: ")]
    assert "missing.pem" in line
    assert not any("Traceback" in line for line in lines)
