"""Quota reports and quota responses: the only reader and writer of RLQS messages.

What is written keeps to what Envoy 1.40 understands: a time to live in whole seconds is always there (without
one an assignment ends at once), strategies are blanket rules and token buckets, and buckets are filled in
whole seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from envoy.service.rate_limit_quota.v3 import rlqs_pb2
from envoy.type.v3 import ratelimit_strategy_pb2
from google.protobuf.message import DecodeError

from garrison.errors import RequestError
from ratelimit.algorithm import MAX_COUNT, SECOND
from ratelimit.bucket_ids import BucketKey, bucket_key
from ratelimit.quota_shares import Blanket

_MAX_ELAPSED_SECONDS = 86400
_BLANKET = {
    Blanket.ALLOW_ALL: ratelimit_strategy_pb2.RateLimitStrategy.ALLOW_ALL,
    Blanket.DENY_ALL: ratelimit_strategy_pb2.RateLimitStrategy.DENY_ALL,
}


class Usage(NamedTuple):
    """What happened to one bucket since its last report, `elapsed` (nanoseconds) ago; 0 in a first one."""

    key: BucketKey
    allowed: int
    denied: int
    elapsed: int


class Reports(NamedTuple):
    """What a stream reports at once; `domain` may be empty after its first report."""

    domain: str
    usages: Sequence[Usage]


class TokenBucket(NamedTuple):
    """Let calls through at `tokens_per_fill` in each `interval_seconds`, at most `max_tokens` at once."""

    max_tokens: int
    tokens_per_fill: int
    interval_seconds: int


class Abandon(NamedTuple):
    """Forget the bucket; the next call makes a new one."""


Action = Blanket | TokenBucket | Abandon


def parse_reports(data: bytes, max_usages: int) -> Reports:
    """Return the reports in `data`. Buckets without an id, which nobody can assign to, are left out.

    Raises:
        RequestError: it is not what an Envoy sends, or too much of it.

    """
    try:
        message = rlqs_pb2.RateLimitQuotaUsageReports.FromString(data)
    except DecodeError as error:
        raise RequestError("not a RateLimitQuotaUsageReports") from error
    if len(message.bucket_quota_usages) > max_usages:
        raise RequestError(f"a report has more than {max_usages} buckets")
    usages: dict[BucketKey, Usage] = {}
    for usage in message.bucket_quota_usages:
        try:
            key = bucket_key(usage.bucket_id.bucket)
        except ValueError as error:
            raise RequestError(str(error)) from error
        elapsed = usage.time_elapsed.seconds
        if elapsed < 0 or usage.time_elapsed.nanos < 0:
            raise RequestError("the time elapsed is negative")
        if key in usages:
            raise RequestError("a report has the same bucket twice")
        if key:
            usages[key] = Usage(
                key,
                min(usage.num_requests_allowed, MAX_COUNT),
                min(usage.num_requests_denied, MAX_COUNT),
                min(elapsed, _MAX_ELAPSED_SECONDS) * SECOND,
            )
    return Reports(message.domain, tuple(usages.values()))


def build_response(actions: Iterable[tuple[BucketKey, Action]], ttl_seconds: int) -> bytes:
    """Return the response that has these actions, in this order."""
    message = rlqs_pb2.RateLimitQuotaResponse()
    for key, action in actions:
        out = message.bucket_action.add()
        for name, value in key:
            out.bucket_id.bucket[name] = value
        if isinstance(action, Abandon):
            out.abandon_action.SetInParent()
            continue
        assignment = out.quota_assignment_action
        assignment.assignment_time_to_live.seconds = ttl_seconds
        strategy = assignment.rate_limit_strategy
        if isinstance(action, Blanket):
            strategy.blanket_rule = _BLANKET[action]
        else:
            strategy.token_bucket.max_tokens = action.max_tokens
            strategy.token_bucket.tokens_per_fill.value = action.tokens_per_fill
            strategy.token_bucket.fill_interval.seconds = action.interval_seconds
    data: bytes = message.SerializeToString()
    return data
