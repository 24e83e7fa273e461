"""An SVID is kept while it is valid, replaced when it is due, and kept when it cannot be replaced."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

import pytest
from support.ledgers import issued_by

from ca.authority import Authority
from ca.keys import new_private_key
from ca.registration import Registration
from ca.svid_cache import MIN_INTERVAL, HeldSvid, SvidCache
from garrison.errors import IssuanceError
from garrison.identity import SpiffeId

WEB = Registration.parse("spiffe://cluster.local/web", ["unix:uid:1"])
API = Registration.parse("spiffe://cluster.local/api", ["unix:uid:1"], timedelta(minutes=10))


class Held:
    """A cache that is asked without an event loop, without jitter by default."""

    def __init__(self, authority: Authority, random: float = 0.5, **options: Any) -> None:
        self.cache = SvidCache(issued_by(authority), random=lambda: random, **options)

    @property
    def next_renewal(self) -> datetime | None:
        """When the first is due."""
        return self.cache.next_renewal

    def get(self, registration: Registration, now: datetime) -> HeldSvid:
        """Get an SVID."""
        return asyncio.run(self.cache.get(registration, now))

    def renew(self, now: datetime, *, all_of_them: bool = False) -> tuple[set[SpiffeId], list[IssuanceError]]:
        """Renew what is due."""
        return asyncio.run(self.cache.renew(now, all_of_them=all_of_them))


def test_one_svid_serves_until_it_ends(authority: Authority, now: datetime) -> None:
    """Also an overdue SVID is handed out while it is valid; after that there is a new one with a new key."""
    held = Held(authority)
    first = held.get(WEB, now)
    assert held.get(WEB, now + timedelta(minutes=59)) is first
    second = held.get(WEB, first.svid.not_after)
    assert second.svid.leaf.public_key() != first.svid.leaf.public_key()


def test_only_what_is_due_is_renewed(authority: Authority, now: datetime) -> None:
    """Each SVID has its own time; forced, all are replaced."""
    held = Held(authority)
    assert held.next_renewal is None
    web, api = held.get(WEB, now), held.get(API, now)
    assert held.next_renewal == api.renew_at
    assert held.renew(api.renew_at) == ({API.spiffe_id}, [])
    assert held.get(WEB, now) is web
    assert held.renew(api.renew_at, all_of_them=True) == ({WEB.spiffe_id, API.spiffe_id}, [])
    assert held.get(WEB, now) is not web


def test_a_refused_renewal_keeps_the_old_and_tries_again(authority: Authority, now: datetime) -> None:
    """When the CA refuses, the SVID stays, and is due again after a part of its rest, never at once."""
    held = Held(authority)
    start = authority.not_after - timedelta(minutes=30)
    first = held.get(WEB, start)
    assert first.svid.not_after == authority.not_after
    late = authority.not_after + timedelta(seconds=1)
    renewed, refused = held.renew(late)
    assert (renewed, len(refused)) == (set(), 1)
    assert held.next_renewal == late + MIN_INTERVAL
    with pytest.raises(IssuanceError, match="expired"):
        held.get(WEB, late)


def test_near_the_end_of_the_ca_it_is_not_asked_all_the_time(authority: Authority, now: datetime) -> None:
    """However short the life that is left, renewals keep a distance."""
    held = Held(authority)
    moment = authority.not_after - timedelta(seconds=3)
    assert held.get(WEB, moment).renew_at == moment + MIN_INTERVAL


def test_jitter_spreads_renewal_around_half_of_the_life(authority: Authority, now: datetime) -> None:
    """The earliest and the latest renewal lie a tenth around half-life."""
    key = new_private_key()
    life = timedelta(hours=1) - timedelta(microseconds=now.microsecond)
    for random, share in ((0.0, 0.45), (0.5, 0.5), (1.0, 0.55)):
        held = Held(authority, random, new_key=lambda: key)
        due = held.get(WEB, now).renew_at
        assert abs(due - (now + life * share)) < timedelta(milliseconds=1)
