"""What decisions depend on besides policies and the call itself.

Everything here is kept up to date off the request path, and is read without waiting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from authz.authn.certificates import NO_BUNDLES, Bundles
from authz.authn.credentials import Authenticator
from authz.authn.failures import Failures
from authz.authn.keys import NO_KEYS, Keys
from authz.mixer.evaluate import Lists
from authz.mixer.lists import EntryList, ListSource
from authz.mixer.quotas import QuotaAnswer, QuotaCharge, Quotas
from authz.rate_limits import LimitAnswer, LimitRequest, RateLimits
from garrison.errors import DependencyError


class _NoLists:
    """No list was ever fetched, so whatever depends on one is denied."""

    def current(self, source: ListSource) -> EntryList | None:
        del source
        return None


NO_LISTS: Lists = _NoLists()


class _NoQuotas:
    """Nobody counts, so whatever is charged is denied."""

    def spend(self, charges: Sequence[QuotaCharge]) -> list[QuotaAnswer]:
        del charges
        raise DependencyError("nobody counts quotas here")


NO_QUOTAS: Quotas = _NoQuotas()


class _NoRateLimits:
    """Nobody counts, so whatever is charged is denied."""

    def spend(self, request: LimitRequest) -> LimitAnswer:
        del request
        raise DependencyError("nobody counts rate limits here")


NO_RATE_LIMITS: RateLimits = _NoRateLimits()


@dataclass(frozen=True, slots=True)
class Environment:
    """What was learnt: lists of Mixer's checkers, keys, trust bundles, who sends bad tokens; whom to ask."""

    lists: Lists = NO_LISTS
    keys: Keys = NO_KEYS
    failures: Failures | None = None  # None: whatever comes is looked at
    bundles: Bundles = NO_BUNDLES
    authenticators: Mapping[str, Authenticator] = field(default_factory=dict)
    quotas: Quotas = NO_QUOTAS
    limits: RateLimits = NO_RATE_LIMITS


# For commands that decide without a server: nothing was fetched.
OFFLINE = Environment()
