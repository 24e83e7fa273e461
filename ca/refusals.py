"""What was refused: counted, logged, and recorded in the audit log, without the caller waiting for a disk.

Anybody can be refused as often as they like, and the audit log is kept for ever: above a rate, refusals are
counted in the next record and line (`left_out`) instead of having one each.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime

import structlog

from ca.attestors.base import Refused
from ca.audit import AuditEvent, Details
from ca.budget import Budget
from ca.ledger import Ledger
from garrison.errors import GarrisonError

RECORDS_PER_SECOND = 20
RECORDS_AT_ONCE = 100
_MOST_TEXT = 500

_log = structlog.get_logger()


class RefusalLog:
    """Writes refusals into a ledger in a thread of its own; `counts` are by reason."""

    def __init__(self, ledger: Ledger, *, monotonic_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._ledger = ledger
        self._monotonic_ns = monotonic_ns
        self._budget = Budget(RECORDS_PER_SECOND, RECORDS_AT_ONCE)
        self._wakeup = threading.Condition()
        self._waiting: list[tuple[datetime, str, dict[str, str | int]]] = []
        self._left_out = 0
        self._closed = False
        self._thread: threading.Thread | None = None
        self.counts: Counter[str] = Counter()

    def add(self, refused: Refused, *, now: datetime, by: str, method: str) -> None:
        """Note that `by` was refused; for one event loop."""
        self.counts[refused.reason] += 1
        details: dict[str, str | int] = {
            "detail": refused.detail[:_MOST_TEXT],
            "method": method,
            "reason": refused.reason.value,
        }
        with self._wakeup:
            if self._closed or not self._budget.take("", self._monotonic_ns()):
                self._left_out += 1
                return
            if self._left_out:
                details["left_out"] = self._left_out
                self._left_out = 0
            _log.warning("ca refused", by=by, **details)
            self._waiting.append((now, by[:_MOST_TEXT], details))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="ca-refusals", daemon=True)
                self._thread.start()
            self._wakeup.notify()

    def close(self) -> None:
        """Record what waits, and end the thread."""
        with self._wakeup:
            self._closed = True
            self._wakeup.notify()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        while True:
            with self._wakeup:
                while not self._waiting and not self._closed:
                    self._wakeup.wait()
                waiting, self._waiting = self._waiting, []
            if not waiting:
                return
            for now, by, details in waiting:
                self._write(now, by, details)

    def _write(self, now: datetime, by: str, details: Details) -> None:
        try:
            self._ledger.append_audit(AuditEvent.ISSUANCE_DENIED, now=now, by=by, details=details)
        except GarrisonError as error:
            # It is in the ordinary log; nothing was given away.
            _log.error("refusal not recorded", reason=str(error))
        except Exception:  # noqa: BLE001 - a bug here must not end the recording of all that follow
            _log.exception("refusal not recorded")
