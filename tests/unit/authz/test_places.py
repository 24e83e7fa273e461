"""Where credentials stand, and how they are taken out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.checks import check_request

from authz.attributes import Attributes
from authz.authn.places import (
    CookiePlace,
    Found,
    HeaderPlace,
    ParameterPlace,
    Place,
    find,
    is_compact_jws,
    looks_at,
    taken_out,
    without_cookies,
)
from authz.decision import NO_MUTATIONS, HeaderAction, HeaderMutation
from authz.paths import PathNormalization

BEARER = HeaderPlace("authorization", "Bearer ", ignore_case=True)
TOKEN, SESSION = ParameterPlace("token"), CookiePlace("session")


def call(path: str = "/", cookies: list[bytes] | None = None, **headers: str) -> Attributes:
    """Return a call with these headers, and `cookies` as lines of their own."""
    lines = [("cookie", line) for line in cookies or ()]
    found = {name.replace("_", "-"): value for name, value in headers.items()}
    lines += [(name, value.encode()) for name, value in found.items()] if lines else []
    request = check_request(path=path, headers={} if lines else found, raw_headers=lines)
    return Attributes(request.attributes, PathNormalization.BASE, None)


def texts(attributes: Attributes, *places: Place) -> list[str]:
    """Return what is found."""
    return [one.text for one in find(places, attributes)]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("Bearer a", ["a"]),
        ("bEARER  a ", ["a"]),
        ("Bearera", []),
        ("Basic a", []),
        ("Bearer", [""]),
        ("Bearer a, Bearer b", ["a, Bearer b"]),
        ("", []),
    ],
)
def test_headers(value: str, found: list[str]) -> None:
    """What follows the prefix, whatever its case where schemes have none; spaces around it are not part of it."""
    assert texts(call(authorization=value), BEARER) == found
    exact = HeaderPlace("authorization", "Bearer ")
    assert texts(call(authorization=value), exact) == (found if value.startswith("Bearer") else [])


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/?token=a", ["a"]),
        ("/?x=1&token=a&token=b", ["a", "b"]),
        ("/?%74oken=a", ["a"]),
        ("/?token=", [""]),
        ("/?tokens=a", []),
        ("/token=a", []),
        ("/?x=1#token=a", []),
        ("/?Token=a", []),
        ("//[?token=a", ["a"]),
    ],
)
def test_parameters(path: str, found: list[str]) -> None:
    """Every value of the parameter, however its name is encoded; not what stands in path or fragment."""
    assert texts(call(path), TOKEN) == found


@pytest.mark.parametrize(
    ("cookies", "found"),
    [
        ([b"session=a"], ["a"]),
        ([b"x=1; session=a;y"], ["a"]),
        ([b'session="a"'], ["a"]),
        ([b"session=a", b"session=b"], ["a", "b"]),
        ([b"x=1,session=a"], ["a"]),
        ([b"sessions=a; xsession=a; Session=a"], []),
        ([b"session"], []),
        ([b"session="], [""]),
        ([b"session=a=b"], ["a=b"]),
    ],
)
def test_cookies(cookies: list[bytes], found: list[str]) -> None:
    """Every cookie of that name, in one line or several, also where Envoy has joined lines with a comma."""
    assert texts(call(cookies=cookies), SESSION) == found
    assert texts(call(cookie=",".join(line.decode() for line in cookies)), SESSION) == found


def test_places_are_searched_in_their_order() -> None:
    """What is found comes in the order of the places."""
    attributes = call("/?token=b", authorization="Bearer a", cookie="session=c")
    assert texts(attributes, SESSION, TOKEN, BEARER) == ["c", "b", "a"]


def test_headers_and_parameters_are_taken_out() -> None:
    """A header goes as a whole, a parameter by its name, each once."""
    attributes = call("/?token=a&token=b", authorization="Bearer a")
    mutations = taken_out(find((BEARER, TOKEN), attributes), attributes)
    assert mutations.request_headers == (HeaderMutation("authorization", action=HeaderAction.REMOVE),)
    assert mutations.remove_parameters == ("token",)
    assert taken_out([], attributes) is NO_MUTATIONS


@pytest.mark.parametrize(
    ("cookies", "rest"),
    [
        ([b"session=a"], None),
        ([b"x=1; session=a; y=2"], "x=1; y=2"),
        ([b"x=1", b"session=a; y=2"], "x=1; y=2"),
        ([b"x=1,session=a,y=2"], "x=1,y=2"),
        ([b"session=a; x=b,c; sessions=d"], "x=b,c; sessions=d"),
        ([b"session=a; novalue"], "novalue"),
    ],
)
def test_one_cookie_is_taken_out_and_the_others_stay(cookies: list[bytes], rest: str | None) -> None:
    """The upstream gets the other cookies as they were sent."""
    attributes = call(cookies=cookies)
    (change,) = taken_out(find((SESSION,), attributes), attributes).request_headers
    assert change == (
        HeaderMutation("cookie", rest) if rest else HeaderMutation("cookie", action=HeaderAction.REMOVE)
    )


NAMES = st.sampled_from(["session", "x", "Session", "sessions", "a.b", ""])
VALUES = st.text(st.characters(codec="ascii", exclude_characters=";,\x00\r\n \t"), max_size=8)


def test_cookies_that_cannot_be_written_again_are_dropped() -> None:
    """Envoy takes UTF-8 only, so what is not would end the call."""
    attributes = call(cookies=[b"a=\xff; session=1; b=\xc3\xa9"])
    (change,) = taken_out(find((SESSION,), attributes), attributes).request_headers
    assert change.value == "b=\u00e9"


@pytest.mark.parametrize(
    ("place", "other", "value", "text"),
    [
        (BEARER, HeaderPlace("authorization"), "bearer a", "bearer a"),
        (BEARER, BEARER, "Bearer a", "a"),
        (HeaderPlace("x-a", "T "), HeaderPlace("x-a"), "T a", "T a"),
        (TOKEN, TOKEN, "a", "a"),
        (SESSION, SESSION, "a", "a"),
    ],
)
def test_who_looks_at_one_place(place: Place, other: Place, value: str, text: str) -> None:
    """Two look at one place if the one finds something in what the other has found."""
    assert looks_at(place, Found(text, other, value))
    assert not looks_at(place, Found(text, HeaderPlace("x-other"), value))
    assert not looks_at(HeaderPlace("authorization", "Basic "), Found(text, other, value))


@pytest.mark.parametrize(
    ("text", "is_jws"),
    [
        ("a.b.c", True),
        ("a.b.", False),
        ("..", False),
        ("a.b", False),
        ("a.b.c.d", False),
        ("a.b.c=", False),
        ("a.b.c\n", False),
    ],
)
def test_a_jws_has_three_parts_in_base64url(text: str, is_jws: bool) -> None:
    """RFC 7515, section 3.1."""
    assert is_compact_jws(text) is is_jws


_PIECES = st.one_of(
    st.tuples(st.sampled_from(["a", "key", "Key", "k2"]), st.text('=a\u00ff" ', max_size=5)).map("=".join),
    st.text('=a\u00ff" ', max_size=5),
)


@given(st.lists(_PIECES, max_size=6), st.sampled_from(["; ", ";", " ; ", ","]))
def test_other_cookies_stay_as_they_were_written(pieces: list[str], between: str) -> None:
    """Whatever they hold: the pieces that are left are those that do not have the name, byte by byte."""
    left = without_cookies(between.join(pieces), frozenset({"key"}))
    others = between.join(one for one in pieces if not one.strip(" ").startswith("key="))
    assert left == others.strip(" \t")


@given(st.lists(st.tuples(NAMES, VALUES), max_size=6))
def test_no_other_cookie_changes(pairs: list[tuple[str, str]]) -> None:
    """Whatever the cookies are, taking out one name leaves exactly the others."""
    header = "; ".join(f"{name}={value}" for name, value in pairs)
    attributes = call(cookie=header)
    (change,) = taken_out([Found("", SESSION, "")], attributes).request_headers
    kept = "; ".join(f"{name}={value}" for name, value in pairs if name != "session")
    assert change.value == kept
    assert (change.action is HeaderAction.REMOVE) is not bool(kept)
