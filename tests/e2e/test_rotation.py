"""Two real Envoys under load go through rotations of the root: not one call fails.

`near` calls `far` over mutual TLS, both with identities of a real `garrison serve`; `ca authority` is what an
operator types. One half of the calls makes a new connection each, the other keeps one open. SVIDs live for 20 s, so
that old ones run out while the test watches.
"""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.asking import page
from support.ca_files import done, run
from support.envoys import Envoy, cluster, fragment, listener, running_envoy, typed
from support.serving import Serving, serving, write_settings

from ca.authorities import Authorities
from ca.authority import Hierarchy
from ca.store.sqlite import SqliteLedger
from garrison.identity import TrustDomain

DEADLINE_SECONDS = 90.0
CALLER = "spiffe://cluster.local/ns/default/sa/near"
SVID_SECONDS = 20
SETTINGS = f"""
ca: {{dir: PKI, crl_in_sds: true, rotation: {{overlap: 2s}}}}
workloads:
- spiffe_id: {CALLER}
  selectors: ["unix:uid:{os.getuid()}"]
  svid_ttl: {SVID_SECONDS}s
"""


class Load:
    """Calls without a pause, from a thread; what came of each is counted."""

    def __init__(self, port: int, path: str) -> None:
        self.outcomes: Counter[str] = Counter()
        self._port, self._path = port, path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)
        while not self._stop.is_set():
            try:
                connection.request("GET", self._path)
                response = connection.getresponse()
                body = response.read().decode()
                self.outcomes[
                    str(response.status) if response.status == 200 else f"{response.status} {body}"
                ] += 1
            except (OSError, http.client.HTTPException) as error:
                self.outcomes[repr(error)] += 1
                connection.close()
            # Enough to be in the middle of everything; the other tests want a part of the machine too.
            self._stop.wait(0.01)
        connection.close()

    def stop(self) -> None:
        """End, after the call in flight."""
        self._stop.set()
        self._thread.join()


def eventually(look: Callable[[], bool], what: str) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not look():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.1)


def manager(routes: list[dict[str, Any]]) -> dict[str, Any]:
    """Return an HTTP filter with `routes`."""
    hosts = [{"name": "all", "domains": ["*"], "routes": routes}]
    router = typed("filters.http.router.v3.Router", "envoy.filters.http.router")
    kind = "filters.network.http_connection_manager.v3.HttpConnectionManager"
    return typed(
        kind, "envoy.filters.network.http_connection_manager",
        stat_prefix="in", http_filters=[router], route_config={"virtual_hosts": hosts},
    )  # fmt: skip


def mutual_tls() -> dict[str, Any]:
    """Return the TLS context that Garrison ships, with peers of our own trust domain."""
    allowed = [{"san_type": "URI", "matcher": {"prefix": "spiffe://cluster.local/"}}]
    filled: dict[str, Any] = fragment("mesh_tls", allowed_peers=allowed, sds=fragment("sds"))
    return filled


def control(folder: Path) -> dict[str, Any]:
    """Return the cluster that gives out secrets."""
    endpoints = [{"endpoint": {"address": {"pipe": {"path": f"{folder}/c.sock"}}}}]
    filled: dict[str, Any] = fragment(
        "garrison_cluster", name="garrison_control", endpoints=endpoints, http2=fragment("http2")
    )
    return filled


def upstream(name: str, port: int, *, requests: int | None) -> dict[str, Any]:
    """Return `far` as a cluster, with a new connection after so many requests."""
    found = cluster(name, port, http2=True)
    context = "transport_sockets.tls.v3.UpstreamTlsContext"
    found["transport_socket"] = typed(context, "envoy.transport_sockets.tls", common_tls_context=mutual_tls())
    if requests is not None:
        (options,) = found["typed_extension_protocol_options"].values()
        options["common_http_protocol_options"] = {"max_requests_per_connection": requests}
    return found


class Mesh:
    """Everything that runs, and what an operator and the Envoys say."""

    def __init__(self, pki: Path, server: Serving, admin: str, envoys: list[Envoy]) -> None:
        self.pki, self.server, self.admin, self.envoys = pki, server, admin, envoys
        self.ledger = SqliteLedger.of(pki)

    def authority(self, *arguments: str) -> Any:
        """Run `ca authority`, which must end well."""
        name, *others = arguments
        return json.loads(done("authority", name, "--dir", self.pki, *others, "--json").stdout)

    def states(self) -> list[str]:
        """Return the states of all authorities, oldest first."""
        return [one["state"] for one in self.authority("list")]

    def trusts(self, roots: int) -> bool:
        """Tell whether every Envoy has this many roots."""
        return all(
            {len(certificate["ca_cert"]) for certificate in _used(envoy, "ca_cert")} == {roots}
            for envoy in self.envoys
        )

    def is_identified_by(self, key_id: str) -> bool:
        """Tell whether every Envoy has a certificate of this authority, and no other."""
        serials = {
            int(one["serial_number"], 16)
            for envoy in self.envoys
            for certificate in _used(envoy, "cert_chain")
            for one in certificate["cert_chain"][:1]
        }
        issuers = {found.issuer for serial in serials for found in self.ledger.find(serial=serial)}
        return issuers == {key_id}


