"""Limits and calls for property tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from ratelimit.algorithm import SECOND, UNITS, Algorithm, Limit, Unit
from ratelimit.charge import Spend

WINDOWS = [
    UNITS["second"],
    UNITS["minute"],
    Unit("7*second", 1, 7 * SECOND, 7),
    Unit("250ms", 0, SECOND // 4),
    UNITS["year"],
]
# Numbers that make ticks longer than a microsecond, and products that only just fit into a double.
LARGE = [999_983, 2**32 - 1]


@st.composite
def limits(draw: Any) -> Limit:
    """Draw a limit of any algorithm, small enough to be reached."""
    algorithm = draw(st.sampled_from(list(Algorithm)))
    small = algorithm in {Algorithm.CONCURRENCY, Algorithm.ROLLING_WINDOW}
    most = st.integers(0, 8) if small else st.one_of(st.integers(0, 8), st.sampled_from(LARGE))
    return Limit(
        draw(most),
        draw(st.sampled_from(WINDOWS)),
        shadow_mode=draw(st.booleans()) and draw(st.booleans()),
        algorithm=algorithm,
        burst=draw(st.one_of(st.integers(0, 12), st.sampled_from(LARGE)))
        if algorithm is Algorithm.TOKEN_BUCKET
        else 0,
        slots=draw(st.sampled_from([1, 3, 10])) if algorithm is Algorithm.ROLLING_WINDOW else 16,
        counts_denied=algorithm is not Algorithm.CONCURRENCY and draw(st.booleans()),
        quota_mode=draw(st.booleans()) and draw(st.booleans()),
        best_effort=draw(st.booleans()) and draw(st.booleans()),
    )


# One limit for each descriptor that a call may have, each with two possible values.
@st.composite
def calls(draw: Any, chosen: list[Limit]) -> tuple[int, list[Spend]]:
    """Draw microseconds to wait, and the spends of one call on some of the limits."""
    wait = draw(st.one_of(st.integers(0, 3), st.integers(0, 2 * 10**6), st.integers(0, 10**8)))
    spends: list[Spend] = []
    for index in draw(st.lists(st.integers(0, len(chosen) - 1), min_size=1, max_size=3)):
        cost = draw(st.one_of(st.integers(-3, 9), st.sampled_from([0, 1, 2**32, 2**53 - 1])))
        once = draw(st.sampled_from(["", "", "", "a", "b"]))
        value = draw(st.sampled_from("xy"))
        limit, descriptor = chosen[index], len(spends)
        extra = draw(st.sampled_from([0, 0, 0, 1, 7]))
        spends.append(Spend(f"k{index}{value}", limit, cost, descriptor, once, 5 * SECOND, extra=extra))
        if draw(st.booleans()):
            # A second limit on the same descriptor; modes are the descriptor's.
            modes = {name: getattr(limit, name) for name in ("shadow_mode", "quota_mode", "best_effort")}
            other = (index + 1) % len(chosen)
            second = replace(chosen[other], **modes)
            spends.append(Spend(f"k{other}{value}", second, cost, descriptor, once, 5 * SECOND))
    return wait, spends
