"""A CA in one file: a tar archive whose manifest has the SHA-256 of each member.

Only names that a CA has are put in or taken out, so an archive cannot write anywhere else.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import sqlite3
import tarfile
import tempfile
from collections.abc import Mapping
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

from ca.authority import CA_CERT, CA_KEY, CERT_CHAIN, REQUEST, ROOT_CERT, ROOT_KEY
from ca.authority_files import FOLDER, ISSUERS
from ca.directory import NewFile
from ca.jwt_key_store import JWT_KEYS

MANIFEST = "manifest.json"
LEDGER = "ledger.sqlite3"
KEYS = (CA_KEY, ROOT_KEY)
SECRETS = frozenset({JWT_KEYS, LEDGER})
# In this order in the archive; the last ones may be missing.
MEMBERS = (CA_KEY, CA_CERT, CERT_CHAIN, ROOT_CERT, ROOT_KEY, REQUEST, JWT_KEYS, ISSUERS, LEDGER)
# Of the authorities before and after the one that signs.
_OTHERS = (CA_KEY, CA_CERT, CERT_CHAIN, ROOT_CERT, ROOT_KEY, REQUEST)
_OTHER = re.compile(rf"{FOLDER}/[0-9a-f]{{40}}/({'|'.join(map(re.escape, _OTHERS))})")
MAX_MEMBER_BYTES = 1024 * 1024
# Some millions of issued certificates.
MAX_LEDGER_BYTES = 4 * 1024 * 1024 * 1024
_VERSION = 1


def members_in(directory: Path) -> list[str]:
    """Return the names of what belongs into a backup of the CA in `directory`, the ledger last."""
    others = [str(path.relative_to(directory)) for path in sorted((directory / FOLDER).glob("*/*"))]
    found = [*MEMBERS[:-1], *(name for name in others if _OTHER.fullmatch(name)), LEDGER]
    return [name for name in found if (directory / name).exists()]


def is_key(name: str) -> bool:
    """Tell whether the member of that name is a private key."""
    return name.rpartition("/")[2] in KEYS


def copy_ledger(path: Path) -> bytes:
    """Return a consistent copy of the ledger, also while it is written to.

    Raises:
        ValueError: it is not an SQLite database.
        OSError: it cannot be read.

    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".backup-") as folder:
        copy = Path(folder) / LEDGER
        try:
            with (
                closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as source,
                closing(sqlite3.connect(copy)) as target,
            ):
                source.backup(target)
        except sqlite3.Error as error:
            raise ValueError(f"the ledger cannot be copied: {error}") from error
        return copy.read_bytes()


def pack(files: Mapping[str, bytes], made_at: datetime) -> bytes:
    """Return the archive of `files`, whose names are those of `members_in`."""
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    about = {"garrison_ca_backup": _VERSION, "made_at": f"{made_at:%FT%TZ}", "sha256": digests}
    manifest = json.dumps(about, indent=2).encode()
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in ((MANIFEST, manifest), *files.items()):
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.mtime = len(content), 0o600, int(made_at.timestamp())
            archive.addfile(member, io.BytesIO(content))
    return written.getvalue()


def unpack(content: bytes) -> dict[str, NewFile]:
    """Return the files of an archive, each as its manifest says.

    Raises:
        ValueError: it is not such an archive, is damaged or cut short, or has a member that no CA has.

    """
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            for member in archive:
                most = MAX_LEDGER_BYTES if member.name == LEDGER else MAX_MEMBER_BYTES
                known = member.name in {MANIFEST, *MEMBERS} or _OTHER.fullmatch(member.name)
                if not known or member.name in found or not member.isreg():
                    raise ValueError("it has a member that no backup of a CA has")
                if member.size > most:
                    raise ValueError(f"its member `{member.name}` is too large")
                opened = archive.extractfile(member)
                assert opened is not None  # noqa: S101 - a regular member
                found[member.name] = opened.read()
    except (tarfile.TarError, EOFError, OverflowError, UnicodeError) as error:
        raise ValueError("it is not a backup of a CA, or cut short") from error
    digests = _digests(found.pop(MANIFEST, b""))
    if digests != {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}:
        raise ValueError("it is damaged: its members are not what its manifest says")
    return {
        name: NewFile(data, 0o600 if is_key(name) or name in SECRETS else 0o644)
        for name, data in found.items()
    }


def _digests(manifest: bytes) -> Any:
    try:
        about = json.loads(manifest)
        version, digests = about["garrison_ca_backup"], about["sha256"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError("it is not a backup of a CA: its manifest is missing or malformed") from error
    if version != _VERSION:
        raise ValueError("its manifest is of another version")
    return digests
