"""Files and folders of YAML, in a fixed order."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from garrison.documents.diagnostic import Diagnostic, Position
from garrison.documents.document import Document
from garrison.documents.yaml import parse

SUFFIXES = frozenset({".yaml", ".yml", ".json"})


def find_files(paths: Iterable[Path]) -> list[Path]:
    """Return the files that `paths` stand for: a file is itself, a folder every YAML or JSON file below it.

    Names that start with a dot are left out of folders: editors and Kubernetes volumes keep copies there.
    The order is that of `paths`, then by name, and no file comes twice.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            for file in sorted(path.rglob("*")):
                hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
                if file.suffix in SUFFIXES and not hidden and file.is_file():
                    found[file] = None
        else:
            found[path] = None
    return list(found)


def load(paths: Iterable[Path]) -> tuple[list[Document], list[Diagnostic]]:
    """Return the documents of all files below `paths`, and a diagnostic for each file that is unreadable."""
    documents: list[Document] = []
    diagnostics: list[Diagnostic] = []
    for path in find_files(paths):
        try:
            text = path.read_bytes()
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            diagnostics.append(
                Diagnostic(str(path), Position(1, 1), (), "unreadable", f"cannot be read: {reason}")
            )
            continue
        parsed, problems = parse(text, str(path))
        documents += parsed
        diagnostics += problems
    return documents, diagnostics
