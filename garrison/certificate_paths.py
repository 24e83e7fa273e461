"""A path from a certificate to a root by RFC 5280, 6.1, for what the library has no answer for: Ed25519.

The verifier of `cryptography` refuses every chain with an Ed25519 key, as the public web's rules do. What is
here is narrower than the standard and than that verifier: what an SVID has no use for is refused instead of
being worked out, such as name constraints. Nothing is done here for chains of other keys; the library judges
those. Pure: time is an argument, and so is whoever else has to agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID, SignatureAlgorithmOID

# Root, two intermediates and a leaf are usual. Certificates that could all have issued each other are a maze:
# a path has at most so many issuers, and at most so many paths are followed at a time.
MAX_ISSUERS = 16
MAX_PATHS = 16

_UNDERSTOOD = {
    x509.BasicConstraints.oid,
    x509.KeyUsage.oid,
    x509.ExtendedKeyUsage.oid,
    x509.SubjectAlternativeName.oid,
    x509.SubjectKeyIdentifier.oid,
    x509.AuthorityKeyIdentifier.oid,
}
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_MIN_RSA_BITS = 2048
_CURVES = {"secp256r1", "secp384r1", "secp521r1"}
# RFC 5280, 4.1.2.2.
_SERIALS = 2 ** (20 * 8 - 1)
# What the library says of a certificate that it cannot read, or reads only with a warning.
UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    CryptographyDeprecationWarning,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)

Path = tuple[x509.Certificate, ...]
Kind = TypeVar("Kind", bound=x509.ExtensionType)


class PathError(ValueError):
    """There is no path; the text says what was wrong last."""


def has_ed25519_key(certificate: x509.Certificate) -> bool:
    """Tell whether a certificate is for an Ed25519 key, so that the library verifies nothing by it."""
    try:
        return isinstance(certificate.public_key(), Ed25519PublicKey)
    except UNREADABLE:
        return False


def has_strong_key(certificate: x509.Certificate) -> bool:
    """Tell whether nobody can guess the private half: RSA of 2048 bits or more, a NIST curve, Ed25519."""
    try:
        key = certificate.public_key()
    except UNREADABLE:
        return False
    if isinstance(key, RSAPublicKey):
        return key.key_size >= _MIN_RSA_BITS
    if isinstance(key, EllipticCurvePublicKey):
        return key.curve.name in _CURVES
    return isinstance(key, Ed25519PublicKey)


def find_path(
    leaf: x509.Certificate,
    intermediates: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
    at: datetime,
    *,
    purpose: x509.ObjectIdentifier | None = None,
    needs_ed25519: bool = False,
    check_issuer: Callable[[x509.Certificate], None] = lambda _: None,
) -> Path:
    """Return a path from `leaf` to one of `roots`, all of which is valid at the moment `at`.

    What the leaf itself is for is left to the caller. Issuers whose extended key usage excludes `purpose` do
    not count, nor does one for which `check_issuer` raises PathError; with `needs_ed25519` neither does a
    path that the library has an answer for.

    Raises:
        PathError: there is none.

    """
    _check_link(leaf, at)
    paths: list[Path] = [(leaf,)]
    refused = PathError("its issuer is not among them")
    for _ in range(min(len(intermediates) + 1, MAX_ISSUERS)):
        longer: list[Path] = []
        for path in paths:
            for issuer in (*roots, *intermediates):
                if issuer in path or issuer.subject != path[-1].issuer:
                    continue
                try:
                    _check_issuer(issuer, path, at, purpose)
                    check_issuer(issuer)
                except PathError as error:
                    refused = error
                    continue
                if issuer not in roots:
                    longer.append((*path, issuer))
                elif not needs_ed25519 or any(map(has_ed25519_key, (*path[1:], issuer))):
                    return (*path, issuer)
        # What is left out is refused, not accepted.
        paths = longer[:MAX_PATHS]
    raise refused


def _check_issuer(
    issuer: x509.Certificate, path: Path, at: datetime, purpose: x509.ObjectIdentifier | None
) -> None:
    """Refuse `issuer` as the next after `path` (RFC 5280, 6.1.3 (a) and 6.1.4 (k) to (n))."""
    _check_link(issuer, at)
    name = issuer.subject.rfc4514_string()
    if not issuer.subject.rdns:
        raise PathError("an issuer has no name")
    basic = _extension(issuer, x509.BasicConstraints)
    if basic is None or not basic.critical or not basic.value.ca:
        raise PathError(f"`{name}` is not that of a CA")
    usage = _extension(issuer, x509.KeyUsage)
    if usage is None or not usage.critical or not usage.value.key_cert_sign:
        raise PathError(f"the key usage of `{name}` has no keyCertSign")
    purposes = _extension(issuer, x509.ExtendedKeyUsage)
    if purpose is not None and purposes is not None:
        allowed = {purpose, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}
        if allowed.isdisjoint(purposes.value):
            raise PathError(f"`{name}` does not issue for this purpose")
    # The leaf does not count. Self-issued certificates do, though section 4.2.1.9 spares them: the library
    # counts some of them.
    if basic.value.path_length is not None and basic.value.path_length < len(path) - 1:
        raise PathError(f"`{name}` allows fewer certificates below it")
    if not has_strong_key(issuer):
        raise PathError(f"the key of `{name}` is of a kind that is not accepted")
    _check_identifiers(path[-1], issuer)
    _check_signature(path[-1], issuer)


def _check_signature(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    try:
        algorithm = certificate.signature_hash_algorithm
        is_ed25519 = certificate.signature_algorithm_oid == SignatureAlgorithmOID.ED25519
        # Names, algorithms inside and outside of what is signed, and the signature.
        certificate.verify_directly_issued_by(issuer)
    except (*UNREADABLE, InvalidSignature) as error:
        raise PathError("a signature in the chain does not verify") from error
    if not is_ed25519 and not isinstance(algorithm, _HASHES):
        raise PathError("a signature in the chain is of a kind that is not accepted")


def _check_identifiers(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    """Refuse what does not say which key signed it, or names another one (RFC 5280, 4.2.1.1)."""
    named = _extension(certificate, x509.AuthorityKeyIdentifier)
    if named is None or named.value.key_identifier is None:
        raise PathError("a certificate does not name the key that it is signed with")
    key = _extension(issuer, x509.SubjectKeyIdentifier)
    if key is not None and key.value.digest != named.value.key_identifier:
        raise PathError("a certificate names another key than that of its issuer")


def _check_link(certificate: x509.Certificate, at: datetime) -> None:
    """Refuse what counts nowhere in a path: its time is over, or something in it is not understood."""
    if at > certificate.not_valid_after_utc:
        raise PathError(
            f"a certificate expired at {certificate.not_valid_after_utc:%FT%TZ}, the time is {at:%FT%TZ}"
        )
    if at < certificate.not_valid_before_utc:
        raise PathError(
            f"a certificate is not valid before {certificate.not_valid_before_utc:%FT%TZ}, "
            f"the time is {at:%FT%TZ}: is the clock right?"
        )
    try:
        number, version = certificate.serial_number, certificate.version
        extensions = list(certificate.extensions)
    except UNREADABLE as error:
        raise PathError("the certificate's extensions are malformed") from error
    if version is not x509.Version.v3 or not 0 < number < _SERIALS:
        raise PathError("a certificate has another version or serial number than RFC 5280 allows")
    for extension in extensions:
        narrows = isinstance(extension.value, x509.NameConstraints)
        if narrows or (extension.critical and extension.oid not in _UNDERSTOOD):
            raise PathError(f"extension {extension.oid.dotted_string} of a certificate is not understood")


def _extension(certificate: x509.Certificate, kind: type[Kind]) -> x509.Extension[Kind] | None:
    try:
        return certificate.extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        return None
