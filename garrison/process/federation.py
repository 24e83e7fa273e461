"""Other trust domains of a serving CA: their bundles for our workloads, ours for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import structlog

from ca.bundle import SpiffeBundle
from ca.federator import Federator, Rules, bundle_fetch
from ca.ledger import LedgerUnavailableError
from ca.local_identities import LocalIdentities
from ca.memory import CaMemory
from garrison.documents import Diagnostic, Position
from garrison.errors import ConfigError
from garrison.identity import TrustDomain
from garrison.process.oidc import BUNDLE, OidcPages
from garrison.process.pages import PROTOCOLS, Page, PageServer, only_get
from garrison.process.settings import Settings
from garrison.process.spiffe_endpoint import SpiffeEndpoint
from garrison.transport.sockets import address_error
from garrison.transport.tls import bare_server_context

log = structlog.get_logger()

Bundles = Mapping[TrustDomain, SpiffeBundle]


class Federation:
    """Hands what the ledger's relationships and files give to `identities` and to `use`.

    Of one trust domain the file counts, which an operator keeps: two bundles are never merged.
    """

    def __init__(
        self, settings: Settings, memory: CaMemory, use: Callable[[Bundles], None] = lambda _: None
    ) -> None:
        """Read the ledger.

        Raises:
            ConfigError: it cannot be read.

        """
        self._settings = settings.ca.federation
        self._issuer = memory.issuer
        self._use = use
        self._files: Bundles = {}
        self._identities: LocalIdentities | None = None
        self._pages: PageServer | None = None
        self._endpoint: SpiffeEndpoint | None = None
        try:
            self.federator = Federator(
                memory.ledger,
                self._others,
                settings.trust_domain,
                bundle_fetch(self._settings.web_roots, settings.keys.blocked_ranges),
                rules=Rules(self._settings.poll, self._settings.max_stale),
            )
        except LedgerUnavailableError as error:
            where = Diagnostic("settings", Position(1, 1), ("ca", "ledger"), "ledger", str(error))
            raise ConfigError([where]) from error

    def serve(self, identities: LocalIdentities) -> None:
        """Hand out through `identities` from now on, and listen where the settings say so.

        Raises:
            ConfigError: the address cannot be listened on.

        """
        self._identities = identities
        self._hand_out()
        address, spiffe_id = self._settings.listen, self._settings.spiffe_id
        if address is None or spiffe_id is None:
            return
        pages = OidcPages(identities.bundle, None)

        def page(path: str) -> Page:
            return pages.page(path) if path == BUNDLE else ("404 Not Found", "text/plain", b"/bundle\n")

        try:
            # Until the first SVID is there, no handshake succeeds.
            self._pages = PageServer("bundle", address, only_get(page), bare_server_context(PROTOCOLS))
        except OSError as error:
            raise address_error(address, f"cannot listen: {error.strerror or error}") from error
        self._endpoint = SpiffeEndpoint(self._issuer, spiffe_id, self._pages.use_tls)
        log.info("bundle_endpoint_listening", address=str(self._pages.address), spiffe_id=str(spiffe_id))

    def use_files(self, bundles: Bundles) -> None:
        """Take these bundles for those of files from now on."""
        self._files = bundles
        self._hand_out()

    async def run(self) -> None:
        """Keep everything current until cancelled."""
        following = [self.federator.follow(lambda _: self._hand_out())]
        if self._endpoint is not None:
            following.append(self._endpoint.run())
        await asyncio.gather(*following)

    def close(self) -> None:
        """Stop listening."""
        if self._pages is not None:
            self._pages.close()

    def _hand_out(self) -> None:
        bundles = {**self.federator.bundles, **self._files}
        if self._identities is not None:
            self._identities.use_federated(bundles)
        self._use(bundles)

    def _others(self) -> Bundles:
        ours = self._issuer.authority
        return {**self._files, ours.trust_domain: SpiffeBundle(ours.roots)}
