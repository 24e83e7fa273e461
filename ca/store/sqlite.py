"""The ledger in a SQLite file: for one machine, with any number of processes."""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ca.audit import AuditEvent, AuditHead, AuditRecord, AuditVerdict, Details, verify_chain
from ca.ledger import (
    MAX_PAGE,
    CertificatePage,
    CertificateQuery,
    CertificateStatus,
    Entry,
    FederatedBundle,
    IssuedCertificate,
    JoinToken,
    KeyState,
    KeyUse,
    LedgerRefusalError,
    RevocationReason,
    RevokedSerial,
    SigningKey,
    StateChange,
    StoredCrl,
    TokenGrant,
)
from ca.store import details
from ca.store.contents import Contents
from ca.store.database import Database
from ca.store.rereading import Rereading
from ca.store.schema import STEPS
from ca.store.sqlite_rows import (
    hex_bytes,
    number,
    optional,
    read_certificate,
    read_crl,
    read_entry,
    read_federated,
    read_key,
    read_revoked,
    read_token,
    serial_bytes,
    write_certificate,
    write_crl,
    write_entry,
    write_federated,
    write_key,
    write_record,
    write_token,
)
from garrison.identity import SpiffeId, TrustDomain

LEDGER = "ledger.sqlite3"

_MOST_ROWS = 64
_AUDIT_CHUNK = 1000
_CERTIFICATE = (
    "issuer, serial, kind, spiffe_id, not_before, not_after, issued_at, requester, attested_by, fingerprint,"
    " revoked_at, reason, revoked_by"
)
_CRL = "issuer, number, revocations, der, this_update, next_update"
_TOKEN = "hash, spiffe_id, created_at, expires_at, created_by, used_at, used_by"
_INSERT_ENTRY = "INSERT INTO entries VALUES (NULL,?,?,?,?,?,?,?,?,?,?,?)"
_ENTRY = (
    "entry_id, spiffe_id, parent_id, selectors, svid_ttl, dns_names, federates_with, hint, created_at,"
    " created_by, jwt_ttl"
)
_INSERT_TOKEN = f"INSERT INTO tokens ({_TOKEN}) VALUES (?,?,?,?,?,?,?)"
_INSERT_KEY = "INSERT INTO signing_keys VALUES (NULL,?,?,?,?,?,?,?)"
_INSERT_RECORD = "INSERT INTO audit VALUES (?,?,?,?,?,?,?)"
_PUT_CRL = f"INSERT OR REPLACE INTO crls ({_CRL}) VALUES (?,?,?,?,?,?)"
_PUT_FEDERATED = "INSERT OR REPLACE INTO federated VALUES (?,?,?,?,?,?,?,?)"
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
        self._entries = Rereading(read_entry)

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
            rows = ((number, *write_certificate(one)) for number, one in contents.certificates())
            connection.executemany(
                f"INSERT INTO certificates (position, {_CERTIFICATE}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                rows,
            )
            connection.executemany(_INSERT_RECORD, map(write_record, contents.records()))
            connection.executemany(_INSERT_ENTRY, map(write_entry, contents.entries))
            connection.executemany(_INSERT_TOKEN, map(write_token, contents.tokens))
            connection.executemany(_INSERT_KEY, map(write_key, contents.keys))
            connection.executemany(_PUT_CRL, map(write_crl, contents.crls))
            connection.executemany(_PUT_FEDERATED, map(write_federated, contents.federated))
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
                        [value for one in chunk for value in write_certificate(one)],
                    )
                except sqlite3.IntegrityError as error:
                    raise details.serial_refusal(chunk[0] if len(chunk) == 1 else None) from error
                log.append_issued(chunk)

    def find(
        self, *, serial: int | None = None, fingerprint: str | None = None
    ) -> tuple[IssuedCertificate, ...]:
        """See `Ledger`."""
        if serial is not None:
            where, value = "serial", serial_bytes(serial)
        elif fingerprint is not None:
            where, value = "fingerprint", hex_bytes(fingerprint)
        else:
            return ()
        with self._database.reading() as connection:
            rows = connection.execute(f"SELECT {_CERTIFICATE} FROM certificates WHERE {where} = ?", (value,))
            return tuple(read_certificate(row) for row in rows)

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
            "now": number(now),
            "limit": query.limit + 1,
        }
        with self._database.reading() as connection:
            rows = connection.execute(
                f"SELECT {_CERTIFICATE}, position FROM certificates {where}"
                " ORDER BY position DESC LIMIT :limit",
                values,
            ).fetchall()
        cursor = str(rows[query.limit - 1][-1]) if len(rows) > query.limit else ""
        return CertificatePage(tuple(read_certificate(row[:-1]) for row in rows[: query.limit]), cursor)

    def revoke(
        self, issuer: str, serial: int, reason: RevocationReason, *, now: datetime, by: str
    ) -> IssuedCertificate:
        """See `Ledger`."""
        key = (serial_bytes(serial), hex_bytes(issuer))
        with self._database.writing() as connection:
            row = connection.execute(
                f"SELECT {_CERTIFICATE} FROM certificates WHERE serial = ? AND issuer = ?", key
            ).fetchone()
            if row is None:
                raise details.unknown_certificate(issuer, serial)
            found = read_certificate(row)
            if found.revocation is not None:
                raise details.revoked_already(serial, found.revocation)
            connection.execute(
                "UPDATE certificates SET revoked_at = ?, reason = ?, revoked_by = ?"
                " WHERE serial = ? AND issuer = ?",
                (number(now), reason, by, *key),
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
            return read_certificate(row)

    def revoked(self, issuer: str, *, unexpired_at: datetime) -> Sequence[RevokedSerial]:
        """See `Ledger`."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT serial, revoked_at, reason FROM certificates"
                " WHERE revoked_at IS NOT NULL AND issuer = ? AND not_after > ? ORDER BY revoked_at, serial",
                (hex_bytes(issuer), number(unexpired_at)),
            )
            return read_revoked(rows.fetchall())

    def forget_expired(self, before: datetime, *, most: int, now: datetime, by: str) -> int:
        """See `Ledger`."""
        details.check_forgetting(before, most, now)
        with self._database.writing() as connection:
            count = connection.execute(
                "DELETE FROM certificates WHERE position IN (SELECT position FROM certificates"
                " WHERE revoked_at IS NULL AND not_after < ? ORDER BY position LIMIT ?)",
                (number(before), most),
            ).rowcount
            if count:
                about = details.of_forgotten(count, before)
                _Log(connection).append(AuditEvent.CERTIFICATES_FORGOTTEN, now=now, by=by, details=about)
            return count

    def last_expiry(self, issuer: str) -> datetime | None:
        """See `Ledger`."""
        with self._database.reading() as connection:
            (value,) = connection.execute(
                "SELECT max(not_after) FROM certificates WHERE issuer = ?", (hex_bytes(issuer),)
            ).fetchone()
        return optional(value)

    def revocations(self) -> int:
        """See `Ledger`."""
        return self._counter("revocations")

    def put_crl(self, crl: StoredCrl, *, now: datetime, by: str) -> None:
        """See `Ledger`."""
        key = hex_bytes(crl.issuer)
        with self._database.writing() as connection:
            row = connection.execute("SELECT number FROM crls WHERE issuer = ?", (key,)).fetchone()
            stored = row[0] if row else 0
            if stored != crl.number - 1:
                raise details.crl_refusal(crl, stored)
            connection.execute(_PUT_CRL, write_crl(crl))
            _Log(connection).append(AuditEvent.CRL_PUBLISHED, now=now, by=by, details=details.of_crl(crl))

    def crl(self, issuer: str) -> StoredCrl | None:
        """See `Ledger`."""
        with self._database.reading() as connection:
            row = connection.execute(
                f"SELECT {_CRL} FROM crls WHERE issuer = ?", (hex_bytes(issuer),)
            ).fetchone()
        return read_crl(row) if row else None

    def crls(self) -> tuple[StoredCrl, ...]:
        """See `Ledger`."""
        with self._database.reading() as connection:
            rows = connection.execute(f"SELECT {_CRL} FROM crls ORDER BY issuer").fetchall()
        return tuple(read_crl(row) for row in rows)

    # Registrations

    def add_entry(self, entry: Entry) -> None:
        """See `Ledger`."""
        with self._database.writing() as connection:
            try:
                connection.execute(_INSERT_ENTRY, write_entry(entry))
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
            return read_entry(row[1:])

    def entries_version(self) -> int:
        """See `Ledger`."""
        return self._counter("entries")

    # Join tokens

    def add_token(self, token: JoinToken) -> None:
        """See `Ledger`."""
        with self._database.writing() as connection:
            try:
                connection.execute(_INSERT_TOKEN, write_token(token))
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
        return tuple(read_token(row) for row in rows)

    def burn_token(self, token: str, *, now: datetime, by: str) -> TokenGrant:
        """See `Ledger`."""
        key = hex_bytes(token)
        with self._database.writing() as connection:
            # Decides alone: whatever is read before or after is for the message.
            row = connection.execute(
                "UPDATE tokens SET used_at = :now, used_by = :by"
                " WHERE hash = :hash AND used_at IS NULL AND expires_at > :now RETURNING spiffe_id",
                {"now": number(now), "by": by, "hash": key},
            ).fetchone()
            outcome: SpiffeId | LedgerRefusalError
            if row is None:
                found = connection.execute(f"SELECT {_TOKEN} FROM tokens WHERE hash = ?", (key,)).fetchone()
                outcome = details.token_refusal(read_token(found) if found else None)
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
                f"DELETE FROM tokens WHERE hash = ? RETURNING {_TOKEN}", (hex_bytes(token),)
            ).fetchone()
            if row is None:
                raise details.unknown_token(token)
            _Log(connection).append(
                AuditEvent.TOKEN_DELETED, now=now, by=by, details={"spiffe_id": row[1], "token": token[:16]}
            )
            return read_token(row)

    # Signing keys

    def add_key(self, key: SigningKey, *, by: str) -> None:
        """See `Ledger`."""
        with self._database.writing() as connection:
            try:
                connection.execute(_INSERT_KEY, write_key(key))
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
        return tuple(read_key(row[1:]) for row in rows)

    def change_states(self, changes: Sequence[StateChange], *, now: datetime, by: str) -> None:
        """See `Ledger`."""
        with self._database.writing() as connection:
            log = _Log(connection)
            for change in changes:
                changed = connection.execute(
                    "UPDATE signing_keys SET state = ?, changed_at = ?"
                    " WHERE use = ? AND key_id = ? AND state = ?",
                    (change.after, number(now), change.use, change.key_id, change.before),
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
            if (None if row is None else read_federated(row)) != before:
                raise details.federation_changed(name)
            _put_federated(connection, row, after, now=now, by=by)

    def federated(self) -> tuple[FederatedBundle, ...]:
        """See `Ledger`."""
        with self._database.reading() as connection:
            rows = connection.execute("SELECT * FROM federated ORDER BY trust_domain").fetchall()
        return tuple(read_federated(row) for row in rows)

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
    row = connection.execute(
        "SELECT sequence, hash, time FROM audit ORDER BY sequence DESC LIMIT 1"
    ).fetchone()
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
    row = write_federated(bundle)
    connection.execute(_PUT_FEDERATED, row)
    # A bundle is fetched every few minutes: only what it changed is worth a record.
    if before is None or before[:-1] != row[:-1]:
        _Log(connection).append(
            AuditEvent.FEDERATION_SET, now=now, by=by, details=details.of_federated(bundle)
        )
