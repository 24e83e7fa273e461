"""The peer's identity as Envoy reports it after a verified mTLS handshake.

Envoy's `source.principal` is the first URI SAN, else a DNS SAN, else the subject, passed on without a look
at its form (seen with Envoy 1.40). Only a string that parses as a SPIFFE ID with a path is an identity.
"""

from __future__ import annotations

from functools import lru_cache

from garrison.identity import SCHEME, SpiffeId


@lru_cache(maxsize=65_536)
def peer_identity(principal: str) -> SpiffeId | None:
    """Return the SPIFFE ID in `principal`, None when it holds none or that of a CA (no path)."""
    if not principal.startswith(SCHEME):
        return None
    try:
        spiffe_id = SpiffeId.parse(principal)
    except ValueError:
        return None
    return spiffe_id if spiffe_id.segments else None


@lru_cache(maxsize=65_536)
def peer_principal(principal: str) -> str | None:
    """Return what policies compare, the ID without its scheme; None where there is no identity."""
    spiffe_id = peer_identity(principal)
    return spiffe_id.principal if spiffe_id is not None else None
