"""`ca authority`: the authorities of a CA, and how one follows the other."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import click

from ca.atomic_files import write_file
from ca.authorities import Authorities
from ca.authority import ROOT_KEY, load_key
from ca.commands import clock
from ca.commands.base import (
    DURATION,
    EXIT_CODES,
    EXIT_REFUSED,
    EXIT_UNUSABLE,
    FILE,
    READABLE,
    Failure,
    dir_option,
    json_option,
    passphrase_once,
    passphrase_option,
    passphrase_source,
    print_values,
)
from ca.commands.init import KEY_TYPE, read_certificates
from ca.commands.ledger import ledger_option, open_ledger, operator
from ca.describe import format_time_left
from ca.keys import KeyType
from ca.ledger import KeyState
from ca.rotation import OVERLAP, Policy, Standing, active_of, find, needed_until, prepared_of, schedule
from ca.store.opening import LedgerPlace

_KEY_ID = re.compile(r"[0-9a-f]{4,}")

overlap_option = click.option(
    "--overlap",
    type=DURATION,
    default=OVERLAP,
    help="How long it takes until all have followed: 25m if not given, as `ca.rotation.overlap`.",
)


@click.group()
def authority() -> None:
    """Look at the authorities of a CA, and let one follow the other without downtime.

    prepare publishes a new root, activate signs under it, taint replaces what an old authority signed, revoke
    takes its root out of the trust bundle. `garrison serve` prepares, activates and retires by schedule.
    """


@authority.command("list", epilog=EXIT_CODES)
@dir_option
@passphrase_option
@ledger_option
@json_option
def list_authorities(
    directory: Path, *, passphrase_file: Path | None, ledger: LedgerPlace, as_json: bool
) -> None:
    """List the authorities, oldest first: their states, how long they last and are needed, what is due when.

    \b
    Example:
      ca authority list --dir ./pki
    """
    with _opened(directory, ledger, passphrase_file, OVERLAP) as (authorities, now):
        standings = authorities.standings(now)
    if as_json:
        click.echo(json.dumps([_plain(one, authorities.policy) for one in standings], indent=2))
        return
    if not standings:
        click.echo("no authority is recorded yet: the first start of a server does, or the first change")
    for one in standings:
        click.echo(
            f"{one.key_id}  {one.state:<8}  until {one.ends:%FT%TZ}  {_remark(one, authorities.policy, now)}"
        )


@authority.command(epilog=EXIT_CODES)
@dir_option
@click.argument("files", type=READABLE, nargs=-1)
@click.option("--new-root", is_flag=True, help="Make a new root as well, whatever the age of the old one.")
@click.option("--root-key", type=FILE, help="The key of the root, if it is kept elsewhere.")
@click.option("--root-key-out", type=FILE, help="Write the new root's key there, not into the directory.")
@click.option("--key-type", type=KEY_TYPE, help="As the active one if not given.")
@click.option("--csr", is_flag=True, help="Make a key and a signing request for an outside root.")
@click.option("--answer", is_flag=True, help="Take FILES, what the outside root answered to --csr.")
@passphrase_option
@ledger_option
@json_option
def prepare(**options: Any) -> None:
    """Make the next authority and publish its root; the active one goes on signing.

    Without --new-root it is under the same root, if the root's key is in the directory (or given) and less
    than half of the root's life is over. The next step is `ca authority activate`, once everybody has the new
    root: after --overlap, or by the schedule of `garrison serve`.

    \b
    Example:
      ca authority prepare --dir ./pki --new-root
      ca authority prepare --dir ./pki --root-key /media/usb/root-key.pem
      ca authority prepare --dir ./pki --csr
      ca authority prepare --dir ./pki --answer certificate.pem root.pem
    """
    if options["csr"] and options["answer"]:
        raise Failure("--csr and --answer exclude each other", EXIT_UNUSABLE)
    if bool(options["files"]) != options["answer"]:
        raise Failure("FILES are given with --answer, and only there", EXIT_UNUSABLE)
    outside = options["csr"] or options["answer"]
    if outside and (options["new_root"] or options["root_key"] or options["root_key_out"]):
        raise Failure("--new-root, --root-key and --root-key-out are for roots of our own", EXIT_UNUSABLE)
    if options["root_key_out"] and not options["new_root"]:
        raise Failure("--root-key-out is for a --new-root", EXIT_UNUSABLE)
    if options["new_root"] and options["root_key"]:
        raise Failure("--new-root and --root-key exclude each other", EXIT_UNUSABLE)
    directory: Path = options["directory"]
    kind = None if options["key_type"] is None else KeyType(options["key_type"])
    certificates = read_certificates(options["files"])
    out: Path | None = options["root_key_out"]
    with _opened(directory, options["ledger"], options["passphrase_file"], OVERLAP) as (authorities, now):
        who = operator()
        if options["csr"]:
            request = authorities.request(now=now, by=who, kind=kind)
            following = f"have it signed as a CA, then: ca authority prepare --dir {directory} --answer FILES"
            print_values(options["as_json"], {"request": str(request), "next": following})
            return
        if options["answer"]:
            made = authorities.answer(certificates, now=now, by=who)
        else:
            source = passphrase_source(options["passphrase_file"])
            root_key = None if options["root_key"] is None else load_key(options["root_key"], source.to_read)
            made = authorities.prepare(
                now=now,
                by=who,
                new_root=options["new_root"] or (False if root_key is not None else None),
                root_key=root_key,
                kind=kind,
                save_root_key=None if out is None else _saver(out),
            )
        shown = _plain(made, authorities.policy)
        if options["new_root"]:
            shown["root_key"] = str(out if out is not None else authorities.path_of(made.key_id) / ROOT_KEY)
        ready = (made.changed_at or now) + OVERLAP
        following = f"after {ready:%FT%TZ}: ca authority activate --dir {directory} {made.key_id[:12]}"
    print_values(options["as_json"], shown | {"next": following})


@authority.command(epilog=EXIT_CODES)
@dir_option
@click.argument("key", required=False)
@click.option(
    "--now", "at_once", is_flag=True, help="Do not wait until everybody has the root: an emergency."
)
@overlap_option
@passphrase_option
@ledger_option
@json_option
def activate(
    directory: Path,
    *,
    key: str | None,
    at_once: bool,
    overlap: timedelta,
    passphrase_file: Path | None,
    ledger: LedgerPlace,
    as_json: bool,
) -> None:
    """Sign with the prepared authority from now on; KEY is (the start of) its id, or left out.

    The one that was active becomes old: what it signed goes on to verify until it expires. A running server
    follows within seconds.

    \b
    Example:
      ca authority activate --dir ./pki
    """
    with _opened(directory, ledger, passphrase_file, overlap) as (authorities, now):
        authorities.reconcile(now=now, by=operator())
        standings = authorities.standings(now)
        prepared = prepared_of(standings)
        if key is None and prepared is None:
            raise Failure("no authority is prepared: `ca authority prepare` makes one", EXIT_REFUSED)
        key_id = (
            resolve((one.key_id for one in standings), key)
            if key is not None or prepared is None
            else prepared.key_id
        )
        before = active_of(standings)
        authorities.activate(key_id, now=now, by=operator(), at_once=at_once)
        shown = _plain(find(authorities.standings(now), key_id), authorities.policy)
    following = "nothing: the one before ends by itself once all that it signed has expired"
    if before is not None:
        shown["before"] = before.key_id
        following += (
            f"; if its key is in wrong hands: ca authority taint --dir {directory} {before.key_id[:12]}"
        )
    print_values(as_json, shown | {"next": following})


@authority.command(epilog=EXIT_CODES)
@dir_option
@click.argument("key")
@passphrase_option
@ledger_option
@json_option
def taint(
    directory: Path, *, key: str, passphrase_file: Path | None, ledger: LedgerPlace, as_json: bool
) -> None:
    """Have everything that the old authority KEY signed replaced at once; KEY is (the start of) its id.

    Servers push new SVIDs within seconds, `ca renew --daemon` writes them within a minute. What has been
    replaced is still accepted: that ends with `ca authority revoke`.

    \b
    Example:
      ca authority taint --dir ./pki 3f2a9c1b
    """
    _change(
        directory,
        ledger,
        passphrase_file,
        key,
        lambda one, key_id, now: one.taint(key_id, now=now, by=operator()),
        following=f"once holders have new SVIDs: ca authority revoke --dir {directory} {key}",
        as_json=as_json,
    )


@authority.command(epilog=EXIT_CODES)
@dir_option
@click.argument("key")
@click.option("--now", "at_once", is_flag=True, help="Give holders no time to replace what it signed.")
@overlap_option
@passphrase_option
@ledger_option
@json_option
def revoke(
    directory: Path,
    *,
    key: str,
    at_once: bool,
    overlap: timedelta,
    passphrase_file: Path | None,
    ledger: LedgerPlace,
    as_json: bool,
) -> None:
    """Take the root of the tainted authority KEY out of the trust bundle, for good, and destroy its key here.

    Whatever it signed is refused from then on, in new connections; open ones live on. A prepared authority
    can be revoked as well.

    \b
    Example:
      ca authority revoke --dir ./pki 3f2a9c1b
    """
    _change(
        directory,
        ledger,
        passphrase_file,
        key,
        lambda one, key_id, now: one.revoke(key_id, now=now, by=operator(), at_once=at_once),
        following="close connections that are open: they were checked when they began",
        overlap=overlap,
        as_json=as_json,
    )


def _change(
    directory: Path,
    ledger: LedgerPlace,
    passphrase_file: Path | None,
    key: str,
    change: Callable[[Authorities, str, datetime], None],
    *,
    following: str,
    as_json: bool,
    overlap: timedelta = OVERLAP,
) -> None:
    with _opened(directory, ledger, passphrase_file, overlap) as (authorities, now):
        authorities.reconcile(now=now, by=operator())
        key_id = resolve((one.key_id for one in authorities.standings(now)), key)
        change(authorities, key_id, now)
        shown = _plain(find(authorities.standings(now), key_id), authorities.policy)
    print_values(as_json, shown | {"next": following})


@contextlib.contextmanager
def _opened(
    directory: Path, ledger: LedgerPlace, passphrase_file: Path | None, overlap: timedelta
) -> Iterator[tuple[Authorities, datetime]]:
    passphrase = passphrase_once(passphrase_file)
    with open_ledger(directory, ledger) as opened:
        authorities = Authorities(directory, opened, passphrase, policy=Policy(overlap=overlap))
        yield authorities, clock.now()


def resolve(key_ids: Iterable[str], text: str | None) -> str:
    """Return the one of `key_ids` that starts with `text`.

    Raises:
        Failure: none does, or several do.

    """
    start = (text or "").lower()
    found = [one for one in key_ids if one.startswith(start)]
    if not _KEY_ID.fullmatch(start) or not found:
        raise Failure(f"there is no authority `{text}`: `ca authority list` shows all", EXIT_REFUSED)
    if len(found) > 1:
        raise Failure(f"`{text}` is the start of {len(found)} authorities: give more of it", EXIT_REFUSED)
    return found[0]


def _saver(out: Path) -> Callable[[bytes], None]:
    if os.path.lexists(out):
        raise Failure(f"{out}: exists already, a root key is never replaced", EXIT_UNUSABLE)

    def save(content: bytes) -> None:
        write_file(out, content, mode=0o600, replace=False)

    return save


def _plain(one: Standing, policy: Policy) -> dict[str, Any]:
    plan = schedule(one, policy) if one.state is KeyState.ACTIVE else None
    needed = needed_until(one, policy)
    return {
        "authority": one.key_id,
        "state": one.state.value,
        "not_after": f"{one.ends:%FT%TZ}",
        "root_sha256": one.root,
        "root_not_after": f"{one.root_ends:%FT%TZ}",
        "known_since": f"{one.known_since:%FT%TZ}",
        "changed_at": None if one.changed_at is None else f"{one.changed_at:%FT%TZ}",
        "needed_until": None if needed is None else f"{needed:%FT%TZ}",
        "successor_due_at": None if plan is None else f"{plan.prepare_at:%FT%TZ}",
        "successor_signs_at": None if plan is None else f"{plan.activate_at:%FT%TZ}",
    }


def _remark(one: Standing, policy: Policy, now: datetime) -> str:
    needed = needed_until(one, policy)
    if one.state is KeyState.ACTIVE:
        plan = schedule(one, policy)
        return (
            f"root until {one.root_ends:%FT%TZ}, successor due {plan.prepare_at:%FT%TZ}, "
            f"signs {plan.activate_at:%FT%TZ}"
        )
    if needed is not None:
        return f"needed until {needed:%FT%TZ} ({format_time_left(needed - now)})"
    if one.state is KeyState.PREPARED and one.changed_at is not None:
        return f"root published since {one.changed_at:%FT%TZ}"
    return f"since {one.changed_at:%FT%TZ}" if one.changed_at is not None else ""
