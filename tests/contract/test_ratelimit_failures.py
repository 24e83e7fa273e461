"""`garrison serve` whose counters are in a server that fails: what each limit wants is answered, and it heals."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import redis
from envoy.service.ratelimit.v3 import rls_pb2
from support.proxy import Proxy
from support.serving import PATIENCE_SECONDS, Serving, serving, write_settings
from support.valkey import KINDS, Valkey
from support.valkey_nodes import Cluster, Node, wait_until

LIMIT = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
OK, OVER_LIMIT = rls_pb2.RateLimitResponse.OK, rls_pb2.RateLimitResponse.OVER_LIMIT
LIMITS = """\
domain: d
descriptors:
- {key: allow, rate_limit: {unit: year, requests_per_unit: 5, on_store_failure: allow}}
- {key: deny, rate_limit: {unit: year, requests_per_unit: 5}}
- {key: local, rate_limit: {unit: year, requests_per_unit: 6, on_store_failure: local}}
"""
# Far above what a busy machine needs for an answer, far below what a test waits for.
DEADLINE = "500ms"


class Asked:
    """A running server, asked from outside."""

    def __init__(self, server: Serving) -> None:
        self.server = server
        self.ready = server.wait_for("ready")
        self._channel = grpc.insecure_channel(self.ready["request"][0].replace("unix://", "unix:"))
        self._method: Any = self._channel.unary_unary(LIMIT)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def answer(self, key: str, value: str = "v", domain: str = "d") -> Any:
        """Return the answer to a request with one descriptor."""
        request = rls_pb2.RateLimitRequest(domain=domain)
        request.descriptors.add().entries.add(key=key, value=value)
        raw = self._method(request.SerializeToString(), timeout=PATIENCE_SECONDS, wait_for_ready=True)
        return rls_pb2.RateLimitResponse.FromString(raw)

    def page(self, path: str) -> str:
        """Return an admin page."""
        with urllib.request.urlopen(
            self.ready["admin"].replace("tcp://", "http://") + path, timeout=20
        ) as page:
            text: str = page.read().decode()
        return text

    @property
    def state(self) -> str:
        """The state of the store as `/healthz` tells it."""
        return self.page("/healthz").partition("rate_limit_store: ")[2].strip()

    def heals(self) -> None:
        """Wait until the store is asked again."""
        wait_until(lambda: self.state == "closed", "the store is asked again")

    def breaks(self, reason: str) -> None:
        """Ask until the breaker is open for `reason`, and see that all is as it should be then."""

        def is_open() -> bool:
            self.answer("allow")
            return f"({reason})" in self.state

        wait_until(is_open, f"the breaker opens: {reason}, not {self.state}")
        allowed = self.answer("allow")
        assert allowed.overall_code == OK
        assert not allowed.statuses[0].HasField("current_limit")
        denied = self.answer("deny")
        assert denied.overall_code == OVER_LIMIT
        assert denied.dynamic_metadata["fault"] == "store_unavailable"
        metrics = self.page("/metrics")
        assert 'garrison_rate_limit_store_breakers{state="closed"} 0.0' in metrics
        assert f'garrison_rate_limit_store_failures_total{{reason="{reason}"}}' in metrics
        assert 'garrison_rate_limit_local_answers_total{answer="allow"}' in metrics


@contextmanager
def asked(folder: Path, settings: str) -> Iterator[Asked]:
    """Run a server with `LIMITS` and more settings of the group `rate_limit`."""
    file = write_settings(folder, f"rate_limit: {{deadline: {DEADLINE}, {settings}}}")
    (folder / "limits" / "d.yaml").write_text(LIMITS)
    with serving("--config", str(file)) as server:
        found = Asked(server)
        try:
            yield found
        finally:
            found.close()
        assert server.stop() == 0


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder whose name is short enough for Unix sockets."""
    return tmp_path_factory.mktemp("f")


@pytest.fixture(params=KINDS)
def valkey(request: pytest.FixtureRequest, folder: Path) -> Iterator[Valkey]:
    """Run a server that counts."""
    with Valkey(folder, kind=request.param) as server:
        yield server


def left(response: Any) -> int:
    """Return what is left of the only limit."""
    (status,) = response.statuses
    return int(status.limit_remaining)


