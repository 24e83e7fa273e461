"""RateLimitPolicy: what calls are charged inside Check, by what was verified, and that nothing is left out."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.checks import check_request, decide_on, principal, result_on, snapshot
from support.credentials import MESH as MESH_OF_CREDENTIALS
from support.credentials import OPEN, Fixed, authentication, good
from support.policies import connection, policy, problems_of, tokens, with_token
from support.quotas import ALLOWED, quotas
from support.rate_limits import BY_IDENTITY, BY_SUBJECT, THREE, Charged, rate_limit
from support.tokens import forge

from authz.authn.credentials import Answer
from authz.decision import ReasonCode
from authz.environment import OFFLINE
from authz.lint import lint_policies
from authz.pipeline import Charge
from authz.policy.compile import MeshSettings, compile_policies
from authz.providers import ProviderAnswer
from authz.rate_limits import LimitAnswer, LimitRequest, OverLimit
from authz.tools.lint import find_problems
from authz.tools.requests import answer as offline
from authz.tools.requests import explained
from garrison.cli import main
from garrison.documents import Field, parse
from garrison.errors import DependencyError
from garrison.process.check_limits import CheckLimits
from ratelimit.algorithm import Outcome
from ratelimit.charge import Spend
from ratelimit.limiter import Decision as LimiterDecision
from ratelimit.limiter import Status
from ratelimit.response import HeaderNames
from ratelimit.store.base import Store
from ratelimit.store.memory import MemoryStore

MESH = MeshSettings()
BASE = ALLOWED + tokens()
USERS = BASE + rate_limit(BY_SUBJECT)
WORKLOADS = ALLOWED + rate_limit(BY_IDENTITY)


def charges(text: str, request: Any = None) -> list[tuple[tuple[tuple[str, str], ...], int]]:
    """Return the descriptors that a call is charged, with their hits."""
    result = result_on(text, check_request() if request is None else request)
    if not isinstance(result, Charge):
        assert result.decision.allowed  # type: ignore[union-attr]
        return []
    return [(one.entries, one.hits) for asked in result.limits for one in asked.descriptors]


def entry(fields: str) -> str:
    """Return a descriptor of one entry with the key `k`."""
    return f"{{entries: [{{key: k, {fields}}}]}}"


# ----------------------------------------------------------------------------------------------- what counts


def test_each_subject_has_its_own_count() -> None:
    """The fourth call of three is denied with 429; other users are not concerned; then time helps."""
    served = Charged(USERS)
    assert served.statuses(4, with_token({"sub": "ann"})) == [200] * 3 + [429]
    assert served.statuses(4, with_token({"sub": "bob"})) == [200] * 3 + [429]
    served.at = 60
    assert served.statuses(1, with_token({"sub": "ann"})) == [200]


def test_each_identity_has_its_own_count() -> None:
    """The SPIFFE ID that Envoy verified tells workloads apart."""
    served = Charged(WORKLOADS)
    assert served.statuses(4, check_request(source=principal("a"))) == [200] * 3 + [429]
    assert served.statuses(1, check_request(source=principal("b"))) == [200]


def test_what_is_remembered_of_decisions_skips_no_charge() -> None:
    """The policies' decision for equal calls is remembered; each of them is charged all the same."""
    served = Charged(policy('[{from: [{source: {namespaces: ["default"]}}]}]') + rate_limit(BY_IDENTITY))
    call = check_request(source=principal("a"))
    assert served.statuses(4, call) == [200] * 3 + [429]
    text = str(served.limiter.statistics.hits())
    assert "within_limit=3" in text
    assert "over_limit=1" in text
    assert served.answer(call).denied_response.status.code == 429


def test_what_is_denied_costs_nothing() -> None:
    """Limits come after everything that may deny, quotas of Mixer included, which a denied call keeps."""
    served = Charged(USERS + quotas())
    assert served.statuses(5, with_token({"sub": "ann"}, method="POST")) == [403] * 5
    assert served.statuses(4, with_token({"sub": "ann"})) == [200] * 3 + [429]
    assert served.statuses(3, with_token({"sub": "bob"})) == [200, 200, 429]  # of five in all
    assert served.code(with_token({"sub": "bob"})) == "rate_limited"
    assert served.code(with_token({"sub": "eve"})) == "quota_exhausted"


