"""A call for a certificate, whichever service it came in by: attest, find the one identity, sign, record.

Whatever stands in the way is a `StatusError` for the caller, a record in the audit log and a count, all by
the table below. Why a caller was not believed, it is not told (istiod's answer, word for word).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

import structlog
from cryptography import x509

from ca.api.evidence import (
    BearerToken,
    ClientCertificate,
    Evidence,
    JoinSecret,
    LocalProcess,
    describe,
    named_identity,
    read_evidence,
)
from ca.attestation import Registrations, selectors_of
from ca.attestors.base import Attested, Reason, Refused
from ca.attestors.join_token import attest_join_token
from ca.attestors.jwt import JwtAttestor
from ca.attestors.kubernetes import attest_reviewed
from ca.attestors.svid import attest_svid
from ca.audit import ClockError
from ca.authority import X509Svid
from ca.budget import Budget
from ca.csr import CheckedCsr, parse_csr
from ca.entitlement import Grant, check_lifetime, choose, lifetime
from ca.issuer import MAX_TTL
from ca.ledger import Entry, Ledger, LedgerUnavailableError
from ca.recording import NotRecordedError, RecordingIssuer, Requester
from ca.refusals import RefusalLog
from garrison.errors import DependencyError, IssuanceError, RequestError
from garrison.identity import SpiffeId
from garrison.token_review import NotAuthenticated, ReviewedUser
from garrison.transport import Call, Peer, StatusCode, StatusError
from garrison.transport.unix_peer import PeerCredentials

# Join tokens that one address, and all of them, may try in vain: each is a write to the ledger.
_TRIES_PER_ADDRESS = (1, 20)
_TRIES_OF_ALL = (50, 500)
# Questions to the API server that wait at the same time.
_MAX_REVIEWS = 64

_NOT_BELIEVED = "request authenticate failure"
_ANSWERS: dict[Reason, tuple[StatusCode, str]] = {
    # "" as text: the caller reads what operators read.
    Reason.PLAINTEXT: (StatusCode.PERMISSION_DENIED, ""),
    Reason.NOT_REGISTERED: (StatusCode.PERMISSION_DENIED, ""),
    Reason.NOT_ENTITLED: (StatusCode.PERMISSION_DENIED, ""),
    Reason.AMBIGUOUS: (
        StatusCode.INVALID_ARGUMENT,
        "the caller may have several identities: name one in the metadata `garrison-spiffe-id`",
    ),
    Reason.IMPERSONATION: (
        StatusCode.UNAUTHENTICATED,
        "request impersonation authentication failure",
    ),
    Reason.BAD_REQUEST: (StatusCode.INVALID_ARGUMENT, ""),
    Reason.TOO_MANY: (StatusCode.RESOURCE_EXHAUSTED, ""),
    Reason.UNAVAILABLE: (StatusCode.UNAVAILABLE, "the CA cannot say now who the caller is"),
}

_log = structlog.get_logger()

Review = Callable[[str], ReviewedUser | NotAuthenticated]


class Registry(Protocol):
    """What is registered, as it was read from the ledger last; `ca.memory.CaMemory` is one."""

    @property
    def registrations(self) -> Registrations:
        """All of them, those of the settings first."""

    @property
    def node_entries(self) -> Mapping[SpiffeId, Mapping[str, Entry]]:
        """Those of the ledger that nodes give out: the node -> the entry's id -> the entry, in order."""

    @property
    def ledger(self) -> Ledger:
        """Where they come from."""

    @property
    def issuer(self) -> RecordingIssuer:
        """Who issues."""

    @property
    def intermediates(self) -> Sequence[x509.Certificate]:
        """The signing certificates of all authorities whose leaves still count."""

    async def refresh(self) -> None:
        """Read the ledger again."""


