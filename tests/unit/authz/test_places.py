"""Where credentials stand, and how they are taken out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.checks import check_request

from authz.attributes import Attributes
from authz.authn.places import CookiePlace, Found, HeaderPlace, ParameterPlace, Place, find, taken_out
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
        ("Bearer", []),
        ("Bearer a, Bearer b", ["a, Bearer b"]),
        ("", []),
    ],
)
def test_headers(value: str, found: list[str]) -> None:
    """What follows the prefix, whatever its case where schemes have none; spaces around it are not part of it."""
    assert texts(call(authorization=value), BEARER) == found
    exact = HeaderPlace("authorization", "Bearer ")
    assert texts(call(authorization=value), exact) == (found if value.startswith("Bearer ") else [])


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


@given(st.lists(st.tuples(NAMES, VALUES), max_size=6))
def test_no_other_cookie_changes(pairs: list[tuple[str, str]]) -> None:
    """Whatever the cookies are, taking out one name leaves exactly the others."""
    header = "; ".join(f"{name}={value}" for name, value in pairs)
    attributes = call(cookie=header)
    (change,) = taken_out([Found("", SESSION)], attributes).request_headers
    kept = "; ".join(f"{name}={value}" for name, value in pairs if name != "session")
    assert change.value == kept
    assert (change.action is HeaderAction.REMOVE) is not bool(kept)