def test_killed_and_restarted_empty(folder: Path, valkey: Valkey) -> None:
    """Without the server each limit answers as it says; an empty one, which knows no script, is used at once."""
    with asked(folder, f"redis: ['{valkey.url}'], replicas: 2") as server:
        assert [left(server.answer("deny")) for _ in range(3)] == [4, 3, 2]
        assert server.state == "closed"
        valkey.kill()
        server.breaks("connection")
        codes = [server.answer("local").overall_code for _ in range(4)]
        assert codes == [OK, OK, OK, OVER_LIMIT]
        valkey.start()
        server.heals()
        assert left(server.answer("deny")) == 4
        assert left(server.answer("local", "other")) == 5
        assert "seconds_open" in server.server.wait_for("rate_limit_store_closed")


def test_absent_at_the_start(folder: Path) -> None:
    """Garrison starts without its server, answers as limits say, and counts as soon as it is there."""
    valkey = Valkey(folder)
    try:
        with asked(folder, f"redis: ['{valkey.url}']") as server:
            server.breaks("connection")
            valkey.start()
            server.heals()
            assert left(server.answer("deny")) == 4
    finally:
        valkey.kill()


def test_a_certificate_that_cannot_be_read(folder: Path) -> None:
    """What the settings name and nobody can read stops the start, with its name."""
    (folder / "wrong.pem").write_text("nothing")
    file = write_settings(folder, "rate_limit: {redis: ['rediss://127.0.0.1:1'], redis_ca: wrong.pem}")
    with serving("--config", str(file)) as server:
        assert server.wait() == 2
        assert "wrong.pem" in str(server.seen) or "wrong.pem" in str(list(server._arriving.queue))


def test_paused(folder: Path, valkey: Valkey) -> None:
    """A server that is there and says nothing costs the calls that find out a deadline, and no other call any."""
    with asked(folder, f"redis: ['{valkey.url}']") as server:
        assert server.answer("allow").statuses[0].limit_remaining == 4
        valkey.pause()
        try:
            server.breaks("timeout")
            begin = time.monotonic()
            for _ in range(20):
                assert server.answer("allow").overall_code == OK
            # Twenty deadlines, had each of them waited.
            assert time.monotonic() - begin < 5
        finally:
            valkey.resume()
        server.heals()
        assert server.answer("deny").statuses[0].HasField("current_limit")


def test_password_refused(folder: Path) -> None:
    """A server that does not take the password is one that does not answer; the password is told nobody."""
    valkey = Valkey(folder, "--requirepass", "swordfish")
    valkey.start()
    try:
        url = f"unix://:swordfish@{valkey.socket}"
        with asked(folder, f"redis: ['{url}']") as server:
            assert left(server.answer("deny")) == 4
            client: Any = redis.Redis(unix_socket_path=str(valkey.socket), password="swordfish", protocol=2)
            client.config_set("requirepass", "other")
            client.client_kill_filter(_type="normal", skipme=True)
            server.breaks("auth")
            client.config_set("requirepass", "swordfish")
            server.heals()
            assert left(server.answer("deny")) == 3
            client.close()
        assert "swordfish" not in str(server.server.seen)
    finally:
        valkey.kill()


def test_out_of_memory(folder: Path, valkey: Valkey) -> None:
    """A server that cannot write counts nothing, so what it says is not believed."""
    with asked(folder, f"redis: ['{valkey.url}']") as server:
        assert left(server.answer("deny")) == 4
        client = valkey.client()
        client.config_set("maxmemory", "1")
        server.breaks("out_of_memory")
        client.config_set("maxmemory", "0")
        server.heals()
        client.close()
        assert left(server.answer("deny")) == 3


def test_slow(folder: Path, valkey: Valkey) -> None:
    """A server whose answers come after the deadline is not waited for, also when they come all the same."""
    with Proxy(valkey.socket) as proxy, asked(folder, f"redis: ['redis://127.0.0.1:{proxy.port}']") as server:
        assert left(server.answer("deny")) == 4
        proxy.delay_seconds = 0.8
        server.breaks("slow")
        proxy.delay_seconds = 0.0
        server.heals()
        assert server.answer("deny").statuses[0].HasField("current_limit")