def _used(envoy: Envoy, part: str) -> list[dict[str, Any]]:
    certificates = json.loads(envoy.admin("/certs"))["certificates"]
    return [one for one in certificates if one.get(part)]


@contextmanager
def mesh(folder: Path) -> Iterator[Mesh]:
    """Run a server and two Envoys on a CA that has been recorded for two days."""
    pki = folder / "pki"
    before = datetime.now(UTC) - timedelta(days=2)
    Hierarchy.create(TrustDomain("cluster.local"), now=before).save(pki)
    ledger = SqliteLedger.of(pki)
    Authorities(pki, ledger).reconcile(now=before, by="test")
    ledger.close()
    with ExitStack() as stack:
        file = write_settings(folder, SETTINGS.replace("PKI", str(pki)))
        server = stack.enter_context(serving("--config", str(file)))
        admin = server.wait_for("ready")["admin"]
        answer = [{"match": {"prefix": "/"}, "direct_response": {"status": 200}}]
        inner = listener("far", [manager(answer)], tls=mutual_tls())
        for name in ("near", "far"):
            (folder / name).mkdir()
        far = stack.enter_context(running_envoy(folder / "far", [inner], [control(folder)]))
        clusters = [
            control(folder),
            upstream("new", far.ports["far"], requests=1),
            upstream("kept", far.ports["far"], requests=None),
        ]
        routes = [{"match": {"prefix": f"/{name}"}, "route": {"cluster": name}} for name in ("new", "kept")]
        outer = listener("near", [manager(routes)])
        near = stack.enter_context(running_envoy(folder / "near", [outer], clusters))
        running = Mesh(pki, server, admin, [far, near])
        stack.callback(running.ledger.close)
        yield running


def test_no_call_fails_while_roots_rotate(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Prepare, activate, the old root retires by itself; then once more, with taint and revoke."""
    with mesh(tmp_path_factory.mktemp("r")) as running:
        first = running.authority("list")[0]["authority"]
        port = running.envoys[1].ports["near"]
        eventually(lambda: running.is_identified_by(first), "the first identities")
        loads = [Load(port, "/new"), Load(port, "/kept")]
        try:
            _rotate_and_retire(running, first)
            second = next(one["authority"] for one in running.authority("list") if one["state"] == "active")
            _rotate_and_revoke(running, second)
        finally:
            for load in loads:
                load.stop()
        for load in loads:
            assert set(load.outcomes) == {"200"}, load.outcomes
            assert load.outcomes["200"] > 1000
        stats = running.envoys[1].admin("/stats?filter=cluster.new.upstream_cx_total")
        # Each call of that half made a connection of its own, so handshakes were going on all the time.
        assert int(stats.split()[-1]) > 1000
        assert running.ledger.verify_audit().intact
        assert running.states() == ["revoked", "revoked", "active"]
        text = page(running.admin, "/metrics")[1]
        assert 'garrison_ca_authorities{state="revoked"} 2.0' in text
        assert 'garrison_ca_rotations_total{step="retire"} 1.0' in text
        assert 'event="nacks"} 0.0' in text
        assert "signs until" in page(running.admin, "/healthz")[1]


def _activate(running: Mesh, key_id: str) -> None:
    """Activate when the rules allow it; before, they refuse."""
    arguments: list[str | Path] = ["authority", "activate", "--dir", running.pki, key_id, "--overlap", "2s"]
    eventually(lambda: run(*arguments).exit_code == 0, "the end of the overlap")


def _rotate_and_retire(running: Mesh, first: str) -> None:
    second = running.authority("prepare", "--new-root")["authority"]
    eventually(lambda: running.trusts(2), "two roots")
    assert running.is_identified_by(first)  # nothing is signed by the new one yet
    _activate(running, second)
    assert running.states() == ["old", "active"]
    eventually(lambda: running.is_identified_by(second), "identities of the second authority")
    eventually(lambda: running.states() == ["revoked", "active"], "the end of the first authority")
    eventually(lambda: running.trusts(1), "one root")


def _rotate_and_revoke(running: Mesh, second: str) -> None:
    third = running.authority("prepare", "--new-root")["authority"]
    eventually(lambda: running.trusts(2), "two roots")
    _activate(running, third)
    running.authority("taint", second)
    # Not only as the old ones run out.
    running.server.wait_for("authority tainted, everything is issued again")
    eventually(lambda: running.is_identified_by(third), "identities of the third authority")
    assert running.trusts(2)
    arguments: list[str | Path] = ["authority", "revoke", "--dir", running.pki, second, "--overlap", "2s"]
    eventually(lambda: run(*arguments).exit_code == 0, "the time to replace")
    eventually(lambda: running.trusts(1), "one root")
