"""The hash of a record is that of one line which any program can make and read."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta, timezone

import pytest

from ca.audit import FIRST_PREVIOUS, AuditEvent, AuditHead, AuditRecord, verify_chain

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
