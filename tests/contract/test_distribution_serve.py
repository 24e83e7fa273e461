"""`garrison policies` and replicas of `garrison serve` over a real Valkey, each as its users meet it."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import re
import signal
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from support.asking import check
from support.checks import check_request, principal, role
from support.envoys import eventually
from support.serving import Serving, serving
from support.store_certificates import certificate
from support.valkey import Valkey

from garrison.cli import main
from garrison.distribution.announcement import Trust
from garrison.distribution.bundle import BundleFile, pack
from garrison.distribution.keys import parse_private_key
from garrison.distribution.publisher import Publisher

CHECK = "/envoy.service.auth.v3.Authorization/Check"
PATIENCE_SECONDS = 30


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder whose name is short enough for Unix sockets."""
    return tmp_path_factory.mktemp("d")


@pytest.fixture
def valkey(folder: Path) -> Iterator[Valkey]:
    """Run a server for one test."""
    with Valkey(folder) as server:
        yield server


class Mesh:
    """A publisher's folder of policies and key, and replicas that follow."""

    def __init__(self, folder: Path, valkey: Valkey) -> None:
        self.folder = folder
        self.valkey = valkey
        self.policies = folder / "policies"
        self.policies.mkdir()
        self.key = folder / "key.pem"
        result = CliRunner().invoke(main, ["policies", "keygen", "--out", str(self.key)])
        assert result.exit_code == 0, result.output
        self.public_key = result.stdout.strip()

    def run(self, command: str, *arguments: str) -> Result:
        """Run one of `garrison policies`, signing where that is needed."""
        signing = ("--key", str(self.key)) if command in {"publish", "rollback"} else ()
        words = ["policies", command, *arguments, "--redis", self.valkey.url, *signing]
        return CliRunner().invoke(main, words)

    def publish(self, account: str) -> dict[str, Any]:
        """Publish policies that let one service account in."""
        (self.policies / "role.yaml").write_text(role("[{}]", f"[{{user: {account}}}]"))
        result = self.run("publish", str(self.policies), "--json")
        assert result.exit_code == 0, result.output
        answer: dict[str, Any] = json.loads(result.stdout)
        return answer

    @contextmanager
    def replica(self, name: str, more: str = "", distribution: str = "") -> Iterator[Serving]:
        """Run a replica that is called `name`."""
        file = self.folder / f"{name}.yaml"
        file.write_text(
            f"""
request: {{listen: ["unix://{self.folder}/{name}.sock"]}}
control: {{listen: ["unix://{self.folder}/{name}-control.sock"]}}
admin: {{listen: "tcp://127.0.0.1:0"}}
distribution:
  redis: {self.valkey.url}
  public_keys: ["{self.public_key}"]
  replica: {name}
  poll: 200ms
  {distribution}
{more}
"""
        )
        with serving("--config", str(file)) as running:
            yield running


@pytest.fixture
def mesh(folder: Path, valkey: Valkey) -> Mesh:
    """Return a publisher with a key."""
    return Mesh(folder, valkey)


@contextmanager
def asking(server: Serving) -> Iterator[Any]:
    """Give a function that returns the HTTP status of a decision for a service account."""
    address = server.wait_for("ready")["request"][0].replace("unix://", "unix:")
    with grpc.insecure_channel(address) as channel:
        method: Any = channel.unary_unary(CHECK)

        def status(account: str) -> int:
            message = check_request(source=principal(account)).SerializeToString()
            answer = CheckResponse.FromString(method(message, timeout=20, wait_for_ready=True))
            return 200 if answer.status.code == 0 else int(answer.denied_response.status.code)

        yield status


def page(ready: dict[str, Any], path: str) -> str:
    """Return the body of an admin page."""
    with urllib.request.urlopen(ready["admin"].replace("tcp://", "http://") + path, timeout=20) as answer:
        text: str = answer.read().decode()
    return text


