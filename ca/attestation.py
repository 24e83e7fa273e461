"""What a caller has shown to be true of itself -> the registrations it is entitled to.

For a caller on a Unix socket the kernel vouches. It vouches for the user more than for the path: anybody
who may run a program as a user can often make another one look like it, so a registration by path should
name the user too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence

from ca.registration import Registration, Selector, SelectorKind
from garrison.identity import SpiffeId
from garrison.transport.unix_peer import PeerCredentials


def selectors_of(peer: PeerCredentials) -> frozenset[Selector]:
    """Return everything that is true of the process `peer`; a path that could not be read is left out."""
    found = {
        Selector(SelectorKind.UNIX_UID, str(peer.uid)),
        Selector(SelectorKind.UNIX_GID, str(peer.gid)),
    }
    if peer.path is not None:
        found.add(Selector(SelectorKind.UNIX_PATH, peer.path))
    return frozenset(found)


class Registrations(Collection[Registration]):
    """Registrations in their order, and who may have which. Immutable: built when they change, not by a call.

    A call looks at few of them, however many there are: each is found by the rarest of its selectors, so that
    one which many have in common (a namespace, user 0) leads only to those that have nothing rarer.
    """

    def __init__(self, registrations: Iterable[Registration] = ()) -> None:
        self._all = tuple(registrations)
        self._known = frozenset(self._all)
        self._direct: dict[SpiffeId, Registration] = {}
        of_agents: dict[SpiffeId | None, list[int]] = {}
        for position, one in enumerate(self._all):
            of_agents.setdefault(one.parent_id, []).append(position)
            if one.parent_id is None:
                self._direct.setdefault(one.spiffe_id, one)
        self._candidates = {agent: self._by_rarest(positions) for agent, positions in of_agents.items()}

    def entitled(
        self, proven: frozenset[Selector], agent: SpiffeId | None = None
    ) -> tuple[Registration, ...]:
        """Return the registrations all of whose selectors are in `proven`, in order.

        `agent` is who has proved them, None for this server: user 1000 of one machine is not that of
        another, so only registrations with just this parent count.

        The first is the caller's default identity. Of several registrations of one SPIFFE ID the first
        counts.
        """
        candidates = self._candidates.get(agent, {})
        positions = [
            position
            for selector in proven
            for position, others in candidates.get(selector, ())
            if others <= proven
        ]
        found: dict[SpiffeId, Registration] = {}
        for position in sorted(positions):
            found.setdefault(self._all[position].spiffe_id, self._all[position])
        return tuple(found.values())

    def direct(self, spiffe_id: SpiffeId) -> Registration | None:
        """Return the first registration of `spiffe_id` without a parent: who has it may come here itself."""
        return self._direct.get(spiffe_id)

    def __contains__(self, value: object) -> bool:
        return value in self._known

    def __iter__(self) -> Iterator[Registration]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def _by_rarest(self, positions: Sequence[int]) -> dict[Selector, list[tuple[int, frozenset[Selector]]]]:
        """Return each of `positions` under its rarest selector, with the others that must be met too."""
        counts = Counter(selector for position in positions for selector in self._all[position].selectors)
        found: dict[Selector, list[tuple[int, frozenset[Selector]]]] = {}
        # What many have in common besides is kept once.
        same: dict[frozenset[Selector], frozenset[Selector]] = {}
        for position in positions:
            selectors = self._all[position].selectors
            # A set without elements is a subset of everything: no selector means nobody.
            if selectors:
                rarest = min(selectors, key=counts.__getitem__)
                others = frozenset(selectors) - {rarest}
                found.setdefault(rarest, []).append((position, same.setdefault(others, others)))
        return found
