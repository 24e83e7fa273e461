"""The certificate of a bundle endpoint of profile `https_spiffe`: an X509-SVID of our own CA."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import structlog

from ca.issuer import DEFAULT_TTL
from ca.keys import new_private_key, private_key_pem
from ca.recording import RecordingIssuer, Requester
from ca.renewal import MIN_INTERVAL, half_life
from garrison.errors import GarrisonError
from garrison.identity import SpiffeId
from garrison.process.pages import PROTOCOLS
from garrison.transport.tls import build_server_context

# The CA may have other keys than a moment ago; and timers stand still while the machine sleeps.
_LOOK = timedelta(minutes=1)

_log = structlog.get_logger()


class SpiffeEndpoint:
    """Keeps the SVID of a listener current: made here, recorded, in memory only, renewed at half of its life.

    `use` puts a context in force for new connections. Clock, randomness and sleep can be replaced.
    """

    def __init__(
        self,
        issuer: RecordingIssuer,
        spiffe_id: SpiffeId,
        use: Callable[[ssl.SSLContext], None],
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        jitter: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._issuer = issuer
        self._spiffe_id = spiffe_id
        self._use = use
        self._now = now
        self._jitter = jitter
        self._sleep = sleep
        self._complaint = ""
        self._signed_by: tuple[object, ...] = ()
        self._renew_at: datetime | None = None

    async def run(self) -> None:
        """Renew whenever it is due, until cancelled. What cannot be renewed is presented until it ends."""
        while True:
            await self.keep()
            assert self._renew_at is not None  # noqa: S101 - it was kept
            left = max(timedelta(0), self._renew_at - self._now())
            await self._sleep(min(left, _LOOK).total_seconds())

    async def keep(self) -> None:
        """Renew if that is due, or if the CA signs with another key by now."""
        now = self._now()
        is_due = self._renew_at is None or now >= self._renew_at
        if not is_due and self._signed_by == self._issuer.authority.chain:
            return
        try:
            await self._renew(now)
        except (GarrisonError, OSError) as error:
            self._renew_at = now + MIN_INTERVAL
            if str(error) != self._complaint:
                self._complaint = str(error)
                _log.error("bundle endpoint not renewed", spiffe_id=str(self._spiffe_id), reason=str(error))

    async def _renew(self, now: datetime) -> None:
        key = new_private_key()
        svid = await self._issuer.issue(
            self._spiffe_id,
            key.public_key(),
            requester=Requester("garrison serve", "bundle_endpoint"),
            now=now,
            ttl=DEFAULT_TTL,
        )
        self._use(build_server_context(svid.chain_pem, private_key_pem(key), protocols=PROTOCOLS))
        self._renew_at = half_life(now, svid.not_after, self._jitter())
        self._signed_by, self._complaint = svid.certificates[1:], ""
