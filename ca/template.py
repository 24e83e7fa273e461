"""What a certificate will say, apart from who signs it, when, and its serial number.

The profile is that of the X509-SVID standard (SPIFFE); section numbers below are its own.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ca import der
from ca.keys import CaPublicKey, PublicKey, check_ca_public_key, check_public_key
from ca.signing import Scheme
from garrison.errors import IssuanceError
from garrison.identity import SpiffeId, TrustDomain

ROOT_PATH_LENGTH = 1
INTERMEDIATE_PATH_LENGTH = 0
# X.520 bounds an organization name.
_MAX_ORGANIZATION = 64
# Names that are kept ready, and are known to be in order: a workload comes again twice in an hour.
READY_NAMES = 4096
# `id-ce` (RFC 5280, 4.2.1): its object identifiers have three bytes.
_CERTIFICATE_EXTENSIONS = "2.5.29"
_CERTIFICATE_EXTENSIONS_DER = bytes.fromhex("0603551d")

# RFC 1123, 2.1. Lower case only, no wildcard: a name is one host.
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DNS_NAME = re.compile(rf"(?:{_LABEL}\.)*(?!\d+$){_LABEL}")
_MAX_DNS_NAME = 253


@dataclass(frozen=True, slots=True)
class Extension:
    """An extension: its value, whether who does not know it must refuse the certificate, and both in DER."""

    value: x509.ExtensionType
    critical: bool
    der: bytes

    @classmethod
    def of(cls, value: x509.ExtensionType, *, critical: bool) -> Extension:
        """Return the extension with this value, which must be one of RFC 5280's own (2.5.29.…)."""
        arc, _, number = value.oid.dotted_string.rpartition(".")
        if arc != _CERTIFICATE_EXTENSIONS:
            raise ValueError(f"extension {value.oid.dotted_string} is not one of RFC 5280")
        content = der.element(der.OCTET_STRING, value.public_bytes())
        if critical:
            content = der.TRUE + content
        identifier = _CERTIFICATE_EXTENSIONS_DER + bytes((int(number),))
        return cls(value, critical, der.element(der.SEQUENCE, identifier + content))


@dataclass(frozen=True, slots=True)
class Template:
    """Subject, key (SubjectPublicKeyInfo) and extensions of a certificate to be signed.

    `names` is the one of `extensions` that says whose it is.
    """

    subject: x509.Name
    subject_der: bytes
    key_der: bytes
    names: Extension
    extensions: tuple[Extension, ...]


@dataclass(frozen=True, slots=True)
class Signatory:
    """Who signs, as certificates say it: name (DER) and key identifier (hex); and how they are verified."""

    name_der: bytes
    key_identifier: str
    authority_key: Extension
    key: CaPublicKey
    scheme: Scheme

    @classmethod
    def of(cls, certificate: x509.Certificate) -> Signatory:
        """Return whom a signing certificate names.

        Raises:
            IssuanceError: its key is of a kind that no CA has.

        """
        key = check_ca_public_key(certificate.public_key())
        # RFC 5280, 4.2.1.1: the value of the issuer's subject key identifier, however that was made.
        try:
            found = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        except x509.ExtensionNotFound:
            found = x509.SubjectKeyIdentifier.from_public_key(key)
        return cls._build(certificate.subject.public_bytes(), found, key)

    @classmethod
    def itself(cls, template: Template, key: CaPublicKey) -> Signatory:
        """Return whom a root names: `template` signed with its own `key`."""
        return cls._build(template.subject_der, x509.SubjectKeyIdentifier.from_public_key(key), key)

    @classmethod
    def _build(cls, name_der: bytes, identifier: x509.SubjectKeyIdentifier, key: CaPublicKey) -> Signatory:
        value = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
        extension = Extension.of(value, critical=False)
        return cls(name_der, identifier.digest.hex(), extension, key, Scheme.of(key))


@dataclass(frozen=True, slots=True)
class Stamp:
    """What an issuer adds to a template; times are UTC in whole seconds."""

    not_before: datetime
    not_after: datetime
    serial: int
    by: Signatory


