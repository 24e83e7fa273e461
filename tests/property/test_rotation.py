"""Any sequence of commands, of steps of the schedule and of time keeps every promise of a rotation."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ca.issuer import MAX_TTL
from ca.ledger import KeyState, StateChange
from ca.rotation import (
    Act,
    Policy,
    Standing,
    activate,
    active_of,
    due,
    find,
    prepared_of,
    published,
    retire,
    revoke,
    schedule,
    taint,
)
from garrison.errors import IssuanceError

START = datetime(2030, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Rotation(RuleBasedStateMachine):
    """Authorities that sign leaves; `root_since` is from when on each root was published without a break."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.numbers = itertools.count()
        self.standings: list[Standing] = []
        self.leaves: list[tuple[str, datetime]] = []
        self.root_since: dict[str, datetime] = {}
        self.ended: set[str] = set()

    @initialize(days=st.integers(1, 40), root_share=st.integers(1, 4), overlap=st.integers(0, 48))
    def begin(self, days: int, root_share: int, overlap: int) -> None:
        """Make the first authority; it signs at once, since nobody has anything else."""
        self.life, self.root_life = timedelta(days=days), timedelta(days=days * root_share)
        self.policy = Policy(overlap=timedelta(hours=overlap))
        self.add(new_root=True, state=KeyState.ACTIVE)
        self.root_since = dict.fromkeys(self.root_since, START - timedelta(days=1000))

    def add(self, *, new_root: bool, state: KeyState = KeyState.PREPARED) -> None:
        """Do what preparing does: sign a certificate, publish its root, record it."""
        number = next(self.numbers)
        active = active_of(self.standings)
        if new_root or active is None:
            root, root_starts, root_ends = f"root {number}", self.now, self.now + self.root_life
        else:
            root, root_starts, root_ends = active.root, active.root_starts, active.root_ends
        one = Standing(
            key_id=f"key {number}",
            state=state,
            root=root,
            starts=self.now,
            ends=min(self.now + self.life, root_ends),
            root_starts=root_starts,
            root_ends=root_ends,
            known_since=self.now,
            changed_at=self.now,
        )
        self.standings.append(one)
        self.root_since.setdefault(root, self.now)

    def change(self, changes: tuple[StateChange, ...]) -> None:
        """Do what a ledger does: all of it, if every one is in the state that it is said to be in."""
        before = active_of(self.standings)
        for change in changes:
            one = find(self.standings, change.key_id)
            assert one.state is change.before
            if change.after is KeyState.ACTIVE:
                assert before is not None
                overlap = min(self.policy.overlap, (before.ends - before.starts) / 6)
                assert self.now - self.root_since[one.root] >= overlap
            place = self.standings.index(one)
            self.standings[place] = replace(one, state=change.after, changed_at=self.now)
        roots = {one.root for one in published(self.standings)}
        self.root_since = {root: since for root, since in self.root_since.items() if root in roots}

    @rule(minutes=st.integers(1, 60 * 24 * 12))
    def wait(self, minutes: int) -> None:
        """Let time pass."""
        self.now += timedelta(minutes=minutes)

    @rule(ttl=st.integers(1, 24))
    def issue(self, ttl: int) -> None:
        """Sign a leaf; the one that is active alone does, and not past its own end."""
        one = active_of(self.standings)
        if one is None or not one.starts <= self.now < one.ends:
            return
        end = min(self.now + ttl * HOUR, one.ends)
        self.leaves.append((one.key_id, end))
        self.standings[self.standings.index(one)] = replace(one, last_leaf=max(end, one.last_leaf or end))

    @rule()
    def follow_the_schedule(self) -> None:
        """Do what is due, in order, until nothing is."""
        for _ in range(8):
            steps = due(self.standings, self.now, self.policy)
            if not steps:
                return
            self.do(steps[0].act, steps[0].key_id)
        raise AssertionError("the schedule does not come to rest")

    def do(self, act: Act, key_id: str) -> None:
        """Do a step."""
        match act:
            case Act.PREPARE_INTERMEDIATE | Act.PREPARE_ROOT:
                assert prepared_of(self.standings) is None
                self.add(new_root=act is Act.PREPARE_ROOT)
            case Act.ACTIVATE:
                self.change(activate(self.standings, key_id, self.now, self.policy))
            case Act.RETIRE:
                self.change(retire(self.standings, key_id, self.now, self.policy))

    @precondition(lambda self: bool(self.standings) and prepared_of(self.standings) is None)
    @rule(new_root=st.booleans())
    def prepare(self, new_root: bool) -> None:
        """Prepare by hand."""
        active = active_of(self.standings)
        assert active is not None
        if new_root or self.now < active.root_ends:
            self.add(new_root=new_root)

    @rule(data=st.data(), command=st.sampled_from(["activate", "taint", "revoke", "retire"]))
    def command(self, data: st.DataObject, command: str) -> None:
        """Ask for something by hand, right or wrong; what is refused changes nothing."""
        one = data.draw(st.sampled_from(self.standings))
        try:
            match command:
                case "activate":
                    changes = activate(self.standings, one.key_id, self.now, self.policy)
                    assert one.state is KeyState.PREPARED
                case "taint":
                    changes = taint(self.standings, one.key_id)
                    assert one.state is KeyState.OLD
                case "revoke":
                    changes = revoke(self.standings, one.key_id, self.now, self.policy)
                    assert one.state in {KeyState.TAINTED, KeyState.PREPARED}
                case _:
                    changes = retire(self.standings, one.key_id, self.now, self.policy)
        except IssuanceError:
            return
        self.change(changes)
        if command == "revoke" and one.state is KeyState.TAINTED:
            assert one.root not in {other.root for other in published(self.standings)}

    @invariant()
    def one_signs(self) -> None:
        """There is exactly one active authority, and at most one that is prepared."""
        if self.standings:
            states = [one.state for one in self.standings]
            assert states.count(KeyState.ACTIVE) == 1
            assert states.count(KeyState.PREPARED) <= 1

    @invariant()
    def leaves_verify(self) -> None:
        """Find the root of every leaf that has not expired in the bundle, except of what was tainted."""
        roots = {one.root for one in published(self.standings)}
        tainted = {one.key_id for one in self.standings if one.state is KeyState.TAINTED}
        gone = {one.key_id for one in self.standings if one.state is KeyState.REVOKED}
        for key_id, end in self.leaves:
            if end > self.now and key_id not in gone:
                assert find(self.standings, key_id).root in roots
            if key_id in gone and end > self.now:
                # Only a taint before that, never the schedule, takes the root away from under a leaf.
                assert key_id in self.ended, key_id
        self.ended |= tainted


Rotation.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestRotation = Rotation.TestCase


def test_a_mesh_left_alone_never_stops_signing() -> None:
    """With the schedule alone, looked at every hour, there is somebody to sign for ten lives of roots."""
    model = Rotation()
    model.begin(days=10, root_share=3, overlap=12)
    for _ in range(24 * 300):
        model.now += HOUR
        model.follow_the_schedule()
        model.issue(24)
        active = active_of(model.standings)
        assert active is not None
        # Every leaf lives its full term.
        assert model.leaves[-1][1] - model.now == MAX_TTL
        assert model.now < schedule(active, model.policy).activate_at + timedelta(hours=13)
        model.leaves = [leaf for leaf in model.leaves if leaf[1] > model.now]
        model.one_signs()
        model.leaves_verify()
    states = [one.state for one in model.standings]
    assert states.count(KeyState.REVOKED) > 30
    assert states.count(KeyState.OLD) <= 2
