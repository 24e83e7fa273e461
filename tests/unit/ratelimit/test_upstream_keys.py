"""Every key of envoyproxy/ratelimit does what it does there, as seen on the wire."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.service.ratelimit.v3 import rls_pb2
from google.protobuf.json_format import MessageToDict
from support.ratelimit import OK, OVER_LIMIT, START, answer, request, service

from ratelimit.algorithm import SECOND
from ratelimit.compile import Options
from ratelimit.response import HeaderNames, ResponseOptions
from ratelimit.statistics import Hits, Statistics

MINUTE = rls_pb2.RateLimitResponse.RateLimit.MINUTE


def codes(response: Any) -> list[int]:
    """Return the codes of all descriptors."""
    return [status.code for status in response.statuses]


def test_replaces_drops_the_named_limit() -> None:
    """A limit that another one of the same request replaces is neither counted nor shown."""
    serve = service("""\
domain: d
descriptors:
- {key: all, rate_limit: {name: general, unit: minute, requests_per_unit: 1}}
- {key: vip, rate_limit: {name: special, unit: minute, requests_per_unit: 9, replaces: [{name: general}, {name: x}]}}
- {key: free, rate_limit: {unlimited: true, replaces: [{name: general}]}}
""")
    for _ in range(3):
        response = answer(serve, request({"all": "a"}, {"vip": "b"}))
        assert response.overall_code == OK
        assert codes(response) == [OK, OK]
        assert [status.HasField("current_limit") for status in response.statuses] == [False, True]
    assert answer(serve, request({"free": "a"}, {"all": "a"})).overall_code == OK
    assert answer(serve, request({"all": "a"})).statuses[0].limit_remaining == 0
    assert answer(serve, request({"all": "a"})).overall_code == OVER_LIMIT


def test_an_override_replaces_nothing() -> None:
    """A limit that comes with the request takes the place of the rule with all that it says."""
    serve = service("""\
domain: d
descriptors:
- {key: all, rate_limit: {name: general, unit: minute, requests_per_unit: 0}}
- {key: vip, rate_limit: {unit: minute, requests_per_unit: 9, replaces: [{name: general}]}}
""")
    message = request({"all": "a"}, {"vip": "b"})
    message.descriptors[1].limit.requests_per_unit = 5
    message.descriptors[1].limit.unit = 2
    assert answer(serve, message).overall_code == OVER_LIMIT


QUOTAS = """\
domain: d
descriptors:
- {key: small, quota_mode: true, rate_limit: {unit: minute, requests_per_unit: 1}}
- {key: large, quota_mode: true, rate_limit: {unit: minute, requests_per_unit: 2}}
- {key: hard, rate_limit: {unit: minute, requests_per_unit: 3}}
"""


def test_quotas_deny_together_only() -> None:
    """A request is over its quotas when all of them are; each status says what is true of it."""
    serve = service(QUOTAS)
    both = request({"small": "a"}, {"large": "a"})
    answers = [answer(serve, both) for _ in range(3)]
    assert [one.overall_code for one in answers] == [OK, OK, OVER_LIMIT]
    assert [codes(one) for one in answers] == [[OK, OK], [OVER_LIMIT, OK], [OVER_LIMIT, OVER_LIMIT]]


def test_a_limit_beside_a_quota_denies_alone() -> None:
    """A limit that is no quota denies whatever quotas have left."""
    serve = service(QUOTAS)
    message = request({"large": "a"}, {"hard": "a"}, hits=4)
    message.descriptors[0].hits_addend.value = 1
    assert answer(serve, message).overall_code == OVER_LIMIT


def test_global_quota_mode() -> None:
    """With `quota_mode` for all, any descriptor with something left lets the call through, unlimited ones not."""
    serve = service(QUOTAS + "- {key: open, rate_limit: {unlimited: true}}\n", Options(quota_mode=True))
    assert answer(serve, request({"hard": "a"}, {"small": "a"}, hits=2)).overall_code == OK
    assert answer(serve, request({"hard": "a"}, {"small": "a"}, hits=2)).overall_code == OVER_LIMIT
    assert answer(serve, request({"hard": "a"}, {"nobody": "knows"})).overall_code == OK
    assert answer(serve, request({"hard": "a"}, {"open": "a"})).overall_code == OVER_LIMIT
    message = request({"hard": "a"}, {"small": "a"})
    message.descriptors[0].limit.requests_per_unit = 1
    message.descriptors[0].limit.unit = 4
    assert answer(serve, message).overall_code == OK
    assert answer(serve, message).overall_code == OVER_LIMIT


def test_global_shadow_mode() -> None:
    """With `shadow_mode` for all, the verdict is OK and the statuses stay as they are; it is counted."""
    serve = service(QUOTAS, response=ResponseOptions(shadow_mode=True))
    response = answer(serve, request({"hard": "a"}, hits=4))
    assert response.overall_code == OK
    assert codes(response) == [OVER_LIMIT]
    counters = serve.counters()["d"]
    assert (counters.allowed, counters.over_limit, counters.shadowed) == (1, 0, 1)


def test_share_threshold_counts_all_values_together() -> None:
    """All values of a shared wildcard have one counter, also below it; without, each has its own."""
    serve = service("""\
