"""Which endpoints and documents of other trust domains are taken, and when they are asked and forgotten."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from support.peer_certificates import CertificateAuthority

from ca.authority import Authority, Hierarchy
from ca.bundle import MAX_SEQUENCE, SpiffeBundle, format_spiffe_bundle, parse_spiffe_bundle
from ca.federation import (
    MAX_INTERMEDIATES,
    MAX_POLL,
    MIN_POLL,
    Endpoint,
    accept,
    check_bundle,
    check_endpoint,
    in_force,
    is_stale,
    poll_interval,
    published_intermediates,
)
from ca.ledger import EndpointProfile, FederatedBundle
from garrison.errors import DependencyError, IssuanceError
from garrison.identity import SpiffeId, TrustDomain

OURS, PARTNER = TrustDomain("cluster.local"), TrustDomain("partner.test")
URL = "https://partner.test/bundle"
WEB = EndpointProfile.WEB
KNOWN = FederatedBundle(PARTNER, URL, WEB)
DAY = timedelta(days=1)


def document(root: object, **members: object) -> bytes:
    """Return a bundle with one root, and other members of the document."""
    plain = json.loads(format_spiffe_bundle(SpiffeBundle((root,))))  # type: ignore[arg-type]
    return json.dumps({**plain, **members}).encode()


@pytest.fixture(scope="module")
def partner() -> Hierarchy:
    """Return the CA of the partner."""
    return Hierarchy.create(PARTNER, now=datetime.fromisoformat("2030-01-01T00:00:00Z"))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://partner.test/bundle", "not an https:// URL"),
        ("HTTPS://partner.test/bundle", "not an https:// URL"),
        ("https://user@partner.test/bundle", "user or password"),
        ("https://user:secret@partner.test/bundle", "user or password"),
        ("https://partner.test/bundle#x", "without a fragment"),
        ("https:///bundle", "names no host"),
        ("https://partner.test/a\nb", "characters"),
        ("file:///etc/passwd", "neither http"),
        ("", "neither http"),
    ],
)
def test_an_endpoint_is_https_and_nothing_else(url: str, message: str) -> None:
    """(SPIFFE Federation, 5.2) No other scheme, and nothing in the URL that says who asks."""
    with pytest.raises(IssuanceError, match=message) as caught:
        check_endpoint(Endpoint(PARTNER, url, WEB), OURS)
    assert "secret" not in str(caught.value)


def test_our_own_bundle_never_comes_from_outside() -> None:
    """Whoever could set it would be us."""
    with pytest.raises(IssuanceError, match="our own trust domain"):
        check_endpoint(Endpoint(OURS, URL, WEB), OURS)
    check_endpoint(Endpoint(PARTNER, URL, WEB), OURS)


def test_the_id_of_an_endpoint_goes_with_its_profile() -> None:
    """Neither is concluded from the other, and a trust domain itself serves nothing."""
    endpoint_id = SpiffeId.parse("spiffe://partner.test/bundles")
    for profile, found in (
        (WEB, endpoint_id),
        (EndpointProfile.SPIFFE, None),
        (EndpointProfile.SPIFFE, PARTNER.spiffe_id),
    ):
        with pytest.raises(IssuanceError):
            check_endpoint(Endpoint(PARTNER, URL, profile, found), OURS)
    check_endpoint(Endpoint(PARTNER, URL, EndpointProfile.SPIFFE, endpoint_id), OURS)


def test_a_bundle_is_taken_as_it_is(partner: Hierarchy, now: datetime) -> None:
    """Bytes, number, hint and moment; also one without any keys, which ends all trust."""
    content = document(partner.root, spiffe_sequence=7, spiffe_refresh_hint=120)
    found = accept(KNOWN, content, now=now)
    assert found == replace(
        KNOWN, document=content, sequence=7, refresh_hint=timedelta(minutes=2), fetched_at=now
    )
    empty = b'{"keys": [], "spiffe_sequence": 8}'
    assert accept(found, empty, now=now).document == empty


@pytest.mark.parametrize(("before", "after"), [(7, 6), (7, 0), (1, None), (MAX_SEQUENCE, MAX_SEQUENCE - 1)])
def test_the_number_does_not_go_back(
    partner: Hierarchy, now: datetime, before: int, after: int | None
) -> None:
    """An older bundle may hold what was revoked since; one without a number cannot be told from it."""
    known = replace(KNOWN, sequence=before)
    members = {} if after is None else {"spiffe_sequence": after}
    with pytest.raises(DependencyError, match="its number is"):
        accept(known, document(partner.root, **members), now=now)
    for good in (before, min(before + 1, MAX_SEQUENCE)):
        assert accept(known, document(partner.root, spiffe_sequence=good), now=now).sequence == good


@pytest.mark.parametrize("content", [b"", b"{}", b"<html>", b"\xff\xfe", b'{"keys": [], "keys": []}'])
def test_what_is_no_bundle_is_refused(content: bytes, now: datetime) -> None:
    """Whatever a server answers with 200."""
    with pytest.raises(DependencyError, match="not a SPIFFE bundle"):
        accept(KNOWN, content, now=now)


def test_certificates_that_cannot_be_its_roots_are_refused(
    partner: Hierarchy, authority: Authority, now: datetime
) -> None:
    """Another domain's root, a leaf: no part of the bundle is taken then."""
    leaf = partner.authority().issue(
        SpiffeId(PARTNER, ("web",)),
        ec.generate_private_key(ec.SECP256R1()).public_key(),
        now=datetime.fromisoformat("2030-01-01T00:00:00Z"),
        ttl=timedelta(hours=1),
    )
    for bad, message in ((authority.roots[0], "not of `partner.test`"), (leaf.leaf, "not a CA")):
        both = format_spiffe_bundle(SpiffeBundle((partner.root, bad))).encode()
        with pytest.raises(DependencyError, match=message):
            accept(KNOWN, both, now=now)


