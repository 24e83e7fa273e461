"""Bundles from real servers on loopback: an endpoint is who it is configured to be, or nothing is asked of it."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from support.certificates import certify
from support.http_server import answer, serving

from ca.authority import Authority, Hierarchy
from ca.federation import Endpoint
from ca.federator import bundle_fetch
from ca.keys import new_private_key, private_key_pem
from ca.ledger import EndpointProfile
from garrison.errors import DependencyError
from garrison.fetching import MAX_BODY_BYTES
from garrison.identity import SpiffeId, TrustDomain
from garrison.transport.tls import build_server_context
from garrison.urls import parse_network

PARTNER = TrustDomain("partner.test")
ENDPOINT_ID = SpiffeId(PARTNER, ("bundles",))
BUNDLE = b'{"keys": []}'


def new_authority(name: TrustDomain = PARTNER) -> Authority:
    """Return a new CA."""
    return Hierarchy.create(name, now=datetime.now(UTC) - timedelta(days=1)).authority()


AUTHORITY = new_authority()


def svid_context(
    authority: Authority = AUTHORITY, spiffe_id: SpiffeId = ENDPOINT_ID, *, age: timedelta = timedelta(0)
) -> ssl.SSLContext:
    """Return what a server presents: an SVID of an hour that was issued `age` ago."""
    key = new_private_key()
    now = datetime.now(UTC) - age
    svid = authority.issue(spiffe_id, key.public_key(), now=now, ttl=timedelta(hours=1))
    return build_server_context(svid.chain_pem, private_key_pem(key), protocols=["http/1.1"])


@dataclass
class Server:
    """A server with a bundle, and how often it was asked."""

    url: str = ""
    asked: list[str] = field(default_factory=list)

    def fetch(self, profile: EndpointProfile, path: str = "/bundle", **options: object) -> bytes:
        """Fetch as a federator does that has the bundle of the partner."""
        endpoint_id = ENDPOINT_ID if profile is EndpointProfile.SPIFFE else None
        endpoint = Endpoint(PARTNER, self.url + path, profile, endpoint_id)
        return bundle_fetch(**options)(endpoint, AUTHORITY.roots)  # type: ignore[arg-type]


@contextmanager
def server(context: ssl.SSLContext | None, redirect: str = "") -> Iterator[Server]:
    """Serve a bundle at `/bundle`, something large at `/large`, a redirect at `/away`."""
    found = Server()

    def counted(handler: BaseHTTPRequestHandler) -> None:
        found.asked.append(handler.path)
        location = redirect or f"{found.url}/bundle"
        answers = {
            "/bundle": answer(BUNDLE),
            "/large": answer(b" " * (MAX_BODY_BYTES + 1)),
            "/away": answer(b"", 307, location=location),
            "/user": answer(b"", 302, location=location.replace("https://", "https://user@")),
            "/missing": answer(b"", 404),
        }
        answers[handler.path](handler)

    paths = ("/bundle", "/large", "/away", "/user", "/missing")
    with serving(dict.fromkeys(paths, counted), context) as url:
        found.url = url
        yield found


def test_an_svid_endpoint_is_known_by_its_id() -> None:
    """(SPIFFE Federation, 5.2.2) Not by its host name; redirects to the same identity are followed, each time anew."""
    with server(svid_context()) as found:
        assert found.fetch(EndpointProfile.SPIFFE) == BUNDLE
        for _ in range(2):
            assert found.fetch(EndpointProfile.SPIFFE, "/away") == BUNDLE
        assert found.asked == ["/bundle", "/away", "/bundle", "/away", "/bundle"]


def test_who_is_somebody_else_is_asked_nothing(tmp_path: Path) -> None:
    """Another workload, another CA under the same name, an SVID that ended, a web server: no request reaches them."""
    web, _ = certify(tmp_path, "127.0.0.1")
    cases = [
        (svid_context(spiffe_id=SpiffeId(PARTNER, ("bundle",))), "is `spiffe://partner.test/bundle`, not"),
        (svid_context(new_authority()), "certificate verify failed"),
        (svid_context(age=timedelta(minutes=90)), "certificate verify failed"),
        (
            svid_context(
                new_authority(TrustDomain("other.test")), SpiffeId.parse("spiffe://other.test/bundles")
            ),
            "certificate verify failed",
        ),
        (web, "certificate verify failed"),
    ]
    for context, message in cases:
        with server(context) as found:
            with pytest.raises(DependencyError, match=message):
                found.fetch(EndpointProfile.SPIFFE)
            assert found.asked == []


def test_a_web_endpoint_is_known_by_its_host_name(tmp_path: Path) -> None:
    """(SPIFFE Federation, 5.2.1) An SVID proves nothing there, not even one whose root is among the web's."""
    (tmp_path / "web").mkdir()
    (tmp_path / "else").mkdir()
    web, roots = certify(tmp_path / "web", "127.0.0.1")
    elsewhere, other_roots = certify(tmp_path / "else", "partner.test")
    partners = tmp_path / "partners.pem"
    partners.write_bytes(AUTHORITY.bundle_pem())
    with server(web) as found:
        assert found.fetch(EndpointProfile.WEB, web_roots=roots) == BUNDLE
        with pytest.raises(DependencyError, match="certificate verify failed"):
            found.fetch(EndpointProfile.WEB)
    for context, trusted in ((elsewhere, other_roots), (svid_context(), partners)):
        with server(context) as found:
            with pytest.raises(DependencyError, match="certificate verify failed"):
                found.fetch(EndpointProfile.WEB, web_roots=trusted)
            assert found.asked == []


def test_a_redirect_leads_only_where_the_same_rules_hold(tmp_path: Path) -> None:
    """Not to plain HTTP, not to a web server instead of the SVID, not with a user in the URL."""
    web, _ = certify(tmp_path, "127.0.0.1")
    with server(None) as plain, server(svid_context(), f"{plain.url}/bundle") as found:
        with pytest.raises(DependencyError, match="without TLS"):
            found.fetch(EndpointProfile.SPIFFE, "/away")
        assert plain.asked == []
    with server(web) as other, server(svid_context(), f"{other.url}/bundle") as found:
        with pytest.raises(DependencyError, match="certificate verify failed"):
            found.fetch(EndpointProfile.SPIFFE, "/away")
        with pytest.raises(DependencyError, match="user or password"):
            found.fetch(EndpointProfile.SPIFFE, "/user")
        assert other.asked == []


def test_answers_are_bounded_and_addresses_may_be_closed_off() -> None:
    """Too large, not found, or in a network that nothing is fetched from."""
    with server(svid_context()) as found:
        with pytest.raises(DependencyError, match="more than"):
            found.fetch(EndpointProfile.SPIFFE, "/large")
        with pytest.raises(DependencyError, match="answers 404"):
            found.fetch(EndpointProfile.SPIFFE, "/missing")
        asked = len(found.asked)
        with pytest.raises(DependencyError, match="not allowed"):
            found.fetch(EndpointProfile.SPIFFE, blocked=[parse_network("127.0.0.0/8")])
        assert len(found.asked) == asked
