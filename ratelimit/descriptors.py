"""Domain and entries of a request -> the key of its bucket.

The key reads `<kind>|<domain>|<key>=<value>|<key>=<value>…`; the kind is the window's unit, or algorithm and
window. Inside names and values `%`, `|`, `=` and `~` are written `%25`, `%7C`, `%3D` and `%7E`, so that what
stands between separators never holds one, and two different (kind, domain, entries) never share a key. An
entry that shares its count with all values of its pattern reads `<key>~<pattern>`. The unit is part of the
key because one count cannot serve two window lengths; the number of requests is not, so changing it keeps
what was counted.

A key longer than `MAX_KEY_CHARACTERS` becomes `#` and its SHA-256, because values come from request
headers and a store that bounds how many keys it holds must also bound how long they are. No kind
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
    """One descriptor of a request: its entries in order, what it costs, and the limit it brings along.

    A cost of 0 only looks, one below 0 gives back.
    """

    entries: Sequence[Entry]
    cost: int = 1
    override: Limit | None = None


def bucket_key(unit: Unit, domain: str, entries: Sequence[Entry]) -> str:
    """Return the key under which spends of `entries` are counted in windows of `unit`."""
    return finish_key(unit.name, entries_text(domain_text(domain), entries))


def finish_key(kind: str, path: str) -> str:
    """Return the key of a bucket of `kind`; `path` is the text of domain and entries."""
    key = kind + path
    if len(key) > MAX_KEY_CHARACTERS:
        return "#" + sha256(key.encode()).hexdigest()
    return key


def entries_text(path: str, entries: Sequence[Entry]) -> str:
    """Return `path` with `entries` after it."""
    for name, value in entries:
        path += key_text(name) + value_text(value)
    return path


def domain_text(domain: str) -> str:
    """Return the domain's part of a key."""
    return f"|{value_text(domain)}"


def key_text(name: str) -> str:
    """Return an entry's part of a key up to its value."""
    return f"|{value_text(name)}="


def shared_text(name: str, pattern: str) -> str:
    """Return the part of a key for all values of `pattern` together."""
    return f"|{value_text(name)}~{value_text(pattern)}"


def value_text(text: str) -> str:
    """Return `text` without separators."""
    if "%" in text or "|" in text or "=" in text or "~" in text:
        return text.replace("%", "%25").replace("|", "%7C").replace("=", "%3D").replace("~", "%7E")
    return text