def in_force(version: str) -> Any:
    """Return a test for the event that puts a version in force."""
    return lambda event: event["version"] == version


def test_workers_follow_what_is_published(mesh: Mesh) -> None:
    """Each worker is a replica of its own, is seen as one, and has what was published in force; also a new one."""
    first = mesh.publish("a")
    with mesh.replica("many", "workers: 2") as server:
        ready = server.wait_for("ready")
        addresses = ready["request"]
        assert len(addresses) == 2
        assert [(check(one, "a"), check(one, "b")) for one in addresses] == [(200, 403)] * 2
        second = mesh.publish("b")
        assert second["version"] != first["version"]

        def followed() -> bool | None:
            return [(check(one, "a"), check(one, "b")) for one in addresses] == [(403, 200)] * 2 or None

        eventually(followed, "both workers follow")
        wanted = dict.fromkeys(("many.0", "many.1"), second["version"])

        def told() -> bool | None:
            replicas = json.loads(mesh.run("status", "--json").stdout)["replicas"]
            return {one["replica"]: one["bundle"] for one in replicas} == wanted or None

        eventually(told, "both say so")
        found = re.search(r"worker 1: ready \(pid (\d+)", page(ready, "/healthz"))
        assert found is not None
        os.kill(int(found[1]), signal.SIGKILL)
        server.wait_for("worker_ready", lambda event: event["worker"] == 1)
        assert [(check(one, "a"), check(one, "b")) for one in addresses] == [(403, 200)] * 2
        assert "garrison_distribution_connected 1.0" in page(ready, "/metrics")
        assert server.stop() == 0


def test_publishing_under_traffic_loses_no_call(mesh: Mesh) -> None:
    """Every call is answered while versions change, by the old or the new one, and after it by the new one."""
    mesh.publish("a")
    with mesh.replica("one") as server, asking(server) as status:
        seen: list[tuple[int, int]] = []
        failed: list[BaseException] = []
        stop = threading.Event()

        def call() -> None:
            try:
                while not stop.is_set():
                    seen.append((status("a"), status("b")))
            except grpc.RpcError as error:
                failed.append(error)

        callers = [threading.Thread(target=call) for _ in range(2)]
        for caller in callers:
            caller.start()
        for account in "bab":
            version = mesh.publish(account)["version"]
            server.wait_for("bundle_in_force", in_force(version))
            assert (status("a"), status("b")) == ((200, 403) if account == "a" else (403, 200))
        stop.set()
        for caller in callers:
            caller.join(PATIENCE_SECONDS)
        assert not failed
        assert {status for pair in seen for status in pair} == {200, 403}


def test_two_replicas_and_a_rollback(mesh: Mesh) -> None:
    """Replicas converge on what is published; one command takes both back; `status` and `history` tell."""
    first = mesh.publish("a")["version"]
    with mesh.replica("one") as one, mesh.replica("two") as two, asking(one) as ask, asking(two) as ask_two:
        assert (ask("a"), ask_two("a")) == (200, 200)
        second = mesh.publish("b")
        for server in (one, two):
            server.wait_for("bundle_in_force", in_force(second["version"]))
        assert (ask("a"), ask_two("a")) == (403, 403)
        result = mesh.run("rollback")
        assert (result.exit_code, result.stdout) == (
            0,
            f"rolled back to version {first} on channel default\n",
        )
        for server in (one, two):
            server.wait_for("bundle_in_force", in_force(first))
        assert (ask("a"), ask_two("a")) == (200, 200)
        # A report follows its bundle at once, but not before it.
        while (result := mesh.run("status")).exit_code:
            assert result.exit_code == 1
        assert result.stdout.startswith(f"current {first}\none  current  version {first}  snapshot ")
        assert "two  current" in result.stdout
        entries = json.loads(mesh.run("history", "--json", "--public-key", mesh.public_key).stdout)["entries"]
        assert [(entry["action"], entry["version"], entry["verified"]) for entry in entries] == [
            ("rollback", first, True),
            ("publish", second["version"], True),
            ("publish", first, True),
        ]
        assert (one.stop(), two.stop()) == (0, 0)


