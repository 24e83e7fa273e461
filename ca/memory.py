"""What a serving CA knows from its ledger, followed while it serves: registrations, authorities, revocations.

Other processes change the same ledger (`ca entry create`, `ca revoke`, `ca authority activate`), so it is
looked at every second. What the rotation of authorities asks for is done from here, too, if that is wanted.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import structlog
from cryptography import x509

from ca.attestation import Registrations
from ca.audit import clock_problem
from ca.authorities import Authorities, View
from ca.authority import Authority
from ca.crl import crl_pem, is_due, renew_crl
from ca.federation import published_intermediates
from ca.issuer import Issuer
from ca.ledger import Entry, KeyState, Ledger, StoredCrl
from ca.recording import Recorder, RecordingIssuer
from ca.registration import Registration
from ca.rotation import Schedule, Standing, active_of, published, schedule
from garrison.errors import GarrisonError
from garrison.identity import SpiffeId

LOOK_SECONDS = 1.0
# How often the schedule is asked: a step more than this late is no worse, and costs nobody anything.
ROTATE_EVERY = timedelta(seconds=10)
# After a step that failed.
ROTATE_AGAIN = timedelta(minutes=1)
CRL_PATH = "/ca/crl"
_SERVER = "garrison serve"

_log = structlog.get_logger()


class CaMemory:
    """A ledger, and what issues with it; registrations of the settings come before those of the ledger.

    With `authorities` they are followed, and `authority` is only the first one; with `rotate` what is due
    among them is done.
    """

    def __init__(
        self,
        ledger: Ledger,
        authority: Authority,
        configured: Sequence[Registration],
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        authorities: Authorities | None = None,
        rotate: bool = False,
    ) -> None:
        """Read the ledger.

        Raises:
            ConfigError: the files of the CA cannot be used.
            LedgerUnavailableError: the ledger cannot be read.

        """
        self._ledger = ledger
        self._authority = authority
        self._configured = tuple(configured)
        self._now = now
        self._recorder = Recorder(ledger)
        self._authorities = authorities
        self._rotate = rotate and authorities is not None
        self._rotate_at = datetime.min.replace(tzinfo=UTC)
        self._view: View | None = None
        self._tainted: frozenset[str] = frozenset()
        self._refusal = self.clock_problem = ""
        self._entries_version = -1
        self._complaint = ""
        self._published = ("", 0)
        self._looking = threading.Lock()
        self.rotations: Counter[str] = Counter()
        self.rotation_problem = ""
        self.issuer = RecordingIssuer(lambda: self._authority, self._recorder, self._why_not)
        self.registrations = Registrations(self._configured)
        self.node_entries: Mapping[SpiffeId, Mapping[str, Entry]] = {}
        self.crls: tuple[StoredCrl, ...] = ()
        if authorities is not None:
            self._look_at_clock()
            if not self.clock_problem:
                authorities.reconcile(now=now(), by=_SERVER)
            self._view = authorities.view()
            self._authority, self._refusal = self._view.authority, self._view.refusal
            self._tainted = self._view.tainted
        self._look()

    async def run(
        self,
        use_registrations: Callable[[Registrations], None],
        push_bundle: Callable[[], None],
        reissue: Callable[[], None] = lambda: None,
    ) -> None:
        """Follow the ledger until cancelled; the callbacks are called in the event loop's thread.

        `reissue` replaces whatever was issued: an authority is tainted.
        """
        registrations, crls = self.registrations, self.crls
        while True:
            try:
                # Disks stall, and a CRL of many entries takes its time.
                await asyncio.to_thread(self._look)
            except GarrisonError as error:
                self._complain(error)
            except Exception:  # noqa: BLE001 - a bug here must not end the following
                _log.exception("ledger not followed")
            # Compared with what was told last: `refresh` may have looked in between.
            if self.registrations is not registrations:
                registrations = self.registrations
                _log.info("registrations changed", registrations=len(self.registrations))
                use_registrations(self.registrations)
            # One view for both steps: `refresh` may bring another in between.
            view = self._view
            new_roots = view is not None and self._use_roots(view)
            if new_roots or self.crls != crls:
                crls = self.crls
                push_bundle()
            # Nothing is signed under a root before it was pushed.
            if view is not None and not new_roots and self._use_authority(view):
                reissue()
            await asyncio.sleep(LOOK_SECONDS)

    @property
    def ledger(self) -> Ledger:
        """The ledger itself; asking it may wait for a disk."""
        return self._ledger

    @property
    def intermediates(self) -> tuple[x509.Certificate, ...]:
        """The signing certificates of all authorities that are published."""
        return () if self._view is None else tuple(one.certificate for one in self._view.issuers)

    def published_intermediates(self) -> tuple[x509.Certificate, ...]:
        """Return what others are told of issuing certificates, that of the active authority first."""
        return published_intermediates(
            self._authority.trust_domain, (*self._authority.chain, *self.intermediates)
        )

    async def refresh(self) -> None:
        """Look at the ledger now: something in it was changed here.

        Raises:
            LedgerUnavailableError: it cannot be read.

        """
        await asyncio.to_thread(self._look)

    @property
    def active(self) -> Standing | None:
        """The authority that signs; None if there is none, or they are not followed."""
        return active_of(self._view.standings) if self._view is not None else None

    @property
    def standings(self) -> tuple[Standing, ...]:
        """All authorities, if they are followed."""
        return self._view.standings if self._view is not None else ()

    def plan(self) -> Schedule | None:
        """Return when the active authority is followed by another."""
        active = self.active
        if active is None or self._authorities is None:
            return None
        return schedule(active, self._authorities.policy)

    def describe(self) -> str:
        """Return in one line how the CA is."""
        if reason := self._why_not():
            return f"nothing is issued: {reason}"
        active, plan = self.active, self.plan()
        if active is None or plan is None:
            return f"signs until {self._authority.not_after:%FT%TZ}"
        now = self._now()
        if now < active.starts:
            return f"nothing is issued: authority {active.key_id} is not valid before {active.starts:%FT%TZ}"
        if now >= min(active.ends, active.root_ends):
            return f"nothing is issued: authority {active.key_id} has ended"
        text = (
            f"authority {active.key_id} signs until {active.ends:%FT%TZ}, the next one is due at "
            f"{plan.prepare_at:%FT%TZ} and signs from {plan.activate_at:%FT%TZ}"
        )
        return f"{text}; rotation fails: {self.rotation_problem}" if self.rotation_problem else text

    def seconds_left(self) -> dict[str, float]:
        """Return how long the certificates last that sign, and their roots; negative once they ended."""
        active, now = self.active, self._now()
        if active is None:
            return {"intermediate": (self._authority.not_after - now).total_seconds()}
        return {
            "intermediate": (active.ends - now).total_seconds(),
            "root": (active.root_ends - now).total_seconds(),
        }

    def counts(self) -> dict[str, int]:
        """Return how many authorities are in each state."""
        found = Counter(one.state for one in self.standings)
        return {state.value: found[state] for state in KeyState}

    def _use_roots(self, view: View) -> bool:
        """Verify with the roots of `view` from now on; tell whether they are others."""
        if view.authority.roots == self._authority.roots:
            return False
        _log.info("trust bundle changed", roots=len(view.authority.roots))
        self._authority = replace(self._authority, roots=view.authority.roots)
        return True

    def _use_authority(self, view: View) -> bool:
        """Sign with the authority of `view`, whose root was pushed before; tell whether one is tainted."""
        if view.authority.issuer != self._authority.issuer:
            _log.info("authority changed", ends=f"{view.authority.not_after:%FT%TZ}")
        self._authority = view.authority
        if view.refusal != self._refusal:
            self._refusal = view.refusal
            _log.warning("issuing ended" if self._refusal else "issuing resumed", reason=self._refusal)
        tainted = view.tainted - self._tainted
        self._tainted = view.tainted
        if tainted:
            _log.warning("authority tainted, everything is issued again", authorities=sorted(tainted))
        return bool(tainted)

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
        with self._looking:
            self._look_alone()

    def _why_not(self) -> str:
        """Return why nothing is issued, "" if something is."""
        return self.clock_problem or self._refusal

    def _look_at_clock(self) -> None:
        """Find out whether the clock can be right, by what others have recorded."""
        problem = clock_problem(self._ledger.audit_head(), self._now())
        if bool(problem) != bool(self.clock_problem):
            _log.warning("issuing ended" if problem else "issuing resumed", reason=problem)
        self.clock_problem = problem

    def _look_alone(self) -> None:
        was_wrong = bool(self.clock_problem)
        self._look_at_clock()
        version = self._ledger.entries_version()
        if version != self._entries_version:
            domain = self._authority.trust_domain
            found = self._ledger.entries()
            foreign = [one for one in found if one.registration.spiffe_id.trust_domain != domain]
            if foreign:
                spiffe_id = str(foreign[0].registration.spiffe_id)
                _log.warning("registrations of another trust domain", spiffe_id=spiffe_id)
            ours = [one for one in found if one.registration.spiffe_id.trust_domain == domain]
            registrations = (*self._configured, *(one.registration for one in ours))
            # The same stay the same: then nobody is told.
            if registrations != tuple(self.registrations):
                self.registrations = Registrations(registrations)
            self.node_entries = _by_node(ours)
            self._entries_version = version
        if self._authorities is not None:
            trusted = not self.clock_problem
            if self._rotate and trusted and self._now() >= self._rotate_at:
                self._rotate_due(self._authorities)
            before, self._view = self._view, self._authorities.view()
            if trusted and (was_wrong or (self._rotate and self._view is not before)):
                # Whoever changed something may have died before the files were right.
                self._authorities.reconcile(now=self._now(), by=_SERVER)
                self._view = self._authorities.view()
        self._renew_crls()

    def _rotate_due(self, authorities: Authorities) -> None:
        now = self._now()
        self._rotate_at = now + ROTATE_EVERY
        try:
            for step in authorities.due(now):
                authorities.run(step, now=now, by=_SERVER)
                self.rotations[step.act.value] += 1
                _log.info("authority rotated", step=step.act.value, authority=step.key_id)
        except (GarrisonError, OSError) as error:
            self.rotations["failed"] += 1
            self._rotate_at = now + ROTATE_AGAIN
            if str(error) != self.rotation_problem:
                _log.error("authority not rotated", reason=str(error))
            self.rotation_problem = str(error)
        else:
            self.rotation_problem = ""

    def _renew_crls(self) -> None:
        """Publish what is due of each authority: who wants CRLs refuses issuers without one."""
        now, revocations = self._now(), self._ledger.revocations()
        held = {one.issuer: one for one in self.crls}
        names = None if self._view is None else {one.key_id for one in published(self._view.standings)}
        if self.clock_problem:
            self.crls = self._published_crls(names)
            return
        overdue = [
            issuer for issuer in self._issuers() if is_due(held.get(issuer.key_identifier), revocations, now)
        ]
        if not overdue and (names is None or held.keys() <= names):
            return
        complained = False
        for issuer in overdue:
            try:
                renew_crl(self._ledger, issuer, now=now, by=_SERVER)
            except GarrisonError as error:
                self._complain(error)
                complained = True
        if not complained:
            self._complaint = ""
        self.crls = self._published_crls(names)

    def _published_crls(self, names: Collection[str] | None) -> tuple[StoredCrl, ...]:
        return tuple(one for one in self._ledger.crls() if names is None or one.issuer in names)

    def _issuers(self) -> tuple[Issuer, ...]:
        if self._view is None:
            return (self._authority.issuer,)
        # What has ended signs no list, and nothing of it is accepted; of the one that signs it is to be told.
        now, signing = self._now(), self._view.authority.issuer
        return tuple(
            one for one in self._view.issuers if one == signing or now < one.certificate.not_valid_after_utc
        )

    def _mine(self) -> StoredCrl | None:
        name = self._authority.issuer.key_identifier
        return next((one for one in self.crls if one.issuer == name), None)

    def _complain(self, error: GarrisonError) -> None:
        # Once, not every second.
        if str(error) != self._complaint:
            self._complaint = str(error)
            _log.error("ledger not followed", reason=str(error))


def _by_node(entries: Sequence[Entry]) -> Mapping[SpiffeId, Mapping[str, Entry]]:
    found: dict[SpiffeId, dict[str, Entry]] = {}
    for one in entries:
        if one.registration.parent_id is not None:
            found.setdefault(one.registration.parent_id, {})[one.entry_id] = one
    return found
