"""Whatever is spent in whatever order: never more than the limit, never a shared key, never another rule."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from garrison.documents import Document
from ratelimit.algorithm import SECOND, UNITS, Limit
from ratelimit.compile import compile_limits
from ratelimit.descriptors import Descriptor, Entry, bucket_key
from ratelimit.limiter import Decision, spend
from ratelimit.patterns import Wildcard
from ratelimit.store.base import Spend
from ratelimit.store.memory import MemoryStore
from ratelimit.tree import Unlimited

UNIT = st.sampled_from(sorted(UNITS.values(), key=lambda unit: unit.window))
TEXT = st.text(alphabet="ab%|=_*#é", max_size=4)
ENTRIES = st.lists(st.tuples(TEXT, TEXT), max_size=3)
DAY = 86400 * SECOND


@given(
    requests=st.integers(0, 6),
    unit=UNIT,
    start=st.integers(0, 10**19),
    steps=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40)), max_size=40),
    max_buckets=st.integers(1, 3),
)
def test_never_more_than_the_limit_per_window(
    requests: int, unit: Any, start: int, steps: list[tuple[int, int]], max_buckets: int
) -> None:
    """The costs allowed to one bucket in one window never add up to more than the limit."""
    store, now = MemoryStore(max_buckets), start
    limit = Limit(requests, unit)
    spent: Counter[tuple[int, str]] = Counter()
    for cost, step in steps:
        now += step * unit.window // 16
        key = "ab"[step % 2]
        (outcome,) = store.spend([Spend(key, limit, cost)], now)
        assert 0 < outcome.reset <= unit.window
        window = (now // unit.window, key)
        if outcome.allowed:
            spent[window] += cost
            assert outcome.remaining == requests - spent[window]
        assert spent[window] <= requests


@given(requests=st.integers(1, 6), edge=st.integers(1, 50), offsets=st.lists(st.integers(-9, 9), max_size=40))
def test_a_jittering_clock_grants_at_most_two_windows(requests: int, edge: int, offsets: list[int]) -> None:
    """A clock that jumps back and forth over an edge grants the two windows their limits, once each."""
    store, limit = MemoryStore(), Limit(requests, UNITS["minute"])
    middle = edge * limit.unit.window
    outcomes = [store.spend([Spend("k", limit, 1)], middle + offset * SECOND)[0] for offset in offsets]
    assert sum(outcome.allowed for outcome in outcomes) <= 2 * requests


@given(left=st.tuples(UNIT, TEXT, ENTRIES), right=st.tuples(UNIT, TEXT, ENTRIES))
def test_keys_are_injective(left: tuple[Any, str, list[Entry]], right: tuple[Any, str, list[Entry]]) -> None:
    """Different unit, domain or entries have different keys, and equal ones the same."""
    assert (bucket_key(*left) == bucket_key(*right)) == (left == right)


@given(entries=ENTRIES, cut=st.integers(0, 8))
def test_moving_a_separator_changes_the_key(entries: list[Entry], cut: int) -> None:
    """Joining two entries into one never gives the key of the two."""
    pair = [("a", "b"), *entries]
    joined = "|".join(f"{key}={value}" for key, value in pair)
    assert bucket_key(UNITS["day"], "d", [(joined[:cut], joined[cut:])]) != bucket_key(
        UNITS["day"], "d", [*pair, ("c", "")]
    )


@given(pattern=TEXT, prefix=TEXT, value=st.text(alphabet="ab%|=_*#é", max_size=8))
def test_wildcards_are_globs(pattern: str, prefix: str, value: str) -> None:
    """A wildcard matches what the same pattern matches as a regular expression."""
    text = f"{prefix}*{pattern}"
    expression = ".*".join(re.escape(part) for part in text.split("*"))
    assert Wildcard.parse(text).matches(value) == bool(re.fullmatch(expression, value, re.DOTALL))


KEY = st.sampled_from(["a", "a_b"])
VALUE = st.sampled_from(["", "x", "xy", "y", "x*", "*y", "*", "b_x"])
RULE = st.one_of(
    st.none(),
    st.builds(lambda n: {"unit": "day", "requests_per_unit": n}, st.integers(0, 999)),
    st.just({"unlimited": True}),
)


def _spec(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(
        st.builds(
            lambda key, value, rule, below: {
                "key": key,
                **({"value": value} if value else {}),
                **({"rate_limit": rule} if rule else {}),
                **({"descriptors": below} if below else {}),
            },
            KEY,
            VALUE,
            RULE,
            children,
        ),
        max_size=6,
        unique_by=lambda spec: (spec["key"], spec.get("value")),
    )


TREE = _spec(_spec(st.just([])))


def naive_rule(level: list[dict[str, Any]], entries: list[Entry]) -> Any:
    """Return the `rate_limit` for `entries` by going through the document as its reference says."""
    found: dict[str, Any] | None = None
    for key, value in entries:
        found = None
        candidates = [spec for spec in level if spec["key"] == key]
        if value:
            exact = [spec for spec in candidates if spec.get("value") == value and "*" not in value]
            globs = [
                spec
                for spec in candidates
                if "*" in spec.get("value", "")
                and re.fullmatch(spec["value"].replace("*", ".*"), value, re.DOTALL)
            ]
            found = next(iter(exact + globs), None)
        if found is None:
            found = next((spec for spec in candidates if "value" not in spec), None)
        if found is None:
            return None
        level = found.get("descriptors", [])
    return found.get("rate_limit") if found else None


@given(
    tree=TREE,
    entries=st.lists(
        st.tuples(KEY, st.sampled_from(["", "x", "xy", "y", "z", "x*"])), min_size=1, max_size=3
    ),
)
def test_matching_equals_a_naive_matcher(tree: list[dict[str, Any]], entries: list[Entry]) -> None:
    """The compiled lookup finds what a walk over the document finds."""
    limits, _ = compile_limits([Document("f.yaml", {"domain": "d", "descriptors": tree})])
    expected = naive_rule(tree, entries)
    rule = limits.domains["d"].find(entries)
    if expected is None:
        assert rule is None
    elif "unlimited" in expected:
        assert isinstance(rule, Unlimited)
    else:
        assert isinstance(rule, Limit)
        assert rule.requests_per_unit == expected["requests_per_unit"]


LIMITS, _ = compile_limits(
    [
        Document(
            "f.yaml",
            {
                "domain": "d",
                "descriptors": [
                    {"key": "a", "rate_limit": {"unit": "day", "requests_per_unit": 3}},
                    {"key": "b", "rate_limit": {"unit": "day", "requests_per_unit": 1}},
                    {
                        "key": "c",
                        "shadow_mode": True,
                        "rate_limit": {"unit": "hour", "requests_per_unit": 1},
                    },
                ],
            },
        )
    ]
)


@given(data=st.data(), before=st.integers(0, 3))
def test_order_of_descriptors_does_not_matter(data: st.DataObject, before: int) -> None:
    """The same descriptors in another order get the same answer, each the same outcome."""
    entries = st.tuples(st.sampled_from("abcd"), st.sampled_from("xy"))
    descriptors = [
        Descriptor([entry], data.draw(st.integers(0, 3)))
        for entry in data.draw(st.lists(entries, max_size=6, unique=True))
    ]
    shuffled = data.draw(st.permutations(descriptors))
    answers = []
    for order in (descriptors, shuffled):
        store = MemoryStore()
        for _ in range(before):
            spend(store, LIMITS.domains["d"], [Descriptor([("a", "x")])], DAY)
        decision = spend(store, LIMITS.domains["d"], order, DAY)
        assert isinstance(decision, Decision)
        by_descriptor = dict(zip(map(repr, order), decision.statuses, strict=True))
        answers.append((decision.over_limit, decision.shadowed, by_descriptor))
    assert answers[0] == answers[1]
