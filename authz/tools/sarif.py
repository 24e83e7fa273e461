"""Diagnostics as SARIF 2.1.0 (OASIS), which code hosts and editors show beside the lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from garrison.documents import Diagnostic, format_field

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/os/schemas/sarif-schema-2.1.0.json"


def sarif(problems: Sequence[Diagnostic], version: str) -> dict[str, Any]:
    """Return one run of `garrison lint` with a result for each of `problems`."""
    codes = sorted({problem.code for problem in problems})
    rules = [{"id": code, "help": {"text": f"docs/lint.md, section `{code}`"}} for code in codes]
    return {
        "$schema": _SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": {"name": "garrison lint", "version": version, "rules": rules}},
                # Section 3.14.17: columns are counted in characters, not in UTF-16 code units.
                "columnKind": "unicodeCodePoints",
                "results": [_result(problem, codes.index(problem.code)) for problem in problems],
            }
        ],
    }


def _result(problem: Diagnostic, rule: int) -> dict[str, Any]:
    region = {"startLine": problem.position.line, "startColumn": problem.position.column}
    location: dict[str, Any] = {
        "physicalLocation": {"artifactLocation": {"uri": _uri(problem.file)}, "region": region}
    }
    if problem.field:
        location["logicalLocations"] = [{"fullyQualifiedName": format_field(problem.field)}]
    hint = f" ({problem.help})" if problem.help else ""
    return {
        "ruleId": problem.code,
        "ruleIndex": rule,
        "level": problem.severity.value,  # `error` and `warning` are SARIF's words, too
        "message": {"text": f"{problem.message}{hint}"},
        "locations": [location],
    }


def _uri(file: str) -> str:
    """Section 3.4.3: relative to the repository where possible, as the command line named it."""
    path = PurePath(file)
    if path.is_absolute():
        return path.as_uri()
    return PurePath("/", path).as_uri().removeprefix("file:///")
