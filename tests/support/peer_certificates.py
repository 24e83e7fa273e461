"""Certificates of every kind, good and bad, for peers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from support.checks import NOW, principal

HOUR = timedelta(hours=1)
AT = datetime.fromtimestamp(NOW, UTC)
USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)
BOTH = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


def usage(*names: str) -> x509.KeyUsage:
    """Return a key usage with just these bits."""
    return x509.KeyUsage(**{name: name in names for name in USAGES})


def uri(name: str) -> x509.GeneralName:
    """Return a URI SAN."""
    return x509.UniformResourceIdentifier(name)


def encoded(certificate: x509.Certificate) -> str:
    """Return a certificate as Envoy sends it: URL-encoded PEM."""
    return quote(certificate.public_bytes(Encoding.PEM).decode(), safe="-")


@dataclass(frozen=True)
class Leaf:
    """What a leaf holds; as it stands, it is an SVID in order."""

    names: Sequence[x509.GeneralName] = (uri(principal("a")),)
    begin: datetime = AT - HOUR
    end: datetime = AT + HOUR
    usage: x509.KeyUsage | None = field(default_factory=lambda: usage("digital_signature", "key_agreement"))
    usage_is_critical: bool = True
    purposes: Sequence[x509.ObjectIdentifier] | None = BOTH
    ca: bool | None = False
    key: Any = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))


class CertificateAuthority:
    """A CA that signs whatever it is told to."""

    def __init__(
        self,
        name: str = "test root",
        parent: CertificateAuthority | None = None,
        *,
        key: Any = None,
        algorithm: Any = None,
    ) -> None:
        """Make a key, unless there is one; it signs leaves with `algorithm`, SHA-256 if not given."""
        self.key: Any = key or ec.generate_private_key(ec.SECP256R1())
        self.algorithm = None if isinstance(self.key, Ed25519PrivateKey) else algorithm or hashes.SHA256()
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.begin, self.end = AT - 24 * HOUR, AT + 240 * HOUR
        issuer = parent or self
        builder = self._builder(issuer, self.name, self.key.public_key(), self.begin, self.end)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        builder = builder.add_extension(usage("key_cert_sign", "crl_sign"), critical=True)
        by_itself = isinstance(issuer.key, Ed25519PrivateKey)
        self.certificate = builder.sign(issuer.key, None if by_itself else hashes.SHA256())

    def issue(self, leaf: Leaf | None = None) -> x509.Certificate:
        """Return a leaf."""
        leaf = leaf or Leaf()
        builder = self._builder(self, x509.Name([]), leaf.key.public_key(), leaf.begin, leaf.end)
        if leaf.names:
            builder = builder.add_extension(x509.SubjectAlternativeName(leaf.names), critical=True)
        if leaf.ca is not None:
            builder = builder.add_extension(
                x509.BasicConstraints(ca=leaf.ca, path_length=None), critical=True
            )
        if leaf.usage is not None:
            builder = builder.add_extension(leaf.usage, critical=leaf.usage_is_critical)
        if leaf.purposes is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(leaf.purposes), critical=False)
        return builder.sign(self.key, self.algorithm)

    def _builder(
        self, issuer: CertificateAuthority, subject: x509.Name, key: Any, begin: datetime, end: datetime
    ) -> x509.CertificateBuilder:
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(end)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(authority, critical=False)
        )


def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    """Return an RSA key."""
    return rsa.generate_private_key(65537, bits)
