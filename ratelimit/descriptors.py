"""Domain and entries of a request -> the key of its bucket.

The key reads `<unit>|<domain>|<key>=<value>|<key>=<value>…`. Inside names and values `%`, `|` and `=`
are written `%25`, `%7C` and `%3D`, so that what stands between separators never holds one, and two
different (unit, domain, entries) never share a key. The unit is part of it because one count cannot serve
two window lengths; the number of requests is not, so changing it keeps what was counted.

A key longer than `MAX_KEY_CHARACTERS` becomes `#` and its SHA-256, because values come from request
headers and a store that bounds how many keys it holds must also bound how long they are. No unit
starts with `#`.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import NamedTuple

from ratelimit.algorithm import Limit, Unit

MAX_KEY_CHARACTERS = 256

Entry = tuple[str, str]


class Descriptor(NamedTuple):
    """One descriptor of a request: its entries in order, what it costs, and the limit it brings along."""

    entries: Sequence[Entry]
    cost: int = 1
    override: Limit | None = None


def bucket_key(unit: Unit, domain: str, entries: Sequence[Entry]) -> str:
    """Return the key under which spends of `entries` are counted."""
    key = f"{unit.name}|{_escape(domain)}"
    for name, value in entries:
        key += f"|{_escape(name)}={_escape(value)}"
    if len(key) > MAX_KEY_CHARACTERS:
        return "#" + sha256(key.encode()).hexdigest()
    return key


def _escape(text: str) -> str:
    if "%" in text or "|" in text or "=" in text:
        return text.replace("%", "%25").replace("|", "%7C").replace("=", "%3D")
    return text
