"""Quotas as plainly as they can be written: fractions, lists, copies of everything. What stores are held to."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil, floor

from ratelimit.algorithm import LEASE_SLOTS, Algorithm, Limit
from ratelimit.charge import Spend


@dataclass
class Memory:
    """Everything that ever happened to one bucket."""

    taken: dict[int, int] = field(default_factory=dict)  # window -> count
    tokens: Fraction | None = None
    at: int = 0
    places: list[int] = field(default_factory=list)  # the slot of each lease


@dataclass
class Model:
    """Applies calls whose time never goes back."""

    buckets: dict[tuple[str, str], Memory] = field(default_factory=dict)
    # Until when which call is remembered, and what it was granted.
    once: dict[tuple[str, bool, str, str], tuple[int, int]] = field(default_factory=dict)

    def call(self, spends: Sequence[Spend], now: int) -> list[tuple[bool, int, int | None]]:
        """Return (allowed, remaining, granted) for each spend of one call."""
        before = copy.deepcopy(self)
        costs = self._costs(spends, now)
        repeated = []
        answers = []
        for spend, cost in zip(spends, costs, strict=True):
            known = self._known(spend, now)
            repeated.append(known)
            allowed, left = self._take(spend, 0 if known else cost, now)
            if known:
                allowed = True
            elif spend.once and cost and allowed:
                self.once[self._name(spend)] = (now + spend.once_for, cost)
            answers.append((allowed, left))
        if self._denies(spends, [allowed for allowed, _ in answers]):
            self.buckets, self.once = before.buckets, before.once
            for index, (spend, cost) in enumerate(zip(spends, costs, strict=True)):
                again = cost if spend.limit.counts_denied and not repeated[index] else 0
                answers[index] = answers[index][0], self._take(spend, again, now)[1]
        granted = [
            None
            if not ((spend.limit.best_effort or spend.extra) and cost > 0 and allowed)
            else known[1]
            if known
            else cost
            for spend, cost, (allowed, _), known in zip(spends, costs, answers, repeated, strict=True)
        ]
        return [(allowed, left, grant) for (allowed, left), grant in zip(answers, granted, strict=True)]

    def _name(self, spend: Spend) -> tuple[str, bool, str, str]:
        return spend.once, spend.cost < 0, spend.limit.kind, spend.key

    def _known(self, spend: Spend, now: int) -> tuple[int, int] | None:
        known = self.once.get(self._name(spend)) if spend.once and spend.cost else None
        return known if known and known[0] > now else None

    def _costs(self, spends: Sequence[Spend], now: int) -> list[int]:
        costs = []
        for spend in spends:
            cost = spend.cost
            if spend.limit.best_effort and cost > 1:
                group = [other for other in spends if other.descriptor == spend.descriptor]
                cost = max(1, min([cost, *(copy.deepcopy(self)._take(one, 0, now)[1] for one in group)]))
            if spend.extra and spend.cost > 0:
                left = copy.deepcopy(self)._take(spend, 0, now)[1]
                cost = max(cost, min(spend.cost + spend.extra, left))
            costs.append(cost)
        return costs

    def _denies(self, spends: Sequence[Spend], allowed: Sequence[bool]) -> bool:
        over = [
            (spend, not fits and not spend.limit.shadow_mode)
            for spend, fits in zip(spends, allowed, strict=True)
        ]
        if any(denied for spend, denied in over if not spend.limit.quota_mode):
            return True
        quotas = {spend.descriptor for spend, _ in over if spend.limit.quota_mode}
        exhausted = {spend.descriptor for spend, denied in over if spend.limit.quota_mode and denied}
        return bool(quotas) and quotas == exhausted

    def _take(self, spend: Spend, cost: int, now: int) -> tuple[bool, int]:
        limit = spend.limit
        memory = self.buckets.setdefault((limit.kind, spend.key), Memory())
        take = {
            Algorithm.FIXED_WINDOW: _fixed,
            Algorithm.SLIDING_WINDOW: _sliding,
            Algorithm.TOKEN_BUCKET: _tokens,
            Algorithm.CONCURRENCY: _places,
            Algorithm.ROLLING_WINDOW: _rolling,
        }[limit.algorithm]
        allowed, left = take(limit, memory, now, cost)
        return allowed, max(left, 0)


def _fixed(limit: Limit, memory: Memory, now: int, cost: int) -> tuple[bool, int]:
    window = now // limit.unit.window
    spent = memory.taken.get(window, 0)
    allowed = spent + max(cost, 1) <= limit.requests_per_unit or cost < 0
    if allowed or limit.counts_denied:
        spent = memory.taken[window] = max(spent + cost, 0)
    return allowed, limit.requests_per_unit - spent


def _sliding(limit: Limit, memory: Memory, now: int, cost: int) -> tuple[bool, int]:
    most, window = limit.requests_per_unit, limit.ticks
    at = now // limit.tick
    number = at // window
    share = Fraction(window - at % window, window)

    def left() -> int:
        before = min(memory.taken.get(number - 1, 0), most)
        return most - memory.taken.get(number, 0) - ceil(before * share)

    current = memory.taken.get(number, 0)
    allowed = cost < 0 or left() >= max(cost, 1)
    if cost > 0 and allowed:
        memory.taken[number] = current + cost
    elif cost > 0 and limit.counts_denied:
        memory.taken[number] = max(current, min(current + cost, most))
    elif cost < 0:
        back = min(current, -cost)
        memory.taken[number] = current - back
        before = min(memory.taken.get(number - 1, 0), most)
        memory.taken[number - 1] = max(before - (-cost - back), 0)
    return allowed, left()


def _tokens(limit: Limit, memory: Memory, now: int, cost: int) -> tuple[bool, int]:
    at = now // limit.tick
    if memory.tokens is None:
        memory.tokens = Fraction(limit.capacity)
    gained = Fraction((at - memory.at) * limit.requests_per_unit, limit.ticks)
    memory.tokens, memory.at = min(memory.tokens + gained, Fraction(limit.capacity)), at
    if not limit.requests_per_unit:
        return cost < 0, 0
    allowed = cost < 0 or memory.tokens >= max(cost, 1)
    if allowed:
        memory.tokens = min(memory.tokens - cost, Fraction(limit.capacity))
    elif limit.counts_denied and cost:
        memory.tokens = Fraction(0)
    return allowed, floor(memory.tokens)


def _places(limit: Limit, memory: Memory, now: int, cost: int) -> tuple[bool, int]:
    slot = now // limit.tick // ceil(Fraction(limit.ticks, LEASE_SLOTS))
    memory.places = [one for one in memory.places if one + LEASE_SLOTS >= slot]
    allowed = cost < 0 or len(memory.places) + max(cost, 1) <= limit.requests_per_unit
    if cost < 0:
        del memory.places[max(len(memory.places) + cost, 0) :]
    elif allowed:
        memory.places += [slot] * cost
    return allowed, limit.requests_per_unit - len(memory.places)


def _rolling(limit: Limit, memory: Memory, now: int, cost: int) -> tuple[bool, int]:
    slot = now // limit.tick // ceil(Fraction(limit.ticks, limit.slots))
    memory.places = [one for one in memory.places if slot < one + limit.slots]
    allowed = cost < 0 or len(memory.places) + max(cost, 1) <= limit.requests_per_unit
    if cost < 0:
        del memory.places[max(len(memory.places) + cost, 0) :]
    elif allowed:
        memory.places += [slot] * cost
    return allowed, limit.requests_per_unit - len(memory.places)
