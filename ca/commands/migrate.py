"""`ca ledger`: move a ledger from one store to another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from ca.authority import CA_CERT, trust_domain_of
from ca.commands.base import EXIT_CODES, Commands, dir_option, json_option, print_values, warn
from ca.commands.ledger import PLACE, target_option
from ca.store.migration import migrate as migrate_ledger
from ca.store.opening import LedgerPlace
from garrison.redis_address import RedisAddress


@click.group("ledger", cls=Commands, epilog=EXIT_CODES)
def ledger_commands() -> None:
    """Move the ledger of a CA.

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
