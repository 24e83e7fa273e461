"""Which sidecar may ask about which destination.

An answer tells whoever asks what policies say. Where sidecars open their connection with an SVID, that can be
made a condition: each may then ask about its own workload, and about what an operator listed for it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from authz.decision import Decision, ReasonCode, deny
from authz.destination import Destination
from authz.policy.matchers import StringMatcher
from garrison.identity import SpiffeId

# Askers and destinations are few; more combinations than this are worked out anew.
_MAX_KNOWN = 10_000

_NOT_IDENTIFIED = deny(
    ReasonCode.ASKER_NOT_IDENTIFIED,
    "who asks has no SVID: `request.require_asker_svid` takes questions over mTLS only, from workloads",
)


class Askers:
    """Who may ask, when an SVID is required.

    `workloads` are the destinations that SVIDs stand for by the settings; an SVID without one stands for the
    destination in its own namespace that runs as its service account. `listed` are patterns of further
    services.
    """

    def __init__(
        self,
        trust_domains: Collection[str],
        workloads: Mapping[SpiffeId, Destination],
        listed: Mapping[SpiffeId, Sequence[str]],
    ) -> None:
        self._trust_domains = frozenset(trust_domains)
        self._workloads = workloads
        self._listed = {
            asker: StringMatcher.of([pattern.lower() for pattern in patterns])
            for asker, patterns in listed.items()
        }
        self._known: dict[tuple[SpiffeId, str, str, str], Decision | None] = {}

    def refusal(self, asker: SpiffeId | None, destination: Destination | None) -> Decision | None:
        """Return why `asker` may not ask about `destination`, None when it may.

        A destination that nobody named is nothing to ask about; calls for it are denied elsewhere.
        """
        if asker is None:
            return _NOT_IDENTIFIED
        if destination is None:
            return None
        key = (asker, destination.service, destination.namespace, destination.user)
        try:
            return self._known[key]
        except KeyError:
            pass
        refused = None if self._may_ask(asker, destination) else _not_allowed(asker, destination)
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        self._known[key] = refused
        return refused

    def _may_ask(self, asker: SpiffeId, destination: Destination) -> bool:
        if asker.trust_domain.name not in self._trust_domains:
            return False
        listed = self._listed.get(asker)
        if listed is not None and listed.matches(destination.service):
            return True
        own = self._workloads.get(asker)
        if own is not None:
            return (own.service, own.namespace) == (destination.service, destination.namespace)
        if asker.namespace is None or not destination.namespace or not destination.user:
            return False
        return (asker.namespace, asker.service_account) == (destination.namespace, destination.user)


def _not_allowed(asker: SpiffeId, destination: Destination) -> Decision:
    where = f" of namespace `{destination.namespace}`" if destination.namespace else ""
    return deny(
        ReasonCode.ASKER_NOT_ALLOWED,
        f"`{asker}` may not ask about `{destination.service}`{where}: neither its own workload nor listed",
    )
