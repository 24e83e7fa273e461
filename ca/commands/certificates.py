"""`ca list`, `ca revoke` and `ca crl`: what was issued, and what of it counts no more."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from ca.atomic_files import write_file
from ca.authority import CaCertificates
from ca.authority_files import load_issuer
from ca.bundle import parse_certificates
from ca.commands import clock
from ca.commands.authority import resolve
from ca.commands.base import (
    EXIT_CODES,
    EXIT_REFUSED,
    EXIT_UNUSABLE,
    FILE,
    Failure,
    Parsed,
    dir_option,
    json_option,
    passphrase_once,
    passphrase_option,
    passphrase_source,
    print_values,
    warn,
)
from ca.commands.ledger import ledger_option, open_ledger, operator
from ca.crl import crl_pem, key_identifier_of, renew_crl
from ca.issuer import Issuer
from ca.ledger import (
    MAX_PAGE,
    CertificateQuery,
    CertificateStatus,
    IssuedCertificate,
    KeyState,
    KeyUse,
    Ledger,
    RevocationReason,
    StoredCrl,
    fingerprint_of,
)
from ca.passphrase import NO_PASSPHRASE, WRONG_PASSPHRASE
from ca.store.opening import LedgerPlace
from garrison.errors import ConfigError, GarrisonError, IssuanceError
from garrison.identity import SpiffeId

_HEX = re.compile(r"[0-9a-f]+")
_FINGERPRINT_DIGITS = 64
_MAX_FILE_BYTES = 1 << 20


@click.command("list", epilog=EXIT_CODES)
@dir_option
@click.option("--spiffe-id", type=Parsed("spiffe_id", SpiffeId.parse), help="Only those of this identity.")
@click.option("--valid", "status", flag_value="valid", help="Only those that are valid now.")
@click.option("--expired", "status", flag_value="expired", help="Only those that ended, not revoked.")
@click.option("--revoked", "status", flag_value="revoked", help="Only those that were revoked.")
@click.option(
    "--limit",
    type=click.IntRange(1, MAX_PAGE),
    default=100,
    show_default=True,
    help="How many at most, newest first.",
)
@click.option("--cursor", default="", help="Where the page before ended: what it said under `cursor`.")
@ledger_option
@json_option
def list_certificates(
    directory: Path,
    spiffe_id: SpiffeId | None,
    status: str | None,
    limit: int,
    cursor: str,
    *,
    ledger: LedgerPlace,
    as_json: bool,
) -> None:
    """List the certificates that were issued, newest first.

    \b
    Example:
      ca list --dir ./pki --valid --spiffe-id spiffe://cluster.local/ns/default/sa/web
    """
    wanted = None if status is None else CertificateStatus(status)
    now = clock.now()
    with open_ledger(directory, ledger) as opened:
        try:
            page = opened.issued(CertificateQuery(spiffe_id, wanted, cursor, limit), now=now)
        except ValueError as error:
            raise Failure(f"--cursor: {error}", EXIT_UNUSABLE) from error
    if as_json:
        certificates = [_plain(one, now) for one in page.certificates]
        click.echo(json.dumps({"certificates": certificates, "cursor": page.cursor}, indent=2))
        return
    for one in page.certificates:
        click.echo(f"{one.serial_text:<32}  {_status(one, now):<7}  {one.not_after:%FT%TZ}  {one.spiffe_id}")
    if page.cursor:
        click.echo(f"there are more: --cursor {page.cursor}")


@click.command(epilog=EXIT_CODES)
@dir_option
@click.argument("certificate")
@click.option(
    "--reason",
    type=click.Choice([reason.value for reason in RevocationReason]),
    default=RevocationReason.UNSPECIFIED.value,
    show_default=True,
    help="Why; it stands in the CRL.",
)
@passphrase_option
@ledger_option
@json_option
def revoke(
    directory: Path,
    certificate: str,
    reason: str,
    *,
    passphrase_file: Path | None,
    ledger: LedgerPlace,
    as_json: bool,
) -> None:
    """Revoke CERTIFICATE, which is a serial number, a SHA-256 fingerprint or a file, and publish a new CRL.

    Revoking is final. Renewals are not affected: delete the registration to stop those.

    \b
    Example:
      ca revoke --dir ./pki ./web/svid.pem --reason key_compromise
    """
    now, who = clock.now(), operator()
    with open_ledger(directory, ledger) as opened:
        found = _find(opened, certificate)
        revoked = opened.revoke(found.issuer, found.serial, RevocationReason(reason), now=now, by=who)
        shown = _plain(revoked, now)
        try:
            shown["crl_number"] = renew_crl(
                opened, _issuer_of(found, directory, passphrase_file), now=now, by=who
            ).number
        except GarrisonError as error:
            # It is revoked, whatever the key of the CA is good for; a server that has the key publishes it.
            shown["crl_number"] = None
            click.echo(f"Warning: it is revoked, but no CRL says so yet: {error}", err=True)
    print_values(as_json, shown)


@click.command(epilog=EXIT_CODES)
@dir_option
@click.option("--authority", "key", help="Only that of this authority: (the start of) its id.")
@click.option("--list", "listed", is_flag=True, help="Say which there are; no key is needed, none is made.")
@click.option("--out", type=FILE, help="The file to write; without, it is printed.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["pem", "der"]),
    default="pem",
    show_default=True,
    help="DER holds one: that of the active authority, if no other is named.",
)
@passphrase_option
@ledger_option
@json_option
def crl(
    directory: Path,
    *,
    key: str | None,
    listed: bool,
    out: Path | None,
    form: str,
    passphrase_file: Path | None,
    ledger: LedgerPlace,
    as_json: bool,
) -> None:
    """Print or write the CRLs of all authorities that are not revoked, the active one's first.

    One that is due is made, with the key of its authority; of another whose key is not here the last one is
    taken, with a warning. Verifiers that look at CRLs refuse whoever's authority has none.

    \b
    Example:
      ca crl --dir ./pki --out ./crl.pem
      ca crl --dir ./pki --authority 3f2a9c1b --format der --out ./crl.der
    """
    if form == "der" and out is None:
        raise Failure("--format der needs --out", EXIT_UNUSABLE)
    if listed and out is not None:
        raise Failure("--list writes nothing, so it takes no --out", EXIT_UNUSABLE)
    now = clock.now()
    with open_ledger(directory, ledger) as opened:
        states = _states(directory, opened)
        names = [resolve(states, key)] if key is not None else list(states)
        if form == "der":
            names = names[:1]
        if listed:
            found = [opened.crl(name) for name in names]
        else:
            crls = _Crls(directory, opened, passphrase_once(passphrase_file), now)
            found = [crls.current(name, is_needed=not index) for index, name in enumerate(names)]
        shown = [
            _plain_crl(name, states[name], one, opened, now) for name, one in zip(names, found, strict=True)
        ]
    there = [one for one in found if one is not None]
    content = there[0].der if form == "der" else crl_pem(there)
    if out is not None:
        write_file(out, content, mode=0o644, replace=True)
    if as_json:
        for values, one in zip(shown, found, strict=True):
            if out is not None:
                values["file"] = None if one is None else str(out)
            elif not listed:
                values["crl"] = None if one is None else crl_pem([one]).decode()
        click.echo(json.dumps({"crls": shown}, indent=2))
    elif listed or out is not None:
        for values in shown:
            click.echo(
                f"{values['issuer']}  {values['authority']:<8}  {_numbered(values)}"
                if values["number"] is not None
                else f"{values['issuer']}  {values['authority']:<8}  none yet"
            )
    else:
        click.echo(content.decode(), nl=False)


def _states(directory: Path, ledger: Ledger) -> dict[str, str]:
    """Return the authorities that are not revoked and their states: who signs first, then the newest."""
    active = key_identifier_of(CaCertificates.load(directory).certificate)
    known = [key for key in reversed(ledger.keys(KeyUse.X509)) if key.state is not KeyState.REVOKED]
    # Before the first change or start of a server nothing is recorded of the one that is there.
    found = {active: KeyState.ACTIVE.value}
    found.update((key.key_id, key.state.value) for key in known)
    return dict(sorted(found.items(), key=lambda one: one[1] != KeyState.ACTIVE))


@dataclass(frozen=True, slots=True)
class _Crls:
    """Where CRLs come from: the ledger, or new ones from the keys in the directory."""

    directory: Path
    ledger: Ledger
    passphrase: Callable[[Path], bytes]
    now: datetime

    def current(self, name: str, *, is_needed: bool) -> StoredCrl | None:
        """Return the CRL of an authority, a new one if that is due; only that which `is_needed` must be had.

        Raises:
            GarrisonError: it is needed, and cannot be made.

        """
        try:
            issuer = load_issuer(self.directory, name, self.passphrase)
            return renew_crl(self.ledger, issuer, now=self.now, by=operator())
        except (ConfigError, IssuanceError) as error:
            if is_needed or _is_about_passphrases(error):
                raise
            warn(f"no new CRL of authority {name}: {error}")
            return self.ledger.crl(name)


def _is_about_passphrases(error: GarrisonError) -> bool:
    codes = {one.code for one in error.diagnostics} if isinstance(error, ConfigError) else set()
    return bool(codes & {NO_PASSPHRASE, WRONG_PASSPHRASE})


def _plain_crl(name: str, state: str, one: StoredCrl | None, ledger: Ledger, now: datetime) -> dict[str, Any]:
    return {
        "issuer": name,
        "authority": state,
        "number": None if one is None else one.number,
        "this_update": None if one is None else f"{one.this_update:%FT%TZ}",
        "next_update": None if one is None else f"{one.next_update:%FT%TZ}",
        "revoked": len(ledger.revoked(name, unexpired_at=now)),
    }


def _numbered(values: dict[str, Any]) -> str:
    return f"number {values['number']}, {values['revoked']} revoked, until {values['next_update']}"


def _issuer_of(certificate: IssuedCertificate, directory: Path, passphrase_file: Path | None) -> Issuer:
    # Perhaps one that signs no more.
    return load_issuer(directory, certificate.issuer, passphrase_source(passphrase_file).to_read)


def _find(ledger: Ledger, text: str) -> IssuedCertificate:
    wanted = text.replace(":", "").lower()
    if _HEX.fullmatch(wanted) and len(wanted) == _FINGERPRINT_DIGITS:
        found = ledger.find(fingerprint=wanted)
    elif _HEX.fullmatch(wanted) and len(wanted) < _FINGERPRINT_DIGITS:
        found = ledger.find(serial=int(wanted, 16))
    else:
        found = ledger.find(fingerprint=_fingerprint(Path(text)))
    if not found:
        raise Failure(f"`{text}` is no certificate that this CA has recorded", EXIT_REFUSED)
    if len(found) > 1:
        raise Failure(f"`{text}` names {len(found)} certificates: give a fingerprint instead", EXIT_REFUSED)
    return found[0]


def _fingerprint(file: Path) -> str:
    with file.open("rb") as opened:
        content = opened.read(_MAX_FILE_BYTES)
    try:
        return fingerprint_of(parse_certificates(content)[0])
    except ValueError as error:
        raise Failure(f"{file}: {error}", EXIT_UNUSABLE) from error


def _status(certificate: IssuedCertificate, now: datetime) -> CertificateStatus:
    if certificate.revocation is not None:
        return CertificateStatus.REVOKED
    return CertificateStatus.VALID if now < certificate.not_after else CertificateStatus.EXPIRED


def _plain(certificate: IssuedCertificate, now: datetime) -> dict[str, Any]:
    revocation = certificate.revocation
    return {
        "serial": certificate.serial_text,
        "status": _status(certificate, now),
        "spiffe_id": str(certificate.spiffe_id),
        "kind": certificate.kind,
        "issuer": certificate.issuer,
        "sha256": certificate.fingerprint,
        "not_before": f"{certificate.not_before:%FT%TZ}",
        "not_after": f"{certificate.not_after:%FT%TZ}",
        "issued_at": f"{certificate.issued_at:%FT%TZ}",
        "requester": certificate.requester,
        "attested_by": certificate.attested_by,
        "revoked_at": None if revocation is None else f"{revocation.at:%FT%TZ}",
        "reason": None if revocation is None else revocation.reason,
        "revoked_by": None if revocation is None else revocation.by,
    }
