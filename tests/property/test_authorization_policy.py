"""AuthorizationPolicies, for any policies and calls: compiled equals plain, and what more policies can do.

The plain evaluator reads the rules of the reference word for word: it walks everything, knows no index and
compares with regular expressions. Where Garrison differs from Istio, on purpose and to the side of denying,
it takes the side in `denies`: does a match of this condition lean towards a denial?
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.checks import CALL, check_request, principal, role, snapshot
from support.policies import connection

from authz.attributes import Attributes
from authz.decision import Decision
from authz.policy.compile import MeshSettings
from authz.policy.evaluate import evaluate
from authz.service import DestinationResolver
from authz.snapshot import Snapshot
from garrison.identity import TrustDomain


@pytest.fixture(autouse=True, scope="module")
def always_indexed() -> Iterator[None]:
    """File rules even where there are few: the index is what is under test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("authz.policy.index._WORTH_INDEXING", 1)
        yield


TD, ALIAS = "td", "old-td"
MESH = MeshSettings(trust_domain=TrustDomain(TD), trust_domain_aliases=(TrustDomain(ALIAS),))
Values = tuple[str, ...]


@dataclass(frozen=True)
class RuleSpec:
    """A rule as a person would read it: fields of sources and operations, and conditions."""

    sources: tuple[dict[str, Values], ...] = ()
    operations: tuple[dict[str, Values], ...] = ()
    when: tuple[tuple[str, Values, Values], ...] = ()  # key, values, notValues

    def yaml(self) -> str:
        """Return the rule in flow style."""
        parts = []
        if self.sources:
            parts.append(f"from: [{', '.join(f'{{source: {_flow(one)}}}' for one in self.sources)}]")
        if self.operations:
            parts.append(f"to: [{', '.join(f'{{operation: {_flow(one)}}}' for one in self.operations)}]")
        if self.when:
            conditions = ", ".join(
                f"{{key: '{key}', values: {list(values)}, notValues: {list(others)}}}"
                for key, values, others in self.when
            )
            parts.append(f"when: [{conditions}]")
        return f"{{{', '.join(parts)}}}"


@dataclass(frozen=True)
class PolicySpec:
    """A policy: where, what it does, and its rules."""

    action: str
    rules: tuple[RuleSpec, ...]
    namespace: str = "default"
    app: str | None = None
    tried: bool = False

    def yaml(self, name: str) -> str:
        """Return the document."""
        selector = f"selector: {{matchLabels: {{app: {self.app}}}}}, " if self.app else ""
        annotations = 'annotations: {istio.io/dry-run: "true"}, ' if self.tried else ""
        return (
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n"
            f"metadata: {{{annotations}name: {name}, namespace: {self.namespace}}}\n"
            f"spec: {{{selector}action: {self.action}, "
            f"rules: [{', '.join(rule.yaml() for rule in self.rules)}]}}\n---\n"
        )


@dataclass(frozen=True)
class CallSpec:
    """A call, or a connection when `method` is None."""

    peer: tuple[str, str, str] | None  # trust domain, namespace, account
    method: str | None = "GET"
    path: str = "/"
    host: str = "a.com"
    headers: Values = ()
    claims: dict[str, Any] | None = field(default=None, hash=False)
    address: str = "10.0.0.1"
    port: int = 80
    sni: str = ""
    app: str | None = None

    @property
    def uri(self) -> str:
        """The URI SAN of the peer's certificate, empty for plaintext."""
        return principal(self.peer[2], self.peer[1], self.peer[0]) if self.peer else ""

    def request(self) -> Any:
        """Return the CheckRequest."""
        extensions = {"destination.labels[app]": self.app} if self.app else {}
        if self.method is None:
            return connection(
                source=self.uri, sni=self.sni, port=self.port, source_ip=self.address, extensions=extensions
            )
        request = check_request(
            source=self.uri,
            method=self.method,
            path=self.path,
            host=self.host,
            raw_headers=[("h", value.encode()) for value in self.headers],
            source_ip=self.address,
            extensions=extensions,
        )
        request.attributes.destination.address.socket_address.port_value = self.port
        request.attributes.tls_session.sni = self.sni
        return request


def _flow(fields: dict[str, Values]) -> str:
    return f"{{{', '.join(f'{name}: {list(values)}' for name, values in fields.items())}}}"


