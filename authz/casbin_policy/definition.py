"""Casbin's two text formats, read strictly: the model (`model.conf`) and its rows (`policy.csv`).

pycasbin leaves out sections, definitions and rows that it does not know. Here they are mistakes: a `deny` row
that is left out is an open door.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

SECTIONS: Mapping[str, str] = {
    "request_definition": "r",
    "policy_definition": "p",
    "role_definition": "g",
    "policy_effect": "e",
    "matchers": "m",
}


class Mistake(NamedTuple):
    """A problem in a text: `line` counts from 1; 0 is the text as a whole."""

    line: int
    column: int
    code: str
    message: str
    help: str = ""


class Definition(NamedTuple):
    """The right side of `key = value`, and where it starts."""

    value: str
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class ModelText:
    """The definitions of a model by their key: `r`, `p`, `e`, `m`, and any of `g`, `g2`, …"""

    definitions: Mapping[str, Definition]

    @property
    def roles(self) -> dict[str, Definition]:
        """The role definitions."""
        return {key: one for key, one in self.definitions.items() if key[0] == "g"}

    def names(self, key: str) -> tuple[str, ...]:
        """Return the comma-separated names that the definition `key` lists."""
        return tuple(name.strip() for name in self.definitions[key].value.split(","))


class Row(list[str]):
    """The values of a row; `ordinal` counts rows from 0, `line` the lines of their text from 1 (0: none)."""

    __slots__ = ("key", "line", "ordinal")

    def __init__(self, values: Sequence[str], key: str, ordinal: int, line: int) -> None:
        super().__init__(values)
        self.key = key
        self.ordinal = ordinal
        self.line = line

    def __str__(self) -> str:
        return ", ".join([self.key, *self])


def parse_model(text: str) -> tuple[ModelText | None, list[Mistake]]:
    """Return the definitions of a model, or every mistake in it."""
    definitions: dict[str, Definition] = {}
    mistakes: list[Mistake] = []
    section: str | None = None
    for line, column, content in _logical_lines(text):
        if content.startswith("["):
            name = content.strip("[]").strip()
            section = SECTIONS.get(name)
            if section is None:
                known = ", ".join(SECTIONS)
                mistakes.append(
                    Mistake(line, column, "model_section", f"`{content}` is not a section", f"known: {known}")
                )
            continue
        key, equals, value = content.partition("=")
        key, value = key.strip(), value.strip()
        if not equals or not value:
            mistakes.append(Mistake(line, column, "model_syntax", f"`{content}` is not `key = value`"))
        elif section is None:
            if not mistakes:
                mistakes.append(
                    Mistake(line, column, "model_syntax", f"`{content}` stands in no known section")
                )
        elif not _is_key(section, key):
            message = f"`{key}` is not supported in this section"
            hint = f"`{section}` alone decides; others would never be looked at"
            mistakes.append(Mistake(line, column, "model_key", message, hint if section != "g" else ""))
        elif key in definitions:
            first = definitions[key].line
            mistakes.append(
                Mistake(line, column, "model_duplicate", f"`{key}` stands twice, first in line {first}")
            )
        else:
            definitions[key] = Definition(value, line, column + content.find(value, content.find("=") + 1))
    for name, key in SECTIONS.items():
        if key != "g" and key not in definitions and not mistakes:
            mistakes.append(Mistake(0, 0, "model_missing", f"the model has no `{key}` in `[{name}]`"))
    return (None if mistakes else ModelText(definitions)), mistakes


def _is_key(section: str, key: str) -> bool:
    if section != "g":
        return key == section
    return key == "g" or (key[:1] == "g" and key[1:].isascii() and key[1:].isdigit() and int(key[1:]) > 1)


def _logical_lines(text: str) -> list[tuple[int, int, str]]:
    """Return (line, column, content) without comments, with lines that end in a backslash joined."""
    found: list[tuple[int, int, str]] = []
    pending: tuple[int, int, str] | None = None
    for number, raw in enumerate(text.splitlines(), 1):
        content = raw.strip()
        column = len(raw) - len(raw.lstrip()) + 1
        if pending is None and (not content or content[0] in "#;"):
            continue
        line, at, before = pending or (number, column, "")
        if content.endswith("\\"):
            pending = (line, at, f"{before}{content[:-1].strip()} ")
        else:
            found.append((line, at, before + content))
            pending = None
    if pending is not None:
        found.append(pending)
    return found


def parse_rows(text: str) -> tuple[list[Row], list[Mistake]]:
    """Return the rows of a policy, and every line that is none.

    Values are split at commas outside of brackets, as pycasbin does; quotes mean nothing.
    """
    rows: list[Row] = []
    mistakes: list[Mistake] = []
    for number, raw in enumerate(text.splitlines(), 1):
        content = raw.strip()
        if not content or content.startswith("#"):
            continue
        column = len(raw) - len(raw.lstrip()) + 1
        values = _split(content)
        if values is None:
            mistakes.append(
                Mistake(number, column, "row_syntax", f"`{content}` has brackets that do not match")
            )
            continue
        if quoted := [value for value in values if value.startswith('"')]:
            hint = "quotes would become part of the value: leave them out"
            mistakes.append(Mistake(number, column, "row_quotes", f"`{quoted[0]}` starts with a quote", hint))
            continue
        rows.append(Row(values[1:], values[0], len(rows), number))
    return rows, mistakes


def _split(line: str) -> list[str] | None:
    values: list[str] = []
    depth = start = 0
    for at, character in enumerate(line):
        if character in "[(":
            depth += 1
        elif character in "])":
            depth -= 1
            if depth < 0:
                return None
        elif character == "," and depth == 0:
            values.append(line[start:at].strip())
            start = at + 1
    values.append(line[start:].strip())
    return values if depth == 0 else None