domain: d
descriptors:
- key: path
  value: "/files/*"
  share_threshold: true
  rate_limit: {unit: minute, requests_per_unit: 2}
  descriptors:
  - {key: user, rate_limit: {unit: minute, requests_per_unit: 1}}
- {key: path, value: "/own/*", rate_limit: {unit: minute, requests_per_unit: 1}}
""")
    left = [
        answer(serve, request({"path": f"/files/{name}"})).statuses[0].limit_remaining for name in ("a", "b")
    ]
    assert left == [1, 0]
    assert answer(serve, request({"path": "/files/c"})).overall_code == OVER_LIMIT
    assert answer(serve, request({"path": "/files/a", "user": "u"})).overall_code == OK
    assert answer(serve, request({"path": "/files/b", "user": "u"})).overall_code == OVER_LIMIT
    assert answer(serve, request({"path": "/files/b", "user": "v"})).overall_code == OK
    assert answer(serve, request({"path": "/own/a"})).overall_code == OK
    assert answer(serve, request({"path": "/own/b"})).overall_code == OK


def test_a_shared_counter_is_nobody_elses() -> None:
    """A limit in a request for the pattern's own text, taken as a value, does not share its counter."""
    serve = service("""\
domain: d
descriptors:
- {key: k, value: "a*", share_threshold: true, rate_limit: {unit: minute, requests_per_unit: 1}}
""")
    assert answer(serve, request({"k": "ab"})).overall_code == OK
    for value in ("a*", "value:a*"):
        message = request({"k": value})
        message.descriptors[0].limit.requests_per_unit = 1
        message.descriptors[0].limit.unit = 2
        assert answer(serve, message).overall_code == OK


METADATA = """\
domain: d
descriptors:
- key: a
  rate_limit: {unit: minute, requests_per_unit: 1}
  metadata: {plan: {name: gold, seats: 3}, tags: [x, true], note: first}
- key: b
  rate_limit: {unit: minute, requests_per_unit: 9}
  metadata: {plan: {region: eu, name: silver}, note: second}
"""


def test_metadata_of_what_passed() -> None:
    """Metadata of descriptors that pass is merged, the first of equal keys wins; the request is told as well."""
    serve = service(METADATA, response=ResponseOptions(dynamic_metadata=True))
    message = request({"a": "1"}, {"b": "2", "c": ""}, {"b": "2"}, hits=1)
    message.descriptors[2].hits_addend.value = 0
    message.descriptors[1].limit.requests_per_unit = 5
    message.descriptors[1].limit.unit = 3
    told = MessageToDict(answer(serve, message).dynamic_metadata)
    assert told == {
        "domain": "d",
        "descriptors": [
            {"entries": ["a=1"]},
            {"entries": ["b=2", "c="], "limit": "requests_per_unit:5 unit:HOUR"},
            {"entries": ["b=2"], "hitsAddend": 0.0},
        ],
        "hitsAddend": 1.0,
        "metadata": {
            "plan": {"name": "gold", "seats": 3.0, "region": "eu"},
            "tags": ["x", True],
            "note": "first",
        },
    }
    told = MessageToDict(answer(serve, message).dynamic_metadata)
    assert told["metadata"] == {"plan": {"name": "silver", "region": "eu"}, "note": "second"}


def test_metadata_needs_the_setting() -> None:
    """Unless the operator asks for it nothing about the request goes into metadata."""
    assert not answer(service(METADATA), request({"a": "1"})).HasField("dynamic_metadata")


def test_metadata_survives_metric_flags() -> None:
    """Naming metrics by value does not lose the metadata of the rule."""
    serve = service(
        "domain: d\ndescriptors:\n- {key: a, value_to_metric: true, metadata: {m: 1}, rate_limit: {unit: day, requests_per_unit: 1}}\n",
        response=ResponseOptions(dynamic_metadata=True),
    )
    assert MessageToDict(answer(serve, request({"a": "v"})).dynamic_metadata)["metadata"] == {"m": 1.0}


def test_headers_of_the_tightest_limit() -> None:
    """The headers tell of the descriptor with least remaining; one over its limit wins; names can be chosen."""
    options = ResponseOptions(headers=HeaderNames("x-l", "x-m", "x-r"))
    serve = service(QUOTAS, response=options)

    def headers(*descriptors: dict[str, str], hits: int = 1) -> list[tuple[str, str]]:
        response = answer(serve, request(*descriptors, hits=hits))
        return [(header.key, header.value) for header in response.response_headers_to_add]

    assert headers({"hard": "a"}, {"large": "a"}) == [("x-l", "2"), ("x-m", "1"), ("x-r", "60")]
    assert headers({"large": "a"}, {"hard": "a"}, hits=3) == [("x-l", "3"), ("x-m", "0"), ("x-r", "60")]
    assert headers({"nobody": "knows"}) == []
    assert [one.limit for one in (HeaderNames(),)] == ["RateLimit-Limit"]
    silent = answer(service(QUOTAS), request({"hard": "a"}))
    assert not silent.response_headers_to_add


