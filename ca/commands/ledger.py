"""The ledger of a command: where it is, who changes it, and the record of what a command issues."""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import click
from cryptography import x509

from ca.authority import CA_CERT, X509Svid
from ca.commands.base import EXIT_UNUSABLE, FILE, Failure
from ca.ledger import IssuedCertificate, Ledger, fingerprint_of
from ca.recording import record
from ca.store.sqlite import LEDGER, SqliteLedger
from garrison.errors import IssuanceError

ledger_option = click.option(
    "--ledger", type=FILE, help=f"The file of the CA's ledger: {LEDGER} in its directory if not given."
)


@contextlib.contextmanager
def open_ledger(directory: Path, file: Path | None) -> Iterator[Ledger]:
    """Open the ledger of the CA in `directory`, a new one if there is none.

    Raises:
        Failure: there is no CA.
        ConfigError: the file cannot be used.
        LedgerUnavailableError: it cannot be read or written.

    """
    if not (directory / CA_CERT).exists():
        raise Failure(f"{directory}: there is no CA here", EXIT_UNUSABLE)
    ledger = SqliteLedger(file if file is not None else directory / LEDGER)
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
