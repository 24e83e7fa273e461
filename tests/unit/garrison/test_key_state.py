"""Keys of a source: which are in force when, and when they are fetched again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tokens import ec_signer, ed_signer, rsa_signer

from garrison.keys.jwks import KeySetError, KeySource
from garrison.keys.state import (
    FILE_SECONDS,
    MAX_LIFETIME_SECONDS,
    MIN_LIFETIME_SECONDS,
    MISSED_SECONDS,
    Fetched,
    KeyRules,
    KeyState,
    failed,
    in_force,
    missed,
    restored,
    succeeded,
)

RULES = KeyRules(max_stale_seconds=86_400, lifetime_seconds=1_200)
SOURCE = KeySource("https://issuer.example/keys")
FILE = KeySource("file:///etc/keys.json")


def body(*kids: str, **changes: Any) -> bytes:
    """Return a JWK Set with an Ed25519 key for each key ID."""
    return json.dumps({"keys": [ed_signer(kid).jwk(**changes) for kid in kids]}).encode()


def fetched(*kids: str, lifetime: float | None = None) -> Fetched:
    """Return an answer with these keys."""
    return Fetched(body(*kids), lifetime)


def kids(state: KeyState, now: float, rules: KeyRules = RULES) -> list[str | None] | None:
    """Return the IDs of the keys in force."""
    keys = in_force(rules, state, now)
    return None if keys is None else [key.kid for key in keys.keys]


def test_a_source_without_an_answer_has_no_keys() -> None:
    """Before the first answer nothing is in force, whatever time it is."""
    assert in_force(RULES, KeyState(), -1e9) is None
    assert in_force(RULES, failed(RULES, SOURCE, KeyState(), "down", 0, jitter=0), 0) is None


@pytest.mark.parametrize(
    ("lifetime", "wait"),
    [
        (None, 900),
        (0, MIN_LIFETIME_SECONDS * 0.75),
        (59, MIN_LIFETIME_SECONDS * 0.75),
        (3600, 2700),
        (86_400, MAX_LIFETIME_SECONDS * 0.75),
        (1e10, MAX_LIFETIME_SECONDS * 0.75),
    ],
)
def test_keys_are_fetched_again_before_they_expire(lifetime: float | None, wait: float) -> None:
    """At three quarters of what the issuer says, within bounds, or of 20 minutes if it says nothing."""
    state = succeeded(RULES, SOURCE, KeyState(), fetched("a", lifetime=lifetime), 1000)
    assert state.next_fetch_at == 1000 + wait


def test_keys_are_fetched_again_before_they_are_too_old() -> None:
    """What an issuer says cannot make its keys close in between two fetches that succeed."""
    rules = KeyRules(max_stale_seconds=600)
    state = succeeded(rules, SOURCE, KeyState(), fetched("a", lifetime=86_400), 1000)
    assert state.next_fetch_at == 1450


def test_keys_hold_through_an_outage_and_then_close() -> None:
    """Nobody confirmed them for `max_stale`: from that moment there are none, until the issuer is back."""
    state = succeeded(RULES, SOURCE, KeyState(), fetched("a"), 1000)
    for now in (1900, 50_000, 87_399):
        state = failed(RULES, SOURCE, state, "down", now, jitter=0.5)
        assert (kids(state, now), state.closed) == (["a"], False)
    assert kids(state, 1000 + 86_400 - 0.001) == ["a"]
    assert kids(state, 1000 + 86_400) is None
    state = failed(RULES, SOURCE, state, "down", 1000 + 86_400, jitter=0.5)
    assert (state.closed, state.failures, state.failed, state.error) == (True, 4, 4, "down")
    state = succeeded(RULES, SOURCE, state, fetched("a"), 100_000)
    assert (kids(state, 100_000), state.closed, state.failures, state.error) == (["a"], False, 0, "")
    assert (state.fetched, state.failed) == (2, 4)


@pytest.mark.parametrize(("jitter", "factor"), [(0.0, 0.5), (1.0, 1.0)])
def test_failures_are_retried_less_and_less_often(jitter: float, factor: float) -> None:
    """1 s, 2 s, 4 s, … 5 min, of which half is a matter of chance."""
    state, waits = KeyState(), []
    for _ in range(12):
        state = failed(RULES, SOURCE, state, "down", 0, jitter=jitter)
        waits.append(state.next_fetch_at)
    assert waits == [factor * wait for wait in (1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300)]


def test_the_last_try_is_when_keys_close() -> None:
    """A retry falls on the moment at which keys are too old, but still not right after the one before."""
    state = succeeded(RULES, SOURCE, KeyState(), fetched("a"), 0)
    for _ in range(20):
        state = failed(RULES, SOURCE, state, "down", 86_390, jitter=1)
    assert state.next_fetch_at == 86_400
    assert failed(RULES, SOURCE, state, "down", 86_399.9, jitter=1).next_fetch_at == pytest.approx(86_400.4)
    assert failed(RULES, SOURCE, state, "down", 86_400, jitter=1).next_fetch_at == 86_700


def test_files_are_looked_at_every_second_whatever_happened() -> None:
    """A file costs little to read, and whoever repairs it does not wait."""
    state = succeeded(RULES, FILE, KeyState(), fetched("a", lifetime=3600), 10)
    assert state.next_fetch_at == 10 + FILE_SECONDS
    for _ in range(5):
        state = failed(RULES, FILE, state, "absent", 10, jitter=1)
    assert state.next_fetch_at == 10 + FILE_SECONDS


def test_an_unknown_key_brings_the_next_fetch_forward_at_a_bounded_rate() -> None:
    """At once if the last fetch was long ago, else 10 s after it; and never because of a flood."""
    state = succeeded(RULES, SOURCE, KeyState(), fetched("a"), 1000)
    soon = missed(state, 1001)
    assert soon.next_fetch_at == 1000 + MISSED_SECONDS
    assert missed(soon, 1005) is soon
    assert missed(state, 1500).next_fetch_at == 1500
    assert missed(state, 1900) is state
    assert kids(soon, 1001) == ["a"]


def test_an_unknown_key_does_not_shorten_a_backoff() -> None:
    """While the issuer is away, tokens that name unknown keys cost it nothing."""
    state = succeeded(RULES, SOURCE, KeyState(), fetched("a"), 0)
    for _ in range(9):
        state = failed(RULES, SOURCE, state, "down", 1000, jitter=1)
    assert missed(state, 1001) is state


def test_a_removed_key_is_gone_at_once() -> None:
    """A set that came whole replaces the one before."""
    state = succeeded(RULES, SOURCE, KeyState(), fetched("a", "b"), 0)
    state = succeeded(RULES, SOURCE, state, fetched("b", "c"), 100)
    assert kids(state, 100) == ["b", "c"]


def test_equal_keys_are_the_same_set() -> None:
    """What is remembered by the set stays good while its keys do, also when they are written otherwise."""
    state = succeeded(RULES, SOURCE, KeyState(), fetched("a", "b"), 0)
    again = succeeded(RULES, SOURCE, state, fetched("a", "b"), 100)
    spaced = succeeded(RULES, SOURCE, again, Fetched(body("a", "b").replace(b",", b" ,\n")), 200)
    assert state.keys is again.keys is spaced.keys
    assert spaced.confirmed_at == 200
    changed = succeeded(RULES, SOURCE, spaced, fetched("a"), 300)
    assert changed.keys is not state.keys


def test_the_same_key_with_other_uses_is_another_set() -> None:
    """Key IDs and algorithms are part of what a key is."""
    first = json.dumps({"keys": [rsa_signer().jwk()]}).encode()
    second = json.dumps({"keys": [rsa_signer().jwk(alg="RS256")]}).encode()
    state = restored(KeyState(), first, 0)
    assert restored(state, second, 0).keys is not state.keys


@pytest.mark.parametrize(
    "wrong",
    [b"", b"{}", b"[]", b'{"keys": []}', b"<html>", b"\xff", b'{"keys": [{"kty": "oct", "k": "AA"}]}'],
)
def test_what_is_no_key_set_changes_nothing(wrong: bytes) -> None:
    """A body without a usable key is an error, and the state is as it was."""
    state = succeeded(RULES, SOURCE, KeyState(), fetched("a"), 0)
    with pytest.raises(KeySetError):
        succeeded(RULES, SOURCE, state, Fetched(wrong), 10)
    assert kids(state, 10) == ["a"]


def test_a_key_that_cannot_be_used_does_not_take_away_the_others() -> None:
    """RFC 7517, section 5: an issuer may add keys that we do not know; symmetric ones are never used."""
    entries = [
        ec_signer("good").jwk(),
        {"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA", "kid": "bitcoin"},
        {"kty": "oct", "k": "c2VjcmV0", "kid": "shared"},
        {**ed_signer("private").jwk(), "d": "AA"},
        rsa_signer("encryption").jwk(use="enc"),
        "text",
    ]
    state = restored(KeyState(), json.dumps({"keys": entries}).encode(), 0)
    assert kids(state, 0) == ["good"]


def test_keys_from_the_cache_are_as_old_as_they_were() -> None:
    """Restored keys close at the time they would have closed without the restart."""
    state = restored(KeyState(next_fetch_at=1000), body("a"), 1000 - 86_000)
    assert (kids(state, 1000), state.next_fetch_at) == (["a"], 1000)
    assert kids(state, 1400) is None


class Issuer:
    """A plain model of the same rules: what was confirmed when, and when it was asked."""

    def __init__(self) -> None:
        self.kids: list[str] = []
        self.confirmed_at: float | None = None
        self.asked: list[float] = []
        self.failures = 0


EVENTS = st.lists(
    st.tuples(
        st.floats(0, 4000),  # time until a token comes
        st.sampled_from(["up", "up", "down", "garbage"]),
        st.sets(st.sampled_from("abc"), min_size=1),
        st.booleans(),  # the token names an unknown key
        st.one_of(st.none(), st.floats(0, 1e6)),
        st.floats(0, 1),
    ),
    max_size=60,
)


@given(events=EVENTS, max_stale=st.sampled_from([60.0, 600.0, 5000.0]))
def test_a_source_is_as_a_plain_model_says(events: list[Any], max_stale: float) -> None:
    """Never keys nobody confirmed in time, never a removed key, and never more fetches than the bounds allow."""
    rules, issuer = KeyRules(max_stale), Issuer()
    state, now = KeyState(), 0.0
    for pause, condition, offered, unknown, lifetime, jitter in events:
        then = now + pause
        while state.next_fetch_at <= then:
            now = max(now, state.next_fetch_at)
            if issuer.asked:
                apart = now - issuer.asked[-1]
                assert apart >= (0.5 if issuer.failures else MISSED_SECONDS) - 1e-6
            issuer.asked.append(now)
            try:
                if condition == "down":
                    raise KeySetError("down")  # noqa: TRY301 - as a fetch that fails
                served = b"garbage" if condition == "garbage" else body(*sorted(offered))
                state = succeeded(rules, SOURCE, state, Fetched(served, lifetime), now)
            except KeySetError as error:
                state = failed(rules, SOURCE, state, str(error), now, jitter=jitter)
                issuer.failures += 1
            else:
                issuer.kids, issuer.confirmed_at, issuer.failures = sorted(offered), now, 0
        now = then
        usable = issuer.confirmed_at is not None and now < issuer.confirmed_at + max_stale
        assert kids(state, now, rules) == (issuer.kids if usable else None)
        if unknown:
            state = missed(state, now)
            if not issuer.failures:
                assert state.next_fetch_at <= max(now, state.asked_at + MISSED_SECONDS)
