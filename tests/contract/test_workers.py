"""`garrison serve` with two workers: real processes, which come and go while the rest goes on."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from envoy.service.ratelimit.v3 import rls_pb2
from support.asking import HEALTH, LIMIT, call, check, page
from support.checks import role
from support.envoys import eventually
from support.serving import Serving, serving, write_settings
from support.store_certificates import certificate

from garrison.cli import main

OK, OVER = rls_pb2.RateLimitResponse.OK, rls_pb2.RateLimitResponse.OVER_LIMIT


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of settings; its name is short enough for Unix sockets."""
    folder = tmp_path_factory.mktemp("w")
    write_settings(folder, "workers: 2")
    (folder / "policies" / "role.yaml").write_text(role("[{}]", "[{user: a}]"))
    (folder / "limits" / "d.yaml").write_text(
        "domain: d\ndescriptors: [{key: k, rate_limit: {unit: year, requests_per_unit: 3}}]\n"
    )
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[Serving]:
    """Run two workers."""
    with serving("--config", str(folder / "garrison.yaml")) as running:
        yield running


def ask(address: str, roots: bytes | None = None) -> int:
    """Return what a worker says of the only limit; `roots` as `call`."""
    request = rls_pb2.RateLimitRequest(domain="d")
    entry = request.descriptors.add().entries.add()
    entry.key, entry.value = "k", "v"
    answer = call(address, LIMIT, request.SerializeToString(), roots)
    return int(rls_pb2.RateLimitResponse.FromString(answer).overall_code)


def pids(admin: str) -> list[int]:
    """Return the process ids of the workers, as `/healthz` shows them; fail unless both are ready."""
    found = re.findall(r"worker \d: ready \(pid (\d+), restarts \d+\)", page(admin, "/healthz")[1])
    return [int(one) for one in found]


def both(admin: str) -> list[int]:
    """Return the process ids of both workers once they are ready."""
    return eventually(lambda: found if len(found := pids(admin)) == 2 else None, "two workers")


def figure(admin: str, sample: str) -> float:
    """Return the value of a sample on the metrics page."""
    return next(
        (
            float(line.rpartition(" ")[2])
            for line in page(admin, "/metrics")[1].splitlines()
            if line.startswith(f"{sample} ")
        ),
        0.0,
    )


ALLOWED = 'garrison_decisions_total{code="role_matched",verdict="allow"}'


def is_gone(pid: int) -> bool:
    """Return whether no such process runs; a zombie does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def valkey_of(pid: int) -> int | None:
    """Return the process id of the Valkey that process `pid` started."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            status = (entry / "status").read_text(errors="replace")
            if re.search(rf"^PPid:\t{pid}$", status, re.MULTILINE) and "valkey-server" in status:
                return int(entry.name)
    return None


def test_each_worker_answers_at_addresses_of_its_own(server: Serving, folder: Path) -> None:
    """Workers decide, count together, and are shown as one; SIGTERM leaves nothing behind."""
    ready = server.wait_for("ready")
    sockets = [f"unix://{folder}/r.{number}.sock" for number in (0, 1)]
    assert {one for one in ready["request"] if one.startswith("unix")} == set(sockets)
    assert len({one for one in ready["request"] if one.startswith("tcp")}) == 2
    for address in ready["request"]:
        assert (check(address, "a"), check(address, "b")) == (200, 403)
        assert call(address, HEALTH, b"")
    assert call(ready["control"][0], HEALTH, b"")
    assert [ask(sockets[0]), ask(sockets[1]), ask(sockets[0]), ask(sockets[1])] == [OK, OK, OK, OVER]
    admin = ready["admin"]
    assert figure(admin, ALLOWED) == 4
    assert figure(admin, 'garrison_rate_limit_answers_total{domain="d",outcome="allowed"}') == 3
    assert page(admin, "/readyz") == (200, "ready\n")
    running = [*both(admin), eventually(lambda: valkey_of(ready["pid"]), "Valkey")]
    assert server.stop() == 0
    assert all(map(is_gone, running))
    assert list(folder.glob("*.sock")) == []