# --------------------------------------------------------------------------------- any policies and calls

PATHS = ["/", "/a", "/a/b", "/ab", "/b/a"]
POOLS: dict[str, list[str]] = {
    "principals": ["td/ns/default/sa/s1", "old-td/ns/x/sa/s2", "cluster.local/ns/x/sa/s1", "far/ns/x/sa/s1"],
    "namespaces": ["default", "x", "def"],
    "trustDomains": ["td", "old-td", "far", "cluster.local"],
    "requestPrincipals": ["iss/s", "iss/t", "other/s"],
    "hosts": ["a.com", "b.com", "A.com", "a.com:8080"],
    "methods": ["GET", "PUT"],
    "paths": PATHS,
}
ACCOUNTS = ["s1", "s2", "default/s1", "x/s2"]
BLOCKS = ["10.0.0.1", "10.0.0.0/24", "::/0", "192.0.2.0/24"]
TEMPLATES = ["/a/{*}", "/{*}", "/a/{**}", "/{**}", "/{*}/b"]


def patterns(pool: list[str]) -> st.SearchStrategy[Values]:
    """Return lists of exact values, prefixes, suffixes and `*`."""
    one = st.sampled_from(pool)
    pattern = one | one.map(lambda v: v[: len(v) // 2 + 1] + "*") | one.map(lambda v: "*" + v[-2:])
    return st.lists(pattern | st.just("*"), min_size=1, max_size=2).map(tuple)


def some(pool: list[str]) -> st.SearchStrategy[Values]:
    """Return lists of values as they are."""
    return st.lists(st.sampled_from(pool), min_size=1, max_size=2).map(tuple)


def with_not_forms(
    fields: dict[str, st.SearchStrategy[Values]],
) -> st.SearchStrategy[tuple[dict[str, Values], ...]]:
    """Return up to two alternatives that each have one or two of `fields` or of their not-forms."""
    each = [
        values.map(lambda found, name=name: (name, found))  # type: ignore[misc]
        for field_, values in fields.items()
        for name in (field_, f"not{field_[0].upper()}{field_[1:]}")
    ]
    alternative = st.lists(st.one_of(each), min_size=1, max_size=2).map(dict).filter(_may_stand_together)
    return st.lists(alternative, max_size=2).map(tuple)


def _may_stand_together(fields: dict[str, Values]) -> bool:
    kinds = {name.removeprefix("not").lower() for name in fields}
    return "serviceaccounts" not in kinds or not kinds & {"principals", "namespaces"}


SOURCES = with_not_forms(
    {
        name: patterns(POOLS[name])
        for name in ("principals", "namespaces", "trustDomains", "requestPrincipals")
    }
    | {"serviceAccounts": some(ACCOUNTS), "ipBlocks": some(BLOCKS)}
)
OPERATIONS = with_not_forms(
    {name: patterns(POOLS[name]) for name in ("hosts", "methods")}
    | {"paths": patterns(PATHS) | some(TEMPLATES + PATHS), "ports": some(["80", "443"])}
)
KEYS: dict[str, st.SearchStrategy[Values]] = {
    "request.headers[h]": patterns(["1", "12", "2"]),
    "request.headers[H]": patterns(["1", "2"]),
    "source.principal": patterns(POOLS["principals"]),
    "source.namespace": patterns(POOLS["namespaces"]),
    "source.ip": some(BLOCKS),
    "destination.port": some(["80", "443"]),
    "connection.sni": patterns(["a.com", "b.com"]),
    "request.auth.principal": patterns(POOLS["requestPrincipals"]),
    "request.auth.claims[g]": patterns(["v", "vw"]),
    "request.auth.claims[a][b]": patterns(["v"]),
}
WHEN = st.lists(
    st.sampled_from(sorted(KEYS)).flatmap(
        lambda key: (
            st.tuples(st.just(key), KEYS[key], KEYS[key] | st.just(()))
            | st.tuples(st.just(key), st.just(()), KEYS[key])
        )
    ),
    max_size=2,
).map(tuple)
RULES = st.builds(RuleSpec, SOURCES, OPERATIONS, WHEN)
POLICIES = st.builds(
    PolicySpec,
    st.sampled_from(["ALLOW", "ALLOW", "DENY"]),
    st.lists(RULES, min_size=1, max_size=3).map(tuple),
    st.sampled_from(["default", "default", "istio-system", "other"]),
    st.sampled_from([None, None, "one"]),
    st.sampled_from([False, False, False, True]),
)
AUDITS = st.builds(PolicySpec, st.just("AUDIT"), st.lists(RULES, max_size=1).map(tuple))
EMPTY = st.just(PolicySpec("ALLOW", ()))
ANY_POLICIES = st.lists(POLICIES | POLICIES | AUDITS | EMPTY, max_size=6)
CALLS = st.builds(
    CallSpec,
    st.none()
    | st.tuples(
        st.sampled_from(["td", "old-td", "far", "cluster.local"]),
        st.sampled_from(["default", "x"]),
        st.sampled_from(["s1", "s2"]),
    ),
    st.sampled_from(["GET", "GET", "PUT", None]),
    st.sampled_from([*PATHS, "/a?/b", "/b/../a"]),
    st.sampled_from(["a.com", "A.com", "b.com:80", "a.com:8080"]),
    st.lists(st.sampled_from(["1", "12", "2"]), max_size=2).map(tuple),
    st.none()
    | st.fixed_dictionaries(
        {"iss": st.sampled_from(["iss", "other"]), "sub": st.sampled_from(["s", "t"])},
        optional={
            "g": st.sampled_from(["v", ["w", "vw"], 1, []]),
            "a": st.sampled_from([{"b": "v"}, {"b": ["v"]}, "v", {}]),
        },
    ),
    st.sampled_from(["10.0.0.1", "10.0.0.9", "192.0.2.1", "::1"]),
    st.sampled_from([80, 443]),
    st.sampled_from(["", "a.com", "B.com"]),
    st.sampled_from([None, "one", "two"]),
)


# --------------------------------------------------------------------------------------- the plain reading


def fits(pattern: str, value: str | None) -> bool:
    """Return whether a value that is there fits a pattern: `*` first, then suffix, prefix, exact."""
    if value is None:
        return False
    if pattern == "*":
        return True
    if pattern.startswith("*"):
        return re.fullmatch(".*" + re.escape(pattern[1:]), value) is not None
    if pattern.endswith("*"):
        return re.fullmatch(re.escape(pattern[:-1]) + ".*", value) is not None
    return value == pattern


def with_aliases(pattern: str) -> list[str]:
    """Return a principal as it is read once trust domains that are ours stand for each other."""
    domain, *rest = pattern.split("/")
    if len(rest) != 4 or domain == "*":
        return [pattern]
    if domain != "cluster.local" and not any(fits(domain, ours) for ours in (TD, ALIAS)):
        return [pattern]
    suffix = domain.startswith("*")
    return [pattern if suffix and fits(domain, ours) else "/".join((ours, *rest)) for ours in (TD, ALIAS)]


def is_peer(value: str, call: CallSpec) -> bool:
    """Return whether a principal of a policy is the peer's."""
    return any(fits(one, call.uri.removeprefix("spiffe://") or None) for one in with_aliases(value))


def is_namespace(value: str, call: CallSpec, *, denies: bool) -> bool:
    """Return whether the peer is in a namespace; only where that denies may a star reach across a `/`."""
    star = ".*" if denies else "[^/]*"
    return re.fullmatch(f".*/ns/{star.join(map(re.escape, value.split('*')))}/.*", call.uri) is not None


def is_account(value: str, call: CallSpec, namespace: str) -> bool:
    """Return whether the peer has a service account; a short name is of the policy's namespace."""
    of, account = value.split("/") if "/" in value else (namespace, value)
    pattern = f"spiffe://.+/ns/{re.escape(of)}/(.+/|)sa/{re.escape(account)}(/.+)?"
    return re.fullmatch(pattern, call.uri) is not None


def is_in_domain(value: str, call: CallSpec) -> bool:
    """Return whether the peer is of a trust domain."""
    values = [TD, ALIAS] if value in {TD, ALIAS} else [value]
    return bool(call.uri) and any(
        re.fullmatch(f"spiffe://{'[^/]*'.join(map(re.escape, one.split('*')))}/.*", call.uri) is not None
        for one in values
    )


def is_request_principal(value: str, call: CallSpec) -> bool:
    """Return whether the token is of an issuer and a subject."""
    if call.claims is None:
        return False
    issuer, subject = call.claims["iss"], call.claims["sub"]
    if value == "*":
        return True
    if "/" in value:
        before, _, after = value.rpartition("/")
        return fits(before, issuer) and fits(after, subject)
    if value.startswith("*"):
        return fits(value, subject)
    return value.endswith("*") and fits(value, issuer)


def is_path(value: str, call: CallSpec) -> bool:
    """Return whether the path fits a pattern or a template."""
    path = {"/a?/b": "/a", "/b/../a": "/a"}.get(call.path, call.path)
    if "{" not in value:
        return fits(value, path)
    characters = r"[A-Za-z0-9\-._~%!$&'()+,;:@*]"
    expression = re.escape(value).replace(r"\{\*\*\}", f"(?:{characters}|/)*")
    return re.fullmatch(expression.replace(r"\{\*\}", f"{characters}+"), path) is not None


def is_host(value: str, call: CallSpec, *, denies: bool) -> bool:
    """Return whether the host fits; where that denies also without its port."""
    host = call.host.lower()
    return any(fits(value.lower(), one) for one in ({host, host.partition(":")[0]} if denies else {host}))


def is_header(value: Values, call: CallSpec, *, denies: bool) -> bool:
    """Return whether any value of the header fits, where that denies, else whether all that are there do."""
    each = [any(fits(pattern, one) for pattern in value) for one in call.headers]
    return any(each) if denies else bool(each) and all(each)


def is_claim(path: Values, value: str, call: CallSpec) -> bool:
    """Return whether a claim, or an element of one that is a list, fits."""
    found: Any = call.claims
    for step in path:
        found = found.get(step) if isinstance(found, dict) else None
    strings = [one for one in (found if isinstance(found, list) else [found]) if isinstance(one, str)]
    return any(fits(value, one) for one in strings)


def is_in_block(value: str, call: CallSpec) -> bool:
    """Return whether the peer's address is in a block."""
    return ipaddress.ip_address(call.address) in ipaddress.ip_network(value)


Holds = Callable[[Values, CallSpec, bool, str], bool]


def any_of(one: Callable[[str, CallSpec], bool]) -> Holds:
    """Return a reading of a list of which one value suffices."""
    return lambda values, call, _denies, _namespace: any(one(value, call) for value in values)


READINGS: dict[str, Holds] = {
    "principals": any_of(is_peer),
    "namespaces": lambda values, call, denies, _: any(is_namespace(v, call, denies=denies) for v in values),
    "serviceAccounts": lambda values, call, _, namespace: any(is_account(v, call, namespace) for v in values),
    "trustDomains": any_of(is_in_domain),
    "requestPrincipals": any_of(is_request_principal),
    "ipBlocks": any_of(is_in_block),
    "hosts": lambda values, call, denies, _: any(is_host(v, call, denies=denies) for v in values),
    "methods": any_of(lambda value, call: fits(value, call.method)),
    "paths": any_of(is_path),
    "ports": any_of(lambda value, call: int(value) == call.port),
    "request.headers[h]": lambda values, call, denies, _: is_header(values, call, denies=denies),
    "connection.sni": any_of(lambda value, call: fits(value, call.sni.lower() or None)),
    "request.auth.claims[g]": any_of(lambda value, call: is_claim(("g",), value, call)),
    "request.auth.claims[a][b]": any_of(lambda value, call: is_claim(("a", "b"), value, call)),
}
READINGS |= {
    "request.headers[H]": READINGS["request.headers[h]"],
    "source.principal": READINGS["principals"],
    "source.namespace": READINGS["namespaces"],
    "source.ip": READINGS["ipBlocks"],
    "destination.port": READINGS["ports"],
    "request.auth.principal": READINGS["requestPrincipals"],
}
NEEDS_HTTP = {"hosts", "methods", "paths", "requestPrincipals"}


def needs_http(name: str) -> bool:
    """Return whether connections do not have what a field or key reads."""
    return name in NEEDS_HTTP or name.startswith("request.")


def positive(name: str) -> tuple[str, bool]:
    """Return a field's name without `not`, and whether it had one."""
    if name.startswith("not") and name not in READINGS:
        return name[3].lower() + name[4:], True
    return name, False


def rule_matches(spec: PolicySpec, rule: RuleSpec, call: CallSpec) -> bool:
    """Return whether a rule matches: one of `from`, one of `to`, all of `when`."""
    allows = spec.action == "ALLOW"

    def holds(name: str, values: Values, *, negated: bool) -> bool:
        if call.method is None and needs_http(name):
            return not allows  # dropped from the rule; an ALLOW rule was dropped before
        return READINGS[name](values, call, negated is allows, spec.namespace) is not negated

    def alternative(fields: dict[str, Values]) -> bool:
        return all(
            holds(positive(name)[0], values, negated=positive(name)[1]) for name, values in fields.items()
        )

    if call.method is None and allows:
        names = [positive(name)[0] for one in (*rule.sources, *rule.operations) for name in one]
        if any(map(needs_http, [*names, *(key for key, _, _ in rule.when)])):
            return False
    return (
        (not rule.sources or any(map(alternative, rule.sources)))
        and (not rule.operations or any(map(alternative, rule.operations)))
        and all(
            (not values or holds(key, values, negated=False))
            and (not others or holds(key, others, negated=True))
            for key, values, others in rule.when
        )
    )


def plainly_allowed(policies: list[PolicySpec], call: CallSpec) -> bool:
    """Return the verdict by walking everything."""
    applying = [
        spec
        for spec in policies
        if spec.namespace in {"default", "istio-system"} and spec.app in {None, call.app} and not spec.tried
    ]
    matching = [
        spec.action for spec in applying if any(rule_matches(spec, rule, call) for rule in spec.rules)
    ]
    if "DENY" in matching or not policies:
        return False  # without any policy Garrison denies
    return "ALLOW" in matching or not any(spec.action == "ALLOW" for spec in applying)


# -------------------------------------------------------------------------------------------- properties


def written(policies: list[PolicySpec], order: list[int] | None = None) -> str:
    """Return all policies as YAML, in the given order."""
    return "".join(policies[index].yaml(f"p{index}") for index in order or range(len(policies)))


def compiled_from(policies: list[PolicySpec], extra: str = "") -> Snapshot:
    """Return the snapshot of `policies`."""
    return snapshot(written(policies) + extra, MESH)


def decided(compiled: Snapshot, call: CallSpec) -> Decision:
    """Return the decision for a call whose claims, if any, have been verified."""
    request = call.request()
    context = request.attributes
    destination = DestinationResolver().resolve(context.context_extensions, context.request.http.host, CALL)
    assert destination is not None
    attributes = Attributes(
        context, compiled.mesh.path_normalization, destination, request.SerializeToString()
    )
    attributes.claims = call.claims
    return evaluate(compiled.policies_for(destination), attributes)


@settings(max_examples=200, deadline=None)
@given(ANY_POLICIES, st.lists(CALLS, min_size=1, max_size=8))
def test_compiled_equals_plain(policies: list[PolicySpec], calls: list[CallSpec]) -> None:
    """Compiler, index and evaluator decide as a walk over all policies does."""
    compiled = compiled_from(policies)
    for call in calls:
        assert decided(compiled, call).allowed is plainly_allowed(policies, call)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["ALLOW", "DENY"]), RULES, st.lists(CALLS, min_size=1, max_size=8))
