"""Authenticators of a real `garrison serve`: from settings and files to decisions, reloads and metrics."""

from __future__ import annotations

import json
import urllib.request
from base64 import b64encode
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from support.certificates import certify
from support.checks import check_request
from support.credentials import IDENTIFIED, authentication
from support.http_server import answer as http_answer
from support.http_server import serving as http_serving
from support.policies import policy
from support.serving import Serving, serving, write_settings

from authz.authenticators.clients import hash_key
from authz.authenticators.passwords import new_scrypt
from garrison.token_review import PATH

CHECK = "/envoy.service.auth.v3.Authorization/Check"


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder whose name is short enough for Unix sockets."""
    return tmp_path_factory.mktemp("s")


def ready(server: Serving) -> dict[str, Any]:
    """Return the server's `ready` line, waiting for it the first time."""
    found = [event for event in server.seen if event["event"] == "ready"]
    return found[0] if found else server.wait_for("ready")


def check(server: Serving, headers: Mapping[str, str], **request: Any) -> Any:
    """Return the CheckResponse for a call with these headers."""
    address = ready(server)["request"][0]
    with grpc.insecure_channel(address.replace("unix://", "unix:")) as channel:
        method: Any = channel.unary_unary(CHECK)
        message = check_request(headers=headers, **request).SerializeToString()
        return CheckResponse.FromString(method(message, timeout=20, wait_for_ready=True))


def status(server: Serving, headers: Mapping[str, str]) -> int:
    """Return the HTTP status of a decision."""
    response = check(server, headers)
    return 200 if response.status.code == 0 else int(response.denied_response.status.code)


def metrics(server: Serving) -> str:
    """Return the metrics page."""
    with urllib.request.urlopen(
        ready(server)["admin"].replace("tcp://", "http://") + "/metrics", timeout=20
    ) as page:
        return str(page.read().decode())


def key_file(*clients: tuple[str, str]) -> str:
    """Return a file of clients and their keys."""
    lines = "".join(f"- {{name: {name}, hashes: ['{hash_key(key)}']}}\n" for name, key in clients)
    return f"keys:\n{lines}"


def test_keys_from_a_file_follow_the_file(folder: Path) -> None:
    """A removed key is refused from then on; a broken file keeps the old one, and the log says where."""
    (folder / "keys.yaml").write_text(key_file(("alice", "key-a"), ("bob", "key-b")))
    (folder / "policies").mkdir()
    (folder / "policies" / "p.yaml").write_text(authentication("[{authenticator: keys}]") + IDENTIFIED)
    file = write_settings(folder, "authenticators: [{name: keys, api_keys: {file: keys.yaml}}]")
    with serving("--config", str(file)) as server:
        allowed = check(server, {"x-api-key": "key-a"})
        assert allowed.status.code == 0
        assert list(allowed.ok_response.headers_to_remove) == ["x-api-key"]
        refused = check(server, {"x-api-key": "key-c"})
        assert refused.denied_response.status.code == 401
        challenge = {one.header.key: one.header.value for one in refused.denied_response.headers}
        assert challenge["www-authenticate"] == 'ApiKey realm="products.default.svc.cluster.local"'
        assert status(server, {"x-api-key": "key-b"}) == 200
        (folder / "keys.yaml").write_text(key_file(("alice", "key-a")))
        server.wait_for("snapshot_swapped", lambda event: event["kind"] == "authenticator_keys")
        assert (status(server, {"x-api-key": "key-a"}), status(server, {"x-api-key": "key-b"})) == (200, 401)
        (folder / "keys.yaml").write_text("keys: [{name: alice}]")
        problem = server.wait_for("snapshot_refused")["diagnostics"][0]
        assert (problem["line"], problem["field"]) == (1, "keys[0].hashes")
        assert (status(server, {"x-api-key": "key-a"}), status(server, {})) == (200, 403)
        page = metrics(server)
        assert 'garrison_authenticator_answers_total{authenticator="keys",result="accepted"} 4.0' in page
        assert 'garrison_authenticator_answers_total{authenticator="keys",result="refused"} 2.0' in page
        assert 'garrison_authenticator_remembered{authenticator="keys"} 1.0' in page
        assert 'garrison_decisions_total{code="invalid_credential",verdict="deny"} 2.0' in page
        assert 'garrison_reloads_total{kind="authenticator_keys",result="refused"} 1.0' in page
        assert server.stop() == 0


