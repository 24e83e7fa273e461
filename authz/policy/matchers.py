"""The matcher vocabulary that compiled policies are made of.

Absence never matches: every matcher answers False for an attribute that is not there, `*` included.
User text becomes literals, or quoted parts of an RE2 expression, so matching is linear in the value's
length.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

import re2


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


@dataclass(frozen=True, slots=True)
class GlobMatcher:
    """Any of several patterns in which every `*` stands for any characters, none included.

    Compared piece by piece: each literal is looked for once, from left to right, so it is linear.
    """

    patterns: tuple[tuple[str, ...], ...]  # the literals between the stars

    @classmethod
    def of(cls, patterns: Iterable[str]) -> GlobMatcher:
        """Return the matcher for `patterns`, of which any one suffices."""
        return cls(tuple(tuple(pattern.split("*")) for pattern in patterns))

    def matches(self, value: str | None) -> bool:
        """Return whether `value` is there and one of the patterns fits all of it."""
        return value is not None and any(_glob(pieces, value) for pieces in self.patterns)

    def __str__(self) -> str:
        return ", ".join(f"`{'*'.join(pieces)}`" for pieces in self.patterns)


def _glob(pieces: tuple[str, ...], value: str) -> bool:
    if len(pieces) == 1:
        return value == pieces[0]
    first, *middle, last = pieces
    if len(value) < len(first) + len(last) or not (value.startswith(first) and value.endswith(last)):
        return False
    at, end = len(first), len(value) - len(last)
    for piece in middle:
        found = value.find(piece, at, end)
        if found < 0:
            return False
        at = found + len(piece)
    return True


# Istio's path templates: what one `{*}` may stand for, and `{**}` adds the slash. A template that would deny
# takes any character, or a path with another one would get past it (CVE-2025-46821 was `*`; `=` still is).
_TEMPLATE_CHARACTERS = r"[A-Za-z0-9\-._~%!$&'()+,;:@*]"
_ANY_CHARACTERS = r"[^/]"
_TEMPLATE_LITERAL = re.compile(r"[a-zA-Z0-9\-._~%!$&'()+,;:@=]+")


@dataclass(frozen=True, slots=True)
class TemplateMatcher:
    """Any of several path templates, such as `/users/{*}/files/{**}` (Istio 1.22 and later)."""

    templates: tuple[str, ...]
    _expressions: tuple[Any, ...] = field(compare=False, repr=False)

    @classmethod
    def of(cls, templates: Iterable[str], *, wide: bool = False) -> TemplateMatcher:
        """Return the matcher for `templates`, of which any one suffices; `wide` takes any character.

        Raises:
            ValueError: one of them is no template; the message says why.

        """
        texts = tuple(templates)
        characters = _ANY_CHARACTERS if wide else _TEMPLATE_CHARACTERS
        return cls(texts, tuple(_compile_template(text, characters) for text in texts))

    def matches(self, value: str | None) -> bool:
        """Return whether `value` is there and one of the templates fits all of it."""
        return value is not None and any(expression.fullmatch(value) for expression in self._expressions)

    def __str__(self) -> str:
        return ", ".join(f"`{template}`" for template in self.templates)


def _compile_template(template: str, characters: str) -> Any:
    if not template.startswith("/"):
        raise ValueError(f"path template `{template}` does not start with `/`")
    expression, segments = "", template.split("/")[1:]
    for index, segment in enumerate(segments):
        if segment == "{**}":
            if index != len(segments) - 1 and any("{" in rest for rest in segments[index + 1 :]):
                raise ValueError(f"in path template `{template}` nothing but literals may follow `{{**}}`")
            expression += f"/(?:{characters}|/)*"
        elif segment == "{*}":
            expression += f"/{characters}+"
        elif segment and not _TEMPLATE_LITERAL.fullmatch(segment):
            raise ValueError(
                f"segment `{segment}` of path template `{template}` is neither text nor an operator"
            )
        else:
            expression += "/" + re2.escape(segment)
    return re2.compile(expression)


@dataclass(frozen=True, slots=True)
class RequestPrincipalMatcher:
    """Any of several request principals `<issuer>/<subject>`, given as (issuer, subject).

    A pattern splits at its last `/`; both halves must match, so that `a/b` of issuer `x` and `b` of issuer
    `x/a` stay two principals (Istio's `requestPrincipals`).
    """

    pairs: tuple[tuple[StringMatcher, StringMatcher], ...]
    texts: tuple[str, ...]

    @classmethod
    def of(cls, patterns: Iterable[str]) -> RequestPrincipalMatcher:
        """Return the matcher for `patterns`, of which any one suffices."""
        texts = tuple(patterns)
        return cls(tuple(_principal_pair(text) for text in texts), texts)

    def matches(self, value: tuple[str, str] | None) -> bool:
        """Return whether `value`, an issuer and a subject, fits one of the patterns."""
        if value is None or not (value[0] and value[1]):
            return False
        return any(issuer.matches(value[0]) and subject.matches(value[1]) for issuer, subject in self.pairs)

    def __str__(self) -> str:
        return ", ".join(f"`{text}`" for text in self.texts)


def _principal_pair(pattern: str) -> tuple[StringMatcher, StringMatcher]:
    anything = StringMatcher.of(("*",))
    if pattern == "*":
        return anything, anything
    issuer, slash, subject = pattern.rpartition("/")
    if slash:
        return StringMatcher.of((issuer,)), StringMatcher.of((subject,))
    if pattern.startswith("*"):
        return anything, StringMatcher.of((pattern,))
    if pattern.endswith("*"):
        return StringMatcher.of((pattern,)), anything
    return StringMatcher.of((pattern,)), StringMatcher()


@dataclass(frozen=True, slots=True)
class MetadataMatcher:
    """Dynamic metadata of another filter: `v` is a string, `[v]` one element of a list (a 1-tuple)."""

    texts: StringMatcher
    elements: StringMatcher

    @classmethod
    def of(cls, patterns: Iterable[str]) -> MetadataMatcher:
        """Return the matcher for `patterns`, of which any one suffices."""
        texts, elements = [], []
        for pattern in patterns:
            if pattern.startswith("[") and pattern.endswith("]"):
                elements.append(pattern[1:-1])
            else:
                texts.append(pattern)
        return cls(StringMatcher.of(texts), StringMatcher.of(elements))

    def matches(self, value: str | tuple[str] | None) -> bool:
        """Return whether `value` is there and a pattern of its kind fits it."""
        return self.elements.matches(value[0]) if isinstance(value, tuple) else self.texts.matches(value)

    def __str__(self) -> str:
        lists = str(self.elements).replace("`, `", "]`, `[")
        return ", ".join(filter(None, (str(self.texts), f"`[{lists[1:-1]}]`" if lists else "")))


@dataclass(frozen=True, slots=True)
class EitherMatcher:
    """Any of several matchers of different kinds."""

    matchers: tuple[Matcher, ...]

    def matches(self, value: Any) -> bool:
        """Return whether one of the matchers matches `value`."""
        return any(matcher.matches(value) for matcher in self.matchers)

    def __str__(self) -> str:
        return ", ".join(map(str, self.matchers))


Matcher = (
    StringMatcher
    | AddressMatcher
    | GlobMatcher
    | TemplateMatcher
    | RequestPrincipalMatcher
    | MetadataMatcher
    | EitherMatcher
)


@dataclass(frozen=True, slots=True)
class Condition:
    """An attribute and what its value must be.

    With `every`, each value of the attribute has to match and there must be at least one (a second, different
    header line could be the one that the upstream reads); without it one value suffices. `negated` turns the
    result around, so that an absent attribute satisfies it.
    """

    attribute: str  # a key of `authz.attributes.ATTRIBUTES`
    argument: str  # what stands in its brackets, empty when it has none
    matcher: Matcher
    every: bool
    field: str  # where it stands in its document, such as `spec.subjects[1].properties`
    negated: bool = False
    name: str = ""  # the attribute as policies write it

    def matches(self, values: Sequence[Any]) -> bool:
        """Return whether `values`, all that the request has for the attribute, satisfy the condition."""
        every, matches = self.every, self.matcher.matches
        for value in values:  # a loop, not all() or any(): this is the inner loop of every decision
            if matches(value) is not every:
                return every is self.negated
        return (every and bool(values)) is not self.negated
