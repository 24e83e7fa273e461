"""Builders for RateLimitPolicies, and a service that charges them in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from typing import Any

from envoy.service.auth.v3.external_auth_pb2 import CheckResponse

from authz.authn.credentials import Authenticator
from authz.environment import Environment
from authz.mixer.quotas import Quotas
from authz.policy.compile import MeshSettings
from authz.providers import Provider
from authz.service import Authorization, DecisionLog, DestinationResolver
from garrison.process.check_limits import CheckLimits
from garrison.process.mixer_quotas import StoreQuotas
from ratelimit.algorithm import SECOND, OnStoreFailure
from ratelimit.response import HeaderNames, ResponseOptions
from ratelimit.service import RateLimitService
from ratelimit.store.base import Store
from ratelimit.store.memory import MemoryStore
from support.checks import CALL, NOW, check_request, snapshot
from support.ratelimit import limits_of

BY_SUBJECT = '{entries: [{key: user, attribute: "request.auth.claims[sub]"}]}'
BY_IDENTITY = "{entries: [{key: workload, attribute: source.principal}]}"
# Three a minute for each user and each workload.
THREE = """
domain: d
descriptors:
- {key: user, rate_limit: {name: per-user, unit: minute, requests_per_unit: 3}}
- {key: workload, rate_limit: {unit: minute, requests_per_unit: 3}}
"""


def rate_limit(
    *descriptors: str, name: str = "r", namespace: str = "default", domain: str = "d", spec: str = ""
) -> str:
    """Return a RateLimitPolicy with descriptors in YAML's flow style; `spec` holds further fields of it."""
    return f"""
apiVersion: garrison.dev/v1alpha1
kind: RateLimitPolicy
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{domain: {domain}, descriptors: [{", ".join(descriptors)}]{", " + spec if spec else ""}}}
---
"""


class Charged:
    """A service whose calls are charged in memory, with a clock that tests set (seconds since `NOW`)."""

    def __init__(
        self,
        policies: str,
        limits: str = THREE,
        *,
        store: Store | None = None,
        headers: HeaderNames | None = None,
        shadow_mode: bool = False,
        quotas: Quotas | None = None,
        mesh: MeshSettings | None = None,
        providers: Mapping[str, Provider] | None = None,
        authenticators: Mapping[str, Authenticator] | None = None,
    ) -> None:
        self.at = 0.0
        compiled = limits_of(limits)
        options = ResponseOptions(shadow_mode=shadow_mode, headers=headers)
        self.limiter = RateLimitService(lambda: compiled, store or MemoryStore(), self.nanoseconds, options)
        environment = Environment(
            quotas=quotas or StoreQuotas(MemoryStore(), self.nanoseconds, OnStoreFailure.DENY),
            limits=CheckLimits(self.limiter, headers),
            authenticators=authenticators or {},
        )
        self.service = Authorization(
            DestinationResolver(),
            lambda: NOW + self.at,
            DecisionLog.NONE,
            environment=environment,
            providers=providers,
        )
        self.service.use(snapshot(policies, mesh))

    def nanoseconds(self) -> int:
        """Return the time."""
        return int((NOW + self.at) * SECOND)

    def answer(self, request: Any = None) -> Any:
        """Return the CheckResponse to a request."""
        message = (check_request() if request is None else request).SerializeToString()
        answer = self.service.check(message, CALL)
        if isinstance(answer, Awaitable):
            answer = asyncio.run(_await(answer))
        return CheckResponse.FromString(answer)

    def statuses(self, count: int, request: Any = None) -> list[int]:
        """Return the HTTP statuses of equal calls."""
        return [int(self.answer(request).denied_response.status.code) or 200 for _ in range(count)]

    def code(self, request: Any = None) -> str:
        """Return why a call was decided as it was."""
        return str(self.answer(request).dynamic_metadata["code"])


async def _await(answer: Awaitable[bytes]) -> bytes:
    return await answer
