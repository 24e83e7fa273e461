"""What holds of every pause: it doubles, it is bounded, and chance moves it no further than it is said to."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from garrison.pauses import at_least_half, doubled, give_or_take, next_pause

CHANCE = st.floats(0, 1, exclude_max=True)
SECONDS = st.floats(0.001, 10_000)
DURATION = st.timedeltas(timedelta(microseconds=1), timedelta(days=400))
FEW = st.integers(0, 40)


@given(SECONDS, FEW, SECONDS)
def test_seconds_double_up_to_the_longest(first: float, times: int, longest: float) -> None:
    """As powers of two say."""
    assert doubled(first, times, longest) == min(first * 2**times, longest)


@given(DURATION, FEW, DURATION)
def test_durations_double_up_to_the_longest(first: timedelta, times: int, longest: timedelta) -> None:
    """As microseconds do, however large they would get."""
    microsecond = timedelta(microseconds=1)
    whole = min((first // microsecond) * 2**times, longest // microsecond)
    assert doubled(first, times, longest) == whole * microsecond


@given(DURATION, st.integers(10**9, 10**12), DURATION)
def test_no_number_of_failures_is_too_many(first: timedelta, times: int, longest: timedelta) -> None:
    """It costs no time either to find out that the longest is reached."""
    assert doubled(first, times, longest) == longest


@given(SECONDS, FEW, SECONDS)
def test_pauses_that_follow_each_other_are_those_of_so_many_failures(
    first: float, times: int, longest: float
) -> None:
    """Who remembers the last pause and who counts wait the same."""
    pause = next_pause(0.0, first, longest)
    for _ in range(times):
        pause = next_pause(pause, first, longest)
    assert pause == doubled(first, times, longest)


@given(SECONDS, st.floats(0, 1), CHANCE)
def test_to_either_side(pause: float, share: float, chance: float) -> None:
    """No further than the share, and half of the chances leave it as it is."""
    spread = give_or_take(pause, share, chance)
    assert pause * (1 - share) <= spread <= pause * (1 + share)
    assert give_or_take(pause, share, 0.5) == pause
    assert (spread < pause) <= (chance < 0.5)


@given(DURATION, CHANCE)
def test_half_is_certain(pause: timedelta, chance: float) -> None:
    """The rest is up to chance; never more than the whole."""
    assert pause / 2 <= at_least_half(pause, chance) <= pause
