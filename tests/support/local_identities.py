"""The identities of a CA in this process, with a ledger in a folder."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from ca.attestation import Registrations
from ca.authority import Authority
from ca.jwt_key_store import JwtKeyStore
from ca.local_identities import LocalIdentities
from ca.recording import Recorder, RecordingIssuer
from ca.registration import Registration
from ca.store.sqlite import SqliteLedger


@contextlib.asynccontextmanager
async def local_identities(
    folder: Path, authority: Authority, registrations: Sequence[Registration], **options: Any
) -> AsyncIterator[LocalIdentities]:
    """Keep identities of `authority`; `options` are those of `LocalIdentities`."""
    ledger = SqliteLedger.of(folder)
    recorder = Recorder(ledger)
    try:
        yield LocalIdentities(
            Registrations(registrations),
            RecordingIssuer(lambda: authority, recorder),
            jwt_keys=JwtKeyStore(folder),
            number=lambda digest, now: ledger.publish_bundle(digest, now=now, by="test"),
            **options,
        )
    finally:
        await asyncio.to_thread(recorder.close)
        ledger.close()
