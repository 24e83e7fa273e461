"""Casbin's matching functions, in linear time and without surprises.

Each takes the pattern first, once, when the policy is loaded, and gives a function of the text. They agree
with pycasbin's functions of the same name on the patterns that they take; the patterns that they refuse are
those for which pycasbin's answer is not what their author reads in them:

* `keyMatch*` quote everything that is not a wildcard (`.` is a dot);
* `regexMatch` takes only patterns anchored at both ends, on RE2, which has no backtracking to stall in;
* all compare the whole text, line ends included.
"""

from __future__ import annotations

import ipaddress
import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any

import re2

TextMatcher = Callable[[str], bool]

_OPTIONS = re2.Options()
_OPTIONS.log_errors = False  # to standard error, that is; we report them
_OPTIONS.dot_nl = True
# 1 MB a pattern is some thousands of states; 10,000 patterns must still fit a small container.
_OPTIONS.max_mem = 1 << 20

_SEGMENT = "[^/]+"
_REGEX_ONLY = frozenset("()[]{}+?|^$\\")
_NOT_PLAIN = frozenset("()[]{}+?|^$\\.*")
_COLON_NAME = re.compile(r":[^/]+")
_KEY_WILDCARD = re.compile(r"[:{*]")
_BRACE_NAME = re.compile(r"\{[^/{}]+\}")
_TOP_LEVEL = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|[()|]", re.DOTALL)


class PatternError(ValueError):
    """A pattern that is refused; the message says why, in words for its author."""


def key_match(pattern: str) -> TextMatcher:
    """Match a text equal to `pattern`, or one that starts with what stands before its final `*`."""
    head, star, tail = pattern.partition("*")
    if tail:
        raise PatternError(f"`{pattern}` goes on after `*`, which keyMatch does not look at")
    if star:
        return lambda text: text.startswith(head)
    return lambda text: text == pattern


def key_match2(pattern: str) -> TextMatcher:
    """Match segments: `:name` is one segment, `/*` is any rest; `*` alone is anything."""
    if pattern == "*":
        return _matcher(".*")
    return _matcher(_key_regex(pattern, _COLON_NAME), pattern, _KEY_WILDCARD.split(pattern, maxsplit=1)[0])


def key_match3(pattern: str) -> TextMatcher:
    """Match segments: `{name}` is one segment or a part of one, `/*` is any rest."""
    return _matcher(_key_regex(pattern, _BRACE_NAME), pattern, _KEY_WILDCARD.split(pattern, maxsplit=1)[0])


def key_match4(pattern: str) -> TextMatcher:
    """Match like `key_match3`; names that stand twice must have the same value."""
    _one_name_a_segment(pattern)
    names = [name[1:-1] for name in _BRACE_NAME.findall(pattern)]
    compiled = _compiled(_key_regex(pattern, _BRACE_NAME, f"({_SEGMENT})"), pattern)

    def match(text: str) -> bool:
        found = compiled.fullmatch(text)
        if found is None:
            return False
        values: dict[str, str] = {}
        return all(
            values.setdefault(name, value) == value for name, value in zip(names, found.groups(), strict=True)
        )

    return match


def key_match5(pattern: str) -> TextMatcher:
    """Match like `key_match3`, leaving out the text's query string."""
    _one_name_a_segment(pattern)
    match = _matcher(_key_regex(pattern, _BRACE_NAME), pattern, _KEY_WILDCARD.split(pattern, maxsplit=1)[0])
    return lambda text: match(text.partition("?")[0])


def regex_match(pattern: str) -> TextMatcher:
    """Match a regular expression of RE2's syntax that is written `^…$`.

    pycasbin anchors patterns at the start only. To anchor silently would narrow `deny` rows, to not anchor
    would widen `allow` rows; so the author says which it is.
    """
    if not (pattern.startswith("^") and pattern.endswith("$")) or _ends_escaped(pattern):
        raise PatternError(f"`{pattern}` is not anchored at both ends: write `^…$`, with `.*` for any rest")
    if _has_top_level_choice(pattern):
        raise PatternError(f"`{pattern}` anchors only parts of itself: write `^(…|…)$`")
    return _matcher(pattern, pattern, _regex_prefix(pattern))


def glob_match(pattern: str) -> TextMatcher:
    """Match a glob: `*` and `?` stay in a segment and pass over hidden names, `**` is any segments."""
    if refused := sorted(set(pattern) & set("[]{}\\")):
        raise PatternError(f"`{pattern}` has a `{refused[0]}`: of globs, `*`, `?` and `**` are understood")
    while pattern.startswith("*/"):
        pattern = pattern[1:]
    return _matcher(_glob_regex(pattern))


