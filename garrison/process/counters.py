"""What an operator asks of rate limits while they are served: what is in force, what is counted, to reset it.

A reset is audited: whoever asked, what was there, and what became of it is on the log at every level.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from garrison.errors import DependencyError
from garrison.telemetry.log import audit
from ratelimit.algorithm import SECOND
from ratelimit.charge import Spend
from ratelimit.counters import describe_limits, find_counters, read_counters
from ratelimit.descriptors import Entry
from ratelimit.store.base import CounterStore, Held
from ratelimit.tree import Limits

# Who asks, as far as it is known: plain data for the log.
Who = Mapping[str, Any]


class CounterOperator:
    """Shows and resets the counters of `store`. Belongs to its event loop.

    `limits` gives what is in force and since when (nanoseconds since the epoch, as `clock`). `forget` has all
    other processes that ask the store forget what they know of buckets; it raises DependencyError if one did
    not. `resets` counts by what became of them.
    """

    def __init__(
        self,
        limits: Callable[[], tuple[Limits, int]],
        store: CounterStore,
        clock: Callable[[], int],
        *,
        forget: Callable[[Sequence[str]], Awaitable[None]],
        shadow_mode: bool = False,
    ) -> None:
        # With all keys from the start: metrics are read from another thread.
        self.resets: Counter[str] = Counter({"done": 0, "failed": 0, "refused": 0})
        self._limits = limits
        self._store = store
        self._clock = clock
        self._forget = forget
        self._shadow_mode = shadow_mode

    def config(self) -> dict[str, Any]:
        """Return the limits in force. For any thread."""
        limits, since = self._limits()
        loaded = datetime.fromtimestamp(since / SECOND, UTC).isoformat(timespec="milliseconds")
        described = describe_limits(limits)
        domains = described.pop("domains")
        return {**described, "loaded_at": loaded, "shadow_mode": self._shadow_mode, "domains": domains}

    async def show(self, domain: str, entries: Sequence[Entry]) -> dict[str, Any]:
        """Return what is counted for a descriptor by each limit that governs it. Changes nothing.

        Raises:
            NotLimitedError: there is none.
            DependencyError: the store does not answer.

        """
        spends = self._find(domain, entries)
        held = await self._store.look(spends, self._clock())
        return {**_named(domain, entries, held), "limits": _counters(spends, held)}

    async def reset(self, domain: str, entries: Sequence[Entry], who: Who) -> dict[str, Any]:
        """Remove what is counted for a descriptor, so that its next call finds all of its limits unused.

        First everybody forgets what they know and learns nothing new, then the store. Raises: as `show`;
        after DependencyError the counters may be gone all the same.
        """
        spends = self._find(domain, entries)
        keys = [spend.key for spend in spends]
        try:
            await self._forget(keys)
            self._store.forget(keys)
            held = await self._store.reset(spends, self._clock())
        except DependencyError as error:
            self.resets["failed"] += 1
            fields = {"domain": domain, "descriptor": list(entries), "error": str(error), **who}
            audit.error("rate_limit_reset_failed", **fields)
            raise
        before = _counters(spends, held)
        self.resets["done"] += 1
        audit.info(
            "rate_limit_reset",
            domain=domain,
            descriptor=list(entries),
            before=[
                {name: one[name] for name in ("source", "used", "remaining", "stored")} for one in before
            ],
            **who,
        )
        return {**_named(domain, entries, held), "before": before}

    def refuse(self, why: str, who: Who) -> None:
        """Note that somebody asked for a reset who may not. For any thread."""
        self.resets["refused"] += 1
        audit.warning("rate_limit_reset_refused", error=why, **who)

    def _find(self, domain: str, entries: Sequence[Entry]) -> list[Spend]:
        return find_counters(self._limits()[0], domain, entries)


def _named(domain: str, entries: Sequence[Entry], held: Held) -> dict[str, Any]:
    return {"domain": domain, "descriptor": [list(entry) for entry in entries], "at": held.now / SECOND}


def _counters(spends: Sequence[Spend], held: Held) -> list[dict[str, Any]]:
    return [counter.as_json() for counter in read_counters(spends, held)]
