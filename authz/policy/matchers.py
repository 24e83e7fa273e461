"""The matcher vocabulary that compiled policies are made of.

Absence never matches: every matcher answers False for an attribute that is not there, `*` included.
User text becomes literals, never a regular expression, so matching is linear in the value's length.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network


@dataclass(frozen=True, slots=True)
class StringMatcher:
    """Any of several patterns: exact, `prefix*`, `*suffix`, or `*` (present, even if empty).

    The forms are those of Istio 1.4's `createStringMatcher`: a leading `*` is looked at before a trailing
    one, and a star anywhere else is a literal.
    """

    exact: frozenset[str] = frozenset()
    prefixes: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()
    present: bool = False

    @classmethod
    def of(cls, patterns: Iterable[str]) -> StringMatcher:
        """Return the matcher for `patterns`, of which any one suffices."""
        exact, prefixes, suffixes, present = set(), set(), set(), False
        for pattern in patterns:
            if pattern == "*":
                present = True
            elif pattern.startswith("*"):
                suffixes.add(pattern[1:])
            elif pattern.endswith("*"):
                prefixes.add(pattern[:-1])
            else:
                exact.add(pattern)
        return cls(frozenset(exact), tuple(sorted(prefixes)), tuple(sorted(suffixes)), present)

    def matches(self, value: str | None) -> bool:
        """Return whether `value` is there and one of the patterns fits it."""
        if value is None:
            return False
        if value in self.exact or self.present:
            return True
        if self.prefixes and value.startswith(self.prefixes):
            return True
        return bool(self.suffixes) and value.endswith(self.suffixes)

    def __str__(self) -> str:
        patterns = sorted(self.exact)
        patterns += [f"{prefix}*" for prefix in self.prefixes]
        patterns += [f"*{suffix}" for suffix in self.suffixes]
        patterns += ["*"] if self.present else []
        return ", ".join(f"`{pattern}`" for pattern in patterns)


@dataclass(frozen=True, slots=True)
class AddressMatcher:
    """Any of several IP networks; a single address is a network of one."""

    networks: tuple[IPv4Network | IPv6Network, ...]

    @classmethod
    def of(cls, blocks: Iterable[str]) -> AddressMatcher:
        """Return the matcher for `blocks`, such as `10.0.0.0/8` or `::1`.

        Raises:
            ValueError: a block is neither an address nor a CIDR; host bits must be zero.

        """
        return cls(tuple(ip_network(block) for block in blocks))

    def matches(self, value: str | None) -> bool:
        """Return whether `value` is an IP address inside one of the networks."""
        if value is None:
            return False
        try:
            address = ip_address(value)
        except ValueError:
            return False
        return any(_contains(network, address) for network in self.networks)

    def __str__(self) -> str:
        return ", ".join(f"`{network}`" for network in self.networks)


def _contains(network: IPv4Network | IPv6Network, address: IPv4Address | IPv6Address) -> bool:
    # An IPv4 client on a dual-stack socket appears as ::ffff:a.b.c.d; it is the same host.
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None and network.version == 4:
        return address.ipv4_mapped in network
    return address.version == network.version and address in network


Matcher = StringMatcher | AddressMatcher


@dataclass(frozen=True, slots=True)
class Condition:
    """An attribute and what its value must be.

    With `every`, each value of the attribute has to match and there must be at least one (headers: a second,
    different value could be the one that the upstream reads); without it one value suffices (list claims).
    """

    attribute: str  # the attribute's name in `docs/attributes.md`, such as `request.headers`
    argument: str  # what stands in its brackets, empty when it has none
    matcher: Matcher
    every: bool
    field: str  # where it stands in its document, such as `subjects[1].properties`

    def matches(self, values: Sequence[str]) -> bool:
        """Return whether `values`, all that the request has for the attribute, satisfy the condition."""
        every, matches = self.every, self.matcher.matches
        for value in values:  # a loop, not all() or any(): this is the inner loop of every decision
            if matches(value) is not every:
                return not every
        return every and bool(values)

    @property
    def name(self) -> str:
        """The attribute as it is written in policies."""
        return f"{self.attribute}[{self.argument}]" if self.argument else self.attribute