def ip_match(pattern: str) -> TextMatcher:
    """Match an address inside a network, or the address itself; IPv4 in IPv6 counts as IPv4.

    The returned function raises ValueError for a text that is no address: a caller's garbage must neither
    match an `allow` row nor slip past a `deny` row or a `!`.
    """
    try:
        network = ipaddress.ip_network(pattern, strict=False)
    except ValueError as error:
        raise PatternError(f"`{pattern}` is neither an IP address nor a CIDR") from error
    if isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped is not None:
        raise PatternError(f"`{pattern}` is IPv4 in IPv6: write it as IPv4")

    def match(text: str) -> bool:
        address = ipaddress.ip_address(text)
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return (mapped or address) in network

    return match


# `timeMatch` is missing on purpose: a decision is a function of the call's terms, so that it can be kept.
FUNCTIONS: Mapping[str, Callable[[str], TextMatcher]] = {
    "keyMatch": key_match,
    "keyMatch2": key_match2,
    "keyMatch3": key_match3,
    "keyMatch4": key_match4,
    "keyMatch5": key_match5,
    "regexMatch": regex_match,
    "globMatch": glob_match,
    "ipMatch": ip_match,
}


def _compiled(regex: str, shown: str) -> Any:
    try:
        return re2.compile(regex, _OPTIONS)
    except re2.error as error:
        reason = error.args[0].decode(errors="replace") if error.args else "refused"
        raise PatternError(f"`{shown}` is not a pattern of RE2: {reason}") from error


def _matcher(regex: str, shown: str = "", prefix: str = "") -> TextMatcher:
    """Match `regex`; `prefix` is what all its texts start with, to pass over the others cheaply."""
    compiled = _compiled(regex, shown or regex)
    return lambda text: text.startswith(prefix) and compiled.fullmatch(text) is not None


def _key_regex(pattern: str, name: re.Pattern[str], segment: str = _SEGMENT) -> str:
    regex = ""
    at = 0
    for found in name.finditer(pattern):
        regex += _literal(pattern[at : found.start()], pattern) + segment
        at = found.end()
    return regex + _literal(pattern[at:], pattern)


def _literal(text: str, shown: str) -> str:
    if odd := sorted(set(text) & _REGEX_ONLY):
        raise PatternError(f"`{shown}` has a `{odd[0]}`, which belongs to regexMatch")
    pieces = text.split("/*")
    if any("*" in piece for piece in pieces):
        raise PatternError(f"`{shown}` has a `*` that does not stand behind a `/`")
    return "/.*".join(re2.escape(piece) for piece in pieces)


def _one_name_a_segment(pattern: str) -> None:
    for segment in pattern.split("/"):
        if segment.count("{") > 1:
            raise PatternError(f"`{pattern}` has two names in one segment, which Casbin reads as one")


def _regex_prefix(pattern: str) -> str:
    """Return the plain characters behind `^`, without one that a quantifier makes optional."""
    at = 1
    while pattern[at] not in _NOT_PLAIN:
        at += 1
    return pattern[1 : at - 1 if pattern[at] in "*?{" else at]


def _ends_escaped(pattern: str) -> bool:
    body = pattern[:-1]
    return (len(body) - len(body.rstrip("\\"))) % 2 == 1


def _has_top_level_choice(pattern: str) -> bool:
    depth = 0
    for found in _TOP_LEVEL.finditer(pattern):
        if found[0] == "(":
            depth += 1
        elif found[0] == ")":
            depth -= 1
        elif found[0] == "|" and depth == 0:
            return True
    return False


# Globs as wcmatch reads them for pycasbin (GLOBSTAR, no DOTGLOB): a wildcard never takes a leading dot,
# repeated slashes are one, slashes at the end of the text are left out.
_VISIBLE = "[^./][^/]*"


def _glob_regex(pattern: str) -> str:
    if not pattern or "//" in pattern:
        raise PatternError(f"`{pattern}` has an empty segment")
    segments = pattern.split("/")
    if ("**", "**") in itertools.pairwise(segments):
        raise PatternError(f"`{pattern}` has `**` twice in a row: one is enough")
    regex = ""
    for index, segment in enumerate(segments):
        last = index == len(segments) - 1
        if segment != "**":
            regex += _glob_segment(segment) + ("" if last else "/+")
        elif not last:
            regex += f"{'' if index else '/*'}(?:{_VISIBLE}/+)*"
        elif regex in {"", "/+"}:
            return f"{regex or '/*'}(?:{_VISIBLE}(?:/+|$))*"
        else:  # `/a/**` is `/a` too
            return f"{regex.removesuffix('/+')}(?:/+{_VISIBLE})*/*"
    return regex + "/*"


def _glob_segment(segment: str) -> str:
    segment = re.sub(r"\*{2,}", "*", segment)
    regex = ""
    if segment.startswith("*"):
        rest = segment[1:]
        if rest.startswith("?"):
            raise PatternError(f"`{segment}` starts with `*?`: write `?*`")
        regex = f"(?:{_VISIBLE})?" if rest and not rest.startswith(".") else _VISIBLE
        segment = rest
    elif segment.startswith("?"):
        regex, segment = "[^./]", segment[1:]
    for character in segment:
        regex += {"*": "[^/]*", "?": "[^/]"}.get(character) or re2.escape(character)
    return regex
