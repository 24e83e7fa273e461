"""`ca renew`: new certificates for identities that this CA issued, once or for as long as it runs."""

from __future__ import annotations

import contextlib
import os
import random
import select
import shlex
import signal
import subprocess
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import click
from cryptography import x509

from ca.authority import Authority, X509Svid
from ca.bundle import MAX_PEM_BYTES, parse_certificates
from ca.commands import clock
from ca.commands.base import (
    DURATION,
    EXIT_CODES,
    EXIT_UNUSABLE,
    FILE,
    Failure,
    dir_option,
    json_option,
    name_of,
    passphrase_option,
    passphrase_source,
    print_values,
    read_input,
    warn,
)
from ca.commands.ledger import ledger_option, open_ledger, record_issue, refuse_revoked
from ca.commands.svids import SVID_BUNDLE, SVID_CERTIFICATE, SVID_KEY
from ca.describe import format_time_left
from ca.directory import NewFile, finish, install, locked
from ca.inspection import check_leaf
from ca.issuer import BACKDATE, MAX_TTL, MIN_TTL
from ca.keys import new_private_key, private_key_pem
from ca.ledger import KeyState, KeyUse, Ledger, issuer_of
from ca.renewal import is_due, renewal_time, retry_time
from ca.store.opening import LedgerPlace
from ca.verification import verify_svid
from garrison.errors import GarrisonError, IssuanceError

# How long the command of --exec may take.
EXEC_SECONDS = 60


@dataclass(frozen=True, slots=True)
class _Renewer:
    """What it takes to renew; the CA is read anew each time, since it may have been replaced."""

    load: Callable[[], Authority]
    ledger: Callable[[], AbstractContextManager[Ledger]]
    ttl: timedelta | None
    command: tuple[str, ...]

    def renew(self, directory: Path, now: datetime) -> X509Svid:
        """Replace key, certificate and bundle in `directory`, then run the command.

        Raises:
            GarrisonError, OSError: nothing was replaced.

        """
        authority = self.load()
        leaf, *chain = _held(directory)
        # Whoever can write to the directory must not name an identity for us to sign.
        spiffe_id, _ = verify_svid(leaf, chain, authority.roots, leaf.not_valid_before_utc)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        key = new_private_key()
        with self.ledger() as ledger:
            refuse_revoked(ledger, leaf)
            svid = authority.issue(
                spiffe_id,
                key.public_key(),
                now=now,
                ttl=self.ttl or _life(leaf),
                dns_names=names.get_values_for_type(x509.DNSName),
            )
            record_issue(ledger, svid, now=now)
        files = {
            SVID_BUNDLE: NewFile(authority.bundle_pem()),
            SVID_KEY: NewFile(private_key_pem(key), 0o600),
            SVID_CERTIFICATE: NewFile(svid.chain_pem),
        }
        with locked(directory):
            install(directory, files)
        return svid

    def is_tainted(self, leaf: x509.Certificate) -> bool:
        """Tell whether the authority that signed `leaf` is tainted, so that it must be replaced now."""
        with self.ledger() as ledger:
            keys, issuer = ledger.keys(KeyUse.X509), issuer_of(leaf)
        return any(key.key_id == issuer and key.state is KeyState.TAINTED for key in keys)

    def notify(self) -> str | None:
        """Run the command, without a shell; return what went wrong."""
        if not self.command:
            return None
        try:
            done = subprocess.run(self.command, timeout=EXEC_SECONDS, check=False, stdin=subprocess.DEVNULL)  # noqa: S603 - the operator's own
        except subprocess.TimeoutExpired:
            return f"`{self.command[0]}` did not end within {EXEC_SECONDS} s"
        except OSError as error:
            return f"`{self.command[0]}` cannot be run: {(error.strerror or str(error)).lower()}"
        return f"`{self.command[0]}` ended with exit code {done.returncode}" if done.returncode else None


def _held(directory: Path) -> tuple[x509.Certificate, ...]:
    file = directory / SVID_CERTIFICATE
    try:
        return parse_certificates(read_input(file, MAX_PEM_BYTES))
    except ValueError as error:
        raise Failure(f"{file}: {error}", EXIT_UNUSABLE) from error


def _life(leaf: x509.Certificate) -> timedelta:
    """Return the TTL that `leaf` was asked for."""
    life = leaf.not_valid_after_utc - leaf.not_valid_before_utc - BACKDATE
    return min(max(life, MIN_TTL), MAX_TTL)


