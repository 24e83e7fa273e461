"""`garrison ratelimit`: what it prints for which files and requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from garrison.cli import main
from ratelimit.cli import answers
from ratelimit.compile import load_limits
from ratelimit.tree import Limits

LIMITS = """\
domain: shop
descriptors:
- key: user
  rate_limit: {unit: minute, requests_per_unit: 2, name: any}
- key: free
  rate_limit: {unlimited: true}
- key: path
  descriptors:
  - key: user
    rate_limit: {unit: hour, requests_per_unit: 5}
"""
_OTHER = [["path", "/"], ["user", "x"]]
USER = {"domain": "shop", "descriptors": [[["user", "x"]]]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with one file of limits."""
    (tmp_path / "shop.yaml").write_text(LIMITS)
    return tmp_path


def run(*arguments: str | Path, text: str = "") -> tuple[int, str, str]:
    """Return exit code, output and errors of `garrison ratelimit` with `arguments`."""
    result = CliRunner().invoke(main, ["ratelimit", *map(str, arguments)], input=text)
    return result.exit_code, result.stdout, result.stderr


def evaluated(folder: Path, *lines: object, options: tuple[str, ...] = ()) -> list[Any]:
    """Return the answers to `lines`."""
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    code, out, _ = run("eval", "--config", folder, "--requests", "-", *options, text=text)
    assert code == 0
    return [json.loads(line) for line in out.splitlines()]


def test_requests_are_counted_by_the_clock_of_their_lines(folder: Path) -> None:
    """A line without a time has that of the line before; windows end when the lines say so."""
    answers = evaluated(
        folder,
        {"id": "a", **USER, "at": 60},
        {"id": "b", **USER},
        {"id": "c", **USER, "at": 61.5},
        {"id": "d", **USER, "at": 120},
    )
    assert [one["overall"] for one in answers] == ["OK", "OK", "OVER_LIMIT", "OK"]
    assert answers[2] == {
        "id": "c",
        "overall": "OVER_LIMIT",
        "statuses": [
            {
                "code": "OVER_LIMIT",
                "limit_remaining": 0,
                "requests_per_unit": 2,
                "unit": "MINUTE",
                "name": "any",
                "duration_until_reset": 59.0,
            }
        ],
    }


def test_a_request_brings_addends_and_limits_along(folder: Path) -> None:
    """They belong to the descriptors at the same place; null stands for none, an addend of 0 only looks."""
    two = [[["user", "x"]], [["other", "y"]]]
    own = {"requests_per_unit": 0, "unit": "HOUR"}
    line = {
        "domain": "shop",
        "descriptors": two,
        "descriptor_hits_addend": [0],
        "limits": [None, own],
        "at": 0,
    }
    first, second = evaluated(folder, line, {**USER, "hits_addend": 2})
    assert [one["code"] for one in first["statuses"]] == ["OK", "OVER_LIMIT"]
    assert first["statuses"][1]["unit"] == "HOUR"
    assert second["overall"] == "OK"


def test_modes(folder: Path) -> None:
    """In shadow mode all is well; in quota mode one limit alone denies nothing."""
    over = {**USER, "hits_addend": 3}
    assert evaluated(folder, over)[0]["overall"] == "OVER_LIMIT"
    assert evaluated(folder, over, options=("--shadow-mode",))[0]["overall"] == "OK"
    two = {"domain": "shop", "descriptors": [[["user", "x"]], _OTHER], "hits_addend": 3}
    assert evaluated(folder, two)[0]["overall"] == "OVER_LIMIT"
    assert evaluated(folder, two, options=("--quota-mode",))[0]["overall"] == "OK"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("nonsense", "Expecting value"),
        ("[]", "the line"),
        ({"id": 1, "domain": "shop", "descriptors": [[["user"]]]}, "descriptors.0.0"),
        ({"id": 1, **USER, "hits_addend": -1}, "hits_addend"),
        ({"id": 1, **USER, "hits_addend": 2**32}, "hits_addend"),
        ({"id": 1, **USER, "descriptor_hits_addend": [2**64]}, "descriptor_hits_addend.0"),
        ({"id": 1, **USER, "limits": [None, None]}, "more of them than descriptors"),
        ({"id": 1, **USER, "limits": [{"requests_per_unit": 1, "unit": "WEEK"}]}, "limits.0.unit"),
        ({"id": 1, **USER, "at": -1}, "at"),
        ('{"id": 1, "at": NaN}', "at"),
        ({"id": 1, **USER, "att": 1}, "att"),
    ],
)
def test_a_bad_line_is_an_answer_too(folder: Path, line: object, expected: str) -> None:
    """It says what is wrong, and costs no line after it, and no hit."""
    bad, good = evaluated(folder, line, {**USER, "hits_addend": 2})
    assert expected in bad["error"]
    assert good["overall"] == "OK"


