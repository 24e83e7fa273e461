"""What a CA remembers: values, and the `Ledger` that keeps them.

Whatever changes a ledger takes `now` and `by` (who does it, as text) and writes the audit record of the
change in the same transaction: there is no change without a record, and no record without its change. A
refusal is a `LedgerRefusalError` whose `code` says why, or a `ca.audit.ClockError` where `now` is long before
the newest record; a store that does not answer is a `LedgerUnavailableError`. Then nothing has changed, or,
where a connection to another machine broke, nobody can tell: what was to be recorded must not leave, and a
token opens nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ca.audit import AuditEvent, AuditHead, AuditRecord, AuditVerdict, Details
from ca.registration import Registration
from garrison.errors import DependencyError, IssuanceError
from garrison.identity import SpiffeId, TrustDomain

MAX_PAGE = 1000


class LedgerCode(StrEnum):
    """Why a ledger refuses."""

    DUPLICATE = "duplicate"
    UNKNOWN = "unknown"
    ALREADY_REVOKED = "already_revoked"
    TOKEN_UNKNOWN = "token_unknown"
    TOKEN_EXPIRED = "token_expired"
    TOKEN_USED = "token_used"
    STATE_CHANGED = "state_changed"


class LedgerRefusalError(IssuanceError):
    """What was asked contradicts what is recorded; nothing has changed but perhaps the audit log."""

    def __init__(self, code: LedgerCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class LedgerUnavailableError(DependencyError):
    """The ledger cannot be read or written: nothing may be issued, whether or not it was still recorded."""


class CertificateKind(StrEnum):
    """What an issued certificate is for."""

    X509_SVID = "x509_svid"
    CA = "ca"
    SERVER = "server"


class RevocationReason(StrEnum):
    """Why a certificate is revoked: the reasons of RFC 5280, 5.3.1, that are final."""

    UNSPECIFIED = "unspecified"
    KEY_COMPROMISE = "key_compromise"
    CA_COMPROMISE = "ca_compromise"
    AFFILIATION_CHANGED = "affiliation_changed"
    SUPERSEDED = "superseded"
    CESSATION_OF_OPERATION = "cessation_of_operation"
    PRIVILEGE_WITHDRAWN = "privilege_withdrawn"


@dataclass(frozen=True, slots=True)
class Revocation:
    """When, why and by whom a certificate was revoked."""

    at: datetime
    reason: RevocationReason
    by: str


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """A certificate that was signed, as it is recorded before anybody gets it.

    `issuer` is the key identifier of who signed (hex), which with `serial` names the certificate;
    `requester` is who asked, `attested_by` how that was shown: `cli`, `unix`, `join_token`, `x509_svid`, ….
    """

    serial: int
    issuer: str
    kind: CertificateKind
    spiffe_id: SpiffeId
    not_before: datetime
    not_after: datetime
    issued_at: datetime
    requester: str
    attested_by: str
    fingerprint: str
    revocation: Revocation | None = None

    @classmethod
    def of(
        cls,
        certificate: x509.Certificate,
        spiffe_id: SpiffeId,
        *,
        now: datetime,
        requester: str,
        attested_by: str,
        kind: CertificateKind = CertificateKind.X509_SVID,
    ) -> IssuedCertificate:
        """Return what there is to record of `certificate`."""
        return cls(
            serial=certificate.serial_number,
            issuer=issuer_of(certificate),
            kind=kind,
            spiffe_id=spiffe_id,
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            issued_at=now,
            requester=requester,
            attested_by=attested_by,
            fingerprint=fingerprint_of(certificate),
        )

    @property
    def serial_text(self) -> str:
        """The serial number as it is shown: lower-case hex."""
        return f"{self.serial:x}"


def issuer_of(certificate: x509.Certificate) -> str:
    """Return the key identifier (hex) of the key that signed `certificate`.

    Raises:
        IssuanceError: it names none; RFC 5280, 4.2.1.1, wants one, and every certificate of ours has it.

    """
    try:
        extension = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    except x509.ExtensionNotFound as error:
        raise IssuanceError("the certificate does not name its issuer's key") from error
    if extension.value.key_identifier is None:
        raise IssuanceError("the certificate does not name its issuer's key")
    return extension.value.key_identifier.hex()


def fingerprint_of(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of `certificate` in hex."""
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


class CertificateStatus(StrEnum):
    """What a certificate is at some moment; a revoked one counts as revoked also when it has expired."""

    VALID = "valid"
    EXPIRED = "expired"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class CertificateQuery:
    """Which certificates to list, newest first; `cursor` is where the page before ended, "" for the first."""

    spiffe_id: SpiffeId | None = None
    status: CertificateStatus | None = None
    cursor: str = ""
    limit: int = 100


