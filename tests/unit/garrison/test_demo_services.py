"""BookInfo's applications answer, call each other and pass on what belongs to the caller."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.demo.services import Application, Request, Response

KEY = b"k" * 32


class Sidecar:
    """A fake outbound listener: answers everything alike and remembers what was asked."""

    def __init__(self, status: int = 200, body: object = None) -> None:
        self.response = Response(status, json.dumps(body or {"ratings": {"A Line": 4}}).encode())
        self.asked: list[tuple[str, str, Mapping[str, str]]] = []

    def __call__(self, service: str, path: str, headers: Mapping[str, str]) -> Response:
        """Answer one call."""
        self.asked.append((service, path, headers))
        return self.response


def ask(app: Application, request: Request, sidecar: Sidecar | None = None) -> Response:
    """Return what `app` answers."""
    return app.respond(request, sidecar or Sidecar())


def login(app: Application, user: str) -> str:
    """Return the session cookie that `app` gives to `user`."""
    answer = ask(app, Request("POST", "/login", body=f"user={user}".encode()))
    assert answer.status == 303
    return answer.headers["set-cookie"].partition(";")[0]


def test_the_page_asks_details_and_reviews_with_the_callers_headers() -> None:
    """Productpage takes along token and trace, names the details version it needs, and nothing else."""
    sidecar = Sidecar()
    headers = {"authorization": "Bearer x", "x-request-id": "1", "x-b3-traceid": "2", "accept": "text/html"}
    page = ask(Application("productpage", "v1", KEY), Request("GET", "/productpage", headers), sidecar)
    kept = {"authorization": "Bearer x", "x-request-id": "1", "x-b3-traceid": "2"}
    assert page.status == 200
    assert sidecar.asked == [
        ("details", "/details/0", {**kept, "x-details-version": "v1"}),
        ("reviews", "/reviews/0", kept),
    ]


def test_the_page_says_which_part_is_refused() -> None:
    """A denied call to details or reviews costs the page that part only."""
    page = ask(Application("productpage", "v1", KEY), Request("GET", "/productpage"), Sidecar(403))
    assert page.status == 200
    assert page.body.count(b"not available (403)") == 2


def test_the_user_of_a_session_goes_along() -> None:
    """After a login, calls carry `end-user`; a cookie that productpage did not sign counts for nothing."""
    app = Application("productpage", "v1", KEY)
    cookie = login(app, "jason")
    for value, user in (
        (cookie, "jason"),
        (cookie.replace("jason", "admin"), None),
        ("session=jason.", None),
    ):
        sidecar = Sidecar()
        ask(app, Request("GET", "/api/v1/products/0/reviews", {"cookie": value}), sidecar)
        assert sidecar.asked[0][2].get("end-user") == user


@given(st.text(), st.text())
def test_nobody_forges_a_session(user: str, signature: str) -> None:
    """Whatever a cookie holds, without the key it names no user."""
    sidecar = Sidecar()
    app = Application("productpage", "v1", KEY)
    ask(app, Request("GET", "/api/v1/products/0", {"cookie": f"session={user}.{signature}"}), sidecar)
    assert "end-user" not in sidecar.asked[0][2]


def test_logout_ends_the_session() -> None:
    """Logging out replaces the cookie by an empty one that has expired."""
    answer = ask(Application("productpage", "v1", KEY), Request("GET", "/logout"))
    assert answer.status == 303
    assert answer.headers["set-cookie"].startswith("session=; Max-Age=0")


@pytest.mark.parametrize("user", ["", "a b", "<script>", "x" * 33, "a%0d%0aset-cookie:+b"])
def test_odd_user_names_are_refused(user: str) -> None:
    """A name that could end up as markup or as a header is no user name."""
    answer = ask(
        Application("productpage", "v1", KEY), Request("POST", "/login", body=f"user={user}".encode())
    )
    assert answer.status == 400
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(("version", "asked"), [("v1", 0), ("v2", 1), ("v3", 1)])
def test_only_later_reviews_ask_for_ratings(version: str, asked: int) -> None:
    """Version 1 of reviews shows no stars and asks for none; 2 and 3 show them in their colours."""
    sidecar = Sidecar()
    answer = ask(
        Application("reviews", version), Request("GET", "/reviews/0", {"end-user": "jason"}), sidecar
    )
    colours = {
        review["rating"].get("color") for review in json.loads(answer.body)["reviews"] if "rating" in review
    }
    assert [(service, headers) for service, _, headers in sidecar.asked] == [
        ("ratings", {"end-user": "jason"})
    ] * asked
    assert colours == ({{"v2": "black", "v3": "red"}[version], None} if asked else set())


def test_reviews_survive_without_ratings() -> None:
    """When ratings refuses, the reviews are there and say why there are no stars."""
    answer = ask(Application("reviews", "v3"), Request("GET", "/reviews/0"), Sidecar(429))
    assert {review["rating"]["error"] for review in json.loads(answer.body)["reviews"]} == {
        "ratings answered 429"
    }


@pytest.mark.parametrize(
    ("app", "method", "path", "status"),
    [
        ("productpage", "GET", "/api/v1/products", 200),
        ("productpage", "HEAD", "/api/v1/products", 200),
        ("productpage", "GET", "/api/v1/products?x=1", 200),
        ("productpage", "POST", "/api/v1/products", 405),
        ("productpage", "GET", "/api/v1/products/x", 404),
        ("productpage", "GET", "/login", 200),
        ("details", "GET", "/details/7", 200),
        ("ratings", "GET", "/ratings/7", 200),
        ("ratings", "DELETE", "/ratings/7", 405),
        ("ratings", "GET", "/", 404),
    ],
)
def test_routes(app: str, method: str, path: str, status: int) -> None:
    """Known paths answer, others are 404, methods that a path does not have 405."""
    assert ask(Application(app, "v1", KEY), Request(method, path)).status == status
