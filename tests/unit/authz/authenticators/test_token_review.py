"""TokenReview: whom the API server authenticated for one of our audiences, and nobody else."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.certificates import certify
from support.http_server import answer as http_answer
from support.http_server import serving
from support.tokens import forge

from authz.authenticators.token_review import TokenReview, expiry_of, judge
from authz.authn.credentials import Result
from garrison.answers import UnusableAnswerError
from garrison.errors import DependencyError
from garrison.fetching import Fetcher
from garrison.token_review import PATH, ApiServer

USER = {
    "username": "system:serviceaccount:shop:orders",
    "uid": "u-1",
    "groups": ["system:serviceaccounts", "system:authenticated"],
    "extra": {"authentication.kubernetes.io/pod-name": ["orders-1"]},
}


def review(**status: Any) -> dict[str, Any]:
    """Return a TokenReview as the API server answers it."""
    known = {"authenticated": True, "user": USER, "audiences": ["garrison"], **status}
    return {"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "status": known}


def test_whom_the_server_authenticated_is_known() -> None:
    """Name, groups and the rest become claims; only audiences of ours are named."""
    found = judge(review(audiences=["other", "garrison"]), ["garrison", "shop"], 7.0)
    assert (found.result, found.expires) == (Result.ACCEPTED, 7.0)
    assert found.claims == {
        "sub": "system:serviceaccount:shop:orders",
        "groups": ["system:serviceaccounts", "system:authenticated"],
        "uid": "u-1",
        "extra": {"authentication.kubernetes.io/pod-name": ["orders-1"]},
        "aud": ["garrison"],
    }


@pytest.mark.parametrize(
    "status",
    [
        {"authenticated": False},
        {"audiences": None},
        {"audiences": []},
        {"audiences": ["other"]},
        {"audiences": "garrison"},
    ],
    ids=str,
)
def test_who_is_not_authenticated_for_us_is_refused(status: dict[str, Any]) -> None:
    """A server that names no audience knows nothing of them: the token may be meant for anybody."""
    assert judge(review(**status), ["garrison"]).result is Result.REFUSED
    assert judge({"kind": "TokenReview", "status": {"error": "x"}}, ["garrison"]).result is Result.REFUSED


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"kind": "Status", "status": "Failure"},
        {"kind": "TokenReview"},
        {"kind": "Other", "status": {}},
        review(authenticated="true"),
        review(authenticated=1),
        review(user=None),
        review(user={}),
        review(user={"username": ""}),
        review(user={"username": 1}),
    ],
    ids=str,
)
def test_an_answer_that_says_something_else_is_no_answer(said: dict[str, Any]) -> None:
    """`authenticated` is exactly true or false, and somebody has a name."""
    with pytest.raises(UnusableAnswerError):
        judge(said, ["garrison"])


_VALUES = st.sampled_from(
    [
        True,
        False,
        None,
        "true",
        1,
        ["garrison"],
        "garrison",
        {},
        USER,
        {"username": "a", "groups": [1, "g"], "extra": {"k": "v"}},
    ]
)


@given(st.dictionaries(st.sampled_from(["authenticated", "user", "audiences"]), _VALUES))
def test_whatever_is_said_only_the_authenticated_are_accepted(status: Mapping[str, Any]) -> None:
    """No answer raises anything but the one error."""
    try:
        found = judge({"kind": "TokenReview", "status": dict(status)}, ["garrison"])
    except UnusableAnswerError:
        return
    if found.result is Result.ACCEPTED:
        assert status["authenticated"] is True
        assert "garrison" in status["audiences"]


@pytest.mark.parametrize(
    ("token", "expires"),
    [
        (forge({"alg": "RS256"}, {"exp": 1234}), 1234.0),
        (forge({"alg": "RS256"}, {"exp": "x"}), math.inf),
        (forge({"alg": "RS256"}, {"exp": True}), math.inf),
        (forge({"alg": "RS256"}, b"\xff"), math.inf),
        (forge({"alg": "RS256"}, b"[" * 20_000), math.inf),
        (forge({"alg": "RS256"}, []), math.inf),
        ("opaque", math.inf),
        ("a.b.c", math.inf),
    ],
    ids=["jwt", "text", "bool", "bytes", "deep", "list", "opaque", "no json"],
)
def test_a_token_is_not_remembered_past_its_end(token: str, expires: float) -> None:
    """As far as it can be read; service account tokens are JWTs."""
    assert expiry_of(token) == expires


class Server:
    """A Kubernetes API server, as far as it reviews tokens."""

    def __init__(self) -> None:
        self.reviews: list[Any] = []
        self.authorizations: list[str | None] = []
        self.status = 201

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer a request."""
        sent = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        self.reviews.append(sent)
        self.authorizations.append(handler.headers["authorization"])
        body = json.dumps({**sent, **review(authenticated=sent["spec"]["token"] == "good")}).encode()
        http_answer(body, self.status, content_type="application/json")(handler)


def test_the_server_is_asked_with_our_own_token_as_it_is_now(tmp_path: Path) -> None:
    """Over TLS, at the path of the API; the kubelet renews the file."""
    server, own = Server(), tmp_path / "token"
    tls, ca = certify(tmp_path, "127.0.0.1")
    with serving({PATH: server}, tls) as url:
        asked = TokenReview(ApiServer(f"{url}/", own, ("garrison",)), Fetcher(5.0, ca=ca))
        own.write_text("own-1\n")
        assert asked("good").result is Result.ACCEPTED
        own.write_text("own-2\n")
        assert asked("bad").result is Result.REFUSED
        own.unlink()
        with pytest.raises(DependencyError, match="cannot be read"):
            asked("good")
    assert server.authorizations == ["Bearer own-1", "Bearer own-2"]
    assert server.reviews[0]["spec"] == {"token": "good", "audiences": ["garrison"]}
    assert (server.reviews[0]["kind"], server.reviews[0]["apiVersion"]) == (
        "TokenReview",
        "authentication.k8s.io/v1",
    )


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_an_answer_of_another_status_is_no_answer(tmp_path: Path, status: int) -> None:
    """Whatever its body says."""
    server = Server()
    server.status = status
    (tmp_path / "token").write_text("own")
    tls, ca = certify(tmp_path, "127.0.0.1")
    with serving({PATH: server}, tls) as url:
        asked = TokenReview(ApiServer(url, tmp_path / "token", ("garrison",)), Fetcher(5.0, ca=ca))
        with pytest.raises(DependencyError):
            asked("good")
