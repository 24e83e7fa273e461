"""A caller gets only registrations whose every selector it meets, however many others there are."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from ca.attestation import Registrations, selectors_of
from ca.registration import Registration, Selector
from garrison.identity import SpiffeId
from garrison.transport.unix_peer import PeerCredentials

WEB = "spiffe://td/web"
AGENT = SpiffeId.parse("spiffe://td/agent")
ENVOY = PeerCredentials(pid=7, uid=1000, gid=100, path="/usr/bin/envoy")


class Counted(list[tuple[int, ...]]):
    """What registrations need, which counts how often one is looked at."""

    looks = 0

    def __getitem__(self, position: Any) -> Any:
        """Return what the registration at `position` needs."""
        self.looks += 1
        return super().__getitem__(position)


@pytest.mark.parametrize(
    ("selectors", "matches"),
    [
        (["unix:uid:1000"], True),
        (["unix:gid:100"], True),
        (["unix:path:/usr/bin/envoy"], True),
        (["unix:uid:1000", "unix:gid:100", "unix:path:/usr/bin/envoy"], True),
        (["unix:uid:1000", "unix:path:/usr/bin/other"], False),
        (["unix:uid:1001", "unix:path:/usr/bin/envoy"], False),
        (["unix:uid:1000", "unix:uid:1001"], False),
        (["unix:gid:1000"], False),
        (["unix:path:/usr/bin/envoy (deleted)"], False),
    ],
)
def test_all_selectors_must_be_met(selectors: list[str], matches: bool) -> None:
    """Selectors are joined by AND."""
    registration = Registration.parse(WEB, selectors)
    assert bool(Registrations([registration]).entitled(selectors_of(ENVOY))) is matches


def test_an_unknown_path_meets_no_path_selector() -> None:
    """A caller whose executable could not be read is known by its user only."""
    unknown = selectors_of(PeerCredentials(pid=7, uid=1000, gid=100, path=None))
    assert not Registrations([Registration.parse(WEB, ["unix:path:/usr/bin/envoy"])]).entitled(unknown)
    assert Registrations([Registration.parse(WEB, ["unix:uid:1000"])]).entitled(unknown)


def test_order_is_kept_and_the_first_of_an_identity_counts() -> None:
    """The default identity is the first registration that matches."""
    first = Registration.parse(WEB, ["unix:uid:1000"], timedelta(minutes=5))
    second = Registration.parse("spiffe://td/api", ["unix:gid:100"])
    again = Registration.parse(WEB, ["unix:gid:100"])
    assert Registrations([first, second, again]).entitled(selectors_of(ENVOY)) == (first, second)
    assert Registrations().entitled(selectors_of(ENVOY)) == ()


def test_a_registration_of_an_agent_is_for_its_callers_only() -> None:
    """User 1000 of another machine is not user 1000 of this one."""
    here = Registration.parse(WEB, ["unix:uid:1000"])
    there = Registration.parse("spiffe://td/api", ["unix:uid:1000"], parent_id=str(AGENT))
    proven = selectors_of(ENVOY)
    assert Registrations([here, there]).entitled(proven) == (here,)
    assert Registrations([here, there]).entitled(proven, AGENT) == (there,)
    assert Registrations([here, there]).entitled(proven, SpiffeId.parse("spiffe://td/other")) == ()


def test_the_order_is_that_of_registration_whichever_selector_matched() -> None:
    """Not that of the proven selectors, which have none, nor of how rare they are."""
    ids = [f"spiffe://td/{number}" for number in range(30)]
    kinds = [
        ["unix:uid:1000"],
        ["unix:gid:100"],
        ["unix:path:/usr/bin/envoy"],
        ["unix:gid:100", "unix:uid:1000"],
    ]
    registrations = [Registration.parse(one, kinds[number % 4]) for number, one in enumerate(ids)]
    found = Registrations(registrations).entitled(selectors_of(ENVOY))
    assert found == tuple(registrations)
    assert Registrations(reversed(registrations)).entitled(selectors_of(ENVOY)) == found[::-1]


def test_a_selector_that_is_named_twice_is_one() -> None:
    """It must be met, like any other, and one is enough."""
    twice = Registration.parse(WEB, ["unix:uid:1000", "unix:uid:1000"])
    assert Registrations([twice]).entitled(selectors_of(ENVOY)) == (twice,)
    assert Registrations([twice]).entitled(selectors_of(PeerCredentials(7, 0, 100, None))) == ()


def test_a_registration_without_selectors_is_nobodys() -> None:
    """None can be made; if there were one, it would be no gift to everybody."""
    none = Registration.parse(WEB, ["unix:uid:1000"])
    object.__setattr__(none, "selectors", ())
    assert Registrations([none]).entitled(selectors_of(ENVOY)) == ()
    assert Registrations([none]).entitled(frozenset()) == ()


def test_the_first_direct_registration_of_an_identity_is_found_by_it() -> None:
    """One that has a parent is its parent's to give."""
    there = Registration.parse(WEB, ["unix:uid:1"], parent_id=str(AGENT))
    first, second = (Registration.parse(WEB, [f"unix:uid:{number}"]) for number in (2, 3))
    web = SpiffeId.parse(WEB)
    assert Registrations([there, first, second]).direct(web) == first
    assert Registrations([there]).direct(web) is None


def test_what_was_put_in_is_in_it_in_order() -> None:
    """Whatever is registered twice is there twice."""
    one, two = (Registration.parse(WEB, [f"unix:uid:{number}"]) for number in (1, 2))
    found = Registrations([two, one, two])
    assert (tuple(found), len(found)) == ((two, one, two), 3)
    assert one in found
    assert one not in Registrations([two])


@pytest.mark.parametrize("agent", [None, AGENT])
def test_a_call_looks_at_few_of_many_registrations(agent: SpiffeId | None) -> None:
    """What all have in common leads to none of them, and what is rare to its own."""
    parent = str(agent) if agent is not None else None
    registrations = Registrations(
        Registration.parse(
            f"spiffe://td/{number}", ["k8s:ns:default", f"k8s:sa:sa-{number}"], parent_id=parent
        )
        for number in range(1000)
    )
    registrations._needed = counted = Counted(registrations._needed)
    texts = ["k8s:ns:default", "k8s:sa:sa-7", "k8s:pod-name:a"]
    proven = frozenset(Selector.parse(text) for text in texts)
    assert [str(one.spiffe_id) for one in registrations.entitled(proven, agent)] == ["spiffe://td/7"]
    assert counted.looks == 1
