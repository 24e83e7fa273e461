"""Which URLs and addresses things are fetched from."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from garrison.urls import check_url, is_blocked, is_loopback, parse_network, shown


@pytest.mark.parametrize(
    ("address", "blocked"),
    [
        ("169.254.169.254", True),
        ("169.254.0.1", True),
        ("fe80::1", True),
        ("fd00:ec2::254", True),
        ("100.100.100.200", True),
        ("168.63.129.16", True),
        ("0.0.0.0", True),
        ("::", True),
        ("224.0.0.1", True),
        ("255.255.255.255", True),
        ("::ffff:169.254.169.254", True),
        ("64:ff9b::a9fe:a9fe", True),
        ("2002:a9fe:a9fe::1", True),
        ("127.0.0.1", False),
        ("::1", False),
        ("10.0.0.1", False),
        ("fd00::1", False),
        ("93.184.216.34", False),
        ("64:ff9b::5db8:d822", False),
        ("2606:4700::1111", False),
    ],
)
def test_addresses_nothing_comes_from(address: str, blocked: bool) -> None:
    """Link-local and metadata addresses are blocked in every notation; private networks are not."""
    assert is_blocked(ip_address(address)) is blocked


@pytest.mark.parametrize(
    "url",
    [
        "",
        "lists.example/x",
        "ftp://lists.example/x",
        "file:///etc/passwd",
        "http:///x",
        "http://:80/x",
        "http://a:0/",
        "http://a:99999/",
        "http://user:secret@lists.example/",
        "http://lists.example/a b",
        "http://lists.example/\u00e9",
        "http://[::1/",
    ],
)
def test_urls_that_are_refused(url: str) -> None:
    """A list's URL is http or https, with a host and without credentials."""
    assert check_url(url)


def test_ranges_are_blocked_in_every_notation() -> None:
    """A configured range holds the addresses in it also when they are inside an IPv6 one."""
    ranges = [parse_network("10.0.0.0/8"), parse_network("2001:db8::/32")]
    for inside in ("10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::a01:203", "2002:a01:203::1", "2001:db8::1"):
        assert is_blocked(ip_address(inside), ranges), inside
    for outside in ("11.0.0.1", "64:ff9b::b00:1", "2606:4700::1111", "127.0.0.1"):
        assert not is_blocked(ip_address(outside), ranges), outside


def test_this_machine_is_known_in_every_notation() -> None:
    """Loopback inside IPv6 is loopback."""
    for here in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"):
        assert is_loopback(ip_address(here)), here
    for elsewhere in ("10.0.0.1", "fd00::1", "::ffff:10.0.0.1"):
        assert not is_loopback(ip_address(elsewhere)), elsewhere


def test_networks() -> None:
    """A range is a network or an address; IPv4 stays IPv4 however it is written."""
    assert str(parse_network("10.0.0.0/8")) == "10.0.0.0/8"
    assert str(parse_network("10.0.0.1")) == "10.0.0.1/32"
    assert str(parse_network("::ffff:10.0.0.0/104")) == "10.0.0.0/8"
    for wrong in ("10.0.0.1/8", "10.0.0.0/33", "ten", ""):
        with pytest.raises(ValueError, match=r".*"):
            parse_network(wrong)


def test_messages_show_no_query_and_no_password() -> None:
    """What a message shows of a URL ends before its query and is short."""
    assert shown("https://a.example/b?key=secret#c") == "https://a.example/b"
    assert shown("https://user:secret@a.example/b") == "a.example/b"
    assert len(shown("http://a/" + "x" * 1000)) == 200
