"""Shares of a quota under any order of joins, reports, slow readers, lost streams and expiries."""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Literal, NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from ratelimit.algorithm import SECOND
from ratelimit.quota_shares import FLOOR, RESERVE, SLACK, QuotaShares, divide

MILLISECOND = SECOND // 1000
TTL = 15 * SECOND
UNITS = 16_384


class Step(NamedTuple):
    """One thing that happens to one Envoy, after `wait` milliseconds.

    A message takes `delay` milliseconds; the answer waits for `blocked` ones until the Envoy reads.
    """

    wait: int
    who: int
    what: Literal["report", "leave", "push"]
    demand: int
    delay: int
    blocked: int


STEPS = st.lists(
    st.builds(
        Step,
        wait=st.sampled_from([0, 1, 40, 400, 1_100, 2_600, 5_000, 9_000, 20_000]),
        who=st.integers(0, 4),
        what=st.sampled_from(["report", "report", "report", "report", "push", "leave"]),
        demand=st.sampled_from([0, 1, 700, 4_000, UNITS, 100 * UNITS]),
        delay=st.integers(0, SLACK // MILLISECOND),
        blocked=st.sampled_from([0, 0, 0, 0, 300, 4_000, 30_000]),
    ),
    max_size=60,
)


@dataclass
class Envoy:
    """An Envoy as it really is: what it uses, and until when, by when messages reach it."""

    name: int
    connected: bool = True
    writing: int | None = None
    share: int = 0
    expires: int = 0
    last_report: int = 0
    last_answer: int = 0

    def uses(self, now: int) -> int:
        """Return the share in use."""
        return self.share if now < self.expires else 0


class World:
    """Envoys, a server's shares, and messages between them that take their time but keep their order."""

    def __init__(self, units: int = UNITS) -> None:
        self.shares: QuotaShares[int] = QuotaShares(units, TTL)
        self.now = 1_000 * SECOND
        self.envoys: list[Envoy] = []
        self.current: dict[int, Envoy] = {}
        self._events: list[tuple[int, int, str, Envoy, tuple[int, ...]]] = []
        self._count = 0

    def at(self, when: int, what: str, envoy: Envoy, *values: int) -> None:
        """Let something happen later."""
        self._count += 1
        heappush(self._events, (when, self._count, what, envoy, values))

    def advance(self, to: int) -> None:
        """Let time pass, and look at every moment at which something changes."""
        while self._events and self._events[0][0] <= to:
            self.now, _, what, envoy, values = heappop(self._events)
            getattr(self, f"on_{what}")(envoy, *values)
            self.check()
        self.now = to
        self.check()

    def check(self) -> None:
        """Hold the Envoys to the quota, and the books to the Envoys."""
        used = sum(envoy.uses(self.now) for envoy in self.envoys)
        assert used <= self.shares.held <= self.shares.units

    def step(self, step: Step) -> None:
        """Do what a step says."""
        self.advance(self.now + step.wait * MILLISECOND)
        envoy = self.current.get(step.who)
        if envoy is None:
            envoy = self.current[step.who] = Envoy(len(self.envoys))
            self.envoys.append(envoy)
            self.shares.join(envoy.name, None, self.now)
        if step.what == "leave":
            del self.current[step.who]
            envoy.connected = False
            self.shares.leave(envoy.name, self.now)
            if envoy.writing is not None:
                # It may have left before the connection broke.
                arrives = max(envoy.last_answer, self.now + step.delay * MILLISECOND)
                self.at(arrives, "answer", envoy, envoy.writing)
        elif step.what == "push":
            self.answer(envoy, step.delay, step.blocked)
        else:
            arrives = max(envoy.last_report, self.now + step.delay * MILLISECOND)
            envoy.last_report = arrives
            self.at(arrives, "report", envoy, step.demand, step.delay, step.blocked)
        self.check()

    def on_report(self, envoy: Envoy, demand: int, delay: int, blocked: int) -> None:
        """Take in a report that has arrived, and answer it."""
        if envoy.connected:
            self.shares.report(envoy.name, demand, self.now)
            self.answer(envoy, delay, blocked)

    def answer(self, envoy: Envoy, delay: int, blocked: int) -> None:
        """Write an assignment, unless the one before is still being written."""
        if envoy.writing is None:
            envoy.writing = self.shares.assign(envoy.name, self.now)
            self.at(self.now + blocked * MILLISECOND, "written", envoy, envoy.writing, delay)

    def on_written(self, envoy: Envoy, share: int, delay: int) -> None:
        """Note that a message has left."""
        envoy.writing = None
        if envoy.connected:
            self.shares.delivered(envoy.name, self.now)
            envoy.last_answer = max(envoy.last_answer, self.now + delay * MILLISECOND)
            self.at(envoy.last_answer, "answer", envoy, share)

    def on_answer(self, envoy: Envoy, share: int) -> None:
        """Let the Envoy use what it was assigned."""
        envoy.share, envoy.expires = share, self.now + TTL

    def rounds(self, demands: dict[int, int], count: int) -> None:
        """Let Envoys report every five seconds, a little after each other, without delays."""
        for _ in range(count):
            for who, demand in demands.items():
                self.step(Step(10, who, "report", demand, 1, 0))
            self.advance(self.now + 5 * SECOND)


@given(STEPS)
def test_envoys_never_use_more_than_the_quota(steps: list[Step]) -> None:
    """Whatever the order of joins, reports, delays, blocked writes and lost streams, and at any time."""
    world = World()
    for step in steps:
        world.step(step)
    world.advance(world.now + 60 * SECOND)


@given(STEPS, st.dictionaries(st.integers(0, 9), st.integers(1, UNITS), min_size=1, max_size=10))
def test_everyone_gets_its_share_in_the_end(steps: list[Step], demands: dict[int, int]) -> None:
    """After a while of steady reports shares are max-min fair, and nearly all of the quota is given out."""
    world = World()
    for step in steps:
        world.step(step)
    for who in list(world.current):
        world.step(Step(0, who, "leave", 0, 0, 0))
    world.advance(world.now + 60 * SECOND)
    world.rounds(demands, 8)
    given_out = {who: world.current[who].uses(world.now) for who in demands}
    total = UNITS - UNITS // RESERVE
    assert total - len(demands) <= sum(given_out.values()) <= total
    assert all(given_out.values())
    fair = (total - total // FLOOR) // len(demands)
    for who, demand in demands.items():
        assert given_out[who] >= min(demand, fair)
    if sum(demand + demand // 4 for demand in demands.values()) <= total - total // FLOOR:
        assert all(given_out[who] >= demand for who, demand in demands.items())


@given(STEPS)
def test_books_are_empty_when_everything_has_run_out(steps: list[Step]) -> None:
    """Nothing stays booked for Envoys that are gone."""
    world = World()
    for step in steps:
        world.step(step)
    for who in list(world.current):
        world.step(Step(0, who, "leave", 0, 0, 0))
    world.advance(world.now + TTL + 60 * SECOND)
    world.shares.sweep(world.now)
    assert world.shares.held == 0
    assert world.shares.is_empty


@given(st.integers(0, 10_000), st.lists(st.integers(0, 12_000), min_size=1, max_size=20))
def test_division_is_max_min_fair(total: int, wants: list[int]) -> None:
    """All is given out; who gets less than it wants gets at least as much as anybody else, less one."""
    shares = divide(total, wants)
    assert sum(shares) == total
    for share, want in zip(shares, wants, strict=True):
        if share < want:
            assert share >= max(shares) - 1
    if sum(wants) <= total:
        assert all(share >= want for share, want in zip(shares, wants, strict=True))
