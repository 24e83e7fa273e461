"""Where a channel is in Redis, and what replicas write there about themselves.

The braces keep all keys of a channel in one slot of a Redis Cluster, so that they change together.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from garrison.distribution.announcement import CHANNEL_NAME

MAX_REPORT_BYTES = 4096
_MAX_TEXT = 500


@dataclass(frozen=True, slots=True)
class Channel:
    """The names of a channel's keys."""

    name: str

    def __post_init__(self) -> None:
        if not CHANNEL_NAME.fullmatch(self.name):
            raise ValueError(
                f"`{self.name}` is no channel: lower-case letters, digits, `.`, `_` and `-`, at most 63"
            )

    @property
    def prefix(self) -> str:
        """What all keys start with."""
        return f"garrison:{{{self.name}}}:"

    @property
    def current(self) -> str:
        """The sealed announcement that holds."""
        return f"{self.prefix}current"

    @property
    def log(self) -> str:
        """A list of sealed announcements, the newest first."""
        return f"{self.prefix}log"

    @property
    def news(self) -> str:
        """Where subscribers hear that there is something to look at. What is said there does not count."""
        return f"{self.prefix}news"

    @property
    def replicas(self) -> str:
        """A sorted set: replica -> when it last reported, in seconds since 1970."""
        return f"{self.prefix}replicas"

    def bundle(self, digest: str) -> str:
        """Return where the bundle of that SHA-256 is."""
        return f"{self.prefix}bundle:{digest}"

    def replica(self, name: str) -> str:
        """Return where a replica reports; gone some time after it has stopped."""
        return f"{self.prefix}replica:{name}"


@dataclass(frozen=True, slots=True)
class Report:
    """What a replica says of itself. Not signed: good for people to look at, not to decide on.

    `bundle` and `snapshot` are versions, "" without; times are in seconds since 1970.
    """

    replica: str
    bundle: str
    snapshot: str
    sequence: int
    since: float
    seen: float
    error: str

    def encode(self) -> bytes:
        """Return the report as it is stored."""
        return json.dumps(asdict(self), sort_keys=True).encode()


def parse_report(data: bytes) -> Report | None:
    """Return the report in `data`, with nothing in it that a terminal would act on; None if there is none."""
    if len(data) > MAX_REPORT_BYTES:
        return None
    try:
        report = Report(**json.loads(data))
        return Report(
            replica=_plain(report.replica),
            bundle=_plain(report.bundle),
            snapshot=_plain(report.snapshot),
            sequence=int(report.sequence),
            since=float(report.since),
            seen=float(report.seen),
            error=_plain(report.error),
        )
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None


def _plain(text: object) -> str:
    if not isinstance(text, str):
        raise TypeError("not a text")
    return "".join(character if character.isprintable() else "?" for character in text[:_MAX_TEXT])


def shorten(text: str) -> str:
    """Return `text` on one line, short enough for a report."""
    return " ".join(text.split())[:_MAX_TEXT]
