"""Whatever is done to a ledger in whatever order: it agrees with a plain model, and its log stays whole."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from support.ledgers import API, HOUR, ISSUER, NOW, WEB, certificate, entry, open_redis, token
from support.valkey import DURABLE, Valkey

from ca.audit import AuditEvent, AuditHead, AuditRecord, verify_chain
from ca.ledger import (
    CertificateQuery,
    Ledger,
    LedgerCode,
    LedgerRefusalError,
    RevocationReason,
    StoredCrl,
    token_hash,
)
from ca.registration import Selector
from ca.store.redis_values import read_entry, write_entry
from ca.store.sqlite import SqliteLedger

SERIALS = st.integers(1, 6)
NAMES = st.sampled_from("abc")
MINUTE = timedelta(minutes=1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


class Ledgers(RuleBasedStateMachine):
    """Two openings of one ledger, in turn, beside a model."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.opened = [self.open() for _ in range(2)]
        self.issued: set[int] = set()
        self.revoked: set[int] = set()
        self.tokens: dict[str, str] = {}
        self.entries: list[str] = []
        self.crls = self.records = self.turn = 0
        self.published: tuple[int, str] = (0, "")

    def open(self) -> Ledger:
        """Open the ledger once more."""
        return SqliteLedger.of(Path(self.folder.name))

    def teardown(self) -> None:
        """Close the ledger."""
        for ledger in self.opened:
            ledger.close()
        self.folder.cleanup()

    @property
    def ledger(self) -> Ledger:
        """The opening whose turn it is."""
        self.turn += 1
        return self.opened[self.turn % 2]

    def expect(self, code: LedgerCode | None, action: str, *arguments: object, **options: object) -> None:
        """Call a method; `code` is why it must be refused, None if it must not."""
        method = getattr(self.ledger, action)
        if code is None:
            method(*arguments, **options)
            return
        with pytest.raises(LedgerRefusalError) as error:
            method(*arguments, **options)
        assert error.value.code is code

    @rule(serials=st.lists(SERIALS, min_size=1, max_size=3))
    def issue(self, serials: list[int]) -> None:
        """Record some certificates at once."""
        fresh = len(set(serials)) == len(serials) and not self.issued & set(serials)
        self.expect(
            None if fresh else LedgerCode.DUPLICATE, "record_issued", [certificate(one) for one in serials]
        )
        if fresh:
            self.issued |= set(serials)
            self.records += len(serials)

    @rule(serial=SERIALS)
    def revoke(self, serial: int) -> None:
        """Revoke a certificate."""
        code = LedgerCode.ALREADY_REVOKED if serial in self.revoked else None
        code = code if serial in self.issued else LedgerCode.UNKNOWN
        self.expect(code, "revoke", ISSUER, serial, RevocationReason.SUPERSEDED, now=NOW, by="root")
        if code is None:
            self.revoked.add(serial)
            self.records += 1

    @rule(name=NAMES)
    def add_token(self, name: str) -> None:
        """Add a token."""
        known = name in self.tokens
        self.expect(LedgerCode.DUPLICATE if known else None, "add_token", token(name, life=MINUTE))
        if not known:
            self.tokens[name] = "new"
            self.records += 1

    @rule(name=NAMES, late=st.booleans())
    def burn(self, name: str, late: bool) -> None:
        """Burn a token, perhaps too late."""
        code = {
            None: LedgerCode.TOKEN_UNKNOWN,
            "used": LedgerCode.TOKEN_USED,
            "new": LedgerCode.TOKEN_EXPIRED if late else None,
        }[self.tokens.get(name)]
        self.expect(code, "burn_token", token_hash(name), now=NOW + MINUTE * late, by="x")
        self.records += 1
        if code is None:
            self.tokens[name] = "used"

    @rule(name=NAMES)
    def add_entry(self, name: str) -> None:
        """Add a registration."""
        known = name in self.entries
        added = entry(name, API, f"unix:gid:{ord(name)}")
        self.expect(LedgerCode.DUPLICATE if known else None, "add_entry", added)
        if not known:
            self.entries.append(name)
            self.records += 1

    @rule(name=NAMES)
    def delete_entry(self, name: str) -> None:
        """Delete a registration."""
        known = name in self.entries
        self.expect(None if known else LedgerCode.UNKNOWN, "delete_entry", name, now=NOW, by="root")
        if known:
            self.entries.remove(name)
            self.records += 1

    @rule(number=st.integers(1, 4))
    def publish_crl(self, number: int) -> None:
        """Publish a CRL."""
        fits = number == self.crls + 1
        crl = StoredCrl(ISSUER, number, 0, b"", NOW, NOW + HOUR)
        self.expect(None if fits else LedgerCode.STATE_CHANGED, "put_crl", crl, now=NOW, by="root")
        if fits:
            self.crls = number
            self.records += 1

    @rule(digest=NAMES)
    def publish_bundle(self, digest: str) -> None:
        """Publish a bundle."""
        sequence, known = self.published
        if digest != known:
            self.records += 1
            self.published = (sequence + 1, digest)
        assert self.ledger.publish_bundle(digest, now=NOW, by="root") == self.published[0]

    @invariant()
    def agrees_with_the_model(self) -> None:
        """Both openings know the same as the model."""
        for ledger in self.opened:
            found = ledger.issued(CertificateQuery(), now=NOW).certificates
            assert {one.serial for one in found} == self.issued
            assert {one.serial for one in found if one.revocation} == self.revoked
            assert {one.serial for one in ledger.revoked(ISSUER, unexpired_at=NOW)} == self.revoked
            used = {one.hash for one in ledger.tokens() if one.used_at}
            assert used == {token_hash(name) for name, state in self.tokens.items() if state == "used"}
            assert [one.entry_id for one in ledger.entries()] == self.entries

    @invariant()
    def the_log_is_whole(self) -> None:
        """There is one record for each change or refused token, and the chain holds."""
        verdict = self.opened[0].verify_audit()
        assert (verdict.intact, verdict.head.sequence) == (True, self.records)


