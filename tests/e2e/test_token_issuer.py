"""Tokens of a real issuer, verified by a real `garrison serve` for a real Envoy, while keys rotate."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.envoys import (
    Answer,
    Envoy,
    call,
    cluster,
    eventually,
    fragment,
    garrison_cluster,
    listener,
    running_envoy,
)
from support.issuer_process import IssuerProcess
from support.serving import Serving, write_settings
from support.upstreams import served

POLICIES = """
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: tokens, namespace: shop}}
spec:
  jwtRules:
  - issuer: {issuer}
    outputClaimToHeaders: [{{header: x-user, claim: sub}}, {{header: x-tenant, claim: org.id}}]
    fromHeaders: [{{name: authorization, prefix: "Bearer "}}]
    fromCookies: [session]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: signed-in, namespace: shop}}
spec:
  rules:
  - to: [{{operation: {{paths: [/public]}}}}]
  - from: [{{source: {{requestPrincipals: ["*"]}}}}]
"""


class _Upstream(BaseHTTPRequestHandler):
    """Answers with the headers that arrived."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer any call."""
        body = json.dumps(self.headers.items()).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_OPTIONS = do_GET  # noqa: N815 - the name that http.server looks for

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@dataclass
class World:
    """What runs; `garrison` may be started anew."""

    folder: Path
    issuer: IssuerProcess
    envoy: Envoy
    settings: Path
    running: list[Serving] = field(default_factory=list)

    def get(self, target: str, *headers: tuple[str, str], method: str = "GET") -> Answer:
        """Make a call through Envoy."""
        return call(self.envoy.ports["http"], target, [("host", "a"), *headers], method=method)

    def restart(self) -> None:
        """Stop Garrison and start it again."""
        self.stop()
        server = Serving(["--config", str(self.settings)])
        self.running.append(server)
        server.wait_for("ready")

    def stop(self) -> None:
        """Stop Garrison if it runs."""
        while self.running:
            server = self.running.pop()
            server.stop()
            server.close()


@pytest.fixture
def world() -> Iterator[World]:
    """Yield issuer, Garrison with a cache of keys, Envoy and upstream, all running."""
    # pytest's own folders are too deep for the paths of Unix sockets.
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="garrison-")))
        issuer = stack.enter_context(IssuerProcess(folder / "issuer"))
        more = f"keys: {{ca: {issuer.ca}, cache: {folder / 'keys'}}}"
        settings = write_settings(folder, more)
        (folder / "policies" / "tokens.yaml").write_text(POLICIES.format(issuer=issuer.issuer))
        route = fragment(
            "inbound_route",
            match={"prefix": "/"},
            rate_limits=[],
            destination={"destination.service": "a.shop.svc.cluster.local"},
        )
        route["route"]["cluster"] = "application"
        manager = fragment(
            "inbound_http",
            access_log=[],
            http_filters=[fragment("ext_authz"), fragment("router")],
            routes=[route],
        )
        filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
        port = stack.enter_context(served(ThreadingHTTPServer(("127.0.0.1", 0), _Upstream)))
        clusters = [cluster("application", port), garrison_cluster(folder / "r.sock")]
        with running_envoy(folder, [listener("http", filters)], clusters) as envoy:
            made = World(folder, issuer, envoy, settings)
            try:
                made.restart()
                yield made
            finally:
                made.stop()


def bearer(token: str) -> tuple[str, str]:
    """Return the header line that carries `token`."""
    return "authorization", f"Bearer {token}"


def seen(answer: Answer) -> dict[str, list[str]]:
    """Return the header lines that the upstream saw."""
    assert answer.status == 200, answer
    found: dict[str, list[str]] = {}
    for name, value in json.loads(answer.body):
        found.setdefault(name.lower(), []).append(value)
    return found


def wait_for(status: int, world: World, token: str) -> None:
    """Return once a call with `token` is answered so."""
    eventually(lambda: world.get("/private", bearer(token)).status == status or None, f"a {status}")


