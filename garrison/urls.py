"""What may be fetched: which URLs, and which addresses they may lead to. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from urllib.parse import urlsplit

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

PORTS = {"http": 80, "https": 443}
_MOST_SHOWN = 200
# Metadata services that are not link-local: AWS (IPv6), Alibaba, Azure's wire server, Oracle's old one.
_METADATA = frozenset(
    ip_address(text) for text in ("fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192")
)
# RFC 6052, section 2.1: the last 32 bits are an IPv4 address.
_NAT64 = ip_network("64:ff9b::/96")


def check_url(url: str) -> str:
    """Return what is wrong with `url` as something to fetch; empty when nothing is."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return f"`{shown(url)}` is not a URL"
    if parts.scheme not in PORTS:
        return f"`{shown(url)}` is neither http:// nor https://"
    if not parts.hostname or port == 0:
        return f"`{shown(url)}` names no host"
    if parts.username is not None or parts.password is not None:
        return "a URL with a user or password is not supported"
    if not url.isascii() or any(character <= " " or character == "\x7f" for character in url):
        return f"`{shown(url)}` has characters that a URL cannot have"
    return ""


def shown(url: str) -> str:
    """Return `url` as messages show it: queries may hold secrets, and a redirect may be of any length."""
    return url.partition("#")[0].partition("?")[0].rpartition("@")[2][:_MOST_SHOWN]


def parse_network(text: str) -> Network:
    """Return the network that `text` names, `10.0.0.0/8` or a single address.

    Raises:
        ValueError: it is none, or has bits set beyond its prefix.

    """
    network = ip_network(text)
    if isinstance(network, IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ip_network((int(mapped), network.prefixlen - 96))
    return network


def is_loopback(address: Address) -> bool:
    """Return whether `address` is this machine, in whatever notation."""
    return any(one.is_loopback for one in _readings(address))


def is_blocked(address: Address, ranges: Iterable[Network] = ()) -> bool:
    """Return whether nothing may be fetched from `address`.

    That is: link-local, multicast, unspecified, reserved, a metadata service, or in one of `ranges`; also as
    the IPv4 address in a NAT64, 6to4 or Teredo one. IPv4-mapped ones and scopes (`%eth0`) always are.
    """
    if isinstance(address, IPv6Address) and (address.scope_id or address.ipv4_mapped):
        return True
    return any(
        one.is_link_local
        or one.is_multicast
        or one.is_unspecified
        # All of NAT64 is reserved; it is judged by the address inside.
        or (one.is_reserved and not one.is_loopback and one not in _NAT64)
        or one in _METADATA
        or any(one in network for network in ranges)
        for one in _readings(address)
    )


def _readings(address: Address) -> Iterator[Address]:
    """Yield `address`, and the IPv4 address that it leads to."""
    yield address
    if isinstance(address, IPv6Address):
        embedded = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if embedded is None and address in _NAT64:
            embedded = IPv4Address(int(address) & 0xFFFFFFFF)
        if embedded is not None:
            yield embedded
