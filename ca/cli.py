"""The `ca` command: thin, every rule lives in `ca.authority` and below."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from ca.atomic_files import write_file
from ca.authority import Authority, Hierarchy
from ca.bundle import format_spiffe_bundle
from ca.commands.audit import audit
from ca.commands.base import (
    DIRECTORY,
    DURATION,
    EXIT_CODES,
    EXIT_UNUSABLE,
    Commands,
    Failure,
    Parsed,
    dir_option,
    json_option,
    print_values,
)
from ca.commands.certificates import crl, list_certificates, revoke
from ca.commands.entries import entry
from ca.commands.ledger import ledger_option, open_ledger, record_issue
from ca.commands.tokens import token
from ca.describe import describe_certificate, describe_file, format_description
from ca.issuer import DEFAULT_TTL
from ca.keys import new_private_key, private_key_pem
from garrison.identity import SpiffeId, TrustDomain


@click.group(
    cls=Commands,
    epilog="\b\nExample:\n  ca init --dir ./pki --trust-domain cluster.local\n\n" + EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
def ca() -> None:
    """Make a certificate authority for SPIFFE identities, issue from it, and look at certificates."""


@ca.command(epilog=EXIT_CODES)
@dir_option
@click.option(
    "--trust-domain",
    type=Parsed("trust domain", TrustDomain.parse),
    required=True,
    help="Such as cluster.local.",
)
@json_option
def init(directory: Path, trust_domain: TrustDomain, as_json: bool) -> None:  # noqa: FBT001
    """Make a root and an intermediate in a directory that has no CA yet.

    The root key is needed again only for the next intermediate: move root-key.pem off this machine.

    \b
    Example:
      ca init --dir ./pki --trust-domain cluster.local
    """
    hierarchy = Hierarchy.create(trust_domain, now=datetime.now(UTC))
    hierarchy.save(directory)
    root = describe_certificate(hierarchy.root)
    print_values(
        as_json,
        {
            "directory": str(directory),
            "trust_domain": str(trust_domain),
            "root_sha256": root["sha256"],
            "root_not_after": root["not_after"],
            "ca_not_after": f"{hierarchy.issuer.certificate.not_valid_after_utc:%FT%TZ}",
        },
    )


@ca.command(epilog=EXIT_CODES)
@dir_option
@click.argument("spiffe_id", type=Parsed("spiffe_id", SpiffeId.parse))
@click.option("--out", type=DIRECTORY, required=True, help="Where svid.pem, svid.key and bundle.pem go.")
@click.option(
    "--ttl",
    type=DURATION,
    default=DEFAULT_TTL,
    help="How long it is valid: 1h if not given, at most 24h.",
)
@click.option("--dns", "dns_names", multiple=True, metavar="NAME", help="A DNS name to add; repeatable.")
@click.option("--force", is_flag=True, help="Replace files that exist.")
@ledger_option
@json_option
def issue(
    directory: Path,
    spiffe_id: SpiffeId,
    out: Path,
    ttl: timedelta,
    dns_names: tuple[str, ...],
    *,
    ledger: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Issue an X509-SVID with a new key: svid.pem (leaf, intermediate), svid.key, bundle.pem.

    It is recorded before any file is written.

    \b
    Example:
      ca issue --dir ./pki spiffe://cluster.local/ns/default/sa/web --out ./web
    """
    authority = Authority.load(directory)
    key = new_private_key()
    now = datetime.now(UTC)
    svid = authority.issue(spiffe_id, key.public_key(), now=now, ttl=ttl, dns_names=dns_names)
    files = {
        out / "bundle.pem": (authority.bundle_pem(), 0o644),
        out / "svid.key": (private_key_pem(key), 0o600),
        out / "svid.pem": (svid.chain_pem, 0o644),
    }
    taken = [str(path) for path in files if os.path.lexists(path)]
    if taken and not force:
        raise Failure(f"{', '.join(taken)}: exists already (--force replaces)", EXIT_UNUSABLE)
    with open_ledger(directory, ledger) as opened:
        record_issue(opened, svid, now=now)
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path, (content, mode) in files.items():
        write_file(path, content, mode=mode, replace=force)
    description = describe_certificate(svid.leaf)
    shown = ("spiffe_id", "names", "not_after", "serial", "sha256")
    print_values(
        as_json, {**{name: description[name] for name in shown}, "files": [str(path) for path in files]}
    )


@ca.command(epilog=EXIT_CODES)
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@json_option
def show(file: Path, as_json: bool) -> None:  # noqa: FBT001
    """Show every certificate in FILE (- reads stdin): PEM, DER, a signing request, or a SPIFFE bundle.

    \b
    Example:
      ca show ./web/svid.pem
    """
    standard_input = str(file) == "-"
    content = sys.stdin.buffer.read() if standard_input else file.read_bytes()
    try:
        descriptions = describe_file(content)
    except ValueError as error:
        name = "standard input" if standard_input else file
        raise Failure(f"{name}: {error}", EXIT_UNUSABLE) from error
    if as_json:
        click.echo(json.dumps(descriptions, indent=2))
    else:
        click.echo("\n\n".join(format_description(description) for description in descriptions))


@ca.command(epilog=EXIT_CODES)
@dir_option
@click.option(
    "--format",
    "form",
    type=click.Choice(["pem", "spiffe"]),
    default="pem",
    show_default=True,
    help="PEM, or the SPIFFE bundle format (JSON).",
)
@json_option
def bundle(directory: Path, form: str, as_json: bool) -> None:  # noqa: FBT001
    """Print the trust bundle: the roots that others verify our SVIDs with. --json is --format spiffe.

    \b
    Example:
      ca bundle --dir ./pki > bundle.pem
    """
    authority = Authority.load(directory)
    if as_json or form == "spiffe":
        click.echo(format_spiffe_bundle(authority.roots))
    else:
        click.echo(authority.bundle_pem().decode(), nl=False)


for _command in (list_certificates, revoke, crl, entry, token, audit):
    ca.add_command(_command)


def main() -> None:
    """Run the `ca` command and exit."""
    sys.exit(ca(prog_name="ca"))
