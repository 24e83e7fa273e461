"""Decisions, for any policies and calls: compiled equals plain, absence never matches, order never matters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checks import check_request, decide_on, principal, role, snapshot


@pytest.fixture(autouse=True, scope="module")
def always_indexed() -> Iterator[None]:
    """File rules even where there are few: the index is what is under test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("authz.policy.index._WORTH_INDEXING", 1)
        yield


SERVICES = ["a.default.svc.cluster.local", "b.default.svc.cluster.local", "a.other.svc.cluster.local"]
PATHS = ["/", "/x", "/x/y", "/xy", "/y/x"]
METHODS = ["GET", "PUT", "get"]
ACCOUNTS = ["s1", "s2", "s12"]


@dataclass(frozen=True)
class RuleSpec:
    """A rule as a person would read it."""

    services: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    header: tuple[str, ...] = ()

    def yaml(self) -> str:
        """Return the rule in flow style."""
        constraints = f'[{{key: "request.headers[h]", values: {list(self.header)}}}]' if self.header else "[]"
        return (
            f"{{services: {list(self.services)}, methods: {list(self.methods)}, "
            f"paths: {list(self.paths)}, constraints: {constraints}}}"
        )


@dataclass(frozen=True)
class RoleSpec:
    """A role, its namespace and its subjects."""

    namespace: str
    rules: tuple[RuleSpec, ...]
    users: tuple[str, ...]

    def yaml(self, name: str) -> str:
        """Return role and binding."""
        subjects = "[" + ", ".join(f'{{user: "{user}"}}' for user in self.users) + "]"
        return role("[" + ", ".join(rule.yaml() for rule in self.rules) + "]", subjects, name, self.namespace)


@dataclass(frozen=True)
class CallSpec:
    """A call."""

    service: str
    method: str
    path: str
    account: str | None
    header: str | None = field(default=None)

    def request(self) -> Any:
        """Return the CheckRequest."""
        return check_request(
            service=self.service,
            method=self.method,
            path=self.path,
            source=principal(self.account) if self.account else "",
            headers={"h": self.header} if self.header is not None else {},
        )


def patterns(values: list[str]) -> st.SearchStrategy[tuple[str, ...]]:
    """Return lists of exact values, prefixes, suffixes and `*`."""
    one = st.sampled_from(values)
    pattern = (
        one | one.map(lambda v: v[: len(v) // 2 + 1] + "*") | one.map(lambda v: "*" + v[-2:]) | st.just("*")
    )
    return st.lists(pattern, max_size=3).map(tuple)


RULES = st.builds(
    RuleSpec,
    patterns(SERVICES),
    patterns(METHODS),
    patterns(PATHS),
    st.lists(st.sampled_from("pq"), max_size=2).map(tuple),
)
ROLES = st.builds(
    RoleSpec,
    st.sampled_from(["default", "other"]),
    st.lists(RULES, min_size=1, max_size=3).map(tuple),
    st.lists(st.sampled_from([*ACCOUNTS, "*", "cluster.local/ns/default/sa/s1"]), min_size=1, max_size=2).map(
        tuple
    ),
)
CALLS = st.builds(
    CallSpec,
    st.sampled_from(SERVICES),
    st.sampled_from(METHODS),
    st.sampled_from(PATHS),
    st.sampled_from([*ACCOUNTS, None]),
    st.sampled_from(["p", "r", None]),
)


def fits(value: str | None, allowed: tuple[str, ...]) -> bool:
    """Return whether a value fits a list of patterns, spelled out."""
    if value is None:
        return False
    for pattern in allowed:
        if pattern in {"*", value}:
            return True
        if pattern.startswith("*") and value.endswith(pattern[1:]):
            return True
        if not pattern.startswith("*") and pattern.endswith("*") and value.startswith(pattern[:-1]):
            return True
    return False


def plainly_allowed(roles: list[RoleSpec], call: CallSpec) -> bool:
    """Return the verdict by walking everything, without an index."""
    namespace = call.service.split(".")[1]
    for spec in roles:
        users = [
            user if "/" in user or user == "*" else f"cluster.local/ns/{spec.namespace}/sa/{user}"
            for user in spec.users
        ]
        caller = f"cluster.local/ns/default/sa/{call.account}" if call.account else None
        if spec.namespace != namespace or not ("*" in users or caller in users):
            continue
        for rule in spec.rules:
            wanted = [
                (call.service, rule.services),
                (call.method, rule.methods),
                (call.path, rule.paths),
                (call.header, rule.header),
            ]
            if all(not allowed or fits(value, allowed) for value, allowed in wanted):
                return True
    return False


def written(roles: list[RoleSpec], order: list[int] | None = None) -> str:
    """Return all roles as YAML, in the given order."""
    return "".join(roles[index].yaml(f"r{index}") for index in order or range(len(roles)))


@settings(max_examples=300, deadline=None)
@given(st.lists(ROLES, max_size=14), st.lists(CALLS, min_size=1, max_size=8))
def test_compiled_equals_plain(roles: list[RoleSpec], calls: list[CallSpec]) -> None:
    """The index finds exactly what a walk over all roles finds."""
    compiled = snapshot(written(roles))
    for call in calls:
        assert decide_on(compiled, call.request()).allowed is plainly_allowed(roles, call)


@settings(max_examples=100, deadline=None)
@given(st.lists(ROLES, min_size=2, max_size=6), CALLS, st.randoms(use_true_random=False))
def test_the_order_of_documents_never_matters(roles: list[RoleSpec], call: CallSpec, random: Any) -> None:
    """Verdict and deciding rule are the same in any order."""
    order = list(range(len(roles)))
    random.shuffle(order)
    first = decide_on(snapshot(written(roles)), call.request())
    second = decide_on(snapshot(written(roles, order)), call.request())
    assert (first.allowed, first.policy, first.rule) == (second.allowed, second.policy, second.rule)


@settings(max_examples=100, deadline=None)
@given(st.lists(ROLES, max_size=5), ROLES, CALLS)
def test_adding_a_role_never_denies(roles: list[RoleSpec], more: RoleSpec, call: CallSpec) -> None:
    """Roles only allow: one more never takes away."""
    if decide_on(snapshot(written(roles)), call.request()).allowed:
        assert decide_on(snapshot(written([*roles, more])), call.request()).allowed


@settings(max_examples=100, deadline=None)
@given(st.lists(ROLES, min_size=1, max_size=5), CALLS)
def test_taking_something_from_a_call_never_allows(roles: list[RoleSpec], call: CallSpec) -> None:
    """Without its identity or header a denied call stays denied: absence never matches."""
    compiled = snapshot(written(roles))
    if not decide_on(compiled, call.request()).allowed:
        poorer = CallSpec(call.service, call.method, call.path, None, None)
        assert not decide_on(compiled, poorer.request()).allowed
