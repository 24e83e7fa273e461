"""A batch of calls as `script.lua` reads it, and its answer. Pure.

Keys read `<prefix>:{<domain>}:<bucket key>`. What stands between the braces is the hash tag of a Cluster: all
buckets of a domain are in one slot, since a call may name any of them, and a script is all or nothing only
inside one slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from struct import Struct, pack, unpack
from typing import Any

from ratelimit.algorithm import (
    MICROSECOND,
    SECOND,
    Algorithm,
    AnyBucket,
    Bucket,
    LeaseBucket,
    Limit,
    Outcome,
    SlidingBucket,
    TokenBucket,
)
from ratelimit.charge import Spend
from ratelimit.store.base import Held

SCRIPT = (Path(__file__).parent / "script.lua").read_text(encoding="utf-8")
# What an operator asks for: KEYS are buckets, ARGV[1] of them, and records of identifiers; ARGV[2] is `look`
# or `reset`. It returns the server's time and the buckets, and removes all KEYS for a `reset`.
BUCKETS_SCRIPT = """
local time = redis.call('TIME')
local found = redis.call('MGET', unpack(KEYS, 1, tonumber(ARGV[1])))
if ARGV[2] == 'reset' then
    redis.call('DEL', unpack(KEYS))
end
return {time[1], time[2], found}
"""
_NO_CALENDAR = (0, 0, 0, 0)
_ANSWER = Struct("<dddd")
DEFAULT_PREFIX = "garrison"


class Keys:
    """Makes the keys of a store; remembers the part that each domain has in common."""

    def __init__(self, prefix: str = DEFAULT_PREFIX) -> None:
        self._prefix = prefix
        self._domains: dict[str, str] = {}

    def domain(self, domain: str) -> str:
        """Return what all keys of `domain` start with, hash tag included."""
        found = self._domains.get(domain)
        if found is None:
            found = self._domains[domain] = f"{self._prefix}:{{{tag(domain)}}}:"
        return found

    def bucket(self, start: str, spend: Spend) -> str:
        """Return the key of a bucket; `start` is what `domain` gave."""
        key, kind = spend.key, spend.limit.kind
        # A bucket key begins with its kind, unless it is a hash or a test's own.
        return start + key if key.startswith(kind) else f"{start}{kind}!{key}"

    def once(self, start: str, spend: Spend) -> str:
        """Return the key of the record that a call was charged."""
        return start + spend.once_key


def tag(domain: str) -> str:
    """Return the hash tag of a domain: never empty, without braces, its own for each domain."""
    text = domain.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")
    return text or "%"


def encode(calls: Sequence[Sequence[Spend]], keys: Keys, now: int, at: int) -> tuple[list[str], bytes]:
    """Return the keys and the argument of the script for `calls`.

    `now` (nanoseconds) is the time that the script is to count with, 0 for the server's own; `at` is about
    the same, and says around when the ends of calendar windows are needed.
    """
    places: dict[str, int] = {}
    limits: dict[int, int] = {}
    known: list[Limit] = []
    numbers: list[int] = []
    for spends in calls:
        start = keys.domain(spends[0].domain)
        numbers.append(len(spends))
        for spend in spends:
            limit = spend.limit
            key = keys.bucket(start, spend)
            place = places.get(key)
            if place is None:
                place = places[key] = len(places) + 1
            index = limits.get(id(limit))
            if index is None:
                known.append(limit)
                index = limits[id(limit)] = len(known)
            once = 0
            if spend.once:
                key = keys.once(start, spend)
                once = places.setdefault(key, len(places) + 1)
            numbers += (place, index, spend.cost, spend.descriptor, once)
            numbers += (spend.once_for // MICROSECOND, spend.extra)
    head = [now // MICROSECOND, len(known), len(calls)]
    for limit in known:
        head += limit.numbers
        head += _NO_CALENDAR if limit.unit.calendar is None else _ends(limit, now or at)
    head += numbers
    return list(places), pack(f"<{len(head)}d", *head)


def _ends(limit: Limit, at: int) -> tuple[int, int, int, int]:
    """Return ends of windows in microseconds: of the one before `at`, of that at `at`, and of two more.

    So that clocks may differ: the script takes those that are right by its own.
    """
    calendar = limit.unit.calendar
    assert calendar is not None  # noqa: S101 - the caller looked
    end, following = calendar.ends(at)
    _, last = calendar.ends(end)
    start = calendar.start(at)
    return start // MICROSECOND, end // MICROSECOND, following // MICROSECOND, last // MICROSECOND


def decode(calls: Sequence[Sequence[Spend]], answer: bytes) -> list[list[Outcome]]:
    """Return the outcomes of `calls`.

    Raises:
        ValueError: this is no answer to them.

    """
    if len(answer) != _ANSWER.size * sum(map(len, calls)):
        raise ValueError("the answer of the script is of another length")
    found = _ANSWER.iter_unpack(answer)
    return [[_outcome(*next(found)) for _ in spends] for spends in calls]


def _outcome(allowed: float, remaining: float, reset: float, granted: float) -> Outcome:
    nanoseconds = int(reset) * MICROSECOND or 1
    return Outcome(allowed == 1, int(remaining), nanoseconds, int(granted) if granted >= 0 else None)


def decode_held(limits: Sequence[Limit], answer: Any) -> Held:
    """Return the buckets of `limits` in an answer of the `BUCKETS_SCRIPT`.

    Raises:
        TypeError: this is no answer to it.
        ValueError: likewise.

    """
    seconds, microseconds, values = answer
    found = [_bucket(limit, value) for limit, value in zip(limits, values, strict=True)]
    return Held(int(seconds) * SECOND + int(microseconds) * MICROSECOND, found)


def _bucket(limit: Limit, value: bytes | None) -> AnyBucket | None:
    """Return the bucket that `script.lua` has written; what it would not take for one is none.

    Only that of a fixed window says when it expires: the others do not need to know.
    """
    if not value or len(value) % 8:
        return None
    doubles = unpack(f"<{len(value) // 8}d", value)
    if not all(map(isfinite, doubles)):
        return None
    numbers = [int(one) for one in doubles]
    match limit.algorithm, len(numbers):
        case Algorithm.FIXED_WINDOW, 2:
            return Bucket(numbers[0] * MICROSECOND, numbers[1])
        case Algorithm.SLIDING_WINDOW, 3:
            return SlidingBucket(0, *numbers)
        case Algorithm.TOKEN_BUCKET, 2:
            return TokenBucket(0, *numbers)
        case ((Algorithm.CONCURRENCY | Algorithm.ROLLING_WINDOW), count) if count % 2 == 0:
            return LeaseBucket(0, tuple(zip(numbers[::2], numbers[1::2], strict=True)))
        case _:
            return None
