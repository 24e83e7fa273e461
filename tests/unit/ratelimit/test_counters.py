"""Which counters a descriptor names, what is shown of them, and of the limits in force."""

from __future__ import annotations

import asyncio
import json

import pytest
from support.ratelimit import START, limits_of

from ratelimit.algorithm import MICROSECOND, SECOND
from ratelimit.counters import (
    NotLimitedError,
    describe_limits,
    find_counters,
    read_counters,
)
from ratelimit.descriptors import Entry
from ratelimit.store.memory import MemoryStore

LIMITS = limits_of("""\
domain: shop
descriptors:
- key: user
  rate_limits:
  - {name: burst, unit: second, requests_per_unit: 10}
  - {name: daily, unit: day, time_zone: Europe/Berlin, requests_per_unit: 3, lease: 2}
  descriptors: [{key: id, deduplicate: 30s}]
- {key: user, value: root, rate_limit: {unlimited: true}}
- {key: file, value: "/f/*", share_threshold: true, shadow_mode: true, rate_limit: {unit: hour, requests_per_unit: 3}}
- {key: ip, match: {cidr: 10.0.0.0/8}, quota_mode: true, metadata: {a: 1},
   rate_limit: {algorithm: token_bucket, unit: second, requests_per_unit: 2, burst: 4, on_store_failure: allow}}
- {key: window, rate_limit: {algorithm: sliding_window, unit: minute, requests_per_unit: 4}}
- {key: places, rate_limit: {algorithm: concurrency, window: 16s, requests_per_unit: 3}}
- key: path
  descriptors:
  - {key: method, rate_limit: {unit: minute, requests_per_unit: 1, replaces: [{name: burst}]}}
""")


def shown(entries: list[Entry], cost: int = 1, after: int = 0) -> list[dict[str, object]]:
    """Return what is shown of a descriptor after it was charged, so many nanoseconds later."""
    store = MemoryStore()
    spends = find_counters(LIMITS, "shop", entries)
    store.spend([spend._replace(cost=cost) for spend in spends], START)
    held = asyncio.run(store.look(spends, START + after))
    return [counter.as_json() for counter in read_counters(spends, held)]


def test_every_limit_of_a_descriptor_is_shown() -> None:
    """As it is configured, with what is used and left, and each of several limits by itself."""
    burst, daily = shown([("user", "a=b,c")], 3)
    assert burst == {
        "name": "burst",
        "source": "f.yaml:5:5",
        "algorithm": "fixed_window",
        "requests_per_unit": 10,
        "window": "second",
        "window_seconds": 1.0,
        "shadow_mode": False,
        "quota_mode": False,
        "best_effort": False,
        "denied_hits": "free",
        "on_store_failure": "deny",
        "used": 3,
        "remaining": 7,
        "over_limit": False,
        "reset_seconds": 1.0,
        "stored": {"count": 3, "window_ends": START / SECOND + 1},
    }
    assert (daily["window"], daily["lease"]) == ("day@Europe/Berlin", 2)
    assert (daily["used"], daily["remaining"], daily["over_limit"]) == (3, 0, True)


def test_what_counts_no_more_is_nothing() -> None:
    """A bucket that has expired, or was given back, is shown like one that never was."""
    burst, daily = shown([("user", "a")], 3, after=SECOND)
    assert (burst["used"], burst["remaining"], burst["stored"]) == (0, 10, None)
    assert daily["used"] == 3


@pytest.mark.parametrize(
    ("entry", "stored"),
    [
        (("file", "/f/x"), {"count": 2, "window_ends": START / SECOND + 3600}),
        (("ip", "10.0.0.1"), {"missing_tokens": 1.0, "as_of": START / SECOND + 0.5}),
        (
            ("window", "v"),
            {"count": 2, "count_of_window_before": 0, "window_ends": START / SECOND + 60},
        ),
        (("places", "v"), {"taken": [{"count": 2, "until": START / SECOND + 17}]}),
    ],
)
def test_each_algorithm_shows_what_it_stores(entry: Entry, stored: dict[str, object]) -> None:
    """A count and its window; tokens that are missing, as of now; places and until when they are held."""
    (found,) = shown([entry], 2, after=SECOND // 2)
    assert found["stored"] == stored


def test_used_and_remaining_of_a_sliding_window_and_of_tokens() -> None:
    """What is used is what is not left; a token bucket has its burst."""
    (window,) = shown([("window", "v")], 4, after=90 * SECOND)
    assert (window["used"], window["remaining"]) == (2, 2)
    (tokens,) = shown([("ip", "10.0.0.1")], 4, after=MICROSECOND)
    assert (tokens["burst"], tokens["used"], tokens["remaining"], tokens["over_limit"]) == (4, 4, 0, True)


def test_values_of_a_shared_pattern_name_one_counter() -> None:
    """And values of any other pattern each their own."""
    one, other = (find_counters(LIMITS, "shop", [("file", value)]) for value in ("/f/a", "/f/b"))
    assert one == other
    one, other = (find_counters(LIMITS, "shop", [("ip", value)]) for value in ("10.0.0.1", "10.0.0.2"))
    assert one != other


def test_the_identifier_of_a_call_names_no_other_counter() -> None:
    """It is only remembered with it."""
    with_one = find_counters(LIMITS, "shop", [("user", "a"), ("id", "7")])
    without = find_counters(LIMITS, "shop", [("user", "a")])
    assert [spend.key for spend in with_one] == [spend.key for spend in without]
    assert {spend.once for spend in with_one} == {"7"}


@pytest.mark.parametrize(
    ("domain", "entries", "why"),
    [
        ("none", [("user", "a")], "there is no domain `none` (known here: shop)"),
        ("shop", [("user", "root")], "the rule says `unlimited`"),
        ("shop", [("path", "/"), ("verb", "GET")], "no rule for `verb=GET` as entry 2"),
        ("shop", [("path", "/")], "the rule that these entries lead to has no limit"),
    ],
)
def test_what_nothing_limits_has_no_counter(domain: str, entries: list[Entry], why: str) -> None:
    """The message says where the path of the descriptor ends."""
    with pytest.raises(NotLimitedError) as caught:
        find_counters(LIMITS, domain, entries)
    assert str(caught.value) == why


def test_the_limits_in_force_are_shown_as_they_are_written() -> None:
    """The tree of each domain, with patterns, modes, metadata, positions, and the version of the whole."""
    described = describe_limits(LIMITS)
    assert described["version"] == LIMITS.version
    (domain,) = described["domains"]
    assert domain["domain"] == "shop"
    root, user, file, ip, *_, path = domain["descriptors"]
    assert root == {"key": "user", "value": "root", "unlimited": {"source": "f.yaml:8:40"}}
    assert [limit["name"] for limit in user["limits"]] == ["burst", "daily"]
    assert user["descriptors"] == [{"key": "id", "deduplicate_seconds": 30.0}]
    assert (file["value"], file["share_threshold"], file["limits"][0]["shadow_mode"]) == ("/f/*", True, True)
    assert (ip["match"], ip["metadata"]) == ({"cidr": "10.0.0.0/8"}, {"a": 1})
    assert (ip["limits"][0]["burst"], ip["limits"][0]["on_store_failure"]) == (4, "allow")
    assert path["descriptors"][0]["replaces"] == ["burst"]
    assert json.loads(json.dumps(described)) == described
