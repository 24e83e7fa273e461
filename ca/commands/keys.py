"""`ca passphrase`: encrypt the keys of a CA, with another passphrase, or not at all."""

from __future__ import annotations

from pathlib import Path

import click

from ca.authority import load_key
from ca.authority_files import key_files
from ca.commands.base import (
    EXIT_CODES,
    EXIT_PASSPHRASE,
    EXIT_UNUSABLE,
    FILE,
    Failure,
    dir_option,
    json_option,
    new_passphrase_source,
    passphrase_option,
    passphrase_source,
    print_values,
)
from ca.directory import NewFile, install, locked
from ca.jwt_key_store import JWT_KEYS, JwtKeyStore
from ca.keys import key_file
from ca.passphrase import NEW_ENVIRONMENT


@click.command(epilog=EXIT_CODES)
@dir_option
@passphrase_option
@click.option(
    "--new-passphrase-file",
    type=FILE,
    help=f"A file with the new passphrase; without, {NEW_ENVIRONMENT}, or you are asked.",
)
@click.option("--remove", is_flag=True, help="Write the keys unencrypted.")
@json_option
def passphrase(
    directory: Path,
    passphrase_file: Path | None,
    new_passphrase_file: Path | None,
    *,
    remove: bool,
    as_json: bool,
) -> None:
    """Encrypt the keys in a CA's directory, with another passphrase, or with none (--remove).

    All keys that are there are written anew, all or none.

    \b
    Example:
      ca passphrase --dir ./pki --new-passphrase-file ./passphrase
    """
    if remove and new_passphrase_file is not None:
        raise Failure("--remove and --new-passphrase-file exclude each other", EXIT_UNUSABLE)
    old = passphrase_source(passphrase_file)
    keys = {name: load_key(directory / name, old.to_read) for name in key_files(directory)}
    if not keys:
        raise Failure(f"{directory}: there is no key here", EXIT_UNUSABLE)
    new = None if remove else new_passphrase_source(new_passphrase_file).to_write(f"the keys in {directory}")
    if new is None and not remove:
        message = f"there is no new passphrase: set {NEW_ENVIRONMENT} or give --new-passphrase-file"
        raise Failure(message, EXIT_PASSPHRASE)
    with locked(directory):
        files = {name: NewFile(key_file(key, new), 0o600) for name, key in keys.items()}
        for_tokens = JwtKeyStore(directory, passphrase=old).reencrypted(new)
        if for_tokens is not None:
            files[JWT_KEYS] = NewFile(for_tokens, 0o600)
        install(directory, files)
    print_values(as_json, {"directory": str(directory), "keys": list(files), "encrypted": new is not None})
