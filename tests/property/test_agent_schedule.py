"""What holds for every life and every chance: an agent renews in time, and never in a tight loop."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from ca.agent.schedule import MIN_PAUSE, Attempts, pause_after, renewal_time
from ca.renewal import MIN_INTERVAL

NOW = datetime(2030, 1, 2, tzinfo=UTC)
CHANCE = st.floats(0, 1, exclude_max=True)
LIFE = st.timedeltas(timedelta(0), timedelta(days=400))
LONGEST = st.timedeltas(timedelta(seconds=1), timedelta(hours=1))


@given(LIFE, CHANCE)
def test_renewal_is_never_later_than_the_end_nor_in_a_tight_loop(life: timedelta, chance: float) -> None:
    """Due by its end at the latest; if there is time at all, not at once."""
    due = renewal_time(NOW, NOW + life, chance)
    assert NOW <= due <= NOW + life
    assert due - NOW >= min(MIN_INTERVAL, life)


@given(LIFE, st.lists(CHANCE, min_size=200, max_size=200))
def test_renewals_that_all_fail_are_few(life: timedelta, chances: list[float]) -> None:
    """However often it is put off, the end comes after a number of tries that the life bounds."""
    at, ends, tries = NOW, NOW + life, 0
    for chance in chances:
        at = renewal_time(at, ends, chance)
        tries += 1
        if at >= ends:
            break
    assert at == ends
    # Each takes at least 45 % of what is left, or `MIN_INTERVAL`.
    assert tries <= 40


@given(st.integers(0, 10**6), LONGEST, CHANCE)
def test_pauses_are_bounded(failures: int, longest: timedelta, chance: float) -> None:
    """Never a tight loop, never longer than the longest, and chance only shortens."""
    pause = pause_after(failures, longest, chance)
    assert MIN_PAUSE <= pause <= longest
    assert pause <= pause_after(failures, longest, 1.0)
    assert pause_after(failures, longest, 1.0) <= pause_after(failures + 1, longest, 1.0)


@given(LONGEST, st.lists(CHANCE, min_size=1, max_size=50))
def test_tries_in_a_row_come_no_faster_than_the_least_pause(longest: timedelta, chances: list[float]) -> None:
    """Whoever asks only when it may asks at most five times a second."""
    at, attempts = NOW, Attempts()
    for number, chance in enumerate(chances, 1):
        assert attempts.may_try(at)
        attempts = attempts.failed(at, longest, chance)
        assert not attempts.may_try(at)
        assert attempts.not_before is not None
        at = attempts.not_before
        assert at - NOW >= number * MIN_PAUSE
