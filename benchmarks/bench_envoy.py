"""Through a real Envoy: what a call costs Envoy's process and what it costs ours."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any

from benchmarks.http_load import HttpResult, http_load, request
from benchmarks.report import Requirement, Row, Sample, Section
from benchmarks.run import BenchmarkError, Run
from benchmarks.servers import Measured, Server, start_server
from benchmarks.workload import BROWSER_HEADERS, OPEN_SERVICE, write_policies
from garrison.demo.client import UnixConnection
from garrison.envoy_binary import find_envoy
from garrison.envoy_config import dump, fill, load_template

_CONNECTIONS = 32
_START_SECONDS = 30.0
_EXT_AUTHZ = "envoy.filters.http.ext_authz"
_PER_ROUTE = {"@type": "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute"}
_HEADERS = (
    ("host", "bench"),
    *BROWSER_HEADERS,
    ("x-request-id", "6f1d7a2e-54b1-4c1e-9d39-0a62f0000001"),
    ("end-user", "jason"),
    ("x-details-version", "v1"),
)
# One call in ten is refused for its method.
ASKED = [request("GET" if number % 10 else "POST", f"/asked/{number}", _HEADERS) for number in range(100)]
UNASKED = [request("GET", f"/unasked/{number}", _HEADERS) for number in range(100)]


def bootstrap(request_socket: Path, admin_socket: Path) -> dict[str, Any]:
    """Return an Envoy that answers by itself: below `/asked/` after asking Garrison, elsewhere at once.

    Filter and cluster are those that `garrison envoy-config` gives to every sidecar. Port 0: any free one.
    """
    template = load_template()
    routes = [
        _route("/asked/", {**_PER_ROUTE, "check_settings": {"context_extensions": _destination()}}),
        _route("/", {**_PER_ROUTE, "disabled": True}),
    ]
    connection_manager = fill(
        template["inbound_http"],
        {"access_log": [], "http_filters": [template["ext_authz"], template["router"]], "routes": routes},
    )
    http_filter = {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": connection_manager,
    }
    listener = {
        "name": "load",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [{"filters": [http_filter]}],
    }
    endpoint = {"endpoint": {"address": {"pipe": {"path": str(request_socket)}}}}
    cluster = fill(
        template["garrison_cluster"],
        {"name": "garrison_request", "http2": template["http2"], "endpoints": [endpoint]},
    )
    values = {
        "node_id": "bench",
        "node_cluster": "bench",
        "admin_address": {"pipe": {"path": str(admin_socket)}},
        "listeners": [listener],
        "clusters": [cluster],
    }
    filled: dict[str, Any] = fill(template["bootstrap"], values)
    return filled


def _route(prefix: str, filter_config: dict[str, Any]) -> dict[str, Any]:
    return {
        "match": {"prefix": prefix},
        "direct_response": {"status": 200, "body": {"inline_string": "ok\n"}},
        "typed_per_filter_config": {_EXT_AUTHZ: filter_config},
    }


def _destination() -> dict[str, str]:
    return {
        "destination.service": OPEN_SERVICE,
        "destination.namespace": "default",
        "destination.labels[app]": "bench",
    }


@dataclass(frozen=True, slots=True)
class _Round:
    result: HttpResult
    envoy_us: float
    ours_us: float


def envoy(run: Run) -> Section:
    """Measure calls that Envoy asks about and calls that it does not, in turn."""
    folder = run.folder / "envoy"
    write_policies(folder / "policies", run.tokens)
    settings = {
        "policies": [str(folder / "policies")],
        "request": {"listen": [f"unix://{folder}/request.sock"], "transport": "ngh2"},
    }
    server = start_server(run.children, folder, "garrison", settings)
    proxy, port = _start_envoy(run, folder)
    _load(server, proxy, port, ASKED, run.seconds / 2)
    asked: list[_Round] = []
    unasked: list[_Round] = []
    for number in range(run.rounds):
        run.say(f"through Envoy, round {number + 1} of {run.rounds}")
        asked.append(_load(server, proxy, port, ASKED, run.seconds))
        unasked.append(_load(server, proxy, port, UNASKED, run.seconds / 2))
    run.children.stop(proxy.child)
    run.children.stop(server.child)
    ours = Sample.of(one.ours_us for one in asked)
    theirs = Sample.of(one.envoy_us for one in asked)
    ratio = ours.over(theirs)
    what = "CPU per call, Garrison's process over Envoy's"
    return Section(
        "Check through a real Envoy",
        "Envoy with one worker thread, the sidecar's ext_authz filter over a Unix socket and direct "
        "responses (no upstream, no TLS, no access log: the least that Envoy can do); HTTP/1.1 with "
        f"{_CONNECTIONS} connections and {len(_HEADERS)} headers; one call in ten is "
        "denied and logged. Garrison counted every call.",
        (
            Row("Garrison: CPU", ours, "us a call"),
            Row("Envoy: CPU", theirs, "us a call"),
            Row("Envoy: CPU without asking", Sample.of(one.envoy_us for one in unasked), "us a call"),
            Row("calls", Sample.of(one.result.calls / run.seconds for one in asked), "per second"),
            Row("latency, p50", Sample.of(_percentile(one.result, 50) for one in asked), "us"),
            Row("latency, p99", Sample.of(_percentile(one.result, 99) for one in asked), "us"),
            Row(
                "latency without asking, p50", Sample.of(_percentile(one.result, 50) for one in unasked), "us"
            ),
            Row(
                "latency without asking, p99", Sample.of(_percentile(one.result, 99) for one in unasked), "us"
            ),
            Row(what, ratio, "times"),
        ),
        (Requirement(what, ratio, 1.0, at_least=False),),
    )


def _percentile(result: HttpResult, percent: int) -> float:
    return quantiles(result.latencies_us, n=100)[percent - 1]


def _load(server: Server, proxy: Measured, port: int, requests: Sequence[bytes], seconds: float) -> _Round:
    """Load Envoy for `seconds`, and make sure that it asked about what it should have asked about."""
    decisions, ours, theirs = server.decisions(), server.cpu_seconds(), proxy.cpu_seconds()
    result = asyncio.run(http_load("127.0.0.1", port, requests, connections=_CONNECTIONS, seconds=seconds))
    ours, theirs = server.cpu_seconds() - ours, proxy.cpu_seconds() - theirs
    decided = server.decisions() - decisions
    expected = result.calls if requests is ASKED else 0
    if result.lost or not result.calls or decided != expected:
        raise BenchmarkError(
            f"Envoy answered {result.calls} calls and lost {result.lost}; "
            f"Garrison decided {decided}, not {expected}"
        )
    if set(result.statuses) != ({200, 403} if requests is ASKED else {200}):
        raise BenchmarkError(f"Envoy answered {_shown(result.statuses)}")
    return _Round(result, theirs / result.calls * 1e6, ours / result.calls * 1e6)


def _shown(statuses: Counter[int]) -> str:
    return ", ".join(f"{status} {count} times" for status, count in sorted(statuses.items()))


def _start_envoy(run: Run, folder: Path) -> tuple[Measured, int]:
    admin = folder / "admin.sock"
    config = folder / "envoy.yaml"
    config.write_text(dump(bootstrap(folder / "request.sock", admin)), encoding="utf-8")
    options = ["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"]
    child = run.children.start("Envoy", [find_envoy(), "-c", config, *options], folder / "envoy.log")
    child.wait_until(lambda: admin_page(admin, "/ready") == "LIVE\n", "becoming ready", _START_SECONDS)
    listeners = json.loads(admin_page(admin, "/listeners?format=json"))["listener_statuses"]
    return Measured(child), int(listeners[0]["local_address"]["socket_address"]["port_value"])


def admin_page(path: Path, query: str) -> str:
    """Return a page of Envoy's admin interface, nothing if it does not answer."""
    connection = UnixConnection(path)
    try:
        connection.request("GET", query)
        return connection.getresponse().read().decode()
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()
