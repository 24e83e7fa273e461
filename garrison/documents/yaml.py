"""YAML text -> plain data plus a position for every key and value.

Built from libyaml's events rather than its node tree: aliases are refused before anything is expanded,
and nesting costs no recursion. Scalars resolve as Kubernetes tooling resolves them (YAML 1.1: `no` is a
boolean), so that the strict models behind this can say "expected a string" at the right column.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from garrison.documents.diagnostic import Diagnostic, Field, Position

# A policy is four to eight levels deep; libyaml itself would go on for as long as memory lasts.
MAX_DEPTH = 64
# The largest single file that is read. 100,000 roles are about 30 MB.
MAX_FILE_BYTES = 64 * 1024 * 1024

_BOOLEANS = {
    **dict.fromkeys(("true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"), True),
    **dict.fromkeys(("false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"), False),
}
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_NUMBER_START = frozenset("0123456789+-.")
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)")
_PREFIXED_INTEGER = re.compile(r"([-+]?)0([xob]?)([0-9a-fA-F_]+)")
_FLOAT = re.compile(r"[-+]?(?:[0-9][0-9_]*)?\.?[0-9_]*(?:[eE][-+]?[0-9]+)?")
_SPECIAL_FLOAT = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")


@dataclass(slots=True)
class Document:
    """One YAML document: its data and where each part of it stands.

    `values` and `keys` map the path of a value to its position; a value's own position is that of its first
    character, its key's that of the key before it. The root's path is `()`.
    """

    file: str
    data: Any
    values: dict[Field, Position] = field(default_factory=dict)
    keys: dict[Field, Position] = field(default_factory=dict)

    def position(self, path: Field) -> Position:
        """Return where the value at `path` stands, or its nearest enclosing value."""
        while path and path not in self.values:
            path = path[:-1]
        return self.values.get(path, Position(1, 1))

    def error(self, path: Field, code: str, message: str, help: str = "") -> Diagnostic:  # noqa: A002
        """Return a diagnostic at the value at `path`."""
        return Diagnostic(self.file, self.position(path), path, code, message, help)

    def part(self, path: Field) -> Document:
        """Return the value at `path` as a document of its own, in the same file."""
        data = self.data
        for step in path:
            data = data[step]
        size = len(path)
        return Document(
            self.file,
            data,
            {where[size:]: at for where, at in self.values.items() if where[:size] == path},
            {
                where[size:]: at
                for where, at in self.keys.items()
                if where[:size] == path and len(where) > size
            },
        )


class _RefusedError(Exception):
    """Something that is YAML but that documents here may not hold."""

    def __init__(self, mark: Any, path: Field, code: str, message: str, help_: str = "") -> None:
        super().__init__(message)
        self.position = _position(mark)
        self.path = path
        self.code = code
        self.message = message
        self.help = help_


def parse(text: bytes, file: str) -> tuple[list[Document], list[Diagnostic]]:
    """Return the documents in `text`, up to the first syntax error, and the diagnostic of that error.

    Empty documents are left out. `file` is the name that positions carry. Never raises for bad input.
    """
    documents: list[Document] = []
    if len(text) > MAX_FILE_BYTES:
        message = f"the file has {len(text)} bytes, more than the {MAX_FILE_BYTES} that are read"
        return documents, [Diagnostic(file, Position(1, 1), (), "file_too_large", message)]
    try:
        decoded = text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = text[: error.start]
        position = Position(before.count(b"\n") + 1, error.start - before.rfind(b"\n"))
        return documents, [Diagnostic(file, position, (), "encoding", "the file is not valid UTF-8")]
    try:
        documents.extend(_documents(decoded, file))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = error.problem or error.context or "not valid YAML"
        at_tab = mark is not None and decoded.splitlines()[mark.line : mark.line + 1][0:1]
        hint = "indent with spaces, not tabs" if at_tab and at_tab[0][mark.column :].startswith("\t") else ""
        return documents, [Diagnostic(file, _position(mark), (), "yaml_syntax", message, hint)]
    except yaml.YAMLError as error:
        position = _reader_position(error, decoded)
        return documents, [
            Diagnostic(file, position, (), "yaml_syntax", "a character that YAML does not allow")
        ]
    except _RefusedError as refused:
        diagnostic = Diagnostic(
            file, refused.position, refused.path, refused.code, refused.message, refused.help
        )
        return documents, [diagnostic]
    return documents, []


def _position(mark: Any) -> Position:
    return Position(mark.line + 1, mark.column + 1) if mark is not None else Position(1, 1)


def _reader_position(error: yaml.YAMLError, text: str) -> Position:
    offset = getattr(error, "position", None)
    if not isinstance(offset, int):
        return Position(1, 1)
    before = text[:offset]
    return Position(before.count("\n") + 1, offset - before.rfind("\n"))


_MISSING = object()


class _Builder:
    """Builds one document from events; `opened` is the stack of collections that are still open."""

    def __init__(self, file: str) -> None:
        self.document = Document(file, None)
        self._opened: list[_Open] = []

    def scalar(self, event: Any) -> None:
        value = _scalar(event, self._path())
        if self._expects_key():
            self._key(value, event)
        else:
            self._place(value, event.start_mark)

    def open(self, event: Any) -> None:
        path, mark = self._path(), event.start_mark
        if self._expects_key():
            raise _RefusedError(mark, path, "key_type", "a key cannot be a list or a mapping")
        if len(self._opened) >= MAX_DEPTH:
            raise _RefusedError(mark, path, "too_deep", f"nested more than {MAX_DEPTH} levels deep")
        _refuse_anchor_and_tag(event, path)
        value: Any = {} if isinstance(event, yaml.MappingStartEvent) else []
        self._opened.append(_Open(value, self._place(value, mark)))

    def close(self) -> None:
        self._opened.pop()

    def alias(self, event: Any) -> None:
        raise _RefusedError(
            event.start_mark, self._path(), "anchor", "aliases are not supported", "write it out"
        )

    def _path(self) -> Field:
        return self._opened[-1].path if self._opened else ()

    def _expects_key(self) -> bool:
        if not self._opened:
            return False
        top = self._opened[-1]
        return isinstance(top.value, dict) and top.key is _MISSING

    def _key(self, value: Any, event: Any) -> None:
        top = self._opened[-1]
        if not isinstance(value, str):
            message = f"the key `{event.value}` is not a string"
            raise _RefusedError(event.start_mark, top.path, "key_type", message, "put it in quotes")
        path = (*top.path, value)
        if value in top.value:
            message = f"the key `{value}` stands twice, first in line {self.document.keys[path].line}"
            raise _RefusedError(event.start_mark, path, "duplicate_key", message)
        top.key = value
        self.document.keys[path] = _position(event.start_mark)

    def _place(self, value: Any, mark: Any) -> Field:
        """Put `value` where it belongs; return its path."""
        if not self._opened:
            self.document.data = value
            path: Field = ()
        else:
            top = self._opened[-1]
            if isinstance(top.value, list):
                path = (*top.path, len(top.value))
                top.value.append(value)
            else:
                path = (*top.path, top.key)
                top.value[top.key] = value
                top.key = _MISSING
        self.document.values[path] = _position(mark)
        return path


@dataclass(slots=True)
class _Open:
    value: Any
    path: Field
    key: Any = _MISSING  # of a mapping: the key that waits for its value


def _documents(text: str, file: str) -> Iterator[Document]:
    builder = _Builder(file)
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.ScalarEvent):
            builder.scalar(event)
        elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            builder.open(event)
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            builder.close()
        elif isinstance(event, yaml.AliasEvent):
            builder.alias(event)
        elif isinstance(event, yaml.DocumentStartEvent):
            builder = _Builder(file)
        elif isinstance(event, yaml.DocumentEndEvent) and builder.document.data is not None:
            yield builder.document


def _refuse_anchor_and_tag(event: Any, path: Field) -> None:
    if event.anchor is not None:
        raise _RefusedError(event.start_mark, path, "anchor", "anchors are not supported", "write it out")
    if event.tag is not None and event.tag != "!":
        raise _RefusedError(event.start_mark, path, "tag", f"the tag `{event.tag}` is not supported")


def _scalar(event: Any, path: Field) -> Any:
    _refuse_anchor_and_tag(event, path)
    text = event.value
    if event.style:  # quoted or block: always a string
        return text
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    return _number(text) if text[0] in _NUMBER_START else text


def _number(text: str) -> Any:
    if _INTEGER.fullmatch(text):
        return int(text.replace("_", "")) if len(text) < 4000 else text
    if match := _PREFIXED_INTEGER.fullmatch(text):
        sign, kind, digits = match.groups()
        base = {"x": 16, "o": 8, "b": 2, "": 8}[kind]
        try:
            return int(sign + digits.replace("_", ""), base)
        except ValueError:
            return text
    if _SPECIAL_FLOAT.fullmatch(text):
        return float(text.lower().replace(".", "", 1))
    if any(digit in text for digit in "0123456789") and "." in text and _FLOAT.fullmatch(text):
        try:
            return float(text.replace("_", ""))
        except ValueError:
            return text
    return text
