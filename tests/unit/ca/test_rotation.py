"""What may follow what, when it is due, and what a refusal tells the operator."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from ca.issuer import MAX_TTL
from ca.ledger import KeyState
from ca.rotation import (
    CLOCK_MARGIN,
    SETTLE,
    Act,
    Policy,
    Standing,
    Step,
    activate,
    due,
    needed_until,
    revoke,
    schedule,
    taint,
)
from garrison.errors import IssuanceError

NOW = datetime(2030, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
POLICY = Policy()


def standing(key_id: str, state: KeyState, root: str = "r1", *, age: int = 0, life: int = 60) -> Standing:
    """Return an authority that was made `age` days ago and lives `life` days, under a root of 240 days."""
    starts = NOW - age * DAY
    return Standing(
        key_id, state, root, starts, starts + life * DAY, starts, starts + 240 * DAY, starts, starts
    )


ACTIVE = standing("a", KeyState.ACTIVE)
PREPARED = standing("p", KeyState.PREPARED, "r2")
OLD = standing("o", KeyState.OLD, "r0", age=1)
TAINTED = standing("t", KeyState.TAINTED, "r0", age=1)
REVOKED = standing("x", KeyState.REVOKED, "r0", age=1)


def test_half_and_five_sixths() -> None:
    """A successor is due at half of the life, and signs from five sixths on."""
    plan = schedule(ACTIVE, POLICY)
    assert (plan.prepare_at, plan.activate_at) == (NOW + 30 * DAY, NOW + 50 * DAY)
    second = timedelta(seconds=1)
    assert due([ACTIVE], plan.prepare_at - second, POLICY) == ()
    assert due([ACTIVE], plan.prepare_at, POLICY) == (Step(Act.PREPARE_INTERMEDIATE, "a"),)
    assert due([ACTIVE, PREPARED], plan.activate_at - second, POLICY) == ()
    assert due([ACTIVE, PREPARED], plan.activate_at, POLICY) == (Step(Act.ACTIVATE, "p"),)


def test_a_root_that_is_half_over_is_followed_by_another() -> None:
    """The younger intermediate of an old root gets a successor with a new root, at once."""
    young = replace(ACTIVE, root_starts=NOW - 121 * DAY, root_ends=NOW + 119 * DAY)
    assert due([young], NOW, POLICY) == (Step(Act.PREPARE_ROOT, "a"),)
    ending = replace(ACTIVE, root_starts=NOW - 200 * DAY, root_ends=NOW + 40 * DAY)
    assert due([ending, PREPARED], NOW + 2 * DAY, POLICY) == (Step(Act.ACTIVATE, "p"),)


def test_what_was_published_too_late_waits() -> None:
    """Also when the active one is about to end, the schedule gives everybody time to get the root."""
    late = replace(PREPARED, changed_at=NOW + 55 * DAY)
    assert due([ACTIVE, late], NOW + 55 * DAY, POLICY) == ()
    assert due([ACTIVE, late], NOW + 55 * DAY + POLICY.overlap, POLICY) == (Step(Act.ACTIVATE, "p"),)
    unpublished = replace(PREPARED, changed_at=None)
    assert due([ACTIVE, unpublished], NOW + 59 * DAY, POLICY) == ()


def test_a_short_life_has_a_short_overlap() -> None:
    """An authority of an hour is followed within its life."""
    brief = replace(ACTIVE, ends=NOW + timedelta(hours=1))
    prepared = replace(PREPARED, changed_at=NOW)
    assert activate([brief, prepared], "p", NOW + timedelta(minutes=10), POLICY)
    with pytest.raises(IssuanceError, match="wait until 2030-01-01T00:10:00Z"):
        activate([brief, prepared], "p", NOW + timedelta(minutes=9), POLICY)


def test_the_last_leaf_decides_when_an_old_one_ends() -> None:
    """Not before what it signed has expired, recorded or from before there was a record, by any clock."""
    end = NOW + 2 * DAY
    old = replace(OLD, last_leaf=end)
    assert due([ACTIVE, old], end + timedelta(hours=1) - timedelta(seconds=1), POLICY) == ()
    assert due([ACTIVE, old], end + CLOCK_MARGIN - timedelta(seconds=1), POLICY) == ()
    assert due([ACTIVE, old], end + CLOCK_MARGIN, POLICY) == (Step(Act.RETIRE, "o"),)
    fresh = replace(OLD, known_since=NOW, changed_at=NOW)
    assert needed_until(fresh, POLICY) == NOW + MAX_TTL
    assert needed_until(replace(fresh, known_since=NOW - 9 * DAY), POLICY) == NOW + SETTLE
    # Nothing that it signed outlives it.
    assert needed_until(replace(fresh, ends=NOW + timedelta(hours=1)), POLICY) == NOW + timedelta(hours=1)
    tainted = [ACTIVE, replace(TAINTED, last_leaf=end)]
    assert due(tainted, end + CLOCK_MARGIN, POLICY) == (Step(Act.RETIRE, "t"),)


def test_one_that_was_never_used_ends_with_its_certificate() -> None:
    """A prepared one that expired makes room for another."""
    old = replace(PREPARED, ends=NOW + DAY)
    assert due([ACTIVE, old], NOW + DAY, POLICY) == (Step(Act.RETIRE, "p"),)


@pytest.mark.parametrize(
    ("command", "one", "text"),
    [
        ("activate", ACTIVE, "is active: only a prepared one"),
        ("activate", OLD, "is old: only a prepared one"),
        ("activate", TAINTED, "is tainted: only a prepared one"),
        ("activate", REVOKED, "is revoked: only a prepared one"),
        ("activate", replace(PREPARED, changed_at=None), "not published yet"),
        ("activate", replace(PREPARED, ends=NOW), "is valid from"),
        ("taint", ACTIVE, "prepare and activate another first"),
        ("taint", PREPARED, "revoke it"),
        ("taint", TAINTED, "is tainted already"),
        ("taint", REVOKED, "is revoked already"),
        ("revoke", ACTIVE, "prepare and activate another first"),
        ("revoke", OLD, "taint it first"),
        ("revoke", REVOKED, "is revoked already"),
        ("revoke", replace(TAINTED, changed_at=NOW), "was tainted a moment ago: wait until 2030-01-01T00:01"),
    ],
)
def test_refusals_say_what_to_do(command: str, one: Standing, text: str) -> None:
    """Every other order is refused, with the next step."""
    ask = {
        "activate": lambda: activate([one], one.key_id, NOW, POLICY),
        "taint": lambda: taint([one], one.key_id),
        "revoke": lambda: revoke([one], one.key_id, NOW, POLICY),
    }
    with pytest.raises(IssuanceError, match=text):
        ask[command]()


def test_one_that_is_not_there() -> None:
    """A wrong name is told."""
    with pytest.raises(IssuanceError, match="there is no authority other"):
        taint([ACTIVE], "other")


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (replace(ACTIVE, root="r0"), "new root"),
        (replace(PREPARED, root="r0"), "revoke that one first"),
        (OLD, "taint that one as well"),
    ],
)
def test_a_shared_root_is_not_revoked(other: Standing, text: str) -> None:
    """As long as somebody else has the root, revoking would refuse nothing."""
    with pytest.raises(IssuanceError, match=text):
        revoke([other, TAINTED], "t", NOW, POLICY)


def test_a_root_is_revoked_for_all_that_have_it() -> None:
    """Several tainted ones of one root go together, those of other roots stay."""
    changes = revoke([ACTIVE, TAINTED, replace(TAINTED, key_id="t2"), REVOKED], "t", NOW, POLICY)
    assert [(change.key_id, change.after) for change in changes] == [
        ("t", KeyState.REVOKED),
        ("t2", KeyState.REVOKED),
    ]
    assert [change.key_id for change in revoke([ACTIVE, replace(PREPARED, root="r1")], "p", NOW, POLICY)] == [
        "p"
    ]
    recent = replace(TAINTED, changed_at=NOW)
    assert revoke([ACTIVE, recent], "t", NOW, POLICY, at_once=True)


def test_without_an_active_one_what_is_prepared_takes_over() -> None:
    """After its overlap; until then nobody signs."""
    published = replace(PREPARED, changed_at=NOW)
    assert due([published], NOW, POLICY) == ()
    assert due([published], NOW + POLICY.overlap, POLICY) == (Step(Act.ACTIVATE, "p"),)
    (change,) = activate([published], "p", NOW, POLICY, at_once=True)
    assert change.after is KeyState.ACTIVE
