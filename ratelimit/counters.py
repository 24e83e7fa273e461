"""What operators see and name: the limits in force, and the counters of one descriptor. Plain data for JSON.

A counter is named by domain and descriptor, as a request does. What it holds is worked out from the bucket as
it stands in the store, by the same arithmetic that decides about calls, so that looking needs no spend.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from garrison.errors import RequestError
from ratelimit.algorithm import (
    SECOND,
    STEPS,
    Algorithm,
    AnyBucket,
    Bucket,
    LeaseBucket,
    Limit,
    SlidingBucket,
    TokenBucket,
)
from ratelimit.charge import Spend
from ratelimit.descriptors import Entry, finish_key
from ratelimit.patterns import Pattern
from ratelimit.store.base import Held
from ratelimit.tree import Branch, Domain, Limits, Node, Unlimited


class NotLimitedError(RequestError):
    """No limit governs a descriptor; the message says why."""


def find_counters(limits: Limits, name: str, entries: Sequence[Entry]) -> list[Spend]:
    """Return a spend that only looks for each limit that governs the descriptor `entries` of domain `name`.

    Raises:
        NotLimitedError: there is none.

    """
    domain = limits.domains.get(name)
    found = domain.resolve(entries) if domain is not None else None
    if domain is None or found is None or not found.node.limits:
        raise NotLimitedError(why_not_limited(limits, name, entries))
    return [
        Spend(finish_key(one.kind, found.path), one, 0, 0, found.once, found.once_for, name)
        for one in found.node.limits
    ]


def why_not_limited(limits: Limits, name: str, entries: Sequence[Entry]) -> str:
    """Return why no limit governs a descriptor, for people."""
    domain = limits.domains.get(name)
    if domain is None:
        known = ", ".join(sorted(limits.domains)) or "none"
        return f"there is no domain `{name}` (known here: {known})"
    if isinstance(domain.find(entries), Unlimited):
        return "the rule says `unlimited`"
    for count in range(1, len(entries) + 1):
        if domain.resolve(entries[:count]) is None:
            key, value = entries[count - 1]
            return f"no rule for `{key}={value}` as entry {count}"
    return "the rule that these entries lead to has no limit"


@dataclass(frozen=True, slots=True)
class Counter:
    """One limit of a descriptor and what is counted: `bucket` as it counts now, None where nothing does."""

    limit: Limit
    used: int
    remaining: int
    over_limit: bool
    reset: int  # nanoseconds
    bucket: AnyBucket | None

    @classmethod
    def of(cls, limit: Limit, held: AnyBucket | None, now: int) -> Counter:
        """Return what a bucket that a store holds comes to at `now`."""
        outcome, after = STEPS[limit.algorithm](limit, held, now, 0)
        bucket = None if held is None or _is_empty(after) else after
        used = limit.capacity - outcome.remaining if bucket is not None else 0
        if isinstance(bucket, Bucket):
            used = bucket.spent  # denied hits included
        return cls(limit, used, outcome.remaining, not outcome.allowed, outcome.reset, bucket)

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data; times are seconds."""
        return {
            **describe_limit(self.limit),
            "used": self.used,
            "remaining": self.remaining,
            "over_limit": self.over_limit,
            "reset_seconds": self.reset / SECOND,
            "stored": _stored(self.limit, self.bucket) if self.bucket is not None else None,
        }


def read_counters(spends: Sequence[Spend], held: Held) -> list[Counter]:
    """Return the counters that `spends` name, from what the store holds."""
    return [
        Counter.of(spend.limit, bucket, held.now) for spend, bucket in zip(spends, held.buckets, strict=True)
    ]


def _is_empty(bucket: AnyBucket) -> bool:
    match bucket:
        case Bucket():
            return not bucket.spent
        case SlidingBucket():
            return not bucket.current and not bucket.previous
        case TokenBucket():
            return not bucket.debt
        case LeaseBucket():
            return not bucket.leases


def _stored(limit: Limit, bucket: AnyBucket) -> dict[str, Any]:
    """Return a bucket as its algorithm knows it; times are seconds since the epoch."""
    tick = limit.tick / SECOND
    match bucket:
        case Bucket():
            return {"count": bucket.spent, "window_ends": bucket.expires / SECOND}
        case SlidingBucket():
            return {
                "count": bucket.current,
                "count_of_window_before": bucket.previous,
                "window_ends": bucket.end * tick,
            }
        case TokenBucket():
            return {"missing_tokens": bucket.debt / limit.ticks, "as_of": bucket.at * tick}
        case LeaseBucket():
            concurrency = limit.algorithm is Algorithm.CONCURRENCY
            slots = limit.slots
            step = -(-limit.ticks // slots) * tick
            life = slots + concurrency
            taken = [{"count": count, "until": (slot + life) * step} for slot, count in bucket.leases]
            return {"taken": taken}


def describe_limit(limit: Limit) -> dict[str, Any]:
    """Return a limit as it is configured; a calendar's window is its longest."""
    found: dict[str, Any] = {
        "name": limit.name,
        "source": limit.source,
        "algorithm": limit.algorithm.value,
        "requests_per_unit": limit.requests_per_unit,
        "window": limit.unit.name,
        "window_seconds": limit.unit.window / SECOND,
    }
    if limit.algorithm is Algorithm.TOKEN_BUCKET:
        found["burst"] = limit.capacity
    if limit.lease:
        found["lease"] = limit.lease
    return {
        **found,
        "shadow_mode": limit.shadow_mode,
        "quota_mode": limit.quota_mode,
        "best_effort": limit.best_effort,
        "denied_hits": "count" if limit.counts_denied else "free",
        "on_store_failure": limit.on_store_failure.value,
    }


def describe_limits(limits: Limits) -> dict[str, Any]:
    """Return everything that is configured, in the shape of its documents."""
    return {
        "version": limits.version,
        "domains": [_domain(domain) for _, domain in sorted(limits.domains.items())],
    }


def _domain(domain: Domain) -> dict[str, Any]:
    return {"domain": domain.name, "descriptors": list(_descriptors(domain.root))}


def _descriptors(level: Mapping[str, Branch]) -> Iterator[dict[str, Any]]:
    for key, branch in level.items():
        for value, node in branch.exact.items():
            yield _descriptor({"key": key, "value": value}, node)
        for pattern, node in branch.patterns:
            shared = {"share_threshold": True} if node.text else {}
            yield _descriptor({"key": key, **_pattern(pattern), **shared}, node)
        if branch.any_value is not None:
            yield _descriptor({"key": key}, branch.any_value)


def _pattern(pattern: Pattern) -> dict[str, Any]:
    kind, _, text = pattern.text.partition(":")
    return {"value": text} if kind == "value" else {"match": {kind: text}}


def _descriptor(shown: dict[str, Any], node: Node) -> dict[str, Any]:
    if node.once_for:
        shown["deduplicate_seconds"] = node.once_for / SECOND
    if node.limits:
        shown["limits"] = [describe_limit(one) for one in node.limits]
    if node.unlimited is not None:
        shown["unlimited"] = {"source": node.unlimited.source}
    if node.replaces:
        shown["replaces"] = sorted(node.replaces)
    if node.metadata is not None:
        shown["metadata"] = node.metadata
    if node.children:
        shown["descriptors"] = list(_descriptors(node.children))
    return shown
