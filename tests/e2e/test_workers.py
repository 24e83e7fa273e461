"""Two workers behind a real Envoy, under load: one is killed, both are replaced, and no call is lost."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from support.asking import page
from support.checks import role
from support.envoys import (
    Envoy,
    call,
    cluster,
    eventually,
    fragment,
    garrison_cluster,
    listener,
    running_envoy,
)
from support.serving import serving, write_settings
from support.upstreams import Upstream, served

CALLERS = 4


@pytest.fixture
def folder() -> Iterator[Path]:
    """Yield a folder with the settings of two workers; pytest's own are too deep for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="garrison-e2e-") as name:
        folder = Path(name)
        write_settings(folder, "workers: 2")
        (folder / "policies" / "role.yaml").write_text(role("[{}]", "[{user: '*'}]"))
        yield folder


@pytest.fixture
def envoy(folder: Path) -> Iterator[Envoy]:
    """Run an Envoy that asks both workers, with the cluster and the retries that Garrison ships."""
    with ExitStack() as stack:
        port = stack.enter_context(served(ThreadingHTTPServer(("127.0.0.1", 0), Upstream)))
        extensions = {
            "destination.service": "a.default.svc.cluster.local",
            "destination.namespace": "default",
        }
        route = fragment("inbound_route", match={"prefix": "/"}, rate_limits=[], destination=extensions)
        config = fragment(
            "inbound_http",
            access_log=[],
            http_filters=[fragment("ext_authz"), fragment("router")],
            routes=[route],
        )
        manager = {"name": "envoy.filters.network.http_connection_manager", "typed_config": config}
        garrison = garrison_cluster(folder / "r.0.sock")
        second = {"endpoint": {"address": {"pipe": {"path": str(folder / "r.1.sock")}}}}
        garrison["load_assignment"]["endpoints"][0]["lb_endpoints"].append(second)
        yield stack.enter_context(
            running_envoy(folder, [listener("http", [manager])], [garrison, cluster("application", port)])
        )


class Load:
    """Callers that call one after the other, each without a pause; `statuses` counts what they got."""

    def __init__(self, port: int) -> None:
        self.statuses: Counter[int] = Counter()
        self._port = port
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._call) for _ in range(CALLERS)]

    def _call(self) -> None:
        while not self._stop.is_set():
            status = call(self._port, "/", [("host", "a")]).status
            with self._lock:
                self.statuses[status] += 1

    def go_on(self, calls: int) -> None:
        """Return after so many more calls."""
        most = self.statuses.total() + calls
        eventually(lambda: self.statuses.total() >= most or None, "more calls")

    @contextmanager
    def running(self) -> Iterator[None]:
        """Call for the length of a block."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()


def pids(admin: str) -> list[int]:
    """Return the process ids of the workers."""
    lines = page(admin, "/healthz")[1].splitlines()
    return [int(line.partition("pid ")[2].partition(",")[0]) for line in lines if line.startswith("worker")]


def test_a_worker_that_is_killed_costs_no_call(folder: Path, envoy: Envoy) -> None:
    """Calls in flight are asked again of the other worker, and the killed one comes back to its share."""
    with serving("--config", str(folder / "garrison.yaml")) as server:
        admin = server.wait_for("ready")["admin"]
        load = Load(envoy.ports["http"])
        with load.running():
            load.go_on(100)
            os.kill(pids(admin)[0], signal.SIGKILL)
            server.wait_for("worker_ended")
            load.go_on(100)
            server.wait_for("worker_ready", lambda event: event["worker"] == 0)
            load.go_on(100)
        assert load.statuses.keys() == {200}, load.statuses
        endpoints = envoy.admin("/clusters")
        assert "r.0.sock::health_flags::healthy" in endpoints
        assert server.stop() == 0


def test_a_restart_costs_no_call(folder: Path, envoy: Envoy) -> None:
    """A second `garrison serve` listens in the places of all workers before the first one drains."""
    with serving("--config", str(folder / "garrison.yaml")) as first:
        first.wait_for("ready")
        load = Load(envoy.ports["http"])
        with load.running():
            load.go_on(100)
            with serving("--config", str(folder / "garrison.yaml")) as second:
                second.wait_for("ready")
                assert first.stop() == 0
                load.go_on(100)
                assert load.statuses.keys() == {200}, load.statuses
                load._stop.set()
                for thread in load._threads:
                    thread.join()
                assert second.stop() == 0
        assert load.statuses.keys() == {200}, load.statuses