def test_the_denial_says_which_limit_and_when_to_come_again() -> None:
    """Operators see the limit and the descriptor's keys, not its values; callers how long to wait."""
    served = Charged(USERS)
    call = with_token({"sub": "ann"})
    served.at = 15
    served.statuses(3, call)
    response = served.answer(call)
    metadata = dict(response.dynamic_metadata)
    assert metadata["code"] == "rate_limited"
    assert (
        metadata["reason"] == "over the limit of domain `d` for (user): per-user, 3 a minute at f.yaml:4:27"
    )
    assert (metadata["policy"], metadata["rule"]) == ("RateLimitPolicy default/r", 0)
    assert metadata["field"] == "spec.descriptors[0]"
    headers = {one.header.key: one.header.value for one in response.denied_response.headers}
    assert headers["retry-after"] == "45"
    assert response.denied_response.body == "rate limit exceeded"
    assert "ann" not in str(response)


def test_headers_are_those_of_the_rate_limit_service() -> None:
    """Where the settings want them, allowed and denied callers are told how much is left."""
    served = Charged(USERS, headers=HeaderNames())
    call = with_token({"sub": "ann"})

    def told(headers: Any) -> dict[str, str]:
        return {one.header.key: one.header.value for one in headers if "ateLimit" in one.header.key}

    left = [told(served.answer(call).ok_response.response_headers_to_add) for _ in range(3)]
    assert [one["RateLimit-Remaining"] for one in left] == ["2", "1", "0"]
    assert told(served.answer(call).denied_response.headers) == {
        "RateLimit-Limit": "3",
        "RateLimit-Remaining": "0",
        "RateLimit-Reset": "60",
    }
    assert "RateLimit" not in str(Charged(USERS).answer(call))


def test_a_grpc_caller_gets_resource_exhausted() -> None:
    """Of HTTP 429 Envoy would make UNAVAILABLE, which callers retry at once."""
    served = Charged(WORKLOADS)
    call = check_request(source=principal("a"), headers={"content-type": "application/grpc"})
    served.statuses(3, call)
    headers = {one.header.key: one.header.value for one in served.answer(call).denied_response.headers}
    assert headers["grpc-status"] == "8"


def test_a_response_policy_shapes_the_denial() -> None:
    """As any other."""
    shape = """
apiVersion: garrison.dev/v1alpha1
kind: ResponsePolicy
metadata: {name: s, namespace: default}
spec: {denied: [{forStatus: [429], body: "come again: ${reason}"}]}
---
"""
    served = Charged(WORKLOADS + shape)
    call = check_request(source=principal("a"))
    served.statuses(3, call)
    response = served.answer(call).denied_response
    assert response.body == "come again: rate limit exceeded"
    assert "retry-after" in {one.header.key for one in response.headers}


# --------------------------------------------------------------------------------- descriptors and their values


@pytest.mark.parametrize(
    ("fields", "value"),
    [
        ("value: all", "all"),
        ("attribute: source.principal", "cluster.local/ns/default/sa/a"),
        ("attribute: source.namespace", "default"),
        ("attribute: source.ip", "10.0.0.1"),
        ("attribute: destination.service", "products.default.svc.cluster.local"),
        ("attribute: request.method", "GET"),
        ("attribute: request.path", "/a"),
        ("attribute: request.auth.principal", "https://issuer.example/ann"),
        ('attribute: "request.auth.claims[sub]"', "ann"),
        ('attribute: "request.auth.claims[org][team]"', "x"),
        ('attribute: "request.headers[X-A]"', "h"),
        ("attribute: request.auth.presenter, default: nobody", "nobody"),
        ('attribute: "request.headers[x-empty]", default: none', "none"),
        ('attribute: "request.auth.claims[groups]"', "only"),
        ('attribute: "experimental.envoy.filters.http.x[one]"', "meta"),
        ('attribute: "experimental.envoy.filters.http.x[list]"', "item"),
    ],
)
def test_values(fields: str, value: str) -> None:
    """Literals, and every attribute that policies know; one value in a list is that value."""
    claims = {"sub": "ann", "org": {"team": "x"}, "groups": ["only"]}
    headers = {"x-a": "h", "x-empty": ""}
    call = with_token(claims, source=principal("a"), path="/a?b=c", headers=headers)
    other = call.attributes.metadata_context.filter_metadata["envoy.filters.http.x"]
    other.update({"one": "meta", "list": ["item"]})
    assert charges(BASE + rate_limit(entry(fields)), call) == [((("k", value),), 1)]


