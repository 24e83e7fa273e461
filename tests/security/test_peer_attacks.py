"""Attacks on who the peer is: each is answered with a denial, and the next good call is let in."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from support.checks import CALL, NOW, check_request, federated, principal, role, snapshot
from support.peer_certificates import CertificateAuthority, Leaf, encoded, uri, usage
from support.policies import connection

from authz.authn.certificates import MAX_CERTIFICATE_BYTES, CertificateVerifier, trust_bundle
from authz.bundles import TrustBundles
from authz.environment import Environment
from authz.service import Authorization, DecisionLog, DestinationResolver

OURS, OTHER = CertificateAuthority("ours"), CertificateAuthority("theirs")
A = principal("a")
PARTNER = principal("a", trust_domain="partner.example")
STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
---
"""


def service(*, required: bool = False) -> Authorization:
    """Return a service that lets in whoever has an identity, and verifies certificates."""
    bundles = TrustBundles()
    trusted = {
        "cluster.local": trust_bundle([OURS.certificate]),
        "partner.example": trust_bundle([OTHER.certificate]),
    }
    bundles.use(CertificateVerifier(trusted, required=required))
    found = Authorization(
        DestinationResolver(), lambda: NOW, DecisionLog.NONE, environment=Environment(bundles=bundles)
    )
    found.use(snapshot(STRICT + role("[{}]"), federated("partner.example")))
    return found


def code(of: Authorization, source: str, certificate: str = "", request: Any = None) -> str:
    """Return the reason code of the answer."""
    request = request if request is not None else check_request()
    request.attributes.source.principal = source
    request.attributes.source.certificate = certificate
    answer = of.check(request.SerializeToString(), CALL)
    assert isinstance(answer, bytes)
    response = CheckResponse.FromString(answer)
    assert (response.status.code == 0) == (response.dynamic_metadata["decision"] == "allow")
    return str(response.dynamic_metadata["code"])


def refused(source: str, certificate: str) -> str:
    """Return the code of a denial, after which a good call is let in by the same server."""
    attacked = service()
    found = code(attacked, source, certificate)
    assert code(attacked, source, certificate) == found  # the second time, too
    assert code(attacked, A, encoded(OURS.issue())) == "role_matched"
    return found


def test_accept_untrusted_and_an_issuer_of_the_same_name() -> None:
    """A CA that calls itself like ours issues our names (Envoy with ACCEPT_UNTRUSTED shows no difference)."""
    twin = CertificateAuthority("ours")
    assert refused(A, encoded(twin.issue())) == "peer_certificate_invalid"


def test_one_trust_domain_issues_names_of_another() -> None:
    """A federated root proves its own names only: a partner cannot become one of us."""
    assert refused(A, encoded(OTHER.issue())) == "peer_certificate_invalid"
    theirs = encoded(OTHER.issue(Leaf(names=[uri(PARTNER)])))
    assert refused(A, theirs) == "peer_certificate_invalid"
    assert code(service(), PARTNER, theirs) == "role_matched"


def test_a_certificate_of_somebody_else_beside_a_name() -> None:
    """Name and certificate that do not belong together, however good each is."""
    b = encoded(OURS.issue(Leaf(names=[uri(principal("b"))])))
    assert refused(A, b) == "peer_certificate_invalid"
    # Neither is a name believed because it was with its own certificate before.
    attacked = service()
    assert code(attacked, principal("b"), b) == "role_matched"
    assert code(attacked, A, b) == "peer_certificate_invalid"


def test_cve_2022_21657_purposes() -> None:
    """A certificate for servers only, or of a CA, is no client's."""
    for leaf in (
        Leaf(purposes=[ExtendedKeyUsageOID.SERVER_AUTH]),
        Leaf(purposes=[ExtendedKeyUsageOID.CODE_SIGNING]),
        Leaf(ca=True, usage=usage("digital_signature", "key_cert_sign")),
    ):
        assert refused(A, encoded(OURS.issue(leaf))) == "peer_certificate_invalid"


def test_cve_2022_21656_names_have_types() -> None:
    """A DNS name, a mail address or a directory name that reads like the URI is none."""
    for name in (x509.DNSName(A), x509.RFC822Name(A)):
        assert refused(A, encoded(OURS.issue(Leaf(names=[name])))) == "peer_certificate_invalid"


@pytest.mark.parametrize(
    "name", [A + "\x00", A + "\x00.evil", "\x00" + A, A + "\n", A + "/..", A + ",spiffe://x/y"]
)
def test_cve_2025_66220_bytes_in_names(name: str) -> None:
    """What stands behind a NUL byte, a line end or a comma is part of the name."""
    certificate = encoded(OURS.issue(Leaf(names=[uri(name)])))
    assert refused(A, certificate) == "peer_certificate_invalid"
    if name.startswith("spiffe"):
        assert refused(name, certificate) == "malformed_spiffe_id"
    else:
        assert refused(name, certificate) == "peer_without_identity"


def test_two_names_in_one_certificate() -> None:
    """Envoy reports the first; a second one makes it nobody's."""
    for names in ([A, principal("admin")], [principal("admin"), A], [A, "https://a"]):
        certificate = encoded(OURS.issue(Leaf(names=[uri(name) for name in names])))
        for name in names:
            expected = "peer_without_identity" if name.startswith("https") else "peer_certificate_invalid"
            assert refused(name, certificate) == expected


def test_leaving_the_certificate_out() -> None:
    """Where certificates are required, none is as bad as a bad one; garbage is one."""
    attacked = service(required=True)
    assert code(attacked, A) == "peer_certificate_missing"
    assert code(attacked, A, " ") == "peer_certificate_invalid"
    assert code(attacked, A, encoded(OURS.issue())) == "role_matched"


@pytest.mark.parametrize("size", [MAX_CERTIFICATE_BYTES, MAX_CERTIFICATE_BYTES + 1, 4_000_000])
def test_certificates_that_are_too_large(size: int) -> None:
    """Large ones are refused before they are parsed."""
    assert refused(A, "A" * size) == "peer_certificate_invalid"
    assert refused(A, "%0A" * (size // 3)) == "peer_certificate_invalid"


def test_connections_are_looked_at_as_well() -> None:
    """What is true of requests is true of TCP connections."""
    attacked = service()
    assert code(attacked, A, encoded(OTHER.issue()), connection()) == "peer_certificate_invalid"
    assert code(attacked, "", "", connection()) == "plaintext_not_allowed"
    assert code(attacked, principal("a", trust_domain="x"), "", connection()) == "foreign_trust_domain"


def test_forwarded_names_are_not_the_peer() -> None:
    """A caller's `x-forwarded-client-cert` is a header like any other."""
    request = check_request(headers={"x-forwarded-client-cert": f"URI={A}"})
    assert code(service(), "", "", request) == "plaintext_not_allowed"
