"""`garrison check` and `eval`: decisions without any server."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

import click

from authz.decision import Explanation
from authz.snapshot import Snapshot
from authz.tools.options import (
    FOUND,
    OK,
    fail,
    mesh_of,
    mesh_options,
    one_line,
    policies_option,
    snapshot_of,
)
from authz.tools.requests import (
    Unreadable,
    answer,
    decision_json,
    explained,
    explanation_json,
    explanation_text,
    parse_request,
    read_line,
)


@click.command(
    epilog="""\b
Exit codes: 0 allowed, 1 denied, 2 the policies or the request cannot be used.

\b
Example:
  garrison check --policies policies/ --request request.json --explain"""
)
@policies_option
@click.argument("more_policies", nargs=-1, type=click.Path(path_type=Path))
@click.option("--request", "request_file", required=True, help="a CheckRequest as protobuf JSON; - is stdin")
@click.option("--explain", is_flag=True, help="show every rule that was considered, and why not")
@click.option("--json", "as_json", is_flag=True, help="one JSON object instead of text")
@mesh_options
def check(
    policies: tuple[Path, ...],
    more_policies: tuple[Path, ...],
    request_file: str,
    explain: bool,  # noqa: FBT001 - a flag
    as_json: bool,  # noqa: FBT001 - a flag
    **options: Any,
) -> None:
    """Decide one CheckRequest and say which document, rule and field decided."""
    snapshot = snapshot_of([*policies, *more_policies], mesh_of(options))
    try:
        text = sys.stdin.buffer.read() if request_file == "-" else Path(request_file).read_bytes()
        request = parse_request(json.loads(text.decode()))
    except (OSError, ValueError, RecursionError) as error:
        fail(f"{request_file}: {one_line(error)}")
    if explain:
        explanation = explained(snapshot, request, time.time())
    else:
        explanation = Explanation(answer(snapshot, request, time.time()))
    decision = explanation.decision
    click.echo(json.dumps(explanation_json(explanation)) if as_json else explanation_text(explanation))
    sys.exit(OK if decision.allowed else FOUND)


@click.command(
    name="eval",
    epilog="""\b
One JSON object a line in: {"id": ..., "request": <CheckRequest as protobuf JSON>, "at": <RFC 3339, optional>}
One a line out, in order:  {"id", "decision", "http_status", "policy", "rule", "reason"} or {"id", "error"}

\b
Exit codes: 0 every line was answered, 2 the policies or the file cannot be used.

\b
Example:
  garrison eval --policies policies/ --requests recorded.jsonl""",
)
@policies_option
@click.argument("more_policies", nargs=-1, type=click.Path(path_type=Path))
@click.option("--requests", "requests_file", required=True, help="JSON lines; - is stdin")
@mesh_options
def evaluate_lines(
    policies: tuple[Path, ...], more_policies: tuple[Path, ...], requests_file: str, **options: Any
) -> None:
    """Decide many CheckRequests, one JSON line each; a line that cannot be read gets an error line."""
    snapshot = snapshot_of([*policies, *more_policies], mesh_of(options))
    try:
        source: BinaryIO = sys.stdin.buffer if requests_file == "-" else Path(requests_file).open("rb")  # noqa: SIM115
    except OSError as error:
        fail(f"{requests_file}: {one_line(error)}")
    with source:
        for line in source:
            click.echo(json.dumps(_answer_line(snapshot, line)))


def _answer_line(snapshot: Snapshot, line: bytes) -> dict[str, Any]:
    recorded = read_line(line)
    if isinstance(recorded, Unreadable):
        return {"id": recorded.identifier, "error": recorded.reason}
    try:
        now = time.time() if recorded.at is None else recorded.at
        decision = answer(snapshot, recorded.request, now)
    except Exception as error:  # noqa: BLE001 - a bug must not cost the lines after it; it is no verdict
        return {"id": recorded.identifier, "error": f"internal error: {type(error).__name__}"}
    return {"id": recorded.identifier, **decision_json(decision)}