def _parse_command(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    del ctx, param
    try:
        return tuple(shlex.split(value or ""))
    except ValueError as error:
        raise click.BadParameter(str(error).lower()) from error


@click.command(epilog=EXIT_CODES)
@dir_option
@click.argument("directories", nargs=-1, required=True, type=FILE, metavar="SVID...")
@click.option(
    "--expires-in", type=DURATION, help="Renew when less than this is left; after 2/3 if not given."
)
@click.option("--ttl", type=DURATION, help="How long the new one is valid; as the old one if not given.")
@click.option("--force", is_flag=True, help="Renew now, due or not.")
@click.option("--daemon", is_flag=True, help="Go on until SIGTERM; SIGHUP renews at once.")
@click.option(
    "--exec", "command", callback=_parse_command, help="A command to run after a renewal, without a shell."
)
@passphrase_option
@ledger_option
@json_option
def renew(
    directory: Path,
    *,
    directories: tuple[Path, ...],
    expires_in: timedelta | None,
    ttl: timedelta | None,
    force: bool,
    daemon: bool,
    command: tuple[str, ...],
    passphrase_file: Path | None,
    ledger: LedgerPlace,
    as_json: bool,
) -> None:
    """Renew SVIDs that this CA issued: directories of `ca issue`, or the svid.pem in them.

    Key and certificate are new, identity, DNS names and lifetime stay. What is not due is left alone, which
    is exit code 0 as well; what a tainted authority signed is due at once. As a daemon, failures are told and
    tried again, and the old files stay.

    \b
    Example:
      ca renew --dir ./pki ./web
      ca renew --dir ./pki ./web --daemon --exec "systemctl reload web"
    """
    held = [_directory_of(path) for path in directories]
    renewer = _Renewer(
        _loader(directory, passphrase_file), partial(open_ledger, directory, ledger), ttl, command
    )
    for one in held:
        # A crash may have left a new key beside the old certificate.
        finish(one)
        check_leaf(_held(one)[0])
    if daemon:
        _run(renewer, held, expires_in, as_json=as_json, force=force)
        return
    troubles = []
    for one in held:
        leaf, now = _held(one)[0], clock.now()
        starts, ends = leaf.not_valid_before_utc, leaf.not_valid_after_utc
        if not force and not is_due(now, starts, ends, expires_in) and not renewer.is_tainted(leaf):
            values = {"svid": str(one), "renewed": False, "expires_in": format_time_left(ends - now)}
        else:
            svid = renewer.renew(one, now)
            values = _renewed(one, svid)
            troubles.append(renewer.notify())
        print_values(as_json, values)
    for trouble in filter(None, troubles):
        raise Failure(f"renewed, but {trouble}", EXIT_UNUSABLE)


def _directory_of(path: Path) -> Path:
    if path.name == SVID_CERTIFICATE and not path.is_dir():
        return path.parent
    if not path.is_dir():
        raise Failure(f"{name_of(path)}: neither a directory of `ca issue` nor its {SVID_CERTIFICATE}", 2)
    return path


def _loader(directory: Path, passphrase_file: Path | None) -> Callable[[], Authority]:
    source = passphrase_source(passphrase_file)
    typed: list[bytes] = []

    def passphrase(path: Path) -> bytes:
        # What a person typed is remembered, what is in a file is read again.
        if typed:
            return typed[0]
        found = source.to_read(path)
        if source.given() is None:
            typed.append(found)
        return found

    return lambda: Authority.load(directory, passphrase)


def _renewed(directory: Path, svid: X509Svid) -> dict[str, Any]:
    return {
        "svid": str(directory),
        "renewed": True,
        "spiffe_id": str(svid.spiffe_id),
        "not_after": f"{svid.not_after:%FT%TZ}",
        "serial": f"{svid.leaf.serial_number:x}",
    }


def _run(
    renewer: _Renewer, held: Sequence[Path], expires_in: timedelta | None, *, as_json: bool, force: bool
) -> None:
    """Renew what is due, wait for what is due next, until told to end."""
    signals = _Signals(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    due: dict[Path, datetime] = {}
    for one in held:
        leaf, now = _held(one)[0], clock.now()
        if is_due(now, leaf.not_valid_before_utc, leaf.not_valid_after_utc, expires_in):
            due[one] = now
        else:
            due[one] = renewal_time(now, leaf.not_valid_after_utc, expires_in, random.random())  # noqa: S311 - spreads load
    print_values(as_json, {"renewing": [str(one) for one in held], "next": f"{min(due.values()):%FT%TZ}"})
    everything = force
    while True:
        for one in held:
            now = clock.now()
            if everything or now >= due[one] or _must_go(renewer, one):
                due[one] = _renew_one(renewer, one, now, expires_in, as_json=as_json)
        pause = (min(due.values()) - clock.now()).total_seconds()
        # At most a minute, so that a clock that was set is noticed.
        received = signals.wait(min(max(pause, 0.0), 60.0))
        if received - {signal.SIGHUP}:
            return
        everything = signal.SIGHUP in received


class _Signals:
    """Signals that came since they were asked for last; none is lost, whenever it comes.

    A handler runs between any two steps of the code that it interrupts, so it takes no lock: an event of
    `threading` would wait for ever where that code holds the event's own.
    """

    def __init__(self, *numbers: int) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        for number in numbers:
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        # Full only if thousands wait, and then one more says nothing new.
        with contextlib.suppress(BlockingIOError):
            os.write(self._write, bytes((number,)))

    def wait(self, seconds: float) -> set[int]:
        """Return what came, as soon as there is something, at most after so many seconds."""
        select.select([self._read], [], [], seconds)
        found: set[int] = set()
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._read, 4096):
                found.update(data)
        return found


def _must_go(renewer: _Renewer, directory: Path) -> bool:
    """Tell whether the authority that signed it is tainted; in doubt it is renewed when it is due."""
    try:
        return renewer.is_tainted(_held(directory)[0])
    except (GarrisonError, click.ClickException, OSError):
        return False


def _renew_one(
    renewer: _Renewer, one: Path, now: datetime, expires_in: timedelta | None, *, as_json: bool
) -> datetime:
    chance = random.random()  # noqa: S311 - spreads load
    try:
        svid = renewer.renew(one, now)
    except (GarrisonError, click.ClickException, OSError) as error:
        message = error.message if isinstance(error, click.ClickException) else str(error)
        warn(f"{one}: not renewed: {message}")
        return retry_time(now, _end_of(one, now), chance)
    print_values(as_json, _renewed(one, svid))
    trouble = renewer.notify()
    if trouble is not None:
        warn(f"{one}: renewed, but {trouble}")
    return renewal_time(now, svid.not_after, expires_in, chance)


def _end_of(directory: Path, now: datetime) -> datetime:
    try:
        return _held(directory)[0].not_valid_after_utc
    except (Failure, OSError, IssuanceError):
        return now
