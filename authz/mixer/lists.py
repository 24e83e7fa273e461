"""Lists: what they hold, how a body becomes one, and which one is in force when.

Pure: fetching is in `fetch`, and `refresher` puts the two together. A list that was never fetched, or that
nobody could confirm for its `ttl`, is no list; whoever asks then is told so and denies.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import IPv6Network, ip_network
from typing import Protocol

from authz.mixer.expression.values import Address, EvaluationError, parse_ip
from authz.patterns import Pattern, PatternError
from garrison.documents import parse
from garrison.pauses import doubled

# 100,000 networks are about 2 MB.
MAX_LIST_BYTES = 8 * 1024 * 1024
# Patterns are tried one after the other, about a microsecond each.
MAX_PATTERNS = 1_000
# After a failure the next try comes sooner than the refresh interval, later each time.
FIRST_RETRY_SECONDS = 1.0


class EntryType(StrEnum):
    """How entries and values are compared."""

    STRINGS = "STRINGS"
    CASE_INSENSITIVE_STRINGS = "CASE_INSENSITIVE_STRINGS"
    IP_ADDRESSES = "IP_ADDRESSES"
    REGEX = "REGEX"


class ListError(ValueError):
    """A list that cannot be used; the message says why. `entry` is the index of the entry at fault."""

    def __init__(self, message: str, entry: int = -1) -> None:
        super().__init__(message)
        self.entry = entry


class InvalidValueError(ValueError):
    """A value that cannot be on a list of this type; the message is Mixer's."""


class EntryList(Protocol):
    """The entries of a list, ready to be asked."""

    def holds(self, value: str) -> bool:
        """Return whether `value` is on the list.

        Raises:
            InvalidValueError: `value` cannot be compared with entries of this type.
            EvaluationError: it cannot be told.

        """


@dataclass(frozen=True, slots=True)
class TextEntries:
    """Text, compared as it is or (`folded`) in upper case."""

    entries: frozenset[str]
    folded: bool

    def holds(self, value: str) -> bool:
        """Return whether the text is an entry."""
        return (_upper(value) if self.folded else value) in self.entries


@dataclass(frozen=True, slots=True)
class AddressEntries:
    """Networks by (IP version, prefix length): one look for each length in use."""

    networks: dict[tuple[int, int], frozenset[int]]

    def holds(self, value: str) -> bool:
        """Return whether the address lies in a network of the list."""
        try:
            address = parse_ip(value)
        except EvaluationError:
            raise InvalidValueError(f"{value} is not a valid IP address") from None
        number = int(address)
        return any(
            number >> (address.max_prefixlen - length) in found
            for (version, length), found in self.networks.items()
            if version == address.version
        )


@dataclass(frozen=True, slots=True)
class PatternEntries:
    """RE2 patterns, found anywhere in the value."""

    patterns: tuple[Pattern, ...]

    def holds(self, value: str) -> bool:
        """Return whether a pattern is found."""
        try:
            return any(pattern.found_in(value) for pattern in self.patterns)
        except PatternError as error:
            raise EvaluationError(str(error)) from None


def _upper(text: str) -> str:
    """Return `text` in upper case, character by character, as Go does (no `ß` -> `SS`)."""
    if text.isascii():
        return text.upper()
    return "".join(one.upper() if len(one.upper()) == 1 else one for one in text)


def build_entries(entry_type: EntryType, entries: Sequence[str]) -> EntryList:
    """Return the list of `entries`.

    Raises:
        ListError: an entry is not of the type, or there are too many.

    """
    if entry_type is EntryType.STRINGS:
        return TextEntries(frozenset(entries), folded=False)
    if entry_type is EntryType.CASE_INSENSITIVE_STRINGS:
        return TextEntries(frozenset(map(_upper, entries)), folded=True)
    if entry_type is EntryType.IP_ADDRESSES:
        return _addresses(entries)
    if len(entries) > MAX_PATTERNS:
        raise ListError(f"a list has at most {MAX_PATTERNS} patterns")
    patterns: list[Pattern] = []
    for index, entry in enumerate(entries):
        try:
            patterns.append(Pattern(entry))
        except PatternError as error:
            raise ListError(str(error), index) from error
    return PatternEntries(tuple(dict.fromkeys(patterns)))


