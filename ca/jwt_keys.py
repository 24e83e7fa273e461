"""The keys that sign JWT-SVIDs, and which of them does when. No clock, no files: `now` comes in.

```
key 1   signs ...................|  verifies until its last token ended
key 2             published .....| signs ...................|
                  at 2/3 of its    predecessor's life
```

A key is published a third of a life before it signs, so that everybody has it by then, and stays published
until the last token that it signed has ended. Only the very first signs at once.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import zip_longest

from ca.bundle import JwtAuthority, public_jwk
from ca.keys import PrivateKey, PublicKey
from ca.registration import MAX_JWT_TTL

DEFAULT_KEY_LIFETIME = timedelta(hours=24)
# A third of it is three times the life of the longest token, and many times what others wait between looks.
MIN_KEY_LIFETIME = timedelta(hours=9)
# Beyond the last token's end: for leeway, and for verifiers whose clocks are late.
KEPT_LONGER = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class JwtKey:
    """A key that signs tokens from `active_from` (UTC) until the next one does."""

    key: PrivateKey
    active_from: datetime

    @property
    def kid(self) -> str:
        """Its name in headers and bundles."""
        return thumbprint(self.key.public_key())


@dataclass(frozen=True, slots=True)
class KeyRing:
    """All keys that are published, by when they begin to sign."""

    keys: tuple[JwtKey, ...] = ()

    def signing(self, now: datetime) -> JwtKey:
        """Return the key that signs at `now`; of an empty ring there is none (IndexError)."""
        begun = [key for key in self.keys if key.active_from <= now]
        # None has begun when the clock went back: the first of them is the one that is known longest.
        return begun[-1] if begun else self.keys[0]

    def authorities(self) -> tuple[JwtAuthority, ...]:
        """Return what tokens are verified with."""
        return tuple(JwtAuthority(key.kid, key.key.public_key()) for key in self.keys)


def advance(
    ring: KeyRing, now: datetime, *, lifetime: timedelta, new_key: Callable[[], PrivateKey]
) -> KeyRing:
    """Return `ring` as it has to be at `now`; `ring` itself if nothing is due."""
    keys = [
        key
        for key, successor in zip_longest(ring.keys, ring.keys[1:])
        if successor is None or now < successor.active_from + MAX_JWT_TTL + KEPT_LONGER
    ]
    lead = lifetime / 3
    if not keys:
        keys.append(JwtKey(new_key(), _seconds(now)))
    # Late, because nobody asked for long: the old one goes on until the new one has been seen.
    elif now >= (end := keys[-1].active_from + lifetime) - lead:
        keys.append(JwtKey(new_key(), _seconds(max(end, now + lead))))
    return ring if tuple(keys) == ring.keys else KeyRing(tuple(keys))


def thumbprint(key: PublicKey) -> str:
    """Return the JWK thumbprint of `key` (RFC 7638), SHA-256, base64url."""
    canonical = json.dumps(public_jwk(key), sort_keys=True, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(hashlib.sha256(canonical).digest()).rstrip(b"=").decode()


def _seconds(moment: datetime) -> datetime:
    return moment.replace(microsecond=0)
