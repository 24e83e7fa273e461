"""`garrison test`: unit tests for policies."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import click

from authz.policy.compile import MeshSettings
from authz.suites import Coverage, Result, Suite, load_suites, run_case
from authz.suites.report import coverage_report, json_report, junit_report, text_report
from authz.tools.options import FOUND, OK, fail, mesh_of, mesh_options, one_line, snapshot_of
from garrison.documents import load
from garrison.errors import ConfigError


@click.command(
    name="test",
    epilog="""\b
What stands in the files: docs/reference/policy-tests.md.

\b
Exit codes: 0 everything as expected, 1 a case failed or too little is covered,
2 a suite or its policies cannot be used, or no case was run.

\b
Example:
  garrison test tests/policies/ --threshold 90 --junit report.xml""",
)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--policies",
    type=click.Path(path_type=Path),
    multiple=True,
    help="test these instead of what the suites name; repeatable",
)
@click.option(
    "--filter",
    "filters",
    metavar="TEXT",
    multiple=True,
    help="only cases with TEXT in SUITE/CASE, or that fit it with * and ?; repeatable",
)
@click.option("--verbose", "-v", is_flag=True, help="explain cases that pass, too")
@click.option("--coverage", "covered", is_flag=True, help="list the rules that no case made match")
@click.option(
    "--threshold",
    type=click.IntRange(0, 100),
    metavar="PERCENT",
    help="fail if fewer of the rules are covered",
)
@click.option("--junit", type=click.Path(path_type=Path), metavar="FILE", help="write JUnit XML as well")
@click.option("--json", "as_json", is_flag=True, help="one JSON object instead of text")
@mesh_options
def run_suites(
    *,
    files: tuple[Path, ...],
    policies: tuple[Path, ...],
    filters: tuple[str, ...],
    verbose: bool,
    covered: bool,
    threshold: int | None,
    junit: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Decide the calls in suite FILES and compare with what they should come to."""
    try:
        suites = load_suites(files, mesh_of(options))
    except ConfigError as error:
        fail(str(error))
    coverage = Coverage()
    results = [
        result for suite in suites for result in _run(suite, policies or suite.policies, filters, coverage)
    ]
    if not results:
        fail("no case was run")
    if junit is not None:
        try:
            junit.write_bytes(junit_report(results))
        except OSError as error:
            fail(f"{junit}: {one_line(error)}")
    shown = coverage if covered or threshold is not None else None
    _print(results, shown, verbose=verbose, as_json=as_json)
    enough = threshold is None or coverage.reaches(threshold)
    if not enough and not as_json:
        click.echo(f"fewer than {threshold} % are covered")
    sys.exit(OK if enough and all(result.passed for result in results) else FOUND)


def _run(suite: Suite, policies: Sequence[Path], filters: Sequence[str], coverage: Coverage) -> list[Result]:
    if not policies:
        fail(f"suite {suite.name} names no policies: write `policies: [...]` or give --policies")
    mesh: MeshSettings = suite.mesh
    snapshot = snapshot_of(policies, mesh)
    files = coverage.expect(snapshot, load(policies)[0])
    results = []
    for case in suite.cases:
        if filters and not any(text in case.title or fnmatchcase(case.title, text) for text in filters):
            continue
        result = run_case(snapshot, case)
        coverage.count(result, files)
        results.append(result)
    return results


def _print(results: Sequence[Result], coverage: Coverage | None, *, verbose: bool, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(json_report(results, coverage), indent=2))
        return
    for line in text_report(results, verbose=verbose):
        click.echo(line)
    if coverage is not None:
        for line in coverage_report(coverage):
            click.echo(line)
