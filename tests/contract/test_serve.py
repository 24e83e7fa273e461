"""`garrison serve` as a process: what it offers, how it reloads, drains, and refuses to start."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from envoy.service.ratelimit.v3 import rls_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from support.asking import CHECK, HEALTH, LIMIT, call, check, page
from support.checks import role
from support.serving import Serving, serving, write_settings

from ca.authority import Hierarchy
from garrison.cli import main
from garrison.identity import SpiffeId, TrustDomain


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder whose name is short enough for Unix sockets."""
    return tmp_path_factory.mktemp("s")


@pytest.fixture
def server(folder: Path) -> Iterator[Serving]:
    """Run a server whose policies let service account `a` in, and which limits `k` to one a day."""
    file = write_settings(folder)
    (folder / "policies" / "role.yaml").write_text(role("[{}]", "[{user: a}]"))
    (folder / "limits" / "d.yaml").write_text(
        "domain: d\ndescriptors: [{key: k, rate_limit: {unit: day, requests_per_unit: 1}}]\n"
    )
    with serving("--config", str(file)) as running:
        yield running


def test_everything_is_served_in_one_process(server: Serving) -> None:
    """Check, rate limits, health, reflection and admin pages answer on the addresses of the `ready` line."""
    ready = server.wait_for("ready")
    for address in ready["request"]:
        assert (check(address, "a"), check(address, "b")) == (200, 403)
        status = health_pb2.HealthCheckResponse.FromString(call(address, HEALTH, b""))
        assert status.status == health_pb2.HealthCheckResponse.SERVING
    request = rls_pb2.RateLimitRequest(domain="d")
    entry = request.descriptors.add().entries.add()
    entry.key, entry.value = "k", "v"
    codes = [
        rls_pb2.RateLimitResponse.FromString(
            call(ready["request"][0], LIMIT, request.SerializeToString())
        ).overall_code
        for _ in range(2)
    ]
    assert codes == [rls_pb2.RateLimitResponse.OK, rls_pb2.RateLimitResponse.OVER_LIMIT]
    for address in ready["control"]:
        assert call(address, HEALTH, b"")
    assert page(ready["admin"], "/healthz") == (200, "ok\n")
    assert page(ready["admin"], "/readyz") == (200, "ready\n")
    assert json.loads(page(ready["admin"], "/version")[1])["pid"] == ready["pid"]
    assert page(ready["admin"], "/nothing")[0] == 404
    metrics = page(ready["admin"], "/metrics")[1]
    assert 'garrison_decisions_total{code="role_matched",verdict="allow"} 2.0' in metrics
    assert 'garrison_rate_limit_answers_total{domain="d",outcome="over_limit"} 1.0' in metrics
    assert server.stop() == 0


def test_a_counter_in_memory_is_shown_and_reset(server: Serving, folder: Path) -> None:
    """By the commands; the limits that took effect last are the ones that count and are shown."""
    ready = server.wait_for("ready")
    (folder / "limits" / "d.yaml").write_text(
        "domain: d\ndescriptors: [{key: k, rate_limit: {unit: year, requests_per_unit: 2}}]\n"
    )
    server.wait_for("snapshot_swapped", lambda event: event["kind"] == "limits")
    request = rls_pb2.RateLimitRequest(domain="d", hits_addend=2)
    entry = request.descriptors.add().entries.add()
    entry.key, entry.value = "k", "a=b"

    def ask() -> bool:
        answer = call(ready["request"][0], LIMIT, request.SerializeToString())
        return bool(rls_pb2.RateLimitResponse.FromString(answer).overall_code == rls_pb2.RateLimitResponse.OK)

    def command(*words: str) -> Any:
        url = ready["admin"].replace("tcp://", "http://")
        result = CliRunner().invoke(main, ["ratelimit", *words, "--json", "--admin", url])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    assert [ask(), ask()] == [True, False]
    shown = command("show", "d", "k=a=b")
    assert (shown["limits"][0]["used"], shown["limits"][0]["requests_per_unit"]) == (4, 2)
    assert command("reset", "d", "k=a=b")["before"][0]["stored"] == shown["limits"][0]["stored"]
    assert server.wait_for("rate_limit_reset")["descriptor"] == [["k", "a=b"]]
    assert [ask(), ask()] == [True, False]
    config = command("show", "--config")
    assert f'kind="limits",version="{config["version"]}"' in page(ready["admin"], "/metrics")[1]
    loaded = datetime.fromisoformat(config["loaded_at"])
    assert timedelta() <= datetime.now(UTC) - loaded < timedelta(minutes=10)


