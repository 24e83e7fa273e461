"""RFC 7662: only `active: true` with a subject is an identity, within its times, scopes and audiences."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.certificates import certify
from support.http_server import answer as http_answer
from support.http_server import serving

from authz.authenticators.introspection import Endpoint, Introspection, judge
from authz.authn.credentials import Answer, Result
from garrison.answers import UnusableAnswerError, read_secret
from garrison.errors import DependencyError
from garrison.fetching import Fetcher

NOW = 1_800_000_000.0
ANY = Endpoint("https://as.example/introspect", "garrison", Path("none"))
STRICT = Endpoint("", "garrison", Path("none"), scopes=("read", "write"), audiences=frozenset({"shop"}))


def test_an_active_token_is_its_subjects() -> None:
    """All that the server says becomes claims, but for `active`."""
    said = {"active": True, "sub": "alice", "scope": "a b", "exp": NOW + 60, "nbf": NOW, "username": "al"}
    found = judge(said, ANY, NOW)
    assert (found.result, found.begins, found.expires) == (Result.ACCEPTED, NOW, NOW + 60)
    assert found.claims == {name: value for name, value in said.items() if name != "active"}
    assert judge({"active": True, "sub": "a"}, ANY, NOW).expires == math.inf


@pytest.mark.parametrize(
    "changes",
    [
        {"active": False},
        {"sub": None},
        {"sub": ""},
        {"sub": 7},
        {"sub": ["alice"]},
        {"exp": NOW},
        {"exp": NOW - 1},
        {"exp": "1900000000"},
        {"exp": True},
        {"exp": math.inf},
        {"exp": math.nan},
        {"exp": 10**400},
        {"nbf": NOW + 1},
        {"nbf": "0"},
        {"cnf": {"jkt": "x"}},
        {"cnf": None},
        {"token_type": "DPoP"},
        {"token_use": "refresh_token"},
        {"typ": "Refresh"},
    ],
    ids=str,
)
def test_what_is_not_good_here_is_refused(changes: dict[str, Any]) -> None:
    """Inactive, for nobody, not now, bound to a key, or a refresh token."""
    said = {"active": True, "sub": "alice", "client_id": "app", "exp": NOW + 60, **changes}
    assert judge(said, ANY, NOW).result is Result.REFUSED


@pytest.mark.parametrize("active", [None, "true", 1, "false", [], {}, [True]])
def test_active_is_exactly_true_or_false(active: Any) -> None:
    """A string that says `true` is no consent, and is no refusal of the token either: the server is broken."""
    with pytest.raises(UnusableAnswerError):
        judge({"active": active, "sub": "alice"}, ANY, NOW)
    with pytest.raises(UnusableAnswerError):
        judge({"sub": "alice"}, ANY, NOW)


@pytest.mark.parametrize(
    ("changes", "result"),
    [
        ({}, Result.ACCEPTED),
        ({"scope": "write admin read"}, Result.ACCEPTED),
        ({"scope": "read"}, Result.INSUFFICIENT),
        ({"scope": "readwrite"}, Result.INSUFFICIENT),
        ({"scope": ["read", "write"]}, Result.INSUFFICIENT),
        ({"scope": None}, Result.INSUFFICIENT),
        ({"aud": ["x", "shop"]}, Result.ACCEPTED),
        ({"aud": "shops"}, Result.REFUSED),
        ({"aud": None}, Result.REFUSED),
        ({"aud": "x", "scope": ""}, Result.REFUSED),
    ],
    ids=str,
)
def test_scopes_and_audience_are_asked_for(changes: dict[str, Any], result: Result) -> None:
    """All scopes, one audience; what is absent is not there."""
    said = {"active": True, "sub": "alice", "scope": "read write", "aud": "shop", **changes}
    assert judge(said, STRICT, NOW).result is result
    absent = {name: value for name, value in said.items() if value is not None}
    assert judge(absent, STRICT, NOW).result is result


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
_NAMES = st.sampled_from(["active", "sub", "exp", "nbf", "aud", "scope", "cnf", "token_type"])


@given(st.dictionaries(_NAMES, _JSON | st.sampled_from([True, "alice", NOW + 1, "read write", "shop"])))
def test_whatever_is_said_only_active_subjects_are_accepted(said: Mapping[str, Any]) -> None:
    """No answer raises anything but the one error, and each that is accepted has what it needs."""
    for endpoint in (ANY, STRICT):
        try:
            found = judge(said, endpoint, NOW)
        except UnusableAnswerError:
            continue
        if found.result is Result.ACCEPTED:
            assert said["active"] is True
            assert found.claims["sub"] == said["sub"] != ""
            assert found.begins <= NOW < found.expires


# --------------------------------------------------------------------------------------------------- over TLS


class Server:
    """What an authorization server was asked."""

    def __init__(self) -> None:
        self.forms: list[dict[str, str]] = []
        self.headers: list[Mapping[str, str]] = []
        self.say: Any = {"active": True, "sub": "alice"}
        self.status = 200
        self.content_type = "application/json; charset=utf-8"

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer a request."""
        length = int(handler.headers["content-length"])
        self.forms.append(dict(parse_qsl(handler.rfile.read(length).decode(), strict_parsing=True)))
        self.headers.append({name.lower(): value for name, value in handler.headers.items()})
        body = self.say if isinstance(self.say, bytes) else json.dumps(self.say).encode()
        http_answer(body, self.status, content_type=self.content_type)(handler)


