"""Whose turn it is, with a clock that moves only when somebody works."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.transport.turns import QUANTUM_SECONDS, Turns

MICROSECOND = 1e-6


class Loop:
    """An event loop and its clock."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.scheduled: list[Callable[[], None]] = []
        self.turns = Turns(self.scheduled.append, lambda: self.now)

    def step(self) -> None:
        """Run what was scheduled, and nothing that is scheduled meanwhile."""
        scheduled = self.scheduled[:]
        self.scheduled.clear()
        for callback in scheduled:
            callback()


class Connection:
    """Has calls to decide, each of which takes `seconds`."""

    def __init__(self, loop: Loop, seconds: float) -> None:
        self.loop = loop
        self.seconds = seconds
        self.served = 0.0
        self.left = self.done = 0

    def bring(self, calls: int) -> None:
        """Let calls arrive."""
        if not self.left:
            self.loop.turns.ask(self)
        self.left += calls

    def work(self, until: float) -> bool:
        """Decide calls until all are, or until then; at least one."""
        while self.left:
            self.left -= 1
            self.done += 1
            self.loop.now += self.seconds
            if self.loop.now >= until:
                break
        return not self.left


def test_work_is_done_in_one_turn_if_there_is_time() -> None:
    """Nobody else waits, and it takes less than a quantum: one callback does all of it."""
    loop = Loop()
    one = Connection(loop, MICROSECOND)
    one.bring(20)
    loop.step()
    assert one.done == 20
    assert loop.scheduled == []


def test_who_had_least_goes_first() -> None:
    """A connection that just spent much of the time waits for one that did not, though it asked first."""
    loop = Loop()
    busy, quiet = Connection(loop, 10 * MICROSECOND), Connection(loop, 10 * MICROSECOND)
    busy.bring(10_000)
    loop.step()
    quiet.bring(2)
    before = busy.done
    loop.step()
    assert quiet.done == 2
    # What is left of the quantum is the busy one's again.
    assert busy.done - before == pytest.approx(QUANTUM_SECONDS / busy.seconds - 2, abs=1)


def test_a_call_waits_no_longer_than_a_quantum_and_a_call() -> None:
    """However much others bring, the loop comes back to read after a quantum and the call that exceeds it."""
    loop = Loop()
    crowd = [Connection(loop, 30 * MICROSECOND) for _ in range(50)]
    for one in crowd:
        one.bring(1_000)
    for _ in range(20):
        begin = loop.now
        loop.step()
        assert loop.now - begin <= QUANTUM_SECONDS + 31 * MICROSECOND


def test_keeping_still_saves_nothing_up() -> None:
    """A connection that comes back after a long time gets its share, not all that it left to others."""
    loop = Loop()
    busy, back = Connection(loop, 10 * MICROSECOND), Connection(loop, 10 * MICROSECOND)
    busy.bring(100_000)
    for _ in range(100):
        loop.step()
    back.bring(100_000)
    done = busy.done
    for _ in range(40):
        loop.step()
    assert back.done == pytest.approx(busy.done - done, rel=0.1)


@given(
    st.lists(
        st.tuples(st.integers(1, 400), st.integers(1, 2_000), st.integers(0, 30)), min_size=1, max_size=8
    )
)
def test_all_is_done_and_none_gets_ahead(connections: list[tuple[int, int, int]]) -> None:
    """Whoever brings what and when: all of it is done, and two that both wait get the same time."""
    loop = Loop()
    crowd = [Connection(loop, microseconds * MICROSECOND) for microseconds, _, _ in connections]
    longest = max(one.seconds for one in crowd)
    steps = 0
    while steps <= 30 or loop.scheduled:
        for one, (_, calls, step) in zip(crowd, connections, strict=True):
            if step == steps:
                one.bring(calls)
        waiting = [one for one in crowd if one.left]
        before = [one.done * one.seconds for one in waiting]
        for _ in range(3):
            loop.step()
        gained = [one.done * one.seconds - had for one, had in zip(waiting, before, strict=True) if one.left]
        if gained:
            # Each may be ahead by one turn of its own, which is what a quantum leaves at most.
            assert max(gained) - min(gained) <= 2 * (QUANTUM_SECONDS + longest) + 1e-9
        steps += 1
    assert [one.done for one in crowd] == [calls for _, calls, _ in connections]
