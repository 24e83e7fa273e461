"""What limits come to when they are given out, and the corners of sharing them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ratelimit.algorithm import SECOND, UNITS, Algorithm, Limit
from ratelimit.compile import window_unit
from ratelimit.quota_shares import MAX_UNITS, SLACK, Blanket, QuotaShares, Terms, divide, terms_of

TTL = 15 * SECOND
PER_SECOND = Limit(50, UNITS["second"])
PER_MINUTE = Limit(60, UNITS["minute"])
PER_DAY = Limit(1_000, UNITS["day"])


def terms(*limits: Limit, parts: int = 1) -> Terms:
    """Return what limits come to, which is no blanket."""
    found = terms_of(limits, parts)
    assert isinstance(found, Terms)
    return found


def test_a_second_gives_a_burst_of_one_second() -> None:
    """Fifty a second: that rate, and fifty at once."""
    found = terms(PER_SECOND)
    assert (found.units, found.interval_seconds, found.burst) == (50 * 328, 328, 50)


def test_a_longer_window_gives_a_burst_of_a_twentieth() -> None:
    """Sixty a minute: one a second, three at once."""
    found = terms(PER_MINUTE)
    assert found.units == found.interval_seconds
    assert found.burst == 3


def test_the_slowest_limit_and_the_smallest_burst_count() -> None:
    """Fifty a second and a thousand a day: the rate of the day, the burst of the second."""
    found = terms(PER_SECOND, PER_DAY)
    assert found.units * 86400 == pytest.approx(1000 * found.interval_seconds, rel=1e-3)
    assert found.units * 86400 <= 1000 * found.interval_seconds
    assert found.burst == 50
    assert terms(PER_DAY, PER_SECOND) == found


def test_a_token_bucket_brings_its_burst() -> None:
    """`burst` is what a token bucket's limit says, at once over all Envoys."""
    found = terms(replace(PER_MINUTE, algorithm=Algorithm.TOKEN_BUCKET, burst=40))
    assert found.burst == 40
    assert found.burst_of(found.units // 4) == 10


def test_a_burst_is_at_least_one_call() -> None:
    """A share so small that its burst would be none lets one call through at a time."""
    assert terms(Limit(1, UNITS["day"])).burst == 1
    assert terms(PER_SECOND).burst_of(1) == 1


@pytest.mark.parametrize(
    ("limits", "answer"),
    [
        ([], Blanket.ALLOW_ALL),
        ([replace(PER_SECOND, shadow_mode=True)], Blanket.ALLOW_ALL),
        ([Limit(0, UNITS["second"])], Blanket.DENY_ALL),
        ([PER_SECOND, Limit(0, UNITS["day"])], Blanket.DENY_ALL),
        ([replace(PER_SECOND, algorithm=Algorithm.CONCURRENCY)], Blanket.DENY_ALL),
        ([Limit(0, UNITS["second"], shadow_mode=True)], Blanket.ALLOW_ALL),
    ],
)
def test_some_limits_need_no_division(limits: list[Limit], answer: Blanket) -> None:
    """No limit in force allows all; a limit of none, and places that nobody reports back, deny all."""
    assert terms_of(limits) is answer


def test_limits_in_shadow_mode_do_not_slow_others() -> None:
    """Only what is enforced is given out."""
    assert terms_of([PER_SECOND, replace(PER_DAY, shadow_mode=True)]) == terms_of([PER_SECOND])


def test_replicas_give_out_equal_parts() -> None:
    """Of three replicas each gives out a third, rounded down."""
    whole, third = terms(PER_SECOND), terms(PER_SECOND, parts=3)
    assert (third.units, third.burst) == (whole.units // 3, whole.burst // 3)


@pytest.mark.parametrize("number", [1, 7, 2**32 - 1])
@pytest.mark.parametrize("milliseconds", [1, 250, 1000, 90_000, 10 * 365 * 86_400_000])
def test_every_limit_fits_the_message(number: int, milliseconds: int) -> None:
    """Units and burst are unsigned 32-bit numbers, the interval whole seconds, the rate never above."""
    window = milliseconds * SECOND // 1000
    found = terms(Limit(number, window_unit(window)))
    assert 1 <= found.units <= MAX_UNITS
    assert 1 <= found.burst <= MAX_UNITS
    assert found.interval_seconds >= 1
    assert found.units * window <= number * found.interval_seconds * SECOND


def test_what_nobody_wants_is_divided_equally() -> None:
    """Two who want little get it and half each of the rest."""
    assert divide(100, [10, 20]) == [45, 55]
    assert divide(100, [10, 500]) == [10, 90]


def shares(*members: str, units: int = 1600) -> QuotaShares[str]:
    """Return shares that some have joined at time 0."""
    found: QuotaShares[str] = QuotaShares(units, TTL)
    for member in members:
        found.join(member, None, 0)
    return found


def told(quota: QuotaShares[str], who: str, now: int) -> int:
    """Assign, and write at once."""
    share = quota.assign(who, now)
    quota.delivered(who, now)
    return share


def test_a_newcomer_gets_half_of_what_is_free() -> None:
    """Nobody knows its demand yet, and others may come."""
    quota = shares("a", "b", "c")
    assert [told(quota, who, 0) for who in "abc"] == [500, 500, 300]


def test_demand_that_wavers_is_not_cut() -> None:
    """Under contention a small demand gets a quarter more than it was."""
    quota = shares("a", "b")
    for second in (0, 5, 10, 15):
        for who, demand in (("a", 400), ("b", 5000)):
            quota.report(who, demand, second * SECOND)
            told(quota, who, second * SECOND)
    assert quota.assign("a", 16 * SECOND) == 500
    assert quota.assign("b", 16 * SECOND) == 1000


def test_a_report_that_crossed_the_answer_proves_nothing() -> None:
    """An Envoy may have sent its report before a lower assignment reached it: what it had still counts."""
    quota = shares("a")
    told(quota, "a", 0)
    quota.report("a", 1500, 2 * SECOND)
    assert told(quota, "a", 2 * SECOND) == 1500
    quota.report("a", 1500, 4 * SECOND)
    quota.join("b", 1500, 4 * SECOND)
    assert told(quota, "a", 4 * SECOND) == 750
    quota.report("a", 1500, 4 * SECOND + SLACK)
    assert quota.held == 1500
    assert quota.report("a", 1500, 4 * SECOND + SLACK + 1)
    assert quota.held == 750


def test_many_assignments_that_may_not_have_arrived_are_remembered() -> None:
    """However often an Envoy is told less without reporting, the most it may have counts."""
    quota = shares("a")
    quota.report("a", 1500, 0)
    assert told(quota, "a", 0) == 1500
    for number in range(40):
        quota.capacity = 1000 - 20 * number
        told(quota, "a", SECOND + number)
    assert quota.held == 1500


def test_what_was_raised_last_counts_longest_for_one_that_left() -> None:
    """An Envoy that is gone may use its last, higher share until that runs out, not only the difference."""
    quota = shares("a")
    first = told(quota, "a", 0)
    quota.report("a", 1500, SECOND // 2)
    assert told(quota, "a", 5 * SECOND) == 1500 > first
    quota.leave("a", 6 * SECOND)
    quota.sweep(5 * SECOND + TTL)
    assert quota.held == 1500
    quota.sweep(5 * SECOND + TTL + SLACK)
    assert quota.held == 0


def test_a_smaller_capacity_is_what_is_divided() -> None:
    """What other callers took from the counters is not given out again."""
    quota = shares("a")
    quota.report("a", 1500, 0)
    quota.capacity = 160
    assert quota.assign("a", 0) == 150
    quota.capacity = -5
    assert quota.assign("a", 0) == 0


def test_an_envoy_that_is_silent_gets_the_least_part() -> None:
    """A stream that lives and does not report for a whole time to live has no demand."""
    quota = shares("a", "b")
    quota.report("a", 5000, 0)
    later = TTL + 2 * SLACK
    quota.report("b", 5000, later)
    quota.is_lowered("a", later)
    assert quota._members["a"].target == 46
    assert quota._members["b"].target == 1454
