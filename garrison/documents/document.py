"""One YAML document: its data, and, when somebody asks, where each part of it stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from garrison.documents.diagnostic import Diagnostic, Field, Position

Derived = TypeVar("Derived")

# Where values stand, and where the keys before them do; the root's path is `()`.
Positions = tuple[Mapping[Field, Position], Mapping[Field, Position]]


class Source(Protocol):
    """The text a document came from. Reading positions from it costs as much as parsing it."""

    def positions(self) -> Positions:
        """Return the positions of all values and keys."""

    def part(self, path: Field) -> Source:
        """Return the text of the value at `path`."""

    def written(self) -> Any:
        """Return the data with every scalar as it is written: `010`, not 8."""


class Document:
    """Plain data from one file, not to be changed, with positions that are worked out on demand.

    Nearly all documents are right, and then nobody asks where anything stands: positions would take most of
    the time and memory of loading. `part` and `derived` remember their answers, for documents that are kept.
    """

    __slots__ = ("__weakref__", "_derived", "_parts", "_positions", "_source", "data", "file")

    def __init__(
        self,
        file: str,
        data: Any,
        values: Mapping[Field, Position] | None = None,
        keys: Mapping[Field, Position] | None = None,
        *,
        source: Source | None = None,
    ) -> None:
        """`source` gives positions later; without it they are those in `values` and `keys`."""
        self.file = file
        self.data = data
        self._source = source
        self._positions: Positions | None = (values or {}, keys or {}) if source is None else None
        self._parts: dict[Field, Document] | None = None
        self._derived: tuple[object, Any] | None = None

    @property
    def values(self) -> Mapping[Field, Position]:
        """Path of a value -> where its first character stands."""
        return self._locate()[0]

    @property
    def keys(self) -> Mapping[Field, Position]:
        """Path of a value in a mapping -> where the key before it stands."""
        return self._locate()[1]

    def _locate(self) -> Positions:
        if self._positions is None:
            self._positions = self._source.positions() if self._source is not None else ({}, {})
        return self._positions

    def position(self, path: Field) -> Position:
        """Return where the value at `path` stands, or its nearest enclosing value."""
        values = self.values
        while path and path not in values:
            path = path[:-1]
        return values.get(path, Position(1, 1))

    def error(self, path: Field, code: str, message: str, help: str = "") -> Diagnostic:  # noqa: A002
        """Return a diagnostic at the value at `path`."""
        return Diagnostic(self.file, self.position(path), path, code, message, help)

    def written(self) -> Any:
        """Return the data with every scalar as it is written, as far as the text is known."""
        return self.data if self._source is None else self._source.written()

    def read_as(self, data: Any) -> Document:
        """Return the same document with `data`, which has the same shape."""
        values, keys = self._positions or (None, None)
        return Document(self.file, data, values, keys, source=self._source)

    def part(self, path: Field) -> Document:
        """Return the value at `path` as a document of its own, in the same file; always the same object."""
        if not path:
            return self
        if self._parts is None:
            self._parts = {}
        found = self._parts.get(path)
        if found is None:
            data = self.data
            for step in path:
                data = data[step]
            found = self._parts[path] = self._cut(path, data)
        return found

    def _cut(self, path: Field, data: Any) -> Document:
        if self._source is not None:
            return Document(self.file, data, source=self._source.part(path))
        size = len(path)
        values, keys = self._locate()
        return Document(
            self.file,
            data,
            {where[size:]: at for where, at in values.items() if where[:size] == path},
            {where[size:]: at for where, at in keys.items() if where[:size] == path and len(where) > size},
        )

    def derived(self, key: object, make: Callable[[], Derived]) -> Derived:
        """Return what `make` gave the first time it was asked for under `key`; one answer is remembered.

        For what is worth more than the memory it takes: validating 100,000 roles costs 0.4 s, keeping the
        models 360 MB.
        """
        if self._derived is None or self._derived[0] != key:
            self._derived = (key, make())
        answer: Derived = self._derived[1]
        return answer
