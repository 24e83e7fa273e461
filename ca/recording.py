"""Issuing with a record: a certificate leaves only after the ledger has it on disk.

A flush to disk takes about as long as signing several certificates. So what is issued while the disk is busy
waits, and the next flush is for all of it (group commit), in a thread of its own: no event loop ever waits
for a disk.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from ca.authority import Authority, X509Svid
from ca.keys import PublicKey
from ca.ledger import IssuedCertificate, Ledger, LedgerRefusalError, LedgerUnavailableError
from ca.registration import Registration
from garrison.errors import IssuanceError
from garrison.identity import SpiffeId

# More would hold up other processes for longer than it saves.
MAX_BATCH = 256


@dataclass(frozen=True, slots=True)
class Requester:
    """Who asks for a certificate, and how that was shown; see `IssuedCertificate`."""

    name: str
    attested_by: str


class NotRecordedError(IssuanceError):
    """The ledger could not be written, so what was signed must not leave."""


class Recorder:
    """Records for any number of concurrent callers of one event loop, with as few flushes as possible."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._wakeup = threading.Condition()
        self._waiting: list[tuple[IssuedCertificate, asyncio.Future[None]]] = []
        self._awake = self._closed = False
        self._thread: threading.Thread | None = None

    async def record(self, certificate: IssuedCertificate) -> None:
        """Return when `certificate` is recorded.

        A caller that is cancelled meanwhile may find it recorded, though it never left.

        Raises:
            NotRecordedError: it could not be written, or the recorder is closed.
            LedgerRefusalError: its serial number was used before.

        """
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        with self._wakeup:
            if self._closed:
                raise NotRecordedError("the CA is stopping, so nothing is issued any more")
            self._waiting.append((certificate, future))
            if len(self._waiting) == 1:
                # After this turn of the loop: whatever else is issued in it shares the flush.
                loop.call_soon(self._wake)
        await future

    def close(self) -> None:
        """Record what waits, and end the thread. Callers that wait are told when their loop runs again."""
        with self._wakeup:
            self._start()
            self._closed = True
            self._wakeup.notify()
        if self._thread is not None:
            self._thread.join()

    def _start(self) -> None:
        if self._thread is None and not self._closed and self._waiting:
            self._thread = threading.Thread(target=self._work, name="ca-recorder", daemon=True)
            self._thread.start()

    def _wake(self) -> None:
        with self._wakeup:
            self._start()
            self._awake = True
            self._wakeup.notify()

    def _work(self) -> None:
        while True:
            with self._wakeup:
                while not self._awake and not self._closed:
                    self._wakeup.wait()
                batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
                self._awake = bool(self._waiting)
            if not batch:
                if self._closed:
                    return
                continue
            errors = self._write([certificate for certificate, _ in batch])
            answers = [(future, error) for (_, future), error in zip(batch, errors, strict=True)]
            loop = answers[0][0].get_loop()
            if not loop.is_closed():
                loop.call_soon_threadsafe(_answer, answers)

    def _write(self, certificates: Sequence[IssuedCertificate]) -> list[Exception | None]:
        try:
            record(self._ledger, certificates)
        except LedgerRefusalError as error:
            if len(certificates) == 1:
                return [error]
            # One of them must not spoil the others' issue: whose fault it was shows one by one.
            return [outcome for one in certificates for outcome in self._write([one])]
        except Exception as error:  # noqa: BLE001 - whatever it is, the callers must not wait for ever
            return [error] * len(certificates)
        return [None] * len(certificates)


def record(ledger: Ledger, certificates: Sequence[IssuedCertificate]) -> None:
    """Record `certificates` at once, for callers without an event loop.

    Raises:
        NotRecordedError: they could not be written.
        LedgerRefusalError: one of the serial numbers was used before.

    """
    try:
        ledger.record_issued(certificates)
    except LedgerUnavailableError as error:
        raise NotRecordedError(f"it cannot be recorded, so nothing is issued: {error}") from error


def _answer(answers: Sequence[tuple[asyncio.Future[None], Exception | None]]) -> None:
    for future, error in answers:
        if future.done():
            continue  # the caller went away
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)


class RecordingIssuer:
    """Issues from the authority in force, and records what it issues before it hands it out."""

    def __init__(self, authority: Callable[[], Authority], recorder: Recorder) -> None:
        self._authority = authority
        self._recorder = recorder

    @property
    def authority(self) -> Authority:
        """The authority in force."""
        return self._authority()

    async def issue(
        self,
        spiffe_id: SpiffeId,
        public_key: PublicKey,
        *,
        requester: Requester,
        now: datetime,
        ttl: timedelta,
        dns_names: Sequence[str] = (),
    ) -> X509Svid:
        """Return an X509-SVID that is recorded; see `Authority.issue`.

        Raises:
            IssuanceError: the CA refuses, or it cannot be recorded.

        """
        svid = self._authority().issue(spiffe_id, public_key, now=now, ttl=ttl, dns_names=dns_names)
        await self._recorder.record(
            IssuedCertificate.of(
                svid.leaf,
                spiffe_id,
                now=now,
                requester=requester.name,
                attested_by=requester.attested_by,
            )
        )
        return svid

    def for_registration(
        self, requester: Requester
    ) -> Callable[[Registration, PublicKey, datetime], Awaitable[X509Svid]]:
        """Return what issues the SVID of a registration to `requester`, which must be entitled to it."""

        async def issue(registration: Registration, public_key: PublicKey, now: datetime) -> X509Svid:
            return await self.issue(
                registration.spiffe_id,
                public_key,
                requester=requester,
                now=now,
                ttl=registration.svid_ttl,
                dns_names=registration.dns_names,
            )

        return issue
