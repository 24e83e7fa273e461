"""Mixer's quotas: what calls are charged, all or nothing, and only when everything else allows them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any

import pytest
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from hypothesis import given
from hypothesis import strategies as st
from support.checks import CALL, NOW, check_request, decide_on, principal, result_on, snapshot
from support.policies import problems_of
from support.quotas import ALLOWED, quotas

from authz.decision import ReasonCode
from authz.environment import Environment
from authz.mixer.quotas import QuotaAnswer, QuotaCharge
from authz.pipeline import Charge
from authz.policy.compile import MeshSettings
from authz.service import Authorization, DecisionLog, DestinationResolver
from authz.tools.requests import explained
from garrison.errors import DependencyError
from garrison.process.mixer_quotas import StoreQuotas
from ratelimit.algorithm import SECOND, OnStoreFailure
from ratelimit.store.memory import MemoryStore

EXHAUSTED = "RESOURCE_EXHAUSTED:Quota is exhausted for: requestcount"


class Served:
    """A service that counts in memory, with a clock that tests set (seconds since `NOW`)."""

    def __init__(self, text: str) -> None:
        self.at = 0.0
        store = StoreQuotas(MemoryStore(), self._nanoseconds, OnStoreFailure.DENY)
        self.service = serving(text, store)

    def _nanoseconds(self) -> int:
        return int((NOW + self.at) * SECOND)

    def status(self, **request: Any) -> int:
        """Return the HTTP status of a call."""
        response = parsed(self.service.check(check_request(**request).SerializeToString(), CALL))
        return int(response.denied_response.status.code) or 200

    def statuses(self, count: int, **request: Any) -> list[int]:
        """Return the statuses of equal calls."""
        return [self.status(**request) for _ in range(count)]


def serving(text: str, counting: Any) -> Authorization:
    """Return a service with policies and who counts."""
    environment = Environment(quotas=counting)
    service = Authorization(DestinationResolver(), lambda: NOW, DecisionLog.NONE, environment=environment)
    service.use(snapshot(ALLOWED + text))
    return service


def parsed(answer: bytes | Awaitable[bytes]) -> Any:
    """Return an answer that was given at once."""
    assert isinstance(answer, bytes)
    return CheckResponse.FromString(answer)


def charges(text: str, **request: Any) -> list[tuple[str, int, int]]:
    """Return (quota, amount, limit) of what a call would be charged."""
    result = result_on(ALLOWED + text, check_request(**request))
    assert isinstance(result, Charge)
    return [(one.quota, one.amount, one.limit.max_amount) for one in result.charges]


def test_the_sixth_call_of_five_is_denied_with_429() -> None:
    """The body is that of Istio's proxy; the caller is told when to come again."""
    served = Served(quotas())
    assert served.statuses(5) == [200] * 5
    response = parsed(served.service.check(check_request().SerializeToString(), CALL))
    assert response.denied_response.status.code == 429
    assert response.denied_response.body == EXHAUSTED
    headers = {one.header.key: one.header.value for one in response.denied_response.headers}
    assert headers["retry-after"] == "60"
    assert response.dynamic_metadata["code"] == "quota_exhausted"
    assert response.dynamic_metadata["policy"] == "rule istio-system/quota"
    served.at = 60
    assert served.statuses(6) == [200] * 5 + [429]


def test_a_denied_call_costs_nothing() -> None:
    """Quotas are the last step: what something else denies is not charged."""
    served = Served(quotas("maxAmount: 1, validDuration: 60s"))
    assert served.statuses(3, method="POST") == [403] * 3
    assert served.statuses(2) == [200, 429]


def test_each_value_of_the_dimensions_has_its_own_count() -> None:
    """Who is over does not take from others."""
    served = Served(quotas("maxAmount: 1, validDuration: 60s"))
    assert served.statuses(2, source=principal("a")) == [200, 429]
    assert served.statuses(2, source=principal("b")) == [200, 429]


