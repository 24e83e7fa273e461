"""What was refused: counted, logged, and recorded in the audit log, without the caller waiting for a disk.

Anybody can be refused as often as they like, and the audit log is kept for ever: above a rate, refusals are
counted in the next record and line (`left_out`) instead of having one each. A local process that is refused
tries again and again: the same within a minute is counted in its next record (`repeated`).
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Mapping
from datetime import datetime
from typing import Any

import structlog

from ca.attestors.base import Refused
from ca.audit import AuditEvent, Details
from ca.budget import Budget
from ca.ledger import Ledger
from garrison.errors import GarrisonError

RECORDS_PER_SECOND = 20
RECORDS_AT_ONCE = 100
REPEAT_SECONDS = 60
_MOST_TEXT = 500
_MOST_CALLERS = 10_000
_SECOND = 1_000_000_000

_log = structlog.get_logger()


class RefusalLog:
    """Writes refusals into a ledger in a thread of its own; without one, only into the log.

    `counts` are by reason.
    """

    def __init__(self, ledger: Ledger | None, *, monotonic_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._ledger = ledger
        self._monotonic_ns = monotonic_ns
        self._budget = Budget(RECORDS_PER_SECOND, RECORDS_AT_ONCE)
        self._lines = Budget(RECORDS_PER_SECOND, RECORDS_AT_ONCE)
        self._wakeup = threading.Condition()
        self._waiting: list[tuple[datetime, str, dict[str, str | int]]] = []
        self._left_out = 0
        # When what was noted of local processes, and how often again since.
        self._noted: OrderedDict[Hashable, tuple[int, int]] = OrderedDict()
        self._closed = False
        self._thread: threading.Thread | None = None
        self.counts: Counter[str] = Counter()

    def add(self, refused: Refused, *, now: datetime, by: str, method: str) -> None:
        """Note that `by` was refused; for one event loop."""
        self.counts[refused.reason] += 1
        details = _details(refused, method)
        with self._wakeup:
            if self._take(details, self._monotonic_ns()):
                _log.warning("ca refused", by=by, **details)
                self._record(now, by, details)

    def add_local(
        self, refused: Refused, *, now: datetime, by: str, method: str, event: str, about: Mapping[str, Any]
    ) -> None:
        """Note that a local process was refused, with a line `event` in the log that says `about` it."""
        self.counts[refused.reason] += 1
        details, at = _details(refused, method), self._monotonic_ns()
        # Not by its id: a process that fails is started again.
        key = (about.get("peer"), *details.values())
        if self._lines.take("", at):
            _log.warning(event, **about, method=method)
        with self._wakeup:
            before, again = self._noted.get(key, (0, 0))
            if key in self._noted and at - before < REPEAT_SECONDS * _SECOND:
                self._noted[key] = (before, again + 1)
                return
            if not self._take(details, at):
                return
            if again:
                details["repeated"] = again
            self._noted[key] = (at, 0)
            self._noted.move_to_end(key)
            if len(self._noted) > _MOST_CALLERS:
                self._noted.popitem(last=False)
            self._record(now, by, details)

    def close(self) -> None:
        """Record what waits, and end the thread."""
        with self._wakeup:
            self._closed = True
            self._wakeup.notify()
        if self._thread is not None:
            self._thread.join()

    def _take(self, details: dict[str, str | int], at: int) -> bool:
        """Tell whether there is room for one more record; put into it how many there was none for."""
        if self._closed or not self._budget.take("", at):
            self._left_out += 1
            return False
        if self._left_out:
            details["left_out"] = self._left_out
            self._left_out = 0
        return True

    def _record(self, now: datetime, by: str, details: dict[str, str | int]) -> None:
        if self._ledger is None:
            return
        self._waiting.append((now, by[:_MOST_TEXT], details))
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, args=(self._ledger,), name="ca-refusals")
            self._thread.daemon = True
            self._thread.start()
        self._wakeup.notify()

    def _work(self, ledger: Ledger) -> None:
        while True:
            with self._wakeup:
                while not self._waiting and not self._closed:
                    self._wakeup.wait()
                waiting, self._waiting = self._waiting, []
            if not waiting:
                return
            for now, by, details in waiting:
                self._write(ledger, now, by, details)

    def _write(self, ledger: Ledger, now: datetime, by: str, details: Details) -> None:
        try:
            ledger.append_audit(AuditEvent.ISSUANCE_DENIED, now=now, by=by, details=details)
        except GarrisonError as error:
            # It is in the ordinary log; nothing was given away.
            _log.error("refusal not recorded", reason=str(error))
        except Exception:  # noqa: BLE001 - a bug here must not end the recording of all that follow
            _log.exception("refusal not recorded")


def _details(refused: Refused, method: str) -> dict[str, str | int]:
    return {"detail": refused.detail[:_MOST_TEXT], "method": method, "reason": refused.reason.value}
