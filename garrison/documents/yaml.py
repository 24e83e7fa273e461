"""YAML text -> plain data, and positions for those who ask.

Built from libyaml's events rather than its node tree: aliases are refused before anything is expanded, and
nesting costs no recursion. Two readers share one set of rules. `_build` is a tight loop that keeps data only;
what it refuses, and where something stands in a document that it took, `_Locator` finds by reading that one
document again.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from yaml import (
    AliasEvent,
    DocumentEndEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

from garrison.documents.diagnostic import Diagnostic, Field, Position
from garrison.documents.document import Document, Positions
from garrison.documents.scalars import resolve_plain

# A policy is four to eight levels deep; libyaml itself would go on for as long as memory lasts.
MAX_DEPTH = 64
# The largest single file that is read. 100,000 roles are about 30 MB.
MAX_FILE_BYTES = 64 * 1024 * 1024

# Documents repeat themselves: equal scalars of one file share one object, up to this many different ones.
_MAX_SHARED = 4096
_DECODED_AT_ONCE = 256 * 1024
# Mappings from numbers, which Kubernetes' readers turn into strings too: Istio's own examples have them bare.
_NUMBERED = frozenset({"portLevelMtls"})
_MISSING: Any = object()


class _RefusedError(Exception):
    """Something that is YAML but that documents here may not hold."""

    def __init__(self, position: Position, path: Field, code: str, message: str, help_: str = "") -> None:
        super().__init__(message)
        self.position = position
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
        message = f"the file is larger than the {MAX_FILE_BYTES} bytes that are read"
        return documents, [Diagnostic(file, Position(1, 1), (), "file_too_large", message)]
    try:
        decoded = _decode(text)
    except UnicodeDecodeError as error:
        position = _byte_position(text, error.start)
        return documents, [Diagnostic(file, position, (), "encoding", "the file is not valid UTF-8")]
    try:
        documents.extend(_documents(text, decoded, file))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = error.problem or error.context or "not valid YAML"
        at_tab = mark is not None and decoded[mark.index : mark.index + 1] == "\t"
        hint = "indent with spaces, not tabs" if at_tab else ""
        position = Position(mark.line + 1, mark.column + 1) if mark is not None else Position(1, 1)
        return documents, [Diagnostic(file, position, (), "yaml_syntax", message, hint)]
    except yaml.YAMLError as error:
        offset = getattr(error, "position", None)
        position = _byte_position(text, offset) if isinstance(offset, int) else Position(1, 1)
        return documents, [
            Diagnostic(file, position, (), "yaml_syntax", "a character that YAML does not allow")
        ]
    except _RefusedError as refused:
        diagnostic = Diagnostic(
            file, refused.position, refused.path, refused.code, refused.message, refused.help
        )
        return documents, [diagnostic]
    return documents, []


def _decode(text: bytes) -> str:
    """Return `text` without its byte order mark; in steps, as a step keeps other threads waiting."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    start = len(codecs.BOM_UTF8) if text.startswith(codecs.BOM_UTF8) else 0
    pieces = []
    for begin in range(start, len(text), _DECODED_AT_ONCE):
        piece = text[begin : begin + _DECODED_AT_ONCE]
        try:
            pieces.append(decoder.decode(piece, final=begin + len(piece) == len(text)))
        except UnicodeDecodeError as error:
            # The decoder may have kept up to three bytes of the piece before.
            at = begin + len(piece) - len(error.object) + error.start
            raise UnicodeDecodeError("utf-8", text, at, at + 1, error.reason) from None
    return "".join(pieces)


def _byte_position(text: bytes, offset: int) -> Position:
    start = len(codecs.BOM_UTF8) if text.startswith(codecs.BOM_UTF8) else 0
    line = text.count(b"\n", start, offset) + 1
    begin = max(text.rfind(b"\n", start, offset) + 1, start)
    return Position(line, len(text[begin:offset].decode(errors="replace")) + 1)


class _Chunks:
    """Gives libyaml its text bit by bit.

    Every call of `read` is a point at which another thread may take over: libyaml scans 16 kB without one,
    but a long scalar read from one string would stop the event loop for as long as it is.
    """

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._at = 0

    def read(self, size: int) -> bytes:
        begin = self._at
        self._at = begin + size
        return self._text[begin : self._at]


def _events(text: bytes) -> Callable[[], Any]:
    # Not `yaml.parse`: its generator asks twice for each event.
    get_event: Callable[[], Any] = yaml.CSafeLoader(_Chunks(text)).get_event  # type: ignore[arg-type]
    return get_event


def _documents(text: bytes, decoded: str, file: str) -> Iterator[Document]:
    get_event = _events(text)
    shared: tuple[dict[str, Any], dict[str, str]] = ({}, {})
    while type(event := get_event()) is not StreamEndEvent:
        if type(event) is not DocumentStartEvent:
            continue
        start: Any = event.start_mark
        indent = " " * start.column
        try:
            data = _build(get_event, *shared)
        except _RefusedError:
            _Locator(start.line).read(indent + decoded[start.index :])  # raises the same, with its place
            raise
        end: Any = get_event().end_mark
        if data is not None:
            yield Document(file, data, source=_Passage(indent + decoded[start.index : end.index], start.line))


