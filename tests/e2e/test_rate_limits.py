"""Limits of every kind, asked for by a real Envoy, counted in a real Valkey."""

from __future__ import annotations

import tempfile
import threading
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
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
from support.serving import PATIENCE_SECONDS, serving, write_settings
from support.upstreams import served
from support.valkey import Valkey

LIMITS = """\
domain: shop
descriptors:
- key: window
  rate_limit: {name: half-minute, window: 30h, requests_per_unit: 2}
- key: several
  rate_limits:
  - {name: burst, unit: week, requests_per_unit: 1}
  - {name: most, unit: year, requests_per_unit: 5}
- {key: places, rate_limit: {algorithm: concurrency, window: 10m, requests_per_unit: 2}}
- {key: cost, rate_limit: {unit: year, requests_per_unit: 10}}
- key: retried
  rate_limit: {unit: year, requests_per_unit: 1}
  descriptors: [{key: id, deduplicate: 10m}]
- {key: network, match: {cidr: 127.0.0.0/8}, rate_limit: {unit: year, requests_per_unit: 0}}
"""


def entry(key: str, header: str = "x-user") -> dict[str, Any]:
    """Return an action that sends a header's value under a key."""
    return {"request_headers": {"header_name": header, "descriptor_key": key}}


def limit(*actions: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return one element of a route's `rate_limits`."""
    return {"actions": list(actions), **more}


ROUTES: dict[str, list[dict[str, Any]]] = {
    "/window": [limit(entry("window"))],
    "/several": [limit(entry("several"))],
    "/places": [
        limit(entry("places")),
        limit(
            entry("places"),
            hits_addend={"number": 1, "is_negative_hits": True},
            apply_on_stream_done=True,
        ),
    ],
    "/cost": [limit(entry("cost"), hits_addend={"format": "%REQ(x-cost)%"})],
    "/retried": [limit(entry("retried"), entry("id", "x-request-id"))],
    "/network": [limit(entry("network", "x-address"))],
}


class Upstream(BaseHTTPRequestHandler):
    """Answers, `/places` only when it may."""

    protocol_version = "HTTP/1.1"
    may_answer: threading.Event
    waiting: list[str]

    def do_GET(self) -> None:
        """Answer any call."""
        if self.path.startswith("/places"):
            self.waiting.append(self.path)
            self.may_answer.wait(PATIENCE_SECONDS)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""


@dataclass(frozen=True)
class World:
    """What runs, and calls to it."""

    envoy: Envoy
    may_answer: threading.Event
    waiting: list[str]

    def get(self, path: str, **headers: str) -> Answer:
        """Make a call as a user of its own unless told otherwise."""
        lines = {"x-user": uuid.uuid4().hex, "x-request-id": str(uuid.uuid4())}
        lines |= {name.replace("_", "-"): value for name, value in headers.items()}
        return call(self.envoy.ports["http"], path, [("host", "a"), *lines.items()])

    def statuses(self, path: str, each: Sequence[dict[str, str]]) -> list[int]:
        """Return the statuses of calls one after the other."""
        return [self.get(path, **headers).status for headers in each]


def manager() -> dict[str, Any]:
    """Return a connection manager whose filter asks for limits."""
    routes = []
    for prefix, rate_limits in ROUTES.items():
        route = fragment("inbound_route", match={"prefix": prefix}, rate_limits=[], destination={})
        # Only here does Envoy know `hits_addend` and `apply_on_stream_done`.
        kind = "type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimitPerRoute"
        per_route = {"@type": kind, "rate_limits": rate_limits}
        route["typed_per_filter_config"] = {"envoy.filters.http.ratelimit": per_route}
        routes.append(route)
    filters = [fragment("ratelimit", rate_limit_domain="shop"), fragment("router")]
    config = fragment("inbound_http", access_log=[], http_filters=filters, routes=routes)
    return {"name": "envoy.filters.network.http_connection_manager", "typed_config": config}


@contextmanager
def upstream(may_answer: threading.Event, waiting: list[str]) -> Iterator[int]:
    """Run the application; yields its port."""
    handler = type("Handler", (Upstream,), {"may_answer": may_answer, "waiting": waiting})
    with served(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as port:
        try:
            yield port
        finally:
            may_answer.set()


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Yield everything, running; it ends with the tests."""
    # pytest's own folders are too deep for the paths of Unix sockets.
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="garrison-e2e-")))
        valkey = stack.enter_context(Valkey(folder))
        settings = f"rate_limit: {{redis: ['{valkey.url}'], deadline: 400ms}}"
        file = write_settings(folder, settings)
        (folder / "limits" / "shop.yaml").write_text(LIMITS)
        stack.enter_context(serving("--config", str(file))).wait_for("ready")
        may_answer, waiting = threading.Event(), list[str]()
        port = stack.enter_context(upstream(may_answer, waiting))
        envoy = stack.enter_context(
            running_envoy(
                folder,
                [listener("http", [manager()])],
                [garrison_cluster(folder / "r.sock"), cluster("application", port)],
            )
        )
        yield World(envoy, may_answer, waiting)


def test_a_window_of_any_length_reaches_the_caller(world: World) -> None:
    """Envoy turns unit and multiplier into the seconds of the window."""
    answers = [world.get("/window", x_user="w") for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert answers[0].header("x-ratelimit-limit") == '2, 2;w=108000;name="half-minute"'
    assert [answer.header("x-ratelimit-remaining") for answer in answers] == ["1", "0", "0"]


def test_the_limit_that_denies_is_named(world: World) -> None:
    """Of two limits on one descriptor the caller is told the one that is in the way."""
    answers = [world.get("/several", x_user="s") for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 429]
    assert answers[1].header("x-ratelimit-limit") == '1, 1;w=604800;name="burst"'


def test_places_are_given_back(world: World) -> None:
    """Two calls at a time; when one has ended, and Envoy has said so, the next one gets in."""
    with ThreadPoolExecutor(2) as pool:
        held: list[Future[Answer]] = [pool.submit(world.get, "/places", x_user="p") for _ in range(2)]
        eventually(lambda: len(world.waiting) == 2 or None, "two calls at the application")
        assert world.get("/places", x_user="p").status == 429
        world.may_answer.set()
        assert [one.result(PATIENCE_SECONDS).status for one in held] == [200, 200]

    def gets_in() -> int | None:
        status = world.get("/places", x_user="p").status
        return status if status == 200 else None

    for _ in range(4):
        assert eventually(gets_in, "a place") == 200


def test_hits_that_the_caller_names(world: World) -> None:
    """A call costs what Envoy reads from it; what does not fit is denied, and counted."""
    costs = [{"x_user": "c", "x_cost": cost} for cost in ("7", "3", "1")]
    assert world.statuses("/cost", costs) == [200, 200, 429]


def test_a_retry_is_one_call(world: World) -> None:
    """The same request identifier is let in again; another one is over the limit."""
    calls = [{"x_user": "r", "x_request_id": identifier} for identifier in ("a", "a", "b", "a")]
    assert world.statuses("/retried", calls) == [200, 200, 429, 200]


def test_addresses_are_matched_by_range(world: World) -> None:
    """A range that may not, and an address outside of it."""
    calls = [{"x_address": address} for address in ("127.1.2.3", "128.0.0.1", "::ffff:127.0.0.1")]
    assert world.statuses("/network", calls) == [429, 200, 429]
