"""The ledger in a SQLite file: for one machine, with any number of processes."""

from __future__ import annotations

import functools
import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from ca.audit import AuditEvent, AuditHead, AuditRecord, AuditVerdict, Details, verify_chain
from ca.ledger import (
    MAX_PAGE,
    CertificateKind,
    CertificatePage,
    CertificateQuery,
    CertificateStatus,
    EndpointProfile,
    Entry,
    FederatedBundle,
    IssuedCertificate,
    JoinToken,
    KeyState,
    KeyUse,
    LedgerRefusalError,
    LedgerUnavailableError,
    Revocation,
    RevocationReason,
    RevokedSerial,
    SigningKey,
    StateChange,
    StoredCrl,
    TokenGrant,
)
from ca.registration import Registration
from ca.store import details
from ca.store.contents import Contents
from ca.store.database import Database
from ca.store.rereading import Rereading
from ca.store.schema import STEPS
from garrison.identity import SpiffeId, TrustDomain

LEDGER = "ledger.sqlite3"

_Value = TypeVar("_Value")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_SERIAL_BYTES = 20
_MOST_ROWS = 64
_AUDIT_CHUNK = 1000
_CERTIFICATE = (
    "issuer, serial, kind, spiffe_id, not_before, not_after, issued_at, requester, attested_by, fingerprint,"
    " revoked_at, reason, revoked_by"
)
_CRL = "issuer, number, revocations, der, this_update, next_update"
_TOKEN = "hash, spiffe_id, created_at, expires_at, created_by, used_at, used_by"
_INSERT_ENTRY = "INSERT INTO entries VALUES (NULL,?,?,?,?,?,?,?,?,?,?)"
_ENTRY = (
    "entry_id, spiffe_id, parent_id, selectors, svid_ttl, dns_names, federates_with, hint, created_at,"
    " created_by"
)
_INSERT_TOKEN = f"INSERT INTO tokens ({_TOKEN}) VALUES (?,?,?,?,?,?,?)"
_INSERT_KEY = "INSERT INTO signing_keys VALUES (NULL,?,?,?,?,?,?,?)"
_INSERT_RECORD = "INSERT INTO audit VALUES (?,?,?,?,?,?,?)"
_PUT_CRL = f"INSERT OR REPLACE INTO crls ({_CRL}) VALUES (?,?,?,?,?,?)"
_PUT_FEDERATED = "INSERT OR REPLACE INTO federated VALUES (?,?,?,?,?,?,?,?)"
_REASONS = {reason.value: reason for reason in RevocationReason}
_STATUS = {
    CertificateStatus.VALID: "revoked_at IS NULL AND not_after > :now",
    CertificateStatus.EXPIRED: "revoked_at IS NULL AND not_after <= :now",
    CertificateStatus.REVOKED: "revoked_at IS NOT NULL",
}


