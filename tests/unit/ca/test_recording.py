"""A certificate leaves when it is recorded, and what cannot be recorded does not leave."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from support.ledgers import WEB, certificate

from ca.authority import Authority
from ca.inspection import check_leaf
from ca.keys import new_private_key
from ca.ledger import IssuedCertificate, LedgerRefusalError, LedgerUnavailableError
from ca.recording import MAX_BATCH, NotRecordedError, Recorder, RecordingIssuer, Requester
from ca.store.sqlite import SqliteLedger

REQUESTER = Requester("uid 1000", "unix")


class SlowLedger(SqliteLedger):
    """A ledger that waits before each transaction until it is let go, and counts them."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.go = threading.Event()
        self.busy = threading.Event()
        self.batches: list[int] = []
        self.failure: Exception | None = None

    def record_issued(self, certificates: Sequence[IssuedCertificate]) -> None:
        """Record when let go."""
        self.busy.set()
        assert self.go.wait(10)
        self.batches.append(len(certificates))
        if self.failure is not None:
            raise self.failure
        super().record_issued(certificates)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SlowLedger]:
    """Return a ledger that waits."""
    opened = SlowLedger(tmp_path / "ledger")
    yield opened
    opened.go.set()
    opened.close()


async def busy(ledger: SlowLedger) -> None:
    """Wait until the ledger is at work."""
    assert await asyncio.to_thread(ledger.busy.wait, 10)


def test_who_waits_shares_a_flush_and_the_loop_goes_on(ledger: SlowLedger) -> None:
    """While the first transaction runs, the loop takes in others; all of them are one transaction."""

    async def main() -> None:
        recorder = Recorder(ledger)
        first = asyncio.create_task(recorder.record(certificate()))
        await busy(ledger)
        others = [asyncio.create_task(recorder.record(certificate())) for _ in range(50)]
        await asyncio.sleep(0)
        assert not first.done()
        ledger.go.set()
        await asyncio.gather(first, *others)
        await asyncio.to_thread(recorder.close)

    asyncio.run(main())
    assert ledger.batches == [1, 50]


def test_a_transaction_has_bounds(ledger: SlowLedger) -> None:
    """Other processes get their turn."""

    async def main() -> None:
        recorder = Recorder(ledger)
        first = asyncio.create_task(recorder.record(certificate()))
        await busy(ledger)
        others = [asyncio.create_task(recorder.record(certificate())) for _ in range(MAX_BATCH + 3)]
        await asyncio.sleep(0)
        ledger.go.set()
        await asyncio.gather(first, *others)
        await asyncio.to_thread(recorder.close)

    asyncio.run(main())
    assert ledger.batches == [1, MAX_BATCH, 3]


def test_a_serial_number_used_before_stops_only_its_own_certificate(ledger: SlowLedger) -> None:
    """The others of the same transaction are recorded."""
    ledger.go.set()
    ledger.record_issued([certificate(7)])
    ledger.go.clear()
    ledger.busy.clear()

    async def main() -> list[object]:
        recorder = Recorder(ledger)
        first = asyncio.create_task(recorder.record(certificate(8)))
        await busy(ledger)
        others = [asyncio.create_task(recorder.record(certificate(serial))) for serial in (9, 7, 10)]
        await asyncio.sleep(0)
        ledger.go.set()
        results = await asyncio.gather(first, *others, return_exceptions=True)
        await asyncio.to_thread(recorder.close)
        return list(results)

    results = asyncio.run(main())
    assert [type(result) for result in results] == [type(None), type(None), LedgerRefusalError, type(None)]
    assert all(ledger.find(serial=serial) for serial in (8, 9, 10))


@pytest.mark.parametrize("failure", [LedgerUnavailableError("disk full"), ZeroDivisionError()])
def test_what_cannot_be_recorded_does_not_leave(
    ledger: SlowLedger, authority: Authority, now: datetime, failure: Exception
) -> None:
    """Whatever goes wrong in the ledger, the caller gets an error and no certificate; then it goes on."""
    ledger.go.set()
    ledger.failure = failure

    async def main() -> None:
        recorder = Recorder(ledger)
        issuer = RecordingIssuer(lambda: authority, recorder)
        key = new_private_key().public_key()
        hour = timedelta(hours=1)
        expected = NotRecordedError if isinstance(failure, LedgerUnavailableError) else ZeroDivisionError
        with pytest.raises(expected):
            await issuer.issue(WEB, key, requester=REQUESTER, now=now, ttl=hour)
        ledger.failure = None
        svid = await issuer.issue(WEB, key, requester=REQUESTER, now=now, ttl=hour)
        assert check_leaf(svid.leaf) == WEB
        (recorded,) = ledger.find(serial=svid.leaf.serial_number)
        assert recorded == IssuedCertificate.of(
            svid.leaf, WEB, now=now, requester="uid 1000", attested_by="unix"
        )
        await asyncio.to_thread(recorder.close)

    asyncio.run(main())


def test_a_caller_that_goes_away_disturbs_nobody(ledger: SlowLedger) -> None:
    """Its certificate may be recorded, but the one beside it is answered."""

    async def main() -> None:
        recorder = Recorder(ledger)
        gone = asyncio.create_task(recorder.record(certificate()))
        await busy(ledger)
        other = asyncio.create_task(recorder.record(certificate()))
        await asyncio.sleep(0)
        gone.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await gone
        ledger.go.set()
        await other
        await asyncio.to_thread(recorder.close)

    asyncio.run(main())
    gc.collect()


def test_after_the_close_nothing_is_issued(ledger: SlowLedger) -> None:
    """What waits is recorded first."""
    ledger.go.set()

    async def main() -> None:
        recorder = Recorder(ledger)
        waiting = asyncio.create_task(recorder.record(certificate(5)))
        await asyncio.sleep(0)
        await asyncio.to_thread(recorder.close)
        await waiting
        with pytest.raises(NotRecordedError, match="stopping"):
            await recorder.record(certificate(6))

    asyncio.run(main())
    assert ledger.find(serial=5)
    assert not ledger.find(serial=6)
