"""Which identity an attested caller gets, and for how long. Pure.

What the evidence itself names comes first: the identity of a join token, or that of an SVID that is renewed.
An SVID is renewed while its identity is registered here; one that an agent attests is renewed by the agent.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from ca.attestation import Registrations
from ca.attestors import join_token
from ca.attestors.base import Attested, Reason, Refused
from ca.issuer import DEFAULT_TTL
from ca.registration import Registration
from garrison.errors import RequestError
from garrison.identity import SpiffeId

_MOST_NAMED = 10


@dataclass(frozen=True, slots=True)
class Grant:
    """An identity for a caller, and what its certificate is like."""

    spiffe_id: SpiffeId
    ttl: timedelta
    dns_names: tuple[str, ...] = ()

    @classmethod
    def of(cls, registration: Registration) -> Grant:
        """Return what a registration grants."""
        return cls(registration.spiffe_id, registration.svid_ttl, registration.dns_names)


def choose(
    attested: Attested, registrations: Registrations, named: SpiffeId | None = None
) -> Grant | Refused:
    """Return the one identity that the caller gets: the one it named, its own, or the only one.

    Only registrations without a parent count: the others are for their agents to give.
    """
    grants = {one.spiffe_id: Grant.of(one) for one in registrations.entitled(attested.selectors)}
    own = _own(attested, registrations)
    if own is not None:
        grants[own.spiffe_id] = own
    if named is not None:
        found = grants.get(named)
        return found or Refused(Reason.NOT_ENTITLED, f"the caller may not have `{named}`")
    if own is not None:
        return own
    if len(grants) == 1:
        return next(iter(grants.values()))
    if grants:
        names = ", ".join(f"`{one}`" for one in list(grants)[:_MOST_NAMED])
        return Refused(Reason.AMBIGUOUS, f"the caller may have {len(grants)} identities ({names})")
    if attested.identity is not None:
        return Refused(Reason.NOT_REGISTERED, f"`{attested.identity}` is not registered any more")
    return Refused(Reason.NOT_REGISTERED, "no registration matches")


def lifetime(requested_seconds: int, maximum: timedelta, grant: Grant) -> timedelta:
    """Return how long a certificate is to live: as asked for, but never longer than what is registered.

    0 asks for what is registered.

    Raises:
        RequestError: less than nothing, or above the maximum; see `check_lifetime`.

    """
    check_lifetime(requested_seconds, maximum)
    registered = min(grant.ttl, maximum)
    return min(timedelta(seconds=requested_seconds), registered) if requested_seconds else registered


def check_lifetime(requested_seconds: int, maximum: timedelta) -> None:
    """Refuse a lifetime that nobody gets.

    Raises:
        RequestError: it is negative or above the maximum.

    """
    # Compared as whole numbers: a timedelta of 64 bits of seconds does not exist.
    most = maximum // timedelta(seconds=1)
    if requested_seconds < 0:
        raise RequestError("a validity duration is not negative")
    if requested_seconds > most:
        raise RequestError(
            f"requested TTL of {requested_seconds} s is greater than the max allowed TTL of {most} s"
        )


def _own(attested: Attested, registrations: Registrations) -> Grant | None:
    if attested.identity is None:
        return None
    registration = registrations.direct(attested.identity)
    if registration is not None:
        return Grant.of(registration)
    # A join token is its own registration, once.
    is_joining = attested.attested_by == join_token.ATTESTED_BY
    return Grant(attested.identity, DEFAULT_TTL) if is_joining else None