def leaf_template(spiffe_id: SpiffeId, public_key: PublicKey, dns_names: Iterable[str] = ()) -> Template:
    """Return the template of a workload's X509-SVID.

    Raises:
        IssuanceError: the ID has no path or is malformed, or a DNS name or the key is not acceptable.

    """
    key_der = key_der_of(check_public_key(public_key))
    names = _names(spiffe_id, tuple(dns_names))
    return Template(
        subject=_NO_SUBJECT,
        subject_der=_NO_SUBJECT_DER,
        key_der=key_der,
        names=names,
        extensions=(*_LEAF_EXTENSIONS, names, Extension.of(_key_identifier(key_der), critical=False)),
    )


@lru_cache(maxsize=READY_NAMES)
def _names(spiffe_id: SpiffeId, dns_names: tuple[str, ...]) -> Extension:
    try:
        whole = SpiffeId.parse(str(spiffe_id)) == spiffe_id
    except ValueError as error:
        raise IssuanceError(str(error)) from error
    if not whole:
        raise IssuanceError(f"`{spiffe_id}` is not a SPIFFE ID")
    if not spiffe_id.segments:
        # Section 5.2: a leaf's ID has a non-root path.
        raise IssuanceError(f"`{spiffe_id}` has no path, so it names a trust domain and not a workload")
    names = [x509.DNSName(check_dns_name(name)) for name in dict.fromkeys(dns_names)]
    # Section 2: exactly one URI; other kinds of names may stand beside it.
    alternative = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(spiffe_id)), *names])
    # RFC 5280, 4.2.1.6: critical, because the subject is empty.
    return Extension.of(alternative, critical=True)


def key_der_of(public_key: CaPublicKey) -> bytes:
    """Return the SubjectPublicKeyInfo of a key in DER."""
    return public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _key_identifier(key_der: bytes) -> x509.SubjectKeyIdentifier:
    """Return the SHA-1 of the key's bits (RFC 5280, 4.2.1.2, method 1)."""
    info = der.content(key_der)
    bits = der.content(info[len(der.first(info)[0]) :])
    # A bit string's first byte counts the bits that do not belong to it: none here.
    return x509.SubjectKeyIdentifier(hashlib.sha1(bits[1:], usedforsecurity=False).digest())


def ca_template(
    trust_domain: TrustDomain, public_key: CaPublicKey, *, name: str, path_length: int
) -> Template:
    """Return the template of a signing certificate for `trust_domain`.

    Its subject holds the key's identifier: verifiers look issuers up by subject, and two CAs of one name
    make them try the wrong one.
    """
    key_der = key_der_of(check_ca_public_key(public_key))
    key_identifier = _key_identifier(key_der)
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, str(trust_domain)[:_MAX_ORGANIZATION]),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
            x509.NameAttribute(NameOID.SERIAL_NUMBER, key_identifier.digest.hex()),
        ]
    )
    # Section 3.2: a signing certificate's ID is the trust domain's.
    uri = x509.UniformResourceIdentifier(str(trust_domain.spiffe_id))
    names = Extension.of(x509.SubjectAlternativeName([uri]), critical=False)
    return Template(
        subject=subject,
        subject_der=subject.public_bytes(),
        key_der=key_der,
        names=names,
        extensions=(
            Extension.of(x509.BasicConstraints(ca=True, path_length=path_length), critical=True),
            Extension.of(_key_usage(key_cert_sign=True, crl_sign=True), critical=True),
            names,
            Extension.of(key_identifier, critical=False),
        ),
    )


def check_dns_name(name: str) -> str:
    """Return `name` if it is a host name in lower case, without wildcard or final dot.

    Raises:
        IssuanceError: it is not.

    """
    if len(name) > _MAX_DNS_NAME or not _DNS_NAME.fullmatch(name):
        raise IssuanceError(f"`{name}` is not a DNS name in lower case without wildcard")
    return name


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


# What all leaves have in common, made once.
_NO_SUBJECT = x509.Name([])
_NO_SUBJECT_DER = _NO_SUBJECT.public_bytes()
_LEAF_EXTENSIONS = (
    Extension.of(x509.BasicConstraints(ca=False, path_length=None), critical=True),
    Extension.of(_key_usage(digital_signature=True), critical=True),
    # Section 4.4: if present, both.
    Extension.of(
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
        critical=False,
    ),
)
