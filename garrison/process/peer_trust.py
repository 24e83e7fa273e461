"""What peers' certificates are verified with: bundles of files, and those that federation keeps.

The CA knows of federation and nothing of peers, `authz` the other way round; here a bundle of the one becomes
a bundle of the other. With several workers it goes to them over the link, as they have no ledger.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping

import structlog
from cryptography import x509

from authz.authn.certificates import CertificateVerifier, TrustBundle
from authz.bundles import TrustBundles
from ca.bundle import SpiffeBundle, format_certificates
from ca.federation import check_bundle
from garrison.errors import IssuanceError
from garrison.identity import TrustDomain
from garrison.process.link import Message, WorkerLink

log = structlog.get_logger()

Bundles = Mapping[str, TrustBundle]


def federated_trust(
    bundles: Mapping[TrustDomain, SpiffeBundle], wanted: Collection[TrustDomain]
) -> dict[str, TrustBundle]:
    """Return what peers of the `wanted` trust domains are verified with, those that have a bundle."""
    found = {}
    for trust_domain in wanted:
        bundle = bundles.get(trust_domain)
        if bundle is None:
            continue
        try:
            # What was fetched has been looked at, what stands in files of `federated_bundles` has not.
            check_bundle(trust_domain, bundle)
        except IssuanceError as error:
            log.error("federated bundle unusable", trust_domain=str(trust_domain), reason=str(error))  # noqa: TRY400
            continue
        found[trust_domain.name] = TrustBundle(bundle.x509_authorities, bundle.x509_intermediates)
    return found


def as_message(bundles: Bundles) -> Message:
    """Return bundles as they are sent to workers."""
    return {
        name: {
            "roots": format_certificates(bundle.roots).decode(),
            "intermediates": format_certificates(bundle.intermediates).decode(),
        }
        for name, bundle in bundles.items()
    }


def parse_message(message: Message) -> dict[str, TrustBundle]:
    """Return what `as_message` was given."""
    return {
        name: TrustBundle(_certificates(bundle["roots"]), _certificates(bundle["intermediates"]))
        for name, bundle in message.items()
    }


def _certificates(pem: str) -> tuple[x509.Certificate, ...]:
    return tuple(x509.load_pem_x509_certificates(pem.encode())) if pem else ()


class PeerTrust:
    """Puts into force what files and federation give together, whichever of them changes.

    `wanted` are the trust domains whose bundles come from federation; `changed` hears when those change.
    """

    def __init__(
        self, wanted: Iterable[TrustDomain] = (), changed: Callable[[Bundles], None] = lambda _: None
    ) -> None:
        self.wanted = frozenset(wanted)
        self.in_force = TrustBundles()
        self._changed = changed
        self._files: CertificateVerifier | None = None
        self._federated: Bundles = {}

    def use_files(self, verifier: CertificateVerifier) -> None:
        """Verify with the bundles of files in `verifier` from now on."""
        self._files = verifier
        self._swap()

    def use_federation(self, bundles: Mapping[TrustDomain, SpiffeBundle]) -> None:
        """Verify with the wanted ones of `bundles`, all that federation has, from now on."""
        self._use(federated_trust(bundles, self.wanted))

    def follow(self, link: WorkerLink) -> None:
        """Verify with what the control process tells over `link`, from now on; in the event loop's thread."""
        loop = asyncio.get_running_loop()

        def told(message: Message) -> None:
            loop.call_soon_threadsafe(self._use, parse_message(message))

        self._use(parse_message(link.serve_bundles(told)))

    def _use(self, found: Bundles) -> None:
        """Take these for all bundles of federation: what is not among them any more counts no longer."""
        if found == self._federated:
            return
        names = self._federated.keys() | found.keys()
        changed = sorted(name for name in names if found.get(name) != self._federated.get(name))
        self._federated = dict(found)
        self._swap()
        roots = {name: len(found[name].roots) if name in found else 0 for name in changed}
        log.info("federated_trust_changed", roots=roots)
        self._changed(self._federated)

    def _swap(self) -> None:
        if self._files is not None:
            self.in_force.use(self._files.with_federated(self._federated))
