"""What a serving CA knows from its ledger: who is registered, what is revoked. Followed while it serves.

Other processes change the same ledger (`ca entry create`, `ca revoke`), so it is looked at every second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import structlog

from ca.authority import Authority
from ca.crl import crl_pem, is_due, key_identifier, renew_crl
from ca.ledger import Ledger, StoredCrl
from ca.recording import Recorder, RecordingIssuer
from ca.registration import Registration
from garrison.errors import GarrisonError

LOOK_SECONDS = 1.0
CRL_PATH = "/ca/crl"
_SERVER = "garrison serve"

_log = structlog.get_logger()


class CaMemory:
    """A ledger, and what issues with it; registrations of the settings come before those of the ledger."""

    def __init__(
        self,
        ledger: Ledger,
        authority: Authority,
        configured: Sequence[Registration],
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Read the ledger.

        Raises:
            LedgerUnavailableError: it cannot be read.

        """
        self._ledger = ledger
        self._authority = authority
        self._configured = tuple(configured)
        self._now = now
        self._recorder = Recorder(ledger)
        self._name = key_identifier(authority.issuer)
        self._entries_version = -1
        self._complaint = ""
        self._published = ("", 0)
        self.issuer = RecordingIssuer(lambda: authority, self._recorder)
        self.registrations = self._configured
        self.crls: tuple[StoredCrl, ...] = ()
        self._look()

    async def run(
        self, use_registrations: Callable[[Sequence[Registration]], None], push_bundle: Callable[[], None]
    ) -> None:
        """Follow the ledger until cancelled; the callbacks are called in the event loop's thread."""
        while True:
            registrations, crls = self.registrations, self.crls
            try:
                # Disks stall, and a CRL of many entries takes its time.
                await asyncio.to_thread(self._look)
            except GarrisonError as error:
                self._complain(error)
            except Exception:  # noqa: BLE001 - a bug here must not end the following
                _log.exception("ledger not followed")
            if self.registrations != registrations:
                _log.info("registrations changed", registrations=len(self.registrations))
                use_registrations(self.registrations)
            if self.crls != crls:
                push_bundle()
            await asyncio.sleep(LOOK_SECONDS)

    @property
    def ledger(self) -> Ledger:
        """The ledger, which is closed with this."""
        return self._ledger

    def close(self) -> None:
        """Record what waits, and close the ledger."""
        self._recorder.close()
        self._ledger.close()

    def bundle_sequence(self, digest: str, now: datetime) -> int:
        """Return the number of the published bundle with this digest. Threads may call it.

        Raises:
            LedgerUnavailableError: it cannot be written.

        """
        known, number = self._published
        if known != digest:
            number = self._ledger.publish_bundle(digest, now=now, by=_SERVER)
            self._published = (digest, number)
        return number

    def crl_pem(self) -> bytes:
        """Return the CRLs as PEM."""
        return crl_pem(self.crls)

    def page(self, path: str) -> tuple[str, bytes] | None:
        """Return type and content of `/ca/crl` (DER, RFC 5280, 4.2.1.13) and `/ca/crl.pem`, else None."""
        if path == CRL_PATH:
            mine = self._mine()
            return ("application/pkix-crl", mine.der) if mine is not None else None
        if path == f"{CRL_PATH}.pem" and self.crls:
            return "application/x-pem-file", self.crl_pem()
        return None

    def _look(self) -> None:
        version = self._ledger.entries_version()
        if version != self._entries_version:
            domain = self._authority.trust_domain
            entries = [entry.registration for entry in self._ledger.entries()]
            foreign = [one for one in entries if one.spiffe_id.trust_domain != domain]
            if foreign:
                _log.warning("registrations of another trust domain", spiffe_id=str(foreign[0].spiffe_id))
            ours = (one for one in entries if one.spiffe_id.trust_domain == domain)
            self.registrations = (*self._configured, *ours)
            self._entries_version = version
        revocations = self._ledger.revocations()
        mine = self._mine()
        if not is_due(mine, revocations, self._now()):
            return
        try:
            renew_crl(self._ledger, self._authority.issuer, now=self._now(), by=_SERVER)
        except GarrisonError as error:
            self._complain(error)
        else:
            self._complaint = ""
        self.crls = self._ledger.crls()

    def _mine(self) -> StoredCrl | None:
        return next((one for one in self.crls if one.issuer == self._name), None)

    def _complain(self, error: GarrisonError) -> None:
        # Once, not every second.
        if str(error) != self._complaint:
            self._complaint = str(error)
            _log.error("ledger not followed", reason=str(error))