def test_what_the_service_cannot_decide_is_over_limit(folder: Path) -> None:
    """As on the wire: no domain, no descriptors, no entries."""
    faults = evaluated(folder, {}, {"domain": "shop"}, {"domain": "shop", "descriptors": [[]]})
    assert [one["overall"] for one in faults] == ["OVER_LIMIT"] * 3
    assert [one["fault"] for one in faults] == ["empty_domain", "no_descriptors", "no_entries"]
    assert evaluated(folder, {**USER, "domain": "nobody's"})[0]["overall"] == "OK"


def test_a_bad_configuration_is_refused(folder: Path) -> None:
    """Exit code 2 with file, line, column and field; nothing is answered."""
    (folder / "bad.yaml").write_text("domain: shop\ndescriptors: [{key: a, limit: b}]\n")
    code, out, err = run("eval", "--config", folder, "--requests", "-", text=json.dumps(USER))
    assert (code, out) == (2, "")
    assert "bad.yaml:2:24: descriptors[0].limit: unknown field `limit`" in err
    assert run("eval", "--config", folder / "shop.yaml", "--requests", folder / "none")[0] == 2


def test_domains_are_merged_on_demand(folder: Path) -> None:
    """Without the option, a domain in two files is a mistake."""
    (folder / "more.yaml").write_text("domain: shop\ndescriptors: [{key: more}]\n")
    assert run("eval", "--config", folder, "--requests", "-")[0] == 2
    assert evaluated(folder, USER, options=("--merge-domain-config",))[0]["overall"] == "OK"
    assert run("lint", folder)[0] == 1
    assert run("lint", "--merge-domain-config", folder)[0] == 0


@pytest.mark.parametrize(
    ("domain", "entries", "code", "expected"),
    [
        ("shop", ["user=x"], 0, "shop.yaml:4:15: 2 a minute (any)"),
        ("shop", ["path=/a=b", "user=x"], 0, "5 a hour"),
        ("shop", ["path=/a"], 1, "not limited: the rule that these entries lead to has no limit"),
        ("shop", ["path=/a", "who=x"], 1, "not limited: no rule for `who=x` as entry 2"),
        ("shop", ["free="], 1, "not limited: the rule says `unlimited`"),
        ("none", ["user=x"], 1, "not limited: there is no domain `none` (known here: shop)"),
        ("shop", ["=x"], 2, "`=x` is not KEY=VALUE"),
    ],
)
def test_explain(folder: Path, domain: str, entries: list[str], code: int, expected: str) -> None:
    """It names the limit and its place, or the entry at which there is none."""
    found, out, err = run("explain", "--config", folder, "--domain", domain, *entries)
    assert found == code
    assert expected in out + err


def test_output_for_machines(folder: Path) -> None:
    """One JSON object, or one for each problem."""
    _, out, _ = run("explain", "--config", folder, "--domain", "shop", "--json", "user=x")
    assert json.loads(out)["limit"] == "2 a minute (any)"
    (folder / "bad.yaml").write_text("domain: shop\nunit: day\n")
    code, out, _ = run("lint", "--json", folder)
    assert code == 1
    assert [json.loads(line)["line"] for line in out.splitlines()] == [2]


@given(
    st.lists(st.binary(max_size=60) | st.from_regex(rb'\{"(id|at|limits|descriptors)": .{0,9}\}'), max_size=5)
)
def test_no_line_ends_the_run(lines: list[bytes]) -> None:
    """Whatever is in them, each that is not blank gets an answer or an error."""
    answered = list(answers(Limits({}, ""), iter(lines)))
    assert len(answered) == sum(1 for line in lines if line.strip())


def test_files_are_loaded_once(folder: Path) -> None:
    """What is counted is kept from line to line, in one store."""
    lines = [json.dumps(USER).encode()] * 3
    verdicts = [one["overall"] for one in answers(load_limits([folder]), iter(lines))]
    assert verdicts == ["OK", "OK", "OVER_LIMIT"]
