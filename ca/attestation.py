"""What a caller has shown to be true of itself -> the registrations it is entitled to.

For a caller on a Unix socket the kernel vouches. It vouches for the user more than for the path: anybody
who may run a program as a user can often make another one look like it, so a registration by path should
name the user too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain

from ca.registration import Registration, Selector, SelectorKind
from garrison.identity import SpiffeId
from garrison.transport.unix_peer import PeerCredentials


# A process comes again for each certificate of its workloads.
@lru_cache(maxsize=1024)
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
        # Numbers stand for selectors: to compare those takes several times as long.
        numbers: dict[Selector, int] = {}
        needed: list[tuple[int, ...]] = []
        of_agents: dict[SpiffeId | None, list[int]] = {}
        for position, one in enumerate(self._all):
            needed.append(tuple([numbers.setdefault(selector, len(numbers)) for selector in one.selectors]))
            of_agents.setdefault(one.parent_id, []).append(position)
            if one.parent_id is None:
                self._direct.setdefault(one.spiffe_id, one)
        self._numbers = numbers
        self._by_rarest = {agent: _by_rarest(positions, needed) for agent, positions in of_agents.items()}
        self._needed = needed

    def entitled(
        self, proven: frozenset[Selector], agent: SpiffeId | None = None
    ) -> tuple[Registration, ...]:
        """Return the registrations all of whose selectors are in `proven`, in order.

        `agent` is who has proved them, None for this server: user 1000 of one machine is not that of
        another, so only registrations with just this parent count.

        The first is the caller's default identity. Of several registrations of one SPIFFE ID the first
        counts.
        """
        candidates = self._by_rarest.get(agent, {})
        numbers = {self._numbers[selector] for selector in proven if selector in self._numbers}
        positions = [
            position
            for number in numbers
            for position in candidates.get(number, ())
            if numbers.issuperset(self._needed[position])
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


def _by_rarest(positions: Sequence[int], needed: Sequence[Sequence[int]]) -> dict[int, list[int]]:
    """Return each of `positions` under the one of its selectors that the fewest of them have."""
    counts = Counter(chain.from_iterable(needed[position] for position in positions))
    found: dict[int, list[int]] = {}
    for position in positions:
        # A set without elements is a subset of everything: no selector means nobody.
        if needed[position]:
            found.setdefault(min(needed[position], key=counts.__getitem__), []).append(position)
    return found