def _build(get_event: Callable[[], Any], plain: dict[str, Any], quoted: dict[str, str]) -> Any:  # noqa: C901, PLR0912, PLR0915 - one loop over millions of events: a call for each would double its time
    """Return the data of the next node; `plain` and `quoted` remember scalars that were read before."""
    current: Any = []  # the root is the only item of a list around it
    opened: list[Any] = []
    is_mapping = False
    key = value = _MISSING
    while True:
        event = get_event()
        kind = type(event)
        if kind is ScalarEvent:
            if event.anchor is not None or (event.tag is not None and event.tag != "!"):
                raise _refused()
            text = event.value
            if event.style:  # quoted or block: always a string
                value = quoted.get(text)
                if value is None:
                    if len(quoted) >= _MAX_SHARED:
                        quoted.clear()
                    value = quoted[text] = text
            else:
                value = plain.get(text, _MISSING)
                if value is _MISSING:
                    if len(plain) >= _MAX_SHARED:
                        plain.clear()
                    value = plain[text] = resolve_plain(text)
            if not is_mapping:
                if not opened:
                    return value
                current.append(value)
            elif key is _MISSING:
                if type(value) is not str and _is_number(value, text) and _is_numbered(opened[-1]):
                    value = text
                if type(value) is not str or value in current:
                    raise _refused()
                key = value
            else:
                current[key] = value
                key = _MISSING
        elif kind is MappingEndEvent or kind is SequenceEndEvent:
            value, current = current, opened.pop()
            if not opened:
                return value
            is_mapping = type(current) is dict
        elif kind is MappingStartEvent or kind is SequenceStartEvent:
            if event.anchor is not None or (event.tag is not None and event.tag != "!"):
                raise _refused()
            if len(opened) >= MAX_DEPTH:
                raise _refused()
            value = {} if kind is MappingStartEvent else []
            if not is_mapping:
                current.append(value)
            elif key is _MISSING:
                raise _refused()
            else:
                current[key] = value
                key = _MISSING
            opened.append(current)
            current = value
            is_mapping = kind is MappingStartEvent
        else:  # an alias
            raise _refused()


def _is_number(value: Any, text: str) -> bool:
    return type(value) is int and text == str(value)


def _is_numbered(holder: Any) -> bool:
    """Return whether the mapping that was opened last in `holder` has numbers for keys."""
    return type(holder) is dict and next(reversed(holder)) in _NUMBERED


def _refused() -> _RefusedError:
    return _RefusedError(Position(1, 1), (), "refused", "this is not supported")


@dataclass(slots=True)
class _Passage:
    """A part of a file that is YAML by itself; its first line is `line`, from 0.

    Where it starts within a line, spaces stand for what is before it: so columns stay what they are.
    """

    text: str
    line: int
    _children: dict[Field, Children] | None = None

    def positions(self) -> Positions:
        """Return where everything stands, by reading the text again."""
        locator = _Locator(self.line)
        locator.read(self.text)
        return locator.values, locator.keys

    def written(self) -> Any:
        """Return the data with every scalar as it is written."""
        return yaml.load(self.text, Loader=yaml.CBaseLoader)  # noqa: S506 - strings, lists and mappings only

    def part(self, path: Field) -> _Part:
        """Return the passage of the value at `path`, cut out when it is needed."""
        return _Part(self, path)

    def cut(self, path: Field) -> _Passage:
        """Return the passage of the value at `path`; one reading finds all its neighbours too."""
        if self._children is None:
            self._children = {}
        if path[:-1] not in self._children:
            self._children[path[:-1]] = _find_children(self.text, path[:-1])
        begin, end, line, column = self._children[path[:-1]][path[-1]]
        return _Passage(" " * column + self.text[begin:end], self.line + line)


@dataclass(slots=True)
class _Part:
    """The value at `path` of a passage."""

    whole: _Passage
    path: Field

    def positions(self) -> Positions:
        """Return where everything in it stands."""
        return self.whole.cut(self.path).positions()

    def written(self) -> Any:
        """Return the data of it with every scalar as it is written."""
        return self.whole.cut(self.path).written()

    def part(self, path: Field) -> _Part:
        """Return the value at `path` within this one."""
        return _Part(self.whole, (*self.path, *path))


# Of each value in a collection: begin and end in the text, line and column, all from 0.
Children = dict[str | int, tuple[int, int, int, int]]


