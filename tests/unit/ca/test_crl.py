"""A CRL says what is revoked, is renewed in time, and one replica's work serves all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st
from support.ledgers import certificate

from ca.authority import Authority, Hierarchy
from ca.crl import CRL_LIFE, GRACE, RENEW_AFTER, build_crl, crl_pem, is_due, renew_crl
from ca.issuer import BACKDATE, Issuer
from ca.keys import KeyType, new_ca_key, new_private_key, signature_hash
from ca.ledger import (
    LedgerCode,
    LedgerRefusalError,
    RevocationReason,
    RevokedSerial,
    StoredCrl,
    issuer_of,
)
from ca.store.sqlite import SqliteLedger
from garrison.errors import IssuanceError
from garrison.identity import SpiffeId, TrustDomain

UNSPECIFIED = RevocationReason.UNSPECIFIED


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqliteLedger]:
    """Return an empty ledger."""
    opened = SqliteLedger.of(tmp_path)
    yield opened
    opened.close()


def revoke(ledger: SqliteLedger, authority: Authority, now: datetime) -> int:
    """Record a certificate of `authority`, revoke it, and return its serial number."""
    issued = certificate(issuer=authority.issuer.key_identifier, not_after=now + timedelta(hours=1))
    ledger.record_issued([issued])
    ledger.revoke(issued.issuer, issued.serial, UNSPECIFIED, now=now, by="root")
    return issued.serial


def serials(crl: StoredCrl) -> set[int]:
    """Return what the CRL lists."""
    return {one.serial_number for one in x509.load_der_x509_crl(crl.der)}


def test_a_crl_is_that_of_its_issuer(authority: Authority, now: datetime) -> None:
    """Issuer, number, times and reasons stand in it, and the issuer's key verifies it."""
    revoked = [RevokedSerial(number + 1, now, reason) for number, reason in enumerate(RevocationReason)] + [
        RevokedSerial(2**128 - 1, now, UNSPECIFIED)
    ]
    made = build_crl(authority.issuer, revoked, number=7, revocations=3, now=now)
    crl = x509.load_der_x509_crl(made.der)
    issuer = authority.issuer.certificate
    public_key = authority.issuer.key.public_key()
    assert crl.is_signature_valid(public_key)
    assert crl.issuer == issuer.subject
    assert crl.last_update_utc == made.this_update == (now - BACKDATE).replace(microsecond=0)
    assert crl.next_update_utc == made.next_update == (now + CRL_LIFE).replace(microsecond=0)
    assert crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 7
    identifier = crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    assert identifier is not None
    assert identifier.hex() == made.issuer == authority.issuer.key_identifier
    reasons = {
        one.serial_number: [extension.value.reason.name for extension in one.extensions] for one in crl
    }
    assert reasons == {one.serial: [] if one.reason is UNSPECIFIED else [one.reason.value] for one in revoked}
    assert {one.revocation_date_utc for one in crl} == {now.replace(microsecond=0)}


def test_certificates_name_the_issuer_of_their_crl(authority: Authority, now: datetime) -> None:
    """What a leaf is recorded under is what the CRL is looked up by."""
    web = SpiffeId(authority.trust_domain, ("web",))
    svid = authority.issue(web, new_private_key().public_key(), now=now, ttl=timedelta(hours=1))
    assert issuer_of(svid.leaf) == authority.issuer.key_identifier


def test_an_issuer_that_may_not_sign_one_does_not(authority: Authority, now: datetime) -> None:
    """An expired issuer signs nothing; near its end the list ends with it."""
    end = authority.not_after
    with pytest.raises(IssuanceError, match="expired"):
        build_crl(authority.issuer, [], number=1, revocations=0, now=end)
    crl = build_crl(authority.issuer, [], number=1, revocations=0, now=end - timedelta(minutes=1))
    assert crl.next_update == end
    assert crl.this_update == (end - timedelta(minutes=1) - BACKDATE).replace(microsecond=0)


def test_a_revocation_makes_the_next_crl(ledger: SqliteLedger, authority: Authority, now: datetime) -> None:
    """Nothing new: the stored one. Something new: a list with it, and the next number."""
    empty = renew_crl(ledger, authority.issuer, now=now, by="x")
    assert (empty.number, serials(empty)) == (1, set())
    assert renew_crl(ledger, authority.issuer, now=now, by="x") == empty
    first = revoke(ledger, authority, now)
    ledger.record_issued([certificate(issuer="bb" * 20)])
    second = revoke(ledger, authority, now)
    made = renew_crl(ledger, authority.issuer, now=now, by="x")
    assert (made.number, serials(made)) == (2, {first, second})
    assert ledger.crls() == (made,)
    for one in (empty, made):
        assert crl_pem([one]) == x509.load_der_x509_crl(one.der).public_bytes(Encoding.PEM)
    assert crl_pem([empty, made]) == crl_pem([empty]) + crl_pem([made])


