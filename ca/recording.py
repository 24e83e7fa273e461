"""Issuing with a record: a certificate leaves only after the ledger has it on disk.

A flush to disk takes about as long as signing several certificates. So what is issued while the disk is busy
waits, and the next flush is for all of it (group commit), in a thread of its own: no event loop ever waits
for a disk. The thread starts when the loop has nothing more to issue for the moment: side by side, they would
take the interpreter from each other several times for each certificate, which costs more than the record.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from ca.authority import Authority, X509Svid
from ca.keys import PublicKey
from ca.ledger import CertificateKind, IssuedCertificate, Ledger, LedgerRefusalError, LedgerUnavailableError
from ca.registration import Registration
from garrison.errors import IssuanceError
from garrison.identity import SpiffeId

# More would hold up other processes for longer than it saves.
MAX_BATCH = 256
# How long is waited for more after a flush for several: one costs the processor as much as recording ten. Who
# comes alone waits for nobody.
LINGER_SECONDS = 0.01
# How long the first of a batch waits at most while others come.
PATIENCE_SECONDS = 0.05


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
        # Of the loop: whether it looks after what waits, and between which times the thread is woken.
        self._is_watched = False
        self._not_before = self._at_latest = 0.0

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
        if not self._is_watched:
            self._is_watched = True
            self._at_latest = loop.time() + PATIENCE_SECONDS
            loop.call_soon(self._watch, loop, 0)
        await future

    def close(self) -> None:
        """Record what waits, and end the thread. Callers that wait are told when their loop runs again."""
        with self._wakeup:
            self._start()
            self._closed = True
            self._wakeup.notify()
        if self._thread is not None:
            self._thread.join()

    def _watch(self, loop: asyncio.AbstractEventLoop, before: int) -> None:
        """Wake the thread after a turn of the loop that brought nothing more, or when there is enough."""
        count, now = len(self._waiting), loop.time()
        if before < count < MAX_BATCH and now < self._at_latest:
            loop.call_soon(self._watch, loop, count)
        elif count < MAX_BATCH and now < self._not_before:
            loop.call_at(self._not_before, self._watch, loop, count)
        else:
            self._is_watched = False
            with self._wakeup:
                self._start()
                self._awake = True
                self._wakeup.notify()

    def _start(self) -> None:
        if self._thread is None and not self._closed and self._waiting:
            self._thread = threading.Thread(target=self._work, name="ca-recorder", daemon=True)
            self._thread.start()

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
                loop.call_soon_threadsafe(self._answer, loop, answers)

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

    def _answer(
        self,
        loop: asyncio.AbstractEventLoop,
        answers: Sequence[tuple[asyncio.Future[None], Exception | None]],
    ) -> None:
        if len(answers) > 1:
            self._not_before = loop.time() + LINGER_SECONDS
        for future, error in answers:
            if future.done():
                continue  # the caller went away
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)


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


def _record_of(svid: X509Svid, issuer: str, requester: Requester, now: datetime) -> IssuedCertificate:
    """Return what `IssuedCertificate.of` would, without taking the certificate apart again."""
    leaf = svid.leaf
    return IssuedCertificate(
        serial=leaf.serial_number,
        issuer=issuer,
        kind=CertificateKind.X509_SVID,
        spiffe_id=svid.spiffe_id,
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
        issued_at=now,
        requester=requester.name,
        attested_by=requester.attested_by,
        fingerprint=hashlib.sha256(svid.leaf_der).hexdigest(),
    )


class RecordingIssuer:
    """Issues from the authority in force, and records what it issues before it hands it out.

    `refusal` says why that authority must not sign, "" if it may.
    """

    def __init__(
        self, authority: Callable[[], Authority], recorder: Recorder, refusal: Callable[[], str] = str
    ) -> None:
        self._authority = authority
        self._recorder = recorder
        self._refusal = refusal

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
        if reason := self._refusal():
            raise IssuanceError(reason)
        authority = self._authority()
        svid = authority.issue(spiffe_id, public_key, now=now, ttl=ttl, dns_names=dns_names)
        await self._recorder.record(_record_of(svid, authority.issuer.key_identifier, requester, now))
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
