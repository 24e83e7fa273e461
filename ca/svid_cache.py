"""The keys and SVIDs that are held at the moment, and when each must be renewed.

No clock: `now` comes in, what is due is issued. A new key with every SVID, in memory only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, replace
from datetime import datetime

from ca.authority import X509Svid
from ca.inspection import check_key_pair
from ca.keys import PrivateKey, PublicKey, new_private_key
from ca.registration import Registration
from ca.renewal import MIN_INTERVAL, half_life
from garrison.errors import IssuanceError


@dataclass(frozen=True, slots=True)
class HeldSvid:
    """An SVID with its private key; `renew_at` is when it should be replaced."""

    svid: X509Svid
    key: PrivateKey
    renew_at: datetime


# Signs for a registration's key, or raises IssuanceError.
Issue = Callable[[Registration, PublicKey, datetime], Awaitable[X509Svid]]


class SvidCache:
    """One key and SVID per registration, kept until it is due; `refused` hears why a due one was kept."""

    def __init__(
        self,
        *,
        random: Callable[[], float],
        new_key: Callable[[], PrivateKey] = new_private_key,
        refused: Callable[[Registration, IssuanceError], None] = lambda _, __: None,
    ) -> None:
        self._random = random
        self._new_key = new_key
        self._refused = refused
        self._held: dict[Registration, HeldSvid] = {}
        self._turns: dict[Registration, asyncio.Lock] = {}

    async def get(self, registration: Registration, now: datetime, issue: Issue) -> HeldSvid:
        """Return the SVID of `registration`: one that `issue` signs if none is held or the held one is due.

        Who asks while one is being issued gets that one. If the CA refuses, the held one is kept while it is
        valid, and due again after a tenth of what is left of its life.

        Raises:
            IssuanceError: the CA refuses, and none is held that is valid.

        """
        async with self._turns.setdefault(registration, asyncio.Lock()):
            return await self._get(registration, now, issue)

    async def _get(self, registration: Registration, now: datetime, issue: Issue) -> HeldSvid:
        held = self._held.get(registration)
        if held is not None and now < min(held.renew_at, held.svid.not_after):
            return held
        try:
            found = await self._issue(registration, now, issue)
        except IssuanceError as error:
            if held is None or now >= held.svid.not_after:
                raise
            self._refused(registration, error)
            pause = max(MIN_INTERVAL, (held.svid.not_after - now) / 10)
            found = replace(held, renew_at=now + pause)
        self._held[registration] = found
        return found

    def expire(self, now: datetime) -> None:
        """Make everything due at `now`."""
        self._held = {registration: replace(held, renew_at=now) for registration, held in self._held.items()}

    def retain(self, registrations: Collection[Registration]) -> None:
        """Forget the keys and SVIDs of all others."""
        self._held = {one: held for one, held in self._held.items() if one in registrations}
        self._turns = {one: turn for one, turn in self._turns.items() if one in registrations}

    async def _issue(self, registration: Registration, now: datetime, issue: Issue) -> HeldSvid:
        key = self._new_key()
        svid = await issue(registration, key.public_key(), now)
        # Envoy refuses everything for a context that once got a mismatched pair, good updates too.
        check_key_pair(svid.leaf, key)
        return HeldSvid(svid, key, half_life(now, svid.not_after, self._random()))