def test_entries_keep_their_order_and_hits_count() -> None:
    """A descriptor is what Envoy would have sent."""
    text = '{entries: [{key: b, value: x}, {key: a, attribute: "request.auth.claims[sub]"}], hitsAddend: 5}'
    assert charges(BASE + rate_limit(text), with_token({"sub": "ann"})) == [((("b", "x"), ("a", "ann")), 5)]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ('attribute: "request.auth.claims[sub]"', "`request.auth.claims[sub]` is absent"),
        ('attribute: "request.auth.claims[sub]", whenAbsent: DENY', "`request.auth.claims[sub]` is absent"),
        ("attribute: source.principal", "`source.principal` is absent"),
        ('attribute: "request.headers[x-none]"', "`request.headers[x-none]` is absent"),
        ('attribute: "request.headers[x-empty]"', "`request.headers[x-empty]` is absent"),
        ('attribute: "request.headers[x-two]"', "`request.headers[x-two]` has 2 values"),
        ('attribute: "request.headers[x-two]", default: a', "`request.headers[x-two]` has 2 values"),
        ('attribute: "request.headers[x-two]", whenAbsent: SKIP', "`request.headers[x-two]` has 2 values"),
        ('attribute: "request.headers[x-raw]"', "`request.headers[x-raw]` is not UTF-8"),
        ('attribute: "request.headers[x-raw]", whenAbsent: SKIP', "`request.headers[x-raw]` is not UTF-8"),
    ],
)
def test_what_cannot_be_told_denies(fields: str, why: str) -> None:
    """A value that is missing, one of several, or no text never means that there is no limit."""
    raw = [("x-empty", b""), ("x-two", b"a"), ("x-two", b"b"), ("x-raw", b"\xff")]
    decision = decide_on(BASE + rate_limit(entry(fields)), check_request(raw_headers=raw))
    assert (decision.allowed, decision.code) == (False, ReasonCode.RATE_LIMIT_UNDETERMINED)
    assert (decision.http_status, decision.reason) == (403, f"{why}: nobody can tell which limit counts")
    assert decision.field == "spec.descriptors[0].entries[0]"


def test_a_claim_with_several_values_denies() -> None:
    """Which group's limit counts nobody can tell; the first is no better than another."""
    text = BASE + rate_limit(entry('attribute: "request.auth.claims[groups]", default: x'))
    decision = decide_on(text, with_token({"groups": ["a", "b"]}))
    assert decision.code is ReasonCode.RATE_LIMIT_UNDETERMINED
    assert charges(text, with_token({"groups": ["a", "a"]})) == [((("k", "a"),), 1)]


def test_skip_leaves_out_that_descriptor_alone() -> None:
    """It is the policy's explicit word; the others are charged."""
    skipped = '{entries: [{key: u, attribute: "request.auth.claims[sub]", whenAbsent: SKIP}]}'
    text = BASE + rate_limit(skipped, entry("value: all"))
    assert charges(text) == [((("k", "all"),), 1)]
    assert len(charges(text, with_token({"sub": "a"}))) == 2
    assert charges(BASE + rate_limit(skipped)) == []


def test_a_default_is_one_count_for_all_without_a_value() -> None:
    """Callers without a token share what there is for them."""
    served = Charged(BASE + rate_limit(BY_SUBJECT.replace('"}', '", default: "-"}')))
    assert served.statuses(2) == [200, 200]
    assert served.statuses(2, check_request(headers={"user": "x"}, source_ip="10.9.9.9")) == [200, 429]


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"x-sub": "ann"},
        {"sub": "ann"},
        {"x-jwt-payload": "eyJzdWIiOiJhbm4ifQ"},
    ],
)
def test_without_a_verified_token_there_is_no_subject(header: dict[str, str]) -> None:
    """A header that says who calls is a header."""
    assert decide_on(USERS, check_request(headers=header)).code is ReasonCode.RATE_LIMIT_UNDETERMINED


