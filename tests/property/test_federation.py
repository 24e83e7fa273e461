"""Whatever an endpoint answers, in whatever order: what is known of its trust domain only gets newer."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from ca.authority import Hierarchy
from ca.bundle import MAX_SEQUENCE, SpiffeBundle, format_spiffe_bundle, parse_spiffe_bundle
from ca.federation import JITTER, MAX_POLL, MIN_POLL, accept, is_stale, poll_interval
from ca.ledger import EndpointProfile, FederatedBundle
from garrison.errors import DependencyError
from garrison.identity import TrustDomain

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
PARTNER, OTHER = TrustDomain("partner.test"), TrustDomain("other.test")
MADE = FederatedBundle(PARTNER, "https://partner.test/bundle", EndpointProfile.WEB)
ROOTS = [Hierarchy.create(name, now=NOW).root for name in (PARTNER, PARTNER, OTHER)]
NUMBERS = st.none() | st.integers(0, 5) | st.sampled_from([MAX_SEQUENCE, MAX_SEQUENCE + 1, -1])

documents = st.builds(
    lambda which, sequence, hint: (which, sequence, hint),
    st.sets(st.integers(0, 2)),
    NUMBERS,
    NUMBERS,
)


def written(which: set[int], sequence: int | None, hint: int | None) -> bytes:
    """Return a document with these roots and numbers, which may be out of range."""
    plain = json.loads(format_spiffe_bundle(SpiffeBundle(tuple(ROOTS[one] for one in sorted(which)))))
    numbers = {"spiffe_sequence": sequence, "spiffe_refresh_hint": hint}
    plain.update({name: value for name, value in numbers.items() if value is not None})
    return json.dumps(plain).encode()


@given(st.lists(documents, max_size=12))
def test_numbers_never_go_back_and_roots_are_the_domains_own(
    answers: list[tuple[set[int], int | None, int | None]],
) -> None:
    """A plain model agrees: a document is taken whole or not at all."""
    known, newest = MADE, None
    for minutes, (which, sequence, hint) in enumerate(answers):
        now = NOW + timedelta(minutes=minutes)
        content = written(which, sequence, hint)
        in_range = all(one is None or 0 <= one <= MAX_SEQUENCE for one in (sequence, hint))
        is_newer = newest is None or (sequence is not None and sequence >= newest)
        try:
            found = accept(known, content, now=now)
        except DependencyError:
            assert not (in_range and is_newer and 2 not in which)
            continue
        assert in_range
        assert is_newer
        assert 2 not in which
        known, newest = found, sequence
        assert (known.document, known.sequence, known.fetched_at) == (content, sequence, now)
        assert ROOTS[2] not in parse_spiffe_bundle(content).x509_authorities
        assert not is_stale(known, now, timedelta(0))


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_a_bundle_or_refused(content: bytes) -> None:
    """Nothing else is raised, whatever a server sends."""
    try:
        found = accept(MADE, content, now=NOW)
    except DependencyError:
        return
    assert found.document == content


@given(NUMBERS.filter(lambda one: one is None or 0 <= one <= MAX_SEQUENCE), st.floats(0, 1, exclude_max=True))
def test_no_hint_makes_polls_frequent_or_rare(hint: int | None, chance: float) -> None:
    """From a minute to an hour, give or take a tenth."""
    known = accept(MADE, written({0}, None, hint), now=NOW)
    interval = poll_interval(known, None, chance)
    assert MIN_POLL * (1 - JITTER) <= interval <= MAX_POLL * (1 + JITTER)