class Traffic(threading.Thread):
    """Calls with one token, one after the other, until it is stopped; counts the answers."""

    def __init__(self, world: World, token: str) -> None:
        super().__init__()
        self._world, self._header = world, bearer(token)
        self._stopped = threading.Event()
        self.statuses: Counter[int] = Counter()

    def run(self) -> None:
        """Call."""
        while not self._stopped.is_set():
            self.statuses[self._world.get("/private", self._header).status] += 1

    def stop(self) -> Counter[int]:
        """Return what was answered."""
        self._stopped.set()
        self.join()
        return self.statuses


def test_keys_rotate_while_traffic_runs(world: World) -> None:
    """No call with a good token fails while keys are added; removed keys verify nothing; outages are survived."""
    old = world.issuer.token()
    traffic = Traffic(world, old)
    traffic.start()
    try:
        # A new key is published beside the old one. The first token that names it brings the next fetch forward.
        world.issuer.do("add_key")
        new = world.issuer.token()
        wait_for(200, world, new)
    finally:
        statuses = traffic.stop()
    assert set(statuses) == {200}
    assert statuses[200] > 10
    # Only a third key is left. The issuer is asked when Garrison starts.
    world.issuer.do("rotate")
    world.restart()
    wait_for(401, world, old)
    for token in (old, new):
        answer = world.get("/private", bearer(token))
        assert answer.status == 401
        challenge = answer.header("www-authenticate") or ""
        assert challenge.startswith('Bearer realm="a.shop.svc.cluster.local", error="invalid_token"')
    last = world.issuer.token()
    assert world.get("/private", bearer(last)).status == 200
    # The issuer is away: those who run go on, and those who start have what was remembered.
    world.issuer.do("down")
    assert world.get("/private", bearer(world.issuer.token({"sub": "b"}))).status == 200
    world.restart()
    assert world.get("/private", bearer(last)).status == 200
    assert world.get("/private", bearer(old)).status == 401
    # Without a memory, no token is good, and calls that need none go through.
    world.stop()
    for file in (world.folder / "keys").iterdir():
        file.unlink()
    world.restart()
    assert world.get("/private", bearer(last)).status == 401
    assert world.get("/public").status == 200
    world.issuer.do("up")
    wait_for(200, world, last)


def test_what_the_upstream_is_told(world: World) -> None:
    """Claims come as headers, what callers write there does not, and tokens stay with Envoy."""
    token = world.issuer.token({"sub": "ann", "org": {"id": 7}})
    forged = (("x-user", "root"), ("x-user", "root2"), ("X-Tenant", "1"))
    headers = seen(world.get("/private", bearer(token), *forged))
    assert (headers["x-user"], headers["x-tenant"]) == (["ann"], ["7"])
    assert "authorization" not in headers
    headers = seen(world.get("/private", bearer(world.issuer.token({"sub": "bob"})), *forged))
    assert headers["x-user"] == ["bob"]
    assert "x-tenant" not in headers
    headers = seen(world.get("/public", *forged))
    assert not {"x-user", "x-tenant"} & set(headers)
    cookies: Sequence[tuple[str, str]] = (("cookie", f"theme=dark; session={token}"), ("cookie", "lang=de"))
    headers = seen(world.get("/private", *cookies))
    assert (headers["cookie"], headers["x-user"]) == (["theme=dark; lang=de"], ["ann"])


def test_401_403_and_nothing(world: World) -> None:
    """A bad token is 401 even where none is needed; no token is 403 where one is; a preflight is let through."""
    assert world.get("/public", bearer("bad")).status == 401
    missing = world.get("/private")
    assert (missing.status, missing.header("www-authenticate")) == (403, None)
    expired = world.issuer.token({"exp": int(time.time()) - 1})
    assert world.get("/public", bearer(expired)).status == 401
    preflight = (("origin", "https://a.example"), ("access-control-request-method", "PUT"))
    assert world.get("/public", bearer("bad"), *preflight, method="OPTIONS").status == 200
    assert world.get("/public", bearer("bad"), *preflight).status == 401
    two: Any = (bearer(world.issuer.token()), bearer(world.issuer.token({"sub": "b"})))
    assert world.get("/private", *two).status == 401