def test_local_files_hold_until_something_is_published(mesh: Mesh) -> None:
    """Before the first bundle `policies:` counts; after it, changes of those files do nothing."""
    local = mesh.folder / "local"
    local.mkdir()
    (local / "role.yaml").write_text(role("[{}]", "[{user: local}]"))
    with mesh.replica("one", "policies: [local]") as server, asking(server) as status:
        assert (status("local"), status("a")) == (200, 403)
        version = mesh.publish("a")["version"]
        server.wait_for("bundle_in_force", in_force(version))
        assert (status("local"), status("a")) == (403, 200)
        (local / "role.yaml").write_text(role("[{}]", "[{user: other}]"))
        # The next bundle comes after any reload of the file.
        version = mesh.publish("b")["version"]
        server.wait_for("bundle_in_force", in_force(version))
        assert (status("other"), status("b")) == (403, 200)


def test_without_any_policies_everything_is_denied(mesh: Mesh) -> None:
    """No bundle yet, no files: not ready, every call denied; the first bundle makes it ready."""
    mesh.valkey.kill()
    with mesh.replica("one") as server:
        ready = server.wait_for("ready")
        with pytest.raises(urllib.error.HTTPError, match="503") as caught:
            page(ready, "/readyz")
        caught.value.close()
        with grpc.insecure_channel(ready["request"][0].replace("unix://", "unix:")) as channel:
            method: Any = channel.unary_unary(CHECK)
            answer = CheckResponse.FromString(
                method(check_request(source=principal("a")).SerializeToString(), timeout=20)
            )
            assert answer.denied_response.status.code == 503
        assert "garrison_distribution_connected 0.0" in page(ready, "/metrics")
        mesh.valkey.start()
        version = mesh.publish("a")["version"]
        server.wait_for("bundle_in_force", in_force(version))
        assert page(ready, "/readyz") == "ready\n"
        server.wait_until_seen("distribution_followed")
        metrics = page(ready, "/metrics")
        assert "garrison_distribution_connected 1.0" in metrics
        assert f'garrison_distribution_bundle{{version="{version}"}} 1.' in metrics
        assert 'garrison_distribution_bundles_total{result="ok"} 1.0' in metrics
        assert 'kind="policies",version="' in metrics


def test_redis_away_and_back(mesh: Mesh) -> None:
    """An outage changes nothing that is in force, nor does a restart during it; after it, news come again."""
    mesh.publish("a")
    with mesh.replica("one", distribution="cache: cache") as server, asking(server) as status:
        mesh.valkey.kill()
        server.wait_for("distribution_lost")
        assert (status("a"), status("b")) == (200, 403)
        with mesh.replica("two", distribution="cache: cache") as second, asking(second) as ask_second:
            assert (ask_second("a"), ask_second("b")) == (200, 403)
            mesh.valkey.start()
            server.wait_for("distribution_followed")
            version = mesh.publish("b")["version"]
            for one in (server, second):
                one.wait_for("bundle_in_force", in_force(version))
            assert (status("b"), ask_second("b")) == (200, 200)


def test_a_bundle_that_does_not_load_here_is_refused(mesh: Mesh) -> None:
    """Another version of Garrison may have published it: the old policies stay, and everybody is told where."""
    mesh.publish("a")
    with mesh.replica("one") as server, asking(server) as status:
        client = mesh.valkey.client()
        publisher = Publisher(client, Trust("default"))
        text = role("[{metods: [GET]}]").encode()
        now_ms = time.time_ns() // 1_000_000
        publisher.publish(
            pack([BundleFile("p/role.yaml", text)]), parse_private_key(mesh.key.read_bytes()), now_ms + 1
        )
        client.close()
        refused = server.wait_for("snapshot_refused")["diagnostics"][0]
        assert (refused["file"], refused["line"], refused["column"]) == ("bundle:p/role.yaml", 5, 17)
        assert server.wait_for("bundle_refused")["code"] == "policies"
        assert status("a") == 200
        while "error: policies: bundle:p/role.yaml:5:17: " not in (result := mesh.run("status")).stdout:
            assert result.exit_code == 1


