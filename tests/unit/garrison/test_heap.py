"""Large things are built and dropped without stopping other threads, and nothing is leaked."""

from __future__ import annotations

import gc
import sys
import weakref
from typing import Any

import pytest

from garrison.process.heap import quiet_build, release


class Part:
    """Something that tells when it is gone."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts


def test_collector_and_switching_are_as_before_after_a_build() -> None:
    """Thresholds and switch interval change for the build only, also when it fails."""
    before = gc.get_threshold(), sys.getswitchinterval()

    def build() -> None:
        with quiet_build():
            assert gc.get_threshold()[2] > 10**6
            assert sys.getswitchinterval() < 0.001
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        build()
    assert (gc.get_threshold(), sys.getswitchinterval()) == before


def test_no_full_collection_looks_at_what_was_built() -> None:
    """What a build leaves is out of the collector's sight, and is freed without it."""
    with quiet_build():
        built = Part([Part() for _ in range(10)])
    assert not any(one is built for one in gc.get_objects())
    gone = weakref.ref(built)
    del built
    assert gone() is None


def test_garbage_from_before_a_build_is_not_kept() -> None:
    """A reference cycle that nobody uses when a build begins is freed, not frozen."""
    cycle = Part()
    cycle.parts = (cycle,)
    gone = weakref.ref(cycle)
    del cycle
    with quiet_build():
        assert gone() is None


def test_everything_that_is_not_shared_is_freed_one_by_one() -> None:
    """Parts go in steps, shared parts stay, and parts that are reached in two ways go once."""
    shared = Part(Part())
    twice = Part()
    inner = [Part(number) for number in range(100)]
    everything = [weakref.ref(part) for part in inner]
    gone = weakref.ref(twice)
    held: list[object] = [Part(inner, {"a": twice, "b": (twice, shared)}, shared)]
    del inner, twice
    release(held)
    assert held == []
    assert gone() is None
    assert not any(reference() for reference in everything)
    assert isinstance(shared.parts[0], Part)


def test_what_is_still_in_use_is_left_alone() -> None:
    """An object that somebody else holds keeps all its parts."""
    used = Part(Part(Part()))
    release([used, used.parts])
    assert used.parts[0].parts[0].parts == ()
