"""The keys and SVIDs that are held at the moment, and when each must be renewed.

No clock and no I/O: `now` comes in, what is due comes out. A new key with every SVID, in memory only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from ca.authority import Authority, X509Svid
from ca.inspection import check_key_pair
from ca.keys import PrivateKey, new_private_key
from ca.registration import Registration
from garrison.errors import IssuanceError

# Renewal is due when half of the life is over, so that half of it is left for failures, give or take a
# tenth: callers that started together must not come back together.
RENEW_AT = 0.5
JITTER = 0.1
# However little of its own life the CA has left, it is not asked more often than this.
MIN_INTERVAL = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class HeldSvid:
    """An SVID with its private key; `renew_at` is when it should be replaced."""

    svid: X509Svid
    key: PrivateKey
    renew_at: datetime


class SvidCache:
    """One key and SVID per registration, kept until it is due; `refused` hears why a due one was kept."""

    def __init__(
        self,
        authority: Authority,
        *,
        random: Callable[[], float],
        new_key: Callable[[], PrivateKey] = new_private_key,
        refused: Callable[[Registration, IssuanceError], None] = lambda _, __: None,
    ) -> None:
        self._authority = authority
        self._random = random
        self._new_key = new_key
        self._refused = refused
        self._held: dict[Registration, HeldSvid] = {}

    def get(self, registration: Registration, now: datetime) -> HeldSvid:
        """Return the SVID of `registration`: a new one if none is held or the held one is due.

        If the CA refuses, the held one is kept while it is valid, and due again after a tenth of what is left
        of its life.

        Raises:
            IssuanceError: the CA refuses, and none is held that is valid.

        """
        held = self._held.get(registration)
        if held is not None and now < min(held.renew_at, held.svid.not_after):
            return held
        try:
            self._held[registration] = self._issue(registration, now)
        except IssuanceError as error:
            if held is None or now >= held.svid.not_after:
                raise
            self._refused(registration, error)
            pause = max(MIN_INTERVAL, (held.svid.not_after - now) / 10)
            self._held[registration] = replace(held, renew_at=now + pause)
        return self._held[registration]

    def expire(self, now: datetime) -> None:
        """Make everything due at `now`."""
        self._held = {registration: replace(held, renew_at=now) for registration, held in self._held.items()}

    def retain(self, registrations: Collection[Registration]) -> None:
        """Forget the keys and SVIDs of all others."""
        self._held = {one: held for one, held in self._held.items() if one in registrations}

    def _issue(self, registration: Registration, now: datetime) -> HeldSvid:
        key = self._new_key()
        svid = self._authority.issue(
            registration.spiffe_id,
            key.public_key(),
            now=now,
            ttl=registration.svid_ttl,
            dns_names=registration.dns_names,
        )
        # Envoy refuses everything for a context that once got a mismatched pair, good updates too.
        check_key_pair(svid.leaf, key)
        share = RENEW_AT * (1 + JITTER * (2 * self._random() - 1))
        return HeldSvid(svid, key, now + max(MIN_INTERVAL, (svid.not_after - now) * share))
