"""What Garrison adds to the YAML of envoyproxy/ratelimit, as seen on the wire."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from google.protobuf.json_format import MessageToDict
from support.ratelimit import OK, OVER_LIMIT, START, Clock, answer, request, service

from ratelimit.algorithm import SECOND
from ratelimit.protos import rls_pb2


def limited(rate_limit: str, more: str = "") -> str:
    """Return a document whose key `k` has one limit."""
    return f"domain: d\ndescriptors:\n- {{key: k, {more}rate_limit: {{{rate_limit}}}}}\n"


def refund(hits: int, entries: dict[str, str] | None = None) -> bytes:
    """Return a request that gives back, with the field that the published messages lack."""
    message = rls_pb2.RateLimitRequest(domain="d")
    descriptor = message.descriptors.add(is_negative_hits=True)
    descriptor.hits_addend.value = hits
    for key, value in (entries or {"k": "v"}).items():
        descriptor.entries.add(key=key, value=value)
    return message.SerializeToString()


def current(response: Any) -> Any:
    """Return `current_limit` of the only status, in messages that have `unit_multiplier`."""
    return rls_pb2.RateLimitResponse.FromString(response.SerializeToString()).statuses[0].current_limit


@pytest.mark.parametrize(
    ("window", "unit", "multiplier", "seconds"),
    [
        ("unit: minute, unit_multiplier: 5", 2, 5, 300),
        ("unit: second, unit_multiplier: 1", 1, 0, 1),
        ("window: 30s", 1, 30, 30),
        ("window: 2h", 3, 2, 7200),
        ("window: 60m", 3, 0, 3600),
        ("window: 90m", 2, 90, 5400),
        ("window: 7d", 7, 0, 7 * 86400),
        ("window: 1500ms", 0, 0, 2),
    ],
)
def test_windows_of_any_length(window: str, unit: int, multiplier: int, seconds: int) -> None:
    """A window is so many of a unit; it is told to Envoy and ends at its multiples since the epoch."""
    clock = Clock(100 * 365 * 86400 * SECOND // (seconds * SECOND) * (seconds * SECOND))
    if "1500" in window:
        clock.now = 1500 * 10**6 * 1000
    serve = service(limited(f"{window}, requests_per_unit: 1"), clock=clock)
    response = answer(serve, request({"k": "v"}))
    assert current(response).unit == unit
    assert current(response).unit_multiplier.value == multiplier
    assert response.statuses[0].duration_until_reset.seconds == seconds
    assert answer(serve, request({"k": "v"})).overall_code == OVER_LIMIT
    clock.now += seconds * SECOND
    assert answer(serve, request({"k": "v"})).overall_code == OK


@pytest.mark.parametrize(
    ("unit", "zone", "now", "end"),
    [
        ("month", "UTC", "2024-02-10T12:00", "2024-03-01T00:00"),
        ("month", "Europe/Berlin", "2024-03-31T23:30", "2024-04-01T00:00"),
        ("year", "Asia/Tokyo", "2024-12-31T23:59", "2025-01-01T00:00"),
        ("week", "UTC", "2024-03-07T05:00", "2024-03-11T00:00"),
        ("day", "Europe/Berlin", "2024-03-31T01:00", "2024-04-01T00:00"),
        ("day", "America/New_York", "2024-11-03T00:30", "2024-11-04T00:00"),
        ("day", "America/Asuncion", "2023-10-01T05:00", "2023-10-02T00:00"),
    ],
)
def test_calendar_windows(unit: str, zone: str, now: str, end: str) -> None:
    """With a time zone, windows are its days, weeks from Monday, months and years, whatever their length."""
    start = datetime.fromisoformat(now).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
    reset = datetime.fromisoformat(end).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
    clock = Clock(int(start.timestamp()) * SECOND)
    serve = service(limited(f"unit: {unit}, time_zone: {zone}, requests_per_unit: 1"), clock=clock)
    response = answer(serve, request({"k": "v"}))
    assert response.statuses[0].duration_until_reset.seconds == (reset - start).total_seconds()
    clock.now = int(reset.timestamp()) * SECOND - 1
    assert answer(serve, request({"k": "v"})).overall_code == OVER_LIMIT
    clock.now += 1
    assert answer(serve, request({"k": "v"})).overall_code == OK


def test_token_bucket() -> None:
    """A token bucket lets a burst through at once and then what its rate brings; the reset is when to retry."""
    clock = Clock()
    serve = service(
        limited("algorithm: token_bucket, unit: minute, requests_per_unit: 6, burst: 3"), clock=clock
    )
    assert [answer(serve, request({"k": "v"})).overall_code for _ in range(4)] == [OK, OK, OK, OVER_LIMIT]
    denied = answer(serve, request({"k": "v"}))
    assert denied.statuses[0].duration_until_reset.seconds == 10
    clock.now += 10 * SECOND
    assert [answer(serve, request({"k": "v"})).overall_code for _ in range(2)] == [OK, OVER_LIMIT]
    clock.now += 3600 * SECOND
    assert answer(serve, request({"k": "v"})).statuses[0].limit_remaining == 2
    assert answer(serve, request({"k": "v"}, hits=4)).overall_code == OVER_LIMIT


def test_sliding_window() -> None:
    """What was used before a window's edge still counts after it, less and less."""
    clock = Clock(START + 59 * SECOND)
    serve = service(limited("algorithm: sliding_window, unit: minute, requests_per_unit: 4"), clock=clock)
    assert answer(serve, request({"k": "v"}, hits=4)).overall_code == OK
    clock.now = START + 61 * SECOND
    denied = answer(serve, request({"k": "v"}))
    assert denied.overall_code == OVER_LIMIT
    # A quarter of the window has to pass for a quarter of the count.
    assert denied.statuses[0].duration_until_reset.seconds == 14
    clock.now = START + 75 * SECOND
    assert answer(serve, request({"k": "v"})).overall_code == OK


