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


def call(address: str, method: str, message: bytes) -> bytes:
    """Make one unary call to a `tcp://` or `unix://` address."""
    target = address.replace("tcp://", "").replace("unix://", "unix:")
    with grpc.insecure_channel(target) as channel:
        method_call: Any = channel.unary_unary(method)
        answer: bytes = method_call(message, timeout=20, wait_for_ready=True)
    return answer


def check(address: str, account: str) -> int:
    """Return the HTTP status of a decision for a service account."""
    message = check_request(source=principal(account)).SerializeToString()
    response = CheckResponse.FromString(call(address, CHECK, message))
    return 200 if response.status.code == 0 else int(response.denied_response.status.code)


def page(admin: str, path: str) -> tuple[int, str]:
    """Return status and body of an admin page."""
    try:
        with urllib.request.urlopen(admin.replace("tcp://", "http://") + path, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
