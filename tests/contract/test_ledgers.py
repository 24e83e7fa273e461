"""One suite for every ledger: what is recorded, refused, used up once, and shown in the audit log."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from support.ledgers import API, HOUR, ISSUER, NOW, WEB, certificate, entry, open_redis, token
from support.valkey import DURABLE, Valkey

from ca.audit import AuditEvent, AuditHead, ClockError, clock_problem
from ca.ledger import (
    CertificateQuery,
    CertificateStatus,
    EndpointProfile,
    FederatedBundle,
    IssuedCertificate,
    KeyState,
    KeyUse,
    Ledger,
    LedgerCode,
    LedgerRefusalError,
    Revocation,
    RevocationReason,
    SigningKey,
    StateChange,
    StoredCrl,
    TokenGrant,
    token_hash,
)
from ca.store.redis import RedisLedger
from ca.store.sqlite import SqliteLedger
from garrison.identity import SpiffeId, TrustDomain

PARTNER = TrustDomain("partner.test")
MINUTE = timedelta(minutes=1)


def refused(code: LedgerCode, action: Callable[[], object]) -> str:
    """Run what must be refused for `code`, and return the message."""
    with pytest.raises(LedgerRefusalError) as error:
        action()
    assert error.value.code is code
    return str(error.value)


def events(ledger: Ledger) -> list[str]:
    """Return the events of the audit log, in order."""
    return [record.event for record in ledger.audit()]


def signing_key(key_id: str, state: KeyState = KeyState.PREPARED, use: KeyUse = KeyUse.X509) -> SigningKey:
    """Return the public part of a key."""
    return SigningKey(use, key_id, state, "-----BEGIN CERTIFICATE-----", NOW, NOW + HOUR)


class LedgerContract:
    """What holds for every ledger; a subclass has the fixture `open_ledger`, which opens the same one again."""

    @pytest.fixture
    def ledger(self, open_ledger: Callable[[], Ledger]) -> Ledger:
        """Return a ledger without anything in it."""
        return open_ledger()

    def test_what_is_recorded_is_found_again(self, ledger: Ledger, open_ledger: Callable[[], Ledger]) -> None:
        """Every field comes back, by serial number and by fingerprint, also from a second opening."""
        first = certificate(2**128 - 1, spiffe_id=API, requester="spiffe://cluster.local/agent ☂")
        second = certificate(1)
        ledger.record_issued([first, second])
        for one in (ledger, open_ledger()):
            assert one.find(serial=first.serial) == (first,)
            assert one.find(fingerprint=second.fingerprint) == (second,)
        assert ledger.find(serial=7) == ledger.find(serial=2**200) == ledger.find(serial=-1) == ()
        assert ledger.find(fingerprint="nothing hex") == ledger.find() == ()

    def test_a_serial_number_is_used_once(self, ledger: Ledger) -> None:
        """A second one of the same issuer is refused, with everything that was to be recorded beside it."""
        ledger.record_issued([certificate(5)])
        head = ledger.audit_head()
        beside = certificate(6)
        refused(LedgerCode.DUPLICATE, lambda: ledger.record_issued([beside, certificate(5, spiffe_id=API)]))
        refused(LedgerCode.DUPLICATE, lambda: ledger.record_issued([beside, beside]))
        assert ledger.find(serial=6) == ()
        assert ledger.find(serial=5)[0].spiffe_id == WEB
        assert ledger.audit_head() == head
        ledger.record_issued([certificate(5, issuer="bb" * 20)])
        assert {one.issuer for one in ledger.find(serial=5)} == {ISSUER, "bb" * 20}

    def test_certificates_are_listed_newest_first_in_pages(self, ledger: Ledger) -> None:
        """Pages neither repeat nor skip one, also when others are recorded in between."""
        made = [certificate() for _ in range(7)]
        ledger.record_issued(made)
        found: list[IssuedCertificate] = []
        cursor = ""
        for wanted in (3, 3, 1):
            page = ledger.issued(CertificateQuery(cursor=cursor, limit=3), now=NOW)
            assert len(page.certificates) == wanted
            found += page.certificates
            cursor = page.cursor
            ledger.record_issued([certificate()])
        assert (found, cursor) == (made[::-1], "")

    def test_certificates_are_listed_by_identity_and_status(self, ledger: Ledger) -> None:
        """A revoked one is neither valid nor expired; one that ends now has expired."""
        revoked, expired, valid, other = (
            certificate(),
            certificate(not_after=NOW),
            certificate(),
            certificate(spiffe_id=API),
        )
        ledger.record_issued([revoked, expired, valid, other])
        ledger.revoke(ISSUER, revoked.serial, RevocationReason.SUPERSEDED, now=NOW, by="root")

        def serials(**query: object) -> set[int]:
            page = ledger.issued(CertificateQuery(**query), now=NOW)  # type: ignore[arg-type]
            return {one.serial for one in page.certificates}

        assert serials(status=CertificateStatus.REVOKED) == {revoked.serial}
        assert serials(status=CertificateStatus.EXPIRED) == {expired.serial}
        assert serials(status=CertificateStatus.VALID) == {valid.serial, other.serial}
        assert serials(status=CertificateStatus.VALID, spiffe_id=API) == {other.serial}
        assert serials(spiffe_id=SpiffeId.parse("spiffe://cluster.local/we")) == set()

    @pytest.mark.parametrize("cursor", ["x", "-1", "1 OR 1", "²"])
    def test_a_foreign_cursor_is_refused(self, ledger: Ledger, cursor: str) -> None:
        """What is no end of a page is an error of the caller, and so is a page without bounds."""
        with pytest.raises(ValueError, match="where a page ended"):
            ledger.issued(CertificateQuery(cursor=cursor), now=NOW)
        for limit in (0, 1001):
            with pytest.raises(ValueError, match="1 to 1000"):
                ledger.issued(CertificateQuery(limit=limit), now=NOW)

    def test_a_certificate_is_revoked_once(self, ledger: Ledger) -> None:
        """The second revocation says that there was a first, and changes nothing of it."""
        ledger.record_issued([certificate(5)])
        reason = RevocationReason.KEY_COMPROMISE
        later = NOW + timedelta(seconds=1)
        revoked = ledger.revoke(ISSUER, 5, reason, now=NOW, by="root")
        assert revoked.revocation == Revocation(NOW, reason, "root")
        message = refused(
            LedgerCode.ALREADY_REVOKED,
            lambda: ledger.revoke(ISSUER, 5, RevocationReason.SUPERSEDED, now=later, by="eve"),
        )
        assert "2030-01-02T03:04:05Z" in message
        assert ledger.find(serial=5) == (revoked,)
        refused(LedgerCode.UNKNOWN, lambda: ledger.revoke(ISSUER, 6, reason, now=NOW, by="root"))
        refused(LedgerCode.UNKNOWN, lambda: ledger.revoke("bb" * 20, 5, reason, now=NOW, by="root"))

    def test_a_crl_lists_what_is_revoked_and_has_not_expired(self, ledger: Ledger) -> None:
        """Each issuer has its own; an expired certificate drops out."""
        made = [certificate(), certificate(not_after=NOW), certificate(issuer="bb" * 20), certificate()]
        ledger.record_issued(made)
        assert ledger.revocations() == 0
        for number, one in enumerate(made[:3]):
            assert ledger.revocations() == number
            ledger.revoke(one.issuer, one.serial, RevocationReason.UNSPECIFIED, now=NOW, by="root")
        assert [one.serial for one in ledger.revoked(ISSUER, unexpired_at=NOW)] == [made[0].serial]
        before = NOW - timedelta(microseconds=1)
        assert len(ledger.revoked(ISSUER, unexpired_at=before)) == 2

    def test_what_ended_long_ago_is_forgotten(
        self, ledger: Ledger, open_ledger: Callable[[], Ledger]
    ) -> None:
        """The oldest first, so many at once; neither what is valid, nor what was revoked, nor the audit log."""
        old = NOW - timedelta(days=30)
        ended = [certificate(issued_at=old, not_after=old + HOUR, spiffe_id=name) for name in (WEB, API, WEB)]
        revoked, edge = (
            certificate(issued_at=old, not_after=old + HOUR),
            certificate(issued_at=old, not_after=NOW),
        )
        valid = certificate()
        ledger.record_issued([ended[0], revoked, ended[1], edge, ended[2], valid])
        ledger.revoke(ISSUER, revoked.serial, RevocationReason.SUPERSEDED, now=NOW, by="root")
        later, other = NOW + timedelta(days=1), open_ledger()
        assert ledger.forget_expired(NOW, most=2, now=later, by="root") == 2
        left = other.issued(CertificateQuery(), now=later).certificates
        assert [one.serial for one in left] == [one.serial for one in (valid, ended[2], edge, revoked)]
        assert other.forget_expired(NOW, most=2, now=later, by="root") == 1
        head = ledger.audit_head()
        assert ledger.forget_expired(NOW, most=2, now=later, by="root") == 0
        assert ledger.audit_head() == head
        for one in (ledger, other):
            found = one.issued(CertificateQuery(), now=later).certificates
            assert [kept.serial for kept in found] == [valid.serial, edge.serial, revoked.serial]
            assert all(one.find(serial=gone.serial) == () for gone in ended)
            assert all(one.find(fingerprint=gone.fingerprint) == () for gone in ended)
            assert one.issued(CertificateQuery(spiffe_id=API), now=later).certificates == ()
            assert [kept.serial for kept in one.revoked(ISSUER, unexpired_at=old)] == [revoked.serial]
        counts = [one.fields() for one in ledger.audit() if one.event == "certificates_forgotten"]
        assert [one["count"] for one in counts] == [2, 1]
        assert counts[0]["expired_before"] == "2030-01-02T03:04:05Z"
        assert events(ledger).count("certificate_issued") == 6
        assert ledger.verify_audit().intact
        refused(
            LedgerCode.UNKNOWN,
            lambda: ledger.revoke(ISSUER, ended[0].serial, RevocationReason.SUPERSEDED, now=later, by="x"),
        )

    def test_nothing_is_forgotten_before_it_ended(self, ledger: Ledger) -> None:
        """Nor is more at once than others can wait for; a clock that is behind forgets nothing."""
        ledger.record_issued([certificate(issued_at=NOW - 2 * HOUR, not_after=NOW - HOUR)])
        ledger.append_audit(AuditEvent.ISSUANCE_DENIED, now=NOW, by="x", details={})
        for before, most in ((NOW, 1), (NOW + HOUR, 1), (NOW - HOUR, 0), (NOW - HOUR, 1001)):
            with pytest.raises(ValueError, match=r"has not ended|at once"):
                ledger.forget_expired(before, most=most, now=NOW, by="root")
        with pytest.raises(ClockError):
            ledger.forget_expired(
                NOW - timedelta(minutes=20), most=1, now=NOW - timedelta(minutes=10), by="root"
            )
        assert len(ledger.issued(CertificateQuery(), now=NOW).certificates) == 1

    def test_the_last_expiry_of_an_issuer(self, ledger: Ledger) -> None:
        """Of all that it signed, in whichever order, revoked or not; of nobody else."""
        assert ledger.last_expiry(ISSUER) is None
        ends = [NOW.replace(microsecond=0) + hours * HOUR for hours in (2, 3, 1)]
        made = [certificate(not_after=end) for end in ends]
        ledger.record_issued([*made, certificate(issuer="bb" * 20, not_after=ends[1] + HOUR)])
        assert ledger.last_expiry(ISSUER) == ends[1]
        ledger.revoke(ISSUER, made[1].serial, RevocationReason.UNSPECIFIED, now=NOW, by="root")
        assert ledger.last_expiry(ISSUER) == ends[1]

    def test_a_key_may_stay_in_its_state(self, ledger: Ledger) -> None:
        """Then only the time of the change is new: that is how a prepared one's publication is recorded."""
        ledger.add_key(signing_key("one"), by="root")
        step = StateChange(KeyUse.X509, "one", KeyState.PREPARED, KeyState.PREPARED)
        ledger.change_states([step], now=NOW + HOUR, by="root")
        (key,) = ledger.keys(KeyUse.X509)
        assert (key.state, key.changed_at) == (KeyState.PREPARED, NOW + HOUR)

    def test_crl_numbers_rise_by_one(self, ledger: Ledger, open_ledger: Callable[[], Ledger]) -> None:
        """Whoever builds on an older CRL than the stored one is refused; all see the same bytes."""
        assert ledger.crl(ISSUER) is None
        first = StoredCrl(ISSUER, 1, 0, b"\x30\x00", NOW, NOW + HOUR)
        ledger.put_crl(first, now=NOW, by="root")
        for number in (1, 3):
            wrong = replace(first, number=number)
            refused(LedgerCode.STATE_CHANGED, lambda wrong=wrong: ledger.put_crl(wrong, now=NOW, by="root"))  # type: ignore[misc]
        second = replace(first, number=2, der=b"\x30\x01\x00")
        ledger.put_crl(second, now=NOW, by="root")
        assert open_ledger().crl(ISSUER) == second
        other = replace(first, issuer="00" * 20, revocations=7)
        ledger.put_crl(other, now=NOW, by="root")
        assert ledger.crls() == (other, second)
        assert ledger.crl("bb" * 20) is None

    def test_registrations_come_back_in_order(
        self, ledger: Ledger, open_ledger: Callable[[], Ledger]
    ) -> None:
        """Every field of an entry is kept; the version tells others that there is something new."""
        plain = entry("b")
        full = entry(
            "a",
            API,
            "k8s:ns:default",
            "k8s:sa:web",
            svid_ttl=timedelta(minutes=5),
            dns_names=["web", "web.default"],
            parent_id="spiffe://cluster.local/agent/1",
            federates_with=["partner.test"],
            jwt_ttl=timedelta(minutes=7),
            hint="internal",
        )
        version = ledger.entries_version()
        ledger.add_entry(plain)
        ledger.add_entry(full)
        other = open_ledger()
        assert other.entries() == (plain, full)
        assert other.entries_version() > version
        version = other.entries_version()
        assert ledger.delete_entry("b", now=NOW, by="root") == plain
        assert other.entries_version() > version
        assert other.entries() == (full,)
        refused(LedgerCode.UNKNOWN, lambda: ledger.delete_entry("b", now=NOW, by="root"))

    def test_a_registration_that_is_replaced_is_read_as_it_is_now(
        self, ledger: Ledger, open_ledger: Callable[[], Ledger]
    ) -> None:
        """Also under the id that the one before it had, by who has read that one."""
        other = open_ledger()
        for number in (1, 2, 1):
            replaced = entry("a", WEB, f"unix:uid:{number}")
            ledger.add_entry(replaced)
            assert other.entries() == (replaced,)
            ledger.delete_entry("a", now=NOW, by="root")
            assert other.entries() == ()

    def test_a_registration_is_there_once(self, ledger: Ledger) -> None:
        """The same selectors in another order are the same; another parent, identity or set is not."""
        ledger.add_entry(entry("1", WEB, "unix:uid:1", "unix:gid:2"))
        refused(LedgerCode.DUPLICATE, lambda: ledger.add_entry(entry("2", WEB, "unix:gid:2", "unix:uid:1")))
        refused(LedgerCode.DUPLICATE, lambda: ledger.add_entry(entry("1", API)))
        ledger.add_entry(entry("3", WEB, "unix:uid:1"))
        ledger.add_entry(
            entry("4", WEB, "unix:uid:1", "unix:gid:2", parent_id="spiffe://cluster.local/agent")
        )
        assert [one.entry_id for one in ledger.entries()] == ["1", "3", "4"]

    def test_a_token_burns_once(self, ledger: Ledger) -> None:
        """The first caller gets its identity, the next one is told that it was used."""
        ledger.add_token(token())
        key = token_hash("secret")
        grant = ledger.burn_token(key, now=NOW, by="10.0.0.1")
        assert (grant.spiffe_id, grant.token_id) == (WEB, key[:16])
        message = refused(
            LedgerCode.TOKEN_USED, lambda: ledger.burn_token(key, now=NOW + 2 * HOUR, by="10.0.0.2")
        )
        assert "used at 2030-01-02T03:04:05Z" in message
        (kept,) = ledger.tokens()
        assert (kept.used_at, kept.used_by) == (NOW, "10.0.0.1")

    def test_refused_tokens_are_told_apart_and_audited(self, ledger: Ledger) -> None:
        """Unknown, expired and used are three answers, and each is in the log with who tried."""
        ledger.add_token(token("late", life=MINUTE))
        late = token_hash("late")
        refused(LedgerCode.TOKEN_EXPIRED, lambda: ledger.burn_token(late, now=NOW + MINUTE, by="10.0.0.1"))
        refused(LedgerCode.TOKEN_UNKNOWN, lambda: ledger.burn_token(token_hash("x"), now=NOW, by="10.0.0.2"))
        refused(LedgerCode.TOKEN_UNKNOWN, lambda: ledger.burn_token("no hex", now=NOW, by="10.0.0.2"))
        ledger.burn_token(late, now=NOW, by="10.0.0.3")
        refused(LedgerCode.TOKEN_USED, lambda: ledger.burn_token(late, now=NOW, by="10.0.0.4"))
        log = [(record.event, record.actor, record.fields().get("reason")) for record in ledger.audit()]
        assert log[1:] == [
            ("token_refused", "10.0.0.1", "token_expired"),
            ("token_refused", "10.0.0.2", "token_unknown"),
            ("token_refused", "10.0.0.2", "token_unknown"),
            ("token_burned", "10.0.0.3", None),
            ("token_refused", "10.0.0.4", "token_used"),
        ]

    def test_tokens_are_added_and_deleted(self, ledger: Ledger) -> None:
        """The secret is nowhere; a deleted token burns no more."""
        made = token()
        ledger.add_token(made)
        refused(LedgerCode.DUPLICATE, lambda: ledger.add_token(made))
        assert ledger.tokens() == (made,)
        assert ledger.delete_token(made.hash, now=NOW, by="root") == made
        refused(LedgerCode.UNKNOWN, lambda: ledger.delete_token(made.hash, now=NOW, by="root"))
        refused(LedgerCode.TOKEN_UNKNOWN, lambda: ledger.burn_token(made.hash, now=NOW, by="x"))

    def test_one_of_many_threads_burns_a_token(self, ledger: Ledger) -> None:
        """However many try at once, one gets it."""
        ledger.add_token(token())
        barrier = threading.Barrier(8)
        results: list[TokenGrant | LedgerCode] = []

        def burn() -> None:
            barrier.wait()
            try:
                results.append(ledger.burn_token(token_hash("secret"), now=NOW, by="x"))
            except LedgerRefusalError as error:
                results.append(error.code)

        threads = [threading.Thread(target=burn) for _ in range(8)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert results.count(LedgerCode.TOKEN_USED) == 7
        assert ledger.verify_audit().intact

    def test_signing_keys_change_state_from_where_they_are(self, ledger: Ledger) -> None:
        """Steps are made together or not at all, each only from the state that it names."""
        ledger.add_key(signing_key("old", KeyState.ACTIVE), by="root")
        ledger.add_key(signing_key("new"), by="root")
        ledger.add_key(signing_key("new", use=KeyUse.JWT), by="root")
        refused(LedgerCode.DUPLICATE, lambda: ledger.add_key(signing_key("new"), by="root"))
        retire = StateChange(KeyUse.X509, "old", KeyState.ACTIVE, KeyState.OLD)
        activate = StateChange(KeyUse.X509, "new", KeyState.PREPARED, KeyState.ACTIVE)
        later = NOW + HOUR
        for wrong, code in (
            (replace(activate, before=KeyState.OLD), LedgerCode.STATE_CHANGED),
            (replace(activate, key_id="none"), LedgerCode.UNKNOWN),
        ):
            changes = [retire, wrong]
            refused(code, lambda changes=changes: ledger.change_states(changes, now=later, by="root"))  # type: ignore[misc]
        assert [key.state for key in ledger.keys(KeyUse.X509)] == [KeyState.ACTIVE, KeyState.PREPARED]
        ledger.change_states([retire, activate], now=later, by="root")
        assert ledger.keys(KeyUse.X509) == (
            replace(signing_key("old", KeyState.OLD), changed_at=later),
            replace(signing_key("new", KeyState.ACTIVE), changed_at=later),
        )
        assert ledger.keys(KeyUse.JWT) == (signing_key("new", use=KeyUse.JWT),)

    def test_the_bundle_sequence_rises_with_its_content(
        self, ledger: Ledger, open_ledger: Callable[[], Ledger]
    ) -> None:
        """The same content keeps its number, whoever publishes it; another never gets an earlier one."""
        other = open_ledger()
        assert ledger.bundle_sequence() == 0
        assert ledger.publish_bundle("a", now=NOW, by="1") == 1
        assert other.publish_bundle("a", now=NOW, by="2") == 1
        assert other.publish_bundle("b", now=NOW, by="2") == 2
        assert ledger.publish_bundle("a", now=NOW, by="1") == 3
        assert other.bundle_sequence() == 3

    def test_other_trust_domains_are_kept(self, ledger: Ledger) -> None:
        """Every field comes back; fetching the same bundle again leaves no record."""
        domain = FederatedBundle(PARTNER, "https://partner.test/bundle", EndpointProfile.WEB)
        ledger.put_federated(domain, now=NOW, by="root")
        assert ledger.federated() == (domain,)
        fetched = replace(
            domain,
            profile=EndpointProfile.SPIFFE,
            endpoint_id=SpiffeId.parse("spiffe://partner.test/bundles"),
            document=b"{}",
            sequence=2**62,
            refresh_hint=timedelta(minutes=5),
            fetched_at=NOW,
        )
        ledger.put_federated(fetched, now=NOW, by="root")
        again = replace(fetched, fetched_at=NOW + HOUR)
        ledger.put_federated(again, now=NOW + HOUR, by="root")
        assert ledger.federated() == (again,)
        assert events(ledger) == ["federation_set"] * 2
        ledger.delete_federated(PARTNER, now=NOW, by="root")
        assert ledger.federated() == ()
        refused(LedgerCode.UNKNOWN, lambda: ledger.delete_federated(PARTNER, now=NOW, by="root"))

    def test_what_was_changed_or_deleted_meanwhile_is_not_replaced(
        self, ledger: Ledger, open_ledger: Callable[[], Ledger]
    ) -> None:
        """Who fetched a bundle stores it only if nobody else was there; what was deleted does not come back."""
        other = open_ledger()
        made = FederatedBundle(PARTNER, "https://partner.test/bundle", EndpointProfile.WEB)
        fetched = replace(made, document=b"{}", sequence=1, fetched_at=NOW)
        refused(LedgerCode.STATE_CHANGED, lambda: ledger.replace_federated(made, fetched, now=NOW, by="root"))
        ledger.replace_federated(None, made, now=NOW, by="root")
        refused(LedgerCode.DUPLICATE, lambda: other.replace_federated(None, made, now=NOW, by="root"))
        other.replace_federated(made, fetched, now=NOW, by="root")
        again = replace(fetched, fetched_at=NOW + HOUR)
        refused(LedgerCode.STATE_CHANGED, lambda: ledger.replace_federated(made, again, now=NOW, by="root"))
        refused(LedgerCode.STATE_CHANGED, lambda: ledger.replace_federated(again, again, now=NOW, by="root"))
        ledger.replace_federated(fetched, again, now=NOW, by="root")
        assert ledger.federated() == other.federated() == (again,)
        assert events(ledger) == ["federation_set"] * 2
        other.delete_federated(PARTNER, now=NOW, by="root")
        refused(
            LedgerCode.STATE_CHANGED, lambda: ledger.replace_federated(again, fetched, now=NOW, by="root")
        )
        assert ledger.federated() == ()

    def test_every_change_is_in_the_audit_log_once(self, ledger: Ledger) -> None:
        """The log tells what was done, by whom and when, and its chain holds."""
        issued = certificate(0xAB)
        ledger.record_issued([issued])
        ledger.revoke(ISSUER, 0xAB, RevocationReason.SUPERSEDED, now=NOW, by="root")
        ledger.put_crl(StoredCrl(ISSUER, 1, 0, b"", NOW, NOW + HOUR), now=NOW, by="root")
        ledger.add_entry(entry("1"))
        ledger.delete_entry("1", now=NOW, by="root")
        ledger.add_token(token())
        ledger.delete_token(token().hash, now=NOW, by="root")
        ledger.add_key(signing_key("k"), by="root")
        step = StateChange(KeyUse.X509, "k", KeyState.PREPARED, KeyState.ACTIVE)
        ledger.change_states([step], now=NOW, by="root")
        ledger.publish_bundle("a", now=NOW, by="root")
        head = ledger.append_audit(AuditEvent.ISSUANCE_DENIED, now=NOW, by="uid 7", details={"name": "é"})
        assert events(ledger) == [
            "certificate_issued",
            "certificate_revoked",
            "crl_published",
            "entry_created",
            "entry_deleted",
            "token_created",
            "token_deleted",
            "key_added",
            "key_state_changed",
            "bundle_changed",
            "issuance_denied",
        ]
        first = next(iter(ledger.audit()))
        assert first.line == (
            f'[1,"{"0" * 64}","2030-01-02T03:04:05.000678Z","certificate_issued","uid 1000",'
            f'{{"attested_by":"unix","issuer":"{ISSUER}","kind":"x509_svid","not_after":"2030-01-02T04:04:05Z",'
            f'"serial":"ab","sha256":"{issued.fingerprint}","spiffe_id":"spiffe://cluster.local/web"}}]'
        )
        assert [record.sequence for record in ledger.audit(after=9)] == [10, 11]
        verdict = ledger.verify_audit()
        assert (verdict.intact, verdict.head, ledger.audit_head()) == (True, head, head)

    def test_a_head_written_down_is_found_again(self, ledger: Ledger) -> None:
        """A log that was cut or made anew does not have the head that was written down elsewhere."""
        assert ledger.audit_head() == AuditHead()
        heads = [
            ledger.append_audit(AuditEvent.ISSUANCE_DENIED, now=NOW, by="x", details={"n": number})
            for number in range(3)
        ]
        for head in (*heads, AuditHead()):
            assert ledger.verify_audit(head).intact
        forged = replace(heads[1], hash="ab" * 32)
        assert ledger.verify_audit(forged).broken_at == 2
        ahead = AuditHead(4, "ab" * 32)
        assert ledger.verify_audit(ahead).broken_at == 4

    def test_a_clock_that_is_behind_gives_nothing(
        self, ledger: Ledger, open_ledger: Callable[[], Ledger]
    ) -> None:
        """An hour before the newest record nothing is issued or changed; taking away is possible."""
        other = open_ledger()
        ledger.record_issued([certificate(5)])
        ledger.add_entry(entry("old"))
        ledger.add_token(token("old"))
        ledger.add_token(token("unused"))
        ledger.add_key(signing_key("one"), by="root")
        partner = FederatedBundle(PARTNER, "https://partner.test", EndpointProfile.WEB)
        ledger.put_federated(partner, now=NOW, by="root")
        head, before = ledger.audit_head(), NOW - HOUR
        assert clock_problem(head, before)
        step = StateChange(KeyUse.X509, "one", KeyState.PREPARED, KeyState.ACTIVE)
        crl = StoredCrl(ISSUER, 1, 0, b"\x30\x00", NOW, NOW + HOUR)
        for one in (ledger, other):
            for change in (
                lambda one=one: one.record_issued([certificate(6, issued_at=before)]),
                lambda one=one: one.put_crl(crl, now=before, by="root"),
                lambda one=one: one.add_entry(entry("new", API, at=before)),
                lambda one=one: one.add_token(replace(token("new"), created_at=before)),
                lambda one=one: one.burn_token(token_hash("old"), now=before, by="x"),
                lambda one=one: one.add_key(replace(signing_key("two"), created_at=before), by="root"),
                lambda one=one: one.change_states([step], now=before, by="root"),
                lambda one=one: one.publish_bundle("a", now=before, by="root"),
                lambda one=one: one.put_federated(replace(partner, sequence=1), now=before, by="root"),
            ):
                with pytest.raises(ClockError):
                    change()  # type: ignore[no-untyped-call]
        assert ledger.audit_head() == other.audit_head() == head
        assert ledger.find(serial=6) == ()
        assert ledger.crls() == ()
        assert [one.used_at for one in ledger.tokens()] == [None, None]
        refused(LedgerCode.TOKEN_UNKNOWN, lambda: other.burn_token("aa" * 32, now=before, by="x"))
        other.revoke(ISSUER, 5, RevocationReason.KEY_COMPROMISE, now=before, by="root")
        other.delete_entry("old", now=before, by="root")
        other.delete_token(token_hash("unused"), now=before, by="root")
        other.delete_federated(PARTNER, now=before, by="root")
        other.append_audit(AuditEvent.ISSUANCE_DENIED, now=before, by="x", details={})
        assert {one.time for one in ledger.audit()} == {head.time}
        assert clock_problem(ledger.audit_head(), before)

    def test_a_clock_that_is_accepted_counts_for_all(
        self, ledger: Ledger, open_ledger: Callable[[], Ledger]
    ) -> None:
        """Also for who saw the newer record last, and has not looked since."""
        ledger.record_issued([certificate(5)])
        before = NOW - HOUR
        open_ledger().append_audit(AuditEvent.CLOCK_ACCEPTED, now=before, by="root", details={})
        ledger.record_issued([certificate(6, issued_at=before)])
        assert [one.time[11:19] for one in ledger.audit()] == ["03:04:05", "02:04:05", "02:04:05"]
        assert ledger.verify_audit().intact

    def test_threads_record_without_losing_one(self, ledger: Ledger) -> None:
        """Several threads at once: everything is there, in one chain."""
        counter = itertools.count(1)

        def work() -> None:
            for _ in range(20):
                ledger.record_issued([certificate(next(counter))])

        threads = [threading.Thread(target=work) for _ in range(4)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        page = ledger.issued(CertificateQuery(limit=1000), now=NOW)
        assert {one.serial for one in page.certificates} == set(range(1, 81))
        assert ledger.verify_audit().head.sequence == 80


class TestSqliteLedger(LedgerContract):
    """The ledger in a file."""

    @pytest.fixture
    def open_ledger(self, tmp_path: Path) -> Iterator[Callable[[], Ledger]]:
        """Open the same file each time."""
        opened: list[SqliteLedger] = []

        def open_again() -> Ledger:
            opened.append(SqliteLedger.of(tmp_path))
            return opened[-1]

        yield open_again
        for ledger in opened:
            ledger.close()


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """Run a server that keeps what it confirms."""
    with Valkey(tmp_path_factory.mktemp("v"), *DURABLE) as server:
        yield server


class TestRedisLedger(LedgerContract):
    """The ledger in Redis."""

    @pytest.fixture
    def open_ledger(self, valkey: Valkey) -> Iterator[Callable[[], Ledger]]:
        """Open the same ledger each time."""
        with valkey.client() as client:
            client.flushall()
        opened: list[RedisLedger] = []

        def open_again() -> Ledger:
            opened.append(open_redis(valkey))
            return opened[-1]

        yield open_again
        for ledger in opened:
            ledger.close()
