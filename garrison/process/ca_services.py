"""The CA's gRPC methods in a server: on the control path, and on addresses of their own.

Those of their own ask for a client certificate and take callers without one, so that one address serves the
first attestation and all renewals. grpcio cannot do that, so they are on `h2`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime

from ca.api.issuing import Attestors, Issuing
from ca.api.istio_csr import SERVICE as ISTIO
from ca.api.istio_csr import IstioCertificates
from ca.api.nodes import MAX_REQUEST_BYTES, MintJwt, Nodes
from ca.api.nodes import SERVICE as NODES
from ca.attestors.jwt import JwtAttestor
from ca.authority import ROOT_CERT
from ca.ledger import Entry
from ca.local_identities import LocalIdentities
from ca.memory import CaMemory
from ca.recording import Requester
from ca.refusals import RefusalLog
from garrison.keys.cache import KeyCache
from garrison.keys.jwks import KeySource
from garrison.keys.refresher import KeyRefresher, KeyStatus, key_fetch
from garrison.process.settings import Settings
from garrison.telemetry.metrics import CaCollector
from garrison.transport import Methods, Peer
from garrison.transport.address import Address
from garrison.transport.h2 import Limits
from garrison.transport.listeners import RequestServer, Transport
from garrison.transport.tls import TlsFiles
from garrison.transport.unix_peer import PeerCredentials

SERVICES = (ISTIO, NODES)


class CaServices:
    """`CreateCertificate` and `Nodes` for as long as the server runs."""

    def __init__(
        self,
        settings: Settings,
        memory: CaMemory,
        process_of: Callable[[Peer], PeerCredentials | None],
        identities: LocalIdentities,
        refusals: RefusalLog,
    ) -> None:
        issuers = [one.trusted() for one in settings.ca.token_issuers]
        self._sources = [one.keys for one in issuers if isinstance(one.keys, KeySource)]
        self._keys = KeyRefresher(
            key_fetch(settings.keys.fetcher()),
            settings.keys.rules(),
            KeyCache(settings.keys.cache) if settings.keys.cache else None,
        )
        self._refusals = refusals
        attestors = Attestors(JwtAttestor(issuers, self._keys), settings.ca.token_review.review(), process_of)
        self._issuing = Issuing(memory, attestors, self._refusals, max_ttl=settings.ca.max_ttl)
        self.methods: Methods = {
            **IstioCertificates(self._issuing).methods(),
            **Nodes(
                self._issuing,
                mint_jwt=_minting(identities),
                bundle=identities.bundle,
                federated=identities.federated,
                crls=lambda: [one.der for one in memory.crls],
            ).methods(),
        }
        self.files = tls_files(settings)
        self._server: RequestServer | None = None
        if settings.ca.listen:
            self._server = RequestServer(
                Transport.NGH2,
                settings.ca.listen,
                self.methods,
                tls=self.files,
                limits=Limits(max_message_bytes=MAX_REQUEST_BYTES + 1024),
                unix_mode=settings.ca.unix_mode,
            )

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where the CA has addresses of its own."""
        return self._server.addresses if self._server is not None else ()

    def reload_tls(self, files: TlsFiles) -> None:
        """Use other TLS files for new connections."""
        if self._server is not None:
            self._server.reload_tls(files)

    def key_status(self) -> list[KeyStatus]:
        """Return how the keys of token issuers are doing."""
        return self._keys.status()

    def collector(self) -> CaCollector:
        """Return what reads the counters."""
        return CaCollector(
            issued=lambda: dict(self._issuing.issued), refused=lambda: dict(self._refusals.counts)
        )

    async def start(self) -> None:
        """Fetch keys once, and listen.

        Raises:
            ConfigError: an address or a TLS file cannot be used.

        """
        await self._keys.prepare(self._sources)
        if self._server is not None:
            await self._server.start()

    async def run(self) -> None:
        """Keep keys fresh until cancelled."""
        await self._keys.run()

    async def drain(self, grace_seconds: float) -> None:
        """Stop listening, and answer what was sent."""
        if self._server is not None:
            await self._server.drain(grace_seconds)

    async def close(self) -> None:
        """Record what waits; before the ledger is closed."""
        await asyncio.to_thread(self._refusals.close)


def tls_files(settings: Settings) -> TlsFiles | None:
    """Return the TLS files of the CA's own addresses: callers are verified with the CA's own roots."""
    if settings.ca.dir is None or not settings.ca.listen:
        return None
    return settings.ca.tls.files(settings.ca.dir / ROOT_CERT)


def _minting(identities: LocalIdentities) -> MintJwt:
    """Return what makes the tokens of nodes' workloads, with the keys that local callers' tokens have."""

    async def mint(
        entry: Entry, audiences: Sequence[str], _requester: Requester, _now: datetime
    ) -> tuple[str, datetime]:
        # The key may have to be read from disk, or made.
        return await asyncio.to_thread(identities.mint_jwt, entry.registration, audiences)

    return mint
