"""Which identity an attested caller gets, and for how long: never one that it has not shown to be its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

import pytest
import structlog
from support.ledgers import NOW

from ca.attestation import Registrations
from ca.attestors.base import Attested, Reason, Refused, selectors
from ca.audit import AuditEvent
from ca.budget import Budget
from ca.entitlement import Grant, choose, lifetime
from ca.issuer import DEFAULT_TTL
from ca.ledger import Ledger, LedgerUnavailableError
from ca.refusals import RECORDS_AT_ONCE, REPEAT_SECONDS, RefusalLog
from ca.registration import Registration, SelectorKind
from ca.store.sqlite import SqliteLedger
from garrison.errors import RequestError
from garrison.identity import SpiffeId

WEB = SpiffeId.parse("spiffe://cluster.local/web")
API = SpiffeId.parse("spiffe://cluster.local/api")
AGENT = "spiffe://cluster.local/agent"
BY_USER = Registration.parse(str(WEB), ["jwt:sub:a"], timedelta(minutes=5), ["web.example"])
BY_USER_TOO = Registration.parse(str(API), ["jwt:sub:a"])
OF_AGENT = Registration.parse(str(WEB), ["jwt:sub:a"], parent_id=AGENT)
SECOND = 1_000_000_000


def attested(identity: SpiffeId | None = None, by: str = "jwt") -> Attested:
    """Return a caller with the subject `a`."""
    return Attested(selectors([(SelectorKind.JWT_SUBJECT, "a")]), "a", by, identity)


def given(
    caller: Attested, registrations: Iterable[Registration], named: SpiffeId | None = None
) -> Grant | Refused:
    """Return what `caller` gets while there are these registrations."""
    return choose(caller, Registrations(registrations), named)


def reason(found: Grant | Refused) -> Reason:
    """Return why there is no grant."""
    assert isinstance(found, Refused), found
    return found.reason


def test_the_only_identity_is_given() -> None:
    """With what is registered: life and DNS names."""
    assert given(attested(), [BY_USER]) == Grant(WEB, timedelta(minutes=5), ("web.example",))
    assert given(attested(), [BY_USER], WEB) == Grant.of(BY_USER)


def test_nothing_is_given_without_a_registration() -> None:
    """Not without any, not by one whose selectors are not met, and not by an agent's."""
    assert reason(given(attested(), [])) is Reason.NOT_REGISTERED
    other = Registration.parse(str(WEB), ["jwt:sub:a", "jwt:iss:x"])
    assert reason(given(attested(), [other])) is Reason.NOT_REGISTERED
    assert reason(given(attested(), [OF_AGENT])) is Reason.NOT_REGISTERED
    assert reason(given(attested(), [OF_AGENT], WEB)) is Reason.NOT_ENTITLED


def test_several_identities_are_a_question() -> None:
    """Answered by a name, which must be one of them."""
    both = [BY_USER, BY_USER_TOO]
    assert reason(given(attested(), both)) is Reason.AMBIGUOUS
    assert given(attested(), both, API) == Grant.of(BY_USER_TOO)
    assert reason(given(attested(), both, SpiffeId.parse("spiffe://cluster.local/x"))) is Reason.NOT_ENTITLED


def test_what_the_evidence_names_comes_first() -> None:
    """A join token's identity needs no registration; that of an SVID must be registered still."""
    joined = attested(API, "join_token")
    assert given(joined, []) == Grant(API, DEFAULT_TTL)
    assert given(joined, [BY_USER]) == Grant(API, DEFAULT_TTL)
    assert given(joined, [BY_USER], WEB) == Grant.of(BY_USER)
    assert given(joined, [BY_USER_TOO]) == Grant.of(BY_USER_TOO)
    shown = attested(WEB, "x509_svid")
    assert given(shown, [BY_USER, BY_USER_TOO]) == Grant.of(BY_USER)
    nobody = Attested(frozenset(), "x", "x509_svid", WEB)
    assert given(nobody, [BY_USER]) == Grant.of(BY_USER)
    assert reason(given(nobody, [])) is Reason.NOT_REGISTERED
    assert reason(given(nobody, [OF_AGENT])) is Reason.NOT_REGISTERED
    assert reason(given(nobody, [BY_USER_TOO])) is Reason.NOT_REGISTERED