def test_an_unverified_token_has_no_claims() -> None:
    """Where nothing verifies tokens their claims are absent; where something does, a forged one is refused."""
    forged = forge({"alg": "EdDSA", "kid": "k1"}, {"iss": "https://issuer.example", "sub": "ann"})
    call = check_request(headers={"authorization": f"Bearer {forged}"})
    unverified = decide_on(ALLOWED + rate_limit(BY_SUBJECT), call)
    assert unverified.code is ReasonCode.RATE_LIMIT_UNDETERMINED
    assert decide_on(USERS, call).code is ReasonCode.INVALID_TOKEN


def test_a_name_that_is_no_identity_is_absent() -> None:
    """`source.principal` is a SPIFFE ID or nothing, whatever Envoy reports."""
    assert decide_on(WORKLOADS, check_request(source="CN=a")).code is ReasonCode.RATE_LIMIT_UNDETERMINED


@given(
    st.dictionaries(st.from_regex(r"\Ax-[a-z]{1,6}\Z"), st.text("abc,;=|%~", max_size=5), max_size=6),
    st.randoms(use_true_random=False),
    st.sampled_from(["ann", "bob"]),
)
def test_charges_depend_on_verified_values_alone(headers: dict[str, str], random: Any, subject: str) -> None:
    """Whatever other headers a call has, in whatever order, it is charged to the same counts."""
    text = COMPILED
    plain = charges_on(text, with_token({"sub": subject}, source=principal("a")))
    lines = list(headers.items())
    random.shuffle(lines)
    shuffled = charges_on(text, with_token({"sub": subject}, source=principal("a"), headers=dict(lines)))
    assert plain == shuffled == [((("user", subject), ("from", "cluster.local/ns/default/sa/a")), 1)]


COMPILED = snapshot(
    BASE
    + rate_limit(
        '{entries: [{key: user, attribute: "request.auth.claims[sub]"}, {key: from, attribute: source.principal}]}'
    )
)


def charges_on(policies: Any, request: Any) -> list[Any]:
    """Return the descriptors that a call is charged."""
    result = result_on(policies, request)
    assert isinstance(result, Charge)
    return [(one.entries, one.hits) for asked in result.limits for one in asked.descriptors]


# ---------------------------------------------------------------------------------------- which policies apply


@pytest.mark.parametrize(
    ("namespace", "spec", "labels", "applies"),
    [
        ("default", "", {}, True),
        ("other", "", {}, False),
        ("istio-system", "", {}, True),
        ("default", "selector: {matchLabels: {app: a}}", {"app": "a"}, True),
        ("default", "selector: {matchLabels: {app: a}}", {"app": "b"}, False),
        ("default", "targetRefs: [{kind: Service, name: products}]", {}, False),
        (
            "default",
            "targetRef: {kind: Service, name: products}",
            {"gateway.networking.k8s.io/gateway-name": "w"},
            True,
        ),
    ],
)
def test_selection(namespace: str, spec: str, labels: dict[str, str], *, applies: bool) -> None:
    """Namespaces, labels and targets mean what they mean in the other kinds."""
    extensions = {f"destination.labels[{name}]": value for name, value in labels.items()}
    extensions["destination.namespace"] = "default"
    text = ALLOWED + rate_limit(entry("value: x"), namespace=namespace, spec=spec)
    assert bool(charges(text, check_request(extensions=extensions))) is applies


def test_it_allows_nothing() -> None:
    """A mesh that has only limits denies everything, as without them."""
    assert decide_on(rate_limit(entry("value: x")), check_request()).code is ReasonCode.NO_ROLE_MATCHED


def test_connections_are_charged_once() -> None:
    """What Envoy's network filter asks about is a call like others; attributes of requests are absent."""
    by_source = rate_limit(BY_IDENTITY)
    allowed = policy("[{}]")
    assert charges(allowed + by_source, connection(source=principal("a")))
    denied = decide_on(allowed + rate_limit(entry("attribute: request.path")), connection())
    assert denied.code is ReasonCode.RATE_LIMIT_UNDETERMINED


# ------------------------------------------------------------------------------------------ several at a time


