"""What a descriptor's value may look like besides one exact text; all match in linear time."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Protocol

import re2

# What one pattern may cost while it is compiled and in memory.
_MAX_REGEX_BYTES = 1 << 20


class Pattern(Protocol):
    """Matches values; `text` says which pattern it is, and no two different ones say the same."""

    @property
    def text(self) -> str:
        """The pattern as one text."""

    def matches(self, value: str) -> bool:
        """Return whether the whole of `value`, which is not empty, is one of those that are meant."""


@dataclass(frozen=True, slots=True)
class Wildcard:
    """A value with `*`, each for zero or more characters: the literal parts between them, in order."""

    parts: tuple[str, ...]
    text: str = field(default="", compare=False)

    @classmethod
    def parse(cls, text: str) -> Wildcard:
        """Return the wildcard that `text` spells; it holds at least one `*`."""
        return cls(tuple(text.split("*")), f"value:{text}")

    @classmethod
    def prefix(cls, text: str) -> Wildcard:
        """Return what matches all that starts with `text`, in which `*` has no meaning."""
        return cls((text, ""), f"prefix:{text}")

    @classmethod
    def suffix(cls, text: str) -> Wildcard:
        """Return what matches all that ends with `text`, in which `*` has no meaning."""
        return cls(("", text), f"suffix:{text}")

    def matches(self, value: str) -> bool:
        """Return whether the whole of `value` has the parts in order, the outer two at its ends."""
        first, *middle, last = self.parts
        end = len(value) - len(last)
        at = len(first)
        if at > end or not value.startswith(first) or not value.endswith(last):
            return False
        for part in middle:
            found = value.find(part, at, end)
            if found < 0:
                return False
            at = found + len(part)
        return True


@dataclass(frozen=True, slots=True)
class Regex:
    """A regular expression of RE2 that matches whole values."""

    text: str
    _compiled: Any = field(compare=False, repr=False)

    @classmethod
    def parse(cls, text: str) -> Regex:
        """Return the expression that `text` spells.

        Raises:
            ValueError: RE2 does not take it.

        """
        options = re2.Options()
        options.log_errors = False
        options.max_mem = _MAX_REGEX_BYTES
        try:
            return cls(f"regex:{text}", re2.compile(text, options))
        except re2.error as error:
            reason = error.args[0] if error.args else ""
            reason = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
            raise ValueError(f"`{text}` is no regular expression of RE2: {reason}") from error

    def matches(self, value: str) -> bool:
        """Return whether the expression matches the whole of `value`."""
        return self._compiled.fullmatch(value) is not None


@dataclass(frozen=True, slots=True)
class Cidr:
    """A range of IP addresses. An IPv4 address that is written as an IPv6 one is the IPv4 address."""

    text: str
    _network: IPv4Network | IPv6Network

    @classmethod
    def parse(cls, text: str) -> Cidr:
        """Return the range that `text` spells, `10.0.0.0/8` or a single address.

        Raises:
            ValueError: it spells none, or has bits set behind its prefix.

        """
        try:
            network = ip_network(text)
        except ValueError as error:
            raise ValueError(f"`{text}` is no address range such as `10.0.0.0/8`: {error}") from error
        return cls(f"cidr:{network}", network)

    def matches(self, value: str) -> bool:
        """Return whether `value` is an address in the range; what is no address is in none."""
        try:
            address: IPv4Address | IPv6Address = ip_address(value)
        except ValueError:
            return False
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return address in self._network