def test_a_killed_worker_comes_back_where_it_was(server: Serving) -> None:
    """The other one goes on, metrics keep what they showed, and the addresses stay the same."""
    ready = server.wait_for("ready")
    admin, tcp = ready["admin"], [one for one in ready["request"] if one.startswith("tcp")]
    assert [check(address, "a") for address in tcp] == [200, 200]
    assert figure(admin, ALLOWED) == 2
    first = both(admin)
    os.kill(first[1], signal.SIGKILL)
    assert server.wait_for("worker_ended")["how"] == "signal 9"
    assert check(tcp[0], "a") == 200
    assert page(admin, "/readyz")[0] == 200
    assert figure(admin, ALLOWED) == 3
    server.wait_for("worker_ready", lambda event: event["worker"] == 1)
    assert check(tcp[1], "a") == 200
    assert figure(admin, ALLOWED) == 4
    assert figure(admin, 'garrison_worker_restarts_total{worker="1"}') == 1
    second = both(admin)
    assert (second[0], second[1] != first[1]) == (first[0], True)
    assert server.stop() == 0


def test_workers_follow_policies(server: Serving, folder: Path) -> None:
    """Each loads what changes by itself, and its log lines carry its number."""
    ready = server.wait_for("ready")
    (folder / "policies" / "more.yaml").write_text(role("[{}]", "[{user: b}]", name="more"))
    numbers = {server.wait_for("snapshot_swapped", lambda event: event["kind"] == "policies")["worker"]}
    numbers.add(server.wait_for("snapshot_swapped", lambda event: event["kind"] == "policies")["worker"])
    assert numbers == {0, 1}
    assert [check(address, "b") for address in ready["request"]] == [200] * 4


def test_nothing_outlives_a_killed_control_process(server: Serving) -> None:
    """Workers drain, and Valkey ends, however the control process ended."""
    ready = server.wait_for("ready")
    running = [*both(ready["admin"]), eventually(lambda: valkey_of(ready["pid"]), "Valkey")]
    server.process.kill()
    server.wait()
    for pid in running:
        eventually(lambda pid=pid: is_gone(pid) or None, f"the end of {pid}")  # type: ignore[misc]


def test_a_killed_valkey_comes_back_empty(server: Serving) -> None:
    """Limits deny while it is away, and count from nothing afterwards."""
    ready = server.wait_for("ready")
    address = ready["request"][0]
    assert [ask(address) for _ in range(4)] == [OK, OK, OK, OVER]
    os.kill(eventually(lambda: valkey_of(ready["pid"]), "Valkey"), signal.SIGKILL)
    server.wait_for("embedded_store_ended")
    server.wait_for("embedded_store_ready")
    eventually(lambda: ask(address) == OK or None, "a new count")
    assert figure(ready["admin"], "garrison_embedded_store_restarts_total") == 1


def test_a_silent_worker_does_not_stop_a_scrape(server: Serving) -> None:
    """What it said last still counts, and that it was silent is counted."""
    ready = server.wait_for("ready")
    admin = ready["admin"]
    assert check(ready["request"][0], "a") == 200
    assert figure(admin, ALLOWED) == 1
    stopped = both(admin)[0]
    os.kill(stopped, signal.SIGSTOP)
    try:
        assert figure(admin, ALLOWED) == 1
        assert figure(admin, 'garrison_worker_silent_scrapes_total{worker="0"}') >= 1
    finally:
        os.kill(stopped, signal.SIGCONT)


def command(admin: str, *words: str) -> tuple[int, dict[str, Any]]:
    """Return exit code and answer of `garrison ratelimit`."""
    url = admin.replace("tcp://", "http://")
    result = CliRunner().invoke(main, ["ratelimit", words[0], "--admin", url, "--json", *words[1:]])
    return result.exit_code, json.loads(result.stdout)


