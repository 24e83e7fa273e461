"""Quota reports and quota responses: the only reader and writer of RLQS messages.

What is written keeps to what Envoy 1.40 understands: a time to live in whole seconds is always there (without
one an assignment ends at once), strategies are blanket rules and token buckets, and buckets are filled in
whole seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from envoy.service.rate_limit_quota.v3 import rlqs_pb2
from envoy.type.v3 import ratelimit_strategy_pb2
from google.protobuf.message import DecodeError

from garrison.errors import RequestError
from ratelimit.algorithm import MAX_COUNT, SECOND
from ratelimit.bucket_ids import BucketKey, bucket_key
from ratelimit.quota_shares import Blanket

# Reading more than that would hold up everything else; ten thousand buckets with short ids are a twentieth.
MAX_MESSAGE_BYTES = 16 << 20
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


def parse_reports(data: bytes, max_usages: int, at_once: int = 0) -> Iterator[Reports]:
    """Yield the reports in `data`, of up to `at_once` buckets (0: of all), at least one.

    Buckets without an id, which nobody can assign to, are left out. A mistake may be found after some have
    been yielded.

    Raises:
        RequestError: it is not what an Envoy sends, or too much of it.

    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise RequestError(f"a report is longer than {MAX_MESSAGE_BYTES >> 20} MiB")
    try:
        message = rlqs_pb2.RateLimitQuotaUsageReports.FromString(data)
    except DecodeError as error:
        raise RequestError("not a RateLimitQuotaUsageReports") from error
    usages = message.bucket_quota_usages
    if len(usages) > max_usages:
        raise RequestError(f"a report has more than {max_usages} buckets")
    seen: set[BucketKey] = set()
    size = at_once or max(len(usages), 1)
    for start in range(0, max(len(usages), 1), size):
        parsed = [_parse_usage(usage) for usage in usages[start : start + size]]
        for usage in parsed:
            if usage.key in seen:
                raise RequestError("a report has the same bucket twice")
            seen.add(usage.key)
        yield Reports(message.domain, [usage for usage in parsed if usage.key])


def _parse_usage(usage: Any) -> Usage:
    try:
        key = bucket_key(usage.bucket_id.bucket)
    except ValueError as error:
        raise RequestError(str(error)) from error
    elapsed = usage.time_elapsed.seconds
    if elapsed < 0 or usage.time_elapsed.nanos < 0:
        raise RequestError("the time elapsed is negative")
    return Usage(
        key,
        min(usage.num_requests_allowed, MAX_COUNT),
        min(usage.num_requests_denied, MAX_COUNT),
        min(elapsed, _MAX_ELAPSED_SECONDS) * SECOND,
    )


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
