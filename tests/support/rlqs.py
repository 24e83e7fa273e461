"""Quota reports as Envoys send them, and what they are answered, in words."""

from __future__ import annotations

from typing import Any

from envoy.service.rate_limit_quota.v3 import rlqs_pb2
from envoy.type.v3.ratelimit_strategy_pb2 import RateLimitStrategy

Bucket = dict[str, str]
Key = tuple[tuple[str, str], ...]


def reports(
    *usages: tuple[Bucket, int, int], domain: str = "d", elapsed: int = 5
) -> rlqs_pb2.RateLimitQuotaUsageReports:
    """Return a report of buckets, each with the calls that were allowed and denied."""
    message = rlqs_pb2.RateLimitQuotaUsageReports(domain=domain)
    for bucket, allowed, denied in usages:
        usage = message.bucket_quota_usages.add(num_requests_allowed=allowed, num_requests_denied=denied)
        usage.time_elapsed.seconds = elapsed
        for key, value in bucket.items():
            usage.bucket_id.bucket[key] = value
    return message


def first(*buckets: Bucket, domain: str = "d") -> rlqs_pb2.RateLimitQuotaUsageReports:
    """Return what an Envoy sends when it sees buckets for the first time: one call allowed, no time elapsed."""
    return reports(*((bucket, 1, 0) for bucket in buckets), domain=domain, elapsed=0)


def described(response: rlqs_pb2.RateLimitQuotaResponse) -> dict[Key, Any]:
    """Return what each bucket is told: `allow`, `deny`, `abandon`, or calls a second and calls at once."""
    found: dict[Key, Any] = {}
    for action in response.bucket_action:
        key = tuple(sorted(action.bucket_id.bucket.items()))
        assert key not in found
        found[key] = _described(action)
    return found


def _described(action: Any) -> Any:
    if action.WhichOneof("bucket_action") == "abandon_action":
        return "abandon"
    assignment = action.quota_assignment_action
    # Envoy ends an assignment at once that has no time to live, and drops parts of a second.
    assert assignment.assignment_time_to_live.seconds >= 1
    assert not assignment.assignment_time_to_live.nanos
    strategy = assignment.rate_limit_strategy
    kind = strategy.WhichOneof("strategy")
    if kind == "blanket_rule":
        return "allow" if strategy.blanket_rule == RateLimitStrategy.ALLOW_ALL else "deny"
    assert kind == "token_bucket"
    bucket = strategy.token_bucket
    # Less than a second would be no limit at all.
    assert bucket.fill_interval.seconds >= 1
    assert not bucket.fill_interval.nanos
    assert bucket.max_tokens >= 1
    return bucket.tokens_per_fill.value / bucket.fill_interval.seconds, bucket.max_tokens
