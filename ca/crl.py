"""Certificate revocation lists: what is in one, when the next one is due, and how one becomes the stored one.

Full lists of one issuer (RFC 5280, section 5), signed by its key. A list is due when something was revoked
since, or when two thirds of its life are over; whoever notices first makes it, and all serve the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ca.issuer import BACKDATE, Issuer, check_validity
from ca.keys import signature_hash
from ca.ledger import (
    Ledger,
    LedgerCode,
    LedgerRefusalError,
    RevocationReason,
    RevokedSerial,
    StoredCrl,
)
from garrison.errors import IssuanceError

CRL_LIFE = timedelta(hours=24)
RENEW_AFTER = CRL_LIFE * 2 / 3
# RFC 5280, 3.3: a revoked certificate stays on the list until one was published after its end. Within this
# time one is.
GRACE = CRL_LIFE
_ATTEMPTS = 10

# `unspecified` is told by the absence of a reason (5.3.1).
_REASONS = {
    RevocationReason.KEY_COMPROMISE: x509.ReasonFlags.key_compromise,
    RevocationReason.CA_COMPROMISE: x509.ReasonFlags.ca_compromise,
    RevocationReason.AFFILIATION_CHANGED: x509.ReasonFlags.affiliation_changed,
    RevocationReason.SUPERSEDED: x509.ReasonFlags.superseded,
    RevocationReason.CESSATION_OF_OPERATION: x509.ReasonFlags.cessation_of_operation,
    RevocationReason.PRIVILEGE_WITHDRAWN: x509.ReasonFlags.privilege_withdrawn,
}
_EXTENSIONS: dict[RevocationReason, list[x509.Extension[x509.ExtensionType]]] = {
    reason: [x509.Extension(x509.CRLReason.oid, critical=False, value=x509.CRLReason(flag))]
    for reason, flag in _REASONS.items()
}


def key_identifier(issuer: Issuer) -> str:
    """Return the key identifier (hex) that certificates of `issuer` name: what the ledger knows it by."""
    return _authority_key(issuer.certificate).digest.hex()


def build_crl(
    issuer: Issuer, revoked: Sequence[RevokedSerial], *, number: int, revocations: int, now: datetime
) -> StoredCrl:
    """Return a signed list of `revoked`, valid for `CRL_LIFE`, at most as long as the issuer.

    Raises:
        IssuanceError: the issuer may not sign lists, or is expired.

    """
    check_validity(issuer.certificate, now)
    usage = issuer.certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    if not usage.crl_sign:
        raise IssuanceError("the CA certificate may not sign CRLs (no cRLSign in its key usage)")
    start = max(now - BACKDATE, issuer.certificate.not_valid_before_utc).replace(microsecond=0)
    end = min(now + CRL_LIFE, issuer.certificate.not_valid_after_utc).replace(microsecond=0)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
        _authority_key(issuer.certificate)
    )
    # The builder's own method to add an entry copies all of them each time.
    builder = x509.CertificateRevocationListBuilder(
        issuer.certificate.subject,
        start.replace(tzinfo=None),
        end.replace(tzinfo=None),
        [
            x509.Extension(identifier.oid, critical=False, value=identifier),
            x509.Extension(x509.CRLNumber.oid, critical=False, value=x509.CRLNumber(number)),
        ],
        [_entry(one) for one in revoked],
    )
    signed = builder.sign(issuer.key, signature_hash(issuer.key)).public_bytes(Encoding.DER)
    if not x509.load_der_x509_crl(signed).is_signature_valid(issuer.key.public_key()):
        raise IssuanceError("the signed CRL does not verify under its issuer")
    return StoredCrl(key_identifier(issuer), number, revocations, signed, start, end)


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
    name = key_identifier(issuer)
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
    return b"".join(x509.load_der_x509_crl(crl.der).public_bytes(Encoding.PEM) for crl in crls)


def _entry(revoked: RevokedSerial) -> x509.RevokedCertificate:
    builder = x509.RevokedCertificateBuilder(
        revoked.serial, revoked.at.replace(microsecond=0, tzinfo=None), _EXTENSIONS.get(revoked.reason, [])
    )
    return builder.build()


def _authority_key(certificate: x509.Certificate) -> x509.SubjectKeyIdentifier:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.SubjectKeyIdentifier.from_public_key(certificate.public_key())


def parse_crls(pem: bytes) -> tuple[x509.CertificateRevocationList, ...]:
    """Return the CRLs in `pem`, as `crl_pem` writes them."""
    end = b"-----END X509 CRL-----"
    return tuple(x509.load_pem_x509_crl(part + end) for part in pem.split(end)[:-1])
