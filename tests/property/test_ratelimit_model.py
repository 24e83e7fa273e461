"""The memory store answers as a plain model does, whatever the limits and calls."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from support.limit_model import Model
from support.limit_strategies import calls, limits

from ratelimit.algorithm import SECOND, UNITS, Algorithm, Limit
from ratelimit.charge import Spend
from ratelimit.store.memory import MemoryStore

START = 1_700_002_800 * SECOND


@given(data=st.data(), chosen=st.lists(limits(), min_size=1, max_size=3))
def test_memory_answers_as_the_model(data: st.DataObject, chosen: list[Any]) -> None:
    """Verdicts, remainders and grants are those of fractions and lists."""
    store, model, now = MemoryStore(), Model(), START
    for _ in range(data.draw(st.integers(1, 12))):
        wait, spends = data.draw(calls(chosen))
        now += wait * 1000
        answers = [
            (outcome.allowed, outcome.remaining, outcome.granted) for outcome in store.spend(spends, now)
        ]
        assert answers == model.call(spends, now)


@given(
    data=st.data(),
    limit=limits().filter(lambda limit: limit.requests_per_unit > 0 and not limit.best_effort),
    costs=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 10**6)), max_size=8),
)
def test_reset_of_a_denial_is_when_it_would_fit(
    data: st.DataObject, limit: Limit, costs: list[tuple[int, int]]
) -> None:
    """Whoever waits as long as a denial says is let in, and a microsecond before is not."""
    store, now = MemoryStore(), START
    for cost, wait in costs:
        now += wait * 1000
        store.spend([Spend("k", limit, cost)], now)
    cost = data.draw(st.integers(1, limit.capacity))
    free = replace(limit, counts_denied=False)
    (outcome,) = store.spend([Spend("k", free, cost)], now)
    if outcome.allowed:
        return
    (early,) = store.spend([Spend("k", free, cost)], now + outcome.reset - limit.tick)
    assert not early.allowed
    (late,) = store.spend([Spend("k", free, cost)], now + outcome.reset)
    # A fixed window may hold too many denied costs for any but a new one, which is what its reset names.
    assert late.allowed


@given(
    start=st.integers(0, 10**6),
    rate=st.integers(1, 20),
    burst=st.integers(1, 20),
    waits=st.lists(st.integers(0, 400_000), min_size=1, max_size=60),
)
def test_a_token_bucket_never_gives_more_than_burst_and_rate(
    start: int, rate: int, burst: int, waits: list[int]
) -> None:
    """In any span what is allowed is at most the burst and what the rate brings in it."""
    limit = Limit(rate, UNITS["second"], algorithm=Algorithm.TOKEN_BUCKET, burst=burst)
    store, now = MemoryStore(), START + start * 1000
    allowed: list[int] = []
    for wait in waits:
        now += wait * 1000
        if store.spend([Spend("k", limit, 1)], now)[0].allowed:
            allowed.append(now)
    for first in range(len(allowed)):
        for last in range(first, len(allowed)):
            assert last - first + 1 <= burst + Fraction((allowed[last] - allowed[first]) * rate, SECOND)


@given(
    most=st.integers(1, 10),
    waits=st.lists(st.integers(0, 400_000), min_size=1, max_size=60),
    step=st.integers(0, 10**6),
)
def test_a_sliding_window_never_gives_twice_the_limit(most: int, waits: list[int], step: int) -> None:
    """Over a window's edge, where a fixed window gives twice its limit, any whole window gets less than that."""
    limit = Limit(most, UNITS["second"], algorithm=Algorithm.SLIDING_WINDOW)
    store, now = MemoryStore(), START + step * 1000
    allowed: list[int] = []
    for wait in waits:
        now += wait * 1000
        if store.spend([Spend("k", limit, 1)], now)[0].allowed:
            allowed.append(now)
    for first in allowed:
        within = sum(first <= other < first + SECOND for other in allowed)
        assert within <= max(2 * most - 1, 1)


@given(
    waits=st.lists(st.tuples(st.integers(0, 3 * 10**6), st.booleans()), max_size=60), most=st.integers(1, 5)
)
def test_never_more_places_than_allowed(waits: list[tuple[int, bool]], most: int) -> None:
    """Never more leases than the limit, however many are lost, and each is free again a little after its window."""
    limit = Limit(most, UNITS["second"], algorithm=Algorithm.CONCURRENCY, counts_denied=False)
    store, now = MemoryStore(), START
    held: list[int] = []
    for wait, gives_back in waits:
        now += wait * 1000
        held = [taken for taken in held if now - taken < SECOND]
        if gives_back and held:
            store.spend([Spend("k", limit, -1)], now)
            held.pop()
        elif store.spend([Spend("k", limit, 1)], now)[0].allowed:
            held.append(now)
        assert len(held) <= most
    now += SECOND + SECOND // 16 + SECOND // 100
    assert store.spend([Spend("k", limit, most)], now)[0].allowed
