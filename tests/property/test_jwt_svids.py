"""What holds for every bundle that is read, every key ring that turns, and every token that comes in."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from ca.authority import Hierarchy
from ca.bundle import (
    MAX_SEQUENCE,
    JwtAuthority,
    SpiffeBundle,
    format_jwk_set,
    format_spiffe_bundle,
    parse_bundle_map,
    parse_spiffe_bundle,
)
from ca.jwt_keys import KEPT_LONGER, MIN_KEY_LIFETIME, KeyRing, advance
from ca.jwt_svid import LEEWAY, issue_jwt_svid, validate_jwt_svid
from ca.keys import PublicKey, new_private_key
from ca.registration import MAX_JWT_TTL
from garrison.errors import RequestError
from garrison.identity import SpiffeId, TrustDomain

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
DOMAIN = TrustDomain("td")
WEB = SpiffeId.parse("spiffe://td/web")
ROOTS = [Hierarchy.create(DOMAIN, now=NOW).root for _ in range(3)]
KEYS: list[PublicKey] = [
    new_private_key().public_key(),
    ec.generate_private_key(ec.SECP384R1()).public_key(),
    ec.generate_private_key(ec.SECP521R1()).public_key(),
    rsa.generate_private_key(65537, 2048).public_key(),
]
AUTHORITIES = st.lists(
    st.builds(JwtAuthority, st.text(min_size=1, max_size=9), st.sampled_from(KEYS)),
    max_size=4,
    unique_by=lambda one: one.kid,
).map(tuple)
NUMBERS = st.none() | st.integers(0, MAX_SEQUENCE)
BUNDLES = st.builds(
    SpiffeBundle,
    st.lists(st.sampled_from(ROOTS), max_size=3).map(tuple),
    AUTHORITIES,
    NUMBERS,
    NUMBERS,
    st.lists(st.sampled_from(ROOTS), max_size=2).map(tuple),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(BUNDLES)
def test_bundles_round_trip(bundle: SpiffeBundle) -> None:
    """A bundle reads back as it was written, also inside a map, where hints do not count."""
    text = format_spiffe_bundle(bundle)
    assert parse_spiffe_bundle(text) == parse_spiffe_bundle(text.encode()) == bundle
    found = parse_bundle_map(json.dumps({"trust_domains": {"td": json.loads(text)}}))
    assert found == {DOMAIN: replace(bundle, refresh_hint=None, x509_intermediates=())}
    assert parse_spiffe_bundle(format_jwk_set(bundle.jwt_authorities)) == SpiffeBundle(
        jwt_authorities=bundle.jwt_authorities
    )


@given(BUNDLES, BUNDLES)
def test_a_digest_is_that_of_the_keys(one: SpiffeBundle, other: SpiffeBundle) -> None:
    """Two bundles have one digest exactly when they have the same keys, whatever their numbers."""
    same = (one.x509_authorities, one.jwt_authorities) == (other.x509_authorities, other.jwt_authorities)
    assert (one.digest == other.digest) == same


@given(BUNDLES, st.dictionaries(st.text(max_size=9), JSON, max_size=3), st.integers(0, 9))
def test_what_is_unknown_is_ignored(bundle: SpiffeBundle, extra: dict[str, Any], place: int) -> None:
    """Members and entries of the future change nothing of what is understood."""
    document = json.loads(format_spiffe_bundle(bundle))
    unknown = {f"x-{name}": value for name, value in extra.items()}
    document.update(unknown)
    for key in document["keys"]:
        key.update(unknown)
    entries = [
        {"use": "wit-svid", "kid": "w", "kty": "EC"},
        {"kty": "EC"},
        {"use": "x509-svid", "kty": "EC"},
        {"use": "jwt-svid", "kty": "EC", "crv": "P-256", "x": "?", "y": "?"},  # no kid
        {"use": "jwt-svid", "kid": "\0okp", "kty": "OKP", "crv": "Ed25519", "x": "AA"},
        {"use": "jwt-svid", "kid": "\0oct", "kty": "oct", "k": "AA"},
        {"use": "jwt-svid", "kid": "\0crv", "kty": "EC", "crv": "secp256k1", "x": "?", "y": "?"},
    ]
    document["keys"].insert(place % (len(document["keys"]) + 1), entries[place % len(entries)])
    assert parse_spiffe_bundle(json.dumps(document)) == bundle


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"keys": {}}',
        '{"keys": null}',
        '{"keys": [1]}',
        '{"keys": [], "keys": []}',
        '{"keys": [{"use": "jwt-svid", "use": "x509-svid"}]}',
        '{"keys": [], "spiffe_sequence": 1.5}',
        '{"keys": [], "spiffe_sequence": "1"}',
        '{"keys": [], "spiffe_sequence": true}',
        '{"keys": [], "spiffe_sequence": -1}',
        '{"keys": [], "spiffe_sequence": 9223372036854775808}',
        '{"keys": [], "spiffe_refresh_hint": NaN}',
        '{"keys": [{"use": "x509-svid", "x5c": ["AAAA"]}]}',
        '{"keys": [{"use": "x509-svid", "x5c": [1]}]}',
        '{"keys": [{"use": "jwt-svid", "kid": 1, "kty": "EC"}]}',
        '{"keys": [{"use": "jwt-svid", "kid": "a", "kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}]}',
        '{"keys": [{"use": "jwt-svid", "kid": "a", "kty": "EC", "crv": "P-256"}]}',
        '{"keys": ' + "[" * 100_000,
        '{"keys": []}'.encode("utf-16"),
        b'\xef\xbb\xbf{"keys": []}',
        b"\xff",
    ],
)
def test_what_is_no_bundle_is_refused(text: str | bytes) -> None:
    """A document that two readers could read in two ways, or not at all, is none."""
    with pytest.raises(ValueError, match="not a SPIFFE bundle"):
        parse_spiffe_bundle(text)


@pytest.mark.parametrize(
    "text",
    [
        '{"trust_domains": {"td": {"keys": []}, "td": {"keys": []}}}',
        '{"trust_domains": {"TD": {"keys": []}}}',
        '{"trust_domains": {"td": {}}}',
        '{"trust_domains": []}',
        '{"keys": []}',
    ],
)
def test_what_is_no_bundle_map_is_refused(text: str) -> None:
    """A trust domain twice, a bad name, or a bad bundle spoils the map."""
    with pytest.raises(ValueError, match="not a SPIFFE bundle map"):
        parse_bundle_map(text)


def test_two_keys_of_one_name_are_refused() -> None:
    """Which of them verifies a token would depend on the reader."""
    twice = SpiffeBundle(jwt_authorities=tuple(JwtAuthority("a", key) for key in KEYS[:2]))
    with pytest.raises(ValueError, match="not a SPIFFE bundle"):
        parse_spiffe_bundle(format_spiffe_bundle(twice))


def test_a_weak_rsa_key_does_not_count() -> None:
    """RSA of 1024 bits verifies nothing."""
    weak = JwtAuthority("a", rsa.generate_private_key(65537, 1024).public_key())
    assert parse_spiffe_bundle(format_jwk_set([weak])) == SpiffeBundle()


STEPS = st.lists(st.timedeltas(min_value=timedelta(0), max_value=timedelta(hours=60)), max_size=12)


@settings(max_examples=60, deadline=None)
@given(
    STEPS,
    st.timedeltas(min_value=MIN_KEY_LIFETIME, max_value=timedelta(hours=48)),
    st.timedeltas(min_value=timedelta(seconds=1), max_value=MAX_JWT_TTL),
)
def test_no_token_outlives_its_key_and_no_key_signs_unannounced(
    steps: list[timedelta], lifetime: timedelta, ttl: timedelta
) -> None:
    """However seldom somebody looks: tokens verify to their end, keys are published long before they sign."""
    moments = [NOW]
    for step in steps:
        moments.append(moments[-1] + step)
    published: dict[str, datetime] = {}
    tokens: list[tuple[str, datetime]] = []
    ring = KeyRing()
    for now in moments:
        ring = advance(ring, now, lifetime=lifetime, new_key=new_private_key)
        assert advance(ring, now, lifetime=lifetime, new_key=new_private_key) is ring
        assert 1 <= len(ring.keys) <= 3
        for key in ring.keys:
            published.setdefault(key.kid, now)
        key = ring.signing(now)
        if key.kid != next(iter(published)):
            assert now - published[key.kid] >= lifetime / 3 - timedelta(seconds=1)
        bundles = {DOMAIN: SpiffeBundle(jwt_authorities=ring.authorities())}
        for token, end in tokens:
            if now < end:
                assert validate_jwt_svid(token, "db", bundles, now=now).spiffe_id == WEB
            elif now >= end + LEEWAY:
                with pytest.raises(RequestError):
                    validate_jwt_svid(token, "db", bundles, now=now)
        end = now.replace(microsecond=0) + timedelta(seconds=int(ttl.total_seconds()))
        tokens.append((issue_jwt_svid(key, WEB, ["db"], now=now, ttl=ttl), end))


def test_keys_are_prepared_used_and_dropped_in_time() -> None:
    """Made at two thirds of its predecessor's life, signing from its end, dropped after the last token's end."""
    day = timedelta(hours=24)

    def turn(ring: KeyRing, after: timedelta) -> KeyRing:
        return advance(ring, NOW + after, lifetime=day, new_key=new_private_key)

    first = turn(KeyRing(), timedelta(0))
    assert turn(first, timedelta(hours=16) - timedelta(seconds=1)) is first
    second = turn(first, timedelta(hours=16))
    assert second.keys[0] == first.keys[0]
    assert second.signing(NOW + day - timedelta(seconds=1)) == first.keys[0]
    assert second.signing(NOW + day) == second.keys[1]
    kept = day + MAX_JWT_TTL + KEPT_LONGER
    assert turn(second, kept - timedelta(seconds=1)) is second
    assert turn(second, kept).keys == second.keys[1:]
    assert second.signing(NOW - day) == first.keys[0]  # the clock went back


@given(st.text(alphabet="abcXYZ019-_.=+/ \n\0é", max_size=60), st.integers(0, 10**6), st.characters())
def test_damaged_tokens_are_refused_in_our_words(text: str, place: int, character: str) -> None:
    """Whatever comes instead of a token, or one character of a good one changed, is a RequestError."""
    key = advance(KeyRing(), NOW, lifetime=timedelta(days=1), new_key=new_private_key)
    bundles = {DOMAIN: SpiffeBundle(jwt_authorities=key.authorities())}
    good = issue_jwt_svid(key.keys[0], WEB, ["db"], now=NOW, ttl=timedelta(minutes=5))
    assert validate_jwt_svid(good, "db", bundles, now=NOW).spiffe_id == WEB
    at = place % len(good)
    damaged = good[:at] + character + good[at + 1 :]
    for token in (text, damaged, damaged + text):
        if token != good:
            with pytest.raises(RequestError):
                validate_jwt_svid(token, "db", bundles, now=NOW)


@given(JSON, JSON)
def test_claims_of_any_shape_are_looked_at_without_failing(header: Any, claims: Any) -> None:
    """A token whose parts are any JSON at all is refused, never a fault."""
    import base64  # noqa: PLC0415

    parts = [
        base64.urlsafe_b64encode(json.dumps(one).encode()).rstrip(b"=").decode() for one in (header, claims)
    ]
    with pytest.raises(RequestError):
        validate_jwt_svid(".".join([*parts, "AAAA"]), "db", {}, now=NOW)


def test_nothing_else_is_raised_for_odd_text() -> None:
    """Surrogates, which no encoding takes, are refused as well."""
    with contextlib.suppress(RequestError):
        validate_jwt_svid("\ud800.\ud800.\ud800", "db", {}, now=NOW)
