"""YAML documents keep their positions, and every mistake is reported where it stands."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from garrison.documents import Position, load, parse, validate
from garrison.documents.yaml import MAX_DEPTH


class Rule(BaseModel):
    """A rule of the model under test."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    methods: list[str] = []


class Spec(BaseModel):
    """The model under test."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    name: str
    rules: list[Rule] = []


def test_values_and_keys_have_positions() -> None:
    """Every value and key knows its line and column, counted from 1."""
    documents, problems = parse(b"name: a\nrules:\n- methods: [GET, 'PUT']\n", "f.yaml")
    assert problems == []
    assert documents[0].data == {"name": "a", "rules": [{"methods": ["GET", "PUT"]}]}
    assert documents[0].values["rules", 0, "methods", 1] == Position(3, 18)
    assert documents[0].keys["rules", 0, "methods"] == Position(3, 3)


def test_ports_may_be_numbers() -> None:
    """The keys of `portLevelMtls` are read as strings, as Kubernetes does, and have positions."""
    documents, problems = parse(b"a:\n  portLevelMtls:\n    8080: {mode: STRICT}\n    '9': {}\n", "f.yaml")
    assert problems == []
    assert documents[0].data == {"a": {"portLevelMtls": {"8080": {"mode": "STRICT"}, "9": {}}}}
    assert documents[0].keys["a", "portLevelMtls", "8080"] == Position(3, 5)
    assert documents[0].values["a", "portLevelMtls", "8080", "mode"] == Position(3, 18)
    assert documents[0].part(("a", "portLevelMtls", "8080")).values["mode",] == Position(3, 18)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\na: 2\n", "f.yaml:2:1: a: the key `a` stands twice, first in line 1 [duplicate_key]"),
        ("a: &x 1\n", "f.yaml:1:4: anchors are not supported (write it out) [anchor]"),
        ("a: *x\n", "f.yaml:1:4: aliases are not supported (write it out) [anchor]"),
        (
            "a: !!python/object x\n",
            "f.yaml:1:4: the tag `tag:yaml.org,2002:python/object` is not supported [tag]",
        ),
        ("1: a\n", "f.yaml:1:1: the key `1` is not a string (put it in quotes) [key_type]"),
        ("a: {portLevelMtls: {8_0: b}}\n", "f.yaml:1:21: a.portLevelMtls: the key `8_0` is not a string"),
        ("portLevelMtls: {1.5: b}\n", "the key `1.5` is not a string"),
        ("portLevelMtls: {1: {2: b}}\n", "f.yaml:1:21: portLevelMtls.1: the key `2` is not a string"),
        ("portLevelMtls: [{1: b}]\n", "the key `1` is not a string"),
        ("portLevelMtls: {1: a, 1: b}\n", "portLevelMtls.1: the key `1` stands twice"),
        ('portLevelMtls: {1: a, "1": b}\n', "portLevelMtls.1: the key `1` stands twice"),
        ("? [a]\n: b\n", "f.yaml:1:3: a key cannot be a list or a mapping [key_type]"),
        ("[" * (MAX_DEPTH + 1), f"nested more than {MAX_DEPTH} levels deep [too_deep]"),
        ("a: b: c\n", "f.yaml:1:5: mapping values are not allowed in this context [yaml_syntax]"),
        ("a: \x01\n", "a character that YAML does not allow [yaml_syntax]"),
    ],
)
def test_what_documents_may_not_hold(text: str, expected: str) -> None:
    """Duplicate keys, anchors, tags, deep nesting and syntax errors are refused with their position."""
    documents, problems = parse(text.encode(), "f.yaml")
    assert documents == []
    assert expected in str(problems[0])


def test_a_tab_is_a_syntax_error_with_position() -> None:
    """A tab used for indentation is named with its line."""
    _, problems = parse(b"a:\n\tb: 1\n", "f.yaml")
    assert str(problems[0]) == (
        "f.yaml:2:1: found character that cannot start any token (indent with spaces, not tabs) [yaml_syntax]"
    )


def test_invalid_utf8_has_a_position() -> None:
    """A byte that is not UTF-8 is reported where it stands."""
    _, problems = parse(b"a: 1\nb: \xff\n", "f.yaml")
    assert problems[0].position == Position(2, 4)


def test_every_mistake_is_reported_at_once() -> None:
    """Validation collects: unknown fields point at the key, wrong values at the value."""
    documents, _ = parse(b"nam: a\nrules:\n- methds: [GET]\n- methods: [GET, 1]\n", "f.yaml")
    problems = validate(Spec, documents[0])
    assert isinstance(problems, list)
    assert sorted(map(str, problems)) == [
        "f.yaml:1:1: nam: unknown field `nam` (did you mean `name`?) [unknown_field]",
        "f.yaml:1:1: name: the required field `name` is missing [missing_field]",
        "f.yaml:3:3: rules[0].methds: unknown field `methds` (did you mean `methods`?) [unknown_field]",
        "f.yaml:4:18: rules[1].methods[1]: expected a string, got a number (put the value in quotes) [string_type]",
    ]


def test_documents_before_a_syntax_error_are_kept() -> None:
    """The documents before the broken one are returned with the error."""
    documents, problems = parse(b"a: 1\n---\nb: [\n", "f.yaml")
    assert [document.data for document in documents] == [{"a": 1}]
    assert len(problems) == 1


def test_folders_are_read_in_order_without_hidden_files(tmp_path: Path) -> None:
    """A folder stands for its YAML files by name; hidden files and other suffixes are left out."""
    for name in ("b.yaml", "a.yml", ".hidden.yaml", "c.txt"):
        (tmp_path / name).write_text(f"name: {name}\n")
    documents, problems = load([tmp_path, tmp_path / "missing.yaml"])
    assert [document.data["name"] for document in documents] == ["a.yml", "b.yaml"]
    assert [problem.code for problem in problems] == ["unreadable"]


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_input_makes_the_parser_raise(text: bytes) -> None:
    """Whatever the bytes are, the answer is documents and diagnostics."""
    documents, problems = parse(text, "f.yaml")
    assert isinstance(documents, list)
    assert all(problem.position.line >= 1 for problem in problems)