def test_one_node_of_a_cluster(folder: Path) -> None:
    """A node that is gone takes only the domains with it that it counted for."""
    cluster = Cluster(folder)
    try:
        cluster.start()
        domains = {cluster.node_of(f"garrison:{{d{number}}}:x").port: f"d{number}" for number in range(40)}
        (gone, lost), (_, kept), *_ = domains.items()
        with asked(folder, f"redis: {cluster.urls}, redis_mode: cluster") as server:
            text = "---\n".join(
                LIMITS.replace("domain: d\n", f"domain: {domain}\n") for domain in (lost, kept)
            )
            (folder / "limits" / "more.yaml").write_text(text)
            server.server.wait_for("snapshot_swapped", lambda event: event["kind"] == "limits")
            assert [left(server.answer("deny", domain=domain)) for domain in (lost, kept)] == [4, 4]
            node = next(node for node in cluster.nodes if node.port == gone)
            node.kill()

            def is_lost() -> bool:
                fault = server.answer("deny", domain=lost).dynamic_metadata
                return "fault" in fault and fault["fault"] == "store_unavailable"

            wait_until(is_lost, "the lost domain is answered without its node")
            assert left(server.answer("deny", domain=kept)) == 3
    finally:
        cluster.kill()


def test_replicas_of_a_cluster_take_over(folder: Path) -> None:
    """When a master is gone, or hangs, its replica is asked as soon as it is the master, with the counts.

    They are the nodes that the settings name.
    """
    cluster = Cluster(folder, replicas=True)
    try:
        cluster.start()
        domains = {cluster.node_of(f"garrison:{{d{number}}}:x").port: f"d{number}" for number in range(40)}
        with asked(folder, f"redis: {cluster.urls[:2]}, redis_mode: cluster") as server:
            text = "---\n".join(LIMITS.replace("domain: d\n", f"domain: {one}\n") for one in domains.values())
            (folder / "limits" / "more.yaml").write_text(text)
            server.server.wait_for("snapshot_swapped", lambda event: event["kind"] == "limits")
            for number, fail in enumerate((Node.kill, Node.pause)):
                gone, replica = cluster.masters[number], cluster.replicas[number]
                takes_over(server, domains[gone.port], gone, replica, fail)
    finally:
        cluster.kill()


def takes_over(server: Asked, domain: str, gone: Node, replica: Node, fail: Callable[[Node], None]) -> None:
    """See that a domain is answered without its node for a while, then by the node's replica."""
    assert [left(server.answer("deny", domain=domain)) for _ in range(2)] == [4, 3]
    wait_until(lambda: replica.ask("DBSIZE") == gone.ask("DBSIZE"), "the replica has the counts")
    fail(gone)

    def is_lost() -> bool:
        fault = server.answer("deny", domain=domain).dynamic_metadata
        return "fault" in fault and fault["fault"] == "store_unavailable"

    wait_until(is_lost, "the calls that find out are answered without the node")
    assert server.state.startswith(("open for", "half_open for"))
    server.heals()
    assert replica.ask("ROLE")[0] == "master"
    assert left(server.answer("deny", domain=domain)) == 2
    assert 'garrison_rate_limit_store_breakers{state="open"} 0.0' in server.page("/metrics")


def test_sentinels_name_another_master(folder: Path) -> None:
    """When the master dies and Sentinels make its replica the master, counting goes on there, with the counts."""
    master = Node(folder / "m")
    master.start()
    replica = Node(folder / "r", "--replicaof", "127.0.0.1", str(master.port))
    replica.start()
    text = f"""\
sentinel monitor counts 127.0.0.1 {master.port} 1
sentinel down-after-milliseconds counts 500
sentinel failover-timeout counts 5000
"""
    sentinel = Node(folder / "s", sentinel=text)
    try:
        sentinel.start()
        wait_until(lambda: replica.ask("INFO", "replication")["master_link_status"] == "up", "a replica")
        knows: Callable[[], bool] = lambda: len(sentinel.ask("SENTINEL", "replicas", "counts")) == 1  # noqa: E731
        wait_until(knows, "a Sentinel that knows the replica")
        settings = (
            f"redis: ['redis://127.0.0.1:{sentinel.port}'], redis_mode: sentinel, sentinel_master: counts"
        )
        with asked(folder, settings) as server:
            assert [left(server.answer("deny")) for _ in range(2)] == [4, 3]
            wait_until(lambda: replica.ask("DBSIZE") == master.ask("DBSIZE"), "the replica has the counts")
            master.kill()
            server.breaks("connection")
            server.heals()
            assert left(server.answer("deny")) == 2
    finally:
        for node in (sentinel, replica, master):
            node.kill()