def test_one_rule_alone_equals_plain(action: str, rule: RuleSpec, calls: list[CallSpec]) -> None:
    """With nothing around it every rule matches exactly what it says."""
    policies = [PolicySpec(action, (rule,))]
    compiled = compiled_from(policies)
    for call in calls:
        assert decided(compiled, call).allowed is plainly_allowed(policies, call)


PLAIN_RULES = st.builds(
    RuleSpec,
    st.just(()),
    (
        st.fixed_dictionaries({"paths": patterns([*PATHS, "/a/b/c", "/long/er"])})
        | st.fixed_dictionaries({"methods": patterns(["GET", "PUT", "PATCH"])})
        | st.fixed_dictionaries({"hosts": patterns(POOLS["hosts"]), "methods": patterns(["GET", "PUT"])})
    ).map(lambda fields: (fields,)),
)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["ALLOW", "DENY"]),
    st.lists(PLAIN_RULES, min_size=1, max_size=12).map(tuple),
    st.lists(CALLS, min_size=1, max_size=8),
)
def test_many_plain_rules_equal_plain(
    action: str, rules: tuple[RuleSpec, ...], calls: list[CallSpec]
) -> None:
    """Rules that can be looked up are found by every kind of pattern."""
    policies = [PolicySpec(action, rules)]
    compiled = compiled_from(policies)
    for call in calls:
        assert decided(compiled, call).allowed is plainly_allowed(policies, call)


