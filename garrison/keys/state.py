"""Which keys of a source are in force, and when it is asked again. Pure: time and chance are arguments.

Keys that the issuer confirmed go on being used while it is away, but not for ever; a set that came whole
replaces the one before at once, so a key that the issuer took away is gone.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from garrison.keys.jwks import KeySet, KeySetError, KeySource, VerificationKey, parse_jwks
from garrison.pauses import at_least_half, doubled

# How long an issuer's keys live at least and at most, whatever its headers say.
MIN_LIFETIME_SECONDS = 60.0
MAX_LIFETIME_SECONDS = 86_400.0
# Asked again when this part of it is over, so that there is time to fail.
_REFRESH_AT = 0.75
# After a failure: 1 s, 2 s, 4 s, … 5 min; half of it and a random part of the other half.
_FIRST_RETRY_SECONDS = 1.0
_LAST_RETRY_SECONDS = 300.0
# Tokens that name unknown keys cost anybody nothing to send: no more often than this for their sake.
MISSED_SECONDS = 10.0
# A file costs little to look at.
FILE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class KeyRules:
    """What the operator decides, in seconds: how long keys hold in an outage; their life without headers."""

    max_stale_seconds: float = 86_400.0
    lifetime_seconds: float = 1_200.0


@dataclass(frozen=True, slots=True)
class KeyState:
    """What is known of a source. Times are those of one clock that never runs backwards, in seconds.

    `asked_at` is the start of the last fetch that went well, and so `confirmed_at`, unless the keys are from
    the cache. `failures` are those in a row; `fetched` and `failed` count all. `closed`: there were keys, and
    a fetch failed when they were already too old.
    """

    keys: KeySet | None = None
    digest: bytes = b""
    confirmed_at: float = 0.0
    asked_at: float = float("-inf")
    next_fetch_at: float = 0.0
    failures: int = 0
    error: str = ""
    closed: bool = False
    fetched: int = 0
    failed: int = 0


def in_force(rules: KeyRules, state: KeyState, now: float) -> KeySet | None:
    """Return the keys to verify with; None when there are none or nobody confirmed them for too long."""
    if state.keys is None or now >= state.confirmed_at + rules.max_stale_seconds:
        return None
    return state.keys


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a source answered: a JWK Set, and how many seconds its headers give it; None: they do not say."""

    body: bytes
    lifetime_seconds: float | None = None


def succeeded(
    rules: KeyRules, source: KeySource, state: KeyState, fetched: Fetched, asked_at: float
) -> KeyState:
    """Return the state after a fetch that began at `asked_at`. The same keys stay the same `KeySet`.

    Raises:
        KeySetError: the body is no JWK Set, or has no key to verify with.

    """
    state = restored(state, fetched.body, asked_at)
    if source.url.startswith("file:"):
        wait = FILE_SECONDS
    else:
        stated = fetched.lifetime_seconds
        lives = rules.lifetime_seconds if stated is None else stated
        lives = min(max(lives, MIN_LIFETIME_SECONDS), MAX_LIFETIME_SECONDS, rules.max_stale_seconds)
        wait = lives * _REFRESH_AT
    return replace(
        state,
        asked_at=asked_at,
        next_fetch_at=asked_at + wait,
        failures=0,
        error="",
        closed=False,
        fetched=state.fetched + 1,
    )


def restored(state: KeyState, body: bytes, confirmed_at: float) -> KeyState:
    """Return the state with the keys in `body`, which the issuer confirmed at that time.

    Raises:
        KeySetError: the body is no JWK Set, or has no key to verify with.

    """
    digest = hashlib.sha256(body).digest()
    keys = state.keys
    if keys is None or digest != state.digest:
        found = KeySet(_parse(body))
        if keys is None or found.keys != keys.keys:
            keys = found
    return replace(state, keys=keys, digest=digest, confirmed_at=confirmed_at)


def _parse(body: bytes) -> tuple[VerificationKey, ...]:
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise KeySetError("is not valid UTF-8") from None
    return parse_jwks(text, skip_unusable=True)


def failed(
    rules: KeyRules, source: KeySource, state: KeyState, reason: str, now: float, *, jitter: float
) -> KeyState:
    """Return the state after a fetch that failed at `now`: the keys stay; `jitter` is from 0 to 1.

    The last try is for the moment at which the keys are no longer used.
    """
    longest = FILE_SECONDS if source.url.startswith("file:") else _LAST_RETRY_SECONDS
    wait = at_least_half(doubled(_FIRST_RETRY_SECONDS, state.failures, longest), jitter)
    usable = in_force(rules, state, now) is not None
    if usable:
        left = state.confirmed_at + rules.max_stale_seconds - now
        wait = min(wait, max(left, _FIRST_RETRY_SECONDS / 2))
    return replace(
        state,
        next_fetch_at=now + wait,
        failures=state.failures + 1,
        error=reason,
        closed=state.keys is not None and not usable,
        failed=state.failed + 1,
    )


def missed(state: KeyState, now: float) -> KeyState:
    """Return the state after a token named a key that is not there: asked sooner, but never too often.

    While fetches fail, nothing changes: the next one comes anyway.
    """
    soonest = max(now, state.asked_at + MISSED_SECONDS)
    if state.failures or soonest >= state.next_fetch_at:
        return state
    return replace(state, next_fetch_at=soonest)