def test_concurrency() -> None:
    """Places are taken until they are given back, and come back by themselves when their holder is lost."""
    clock = Clock()
    serve = service(limited("algorithm: concurrency, window: 32s, requests_per_unit: 2"), clock=clock)
    assert [answer(serve, request({"k": "v"})).overall_code for _ in range(3)] == [OK, OK, OVER_LIMIT]
    assert answer(serve, refund(1)).statuses[0].limit_remaining == 1
    assert answer(serve, request({"k": "v"})).overall_code == OK
    clock.now += 32 * SECOND
    assert answer(serve, request({"k": "v"})).overall_code == OVER_LIMIT
    clock.now += 2 * SECOND
    assert answer(serve, request({"k": "v"})).overall_code == OK


TWO = """\
domain: d
descriptors:
- key: k
  rate_limits:
  - {unit: second, requests_per_unit: 2, name: burst}
  - {unit: day, requests_per_unit: 3, name: daily}
- {key: other, rate_limit: {unit: day, requests_per_unit: 9}}
- {key: free, rate_limit: {unit: day, requests_per_unit: 9, denied_hits: free}}
"""


def test_several_limits_on_one_descriptor() -> None:
    """The tightest limit answers; what one of them denies is not charged to the other."""
    clock = Clock()
    serve = service(TWO, clock=clock)
    names = []
    for _ in range(3):
        response = answer(serve, request({"k": "v"}))
        names.append((response.overall_code, response.statuses[0].current_limit.name))
    assert names == [(OK, "burst"), (OK, "burst"), (OVER_LIMIT, "burst")]
    clock.now += SECOND
    response = answer(serve, request({"k": "v"}))
    assert (response.overall_code, response.statuses[0].current_limit.name) == (OK, "daily")
    clock.now += SECOND
    response = answer(serve, request({"k": "v"}))
    assert (response.overall_code, response.statuses[0].current_limit.name) == (OVER_LIMIT, "daily")


def test_all_or_nothing_over_descriptors() -> None:
    """A denied request takes nothing from limits that count no denied hits, and is counted by those that do."""
    serve = service(TWO)
    assert (
        answer(serve, request({"free": "a"}, {"other": "a"}, {"k": "v"}, hits=3)).overall_code == OVER_LIMIT
    )
    left = [
        answer(serve, request({key: value}, hits=1)).statuses[0].limit_remaining
        for key, value in (("free", "a"), ("other", "a"), ("k", "v"))
    ]
    assert left == [8, 5, 1]


def test_denied_hits_free_and_count() -> None:
    """Whether a denied cost is taken can be said for each limit."""
    free = service(limited("unit: day, requests_per_unit: 5, denied_hits: free"))
    assert answer(free, request({"k": "v"}, hits=6)).statuses[0].limit_remaining == 5
    assert answer(free, request({"k": "v"}, hits=5)).overall_code == OK
    drained = service(limited("algorithm: token_bucket, unit: day, requests_per_unit: 5, denied_hits: count"))
    assert answer(drained, request({"k": "v"}, hits=6)).statuses[0].limit_remaining == 0
    assert answer(drained, request({"k": "v"})).overall_code == OVER_LIMIT


MATCHES = """\
domain: d
descriptors:
- {key: k, match: {prefix: "/api/*"}, rate_limit: {name: prefix, unit: day, requests_per_unit: 1}}
- {key: k, match: {suffix: ".css"}, rate_limit: {name: suffix, unit: day, requests_per_unit: 1}}
- {key: k, match: {regex: "/v[0-9]+/.*"}, rate_limit: {name: regex, unit: day, requests_per_unit: 1}}
- {key: k, match: {cidr: 10.0.0.0/8}, rate_limit: {name: cidr, unit: day, requests_per_unit: 1}}
- {key: k, match: {cidr: "2001:db8::/32"}, rate_limit: {name: cidr6, unit: day, requests_per_unit: 1}}
- {key: k, value: 10.0.0.1, rate_limit: {name: exact, unit: day, requests_per_unit: 1}}
- {key: s, share_threshold: true, match: {cidr: 10.0.0.0/8}, rate_limit: {name: shared, unit: day, requests_per_unit: 1}}
"""


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("/api/*x", "prefix"),
        ("/api/x", ""),
        ("/api/*.css", "prefix"),
        ("a.css", "suffix"),
        ("/v12/x", "regex"),
        ("x/v12/x", ""),
        ("/v12/x\n", ""),
        ("10.0.0.1", "exact"),
        ("10.255.1.2", "cidr"),
        ("::ffff:10.1.2.3", "cidr"),
        ("11.0.0.1", ""),
        ("10.0.0.1 ", ""),
        ("010.0.0.2", ""),
        ("2001:db8::1", "cidr6"),
        ("2001:DB8:0::1", "cidr6"),
    ],
)
def test_value_patterns(value: str, name: str) -> None:
    """Prefixes, suffixes, whole regular expressions and address ranges match, in file order, after exact values."""
    (status,) = answer(service(MATCHES), request({"k": value})).statuses
    assert status.current_limit.name == name