@dataclass(frozen=True, slots=True)
class Attestors:
    """What callers are attested with, besides what the ledger knows; `review` blocks: it gets a thread."""

    jwt: JwtAttestor
    review: Review | None = None
    process_of: Callable[[Peer], PeerCredentials | None] = lambda _: None


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that is recorded, and how its holder showed who it is."""

    svid: X509Svid
    attested: Attested


class Issuing:
    """Issues certificates to callers who are entitled to them. For one event loop.

    `max_ttl` is the longest life that may be asked for. `issued` counts by how callers were attested.
    """

    def __init__(
        self,
        registry: Registry,
        attestors: Attestors,
        refusals: RefusalLog,
        *,
        max_ttl: timedelta = MAX_TTL,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._registry = registry
        self._attestors = attestors
        self._refusals = refusals
        self._max_ttl = max_ttl
        self._now = now
        self._monotonic_ns = monotonic_ns
        self._tries = Budget(*_TRIES_PER_ADDRESS)
        self._all_tries = Budget(*_TRIES_OF_ALL)
        self._reviews = 0
        self.issued: Counter[str] = Counter()

    @property
    def registry(self) -> Registry:
        """What is registered."""
        return self._registry

    def now(self) -> datetime:
        """Return the time."""
        return self._now()

    async def issue(self, call: Call, csr: bytes, *, seconds: int = 0, method: str) -> Issued:
        """Return a certificate for the key in `csr` and the one identity that the caller gets.

        `seconds` is how long it is to live, 0 as long as is registered.

        Raises:
            StatusError: the caller gets none; it is recorded why.

        """
        now = self._now()
        process = call.peer.process or self._attestors.process_of(call.peer)
        evidence = read_evidence(call, process)
        by = describe(call, evidence)
        if isinstance(evidence, Refused):
            raise self.refuse(evidence, now=now, by=by, method=method)
        try:
            if isinstance(evidence, JoinSecret):
                # It is gone once it was looked at: what else is wrong must be known before.
                self._check_ready(now)
                checked = _parse(csr, seconds, self._max_ttl)
                attested = await self._attest(evidence, call, now=now, by=by)
            else:
                attested = await self._attest(evidence, call, now=now, by=by)
                self._check_ready(now)
                checked = _parse(csr, seconds, self._max_ttl)
            grant = self._choose(attested, call)
            _check_same(checked, grant)
        except _RefusedError as error:
            raise self.refuse(error.refused, now=now, by=by, method=method) from None
        ttl = lifetime(seconds, self._max_ttl, grant)
        svid = await self.sign(
            grant, checked, ttl=ttl, requester=Requester(attested.requester, attested.attested_by), now=now
        )
        return Issued(svid, attested)

    async def attest_certificate(self, call: Call, *, method: str) -> SpiffeId:
        """Return the identity of a caller that shows an SVID of ours, and is registered.

        Raises:
            StatusError: it is not; it is recorded why.

        """
        now, by = self._now(), describe(call)
        refused = Refused(Reason.NO_EVIDENCE, "no client certificate was shown")
        if call.peer.certificate is not None:
            try:
                shown = ClientCertificate(call.peer.certificate)
                attested = await self._attest(shown, call, now=now, by=by)
            except _RefusedError as error:
                raise self.refuse(error.refused, now=now, by=by, method=method) from None
            identity = attested.identity
            if identity is not None and self._registry.registrations.direct(identity) is not None:
                return identity
            reason = f"`{identity}` is not registered any more"
            refused = Refused(Reason.NOT_REGISTERED, reason)
        raise self.refuse(refused, now=now, by=by, method=method)

    async def sign(
        self, grant: Grant, csr: CheckedCsr, *, ttl: timedelta, requester: Requester, now: datetime
    ) -> X509Svid:
        """Return a certificate that is recorded.

        Raises:
            StatusError: the CA cannot issue now, or not what is registered.

        """
        try:
            svid = await self._registry.issuer.issue(
                grant.spiffe_id,
                csr.public_key,
                requester=requester,
                now=now,
                ttl=ttl,
                dns_names=grant.dns_names,
            )
        except (NotRecordedError, LedgerUnavailableError) as error:
            _log.error("ca issuance failed", spiffe_id=str(grant.spiffe_id), reason=str(error))
            raise StatusError(StatusCode.UNAVAILABLE, "the CA cannot record what it issues") from error
        except IssuanceError as error:
            _log.error("ca issuance failed", spiffe_id=str(grant.spiffe_id), reason=str(error))
            raise StatusError(StatusCode.INTERNAL, f"the CA cannot issue: {error}") from error
        self.issued[requester.attested_by] += 1
        return svid

    def refuse(self, refused: Refused, *, now: datetime, by: str, method: str) -> StatusError:
        """Return what a refused caller is answered, after noting it."""
        self._refusals.add(refused, now=now, by=by, method=method)
        code, text = _ANSWERS.get(refused.reason, (StatusCode.UNAUTHENTICATED, _NOT_BELIEVED))
        return StatusError(code, text or refused.detail)

    async def _attest(self, evidence: Evidence, call: Call, *, now: datetime, by: str) -> Attested:
        try:
            attested = await self._examine(evidence, call, now=now, by=by)
        except (DependencyError, ClockError) as error:
            raise _RefusedError(Refused(Reason.UNAVAILABLE, str(error))) from error
        if isinstance(attested, Refused):
            raise _RefusedError(attested)
        return attested

    async def _examine(self, evidence: Evidence, call: Call, *, now: datetime, by: str) -> Attested | Refused:
        authority = self._registry.issuer.authority
        ledger = self._registry.ledger
        match evidence:
            case JoinSecret(secret):
                return await self._join(secret, call, now=now, by=by)
            case ClientCertificate(der):
                return await asyncio.to_thread(
                    attest_svid,
                    der,
                    authority,
                    ledger,
                    now=now,
                    intermediates=self._registry.intermediates,
                )
            case LocalProcess(process):
                return Attested(selectors_of(process), by, "unix")
            case BearerToken(text, token):
                if self._attestors.review is None or self._attestors.jwt.knows(token):
                    return self._attestors.jwt.attest(token, now=now)
                return await self._review(self._attestors.review, text)

    async def _join(self, secret: str, call: Call, *, now: datetime, by: str) -> Attested | Refused:
        host = call.peer.address.rpartition(":")[0] or call.peer.address
        at = self._monotonic_ns()
        if not self._tries.take(host, at):
            return Refused(Reason.TOO_MANY, "too many join tokens from this address")
        if not self._all_tries.take("", at):
            return Refused(Reason.TOO_MANY, "too many join tokens")
        domain = self._registry.issuer.authority.trust_domain
        ledger = self._registry.ledger
        found = await asyncio.to_thread(attest_join_token, secret, ledger, domain, now=now, by=by)
        if isinstance(found, Attested):
            self._tries.give_back(host)
            self._all_tries.give_back("")
        return found

    async def _review(self, review: Review, text: str) -> Attested | Refused:
        if self._reviews >= _MAX_REVIEWS:
            return Refused(Reason.TOO_MANY, "too many tokens wait for the API server")
        self._reviews += 1
        try:
            return attest_reviewed(await asyncio.to_thread(review, text))
        finally:
            self._reviews -= 1

    def _check_ready(self, now: datetime) -> None:
        try:
            self._registry.issuer.authority.issuer.check_validity(now)
        except IssuanceError as error:
            _log.error("ca not ready", reason=str(error))
            raise StatusError(StatusCode.INTERNAL, f"the CA is not ready: {error}") from error

    def _choose(self, attested: Attested, call: Call) -> Grant:
        named = named_identity(call)
        if isinstance(named, Refused):
            raise _RefusedError(named)
        found = choose(attested, self._registry.registrations, named)
        if isinstance(found, Refused):
            raise _RefusedError(Refused(found.reason, f"{found.detail}; it is {attested.requester}"))
        return found


class _RefusedError(Exception):
    """Ends the work on a call inside this module."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.detail)
        self.refused = refused


