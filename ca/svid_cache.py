"""The keys and SVIDs that one caller holds at the moment, and when each must be renewed.

No clock: `now` comes in, what is due comes out; `issue` signs and records. A new key with every SVID, in
memory only.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from ca.authority import X509Svid
from ca.inspection import check_key_pair
from ca.keys import PrivateKey, PublicKey, new_private_key
from ca.registration import Registration
from garrison.errors import IssuanceError
from garrison.identity import SpiffeId

# Renewal is due when half of the life is over, so that half of it is left for failures, give or take a
# tenth: callers that started together must not come back together.
RENEW_AT = 0.5
JITTER = 0.1
# However little of its own life the CA has left, it is not asked more often than this.
MIN_INTERVAL = timedelta(seconds=5)


# Returns an SVID that is recorded already, or raises IssuanceError.
Issue = Callable[[Registration, PublicKey, datetime], Awaitable[X509Svid]]


@dataclass(frozen=True, slots=True)
class HeldSvid:
    """An SVID with its private key; `renew_at` is when it should be replaced."""

    svid: X509Svid
    key: PrivateKey
    renew_at: datetime


class SvidCache:
    """One key and SVID per registration, kept until it is due."""

    def __init__(
        self,
        issue: Issue,
        *,
        random: Callable[[], float],
        new_key: Callable[[], PrivateKey] = new_private_key,
    ) -> None:
        self._ask = issue
        self._random = random
        self._new_key = new_key
        self._held: dict[SpiffeId, tuple[Registration, HeldSvid]] = {}

    @property
    def next_renewal(self) -> datetime | None:
        """When the first of the held SVIDs is due; None if none is held."""
        return min((held.renew_at for _, held in self._held.values()), default=None)

    async def get(self, registration: Registration, now: datetime) -> HeldSvid:
        """Return the SVID of `registration`, a new one if none is held or the held one has ended.

        Raises:
            IssuanceError: the CA refuses.

        """
        found = self._held.get(registration.spiffe_id)
        if found is not None and now < found[1].svid.not_after:
            return found[1]
        return await self._issue(registration, now)

    async def renew(
        self, now: datetime, *, all_of_them: bool = False
    ) -> tuple[set[SpiffeId], list[IssuanceError]]:
        """Replace what is due, and return whose SVIDs are new and what the CA refused.

        A refused one is kept, and due again after a tenth of what is left of its life.
        """
        renewed: set[SpiffeId] = set()
        refused: list[IssuanceError] = []
        for spiffe_id, (registration, held) in list(self._held.items()):
            if not all_of_them and now < held.renew_at:
                continue
            try:
                await self._issue(registration, now)
            except IssuanceError as error:
                refused.append(error)
                pause = max(MIN_INTERVAL, (held.svid.not_after - now) / 10)
                self._held[spiffe_id] = (registration, HeldSvid(held.svid, held.key, now + pause))
            else:
                renewed.add(spiffe_id)
        return renewed, refused

    async def _issue(self, registration: Registration, now: datetime) -> HeldSvid:
        key = self._new_key()
        svid = await self._ask(registration, key.public_key(), now)
        # Envoy refuses everything for a context that once got a mismatched pair, good updates too.
        check_key_pair(svid.leaf, key)
        share = RENEW_AT * (1 + JITTER * (2 * self._random() - 1))
        renew_at = now + max(MIN_INTERVAL, (svid.not_after - now) * share)
        held = HeldSvid(svid, key, renew_at)
        self._held[registration.spiffe_id] = (registration, held)
        return held
