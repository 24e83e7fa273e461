"""An event loop whose clock stands still unless the test moves it; its sockets are real."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

PATIENCE_SECONDS = 30.0


class ManualLoop(asyncio.SelectorEventLoop):
    """A loop whose clock stands still unless the test moves it; its sockets are real."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def time(self) -> float:
        """Return the test's time."""
        return self.now


async def until(holds: Callable[[], object], what: str) -> None:
    """Let sockets work, without any time passing, until `holds` does."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < give_up, f"in vain: {what}"
        await asyncio.sleep(0)
