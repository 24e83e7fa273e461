"""What callers of this machine may have from a CA in this process."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import structlog
from cryptography import x509

from ca.api.identities import Caller, Changes, describe
from ca.attestation import Registrations, selectors_of
from ca.bundle import REFRESH_HINT_SECONDS, SpiffeBundle
from ca.jwt_key_store import JwtKeyStore
from ca.jwt_svid import issue_jwt_svid
from ca.recording import RecordingIssuer, Requester
from ca.registration import Registration
from ca.svid_cache import HeldSvid, SvidCache
from garrison.errors import ConfigError, GarrisonError, IssuanceError
from garrison.identity import TrustDomain
from garrison.transport.unix_peer import PeerCredentials

_log = structlog.get_logger()


class LocalIdentities:
    """`Identities` of a CA that is here.

    One key and SVID per registration, made here, in memory only. `peer_credentials` maps a gRPC peer to the
    process behind it (`PeerCredentialListener.credentials`). `issuer` issues and records; `number` gives the
    sequence number of the bundle with some digest at some moment, `crls` the CRLs (DER) and `intermediates`
    what issues under our roots, none by default, and `clock_problem` why no token can be made at this time.
    Clock and randomness can be replaced.
    """

    def __init__(
        self,
        registrations: Registrations,
        issuer: RecordingIssuer,
        *,
        peer_credentials: Callable[[str], PeerCredentials | None],
        jwt_keys: JwtKeyStore,
        number: Callable[[str, datetime], int],
        token_issuer: str | None = None,
        crls: Callable[[], Sequence[bytes]] = tuple,
        clock_problem: Callable[[], str] = str,
        intermediates: Callable[[], tuple[x509.Certificate, ...]] = tuple,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.changes = Changes()
        self.refused_renewals = 0
        self._registrations = registrations
        self._issuer = issuer
        self._peer_credentials = peer_credentials
        self._jwt_keys = jwt_keys
        self._number = number
        self._token_issuer = token_issuer
        self._now = now
        self._federated: dict[TrustDomain, SpiffeBundle] = {}
        self._complaint = ""
        self._crls = crls
        self._clock_problem = clock_problem
        self._intermediates = intermediates
        self._held = SvidCache(random=jitter, refused=self._refused)

    @property
    def trust_domain(self) -> TrustDomain:
        """The trust domain of the CA."""
        return self._issuer.authority.trust_domain

    def attest(self, peer: str) -> PeerCredentials | None:
        """Return who is behind `peer`; see `Identities`."""
        return self._peer_credentials(peer)

    def entitled(self, credentials: PeerCredentials) -> tuple[Registration, ...]:
        """Return the registrations whose selectors the process meets; see `Identities`."""
        return self._registrations.entitled(selectors_of(credentials))

    async def svid(self, caller: Caller, registration: Registration) -> HeldSvid:
        """Return the SVID that is held, a new one when that is due; see `Identities`."""
        requester = Requester(f"{describe(caller.credentials)}, pid {caller.credentials.pid}", "unix")
        issue = self._issuer.for_registration(requester)
        return await self._held.get(registration, self._now(), issue)

    def crls(self) -> tuple[bytes, ...]:
        """Return the CRLs that are published; see `Identities`."""
        return tuple(self._crls())

    def bundles(self, caller: Caller) -> Mapping[TrustDomain, SpiffeBundle]:
        """Return our bundle, then those that a registration of `caller` names; see `Identities`."""
        wanted = {name for one in caller.registrations for name in one.federates_with}
        federated = {name: one for name, one in self._federated.items() if name in wanted}
        return {self.trust_domain: self.bundle(), **federated}

    def federated(self) -> Mapping[TrustDomain, SpiffeBundle]:
        """Return the bundles of other trust domains. Threads may call it."""
        return self._federated

    def bundle(self) -> SpiffeBundle:
        """Return the bundle of our trust domain, numbered. Threads may call it."""
        now = self._now()
        bundle = SpiffeBundle(
            self._issuer.authority.roots,
            refresh_hint=REFRESH_HINT_SECONDS,
            x509_intermediates=self._intermediates(),
        )
        # X509-SVIDs go on where nothing can be written, as in a folder that is mounted read-only.
        try:
            bundle = replace(bundle, jwt_authorities=self._jwt_keys.ring(now).authorities())
            bundle = replace(bundle, sequence=self._number(bundle.digest, now))
        except (GarrisonError, OSError) as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                _log.error("bundle is not complete", reason=str(error))
        return bundle

    async def sign_jwt(
        self,
        caller: Caller,  # noqa: ARG002 - a token is the same whoever asks for it
        registration: Registration,
        audience: Sequence[str],
    ) -> str:
        """Return a token signed by the key whose turn it is; see `Identities`."""
        return self.mint_jwt(registration, audience)[0]

    def mint_jwt(self, registration: Registration, audience: Sequence[str]) -> tuple[str, datetime]:
        """Return a token signed by the key whose turn it is, and when it ends.

        Raises:
            IssuanceError: there is no key, or the CA refuses.
            RequestError: an audience that no token is made for.

        """
        now = self._now()
        if problem := self._clock_problem():
            raise IssuanceError(problem)
        self._issuer.authority.issuer.check_validity(now)
        try:
            key = self._jwt_keys.ring(now).signing(now)
        except ConfigError as error:
            raise IssuanceError(f"there is no key for tokens: {error}") from error
        token = issue_jwt_svid(
            key,
            registration.spiffe_id,
            audience,
            now=now,
            ttl=registration.jwt_ttl,
            token_issuer=self._token_issuer,
        )
        return token, now + registration.jwt_ttl

    def use_registrations(self, registrations: Registrations) -> None:
        """Give out these from now on; who may have nothing any more loses its stream."""
        self._registrations = registrations
        self._held.retain(registrations)
        self.changes.tell()

    def use_federated(self, bundles: Mapping[TrustDomain, SpiffeBundle]) -> None:
        """Hand out these bundles of other trust domains from now on; ours cannot be among them."""
        found = {name: one for name, one in bundles.items() if name != self.trust_domain}
        if found != self._federated:
            self._federated = found
            self.changes.tell()

    def tell_bundle(self) -> None:
        """Push the roots, keys and CRLs that are published now."""
        self.changes.tell()

    def rotate(self) -> None:
        """Replace every key and SVID now, and push them."""
        self._held.expire(self._now())
        self.changes.tell()

    def _refused(self, registration: Registration, error: IssuanceError) -> None:
        self.refused_renewals += 1
        _log.error("renewal failed", spiffe_id=str(registration.spiffe_id), reason=str(error))
