"""Mixer's quotas of a real `garrison serve`: one Check answers authorization and quota, from memory or a Valkey."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from support.checks import check_request, principal
from support.quotas import ALLOWED, quotas
from support.serving import Serving, serving, write_settings
from support.valkey import Valkey

CHECK = "/envoy.service.auth.v3.Authorization/Check"
FIXED = "maxAmount: 5, validDuration: 8760h"
ROLLING = f"{FIXED}, rateLimitAlgorithm: ROLLING_WINDOW, bucketDuration: 24h"


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder whose name is short enough for Unix sockets."""
    return tmp_path_factory.mktemp("q")


@pytest.fixture
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """Run a server for a test."""
    with Valkey(tmp_path_factory.mktemp("v")) as server:
        yield server


def check(server: Serving, count: int, **request: Any) -> list[int]:
    """Return the HTTP statuses of equal calls, one after the other."""
    found = [event for event in server.seen if event["event"] == "ready"]
    address = (found[0] if found else server.wait_for("ready"))["request"][0]
    statuses = []
    with grpc.insecure_channel(address.replace("unix://", "unix:")) as channel:
        method: Any = channel.unary_unary(CHECK)
        for _ in range(count):
            message = check_request(**request).SerializeToString()
            response = CheckResponse.FromString(method(message, timeout=20, wait_for_ready=True))
            statuses.append(int(response.denied_response.status.code) or 200)
    return statuses


def written(folder: Path, text: str, more: str = "") -> str:
    """Return the path of settings with these policies."""
    file = write_settings(folder, more)
    (folder / "policies" / "p.yaml").write_text(ALLOWED + text)
    return str(file)


def test_memory(folder: Path) -> None:
    """Five calls of five, however many others were denied before; then 429."""
    with serving("--config", written(folder, quotas("maxAmount: 5, validDuration: 8760h"))) as server:
        assert check(server, 3, method="POST") == [403] * 3
        assert check(server, 7) == [200] * 5 + [429] * 2
        assert check(server, 1, source=principal("other")) == [200]


@pytest.mark.parametrize("limit", [FIXED, ROLLING], ids=["fixed", "rolling"])
def test_replicas_share_a_valkey(folder: Path, valkey: Valkey, limit: str) -> None:
    """What one replica grants is gone for the other; without the store calls are denied with 503."""
    text, store = quotas(limit, kind="redisquota"), f'rate_limit: {{redis: ["{valkey.url}"], deadline: 1s}}'
    settings = written(folder, text, store)
    (folder / "b").mkdir()
    other = written(folder / "b", text, store)
    with serving("--config", settings) as first, serving("--config", other) as second:
        assert check(first, 2, method="POST") == [403] * 2
        assert check(first, 3) == [200] * 3
        assert check(second, 3) == [200, 200, 429]
        assert check(first, 1) == [429]
        assert check(first, 1, source=principal("other")) == [200]
        valkey.kill()
        assert check(first, 1, source=principal("third")) == [503]
        assert check(first, 1, method="POST") == [403]


def test_a_redisquota_without_redis_is_refused(folder: Path) -> None:
    """A server that could not share counts says so and does not start."""
    with serving("--config", written(folder, quotas(kind="redisquota"))) as server:
        assert server.wait() != 0
