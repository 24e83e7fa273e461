"""`ca entry`: registrations, which say who may have which identity."""

from __future__ import annotations

import json
import secrets
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from ca.authority import CA_CERT, trust_domain_of
from ca.commands import clock
from ca.commands.base import (
    DURATION,
    EXIT_CODES,
    EXIT_REFUSED,
    EXIT_UNUSABLE,
    Commands,
    Failure,
    dir_option,
    json_option,
    print_values,
)
from ca.commands.ledger import ledger_option, open_ledger, operator
from ca.issuer import DEFAULT_TTL
from ca.ledger import Entry
from ca.registration import DEFAULT_JWT_TTL, Registration
from ca.store.opening import LedgerPlace


@click.group(cls=Commands, epilog=EXIT_CODES)
def entry() -> None:
    """Register identities: who may have which, and how they show that they may.

    A server that uses this ledger follows within seconds.

    \b
    Example:
      ca entry list --dir ./pki
    """


@entry.command(epilog=EXIT_CODES)
@dir_option
@click.argument("spiffe_id")
@click.option(
    "--selector",
    "selectors",
    multiple=True,
    required=True,
    help="What must be true of the caller, such as unix:uid:1000; repeatable, all must be met.",
)
@click.option(
    "--ttl",
    type=DURATION,
    default=DEFAULT_TTL,
    help="The life of SVIDs: 1h if not given, at most 24h.",
)
@click.option(
    "--jwt-ttl",
    type=DURATION,
    default=DEFAULT_JWT_TTL,
    help="The life of JWT-SVIDs: 5m if not given, at most 1h.",
)
@click.option("--dns", "dns_names", multiple=True, metavar="NAME", help="A DNS name; repeatable.")
@click.option("--parent", "parent_id", help="The SPIFFE ID of the agent that attests the caller.")
@click.option(
    "--federates-with",
    multiple=True,
    metavar="DOMAIN",
    help="Whose bundle it gets too; repeatable.",
)
@click.option("--hint", default="", help="What this identity is for, for workloads that have several.")
@ledger_option
@json_option
def create(
    directory: Path,
    spiffe_id: str,
    *,
    selectors: tuple[str, ...],
    ttl: timedelta,
    jwt_ttl: timedelta,
    dns_names: tuple[str, ...],
    parent_id: str | None,
    federates_with: tuple[str, ...],
    hint: str,
    ledger: LedgerPlace,
    as_json: bool,
) -> None:
    """Register SPIFFE_ID for callers that meet every selector.

    \b
    Example:
      ca entry create --dir ./pki spiffe://cluster.local/web --selector unix:uid:1000 --ttl 30m
    """
    try:
        registration = Registration.parse(
            spiffe_id,
            selectors,
            ttl,
            dns_names,
            parent_id=parent_id,
            federates_with=federates_with,
            jwt_ttl=jwt_ttl,
            hint=hint,
        )
    except ValueError as error:
        raise Failure(str(error), EXIT_REFUSED) from error
    domain = trust_domain_of(directory / CA_CERT)
    if registration.spiffe_id.trust_domain != domain:
        message = f"`{spiffe_id}` is outside this CA's trust domain `{domain}`"
        raise Failure(message, EXIT_REFUSED)
    made = Entry(secrets.token_hex(8), registration, clock.now(), operator())
    with open_ledger(directory, ledger) as opened:
        opened.add_entry(made)
    print_values(as_json, _plain(made))


@entry.command("list", epilog=EXIT_CODES)
@dir_option
@ledger_option
@json_option
def list_entries(directory: Path, *, ledger: LedgerPlace, as_json: bool) -> None:
    """List the registrations of the ledger; those of a server's settings are not in it.

    \b
    Example:
      ca entry list --dir ./pki
    """
    with open_ledger(directory, ledger) as opened:
        entries = opened.entries()
    if as_json:
        click.echo(json.dumps([_plain(one) for one in entries], indent=2))
        return
    for one in entries:
        selectors = " ".join(str(selector) for selector in one.registration.selectors)
        click.echo(f"{one.entry_id}  {one.registration.spiffe_id}  {selectors}")


@entry.command(epilog=EXIT_CODES)
@dir_option
@click.argument("entry_id")
@ledger_option
@json_option
def show(directory: Path, entry_id: str, *, ledger: LedgerPlace, as_json: bool) -> None:
    """Show one registration.

    \b
    Example:
      ca entry show --dir ./pki 0123456789abcdef
    """
    with open_ledger(directory, ledger) as opened:
        found = [one for one in opened.entries() if one.entry_id == entry_id]
    if not found:
        raise Failure(f"there is no entry `{entry_id}`", EXIT_UNUSABLE)
    print_values(as_json, _plain(found[0]))


@entry.command(epilog=EXIT_CODES)
@dir_option
@click.argument("entry_id")
@ledger_option
@json_option
def delete(directory: Path, entry_id: str, *, ledger: LedgerPlace, as_json: bool) -> None:
    """Delete a registration: no SVID is issued for it any more. Those that were issued stay valid.

    \b
    Example:
      ca entry delete --dir ./pki 0123456789abcdef
    """
    with open_ledger(directory, ledger) as opened:
        deleted = opened.delete_entry(entry_id, now=clock.now(), by=operator())
    print_values(as_json, _plain(deleted))


def _plain(one: Entry) -> dict[str, Any]:
    registration = one.registration
    parent = registration.parent_id
    return {
        "entry": one.entry_id,
        "spiffe_id": str(registration.spiffe_id),
        "selectors": [str(selector) for selector in registration.selectors],
        "ttl_seconds": int(registration.svid_ttl.total_seconds()),
        "jwt_ttl_seconds": int(registration.jwt_ttl.total_seconds()),
        "dns_names": list(registration.dns_names),
        "parent_id": None if parent is None else str(parent),
        "federates_with": [str(domain) for domain in registration.federates_with],
        "hint": registration.hint,
        "created_at": f"{one.created_at:%FT%TZ}",
        "created_by": one.created_by,
    }
