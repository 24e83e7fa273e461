"""What a caller on the Unix socket may have and holds: between attestation and the APIs that hand it out.

SDS and the Workload API speak to `Identities` only, so whoever can answer it serves both: the server, which
signs itself (`ca.local_identities`), or a node that gets its SVIDs from a server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from ca.attestors.base import Reason, Refused
from ca.bundle import SpiffeBundle
from ca.registration import Registration
from ca.svid_cache import HeldSvid
from garrison.identity import TrustDomain
from garrison.transport import StatusCode, StatusError
from garrison.transport.unix_peer import PeerCredentials

# A timer counts the time the machine is awake; certificates end by the clock on the wall. And keys for
# tokens, which are published long before their use, need no notice: whoever looks this often sees them.
MAX_SLEEP = timedelta(minutes=1)


class Changes:
    """Tells whoever waits that something of `Identities` is not as it was."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def tell(self) -> None:
        """Wake everybody who waits."""
        self._event.set()
        self._event = asyncio.Event()

    def next(self) -> Awaitable[object]:
        """Return what is done at the next change from now; take it before looking, so that none is missed."""
        return self._event.wait()


@dataclass(frozen=True, slots=True)
class Caller:
    """A process, as the kernel knows it, and what it may have; the first is its default identity."""

    credentials: PeerCredentials
    registrations: tuple[Registration, ...]


class Identities(Protocol):
    """What there is to hand out; every method answers as of now."""

    changes: Changes
    """Told when registrations, bundles or a forced rotation change what somebody gets."""

    @property
    def trust_domain(self) -> TrustDomain:
        """Whose identities these are."""

    def attest(self, peer: str) -> PeerCredentials | None:
        """Return the process behind a gRPC `context.peer()`; None for who cannot be attested."""

    def entitled(self, credentials: PeerCredentials) -> tuple[Registration, ...]:
        """Return what that process may have, in order; none for a stranger."""

    def crls(self) -> tuple[bytes, ...]:
        """Return the CRLs of our trust domain (DER), the same objects until others are published.

        Whoever looks at all of one does so once: there may be many entries, and many callers.
        """

    async def svid(self, caller: Caller, registration: Registration) -> HeldSvid:
        """Return the SVID of `registration`, the same to all who ask until its `renew_at`.

        Raises:
            IssuanceError: there is none that is valid, and the CA refuses.

        """

    def bundles(self, caller: Caller) -> Mapping[TrustDomain, SpiffeBundle]:
        """Return the bundle of our trust domain, and those of the federated ones that `caller` may have."""

    async def sign_jwt(self, caller: Caller, registration: Registration, audience: Sequence[str]) -> str:
        """Return a JWT-SVID of `registration` for `audience`.

        Raises:
            IssuanceError: the CA refuses.

        """


class EntitlementError(StatusError):
    """The caller may not have what it asks for.

    `credentials` say who it is, if the kernel does; `name` what it asked for, if it has an identity at all.
    """

    def __init__(self, message: str, credentials: PeerCredentials | None, *, name: str = "") -> None:
        super().__init__(StatusCode.PERMISSION_DENIED, message)
        self.credentials = credentials
        self.name = name

    @property
    def refused(self) -> Refused:
        """What the audit log says of it."""
        if self.credentials is None:
            return Refused(Reason.NO_EVIDENCE, self.message)
        return Refused(Reason.NOT_ENTITLED if self.name else Reason.NOT_REGISTERED, self.message)

    def who(self, peer: str) -> str:
        """Return who `peer` is, as records of what is issued say it."""
        found = self.credentials
        return peer if found is None else f"{describe(found)}, pid {found.pid}"

    def described(self, peer: str) -> dict[str, Any]:
        """Return what the log says of the denial: who `peer` is, as far as the kernel knows, and why."""
        found = self.credentials
        if found is None:
            return {"peer": peer, "reason": "no peer credentials"}
        who = {"pid": found.pid, "uid": found.uid, "gid": found.gid, "path": found.path}
        return {**who, "name": self.name, "reason": self.message}


def admit(identities: Identities, peer: str) -> Caller:
    """Return the caller behind `peer`.

    Raises:
        EntitlementError: it is not attested, or has no identity.

    """
    credentials = identities.attest(peer)
    if credentials is None:
        raise EntitlementError(
            "identities are given only over the Unix socket, where the caller can be attested", None
        )
    return admit_again(identities, credentials)


def admit_again(identities: Identities, credentials: PeerCredentials) -> Caller:
    """Return the same process with what it may have now.

    Raises:
        EntitlementError: it has no identity any more.

    """
    registrations = identities.entitled(credentials)
    if not registrations:
        raise EntitlementError(f"no registration matches this caller ({describe(credentials)})", credentials)
    return Caller(credentials, registrations)


def describe(credentials: PeerCredentials) -> str:
    """Return who a process is, in the words of the selectors that it could meet."""
    path = credentials.path or "an unknown executable"
    return f"uid {credentials.uid}, gid {credentials.gid}, {path}"
