"""Lists: how entries compare, how bodies read, and which list is in force through an outage."""

from __future__ import annotations

import pytest

from authz.mixer.expression import EvaluationError
from authz.mixer.lists import (
    MAX_LIST_BYTES,
    MAX_PATTERNS,
    EntryType,
    InvalidValueError,
    ListError,
    ListSource,
    ListState,
    build_entries,
    failed,
    in_force,
    parse_body,
    succeeded,
)

SOURCE = ListSource("http://lists.example/x", EntryType.STRINGS, refresh_seconds=60, ttl_seconds=300)


@pytest.mark.parametrize(
    ("entry_type", "entries", "value", "expected"),
    [
        ("STRINGS", ["a", "b"], "a", True),
        ("STRINGS", ["a", "b"], "A", False),
        ("STRINGS", ["a*"], "ab", False),
        ("STRINGS", [], "", False),
        ("CASE_INSENSITIVE_STRINGS", ["Straße"], "sTRAßE", True),
        ("CASE_INSENSITIVE_STRINGS", ["Straße"], "STRASSE", False),
        ("CASE_INSENSITIVE_STRINGS", ["é"], "É", True),
        ("IP_ADDRESSES", ["10.0.0.0/8"], "10.1.2.3", True),
        ("IP_ADDRESSES", ["10.0.0.0/8"], "11.1.2.3", False),
        ("IP_ADDRESSES", ["10.1.2.3/8"], "10.9.9.9", True),  # host bits are masked
        ("IP_ADDRESSES", ["10.0.0.1"], "10.0.0.1", True),
        ("IP_ADDRESSES", ["10.0.0.1"], "10.0.0.2", False),
        ("IP_ADDRESSES", ["10.0.0.0/8"], "::ffff:10.0.0.1", True),
        ("IP_ADDRESSES", ["::ffff:10.0.0.0/104"], "10.0.0.1", True),
        ("IP_ADDRESSES", ["fd00::1"], "fd00::1", True),
        ("IP_ADDRESSES", ["fd00::/8"], "fdff::1", True),
        ("IP_ADDRESSES", ["fd00::/8"], "10.0.0.1", False),
        ("IP_ADDRESSES", ["0.0.0.0/0"], "::1", False),
        ("IP_ADDRESSES", ["0.0.0.0/0"], "1.2.3.4", True),
        ("REGEX", ["a+b"], "xaaby", True),
        ("REGEX", ["^a+b$"], "xaaby", False),
        ("REGEX", ["x", "(?i)HELLO"], "say hello", True),
        ("REGEX", ["x$", "^y"], "xy", False),
    ],
)
def test_entries_and_values(entry_type: str, entries: list[str], value: str, expected: bool) -> None:
    """Each type compares as Mixer's does."""
    assert build_entries(EntryType(entry_type), entries).holds(value) is expected


def test_values_that_cannot_be_compared() -> None:
    """A value that is no address is invalid on a list of addresses; one that RE2 cannot read has no answer."""
    with pytest.raises(InvalidValueError, match=r"^abc is not a valid IP address$"):
        build_entries(EntryType.IP_ADDRESSES, []).holds("abc")
    with pytest.raises(EvaluationError):
        build_entries(EntryType.REGEX, ["a"]).holds("\udc80")


@pytest.mark.parametrize(
    ("entry_type", "entries", "message"),
    [
        ("IP_ADDRESSES", ["10.0.0.1", "10.0.0"], "`10.0.0` is neither an IP address nor a network"),
        (
            "IP_ADDRESSES",
            ["10.0.0.1", "fe80::1%eth0"],
            "`fe80::1%eth0` is neither an IP address nor a network",
        ),
        ("IP_ADDRESSES", ["10.0.0.1", "10.0.0.0/255.0.0.0"], "is neither an IP address nor a network"),
        ("IP_ADDRESSES", ["10.0.0.1", "10.0.0.0/33"], "is neither an IP address nor a network"),
        ("REGEX", ["a", "("], "is not an RE2 pattern"),
        ("REGEX", ["a", "(?=b)"], "is not an RE2 pattern"),
    ],
)
def test_entries_that_are_none(entry_type: str, entries: list[str], message: str) -> None:
    """An entry that cannot be used is named with its index."""
    with pytest.raises(ListError) as caught:
        build_entries(EntryType(entry_type), entries)
    assert message in str(caught.value)
    assert caught.value.entry == 1


def test_patterns_are_few() -> None:
    """Patterns are tried one by one, so their number is bounded."""
    with pytest.raises(ListError, match="at most"):
        build_entries(EntryType.REGEX, ["a"] * (MAX_PATTERNS + 1))


