"""What cannot be meant by the keys of a limit is reported where it stands."""

from __future__ import annotations

import pytest

from garrison.documents import parse
from ratelimit.compile import Options, compile_limits

ONE = "unit: day, requests_per_unit: 1"


def problems(text: str, options: Options | None = None) -> list[str]:
    """Return the diagnostics of descriptors in domain `d`, without the name of their file."""
    documents, _ = parse(f"domain: d\ndescriptors:\n{text}".encode(), "f")
    found = compile_limits(documents, options or Options())[1]
    return [str(problem).removeprefix("f:") for problem in found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            f"- {{key: a, share_threshold: true, value: x, rate_limit: {{{ONE}}}}}",
            [
                "3:29: descriptors[0].share_threshold: `share_threshold` needs a value with `*`, or a `match` [contradiction]"
            ],
        ),
        (
            f"- {{key: a, rate_limit: {{name: n, {ONE}, replaces: [{{name: ''}}]}}}}",
            [
                "3:85: descriptors[0].rate_limit.replaces[0].name: string should have at least 1 character [string_too_short]"
            ],
        ),
        (
            f"- {{key: a, rate_limit: {{name: n, {ONE}, replaces: [{{name: n}}]}}}}",
            ["3:77: descriptors[0].rate_limit.replaces: a limit cannot replace itself [contradiction]"],
        ),
        (
            "- {key: a, metadata: [1]}",
            ["3:22: descriptors[0].metadata: expected a mapping, got a list [dict_type]"],
        ),
        (
            "- {key: a, quota_mode: true, best_effort: true}",
            [
                "3:24: warning: descriptors[0].quota_mode: there is no limit here that could be a quota [no_effect]",
                "3:43: warning: descriptors[0].best_effort: there is no limit here that could give a part [no_effect]",
            ],
        ),
        (
            "- {key: a, metadata: {b: c}, rate_limit: {unlimited: true}}",
            [
                "3:22: warning: descriptors[0].metadata: there is no limit here whose metadata this could be [no_effect]"
            ],
        ),
        (
            f"- {{key: a, rate_limit: {{{ONE}}}, rate_limits: [{{{ONE}}}]}}",
            [
                "3:72: descriptors[0].rate_limits: `rate_limit` and `rate_limits` contradict each other (keep one of them) [contradiction]"
            ],
        ),
        (
            f"- {{key: a, rate_limits: [{{{ONE}}}, {{{ONE}}}, {{unlimited: true}}]}}",
            [
                "3:61: descriptors[0].rate_limits[1]: there is another limit of this kind with this window [duplicate_limit]",
                "3:3: descriptors[0]: one of several limits cannot be `unlimited` [contradiction]",
            ],
        ),
        (
            "- {key: a, rate_limit: {window: 30s, unit: day, unit_multiplier: 2, requests_per_unit: 1}}",
            [
                "3:44: descriptors[0].rate_limit.unit: `window` and `unit` contradict each other (keep one of them) [contradiction]",
                "3:66: descriptors[0].rate_limit.unit_multiplier: `window` and `unit_multiplier` contradict each other (keep one of them) [contradiction]",
            ],
        ),
        (
            "- {key: a, rate_limit: {window: 1x, requests_per_unit: 1}}",
            [
                "3:33: descriptors[0].rate_limit.window: `1x` is not a duration such as `30s`, `15m` or `1h30m` [bad_window]"
            ],
        ),
        (
            "- {key: a, rate_limit: {window: 0s, requests_per_unit: 1}}",
            ["3:33: descriptors[0].rate_limit.window: a window is between 1ms and 10 years [bad_window]"],
        ),
        (
            "- {key: a, rate_limit: {unit: year, unit_multiplier: 11, requests_per_unit: 1}}",
            ["3:54: descriptors[0].rate_limit.unit_multiplier: a window is at most 10 years [bad_window]"],
        ),
        (
            "- {key: a, rate_limit: {unit: hour, time_zone: UTC, requests_per_unit: 1}}",
            [
                "3:48: descriptors[0].rate_limit.time_zone: a time zone has calendar windows of one day, week, month, year [contradiction]"
            ],
        ),
        (
            "- {key: a, rate_limit: {unit: day, time_zone: Mars/Base, requests_per_unit: 1}}",
            [
                "3:47: descriptors[0].rate_limit.time_zone: there is no time zone `Mars/Base` [unknown_time_zone]"
            ],
        ),
        (
            "- {key: a, rate_limit: {unit: day, time_zone: ../../etc/passwd, requests_per_unit: 1}}",
            [
                "3:47: descriptors[0].rate_limit.time_zone: there is no time zone `../../etc/passwd` [unknown_time_zone]"
            ],
        ),
        (
            "- {key: a, rate_limit: {algorithm: token_bucket, unit: day, time_zone: UTC, requests_per_unit: 1}}",
            [
                "3:72: descriptors[0].rate_limit.time_zone: only a `fixed_window` can follow a calendar [contradiction]"
            ],
        ),
        (
            f"- {{key: a, rate_limit: {{burst: 2, {ONE}}}}}",
            ["3:32: descriptors[0].rate_limit.burst: only a `token_bucket` has a `burst` [contradiction]"],
        ),
        (
            f"- {{key: a, rate_limit: {{algorithm: concurrency, denied_hits: count, {ONE}}}}}",
            [
                "3:62: descriptors[0].rate_limit.denied_hits: whoever is denied holds no place that could be counted [contradiction]"
            ],
        ),
        (
            "- {key: a, rate_limit: {algorithm: token_bucket, lease: 5, unit: day, requests_per_unit: 9}}",
            [
                "3:57: descriptors[0].rate_limit.lease: only a `fixed_window` without `best_effort` can be taken in leases [contradiction]"
            ],
        ),
        (
            "- {key: a, match: {}}\n- {key: a, match: {prefix: a, suffix: b}}",
            [
                "3:19: descriptors[0].match: a match is exactly one of `prefix`, `suffix`, `regex`, `cidr` [bad_match]",
                "4:19: descriptors[1].match: a match is exactly one of `prefix`, `suffix`, `regex`, `cidr` [bad_match]",
            ],
        ),
        (
            "- {key: a, match: {regex: '('}}",
            [
                "3:27: descriptors[0].match.regex: `(` is no regular expression of RE2: missing ): ( [bad_match]"
            ],
        ),
        (
            "- {key: a, match: {cidr: 10.0.0.1/8}}",
            [
                "3:26: descriptors[0].match.cidr: `10.0.0.1/8` is no address range such as `10.0.0.0/8`: 10.0.0.1/8 has host bits set [bad_match]"
            ],
        ),
        (
            "- {key: a, value: x, match: {prefix: a}}",
            [
                "3:29: descriptors[0].match: `value` and `match` contradict each other (keep one of them) [contradiction]"
            ],
        ),
        (
            "- {key: a, match: {prefix: a}}\n- {key: a, match: {prefix: a}}",
            [
                "4:3: descriptors[1]: `a` with value `prefix:a` stands twice here, first in line 3 [duplicate_descriptor]"
            ],
        ),
        (
            "- {key: a, value: 'prefix:a'}\n- {key: a, match: {prefix: a}}\n- {key: a, value: 'a*'}",
            [],
        ),
        (
            "- {key: id, deduplicate: 5s}",
            [
                "3:26: descriptors[0].deduplicate: there is no limit here whose hits could be counted once [no_effect]"
            ],
        ),
        (
            f"- {{key: a, rate_limit: {{{ONE}}}, descriptors: [{{key: id, value: x, deduplicate: soon, rate_limit: {{{ONE}}}}}]}}",
            [
                "3:106: descriptors[0].descriptors[0].deduplicate: `soon` is not a duration such as `30s`, `15m` or `1h30m` [bad_window]",
                "3:106: descriptors[0].descriptors[0].deduplicate: an entry that identifies calls has any value [contradiction]",
                "3:106: descriptors[0].descriptors[0].deduplicate: an entry that identifies calls has no limits and nothing below it (they belong to the descriptor around it) [contradiction]",
            ],
        ),
        (
            "- {key: a, rate_limit: {unlimited: true, burst: 3, window: 1s}}",
            [
                "3:49: descriptors[0].rate_limit.burst: `unlimited` and `burst` contradict each other (keep one of them) [contradiction]",
                "3:60: descriptors[0].rate_limit.window: `unlimited` and `window` contradict each other (keep one of them) [contradiction]",
            ],
        ),
        (
            "- {key: a, rate_limit: {unit: day, window: 1s, algorithm: leaky, requests_per_unit: 1}}",
            [
                "3:59: descriptors[0].rate_limit.algorithm: `leaky` is not known here (expected 'fixed_window', 'sliding_window', 'token_bucket' or 'concurrency') [literal_error]"
            ],
        ),
    ],
)
def test_mistakes(text: str, expected: list[str]) -> None:
    """Each mistake has its place, its code and what would be right."""
    assert problems(text) == expected


def test_merged_domains_have_each_descriptor_once() -> None:
    """A descriptor that two documents of one domain define is a mistake in the second, which names the first."""
    text = "- {key: a}\n---\ndomain: d\ndescriptors:\n- {key: a}\n"
    assert problems(text, Options(merge_domains=True)) == [
        "7:3: descriptors[0]: `a` without a value stands twice here, first in f:3 [duplicate_descriptor]"
    ]
    assert problems(text) == ["5:9: domain: the domain `d` is defined twice, first in f:1 [duplicate_domain]"]


def test_options_change_the_version() -> None:
    """What the process decides for all documents is part of the version of the limits."""
    documents, _ = parse(b"domain: d\n", "f")
    plain, quotas = compile_limits(documents)[0], compile_limits(documents, Options(quota_mode=True))[0]
    assert plain.version != quotas.version
