"""Rate-limit YAML: what it means, and what each mistake in it is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from garrison.documents import Document, Severity, parse
from garrison.errors import ConfigError
from ratelimit.algorithm import UNITS, Limit
from ratelimit.compile import compile_limits, is_limits, lint, load_limits
from ratelimit.patterns import Wildcard
from ratelimit.tree import Limits, Unlimited

TREE = """\
domain: shop
descriptors:
- key: user
  rate_limit: {unit: MINUTE, requests_per_unit: 1, name: any}
- key: user
  value: "a*"
  rate_limit: {unit: minute, requests_per_unit: 2, name: prefix}
- key: user
  value: "*z"
  rate_limit: {unit: minute, requests_per_unit: 3, name: suffix}
- key: user
  value: alice
  rate_limit: {unit: minute, requests_per_unit: 4, name: exact}
  descriptors:
  - key: path
    rate_limit: {unit: second, requests_per_unit: 5, name: nested}
- key: user
  value: root
  rate_limit: {unlimited: true}
- key: user
  value: ghost
  descriptors: []
"""


def documents(text: str) -> list[Document]:
    """Return the documents of `text`, which is YAML."""
    found, problems = parse(text.encode(), "f.yaml")
    assert problems == []
    return found


def compiled(text: str) -> Limits:
    """Return the limits of `text`, which has no mistakes."""
    limits, diagnostics = compile_limits(documents(text))
    assert diagnostics == []
    return limits


@pytest.mark.parametrize(
    ("entries", "name"),
    [
        ([("user", "alice")], "exact"),
        ([("user", "abz")], "prefix"),
        ([("user", "bz")], "suffix"),
        ([("user", "bob")], "any"),
        ([("user", "")], "any"),
        ([("user", "Alice")], "any"),
        ([("user", "alice"), ("path", "/x")], "nested"),
        ([("user", "abz"), ("path", "/x")], None),
        ([("path", "/x")], None),
        ([("user", "ghost")], None),
        ([("user_alice", "")], None),
        ([("path", "/x"), ("user", "alice")], None),
        ([], None),
    ],
)
def test_matching_order(entries: list[tuple[str, str]], name: str | None) -> None:
    """Exact values win over wildcards in file order, these over the bare key; depth must be equal."""
    rule = compiled(TREE).domains["shop"].find(entries)
    if name is None:
        assert rule is None
    else:
        assert isinstance(rule, Limit)
        assert rule.name == name


def test_unlimited_is_a_rule() -> None:
    """An unlimited value is told apart from one without a rule, and knows where it stands."""
    assert compiled(TREE).domains["shop"].find([("user", "root")]) == Unlimited("f.yaml:19:15")


def test_limit_carries_its_source() -> None:
    """A limit knows its numbers and where it was written."""
    text = "domain: d\ndescriptors:\n- {key: k, shadow_mode: true, rate_limit: {unit: Week, requests_per_unit: 7}}\n"
    rule = compiled(text).domains["d"].find([("k", "v")])
    assert rule == Limit(7, UNITS["week"], shadow_mode=True, source="f.yaml:3:43")


def test_keys_and_values_are_kept_apart() -> None:
    """Neither (a, b) nor (a, b_c) is taken for a rule of another key that spells the same when joined."""
    text = """\