def _find_children(text: str, path: Field) -> Children:
    """Return where the values directly in the collection at `path` stand."""
    get_event = _events(text.encode())
    while type(get_event()) is not DocumentStartEvent:
        pass
    event = get_event()
    for step in path:
        for name, first in _entries(get_event, event):
            if name == step:
                event = first
                break
            _last(get_event, first)
    children: Children = {}
    for name, first in _entries(get_event, event):
        mark = first.start_mark
        children[name] = (mark.index, _last(get_event, first).end_mark.index, mark.line, mark.column)
    return children


def _entries(get_event: Callable[[], Any], opened: Any) -> Iterator[tuple[str | int, Any]]:
    """Yield key or index, and first event, of each value in a collection; the rest of it is the caller's."""
    index = 0
    while type(first := get_event()) not in (MappingEndEvent, SequenceEndEvent):
        if type(opened) is MappingStartEvent:
            yield first.value, get_event()
        else:
            yield index, first
            index += 1


def _last(get_event: Callable[[], Any], first: Any) -> Any:
    """Return the last event of the value that starts with `first`."""
    event = first
    depth = 0
    while True:
        kind = type(event)
        if kind is MappingStartEvent or kind is SequenceStartEvent:
            depth += 1
        elif kind is MappingEndEvent or kind is SequenceEndEvent:
            depth -= 1
        if not depth:
            return event
        event = get_event()


class _Locator:
    """Reads one document and keeps positions, and says exactly what may not stand in it."""

    def __init__(self, line: int) -> None:
        self.values: dict[Field, Position] = {}
        self.keys: dict[Field, Position] = {}
        self._line = line + 1
        self._opened: list[_Open] = []

    def read(self, text: str) -> None:
        """Read the first document of `text`."""
        get_event = _events(text.encode())
        while type(event := get_event()) not in (DocumentEndEvent, StreamEndEvent):
            if isinstance(event, ScalarEvent):
                self._scalar(event)
            elif isinstance(event, MappingStartEvent | SequenceStartEvent):
                self._open(event)
            elif isinstance(event, MappingEndEvent | SequenceEndEvent):
                self._opened.pop()
            elif isinstance(event, AliasEvent):
                raise self._refusal(
                    event, self._path(), "anchor", "aliases are not supported", "write it out"
                )

    def _scalar(self, event: Any) -> None:
        self._refuse_anchor_and_tag(event)
        if self._expects_key():
            self._key(event.value if event.style else resolve_plain(event.value), event)
        else:
            self._place(event)

    def _open(self, event: Any) -> None:
        if self._expects_key():
            raise self._refusal(event, self._path(), "key_type", "a key cannot be a list or a mapping")
        if len(self._opened) >= MAX_DEPTH:
            message = f"nested more than {MAX_DEPTH} levels deep"
            raise self._refusal(event, self._path(), "too_deep", message)
        self._refuse_anchor_and_tag(event)
        path = self._place(event)
        self._opened.append(_Open(path, set() if isinstance(event, MappingStartEvent) else None))

    def _path(self) -> Field:
        return self._opened[-1].path if self._opened else ()

    def _expects_key(self) -> bool:
        return bool(self._opened) and self._opened[-1].names is not None and self._opened[-1].key is None

    def _key(self, value: Any, event: Any) -> None:
        top = self._opened[-1]
        if top.path and top.path[-1] in _NUMBERED and _is_number(value, event.value):
            value = event.value
        if not isinstance(value, str) or top.names is None:
            message = f"the key `{event.value}` is not a string"
            raise self._refusal(event, top.path, "key_type", message, "put it in quotes")
        path = (*top.path, value)
        if value in top.names:
            message = f"the key `{value}` stands twice, first in line {self.keys[path].line}"
            raise self._refusal(event, path, "duplicate_key", message)
        top.names.add(value)
        top.key = value
        self.keys[path] = self._position(event)

    def _place(self, event: Any) -> Field:
        """Note where the value that starts with `event` stands; return its path."""
        path: Field = ()
        if self._opened:
            top = self._opened[-1]
            if top.names is None:
                path = (*top.path, top.size)
                top.size += 1
            elif top.key is not None:
                path = (*top.path, top.key)
                top.key = None
        self.values[path] = self._position(event)
        return path

    def _position(self, event: Any) -> Position:
        mark = event.start_mark
        return Position(self._line + mark.line, mark.column + 1)

    def _refuse_anchor_and_tag(self, event: Any) -> None:
        if event.anchor is not None:
            raise self._refusal(event, self._path(), "anchor", "anchors are not supported", "write it out")
        if event.tag is not None and event.tag != "!":
            raise self._refusal(event, self._path(), "tag", f"the tag `{event.tag}` is not supported")

    def _refusal(self, event: Any, path: Field, code: str, message: str, help_: str = "") -> _RefusedError:
        return _RefusedError(self._position(event), path, code, message, help_)


@dataclass(slots=True)
class _Open:
    """A collection that is still open: the keys of a mapping, or the number of items of a list."""

    path: Field
    names: set[str] | None
    key: str | None = None  # the key that waits for its value
    size: int = 0