def test_intermediates_are_taken_with_the_bundle(
    partner: Hierarchy, authority: Authority, now: datetime
) -> None:
    """They pass the checks of roots, within bounds, and never two of one name and key: there is no maze."""

    def served(*intermediates: object) -> bytes:
        return format_spiffe_bundle(SpiffeBundle((partner.root,), (), 1, None, intermediates)).encode()  # type: ignore[arg-type]

    mine = partner.issuer.certificate
    taken = accept(KNOWN, served(mine), now=now).document
    assert taken is not None
    assert parse_spiffe_bundle(taken).x509_intermediates == (mine,)
    others = [Hierarchy.create(PARTNER, now=now).issuer.certificate for _ in range(MAX_INTERMEDIATES)]
    accept(KNOWN, served(*others), now=now)
    for bad, message in (
        ((authority.issuer.certificate,), "an intermediate of `cluster.local`, not of `partner.test`"),
        ((mine, mine), "two intermediates of one name and key"),
        ((mine, *others), f"more than {MAX_INTERMEDIATES} intermediates"),
    ):
        with pytest.raises(DependencyError, match=message):
            accept(KNOWN, served(*bad), now=now)
    broken = document(partner.root, garrison_x509_intermediates=["AAAA"])
    for content in (broken, document(partner.root, garrison_x509_intermediates={})):
        with pytest.raises(DependencyError, match="not a SPIFFE bundle"):
            accept(KNOWN, content, now=now)


def test_what_is_published_of_intermediates_is_taken(partner: Hierarchy, now: datetime) -> None:
    """No roots, each name and key once, the one that signs first, not too many, and none that others refuse."""
    mine = partner.issuer.certificate
    others = [Hierarchy.create(PARTNER, now=now).issuer.certificate for _ in range(MAX_INTERMEDIATES + 3)]
    foreign = Hierarchy.create(OURS, now=now).issuer.certificate
    root = CertificateAuthority("corporate root")
    above = CertificateAuthority("above", root, key=ec.generate_private_key(ec.SECP521R1())).certificate
    unwanted = [partner.root, foreign, above, root.issue()]
    found = published_intermediates(PARTNER, [mine, *unwanted, others[0], mine, *others])
    assert found == (mine, *others[: MAX_INTERMEDIATES - 1])
    check_bundle(PARTNER, SpiffeBundle((partner.root,), x509_intermediates=found))


@pytest.mark.parametrize(
    ("hint", "expected"),
    [(None, timedelta(minutes=5)), (0, MIN_POLL), (59, MIN_POLL), (90, timedelta(seconds=90))]
    + [(one, MAX_POLL) for one in (3600, 3601, MAX_SEQUENCE)],
)
def test_a_hint_counts_within_bounds(
    partner: Hierarchy, now: datetime, hint: int | None, expected: timedelta
) -> None:
    """Five minutes without one; a setting counts instead; give or take a tenth."""
    members = {} if hint is None else {"spiffe_refresh_hint": hint}
    known = accept(KNOWN, document(partner.root, **members), now=now)
    assert poll_interval(known, None, 0.5) == expected
    assert poll_interval(known, None, 0.0) == expected * 0.9
    assert poll_interval(known, timedelta(seconds=1), 0.5) == timedelta(seconds=1)


def test_a_bundle_that_nobody_confirms_ends(partner: Hierarchy, now: datetime) -> None:
    """At the moment that was set; one from the far future does not count, and ours never does."""
    content = document(partner.root)
    known = accept(KNOWN, content, now=now)
    assert in_force([known], OURS, now=now + DAY, max_stale=DAY) == {PARTNER: content}
    late = now + DAY + timedelta(microseconds=1)
    assert in_force([known], OURS, now=late, max_stale=DAY) == {}
    assert is_stale(known, now - 2 * DAY, DAY)
    assert is_stale(KNOWN, now, DAY)
    assert in_force([known], PARTNER, now=now, max_stale=DAY) == {}
    assert parse_spiffe_bundle(content).x509_authorities == (partner.root,)
