"""Days, weeks, months and years as the calendar of a time zone has them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from ratelimit.algorithm import SECOND, UNITS, Unit

_DAY = 86400 * SECOND
# The longest of each, with the hour that a change of the clock may add.
_LONGEST = {"day": _DAY, "week": 7 * _DAY, "month": 31 * _DAY, "year": 366 * _DAY}
_HOUR = 3600 * SECOND

CALENDAR_UNITS = tuple(_LONGEST)


@dataclass(slots=True)
class CivilCalendar:
    """Windows that begin at midnight of a time zone; weeks begin on Monday."""

    unit: str
    zone: ZoneInfo
    # The window that was asked for last, and when the next one ends: the same for a long time.
    _start: int = field(default=0, init=False)
    _end: int = field(default=0, init=False)
    _next_end: int = field(default=0, init=False)

    def start(self, now: int) -> int:
        """Return when the window that `now` is in began (nanoseconds)."""
        self.ends(now)
        return self._start

    def ends(self, now: int) -> tuple[int, int]:
        """Return when the window that `now` is in ends, and when the one after it does (nanoseconds)."""
        if not self._start <= now < self._end:
            local = datetime.fromtimestamp(now // SECOND, UTC).astimezone(self.zone)
            first = datetime(local.year, local.month, local.day)  # noqa: DTZ001 - the zone comes in _instant
            match self.unit:
                case "week":
                    first -= timedelta(days=first.weekday())
                case "month":
                    first = first.replace(day=1)
                case "year":
                    first = first.replace(month=1, day=1)
            second = self._after(first)
            self._start, self._end = self._instant(first), self._instant(second)
            self._next_end = self._instant(self._after(second))
        return self._end, self._next_end

    def _after(self, first: datetime) -> datetime:
        match self.unit:
            case "day":
                return first + timedelta(days=1)
            case "week":
                return first + timedelta(days=7)
            case "month":
                return (first + timedelta(days=31)).replace(day=1)
            case _:
                return first.replace(year=first.year + 1)

    def _instant(self, civil: datetime) -> int:
        # Where midnight comes twice the day begins with the first (`fold=0`), where it does not exist, with
        # the first moment that does: a skipped time reads with the offset before the gap, which is that
        # moment.
        return int(civil.replace(tzinfo=self.zone).timestamp()) * SECOND


def calendar_unit(name: str, zone: str) -> Unit:
    """Return the window `name` (one of `CALENDAR_UNITS`) of the time zone `zone`, such as `Europe/Berlin`.

    Raises:
        ValueError: there is no such zone.

    """
    try:
        found = ZoneInfo(zone)
    except (OSError, ValueError, KeyError) as error:  # ZoneInfoNotFoundError is a KeyError
        raise ValueError(f"there is no time zone `{zone}`") from error
    plain = UNITS[name]
    return Unit(
        f"{name}@{found.key}", plain.wire, _LONGEST[name] + _HOUR, calendar=CivilCalendar(name, found)
    )
