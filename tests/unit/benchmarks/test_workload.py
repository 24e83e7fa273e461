"""What the benchmarks send is what they say it is."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse
from envoy.service.ratelimit.v3.rls_pb2 import RateLimitRequest

from authz.policy.compile import MeshSettings
from authz.service import Authorization, DecisionLog, DestinationResolver
from authz.snapshot import build_snapshot, load_snapshot
from benchmarks.workload import (
    DENIALS,
    MIX,
    ROUNDS,
    By,
    Shape,
    check_requests,
    describe,
    outcomes,
    rate_limit_requests,
    role_documents,
    role_requests,
    write_policies,
)
from garrison.demo.tokens import Tokens
from garrison.documents import parse
from garrison.transport import Call, Peer

CALL = Call(Peer("test"), ())


def decide(service: Authorization, messages: list[bytes]) -> list[bool]:
    """Return which of `messages` the service allows."""
    answers: list[Any] = [CheckResponse.FromString(service.check(message, CALL)) for message in messages]
    return [answer.status.code == 0 for answer in answers]


def test_the_mix_is_decided_as_it_says(tmp_path: Path) -> None:
    """Each call of the mix is allowed or denied as declared, in every round, by the demo's own policies."""
    tokens = Tokens()
    write_policies(tmp_path / "policies", tokens)
    now = time.time()  # the tokens are from now
    service = Authorization(DestinationResolver(), lambda: now, DecisionLog.NONE)
    service.use(load_snapshot([tmp_path / "policies"], MeshSettings()))
    assert decide(service, check_requests(MIX, tokens)) == [ask.allowed for ask in MIX] * ROUNDS
    assert not any(decide(service, check_requests(DENIALS, tokens)))


def test_requests_have_the_form_of_encoded_raw_headers() -> None:
    """Headers come as `header_map` with raw values, about fifteen, and nothing in the merged map."""
    for message in check_requests(MIX, Tokens()):
        http = CheckRequest.FromString(message).attributes.request.http
        assert not http.headers
        lines = {line.key: line.raw_value.decode() for line in http.header_map.headers}
        assert 14 <= len(lines) == len(http.header_map.headers) <= 16
        assert (lines[":path"], lines[":method"]) == (http.path, http.method)


def test_the_mix_describes_itself() -> None:
    """The shares that the table states are those of the calls."""
    assert describe(MIX) == "18 of 20 calls allowed, 3 with a JWT, 1000 distinct requests"
    assert outcomes(MIX) == {"allow": 0.9, "deny": pytest.approx(0.1)}
    assert len(set(check_requests(MIX, Tokens()))) == 1000


@pytest.mark.parametrize("shape", [Shape(10, 10), Shape(40, 8), *(Shape(40, 1, by) for by in By)])
def test_every_request_is_allowed_by_one_role(shape: Shape) -> None:
    """Under any shape the calls are allowed, and a call to a path that no role has is not."""
    documents = role_documents(shape)
    parsed, problems = parse(documents, "roles.yaml")
    assert problems == []
    assert len(parsed) == 2 * shape.roles
    service = Authorization(DestinationResolver(), lambda: 0.0, DecisionLog.NONE)
    service.use(build_snapshot(parsed, MeshSettings(), [documents]))
    assert all(decide(service, role_requests(shape, 40)))
    beyond = Shape(shape.roles + 1, shape.services, shape.by)
    assert decide(service, role_requests(beyond, shape.roles + 1))[-1] is False


def test_each_user_asks_for_a_quota_of_their_own() -> None:
    """Rate-limit requests name one user each, in the demo's domain and under its key."""
    requests = [RateLimitRequest.FromString(message) for message in rate_limit_requests(3)]
    entries = [request.descriptors[0].entries[0] for request in requests]
    assert [
        (request.domain, entry.key, entry.value) for request, entry in zip(requests, entries, strict=True)
    ] == [("bookinfo", "user", f"user-{number}") for number in range(3)]
