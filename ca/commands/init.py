"""`ca init`: a new authority, one plugged in, or one whose root is elsewhere."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from ca.authority import Hierarchy
from ca.commands.base import (
    EXIT_CODES,
    EXIT_UNUSABLE,
    Failure,
    Parsed,
    dir_option,
    json_option,
    passphrase_option,
    passphrase_source,
    print_values,
    warn,
)
from ca.describe import describe_certificate
from garrison.identity import TrustDomain


def new_keys_passphrase(directory: Path, file: Path | None, *, no_passphrase: bool) -> bytes | None:
    """Return what the keys of a new CA are encrypted with; None: they are not.

    Raises:
        Failure: it is given, and unwanted.
        ConfigError: it cannot be used.

    """
    if not no_passphrase:
        return passphrase_source(file).to_write(f"the keys in {directory}")
    if file is not None:
        raise Failure("--no-passphrase and --passphrase-file exclude each other", EXIT_UNUSABLE)
    return None


@click.command(epilog=EXIT_CODES)
@dir_option
@click.option(
    "--trust-domain",
    type=Parsed("trust domain", TrustDomain.parse),
    required=True,
    help="Such as cluster.local.",
)
@passphrase_option
@click.option("--no-passphrase", is_flag=True, help="Leave the keys unencrypted; do not ask or warn.")
@json_option
def init(
    directory: Path,
    trust_domain: TrustDomain,
    passphrase_file: Path | None,
    *,
    no_passphrase: bool,
    as_json: bool,
) -> None:
    """Make a root and an intermediate in a directory that has no CA yet.

    The root key is needed again only for the next intermediate: move root-key.pem off this machine.

    \b
    Example:
      ca init --dir ./pki --trust-domain cluster.local --passphrase-file ./passphrase
    """
    passphrase = new_keys_passphrase(directory, passphrase_file, no_passphrase=no_passphrase)
    hierarchy = Hierarchy.create(trust_domain, now=datetime.now(UTC))
    hierarchy.save(directory, passphrase)
    root = describe_certificate(hierarchy.root)
    print_values(
        as_json,
        {
            "directory": str(directory),
            "trust_domain": str(trust_domain),
            "root_sha256": root["sha256"],
            "root_not_after": root["not_after"],
            "ca_not_after": f"{hierarchy.issuer.certificate.not_valid_after_utc:%FT%TZ}",
            "keys_encrypted": passphrase is not None,
        },
    )
    if passphrase is None and not no_passphrase and not as_json:
        warn(f"the keys are not encrypted; `ca passphrase --dir {directory}` encrypts them")