def test_policies_of_one_domain_are_one_request() -> None:
    """With `denied_hits: free` a call gets all that it is charged for, or nothing."""
    limits = """
domain: d
descriptors:
- {key: k, rate_limit: {unit: minute, requests_per_unit: 2, denied_hits: free}}
- {key: workload, rate_limit: {unit: minute, requests_per_unit: 3, denied_hits: free}}
"""
    served = Charged(ALLOWED + rate_limit(entry("value: all"), name="a") + rate_limit(BY_IDENTITY), limits)
    a, b = check_request(source=principal("a")), check_request(source=principal("b"))
    assert served.statuses(4, a) == [200, 200, 429, 429]
    served.at = 60
    assert served.statuses(1, b) == [200]
    assert served.statuses(2, a) == [200, 429]
    assert "RateLimitPolicy default/a" in str(served.answer(a))


def test_domains_are_charged_in_their_order_until_one_denies() -> None:
    """What a later domain has is not touched by calls that an earlier one denies."""
    text = (
        THREE + "---\ndomain: e\ndescriptors: [{key: k, rate_limit: {unit: minute, requests_per_unit: 4}}]\n"
    )
    policies = WORKLOADS + rate_limit(entry("value: all"), name="e", domain="e")
    served = Charged(policies, text)
    assert served.statuses(5, check_request(source=principal("a"))) == [200] * 3 + [429] * 2
    assert served.statuses(2, check_request(source=principal("b"))) == [200, 429]


def test_replaces_and_shadow_mode() -> None:
    """The limits mean what they mean for `ShouldRateLimit`."""
    limits = """
domain: d
descriptors:
- {key: k, rate_limit: {name: all, unit: minute, requests_per_unit: 1}}
- {key: workload, value: "cluster.local/ns/default/sa/vip", rate_limit: {unit: minute, requests_per_unit: 3, replaces: [{name: all}]}}
- {key: workload, shadow_mode: true, rate_limit: {unit: minute, requests_per_unit: 1}}
"""
    served = Charged(ALLOWED + rate_limit(entry("value: all"), BY_IDENTITY), limits)
    assert served.statuses(4, check_request(source=principal("vip"))) == [200] * 3 + [429]
    assert served.statuses(2, check_request(source=principal("a"))) == [200, 429]
    shadowed = Charged(WORKLOADS, limits)
    assert shadowed.statuses(3, check_request(source=principal("a"))) == [200] * 3
    assert shadowed.limiter.counters()["d"].shadowed == 2


def test_quota_mode_denies_only_together() -> None:
    """One descriptor with something left is enough; the wait is until the first has something again."""
    limits = """
domain: d
descriptors:
- {key: a, quota_mode: true, rate_limit: {unit: minute, requests_per_unit: 1}}
- {key: b, quota_mode: true, rate_limit: {unit: hour, requests_per_unit: 2}}
"""
    both = "{entries: [{key: b, value: x}]}", "{entries: [{key: a, value: x}]}"
    served = Charged(ALLOWED + rate_limit(*both), limits)
    assert served.statuses(3) == [200, 200, 429]
    headers = {one.header.key: one.header.value for one in served.answer().denied_response.headers}
    assert headers["retry-after"] == "60"


def test_shadow_mode_for_everything_counts_and_allows() -> None:
    """`rate_limit.shadow_mode` holds for Check as well."""
    served = Charged(WORKLOADS, shadow_mode=True)
    assert served.statuses(5, check_request(source=principal("a"))) == [200] * 5
    counters = served.limiter.counters()["d"]
    assert (counters.allowed, counters.over_limit, counters.shadowed) == (5, 0, 2)


@pytest.mark.parametrize("limits", [THREE.replace("domain: d", "domain: e"), "domain: d\n"])
def test_what_nothing_limits_is_allowed(limits: str) -> None:
    """An unknown domain or a descriptor without a limit is no limit, as in `ShouldRateLimit`."""
    assert Charged(WORKLOADS, limits).statuses(9, check_request(source=principal("a"))) == [200] * 9


def test_a_cost_above_the_limit_names_no_time_to_come_again() -> None:
    """It would never fit."""
    served = Charged(ALLOWED + rate_limit(BY_IDENTITY.replace("]}", "], hitsAddend: 4}")))
    response = served.answer(check_request(source=principal("a")))
    assert response.denied_response.status.code == 429
    assert "retry-after" not in {one.header.key for one in response.denied_response.headers}


class Slow(Fixed):
    """An authenticator that has to be asked about everything."""

    def known(self, credential: str, now: float) -> Answer | None:
        """Return that it does not know."""
        del credential
        return super().known("", now)


