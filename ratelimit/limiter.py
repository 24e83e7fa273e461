"""All descriptors of a request as one spend: find their rules, ask the store once, say what came out.

The request is over its limit when any of its descriptors is, except by a limit in shadow mode. As in
envoyproxy/ratelimit every descriptor is counted even if another one denies.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import NamedTuple

from ratelimit.algorithm import Limit, Outcome
from ratelimit.compile import Domain, Rule
from ratelimit.descriptors import Descriptor, bucket_key
from ratelimit.store.base import Spend, Store


class Status(NamedTuple):
    """What became of one descriptor: its rule, the outcome if it was counted, whether that denies."""

    rule: Rule | None
    outcome: Outcome | None
    over_limit: bool


class Decision(NamedTuple):
    """The answer to a request; `statuses` stand in the order of its descriptors.

    `shadowed` says that a limit in shadow mode would have denied it.
    """

    over_limit: bool
    shadowed: bool
    statuses: Sequence[Status]


def spend(
    store: Store, domain: Domain, descriptors: Sequence[Descriptor], now: int
) -> Decision | Awaitable[Decision]:
    """Charge `descriptors` at `now` (nanoseconds since the epoch) and return the decision.

    It is an awaitable if the store's answer is one. A descriptor's own limit takes the place of the
    configured one.

    Raises:
        DependencyError: the store cannot tell.

    """
    rules: list[Rule | None] = []
    spends: list[Spend] = []
    for entries, cost, override in descriptors:
        rule = override or domain.find(entries)
        rules.append(rule)
        if isinstance(rule, Limit):
            spends.append(Spend(bucket_key(rule.unit, domain.name, entries), rule, cost))
    outcomes = store.spend(spends, now) if spends else []
    if isinstance(outcomes, list):
        return _conclude(rules, outcomes)
    return _conclude_later(rules, outcomes)


async def _conclude_later(rules: Sequence[Rule | None], outcomes: Awaitable[list[Outcome]]) -> Decision:
    return _conclude(rules, await outcomes)


def _conclude(rules: Sequence[Rule | None], outcomes: list[Outcome]) -> Decision:
    over_limit = shadowed = False
    statuses: list[Status] = []
    left = iter(outcomes)
    for rule in rules:
        if not isinstance(rule, Limit):
            statuses.append(Status(rule, None, over_limit=False))
            continue
        outcome = next(left)
        over = False
        if not outcome.allowed:
            if rule.shadow_mode:
                shadowed = True
            else:
                over = over_limit = True
        statuses.append(Status(rule, outcome, over))
    return Decision(over_limit, shadowed, statuses)
