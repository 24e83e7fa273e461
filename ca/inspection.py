"""Certificates are parsed again after signing, and whatever is not as it must be is refused.

`check_leaf` and `check_signing` hold a certificate against the X509-SVID standard without knowing our
template; `check_signed` holds it against the template. A slip in one is caught by the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar, cast

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from ca import der
from ca.keys import CaKey
from ca.signing import verify
from ca.template import Stamp, Template
from garrison.errors import IssuanceError
from garrison.identity import SpiffeId, TrustDomain

_Kind = TypeVar("_Kind", bound=x509.ExtensionType)
_Extensions = Mapping[type[x509.ExtensionType], x509.Extension[x509.ExtensionType]]
_BOTH_ENDS = frozenset({ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH})


def check_leaf(certificate: x509.Certificate) -> SpiffeId:
    """Return the SPIFFE ID of a certificate that is a leaf X509-SVID.

    Raises:
        IssuanceError: a rule of the standard is broken; the message says which.

    """
    extensions = _extensions(certificate)
    usage = _key_usage(extensions)
    spiffe_id = _only_uri(extensions)
    if spiffe_id is None:
        raise IssuanceError("the certificate has no SPIFFE ID")
    if not spiffe_id.segments:
        raise IssuanceError("a leaf's SPIFFE ID needs a path")
    if _basic_constraints(extensions).ca:
        raise IssuanceError("a leaf must not be a CA")
    if not usage.digital_signature or usage.key_cert_sign or usage.crl_sign:
        raise IssuanceError("a leaf's key usage must be digitalSignature, without keyCertSign and cRLSign")
    extended = _extension(extensions, x509.ExtendedKeyUsage)
    if extended is not None and not set(extended.value) >= _BOTH_ENDS:
        raise IssuanceError("a leaf's extended key usage must hold both serverAuth and clientAuth")
    names = _extension(extensions, x509.SubjectAlternativeName)
    if names is not None and not names.critical and not certificate.subject.rdns:
        raise IssuanceError("the alternative name must be critical when the subject is empty")
    return spiffe_id


def check_signing(certificate: x509.Certificate) -> TrustDomain | None:
    """Return the trust domain that a signing certificate names; None if it has no URI.

    Raises:
        IssuanceError: the certificate may not sign, or its ID has a path.

    """
    extensions = _extensions(certificate)
    if not _basic_constraints(extensions).ca:
        raise IssuanceError("the certificate is not a CA")
    if not _key_usage(extensions).key_cert_sign:
        raise IssuanceError("the certificate's key usage has no keyCertSign")
    spiffe_id = _only_uri(extensions)
    if spiffe_id is None:
        return None
    if spiffe_id.segments:
        raise IssuanceError(f"a signing certificate's SPIFFE ID has no path, this one is `{spiffe_id}`")
    return spiffe_id.trust_domain


def check_signed(signed: bytes, template: Template, stamp: Stamp) -> x509.Certificate:
    """Return the certificate `signed` (DER) if it is as `template` and `stamp` say, and `stamp.by` signed it.

    Raises:
        IssuanceError: it is not; nothing may be done with such a certificate.

    """
    certificate = x509.load_der_x509_certificate(signed)
    to_be_signed, _ = der.first(der.content(signed))
    # Compared as bytes: the library takes names, keys and extensions apart anew for each certificate, which
    # costs as much as all the rest.
    _, _, _, issuer, _, subject, key, extensions = der.elements(der.content(to_be_signed))
    if (subject, key, issuer) != (template.subject_der, template.key_der, stamp.by.name_der):
        raise IssuanceError("the signed certificate has another subject, key or issuer than was asked for")
    wanted = [one.der for one in (stamp.by.authority_key, *template.extensions)]
    if der.elements(der.content(der.content(extensions))) != wanted:
        raise IssuanceError("the signed certificate has other extensions than were asked for")
    found_stamp = (
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
        certificate.serial_number,
    )
    if found_stamp != (stamp.not_before, stamp.not_after, stamp.serial):
        raise IssuanceError("the signed certificate has another validity or serial number than was asked for")
    if not verify(certificate.signature, to_be_signed, stamp.by.key, stamp.by.scheme):
        raise IssuanceError("the signed certificate does not verify under its issuer")
    return certificate


def check_key_pair(certificate: x509.Certificate, key: CaKey) -> None:
    """Refuse a certificate that is not `key`'s.

    Raises:
        IssuanceError: the certificate is for another key.

    """
    if certificate.public_key() != key.public_key():
        raise IssuanceError("the certificate and the private key do not belong together")


def _extensions(certificate: x509.Certificate) -> _Extensions:
    try:
        return {type(one.value): one for one in certificate.extensions}
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise IssuanceError("the certificate's extensions are malformed") from error


def _extension(extensions: _Extensions, kind: type[_Kind]) -> x509.Extension[_Kind] | None:
    return cast("x509.Extension[_Kind] | None", extensions.get(kind))


def _basic_constraints(extensions: _Extensions) -> x509.BasicConstraints:
    extension = _extension(extensions, x509.BasicConstraints)
    if extension is None:
        raise IssuanceError("the certificate has no basic constraints")
    return extension.value


def _key_usage(extensions: _Extensions) -> x509.KeyUsage:
    extension = _extension(extensions, x509.KeyUsage)
    if extension is None or not extension.critical:
        raise IssuanceError("the certificate has no critical key usage")
    return extension.value


def _only_uri(extensions: _Extensions) -> SpiffeId | None:
    names = _extension(extensions, x509.SubjectAlternativeName)
    uris = names.value.get_values_for_type(x509.UniformResourceIdentifier) if names else []
    if len(uris) > 1:
        raise IssuanceError("the certificate has more than one URI")
    try:
        return SpiffeId.parse(uris[0]) if uris else None
    except ValueError as error:
        raise IssuanceError(str(error)) from error
