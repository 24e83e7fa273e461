"""Where credentials stand in a request, and how they are taken out of it before it goes on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import parse_qsl

from authz.attributes import Attributes
from authz.decision import NO_MUTATIONS, HeaderAction, HeaderMutation, Mutations

# Between cookies stands `;` (RFC 6265, section 4.2.1), or a comma where Envoy has joined two lines.
_BETWEEN_COOKIES = re.compile(r"[;,]")


@dataclass(frozen=True, slots=True)
class HeaderPlace:
    """A header, by its name in lower case, whose value starts with `prefix`."""

    name: str
    prefix: str = ""
    ignore_case: bool = False  # of the prefix: authentication schemes have none (RFC 9110, section 11.1)


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
    """A credential and where it stood."""

    text: str
    place: Place


def find(places: Iterable[Place], attributes: Attributes) -> list[Found]:
    """Return the credentials at `places`, in this order; one that stands elsewhere is none."""
    found: list[Found] = []
    for place in places:
        match place:
            case HeaderPlace():
                found += [Found(text, place) for text in _in_header(place, attributes)]
            case ParameterPlace(name):
                if may_have_parameter((name,), attributes.target):
                    query = attributes.target.partition("?")[2].partition("#")[0]
                    pairs = parse_qsl(query, keep_blank_values=True)
                    found += [Found(value, place) for spelled, value in pairs if spelled == name]
            case CookiePlace(name):
                found += [
                    Found(text, place)
                    for value in attributes.headers("cookie")
                    for text in _in_cookies(name, value)
                ]
    return found


def may_have_parameter(names: Sequence[str], target: str) -> bool:
    """Return whether the query of `target` can hold one of `names`: cheap, and right when it says no."""
    if "?" not in target:
        return False
    if "%" in target or "+" in target:
        return bool(names)
    return any(name in target for name in names)


def _in_header(place: HeaderPlace, attributes: Attributes) -> Iterable[str]:
    prefix = place.prefix
    for value in attributes.headers(place.name):
        start = value[: len(prefix)]
        if start == prefix or (place.ignore_case and start.lower() == prefix.lower()):
            yield value[len(prefix) :].strip(" ")


def _in_cookies(name: str, value: str) -> Iterable[str]:
    for cookie in _BETWEEN_COOKIES.split(value):
        spelled, equals, text = cookie.strip(" \t").partition("=")
        if equals and spelled == name:
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
        changes.append(_other_cookies(frozenset(cookies), attributes.headers("cookie")))
    return Mutations(tuple(changes), remove_parameters=tuple(dict.fromkeys(parameters)))


def _other_cookies(names: frozenset[str], values: Iterable[str]) -> HeaderMutation:
    """Return the change that leaves cookies other than `names`, each as it was sent."""
    kept = [
        kept.strip(" \t")
        for value in values
        for cookie in value.split(";")
        if (kept := ",".join(one for one in cookie.split(",") if _cookie_name(one) not in names)).strip(" \t")
    ]
    if not kept:
        return HeaderMutation("cookie", action=HeaderAction.REMOVE)
    return HeaderMutation("cookie", "; ".join(kept))


def _cookie_name(cookie: str) -> str:
    return cookie.strip(" \t").partition("=")[0] if "=" in cookie else ""