def parse_request(csr: bytes) -> CheckedCsr | Refused:
    """Return a signing request that can be signed for, or what is wrong with it."""
    try:
        return parse_csr(csr)
    except (RequestError, IssuanceError) as error:
        return Refused(Reason.BAD_REQUEST, str(error))


def check_same(csr: CheckedCsr, spiffe_id: SpiffeId) -> Refused | None:
    """Return why a request is refused that asks for somebody else; what names nobody is fine."""
    others = [uri for uri in csr.uris if uri != str(spiffe_id)]
    if not others:
        return None
    return Refused(
        Reason.BAD_REQUEST,
        f"the signing request is for `{others[0][:200]}`, and the caller gets `{spiffe_id}`",
    )


def _parse(csr: bytes, seconds: int, maximum: timedelta) -> CheckedCsr:
    try:
        check_lifetime(seconds, maximum)
    except RequestError as error:
        raise _RefusedError(Refused(Reason.BAD_REQUEST, str(error))) from error
    checked = parse_request(csr)
    if isinstance(checked, Refused):
        raise _RefusedError(checked)
    return checked


def _check_same(csr: CheckedCsr, grant: Grant) -> None:
    refused = check_same(csr, grant.spiffe_id)
    if refused is not None:
        raise _RefusedError(refused)