@dataclass(frozen=True, slots=True)
class CertificatePage:
    """Certificates, and the cursor of the next page: "" after the last."""

    certificates: tuple[IssuedCertificate, ...]
    cursor: str = ""


@dataclass(frozen=True, slots=True)
class RevokedSerial:
    """An entry of a CRL."""

    serial: int
    at: datetime
    reason: RevocationReason


@dataclass(frozen=True, slots=True)
class StoredCrl:
    """A signed CRL (DER); `number` rises with each one of an issuer (RFC 5280, 5.2.3).

    `revocations` is what `Ledger.revocations` said before it was built: it lacks those that came later.
    """

    issuer: str
    number: int
    revocations: int
    der: bytes
    this_update: datetime
    next_update: datetime


@dataclass(frozen=True, slots=True)
class Entry:
    """A registration as the ledger keeps it; `entry_id` is unique and chosen by who creates it."""

    entry_id: str
    registration: Registration
    created_at: datetime
    created_by: str = ""


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A one-time token, known by the SHA-256 of its secret (hex) only.

    `spiffe_id` is what the bearer becomes. `token_id` is the start of the hash: a name, not a secret.
    """

    hash: str
    spiffe_id: SpiffeId
    created_at: datetime
    expires_at: datetime
    created_by: str = ""
    used_at: datetime | None = None
    used_by: str = ""

    @property
    def token_id(self) -> str:
        """The token's public name: 16 hex digits."""
        return self.hash[:16]


