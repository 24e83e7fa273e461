"""Certificates, requests and bundles as plain data for people and scripts to read.

What is wrong is shown as well: `spiffe_check` says of a certificate which rule of the profile it breaks.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ca.bundle import parse_spiffe_bundle
from ca.inspection import check_leaf, check_signing
from ca.keys import describe_key
from garrison.errors import IssuanceError
from garrison.identity import SpiffeId

_BLOCK = re.compile(rb"-----BEGIN (?P<label>[A-Z0-9 ]+)-----.*?-----END (?P=label)-----", re.DOTALL)
_USAGES = {
    "digital_signature": "digitalSignature",
    "content_commitment": "nonRepudiation",
    "key_encipherment": "keyEncipherment",
    "data_encipherment": "dataEncipherment",
    "key_agreement": "keyAgreement",
    "key_cert_sign": "keyCertSign",
    "crl_sign": "cRLSign",
}
_EXTENDED_USAGES = {
    ExtendedKeyUsageOID.SERVER_AUTH: "serverAuth",
    ExtendedKeyUsageOID.CLIENT_AUTH: "clientAuth",
}
_NAME_KINDS: dict[type, str] = {
    x509.UniformResourceIdentifier: "URI",
    x509.DNSName: "DNS",
    x509.IPAddress: "IP",
    x509.RFC822Name: "email",
}
_Kind = TypeVar("_Kind", bound=x509.ExtensionType)

Description = dict[str, Any]


def describe_file(content: bytes, now: datetime | None = None) -> list[Description]:
    """Return a description of every certificate and request in `content`: PEM, DER or a SPIFFE bundle.

    With `now` it is also said how long certificates have left. Private keys are skipped, unless there is
    nothing else.

    Raises:
        ValueError: there is nothing to describe, or it is malformed.

    """
    try:
        with warnings.catch_warnings():
            # A doubtful certificate is shown as it is, without remarks of the library in between.
            warnings.simplefilter("ignore", CryptographyDeprecationWarning)
            return _describe_file(content, now)
    except (
        x509.DuplicateExtension,
        x509.InvalidVersion,
        x509.UnsupportedGeneralNameType,
        UnsupportedAlgorithm,
    ) as error:
        raise ValueError("it holds a certificate that cannot be read") from error


def describe_chain(
    certificates: Iterable[x509.Certificate], now: datetime | None = None
) -> list[Description]:
    """Return a description of each of `certificates`.

    Raises:
        ValueError: one cannot be read.

    """
    found = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)
    return describe_file(found, now)


def describe_certificate(certificate: x509.Certificate, now: datetime | None = None) -> Description:
    """Return what `certificate` says: names, validity, serial number, key, usages, fingerprint."""
    basic = _extension(certificate, x509.BasicConstraints)
    return {
        "type": "certificate",
        "subject": _subject(certificate.subject),
        "issuer": _subject(certificate.issuer),
        **_names(certificate),
        "not_before": f"{certificate.not_valid_before_utc:%FT%TZ}",
        "not_after": f"{certificate.not_valid_after_utc:%FT%TZ}",
        **_time_left(certificate, now),
        "serial": f"{certificate.serial_number:x}",
        "key": describe_key(certificate.public_key()),
        "ca": basic is not None and basic.ca,
        "path_length": basic.path_length if basic else None,
        **_usages(certificate),
        "spiffe_check": _spiffe_check(certificate, is_ca=basic is not None and basic.ca),
        "sha256": hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest(),
    }


def describe_request(request: x509.CertificateSigningRequest) -> Description:
    """Return what `request` asks for, and whether its signature verifies."""
    return {
        "type": "certificate request",
        "subject": _subject(request.subject),
        **_names(request),
        "key": describe_key(request.public_key()),
        "signature_valid": request.is_signature_valid,
        **_usages(request),
        "sha256": hashlib.sha256(request.public_bytes(Encoding.DER)).hexdigest(),
    }


def format_description(description: Description) -> str:
    """Return one description as aligned lines; what is absent is left out."""
    lines = []
    for name, value in description.items():
        text = ", ".join(value) if isinstance(value, list) else value
        if text is None or text == "":
            continue
        if isinstance(text, bool):
            text = "yes" if text else "no"
        lines.append(f"{name.replace('_', ' ')}:".ljust(20) + str(text))
    return "\n".join(lines)


def format_time_left(left: timedelta) -> str:
    """Return a remaining time in words; what is over is `expired … ago`."""
    if left < timedelta(0):
        return f"expired {format_time_left(-left)} ago"
    for unit, length in (("days", timedelta(days=1)), ("hours", timedelta(hours=1))):
        if left >= 2 * length:
            return f"{left // length} {unit}"
    return f"{left // timedelta(minutes=1)} minutes"


def _time_left(certificate: x509.Certificate, now: datetime | None) -> Description:
    if now is None:
        return {}
    left = certificate.not_valid_after_utc - now
    return {"time_left": format_time_left(left), "seconds_left": int(left.total_seconds())}


def _spiffe_check(certificate: x509.Certificate, *, is_ca: bool) -> str:
    try:
        if not is_ca:
            check_leaf(certificate)
            return "a leaf X509-SVID"
        named = check_signing(certificate)
    except IssuanceError as error:
        return f"no X509-SVID: {_one_line(error)}"
    return "a signing X509-SVID" if named else "a signing certificate without a trust domain"


def _describe_file(content: bytes, now: datetime | None) -> list[Description]:
    if content.lstrip()[:1] == b"{":
        roots = parse_spiffe_bundle(content).x509_authorities
        return [describe_certificate(certificate, now) for certificate in roots]
    blocks = [(match["label"].decode(), match[0]) for match in _BLOCK.finditer(content)]
    if not blocks:
        return [_describe_der(content, now)]
    found = []
    for label, block in blocks:
        if label in {"CERTIFICATE", "X509 CERTIFICATE", "TRUSTED CERTIFICATE"}:
            found.append(describe_certificate(x509.load_pem_x509_certificate(block), now))
        elif label.endswith("CERTIFICATE REQUEST"):
            found.append(describe_request(x509.load_pem_x509_csr(block)))
    if not found:
        raise ValueError(f"it holds no certificate, only `{blocks[0][0]}`")
    return found


def _describe_der(content: bytes, now: datetime | None) -> Description:
    try:
        return describe_certificate(x509.load_der_x509_certificate(content), now)
    except ValueError:
        pass
    try:
        return describe_request(x509.load_der_x509_csr(content))
    except ValueError as error:
        raise ValueError("it holds no certificate, certificate request or SPIFFE bundle") from error


def _subject(name: x509.Name) -> str:
    return _one_line(name.rfc4514_string({NameOID.SERIAL_NUMBER: "serialNumber"}))


def _names(source: x509.Certificate | x509.CertificateSigningRequest) -> Description:
    names = list(_extension(source, x509.SubjectAlternativeName) or ())
    uris = [name.value for name in names if isinstance(name, x509.UniformResourceIdentifier)]
    try:
        spiffe_id = str(SpiffeId.parse(uris[0])) if len(uris) == 1 else None
    except ValueError:
        spiffe_id = None
    return {
        "spiffe_id": spiffe_id,
        "names": [f"{_NAME_KINDS.get(type(name), 'other')}:{_one_line(name.value)}" for name in names],
    }


def _usages(source: x509.Certificate | x509.CertificateSigningRequest) -> Description:
    usage = _extension(source, x509.KeyUsage)
    extended = _extension(source, x509.ExtendedKeyUsage)
    return {
        "key_usage": [text for name, text in _USAGES.items() if usage and getattr(usage, name)],
        "extended_key_usage": [_EXTENDED_USAGES.get(oid, oid.dotted_string) for oid in extended or ()],
    }


def _extension(source: x509.Certificate | x509.CertificateSigningRequest, kind: type[_Kind]) -> _Kind | None:
    try:
        return source.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _one_line(value: object) -> str:
    """Return `value` such that a hostile name cannot write lines or colours of its own."""
    text = str(value)
    return text if text.isprintable() else json.dumps(text)
