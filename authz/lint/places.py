"""From a compiled rule back to the document, line and value that it came from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from authz.kinds import KINDS
from authz.policy.compile import without_lists
from authz.policy.documents import Resource
from garrison.documents import Diagnostic, Document, Field, Severity, format_field, validate

Kind = TypeVar("Kind", bound=Resource)


class Places:
    """The documents by title (`<kind> <namespace>/<name>`), which is what compiled rules carry."""

    def __init__(self, documents: Iterable[Document]) -> None:
        self._found: dict[str, tuple[Resource, Document]] = {}
        self._fields: dict[str, dict[str, Field]] = {}
        for document in without_lists(documents):
            resource = _resource(document)
            if resource is not None:
                self._found.setdefault(resource.title, (resource, document))

    def of_kind(self, kind: type[Kind]) -> Iterator[Kind]:
        """Yield every document of `kind`."""
        for resource, _ in self._found.values():
            if isinstance(resource, kind):
                yield resource

    def document(self, title: str) -> Document | None:
        """Return the document with that title; None for what was compiled from something else."""
        found = self._found.get(title)
        return found[1] if found else None

    def path(self, title: str, place: str) -> Field:
        """Return the path that a compiled rule spells as `place`, `()` when there is none."""
        fields = self._fields.get(title)
        if fields is None:
            document = self.document(title)
            known: Iterable[Field] = document.values if document else ()
            fields = self._fields[title] = {format_field(path): path for path in known}
        return fields.get(place, ())

    def element(self, title: str, place: str, value: str) -> Field:
        """Return the path of `value` in the list at `place`, that of the list if it is not in it."""
        path, document = self.path(title, place), self.document(title)
        items: Any = document.data if document else None
        for step in path:
            items = items[step]
        if isinstance(items, list):
            for index, item in enumerate(items):
                if isinstance(item, str) and item.lower() == value.lower():
                    return (*path, index)
        return path


def _resource(document: Document) -> Resource | None:
    data = document.data
    if not isinstance(data, dict):
        return None
    version, kind = data.get("apiVersion"), data.get("kind")
    model = KINDS.get((version, kind)) if isinstance(version, str) and isinstance(kind, str) else None
    found = validate(model, document) if model is not None else None
    return None if isinstance(found, list) else found


@dataclass(slots=True)
class Findings:
    """The warnings so far; a thing that many rules share, such as a binding, is reported once."""

    places: Places
    diagnostics: list[Diagnostic] = field(default_factory=list)
    _seen: set[tuple[str, Field, str, str]] = field(default_factory=set)

    def add(self, title: str, path: Field, code: str, message: str, help_: str = "") -> None:
        """Warn about the value at `path` of the document called `title`."""
        document = self.places.document(title)
        key = (title, path, code, message)
        if document is None or key in self._seen:
            return
        self._seen.add(key)
        self.diagnostics.append(
            Diagnostic(document.file, document.position(path), path, code, message, help_, Severity.WARNING)
        )

    def at(self, title: str, place: str, code: str, message: str, help_: str = "") -> None:
        """Warn about what a compiled rule calls `place`."""
        self.add(title, self.places.path(title, place), code, message, help_)


def titles(names: Sequence[str]) -> str:
    """Return names as they stand in messages."""
    return ", ".join(f"`{name}`" for name in names)
