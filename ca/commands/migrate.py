"""`ca ledger`: move a ledger from one store to another, and forget what ended long ago."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import click

from ca.audit import AuditHead, ClockError, clock_problem
from ca.authority import CA_CERT, trust_domain_of
from ca.commands import clock
from ca.commands.base import (
    DURATION,
    EXIT_CODES,
    EXIT_REFUSED,
    Commands,
    Failure,
    dir_option,
    json_option,
    print_values,
    warn,
)
from ca.commands.ledger import PLACE, ledger_option, open_ledger, operator, target_option
from ca.ledger import MAX_PAGE, CertificateQuery, CertificateStatus, Ledger
from ca.store.migration import migrate as migrate_ledger
from ca.store.opening import LedgerPlace
from garrison.redis_address import RedisAddress

# Many times the longest life of an SVID, of a CRL, and of a clock's mistake.
MIN_AGE = timedelta(days=7)
MAX_AGE = timedelta(days=36_500)


@click.group("ledger", cls=Commands, epilog=EXIT_CODES)
def ledger_commands() -> None:
    """Move the ledger of a CA, or take out of it what ended long ago.

    \b
    Example:
      ca ledger migrate --dir ./pki --from ./pki/ledger.sqlite3 --to rediss://redis.example
    """


@ledger_commands.command(epilog=EXIT_CODES)
@dir_option
@click.option(
    "--from",
    "source",
    type=PLACE,
    required=True,
    envvar="GARRISON_CA_LEDGER_FROM",
    help="The file or the URL of the Redis that it is in. Also GARRISON_CA_LEDGER_FROM.",
)
@target_option
@json_option
def migrate(directory: Path, *, source: Path | RedisAddress, ledger: LedgerPlace, as_json: bool) -> None:
    """Copy a ledger to where there is none, with its audit log and all numbers, and compare the copy.

    Stop first whatever uses it: what was changed while it was copied is not copied, and the command fails.
    The old ledger stays as it is: take it away, so that nobody goes on with it. Sentinels are those of --to,
    or those of --from if --to is a file.

    \b
    Example:
      ca ledger migrate --dir ./pki --from ./pki/ledger.sqlite3 --to rediss://redis.example
    """
    sentinels = None if isinstance(ledger.where, RedisAddress) else ledger.sentinels
    contents = migrate_ledger(
        replace(ledger, where=source, sentinels=sentinels),
        ledger,
        trust_domain_of(directory / CA_CERT),
        warn=warn,
    )
    print_values(
        as_json,
        {
            "certificates": contents.certificate_count,
            "entries": len(contents.entries),
            "tokens": len(contents.tokens),
            "keys": len(contents.keys),
            "records": contents.head.sequence,
            "head": f"{contents.head.sequence}:{contents.head.hash}",
        },
    )


@ledger_commands.command(epilog=EXIT_CODES)
@dir_option
@click.option(
    "--expired-for",
    "age",
    type=DURATION,
    required=True,
    help=f"How long ago they ended: at least {MIN_AGE.days}d.",
)
@click.option("--dry-run", is_flag=True, help="Only say how many there are.")
@ledger_option
@json_option
def prune(directory: Path, *, age: timedelta, dry_run: bool, ledger: LedgerPlace, as_json: bool) -> None:
    """Remove the records of certificates that ended long ago: nothing does by itself.

    What was revoked is kept, since it must never be renewed, and so is the whole audit log, with the record
    of each certificate and one of their removal. Servers may go on meanwhile.

    \b
    Example:
      ca ledger prune --dir ./pki --expired-for 90d --dry-run
    """
    if not MIN_AGE <= age <= MAX_AGE:
        raise Failure(f"--expired-for is {MIN_AGE.days}d to {MAX_AGE.days}d, not {age}", EXIT_REFUSED)
    with open_ledger(directory, ledger) as opened:
        now = clock.now()
        before = _last_trusted(opened.audit_head(), now) - age
        count = 0
        if dry_run:
            count = _count(opened, before)
        else:
            while removed := opened.forget_expired(before, most=MAX_PAGE, now=now, by=operator()):
                count += removed
    print_values(
        as_json,
        {"expired_before": f"{before:%FT%TZ}", "would_remove" if dry_run else "removed": count},
    )


def _last_trusted(head: AuditHead, now: datetime) -> datetime:
    """Return the time, or that of the newest record if it is older: by a clock that is ahead, much has ended.

    A CA in use has records of today, since its CRLs are renewed.
    """
    if problem := clock_problem(head, now):
        raise ClockError(problem)
    try:
        return min(now, datetime.fromisoformat(head.time)) if head.time else now
    except (ValueError, TypeError) as error:
        raise ClockError("the newest record of the ledger has a time that is none") from error


def _count(ledger: Ledger, before: datetime) -> int:
    count, cursor = 0, None
    while cursor != "":
        query = CertificateQuery(status=CertificateStatus.EXPIRED, cursor=cursor or "", limit=MAX_PAGE)
        # What ends at `before` itself is kept.
        page = ledger.issued(query, now=before - timedelta(microseconds=1))
        count, cursor = count + len(page.certificates), page.cursor
    return count