@pytest.mark.parametrize("kind", ["memquota", "redisquota"])
def test_the_first_override_that_fits_counts(kind: str) -> None:
    """Every dimension has to be equal, in the form that its type has."""
    duration = ", validDuration: 60s" if kind == "memquota" else ""
    overrides = (
        f'[{{dimensions: {{ip: "192.10.1.118", source: x}}, maxAmount: 1{duration}}},'
        f' {{dimensions: {{ip: "192.10.1.118"}}, maxAmount: 2{duration}}},'
        f' {{dimensions: {{ip: "::ffff:192.10.1.118"}}, maxAmount: 3{duration}}}]'
    )
    text = quotas(
        f"maxAmount: 42, validDuration: 60s, overrides: {overrides}",
        kind=kind,
        dimensions='{ip: source.ip, source: source.principal | "nobody"}',
    )
    assert charges(text, source_ip="192.10.1.118") == [("requestcount", 1, 2)]
    assert charges(text, source_ip="192.10.1.119") == [("requestcount", 1, 42)]


# (seconds, whether 10 of 10 in 60s are granted): what Mixer's own tests of memquota hold.
ROLLING = [(1, True), (2, False), (60, False), (61, True), (121, True), (122, False)]


def test_memquota_rolls_as_in_mixer() -> None:
    """What was taken comes back one window later."""
    served = Served(
        quotas("maxAmount: 10, validDuration: 60s", rules="[{quotas: [{quota: requestcount, charge: 10}]}]")
    )
    for second, granted in ROLLING:
        served.at = second
        assert served.status() == (200 if granted else 429), second


@pytest.mark.parametrize(
    "algorithm", ["FIXED_WINDOW", "ROLLING_WINDOW, bucketDuration: 1s"], ids=["fixed", "rolling"]
)
def test_redisquota_grants_all_or_nothing(algorithm: str) -> None:
    """30 of 50 are granted, then 30 more are not, and nothing is lost by asking."""
    rules = (
        "[{match: [{clause: {request.method: {exact: GET}, request.url_path: {prefix: /much}}}],"
        " quotas: [{quota: requestcount, charge: 30}]},"
        " {match: [{clause: {request.url_path: {exact: /less}}}], quotas: [{quota: requestcount, charge: 20}]}]"
    )
    text = quotas(
        f"maxAmount: 50, validDuration: 30s, rateLimitAlgorithm: {algorithm}", kind="redisquota", rules=rules
    )
    served = Served(text)
    paths = ["/much/1", "/much/2", "/less", "/less", "/free"]
    assert [served.status(path=path) for path in paths] == [200, 429, 200, 429, 200]
    served.at = 30
    assert served.status(path="/much") == 200


@pytest.mark.parametrize(
    ("match", "path", "charged"),
    [
        ("{request.path: {exact: /a}}", "/a", True),
        ("{request.path: {exact: /a}}", "/a?x=1", True),
        ("{request.path: {exact: '/a?x=1'}}", "/a?x=1", True),
        ("{request.path: {exact: /a}}", "/ab", False),
        ("{request.path: {prefix: /a}}", "/ab", True),
        ("{request.path: {regex: '/a|/b'}}", "/b", True),
        ("{request.path: {regex: '/a|/b'}}", "/bc", False),
        ("{request.path: {regex: '/a'}}", "/a\n", False),
        ("{source.principal: {}}", "/", False),
        ("{request.path: {prefix: /}, request.method: {exact: PUT}}", "/", False),
        ("{}", "/", True),
    ],
)
def test_clauses(match: str, path: str, *, charged: bool) -> None:
    """All clauses of a match have to hold; an attribute that is absent matches nothing, not even `{}`."""
    rules = f"[{{match: [{{clause: {match}}}], quotas: [{{quota: requestcount}}]}}]"
    result = result_on(ALLOWED + quotas(rules=rules), check_request(path=path))
    assert isinstance(result, Charge) is charged


def test_rules_that_apply_add_up() -> None:
    """A quota that two rules name is charged for both, once for each handler."""
    rules = "[{quotas: [{quota: requestcount, charge: 2}]}, {quotas: [{quota: REQUESTCOUNT, charge: 3}]}]"
    assert charges(quotas(rules=rules)) == [("requestcount", 5, 5)]


