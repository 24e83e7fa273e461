"""All descriptors of a request as one spend: find their rules, ask the store once, say what came out.

The request is over its limit when any of its descriptors is, except by a limit in shadow mode, or when all
of its descriptors in quota mode are. As in envoyproxy/ratelimit every descriptor of a plain limit is counted
even if another one denies.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

from ratelimit.algorithm import Limit, OnStoreFailure, Outcome
from ratelimit.charge import Spend
from ratelimit.descriptors import Descriptor, entries_text, finish_key
from ratelimit.later import Later
from ratelimit.store.base import Store
from ratelimit.tree import Domain, Rule


class Status(NamedTuple):
    """What became of one descriptor: its rule, the outcome if it was counted, whether that denies.

    Of several limits it is the one that denies, or else the one with least remaining.
    """

    rule: Rule | None
    outcome: Outcome | None
    over_limit: bool
    metadata: Mapping[str, Any] | None = None


class Decision(NamedTuple):
    """The answer to a request; `statuses` stand in the order of its descriptors.

    `shadowed` says that a limit in shadow mode would have denied it. What was spent for it stands in
    `spends`, with its outcome and what its metrics are called at the same place of `outcomes` and `metrics`.
    """

    over_limit: bool
    shadowed: bool
    statuses: Sequence[Status]
    spends: Sequence[Spend] = ()
    outcomes: Sequence[Outcome] = ()
    metrics: Sequence[str] = ()


# One descriptor's rule, how many limits it has, and the metadata of its node.
_Planned = tuple[Rule | None, int, Mapping[str, Any] | None]
_NOTHING: _Planned = (None, 0, None)
# What metrics call limits that requests bring along: one name for all, since callers invent them.
_OVERRIDE = "(request)"


def spend(
    store: Store, domain: Domain, descriptors: Sequence[Descriptor], now: int
) -> Decision | Awaitable[Decision]:
    """Charge `descriptors` at `now` (nanoseconds since the epoch) and return the decision.

    It is an awaitable if the store's answer is one. A descriptor's own limit takes the place of the
    configured one.

    Raises:
        DependencyError: the store cannot tell.

    """
    plan: list[_Planned] = []
    spends: list[Spend] = []
    metrics: list[str] = []
    replaced = _replaced(domain, descriptors) if domain.has_replaces else frozenset()
    for index, (entries, cost, override) in enumerate(descriptors):
        if override is not None:
            limit = _adapted(domain, override)
            key = finish_key(limit.kind, entries_text(domain.text, entries))
            spends.append(Spend(key, limit, cost, index, domain=domain.name))
            metrics.append(_OVERRIDE)
            plan.append((limit, 1, None))
            continue
        found = domain.resolve(entries)
        if found is None:
            plan.append(_NOTHING)
            continue
        node, path, once, once_for = found
        limits = node.limits
        if replaced:
            limits = tuple(limit for limit in limits if limit.name not in replaced)
        for limit in limits:
            key = finish_key(limit.kind, path)
            spends.append(Spend(key, limit, cost, index, once, once_for, domain.name))
            metrics.append(domain.metric(entries, node) if node.names_values else limit.metric)
        metadata = node.metadata if limits else None
        plan.append((limits[0] if limits else node.unlimited, len(limits), metadata))
    outcomes = store.spend(spends, now) if spends else []
    if isinstance(outcomes, list):
        return _conclude(domain, plan, spends, metrics, outcomes)
    return Later(_conclude_later, domain, plan, spends, metrics, outcomes)


def _replaced(domain: Domain, descriptors: Sequence[Descriptor]) -> frozenset[str]:
    """Return the names of limits that others among `descriptors` replace."""
    names: frozenset[str] = frozenset()
    for entries, _, override in descriptors:
        if override is None and (found := domain.resolve(entries)) is not None:
            names |= found.node.replaces
    return names


def _adapted(domain: Domain, limit: Limit) -> Limit:
    """Return a limit that a request brought, as it holds in `domain`."""
    if not domain.quota_mode and domain.on_store_failure is OnStoreFailure.DENY:
        return limit
    return _with(limit, domain.quota_mode, domain.on_store_failure)


@lru_cache(maxsize=1024)
def _with(limit: Limit, quota_mode: bool, on_store_failure: OnStoreFailure) -> Limit:  # noqa: FBT001
    return replace(limit, quota_mode=quota_mode, on_store_failure=on_store_failure)


async def _conclude_later(
    domain: Domain,
    plan: Sequence[_Planned],
    spends: Sequence[Spend],
    metrics: Sequence[str],
    outcomes: Awaitable[list[Outcome]],
) -> Decision:
    return _conclude(domain, plan, spends, metrics, await outcomes)


def _conclude(
    domain: Domain,
    plan: Sequence[_Planned],
    spends: Sequence[Spend],
    metrics: Sequence[str],
    outcomes: Sequence[Outcome],
) -> Decision:
    over_limit = shadowed = False
    quotas = exhausted = at = 0
    statuses: list[Status] = []
    for rule, count, metadata in plan:
        if not count:
            # In a domain of quotas a descriptor that nothing limits is one with something left.
            quotas += domain.quota_mode and rule is None
            statuses.append(Status(rule, None, over_limit=False, metadata=metadata))
            continue
        tightest: Status | None = None
        for index in range(at, at + count):
            limit, outcome = spends[index].limit, outcomes[index]
            over = not outcome.allowed
            if over and limit.shadow_mode:
                shadowed, over = True, False
            if tightest is None or _is_tighter(over, outcome, tightest):
                tightest = Status(limit, outcome if outcome.is_known or over else None, over, metadata)
        at += count
        assert tightest is not None  # noqa: S101 - there is at least one limit
        statuses.append(tightest)
        if limit.quota_mode:
            quotas += 1
            exhausted += tightest.over_limit
        elif tightest.over_limit:
            over_limit = True
    if quotas and quotas == exhausted:
        over_limit = True
    return Decision(over_limit, shadowed, statuses, spends, outcomes, metrics)


def _is_tighter(over: bool, outcome: Outcome, than: Status) -> bool:  # noqa: FBT001 - two facts of one limit
    if over != than.over_limit:
        return over
    return than.outcome is None or (outcome.is_known and outcome.remaining < than.outcome.remaining)