@pytest.mark.parametrize("lease", ["", ", lease: 2"], ids=["asked", "leased"])
def test_a_counter_that_is_reset_is_admitted_by_every_worker(folder: Path, lease: str) -> None:
    """Exhausted over gRPC, shown, reset, and counted from nothing again; who did it is on the log."""
    (folder / "limits" / "d.yaml").write_text(
        f"domain: d\ndescriptors: [{{key: k, rate_limit: {{unit: year, requests_per_unit: 3{lease}}}}}]\n"
    )
    sockets = [f"unix://{folder}/r.{number}.sock" for number in (0, 1)]
    with serving("--config", str(folder / "garrison.yaml")) as server:
        admin = server.wait_for("ready")["admin"]
        assert command(admin, "show", "d", "k=v")[1]["limits"][0]["used"] == 0
        for _ in range(2):
            # The second denial of each is one that the worker remembers.
            answers = [ask(one) for one in (*sockets, *sockets, *sockets, *sockets)]
            assert answers.count(OK) in ({3} if not lease else {2, 3})
            assert answers[-2:] == [OVER, OVER]
            code, shown = command(admin, "show", "d", "k=v")
            (limit,) = shown["limits"]
            assert (code, limit["remaining"], limit["over_limit"]) == (0, 0, True)
            assert command(admin, "show", "d", "k=v")[1]["limits"][0]["stored"] == limit["stored"]
            code, reset = command(admin, "reset", "d", "k=v")
            assert (code, reset["before"][0]["used"] >= 3) == (0, True)
            event = server.wait_for("rate_limit_reset")
            assert (event["domain"], event["descriptor"]) == ("d", [["k", "v"]])
            assert event["before"][0]["used"] == reset["before"][0]["used"]
            assert event["peer"].startswith("127.0.0.1:")
        # Nothing is taken in advance just after a reset, and so nothing of the old counter is left.
        assert [ask(one) for one in (sockets[0], sockets[1], sockets[0], sockets[1])] == [OK, OK, OK, OVER]
        assert figure(admin, 'garrison_rate_limit_resets_total{result="done"}') == 2
        config = json.loads(page(admin, "/ratelimit/config")[1])
        assert config["domains"][0]["descriptors"][0]["limits"][0]["requests_per_unit"] == 3
        assert f'version="{config["version"]}"' in page(admin, "/metrics")[1]


def test_a_worker_that_does_not_answer_keeps_a_counter_from_being_reset(
    server: Serving, folder: Path
) -> None:
    """It might go on denying, or allowing from what it took in advance; looking needs no worker."""
    admin = server.wait_for("ready")["admin"]
    addresses = [f"unix://{folder}/r.{number}.sock" for number in (0, 1)]
    assert [ask(address) for address in addresses] == [OK, OK]
    stopped = both(admin)[1]
    os.kill(stopped, signal.SIGSTOP)
    try:
        assert command(admin, "reset", "d", "k=v") == (
            3,
            {"error": "worker 1 does not answer; nothing was reset"},
        )
        assert server.wait_for("rate_limit_reset_failed")["descriptor"] == [["k", "v"]]
        assert command(admin, "show", "d", "k=v")[1]["limits"][0]["used"] == 2
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert command(admin, "reset", "d", "k=v")[0] == 0


def test_a_killed_worker_does_not_keep_a_counter_from_being_reset(server: Serving, folder: Path) -> None:
    """It knows nothing any more, and starts again knowing nothing."""
    admin = server.wait_for("ready")["admin"]
    assert [ask(f"unix://{folder}/r.0.sock") for _ in range(4)] == [OK, OK, OK, OVER]
    os.kill(both(admin)[0], signal.SIGKILL)
    server.wait_for("worker_ended")
    assert command(admin, "reset", "d", "k=v")[0] == 0
    assert ask(f"unix://{folder}/r.1.sock") == OK
    server.wait_for("worker_ready", lambda event: event["worker"] == 0)
    assert [ask(f"unix://{folder}/r.0.sock") for _ in range(3)] == [OK, OK, OVER]


