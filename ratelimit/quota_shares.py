"""How one limit is divided between the Envoys that subscribe to it: pure integer arithmetic.

A limit becomes `Terms`: so many `units` in each `interval`, and a `burst`. A *share* is a number of units:
the rate that one Envoy may let calls through at by itself. Times are integer nanoseconds of one clock.

What is guaranteed, in whatever order Envoys come, report, are answered and go: the shares that Envoys can be
using at one moment are never more than `units` together. An assignment that was replaced counts on until the
Envoy is known to have the new one: it reported more than `SLACK` after that was written. One whose Envoy is
gone counts until its time to live has run out, because the Envoy may only have lost its connection. This
holds as long as a message takes no longer than `SLACK` to arrive.

How it is divided:
1. One sixteenth is kept for Envoys that come: a newcomer gets half of what is free at once, at least a unit.
2. Of the rest each wants a quarter more than its demand (calls allowed and denied, by its reports), so that a
   demand that wavers is not cut, and at least a sixteenth of an equal part, so that a quiet one can start.
   Who has not reported for long enough to know wants all.
3. Nobody gets less than it wants while another one gets more than an equal part (max-min fairness).
4. What nobody wants is divided equally.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from heapq import heappop, heappush
from typing import Generic, TypeVar

from ratelimit.algorithm import SECOND, Algorithm, Limit

M = TypeVar("M", bound=Hashable)
# How long a message may take to arrive; more than that after it was written, it counts as received.
SLACK = SECOND
# A part of this size is kept for newcomers, and each Envoy's least part is this fraction of an equal one.
RESERVE = FLOOR = 16
# More assignments than these, not known to have arrived, are counted as one.
_MAX_SENT = 8
# What is at least this fraction of a limit is told at once.
_NOTICEABLE = 64
# Targets are worked out again after so long, or when an Envoy comes or goes.
_FRESH = SECOND // 2
# Fine enough that many Envoys can share a small limit.
_UNITS = 2**14
# `max_tokens` and `tokens_per_fill` are uint32.
MAX_UNITS = 2**32 - 1
# In nanoseconds it still is a 64-bit integer.
_MAX_INTERVAL_SECONDS = 10**9
# A burst of a limit that names none: this part of a window, or a second if that is more.
_BURST_PART = 20


class Blanket(StrEnum):
    """An answer that needs no division."""

    ALLOW_ALL = "allow_all"
    DENY_ALL = "deny_all"


@dataclass(frozen=True, slots=True)
class Terms:
    """What there is to divide: `units` calls each `interval_seconds`, at most `burst` of them at once."""

    units: int
    interval_seconds: int
    burst: int

    def burst_of(self, share: int) -> int:
        """Return how many calls at once belong to a share; at least one, or nothing could ever pass."""
        return max(self.burst * share // self.units, 1)

    def units_of(self, calls: int, nanoseconds: int) -> int:
        """Return the rate of `calls` in `nanoseconds` as units, rounded down."""
        return calls * self.interval_seconds * SECOND // max(nanoseconds, 1)


def terms_of(limits: Sequence[Limit], parts: int = 1) -> Terms | Blanket:
    """Return what a bucket under `limits` comes to, if one of `parts` equal parts of them is given out here.

    The slowest limit says the rate, the one with the smallest burst the burst. A window's limit is given out
    evenly over the window. Limits in shadow mode do not count. Places (`concurrency`) cannot be given out,
    since no report says when a call ends: such a bucket is denied.
    """
    enforced = [limit for limit in limits if not limit.shadow_mode]
    if not enforced:
        return Blanket.ALLOW_ALL
    if any(not one.requests_per_unit or one.algorithm is Algorithm.CONCURRENCY for one in enforced):
        return Blanket.DENY_ALL
    slowest = min(enforced, key=lambda limit: Fraction(limit.requests_per_unit, limit.unit.window))
    most, window = slowest.requests_per_unit, slowest.unit.window
    interval = min(max(-(-_UNITS * window // (most * SECOND)), 1), _MAX_INTERVAL_SECONDS)
    units = min(most * interval * SECOND // (window * parts), MAX_UNITS)
    burst = min(max(min(map(_burst, enforced)) // parts, 1), MAX_UNITS)
    return Terms(units, interval, burst) if units else Blanket.DENY_ALL


def _burst(limit: Limit) -> int:
    if limit.algorithm is Algorithm.TOKEN_BUCKET:
        return limit.capacity
    window = limit.unit.window
    return limit.requests_per_unit * max(min(SECOND, window), window // _BURST_PART) // window


def divide(total: int, wants: Sequence[int]) -> list[int]:
    """Divide `total` by `wants`, max-min fair; what nobody wants equally. All of it is given out."""
    shares = [0] * len(wants)
    left = total
    order = sorted(range(len(wants)), key=lambda index: (wants[index], index))
    for place, index in enumerate(order):
        shares[index] = min(wants[index], left // (len(wants) - place))
        left -= shares[index]
    for place, index in enumerate(reversed(order)):
        extra = -(-left // (len(wants) - place))
        shares[index] += extra
        left -= extra
    return shares


@dataclass(slots=True)
class _Sent:
    """An assignment on its way (`written` is None) or with its Envoy."""

    share: int
    written: int | None = None


@dataclass(slots=True)
class _Member:
    """An Envoy: its demand in units (None: not known), when it reported, what it may be using."""

    demand: int | None
    reported: int
    sent: list[_Sent] = field(default_factory=list)
    ceiling: int = 0
    target: int = 0


class QuotaShares(Generic[M]):
    """The division of `units` between members that join, report, are assigned shares and leave.

    `lifetime` (nanoseconds) is how long an assignment is valid once it arrived. `capacity` says how many of
    the units there are to divide for the time being.
    """

    def __init__(self, units: int, lifetime: int) -> None:
        self.units = units
        self.capacity = units
        self._lifetime = lifetime + SLACK
        self._members: dict[M, _Member] = {}
        # What those who left may still be using, and until when.
        self._left: list[tuple[int, int]] = []
        self._held = 0
        self._refreshed: tuple[int, int] | None = None  # when, for which capacity

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[M]:
        return iter(self._members)

    @property
    def held(self) -> int:
        """How many units Envoys may be using, those that are gone included; never more than `units`."""
        return self._held

    @property
    def is_empty(self) -> bool:
        """Whether nobody uses any of it."""
        return not self._members and not self._left

    def join(self, who: M, demand: int | None, now: int) -> None:
        """Add a member; `demand` in units, None if it is not known."""
        self._members[who] = _Member(demand, now)
        self._refreshed = None

    def report(self, who: M, demand: int | None, now: int) -> bool:
        """Take note of what a member's calls came to, and of what it must have received by now.

        Returns whether that frees noticeably much for others. A demand rises at once and falls by half of the
        way, so that a pause costs no share; None says nothing about it.
        """
        member = self._members[who]
        known = member.demand
        if demand is not None:
            member.demand = demand if known is None else max(demand, (known + demand) // 2)
        member.reported = now
        received = [sent for sent in member.sent if sent.written is not None and now - sent.written > SLACK]
        if received:
            member.sent = member.sent[len(received) - 1 :]
        before = member.ceiling
        self._recount(member)
        return (before - member.ceiling) * _NOTICEABLE > self.units

    def assign(self, who: M, now: int) -> int:
        """Return the share that is to be written to a member next; with `delivered` it has been."""
        member = self._members[who]
        self._refresh(now)
        free = self.units - self._held + member.ceiling
        half = (free + 1) // 2
        allowance = half if member.demand is None else max(free - self.units // RESERVE, half)
        share = min(member.target, allowance)
        member.sent.append(_Sent(share))
        self._recount(member)
        return share

    def delivered(self, who: M, now: int) -> None:
        """Take note that everything assigned to a member has been written; it may be gone meanwhile."""
        member = self._members.get(who)
        if member is None:
            return
        for sent in member.sent:
            if sent.written is None:
                sent.written = now
        while len(member.sent) > _MAX_SENT:
            one, two, *rest = member.sent
            member.sent = [_Sent(max(one.share, two.share), two.written), *rest]

    def is_lowered(self, who: M, now: int) -> bool:
        """Return whether a member has noticeably more than it should, so that it has to be told soon."""
        self._refresh(now)
        member = self._members[who]
        return bool(member.sent) and member.target < member.sent[-1].share * 7 // 8

    def is_short(self, who: M, now: int) -> bool:
        """Return whether a member has noticeably less than it should, so that it can use what gets free."""
        self._refresh(now)
        member = self._members[who]
        return bool(member.sent) and member.target > member.sent[-1].share * 9 // 8

    def leave(self, who: M, now: int) -> None:
        """Remove a member; what it may be using counts until it has run out."""
        member = self._members.pop(who)
        self._expire(member, now)
        self._recount(member)
        for units, until in _steps(member.sent, now, self._lifetime):
            heappush(self._left, (until, units))
        self._refreshed = None

    def demand(self, who: M) -> int | None:
        """Return the demand of a member in units."""
        return self._members[who].demand

    def sweep(self, now: int) -> None:
        """Forget what has run out."""
        while self._left and self._left[0][0] <= now:
            self._held -= heappop(self._left)[1]

    def _refresh(self, now: int) -> None:
        """Work out what each member should get, unless that was done a moment ago."""
        capacity = max(min(self.capacity, self.units), 0)
        if self._refreshed is not None:
            at, known = self._refreshed
            if capacity == known and 0 <= now - at < _FRESH:
                return
        self._refreshed = now, capacity
        self.sweep(now)
        members = list(self._members.values())
        total = capacity - capacity // RESERVE
        least = total // (FLOOR * len(members))
        wants = []
        for member in members:
            self._expire(member, now)
            self._recount(member)
            demand = member.demand
            if demand is None:
                wants.append(total)
            elif now - member.reported > self._lifetime:
                wants.append(least)
            else:
                wants.append(min(max(demand + demand // 4, least), total))
        for member, target in zip(members, divide(total, wants), strict=True):
            member.target = target

    def _expire(self, member: _Member, now: int) -> None:
        member.sent = [
            sent for sent in member.sent if sent.written is None or now - sent.written <= self._lifetime
        ]

    def _recount(self, member: _Member) -> None:
        ceiling = max((sent.share for sent in member.sent), default=0)
        self._held += ceiling - member.ceiling
        member.ceiling = ceiling


def _steps(sent: Sequence[_Sent], now: int, lifetime: int) -> list[tuple[int, int]]:
    """Return how many units run out when, if `sent` is what an Envoy that is gone may be using."""
    ends = sorted(
        ((one.share, (now if one.written is None else one.written) + lifetime) for one in sent), reverse=True
    )
    steps: list[tuple[int, int]] = []
    until = 0
    for index, (share, end) in enumerate(ends):
        until = max(until, end)
        lower = ends[index + 1][0] if index + 1 < len(ends) else 0
        if share > lower:
            steps.append((share - lower, until))
    return steps
