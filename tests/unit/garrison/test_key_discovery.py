"""Where keys are, and how long they may be used, as issuers say it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.errors import DependencyError
from garrison.keys.discovery import (
    check_source,
    discovery_url,
    file_of,
    jwks_uri_of,
    lifetime_of,
    name_of,
)
from garrison.keys.jwks import KeySource

ISSUER = "https://issuer.example/tenant"


def document(**changes: Any) -> bytes:
    """Return a discovery document; a member that is None is left out."""
    members = {"issuer": ISSUER, "jwks_uri": "https://keys.example/k", "token_endpoint": 1, **changes}
    return json.dumps({name: value for name, value in members.items() if value is not None}).encode()


@pytest.mark.parametrize(
    ("issuer", "url"),
    [
        ("https://a.example", "https://a.example/.well-known/openid-configuration"),
        ("https://a.example/", "https://a.example/.well-known/openid-configuration"),
        ("https://a.example/t/1", "https://a.example/t/1/.well-known/openid-configuration"),
        ("https://a.example/t/", "https://a.example/t/.well-known/openid-configuration"),
    ],
)
def test_the_well_known_url_keeps_the_path(issuer: str, url: str) -> None:
    """OpenID Connect Discovery 1.0, section 4: a slash at the end goes, a path stays."""
    assert discovery_url(issuer) == url


def test_keys_are_where_the_document_says() -> None:
    """The `jwks_uri` may be on another host."""
    assert jwks_uri_of(ISSUER, document()) == "https://keys.example/k"
    local = "http://127.0.0.1:1/a"
    assert jwks_uri_of(local, document(issuer=local, jwks_uri=local)) == local


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (document(issuer=ISSUER + "/"), "for another issuer"),
        (document(issuer="https://issuer.example"), "for another issuer"),
        (document(issuer=None), "for another issuer"),
        (document(issuer=[ISSUER]), "for another issuer"),
        (document(jwks_uri=None), "has no `jwks_uri`"),
        (document(jwks_uri=[]), "has no `jwks_uri`"),
        (document(jwks_uri="/keys"), "neither http:// nor https://"),
        (document(jwks_uri="file:///etc/passwd"), "neither http:// nor https://"),
        (document(jwks_uri="http://keys.example/k"), "without TLS"),
        (document(jwks_uri="https://a:b@keys.example/k"), "user or password"),
        (b"[]", "not a JSON object"),
        (b"<html>", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"issuer": "a", "issuer": "' + ISSUER.encode() + b'"}', "is not JSON"),
    ],
)
def test_documents_that_are_not_believed(body: bytes, message: str) -> None:
    """The issuer must be the configured one, letter for letter, and an https issuer's keys must be on https."""
    with pytest.raises(DependencyError, match=message):
        jwks_uri_of(ISSUER, body)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (KeySource("https://a.example/k"), ""),
        (KeySource("http://a.example/k?key=1"), ""),
        (KeySource("", "https://a.example"), ""),
        (KeySource("file:///etc/a%20b.json"), ""),
        (KeySource(""), "neither a URL nor an issuer"),
        (KeySource("", "accounts.example"), "neither http:// nor https://"),
        (KeySource("", "https://a.example/?x=1"), "has a query or a fragment"),
        (KeySource("", "https://a.example/#x"), "has a query or a fragment"),
        (KeySource("", "file:///etc/keys"), "neither http:// nor https://"),
        (KeySource("file://host/etc/a.json"), "not of the form"),
        (KeySource("file:a.json"), "not of the form"),
        (KeySource("file:///a.json?x"), "not of the form"),
        (KeySource("ftp://a.example/"), "neither http:// nor https://"),
        (KeySource("https://a:b@a.example/"), "user or password"),
    ],
)
def test_sources(source: KeySource, problem: str) -> None:
    """URLs, files and issuers that can be asked, and why others cannot."""
    found = check_source(source)
    assert problem in found
    assert bool(found) == bool(problem)


def test_files_and_names() -> None:
    """A file's path is unescaped; names leave out what may be secret."""
    assert file_of(KeySource("file:///etc/a%20b.json")) == "/etc/a b.json"
    assert file_of(KeySource("https://a.example/etc")) == ""
    assert name_of(KeySource("https://a.example/k?key=secret", "https://i.example")) == "https://a.example/k"
    assert name_of(KeySource("", "https://i.example/t")) == "https://i.example/t"


DATE = "Thu, 26 Nov 2026 10:00:00 GMT"
LATER = "Thu, 26 Nov 2026 11:00:00 GMT"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"cache-control": ""}, None),
        ({"cache-control": "public"}, None),
        ({"cache-control": "max-age=300"}, 300),
        ({"cache-control": "public, Max-Age=300 , must-revalidate"}, 300),
        ({"cache-control": 'max-age="300"'}, 300),
        ({"cache-control": "max-age=300, max-age=5"}, 300),
        ({"cache-control": "max-age=300", "age": "100"}, 200),
        ({"cache-control": "max-age=300", "age": "400"}, 0),
        ({"cache-control": "max-age=300", "age": "x"}, 300),
        ({"cache-control": "max-age=-1"}, None),
        ({"cache-control": "max-age=1.5"}, None),
        ({"cache-control": "max-age=" + "9" * 5000}, 9_999_999_999),
        ({"cache-control": "no-cache"}, 0),
        ({"cache-control": "no-store, max-age=300"}, 0),
        ({"cache-control": "s-maxage=300"}, None),
        ({"expires": LATER, "date": DATE}, 3600),
        ({"expires": LATER, "date": DATE, "cache-control": "max-age=300"}, 300),
        ({"expires": DATE, "date": LATER}, 0),
        ({"expires": "0", "date": DATE}, 0),
        ({"expires": LATER}, None),
        ({"expires": LATER, "date": "yesterday"}, None),
    ],
)
def test_lifetimes(headers: dict[str, str], seconds: float | None) -> None:
    """RFC 9111, section 4.2: `max-age` before `Expires`, less `Age`; what makes no sense says nothing."""
    assert lifetime_of(headers) == seconds


@given(
    st.dictionaries(
        st.sampled_from(["cache-control", "expires", "date", "age"]),
        st.one_of(
            st.binary().map(lambda one: one.decode("latin-1")),
            st.sampled_from([DATE, "max-age=5", "1", "Thu, 99 Nov 9999 10:00:00 -9999"]),
        ),
    )
)
def test_no_header_breaks_a_fetch(headers: dict[str, str]) -> None:
    """Whatever a server sends, there is a lifetime or none; never an error, never less than nothing."""
    found = lifetime_of(headers)
    assert found is None or found >= 0


@given(st.binary())
def test_no_document_breaks_a_fetch(body: bytes) -> None:
    """Whatever a server sends is refused with a reason."""
    with pytest.raises(DependencyError):
        jwks_uri_of(ISSUER, body)