METRICS = """\
domain: d
descriptors:
- key: plain
  rate_limit: {unit: minute, requests_per_unit: 5}
  descriptors:
  - {key: below, value: x, rate_limit: {unit: minute, requests_per_unit: 5}}
- {key: wild, value: "a*", rate_limit: {unit: minute, requests_per_unit: 5}}
- {key: told, value_to_metric: true, rate_limit: {unit: minute, requests_per_unit: 5}}
- key: path
  value_to_metric: true
  descriptors:
  - {key: leaf, rate_limit: {unit: minute, requests_per_unit: 5}}
- key: deep
  descriptors:
  - {key: leaf, value: "l*", detailed_metric: true, rate_limit: {unit: minute, requests_per_unit: 5}}
- {key: sh, value: "s*", share_threshold: true, value_to_metric: true, detailed_metric: true, rate_limit: {unit: day, requests_per_unit: 5}}
"""


@pytest.mark.parametrize(
    ("entries", "rule"),
    [
        ({"plain": "v"}, "plain"),
        ({"plain": "v", "below": "x"}, "plain.below_x"),
        ({"wild": "ab"}, "wild_a*"),
        ({"told": "v"}, "told_v"),
        ({"path": "v", "leaf": "w"}, "path_v.leaf"),
        ({"deep": "v", "leaf": "lw"}, "deep_v.leaf_lw"),
        ({"sh": "sv"}, "sh_s*"),
    ],
)
def test_metrics_are_named_by_rule(entries: dict[str, str], rule: str) -> None:
    """Rules are called by key and configured value; the flags put the caller's values in."""
    serve = service(METRICS)
    answer(serve, request(entries, hits=2))
    assert serve.statistics.hits() == {("d", rule): Hits(within_limit=2)}


def test_metrics_count_hits() -> None:
    """Hits count as often as they weigh; near the limit is less than a fifth left; looking is no hit."""
    serve = service(
        QUOTAS + "- {key: dark, shadow_mode: true, rate_limit: {unit: day, requests_per_unit: 1}}\n"
    )
    look = request({"hard": "a"})
    look.descriptors[0].hits_addend.value = 0
    answer(serve, look)
    for hits in (2, 1, 5):
        answer(serve, request({"hard": "a"}, {"dark": "a"}, hits=hits))
    found = serve.statistics.hits()
    assert found["d", "hard"] == Hits(within_limit=3, near_limit=1, over_limit=5)
    assert found["d", "dark"] == Hits(shadow_mode=8)
    message = request({"new": "a"})
    message.descriptors[0].limit.requests_per_unit = 5
    message.descriptors[0].limit.unit = 2
    answer(serve, message)
    assert ("d", "(request)") in serve.statistics.hits()


def test_metrics_stay_bounded() -> None:
    """Callers that invent values do not make metrics without end, nor endless names."""
    serve = service(METRICS)
    serve.statistics = Statistics(max_rules=3)
    for value in ["a", "b", "x" * 1000, "c", "d", "e"]:
        answer(serve, request({"told": value}))
    assert serve.statistics.hits() == {
        ("d", "told_a"): Hits(within_limit=1),
        ("d", "told_b"): Hits(within_limit=1),
        ("d", "(other)"): Hits(within_limit=4),
    }


def test_domains_merge_over_files() -> None:
    """With the option two documents make one domain; a descriptor that both have is still a mistake."""
    serve = service(
        "domain: d\ndescriptors: [{key: a, rate_limit: {unit: day, requests_per_unit: 1}}]\n---\n"
        "domain: d\ndescriptors: [{key: b, rate_limit: {unit: day, requests_per_unit: 2}}]\n",
        Options(merge_domains=True),
    )
    response = answer(serve, request({"a": "1"}, {"b": "1"}))
    assert [status.limit_remaining for status in response.statuses] == [0, 1]


@pytest.mark.parametrize("unit", ["second", "Minute", "HOUR", "day", "week", "month", "year"])
def test_every_unit(unit: str) -> None:
    """Each unit is reported by its number and ends with the window of the epoch."""
    serve = service(
        f"domain: d\ndescriptors: [{{key: a, rate_limit: {{unit: {unit}, requests_per_unit: 1}}}}]\n"
    )
    (status,) = answer(serve, request({"a": "1"})).statuses
    number = rls_pb2.RateLimitResponse.RateLimit.Unit.Value(unit.upper())
    seconds = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 7 * 86400, "month": 30 * 86400}
    window = seconds.get(unit.lower(), 365 * 86400)
    assert status.current_limit.unit == number
    assert status.duration_until_reset.seconds == window - START // SECOND % window
