"""Whose turn it is: the event loop's time, shared out between connections.

A connection that brings more work than there is time for has to wait for itself, not the others for it: who
had least of the time so far goes first, and after a fraction of a millisecond the loop reads what arrived
meanwhile. The rule is start-time fair queueing (Goyal, Vin, Cheng 1996): a turn begins at the virtual time
at which the connection's last one ended, or at that of the turn that was given last, whichever is later, and
turns are given in the order of these times. Nobody gains by having kept still, and nobody starves.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Protocol

# How long the loop works before it looks for what arrived meanwhile.
QUANTUM_SECONDS = 200e-6


class Worker(Protocol):
    """Somebody with work to do."""

    # The virtual time at which its last turn ended, in seconds; `Turns` keeps it.
    served: float

    def work(self, until: float) -> bool:
        """Work until all is done, or the time `until` has come; return whether all is done. Never raises."""


class Turns:
    """Gives turns. Belongs to one event loop."""

    __slots__ = ("_call_soon", "_clock", "_is_scheduled", "_number", "_virtual", "_waiting")

    def __init__(self, call_soon: Callable[[Callable[[], None]], object], clock: Callable[[], float]) -> None:
        """Work whenever the loop calls back; `clock` gives seconds since any moment."""
        self._call_soon = call_soon
        self._clock = clock
        # By the virtual times at which they begin; among equal ones, in the order in which they asked.
        self._waiting: list[tuple[float, int, Worker]] = []
        self._number = 0
        self._virtual = 0.0
        self._is_scheduled = False

    def ask(self, worker: Worker) -> None:
        """Give `worker` a turn, and further ones until it is done; it must not be waiting for one already."""
        self._queue(worker, max(worker.served, self._virtual))
        if not self._is_scheduled:
            self._is_scheduled = True
            self._call_soon(self._give)

    def _queue(self, worker: Worker, begin: float) -> None:
        self._number += 1
        heappush(self._waiting, (begin, self._number, worker))

    def _give(self) -> None:
        waiting, clock = self._waiting, self._clock
        now = clock()
        until = now + QUANTUM_SECONDS
        while waiting and now < until:
            self._virtual, _, worker = heappop(waiting)
            begin = now
            is_done = worker.work(until)
            now = clock()
            worker.served = self._virtual + (now - begin)
            if not is_done:
                self._queue(worker, worker.served)
        if waiting:
            self._call_soon(self._give)
        else:
            self._is_scheduled = False
