"""How long to wait before something is tried again: doubling, and chance. Pure: `chance` is in [0, 1)."""

from __future__ import annotations

from datetime import timedelta
from typing import TypeVar

# Seconds, or a duration.
Pause = TypeVar("Pause", float, timedelta)


def doubled(first: Pause, times: int, longest: Pause) -> Pause:
    """Return `first`, doubled so many times, and never more than `longest`."""
    pause = first
    for _ in range(times):
        if pause >= longest:
            break
        pause *= 2
    return min(pause, longest)


def next_pause(previous: float, first: float, longest: float) -> float:
    """Return what follows a pause of `previous` seconds: `first` after none, else twice as long."""
    return min(max(2 * previous, first), longest)


def give_or_take(pause: Pause, share: float, chance: float) -> Pause:
    """Return a pause spread by that share of it to either side.

    Those that started, or lost something, at the same moment must not all come at the same moment again.
    """
    return pause * (1 + share * (2 * chance - 1))


def at_least_half(pause: Pause, chance: float) -> Pause:
    """Return half of a pause and a random part of the other half."""
    return pause * (0.5 + 0.5 * chance)
