"""Calls to a running `garrison serve`, one at a time."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import Any

import grpc
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse

from support.checks import check_request, principal

CHECK = "/envoy.service.auth.v3.Authorization/Check"
LIMIT = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
HEALTH = "/grpc.health.v1.Health/Check"


def call(address: str, method: str, message: bytes, roots: bytes | None = None) -> bytes:
    """Make one unary call to a `tcp://` or `unix://` address, or, with `roots` (PEM), to a `tls://` one."""
    target = address.replace("tcp://", "").replace("tls://", "").replace("unix://", "unix:")
    credentials = grpc.ssl_channel_credentials(roots)
    secure = address.startswith("tls://")
    with grpc.secure_channel(target, credentials) if secure else grpc.insecure_channel(target) as channel:
        method_call: Any = channel.unary_unary(method)
        answer: bytes = method_call(message, timeout=20, wait_for_ready=True)
    return answer


def check(address: str, account: str, roots: bytes | None = None) -> int:
    """Return the HTTP status of a decision for a service account; `roots` as `call`."""
    message = check_request(source=principal(account)).SerializeToString()
    response = CheckResponse.FromString(call(address, CHECK, message, roots))
    return 200 if response.status.code == 0 else int(response.denied_response.status.code)


def page(admin: str, path: str) -> tuple[int, str]:
    """Return status and body of an admin page."""
    try:
        with urllib.request.urlopen(admin.replace("tcp://", "http://") + path, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
