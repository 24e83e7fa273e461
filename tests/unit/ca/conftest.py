"""A CA in memory and a clock that stands still."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from support.clocks import Clock

from ca.authority import Authority, Hierarchy
from garrison.identity import TrustDomain

NOW = datetime(2030, 1, 2, 3, 4, 5, 678, tzinfo=UTC)


@pytest.fixture(scope="session")
def now() -> datetime:
    """Return the moment at which the CA was made and everything happens."""
    return NOW


@pytest.fixture(scope="session")
def hierarchy(now: datetime) -> Hierarchy:
    """Return a root and an intermediate of `cluster.local`."""
    return Hierarchy.create(TrustDomain("cluster.local"), now=now)


@pytest.fixture(scope="session")
def authority(hierarchy: Hierarchy) -> Authority:
    """Return the CA of `hierarchy`, ready to issue."""
    return hierarchy.authority()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the clock that commands read."""
    clock = Clock(NOW.replace(microsecond=0))
    monkeypatch.setattr("ca.commands.clock.now", lambda: clock.now)
    return clock
