"""Istio's advisories that concern certificates, fetches and sizes rather than policies; named after them."""

from __future__ import annotations

import asyncio
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from support.checks import CALL, NOW, check_request, role, snapshot

from authz.policy.compile import MeshSettings, compile_policies
from authz.service import Authorization, DecisionLog, DestinationResolver
from ca.authority import Hierarchy
from garrison.documents import parse
from garrison.errors import DependencyError
from garrison.fetching import Fetcher
from garrison.identity import SpiffeId, TrustDomain
from garrison.transport import Call, Method
from garrison.transport.address import Address
from garrison.transport.listeners import RequestServer, Transport
from garrison.transport.tls import TlsFiles, spiffe_id_of

DOMAIN = TrustDomain("cluster.local")


def leaf(
    issuer: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    names: list[x509.GeneralName],
    usages: list[x509.ObjectIdentifier],
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Return a certificate that our CA would not issue, signed by a CA all the same."""
    own = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer.subject)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate, own


def self_signed() -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Return a root of our own making, with its key at hand."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "root")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate, key


def save(
    folder: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> tuple[Path, Path]:
    """Write a certificate and its key; return their paths."""
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    paths[0].write_bytes(certificate.public_bytes(Encoding.PEM))
    paths[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return paths


def connect(folder: Path, client: tuple[Path, Path], root: Path, server: tuple[Path, Path]) -> list[bool]:
    """Connect twice with one client context; return for each whether it got in and resumed a session."""

    async def scenario() -> list[bool]:
        methods = {"/echo": Method(lambda message, _call: message)}
        files = TlsFiles(*server, client_ca=root)
        running = RequestServer(Transport.NGH2, [Address.parse("tls://127.0.0.1:0")], methods, tls=files)
        await running.start()
        try:
            return await asyncio.to_thread(handshakes, running.addresses[0].port)
        finally:
            await running.drain(1)

    def handshakes(port: int) -> list[bool]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(root)
        context.load_cert_chain(*client)
        context.set_alpn_protocols(["h2"])
        session, resumed = None, []
        for _ in range(2):
            with (
                socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
                context.wrap_socket(plain, session=session) as tls,
            ):
                if not tls.recv(9):  # neither the server's SETTINGS nor an alert, which would raise
                    raise ConnectionResetError("broken off by the server")
                resumed.append(bool(tls.session_reused))
                session = tls.session
        return resumed

    return asyncio.run(scenario())


def test_cve_2022_21654_sessions_are_not_resumed(tmp_path: Path) -> None:
    """A resumed session would skip the check of the client's certificate, also after the CA has changed."""
    root, key = self_signed()
    server = save(
        tmp_path, "server", *leaf(root, key, [x509.DNSName("localhost")], [ExtendedKeyUsageOID.SERVER_AUTH])
    )
    client = save(
        tmp_path, "client", *leaf(root, key, [x509.DNSName("c")], [ExtendedKeyUsageOID.CLIENT_AUTH])
    )
    path = tmp_path / "root.pem"
    path.write_bytes(root.public_bytes(Encoding.PEM))
    assert connect(tmp_path, client, path, server) == [False, False]


def test_cve_2022_21657_certificates_are_for_what_they_say(tmp_path: Path) -> None:
    """A certificate that is for servers only does not authenticate a client."""
    root, key = self_signed()
    server = save(
        tmp_path, "server", *leaf(root, key, [x509.DNSName("localhost")], [ExtendedKeyUsageOID.SERVER_AUTH])
    )
    client = save(
        tmp_path, "client", *leaf(root, key, [x509.DNSName("c")], [ExtendedKeyUsageOID.SERVER_AUTH])
    )
    path = tmp_path / "root.pem"
    path.write_bytes(root.public_bytes(Encoding.PEM))
    with pytest.raises(OSError, match=r"(?i)certificate|reset|broken"):
        connect(tmp_path, client, path, server)


@pytest.mark.parametrize(
    "names",
    [
        [x509.DNSName("spiffe://cluster.local/ns/default/sa/a")],
        [x509.RFC822Name("a@spiffe")],
        [x509.UniformResourceIdentifier("spiffe://cluster.local/ns/default/sa/a\x00.evil")],
        [
            x509.UniformResourceIdentifier("spiffe://cluster.local/a"),
            x509.UniformResourceIdentifier("spiffe://cluster.local/b"),
        ],
    ],
)
def test_cve_2022_21656_and_2026_47778_names_by_type_and_without_nul(names: list[x509.GeneralName]) -> None:
    """Only a URI name is an identity, one of them, and a NUL does not cut it short."""
    root, key = self_signed()
    certificate, _ = leaf(root, key, names, [ExtendedKeyUsageOID.CLIENT_AUTH])
    assert spiffe_id_of(certificate.public_bytes(Encoding.DER)) is None
    ours = Hierarchy.create(DOMAIN, now=datetime.now(UTC)).authority()
    svid = ours.issue(
        SpiffeId.parse("spiffe://cluster.local/ns/default/sa/a"),
        ec.generate_private_key(ec.SECP256R1()).public_key(),
        now=datetime.now(UTC),
        ttl=timedelta(hours=1),
    )
    assert str(spiffe_id_of(svid.leaf.public_bytes(Encoding.DER))).endswith("/sa/a")


@pytest.mark.parametrize(
    "url", ["http://169.254.169.254/latest", "http://[fe80::1]/", "http://100.100.100.200/"]
)
def test_ghsa_fgw5_hp8f_xfhc_fetches_do_not_reach_metadata(url: str) -> None:
    """What policies make us fetch never comes from link-local or metadata addresses."""
    with pytest.raises((DependencyError, ValueError)):
        Fetcher().get(url)


def test_ghsa_fgw5_hp8f_xfhc_there_is_no_jwks_uri_to_abuse() -> None:
    """Keys stand in the policy; a `jwksUri` is refused, not fetched."""
    text = """
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: a}
spec: {jwtRules: [{issuer: i, jwksUri: "http://169.254.169.254/"}]}
"""
    documents, _ = parse(text.encode(), "p.yaml")
    policies, problems = compile_policies(documents, MeshSettings())
    assert policies is None
    assert any(problem.code == "unknown_field" for problem in problems)


def test_cve_2022_39278_and_istio_security_2026_006_large_requests() -> None:
    """Sizes are bounded before anything is parsed that a caller without rights can send."""
    service = Authorization(DestinationResolver(), lambda: NOW, DecisionLog.NONE)
    service.use(snapshot(role("[{paths: [/a]}]")))
    for request in (
        check_request(path="/" + "a/../" * 20_000),
        check_request(headers={f"h{number}": "x" * 100 for number in range(2000)}),
        check_request(path="/?" + "&".join(f"access_token={number}" for number in range(5000))),
    ):
        answer = service.check(request.SerializeToString(), Call(CALL.peer, ()))
        assert isinstance(answer, bytes)
        assert b"no_role_matched" in answer
