"""YAML that is meant to hurt: each kind is refused at its place, quickly, and without stopping other threads."""

from __future__ import annotations

import tracemalloc

import pytest

from garrison.documents import Position, parse
from garrison.documents.yaml import MAX_DEPTH, _Chunks

MEGABYTE = 1024 * 1024

# A billion laughs: each level is ten times the one before.
BOMB = "a0: &a0 [lol]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))

# Of each: the text, line and column, and how the message begins.
BAD: dict[str, tuple[str, int, int, str]] = {
    "a bomb of aliases": (BOMB, 1, 5, "anchors are not supported"),
    "an alias as a key": ("a: 1\n*x : 2\n", 2, 1, "aliases are not supported"),
    "a merge key": ("a: {<<: *b}\n", 1, 9, "aliases are not supported"),
    "a tag": ("a:\n- !!python/name:os.system x\n", 2, 3, "the tag `tag:yaml.org,2002:python/name:os.system`"),
    "a tag on a mapping": ("a: !x {b: c}\n", 1, 4, "the tag `!x` is not supported"),
    "a key that stands twice": ("x: 1\ns:\n  r: []\n  m: a\n  r: [b]\n", 5, 3, "the key `r` stands twice"),
    "a key in two spellings": ("a: 1\n'a': 2\n", 2, 1, "the key `a` stands twice"),
    "a key that is null": ("~: 1\n", 1, 1, "the key `~` is not a string"),
    "a key that is a boolean": ("a: {no: 1}\n", 1, 5, "the key `no` is not a string"),
    "nesting in a line": ("[" * 100_000, 1, MAX_DEPTH + 1, "nested more than"),
    "nesting in blocks": ("- " * 100_000 + "a", 1, 2 * MAX_DEPTH + 1, "nested more than"),
    "a tab": ("a:\n  b: 1\n\tc: 2\n", 3, 1, "found a tab character that violates indentation"),
    "a surrogate": ('a: "\\ud800"\n', 1, 7, "found invalid Unicode character escape code"),
    "an end in the middle": ("a: {b: [c\n", 2, 1, "did not find expected"),
}


@pytest.mark.parametrize("before", ["", "first: 1\n---\n", "first: 1\n...\n# é\n---\n"])
@pytest.mark.parametrize(("text", "line", "column", "message"), BAD.values(), ids=BAD.keys())
def test_bad_documents_are_refused_at_their_place(
    text: str, line: int, column: int, message: str, before: str
) -> None:
    """Whatever stands before, line and column are those in the file, and earlier documents are kept."""
    documents, problems = parse((before + text).encode(), "f.yaml")
    assert [document.data for document in documents] == ([{"first": 1}] if before else [])
    (problem,) = problems
    assert problem.message.startswith(message)
    assert problem.position == Position(line + before.count("\n"), column)


def test_a_second_key_names_the_line_of_the_first() -> None:
    """The line of the first key is that in the file, in a later document too."""
    _, problems = parse(b"x: 1\n---\na: 1\nb: 2\na: 3\n", "f.yaml")
    assert str(problems[0]) == "f.yaml:5:1: a: the key `a` stands twice, first in line 3 [duplicate_key]"


@pytest.mark.parametrize("before", ["", "\ufeff"])
def test_a_control_character_is_refused_at_its_place(before: str) -> None:
    """Columns count characters, not bytes, and the byte order mark is none."""
    _, problems = parse(f"{before}é: 1\nb: é\x01\n".encode(), "f.yaml")
    assert str(problems[0]) == "f.yaml:2:5: a character that YAML does not allow [yaml_syntax]"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a: " + "x" * (10 * MEGABYTE), id="one word"),
        pytest.param("a: '" + "x" * (10 * MEGABYTE), id="a quote without an end"),
        pytest.param("#" * (10 * MEGABYTE), id="one comment"),
        pytest.param("\n" * (10 * MEGABYTE), id="empty lines"),
        pytest.param("[" + "a," * MEGABYTE, id="a list without an end"),
        pytest.param("? " * MEGABYTE, id="keys of keys"),
    ],
)
def test_large_nonsense_is_read_in_small_steps(text: str) -> None:
    """While libyaml scans, the text comes to it bit by bit, and between the bits other threads can run."""
    content = text.encode()
    sizes: list[int] = []
    chunks = _Chunks(content)
    while piece := chunks.read(16384):
        sizes.append(len(piece))
    assert max(sizes) <= 16384
    documents, problems = parse(content, "f.yaml")
    assert len(documents) + len(problems) <= 1


def test_a_bomb_costs_no_memory() -> None:
    """Nothing is expanded: what a bomb costs is about its own size."""
    tracemalloc.start()
    try:
        parse(BOMB.encode(), "f.yaml")
        assert tracemalloc.get_traced_memory()[1] < MEGABYTE
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "text", [b"\xef\xbb\xbfa: 1\nb: \xff\n", b"a: " + b"\xc3\xa9" * 200_000 + b"\nb: \xc3"]
)
def test_what_is_not_utf8_is_refused_at_its_place(text: bytes) -> None:
    """The position counts characters and no byte order mark, also far into a file and at its very end."""
    documents, problems = parse(text, "f.yaml")
    assert documents == []
    assert (str(problems[0])) == "f.yaml:2:4: the file is not valid UTF-8 [encoding]"
