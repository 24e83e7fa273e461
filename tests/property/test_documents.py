"""Positions that are worked out later are those that a reader of the whole file would have kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from garrison.documents import Document, Field, Position, parse

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=6)
WORD = (
    st.sampled_from(["a", "b", "é", "kind", "items", "no", "~", "1", "0x1f", "1.5", "x y", "#", "𝄞"]) | TEXT
)
DATA = st.recursive(
    WORD | st.integers() | st.booleans(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORD, inner, max_size=4),
    max_leaves=12,
)
# Lines that may stand between documents, and move the next one without being part of it.
GAPS = st.sampled_from(["---\n", "...\n---\n", "...  # end\n--- # begin\n", "\n\n# é\n---\n", "---\n# 𝄞\n"])


@st.composite
def streams(draw: st.DrawFn) -> str:
    """Draw documents in block or flow style, one after the other."""
    text = draw(st.sampled_from(["", "# first\n", "%YAML 1.1\n---\n", "--- \n"]))
    for number in range(draw(st.integers(1, 4))):
        if number:
            text += draw(GAPS)
        text += yaml.safe_dump(
            draw(DATA),
            default_flow_style=draw(st.sampled_from([True, False, None])),
            allow_unicode=draw(st.booleans()),
            indent=draw(st.sampled_from([2, 4])),
            width=draw(st.sampled_from([20, 80])),
        )
    return text


def nodes(node: yaml.Node, path: Field = ()) -> Iterator[tuple[Field, Position]]:
    """Yield path and position of every value below a node that PyYAML composed."""
    yield path, Position(node.start_mark.line + 1, node.start_mark.column + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from nodes(value, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from nodes(value, (*path, index))


def keys(node: yaml.Node, path: Field = ()) -> Iterator[tuple[Field, Position]]:
    """Yield path and position of every key below a node that PyYAML composed."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*path, key.value), Position(key.start_mark.line + 1, key.start_mark.column + 1)
            yield from keys(value, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from keys(value, (*path, index))


def not_empty(node: yaml.Node) -> bool:
    """Return whether a document is one that `parse` returns."""
    return not isinstance(node, yaml.ScalarNode) or node.tag != "tag:yaml.org,2002:null"


@given(text=streams())
@example(text="  a: 1\n  c: 2\n... # x\n...\n--- {b: [c,\n d]}\n")
@example(text="{a: [1,\n 2], b: {c: d}}\n---\n? e\n: - |\n   x\n  - >-\n   y\n")
def test_positions_are_those_of_the_whole_file(text: str) -> None:
    """Each document, read again on its own, knows line and column in the file of every value and key."""
    documents, problems = parse(text.encode(), "f.yaml")
    composed = [node for node in yaml.compose_all(text, Loader=yaml.CSafeLoader) if not_empty(node)]
    assert problems == []
    assert len(documents) == len(composed)
    for document, node in zip(documents, composed, strict=True):
        assert dict(document.values) == dict(nodes(node))
        assert dict(document.keys) == dict(keys(node))


def paths(data: Any, path: Field = ()) -> Iterator[Field]:
    """Yield the path of every value."""
    yield path
    entries: Any = (
        data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    )
    for step, value in entries:
        yield from paths(value, (*path, step))


def inside(positions: Any, path: Field) -> dict[Field, Position]:
    """Return the positions at and below `path`, named from there."""
    return {where[len(path) :]: at for where, at in positions.items() if where[: len(path)] == path}


@given(text=streams())
@example(text="items:\n- a: 1\n  b: [x, {y: z}]\n-   c:\n    - d\n    - e\n- |\n  text\n- - - f\n")
def test_a_part_is_the_same_document_seen_from_inside(text: str) -> None:
    """`part` gives the data below a path, at the same positions, and the part of a part likewise."""
    for document in parse(text.encode(), "f.yaml")[0]:
        for path in paths(document.data):
            part = document.part(path)
            assert part is document.part(path)
            assert dict(part.values) == inside(document.values, path)
            expected = {where: at for where, at in inside(document.keys, path).items() if where}
            assert {where: at for where, at in part.keys.items() if where} == expected
            for deeper in paths(part.data):
                assert part.part(deeper).position(()) == document.position((*path, *deeper))


@given(text=streams())
def test_data_is_what_pyyaml_reads_but_for_the_documented_words(text: str) -> None:
    """Strings, lists and mappings come out as from the reference parser."""
    documents, _ = parse(text.encode(), "f.yaml")
    loaded = [data for data in yaml.safe_load_all(text) if data is not None]
    assert [document.data for document in documents] == loaded


def eager(data: Any, positions: dict[Field, Position]) -> Document:
    """Return a document that was given its positions."""
    return Document("f.yaml", data, positions)


@given(data=DATA)
def test_documents_may_be_given_their_positions(data: Any) -> None:
    """Without a text, positions are those that were given, in parts too."""
    where = {path: Position(1, number + 1) for number, path in enumerate(paths(data))}
    document = eager(data, where)
    for path, at in where.items():
        assert document.position(path) == document.part(path).position(()) == at
