"""TLS files are checked before use; a certificate names at most one identity."""

from __future__ import annotations

import datetime as dt
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from garrison.errors import ConfigError
from garrison.transport.tls import TlsFiles, load_server_context, load_server_credentials, spiffe_id_of

KEY = ec.generate_private_key(ec.SECP256R1())
ID = "spiffe://td/ns/default/sa/web"


def certificate(names: list[x509.GeneralName] | None, *extensions: x509.ExtensionType) -> x509.Certificate:
    """Make a self-signed certificate; `None` leaves the SAN extension out."""
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(KEY.public_key())
        .serial_number(7)
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
    )
    if names is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(KEY, hashes.SHA256())


def der(found: x509.Certificate) -> bytes:
    """Encode a certificate."""
    return found.public_bytes(serialization.Encoding.DER)


def usage(*, sign_certificates: bool = False, sign_lists: bool = False) -> x509.KeyUsage:
    """Make a key usage extension."""
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_lists,
        encipher_only=False,
        decipher_only=False,
    )


def uri(text: str) -> x509.GeneralName:
    """Make a URI SAN."""
    return x509.UniformResourceIdentifier(text)


LEAF = x509.BasicConstraints(ca=False, path_length=None)


@pytest.mark.parametrize("extensions", [[], [LEAF], [LEAF, usage()]])
def test_a_leaf_with_one_spiffe_id(extensions: list[x509.ExtensionType]) -> None:
    """One URI SAN that is a SPIFFE ID is the identity, whatever DNS names stand beside it."""
    found = certificate([x509.DNSName("web"), uri(ID)], *extensions)
    assert str(spiffe_id_of(der(found))) == ID


@pytest.mark.parametrize(
    "found",
    [
        der(certificate(None)),
        der(certificate([x509.DNSName("spiffe")])),
        der(certificate([uri(ID), uri(ID)])),
        der(certificate([uri("http://td/a"), uri(ID)])),
        der(certificate([uri(ID)])).replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x05", 1),
        der(certificate([uri("spiffe://td")])),
        der(certificate([uri("spiffe://td/../a")])),
        der(certificate([uri("SPIFFE://td/a")])),
        der(certificate([uri(ID)], x509.BasicConstraints(ca=True, path_length=None))),
        der(certificate([uri(ID)], LEAF, usage(sign_certificates=True))),
        der(certificate([uri(ID)], LEAF, usage(sign_lists=True))),
        der(certificate([uri(ID)]))[:-40],
        b"",
        b"garbage",
    ],
)
def test_certificates_that_name_nobody(found: bytes) -> None:
    """Several names, none, a CA's, or no certificate at all: no identity."""
    assert spiffe_id_of(found) is None


def write(folder: Path) -> TlsFiles:
    """Write a certificate, its key and a CA."""
    files = TlsFiles(folder / "tls.pem", folder / "tls.key", folder / "ca.pem")
    pem = certificate([uri(ID)]).public_bytes(serialization.Encoding.PEM)
    files.certificate.write_bytes(pem)
    (folder / "ca.pem").write_bytes(pem)
    files.key.write_bytes(
        KEY.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return files


def test_the_context_is_strict(tmp_path: Path) -> None:
    """TLS 1.2 or newer, no tickets that would skip the certificate check, certificates required."""
    context = load_server_context(write(tmp_path))
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.num_tickets == 0
    assert context.options & ssl.OP_NO_TICKET


@pytest.mark.parametrize("name", ["tls.pem", "tls.key", "ca.pem"])
@pytest.mark.parametrize("damage", ["missing", "empty", "garbage"])
def test_a_bad_file_is_named(tmp_path: Path, name: str, damage: str) -> None:
    """A file that is missing or is not PEM is an error that names it, on both transports."""
    files = write(tmp_path)
    bad = tmp_path / name
    if damage == "missing":
        bad.unlink()
    else:
        bad.write_bytes(b"" if damage == "empty" else b"-----BEGIN NONSENSE-----")
    with pytest.raises(ConfigError, match=name):
        load_server_context(files)
    with pytest.raises(ConfigError, match=name):
        load_server_credentials(lambda: files)


def test_a_key_of_another_certificate_is_named(tmp_path: Path) -> None:
    """A key that does not belong to the certificate is an error that names both."""
    files = write(tmp_path)
    files.key.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    with pytest.raises(ConfigError, match=r"tls\.key.*tls\.pem"):
        load_server_context(files)


def test_an_encrypted_key_is_an_error(tmp_path: Path) -> None:
    """There is nobody to ask for a passphrase."""
    files = write(tmp_path)
    files.key.write_bytes(
        KEY.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"x"),
        )
    )
    with pytest.raises(ConfigError, match="unencrypted"):
        load_server_context(files)
