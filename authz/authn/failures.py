"""What senders of bad tokens may cost: verifying a signature is the dearest part of a decision."""

from __future__ import annotations

# Bad signatures a second that are looked at: about a tenth of a core in all.
DEFAULT_PER_SENDER = 1_000
DEFAULT_OVERALL = 4_000


class Failures:
    """Counts bad signatures in the current second, by the address that sent them and overall.

    Above either bound, tokens that were not seen before are not looked at until the second is over. Tokens
    that were verified before do not come here.
    """

    __slots__ = ("_by_sender", "_overall", "_overall_bound", "_second", "_sender_bound")

    def __init__(self, per_sender: int = DEFAULT_PER_SENDER, overall: int = DEFAULT_OVERALL) -> None:
        self._sender_bound = per_sender
        self._overall_bound = overall
        self._second = 0
        self._overall = 0
        self._by_sender: dict[str, int] = {}  # no more entries than `overall`

    def allow(self, sender: str, now: float) -> bool:
        """Return whether a token of `sender` may be verified at `now` (seconds since the epoch)."""
        self._turn(now)
        return self._overall < self._overall_bound and self._by_sender.get(sender, 0) < self._sender_bound

    def count(self, sender: str, now: float) -> None:
        """Note that a token of `sender` had a bad signature."""
        self._turn(now)
        self._overall += 1
        self._by_sender[sender] = self._by_sender.get(sender, 0) + 1

    def _turn(self, now: float) -> None:
        second = int(now)
        if second != self._second:
            self._second, self._overall = second, 0
            self._by_sender.clear()
