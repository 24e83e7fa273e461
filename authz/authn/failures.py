"""What senders of bad tokens may cost: verifying a signature is the dearest part of a decision."""

from __future__ import annotations

# Bad signatures a second that are looked at. Beside a flood, when caches hold other things, each takes about
# 150 us: with these, 1.5% of a core for one sender, 15% for all.
DEFAULT_PER_SENDER = 100
DEFAULT_OVERALL = 1_000
# How many of them may come at once. Verified one after the other they keep all other calls waiting: this is
# about a millisecond's worth.
BURST = 10
# Seconds since the epoch, as floats, are no finer than a quarter of this.
_RESOLUTION = 1e-6
# Senders to remember before those that have kept still are forgotten.
_MANY_SENDERS = 10_000


class Failures:
    """Keeps bad signatures to a rate, of each address that sends them and overall.

    Above either rate, tokens that were not seen before are not looked at. Tokens that were verified before do
    not come here. The rule is GCRA: each failure takes its share of time, and `BURST` shares may be ahead.
    """

    __slots__ = ("_ahead_overall", "_ahead_sender", "_overall", "_senders", "_step_overall", "_step_sender")

    def __init__(self, per_sender: int = DEFAULT_PER_SENDER, overall: int = DEFAULT_OVERALL) -> None:
        """Allow `per_sender` failures a second of one address, and `overall` of all."""
        self._step_sender, self._step_overall = 1 / per_sender, 1 / overall
        self._ahead_sender = self._step_sender * (min(BURST, per_sender) - 1) + _RESOLUTION
        self._ahead_overall = self._step_overall * (min(BURST, overall) - 1) + _RESOLUTION
        self._overall = 0.0  # until when the failures so far have taken their time
        self._senders: dict[str, float] = {}

    def allow(self, sender: str, now: float) -> bool:
        """Return whether a token of `sender` may be verified at `now` (seconds; a clock that may be set)."""
        return (
            self._taken(self._overall, now, self._ahead_overall) <= self._ahead_overall
            and self._taken(self._senders.get(sender, 0.0), now, self._ahead_sender) <= self._ahead_sender
        )

    def count(self, sender: str, now: float) -> None:
        """Note that a token of `sender` had a bad signature."""
        if len(self._senders) >= _MANY_SENDERS:
            self._senders = {name: until for name, until in self._senders.items() if until > now}
        overall = self._taken(self._overall, now, self._ahead_overall)
        of_sender = self._taken(self._senders.get(sender, 0.0), now, self._ahead_sender)
        self._overall = now + overall + self._step_overall
        self._senders[sender] = now + of_sender + self._step_sender

    def _taken(self, until: float, now: float, ahead: float) -> float:
        """Return how far ahead of `now` the failures are; nothing where the clock was set back."""
        taken = until - now
        return taken if 0.0 < taken <= ahead + 1.0 else 0.0
