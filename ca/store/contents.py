"""Everything that a ledger holds, for another one to take over, by what every ledger can be asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import zip_longest

from ca.audit import AuditEvent, AuditHead, AuditRecord
from ca.ledger import (
    MAX_PAGE,
    CertificateQuery,
    Entry,
    FederatedBundle,
    IssuedCertificate,
    JoinToken,
    KeyUse,
    Ledger,
    LedgerUnavailableError,
    SigningKey,
    StoredCrl,
)


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in `ledger`; certificates and the audit log, which may be many, are read when asked for."""

    ledger: Ledger
    head: AuditHead
    certificate_count: int
    entries: tuple[Entry, ...]
    tokens: tuple[JoinToken, ...]
    keys: tuple[SigningKey, ...]
    crls: tuple[StoredCrl, ...]
    federated: tuple[FederatedBundle, ...]
    entries_version: int
    revocations: int
    bundle_sequence: int
    bundle_digest: str

    @classmethod
    def of(cls, ledger: Ledger) -> Contents:
        """Return what is in `ledger`, whose audit log has to be whole.

        Raises:
            LedgerUnavailableError: it cannot be read, or its audit log is broken.

        """
        verdict = ledger.verify_audit()
        if not verdict.intact:
            message = f"its audit log is broken at record {verdict.broken_at}: {verdict.problem}"
            raise LedgerUnavailableError(message)
        issued, digest = 0, ""
        for record in ledger.audit():
            if record.event == AuditEvent.CERTIFICATE_ISSUED:
                issued += 1
            elif record.event == AuditEvent.CERTIFICATES_FORGOTTEN:
                issued -= int(json.loads(record.details)["count"])
            elif record.event == AuditEvent.BUNDLE_CHANGED:
                digest = str(json.loads(record.details)["digest"])
        return cls(
            ledger,
            verdict.head,
            issued,
            ledger.entries(),
            ledger.tokens(),
            tuple(key for use in KeyUse for key in ledger.keys(use)),
            ledger.crls(),
            ledger.federated(),
            ledger.entries_version(),
            ledger.revocations(),
            ledger.bundle_sequence(),
            digest,
        )

    def certificates(self) -> Iterator[tuple[int, IssuedCertificate]]:
        """Yield the certificates, newest first, each after its number: that of the oldest is 1.

        Raises:
            LedgerUnavailableError: there are not as many as the audit log says.

        """
        number, cursor = self.certificate_count, None
        while cursor != "":
            query = CertificateQuery(cursor=cursor or "", limit=MAX_PAGE)
            page = self.ledger.issued(query, now=datetime.min.replace(tzinfo=UTC))
            for one in page.certificates:
                yield number, one
                number -= 1
            cursor = page.cursor
        if number:
            raise LedgerUnavailableError("it has not as many certificates as its audit log says")

    def records(self) -> Iterator[AuditRecord]:
        """Yield the audit log."""
        return self.ledger.audit()

    def is_same(self, other: Contents) -> bool:
        """Tell whether `other` has the same, whatever the store."""
        return (
            self._small() == other._small()
            and all(one == another for one, another in zip_longest(self.certificates(), other.certificates()))
            and all(one == another for one, another in zip_longest(self.records(), other.records()))
        )

    def _small(self) -> tuple[object, ...]:
        return (
            self.head,
            self.entries,
            self.tokens,
            self.keys,
            self.crls,
            self.federated,
            self.entries_version,
            self.revocations,
            self.bundle_sequence,
            self.bundle_digest,
        )