def test_it_is_renewed_on_schedule_also_with_nothing_on_it(
    ledger: SqliteLedger, authority: Authority, now: datetime
) -> None:
    """Before two thirds of its life it stays, then a new one comes, long before the old one ends."""
    start = now + timedelta(hours=1)
    first = renew_crl(ledger, authority.issuer, now=start, by="x")
    due = first.this_update + RENEW_AFTER
    moment = due - timedelta(microseconds=1)
    assert renew_crl(ledger, authority.issuer, now=moment, by="x") == first
    second = renew_crl(ledger, authority.issuer, now=due, by="x")
    assert (second.number, second.next_update) == (2, (due + CRL_LIFE).replace(microsecond=0))
    assert is_due(None, 0, now)
    assert is_due(first, 1, start)


def test_what_expired_leaves_the_list_after_one_that_names_it(
    ledger: SqliteLedger, authority: Authority, now: datetime
) -> None:
    """RFC 5280, 3.3: also the first list after its end still has it."""
    serial = revoke(ledger, authority, now)
    end = now + timedelta(hours=1)
    kept = renew_crl(ledger, authority.issuer, now=end + RENEW_AFTER, by="x")
    assert serials(kept) == {serial}
    gone = renew_crl(ledger, authority.issuer, now=end + GRACE + RENEW_AFTER, by="x")
    assert serials(gone) == set()


class RacedLedger(SqliteLedger):
    """Another replica publishes a CRL just before ours, as often as it is told."""

    races = 0

    def put_crl(self, crl: StoredCrl, *, now: datetime, by: str) -> None:
        """Store theirs first."""
        if self.races:
            self.races -= 1
            theirs = StoredCrl(crl.issuer, crl.number, 0, crl.der, crl.this_update, crl.next_update)
            super().put_crl(theirs, now=now, by="other")
        super().put_crl(crl, now=now, by=by)


def test_who_loses_a_race_looks_whether_the_other_list_will_do(
    hierarchy: Hierarchy, tmp_path: Path, now: datetime
) -> None:
    """The other one lacks our revocation: ours is built again on top of it."""
    authority = hierarchy.authority()
    ledger = RacedLedger.of(tmp_path)
    assert isinstance(ledger, RacedLedger)
    serial = revoke(ledger, authority, now)
    ledger.races = 2
    crl = renew_crl(ledger, authority.issuer, now=now, by="x")
    assert (crl.number, serials(crl), crl.revocations) == (3, {serial}, 1)
    ledger.races = 100
    revoke(ledger, authority, now)
    with pytest.raises(IssuanceError, match="all the time"):
        renew_crl(ledger, authority.issuer, now=now, by="x")
    ledger.races = 0
    with pytest.raises(LedgerRefusalError) as error:
        ledger.put_crl(crl, now=now, by="x")
    assert error.value.code is LedgerCode.STATE_CHANGED
    ledger.close()


def by_the_library(issuer: Issuer, made: StoredCrl, revoked: Sequence[RevokedSerial]) -> bytes:
    """Return what is signed of a list that the library makes, with the times and number of `made`."""
    ours = x509.load_der_x509_crl(made.der)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(made.this_update)
        .next_update(made.next_update)
    )
    for extension in ours.extensions:
        builder = builder.add_extension(extension.value, critical=extension.critical)
    for one in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(one.serial).revocation_date(one.at)
        if one.reason is not UNSPECIFIED:
            flag = getattr(x509.ReasonFlags, one.reason.value)
            entry = entry.add_extension(x509.CRLReason(flag), critical=False)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(issuer.key, signature_hash(issuer.key)).tbs_certlist_bytes


_REVOKED = st.builds(
    RevokedSerial,
    st.integers(1, 2**128 - 1),
    st.datetimes(datetime(1990, 1, 1), datetime(2090, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    st.sampled_from(RevocationReason),
)


@pytest.mark.parametrize("kind", list(KeyType))
def test_entries_are_written_as_the_library_writes_them(kind: KeyType, now: datetime) -> None:
    """Whatever is revoked, when and why: byte for byte the same list, and its signature verifies."""
    issuer = Hierarchy.create(
        TrustDomain("cluster.local"), now=now, new_private_key=lambda: new_ca_key(kind)
    ).issuer

    @settings(max_examples=60, deadline=None)
    @given(st.lists(_REVOKED, max_size=20, unique_by=lambda one: one.serial))
    def holds(revoked: list[RevokedSerial]) -> None:
        made = build_crl(issuer, revoked, number=3, revocations=1, now=now)
        crl = x509.load_der_x509_crl(made.der)
        assert crl.tbs_certlist_bytes == by_the_library(issuer, made, revoked)
        assert crl.is_signature_valid(issuer.key.public_key())

    holds()
