"""What is taken in advance is used here, never twice, never in a later window."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit.algorithm import SECOND, UNITS, Limit, Outcome
from ratelimit.charge import Spend
from ratelimit.store.base import FORGET_SECONDS
from ratelimit.store.leases import Leases, own_outcome
from ratelimit.store.memory import MemoryStore

TEN = Limit(100, UNITS["minute"], lease=10)
GRANTED = Outcome(allowed=True, remaining=90, reset=30 * SECOND, granted=10)


def leased(cost: int = 1) -> Leases:
    """Return leases after one grant at second 100."""
    leases = Leases()
    asked = leases.ask(Spend("k", TEN, cost), 100.0)
    assert asked.extra == 10 - cost
    leases.answered(asked, GRANTED, 100.0)
    assert own_outcome(asked, GRANTED) == Outcome(allowed=True, remaining=100 - cost, reset=30 * SECOND)
    return leases


def test_a_lease_is_used_up() -> None:
    """Nine more hits are answered here, with what is left counted down; the tenth is asked for."""
    leases = leased()
    left = []
    while (outcome := leases.spend(Spend("k", TEN, 1), 101.0)) is not None:
        left.append(outcome.remaining)
    assert left == [98, 97, 96, 95, 94, 93, 92, 91, 90]
    assert leases.ask(Spend("k", TEN, 1), 101.0).extra == 9


def test_a_lease_ends_with_its_window() -> None:
    """What was not used when the window ends is not used at all."""
    leases = leased()
    assert leases.spend(Spend("k", TEN, 1), 129.9) is not None
    assert leases.spend(Spend("k", TEN, 1), 130.0) is None
    assert len(leases) == 0


@pytest.mark.parametrize(
    "spend",
    [
        Spend("k", TEN, 10),
        Spend("k", TEN, -1),
        Spend("l", TEN, 1),
    ],
)
def test_what_a_lease_does_not_answer(spend: Spend) -> None:
    """More than is left, refunds and other keys go to the store, which is asked for no second lease of the key."""
    leases = leased()
    assert leases.spend(spend, 101.0) is None
    assert bool(leases.ask(spend, 101.0).extra) == (spend.key == "l")
    assert leases.spend(Spend("k", TEN, 1), 101.0) is not None


def test_a_changed_limit_ends_the_lease() -> None:
    """What was taken under another limit is not used."""
    assert leased().spend(Spend("k", replace(TEN, requests_per_unit=5), 1), 101.0) is None


def test_looking_takes_nothing() -> None:
    """A look sees what is left here and there."""
    leases = leased()
    looks = [leases.spend(Spend("k", TEN, 0), 101.0) for _ in range(2)]
    assert [look.remaining for look in looks if look] == [99, 99]


def test_one_lease_is_asked_for_at_a_time() -> None:
    """Calls that come while a lease is on its way ask for themselves alone; a failed one may be tried again."""
    leases = Leases()
    first = leases.ask(Spend("k", TEN, 1), 100.0)
    assert leases.ask(Spend("k", TEN, 1), 100.0).extra == 0
    leases.answered(first, None, 100.0)
    assert leases.ask(Spend("k", TEN, 1), 100.0).extra == 9
    assert Leases().ask(Spend("k", TEN, 11), 100.0).extra == 0


def test_leases_stay_bounded() -> None:
    """The oldest goes when there are too many; what it held is lost."""
    leases = Leases(max_keys=2)
    for key in "abc":
        leases.answered(leases.ask(Spend(key, TEN, 1), 100.0), GRANTED, 100.0)
    assert len(leases) == 2
    assert leases.spend(Spend("a", TEN, 1), 100.0) is None


@given(
    requests=st.integers(1, 30),
    lease=st.integers(2, 12),
    calls=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 9_000)), max_size=60),
)
def test_processes_never_exceed_the_limit_together(
    requests: int, lease: int, calls: list[tuple[int, int, int]]
) -> None:
    """Three processes that take leases allow at most the limit in each window of the store, and waste little."""
    limit = Limit(requests, UNITS["minute"], lease=lease, counts_denied=False)
    store, processes = MemoryStore(), [Leases() for _ in range(3)]
    now = 1_700_000_040 * SECOND
    allowed: dict[int, int] = {}
    for process, cost, wait in calls:
        now += wait * SECOND // 1000
        leases, spend = processes[process], Spend("k", limit, cost)
        outcome = leases.spend(spend, now / SECOND)
        if outcome is None:
            asked = leases.ask(spend, now / SECOND)
            (granted,) = store.spend([asked], now)
            leases.answered(asked, granted, now / SECOND)
            outcome = own_outcome(asked, granted)
        window = now // limit.unit.window
        if outcome.allowed:
            allowed[window] = allowed.get(window, 0) + cost
        else:
            unused = requests - allowed.get(window, 0)
            assert unused < max(cost, 1) + 3 * (lease - 1)
        assert allowed.get(window, 0) <= requests


def test_a_lease_of_a_reset_bucket_is_dropped() -> None:
    """What is held is gone, what was asked for before is not kept, and nothing is taken in advance for a while."""
    leases = leased()
    leases.forget(["k"], 101.0)
    assert leases.spend(Spend("k", TEN, 1), 101.1) is None
    assert leases.ask(Spend("k", TEN, 1), 101.1).extra == 0
    later = 101.0 + FORGET_SECONDS
    asked = leases.ask(Spend("k", TEN, 1), later)
    assert asked.extra == 9
    leases.answered(asked, GRANTED, later)
    assert leases.spend(Spend("k", TEN, 1), later + 0.1) is not None


def test_a_lease_that_is_on_its_way_during_a_reset_is_dropped() -> None:
    """It was counted in a bucket that is no more."""
    leases = Leases()
    asked = leases.ask(Spend("k", TEN, 1), 100.0)
    leases.forget(["k"], 100.1)
    leases.answered(asked, GRANTED, 100.0)
    assert len(leases) == 0
    assert leases.ask(Spend("k", TEN, 1), 100.1 + FORGET_SECONDS).extra == 9
