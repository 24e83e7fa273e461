"""`spiffe_sequence`: which of two bundles is the newer one, remembered in the directory of the CA."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from cryptography import x509

from ca.atomic_files import write_file
from ca.bundle import REFRESH_HINT_SECONDS, SpiffeBundle
from ca.jwt_key_store import JwtKeyStore, locked

BUNDLE_SEQUENCE = "bundle-sequence.json"


def bundle_sequence(directory: Path, digest: str, now: datetime) -> int:
    """Return the number of the bundle with this `digest`: the last one, or a greater one if that was another.

    A new number is the time in seconds if that is greater, so that a file that was lost sets nothing back.

    Raises:
        OSError: the number cannot be written down.

    """
    path = directory / BUNDLE_SEQUENCE
    known = _read(path)
    if known is not None and known[1] == digest:
        return known[0]
    with locked(directory):
        known = _read(path)
        if known is not None and known[1] == digest:
            return known[0]
        sequence = max(int(now.timestamp()), known[0] + 1 if known else 1)
        content = json.dumps({"sequence": sequence, "sha256": digest}).encode() + b"\n"
        write_file(path, content, mode=0o644, replace=True)
        return sequence


def published_bundle(directory: Path, roots: Sequence[x509.Certificate], now: datetime) -> SpiffeBundle:
    """Return `roots` and the keys for tokens in `directory` as a bundle; without number if none can be kept.

    Raises:
        ConfigError: the keys for tokens cannot be read.

    """
    keys = JwtKeyStore(directory).published().authorities()
    bundle = SpiffeBundle(tuple(roots), keys, refresh_hint=REFRESH_HINT_SECONDS)
    try:
        return replace(bundle, sequence=bundle_sequence(directory, bundle.digest, now))
    except OSError:
        return bundle


def _read(path: Path) -> tuple[int, str] | None:
    try:
        found = json.loads(path.read_bytes())
        return int(found["sequence"]), str(found["sha256"])
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None  # what cannot be read counts as lost
