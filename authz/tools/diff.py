"""`garrison diff`: what a change of policies would have done to recorded calls."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import click

from authz.decision import Decision, Verdict
from authz.snapshot import Snapshot
from authz.tools.options import FAILED, FOUND, OK, fail, mesh_of, mesh_options, one_line, snapshot_of
from authz.tools.requests import Unreadable, answer, read_line


@dataclass(frozen=True, slots=True, order=True)
class Cause:
    """What decided before and after; sorts calls that are newly allowed first."""

    rank: int
    before: tuple[str, str, int, str]  # verdict, policy, rule, code
    after: tuple[str, str, int, str]

    @classmethod
    def of(cls, before: Decision, after: Decision) -> Cause:
        """Return the cause of the change from `before` to `after`."""
        rank = 0 if after.verdict is Verdict.ALLOW else 1
        return cls(rank, _deciding(before), _deciding(after))


def _deciding(decision: Decision) -> tuple[str, str, int, str]:
    return decision.verdict.value, decision.policy, decision.rule, decision.code.value


@dataclass(frozen=True, slots=True)
class Change:
    """A call whose verdict changes: its line, its `id`, and why before and after."""

    line: int
    identifier: Any
    before: Decision
    after: Decision

    @property
    def label(self) -> str:
        """What stands for the call in text: its `id`, else its line."""
        return f"line {self.line}" if self.identifier is None else str(self.identifier)


@dataclass(slots=True)
class Comparison:
    """All changes by cause, how many calls there were, and the lines that could not be read."""

    groups: dict[Cause, list[Change]] = field(default_factory=dict)
    calls: int = 0
    otherwise: int = 0  # the same verdict for another reason
    unreadable: list[tuple[int, str]] = field(default_factory=list)

    @property
    def changed(self) -> int:
        """How many calls change verdict."""
        return sum(map(len, self.groups.values()))

    def ordered(self) -> Iterable[tuple[Cause, list[Change]]]:
        """Return what is newly allowed first, then what is newly denied, large groups before small ones."""
        return sorted(self.groups.items(), key=lambda item: (item[0].rank, -len(item[1]), item[0]))


def compare(old: Snapshot, new: Snapshot, lines: Iterable[bytes], now: float) -> Comparison:
    """Decide every recorded call on both; `now`, in seconds since the epoch, is for lines without `at`."""
    result = Comparison()
    for number, line in enumerate(lines, 1):
        recorded = read_line(line)
        if isinstance(recorded, Unreadable):
            result.unreadable.append((number, recorded.reason))
            continue
        at = now if recorded.at is None else recorded.at
        try:
            before, after = answer(old, recorded.request, at), answer(new, recorded.request, at)
        except Exception as error:  # noqa: BLE001 - a bug in one call says nothing about the others
            result.unreadable.append((number, f"internal error: {type(error).__name__}"))
            continue
        result.calls += 1
        if before.verdict is not after.verdict:
            change = Change(number, recorded.identifier, before, after)
            result.groups.setdefault(Cause.of(before, after), []).append(change)
        elif _deciding(before) != _deciding(after):
            result.otherwise += 1
    return result


@click.command(
    epilog="""\b
REQUESTS are JSON lines as `garrison eval` takes them.

\b
Exit codes: 0 no verdict changes, 1 some do, 2 policies or a line of the recording cannot be used.

\b
Example:
  garrison diff policies/ policies.new/ --requests recorded.jsonl"""
)
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option("--requests", "requests_file", required=True, help="recorded calls; - is stdin")
@click.option(
    "--limit",
    type=click.IntRange(0),
    default=5,
    show_default=True,
    help="calls that are named for each cause, in text",
)
@click.option("--json", "as_json", is_flag=True, help="one JSON object instead of text")
@mesh_options
def diff(
    old: Path,
    new: Path,
    requests_file: str,
    limit: int,
    as_json: bool,  # noqa: FBT001 - a flag
    **options: Any,
) -> None:
    """Say which recorded calls change verdict from policies OLD to NEW, by cause, newly allowed first."""
    mesh = mesh_of(options)
    before, after = snapshot_of([old], mesh), snapshot_of([new], mesh)
    try:
        source: BinaryIO = sys.stdin.buffer if requests_file == "-" else Path(requests_file).open("rb")  # noqa: SIM115
    except OSError as error:
        fail(f"{requests_file}: {one_line(error)}")
    with source:
        result = compare(before, after, source, time.time())
    click.echo(json.dumps(_json(result), indent=2) if as_json else _text(result, limit))
    for number, reason in result.unreadable:
        click.echo(f"error: {requests_file}:{number}: {reason}", err=True)
    if result.unreadable:
        sys.exit(FAILED)
    sys.exit(FOUND if result.changed else OK)


def _text(result: Comparison, limit: int) -> str:
    lines = []
    for cause, changes in result.ordered():
        first = changes[0]
        lines += [
            f"{cause.before[0].upper()} -> {cause.after[0].upper()}: {len(changes)} calls",
            f"  before: {_by(first.before)}",
            f"  after:  {_by(first.after)}",
            *(f"    {change.label}" for change in changes[:limit]),
        ]
        if len(changes) > limit:
            lines.append(f"    and {len(changes) - limit} more")
    same = f", {result.otherwise} keep theirs for another reason" if result.otherwise else ""
    lines.append(f"{result.changed} of {result.calls} calls change verdict{same}")
    return "\n".join(lines)


def _by(decision: Decision) -> str:
    rule = f" rule {decision.rule}" if decision.rule >= 0 else ""
    return f"{decision.policy}{rule}: {decision.reason}" if decision.policy else decision.reason


def _json(result: Comparison) -> dict[str, Any]:
    return {
        "calls": result.calls,
        "changed": result.changed,
        "same_verdict_other_reason": result.otherwise,
        "unreadable": [{"line": number, "error": reason} for number, reason in result.unreadable],
        "causes": [
            {
                "before": _cause_json(cause.before),
                "after": _cause_json(cause.after),
                "calls": [
                    {
                        "id": change.identifier,
                        "line": change.line,
                        "before": change.before.reason,
                        "after": change.after.reason,
                    }
                    for change in changes
                ],
            }
            for cause, changes in result.ordered()
        ],
    }


def _cause_json(side: tuple[str, str, int, str]) -> dict[str, Any]:
    verdict, policy, rule, code = side
    return {
        "decision": verdict,
        "policy": policy or None,
        "rule": rule if rule >= 0 else None,
        "code": code,
    }
