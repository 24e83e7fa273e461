"""`ca show` and `ca bundle`: what is there, for people and for others to verify with."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from ca.authority import CaCertificates
from ca.bundle import format_certificates, format_spiffe_bundle
from ca.commands.base import EXIT_CODES, EXIT_UNUSABLE, READABLE, Failure, dir_option, json_option, name_of
from ca.describe import describe_file, format_description


@click.command(epilog=EXIT_CODES)
@click.argument("file", type=READABLE)
@json_option
def show(file: Path, as_json: bool) -> None:  # noqa: FBT001
    """Show every certificate in FILE (- reads stdin): PEM, DER, a signing request, or a SPIFFE bundle.

    \b
    Example:
      ca show ./web/svid.pem
    """
    content = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    try:
        descriptions = describe_file(content)
    except ValueError as error:
        raise Failure(f"{name_of(file)}: {error}", EXIT_UNUSABLE) from error
    if as_json:
        click.echo(json.dumps(descriptions, indent=2))
    else:
        click.echo("\n\n".join(format_description(description) for description in descriptions))


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
@json_option
def bundle(directory: Path, form: str, as_json: bool) -> None:  # noqa: FBT001
    """Print the trust bundle: the roots that others verify our SVIDs with. --json is --format spiffe.

    No key is read, so no passphrase is needed.

    \b
    Example:
      ca bundle --dir ./pki > bundle.pem
    """
    roots = CaCertificates.load(directory).roots
    if as_json or form == "spiffe":
        click.echo(format_spiffe_bundle(roots))
    else:
        click.echo(format_certificates(roots).decode(), nl=False)
