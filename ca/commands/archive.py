"""`ca backup` and `ca restore`: a CA in one file, and back."""

from __future__ import annotations

import os
from pathlib import Path

import click

from ca.archive import LEDGER, MAX_LEDGER_BYTES, copy_ledger, is_key, members_in, pack, unpack
from ca.atomic_files import write_file
from ca.authority import CA_CERT, CaCertificates, load_encryption
from ca.commands import clock
from ca.commands.base import (
    DIRECTORY,
    EXIT_CODES,
    EXIT_REFUSED,
    EXIT_UNUSABLE,
    FILE,
    Failure,
    dir_option,
    force_option,
    json_option,
    print_values,
    read_input,
)
from ca.directory import install, locked
from ca.jwt_key_store import JWT_KEYS, has_plain_keys
from ca.key_encryption import PLAIN


@click.command(epilog=EXIT_CODES)
@dir_option
@click.option("--out", type=FILE, required=True, help="The archive to write, mode 0600.")
@click.option("--allow-unencrypted", is_flag=True, help="Also keys that are not encrypted.")
@force_option
@json_option
def backup(directory: Path, out: Path, *, allow_unencrypted: bool, force: bool, as_json: bool) -> None:
    """Write a CA to one archive: certificates, keys as they are, and the ledger of what was issued.

    Keys stay encrypted, and the passphrase is not in the archive: keep both, apart. Without
    --allow-unencrypted, keys that are not encrypted are refused.

    \b
    Example:
      ca backup --dir ./pki --out pki.tar
    """
    CaCertificates.load(directory)
    if os.path.lexists(out) and not force:
        raise Failure(f"{out}: exists already (--force replaces)", EXIT_UNUSABLE)
    with locked(directory):
        present = members_in(directory)
        plain = [name for name in present if is_key(name) and load_encryption(directory / name) == PLAIN]
        if JWT_KEYS in present and has_plain_keys(directory / JWT_KEYS):
            plain.append(JWT_KEYS)
        if plain and not allow_unencrypted:
            message = (
                f"{', '.join(plain)}: not encrypted; encrypt with `ca passphrase`, or --allow-unencrypted"
            )
            raise Failure(message, EXIT_REFUSED)
        files = {name: (directory / name).read_bytes() for name in present if name != LEDGER}
        if LEDGER in present:
            # Under the lock: who signs by the ledger must be who lies there.
            try:
                files[LEDGER] = copy_ledger(directory / LEDGER)
            except ValueError as error:
                raise Failure(f"{directory / LEDGER}: {error}", EXIT_UNUSABLE) from error
    write_file(out, pack(files, clock.now()), mode=0o600, replace=force)
    print_values(as_json, {"archive": str(out), "files": list(files), "keys_encrypted": not plain})


@click.command(epilog=EXIT_CODES)
@click.argument("archive", type=FILE)
@click.option("--dir", "directory", type=DIRECTORY, required=True, help="An empty or new directory.")
@json_option
def restore(archive: Path, directory: Path, *, as_json: bool) -> None:
    """Write the CA in ARCHIVE to an empty directory: all of it, or nothing if the archive is damaged.

    What happened after the backup is not in its ledger: what was revoked since must be revoked again.

    \b
    Example:
      ca restore pki.tar --dir ./pki
    """
    try:
        files = unpack(read_input(archive, MAX_LEDGER_BYTES))
    except ValueError as error:
        raise Failure(f"{archive}: {error}", EXIT_UNUSABLE) from error
    if CA_CERT not in files:
        raise Failure(f"{archive}: it holds no CA", EXIT_UNUSABLE)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(directory):
        # What an interrupted attempt was still writing does not count.
        if any(not path.name.startswith(".new-") for path in directory.iterdir()):
            raise Failure(f"{directory}: not empty, nothing is replaced by a backup", EXIT_UNUSABLE)
        directory.chmod(0o700)
        install(directory, files)
    public = CaCertificates.load(directory)
    print_values(
        as_json,
        {"directory": str(directory), "trust_domain": str(public.trust_domain), "files": list(files)},
    )