def _addresses(entries: Iterable[str]) -> AddressEntries:
    found: dict[tuple[int, int], set[int]] = defaultdict(set)
    for index, entry in enumerate(entries):
        try:
            address, length = _network(entry)
        except ValueError:
            raise ListError(f"`{entry[:60]}` is neither an IP address nor a network", index) from None
        found[address.version, length].add(int(address) >> (address.max_prefixlen - length))
    return AddressEntries({key: frozenset(numbers) for key, numbers in sorted(found.items())})


def _network(entry: str) -> tuple[Address, int]:
    if "%" in entry or entry.count("/") > 1:
        raise ValueError(entry)
    mask = entry.partition("/")[2]
    if "/" in entry and not (mask.isascii() and mask.isdigit()):
        raise ValueError(entry)
    network = ip_network(entry, strict=False)
    if isinstance(network, IPv6Network):
        mapped = network.network_address.ipv4_mapped
        if mapped is not None and network.prefixlen >= 96:
            return mapped, network.prefixlen - 96
    return network.network_address, network.prefixlen


def parse_body(entry_type: EntryType, body: bytes) -> list[str]:
    """Return the entries in what a provider sent.

    Lines, empty ones left out and nothing trimmed but the CR of a CRLF; IP_ADDRESSES are YAML,
    `whitelist: [...]`, whatever the list is for.

    Raises:
        ListError: the body is too large or not of that form.

    """
    if len(body) > MAX_LIST_BYTES:
        raise ListError(f"the list has more than {MAX_LIST_BYTES} bytes")
    if entry_type is EntryType.IP_ADDRESSES:
        return _parse_yaml(body)
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ListError("the list is not valid UTF-8") from None
    return [line for one in text.split("\n") if (line := one.removesuffix("\r"))]


def _parse_yaml(body: bytes) -> list[str]:
    documents, problems = parse(body, "the list")
    if problems:
        raise ListError(str(problems[0]))
    data = documents[0].data if len(documents) == 1 else None
    entries = data.get("whitelist") if isinstance(data, dict) and len(data) == 1 else None
    # Anything else would be an empty list to Mixer, and an empty blacklist stops nobody.
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise ListError("the list is not YAML of the form `whitelist: [ADDRESS, …]`")
    return entries


@dataclass(frozen=True, slots=True)
class ListSource:
    """Where a list comes from and how long it holds; equal sources share one list. Times in seconds."""

    url: str
    entry_type: EntryType
    refresh_seconds: float
    ttl_seconds: float


@dataclass(frozen=True, slots=True)
class ListState:
    """What is known of a source. Times are those of one monotonic clock, in seconds."""

    entries: EntryList | None = None
    digest: bytes = b""
    confirmed_at: float = 0.0
    next_fetch_at: float = 0.0
    failures: int = 0
    error: str = ""


def succeeded(source: ListSource, state: ListState, body: bytes, now: float) -> ListState:
    """Return the state after `body` was fetched; a body that is no list counts as a failure."""
    digest = hashlib.sha256(body).digest()
    entries = state.entries
    if entries is None or digest != state.digest:
        try:
            entries = build_entries(source.entry_type, parse_body(source.entry_type, body))
        except ListError as error:
            return failed(source, state, str(error), now)
    return ListState(entries, digest, confirmed_at=now, next_fetch_at=now + source.refresh_seconds)


def failed(source: ListSource, state: ListState, reason: str, now: float) -> ListState:
    """Return the state after a fetch that failed: the list stays as it is, the next try comes soon."""
    return replace(
        state,
        next_fetch_at=now + doubled(FIRST_RETRY_SECONDS, state.failures, source.refresh_seconds),
        failures=state.failures + 1,
        error=reason,
    )


def in_force(source: ListSource, state: ListState, now: float) -> EntryList | None:
    """Return the list to decide by; None when there is none or its `ttl` is over."""
    if state.entries is None or now >= state.confirmed_at + source.ttl_seconds:
        return None
    return state.entries
