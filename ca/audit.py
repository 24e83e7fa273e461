"""The audit log: each record holds the hash of the one before it, so that no record can be changed unseen.

A record is one line, a JSON array in ASCII without spaces:

    [sequence,"previous hash","time","event","actor",{details}]

Time is UTC with microseconds (`2030-01-02T03:04:05.000006Z`), details have sorted keys, hashes are SHA-256 in
lower-case hex. The hash of a record is that of its line without a newline; the first one's previous hash is
64 zeros, and sequences count up from 1. So any language can check a log that was printed.

Times never go back: a record of a clock that is a little late has the time of the one before it. A clock that
is late by more than `CLOCK_TOLERANCE` may only take away and tell (`ClockError`): whoever issues by it does
not know what has ended.

The chain shows changes, not a missing end: who can write to the store can cut the log or make a whole new
one. Write down a head (`AuditHead`) elsewhere from time to time; `verify_chain` finds it again or says so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from garrison.errors import IssuanceError

FIRST_PREVIOUS = "0" * 64
# How far the clocks of those who write to one log may be apart.
CLOCK_TOLERANCE = timedelta(minutes=5)

# What details hold: text, numbers and lists of text.
Details = Mapping[str, str | int | tuple[str, ...] | None]

_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


class AuditEvent(StrEnum):
    """What a record is about; names stay as they are, since they are in logs that cannot be changed."""

    CERTIFICATE_ISSUED = "certificate_issued"
    CERTIFICATE_REVOKED = "certificate_revoked"
    CERTIFICATES_FORGOTTEN = "certificates_forgotten"
    ISSUANCE_DENIED = "issuance_denied"
    ENTRY_CREATED = "entry_created"
    ENTRY_DELETED = "entry_deleted"
    TOKEN_CREATED = "token_created"
    TOKEN_BURNED = "token_burned"
    TOKEN_REFUSED = "token_refused"
    TOKEN_DELETED = "token_deleted"
    KEY_ADDED = "key_added"
    KEY_STATE_CHANGED = "key_state_changed"
    BUNDLE_CHANGED = "bundle_changed"
    FEDERATION_SET = "federation_set"
    FEDERATION_DELETED = "federation_deleted"
    CRL_PUBLISHED = "crl_published"
    CLOCK_ACCEPTED = "clock_accepted"


# What takes away, or only tells, waits for no clock.
_WHATEVER_THE_TIME = frozenset(
    {
        AuditEvent.CERTIFICATE_REVOKED,
        AuditEvent.ISSUANCE_DENIED,
        AuditEvent.ENTRY_DELETED,
        AuditEvent.TOKEN_REFUSED,
        AuditEvent.TOKEN_DELETED,
        AuditEvent.FEDERATION_DELETED,
    }
)


class ClockError(IssuanceError):
    """By the log, the clock is wrong: nothing is issued, and nothing is changed but to take away."""


@dataclass(frozen=True, slots=True)
class AuditHead:
    """The last record of a log: what to write down elsewhere; sequence 0 is that of an empty log.

    `time` is that of the record, "" where nobody knows; it is no part of what is written down.
    """

    sequence: int = 0
    hash: str = FIRST_PREVIOUS
    time: str = field(default="", compare=False)


def clock_problem(head: AuditHead, now: datetime) -> str:
    """Return what is wrong with a clock that says `now` by the log that ends in `head`, "" if nothing is."""
    if not head.time or _time(now) >= head.time:
        return ""
    try:
        newest = datetime.fromisoformat(head.time)
        if newest - now <= CLOCK_TOLERANCE:
            return ""
    except (ValueError, TypeError):
        return "the newest record of the ledger has a time that is none: somebody has tampered with it"
    return (
        f"the clock of this machine says {now:%FT%TZ}, and the newest record of the ledger is of "
        f"{newest:%FT%TZ}: nothing is issued until the clock is right (if it is: `ca clock --accept`)"
    )


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One record as it is stored; `details` is JSON text."""

    sequence: int
    previous: str
    time: str
    event: str
    actor: str
    details: str
    hash: str

    @classmethod
    def after(
        cls, head: AuditHead, event: AuditEvent, *, actor: str, details: Details, now: datetime
    ) -> AuditRecord:
        """Return the record that follows `head`.

        Raises:
            ClockError: `now` is long before the time of `head`, and `event` gives something.

        """
        time = _time(now)
        if time < head.time and event is not AuditEvent.CLOCK_ACCEPTED:
            if event not in _WHATEVER_THE_TIME and (problem := clock_problem(head, now)):
                raise ClockError(problem)
            time = head.time
        text = _encode(details)
        sequence = head.sequence + 1
        line = _line(sequence, text, head.hash, time, event, actor)
        return cls(sequence, head.hash, time, event, actor, text, _digest(line))

    @property
    def head(self) -> AuditHead:
        """This record as the end of a log."""
        return AuditHead(self.sequence, self.hash, self.time)

    @property
    def line(self) -> str:
        """What the hash is made of."""
        return _line(self.sequence, self.details, self.previous, self.time, self.event, self.actor)

    def fields(self) -> dict[str, Any]:
        """Return the details as plain data.

        Raises:
            ValueError: they are no JSON object; only a record that was tampered with has such.

        """
        found = json.loads(self.details)
        if not isinstance(found, dict):
            raise ValueError("the details are no JSON object")  # noqa: TRY004 - the text is wrong
        return found


@dataclass(frozen=True, slots=True)
class AuditVerdict:
    """What walking a log has shown: how far it holds, and the first thing that is wrong, if any.

    `broken_at` is the sequence at which it is wrong; `problem` says what, and is empty if nothing is.
    """

    head: AuditHead
    broken_at: int | None = None
    problem: str = ""

    @property
    def intact(self) -> bool:
        """Whether nothing is wrong."""
        return self.broken_at is None


def verify_chain(records: Iterable[AuditRecord], *anchors: AuditHead | None) -> AuditVerdict:
    """Walk a log from its beginning, and stop at the first record that is not as it must be.

    `anchors` are heads of this log that were written down before (None: none): they have to be found again.
    """
    wanted = [anchor for anchor in anchors if anchor is not None]
    head = AuditHead()
    for record in records:
        problem = _problem(record, head)
        if not problem and any(one.sequence == record.sequence and one.hash != record.hash for one in wanted):
            problem = "its hash is not the one that was written down"
        if problem:
            return AuditVerdict(head, head.sequence + 1, problem)
        head = record.head
    last = max((one.sequence for one in wanted), default=0)
    if last > head.sequence:
        return AuditVerdict(head, head.sequence + 1, f"it is missing, as is what follows to {last}")
    return AuditVerdict(head)


def _problem(record: AuditRecord, head: AuditHead) -> str:
    if record.sequence != head.sequence + 1:
        return f"it is missing: record {record.sequence} follows record {head.sequence}"
    if record.previous != head.hash:
        return "it does not name the hash of the record before it"
    if record.hash != _digest(record.line):
        return "its content does not have its hash"
    return ""


def _time(moment: datetime) -> str:
    # Of one length, so that text compares as time does.
    return f"{moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


def _line(sequence: int, details: str, *texts: str) -> str:
    # Every text is encoded, so no value can be read as two, and details end the line.
    return f"[{sequence},{','.join(map(_encode, texts))},{details}]"


def _digest(line: str) -> str:
    # A tampered record may hold a lone surrogate.
    return hashlib.sha256(line.encode(errors="surrogatepass")).hexdigest()
