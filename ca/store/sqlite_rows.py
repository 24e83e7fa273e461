"""How values of a ledger are written in SQLite: rows of the tables in `ca.store.schema`."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from ca.audit import AuditRecord
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
    RevokedSerial,
    SigningKey,
    StoredCrl,
)
from ca.registration import Registration
from garrison.identity import SpiffeId, TrustDomain

_Value = TypeVar("_Value")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_SERIAL_BYTES = 20
_REASONS = {reason.value: reason for reason in RevocationReason}


def number(moment: datetime) -> int:
    """Return a moment as it is stored."""
    return (moment - _EPOCH) // _MICROSECOND


def moment(number: int) -> datetime:
    """Return a moment that was stored."""
    return _EPOCH + timedelta(microseconds=number)


def optional(number: int | None) -> datetime | None:
    """Return a moment that may not be there."""
    return None if number is None else moment(number)


def serial_bytes(serial: int) -> bytes:
    """Return a serial number as it is stored, whoever asks for it."""
    # What has more bytes is nobody's serial number, and is found nowhere.
    return serial.to_bytes(_SERIAL_BYTES) if 0 <= serial < 1 << 8 * _SERIAL_BYTES else b""


def hex_bytes(text: str) -> bytes:
    """Return what `text` spells in hex; what spells nothing is found nowhere."""
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""


def _reader(parse: Callable[[Sequence[Any]], _Value]) -> Callable[[Sequence[Any]], _Value]:
    """Return `parse`, with what it cannot read as a failure of the ledger: others can write to a file."""

    @functools.wraps(parse)
    def checked(row: Sequence[Any]) -> _Value:
        try:
            return parse(row)
        except (ValueError, TypeError, KeyError, OverflowError, AttributeError) as error:
            raise LedgerUnavailableError(f"the ledger is damaged: {error}") from error

    return checked


def write_certificate(one: IssuedCertificate) -> tuple[Any, ...]:
    """Return a certificate as it is stored."""
    revocation = one.revocation
    return (
        bytes.fromhex(one.issuer),
        one.serial.to_bytes(_SERIAL_BYTES),
        one.kind,
        str(one.spiffe_id),
        number(one.not_before),
        number(one.not_after),
        number(one.issued_at),
        one.requester,
        one.attested_by,
        bytes.fromhex(one.fingerprint),
        *((None,) * 3 if revocation is None else (number(revocation.at), revocation.reason, revocation.by)),
    )


def write_record(record: AuditRecord) -> tuple[Any, ...]:
    """Return a record of the audit log as it is stored."""
    return (
        record.sequence,
        record.previous,
        record.time,
        record.event,
        record.actor,
        record.details,
        record.hash,
    )


def write_crl(crl: StoredCrl) -> tuple[Any, ...]:
    """Return a CRL as it is stored."""
    return (
        hex_bytes(crl.issuer),
        crl.number,
        crl.revocations,
        crl.der,
        number(crl.this_update),
        number(crl.next_update),
    )


def write_entry(entry: Entry) -> tuple[Any, ...]:
    """Return a registration as it is stored."""
    registration = entry.registration
    return (
        entry.entry_id,
        str(registration.spiffe_id),
        "" if registration.parent_id is None else str(registration.parent_id),
        json.dumps(sorted({str(selector) for selector in registration.selectors})),
        registration.svid_ttl // _MICROSECOND,
        json.dumps(registration.dns_names),
        json.dumps([str(domain) for domain in registration.federates_with]),
        registration.hint,
        number(entry.created_at),
        entry.created_by,
        registration.jwt_ttl // _MICROSECOND,
    )


def write_token(token: JoinToken) -> tuple[Any, ...]:
    """Return a join token as it is stored."""
    return (
        hex_bytes(token.hash),
        str(token.spiffe_id),
        number(token.created_at),
        number(token.expires_at),
        token.created_by,
        *((None, None) if token.used_at is None else (number(token.used_at), token.used_by)),
    )


def write_key(key: SigningKey) -> tuple[Any, ...]:
    """Return a signing key as it is stored."""
    return (
        key.use,
        key.key_id,
        key.state,
        key.document,
        number(key.created_at),
        number(key.not_after),
        None if key.changed_at is None else number(key.changed_at),
    )


def write_federated(bundle: FederatedBundle) -> tuple[Any, ...]:
    """Return another trust domain as it is stored."""
    return (
        str(bundle.trust_domain),
        bundle.url,
        bundle.profile,
        None if bundle.endpoint_id is None else str(bundle.endpoint_id),
        bundle.document,
        bundle.sequence,
        None if bundle.refresh_hint is None else bundle.refresh_hint // _MICROSECOND,
        None if bundle.fetched_at is None else number(bundle.fetched_at),
    )


@_reader
def read_certificate(row: Sequence[Any]) -> IssuedCertificate:
    """Return a certificate that was stored."""
    return IssuedCertificate(
        serial=int.from_bytes(row[1]),
        issuer=row[0].hex(),
        kind=CertificateKind(row[2]),
        spiffe_id=SpiffeId.parse(row[3]),
        not_before=moment(row[4]),
        not_after=moment(row[5]),
        issued_at=moment(row[6]),
        requester=row[7],
        attested_by=row[8],
        fingerprint=row[9].hex(),
        revocation=None
        if row[10] is None
        else Revocation(moment(row[10]), RevocationReason(row[11]), row[12]),
    )


@_reader
def read_revoked(rows: Sequence[Any]) -> list[RevokedSerial]:
    """Return the entries of a CRL that were stored."""
    # Many are revoked at one moment, and making one is what takes the time.
    at_moment = functools.lru_cache(maxsize=1024)(moment)
    return [
        RevokedSerial(int.from_bytes(serial), at_moment(at), _REASONS[reason]) for serial, at, reason in rows
    ]


@_reader
def read_crl(row: Sequence[Any]) -> StoredCrl:
    """Return a CRL that was stored."""
    return StoredCrl(row[0].hex(), row[1], row[2], row[3], moment(row[4]), moment(row[5]))


@_reader
def read_entry(row: Sequence[Any]) -> Entry:
    """Return a registration that was stored."""
    return Entry(
        row[0],
        Registration.parse(
            row[1],
            json.loads(row[3]),
            timedelta(microseconds=row[4]),
            json.loads(row[5]),
            parent_id=row[2] or None,
            federates_with=json.loads(row[6]),
            jwt_ttl=timedelta(microseconds=row[10]),
            hint=row[7],
        ),
        moment(row[8]),
        row[9],
    )


@_reader
def read_token(row: Sequence[Any]) -> JoinToken:
    """Return a join token that was stored."""
    return JoinToken(
        hash=row[0].hex(),
        spiffe_id=SpiffeId.parse(row[1]),
        created_at=moment(row[2]),
        expires_at=moment(row[3]),
        created_by=row[4],
        used_at=optional(row[5]),
        used_by=row[6] or "",
    )


@_reader
def read_key(row: Sequence[Any]) -> SigningKey:
    """Return a signing key that was stored."""
    return SigningKey(
        KeyUse(row[0]), row[1], KeyState(row[2]), row[3], moment(row[4]), moment(row[5]), optional(row[6])
    )


@_reader
def read_federated(row: Sequence[Any]) -> FederatedBundle:
    """Return another trust domain that was stored."""
    return FederatedBundle(
        trust_domain=TrustDomain.parse(row[0]),
        url=row[1],
        profile=EndpointProfile(row[2]),
        endpoint_id=None if row[3] is None else SpiffeId.parse(row[3]),
        document=row[4],
        sequence=row[5],
        refresh_hint=None if row[6] is None else timedelta(microseconds=row[6]),
        fetched_at=optional(row[7]),
    )
