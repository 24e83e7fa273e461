"""One problem in a document, and how it prints."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

Field = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """Where something stands in a file; both count from 1, columns in characters."""

    line: int
    column: int


class Severity(StrEnum):
    """Whether a document can be used in spite of the problem."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """A problem: where, in which field, what is wrong and what would be right.

    `code` is stable (`unknown_field`, `string_type`, …); `message` starts in lower case and has no full
    stop; user input in it stands in backticks.
    """

    file: str
    position: Position
    field: Field
    code: str
    message: str
    help: str = ""
    severity: Severity = Severity.ERROR

    def __str__(self) -> str:
        where = f"{self.file}:{self.position.line}:{self.position.column}"
        field = f" {format_field(self.field)}:" if self.field else ""
        warning = " warning:" if self.severity is Severity.WARNING else ""
        hint = f" ({self.help})" if self.help else ""
        return f"{where}:{warning}{field} {self.message}{hint} [{self.code}]"

    def as_json(self) -> dict[str, str | int]:
        """Return the diagnostic as JSON data, for machines."""
        return {
            "file": self.file,
            "line": self.position.line,
            "column": self.position.column,
            "field": format_field(self.field),
            "code": self.code,
            "severity": self.severity.value,
            "message": self.message,
            "help": self.help,
        }


def format_field(field: Field) -> str:
    """Return `('spec', 'rules', 0, 'methods')` as `spec.rules[0].methods`."""
    text = ""
    for part in field:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part and all(character.isalnum() or character in "_-" for character in part):
            text += f".{part}" if text else part
        else:
            text += f"[{part!r}]"
    return text
