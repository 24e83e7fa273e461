"""`ca issue` and `ca sign`: identities for workloads, as files."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import click

from ca.atomic_files import write_file
from ca.authority import Authority
from ca.commands import clock
from ca.commands.base import (
    DIRECTORY,
    DURATION,
    EXIT_CODES,
    EXIT_UNUSABLE,
    READABLE,
    Failure,
    Parsed,
    dir_option,
    force_option,
    json_option,
    passphrase_option,
    passphrase_source,
    print_values,
    read_input,
)
from ca.commands.ledger import ledger_option, open_ledger, record_issue
from ca.csr import MAX_CSR_BYTES, parse_csr
from ca.describe import describe_certificate
from ca.directory import NewFile, install, locked
from ca.issuer import DEFAULT_TTL
from ca.keys import new_private_key, private_key_pem
from ca.store.opening import LedgerPlace
from garrison.identity import SpiffeId

SVID_CERTIFICATE = "svid.pem"
SVID_KEY = "svid.key"
SVID_BUNDLE = "bundle.pem"

SPIFFE_ID = Parsed("spiffe_id", SpiffeId.parse)
ttl_option = click.option(
    "--ttl", type=DURATION, default=DEFAULT_TTL, help="How long it is valid: 1h if not given, at most 24h."
)
dns_option = click.option(
    "--dns", "dns_names", multiple=True, metavar="NAME", help="A DNS name to add; repeatable."
)


@click.command(epilog=EXIT_CODES)
@dir_option
@click.argument("spiffe_id", type=SPIFFE_ID)
@click.option("--out", type=DIRECTORY, required=True, help="Where svid.pem, svid.key and bundle.pem go.")
@ttl_option
@dns_option
@force_option
@passphrase_option
@ledger_option
@json_option
def issue(
    directory: Path,
    spiffe_id: SpiffeId,
    *,
    out: Path,
    ttl: timedelta,
    dns_names: tuple[str, ...],
    passphrase_file: Path | None,
    ledger: LedgerPlace,
    force: bool,
    as_json: bool,
) -> None:
    """Issue an X509-SVID with a new key: svid.pem (leaf, intermediate), svid.key, bundle.pem.

    It is recorded before any file is written.

    \b
    Example:
      ca issue --dir ./pki spiffe://cluster.local/ns/default/sa/web --out ./web
    """
    authority = Authority.load(directory, passphrase_source(passphrase_file).to_read)
    key = new_private_key()
    now = clock.now()
    svid = authority.issue(spiffe_id, key.public_key(), now=now, ttl=ttl, dns_names=dns_names)
    files = {
        SVID_BUNDLE: NewFile(authority.bundle_pem()),
        SVID_KEY: NewFile(private_key_pem(key), 0o600),
        SVID_CERTIFICATE: NewFile(svid.chain_pem),
    }
    _check_free(out, files, force=force)
    with open_ledger(directory, ledger) as opened:
        record_issue(opened, svid, now=now)
    _write(out, files, force=force)
    description = describe_certificate(svid.leaf)
    shown = ("spiffe_id", "names", "not_after", "serial", "sha256")
    print_values(
        as_json, {**{name: description[name] for name in shown}, "files": [str(out / name) for name in files]}
    )


@click.command(epilog=EXIT_CODES)
@dir_option
@click.argument("request", type=READABLE)
@click.argument("spiffe_id", type=SPIFFE_ID)
@click.option("--out", type=DIRECTORY, required=True, help="Where svid.pem and bundle.pem go.")
@ttl_option
@dns_option
@force_option
@passphrase_option
@ledger_option
@json_option
def sign(
    directory: Path,
    request: Path,
    spiffe_id: SpiffeId,
    *,
    out: Path,
    ttl: timedelta,
    dns_names: tuple[str, ...],
    passphrase_file: Path | None,
    ledger: LedgerPlace,
    force: bool,
    as_json: bool,
) -> None:
    """Sign the request in REQUEST (PKCS#10 PEM, - is standard input) as an X509-SVID for SPIFFE_ID.

    Of the request only the public key is used, once it is proven that its sender has the private one. Names
    and extensions in it count for nothing: the identity is the one given here.

    \b
    Example:
      ca sign --dir ./pki request.pem spiffe://cluster.local/ns/default/sa/web --out ./web
    """
    checked = parse_csr(read_input(request, MAX_CSR_BYTES))
    authority = Authority.load(directory, passphrase_source(passphrase_file).to_read)
    now = clock.now()
    svid = authority.issue(spiffe_id, checked.public_key, now=now, ttl=ttl, dns_names=dns_names)
    files = {SVID_BUNDLE: NewFile(authority.bundle_pem()), SVID_CERTIFICATE: NewFile(svid.chain_pem)}
    _check_free(out, files, force=force)
    with open_ledger(directory, ledger) as opened:
        record_issue(opened, svid, now=now)
    _write(out, files, force=force)
    description = describe_certificate(svid.leaf)
    shown = ("spiffe_id", "names", "key", "not_after", "serial", "sha256")
    print_values(
        as_json,
        {
            **{name: description[name] for name in shown},
            "request_sha256": checked.fingerprint,
            "files": [str(out / name) for name in files],
        },
    )


def _check_free(out: Path, files: dict[str, NewFile], *, force: bool) -> None:
    taken = [str(out / name) for name in files if os.path.lexists(out / name)]
    if taken and not force:
        raise Failure(f"{', '.join(taken)}: exists already (--force replaces)", EXIT_UNUSABLE)


def _write(out: Path, files: dict[str, NewFile], *, force: bool) -> None:
    """Write what was issued to a directory, which is made if needed: all or nothing."""
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    if force:
        with locked(out):
            install(out, files)
        return
    for name, file in files.items():
        write_file(out / name, file.content, mode=file.mode, replace=False)
