"""How authorities of a trust domain follow each other: states, what may change, and what is due when.

An authority is a signing certificate with its key, under a root. Prepared: its root is published, nothing
is signed by it yet. Active: it signs; there is one at most. Old: it signs no more, its root is still
published for what it signed. Tainted: the same, and whoever holds something that it signed gets a new one at
once. Revoked: its root is not published any more, which is final; so end also those whose last leaf expired.

    prepared -> active -> old -> tainted -> revoked
        `------------------`-------------------^

No clock, file or ledger here: `now` and what is known come in, changes come out. The shares are SPIRE's: the
next authority at half of the life, its use at five sixths, so that every leaf that lives up to a sixth of the
authority's life lives its full term.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from fractions import Fraction

from ca.issuer import MAX_TTL
from ca.ledger import KeyState, KeyUse, StateChange
from garrison.errors import IssuanceError

PREPARE_AT = Fraction(1, 2)
ACTIVATE_AT = Fraction(5, 6)
# Five times the refresh hint of our bundle: SPIFFE Federation asks for three to five before a key is used.
OVERLAP = timedelta(minutes=25)
# A CA that lives for an hour cannot wait that long: at most this share of the active one's life.
_OVERLAP_SHARE = Fraction(1, 6)
# How long it takes until all have followed a change of states: a server looks every second, `ca renew` every
# minute. Whoever had loaded an authority when it became old may have signed once more.
SETTLE = timedelta(minutes=1)
# Retiring cannot be undone: it waits for so long after the last leaf at most, in case our clock is ahead.
CLOCK_MARGIN = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of an authority; `root` is the SHA-256 of its root's certificate.

    `known_since` is when it was recorded. `changed_at` is when its state last changed; for a prepared one
    when its root was published, None before. `last_leaf` is when the last of what it signed ends, None if
    nothing is recorded.
    """

    key_id: str
    state: KeyState
    root: str
    starts: datetime
    ends: datetime
    root_starts: datetime
    root_ends: datetime
    known_since: datetime
    changed_at: datetime | None = None
    last_leaf: datetime | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """When what is done; `overlap` is how long a root is published before it signs for the first time."""

    overlap: timedelta = OVERLAP
    prepare_at: Fraction = PREPARE_AT
    activate_at: Fraction = ACTIVATE_AT

    @property
    def settle(self) -> timedelta:
        """How long a change takes until all have followed it."""
        return min(self.overlap, SETTLE)

    @property
    def clock_margin(self) -> timedelta:
        """How long it waits to retire after the last leaf; less for a mesh that follows fast."""
        return min(3 * self.overlap, CLOCK_MARGIN)


class Act(StrEnum):
    """What a step does."""

    PREPARE_INTERMEDIATE = "prepare_intermediate"
    PREPARE_ROOT = "prepare_root"
    ACTIVATE = "activate"
    RETIRE = "retire"


@dataclass(frozen=True, slots=True)
class Step:
    """Something that is due; `key_id` is whom it is about, for the two ways to prepare who is followed."""

    act: Act
    key_id: str


@dataclass(frozen=True, slots=True)
class Schedule:
    """When the successor of an authority is prepared and used; from `new_root_at` on it gets a new root."""

    prepare_at: datetime
    activate_at: datetime
    new_root_at: datetime


def schedule(active: Standing, policy: Policy) -> Schedule:
    """Return when `active` is followed by another."""
    new_root_at = _share(active.root_starts, active.root_ends, policy.prepare_at)
    prepare_at = min(_share(active.starts, active.ends, policy.prepare_at), new_root_at)
    activate_at = min(
        _share(active.starts, active.ends, policy.activate_at),
        _share(active.root_starts, active.root_ends, policy.activate_at),
    )
    return Schedule(prepare_at, activate_at, new_root_at)


