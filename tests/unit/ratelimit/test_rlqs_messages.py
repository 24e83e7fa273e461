"""What reports say, and what is never sent to an Envoy."""

from __future__ import annotations

import pytest
from envoy.service.rate_limit_quota.v3 import rlqs_pb2
from hypothesis import given
from hypothesis import strategies as st
from support.rlqs import described, reports

from garrison.errors import RequestError
from ratelimit.algorithm import MAX_COUNT, SECOND
from ratelimit.bucket_ids import MAX_CHARACTERS, BucketKey
from ratelimit.quota_shares import Blanket
from ratelimit.rlqs_messages import (
    MAX_MESSAGE_BYTES,
    Abandon,
    Action,
    Reports,
    TokenBucket,
    Usage,
    build_response,
    parse_reports,
)

A, B = (("k", "a"),), (("k", "b"),)


def parsed(data: bytes, max_usages: int = 10) -> Reports:
    """Return a report in one piece."""
    (found,) = parse_reports(data, max_usages)
    return found


def test_a_large_report_is_read_piece_by_piece() -> None:
    """Every bucket once, in order; a bucket that stands twice is found across pieces."""
    buckets = [{"k": str(number)} for number in range(7)]
    message = reports(*((bucket, 1, 0) for bucket in buckets), domain="shop")
    pieces = list(parse_reports(message.SerializeToString(), 10, 3))
    assert [len(piece.usages) for piece in pieces] == [3, 3, 1]
    assert {piece.domain for piece in pieces} == {"shop"}
    assert [dict(usage.key) for piece in pieces for usage in piece.usages] == buckets
    message = reports(*((bucket, 1, 0) for bucket in [*buckets, buckets[0]]))
    with pytest.raises(RequestError, match="twice"):
        list(parse_reports(message.SerializeToString(), 10, 3))


def test_a_report_is_read() -> None:
    """Counts and whole seconds arrive as they are, keys sorted."""
    message = reports(({"z": "1", "b": "2"}, 3, 4), domain="shop", elapsed=5)
    found = parsed(message.SerializeToString())
    assert found.domain == "shop"
    assert found.usages == [Usage((("b", "2"), ("z", "1")), 3, 4, 5 * SECOND)]


def test_counts_stop_where_counters_do() -> None:
    """A number of calls that no counter holds is the largest that one does."""
    message = reports(({"k": "a"}, 2**64 - 1, 2**64 - 1), elapsed=2**40)
    (usage,) = parsed(message.SerializeToString()).usages
    assert (usage.allowed, usage.denied) == (MAX_COUNT, MAX_COUNT)
    assert usage.elapsed == 86400 * SECOND


def test_a_bucket_without_an_id_is_left_out() -> None:
    """Envoy 1.40 reports calls of matchers without `bucket_id_builder` as an empty id."""
    message = reports(({}, 1, 0), ({"k": "a"}, 1, 0))
    assert [usage.key for usage in parsed(message.SerializeToString()).usages] == [A]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff\xff", "not a"),
        (reports(({"k": "a"}, 1, 0), ({"k": "a"}, 1, 0)).SerializeToString(), "twice"),
        (reports(({"k": "a"}, 1, 0), elapsed=-1).SerializeToString(), "negative"),
        (reports(*(({"k": str(number)}, 1, 0) for number in range(11))).SerializeToString(), "more than 10"),
        (reports(({"k": "a" * MAX_CHARACTERS}, 1, 0)).SerializeToString(), "characters"),
        (reports(({str(number): "" for number in range(99)}, 1, 0)).SerializeToString(), "entries"),
        (bytes(MAX_MESSAGE_BYTES + 1), "longer than 16 MiB"),
        (reports(domain="x").SerializeToString().replace(b"x", b"\xff"), "not a"),
    ],
)
def test_reports_that_make_no_sense_are_refused(data: bytes, message: str) -> None:
    """Each with what is wrong."""
    with pytest.raises(RequestError, match=message):
        parsed(data)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_report_or_refused(data: bytes) -> None:
    """Nothing else is raised."""
    try:
        found = parsed(data, 2)
    except RequestError:
        return
    assert len(found.usages) <= 2


def test_every_action_is_written() -> None:
    """Each in its place, assignments with a time to live."""
    actions: list[tuple[BucketKey, Action]] = [
        (A, TokenBucket(7, 30, 2)),
        (B, Abandon()),
        ((("k", "c"),), Blanket.DENY_ALL),
    ]
    response = rlqs_pb2.RateLimitQuotaResponse.FromString(build_response(actions, 15))
    assert list(described(response).values()) == [(15.0, 7), "abandon", "deny"]
    assert response.bucket_action[0].quota_assignment_action.assignment_time_to_live.seconds == 15
    # ALLOW_ALL is 0: it is there all the same.
    response = rlqs_pb2.RateLimitQuotaResponse.FromString(build_response([(A, Blanket.ALLOW_ALL)], 1))
    assert described(response) == {A: "allow"}