domain: d
descriptors:
- {key: a_b, rate_limit: {unit: day, requests_per_unit: 1}}
- {key: a_b, value: c, rate_limit: {unit: day, requests_per_unit: 1}}
"""
    domain = compiled(text).domains["d"]
    assert domain.find([("a", "b")]) is None
    assert domain.find([("a", "b_c")]) is None
    assert domain.find([("a_b", "c")]) is not None


def test_empty_value_is_no_value() -> None:
    """An entry without a value is not one that `*` stands for."""
    text = "domain: d\ndescriptors:\n- {key: a, value: '*', rate_limit: {unit: day, requests_per_unit: 1}}\n"
    domain = compiled(text).domains["d"]
    assert domain.find([("a", "")]) is None
    assert domain.find([("a", "x")]) is not None


@pytest.mark.parametrize(
    ("pattern", "value", "expected"),
    [
        ("*", "", True),
        ("*", "anything", True),
        ("a*", "a", True),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("*b*", "abc", True),
        ("*b*b*", "ab", False),
        ("a*b*c", "a-b-c", True),
        ("a*b*c", "a-c-b", False),
        ("*ab*b", "ab", False),
        ("**", "x", True),
        ("a.*", "ab", False),
    ],
)
def test_wildcards(pattern: str, value: str, expected: bool) -> None:
    """`*` stands for zero or more characters, everything else for itself."""
    assert Wildcard.parse(pattern).matches(value) is expected


@pytest.mark.parametrize(
    "text", ["8080", "010", "0x1F", "1_000", "1.10", "-7", "true", "yes", "Off", "1e3", ".5"]
)
def test_values_need_no_quotes(text: str) -> None:
    """A key, a value and a domain are the text that is written, whatever YAML would make of it."""
    limits = compiled(
        f"domain: {text}\ndescriptors:\n- key: a\n  descriptors:\n"
        f"  - {{key: {text}, value: {text}, rate_limit: {{unit: day, requests_per_unit: 7}}}}\n"
    )
    rule = limits.domains[text].find([("a", ""), (text, text)])
    assert isinstance(rule, Limit)


@pytest.mark.parametrize("text", ["", "~", "null"])
def test_a_value_of_nothing_is_an_error(text: str) -> None:
    """A value that a template left out must not make an unlimited rule one for every value."""
    found = compile_limits(
        documents(f"domain: d\ndescriptors:\n- key: a\n  rate_limit: {{unlimited: true}}\n  value: {text}\n")
    )[1]
    assert [(one.code, one.field) for one in found] == [("null", ("descriptors", 0, "value"))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- a\n", ["f.yaml:1:1: expected a mapping, got a list [model_type]"]),
        ("descriptors: []\n", ["f.yaml:1:1: domain: the required field `domain` is missing [missing_field]"]),
        ("domain: ''\n", ["f.yaml:1:9: domain: string should have at least 1 character [string_too_short]"]),
        (
            "domain: d\ndescriptors:\n",
            ["f.yaml:2:13: descriptors: nothing stands here [null]"],
        ),
        (
            "domain: d\ndescriptors:\n- key: a\n  rate_limit:\n  descriptors: []\n",
            ["f.yaml:4:14: descriptors[0].rate_limit: nothing stands here [null]"],
        ),
        (
            "domain: [7]\ndescriptors:\n- key: [7]\n  value: {a: 9}\n- key: ''\n",
            [
                "f.yaml:1:9: domain: expected a string, got a list [string_type]",
                "f.yaml:3:8: descriptors[0].key: expected a string, got a list [string_type]",
                "f.yaml:4:10: descriptors[0].value: expected a string, got a mapping [string_type]",
                "f.yaml:5:8: descriptors[1].key: string should have at least 1 character [string_too_short]",
            ],
        ),
        (
            "domain: d\ndescriptors:\n- key: a\n  descriptors:\n  - key: b\n    values: c\n",
            [
                "f.yaml:6:5: descriptors[0].descriptors[0].values: unknown field `values` (did you mean `value`?) [unknown_field]"
            ],
        ),
        (
            "domain: d\nunit: day\n",
            [
                "f.yaml:2:1: unit: unknown field `unit` (known here: descriptors, domain) [unknown_field]",
            ],
        ),
        (
            "domain: d\ndescriptors:\n- key: a\n  rate_limit: {unit: fortnight, requests_per_unit: -1, unlimited: 'no'}\n",
            [
                "f.yaml:4:22: descriptors[0].rate_limit.unit: `fortnight` is not known here (expected 'second', 'minute', 'hour', 'day', 'week', 'month' or 'year') [literal_error]",
                "f.yaml:4:52: descriptors[0].rate_limit.requests_per_unit: input should be greater than or equal to 0 [greater_than_equal]",
                "f.yaml:4:67: descriptors[0].rate_limit.unlimited: expected true or false, got a string [bool_type]",
            ],
        ),
        (
            "domain: d\ndescriptors:\n- key: a\n  rate_limit: {unit: day, requests_per_unit: 4294967296}\n",
            [
                "f.yaml:4:46: descriptors[0].rate_limit.requests_per_unit: input should be less than or equal to 4294967295 [less_than_equal]",
            ],
        ),
        (
            "domain: d\ndescriptors:\n- key: a\n  rate_limit: {}\n",
            [
                "f.yaml:4:15: descriptors[0].rate_limit.unit: the required field `unit` is missing [missing_field]",
                "f.yaml:4:15: descriptors[0].rate_limit.requests_per_unit: the required field `requests_per_unit` is missing [missing_field]",
            ],
        ),
        (
            "domain: d\ndescriptors:\n- key: a\n  rate_limit: {unlimited: true, unit: day, requests_per_unit: 0}\n",
            [
                "f.yaml:4:39: descriptors[0].rate_limit.unit: `unlimited` and `unit` contradict each other (keep one of them) [contradiction]",
                "f.yaml:4:63: descriptors[0].rate_limit.requests_per_unit: `unlimited` and `requests_per_unit` contradict each other (keep one of them) [contradiction]",
            ],
        ),
        (
            "domain: d\ndescriptors:\n- key: a\n- key: b\n  value: x*\n- key: a\n  value: ''\n- {key: b, value: 'x*'}\n",
            [
                "f.yaml:6:3: descriptors[2]: `a` without a value stands twice here, first in line 3 [duplicate_descriptor]",
                "f.yaml:8:3: descriptors[3]: `b` with value `x*` stands twice here, first in line 4 [duplicate_descriptor]",
            ],
        ),
        (
            "domain: d\n---\ndomain: e\n---\ndomain: d\n",
            ["f.yaml:5:9: domain: the domain `d` is defined twice, first in f.yaml:1 [duplicate_domain]"],
        ),
    ],
)
def test_mistakes(text: str, expected: list[str]) -> None:
    """Every mistake is reported where it stands, all of them at once."""
    diagnostics = lint_all(text)
    assert diagnostics == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "domain: d\ndescriptors:\n- key: a\n  shadow_mode: true\n",
            "f.yaml:4:16: warning: descriptors[0].shadow_mode: there is no limit here that could be a shadow [no_effect]",
        ),
        (
            "domain: d\ndescriptors:\n- key: a\n  rate_limit: {unit: day, requests_per_unit: 1, name: 'a\"b\\é'}\n",
            'f.yaml:4:55: warning: descriptors[0].rate_limit.name: `a"b\\é` cannot stand in a header as it is (it is sent as `a_b__`) [unsafe_name]',
        ),
        (
            "domain: d\ndescriptors:\n- {key: a, value: 'x*'}\n- {key: b, value: 'xy*'}\n- {key: a, value: 'xy*z'}\n",
            "f.yaml:5:19: warning: descriptors[2].value: `x*` stands before `xy*z` and takes all its values (put the wider one last) [unreachable]",
        ),
    ],
)
def test_warnings_do_not_stop_a_load(text: str, expected: str, tmp_path: Path) -> None:
    """What is odd but usable is a warning: linted, yet loaded."""
    assert lint_all(text) == [expected]
    (tmp_path / "limits.yaml").write_text(text, encoding="utf-8")
    assert "d" in load_limits([tmp_path]).domains


def lint_all(text: str) -> list[str]:
    """Return the diagnostics of `text` as they print."""
    return [str(diagnostic) for diagnostic in compile_limits(documents(text))[1]]


def test_names_are_made_safe() -> None:
    """A name cannot end the quotes that Envoy writes around it, nor break the header."""
    text = 'domain: d\ndescriptors:\n- {key: a, rate_limit: {unit: day, requests_per_unit: 1, name: "a\\"\\r\\nb"}}\n'
    limits, _ = compile_limits(documents(text))
    rule = limits.domains["d"].find([("a", "")])
    assert isinstance(rule, Limit)
    assert rule.name == "a___b"


def test_load_reports_every_file(tmp_path: Path) -> None:
    """Problems of all files come in one error; what is wrong in one does not hide what is in another."""
    (tmp_path / "a.yaml").write_text("domain: d\nfoo: 1\n")
    (tmp_path / "b.yaml").write_text("domain: [\n")
    (tmp_path / "c.yaml").write_text("domain: d\n")
    (tmp_path / "e.yaml").write_text("domain: d\n")
    with pytest.raises(ConfigError) as caught:
        load_limits([tmp_path, tmp_path / "gone.yaml"])
    found = {(Path(problem.file).name, problem.code) for problem in caught.value.diagnostics}
    assert found == {
        ("a.yaml", "unknown_field"),
        ("b.yaml", "yaml_syntax"),
        ("e.yaml", "duplicate_domain"),
        ("gone.yaml", "unreadable"),
    }
    assert all(problem.severity is Severity.ERROR for problem in caught.value.diagnostics)


def test_no_files_no_limits(tmp_path: Path) -> None:
    """Without files there are no domains, which is not an error."""
    assert load_limits([]).domains == {}


def test_version_follows_the_content(tmp_path: Path) -> None:
    """The version changes with the content and with nothing else."""
    one = compiled("domain: d\n---\ndomain: e\n").version
    assert compiled("domain: e\n---\n# the same\ndomain: 'd'\n").version == one
    assert compiled("domain: d\n---\ndomain: f\n").version != one


def test_lint_leaves_policies_alone() -> None:
    """Of mixed documents only those that look like rate limits are checked."""
    found = documents("kind: Policy\ndomain: x\n---\n- 1\n---\ndescriptors: []\n---\na: b\n")
    assert [is_limits(document) for document in found] == [False, False, True, False]
    assert [str(problem) for problem in lint(found)] == [
        "f.yaml:6:1: domain: the required field `domain` is missing [missing_field]"
    ]