def token_hash(secret: str) -> str:
    """Return what of a join token's secret is stored: secrets are random, so a plain hash hides them."""
    return hashlib.sha256(secret.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class TokenGrant:
    """What a burnt token entitles its bearer to."""

    token_id: str
    spiffe_id: SpiffeId


class KeyUse(StrEnum):
    """What a signing key of the CA signs."""

    X509 = "x509"
    JWT = "jwt"


class KeyState(StrEnum):
    """Where in its life a signing key is."""

    PREPARED = "prepared"
    ACTIVE = "active"
    OLD = "old"
    TAINTED = "tainted"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class SigningKey:
    """The public part of a signing key: a JWK (JSON) for JWTs, a PEM chain for X.509, root last.

    Of a prepared X.509 key `changed_at` is when its root was published, None before.
    """

    use: KeyUse
    key_id: str
    state: KeyState
    document: str
    created_at: datetime
    not_after: datetime
    changed_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class StateChange:
    """A step of a signing key from `before` to `after`."""

    use: KeyUse
    key_id: str
    before: KeyState
    after: KeyState


class EndpointProfile(StrEnum):
    """How a bundle endpoint proves itself (SPIFFE Federation, section 5.2)."""

    WEB = "https_web"
    SPIFFE = "https_spiffe"


@dataclass(frozen=True, slots=True)
class FederatedBundle:
    """Another trust domain: where its bundle is, and the bundle fetched last (None before the first)."""

    trust_domain: TrustDomain
    url: str
    profile: EndpointProfile
    endpoint_id: SpiffeId | None = None
    document: bytes | None = None
    sequence: int | None = None
    refresh_hint: timedelta | None = None
    fetched_at: datetime | None = None


class Ledger(Protocol):
    """The memory of a CA. Safe to call from several threads; another process may change the same ledger.

    Every method may raise LedgerUnavailableError.
    """

    # Certificates

    def record_issued(self, certificates: Sequence[IssuedCertificate]) -> None:
        """Record certificates, all or none, durable when this returns; only then may they leave.

        Raises:
            LedgerRefusalError: DUPLICATE, one of this issuer and serial number is recorded already.

        """

    def find(
        self, *, serial: int | None = None, fingerprint: str | None = None
    ) -> tuple[IssuedCertificate, ...]:
        """Return the certificates with this serial number (of whichever issuer), or this fingerprint."""

    def issued(self, query: CertificateQuery, *, now: datetime) -> CertificatePage:
        """Return a page of certificates.

        Raises:
            ValueError: the cursor is none of ours, or the limit is not 1 to `MAX_PAGE`.

        """

    def revoke(
        self, issuer: str, serial: int, reason: RevocationReason, *, now: datetime, by: str
    ) -> IssuedCertificate:
        """Revoke a certificate, once.

        Raises:
            LedgerRefusalError: UNKNOWN or ALREADY_REVOKED.

        """

    def revoked(self, issuer: str, *, unexpired_at: datetime) -> Sequence[RevokedSerial]:
        """Return the revoked certificates of an issuer that end after `unexpired_at`."""

    def forget_expired(self, before: datetime, *, most: int, now: datetime, by: str) -> int:
        """Remove the records of certificates that ended before `before`, the oldest `most`; return how many.

        What was revoked is kept: it must be known as such for ever. The audit log has one record that says
        how many, and keeps all that were made when they were issued.

        Raises:
            ValueError: `before` is not before `now`, or `most` is not 1 to `MAX_PAGE`.

        """

    def last_expiry(self, issuer: str) -> datetime | None:
        """Return when the last of the certificates of an issuer ends; None if none is recorded."""

    def revocations(self) -> int:
        """Return a number that rises with each revocation: cheap to ask again and again."""

    def put_crl(self, crl: StoredCrl, *, now: datetime, by: str) -> None:
        """Store a CRL in place of the one before it.

        Raises:
            LedgerRefusalError: STATE_CHANGED, the stored one's number is not `crl.number - 1` (0 if there is
                none): somebody else was faster, and may have known less or more.

        """

    def crl(self, issuer: str) -> StoredCrl | None:
        """Return the CRL of an issuer that was stored last."""

    def crls(self) -> tuple[StoredCrl, ...]:
        """Return the last CRL of each issuer, in the order of their key identifiers."""

    # Registrations

    def add_entry(self, entry: Entry) -> None:
        """Add a registration; its selectors are kept as a set, so they come back sorted.

        Raises:
            LedgerRefusalError: DUPLICATE, the id is taken, or there is one of the same SPIFFE ID, parent and
                selectors.

        """

    def entries(self) -> tuple[Entry, ...]:
        """Return all registrations, oldest first."""

    def delete_entry(self, entry_id: str, *, now: datetime, by: str) -> Entry:
        """Delete a registration.

        Raises:
            LedgerRefusalError: UNKNOWN.

        """

    def entries_version(self) -> int:
        """Return a number that rises whenever registrations change: cheap to ask again and again."""

    # Join tokens

    def add_token(self, token: JoinToken) -> None:
        """Add a token.

        Raises:
            LedgerRefusalError: DUPLICATE.

        """

    def tokens(self) -> tuple[JoinToken, ...]:
        """Return all tokens, also used and expired ones, oldest first."""

    def burn_token(self, token: str, *, now: datetime, by: str) -> TokenGrant:
        """Use up the token with this hash, before anything is signed: one caller gets it, once.

        Raises:
            LedgerRefusalError: TOKEN_UNKNOWN, TOKEN_EXPIRED or TOKEN_USED; the refusal is in the audit log.

        """

    def delete_token(self, token: str, *, now: datetime, by: str) -> JoinToken:
        """Delete the token with this hash.

        Raises:
            LedgerRefusalError: UNKNOWN.

        """

    # Signing keys

    def add_key(self, key: SigningKey, *, by: str) -> None:
        """Add a signing key.

        Raises:
            LedgerRefusalError: DUPLICATE.

        """

    def keys(self, use: KeyUse) -> tuple[SigningKey, ...]:
        """Return the signing keys of a use, oldest first."""

    def change_states(self, changes: Sequence[StateChange], *, now: datetime, by: str) -> None:
        """Make all steps or none.

        Raises:
            LedgerRefusalError: UNKNOWN, or STATE_CHANGED if a key is not in its step's `before`.

        """

    # Bundles

    def publish_bundle(self, digest: str, *, now: datetime, by: str) -> int:
        """Return the sequence number of the published roots and JWT keys, one more if `digest` is new.

        `digest` is any hash of them: the number rises exactly when it differs from the one given last.
        """

    def bundle_sequence(self) -> int:
        """Return the number that `publish_bundle` returned last; 0 before the first."""

    def put_federated(self, bundle: FederatedBundle, *, now: datetime, by: str) -> None:
        """Store what is known of another trust domain, in place of what was."""

    def replace_federated(
        self, before: FederatedBundle | None, after: FederatedBundle, *, now: datetime, by: str
    ) -> None:
        """Store what is known of another trust domain in place of exactly `before` (None: of nothing).

        Raises:
            LedgerRefusalError: STATE_CHANGED, it is not as in `before`, or is gone; DUPLICATE, there is one.

        """

    def federated(self) -> tuple[FederatedBundle, ...]:
        """Return all other trust domains, by name."""

    def delete_federated(self, trust_domain: TrustDomain, *, now: datetime, by: str) -> None:
        """Forget another trust domain.

        Raises:
            LedgerRefusalError: UNKNOWN.

        """

    # The audit log

    def append_audit(self, event: AuditEvent, *, now: datetime, by: str, details: Details) -> AuditHead:
        """Record something that changes nothing here, such as a denial."""

    def audit(self, after: int = 0) -> Iterator[AuditRecord]:
        """Yield the records whose sequence is above `after`, in bounded memory."""

    def audit_head(self) -> AuditHead:
        """Return the last record."""

    def verify_audit(self, anchor: AuditHead | None = None) -> AuditVerdict:
        """Walk the whole log; see `ca.audit.verify_chain`."""

    def close(self) -> None:
        """Give back files and connections."""
