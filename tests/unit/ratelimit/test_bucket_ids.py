"""Bucket ids, which are maps, find the rules that descriptors, which are lists, find."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.ratelimit import limits_of

from ratelimit.bucket_ids import MAX_CHARACTERS, MAX_ENTRIES, bucket_key, find
from ratelimit.tree import Domain

CONFIG = """
domain: d
descriptors:
- key: tenant
  rate_limit: {unit: second, requests_per_unit: 1}
  descriptors:
  - key: path
    value: /a
    rate_limit: {unit: second, requests_per_unit: 2}
  - {key: request, deduplicate: 30s}
- key: path
  descriptors:
  - key: tenant
    value: acme
    rate_limit: {unit: second, requests_per_unit: 3}
- key: plan
  value: free*
  share_threshold: true
  rate_limit: {unit: second, requests_per_unit: 4}
"""
DOMAIN = limits_of(CONFIG).domains["d"]


def rate(entries: dict[str, str], domain: Domain = DOMAIN) -> int | None:
    """Return the number of the limit that a bucket id leads to."""
    place = find(domain, bucket_key(entries))
    return place.node.limits[0].requests_per_unit if place else None


@pytest.mark.parametrize(
    ("entries", "number"),
    [
        ({"tenant": "x"}, 1),
        ({"tenant": "x", "path": "/a"}, 2),
        ({"tenant": "x", "path": "/b"}, None),
        ({"tenant": "acme", "path": "/b"}, 3),
        # Both orders lead to a rule: `path` comes before `tenant`.
        ({"tenant": "acme", "path": "/a"}, 3),
        ({"tenant": "x", "request": "7"}, 1),
        ({"plan": "free-2"}, 4),
        ({"plan": "paid"}, None),
        ({"tenant": "x", "other": "y"}, None),
        ({"request": "7"}, None),
        ({}, None),
    ],
)
def test_all_entries_take_part_in_whatever_order_the_tree_has_them(
    entries: dict[str, str], number: int | None
) -> None:
    """The rule is the same however the map was written."""
    for order in permutations(entries.items()):
        assert rate(dict(order)) == number


def test_the_path_is_that_of_the_descriptor() -> None:
    """A bucket id and a descriptor of the same entries are one counter."""
    found = DOMAIN.resolve([("tenant", "x"), ("path", "/a")])
    place = find(DOMAIN, bucket_key({"path": "/a", "tenant": "x"}))
    assert found is not None
    assert place is not None
    assert (place.node, place.path) == (found.node, found.path)


def test_values_that_share_a_threshold_are_one_place() -> None:
    """`share_threshold` makes one counter of all values of a pattern."""
    one, two = (find(DOMAIN, bucket_key({"plan": plan})) for plan in ("free-1", "free-2"))
    assert one == two is not None


@given(
    st.dictionaries(
        st.sampled_from(["tenant", "path", "plan", "request"]), st.sampled_from(["acme", "/a", "x"])
    )
)
def test_what_a_descriptor_finds_in_some_order_is_found(entries: dict[str, str]) -> None:
    """A bucket id leads to a rule exactly when a descriptor with its entries in some order does."""
    orders = [DOMAIN.resolve(order) for order in permutations(entries.items())]
    rules = [
        (found.node, found.path) for found in orders if found is not None and found.node.rule is not None
    ]
    place = find(DOMAIN, bucket_key(entries))
    assert (place is None) == (not rules)
    if place is not None:
        assert tuple(place) in rules


def test_large_bucket_ids_are_refused() -> None:
    """Ids come from headers: their number of entries and their length are bounded."""
    assert bucket_key({"k": "v" * (MAX_CHARACTERS - 1)})
    with pytest.raises(ValueError, match="characters"):
        bucket_key({"k": "v" * MAX_CHARACTERS})
    with pytest.raises(ValueError, match="entries"):
        bucket_key({str(number): "" for number in range(MAX_ENTRIES + 1)})