def test_reflection_lists_the_services_of_the_control_path(server: Serving) -> None:
    """Tools such as grpcurl find out what is there."""
    ready = server.wait_for("ready")
    with grpc.insecure_channel(ready["control"][1].replace("tcp://", "")) as channel:
        stream = channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        answers: Any = stream(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=20)
        names = [service.name for service in next(answers).list_services_response.service]
    assert "grpc.health.v1.Health" in names


def test_a_changed_policy_takes_effect_and_a_broken_one_does_not(server: Serving, folder: Path) -> None:
    """Reload swaps whole generations; a mistake leaves the old one in force and is logged with its place."""
    address = server.wait_for("ready")["request"][0]
    assert check(address, "b") == 403
    more = folder / "policies" / "more.yaml"
    more.write_text(role("[{}]", "[{user: b}]", name="more"))
    server.wait_for("snapshot_swapped", lambda event: event["kind"] == "policies")
    assert (check(address, "a"), check(address, "b")) == (200, 200)
    more.write_text(role("[{metods: [GET]}]", "[{user: b}]", name="more"))
    refused = server.wait_for("snapshot_refused")
    problem = refused["diagnostics"][0]
    assert problem["file"] == str(more)
    assert (problem["line"], problem["column"], problem["field"]) == (5, 17, "spec.rules[0].metods")
    assert check(address, "b") == 200
    more.unlink()
    server.wait_for("snapshot_swapped", lambda event: event["kind"] == "policies")
    assert check(address, "b") == 403


def test_a_replaced_file_is_noticed(server: Serving, folder: Path) -> None:
    """Editors write a new file and rename it over the old one."""
    address = server.wait_for("ready")["request"][0]
    new = folder / "new"
    new.write_text(role("[{}]", "[{user: b}]"))
    new.rename(folder / "policies" / "role.yaml")
    server.wait_for("snapshot_swapped", lambda event: event["kind"] == "policies")
    assert (check(address, "a"), check(address, "b")) == (403, 200)


CASBIN = """
apiVersion: garrison.dev/v1alpha1
kind: CasbinPolicy
metadata: {name: acl, namespace: default}
spec:
  request: [source.principal, request.method]
  model: |
    [request_definition]
    r = sub, act
    [policy_definition]
    p = sub, act
    [policy_effect]
    e = some(where (p.eft == allow))
    [matchers]
    m = r.sub == p.sub && r.act == p.act
  policyFile: acl.csv
"""


def test_a_changed_file_beside_the_policies_takes_effect(server: Serving, folder: Path) -> None:
    """The rows of a CasbinPolicy may stand in a file of their own, which is no YAML."""
    address = server.wait_for("ready")["request"][0]
    rows = folder / "policies" / "acl.csv"
    rows.write_text("p, cluster.local/ns/default/sa/b, GET\n")
    (folder / "policies" / "casbin.yaml").write_text(CASBIN)
    server.wait_for("snapshot_swapped", lambda event: event["kind"] == "policies")
    assert check(address, "a") == 403
    rows.write_text("p, cluster.local/ns/default/sa/a, GET\n")
    server.wait_for("snapshot_swapped", lambda event: event["kind"] == "policies")
    assert check(address, "a") == 200


def test_changed_limits_take_effect(server: Serving, folder: Path) -> None:
    """Rate limits reload like policies."""
    server.wait_for("ready")
    (folder / "limits" / "d.yaml").write_text("domain: d\ndescriptors: [{key: [5]}]\n")
    assert server.wait_for("snapshot_refused")["kind"] == "limits"
    (folder / "limits" / "d.yaml").write_text("domain: e\n")
    assert server.wait_for("snapshot_swapped")["kind"] == "limits"