@settings(max_examples=50, deadline=None)
@given(st.lists(POLICIES, min_size=2, max_size=6), CALLS, st.randoms(use_true_random=False))
def test_the_order_of_documents_never_matters(
    policies: list[PolicySpec], call: CallSpec, random: Any
) -> None:
    """Verdict, deciding document and reason are the same in any order."""
    order = list(range(len(policies)))
    random.shuffle(order)
    first = decided(snapshot(written(policies), MESH), call)
    assert decided(snapshot(written(policies, order), MESH), call) == first


@settings(max_examples=80, deadline=None)
@given(st.lists(POLICIES, min_size=1, max_size=5), RULES, CALLS)
def test_adding_a_deny_never_allows(policies: list[PolicySpec], rule: RuleSpec, call: CallSpec) -> None:
    """One more DENY only takes away."""
    if not decided(compiled_from(policies), call).allowed:
        assert not decided(compiled_from([*policies, PolicySpec("DENY", (rule,))]), call).allowed


@settings(max_examples=50, deadline=None)
@given(st.lists(POLICIES, max_size=4), RULES, CALLS)
def test_adding_a_deny_never_allows_beside_roles(
    policies: list[PolicySpec], rule: RuleSpec, call: CallSpec
) -> None:
    """Nor does it where roles have to allow."""
    roles = role("[{paths: [/a]}]", "[{user: s1}]")
    if not decided(compiled_from(policies, roles), call).allowed:
        more = [*policies, PolicySpec("DENY", (rule,))]
        assert not decided(compiled_from(more, roles), call).allowed


