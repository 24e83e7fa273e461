"""The hash of a record is that of one line which any program can make and read."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta, timezone

import pytest

from ca.audit import (
    CLOCK_TOLERANCE,
    FIRST_PREVIOUS,
    AuditEvent,
    AuditHead,
    AuditRecord,
    ClockError,
    clock_problem,
    verify_chain,
)

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)


def records(count: int) -> list[AuditRecord]:
    """Return a log."""
    found: list[AuditRecord] = []
    head = AuditHead()
    for number in range(count):
        record = AuditRecord.after(
            head, AuditEvent.ISSUANCE_DENIED, actor="uid 1", details={"n": number}, now=NOW
        )
        found.append(record)
        head = record.head
    return found


def test_a_record_is_one_line_of_json() -> None:
    """The line that is documented, its hash, and every value as it was, whatever characters it holds."""
    actor, details = 'a","b"]\n☂', {"z": ("1", "]"), "a": None, "n": 7}
    offset = NOW.astimezone(timezone(timedelta(hours=2)))
    record = AuditRecord.after(
        AuditHead(), AuditEvent.TOKEN_REFUSED, actor=actor, details=details, now=offset
    )
    assert record.line == (
        f'[1,"{FIRST_PREVIOUS}","2030-01-02T03:04:05.000000Z","token_refused","a\\",\\"b\\"]\\n\\u2602",'
        '{"a":null,"n":7,"z":["1","]"]}]'
    )
    assert record.hash == hashlib.sha256(record.line.encode()).hexdigest()
    assert json.loads(record.line)[4:] == [actor, {"z": ["1", "]"], "a": None, "n": 7}]
    assert record.fields() == {"z": ["1", "]"], "a": None, "n": 7}


def test_a_whole_log_holds() -> None:
    """From the first record to the last; an empty one has the head that everything begins with."""
    log = records(3)
    assert verify_chain(log).head == log[-1].head
    assert verify_chain([]).head == AuditHead()
    assert verify_chain(log).intact


@pytest.mark.parametrize("missing", [0, 1])
def test_a_missing_record_breaks_the_chain_where_it_was(missing: int) -> None:
    """Its number is named."""
    log = records(3)
    del log[missing]
    assert verify_chain(log).broken_at == missing + 1


def test_swapped_and_doubled_records_break_the_chain() -> None:
    """Each has one place."""
    first, second, third = records(3)
    assert verify_chain([first, third, second]).broken_at == 2
    assert verify_chain([first, first, second]).broken_at == 2


def test_details_that_are_no_object_are_refused() -> None:
    """Only somebody else writes such."""
    with pytest.raises(ValueError, match="no JSON object"):
        AuditRecord(1, "", "", "", "", "[]", "").fields()


SECOND = timedelta(seconds=1)
# What may be recorded though the clock is behind: it takes away, or only tells.
ALWAYS = {
    AuditEvent.CERTIFICATE_REVOKED,
    AuditEvent.ISSUANCE_DENIED,
    AuditEvent.ENTRY_DELETED,
    AuditEvent.TOKEN_REFUSED,
    AuditEvent.TOKEN_DELETED,
    AuditEvent.FEDERATION_DELETED,
}


def after(head: AuditHead, event: AuditEvent, now: datetime) -> AuditRecord:
    """Return the record that follows."""
    return AuditRecord.after(head, event, actor="uid 1", details={}, now=now)


@pytest.mark.parametrize("event", [one for one in AuditEvent if one is not AuditEvent.CLOCK_ACCEPTED])
def test_times_never_go_back(event: AuditEvent) -> None:
    """A clock that is a little behind records at the time of the record before; one far behind gives nothing."""
    head = after(AuditHead(), AuditEvent.KEY_ADDED, NOW).head
    assert after(head, event, NOW + SECOND).time == "2030-01-02T03:04:06.000000Z"
    late = after(head, event, NOW - CLOCK_TOLERANCE)
    assert late.time == head.time
    too_late = NOW - CLOCK_TOLERANCE - SECOND
    if event in ALWAYS:
        assert after(head, event, too_late).time == head.time
    else:
        with pytest.raises(ClockError, match=r"says 2030-01-02T02:59:04Z.*newest.*2030-01-02T03:04:05Z"):
            after(head, event, too_late)
    assert verify_chain([after(AuditHead(), AuditEvent.KEY_ADDED, NOW), late]).intact


def test_an_operator_sets_the_log_back() -> None:
    """From the record that says so on, the time before is the one that counts."""
    head = after(AuditHead(), AuditEvent.KEY_ADDED, NOW).head
    before = NOW - timedelta(hours=1)
    assert clock_problem(head, before)
    accepted = after(head, AuditEvent.CLOCK_ACCEPTED, before)
    assert accepted.time == "2030-01-02T02:04:05.000000Z"
    assert clock_problem(accepted.head, before) == ""
    assert after(accepted.head, AuditEvent.CERTIFICATE_ISSUED, before).time == accepted.time


def test_a_head_without_a_time_holds_nobody_up() -> None:
    """That of an empty log, and one that was written down; a time that is none is a clock that is wrong."""
    assert clock_problem(AuditHead(), NOW) == clock_problem(AuditHead(7, "ab" * 32), NOW) == ""
    assert "tampered" in clock_problem(AuditHead(7, "ab" * 32, "yesterday"), NOW)
    assert AuditHead(7, "ab" * 32) == AuditHead(7, "ab" * 32, "2030-01-02T03:04:05.000000Z")
