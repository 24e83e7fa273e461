"""`garrison lint`: every problem of every file, as text, JSON lines or SARIF."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from authz.lint import lint_policies
from authz.policy.compile import MeshSettings, compile_policies
from authz.policy.rules import PolicySet
from authz.tools.options import FOUND, OK, mesh_of, mesh_options
from authz.tools.sarif import sarif
from garrison.documents import Diagnostic, Document, Severity, load

# Lints documents of other kinds (rate limits); `garrison.cli` fills it, authz knows only policies.
OtherLinter = Callable[[list[Document]], tuple[list[Document], list[Diagnostic]]]
other_linters: list[OtherLinter] = []
# Lints policies together with documents of other kinds, once there are no errors; filled like the above.
CrossLinter = Callable[[list[Document], PolicySet], list[Diagnostic]]
cross_linters: list[CrossLinter] = []


@click.command(
    epilog="""\b
What each code means, with an example: docs/lint.md.

\b
Exit codes: 0 nothing found, 1 problems found, 2 usage.

\b
Example:
  garrison lint policies/ limits/
  garrison lint --format sarif policies/ > lint.sarif"""
)
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--format",
    "output",
    type=click.Choice(["text", "json", "sarif"]),
    default="text",
    show_default=True,
    help="json is one object a problem and line",
)
@click.option("--json", "as_json", is_flag=True, help="the same as --format json")
@click.option("--ignore", metavar="CODE", multiple=True, help="leave out warnings with this code; repeatable")
@mesh_options
def lint(
    paths: tuple[Path, ...],
    output: str,
    as_json: bool,  # noqa: FBT001 - a flag
    ignore: tuple[str, ...],
    **options: Any,
) -> None:
    """Report every problem in policy and rate-limit files with file, line, column and field.

    Of Envoy's own configuration it reports what is known to crash Envoy.

    Errors keep policies from being loaded. Warnings are about what is allowed and probably not meant; they
    are looked for once there are no errors.
    """
    problems = find_problems(paths, mesh_of(options), ignore)
    click.echo(_FORMATS["json" if as_json else output](problems), nl=False)
    sys.exit(FOUND if problems else OK)


def find_problems(
    paths: Iterable[Path], mesh: MeshSettings, ignored_warnings: Iterable[str] = ()
) -> list[Diagnostic]:
    """Return every problem of every file below `paths`, in the order of files and lines."""
    every, problems = load(paths)
    documents = every
    for linter in other_linters:
        documents, found = linter(documents)
        problems += found
    policies, found = compile_policies(documents, mesh)
    problems += found
    if policies is not None:
        problems += lint_policies(documents, mesh, policies)
        for cross in cross_linters:
            problems += cross(every, policies)
    left_out = frozenset(ignored_warnings)
    return sorted(
        (one for one in problems if one.severity is Severity.ERROR or one.code not in left_out),
        key=lambda one: (one.file, one.position, one.field, one.code),
    )


def _text(problems: Sequence[Diagnostic]) -> str:
    return "".join(f"{problem}\n" for problem in problems) or "no problems\n"


def _json(problems: Sequence[Diagnostic]) -> str:
    return "".join(f"{json.dumps(problem.as_json())}\n" for problem in problems)


def _sarif(problems: Sequence[Diagnostic]) -> str:
    return json.dumps(sarif(problems, version("garrison")), indent=2) + "\n"


_FORMATS: dict[str, Callable[[Sequence[Diagnostic]], str]] = {"text": _text, "json": _json, "sarif": _sarif}