def due(standings: Iterable[Standing], now: datetime, policy: Policy) -> tuple[Step, ...]:
    """Return what the schedule asks for at `now`, in this order; nothing is due twice once it is done."""
    known = tuple(standings)
    active, prepared = active_of(known), prepared_of(known)
    steps: list[Step] = []
    if active is not None:
        plan = schedule(active, policy)
        if prepared is None and now >= plan.prepare_at:
            act = Act.PREPARE_ROOT if now >= plan.new_root_at else Act.PREPARE_INTERMEDIATE
            steps.append(Step(act, active.key_id))
        is_time = now >= plan.activate_at
    else:
        is_time = True
    if (
        prepared is not None
        and is_time
        and prepared.starts <= now < prepared.ends
        and _is_published_long_enough(prepared, active, now, policy)
    ):
        steps.append(Step(Act.ACTIVATE, prepared.key_id))
    steps += [Step(Act.RETIRE, one.key_id) for one in known if _has_served(one, now, policy)]
    return tuple(steps)


def activate(
    standings: Iterable[Standing], key_id: str, now: datetime, policy: Policy, *, at_once: bool = False
) -> tuple[StateChange, ...]:
    """Return what makes `key_id` the one that signs.

    With `at_once` it does not matter how long its root has been published: for an emergency, since whoever
    has not heard of the root refuses what it signs.

    Raises:
        IssuanceError: it is not prepared, is not valid now, or was published too short a time ago.

    """
    known = tuple(standings)
    one = find(known, key_id)
    if one.state is not KeyState.PREPARED:
        raise IssuanceError(
            f"authority {key_id} is {one.state}: only a prepared one can be activated, `prepare` makes one"
        )
    if not one.starts <= now < one.ends:
        raise IssuanceError(f"authority {key_id} is valid from {one.starts:%FT%TZ} to {one.ends:%FT%TZ} only")
    if one.changed_at is None:
        raise IssuanceError(f"the root of authority {key_id} is not published yet: try again")
    active = active_of(known)
    if not at_once and not _is_published_long_enough(one, active, now, policy):
        ready = one.changed_at + _overlap(active, policy)
        raise IssuanceError(
            f"the root of authority {key_id} was published at {one.changed_at:%FT%TZ}: wait until "
            f"{ready:%FT%TZ}, since who has not got it refuses what it signs (--now does not wait)"
        )
    change = StateChange(KeyUse.X509, key_id, KeyState.PREPARED, KeyState.ACTIVE)
    if active is None:
        return (change,)
    # First the one that ends: not for a moment are there two.
    return StateChange(KeyUse.X509, active.key_id, KeyState.ACTIVE, KeyState.OLD), change


def taint(standings: Iterable[Standing], key_id: str) -> tuple[StateChange, ...]:
    """Return what makes everybody replace what `key_id` signed.

    Raises:
        IssuanceError: it is not an old one.

    """
    one = find(standings, key_id)
    match one.state:
        case KeyState.ACTIVE:
            raise IssuanceError(
                f"authority {key_id} is active and cannot be tainted: prepare and activate another first"
            )
        case KeyState.PREPARED:
            raise IssuanceError(f"authority {key_id} is prepared, nothing was signed by it: revoke it")
        case KeyState.OLD:
            return (StateChange(KeyUse.X509, key_id, KeyState.OLD, KeyState.TAINTED),)
        case KeyState.TAINTED | KeyState.REVOKED:
            raise IssuanceError(f"authority {key_id} is {one.state} already")


def revoke(
    standings: Iterable[Standing], key_id: str, now: datetime, policy: Policy, *, at_once: bool = False
) -> tuple[StateChange, ...]:
    """Return what takes the root of `key_id` out of the bundle, for good; of all tainted ones that share it.

    With `at_once` those who have to replace what it signed get no time for that.

    Raises:
        IssuanceError: it is neither tainted nor prepared, or one that is not tainted has the same root, so
            that what it signed would still verify.

    """
    known = tuple(standings)
    one = find(known, key_id)
    match one.state:
        case KeyState.ACTIVE:
            raise IssuanceError(
                f"authority {key_id} is active and cannot be revoked: prepare and activate another first"
            )
        case KeyState.OLD:
            raise IssuanceError(
                f"authority {key_id} is old: taint it first, so that whoever holds what it signed gets "
                "something new"
            )
        case KeyState.REVOKED:
            raise IssuanceError(f"authority {key_id} is revoked already")
        case KeyState.TAINTED:
            ready = (one.changed_at or now) + policy.settle
            if not at_once and now < ready:
                raise IssuanceError(
                    f"authority {key_id} was tainted a moment ago: wait until {ready:%FT%TZ}, so that who "
                    "holds what it signed gets something new (--now does not wait)"
                )
            # It is the root that is revoked, so all that have it.
            same = [other for other in known if other.root == one.root]
            for other in same:
                _refuse_shared(one, other)
            tainted = [other for other in same if other.state is KeyState.TAINTED]
            return tuple(
                StateChange(KeyUse.X509, other.key_id, KeyState.TAINTED, KeyState.REVOKED)
                for other in tainted
            )
        case KeyState.PREPARED:
            pass
    return (StateChange(KeyUse.X509, key_id, one.state, KeyState.REVOKED),)


