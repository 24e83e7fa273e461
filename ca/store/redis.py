"""The ledger in Redis or Valkey: for several machines that issue from one CA.

Each change is one script with its audit record; `ca.store.redis_server` says how, and what can be relied
on. A position is the sequence of the audit record that something came with, so it rises with time and is
nobody else's. All keys start with `garrison:ca:{TRUST DOMAIN}:`:

    state             hash    version; head of the log: sequence, hash, time; counters: entries,
                              revocations, bundle, digest
    log               stream  the audit log; a record's id is its sequence
    certificates      hash    position -> certificate
    serials           hash    ISSUER:SERIAL -> position
    fingerprints      hash    fingerprint -> position
    expiries          zset    who issued, by when the last of its certificates ends
    issued            zset    positions of certificates
    issued:SPIFFE_ID  zset    those of an identity
    revoked           zset    those that are revoked
    revoked:ISSUER    zset    those of an issuer, by the second in which they end
    crls              hash    ISSUER -> CRL
    crl_numbers       hash    ISSUER -> its number
    entries           hash    id -> registration
    registrations     hash    what may be there once -> id
    tokens            hash    hash -> join token
    keys              hash    USE:KEY_ID -> signing key
    federated         hash    trust domain -> what is known of it
    turn              string  whose turn it is, for a second at most
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TypeVar

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
    LedgerUnavailableError,
    Revocation,
    RevocationReason,
    RevokedSerial,
    SigningKey,
    StateChange,
    StoredCrl,
    TokenGrant,
)
from ca.store import details as say
from ca.store.contents import Contents
from ca.store.redis_server import (
    ANSWER_SECONDS,
    PATIENCE_SECONDS,
    Change,
    Key,
    LedgerServer,
    Opening,
    RedisPlace,
    Text,
    stored_record,
)
from ca.store.redis_values import (
    moment,
    number,
    read_certificate,
    read_crl,
    read_entry,
    read_federated,
    read_key,
    read_token,
    same_registration,
    write_certificate,
    write_crl,
    write_entry,
    write_federated,
    write_key,
    write_token,
)
from ca.store.rereading import Rereading
from garrison.identity import SpiffeId, TrustDomain

_Value = TypeVar("_Value")

_CHUNK = 1000
_LARGEST = 2**63 - 1


def _ignore(_: str) -> None:
    """Say nothing."""


class RedisLedger:
    """A `ca.ledger.Ledger` in Redis, one for each trust domain."""

    def __init__(
        self,
        place: RedisPlace,
        trust_domain: TrustDomain,
        *,
        warn: Callable[[str], None] = _ignore,
        opening: Opening = "usual",
        patience_seconds: float = PATIENCE_SECONDS,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        """Open the ledger, a new one if there is none; for `opening`, see `LedgerServer`.

        `warn` is told what is wrong with a server that is used all the same. One answer may take
        `answer_seconds`, all attempts together `patience_seconds`.

        Raises:
            ConfigError: the server may lose what it confirms, or the ledger is from a newer version.
            LedgerUnavailableError: it does not answer.

        """
        self._server = LedgerServer(
            place,
            trust_domain,
            warn,
            opening=opening,
            patience_seconds=patience_seconds,
            answer_seconds=answer_seconds,
        )
        key = self._server.key
        self._certificates = key("certificates", "hash")
        self._serials = key("serials", "hash")
        self._fingerprints = key("fingerprints", "hash")
        self._expiries = key("expiries", "zset")
        self._issued = key("issued", "zset")
        self._revoked = key("revoked", "zset")
        self._crls = key("crls", "hash")
        self._crl_numbers = key("crl_numbers", "hash")
        self._entries = key("entries", "hash")
        self._registrations = key("registrations", "hash")
        self._tokens = key("tokens", "hash")
        self._keys = key("keys", "hash")
        self._federated = key("federated", "hash")
        self._read_entries = Rereading(read_entry)

    def load(self, contents: Contents) -> None:
        """Take over `contents` into a ledger that was opened `empty`; `activate` lets others use it.

        Raises:
            LedgerUnavailableError: it cannot be written.

        """
        for commands in self._loading(contents):
            self._server.load(commands)

    def activate(self) -> None:
        """Let everybody use what was loaded. Raises: as `load`."""
        self._server.activate()

    def discard(self) -> None:
        """Remove the ledger and everything in it. Raises: as `load`."""
        self._server.discard()

    def _loading(self, contents: Contents) -> Iterator[list[tuple[Text, ...]]]:
        """Yield what writes `contents`, in pieces. Positions are below that of the next audit record."""
        pieces = (
            self._loading_certificates(contents),
            (self._loading_record(record) for record in contents.records()),
            self._loading_rest(contents),
        )
        for commands in pieces:
            while piece := list(itertools.islice(commands, _CHUNK)):
                yield piece

    def _loading_certificates(self, contents: Contents) -> Iterator[tuple[Text, ...]]:
        for position, one in contents.certificates():
            change = Change(AuditHead())
            change.put(self._serials, _name(one.issuer, one.serial), position)
            self._put_certificate(change, position, one)
            yield from change.commands()

    def _loading_record(self, record: AuditRecord) -> tuple[Text, ...]:
        return ("XADD", self._server.log.name, f"{record.sequence}-0", *stored_record(record, "copied"))

    def _loading_rest(self, contents: Contents) -> Iterator[tuple[Text, ...]]:
        change = Change(AuditHead())
        for position, entry in enumerate(contents.entries, start=1):
            change.put(self._entries, entry.entry_id, write_entry(position, entry))
            change.put(self._registrations, same_registration(entry.registration), entry.entry_id)
        for position, token in enumerate(contents.tokens, start=1):
            change.put(self._tokens, token.hash, write_token(position, token))
        for position, key in enumerate(contents.keys, start=1):
            change.put(self._keys, f"{key.use}:{key.key_id}", write_key(position, key))
        for crl in contents.crls:
            change.put(self._crls, crl.issuer, write_crl(crl))
            change.put(self._crl_numbers, crl.issuer, crl.number)
        for bundle in contents.federated:
            change.put(self._federated, str(bundle.trust_domain), write_federated(bundle))
        state = self._server.state
        change.put(state, "sequence", contents.head.sequence)
        change.put(state, "hash", contents.head.hash)
        change.put(state, "time", contents.head.time)
        change.put(state, "entries", contents.entries_version)
        change.put(state, "revocations", contents.revocations)
        if contents.bundle_sequence:
            change.put(state, "bundle", contents.bundle_sequence)
            change.put(state, "digest", contents.bundle_digest)
        return change.commands()

    def close(self) -> None:
        """Close all connections."""
        self._server.close()

    # Certificates

    def record_issued(self, certificates: Sequence[IssuedCertificate]) -> None:
        """See `Ledger`: one call of a script for all of them."""

        def record(change: Change) -> None:
            seen: set[str] = set()
            for one in certificates:
                name, position = _name(one.issuer, one.serial), change.next_sequence
                if name in seen:
                    raise say.serial_refusal(one)
                seen.add(name)
                change.expect(self._serials, name, None, say.serial_refusal(one))
                change.put(self._serials, name, position)
                self._put_certificate(change, position, one)
                change.record(
                    AuditEvent.CERTIFICATE_ISSUED,
                    now=one.issued_at,
                    by=one.requester,
                    details=say.of_issued(one),
                )

        self._server.commit(record)

    def _put_certificate(self, change: Change, position: int, one: IssuedCertificate) -> None:
        change.put(self._certificates, position, write_certificate(one))
        change.put(self._fingerprints, one.fingerprint, position)
        change.rank(self._expiries, one.issuer, number(one.not_after), only_up=True)
        change.rank(self._issued, position, position)
        change.rank(self._issued_to(one.spiffe_id), position, position)
        if one.revocation is not None:
            self._put_revoked(change, position, one)

    def _put_revoked(self, change: Change, position: int, one: IssuedCertificate) -> None:
        change.rank(self._revoked, position, position)
        change.rank(self._revoked_of(one.issuer), position, int(one.not_after.timestamp()))

    def find(
        self, *, serial: int | None = None, fingerprint: str | None = None
    ) -> tuple[IssuedCertificate, ...]:
        """See `Ledger`."""
        if serial is not None:
            (issuers,) = self._server.read(("ZRANGE", self._expiries.name, 0, -1))
            if serial < 0 or not issuers:
                return ()
            names = [_name(issuer.decode(), serial) for issuer in sorted(issuers)]
            (positions,) = self._server.read(("HMGET", self._serials.name, *names))
        elif fingerprint is not None:
            (positions,) = self._server.read(("HMGET", self._fingerprints.name, fingerprint.lower()))
        else:
            return ()
        return tuple(one for _, one in self._read_certificates([one for one in positions if one is not None]))

    def issued(self, query: CertificateQuery, *, now: datetime) -> CertificatePage:
        """See `Ledger`."""
        if not 1 <= query.limit <= MAX_PAGE:
            raise ValueError(f"a page has 1 to {MAX_PAGE} certificates, not {query.limit}")
        if not (query.cursor.isascii() and query.cursor.isdigit()) and query.cursor:
            raise ValueError(f"`{query.cursor}` is not where a page ended")
        before = min(int(query.cursor), _LARGEST) if query.cursor else _LARGEST
        found: list[tuple[int, IssuedCertificate]] = []
        for position, one in self._newest_first(self._index_for(query), before, query.limit + 1):
            if _fits(one, query, now):
                found.append((position, one))
                if len(found) > query.limit:
                    break
        cursor = str(found[query.limit - 1][0]) if len(found) > query.limit else ""
        return CertificatePage(tuple(one for _, one in found[: query.limit]), cursor)

    def _index_for(self, query: CertificateQuery) -> Key:
        if query.status is CertificateStatus.REVOKED:
            return self._revoked
        return self._issued if query.spiffe_id is None else self._issued_to(query.spiffe_id)

    def _newest_first(self, index: Key, before: int, first: int) -> Iterator[tuple[int, IssuedCertificate]]:
        # What is filtered out may be much, so chunks grow.
        count = first
        while True:
            command = ("ZREVRANGEBYSCORE", index.name, f"({before}", "-inf", "LIMIT", 0, count)
            (positions,) = self._server.read(command)
            yield from self._read_certificates(positions)
            if len(positions) < count:
                return
            before, count = _whole(positions[-1]), _CHUNK

    def _read_certificates(self, positions: Sequence[bytes]) -> list[tuple[int, IssuedCertificate]]:
        if not positions:
            return []
        (found,) = self._server.read(("HMGET", self._certificates.name, *positions))
        missing = [position for position, value in zip(positions, found, strict=True) if value is None]
        if missing:
            # Forgotten since the index was read, or it should be there.
            indexed = self._server.read(*(("ZSCORE", self._issued.name, position) for position in missing))
            if any(score is not None for score in indexed):
                raise LedgerUnavailableError("the ledger is damaged: a certificate is missing")
        return [
            (_whole(position), read_certificate(value))
            for position, value in zip(positions, found, strict=True)
            if value is not None
        ]

    def revoke(
        self, issuer: str, serial: int, reason: RevocationReason, *, now: datetime, by: str
    ) -> IssuedCertificate:
        """See `Ledger`."""

        def revoke(change: Change) -> IssuedCertificate:
            position = self._get(self._serials, _name(issuer, serial))
            if position is None:
                raise say.unknown_certificate(issuer, serial)
            stored = self._get(self._certificates, position)
            if stored is None and self._get(self._serials, _name(issuer, serial)) is None:
                raise say.unknown_certificate(issuer, serial)  # forgotten since the index was read
            if stored is None:
                raise LedgerUnavailableError("the ledger is damaged: a certificate is missing")
            found = read_certificate(stored)
            if found.revocation is not None:
                raise say.revoked_already(serial, found.revocation)
            revoked = replace(found, revocation=Revocation(now, reason, by))
            change.expect(self._certificates, position, stored)
            change.put(self._certificates, position, write_certificate(revoked))
            self._put_revoked(change, _whole(position), revoked)
            change.count(self._server.state, "revocations")
            change.record(
                AuditEvent.CERTIFICATE_REVOKED, now=now, by=by, details=say.of_revoked(found, reason)
            )
            return revoked

        return self._server.commit(revoke)

    def revoked(self, issuer: str, *, unexpired_at: datetime) -> Sequence[RevokedSerial]:
        """See `Ledger`."""
        index = self._revoked_of(issuer).name
        (positions,) = self._server.read(("ZRANGEBYSCORE", index, int(unexpired_at.timestamp()), "+inf"))
        found: list[RevokedSerial] = []
        for start in range(0, len(positions), _CHUNK):
            for _, one in self._read_certificates(positions[start : start + _CHUNK]):
                # Scores are whole seconds.
                if one.revocation is not None and one.not_after > unexpired_at:
                    found.append(RevokedSerial(one.serial, one.revocation.at, one.revocation.reason))
        return sorted(found, key=lambda one: (one.at, one.serial))

    def forget_expired(self, before: datetime, *, most: int, now: datetime, by: str) -> int:
        """See `Ledger`."""
        say.check_forgetting(before, most, now)

        def forget(change: Change) -> int:
            found = list(itertools.islice(self._ended(before), most))
            for position, stored, one in found:
                # Whoever revokes it meanwhile was faster.
                change.expect(self._certificates, position, stored)
                change.drop(self._certificates, position)
                change.drop(self._serials, _name(one.issuer, one.serial))
                change.drop(self._fingerprints, one.fingerprint)
                change.unrank(self._issued, position)
                change.unrank(self._issued_to(one.spiffe_id), position)
            if found:
                about = say.of_forgotten(len(found), before)
                change.record(AuditEvent.CERTIFICATES_FORGOTTEN, now=now, by=by, details=about)
            return len(found)

        return self._server.commit(forget)

    def _ended(self, before: datetime) -> Iterator[tuple[bytes, bytes, IssuedCertificate]]:
        """Yield what ended before `before` and was not revoked, oldest first, as it is stored."""
        after = "-inf"
        while True:
            command = ("ZRANGEBYSCORE", self._issued.name, after, "+inf", "LIMIT", 0, _CHUNK)
            (positions,) = self._server.read(command)
            if not positions:
                return
            (values,) = self._server.read(("HMGET", self._certificates.name, *positions))
            for position, stored in zip(positions, values, strict=True):
                if stored is None:
                    continue  # forgotten meanwhile
                one = read_certificate(stored)
                if one.issued_at >= before:
                    return  # and all that follow were issued later still
                if one.revocation is None and one.not_after < before:
                    yield position, stored, one
            after = f"({positions[-1].decode()}"

    def last_expiry(self, issuer: str) -> datetime | None:
        """Return when the last of the certificates of an issuer ends; None if none is recorded."""
        (score,) = self._server.read(("ZSCORE", self._expiries.name, issuer))
        return None if score is None else moment(int(float(score)))

    def revocations(self) -> int:
        """See `Ledger`."""
        return self._counter("revocations")

    def put_crl(self, crl: StoredCrl, *, now: datetime, by: str) -> None:
        """See `Ledger`."""

        def put(change: Change) -> None:
            stored = self._get(self._crl_numbers, crl.issuer)
            number = 0 if stored is None else _whole(stored)
            if number != crl.number - 1:
                raise say.crl_refusal(crl, number)
            change.expect(self._crl_numbers, crl.issuer, stored)
            change.put(self._crl_numbers, crl.issuer, crl.number)
            change.put(self._crls, crl.issuer, write_crl(crl))
            change.record(AuditEvent.CRL_PUBLISHED, now=now, by=by, details=say.of_crl(crl))

        self._server.commit(put)

    def crl(self, issuer: str) -> StoredCrl | None:
        """See `Ledger`."""
        stored = self._get(self._crls, issuer)
        return None if stored is None else read_crl(stored)

    def crls(self) -> tuple[StoredCrl, ...]:
        """See `Ledger`."""
        return tuple(sorted(map(read_crl, self._values(self._crls)), key=lambda crl: crl.issuer))

    # Registrations

    def add_entry(self, entry: Entry) -> None:
        """See `Ledger`."""

        def add(change: Change) -> None:
            once, refusal = same_registration(entry.registration), say.entry_refusal(entry)
            change.expect(self._entries, entry.entry_id, None, refusal)
            change.expect(self._registrations, once, None, refusal)
            change.put(self._entries, entry.entry_id, write_entry(change.next_sequence, entry))
            change.put(self._registrations, once, entry.entry_id)
            change.count(self._server.state, "entries")
            change.record(
                AuditEvent.ENTRY_CREATED,
                now=entry.created_at,
                by=entry.created_by,
                details=say.of_entry(entry),
            )

        self._server.commit(add)

    def entries(self) -> tuple[Entry, ...]:
        """See `Ledger`."""
        return _in_order(self._read_entries.values(self._values(self._entries)))

    def delete_entry(self, entry_id: str, *, now: datetime, by: str) -> Entry:
        """See `Ledger`."""

        def delete(change: Change) -> Entry:
            stored = self._get(self._entries, entry_id)
            if stored is None:
                raise say.unknown_entry(entry_id)
            _, entry = read_entry(stored)
            change.expect(self._entries, entry_id, stored)
            change.drop(self._entries, entry_id)
            change.drop(self._registrations, same_registration(entry.registration))
            change.count(self._server.state, "entries")
            about = {"entry": entry_id, "spiffe_id": str(entry.registration.spiffe_id)}
            change.record(AuditEvent.ENTRY_DELETED, now=now, by=by, details=about)
            return entry

        return self._server.commit(delete)

    def entries_version(self) -> int:
        """See `Ledger`."""
        return self._counter("entries")

    # Join tokens

    def add_token(self, token: JoinToken) -> None:
        """See `Ledger`."""

        def add(change: Change) -> None:
            change.expect(self._tokens, token.hash, None, say.token_duplicate())
            change.put(self._tokens, token.hash, write_token(change.next_sequence, token))
            change.record(
                AuditEvent.TOKEN_CREATED,
                now=token.created_at,
                by=token.created_by,
                details=say.of_token(token),
            )

        self._server.commit(add)

    def tokens(self) -> tuple[JoinToken, ...]:
        """See `Ledger`."""
        return _in_order(map(read_token, self._values(self._tokens)))

    def burn_token(self, token: str, *, now: datetime, by: str) -> TokenGrant:
        """See `Ledger`."""

        def burn(change: Change) -> SpiffeId | LedgerRefusalError:
            stored = self._get(self._tokens, token)
            # Whatever is decided here counts only if the token is still as it was read.
            change.expect(self._tokens, token, stored)
            position, found = (0, None) if stored is None else read_token(stored)
            outcome: SpiffeId | LedgerRefusalError
            if found is None or found.used_at is not None or found.expires_at <= now:
                outcome, event = say.token_refusal(found), AuditEvent.TOKEN_REFUSED
            else:
                outcome, event = found.spiffe_id, AuditEvent.TOKEN_BURNED
                change.put(
                    self._tokens, token, write_token(position, replace(found, used_at=now, used_by=by))
                )
            change.record(event, now=now, by=by, details=say.of_burn(token, outcome))
            return outcome

        outcome = self._server.commit(burn)
        if isinstance(outcome, LedgerRefusalError):
            raise outcome
        return TokenGrant(token[:16], outcome)

    def delete_token(self, token: str, *, now: datetime, by: str) -> JoinToken:
        """See `Ledger`."""

        def delete(change: Change) -> JoinToken:
            stored = self._get(self._tokens, token)
            if stored is None:
                raise say.unknown_token(token)
            _, found = read_token(stored)
            change.expect(self._tokens, token, stored)
            change.drop(self._tokens, token)
            about = {"spiffe_id": str(found.spiffe_id), "token": token[:16]}
            change.record(AuditEvent.TOKEN_DELETED, now=now, by=by, details=about)
            return found

        return self._server.commit(delete)

    # Signing keys

    def add_key(self, key: SigningKey, *, by: str) -> None:
        """See `Ledger`."""

        def add(change: Change) -> None:
            name = f"{key.use}:{key.key_id}"
            change.expect(self._keys, name, None, say.key_refusal(key))
            change.put(self._keys, name, write_key(change.next_sequence, key))
            change.record(AuditEvent.KEY_ADDED, now=key.created_at, by=by, details=say.of_key(key))

        self._server.commit(add)

    def keys(self, use: KeyUse) -> tuple[SigningKey, ...]:
        """See `Ledger`."""
        found = map(read_key, self._values(self._keys))
        return _in_order((position, key) for position, key in found if key.use is use)

    def change_states(self, changes: Sequence[StateChange], *, now: datetime, by: str) -> None:
        """See `Ledger`."""

        def make(change: Change) -> None:
            states: dict[str, KeyState] = {}
            for step in changes:
                name = f"{step.use}:{step.key_id}"
                stored = self._get(self._keys, name)
                if stored is None:
                    raise say.state_refusal(step, None)
                position, key = read_key(stored)
                # A key may take two steps at once.
                state = states.get(name, key.state)
                if state is not step.before:
                    raise say.state_refusal(step, state)
                if name not in states:
                    change.expect(self._keys, name, stored)
                states[name] = step.after
                change.put(
                    self._keys, name, write_key(position, replace(key, state=step.after, changed_at=now))
                )
                change.record(AuditEvent.KEY_STATE_CHANGED, now=now, by=by, details=say.of_state(step))

        self._server.commit(make)

    # Bundles

    def publish_bundle(self, digest: str, *, now: datetime, by: str) -> int:
        """See `Ledger`."""

        def publish(change: Change) -> int:
            (stored,) = self._server.read(("HMGET", self._server.state.name, "bundle", "digest"))
            sequence = _whole(stored[0] or b"0")
            if stored[1] == digest.encode():
                return sequence
            change.expect(self._server.state, "bundle", stored[0])
            change.put(self._server.state, "bundle", sequence + 1)
            change.put(self._server.state, "digest", digest)
            about: Details = {"digest": digest, "sequence": sequence + 1}
            change.record(AuditEvent.BUNDLE_CHANGED, now=now, by=by, details=about)
            return sequence + 1

        return self._server.commit(publish)

    def bundle_sequence(self) -> int:
        """See `Ledger`."""
        return self._counter("bundle")

    def put_federated(self, bundle: FederatedBundle, *, now: datetime, by: str) -> None:
        """See `Ledger`."""

        def put(change: Change) -> None:
            stored = self._get(self._federated, str(bundle.trust_domain))
            self._put_federated(change, stored, bundle, now=now, by=by)

        self._server.commit(put)

    def replace_federated(
        self, before: FederatedBundle | None, after: FederatedBundle, *, now: datetime, by: str
    ) -> None:
        """See `Ledger`."""

        def put(change: Change) -> None:
            stored = self._get(self._federated, str(after.trust_domain))
            if before is None and stored is not None:
                raise say.federation_duplicate(after.trust_domain)
            if (None if stored is None else read_federated(stored)) != before:
                raise say.federation_changed(after.trust_domain)
            self._put_federated(change, stored, after, now=now, by=by)

        self._server.commit(put)

    def _put_federated(
        self, change: Change, stored: bytes | None, bundle: FederatedBundle, *, now: datetime, by: str
    ) -> None:
        name = str(bundle.trust_domain)
        change.expect(self._federated, name, stored)
        change.put(self._federated, name, write_federated(bundle))
        # A bundle is fetched every few minutes: only what it changed is worth a record.
        if stored is None or replace(read_federated(stored), fetched_at=bundle.fetched_at) != bundle:
            change.record(AuditEvent.FEDERATION_SET, now=now, by=by, details=say.of_federated(bundle))

    def federated(self) -> tuple[FederatedBundle, ...]:
        """See `Ledger`."""
        found = map(read_federated, self._values(self._federated))
        return tuple(sorted(found, key=lambda bundle: str(bundle.trust_domain)))

    def delete_federated(self, trust_domain: TrustDomain, *, now: datetime, by: str) -> None:
        """See `Ledger`."""

        def delete(change: Change) -> None:
            name = str(trust_domain)
            stored = self._get(self._federated, name)
            if stored is None:
                raise say.unknown_domain(name)
            change.expect(self._federated, name, stored)
            change.drop(self._federated, name)
            change.record(AuditEvent.FEDERATION_DELETED, now=now, by=by, details={"trust_domain": name})

        self._server.commit(delete)

    # The audit log

    def append_audit(self, event: AuditEvent, *, now: datetime, by: str, details: Details) -> AuditHead:
        """See `Ledger`."""
        return self._server.commit(lambda change: change.record(event, now=now, by=by, details=details))

    def audit(self, after: int = 0) -> Iterator[AuditRecord]:
        """See `Ledger`."""
        start = f"{after + 1}-0" if after >= 0 else "-"
        while True:
            (found,) = self._server.read(("XRANGE", self._server.log.name, start, "+", "COUNT", _CHUNK))
            for name, fields in found:
                yield _record(name, fields)
            if len(found) < _CHUNK:
                return
            start = f"({found[-1][0].decode()}"

    def audit_head(self) -> AuditHead:
        """See `Ledger`."""
        return self._server.read_head()

    def verify_audit(self, anchor: AuditHead | None = None) -> AuditVerdict:
        """See `Ledger`: the end of the log has to be the head that changes go by, too."""
        # Read before: meanwhile there may be more records, never fewer.
        head = self.audit_head()
        return verify_chain(self.audit(-1), head, anchor)

    def _issued_to(self, spiffe_id: SpiffeId) -> Key:
        return self._server.key(f"issued:{spiffe_id}", "zset")

    def _revoked_of(self, issuer: str) -> Key:
        return self._server.key(f"revoked:{issuer}", "zset")

    def _get(self, key: Key, field: Text) -> bytes | None:
        (value,) = self._server.read(("HGET", key.name, field))
        found: bytes | None = value
        return found

    def _values(self, key: Key) -> list[bytes]:
        (values,) = self._server.read(("HVALS", key.name))
        found: list[bytes] = values
        return found

    def _counter(self, name: str) -> int:
        return _whole(self._get(self._server.state, name) or b"0")


def _name(issuer: str, serial: int) -> str:
    return f"{issuer}:{serial:x}"


def _fits(one: IssuedCertificate, query: CertificateQuery, now: datetime) -> bool:
    if query.spiffe_id is not None and one.spiffe_id != query.spiffe_id:
        return False
    match query.status:
        case CertificateStatus.VALID:
            return one.revocation is None and one.not_after > now
        case CertificateStatus.EXPIRED:
            return one.revocation is None and one.not_after <= now
        case CertificateStatus.REVOKED:
            return one.revocation is not None
        case None:
            return True


def _in_order(found: Iterable[tuple[int, _Value]]) -> tuple[_Value, ...]:
    return tuple(value for _, value in sorted(found, key=lambda pair: pair[0]))


def _whole(text: bytes) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise LedgerUnavailableError("the ledger is damaged: a number is none") from error


def _record(name: bytes, fields: Sequence[bytes]) -> AuditRecord:
    """Return a record as it is stored; what somebody changed shows when it is verified."""
    found = {
        one.decode(errors="replace"): _text(other)
        for one, other in zip(fields[::2], fields[1::2], strict=True)
    }
    sequence, _, rest = name.decode().partition("-")
    texts = (found.get(field, "") for field in ("previous", "time", "event", "actor", "details", "hash"))
    # Ours end with 0; another one is no record of this log.
    return AuditRecord(int(sequence) if rest == "0" else -1, *texts)


def _text(value: bytes) -> str:
    try:
        return value.decode(errors="surrogatepass")
    except UnicodeDecodeError:
        return value.decode(errors="replace")
