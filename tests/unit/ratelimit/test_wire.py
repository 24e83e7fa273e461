"""Keys on servers: one slot for each domain, nobody's key is another's, all of bounded length."""

from __future__ import annotations

from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit.algorithm import UNITS, Algorithm, Limit, Outcome
from ratelimit.charge import Spend
from ratelimit.store.servers import ClusterServers
from ratelimit.store.wire import Keys, decode, encode, tag

DAY = Limit(5, UNITS["day"])


def test_key_format() -> None:
    """A key has the prefix, the domain as hash tag, and the bucket's key."""
    keys, _ = encode([[Spend("day|shop|user=a", DAY, 1, domain="shop")]], Keys("p"), 0, 0)
    assert keys == ["p:{shop}:day|shop|user=a"]


def test_kinds_are_kept_apart() -> None:
    """A key that does not say its kind is given it: buckets of two kinds are never one value."""
    sliding = Limit(5, UNITS["day"], algorithm=Algorithm.SLIDING_WINDOW)
    keys, _ = encode([[Spend("#hash", DAY, 1), Spend("#hash", sliding, 1)]], Keys(), 0, 0)
    assert keys == ["garrison:{%}:day!#hash", "garrison:{%}:sliding_window:day!#hash"]


@given(left=st.text(alphabet="ab{}%", max_size=6), right=st.text(alphabet="ab{}%", max_size=6))
def test_tags_are_injective_and_sound(left: str, right: str) -> None:
    """A tag is not empty, holds no braces, and is that of one domain only."""
    assert (tag(left) == tag(right)) == (left == right)
    assert tag(left)
    assert not set("{}") & set(tag(left))


@pytest.mark.parametrize(("domain", "slot"), [("foo", 12182), ("123456789", 12739), ("somekey", 11058)])
def test_slots_are_those_of_the_specification(domain: str, slot: int) -> None:
    """The slot of a tag is the one that a Cluster's nodes work out."""
    assert ClusterServers([]).slot(domain) == slot


def test_long_identifiers_are_hashed() -> None:
    """The record of a retry has a key of bounded length, whatever identifier a caller sends."""
    keys, _ = encode([[Spend("day|d|k=v", DAY, 1, once="x" * 100_000, once_for=1000)]], Keys(), 0, 0)
    assert all(len(key) < 400 for key in keys)


def test_an_answer_of_another_length_is_none() -> None:
    """What is no answer to the calls is refused as a whole."""
    calls = [[Spend("k", DAY, 1)], [Spend("k", DAY, 1), Spend("l", DAY, 1)]]
    answer = pack("<12d", 1, 4, 10, -1, 1, 3, 10, -1, 0, 0, 0, 2)
    found = decode(calls, answer)
    assert found[0] == [Outcome(allowed=True, remaining=4, reset=10_000)]
    assert found[1][1] == Outcome(allowed=False, remaining=0, reset=1, granted=2)
    with pytest.raises(ValueError, match="length"):
        decode(calls, answer[:-8])