@pytest.mark.parametrize(
    ("entry_type", "body", "expected"),
    [
        ("STRINGS", b"a\nb\n", ["a", "b"]),
        ("STRINGS", b"a\r\n\n b \n#c", ["a", " b ", "#c"]),
        ("STRINGS", b"\xef\xbb\xbfa", ["a"]),
        ("STRINGS", b"", []),
        ("REGEX", b"^a$\n", ["^a$"]),
        ("IP_ADDRESSES", b"whitelist:\n- 10.0.0.1\n- fd00::/8\n", ["10.0.0.1", "fd00::/8"]),
        ("IP_ADDRESSES", b"whitelist: []", []),
    ],
)
def test_bodies(entry_type: str, body: bytes, expected: list[str]) -> None:
    """Lines for text and patterns, YAML for addresses."""
    assert parse_body(EntryType(entry_type), body) == expected


@pytest.mark.parametrize(
    ("entry_type", "body"),
    [
        ("STRINGS", b"\xff"),
        ("STRINGS", b"x" * (MAX_LIST_BYTES + 1)),
        ("IP_ADDRESSES", b""),
        ("IP_ADDRESSES", b"10.0.0.1\n10.0.0.2\n"),
        ("IP_ADDRESSES", b"blacklist: [10.0.0.1]"),
        ("IP_ADDRESSES", b"whitelist: 10.0.0.1"),
        ("IP_ADDRESSES", b"whitelist: [1]"),
        ("IP_ADDRESSES", b"whitelist: [10.0.0.1]\nmore: 1"),
        ("IP_ADDRESSES", b"whitelist: [10.0.0.1]\n---\nwhitelist: [10.0.0.2]"),
        ("IP_ADDRESSES", b"whitelist: &a [*a]"),
        ("IP_ADDRESSES", b"whitelist: ["),
    ],
)
def test_bodies_that_are_no_list(entry_type: str, body: bytes) -> None:
    """What would have been an empty list to Mixer is an error here: an empty blacklist stops nobody."""
    with pytest.raises(ListError):
        parse_body(EntryType(entry_type), body)


def test_a_list_survives_an_outage_until_its_ttl() -> None:
    """Failures keep the old list; when nobody confirmed it for the ttl, there is none."""
    state = succeeded(SOURCE, ListState(), b"a\n", 1000)
    assert state.next_fetch_at == 1060
    for now in (1060, 1061, 1063):
        state = failed(SOURCE, state, "down", now)
    assert (state.failures, state.error, state.next_fetch_at) == (3, "down", 1067)
    kept = in_force(SOURCE, state, 1299.9)
    assert kept is not None
    assert kept.holds("a")
    assert in_force(SOURCE, state, 1300) is None
    back = succeeded(SOURCE, state, b"b\n", 1400)
    assert (back.failures, back.error) == (0, "")
    fresh = in_force(SOURCE, back, 1400)
    assert fresh is not None
    assert fresh.holds("b")
    assert not fresh.holds("a")


def test_a_list_that_never_came_is_none() -> None:
    """Before the first success there is no list, which is not an empty one."""
    assert in_force(SOURCE, ListState(), 0) is None
    assert in_force(SOURCE, failed(SOURCE, ListState(), "down", 5), 5) is None


def test_an_unchanged_body_keeps_the_list_and_its_time() -> None:
    """The same bytes again are not parsed again, and the ttl starts anew."""
    first = succeeded(SOURCE, ListState(), b"a\n", 0)
    again = succeeded(SOURCE, first, b"a\n", 200)
    assert again.entries is first.entries
    assert in_force(SOURCE, again, 400) is first.entries
    assert succeeded(SOURCE, first, b"a\nb\n", 200).entries is not first.entries


def test_a_body_that_is_no_list_is_a_failure() -> None:
    """Garbage from the provider does not replace a good list."""
    good = succeeded(SOURCE, ListState(), b"a\n", 0)
    bad = succeeded(SOURCE, good, b"\xff", 60)
    assert bad.entries is good.entries
    assert (bad.failures, bad.error) == (1, "the list is not valid UTF-8")
    assert bad.confirmed_at == 0


def test_retries_come_sooner_than_refreshes_but_not_for_ever() -> None:
    """The delay doubles from a second up to the refresh interval."""
    state, delays = ListState(), []
    for _ in range(9):
        state = failed(SOURCE, state, "down", 0)
        delays.append(state.next_fetch_at)
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60, 60]
