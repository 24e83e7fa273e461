"""What a certificate will say, apart from who signs it, when, and its serial number.

The profile is that of the X509-SVID standard (SPIFFE); section numbers below are its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ca.keys import CaPublicKey, PublicKey, check_ca_public_key, check_public_key
from garrison.errors import IssuanceError
from garrison.identity import SpiffeId, TrustDomain

ROOT_PATH_LENGTH = 1
INTERMEDIATE_PATH_LENGTH = 0
# X.520 bounds an organization name.
_MAX_ORGANIZATION = 64

# RFC 1123, 2.1. Lower case only, no wildcard: a name is one host.
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DNS_NAME = re.compile(rf"(?:{_LABEL}\.)*(?!\d+$){_LABEL}")
_MAX_DNS_NAME = 253


@dataclass(frozen=True, slots=True)
class Template:
    """Subject, key and extensions of a certificate to be signed; `extensions` pairs value and critical."""

    subject: x509.Name
    public_key: CaPublicKey
    extensions: tuple[tuple[x509.ExtensionType, bool], ...]


@dataclass(frozen=True, slots=True)
class Stamp:
    """What an issuer adds to a template; times are UTC in whole seconds."""

    not_before: datetime
    not_after: datetime
    serial: int
    authority_key: x509.AuthorityKeyIdentifier


def leaf_template(spiffe_id: SpiffeId, public_key: PublicKey, dns_names: Iterable[str] = ()) -> Template:
    """Return the template of a workload's X509-SVID.

    Raises:
        IssuanceError: the ID has no path or is malformed, or a DNS name or the key is not acceptable.

    """
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
    return Template(
        subject=_NO_SUBJECT,
        public_key=check_public_key(public_key),
        extensions=(
            *_LEAF_EXTENSIONS,
            (alternative, True),  # RFC 5280, 4.2.1.6: critical, because the subject is empty.
            (x509.SubjectKeyIdentifier.from_public_key(public_key), False),
        ),
    )


def ca_template(
    trust_domain: TrustDomain, public_key: CaPublicKey, *, name: str, path_length: int
) -> Template:
    """Return the template of a signing certificate for `trust_domain`.

    Its subject holds the key's identifier: verifiers look issuers up by subject, and two CAs of one name
    make them try the wrong one.
    """
    key_identifier = x509.SubjectKeyIdentifier.from_public_key(public_key)
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, str(trust_domain)[:_MAX_ORGANIZATION]),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
            x509.NameAttribute(NameOID.SERIAL_NUMBER, key_identifier.digest.hex()),
        ]
    )
    return Template(
        subject=subject,
        public_key=check_ca_public_key(public_key),
        extensions=(
            (x509.BasicConstraints(ca=True, path_length=path_length), True),
            (_key_usage(key_cert_sign=True, crl_sign=True), True),
            # Section 3.2: a signing certificate's ID is the trust domain's.
            (
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(trust_domain.spiffe_id))]),
                False,
            ),
            (key_identifier, False),
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
_LEAF_EXTENSIONS: tuple[tuple[x509.ExtensionType, bool], ...] = (
    (x509.BasicConstraints(ca=False, path_length=None), True),
    (_key_usage(digital_signature=True), True),
    # Section 4.4: if present, both.
    (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), False),
)
