"""Values for ledgers, and the moment at which they begin."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from ca.authority import Authority, X509Svid
from ca.keys import PublicKey
from ca.ledger import CertificateKind, Entry, IssuedCertificate, JoinToken, token_hash
from ca.registration import Registration
from ca.store.redis import RedisLedger
from ca.store.redis_server import RedisPlace
from ca.svid_cache import Issue
from garrison.identity import SpiffeId, TrustDomain
from garrison.redis_address import RedisAddress
from support.valkey import Valkey

NOW = datetime(2030, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
HOUR = timedelta(hours=1)
TRUST_DOMAIN = TrustDomain("cluster.local")
ISSUER = "aa" * 20
WEB = SpiffeId.parse("spiffe://cluster.local/web")
API = SpiffeId.parse("spiffe://cluster.local/api")

_serials = itertools.count(2**127)


def certificate(serial: int | None = None, **changes: Any) -> IssuedCertificate:
    """Return a record of a certificate of one hour; without `serial`, one that no other has."""
    serial = next(_serials) if serial is None else serial
    issued = IssuedCertificate(
        serial=serial,
        issuer=ISSUER,
        kind=CertificateKind.X509_SVID,
        spiffe_id=WEB,
        not_before=NOW.replace(microsecond=0),
        not_after=NOW.replace(microsecond=0) + HOUR,
        issued_at=NOW,
        requester="uid 1000",
        attested_by="unix",
        fingerprint=f"{serial:064x}",
    )
    return replace(issued, **changes)


def entry(
    entry_id: str, spiffe_id: SpiffeId = WEB, *selectors: str, at: datetime = NOW, **options: Any
) -> Entry:
    """Return a registration with `selectors`, or for user 1000."""
    registration = Registration.parse(str(spiffe_id), selectors or ["unix:uid:1000"], **options)
    return Entry(entry_id, registration, at, "root")


def token(secret: str = "secret", *, life: timedelta = HOUR) -> JoinToken:
    """Return a token made at `NOW`."""
    return JoinToken(token_hash(secret), WEB, NOW, NOW + life, "root")


def open_redis(valkey: Valkey, **options: Any) -> RedisLedger:
    """Open the ledger that is in a server."""
    place = RedisPlace(RedisAddress.parse(valkey.url), **options.pop("place", {}))
    return RedisLedger(place, TRUST_DOMAIN, **options)


def issued_by(authority: Authority) -> Issue:
    """Return what issues the SVIDs of registrations, without a record."""

    async def issue(registration: Registration, public_key: PublicKey, now: datetime) -> X509Svid:
        return authority.issue(
            registration.spiffe_id,
            public_key,
            now=now,
            ttl=registration.svid_ttl,
            dns_names=registration.dns_names,
        )

    return issue
