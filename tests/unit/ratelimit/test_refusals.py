"""What the store has denied is denied again for a moment, and nothing else is."""

from __future__ import annotations

from dataclasses import replace

from ratelimit.algorithm import SECOND, UNITS, Algorithm, Limit, Outcome
from ratelimit.charge import Spend
from ratelimit.store.base import FORGET_SECONDS
from ratelimit.store.refusals import Refusals

THREE = Limit(3, UNITS["minute"])
OVER = Outcome(allowed=False, remaining=0, reset=30 * SECOND)


def learnt(spend: Spend, outcome: Outcome = OVER) -> Refusals:
    """Return what is known after one answer at second 100."""
    refusals = Refusals()
    refusals.learn([spend], [outcome], 100.0)
    return refusals


def test_the_same_is_denied_for_a_second() -> None:
    """The denial holds for a second at most, with the reset counted down."""
    refusals = learnt(Spend("k", THREE, 1))
    assert refusals.answer([Spend("k", THREE, 1)], 100.5) == [OVER._replace(reset=int(29.5 * SECOND))]
    assert refusals.answer([Spend("k", THREE, 0)], 100.5) is not None
    assert refusals.answer([Spend("k", THREE, 1)], 101.0) is None
    assert len(refusals) == 0


def test_a_reset_within_the_second() -> None:
    """Nobody is denied here after the reset."""
    refusals = learnt(Spend("k", THREE, 1), OVER._replace(reset=SECOND // 2))
    assert refusals.answer([Spend("k", THREE, 1)], 100.4) is not None
    assert refusals.answer([Spend("k", THREE, 1)], 100.5) is None


def test_what_may_fit_is_asked() -> None:
    """Smaller costs, refunds, retries, other limits and other keys go to the store."""
    refusals = learnt(Spend("k", THREE, 5))
    for spend in (
        Spend("k", THREE, 4),
        Spend("k", THREE, 0),
        Spend("k", THREE, -1),
        Spend("k", THREE, 5, once="id"),
        Spend("k", replace(THREE, requests_per_unit=4), 5),
        Spend("l", THREE, 5),
    ):
        assert refusals.answer([spend], 100.1) is None
    assert refusals.answer([Spend("k", THREE, 5), Spend("l", THREE, 5)], 100.1) is None
    assert refusals.answer([Spend("k", THREE, 6)], 100.1) is not None


def test_what_is_not_certain_is_not_learnt() -> None:
    """Something left, and places that may be given back at any time, are no reason to deny."""
    assert len(learnt(Spend("k", THREE, 5), OVER._replace(remaining=1))) == 0
    places = replace(THREE, algorithm=Algorithm.CONCURRENCY, counts_denied=False)
    assert len(learnt(Spend("k", places, 1))) == 0


def test_a_refund_ends_the_denial() -> None:
    """Who gives back here is asked about again at once."""
    refusals = learnt(Spend("k", THREE, 1))
    refusals.learn([Spend("k", THREE, -1)], [Outcome(allowed=True, remaining=1, reset=SECOND)], 100.1)
    assert refusals.answer([Spend("k", THREE, 1)], 100.2) is None


def test_it_stays_bounded() -> None:
    """The oldest goes when there are too many."""
    refusals = Refusals(max_keys=2)
    for key in "abc":
        refusals.learn([Spend(key, THREE, 1)], [OVER], 100.0)
    assert len(refusals) == 2
    assert refusals.answer([Spend("a", THREE, 1)], 100.1) is None
    assert refusals.answer([Spend("c", THREE, 1)], 100.1) is not None


def test_one_limit_of_a_descriptor_is_enough() -> None:
    """A limit beside one that denies need not be asked if denied calls take nothing from it."""
    free = replace(THREE, counts_denied=False)
    refusals = learnt(Spend("k", free, 1))
    beside = Spend("l", free, 1)
    (over, other) = refusals.answer([Spend("k", free, 1), beside], 100.1) or []
    assert (over.allowed, other.allowed, other.is_known) == (False, True, False)
    for second in (
        Spend("l", THREE, 1),
        Spend("l", free, 1, descriptor=1),
        Spend("l", free, 1, once="id"),
    ):
        assert refusals.answer([Spend("k", free, 1), second], 100.1) is None
    for lenient in (replace(free, shadow_mode=True), replace(free, quota_mode=True)):
        refusals = learnt(Spend("k", lenient, 1))
        assert refusals.answer([Spend("k", lenient, 1), beside], 100.1) is None
        assert refusals.answer([Spend("k", lenient, 1)], 100.1) is not None


def test_what_is_reset_is_asked_again() -> None:
    """A forgotten key is asked about at once, and nothing is learnt of it while old answers may come; others stay."""
    refusals = learnt(Spend("k", THREE, 1))
    refusals.learn([Spend("other", THREE, 1)], [OVER], 100.0)
    refusals.forget(["k"], 100.1)
    refusals.learn([Spend("k", THREE, 1)], [OVER], 100.2)
    assert refusals.answer([Spend("k", THREE, 1)], 100.3) is None
    assert refusals.answer([Spend("other", THREE, 1)], 100.3) is not None
    refusals.learn([Spend("k", THREE, 1)], [OVER], 100.1 + FORGET_SECONDS)
    assert refusals.answer([Spend("k", THREE, 1)], 100.2 + FORGET_SECONDS) is not None


def test_what_was_reset_long_ago_takes_no_room() -> None:
    """Keys that may be learnt again are not kept."""
    refusals = Refusals()
    for number in range(100):
        refusals.forget([str(number)], number * FORGET_SECONDS)
    assert refusals._forgotten.keys() == {"99"}