class SqliteLedger:
    """A `ca.ledger.Ledger` in the file `ledger.sqlite3` of a CA's directory."""

    def __init__(self, path: Path) -> None:
        """Open the ledger, a new one if there is none.

        Raises:
            ConfigError: the file is no ledger, is from a newer version, or others can write to it.
            LedgerUnavailableError: it cannot be opened or written now.

        """
        self._database = Database(path, STEPS)
        self._entries = Rereading(_entry)

    @classmethod
    def of(cls, directory: Path) -> SqliteLedger:
        """Return the ledger of the CA in `directory`; see the constructor."""
        return cls(directory / LEDGER)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def load(self, contents: Contents) -> None:
        """Take over `contents` into a ledger with nothing in it, in one transaction.

        Raises:
            LedgerUnavailableError: it cannot be written.

        """
        with self._database.writing() as connection:
            rows = ((number, *_certificate_row(one)) for number, one in contents.certificates())
            connection.executemany(
                f"INSERT INTO certificates (position, {_CERTIFICATE}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                rows,
            )
            connection.executemany(_INSERT_RECORD, map(_record_row, contents.records()))
            connection.executemany(_INSERT_ENTRY, map(_entry_row, contents.entries))
            connection.executemany(_INSERT_TOKEN, map(_token_row, contents.tokens))
            connection.executemany(_INSERT_KEY, map(_key_row, contents.keys))
            connection.executemany(_PUT_CRL, map(_crl_row, contents.crls))
            connection.executemany(_PUT_FEDERATED, map(_federated_row, contents.federated))
            for name, value, digest in (
                ("entries", contents.entries_version, ""),
                ("revocations", contents.revocations, ""),
                ("bundle", contents.bundle_sequence, contents.bundle_digest),
            ):
                connection.execute(
                    "UPDATE counters SET value = ?, digest = ? WHERE name = ?", (value, digest, name)
                )

    # Certificates

    def record_issued(self, certificates: Sequence[IssuedCertificate]) -> None:
        """See `Ledger`: one transaction, so one flush to disk for all of them."""
        with self._database.writing() as connection:
            log = _Log(connection)
            for chunk in _chunks(certificates):
                try:
                    connection.execute(
                        f"INSERT INTO certificates ({_CERTIFICATE}) VALUES {_places(len(chunk), 13)}",
                        [value for one in chunk for value in _certificate_row(one)],
                    )
                except sqlite3.IntegrityError as error:
                    raise details.serial_refusal(chunk[0] if len(chunk) == 1 else None) from error
                log.append_issued(chunk)

    def find(
        self, *, serial: int | None = None, fingerprint: str | None = None
    ) -> tuple[IssuedCertificate, ...]:
        """See `Ledger`."""
        if serial is not None:
            where, value = "serial", _serial_bytes(serial)
        elif fingerprint is not None:
            where, value = "fingerprint", _hex_bytes(fingerprint)
        else:
            return ()
        with self._database.reading() as connection:
            rows = connection.execute(f"SELECT {_CERTIFICATE} FROM certificates WHERE {where} = ?", (value,))
            return tuple(_certificate(row) for row in rows)

    def issued(self, query: CertificateQuery, *, now: datetime) -> CertificatePage:
        """See `Ledger`."""
        if not 1 <= query.limit <= MAX_PAGE:
            raise ValueError(f"a page has 1 to {MAX_PAGE} certificates, not {query.limit}")
        if not (query.cursor.isascii() and query.cursor.isdigit()) and query.cursor:
            raise ValueError(f"`{query.cursor}` is not where a page ended")
        conditions = ["position < :before"] if query.cursor else []
        if query.spiffe_id is not None:
            conditions.append("spiffe_id = :spiffe_id")
        if query.status is not None:
            conditions.append(_STATUS[query.status])
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        values = {
            "before": min(int(query.cursor or 0), 2**63 - 1),
            "spiffe_id": str(query.spiffe_id),
            "now": _number(now),
            "limit": query.limit + 1,
        }
        with self._database.reading() as connection:
            rows = connection.execute(
                f"SELECT {_CERTIFICATE}, position FROM certificates {where}"
                " ORDER BY position DESC LIMIT :limit",
                values,
            ).fetchall()
        cursor = str(rows[query.limit - 1][-1]) if len(rows) > query.limit else ""
        return CertificatePage(tuple(_certificate(row[:-1]) for row in rows[: query.limit]), cursor)

    def revoke(
        self, issuer: str, serial: int, reason: RevocationReason, *, now: datetime, by: str
    ) -> IssuedCertificate:
        """See `Ledger`."""
        key = (_serial_bytes(serial), _hex_bytes(issuer))
        with self._database.writing() as connection:
            row = connection.execute(
                f"SELECT {_CERTIFICATE} FROM certificates WHERE serial = ? AND issuer = ?", key
            ).fetchone()
            if row is None:
                raise details.unknown_certificate(issuer, serial)
            found = _certificate(row)
            if found.revocation is not None:
                raise details.revoked_already(serial, found.revocation)
            connection.execute(
                "UPDATE certificates SET revoked_at = ?, reason = ?, revoked_by = ?"
                " WHERE serial = ? AND issuer = ?",
                (_number(now), reason, by, *key),
            )
            _count(connection, "revocations")
            _Log(connection).append(
                AuditEvent.CERTIFICATE_REVOKED,
                now=now,
                by=by,
                details=details.of_revoked(found, reason),
            )
            row = connection.execute(
                f"SELECT {_CERTIFICATE} FROM certificates WHERE serial = ? AND issuer = ?", key
            ).fetchone()
            return _certificate(row)

    def revoked(self, issuer: str, *, unexpired_at: datetime) -> Sequence[RevokedSerial]:
        """See `Ledger`."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT serial, revoked_at, reason FROM certificates"
                " WHERE revoked_at IS NOT NULL AND issuer = ? AND not_after > ? ORDER BY revoked_at, serial",
                (_hex_bytes(issuer), _number(unexpired_at)),
            )
            return _revoked(rows.fetchall())

    def last_expiry(self, issuer: str) -> datetime | None:
        """See `Ledger`."""
        with self._database.reading() as connection:
            (value,) = connection.execute(
                "SELECT max(not_after) FROM certificates WHERE issuer = ?", (_hex_bytes(issuer),)
            ).fetchone()
        return _optional(value)

    def revocations(self) -> int:
        """See `Ledger`."""
        return self._counter("revocations")

    def put_crl(self, crl: StoredCrl, *, now: datetime, by: str) -> None:
        """See `Ledger`."""
        key = _hex_bytes(crl.issuer)
        with self._database.writing() as connection:
            row = connection.execute("SELECT number FROM crls WHERE issuer = ?", (key,)).fetchone()
            stored = row[0] if row else 0
            if stored != crl.number - 1:
                raise details.crl_refusal(crl, stored)
            connection.execute(_PUT_CRL, _crl_row(crl))
            _Log(connection).append(AuditEvent.CRL_PUBLISHED, now=now, by=by, details=details.of_crl(crl))

    def crl(self, issuer: str) -> StoredCrl | None:
        """See `Ledger`."""
        with self._database.reading() as connection:
            row = connection.execute(
                f"SELECT {_CRL} FROM crls WHERE issuer = ?", (_hex_bytes(issuer),)
            ).fetchone()
        return _crl(row) if row else None

    def crls(self) -> tuple[StoredCrl, ...]:
        """See `Ledger`."""
        with self._database.reading() as connection:
            rows = connection.execute(f"SELECT {_CRL} FROM crls ORDER BY issuer").fetchall()
        return tuple(_crl(row) for row in rows)

    # Registrations

    def add_entry(self, entry: Entry) -> None:
        """See `Ledger`."""
        with self._database.writing() as connection:
            try:
                connection.execute(_INSERT_ENTRY, _entry_row(entry))
            except sqlite3.IntegrityError as error:
                raise details.entry_refusal(entry) from error
            _count(connection, "entries")
            _Log(connection).append(
                AuditEvent.ENTRY_CREATED,
                now=entry.created_at,
                by=entry.created_by,
                details=details.of_entry(entry),
            )

    def entries(self) -> tuple[Entry, ...]:
        """See `Ledger`."""
        with self._database.reading() as connection:
            rows = connection.execute(f"SELECT {_ENTRY} FROM entries ORDER BY position").fetchall()
        return self._entries.values(rows)

    def delete_entry(self, entry_id: str, *, now: datetime, by: str) -> Entry:
        """See `Ledger`."""
        with self._database.writing() as connection:
            row = connection.execute(
                "DELETE FROM entries WHERE entry_id = ? RETURNING *", (entry_id,)
            ).fetchone()
            if row is None:
                raise details.unknown_entry(entry_id)
            _count(connection, "entries")
            about = {"entry": entry_id, "spiffe_id": str(row[2])}
            _Log(connection).append(AuditEvent.ENTRY_DELETED, now=now, by=by, details=about)
            return _entry(row[1:])

    def entries_version(self) -> int:
        """See `Ledger`."""
        return self._counter("entries")

    # Join tokens

    def add_token(self, token: JoinToken) -> None:
        """See `Ledger`."""
        with self._database.writing() as connection:
            try:
                connection.execute(_INSERT_TOKEN, _token_row(token))
            except sqlite3.IntegrityError as error:
                raise details.token_duplicate() from error
            _Log(connection).append(
                AuditEvent.TOKEN_CREATED,
                now=token.created_at,
                by=token.created_by,
                details=details.of_token(token),
            )

    def tokens(self) -> tuple[JoinToken, ...]:
        """See `Ledger`."""
        with self._database.reading() as connection:
            rows = connection.execute(f"SELECT {_TOKEN} FROM tokens ORDER BY position").fetchall()
        return tuple(_token(row) for row in rows)

    def burn_token(self, token: str, *, now: datetime, by: str) -> TokenGrant:
        """See `Ledger`."""
        key = _hex_bytes(token)
        with self._database.writing() as connection:
            # Decides alone: whatever is read before or after is for the message.
            row = connection.execute(
                "UPDATE tokens SET used_at = :now, used_by = :by"
                " WHERE hash = :hash AND used_at IS NULL AND expires_at > :now RETURNING spiffe_id",
                {"now": _number(now), "by": by, "hash": key},
            ).fetchone()
            outcome: SpiffeId | LedgerRefusalError
            if row is None:
                found = connection.execute(f"SELECT {_TOKEN} FROM tokens WHERE hash = ?", (key,)).fetchone()
                outcome = details.token_refusal(_token(found) if found else None)
            else:
                outcome = SpiffeId.parse(row[0])
            event = AuditEvent.TOKEN_BURNED if row else AuditEvent.TOKEN_REFUSED
            about = details.of_burn(token, outcome)
            _Log(connection).append(event, now=now, by=by, details=about)
        if isinstance(outcome, LedgerRefusalError):
            raise outcome
        return TokenGrant(token[:16], outcome)

    def delete_token(self, token: str, *, now: datetime, by: str) -> JoinToken:
        """See `Ledger`."""
        with self._database.writing() as connection:
            row = connection.execute(
                f"DELETE FROM tokens WHERE hash = ? RETURNING {_TOKEN}", (_hex_bytes(token),)
            ).fetchone()
            if row is None:
                raise details.unknown_token(token)
            _Log(connection).append(
                AuditEvent.TOKEN_DELETED, now=now, by=by, details={"spiffe_id": row[1], "token": token[:16]}
            )
            return _token(row)

    # Signing keys

    def add_key(self, key: SigningKey, *, by: str) -> None:
        """See `Ledger`."""
        with self._database.writing() as connection:
            try:
                connection.execute(_INSERT_KEY, _key_row(key))
            except sqlite3.IntegrityError as error:
                raise details.key_refusal(key) from error
            _Log(connection).append(
                AuditEvent.KEY_ADDED,
                now=key.created_at,
                by=by,
                details=details.of_key(key),
            )

    def keys(self, use: KeyUse) -> tuple[SigningKey, ...]:
        """See `Ledger`."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT * FROM signing_keys WHERE use = ? ORDER BY position", (use,)
            ).fetchall()
        return tuple(_signing_key(row[1:]) for row in rows)

    def change_states(self, changes: Sequence[StateChange], *, now: datetime, by: str) -> None:
        """See `Ledger`."""
        with self._database.writing() as connection:
            log = _Log(connection)
            for change in changes:
                changed = connection.execute(
                    "UPDATE signing_keys SET state = ?, changed_at = ?"
                    " WHERE use = ? AND key_id = ? AND state = ?",
                    (change.after, _number(now), change.use, change.key_id, change.before),
                ).rowcount
                if not changed:
                    raise _state_refusal(connection, change)
                log.append(
                    AuditEvent.KEY_STATE_CHANGED,
                    now=now,
                    by=by,
                    details=details.of_state(change),
                )

    # Bundles

    def publish_bundle(self, digest: str, *, now: datetime, by: str) -> int:
        """See `Ledger`."""
        with self._database.writing() as connection:
            sequence, known = connection.execute(
                "SELECT value, digest FROM counters WHERE name = 'bundle'"
            ).fetchone()
            if known == digest:
                return int(sequence)
            sequence = _count(connection, "bundle", digest)
            _Log(connection).append(
                AuditEvent.BUNDLE_CHANGED, now=now, by=by, details={"digest": digest, "sequence": sequence}
            )
            return sequence

    def bundle_sequence(self) -> int:
        """See `Ledger`."""
        return self._counter("bundle")

    def put_federated(self, bundle: FederatedBundle, *, now: datetime, by: str) -> None:
        """See `Ledger`."""
        with self._database.writing() as connection:
            _put_federated(
                connection, _federated_before(connection, bundle.trust_domain), bundle, now=now, by=by
            )

    def replace_federated(
        self, before: FederatedBundle | None, after: FederatedBundle, *, now: datetime, by: str
    ) -> None:
        """See `Ledger`."""
        name = after.trust_domain
        with self._database.writing() as connection:
            row = _federated_before(connection, name)
            if before is None and row is not None:
                raise details.federation_duplicate(name)
            if (None if row is None else _federated(row)) != before:
                raise details.federation_changed(name)
            _put_federated(connection, row, after, now=now, by=by)

    def federated(self) -> tuple[FederatedBundle, ...]:
        """See `Ledger`."""
        with self._database.reading() as connection:
            rows = connection.execute("SELECT * FROM federated ORDER BY trust_domain").fetchall()
        return tuple(_federated(row) for row in rows)

    def delete_federated(self, trust_domain: TrustDomain, *, now: datetime, by: str) -> None:
        """See `Ledger`."""
        with self._database.writing() as connection:
            name = str(trust_domain)
            if not connection.execute("DELETE FROM federated WHERE trust_domain = ?", (name,)).rowcount:
                raise details.unknown_domain(name)
            about = {"trust_domain": name}
            _Log(connection).append(AuditEvent.FEDERATION_DELETED, now=now, by=by, details=about)

    # The audit log

    def append_audit(self, event: AuditEvent, *, now: datetime, by: str, details: Details) -> AuditHead:
        """See `Ledger`."""
        with self._database.writing() as connection:
            return _Log(connection).append(event, now=now, by=by, details=details)

    def audit(self, after: int = 0) -> Iterator[AuditRecord]:
        """See `Ledger`."""
        while True:
            with self._database.reading() as connection:
                rows = connection.execute(
                    "SELECT sequence, previous, time, event, actor, details, hash FROM audit"
                    " WHERE sequence > ? ORDER BY sequence LIMIT ?",
                    (after, _AUDIT_CHUNK),
                ).fetchall()
            if not rows:
                return
            for row in rows:
                yield AuditRecord(*row)
            after = rows[-1][0]

    def audit_head(self) -> AuditHead:
        """See `Ledger`."""
        with self._database.reading() as connection:
            return _head(connection)

    def verify_audit(self, anchor: AuditHead | None = None) -> AuditVerdict:
        """See `Ledger`."""
        return verify_chain(self.audit(-(2**63)), anchor)

    def _counter(self, name: str) -> int:
        with self._database.reading() as connection:
            (value,) = connection.execute("SELECT value FROM counters WHERE name = ?", (name,)).fetchone()
            return int(value)