TestLedgers = Ledgers.TestCase
TestLedgers.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


@pytest.fixture(scope="module", autouse=True)
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """Run a server for all ledgers in Redis."""
    with Valkey(tmp_path_factory.mktemp("v"), *DURABLE) as server:
        RedisLedgers.valkey = server
        yield server


class RedisLedgers(Ledgers):
    """The same of a ledger in Redis, where each opening has an old head whenever it is its turn."""

    valkey: Valkey

    def __init__(self) -> None:
        with self.valkey.client() as client:
            client.flushall()
        super().__init__()

    def open(self) -> Ledger:
        """Open the ledger once more."""
        return open_redis(self.valkey)


TestRedisLedgers = RedisLedgers.TestCase
TestRedisLedgers.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)

STEPS = st.tuples(st.sampled_from(["issue", "burn", "revoke", "deny", "crl"]), st.integers(1, 3))


def take(ledger: Ledger, step: tuple[str, int]) -> str:
    """Do something, and return what came of it."""
    action, number = step
    try:
        match action:
            case "issue":
                ledger.record_issued([certificate(number), certificate(number + 10)])
            case "burn":
                ledger.burn_token(token_hash(str(number)), now=NOW, by="x")
            case "revoke":
                ledger.revoke(ISSUER, number, RevocationReason.SUPERSEDED, now=NOW, by="x")
            case "deny":
                ledger.append_audit(AuditEvent.ISSUANCE_DENIED, now=NOW, by="x", details={"n": number})
            case "crl":
                ledger.put_crl(StoredCrl(ISSUER, number, 0, b"", NOW, NOW + HOUR), now=NOW, by="x")
    except LedgerRefusalError as error:
        return f"{action} {number} {error.code}"
    return f"{action} {number}"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(STEPS, st.lists(STEPS, max_size=3)), min_size=1, max_size=8))
