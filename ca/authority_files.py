"""Where the files of each authority of a CA are.

In the directory of a CA lie the files of the one that signs, under the names they always had, and beside them

| file                       | content                                                                   |
| -------------------------- | ------------------------------------------------------------------------- |
| `authorities/KEY/…`        | the same files for one authority each; KEY is the hash of its public key   |
| `root-cert.pem`            | the roots of all that are published: the trust bundle                      |
| `issuers.pem`              | their intermediates, to verify leaves that come without                    |
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from cryptography import x509

from ca.authority import (
    CA_CERT,
    CA_KEY,
    CERT_CHAIN,
    REQUEST,
    ROOT_CERT,
    ROOT_KEY,
    Authority,
    CaCertificates,
    is_issued_by,
)
from ca.crl import key_identifier_of
from ca.issuer import Issuer
from garrison.documents import Diagnostic, Position
from garrison.errors import ConfigError, IssuanceError

FOLDER = "authorities"
ISSUERS = "issuers.pem"
OWN = (CA_KEY, CA_CERT, CERT_CHAIN)
# In a folder that was just written, until the ledger knows of it. What the ledger does not know otherwise was
# used before that ledger was lost, and must not sign again.
UNRECORDED = "unrecorded"


def folder_of(public_key: object) -> str:
    """Return where in a CA's directory the authority with this key is kept."""
    identifier = x509.SubjectKeyIdentifier.from_public_key(public_key)  # type: ignore[arg-type]  # any key
    return f"{FOLDER}/{identifier.digest.hex()}"


def load_issuer(directory: Path, key_id: str, passphrase: Callable[[Path], bytes]) -> Issuer:
    """Return the issuer of that key identifier, whichever authority of the CA it is.

    Raises:
        ConfigError: its files are not here, or cannot be used.

    """
    for place in (directory, *folders_in(directory)):
        if (place / CA_CERT).exists():
            public = CaCertificates.load(place)
            if key_identifier_of(public.certificate) == key_id:
                return Authority.load(place, passphrase).issuer
    raise unusable(directory, f"the files of authority {key_id} are not here")


def key_files(directory: Path) -> list[str]:
    """Return the names of all keys in the directory of a CA."""
    places = ("", *(f"{FOLDER}/{path.name}/" for path in folders_in(directory)))
    return [
        f"{place}{name}"
        for place in places
        for name in (CA_KEY, ROOT_KEY)
        if (directory / f"{place}{name}").exists()
    ]


def folders_in(directory: Path) -> list[Path]:
    """Return the folders of authorities, complete or waiting for an answer."""
    try:
        found = sorted((directory / FOLDER).iterdir())
    except FileNotFoundError:
        return []
    return [path for path in found if path.is_dir() and not path.name.startswith(".")]


def waiting_in(directory: Path) -> list[Path]:
    """Return the folders of keys that an outside root was asked to sign, and has not answered."""
    return [
        folder
        for folder in folders_in(directory)
        if (folder / REQUEST).exists() and not (folder / CA_CERT).exists()
    ]


def root_key_path(directory: Path, root: x509.Certificate) -> Path | None:
    """Return where the key of that root is, None if it is not in the directory."""
    for place in (directory, *folders_in(directory)):
        if not (place / ROOT_KEY).exists():
            continue
        public = CaCertificates.load(place)
        if root_of(public) == root:
            return place / ROOT_KEY
    return None


def root_of(public: CaCertificates) -> x509.Certificate:
    """Return the root that the chain ends in; that it verifies under it was found out when it was loaded.

    Raises:
        IssuanceError: none of the roots is.

    """
    for root in public.roots:
        if root == public.certificate or any(is_issued_by(link, root) for link in public.chain):
            return root
    raise IssuanceError(f"`{CERT_CHAIN}` does not end in a root of `{ROOT_CERT}`")


def is_writable(directory: Path) -> bool:
    """Tell whether authorities may follow each other here: a mounted Secret is served as it is."""
    return os.access(directory, os.W_OK)


def is_same(path: Path, content: bytes) -> bool:
    """Tell whether a file holds that."""
    try:
        return path.read_bytes() == content
    except FileNotFoundError:
        return False


def mode_of(name: str) -> int:
    """Return the permissions of a file of that name."""
    return 0o600 if name in {CA_KEY, ROOT_KEY} else 0o644


def unusable(path: Path, message: str) -> ConfigError:
    """Return the error that says what is wrong with files."""
    return ConfigError([Diagnostic(str(path), Position(1, 1), (), "authority", message)])