def test_what_a_credential_establishes_is_charged() -> None:
    """Also where its authenticator has to be asked first; who is refused costs nothing."""
    text = OPEN + authentication("[{authenticator: keys}]") + rate_limit(BY_SUBJECT)
    asked = {"keys": Slow({"alices": good("alice"), "bobs": good("bob")})}
    served = Charged(text, mesh=MESH_OF_CREDENTIALS, authenticators=asked)
    keys = {name: check_request(headers={"x-api-key": name}) for name in ("alices", "bobs", "none")}
    assert served.statuses(4, keys["alices"]) == [200] * 3 + [429]
    assert served.statuses(1, keys["none"]) == [401]
    assert served.statuses(1, keys["bobs"]) == [200]


class Says:
    """A CUSTOM provider that says the same of every call."""

    def __init__(self, denial: str | None) -> None:
        self._answer = ProviderAnswer(denial)

    async def ask(self, message: bytes) -> ProviderAnswer:
        """Answer."""
        del message
        return self._answer


def test_calls_that_a_provider_allows_are_charged() -> None:
    """And those that it denies are not."""
    text = policy("[{}]", "CUSTOM", name="c", spec="provider: {name: ext}") + WORKLOADS
    mesh = MeshSettings(providers=frozenset({"ext"}))
    call = check_request(source=principal("a"))
    served = Charged(text, mesh=mesh, providers={"ext": Says(None)})
    assert served.statuses(4, call) == [200] * 3 + [429]
    denied = Charged(text, mesh=mesh, providers={"ext": Says("does not like it")})
    assert denied.statuses(4, call) == [403] * 4
    assert denied.limiter.counters().get("d") is None


# ------------------------------------------------------------------------------------------- without the store


class Broken(Store):
    """Nobody can tell, at once or later."""

    def __init__(self, *, later: bool) -> None:
        self._later = later

    def spend(self, spends: Sequence[Spend], now: int) -> list[Outcome] | Awaitable[list[Outcome]]:
        """Fail."""
        del spends, now
        if self._later:
            return self._fail()
        raise DependencyError("away")

    async def _fail(self) -> list[Outcome]:
        raise DependencyError("away")


class Late(Store):
    """Counts in memory and answers later."""

    def __init__(self) -> None:
        self._store = MemoryStore()

    def spend(self, spends: Sequence[Spend], now: int) -> list[Outcome] | Awaitable[list[Outcome]]:
        """Answer later."""
        found = self._store.spend(spends, now)
        assert isinstance(found, list)
        return self._answer(found)

    async def _answer(self, found: list[Outcome]) -> list[Outcome]:
        return found


@pytest.mark.parametrize("later", [False, True])
def test_without_the_store_calls_are_denied(*, later: bool) -> None:
    """503, nothing is taken of a Mixer quota, and it is counted as an error of the domain."""
    served = Charged(WORKLOADS + quotas(), store=Broken(later=later))
    call = check_request(source=principal("a"))
    assert served.statuses(7, call) == [503] * 7
    assert served.code(call) == "rate_limit_unavailable"
    assert served.limiter.counters()["d"].errors == 8
    assert served.statuses(1, check_request(method="POST")) == [403]


def test_a_store_that_answers_later() -> None:
    """Limits, then quotas, each when the one before has been answered."""
    served = Charged(WORKLOADS + quotas("maxAmount: 2, validDuration: 60s"), store=Late())
    call = check_request(source=principal("a"))
    assert [served.code(call) for _ in range(4)] == [
        *["policy_matched"] * 2,
        "quota_exhausted",
        "rate_limited",
    ]


def test_nobody_counts_offline() -> None:
    """A process without limits denies what is charged, rather than to let it pass."""
    with pytest.raises(DependencyError):
        OFFLINE.limits.spend(LimitRequest("d", ()))


class Faulty:
    """Has a bug."""

    def spend(self, request: LimitRequest) -> LimitAnswer:
        """Fail."""
        raise ZeroDivisionError(request)


def test_a_bug_denies() -> None:
    """As anywhere in Check."""
    served = Charged(WORKLOADS)
    environment = served.service._environment
    object.__setattr__(environment, "limits", Faulty())
    assert served.statuses(1, check_request(source=principal("a"))) == [500]


