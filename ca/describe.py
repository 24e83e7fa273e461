"""Certificates, requests and bundles as plain data for people and scripts to read.

Nothing here is checked against the profile: `ca show` must also show what is wrong.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from typing import Any, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ca.bundle import parse_spiffe_bundle
from ca.keys import describe_key
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


def describe_file(content: bytes) -> list[Description]:
    """Return a description of every certificate and request in `content`: PEM, DER or a SPIFFE bundle.

    Private keys are skipped, unless there is nothing else.

    Raises:
        ValueError: there is nothing to describe, or it is malformed.

    """
    try:
        with warnings.catch_warnings():
            # A doubtful certificate is shown as it is, without remarks of the library in between.
            warnings.simplefilter("ignore", CryptographyDeprecationWarning)
            return _describe_file(content)
    except (
        x509.DuplicateExtension,
        x509.InvalidVersion,
        x509.UnsupportedGeneralNameType,
        UnsupportedAlgorithm,
    ) as error:
        raise ValueError("it holds a certificate that cannot be read") from error


def describe_certificate(certificate: x509.Certificate) -> Description:
    """Return what `certificate` says: names, validity, serial number, key, usages, fingerprint."""
    basic = _extension(certificate, x509.BasicConstraints)
    return {
        "type": "certificate",
        "subject": _subject(certificate.subject),
        "issuer": _subject(certificate.issuer),
        **_names(certificate),
        "not_before": f"{certificate.not_valid_before_utc:%FT%TZ}",
        "not_after": f"{certificate.not_valid_after_utc:%FT%TZ}",
        "serial": f"{certificate.serial_number:x}",
        "key": describe_key(certificate.public_key()),
        "ca": basic is not None and basic.ca,
        "path_length": basic.path_length if basic else None,
        **_usages(certificate),
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


def _describe_file(content: bytes) -> list[Description]:
    if content.lstrip()[:1] == b"{":
        return [
            describe_certificate(certificate) for certificate in parse_spiffe_bundle(content).x509_authorities
        ]
    blocks = [(match["label"].decode(), match[0]) for match in _BLOCK.finditer(content)]
    if not blocks:
        return [_describe_der(content)]
    found = []
    for label, block in blocks:
        if label in {"CERTIFICATE", "X509 CERTIFICATE", "TRUSTED CERTIFICATE"}:
            found.append(describe_certificate(x509.load_pem_x509_certificate(block)))
        elif label.endswith("CERTIFICATE REQUEST"):
            found.append(describe_request(x509.load_pem_x509_csr(block)))
    if not found:
        raise ValueError(f"it holds no certificate, only `{blocks[0][0]}`")
    return found


def _describe_der(content: bytes) -> Description:
    try:
        return describe_certificate(x509.load_der_x509_certificate(content))
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