class _Log:
    """Appends to the audit log within a transaction, which holds everybody else off."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._head = _head(connection)

    def append(self, event: AuditEvent, *, now: datetime, by: str, details: Details) -> AuditHead:
        self._insert([self._next(event, now=now, by=by, details=details)])
        return self._head

    def append_issued(self, certificates: Sequence[IssuedCertificate]) -> None:
        self._insert(
            [
                self._next(
                    AuditEvent.CERTIFICATE_ISSUED,
                    now=one.issued_at,
                    by=one.requester,
                    details=details.of_issued(one),
                )
                for one in certificates
            ]
        )

    def _next(self, event: AuditEvent, *, now: datetime, by: str, details: Details) -> AuditRecord:
        record = AuditRecord.after(self._head, event, actor=by, details=details, now=now)
        self._head = record.head
        return record

    def _insert(self, records: Sequence[AuditRecord]) -> None:
        self._connection.execute(
            f"INSERT INTO audit VALUES {_places(len(records), 7)}",
            [
                value
                for record in records
                for value in (
                    record.sequence,
                    record.previous,
                    record.time,
                    record.event,
                    record.actor,
                    record.details,
                    record.hash,
                )
            ],
        )


def _chunks(certificates: Sequence[IssuedCertificate]) -> Iterator[Sequence[IssuedCertificate]]:
    """Yield parts of 64, 32, 16, … certificates: few statements, which stay prepared.

    Each statement gives other threads a turn and has to wait for its own again; one for each row would make
    a busy server spend more on that than on the rows.
    """
    size, at = _MOST_ROWS, 0
    while at < len(certificates):
        while size > len(certificates) - at:
            size //= 2
        yield certificates[at : at + size]
        at += size


@functools.lru_cache(maxsize=32)
def _places(rows: int, columns: int) -> str:
    """Return what stands for the values of so many rows."""
    return ",".join([f"({','.join('?' * columns)})"] * rows)


def _head(connection: sqlite3.Connection) -> AuditHead:
    row = connection.execute("SELECT sequence, hash FROM audit ORDER BY sequence DESC LIMIT 1").fetchone()
    return AuditHead(*row) if row else AuditHead()


def _count(connection: sqlite3.Connection, name: str, digest: str = "") -> int:
    (value,) = connection.execute(
        "UPDATE counters SET value = value + 1, digest = ? WHERE name = ? RETURNING value", (digest, name)
    ).fetchone()
    return int(value)


def _state_refusal(connection: sqlite3.Connection, change: StateChange) -> LedgerRefusalError:
    row = connection.execute(
        "SELECT state FROM signing_keys WHERE use = ? AND key_id = ?", (change.use, change.key_id)
    ).fetchone()
    return details.state_refusal(change, row and KeyState(row[0]))


def _number(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def _moment(number: int) -> datetime:
    return _EPOCH + timedelta(microseconds=number)


def _optional(number: int | None) -> datetime | None:
    return None if number is None else _moment(number)


def _serial_bytes(serial: int) -> bytes:
    # What has more bytes is nobody's serial number, and is found nowhere.
    return serial.to_bytes(_SERIAL_BYTES) if 0 <= serial < 1 << 8 * _SERIAL_BYTES else b""


def _hex_bytes(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""


def _parser(parse: Callable[[Sequence[Any]], _Value]) -> Callable[[Sequence[Any]], _Value]:
    """Return `parse`, with what it cannot read as a failure of the ledger: others can write to a file."""

    @functools.wraps(parse)
    def checked(row: Sequence[Any]) -> _Value:
        try:
            return parse(row)
        except (ValueError, TypeError, KeyError, OverflowError, AttributeError) as error:
            raise LedgerUnavailableError(f"the ledger is damaged: {error}") from error

    return checked


def _certificate_row(one: IssuedCertificate) -> tuple[Any, ...]:
    revocation = one.revocation
    return (
        bytes.fromhex(one.issuer),
        one.serial.to_bytes(_SERIAL_BYTES),
        one.kind,
        str(one.spiffe_id),
        _number(one.not_before),
        _number(one.not_after),
        _number(one.issued_at),
        one.requester,
        one.attested_by,
        bytes.fromhex(one.fingerprint),
        *((None,) * 3 if revocation is None else (_number(revocation.at), revocation.reason, revocation.by)),
    )


def _record_row(record: AuditRecord) -> tuple[Any, ...]:
    return (
        record.sequence,
        record.previous,
        record.time,
        record.event,
        record.actor,
        record.details,
        record.hash,
    )


def _crl_row(crl: StoredCrl) -> tuple[Any, ...]:
    return (
        _hex_bytes(crl.issuer),
        crl.number,
        crl.revocations,
        crl.der,
        _number(crl.this_update),
        _number(crl.next_update),
    )


def _entry_row(entry: Entry) -> tuple[Any, ...]:
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
        _number(entry.created_at),
        entry.created_by,
    )


def _token_row(token: JoinToken) -> tuple[Any, ...]:
    return (
        _hex_bytes(token.hash),
        str(token.spiffe_id),
        _number(token.created_at),
        _number(token.expires_at),
        token.created_by,
        *((None, None) if token.used_at is None else (_number(token.used_at), token.used_by)),
    )


def _key_row(key: SigningKey) -> tuple[Any, ...]:
    return (
        key.use,
        key.key_id,
        key.state,
        key.document,
        _number(key.created_at),
        _number(key.not_after),
        None if key.changed_at is None else _number(key.changed_at),
    )


def _federated_row(bundle: FederatedBundle) -> tuple[Any, ...]:
    return (
        str(bundle.trust_domain),
        bundle.url,
        bundle.profile,
        None if bundle.endpoint_id is None else str(bundle.endpoint_id),
        bundle.document,
        bundle.sequence,
        None if bundle.refresh_hint is None else bundle.refresh_hint // _MICROSECOND,
        None if bundle.fetched_at is None else _number(bundle.fetched_at),
    )


@_parser
def _certificate(row: Sequence[Any]) -> IssuedCertificate:
    return IssuedCertificate(
        serial=int.from_bytes(row[1]),
        issuer=row[0].hex(),
        kind=CertificateKind(row[2]),
        spiffe_id=SpiffeId.parse(row[3]),
        not_before=_moment(row[4]),
        not_after=_moment(row[5]),
        issued_at=_moment(row[6]),
        requester=row[7],
        attested_by=row[8],
        fingerprint=row[9].hex(),
        revocation=None
        if row[10] is None
        else Revocation(_moment(row[10]), RevocationReason(row[11]), row[12]),
    )


@_parser
def _revoked(rows: Sequence[Any]) -> list[RevokedSerial]:
    # Many are revoked at one moment, and making one is what takes the time.
    moment = functools.lru_cache(maxsize=1024)(_moment)
    return [
        RevokedSerial(int.from_bytes(serial), moment(at), _REASONS[reason]) for serial, at, reason in rows
    ]


@_parser
def _crl(row: Sequence[Any]) -> StoredCrl:
    return StoredCrl(row[0].hex(), row[1], row[2], row[3], _moment(row[4]), _moment(row[5]))


@_parser
def _entry(row: Sequence[Any]) -> Entry:
    return Entry(
        row[0],
        Registration.parse(
            row[1],
            json.loads(row[3]),
            timedelta(microseconds=row[4]),
            json.loads(row[5]),
            parent_id=row[2] or None,
            federates_with=json.loads(row[6]),
            hint=row[7],
        ),
        _moment(row[8]),
        row[9],
    )


@_parser
def _token(row: Sequence[Any]) -> JoinToken:
    return JoinToken(
        hash=row[0].hex(),
        spiffe_id=SpiffeId.parse(row[1]),
        created_at=_moment(row[2]),
        expires_at=_moment(row[3]),
        created_by=row[4],
        used_at=_optional(row[5]),
        used_by=row[6] or "",
    )


@_parser
def _signing_key(row: Sequence[Any]) -> SigningKey:
    return SigningKey(
        KeyUse(row[0]), row[1], KeyState(row[2]), row[3], _moment(row[4]), _moment(row[5]), _optional(row[6])
    )


def _federated_before(connection: sqlite3.Connection, trust_domain: TrustDomain) -> tuple[Any, ...] | None:
    found: tuple[Any, ...] | None = connection.execute(
        "SELECT * FROM federated WHERE trust_domain = ?", (str(trust_domain),)
    ).fetchone()
    return found


def _put_federated(
    connection: sqlite3.Connection,
    before: tuple[Any, ...] | None,
    bundle: FederatedBundle,
    *,
    now: datetime,
    by: str,
) -> None:
    row = _federated_row(bundle)
    connection.execute(_PUT_FEDERATED, row)
    # A bundle is fetched every few minutes: only what it changed is worth a record.
    if before is None or before[:-1] != row[:-1]:
        _Log(connection).append(
            AuditEvent.FEDERATION_SET, now=now, by=by, details=details.of_federated(bundle)
        )


@_parser
def _federated(row: Sequence[Any]) -> FederatedBundle:
    return FederatedBundle(
        trust_domain=TrustDomain.parse(row[0]),
        url=row[1],
        profile=EndpointProfile(row[2]),
        endpoint_id=None if row[3] is None else SpiffeId.parse(row[3]),
        document=row[4],
        sequence=row[5],
        refresh_hint=None if row[6] is None else timedelta(microseconds=row[6]),
        fetched_at=_optional(row[7]),
    )
