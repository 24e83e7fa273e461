"""The `ca` command in this process, passphrase files, and certificates that an outside authority signs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ca.cli import ca
from ca.keys import CaKey, new_private_key, signature_hash

TRUST_DOMAIN = "cluster.local"


def run(*arguments: str | Path, stdin: bytes = b"") -> Result:
    """Run `ca` with `arguments`; an exception is a bug."""
    result = CliRunner().invoke(ca, [str(argument) for argument in arguments], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def done(*arguments: str | Path, stdin: bytes = b"") -> Result:
    """Run `ca`, which must end well."""
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.stderr
    return result


def plain(*arguments: str | Path) -> Any:
    """Run `ca` with `--json`, which must end well, and return what it says."""
    return json.loads(done(*arguments, "--json").stdout)


def secret(path: Path, text: str) -> Path:
    """Write a passphrase file."""
    path.write_text(text)
    path.chmod(0o600)
    return path


@dataclass(frozen=True)
class OutsideRoot:
    """A corporate root that signs what it is asked for, or something else."""

    certificate: x509.Certificate
    key: CaKey

    @classmethod
    def create(cls, path_length: int | None = 1, key: CaKey | None = None) -> OutsideRoot:
        """Return a root without any URI, as most are."""
        key = key or new_private_key()
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Corporate root")])
        usage = ca_usage()
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=100))
            .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, signature_hash(key))
        )
        return cls(certificate, key)

    @property
    def pem(self) -> bytes:
        """The root as PEM."""
        return self.certificate.public_bytes(Encoding.PEM)

    def sign(
        self,
        request: bytes,
        *,
        uris: Sequence[str] = (f"spiffe://{TRUST_DOMAIN}",),
        is_ca: bool = True,
        starts: timedelta = timedelta(hours=-1),
        ends: timedelta = timedelta(days=50),
        key: CaKey | None = None,
    ) -> bytes:
        """Return a certificate for the request's key (or that of `key`), as PEM."""
        csr = x509.load_pem_x509_csr(request)
        public_key = csr.public_key() if key is None else key.public_key()
        now = datetime.now(UTC)
        issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = (
            x509.CertificateBuilder()
            .subject_name(csr.subject)
            .issuer_name(self.certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + starts)
            .not_valid_after(now + ends)
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=0 if is_ca else None), critical=True)
            .add_extension(ca_usage(), critical=True)
            .add_extension(issuer_key, critical=False)
        )
        if uris:
            names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self.key, signature_hash(self.key)).public_bytes(Encoding.PEM)


def ca_usage() -> x509.KeyUsage:
    """Return the key usage of a signing certificate."""
    return x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
