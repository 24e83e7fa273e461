"""When an agent renews and asks again, as plain cases."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ca.agent.schedule import MIN_PAUSE, Attempts, pause_after, renewal_time
from ca.renewal import MIN_INTERVAL

NOW = datetime(2030, 1, 2, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@pytest.mark.parametrize(("chance", "minutes"), [(0.0, 27), (0.5, 30), (1.0, 33)])
def test_half_the_life_give_or_take_a_tenth(chance: float, minutes: int) -> None:
    """An SVID of an hour is renewed after 27 to 33 minutes."""
    assert renewal_time(NOW, NOW + 60 * MINUTE, chance) == NOW + minutes * MINUTE


@pytest.mark.parametrize("left", [timedelta(0), timedelta(seconds=1), -MINUTE])
def test_what_ends_soon_is_renewed_when_it_ends(left: timedelta) -> None:
    """Not before: its renewals would come closer and closer. What has ended is due at once."""
    assert renewal_time(NOW, NOW + left, 0.0) == max(NOW, NOW + left)
    assert renewal_time(NOW, NOW + 2 * MIN_INTERVAL, 0.0) == NOW + MIN_INTERVAL


def test_pauses_double_up_to_the_longest() -> None:
    """One second, two, four; never more than the longest, and chance takes all but a rest."""
    assert [pause_after(number, MINUTE, 1.0).total_seconds() for number in range(1, 9)] == [
        1,
        2,
        4,
        8,
        16,
        32,
        60,
        60,
    ]
    assert pause_after(10**9, MINUTE, 1.0) == MINUTE
    assert pause_after(5, MINUTE, 0.0) == MIN_PAUSE


def test_attempts_count() -> None:
    """Nothing failed: it may be tried. After a failure not before its pause is over."""
    none = Attempts()
    assert none.may_try(NOW)
    twice = none.failed(NOW, MINUTE, 0.5).failed(NOW, MINUTE, 0.5)
    assert twice.failures == 2
    assert not twice.may_try(NOW + timedelta(seconds=0.9))
    assert twice.may_try(NOW + timedelta(seconds=1))
