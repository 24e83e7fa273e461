"""An X509-SVID that this CA issued, shown in a TLS handshake: its holder may renew it.

The handshake has proved that the caller holds the key. What it verified with is the listener's business, so
here the certificate is held against the CA itself: our bundle, our ledger, the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509

from ca.attestors.base import Attested, Reason, Refused, selectors
from ca.authority import Authority
from ca.ledger import CertificateKind, IssuedCertificate, Ledger, fingerprint_of
from ca.registration import SelectorKind
from ca.verification import verify_svid
from garrison.errors import IssuanceError
from garrison.identity import SpiffeId

ATTESTED_BY = "x509_svid"


def attest_svid(
    der: bytes,
    authority: Authority,
    ledger: Ledger,
    *,
    now: datetime,
    intermediates: Sequence[x509.Certificate] = (),
) -> Attested | Refused:
    """Return what the holder of the certificate `der` has proved.

    `intermediates` are those of ours that issued before the one in force.

    Raises:
        LedgerUnavailableError: the ledger does not answer.

    """
    checked = _check_certificate(der, authority, (*authority.chain, *intermediates), now)
    if isinstance(checked, Refused):
        return checked
    certificate, spiffe_id = checked
    # Whoever has our key could sign what was never recorded: only what the ledger knows is ours.
    found = _recorded(ledger.find(fingerprint=fingerprint_of(certificate)), spiffe_id)
    if found is None:
        return Refused(Reason.NOT_ISSUED_HERE, f"no certificate {certificate.serial_number:x} is recorded")
    if found.revocation is not None:
        return Refused(Reason.REVOKED, f"certificate {found.serial_text} of `{spiffe_id}` is revoked")
    return Attested(
        selectors([(SelectorKind.X509_ID, str(spiffe_id))]),
        f"{spiffe_id}, certificate {found.serial_text}",
        ATTESTED_BY,
        spiffe_id,
    )


def _recorded(found: Sequence[IssuedCertificate], spiffe_id: SpiffeId) -> IssuedCertificate | None:
    for one in found:
        if one.kind is CertificateKind.X509_SVID and one.spiffe_id == spiffe_id:
            return one
    return None


def _check_certificate(
    der: bytes, authority: Authority, intermediates: Sequence[x509.Certificate], now: datetime
) -> tuple[x509.Certificate, SpiffeId] | Refused:
    try:
        certificate = x509.load_der_x509_certificate(der)
        starts, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except (ValueError, x509.InvalidVersion):
        return Refused(Reason.MALFORMED, "the client certificate is malformed")
    if now >= ends:
        return Refused(Reason.EXPIRED, f"the client certificate expired at {ends:%FT%TZ}")
    if now < starts:
        return Refused(Reason.NOT_YET_VALID, f"the client certificate is not valid before {starts:%FT%TZ}")
    try:
        spiffe_id, _ = verify_svid(certificate, intermediates, authority.roots, now)
    except IssuanceError as error:
        return Refused(Reason.NOT_ISSUED_HERE, f"the client certificate is none of ours: {error}")
    if spiffe_id.trust_domain != authority.trust_domain:
        return Refused(Reason.FOREIGN_TRUST_DOMAIN, f"`{spiffe_id}` is of another trust domain")
    return certificate, spiffe_id
