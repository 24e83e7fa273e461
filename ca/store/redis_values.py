"""How values of a ledger are written in Redis: JSON lists, with the position first where there is an order.

Times are microseconds since 1970 (UTC), bytes are base64, a CRL is its list, a newline, and its DER.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from ca.ledger import (
    CertificateKind,
    EndpointProfile,
    Entry,
    FederatedBundle,
    IssuedCertificate,
    JoinToken,
    KeyState,
    KeyUse,
    LedgerUnavailableError,
    Revocation,
    RevocationReason,
    SigningKey,
    StoredCrl,
)
from ca.registration import DEFAULT_JWT_TTL, Registration
from garrison.identity import SpiffeId, TrustDomain

_Value = TypeVar("_Value")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def _reader(read: Callable[[bytes], _Value]) -> Callable[[bytes], _Value]:
    """Return `read`, with what it cannot read as a failure of the ledger: others can write to Redis."""

    @functools.wraps(read)
    def checked(text: bytes) -> _Value:
        try:
            return read(text)
        except (ValueError, TypeError, OverflowError, AttributeError, LookupError, RecursionError) as error:
            raise LedgerUnavailableError(f"the ledger is damaged: {error}") from error

    return checked


def write_certificate(one: IssuedCertificate) -> str:
    """Return a certificate as it is stored."""
    revocation = one.revocation
    return _dumps(
        one.issuer,
        one.serial_text,
        one.kind,
        str(one.spiffe_id),
        number(one.not_before),
        number(one.not_after),
        number(one.issued_at),
        one.requester,
        one.attested_by,
        one.fingerprint,
        *(() if revocation is None else (number(revocation.at), revocation.reason, revocation.by)),
    )


@_reader
def read_certificate(text: bytes) -> IssuedCertificate:
    """Return a certificate that was stored."""
    row = json.loads(text)
    return IssuedCertificate(
        issuer=row[0],
        serial=int(row[1], 16),
        kind=CertificateKind(row[2]),
        spiffe_id=SpiffeId.parse(row[3]),
        not_before=moment(row[4]),
        not_after=moment(row[5]),
        issued_at=moment(row[6]),
        requester=row[7],
        attested_by=row[8],
        fingerprint=row[9],
        revocation=Revocation(moment(row[10]), RevocationReason(row[11]), row[12]) if row[10:] else None,
    )


def write_crl(crl: StoredCrl) -> bytes:
    """Return a CRL as it is stored."""
    about = _dumps(crl.issuer, crl.number, crl.revocations, number(crl.this_update), number(crl.next_update))
    return about.encode() + b"\n" + crl.der


@_reader
def read_crl(text: bytes) -> StoredCrl:
    """Return a CRL that was stored."""
    about, _, der = text.partition(b"\n")
    issuer, number, revocations, this_update, next_update = json.loads(about)
    return StoredCrl(issuer, number, revocations, der, moment(this_update), moment(next_update))


def write_entry(position: int, entry: Entry) -> str:
    """Return a registration as it is stored."""
    registration = entry.registration
    return _dumps(
        position,
        entry.entry_id,
        *_identity_of(registration),
        registration.svid_ttl // _MICROSECOND,
        registration.dns_names,
        [str(domain) for domain in registration.federates_with],
        registration.hint,
        number(entry.created_at),
        entry.created_by,
        registration.jwt_ttl // _MICROSECOND,
    )


@_reader
def read_entry(text: bytes) -> tuple[int, Entry]:
    """Return a registration that was stored, after its position."""
    row = json.loads(text)
    position, entry_id, spiffe_id, parent, selectors, ttl, names, federates, hint, at, by, *rest = row
    # Version 1 of the ledger said nothing of tokens.
    (jwt_ttl,) = (timedelta(microseconds=one) for one in rest) if rest else (DEFAULT_JWT_TTL,)
    registration = Registration.parse(
        spiffe_id,
        selectors,
        timedelta(microseconds=ttl),
        names,
        parent_id=parent or None,
        federates_with=federates,
        jwt_ttl=jwt_ttl,
        hint=hint,
    )
    return position, Entry(entry_id, registration, moment(at), by)


def same_registration(registration: Registration) -> str:
    """Return what two registrations have in common that may not both be there."""
    return hashlib.sha256(_dumps(*_identity_of(registration)).encode()).hexdigest()


def _identity_of(registration: Registration) -> tuple[str, str, list[str]]:
    parent = "" if registration.parent_id is None else str(registration.parent_id)
    return str(registration.spiffe_id), parent, sorted({str(one) for one in registration.selectors})


def write_token(position: int, token: JoinToken) -> str:
    """Return a join token as it is stored."""
    used = () if token.used_at is None else (number(token.used_at), token.used_by)
    return _dumps(
        position,
        token.hash,
        str(token.spiffe_id),
        number(token.created_at),
        number(token.expires_at),
        token.created_by,
        *used,
    )


@_reader
def read_token(text: bytes) -> tuple[int, JoinToken]:
    """Return a join token that was stored, after its position."""
    row = json.loads(text)
    token = JoinToken(
        hash=row[1],
        spiffe_id=SpiffeId.parse(row[2]),
        created_at=moment(row[3]),
        expires_at=moment(row[4]),
        created_by=row[5],
        used_at=moment(row[6]) if row[6:] else None,
        used_by=row[7] if row[6:] else "",
    )
    return row[0], token


def write_key(position: int, key: SigningKey) -> str:
    """Return a signing key as it is stored."""
    return _dumps(
        position,
        key.use,
        key.key_id,
        key.state,
        key.document,
        number(key.created_at),
        number(key.not_after),
        None if key.changed_at is None else number(key.changed_at),
    )


@_reader
def read_key(text: bytes) -> tuple[int, SigningKey]:
    """Return a signing key that was stored, after its position."""
    position, use, key_id, state, document, created_at, not_after, changed_at = json.loads(text)
    key = SigningKey(
        KeyUse(use),
        key_id,
        KeyState(state),
        document,
        moment(created_at),
        moment(not_after),
        None if changed_at is None else moment(changed_at),
    )
    return position, key


def write_federated(bundle: FederatedBundle) -> str:
    """Return another trust domain as it is stored."""
    return _dumps(
        str(bundle.trust_domain),
        bundle.url,
        bundle.profile,
        None if bundle.endpoint_id is None else str(bundle.endpoint_id),
        None if bundle.document is None else base64.b64encode(bundle.document).decode(),
        bundle.sequence,
        None if bundle.refresh_hint is None else bundle.refresh_hint // _MICROSECOND,
        None if bundle.fetched_at is None else number(bundle.fetched_at),
    )


@_reader
def read_federated(text: bytes) -> FederatedBundle:
    """Return another trust domain that was stored."""
    domain, url, profile, endpoint_id, document, sequence, hint, fetched_at = json.loads(text)
    return FederatedBundle(
        trust_domain=TrustDomain.parse(domain),
        url=url,
        profile=EndpointProfile(profile),
        endpoint_id=None if endpoint_id is None else SpiffeId.parse(endpoint_id),
        document=None if document is None else base64.b64decode(document, validate=True),
        sequence=sequence,
        refresh_hint=None if hint is None else timedelta(microseconds=hint),
        fetched_at=None if fetched_at is None else moment(fetched_at),
    )


def _dumps(*row: Any) -> str:
    return json.dumps(row, separators=(",", ":"))


def number(at: datetime) -> int:
    """Return a moment as it is stored."""
    return (at - _EPOCH) // _MICROSECOND


def moment(microseconds: int) -> datetime:
    """Return a moment that was stored."""
    return _EPOCH + timedelta(microseconds=microseconds)