def test_a_denial_that_names_no_limit_denies(monkeypatch: pytest.MonkeyPatch) -> None:
    """As any limit does, and not through a fault; nobody knows when to come again."""
    served = Charged(WORKLOADS)
    nameless = LimiterDecision(
        over_limit=True, shadowed=False, statuses=[Status(None, None, over_limit=False)]
    )
    monkeypatch.setattr(served.limiter, "charge", lambda *_: nameless)
    answer = served.answer(check_request(source=principal("a")))
    assert answer.denied_response.status.code == 429
    assert answer.dynamic_metadata["code"] == "rate_limited"
    assert "retry-after" not in {one.header.key for one in answer.denied_response.headers}
    over = CheckLimits(served.limiter, None).spend(LimitRequest("d", ()))
    assert over == LimitAnswer((OverLimit(0, "a limit that was not named"),))


# ------------------------------------------------------------------------------------------------- the tools


def test_offline_nothing_is_charged() -> None:
    """`garrison check` and `eval` show what would be taken, as with Mixer's quotas."""
    compiled = snapshot(USERS)
    call = with_token({"sub": "ann"})
    now = 1_800_000_000.0
    assert offline(compiled, call, now).allowed
    steps = [step for stage, step in explained(compiled, call, now).steps if stage == "RATE LIMIT"]
    assert [(step.matched, step.detail) for step in steps] == [(True, "would take 1 of domain d: user=ann")]
    explanation = explained(compiled, check_request(), now)
    assert not explanation.decision.allowed
    steps = [step for stage, step in explanation.steps if stage == "RATE LIMIT"]
    assert "`request.auth.claims[sub]` is absent" in steps[0].detail
    denied = explained(compiled, check_request(method="POST"), now)
    assert not [stage for stage, _ in denied.steps if stage == "RATE LIMIT"]


@pytest.mark.parametrize(
    ("fields", "code", "place"),
    [
        ("attribute: request.auth.claim", "unknown_key", "entries[0].attribute"),
        ("attribute: source.principal.any", "unknown_key", "entries[0].attribute"),
        ("attribute: request.auth.pair", "unknown_key", "entries[0].attribute"),
        ("attribute: request.auth.claims", "key_argument", "entries[0].attribute"),
        ('attribute: "source.principal[x]"', "unknown_key", "entries[0].attribute"),
        ("value: a, attribute: source.ip", "exclusive", "entries[0]"),
        ("default: a", "exclusive", "entries[0]"),
        ("value: a, default: b", "exclusive", "entries[0].default"),
        ("value: a, whenAbsent: SKIP", "exclusive", "entries[0].whenAbsent"),
        ("attribute: source.ip, default: b, whenAbsent: SKIP", "exclusive", "entries[0].whenAbsent"),
        ("attribute: source.ip, whenAbsent: ALLOW", "literal_error", "entries[0].whenAbsent"),
        ('value: ""', "string_too_short", "entries[0].value"),
        ("value: 1", "string_type", "entries[0].value"),
        ("attribute: source.ip, when: x", "unknown_field", "entries[0].when"),
    ],
)
def test_mistakes_in_entries(fields: str, code: str, place: str) -> None:
    """Each is an error with its line, and nothing is loaded."""
    problems = problems_of(rate_limit(entry(fields)))
    assert len(problems) == 1
    assert problems[0].startswith("p.yaml:5:")
    assert problems[0].endswith(f"[{code}]")
    assert f"spec.descriptors[0].{place}" in problems[0]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (rate_limit(), "too_short"),
        (rate_limit("{entries: []}"), "too_short"),
        (rate_limit(entry("value: a"), domain="''"), "string_too_short"),
        (rate_limit(entry("value: a").replace("]}", "], hitsAddend: 0}")), "greater_than_equal"),
        (rate_limit(entry("value: a").replace("]}", "], hitsAddend: 1000000001}")), "less_than_equal"),
        (
            rate_limit(entry("value: a"), spec="selector: {}, targetRefs: [{kind: Service, name: a}]"),
            "exclusive",
        ),
        (rate_limit(entry("value: a"), spec="selector: {matchLabels: {a: 'b*'}}"), "selector"),
        (rate_limit(entry("value: a")) * 2, "duplicate_name"),
    ],
)
def test_mistakes_around_them(text: str, code: str) -> None:
    """Shapes, numbers and selectors are checked as in other kinds."""
    assert [problem.rpartition("[")[2].rstrip("]") for problem in problems_of(text)] == [code]


