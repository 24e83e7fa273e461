"""The fixed window counts whole windows of the epoch, denied costs included."""

from __future__ import annotations

import pytest

from ratelimit.algorithm import MAX_COUNT, SECOND, UNITS, Bucket, Limit, Outcome, fixed_window

MINUTE = UNITS["minute"]
FIVE = Limit(5, MINUTE)
START = 1_700_000_040 * SECOND  # the start of a minute


def test_first_spend_opens_the_window() -> None:
    """The bucket of a first spend ends with the current minute of the epoch."""
    outcome, bucket = fixed_window(FIVE, None, START + 20 * SECOND, 2)
    assert outcome == Outcome(allowed=True, remaining=3, reset=40 * SECOND)
    assert bucket == Bucket(expires=START + 60 * SECOND, spent=2)


@pytest.mark.parametrize(
    ("spent", "cost", "allowed", "remaining"),
    [
        (4, 1, True, 0),
        (5, 1, False, 0),
        (3, 3, False, 0),
        (0, 6, False, 0),
        (4, 0, True, 1),
        (5, 0, False, 0),
        (9, 0, False, 0),
    ],
)
def test_cost_fits_or_not(spent: int, cost: int, allowed: bool, remaining: int) -> None:
    """A cost fits up to the limit, a look only while something is left."""
    outcome, bucket = fixed_window(FIVE, Bucket(START + MINUTE.window, spent), START, cost)
    assert (outcome.allowed, outcome.remaining) == (allowed, remaining)
    assert bucket.spent == spent + cost


def test_next_window_starts_empty() -> None:
    """At the very end of a window the count starts again."""
    end = START + MINUTE.window
    outcome, bucket = fixed_window(FIVE, Bucket(end, 99), end, 1)
    assert outcome == Outcome(allowed=True, remaining=4, reset=MINUTE.window)
    assert bucket == Bucket(end + MINUTE.window, 1)


def test_clock_steps_back_over_an_edge() -> None:
    """A clock that returns to the window before keeps counting in the later one."""
    end = START + MINUTE.window
    outcome, bucket = fixed_window(FIVE, Bucket(end, 5), START - 1, 1)
    assert outcome == Outcome(allowed=False, remaining=0, reset=MINUTE.window + 1)
    assert bucket == Bucket(end, 6)


def test_clock_steps_back_far() -> None:
    """After a long step back the window is that of the clock, so a wrong date does not deny for years."""
    outcome, bucket = fixed_window(FIVE, Bucket(START + 10 * MINUTE.window, 5), START, 1)
    assert outcome.allowed
    assert bucket == Bucket(START + MINUTE.window, 1)


def test_count_saturates() -> None:
    """A count stops at what 64 bits hold."""
    huge = Bucket(START + MINUTE.window, MAX_COUNT)
    assert fixed_window(FIVE, huge, START, 2**64 - 1)[1].spent == MAX_COUNT


def test_limit_of_zero_denies() -> None:
    """`requests_per_unit: 0` denies every cost and every look."""
    none = Limit(0, MINUTE)
    assert not fixed_window(none, None, START, 1)[0].allowed
    assert not fixed_window(none, None, START, 0)[0].allowed


def test_week_starts_on_thursday() -> None:
    """Windows are counted from the epoch, so a week turns on Thursday 00:00 UTC."""
    thursday = 1_700_092_800 * SECOND  # 2023-11-16T00:00:00Z
    outcome, _ = fixed_window(Limit(1, UNITS["week"]), None, thursday, 1)
    assert outcome.reset == UNITS["week"].window
