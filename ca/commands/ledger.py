"""The ledger of a command: where it is, who changes it, and the record of what a command issues."""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from cryptography import x509

from ca.authority import CA_CERT, X509Svid, trust_domain_of
from ca.commands.base import EXIT_UNUSABLE, FILE, Failure, Parsed, warn
from ca.ledger import IssuedCertificate, Ledger, fingerprint_of
from ca.recording import record
from ca.store.opening import LedgerPlace, parse_where
from ca.store.redis_server import Safety
from ca.store.sentinels import SentinelPlace
from ca.store.sqlite import LEDGER
from garrison.errors import IssuanceError
from garrison.redis_address import Credentials, RedisAddress

PLACE = Parsed("place", parse_where)


def _parse_sentinels(text: str) -> tuple[RedisAddress, ...]:
    return tuple(RedisAddress.parse(one.strip()) for one in text.split(",") if one.strip())


_SENTINELS = Parsed("urls", _parse_sentinels)
# Those of `garrison serve`, so that commands beside it use its ledger. A password belongs here, not where
# everybody sees the command line.
_VARIABLE = "GARRISON_CA_LEDGER"
_LEDGER = click.option(
    "--ledger",
    type=PLACE,
    envvar=_VARIABLE,
    help=f"The CA's ledger, a file or the URL of a Redis: {LEDGER} in its directory if not given. Also "
    f"{_VARIABLE}.",
)
_TARGET = click.option(
    "--to",
    "ledger",
    type=PLACE,
    required=True,
    envvar=_VARIABLE,
    help=f"The file or the URL of the Redis where it goes. Also {_VARIABLE}.",
)
_REDIS = (
    click.option(
        "--ledger-ca",
        type=FILE,
        envvar=f"{_VARIABLE}_CA",
        help="The roots that a rediss:// ledger is verified with (PEM): those of the system if not given.",
    ),
    click.option(
        "--ledger-safety",
        type=click.Choice([one.value for one in Safety]),
        default=Safety.REQUIRE.value,
        envvar=f"{_VARIABLE}_SAFETY",
        help="About a Redis that may lose what it confirms: refuse it, or only warn.",
    ),
    click.option(
        "--ledger-replicas",
        type=click.IntRange(0, 16),
        default=0,
        envvar=f"{_VARIABLE}_REPLICAS",
        help="How many replicas of Redis must have a change too.",
    ),
    click.option(
        "--ledger-certificate",
        type=FILE,
        envvar=f"{_VARIABLE}_CERTIFICATE",
        help="A certificate for a rediss:// ledger that wants one of its clients (PEM).",
    ),
    click.option(
        "--ledger-private-key",
        type=FILE,
        envvar=f"{_VARIABLE}_PRIVATE_KEY",
        help="The certificate's private key (PEM).",
    ),
    click.option(
        "--ledger-sentinel-master",
        metavar="NAME",
        envvar=f"{_VARIABLE}_SENTINEL_MASTER",
        help="What Sentinels call the server; then --ledger is where one of them is.",
    ),
    click.option(
        "--ledger-sentinels",
        type=_SENTINELS,
        default="",
        envvar=f"{_VARIABLE}_SENTINELS",
        help="URLs of further Sentinels, separated by commas; they differ in host and port.",
    ),
    click.option(
        "--ledger-sentinel-auth",
        type=Parsed("login", Credentials.parse),
        envvar=f"{_VARIABLE}_SENTINEL_AUTH",
        help=f"PASSWORD or USER:PASSWORD for the Sentinels; better in {_VARIABLE}_SENTINEL_AUTH.",
    ),
)


def ledger_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say where the ledger is, as one argument `ledger`."""
    return _with_place(command, _LEDGER)


def target_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say where a ledger goes, as one argument `ledger`."""
    return _with_place(command, _TARGET)


def _with_place(command: Callable[..., Any], where: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(command)
    def called(
        *arguments: Any,
        ledger: Any,
        ledger_ca: Path | None,
        ledger_safety: str,
        ledger_replicas: int,
        ledger_certificate: Path | None,
        ledger_private_key: Path | None,
        ledger_sentinel_master: str | None,
        ledger_sentinels: tuple[RedisAddress, ...],
        ledger_sentinel_auth: Credentials | None,
        **named: Any,
    ) -> Any:
        if not ledger_sentinel_master and (ledger_sentinels or ledger_sentinel_auth):
            raise click.UsageError(
                "--ledger-sentinels and --ledger-sentinel-auth go with --ledger-sentinel-master"
            )
        sentinels = None
        if ledger_sentinel_master:
            login = ledger_sentinel_auth or Credentials()
            sentinels = SentinelPlace(ledger_sentinel_master, ledger_sentinels, login)
        try:
            place = LedgerPlace(
                ledger,
                ledger_ca,
                Safety(ledger_safety),
                ledger_replicas,
                ledger_certificate,
                ledger_private_key,
                sentinels,
            )
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        return command(*arguments, ledger=place, **named)

    for option in (*reversed(_REDIS), where):
        called = option(called)
    return called


@contextlib.contextmanager
def open_ledger(directory: Path, place: LedgerPlace) -> Iterator[Ledger]:
    """Open the ledger of the CA in `directory`, a new one if there is none.

    Raises:
        Failure: there is no CA.
        ConfigError: the file or the Redis cannot be used.
        LedgerUnavailableError: it cannot be read or written.

    """
    if not (directory / CA_CERT).exists():
        raise Failure(f"{directory}: there is no CA here", EXIT_UNUSABLE)
    ledger = place.open(directory, trust_domain_of(directory / CA_CERT), warn=warn)
    try:
        yield ledger
    finally:
        ledger.close()


def operator() -> str:
    """Return who runs the command, for the audit log."""
    uid = os.getuid()
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def record_issue(ledger: Ledger, svid: X509Svid, *, now: datetime) -> None:
    """Record what a command issued, before it writes it down.

    Raises:
        IssuanceError: it cannot be recorded, so it must not leave.

    """
    issued = IssuedCertificate.of(svid.leaf, svid.spiffe_id, now=now, requester=operator(), attested_by="cli")
    record(ledger, [issued])


def refuse_revoked(ledger: Ledger, certificate: x509.Certificate) -> None:
    """Refuse to go on with a certificate that was revoked; one from before there was a ledger is not known.

    Raises:
        IssuanceError: it was revoked.

    """
    for found in ledger.find(fingerprint=fingerprint_of(certificate)):
        if found.revocation is not None:
            raise IssuanceError(
                f"serial {found.serial_text} was revoked ({found.revocation.reason.value}): "
                "issue a new one if its workload may have it"
            )