def test_whoever_comes_in_between_is_not_overlooked(
    valkey: Valkey, plan: list[tuple[tuple[str, int], list[tuple[str, int]]]]
) -> None:
    """Others change the ledger between what a change was decided on and its arrival: nothing is granted twice.

    The one that is overtaken ends as if it had come after all that overtook it.
    """
    with valkey.client() as client:
        client.flushall()
    mine, other = open_redis(valkey), open_redis(valkey)
    for number in range(1, 4):
        other.add_token(token(str(number)))
    server = mine._server
    send, between = server._send, list[tuple[str, int]]()
    outcomes: list[str] = []

    def overtaken(*arguments: Any, **named: Any) -> Any:
        outcomes.extend(take(other, between.pop(0)) for _ in range(len(between)))
        return send(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "_send", overtaken)
        for step, others in plan:
            between[:] = others
            outcome = take(mine, step)
            # One that was refused before it was sent lets nobody in between.
            outcomes.extend([outcome, *(take(other, one) for one in between)])
    expected, model = _in_sequence(outcomes)
    assert outcomes == expected
    assert other.verify_audit().intact
    assert [record.event for record in other.audit()] == model
    mine.close()
    other.close()


def _in_sequence(outcomes: list[str]) -> tuple[list[str], list[str]]:
    """Return what the same steps come to, one after the other, in a ledger of one process, and its log."""
    with tempfile.TemporaryDirectory() as folder:
        ledger = SqliteLedger.of(Path(folder))
        for number in range(1, 4):
            ledger.add_token(token(str(number)))
        steps = [(words[0], int(words[1])) for words in map(str.split, outcomes)]
        found = [take(ledger, step) for step in steps]
        log = [record.event for record in ledger.audit()]
        ledger.close()
    return found, log


@given(
    st.lists(st.tuples(TEXTS, st.dictionaries(TEXTS, TEXTS, max_size=3)), min_size=1, max_size=5),
    st.data(),
)
def test_no_change_to_a_record_goes_unseen(
    contents: list[tuple[str, dict[str, str]]], data: st.DataObject
) -> None:
    """Whatever stands in the log, another value in any field of any record breaks it at that record."""
    log: list[AuditRecord] = []
    for actor, details in contents:
        head = log[-1].head if log else AuditHead()
        log.append(AuditRecord.after(head, AuditEvent.ISSUANCE_DENIED, actor=actor, details=details, now=NOW))
    assert verify_chain(log).intact
    place = data.draw(st.integers(0, len(log) - 1))
    field = data.draw(st.sampled_from(["previous", "time", "event", "actor", "details", "hash"]))
    changed = data.draw(TEXTS.filter(lambda text: text != getattr(log[place], field)))
    log[place] = replace(log[place], **{field: changed})  # type: ignore[arg-type]  # all fields are text
    assert verify_chain(log).broken_at == place + 1


@given(st.text(max_size=60) | st.from_regex(r"\A(unix|k8s|jwt|x509|join_token):[a-z]{1,5}:.{0,40}\Z"))
def test_a_selector_has_one_spelling(text: str) -> None:
    """What parses prints as it was written, and parses again to the same."""
    try:
        selector = Selector.parse(text)
    except ValueError:
        return
    assert str(selector) == text
    assert Selector.parse(str(selector)) == selector


@settings(deadline=None)
@given(
    st.sets(
        st.sampled_from(["unix:uid:1", "unix:gid:2", "k8s:ns:a", "jwt:claim:a=ü", "jwt:sub:'x'"]), min_size=1
    ),
    st.timedeltas(timedelta(seconds=1), timedelta(hours=24)),
    st.timedeltas(timedelta(seconds=1), timedelta(hours=1)),
    st.sampled_from([(), ("web",), ("b", "a")]),
    st.sampled_from(["", "internal", 'a"b']),
)
def test_a_registration_comes_back_as_it_was(
    selectors: set[str], ttl: timedelta, jwt_ttl: timedelta, names: tuple[str, ...], hint: str
) -> None:
    """Storing loses nothing, whatever the store."""
    added = entry("1", WEB, *sorted(selectors), svid_ttl=ttl, jwt_ttl=jwt_ttl, dns_names=names, hint=hint)
    assert read_entry(write_entry(7, added).encode()) == (7, added)
    with tempfile.TemporaryDirectory() as folder:
        ledger = SqliteLedger.of(Path(folder))
        ledger.add_entry(added)
        assert ledger.entries() == (added,)
        ledger.close()
