"""Certificates are parsed again after signing, and whatever is not as it must be is refused.

`check_leaf` and `check_signing` hold a certificate against the X509-SVID standard without knowing our
template; `check_signed` holds it against the template. A slip in one is caught by the other.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeVar

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from ca import der
from ca.keys import CaKey, CaPublicKey, check_ca_public_key
from ca.signing import verify
from ca.template import Stamp, Template, name_der
from garrison.errors import IssuanceError
from garrison.identity import SpiffeId, TrustDomain

_Kind = TypeVar("_Kind", bound=x509.ExtensionType)


def check_leaf(certificate: x509.Certificate) -> SpiffeId:
    """Return the SPIFFE ID of a certificate that is a leaf X509-SVID.

    Raises:
        IssuanceError: a rule of the standard is broken; the message says which.

    """
    usage = _key_usage(certificate)
    spiffe_id = _only_uri(certificate)
    if spiffe_id is None:
        raise IssuanceError("the certificate has no SPIFFE ID")
    if not spiffe_id.segments:
        raise IssuanceError("a leaf's SPIFFE ID needs a path")
    if _basic_constraints(certificate).ca:
        raise IssuanceError("a leaf must not be a CA")
    if not usage.digital_signature or usage.key_cert_sign or usage.crl_sign:
        raise IssuanceError("a leaf's key usage must be digitalSignature, without keyCertSign and cRLSign")
    extended = _extension(certificate, x509.ExtendedKeyUsage)
    both = {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    if extended is not None and not both <= set(extended.value):
        raise IssuanceError("a leaf's extended key usage must hold both serverAuth and clientAuth")
    names = _extension(certificate, x509.SubjectAlternativeName)
    if not certificate.subject.rdns and names is not None and not names.critical:
        raise IssuanceError("the alternative name must be critical when the subject is empty")
    return spiffe_id


def check_signing(certificate: x509.Certificate) -> TrustDomain | None:
    """Return the trust domain that a signing certificate names; None if it has no URI.

    Raises:
        IssuanceError: the certificate may not sign, or its ID has a path.

    """
    if not _basic_constraints(certificate).ca:
        raise IssuanceError("the certificate is not a CA")
    if not _key_usage(certificate).key_cert_sign:
        raise IssuanceError("the certificate's key usage has no keyCertSign")
    spiffe_id = _only_uri(certificate)
    if spiffe_id is None:
        return None
    if spiffe_id.segments:
        raise IssuanceError(f"a signing certificate's SPIFFE ID has no path, this one is `{spiffe_id}`")
    return spiffe_id.trust_domain


def check_signed(
    certificate: x509.Certificate, template: Template, stamp: Stamp, issuer: x509.Certificate | None
) -> x509.Certificate:
    """Return `certificate` if it says what `template` and `stamp` say, and `issuer` (None: itself) signed it.

    Raises:
        IssuanceError: it differs; nothing may be done with such a certificate.

    """
    found = {extension.oid: (extension.value, extension.critical) for extension in certificate.extensions}
    wanted = {one.value.oid: (one.value, one.critical) for one in (stamp.authority_key, *template.extensions)}
    if found != wanted:
        raise IssuanceError("the signed certificate has other extensions than were asked for")
    to_be_signed = certificate.tbs_certificate_bytes
    # The library takes names and keys apart anew for each certificate, which costs as much as all the rest.
    _, _, _, issued_by, _, subject, key, _ = der.elements(der.content(to_be_signed))
    by = template.subject if issuer is None else issuer.subject
    if (subject, key, issued_by) != (name_der(template.subject), template.key_der, name_der(by)):
        raise IssuanceError("the signed certificate has another subject, key or issuer than was asked for")
    found_stamp = (
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
        certificate.serial_number,
    )
    if found_stamp != (stamp.not_before, stamp.not_after, stamp.serial):
        raise IssuanceError("the signed certificate has another validity or serial number than was asked for")
    if not verify(certificate.signature, to_be_signed, _key_of(issuer or certificate)):
        raise IssuanceError("the signed certificate does not verify under its issuer")
    return certificate


@lru_cache(maxsize=64)
def _key_of(issuer: x509.Certificate) -> CaPublicKey:
    return check_ca_public_key(issuer.public_key())


def check_key_pair(certificate: x509.Certificate, key: CaKey) -> None:
    """Refuse a certificate that is not `key`'s.

    Raises:
        IssuanceError: the certificate is for another key.

    """
    if certificate.public_key() != key.public_key():
        raise IssuanceError("the certificate and the private key do not belong together")


def _extension(certificate: x509.Certificate, kind: type[_Kind]) -> x509.Extension[_Kind] | None:
    try:
        return certificate.extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        return None
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise IssuanceError("the certificate's extensions are malformed") from error


def _basic_constraints(certificate: x509.Certificate) -> x509.BasicConstraints:
    extension = _extension(certificate, x509.BasicConstraints)
    if extension is None:
        raise IssuanceError("the certificate has no basic constraints")
    return extension.value


def _key_usage(certificate: x509.Certificate) -> x509.KeyUsage:
    extension = _extension(certificate, x509.KeyUsage)
    if extension is None or not extension.critical:
        raise IssuanceError("the certificate has no critical key usage")
    return extension.value


def _only_uri(certificate: x509.Certificate) -> SpiffeId | None:
    names = _extension(certificate, x509.SubjectAlternativeName)
    uris = names.value.get_values_for_type(x509.UniformResourceIdentifier) if names else []
    if len(uris) > 1:
        raise IssuanceError("the certificate has more than one URI")
    try:
        return SpiffeId.parse(uris[0]) if uris else None
    except ValueError as error:
        raise IssuanceError(str(error)) from error