def test_a_second_server_takes_over(server: Serving, folder: Path) -> None:
    """A restart: the new process takes the sockets, the old one drains, and no call finds nobody."""
    first = server.wait_for("ready")
    unix = first["request"][0]
    with serving("--config", str(folder / "garrison.yaml")) as second:
        second.wait_for("ready")
        assert server.stop() == 0
        assert check(unix, "a") == 200
        assert second.stop() == 0
    assert not (folder / "r.sock").exists()


@pytest.mark.parametrize(
    ("policy", "settings", "code", "expected"),
    [
        (role("[{metods: [a]}]"), "", 2, "spec.rules[0].metods: unknown field `metods`"),
        ("", "reqest: {}", 2, "unknown field `reqest`"),
        ("", "ca: {dir: nothing}", 2, "nothing"),
        ("", "log: {level: loud}", 2, "log.level: `loud` is not known here"),
    ],
)
def test_what_is_wrong_at_the_start_is_said_in_one_line(
    folder: Path, policy: str, settings: str, code: int, expected: str
) -> None:
    """Broken settings, policies and CA folders end the start with exit code 2 and no traceback."""
    file = write_settings(folder, settings)
    (folder / "policies" / "p.yaml").write_text(policy)
    with serving("--config", str(file)) as server:
        assert server.wait() == code
        lines = []
        while (event := server._arriving.get()) is not None:
            lines.append(event.get("text", ""))
    assert any(expected in line and line.startswith("error: ") for line in lines)
    assert not any("Traceback" in line for line in lines)


def test_an_address_in_use_is_an_error(folder: Path) -> None:
    """A path that is no socket is not overwritten."""
    file = write_settings(folder)
    (folder / "r.sock").write_text("precious")
    with serving("--config", str(file)) as server:
        assert server.wait() != 0
    assert (folder / "r.sock").read_text() == "precious"


def test_both_transports_decide_the_same(folder: Path) -> None:
    """`request.transport: grpcio` answers as ngh2 does."""
    file = write_settings(folder)
    (folder / "policies" / "role.yaml").write_text(role("[{}]", "[{user: a}]"))
    with serving("--config", str(file), environment={"GARRISON_REQUEST_TRANSPORT": "grpcio"}) as server:
        for address in server.wait_for("ready")["request"]:
            assert (check(address, "a"), check(address, "b")) == (200, 403)
            assert CheckResponse.FromString(call(address, CHECK, b"\xff")).denied_response.status.code == 403
        assert server.stop() == 0


def test_renewed_tls_files_are_used(folder: Path) -> None:
    """New connections get the new certificate; files that do not fit each other are refused."""
    names = [folder / "svid.pem", folder / "svid.key"]

    def issue(name: str) -> None:
        now = datetime.now(UTC)
        hierarchy = Hierarchy.create(TrustDomain(name), now=now)
        key = ec.generate_private_key(ec.SECP256R1())
        svid = hierarchy.authority().issue(
            SpiffeId.parse(f"spiffe://{name}/web"), key.public_key(), now=now, ttl=timedelta(hours=1)
        )
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        for path, content in zip(names, (svid.chain_pem, pem), strict=True):
            new = path.with_suffix(".new")
            new.write_bytes(content)
            new.rename(path)

    def served(address: str) -> str:
        host, port = address.removeprefix("tls://").split(":")
        certificate = x509.load_pem_x509_certificate(ssl.get_server_certificate((host, int(port))).encode())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return names.get_values_for_type(x509.UniformResourceIdentifier)[0]

    issue("first")
    tls = f"{{certificate: {names[0]}, private_key: {names[1]}}}"
    file = write_settings(folder)
    settings = (
        file.read_text()
        .replace("request: {", f"request: {{tls: {tls}, ")
        .replace('"tcp://127.0.0.1:0"]}\ncontrol', '"tls://127.0.0.1:0"]}\ncontrol')
    )
    file.write_text(settings)
    with serving("--config", str(file)) as server:
        ready = server.wait_for("ready")
        address = next(one for one in ready["request"] if one.startswith("tls://"))
        assert served(address) == "spiffe://first/web"
        issue("second")
        server.wait_for("snapshot_swapped", lambda _: served(address) == "spiffe://second/web")
        names[1].write_text("no key")
        server.wait_for("snapshot_refused", lambda event: event["kind"] == "request_tls")
        assert served(address) == "spiffe://second/web"
        assert server.stop() == 0