def retire(
    standings: Iterable[Standing], key_id: str, now: datetime, policy: Policy
) -> tuple[StateChange, ...]:
    """Return what takes an authority out of the bundle that nobody needs any more.

    Raises:
        IssuanceError: somebody may.

    """
    one = find(standings, key_id)
    if not _has_served(one, now, policy):
        raise IssuanceError(f"authority {key_id} may still be needed")
    return (StateChange(KeyUse.X509, key_id, one.state, KeyState.REVOKED),)


def find(standings: Iterable[Standing], key_id: str) -> Standing:
    """Return the authority of that key identifier.

    Raises:
        IssuanceError: there is none.

    """
    for one in standings:
        if one.key_id == key_id:
            return one
    raise IssuanceError(f"there is no authority {key_id}")


def active_of(standings: Iterable[Standing]) -> Standing | None:
    """Return who signs."""
    return next((one for one in standings if one.state is KeyState.ACTIVE), None)


def prepared_of(standings: Iterable[Standing]) -> Standing | None:
    """Return who is prepared."""
    return next((one for one in standings if one.state is KeyState.PREPARED), None)


def published(standings: Iterable[Standing]) -> tuple[Standing, ...]:
    """Return whose roots are in the bundle: who signs first, then the others in their order."""
    counted = [one for one in standings if one.state is not KeyState.REVOKED]
    return tuple(sorted(counted, key=lambda one: one.state is not KeyState.ACTIVE))


def needed_until(one: Standing, policy: Policy) -> datetime | None:
    """Return from when on nobody needs an authority that signs no more; None if it may still sign."""
    if one.state not in {KeyState.OLD, KeyState.TAINTED} or one.changed_at is None:
        return None
    # What was issued before there was a record of it ends a longest life after the record began.
    end = max(one.known_since + MAX_TTL, one.changed_at + policy.settle)
    return min(end if one.last_leaf is None else max(end, one.last_leaf), max(one.ends, one.changed_at))


def _has_served(one: Standing, now: datetime, policy: Policy) -> bool:
    if one.state is KeyState.PREPARED:
        return now >= one.ends
    end = needed_until(one, policy)
    return end is not None and now >= end + policy.clock_margin


def _is_published_long_enough(one: Standing, active: Standing | None, now: datetime, policy: Policy) -> bool:
    return one.changed_at is not None and now >= one.changed_at + _overlap(active, policy)


def _overlap(active: Standing | None, policy: Policy) -> timedelta:
    if active is None:
        return policy.overlap
    share = timedelta(seconds=float((active.ends - active.starts).total_seconds() * _OVERLAP_SHARE))
    return min(policy.overlap, share)


def _refuse_shared(one: Standing, other: Standing) -> None:
    match other.state:
        case KeyState.ACTIVE:
            hint = "prepare one with a new root (--new-root), activate it, taint this one, revoke both"
        case KeyState.PREPARED:
            hint = "revoke that one first"
        case KeyState.OLD:
            hint = "taint that one as well"
        case KeyState.TAINTED | KeyState.REVOKED:
            return
    raise IssuanceError(
        f"{other.state} authority {other.key_id} has the same root as {one.key_id}, so what that signed "
        f"would still verify: {hint}"
    )


def _share(starts: datetime, ends: datetime, share: Fraction) -> datetime:
    return starts + timedelta(seconds=float((ends - starts).total_seconds() * float(share)))