def test_policies_are_checked_with_the_settings_of_a_replica(mesh: Mesh) -> None:
    """What only some settings know, such as providers, is known with them."""
    (mesh.policies / "custom.yaml").write_text(
        """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: c, namespace: default}
spec: {action: CUSTOM, provider: {name: elsewhere}, rules: [{}]}
"""
    )
    settings = mesh.folder / "settings.yaml"
    settings.write_text('ext_authz_providers: [{name: elsewhere, address: "tcp://127.0.0.1:1"}]')
    assert "unknown_provider" in mesh.run("publish", str(mesh.policies)).stderr
    result = mesh.run("publish", str(mesh.policies), "--config", str(settings))
    assert (result.exit_code, result.stderr) == (0, "")
    settings.write_text("distribution: {redis: 'http://h'}")
    assert mesh.run("publish", str(mesh.policies), "--config", str(settings)).exit_code == 2


# ------------------------------------------------------------------------------------------ commands


def test_what_does_not_load_is_not_published(mesh: Mesh) -> None:
    """Diagnostics name the files as they are here; Redis is not touched."""
    mesh.publish("a")
    file = mesh.policies / "wrong.yaml"
    file.write_text(role("[{metods: [a]}]"))
    result = mesh.run("publish", str(mesh.policies))
    assert result.exit_code == 1
    assert f"error: {file}:5:17: spec.rules[0].metods: unknown field `metods`" in result.stderr
    assert len(json.loads(mesh.run("history", "--json").stdout)["entries"]) == 1


def test_what_stands_beside_documents_is_not_published(mesh: Mesh) -> None:
    """A Casbin model in a file of its own is no part of a bundle: replicas could not load it."""
    (mesh.policies / "model.conf").write_text(
        "[request_definition]\nr = sub\n[policy_definition]\np = sub\n[policy_effect]\n"
        "e = some(where (p.eft == allow))\n[matchers]\nm = r.sub == p.sub\n"
    )
    (mesh.policies / "casbin.yaml").write_text(
        """
apiVersion: garrison.dev/v1alpha1
kind: CasbinPolicy
metadata: {name: c, namespace: default}
spec: {modelFile: model.conf, policy: "p, a", request: [source.principal]}
"""
    )
    result = mesh.run("publish", str(mesh.policies))
    assert result.exit_code == 1
    assert f"{mesh.policies}/casbin.yaml:5:" in result.stderr
    assert "`model.conf` cannot be read" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["publish", "{empty}"], 1, "no policy file below"),
        (["publish", "{folder}/nothing"], 1, "cannot be read"),
        (["publish", "{policies}", "{other}/policies"], 1, "two files would be called `policies/role.yaml`"),
        (["publish", "{policies}", "--max-bundle-bytes", "1024"], 1, "replicas take 1024"),
        (["publish", "{policies}", "--unsigned"], 2, "either --key or --unsigned"),
        (["rollback", "000000000000"], 1, "no version `000000000000`"),
        (["history", "--public-key", "ed25519:x"], 2, "is not `ed25519:`"),
        (["status", "--channel", "A"], 2, "is no channel"),
    ],
)
def test_what_cannot_be_done_is_said(mesh: Mesh, arguments: list[str], code: int, expected: str) -> None:
    """Nothing is announced; the exit code tells whose turn it is."""
    (mesh.policies / "role.yaml").write_text(role("[{}]", "[{user: a}]") + "# " + "x" * 1024)
    for name in ("empty", "other"):
        (mesh.folder / name).mkdir()
    (mesh.folder / "other" / "policies").mkdir()
    (mesh.folder / "other" / "policies" / "role.yaml").write_text(role("[{}]", name="s"))
    names = {
        "folder": mesh.folder,
        "empty": mesh.folder / "empty",
        "other": mesh.folder / "other",
        "policies": mesh.policies,
    }
    result = mesh.run(*(argument.format(**names) for argument in arguments))
    assert result.exit_code == code, result.output
    assert expected in result.stderr
    assert json.loads(mesh.run("history", "--json").stdout)["entries"] == []