def test_without_the_store_nothing_is_shown_or_reset(server: Serving) -> None:
    """Neither while it is away nor from what is remembered; the limits in force are shown."""
    ready = server.wait_for("ready")
    admin = ready["admin"]
    valkey = eventually(lambda: valkey_of(ready["pid"]), "Valkey")
    os.kill(valkey, signal.SIGSTOP)
    try:
        for words in (("show", "d", "k=v"), ("reset", "d", "k=v")):
            code, answer = command(admin, *words)
            assert (code, "rate-limit store" in answer["error"]) == (3, True)
        assert page(admin, "/ratelimit/config")[0] == 200
    finally:
        os.kill(valkey, signal.SIGCONT)


def test_two_of_them_take_turns(server: Serving, folder: Path) -> None:
    """A second `garrison serve` takes over the addresses of all workers before the first one stops."""
    server.wait_for("ready")
    with serving("--config", str(folder / "garrison.yaml")) as second:
        second.wait_for("ready")
        assert server.stop() == 0
        assert [check(f"unix://{folder}/r.{number}.sock", "a") for number in (0, 1)] == [200, 200]
        assert second.stop() == 0


def test_what_is_wrong_is_said_once(folder: Path) -> None:
    """Mistakes in policies are found before any worker starts."""
    (folder / "policies" / "role.yaml").write_text(role("[{metods: [a]}]"))
    with serving("--config", str(folder / "garrison.yaml")) as server:
        assert server.wait() == 2
        lines = []
        while (event := server._arriving.get()) is not None:
            lines.append(event.get("text", ""))
    assert len([line for line in lines if "unknown field `metods`" in line]) == 1


def test_a_worker_that_cannot_listen_ends_the_start(folder: Path) -> None:
    """Its reason is on the log, nothing is left running, and what was in the way is still there."""
    (folder / "r.1.sock").write_text("precious")
    with serving("--config", str(folder / "garrison.yaml")) as server:
        assert server.wait() == 2
    assert (folder / "r.1.sock").read_text() == "precious"
    assert not (folder / "r.0.sock").exists()


@pytest.mark.parametrize("transport", ["ngh2", "grpcio"])
def test_workers_with_tls(folder: Path, transport: str) -> None:
    """Each worker shows the certificate at an address of its own, on both transports; they count together."""
    pem = certificate(folder, "own")
    roots = x509.load_pem_x509_certificates(pem.read_bytes())[0].public_bytes(Encoding.PEM)
    text = (folder / "garrison.yaml").read_text()
    request = f"""request:
  listen: ["tls://127.0.0.1:0"]
  transport: {transport}
  tls: {{certificate: own.pem, private_key: own.pem}}
"""
    (folder / "garrison.yaml").write_text(re.sub(r"request: .*\n", request, text))
    with serving("--config", str(folder / "garrison.yaml")) as server:
        addresses = server.wait_for("ready")["request"]
        assert len(set(addresses)) == 2
        assert all(address.startswith("tls://") for address in addresses)
        for address in addresses:
            assert (check(address, "a", roots), check(address, "b", roots)) == (200, 403)
        assert [ask(addresses[number % 2], roots) for number in range(4)] == [OK, OK, OK, OVER]
        assert server.stop() == 0


def test_workers_over_grpcio(folder: Path) -> None:
    """Workers that are served by grpcio have addresses of their own and count together as well."""
    text = (folder / "garrison.yaml").read_text()
    (folder / "garrison.yaml").write_text(text.replace("request: {", "request: {transport: grpcio, "))
    with serving("--config", str(folder / "garrison.yaml")) as server:
        ready = server.wait_for("ready")
        for address in ready["request"]:
            assert (check(address, "a"), check(address, "b")) == (200, 403)
            assert call(address, HEALTH, b"")
        sockets = [one for one in ready["request"] if one.startswith("unix")]
        assert [ask(sockets[number % 2]) for number in range(4)] == [OK, OK, OK, OVER]
        os.kill(both(ready["admin"])[1], signal.SIGKILL)
        server.wait_for("worker_ready", lambda event: event["worker"] == 1)
        assert [check(address, "a") for address in ready["request"]] == [200] * 4
        assert server.stop() == 0