def ask(folder: Path, server: Server, token: str = "t0ken", **endpoint: Any) -> Answer:
    """Ask a server over TLS about a token."""
    (folder / "secret").write_text("p+w:ö d\n")
    tls, ca = certify(folder, "127.0.0.1")
    with serving({"/introspect": server}, tls) as url:
        asked = Endpoint(f"{url}/introspect", "a client:id", folder / "secret", **endpoint)
        return Introspection(asked, Fetcher(5.0, ca=ca, max_bytes=65_536), lambda: NOW)(token)


def test_the_endpoint_is_asked_as_the_rfc_says(tmp_path: Path) -> None:
    """A form with the token and the hint; our own name and secret form-encoded, then Basic (RFC 6749, 2.3.1)."""
    server = Server()
    assert ask(tmp_path, server, "a+b/c=&x", token_type_hint="access_token").claims == {"sub": "alice"}
    assert server.forms == [{"token": "a+b/c=&x", "token_type_hint": "access_token"}]
    (headers,) = server.headers
    assert headers["content-type"] == "application/x-www-form-urlencoded"
    assert headers["accept"] == "application/json"
    sent = base64.b64decode(headers["authorization"].removeprefix("Basic ")).decode()
    assert sent == "a+client%3Aid:p%2Bw%3A%C3%B6+d"


@pytest.mark.parametrize(
    ("status", "counts"),
    [
        (400, False),
        (404, False),
        (413, False),
        (401, True),
        (403, True),
        (408, True),
        (429, True),
        (302, True),
        (500, True),
        (503, True),
        (204, True),
    ],
)
def test_an_answer_of_another_status_is_no_answer(tmp_path: Path, status: int, counts: bool) -> None:
    """What is about this one request does not count as a failure of the server."""
    server = Server()
    server.status = status
    server.say = b"" if status == 204 else {"active": True, "sub": "alice"}
    with pytest.raises(DependencyError) as caught:
        ask(tmp_path, server)
    assert isinstance(caught.value, UnusableAnswerError) is not counts
    assert "t0ken" not in str(caught.value)


@pytest.mark.parametrize(
    "say",
    [
        b"",
        b"active",
        b"[]",
        b'"active"',
        b'{"active": false, "active": true, "sub": "a"}',
        b"\xff",
        b"[" * 50_000,
        b'{"active": true, "sub": "a"}' + b" " * 65_536,
    ],
    ids=lambda say: repr(say[:12]),
)
def test_an_answer_that_is_no_json_object_is_no_answer(tmp_path: Path, say: bytes) -> None:
    """Also one with a name twice, nested beyond measure, or too large."""
    server = Server()
    server.say = say
    with pytest.raises(DependencyError):
        ask(tmp_path, server)


def test_an_answer_of_another_type_is_no_answer(tmp_path: Path) -> None:
    """Some proxy's page is not the server's word."""
    server = Server()
    server.content_type = "text/html"
    with pytest.raises(UnusableAnswerError):
        ask(tmp_path, server)


def test_a_server_that_is_not_certified_is_not_asked(tmp_path: Path) -> None:
    """Neither the token nor the secret goes there."""
    server = Server()
    (tmp_path / "secret").write_text("x")
    tls, _ = certify(tmp_path, "127.0.0.1")
    with serving({"/": server}, tls) as url:
        asked = Introspection(Endpoint(url, "c", tmp_path / "secret"), Fetcher(5.0), lambda: NOW)
        with pytest.raises(DependencyError):
            asked("t")
    assert server.forms == []


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff", b"a\nb", b"a\x00b", b"x" * 70_000])
def test_a_secret_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    """Anything else is named without being shown."""
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DependencyError, match="secret"):
        read_secret(file)