def test_a_shared_range_has_one_counter() -> None:
    """All addresses of a shared range count together."""
    serve = service(MATCHES)
    assert answer(serve, request({"s": "10.0.0.1"})).overall_code == OK
    assert answer(serve, request({"s": "10.9.9.9"})).overall_code == OVER_LIMIT


def test_refunds() -> None:
    """Negative hits give back what was taken, not more, and are always allowed."""
    serve = service(limited("unit: day, requests_per_unit: 5"))
    assert answer(serve, refund(3)).statuses[0].limit_remaining == 5
    answer(serve, request({"k": "v"}, hits=5))
    assert answer(serve, request({"k": "v"})).overall_code == OVER_LIMIT
    assert answer(serve, refund(3)).statuses[0].limit_remaining == 2
    assert answer(serve, refund(2**63)).statuses[0].limit_remaining == 5
    assert answer(serve, refund(0)).statuses[0].limit_remaining == 5


ONCE = """\
domain: d
descriptors:
- key: k
  rate_limit: {unit: day, requests_per_unit: 3}
  descriptors:
  - {key: request_id, deduplicate: 10s}
"""


def test_retries_are_counted_once() -> None:
    """A call that comes again with the same identifier is answered without being charged, for a while."""
    clock = Clock()
    serve = service(ONCE, clock=clock)
    calls = [("v", "1"), ("v", "1"), ("v", "2"), ("v", "1"), ("w", "1")]
    left = [
        answer(serve, request({"k": value, "request_id": id_})).statuses[0].limit_remaining
        for value, id_ in calls
    ]
    assert left == [2, 2, 1, 1, 2]
    clock.now += 10 * SECOND
    assert answer(serve, request({"k": "v", "request_id": "1"})).statuses[0].limit_remaining == 0
    assert answer(serve, request({"k": "v", "request_id": "1"})).overall_code == OK
    assert answer(serve, request({"k": "v", "request_id": "3"})).overall_code == OVER_LIMIT
    assert answer(serve, request({"k": "v"})).overall_code == OVER_LIMIT
    assert answer(serve, request({"k": "v", "request_id": ""})).overall_code == OVER_LIMIT


def test_a_refund_is_repeated_no_more_than_once() -> None:
    """Giving back twice under one identifier gives back once, and is not taken for the call it belongs to."""
    serve = service(ONCE)
    for id_ in "123":
        answer(serve, request({"k": "v", "request_id": id_}))
    entries = {"k": "v", "request_id": "1"}
    assert [answer(serve, refund(1, entries)).statuses[0].limit_remaining for _ in range(3)] == [1, 1, 1]


def test_a_denied_call_may_be_retried() -> None:
    """Only what was allowed is remembered: the retry of a denied call is decided anew."""
    clock = Clock()
    serve = service(ONCE.replace("3}", "1}").replace("day", "second"), clock=clock)
    assert answer(serve, request({"k": "v", "request_id": "1"})).overall_code == OK
    assert answer(serve, request({"k": "v", "request_id": "2"})).overall_code == OVER_LIMIT
    clock.now += SECOND
    assert answer(serve, request({"k": "v", "request_id": "2"})).overall_code == OK


def test_best_effort_gives_what_is_left() -> None:
    """Where a part is enough, the part that is left is taken, and told in the metadata."""
    serve = service(limited("unit: day, requests_per_unit: 5", "best_effort: true, "))
    granted = []
    for hits in (3, 4, 1):
        response = answer(serve, request({"k": "v"}, {"else": "x"}, hits=hits))
        granted.append((response.overall_code, MessageToDict(response.dynamic_metadata)["granted"]))
    assert granted == [(OK, [3.0, None]), (OK, [2.0, None]), (OVER_LIMIT, [None, None])]


def test_best_effort_is_the_least_of_several_limits() -> None:
    """A descriptor with two limits is granted what both can give, from both."""
    serve = service(
        "domain: d\ndescriptors:\n- {key: k, best_effort: true, rate_limits: [{unit: second, requests_per_unit: 4}, {unit: day, requests_per_unit: 6}]}\n"
    )
    response = answer(serve, request({"k": "v"}, hits=9))
    assert MessageToDict(response.dynamic_metadata)["granted"] == [4.0]
    assert response.statuses[0].limit_remaining == 0
