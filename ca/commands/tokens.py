"""`ca token`: one-time join tokens, with which a machine shows for the first time who it is."""

from __future__ import annotations

import json
import secrets
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import click

from ca.authority import CaCertificates
from ca.commands import clock
from ca.commands.base import (
    DURATION,
    EXIT_CODES,
    EXIT_REFUSED,
    EXIT_UNUSABLE,
    Commands,
    Failure,
    Parsed,
    dir_option,
    json_option,
    print_values,
)
from ca.commands.ledger import ledger_option, open_ledger, operator
from ca.issuer import check_validity
from ca.ledger import JoinToken, token_hash
from ca.store.opening import LedgerPlace
from garrison.identity import SpiffeId

DEFAULT_LIFE = timedelta(minutes=10)
MAX_LIFE = timedelta(hours=24)


@click.group(cls=Commands, epilog=EXIT_CODES)
def token() -> None:
    """Make join tokens, which are good for one use.

    \b
    Example:
      ca token list --dir ./pki
    """


@token.command(epilog=EXIT_CODES)
@dir_option
@click.argument("spiffe_id", type=Parsed("spiffe_id", SpiffeId.parse))
@click.option(
    "--ttl", "life", type=DURATION, default=DEFAULT_LIFE, help="How long: 10m if not given, at most 24h."
)
@ledger_option
@json_option
def create(
    directory: Path, spiffe_id: SpiffeId, life: timedelta, *, ledger: LedgerPlace, as_json: bool
) -> None:
    """Make a token whose bearer becomes SPIFFE_ID. It is printed now and never again: only a hash is kept.

    \b
    Example:
      ca token create --dir ./pki spiffe://cluster.local/agent/node-1
    """
    public, now = CaCertificates.load(directory), clock.now()
    domain = public.trust_domain
    if spiffe_id.trust_domain != domain or not spiffe_id.segments:
        raise Failure(f"`{spiffe_id}` is no identity of this CA's trust domain `{domain}`", EXIT_REFUSED)
    if not timedelta(seconds=1) <= life <= MAX_LIFE:
        raise Failure(f"a token lives from 1 second to {MAX_LIFE}, not {life}", EXIT_REFUSED)
    check_validity(public.certificate, now)
    secret = secrets.token_urlsafe(32)
    made = JoinToken(token_hash(secret), spiffe_id, now, now + life, operator())
    with open_ledger(directory, ledger) as opened:
        opened.add_token(made)
    print_values(as_json, {"token": secret, **_plain(made, now)})


@token.command("list", epilog=EXIT_CODES)
@dir_option
@ledger_option
@json_option
def list_tokens(directory: Path, *, ledger: LedgerPlace, as_json: bool) -> None:
    """List tokens, also used and expired ones.

    \b
    Example:
      ca token list --dir ./pki
    """
    now = clock.now()
    with open_ledger(directory, ledger) as opened:
        found = [_plain(one, now) for one in opened.tokens()]
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for one in found:
        click.echo(f"{one['id']}  {one['status']:<7}  {one['expires_at']}  {one['spiffe_id']}")


@token.command(epilog=EXIT_CODES)
@dir_option
@click.argument("token_id")
@ledger_option
@json_option
def delete(directory: Path, token_id: str, *, ledger: LedgerPlace, as_json: bool) -> None:
    """Delete the token with this id, as `ca token list` shows it.

    \b
    Example:
      ca token delete --dir ./pki 0123456789abcdef
    """
    now = clock.now()
    with open_ledger(directory, ledger) as opened:
        found = [one for one in opened.tokens() if one.token_id == token_id]
        if not found:
            raise Failure(f"there is no join token `{token_id}`", EXIT_UNUSABLE)
        deleted = opened.delete_token(found[0].hash, now=now, by=operator())
    print_values(as_json, _plain(deleted, now))


def _plain(one: JoinToken, now: datetime) -> dict[str, Any]:
    status = "used" if one.used_at is not None else "valid" if now < one.expires_at else "expired"
    return {
        "id": one.token_id,
        "status": status,
        "spiffe_id": str(one.spiffe_id),
        "created_at": f"{one.created_at:%FT%TZ}",
        "expires_at": f"{one.expires_at:%FT%TZ}",
        "created_by": one.created_by,
        "used_at": None if one.used_at is None else f"{one.used_at:%FT%TZ}",
        "used_by": one.used_by,
    }