@pytest.mark.parametrize(
    ("services", "bound"),
    [
        ("[{name: products}]", True),
        ("[{name: products, namespace: default}]", True),
        ("[{name: products, namespace: other}]", False),
        ("[{name: products, domain: svc.cluster.local}]", True),
        ("[{service: products.default.svc.cluster.local}]", True),
        ("[{service: products}]", False),
        ("[{service: '*'}]", True),
        ("[{service: '*.default.*'}]", True),
        ("[{service: '*.other.*'}]", False),
    ],
)
def test_bindings(services: str, *, bound: bool) -> None:
    """Short names with a namespace, full names, and pieces of them; who is not bound pays nothing."""
    result = result_on(ALLOWED + quotas(services=services), check_request())
    assert isinstance(result, Charge) is bound


def test_a_rule_that_does_not_match_exempts() -> None:
    """As in Mixer; one that cannot be told does not exempt."""
    text = quotas(match='request.headers["x-plan"] != "free"')
    assert not isinstance(result_on(ALLOWED + text, check_request(headers={"x-plan": "free"})), Charge)
    assert isinstance(result_on(ALLOWED + text, check_request(headers={"x-plan": "paid"})), Charge)
    assert isinstance(result_on(ALLOWED + text, check_request()), Charge)


def test_a_dimension_without_a_value_denies() -> None:
    """Leaving a header out is no way around a quota."""
    decision = decide_on(
        ALLOWED + quotas(dimensions="""{user: 'request.headers["x-user"]'}"""), check_request()
    )
    assert (decision.allowed, decision.code) == (False, ReasonCode.QUOTA_UNAVAILABLE)
    assert decision.http_status == 500


def test_a_quota_that_no_rule_sends_denies() -> None:
    """Mixer grants what nobody has heard of."""
    text = quotas(rules="[{quotas: [{quota: other}]}]", services="[{service: '*'}]")
    assert decide_on(ALLOWED + text, check_request()).code is ReasonCode.QUOTA_UNAVAILABLE


def test_a_denier_never_grants() -> None:
    """It takes quotas, too."""
    text = quotas().replace("kind: rule", "kind: rule").replace("handler.memquota", "stop.denier")
    text += """
apiVersion: config.istio.io/v1alpha2
kind: denier
metadata: {name: stop, namespace: istio-system}
---
"""
    decision = decide_on(ALLOWED + text, check_request())
    assert (decision.http_status, decision.public) == (429, EXHAUSTED)


class Broken:
    """Nobody can tell, at once or later."""

    def __init__(self, *, later: bool) -> None:
        self._later = later

    def spend(self, charges: Sequence[QuotaCharge]) -> list[QuotaAnswer] | Awaitable[list[QuotaAnswer]]:
        """Fail."""
        del charges
        if self._later:
            return self._fail()
        raise DependencyError("away")

    async def _fail(self) -> list[QuotaAnswer]:
        raise DependencyError("away")


