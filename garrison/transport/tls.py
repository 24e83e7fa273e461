"""TLS for both transports, from PEM files, and what a client certificate says about its holder."""

from __future__ import annotations

import hashlib
import os
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from garrison.documents import Diagnostic, Position
from garrison.errors import ConfigError
from garrison.identity import SpiffeId

# For TLS 1.2 only forward-secret AEAD suites: RFC 9113, appendix A, forbids the rest under HTTP/2.
_TLS12_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The PEM files of a listener: its certificate (leaf first), its key, whose clients it trusts.

    With `client_ca` every caller must show a certificate that leads to it, or none at all if
    `is_client_optional` (only `h2` can do that); without, none is asked for.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None
    is_client_optional: bool = False

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that there are."""
        return tuple(path for path in (self.certificate, self.key, self.client_ca) if path is not None)


@dataclass(frozen=True, slots=True)
class TlsGeneration:
    """TLS files that can be used; `version` is a hash of their content."""

    version: str
    warnings: tuple[Diagnostic, ...] = ()

    @classmethod
    def of(cls, files: TlsFiles) -> TlsGeneration:
        """Return what the files hold now.

        Raises:
            ConfigError: a file is missing, is not what it should be, or key and certificate do not match.

        """
        pem = _load(files)
        content = pem.certificate, pem.key, pem.client_ca or b""
        digest = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in content))
        return cls(digest.hexdigest()[:12])


@dataclass(frozen=True, slots=True)
class _Pem:
    certificate: bytes
    key: bytes
    client_ca: bytes | None


def check_files(files: TlsFiles) -> None:
    """Check that the files can be used.

    Raises:
        ConfigError: a file is missing, is not what it should be, or key and certificate do not match.

    """
    _load(files)


def load_server_context(files: TlsFiles, *, protocols: Sequence[str] = ("h2",)) -> ssl.SSLContext:
    """Return the context of a listener: TLS 1.2 or newer, ALPN `protocols`.

    Session tickets are off: a resumed session would skip the certificate check, also after the trusted CA
    has changed.

    Raises:
        ConfigError: a file is missing, is not what it should be, or key and certificate do not match.

    """
    pem = _load(files)
    context = bare_server_context(protocols)
    try:
        context.load_cert_chain(files.certificate, files.key)
        if pem.client_ca is not None:
            context.load_verify_locations(cadata=pem.client_ca.decode("ascii", "replace"))
            context.verify_mode = ssl.CERT_OPTIONAL if files.is_client_optional else ssl.CERT_REQUIRED
    except (ssl.SSLError, OSError) as error:
        raise _unusable(files.certificate, f"cannot be used for TLS: {error}") from error
    return context


def bare_server_context(protocols: Sequence[str]) -> ssl.SSLContext:
    """Return the context of a listener without a certificate: no handshake succeeds with it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    context.set_ciphers(_TLS12_CIPHERS)
    context.set_alpn_protocols(list(protocols))
    return context


def build_server_context(chain: bytes, key: bytes, *, protocols: Sequence[str]) -> ssl.SSLContext:
    """Return the context of a listener with a certificate (PEM, leaf first) and key that are on no disk.

    Raises:
        OSError: they cannot be used.

    """
    context = bare_server_context(protocols)
    # `ssl` reads files only; this one is memory that has no name.
    descriptor = os.memfd_create("tls", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(chain + key)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    return context


def load_server_credentials(files: Callable[[], TlsFiles]) -> grpc.ServerCredentials:
    """Return grpcio's credentials; `files` is asked again for every new connection.

    Files that cannot be used any more leave those in force that were read last.

    Raises:
        ConfigError: as `load_server_context`.

    """
    current = files()
    if current.is_client_optional:
        raise ValueError("grpcio asks for a client certificate from everybody or from nobody")
    latest = _load(current)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal current, latest
        wanted = files()
        if wanted is current:
            return None
        try:
            pem = _load(wanted)
        except ConfigError:
            return None
        current = wanted
        if pem == latest:
            return None
        latest = pem
        return _grpc_configuration(pem)

    return grpc.dynamic_ssl_server_credentials(
        _grpc_configuration(latest),
        fetch,  # type: ignore[arg-type] # None means unchanged, says grpcio's documentation
        require_client_authentication=current.client_ca is not None,
    )


def _grpc_configuration(pem: _Pem) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pem.key, pem.certificate)], pem.client_ca)


@lru_cache(maxsize=256)
def spiffe_id_of(certificate: bytes) -> SpiffeId | None:
    """Return the identity of a *verified* leaf certificate (DER), None if it names none.

    X509-SVID, section 4: exactly one URI SAN, a SPIFFE ID with a path, in a certificate that cannot sign
    others. DNS names and the subject are never an identity.
    """
    try:
        parsed = x509.load_der_x509_certificate(certificate)
        extensions = parsed.extensions
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        if _may_sign(extensions):
            return None
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        identity = SpiffeId.parse(uri)
    except (
        ValueError,
        x509.DuplicateExtension,
        x509.ExtensionNotFound,
        x509.InvalidVersion,
        x509.UnsupportedGeneralNameType,
    ):
        return None
    return identity if identity.segments else None


def _may_sign(extensions: x509.Extensions) -> bool:
    try:
        if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return True
    except x509.ExtensionNotFound:
        pass
    try:
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return usage.key_cert_sign or usage.crl_sign


def _load(files: TlsFiles) -> _Pem:
    """Read the files and check that they belong together."""
    certificate = _read(files.certificate)
    key = _read(files.key)
    try:
        leaf = x509.load_pem_x509_certificates(certificate)[0]
    except (ValueError, x509.InvalidVersion) as error:
        raise _unusable(files.certificate, "has no PEM certificate") from error
    try:
        private = load_pem_private_key(key, password=None)
    except (ValueError, TypeError) as error:
        raise _unusable(files.key, "has no unencrypted PEM private key") from error
    if _spki(private.public_key()) != _spki(leaf.public_key()):
        raise _unusable(files.key, f"is not the key of the certificate in `{files.certificate}`")
    client_ca = None
    if files.client_ca is not None:
        client_ca = _read(files.client_ca)
        try:
            x509.load_pem_x509_certificates(client_ca)
        except (ValueError, x509.InvalidVersion) as error:
            raise _unusable(files.client_ca, "has no PEM certificate") from error
    return _Pem(certificate, key, client_ca)


def _spki(public_key: object) -> bytes:
    encoded: bytes = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
    return encoded


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unusable(path, f"cannot be read: {error.strerror or error}") from error


def _unusable(path: Path, message: str) -> ConfigError:
    return ConfigError([Diagnostic(str(path), Position(1, 1), (), "tls", message)])
