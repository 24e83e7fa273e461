"""An SVID is kept while it is valid, replaced when it is due, and kept when it cannot be replaced."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, NoReturn

import pytest

from ca.authority import Authority, X509Svid
from ca.keys import PublicKey, new_private_key
from ca.registration import Registration
from ca.renewal import MIN_INTERVAL
from ca.svid_cache import HeldSvid, SvidCache
from garrison.errors import IssuanceError

WEB = Registration.parse("spiffe://cluster.local/web", ["unix:uid:1"])
API = Registration.parse("spiffe://cluster.local/api", ["unix:uid:1"], timedelta(minutes=10))


class Cache:
    """A cache without jitter and without waiting: it issues from `authority`."""

    def __init__(self, authority: Authority, **options: Any) -> None:
        self.authority = authority
        self.held = SvidCache(**{"random": lambda: 0.5, **options})
        self.expire, self.retain = self.held.expire, self.held.retain

    def get(self, registration: Registration, now: datetime) -> HeldSvid:
        """Return what the cache does."""
        return asyncio.run(self.held.get(registration, now, self.issue))

    async def issue(self, registration: Registration, public_key: PublicKey, now: datetime) -> X509Svid:
        """Sign, after others had their turn."""
        await asyncio.sleep(0)
        names = registration.dns_names
        return self.authority.issue(
            registration.spiffe_id, public_key, now=now, ttl=registration.svid_ttl, dns_names=names
        )


def cache(authority: Authority) -> Cache:
    """Return a cache without jitter."""
    return Cache(authority)


def test_who_asks_at_once_gets_one_svid(authority: Authority, now: datetime) -> None:
    """While one is being issued for a registration, others wait for that one; it is signed once."""
    held = cache(authority)

    async def ask() -> list[HeldSvid]:
        return await asyncio.gather(*(held.held.get(WEB, now, held.issue) for _ in range(5)))

    found = asyncio.run(ask())
    assert all(one is found[0] for one in found)


def test_one_svid_serves_until_it_is_due(authority: Authority, now: datetime) -> None:
    """Whoever asks before `renew_at` gets the same one; from then on there is a new one with a new key."""
    held = cache(authority)
    first = held.get(WEB, now)
    assert held.get(WEB, first.renew_at - timedelta(seconds=1)) is first
    second = held.get(WEB, first.renew_at)
    assert second.svid.leaf.public_key() != first.svid.leaf.public_key()
    assert held.get(WEB, first.renew_at) is second


def test_each_registration_has_its_own_time(authority: Authority, now: datetime) -> None:
    """One that is due changes nothing for another one; made due by hand, all are replaced."""
    held = cache(authority)
    web, api = held.get(WEB, now), held.get(API, now)
    assert held.get(API, api.renew_at) is not api
    assert held.get(WEB, api.renew_at) is web
    held.expire(api.renew_at)
    assert held.get(WEB, api.renew_at) is not web


def test_a_changed_registration_gets_another_svid(authority: Authority, now: datetime) -> None:
    """With other DNS names or another TTL the held one is not what was registered; dropped ones are forgotten."""
    held = cache(authority)
    first = held.get(WEB, now)
    named = replace(WEB, dns_names=("web",))
    assert held.get(named, now) is not first
    held.retain([named])
    assert held.get(WEB, now) is not first


def test_a_refused_renewal_keeps_the_old_and_tries_again(authority: Authority, now: datetime) -> None:
    """While the CA refuses, the SVID stays as long as it is valid, due again after a part of its rest."""
    heard: list[str] = []
    held = Cache(authority, refused=lambda one, error: heard.append(str(error)))
    first = held.get(WEB, now)

    def refuse(*_: object, **__: object) -> NoReturn:
        raise IssuanceError("not now")

    held.authority = replace(authority, new_serial=refuse)
    kept = held.get(WEB, first.renew_at)
    assert kept.svid is first.svid
    assert kept.key is first.key
    assert kept.renew_at == first.renew_at + (first.svid.not_after - first.renew_at) / 10
    assert held.get(WEB, first.renew_at) is kept
    late = first.svid.not_after - timedelta(seconds=1)
    assert held.get(WEB, late).renew_at == late + MIN_INTERVAL
    assert heard == ["not now"] * 2
    with pytest.raises(IssuanceError, match="not now"):
        held.get(WEB, first.svid.not_after)


def test_near_the_end_of_the_ca_it_is_not_asked_all_the_time(authority: Authority, now: datetime) -> None:
    """However short the life that is left, renewals keep a distance."""
    held = cache(authority)
    moment = authority.not_after - timedelta(seconds=3)
    assert held.get(WEB, moment).renew_at == moment + MIN_INTERVAL


def test_jitter_spreads_renewal_around_half_of_the_life(authority: Authority, now: datetime) -> None:
    """The earliest and the latest renewal lie a tenth around half-life."""
    key = new_private_key()
    life = timedelta(hours=1) - timedelta(microseconds=now.microsecond)
    for random, share in ((0.0, 0.45), (0.5, 0.5), (1.0, 0.55)):
        held = Cache(authority, random=lambda random=random: random, new_key=lambda: key)
        due = held.get(WEB, now).renew_at
        assert abs(due - (now + life * share)) < timedelta(milliseconds=1)