@pytest.mark.parametrize("later", [False, True])
def test_without_the_store_calls_are_denied(*, later: bool) -> None:
    """A store that cannot tell denies with 503."""
    answer = serving(quotas(), Broken(later=later)).check(check_request().SerializeToString(), CALL)

    async def awaited() -> bytes:
        return answer if isinstance(answer, bytes) else await answer

    response = CheckResponse.FromString(asyncio.run(awaited()))
    assert response.denied_response.status.code == 503
    assert response.dynamic_metadata["code"] == "quota_unavailable"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (quotas("maxAmount: 5, validDuration: 0s"), "quota_duration"),
        (quotas("maxAmount: 5, validDuration: 1us"), "quota_duration"),
        (quotas("maxAmount: 5"), "missing_field"),
        (quotas("maxAmount: -1, validDuration: 1s"), "greater_than_equal"),
        (quotas(extra=", minDeduplicationDuration: 0s"), "quota_duration"),
        (quotas(kind="redisquota", extra=", redisServerUrl: a:1"), "unused_redis_url"),
        (quotas("maxAmount: 5, validDuration: 9s, rateLimitAlgorithm: ROLLING_WINDOW", kind="redisquota"), "quota_duration"),
        (quotas("maxAmount: 5, validDuration: 9s, overrides: [{dimensions: {other: a}, maxAmount: 1, validDuration: 1s}]"), "unreachable_override"),
        (quotas("maxAmount: 5, validDuration: 9s, overrides: [{dimensions: {}, maxAmount: 1, validDuration: 1s}, {dimensions: {source: a}, maxAmount: 1, validDuration: 1s}]"), "unreachable_override"),
        (quotas("maxAmount: 5, validDuration: 9s, overrides: [{dimensions: {source: x}, maxAmount: 1, validDuration: 1s}]", dimensions="{source: source.ip}"), "unreachable_override"),
        (quotas(rules="[{quotas: [{quota: other}]}]"), "unknown_quota"),
        (quotas(rules="[{match: [{clause: {request.headers: {}}}], quotas: [{quota: requestcount}]}]"), "clause_attribute"),
        (quotas(rules="[{match: [{clause: {no.such: {}}}], quotas: [{quota: requestcount}]}]"), "clause_attribute"),
        (quotas(rules="[{match: [{clause: {request.path: {regex: '('}}}], quotas: [{quota: requestcount}]}]"), "clause_match"),
        (quotas(rules="[{match: [{clause: {request.path: {regex: 'a)|(?:b'}}}], quotas: [{quota: requestcount}]}]"), "clause_match"),
        (quotas(rules="[{match: [{clause: {request.path: {exact: a, prefix: b}}}], quotas: [{quota: requestcount}]}]"), "clause_match"),
        (quotas(services="[{service: 'a*b'}]"), "service_pattern"),
        (quotas(services="[{namespace: default}]"), "service_pattern"),
        (quotas().replace("quotaSpecs: [{name: requests}]", "quotaSpecs: [{name: none}]"), "unknown_quota_spec"),
        (quotas().replace("quotas: [{name: requestcount.quota.istio-system", "quotas: [{name: other"), "no_quota_limit"),
        (quotas().replace("quotas: [{name: requestcount.quota.istio-system", "quotas: [{name: other"), "unused_limit"),
    ],
)  # fmt: skip
def test_mistakes(text: str, code: str) -> None:
    """Each is named where it stands."""
    assert any(f"[{code}]" in problem for problem in problems_of(text)), problems_of(text)


def test_a_redisquota_needs_a_shared_store() -> None:
    """Where the settings name none it is an error, and unknown where nobody knows the settings."""
    text = quotas(kind="redisquota")
    assert problems_of(text) == []
    assert problems_of(text, MeshSettings(has_shared_store=True)) == []
    assert "[no_shared_store]" in problems_of(text, MeshSettings(has_shared_store=False))[0]


def test_explanations_show_what_would_be_charged() -> None:
    """Offline nothing is charged, and the call counts as one that gets its quota."""
    found = explained(snapshot(ALLOWED + quotas()), check_request(), NOW)
    assert found.decision.allowed
    steps = [(stage, step.policy, step.detail) for stage, step in found.steps if stage == "QUOTA"]
    detail = "would take 1 of requestcount at handler.memquota.istio-system: 5 in 60s (rolling window)"
    assert steps == [("QUOTA", "rule istio-system/quota", detail)]


@given(
    st.integers(1, 12),
    st.integers(1, 6),
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from("ab"), st.booleans()), max_size=40),
)
def test_what_is_charged_is_what_a_plain_list_says(
    most: int, charge: int, calls: list[tuple[int, str, bool]]
) -> None:
    """Of one caller, never more than the limit in one window; denied calls and other callers cost nothing."""
    rules = f"[{{quotas: [{{quota: requestcount, charge: {charge}}}]}}]"
    served = Served(quotas(f"maxAmount: {most}, validDuration: 60s", rules=rules))
    taken: dict[str, list[float]] = {"a": [], "b": []}
    for wait, caller, permitted in calls:
        served.at += wait
        now = served.at
        fits = charge * (1 + sum(now - at < 60 for at in taken[caller])) <= most
        status = served.status(source=principal(caller), method="GET" if permitted else "POST")
        assert status == (403 if not permitted else 200 if fits else 429)
        if status == 200:
            taken[caller].append(now)