def test_without_redis_commands_end_with_3(mesh: Mesh) -> None:
    """Each command says that Redis does not answer."""
    (mesh.policies / "role.yaml").write_text(role("[{}]"))
    mesh.valkey.kill()
    for arguments in (["publish", str(mesh.policies)], ["rollback"], ["history"], ["status"]):
        result = mesh.run(*arguments)
        assert result.exit_code == 3, result.output
        assert result.stderr.startswith("error: Redis: ")


def test_keys_are_private_and_never_overwritten(mesh: Mesh) -> None:
    """A private key has mode 0600; one that is there stays."""
    assert mesh.key.stat().st_mode & 0o777 == 0o600
    before = mesh.key.read_bytes()
    result = CliRunner().invoke(main, ["policies", "keygen", "--out", str(mesh.key)])
    assert result.exit_code == 2
    assert mesh.key.read_bytes() == before


def test_unsigned_needs_a_trusted_connection(mesh: Mesh) -> None:
    """A plain TCP connection is none; a Unix socket is."""
    (mesh.policies / "role.yaml").write_text(role("[{}]"))
    words = ["policies", "publish", str(mesh.policies), "--unsigned", "--redis"]
    result = CliRunner().invoke(main, [*words, "redis://127.0.0.1:1"])
    assert result.exit_code == 2
    assert "--unsigned needs a rediss:// or unix:// URL" in result.stderr
    assert CliRunner().invoke(main, [*words, mesh.valkey.url]).exit_code == 0
    # To whoever has keys, what is there now is not to be believed.
    result = mesh.run("history", "--public-key", mesh.public_key)
    assert result.exit_code == 1
    assert "is not signed" in result.stdout


# ----------------------------------------------------------------------------------------------- TLS


@contextmanager
def tls_in_front_of(valkey: Valkey, pem: Path) -> Iterator[int]:
    """Give the port of a TLS listener that passes everything on to the server's socket."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    listening: queue.Queue[tuple[asyncio.AbstractEventLoop, asyncio.Event, int]] = queue.Queue()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_unix_connection(str(valkey.socket))
        await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))

    async def listen() -> None:
        stop = asyncio.Event()
        async with await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context) as server:
            listening.put((asyncio.get_running_loop(), stop, server.sockets[0].getsockname()[1]))
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(listen()))
    thread.start()
    loop, stop, port = listening.get(timeout=PATIENCE_SECONDS)
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(PATIENCE_SECONDS)


def test_tls_is_verified(mesh: Mesh, valkey: Valkey) -> None:
    """rediss:// works with the right roots, and with no others: not even without signatures."""
    (mesh.policies / "role.yaml").write_text(role("[{}]"))
    right, wrong = certificate(mesh.folder, "right"), certificate(mesh.folder, "wrong")
    with tls_in_front_of(valkey, right) as port:
        words = [
            "policies",
            "publish",
            str(mesh.policies),
            "--unsigned",
            "--redis",
            f"rediss://127.0.0.1:{port}",
        ]
        for more in ([], ["--redis-ca", str(wrong)]):
            result = CliRunner().invoke(main, [*words, *more])
            assert result.exit_code == 3
            assert "certificate" in result.stderr
        assert CliRunner().invoke(main, [*words, "--redis-ca", str(right)]).exit_code == 0
    client = valkey.client()
    assert len(Publisher(client, Trust("default", (), True)).history()) == 1
    client.close()
