"""A clock that tests move."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta


class Clock:
    """A clock that moves only when told, and wakes its sleepers then."""

    def __init__(self, start: datetime) -> None:
        self.now = start
        self._sleepers: list[tuple[datetime, asyncio.Event]] = []

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock has moved on by `seconds`."""
        if seconds > 0:
            event = asyncio.Event()
            self._sleepers.append((self.now + timedelta(seconds=seconds), event))
            await event.wait()

    def advance(self, by: timedelta) -> None:
        """Move the clock."""
        self.now += by
        for due, event in self._sleepers:
            if due <= self.now:
                event.set()