NESTED = """
domain: d
descriptors:
- key: plan
  value: free
  descriptors:
  - {key: user, rate_limit: {unit: minute, requests_per_unit: 1}}
- key: path
  value: /a*
  rate_limit: {unlimited: true}
- {key: nothing}
- key: tenant
  rate_limit: {unit: minute, requests_per_unit: 1}
  descriptors: [{key: id, deduplicate: 30s}]
"""


@pytest.mark.parametrize(
    ("entries", "warning"),
    [
        ("{key: plan, value: free}, {key: user, attribute: source.ip}", ""),
        ('{key: plan, attribute: "request.headers[p]"}, {key: user, attribute: source.ip}', ""),
        ("{key: plan, value: paid}, {key: user, attribute: source.ip}", "no rule for `plan=paid` as entry 0"),
        ("{key: plan, value: free}, {key: usr, attribute: source.ip}", "no rule for `usr` as entry 1"),
        ("{key: plan, value: free}", "where these entries lead, domain `d` has no limit"),
        ("{key: nothing, attribute: source.ip}", "where these entries lead, domain `d` has no limit"),
        ("{key: path, attribute: request.path}", ""),
        ("{key: path, value: /b}", "no rule for `path=/b` as entry 0"),
        ('{key: tenant, value: t}, {key: id, attribute: "request.headers[x-request-id]"}', ""),
    ],
)
def test_lint_finds_descriptors_that_nothing_limits(tmp_path: Path, entries: str, warning: str) -> None:
    """Only where limits are linted with the policies, and only what is certain."""
    main.get_command(None, "lint")  # type: ignore[arg-type] # so that limits are linted, too
    (tmp_path / "p.yaml").write_text(rate_limit(f"{{entries: [{entries}]}}"))
    assert find_problems([tmp_path], MESH) == []
    (tmp_path / "limits.yaml").write_text(NESTED)
    found = [
        (one.code, one.message) for one in find_problems([tmp_path], MESH) if one.file.endswith("p.yaml")
    ]
    assert [code for code, _ in found] == (["unmatched_descriptor"] if warning else [])
    assert all(warning in message for _, message in found)


def test_lint_finds_a_domain_without_limits(tmp_path: Path) -> None:
    """With the place of the name."""
    main.get_command(None, "lint")  # type: ignore[arg-type] # as above
    (tmp_path / "p.yaml").write_text(rate_limit(entry("value: a"), domain="typo"))
    (tmp_path / "limits.yaml").write_text(THREE)
    found = find_problems([tmp_path], MESH)
    assert [(one.code, one.position.line) for one in found] == [("unknown_limit_domain", 5)]


def test_lint_finds_claims_where_no_token_is_verified() -> None:
    """Such a policy denies every call; said where tokens of other namespaces are verified."""
    text = rate_limit(entry("value: a"), BY_SUBJECT, namespace="shop")
    assert lint(text) == []
    assert lint(text + tokens("shop")) == []
    assert lint(text + tokens("istio-system")) == []
    assert lint(text + tokens()) == [
        ("claims_without_tokens", ("spec", "descriptors", 1, "entries", 0, "attribute"))
    ]


def lint(text: str) -> list[tuple[str, Field]]:
    """Return code and place of the warnings about policies."""
    documents, _ = parse(text.encode(), "p.yaml")
    policies, problems = compile_policies(documents, MESH)
    assert policies is not None
    assert problems == []
    return [(one.code, one.field) for one in lint_policies(documents, MESH, policies)]


numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | st.text("ab ", max_size=3)
values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.sampled_from("ab"), scalars, max_size=2)


@given(values)
def test_whatever_a_claim_is_the_call_is_charged_or_denied(claim: Any) -> None:
    """No value of a claim makes a call that is allowed and not charged; and it is charged to a string of it."""
    call = with_token({"c": claim})
    if not isinstance(result_on(CLAIM, call), Charge):
        assert decide_on(CLAIM, call).code is ReasonCode.RATE_LIMIT_UNDETERMINED
        return
    ((((_, value),), _),) = charges_on(CLAIM, call)
    strings = {one for one in (claim if isinstance(claim, list) else [claim]) if one and isinstance(one, str)}
    assert strings == {value}


CLAIM = snapshot(BASE + rate_limit(entry('attribute: "request.auth.claims[c]"')))
