"""`ca audit`: whether the audit log is whole, and what is in it."""

from __future__ import annotations

import re
from pathlib import Path

import click

from ca.audit import AuditHead
from ca.commands.base import EXIT_CODES, Parsed, dir_option, json_option, print_values
from ca.commands.ledger import ledger_option, open_ledger
from ca.store.opening import LedgerPlace

EXIT_BROKEN = 5

_HEAD = re.compile(r"([0-9]{1,18}):([0-9a-f]{64})")


def _parse_head(text: str) -> AuditHead:
    match = _HEAD.fullmatch(text)
    if match is None:
        raise ValueError(f"`{text}` is not a head such as `42:9f86…`, as `ca audit` prints it")
    return AuditHead(int(match[1]), match[2])


@click.command(epilog=f"{EXIT_CODES}\n  {EXIT_BROKEN}  the audit log is broken")
@dir_option
@click.option(
    "--head",
    "anchor",
    type=Parsed("head", _parse_head),
    help="A head that was written down: it has to be there.",
)
@click.option("--print", "printed", is_flag=True, help="Print every record too: a line of JSON each.")
@ledger_option
@json_option
@click.pass_context
def audit(
    context: click.Context,
    directory: Path,
    anchor: AuditHead | None,
    *,
    printed: bool,
    ledger: LedgerPlace,
    as_json: bool,
) -> None:
    """Verify the audit log from its first record, and print its head: write that down somewhere else.

    \b
    Example:
      ca audit --dir ./pki
    """
    with open_ledger(directory, ledger) as opened:
        verdict = opened.verify_audit(anchor)
        if printed:
            for record in opened.audit():
                click.echo(record.line)
    print_values(
        as_json,
        {
            "intact": verdict.intact,
            "records": verdict.head.sequence,
            "head": f"{verdict.head.sequence}:{verdict.head.hash}",
            "broken_at": verdict.broken_at,
            "problem": verdict.problem or None,
        },
    )
    if not verdict.intact:
        context.exit(EXIT_BROKEN)
