"""How many hits each rule had, for metrics. Weighted by cost, as in envoyproxy/ratelimit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ratelimit.limiter import Decision

# Rules beyond this many are counted together: callers' values are in names, where configured.
MAX_RULES = 10_000
OTHER = "(other)"
_MAX_NAME_CHARACTERS = 200


@dataclass(slots=True)
class Hits:
    """Hits of one rule. `near_limit` ones are among `within_limit`: they left less than a fifth."""

    within_limit: int = 0
    near_limit: int = 0
    over_limit: int = 0
    shadow_mode: int = 0


class Statistics:
    """Hits by domain and rule since the start."""

    def __init__(self, max_rules: int = MAX_RULES) -> None:
        self._max_rules = max_rules
        self._hits: dict[tuple[str, str], Hits] = {}

    def hits(self) -> Mapping[tuple[str, str], Hits]:
        """Return the hits by domain and rule."""
        return dict(self._hits)

    def count(self, domain: str, decision: Decision) -> None:
        """Add what one call spent."""
        metrics, outcomes = decision.metrics, decision.outcomes
        for index, spend in enumerate(decision.spends):
            cost = spend.cost
            if cost <= 0:
                continue
            limit, outcome, metric = spend.limit, outcomes[index], metrics[index]
            hits = self._hits.get((domain, metric))
            if hits is None:
                hits = self._add(domain, metric)
            if outcome.allowed:
                hits.within_limit += cost
                if outcome.remaining * 5 < limit.capacity:
                    hits.near_limit += cost
            elif limit.shadow_mode:
                hits.shadow_mode += cost
            else:
                hits.over_limit += cost

    def _add(self, domain: str, metric: str) -> Hits:
        if len(metric) > _MAX_NAME_CHARACTERS or len(self._hits) >= self._max_rules:
            metric = OTHER
        return self._hits.setdefault((domain, metric), Hits())
