"""Certificate revocation lists: what is in one, when the next one is due, and how one becomes the stored one.

Full lists of one issuer (RFC 5280, section 5), signed by its key. A list is due when something was revoked
since, or when two thirds of its life are over; whoever notices first makes it, and all serve the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from cryptography import x509

from ca import der
from ca.issuer import BACKDATE, Issuer
from ca.keys import CaKey, signature_hash
from ca.ledger import (
    Ledger,
    LedgerCode,
    LedgerRefusalError,
    RevocationReason,
    RevokedSerial,
    StoredCrl,
)
from ca.signing import Scheme, signed, verify
from garrison.errors import IssuanceError

CRL_LIFE = timedelta(hours=24)
RENEW_AFTER = CRL_LIFE * 2 / 3
# RFC 5280, 3.3: a revoked certificate stays on the list until one was published after its end. Within this
# time one is.
GRACE = CRL_LIFE
_ATTEMPTS = 10


def key_identifier_of(certificate: x509.Certificate) -> str:
    """Return the key identifier (hex) of the key that `certificate` is for."""
    return _authority_key(certificate).digest.hex()


def build_crl(
    issuer: Issuer, revoked: Sequence[RevokedSerial], *, number: int, revocations: int, now: datetime
) -> StoredCrl:
    """Return a signed list of `revoked`, valid for `CRL_LIFE`, at most as long as the issuer.

    Raises:
        IssuanceError: the issuer may not sign lists, or is expired.

    """
    issuer.check_validity(now)
    usage = issuer.certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    if not usage.crl_sign:
        raise IssuanceError("the CA certificate may not sign CRLs (no cRLSign in its key usage)")
    start = max(now - BACKDATE, issuer.certificate.not_valid_before_utc).replace(microsecond=0)
    end = min(now + CRL_LIFE, issuer.certificate.not_valid_after_utc).replace(microsecond=0)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
        _authority_key(issuer.certificate)
    )
    empty = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(start)
        .next_update(end)
        .add_extension(identifier, critical=False)
        .add_extension(x509.CRLNumber(number), critical=False)
        .sign(issuer.key, signature_hash(issuer.key))
    )
    listed = _with_entries(empty, issuer.key, [_entry(one) for one in revoked])
    found = x509.load_der_x509_crl(listed)
    if len(found) != len(revoked):
        raise IssuanceError("the signed CRL does not hold what it should")
    if not verify(found.signature, found.tbs_certlist_bytes, issuer.key.public_key(), Scheme.of(issuer.key)):
        raise IssuanceError("the signed CRL does not verify under its issuer")
    return StoredCrl(issuer.key_identifier, number, revocations, listed, start, end)


def is_due(crl: StoredCrl | None, revocations: int, now: datetime) -> bool:
    """Tell whether a new list is needed in place of `crl`."""
    return (
        crl is None
        or crl.revocations != revocations
        or now >= min(crl.this_update + RENEW_AFTER, crl.next_update)
    )


def renew_crl(ledger: Ledger, issuer: Issuer, *, now: datetime, by: str) -> StoredCrl:
    """Return the issuer's list, a new one if it is due: it holds everything revoked before the call.

    Raises:
        IssuanceError: the issuer cannot sign it.
        LedgerUnavailableError: it cannot be read or stored.

    """
    name = issuer.key_identifier
    for _ in range(_ATTEMPTS):
        # In this order: what is revoked in between is in the list, and makes another one due.
        current, revocations = ledger.crl(name), ledger.revocations()
        if current is not None and not is_due(current, revocations, now):
            return current
        revoked = ledger.revoked(name, unexpired_at=now - GRACE)
        number = current.number + 1 if current is not None else 1
        crl = build_crl(issuer, revoked, number=number, revocations=revocations, now=now)
        try:
            ledger.put_crl(crl, now=now, by=by)
        except LedgerRefusalError as error:
            if error.code is not LedgerCode.STATE_CHANGED:
                raise
        else:
            return crl
    raise IssuanceError("others publish CRLs all the time, so this one could not be")


def crl_pem(crls: Iterable[StoredCrl]) -> bytes:
    """Return `crls` as PEM blocks."""
    return b"".join(der.pem("X509 CRL", crl.der) for crl in crls)


# The library takes 7 us an entry, too long for a list of 100,000: so it makes a list without entries,
# and they are put into what is signed (RFC 5280, 5.1: between nextUpdate and crlExtensions).
# The object identifier of CRLReason, 2.5.29.21 (5.3.1), with tag and length.
_CRL_REASON = bytes.fromhex("0603551d15")


def _reason(code: int) -> bytes:
    value = der.element(der.OCTET_STRING, der.element(der.ENUMERATED, bytes((code,))))
    return der.element(der.SEQUENCE, der.element(der.SEQUENCE, _CRL_REASON + value))


# `unspecified` is told by the absence of a reason (5.3.1).
_REASONS = {
    RevocationReason.UNSPECIFIED: b"",
    RevocationReason.KEY_COMPROMISE: _reason(1),
    RevocationReason.CA_COMPROMISE: _reason(2),
    RevocationReason.AFFILIATION_CHANGED: _reason(3),
    RevocationReason.SUPERSEDED: _reason(4),
    RevocationReason.CESSATION_OF_OPERATION: _reason(5),
    RevocationReason.PRIVILEGE_WITHDRAWN: _reason(9),
}


def _entry(revoked: RevokedSerial) -> bytes:
    """Return an element of revokedCertificates."""
    return der.element(
        der.SEQUENCE, der.integer(revoked.serial) + der.time(revoked.at) + _REASONS[revoked.reason]
    )


def _with_entries(empty: x509.CertificateRevocationList, key: CaKey, entries: Sequence[bytes]) -> bytes:
    """Return the list `empty` with `entries`, signed anew."""
    *fields, extensions = der.elements(der.content(empty.tbs_certlist_bytes))
    list_of_entries = der.element(der.SEQUENCE, b"".join(entries)) if entries else b""
    return signed(
        der.element(der.SEQUENCE, b"".join((*fields, list_of_entries, extensions))), key, Scheme.of(key)
    )


def _authority_key(certificate: x509.Certificate) -> x509.SubjectKeyIdentifier:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.SubjectKeyIdentifier.from_public_key(certificate.public_key())
