"""`ca inspect`, `ca verify`, `ca bundle`: what is there, whether it holds, and what others verify it with."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from cryptography import x509

from ca.authority import CaCertificates, load_key
from ca.authority_files import ISSUERS
from ca.bundle import (
    MAX_PEM_BYTES,
    REFRESH_HINT_SECONDS,
    SpiffeBundle,
    format_certificates,
    format_spiffe_bundle,
    parse_certificates,
    parse_spiffe_bundle,
)
from ca.commands import clock
from ca.commands.base import (
    DURATION,
    EXIT_CODES,
    EXIT_UNUSABLE,
    FILE,
    READABLE,
    Failure,
    Parsed,
    dir_option,
    json_option,
    name_of,
    passphrase_option,
    passphrase_source,
    print_values,
    read_input,
    warn,
)
from ca.commands.ledger import ledger_option, open_ledger, operator
from ca.describe import describe_certificate, describe_chain, describe_file, format_description
from ca.federation import published_intermediates
from ca.handshake import TIMEOUT_SECONDS, parse_address, presented_chain
from ca.inspection import check_key_pair
from ca.jwt_key_store import published_authorities
from ca.store.opening import LedgerPlace
from ca.verification import verify_svid
from garrison.errors import GarrisonError, IssuanceError
from garrison.identity import SpiffeId


@click.command(epilog=EXIT_CODES)
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@click.option("--server-name", help="The name to ask a server for (SNI), if not the host.")
@click.option("--timeout", type=DURATION, help=f"For a server to answer: {TIMEOUT_SECONDS:g}s if not given.")
@json_option
def inspect(targets: tuple[str, ...], server_name: str | None, timeout: Any, *, as_json: bool) -> None:
    """Show every certificate in files (- is standard input), or that a server presents (host:port).

    Files are PEM, DER, signing requests or SPIFFE bundles. Nothing is verified, see `ca verify`; of each
    certificate it is said whether it is an X509-SVID, and how long it has left.

    \b
    Example:
      ca inspect ./web/svid.pem
      ca inspect localhost:8443
    """
    now = clock.now()
    found: list[dict[str, Any]] = []
    for target in targets:
        address = None if Path(target).exists() else parse_address(target)
        try:
            if address is not None:
                seconds = TIMEOUT_SECONDS if timeout is None else timeout.total_seconds()
                chain = presented_chain(*address, server_name=server_name, timeout_seconds=seconds)
                found += describe_chain(chain, now)
            else:
                found += describe_file(read_input(Path(target), MAX_PEM_BYTES), now)
        except ValueError as error:
            raise Failure(f"{name_of(Path(target))}: {error}", EXIT_UNUSABLE) from error
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        click.echo("\n\n".join(format_description(description) for description in found))


def _parse_time(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"`{text}` is not a time such as `2030-01-02T03:04:05Z`") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


@click.command(epilog=EXIT_CODES)
@click.argument("file", type=READABLE)
@click.option(
    "--bundle",
    "bundle_file",
    type=FILE,
    required=True,
    help="The roots of the identity's own trust domain: PEM or SPIFFE bundle. Others are never trusted.",
)
@click.option("--at", type=Parsed("time", _parse_time), help="The moment to verify for; now if not given.")
@click.option("--spiffe-id", type=Parsed("spiffe_id", SpiffeId.parse), help="Whose it has to be.")
@click.option("--key", "key_file", type=FILE, help="The private key that has to belong to it.")
@passphrase_option
@json_option
def verify(
    file: Path,
    *,
    bundle_file: Path,
    at: datetime | None,
    spiffe_id: SpiffeId | None,
    key_file: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Verify the X509-SVID in FILE (leaf first, then its chain) against a trust bundle.

    Every rule of the X509-SVID standard is held against the leaf, the signing certificates and the roots.
    Exit code 3 says that it does not verify.

    \b
    Example:
      ca verify ./web/svid.pem --bundle ./web/bundle.pem --key ./web/svid.key
    """
    leaf, *intermediates = _certificates(file)
    roots = load_bundle(bundle_file)
    moment = at or clock.now()
    found, chain = verify_svid(leaf, intermediates, roots, moment)
    if spiffe_id not in {None, found}:
        raise IssuanceError(f"it is the identity of `{found}`, not of `{spiffe_id}`")
    if key_file is not None:
        check_key_pair(leaf, load_key(key_file, passphrase_source(passphrase_file).to_read))
    values = {
        "spiffe_id": str(found),
        "verified_at": f"{moment.astimezone(UTC):%FT%TZ}",
        "not_after": f"{min(one.not_valid_after_utc for one in chain):%FT%TZ}",
        "chain": [describe_certificate(one)["subject"] or str(found) for one in chain],
        "root_sha256": describe_certificate(chain[-1])["sha256"],
    }
    print_values(as_json, values)


def load_bundle(file: Path) -> tuple[x509.Certificate, ...]:
    """Return the roots in a file: PEM certificates, or a SPIFFE bundle; the latter may have none.

    Raises:
        Failure: it is neither.
        OSError: it cannot be read.

    """
    content = read_input(file, MAX_PEM_BYTES)
    try:
        if content.lstrip()[:1] == b"{":
            return parse_spiffe_bundle(content).x509_authorities
        return parse_certificates(content)
    except ValueError as error:
        raise Failure(f"{name_of(file)}: {error}", EXIT_UNUSABLE) from error


def _certificates(file: Path) -> tuple[x509.Certificate, ...]:
    try:
        return parse_certificates(read_input(file, MAX_PEM_BYTES))
    except ValueError as error:
        raise Failure(f"{name_of(file)}: {error}", EXIT_UNUSABLE) from error


@click.command(epilog=EXIT_CODES)
@dir_option
@click.option(
    "--format",
    "form",
    type=click.Choice(["pem", "spiffe"]),
    default="pem",
    show_default=True,
    help="PEM, or the SPIFFE bundle format (JSON).",
)
@ledger_option
@json_option
def bundle(directory: Path, form: str, *, ledger: LedgerPlace, as_json: bool) -> None:
    """Print the trust bundle: the roots that others verify our SVIDs with. --json is --format spiffe.

    No private key is read, so no passphrase is needed. The SPIFFE format has the keys for tokens too, and the
    number of the bundle, which is kept in the ledger.

    \b
    Example:
      ca bundle --dir ./pki > bundle.pem
    """
    certificates = CaCertificates.load(directory)
    if as_json or form == "spiffe":
        click.echo(format_spiffe_bundle(_published(directory, certificates, ledger)))
    else:
        click.echo(format_certificates(certificates.roots).decode(), nl=False)


def _published(directory: Path, certificates: CaCertificates, ledger: LedgerPlace) -> SpiffeBundle:
    keys, others = published_authorities(directory), directory / ISSUERS
    issuers = _certificates(others) if others.exists() else ()
    found = SpiffeBundle(
        certificates.roots,
        keys,
        refresh_hint=REFRESH_HINT_SECONDS,
        x509_intermediates=published_intermediates(
            certificates.trust_domain, (*certificates.chain, *issuers)
        ),
    )
    try:
        with open_ledger(directory, ledger) as opened:
            sequence = opened.publish_bundle(found.digest, now=clock.now(), by=operator())
    except GarrisonError as error:
        # As in a folder that is mounted read-only: a bundle without a number is one too (section 4.1.1).
        warn(f"the bundle has no number: {error}")
        return found
    return replace(found, sequence=sequence)
