"""What a caller has shown to be true of itself -> the registrations it is entitled to.

For a caller on a Unix socket the kernel vouches. It vouches for the user more than for the path: anybody
who may run a program as a user can often make another one look like it, so a registration by path should
name the user too.
"""

from __future__ import annotations

from collections.abc import Iterable

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


def entitled(
    registrations: Iterable[Registration], proven: frozenset[Selector], agent: SpiffeId | None = None
) -> tuple[Registration, ...]:
    """Return the registrations all of whose selectors are in `proven`, in order.

    `agent` is who has proved them, None for this server: user 1000 of one machine is not that of another, so
    only registrations with just this parent count.

    The first is the caller's default identity. Of several registrations of one SPIFFE ID the first counts.
    """
    found: dict[object, Registration] = {}
    for registration in registrations:
        # A set without elements is a subset of everything: say again that no selector means nobody.
        if registration.parent_id != agent:
            continue
        if registration.selectors and proven.issuperset(registration.selectors):
            found.setdefault(registration.spiffe_id, registration)
    return tuple(found.values())
