"""The memory store is exact, bounded, and refuses rather than forgets."""

from __future__ import annotations

import asyncio

import pytest

from ratelimit.algorithm import SECOND, UNITS, Algorithm, Bucket, Limit, Outcome
from ratelimit.store.base import Spend
from ratelimit.store.memory import MemoryStore

MINUTE = UNITS["minute"].window
PER_MINUTE = Limit(2, UNITS["minute"])
PER_SECOND = Limit(2, UNITS["second"])


def one(key: str, limit: Limit = PER_MINUTE, cost: int = 1) -> list[Spend]:
    """Return a batch of one spend."""
    return [Spend(key, limit, cost)]


def test_batch_counts_in_order() -> None:
    """Spends of one batch on the same bucket count one after the other."""
    outcomes = MemoryStore().spend(one("a") + one("b") + one("a") + one("a"), 0)
    assert [outcome.remaining for outcome in outcomes] == [1, 1, 0, 0]
    assert [outcome.allowed for outcome in outcomes] == [True, True, True, False]


def test_same_key_with_another_window_is_another_bucket() -> None:
    """Buckets of two window lengths never mix, whatever their keys."""
    store = MemoryStore()
    store.spend(one("a", PER_SECOND, 2), 0)
    assert store.spend(one("a"), 0)[0].remaining == 1


def test_looking_leaves_no_trace() -> None:
    """A cost of 0 creates no bucket."""
    store = MemoryStore()
    assert store.spend(one("a", cost=0), 0) == [Outcome(allowed=True, remaining=2, reset=MINUTE)]
    assert len(store) == 0


def test_full_store_refuses_new_buckets_only() -> None:
    """A full store denies whom it does not know and goes on counting whom it does."""
    store = MemoryStore(max_buckets=1)
    assert store.spend(one("a"), 0)[0].allowed
    assert store.spend(one("b"), SECOND) == [Outcome(allowed=False, remaining=0, reset=MINUTE - SECOND)]
    assert store.spend(one("a"), SECOND)[0].allowed
    assert (store.refused, len(store)) == (1, 1)


def test_full_store_forgets_what_expired() -> None:
    """Once a window is over its buckets make room."""
    store = MemoryStore(max_buckets=1)
    store.spend(one("a"), 0)
    assert store.spend(one("b"), MINUTE)[0].allowed
    assert (store.refused, len(store)) == (0, 1)


def test_oldest_expired_goes_first() -> None:
    """Of several window lengths the bucket that expired first is forgotten first."""
    store = MemoryStore(max_buckets=4)
    store.spend(one("m", PER_MINUTE) + one("s", PER_SECOND) + one("t", PER_SECOND), 0)
    store.spend(one("n"), 30 * SECOND)  # forgets `s` and `t`, not `m`
    assert len(store) == 2
    assert store.spend(one("m", cost=0), 30 * SECOND)[0].remaining == 1


def test_renewed_buckets_wait_for_their_new_window() -> None:
    """A bucket that is used in the next window does not hide expired ones behind it."""
    store = MemoryStore()
    store.spend(one("a") + one("b"), 0)
    store.spend(one("a"), MINUTE)
    store.spend(one("c"), MINUTE)
    assert len(store) == 2
    assert store.spend(one("a", cost=0), MINUTE)[0].remaining == 1


def test_store_shrinks_while_it_is_used() -> None:
    """After a burst of values the store lets go of them a few per new bucket."""
    store = MemoryStore()
    for number in range(100):
        store.spend(one(f"burst-{number}"), 0)
    for number in range(50):
        store.spend(one(f"later-{number}"), MINUTE)
    assert len(store) == 50


def test_a_store_has_room() -> None:
    """A store for no buckets is a mistake of its maker."""
    with pytest.raises(ValueError, match="at least one"):
        MemoryStore(max_buckets=0)


def test_records_of_retries_are_bounded_too() -> None:
    """Identifiers that callers invent fill the store no further than anything else, and are kept short."""
    store = MemoryStore(max_buckets=10)
    large = Limit(1000, UNITS["minute"])
    for number in range(100):
        spend = Spend("a", large, 1, once=f"{'x' * 10_000}{number}", once_for=MINUTE)
        assert store.spend([spend], 0)[0].allowed
    assert len(store) == 10
    assert all(len(key) < 1000 for buckets in store._buckets.values() for key in buckets)


def test_buckets_of_every_algorithm_are_forgotten() -> None:
    """Whatever a bucket holds, it goes once it is worth nothing."""
    store = MemoryStore()
    for algorithm in Algorithm:
        store.spend(one("a", Limit(5, UNITS["second"], algorithm=algorithm, counts_denied=False)), 0)
    assert len(store) == len(Algorithm)
    for number in range(8):
        store.spend(one(f"later-{number}"), 10 * SECOND)
    assert len(store) == 8


def test_a_rolling_window_gives_back_one_window_later() -> None:
    """What was taken comes back when its step has left the window, and denied costs take nothing."""
    limit = Limit(10, UNITS["minute"], algorithm=Algorithm.ROLLING_WINDOW, counts_denied=False, slots=600)
    store = MemoryStore()
    found = [
        store.spend([Spend("k", limit, cost)], (1_800_000_000 + second) * SECOND)[0]
        for second, cost in [(1, 10), (2, 10), (60, 10), (61, 10), (62, 1)]
    ]
    assert [outcome.allowed for outcome in found] == [True, False, False, True, False]
    assert [outcome.reset for outcome in found[1:3]] == [59 * SECOND, SECOND]


def test_a_reset_makes_room() -> None:
    """A bucket that was reset is gone, its room is free, and what expires later is still forgotten in time."""
    store, minute = MemoryStore(1), Limit(3, UNITS["minute"])
    first = Spend("a", minute, 1)
    for _ in range(3):
        store.spend([first], 0)
        held = asyncio.run(store.reset([first], 0))
        assert held.buckets == [Bucket(60 * SECOND, 1)]
        assert len(store) == 0
    assert store.spend([Spend("b", minute, 1)], 0)[0].allowed
    assert store.spend([Spend("c", minute, 1)], 60 * SECOND)[0].allowed
    assert (len(store), store.refused) == (1, 0)
    store.drop(["c", "unknown"])
    assert len(store) == 0
