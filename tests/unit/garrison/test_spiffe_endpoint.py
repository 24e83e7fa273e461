"""The certificate of a bundle endpoint: recorded, renewed at half of its life, never on a disk."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog

from ca.authority import Authority, Hierarchy
from ca.ledger import CertificateQuery
from ca.recording import Recorder, RecordingIssuer
from ca.store.sqlite import SqliteLedger
from garrison.identity import SpiffeId, TrustDomain
from garrison.process.spiffe_endpoint import SpiffeEndpoint

ENDPOINT_ID = SpiffeId.parse("spiffe://cluster.local/bundles")
START = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@dataclass
class Lab:
    """An endpoint whose clock is the test's, and the contexts that it put in force."""

    ledger: SqliteLedger
    recorder: Recorder
    authority: Authority
    now: datetime = START

    def __post_init__(self) -> None:
        self.contexts: list[ssl.SSLContext] = []
        self.endpoint = SpiffeEndpoint(
            RecordingIssuer(lambda: self.authority, self.recorder),
            ENDPOINT_ID,
            self.contexts.append,
            now=lambda: self.now,
            jitter=lambda: 0.5,
        )

    async def keep(self, after: timedelta = timedelta(0)) -> int:
        """Let time pass, and return how many certificates there were by then."""
        self.now += after
        await self.endpoint.keep()
        return len(self.contexts)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """Return an endpoint of a new CA."""
    ledger = SqliteLedger.of(tmp_path)
    recorder = Recorder(ledger)
    yield Lab(ledger, recorder, new_authority())
    recorder.close()
    ledger.close()


def new_authority(name: str = "cluster.local") -> Authority:
    """Return a new CA."""
    return Hierarchy.create(TrustDomain(name), now=START).authority()


def issued(lab: Lab) -> Any:
    """Return what is recorded, newest first."""
    return lab.ledger.issued(CertificateQuery(), now=lab.now).certificates


def test_it_is_recorded_and_renewed_at_half_of_its_life(lab: Lab) -> None:
    """With a new key each; not before it is due."""

    async def main() -> None:
        assert [await lab.keep(), await lab.keep(), await lab.keep(29 * MINUTE)] == [1, 1, 1]
        assert await lab.keep(MINUTE) == 2
        newest, oldest = issued(lab)
        assert newest.serial != oldest.serial
        assert {(one.spiffe_id, one.attested_by) for one in (newest, oldest)} == {
            (ENDPOINT_ID, "bundle_endpoint")
        }

    asyncio.run(main())


def test_a_ca_that_signs_with_another_key_signs_it_anew(lab: Lab) -> None:
    """Whoever follows our bundle must go on to believe us when the old key goes."""

    async def main() -> None:
        await lab.keep()
        lab.authority = new_authority()
        assert await lab.keep(MINUTE) == 2
        assert await lab.keep(MINUTE) == 2

    asyncio.run(main())


def test_what_cannot_be_issued_is_tried_again(lab: Lab) -> None:
    """After a pause; what is there stays, and one line says why."""

    async def main() -> None:
        good, lab.authority = lab.authority, new_authority("other.test")
        with structlog.testing.capture_logs() as logs:
            assert [await lab.keep() for _ in range(3)] == [0, 0, 0]
        assert [one["event"] for one in logs] == ["bundle endpoint not renewed"]
        lab.authority = good
        assert await lab.keep(MINUTE) == 1

    asyncio.run(main())
