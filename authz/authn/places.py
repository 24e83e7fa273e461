"""Where credentials stand in a request, and how they are taken out of it before it goes on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from authz.attributes import Attributes
from authz.decision import NO_MUTATIONS, HeaderAction, HeaderMutation, Mutations
from authz.paths import query_parameters

# Between cookies stands `;` (RFC 6265, section 4.2.1), or a comma where Envoy has joined two lines.
_BETWEEN_COOKIES = re.compile(r"[;,]")
# RFC 7515, section 3.1: three parts in base64url; a JWS for verification has none that is empty.
_COMPACT_JWS = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class HeaderPlace:
    """A header, by its name in lower case, whose value starts with `prefix`."""

    name: str
    prefix: str = ""
    ignore_case: bool = False  # of the prefix: authentication schemes have none (RFC 9110, section 11.1)

    def credential(self, value: str) -> str | None:
        """Return what of a header value is the credential, empty if only the prefix is there; else None."""
        prefix = self.prefix
        if self.ignore_case:
            prefix, start = prefix.lower(), value[: len(prefix)].lower()
        else:
            start = value[: len(prefix)]
        if start == prefix:
            return value[len(prefix) :].strip(" ")
        return "" if prefix and start == prefix.rstrip(" ") else None


@dataclass(frozen=True, slots=True)
class ParameterPlace:
    """A parameter of the query."""

    name: str


@dataclass(frozen=True, slots=True)
class CookiePlace:
    """A cookie."""

    name: str


Place: TypeAlias = HeaderPlace | ParameterPlace | CookiePlace


@dataclass(frozen=True, slots=True)
class Found:
    """A credential, where it stood, and all that stood there."""

    text: str = field(repr=False)
    place: Place
    value: str = field(repr=False)


def find(places: Iterable[Place], attributes: Attributes) -> list[Found]:
    """Return the credentials at `places`, in this order; one that stands elsewhere is none."""
    found: list[Found] = []
    for place in places:
        match place:
            case HeaderPlace(name):
                found += [
                    Found(text, place, value)
                    for value in attributes.headers(name)
                    if (text := place.credential(value)) is not None
                ]
            case ParameterPlace(name):
                if may_have_parameter((name,), attributes.target):
                    pairs = query_parameters(attributes.target)
                    found += [Found(value, place, value) for spelled, value in pairs if spelled == name]
            case CookiePlace(name):
                found += [
                    Found(text, place, text)
                    for line in attributes.headers("cookie")
                    for text in _in_cookies(name, line)
                ]
    return found


def may_have_parameter(names: Sequence[str], target: str) -> bool:
    """Return whether the query of `target` can hold one of `names`: cheap, and right when it says no."""
    if "?" not in target:
        return False
    if "%" in target or "+" in target:
        return bool(names)
    return any(name in target for name in names)


def looks_at(place: Place, found: Found) -> bool:
    """Return whether somebody who looks at `place` finds what was found, too."""
    if isinstance(place, HeaderPlace):
        same = isinstance(found.place, HeaderPlace) and place.name == found.place.name
        return same and place.credential(found.value) is not None
    return place == found.place


def is_compact_jws(text: str) -> bool:
    """Return whether `text` has the form of a JWS in compact serialisation (RFC 7515, section 3.1)."""
    return _COMPACT_JWS.fullmatch(text) is not None


def _in_cookies(name: str, line: str) -> Iterable[str]:
    for cookie in _BETWEEN_COOKIES.split(line):
        spelled, equals, text = cookie.partition("=")
        if equals and spelled.strip(" \t") == name:
            text = text.strip(" \t")
            # RFC 6265, section 4.1.1: the value may stand in quotes, which are no part of it.
            yield text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text


def taken_out(found: Iterable[Found], attributes: Attributes) -> Mutations:
    """Return the changes that take credentials out of the request."""
    headers, parameters, cookies = [], [], []
    for one in found:
        match one.place:
            case HeaderPlace(name):
                headers.append(name)
            case ParameterPlace(name):
                parameters.append(name)
            case CookiePlace(name):
                cookies.append(name)
    if not headers and not parameters and not cookies:
        return NO_MUTATIONS
    changes = [HeaderMutation(name, action=HeaderAction.REMOVE) for name in dict.fromkeys(headers)]
    if cookies and "cookie" not in headers:
        names = frozenset(cookies)
        rest = "; ".join(
            kept for line in attributes.headers("cookie") if (kept := without_cookies(line, names))
        )
        action = HeaderAction.REPLACE if rest else HeaderAction.REMOVE
        changes.append(HeaderMutation("cookie", rest, action))
    return Mutations(tuple(changes), remove_parameters=tuple(dict.fromkeys(parameters)))


def without_cookies(line: str, names: frozenset[str]) -> str:
    """Return a header line without some cookies; the others stay as they were written, byte by byte."""
    kept = []
    for piece in line.split(";"):
        others = [one for one in piece.split(",") if _cookie_name(one) not in names]
        if others:
            kept.append(",".join(others))
    # Envoy takes new values as UTF-8 only (1.40 ignores `raw_value`), so what is not has to go as well.
    return ";".join(piece for piece in kept if _is_text(piece)).strip(" \t")


def _is_text(text: str) -> bool:
    return text.isascii() or text.encode("utf-8", "surrogateescape").decode("utf-8", "replace") == text


def _cookie_name(cookie: str) -> str | None:
    name, equals, _ = cookie.partition("=")
    return name.strip(" \t") if equals else None
