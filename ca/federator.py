"""Keeps the bundles of other trust domains current, in the background and in the ledger.

What was fetched is in the ledger before it is handed out, so a restart while an endpoint is away changes
nothing. Relationships come and go in the ledger (`ca federation`), which is looked at every second.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog
from cryptography import x509

from ca.bundle import SpiffeBundle, format_certificates, parse_spiffe_bundle
from ca.federation import (
    DEFAULT_MAX_STALE,
    Endpoint,
    accept,
    check_endpoint,
    in_force,
    poll_interval,
)
from ca.handshake import peer_certificates
from ca.ledger import EndpointProfile, FederatedBundle, Ledger
from ca.verification import verify_svid
from garrison.errors import DependencyError, GarrisonError, IssuanceError
from garrison.fetching import Fetcher
from garrison.identity import SpiffeId, TrustDomain
from garrison.refreshing import Refresher, clock
from garrison.urls import Network

LOOK_SECONDS = 1.0
_SERVER = "garrison serve"

_log = structlog.get_logger()

# Gets the document of an endpoint; the certificates are what an `https_spiffe` endpoint is verified with.
Fetch = Callable[[Endpoint, Sequence[x509.Certificate]], bytes]
Bundles = Mapping[TrustDomain, SpiffeBundle]


def bundle_fetch(web_roots: Path | None = None, blocked: Sequence[Network] = ()) -> Fetch:
    """Return what fetches documents: by the Web PKI (`web_roots` or the system's) or by an X509-SVID.

    Neither profile ever takes what the other would. It raises DependencyError: no answer that can be used.
    """
    web = Fetcher(ca=web_roots, blocked=blocked)

    def fetch(endpoint: Endpoint, roots: Sequence[x509.Certificate]) -> bytes:
        fetcher = web
        if endpoint.endpoint_id is not None:
            fetcher = _spiffe_fetcher(endpoint.endpoint_id, roots, blocked)
        return fetcher.get(endpoint.url).expect(200).body

    return fetch


def refresh(
    ledger: Ledger, known: FederatedBundle, others: Bundles, fetch: Fetch, *, now: datetime, by: str
) -> FederatedBundle:
    """Fetch the bundle of `known`, which is what the ledger has; return what it has then.

    An `https_spiffe` endpoint is verified with the bundle of its own trust domain: the one in `others`, else
    the one in the ledger, which is the first one that was given there or the last one that was fetched.

    Raises:
        DependencyError: it cannot be fetched, or what came is refused; the ledger has what it had.
        IssuanceError: the relationship is not as it was any more, or must not be.

    """
    endpoint = Endpoint.of(known)
    roots: Sequence[x509.Certificate] = ()
    if endpoint.profile is EndpointProfile.SPIFFE:
        roots = _roots_for(endpoint, ledger.federated(), others)
    new = accept(known, fetch(endpoint, roots), now=now)
    # Who deleted it meanwhile must not see it come back.
    ledger.replace_federated(known, new, now=now, by=by)
    return new


@dataclass(frozen=True, slots=True)
class Poll:
    """How the polls of an endpoint went; `error` is why the last one failed."""

    next_fetch_at: float
    error: str = ""
    fetched: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class FederationStatus:
    """What operators want to know of a relationship."""

    name: str
    available: bool
    age_seconds: float | None  # since the endpoint last confirmed its bundle; None when it never did
    fetched: int
    failed: int


@dataclass(frozen=True, slots=True)
class Rules:
    """How often to poll (None: as endpoints hint), and how long a bundle counts that nobody confirms."""

    poll: timedelta | None = None
    max_stale: timedelta = DEFAULT_MAX_STALE


@dataclass(frozen=True, slots=True)
class Timing:
    """Time and chance: seconds of a clock that never runs backwards, the time on the wall, 0 to 1."""

    clock: Callable[[], float] = clock
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    jitter: Callable[[], float] = random.random


class Federator(Refresher[Endpoint, Poll]):
    """The relationships of a ledger, for one event loop."""

    def __init__(
        self,
        ledger: Ledger,
        others: Callable[[], Bundles],
        ours: TrustDomain,
        fetch: Fetch,
        *,
        rules: Rules = Rules(),
        timing: Timing = Timing(),
    ) -> None:
        """Read the ledger. `others` gives bundles that are not in it: our own, and those of files.

        Raises:
            LedgerUnavailableError: it cannot be read.

        """
        super().__init__(timing.clock)
        self._ledger = ledger
        self._others = others
        self._ours = ours
        self._fetch = fetch
        self._rules = rules
        self._timing = timing
        self._known = tuple(ledger.federated())
        self._documents: Mapping[TrustDomain, bytes] = {}
        self._complaint = ""
        self.bundles: Bundles = {}
        documents = self._documents_in_force()
        self._use(documents, _parse(documents))

    async def follow(self, use: Callable[[Bundles], None]) -> None:
        """Poll, and follow the ledger, until cancelled; `use` hears of every change in the loop's thread."""
        polling = asyncio.create_task(self.run())
        try:
            while True:
                before = self.bundles
                await self.look()
                if self.bundles != before:
                    use(self.bundles)
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            polling.cancel()

    async def look(self) -> None:
        """Take in what the ledger has now; what is new there is due at once."""
        try:
            self._known = tuple(await asyncio.to_thread(self._ledger.federated))
            self._complaint = ""
        except GarrisonError as error:
            # Once, not every second.
            if str(error) != self._complaint:
                self._complaint = str(error)
                _log.error("federations not followed", reason=str(error))
        except Exception:  # noqa: BLE001 - a bug here must not end the following
            _log.exception("federations not followed")
        else:
            self._schedule()
        documents = self._documents_in_force()
        if documents != self._documents:
            # They may be large, and calls must not wait for it.
            self._use(documents, await asyncio.to_thread(_parse, documents))

    def status(self) -> list[FederationStatus]:
        """Return how every relationship is doing, by name."""
        now = self._timing.now()
        found = []
        for one in self._known:
            poll = self._states.get(Endpoint.of(one), Poll(0.0))
            age = None if one.fetched_at is None else (now - one.fetched_at).total_seconds()
            available = one.trust_domain in self.bundles
            found.append(FederationStatus(str(one.trust_domain), available, age, poll.fetched, poll.failed))
        return found

    def _schedule(self) -> None:
        now = self._clock()
        for one in self._known:
            endpoint = Endpoint.of(one)
            state = self._states.get(endpoint)
            # One that was deleted and made again has lost its document, though its last poll went well.
            lost = one.document is None and state is not None and state.fetched and not state.error
            if state is None:
                self._hasten(endpoint, Poll(now))
            elif lost and endpoint not in self._running and state.next_fetch_at > now:
                self._hasten(endpoint, replace(state, next_fetch_at=now))
        self.retain(Endpoint.of(one) for one in self._known)

    def _documents_in_force(self) -> Mapping[TrustDomain, bytes]:
        return in_force(self._known, self._ours, now=self._timing.now(), max_stale=self._rules.max_stale)

    def _use(self, documents: Mapping[TrustDomain, bytes], bundles: Bundles) -> None:
        for one in self._known:
            if one.trust_domain in self._documents and one.trust_domain not in documents:
                _log.error("federated bundle too old", trust_domain=str(one.trust_domain))
        self._documents, self.bundles = documents, bundles

    def _first_state(self, source: Endpoint, /) -> Poll:
        del source
        return Poll(self._clock())

    def _next_state(self, source: Endpoint, state: Poll, /) -> Poll:
        known = None
        try:
            known = next((one for one in self._ledger.federated() if Endpoint.of(one) == source), None)
            if known is None:
                return replace(state, next_fetch_at=self._clock() + LOOK_SECONDS)
            check_endpoint(source, self._ours)
            now = self._timing.now()
            new = refresh(self._ledger, known, self._others(), self._fetch, now=now, by=_SERVER)
        except Exception as error:  # noqa: BLE001 - whatever it is, the old bundle stays and the loop goes on
            reason = str(error) if isinstance(error, GarrisonError) else f"{type(error).__name__}: {error}"
            if reason != state.error:
                _log.warning(
                    "federated bundle not refreshed",
                    trust_domain=str(source.trust_domain),
                    url=source.url,
                    reason=reason,
                )
            return Poll(self._next_poll(known), reason, state.fetched, state.failed + 1)
        if new.document != known.document or state.error:
            _log.info(
                "federated bundle refreshed", trust_domain=str(source.trust_domain), sequence=new.sequence
            )
        return Poll(self._next_poll(new), "", state.fetched + 1, state.failed)

    def _next_poll(self, known: FederatedBundle | None) -> float:
        # The ledger cannot be read: nothing says what the endpoint would hint at.
        if known is None:
            known = FederatedBundle(self._ours, "", EndpointProfile.WEB)
        interval = poll_interval(known, self._rules.poll, self._timing.jitter())
        return self._clock() + interval.total_seconds()


def _parse(documents: Mapping[TrustDomain, bytes]) -> Bundles:
    found = {}
    for name, document in documents.items():
        try:
            found[name] = parse_spiffe_bundle(document)
        except ValueError as error:
            # Somebody wrote into the ledger by hand.
            _log.error("federated bundle unusable", trust_domain=str(name), reason=str(error))
    return found


def _roots_for(
    endpoint: Endpoint, known: Sequence[FederatedBundle], others: Bundles
) -> tuple[x509.Certificate, ...]:
    assert endpoint.endpoint_id is not None  # noqa: S101 - `check_endpoint`
    name = endpoint.endpoint_id.trust_domain
    documents = {one.trust_domain: one.document for one in known if one.document is not None}
    roots: tuple[x509.Certificate, ...] = ()
    if name in others:
        roots = others[name].x509_authorities
    elif name in documents:
        roots = parse_spiffe_bundle(documents[name]).x509_authorities
    if not roots:
        raise DependencyError(f"there is no root of `{name}` to verify `{endpoint.endpoint_id}` with")
    return roots


def _spiffe_fetcher(
    endpoint_id: SpiffeId, roots: Sequence[x509.Certificate], blocked: Sequence[Network]
) -> Fetcher:
    """Return what connects only to the holder of an X509-SVID of `endpoint_id` under `roots`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # The name in the URL proves nothing here; the SPIFFE ID does, below.
    context.check_hostname = False
    # Every certificate of a bundle is trusted, whoever issued it (SPIFFE Trust Domain and Bundle, 4.2.1).
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=format_certificates(roots).decode())

    def check_peer(tls: ssl.SSLSocket) -> None:
        try:
            leaf, *rest = peer_certificates(tls)
            found, _ = verify_svid(leaf, rest, roots, datetime.now(UTC))
        except (IssuanceError, ValueError) as error:
            raise DependencyError(f"the endpoint is not `{endpoint_id}`: {error}") from error
        if found != endpoint_id:
            raise DependencyError(f"the endpoint is `{found}`, not `{endpoint_id}`")

    return Fetcher(tls=context, blocked=blocked, check_peer=check_peer)