@settings(max_examples=80, deadline=None)
@given(st.lists(POLICIES, max_size=5), st.lists(RULES, max_size=2).map(tuple), CALLS)
def test_adding_an_allow_never_denies_once_one_exists(
    policies: list[PolicySpec], rules: tuple[RuleSpec, ...], call: CallSpec
) -> None:
    """The first ALLOW policy makes something have to allow; every further one only gives."""
    before = [PolicySpec("ALLOW", ()), *policies]
    if decided(compiled_from(before), call).allowed:
        assert decided(compiled_from([*before, PolicySpec("ALLOW", rules)]), call).allowed


@settings(max_examples=50, deadline=None)
@given(st.lists(POLICIES, min_size=1, max_size=5), POLICIES, CALLS)
def test_what_is_only_tried_or_marked_never_decides(
    policies: list[PolicySpec], more: PolicySpec, call: CallSpec
) -> None:
    """Adding a dry run or an AUDIT policy changes no verdict."""
    before = decided(compiled_from(policies), call).allowed
    for extra in (replace(more, tried=True), replace(more, action="AUDIT", tried=False)):
        assert decided(compiled_from([*policies, extra]), call).allowed is before


@settings(max_examples=100, deadline=None)
@given(st.lists(POLICIES, min_size=1, max_size=4), CALLS)
def test_absence_never_matches_positively(policies: list[PolicySpec], call: CallSpec) -> None:
    """Without not-forms a call that brings less is never allowed more, nor denied more by a DENY."""
    assume(call.method is not None)
    plain = [
        replace(
            spec,
            rules=tuple(
                RuleSpec(
                    tuple(kept for one in rule.sources if (kept := without_not_forms(one))),
                    tuple(kept for one in rule.operations if (kept := without_not_forms(one))),
                    tuple((key, values, ()) for key, values, _ in rule.when if values),
                )
                for rule in spec.rules
            ),
        )
        for spec in policies
    ]
    poorer = replace(call, peer=None, headers=(), claims=None, sni="")
    for action, gets_more in (("ALLOW", False), ("DENY", True)):
        compiled = compiled_from([replace(spec, action=action, tried=False) for spec in plain])
        rich, poor = decided(compiled, call).allowed, decided(compiled, poorer).allowed
        assert rich or not poor if not gets_more else poor or not rich


def without_not_forms(fields: dict[str, Values]) -> dict[str, Values]:
    """Return the positive fields."""
    return {name: values for name, values in fields.items() if not positive(name)[1]}