@pytest.mark.parametrize(
    ("asked", "seconds"), [(0, 300), (1, 1), (299, 299), (300, 300), (301, 300), (7200, 300)]
)
def test_nobody_lives_longer_than_is_registered(asked: int, seconds: int) -> None:
    """0 asks for what is registered, less is given, more is not."""
    assert lifetime(asked, timedelta(hours=2), Grant.of(BY_USER)) == timedelta(seconds=seconds)


@pytest.mark.parametrize("asked", [-1, 7201, 2**63 - 1, -(2**63)])
def test_lives_that_nobody_gets(asked: int) -> None:
    """Above the maximum is an error also where less is registered, and so is less than nothing."""
    with pytest.raises(RequestError):
        lifetime(asked, timedelta(hours=2), Grant.of(BY_USER))


def test_the_maximum_holds_for_what_is_registered_too() -> None:
    """A CA that was told to give less gives less."""
    assert lifetime(0, timedelta(minutes=1), Grant.of(BY_USER)) == timedelta(minutes=1)


def test_a_budget_is_for_each_key() -> None:
    """So many at once, then so many a second; what is given back can be taken again."""
    budget = Budget(2, 3)
    assert [budget.take("a", 0) for _ in range(4)] == [True, True, True, False]
    assert budget.take("b", 0)
    assert not budget.take("a", SECOND // 2 - 1)
    assert budget.take("a", SECOND // 2)
    budget.give_back("a")
    budget.give_back("nobody")
    assert [budget.take("a", SECOND // 2) for _ in range(2)] == [True, False]
    assert [budget.take("a", 100 * SECOND, cost) for cost in (4, 3, 1)] == [False, True, False]


def test_a_budget_forgets_who_was_there_longest_ago() -> None:
    """Memory is bounded, whatever names callers make up."""
    budget = Budget(1, 1, max_keys=2)
    assert [budget.take(key, 0) for key in ("a", "b", "a", "c")] == [True, True, False, True]
    assert budget.take("a", 0)
    assert not budget.take("c", 0)


def test_refusals_are_recorded_up_to_a_rate(tmp_path: Path) -> None:
    """All are counted; above the rate, the next record says how many have none of their own."""
    ledger, clock = SqliteLedger.of(tmp_path), [0]
    log = RefusalLog(ledger, monotonic_ns=lambda: clock[0])
    refused = Refused(Reason.EXPIRED, "x" * 1000)
    for _ in range(RECORDS_AT_ONCE + 7):
        log.add(refused, now=NOW, by="10.0.0.1:1", method="CreateCertificate")
    clock[0] += SECOND
    log.add(refused, now=NOW, by="10.0.0.1:1", method="CreateCertificate")
    log.close()
    records = [one for one in ledger.audit() if one.event == AuditEvent.ISSUANCE_DENIED]
    assert log.counts == Counter({Reason.EXPIRED: RECORDS_AT_ONCE + 8})
    assert len(records) == RECORDS_AT_ONCE + 1
    assert records[-1].fields() == {
        "detail": "x" * 500,
        "left_out": 7,
        "method": "CreateCertificate",
        "reason": "expired",
    }
    assert (records[0].actor, "left_out" in records[0].fields()) == ("10.0.0.1:1", False)
    log.add(refused, now=NOW, by="late", method="CreateCertificate")
    ledger.close()


def test_a_local_process_that_tries_again_is_recorded_once_a_minute(tmp_path: Path) -> None:
    """All are counted; its next record says how often it tried meanwhile. Others have records of their own."""
    ledger, clock = SqliteLedger.of(tmp_path), [0]
    log = RefusalLog(ledger, monotonic_ns=lambda: clock[0])

    def refuse(who: str, pid: int, method: str = "StreamSecrets") -> None:
        refused = Refused(Reason.NOT_REGISTERED, f"no registration matches this caller ({who})")
        about = {"pid": pid, "uid": 7}
        log.add_local(
            refused, now=NOW, by=f"{who}, pid {pid}", method=method, event="sds denied", about=about
        )

    with structlog.testing.capture_logs() as logs:
        for number in range(5):
            refuse("uid 7", number)
        refuse("uid 8", 9)
        refuse("uid 7", 9, "FetchX509SVID")
        clock[0] += REPEAT_SECONDS * SECOND
        refuse("uid 7", 10)
        clock[0] += REPEAT_SECONDS * SECOND
        refuse("uid 7", 11)
    log.close()
    records = [one for one in ledger.audit() if one.event == AuditEvent.ISSUANCE_DENIED]
    assert [(one.actor, one.fields().get("repeated")) for one in records] == [
        ("uid 7, pid 0", None),
        ("uid 8, pid 9", None),
        ("uid 7, pid 9", None),
        ("uid 7, pid 10", 4),
        ("uid 7, pid 11", None),
    ]
    assert [(one["event"], one["pid"]) for one in logs] == [
        ("sds denied", pid) for pid in (0, 1, 2, 3, 4, 9, 9, 10, 11)
    ]
    assert log.counts == Counter({Reason.NOT_REGISTERED: 9})
    ledger.close()


def test_local_refusals_share_the_rate_of_all_others(tmp_path: Path) -> None:
    """Whoever makes up names has no more records than the rate allows, and the rest is counted."""
    ledger, clock = SqliteLedger.of(tmp_path), [0]
    log = RefusalLog(ledger, monotonic_ns=lambda: clock[0])

    def refuse(number: int) -> None:
        refused = Refused(Reason.NOT_ENTITLED, f"may not have `{number}`")
        log.add_local(refused, now=NOW, by="uid 7", method="FetchSecrets", event="sds denied", about={})

    with structlog.testing.capture_logs() as logs:
        for number in range(RECORDS_AT_ONCE + 7):
            refuse(number)
    assert len(logs) == RECORDS_AT_ONCE
    clock[0] += SECOND
    log.add(Refused(Reason.EXPIRED, "x"), now=NOW, by="10.0.0.1:1", method="CreateCertificate")
    log.close()
    records = list(ledger.audit())
    assert len(records) == RECORDS_AT_ONCE + 1
    assert (records[-1].fields()["reason"], records[-1].fields()["left_out"]) == ("expired", 7)
    ledger.close()


def test_an_agent_only_logs_refusals() -> None:
    """It has no ledger."""
    log = RefusalLog(None)
    with structlog.testing.capture_logs() as logs:
        refused = Refused(Reason.NOT_REGISTERED, "x")
        log.add_local(
            refused, now=NOW, by="x", method="FetchX509SVID", event="workload denied", about={"uid": 7}
        )
    log.close()
    assert [(one["event"], one["uid"]) for one in logs] == [("workload denied", 7)]


def test_a_refusal_stays_one_when_it_cannot_be_recorded() -> None:
    """Nothing is raised, and later ones are recorded again."""

    class Broken:
        """A ledger without a disk."""

        def __init__(self) -> None:
            self.asked = 0

        def append_audit(self, *_: object, **__: object) -> None:
            """Fail, each time in another way."""
            self.asked += 1
            raise LedgerUnavailableError("no disk") if self.asked == 1 else RuntimeError("bug")

    broken = Broken()
    ledger: Ledger = broken  # type: ignore[assignment]
    log = RefusalLog(ledger)
    for _ in range(3):
        log.add(Refused(Reason.EXPIRED, "x"), now=NOW, by="a", method="m")
    log.close()
    assert (broken.asked, log.counts[Reason.EXPIRED]) == (3, 3)