def test_keys_from_a_folder_follow_the_folder(folder: Path) -> None:
    """As the volume of a Kubernetes Secret is swapped: new clients come, old ones go, all at once."""
    keys = folder / "keys"
    for version, (name, key) in enumerate((("alice", "key-a"), ("bob", "key-b"))):
        (keys / f"..{version}").mkdir(parents=True)
        (keys / f"..{version}" / name).write_text(hash_key(key))
    (keys / "..data").symlink_to("..0")
    (keys / "alice").symlink_to("..data/alice")
    (folder / "policies").mkdir()
    (folder / "policies" / "p.yaml").write_text(authentication("[{authenticator: keys}]") + IDENTIFIED)
    file = write_settings(folder, "authenticators: [{name: keys, api_keys: {directory: keys}}]")
    with serving("--config", str(file)) as server:
        assert (status(server, {"x-api-key": "key-a"}), status(server, {"x-api-key": "key-b"})) == (200, 401)
        (keys / "..new").symlink_to("..1")
        (keys / "..new").rename(keys / "..data")
        (keys / "bob").symlink_to("..data/bob")
        (keys / "alice").unlink()
        server.wait_for("snapshot_swapped", lambda event: event["kind"] == "authenticator_keys")
        assert (status(server, {"x-api-key": "key-a"}), status(server, {"x-api-key": "key-b"})) == (401, 200)
        assert server.stop() == 0


def test_users_from_a_file_follow_the_file(folder: Path) -> None:
    """What was remembered of a user who is removed does not count any more, however short ago it was."""
    lines = [f"{name}:{new_scrypt(ln=4, r=1, p=1).of(b'x')}\n" for name in ("alice", "bob")]
    (folder / "users").write_text("".join(lines))
    (folder / "policies").mkdir()
    (folder / "policies" / "p.yaml").write_text(authentication("[{authenticator: people}]") + IDENTIFIED)
    file = write_settings(folder, "authenticators: [{name: people, basic: {file: users, cache: 1h}}]")
    alice, bob = (
        {"authorization": f"Basic {b64encode(f'{name}:x'.encode()).decode()}"} for name in ("alice", "bob")
    )
    with serving("--config", str(file)) as server:
        for _ in range(2):
            assert (status(server, alice), status(server, bob)) == (200, 200)
        (folder / "users").write_text(lines[0])
        server.wait_for("snapshot_swapped", lambda event: event["kind"] == "authenticator_people")
        assert (status(server, alice), status(server, bob)) == (200, 401)
        page = metrics(server)
        assert 'garrison_authenticator_answers_total{authenticator="people",result="accepted"} 5.0' in page
        assert "garrison_authenticator_breaker_open{" not in page
        assert server.stop() == 0


def test_pods_are_known_by_their_tokens(folder: Path) -> None:
    """An API server over TLS is asked once for each token; when it is away, what is not known is denied."""
    asked: list[str] = []
    down = False

    def review(handler: BaseHTTPRequestHandler) -> None:
        sent = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        asked.append(sent["spec"]["token"])
        user = {"username": "system:serviceaccount:shop:orders", "groups": ["system:authenticated"]}
        found = {"authenticated": sent["spec"]["token"] == "good", "user": user, "audiences": ["garrison"]}
        body = json.dumps({**sent, "status": found}).encode()
        http_answer(body, 503 if down else 201, content_type="application/json")(handler)

    tls, ca = certify(folder, "127.0.0.1")
    (folder / "token").write_text("own")
    (folder / "policies").mkdir()
    claims = "[{when: [{key: 'request.auth.claims[groups]', values: ['system:authenticated']}]}]"
    (folder / "policies" / "p.yaml").write_text(authentication("[{authenticator: pods}]") + policy(claims))
    with http_serving({PATH: review}, tls) as url:
        fields = f"server: '{url}', ca: '{ca}', token_file: token, audiences: [garrison], timeout: 5s"
        file = write_settings(folder, f"authenticators: [{{name: pods, token_review: {{{fields}}}}}]")
        with serving("--config", str(file)) as server:
            for _ in range(3):
                assert status(server, {"authorization": "Bearer good"}) == 200
            assert status(server, {"authorization": "Bearer bad"}) == 401
            assert asked == ["good", "bad"]
            down = True
            for number in range(6):
                assert status(server, {"authorization": f"Bearer new{number}"}) == 503
            assert status(server, {"authorization": "Bearer good"}) == 200
            assert len(asked) == 7, "after five failures in a row nobody is asked"
            assert 'garrison_authenticator_breaker_open{authenticator="pods"} 1.0' in metrics(server)
            failed = server.wait_for("authenticator_failed")
            assert (failed["authenticator"], "own" in str(failed)) == ("pods", False)
            assert server.stop() == 0


def test_a_file_that_is_wrong_keeps_the_server_from_starting(folder: Path) -> None:
    """There is nothing to fall back to; the message has no key in it."""
    (folder / "keys.yaml").write_text("keys: [{name: a, hashes: [plain-s3cret]}]")
    file = write_settings(folder, "authenticators: [{name: keys, api_keys: {file: keys.yaml}}]")
    with serving("--config", str(file)) as server:
        text = server.wait_for("text")["text"]
        assert "keys.yaml:1:26: keys[0].hashes: this is no hash of an API key" in text
        assert "s3cret" not in text
        assert server.wait() != 0
