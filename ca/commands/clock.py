"""The clock of every command, and `ca clock`: whether it can be right, by what the CA knows."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from ca.audit import AuditEvent, AuditHead, clock_problem
from ca.authority import CaCertificates
from ca.commands.base import EXIT_CODES, EXIT_REFUSED, dir_option, json_option, print_values
from ca.commands.ledger import ledger_option, open_ledger, operator
from ca.issuer import check_validity
from ca.store.opening import LedgerPlace
from garrison.errors import IssuanceError


def now() -> datetime:
    """Return the time: the one place where commands read a clock."""
    return datetime.now(UTC)


@click.command("clock", epilog=EXIT_CODES)
@dir_option
@click.option("--accept", is_flag=True, help="The clock is right and newer records are not: go on from now.")
@ledger_option
@json_option
@click.pass_context
def clock_command(
    context: click.Context, directory: Path, *, accept: bool, ledger: LedgerPlace, as_json: bool
) -> None:
    """Say whether this machine's clock can be right, by the CA's certificate and the newest record.

    A clock that is behind the newest record by more than 5 minutes issues nothing, and neither does one by
    which the CA is not valid yet, or expired: exit code 3. A clock that is ahead cannot be told from a right
    one. --accept is for records of a clock that was ahead: it is recorded, and who did it.

    \b
    Example:
      ca clock --dir ./pki
    """
    certificate, at = CaCertificates.load(directory).certificate, now()
    with open_ledger(directory, ledger) as opened:
        head = opened.audit_head()
        problem = clock_problem(head, at)
        if accept and problem:
            about = {"newest_record": head.time}
            opened.append_audit(AuditEvent.CLOCK_ACCEPTED, now=at, by=operator(), details=about)
            problem = ""
    problem = problem or _problem_of(certificate, at)
    print_values(as_json, _plain(head, at, problem))
    if problem:
        context.exit(EXIT_REFUSED)


def _problem_of(certificate: Any, at: datetime) -> str:
    try:
        check_validity(certificate, at)
    except IssuanceError as error:
        return str(error)
    return ""


def _plain(head: AuditHead, at: datetime, problem: str) -> dict[str, Any]:
    return {"now": f"{at:%FT%TZ}", "newest_record": head.time or None, "problem": problem or None}
