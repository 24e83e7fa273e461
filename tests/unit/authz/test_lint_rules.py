"""Lint says only what is certain: what it calls useless can be taken away, and ordinary policies are silent."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checks import SERVICE, check_request, decide_on, federated, principal, role, snapshot
from support.policies import source, tokens

from authz.lint import lint_policies
from authz.lint.implication import contradiction, disjoint, implies, within
from authz.paths import PathNormalization
from authz.policy.compile import MeshSettings, compile_policies
from authz.policy.matchers import AddressMatcher, Condition, EitherMatcher, Matcher, StringMatcher
from authz.tools.lint import find_problems
from garrison.documents import Diagnostic, parse

ROOT = Path(__file__).resolve().parents[3]
VALUES = ["", "a", "b", "ab", "ba", "aba", "*", "a*"]
PATTERNS = [*VALUES[1:], "*a", "a*", "ab*", "*ba", "b*"]
ADDRESSES = ["10.0.0.1", "10.1.0.1", "::ffff:10.0.0.1", "fe80::1", "192.168.0.1"]
NETWORKS = ["10.0.0.0/8", "10.0.0.0/16", "10.0.0.1", "::ffff:0:0/96", "fe80::/10", "0.0.0.0/0", "::/0"]

strings = st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=3).map(StringMatcher.of)
addresses = st.lists(st.sampled_from(NETWORKS), min_size=1, max_size=2).map(AddressMatcher.of)
either = st.lists(strings, min_size=1, max_size=2).map(lambda them: EitherMatcher(tuple(them)))
texts: st.SearchStrategy[Matcher] = st.one_of(strings, either)


def lint(text: str, mesh: MeshSettings | None = None) -> list[Diagnostic]:
    """Return the warnings about the policies in `text`."""
    documents, problems = parse(text.encode(), "policy.yaml")
    assert problems == []
    policies, _ = compile_policies(documents, mesh or MeshSettings())
    assert policies is not None
    return lint_policies(documents, mesh or MeshSettings(), policies)


def codes(text: str, mesh: MeshSettings | None = None) -> list[str]:
    """Return the codes of the warnings, in their order."""
    return [problem.code for problem in lint(text, mesh)]


@given(texts, texts)
def test_within_and_disjoint_are_certain(one: Matcher, other: Matcher) -> None:
    """Where one matcher is said to be within another, or apart from it, no value shows otherwise."""
    for value in VALUES:
        if within(one, other) and one.matches(value):  # type: ignore[arg-type] # texts only
            assert other.matches(value)  # type: ignore[arg-type]
        if disjoint(one, other):
            assert not (one.matches(value) and other.matches(value))  # type: ignore[arg-type]


@given(addresses, addresses)
def test_networks_are_compared_as_they_match(one: AddressMatcher, other: AddressMatcher) -> None:
    """The same for addresses, with IPv4 hosts on dual-stack sockets."""
    for value in ADDRESSES:
        if within(one, other) and one.matches(value):
            assert other.matches(value)
        if disjoint(one, other):
            assert not (one.matches(value) and other.matches(value))


# Few, so that two of them often have to do with each other.
few = st.sampled_from([["a"], ["a*"], ["ab"], ["*"], ["a", "b"], ["ab*", "*a"]]).map(StringMatcher.of)
conditions = st.builds(
    Condition,
    st.sampled_from(["request.method", "request.headers", "request.path", "request.path.any"]),
    st.just(""),
    few,
    st.booleans(),
    st.just("f"),
    st.booleans(),
)


def values_of(attribute: str) -> list[Sequence[str]]:
    """Return what a call can have for an attribute; `.any` has more spellings than the attribute."""
    single: list[Sequence[str]] = [(), *((value,) for value in VALUES[1:])]
    if attribute == "request.headers":
        return [*single, *product(VALUES[:5], repeat=2)]
    return single


def calls(attributes: set[str]) -> list[dict[str, Sequence[str]]]:
    """Return calls that have every combination of values for `attributes`."""
    names = sorted({name.removesuffix(".any") for name in attributes})
    found: list[dict[str, Sequence[str]]] = []
    for chosen in product(*(values_of(name) for name in names)):
        call: dict[str, Sequence[str]] = dict(zip(names, chosen, strict=True))
        path = call.get("request.path", ())
        spellings: Sequence[tuple[str, ...]] = ((), ("a",), ("ab",)) if path else ((),)
        found += [{**call, "request.path.any": (*path, *more)} for more in spellings]
    return found


@settings(max_examples=500, deadline=None)
@given(conditions, conditions)
def test_implication_is_certain(premise: Condition, conclusion: Condition) -> None:
    """A condition that is said to follow from another one holds wherever that one does."""
    if implies(premise, conclusion):
        for call in calls({premise.attribute, conclusion.attribute}):
            if premise.matches(call[premise.attribute]):
                assert conclusion.matches(call[conclusion.attribute])


@settings(max_examples=500, deadline=None)
@given(st.lists(conditions, min_size=2, max_size=3))
def test_contradictions_are_certain(them: list[Condition]) -> None:
    """Conditions that are said to contradict each other never hold together."""
    found = contradiction(them)
    if found is not None:
        one, other = found
        for call in calls({one.attribute, other.attribute}):
            assert not (one.matches(call[one.attribute]) and other.matches(call[other.attribute]))


operations = st.fixed_dictionaries(
    {},
    optional={
        "methods": st.lists(st.sampled_from(["GET", "P*", "*"]), min_size=1, max_size=2),
        "notMethods": st.lists(st.sampled_from(["GET", "POST"]), min_size=1, max_size=1),
        "paths": st.lists(st.sampled_from(["/a", "/a*", "/b/*", "*/c", "/b/{*}"]), min_size=1, max_size=2),
        "notPaths": st.lists(st.sampled_from(["/a", "/b*"]), min_size=1, max_size=1),
    },
).filter(bool)
sources = st.fixed_dictionaries(
    {},
    optional={
        "principals": st.lists(
            st.sampled_from(["cluster.local/ns/default/sa/a", "cluster.local/ns/other/sa/b", "*/sa/a"]),
            min_size=1,
            max_size=2,
        ),
        "namespaces": st.lists(st.sampled_from(["default", "o*"]), min_size=1, max_size=1),
    },
).filter(bool)
rules = st.fixed_dictionaries(
    {},
    optional={
        "to": st.lists(operations.map(lambda one: {"operation": one}), min_size=1, max_size=2),
        "from": st.lists(sources.map(lambda one: {"source": one}), min_size=1, max_size=2),
    },
)
CALLS = [
    check_request(method=method, path=path, source=source)
    for method in ("GET", "POST", "PUT")
    for path in ("/a", "/a/c", "/b/c", "/b", "/a;x", "/d")
    for source in ("", principal("a"), principal("b", "other"), principal("a", "other"))
]


def written(policies: Sequence[tuple[str, Sequence[Any]]]) -> str:
    """Return AuthorizationPolicies with these actions and rules as YAML."""
    return yaml.safe_dump_all(
        {
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": {"name": f"p{index}", "namespace": "default"},
            "spec": {"action": action, "rules": list(chosen)},
        }
        for index, (action, chosen) in enumerate(policies)
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["ALLOW", "DENY"]), st.lists(rules, min_size=1, max_size=3)),
        min_size=1,
        max_size=3,
    )
)
def test_what_is_useless_can_go(policies: list[tuple[str, list[Any]]]) -> None:
    """Without a rule that never matches, is shadowed or always denied, every call comes out the same."""
    for problem in lint(written(policies)):
        if problem.code not in {"never_matches", "shadowed_rule", "always_denied"}:
            continue
        if problem.code == "never_matches" and len(problem.field) != 3:
            continue  # only a part of a rule
        documents = list(yaml.safe_load_all(written(policies)))
        lines = written(policies).split("\n")[: problem.position.line]
        index = sum(1 for line in lines if line == "---")
        del documents[index]["spec"]["rules"][int(problem.field[2])]
        if documents[index]["spec"]["action"] == "DENY" and not documents[index]["spec"]["rules"]:
            continue  # DENY needs a rule
        before, after = snapshot(written(policies)), snapshot(yaml.safe_dump_all(documents))
        for call in CALLS:
            assert decide_on(before, call).verdict is decide_on(after, call).verdict, problem


def test_the_demo_is_silent() -> None:
    """Nothing is found in the policies of the demo."""
    assert find_problems([ROOT / "examples/bookinfo/policies"], MeshSettings()) == []


@pytest.mark.parametrize(
    "spec",
    [
        "{}",
        "{rules: [{}]}",
        '{selector: {matchLabels: {app: httpbin}}, rules: [{from: [{source: {requestPrincipals: ["testing@secure.istio.io/testing@secure.istio.io"]}}]}]}',
        '{rules: [{from: [{source: {principals: ["cluster.local/ns/default/sa/sleep"]}}, {source: {namespaces: [dev]}}], to: [{operation: {methods: ["GET"]}}], when: [{key: "request.auth.claims[iss]", values: ["https://accounts.google.com"]}]}]}',
        '{rules: [{to: [{operation: {methods: [GET, HEAD]}}]}, {to: [{operation: {paths: ["/healthz", "/info*", "*/status"]}}]}]}',
        '{action: DENY, rules: [{from: [{source: {notNamespaces: [foo]}}], to: [{operation: {ports: ["80"], methods: [POST]}}]}]}',
        '{rules: [{to: [{operation: {hosts: ["example.com", "example.com:*", "*.example.org"], paths: ["/foo/{*}/bar", "/a//b*"]}}]}]}',
        '{action: AUDIT, rules: [{to: [{operation: {paths: ["/user/profile/*"]}}]}]}',
        '{rules: [{from: [{source: {ipBlocks: [10.0.0.0/8], notIpBlocks: [10.1.0.0/16]}}]}, {from: [{source: {notPrincipals: ["*"]}}]}]}',
    ],
)
def test_ordinary_istio_policies_are_silent(spec: str) -> None:
    """What Istio's own pages show draws no warning."""
    text = f"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: a, namespace: foo}}\nspec: {spec}\n"
    assert codes(text) == []


@pytest.mark.parametrize(
    ("mode", "pattern", "found"),
    [
        ("NONE", "/a/../b", []),
        ("BASE", "/a/../b", ["path_not_normal"]),
        ("BASE", "/a//b", []),
        ("MERGE_SLASHES", "/a//b", ["path_not_normal"]),
        ("MERGE_SLASHES", "/a%2Fb", []),
        ("DECODE_AND_MERGE_SLASHES", "/a%2fb", ["path_not_normal"]),
        ("BASE", "/a/.*", []),
        ("BASE", "/a/%6*", []),
        ("BASE", "/a/./b*", ["path_not_normal"]),
        ("BASE", "*./b", []),
        ("BASE", "*/../b", ["path_not_normal"]),
    ],
)
def test_paths_are_judged_by_the_mode_of_the_mesh(mode: str, pattern: str, found: list[str]) -> None:
    """A pattern is reported only if no path in that normal form fits it."""
    mesh = MeshSettings(path_normalization=PathNormalization(mode))
    assert codes(role(f"[{{paths: ['{pattern}']}}]"), mesh) == found


def test_identical_rules_are_reported_once() -> None:
    """Of two equal rules the later one is superfluous, not both."""
    problems = lint(role("[{methods: [GET]}, {methods: [GET]}]"))
    assert [(problem.code, problem.field) for problem in problems] == [
        ("shadowed_rule", ("spec", "rules", 1))
    ]


def test_one_dead_operation_does_not_kill_the_rule() -> None:
    """What is left of a rule can still make another one superfluous."""
    text = written(
        [
            (
                "ALLOW",
                [
                    {
                        "to": [
                            {"operation": {"methods": ["GET"], "notMethods": ["*"]}},
                            {"operation": {"methods": ["PUT"]}},
                        ]
                    },
                    {"to": [{"operation": {"methods": ["PUT"], "paths": ["/a"]}}]},
                ],
            )
        ]
    )
    assert codes(text) == ["never_matches", "shadowed_rule"]


def test_roles_for_different_people_do_not_shadow_each_other() -> None:
    """Two roles with one rule are two rules as long as different subjects have them."""
    mine = role("[{methods: [GET]}]", "[{user: a}]", name="mine")
    yours = role("[{methods: [GET]}]", "[{user: b}]", name="yours")
    everybody = role(f"[{{services: ['{SERVICE}'], methods: [GET]}}]", name="all")
    assert codes(mine + yours) == []
    assert codes(mine + everybody) == []  # for one service only
    assert codes(mine + role("[{}]", name="all")) == ["shadowed_rule"]


def test_many_roles_are_linted_in_time() -> None:
    """Rules are looked up, not compared each with each: 3,000 roles of one service take a moment."""
    text = "".join(
        role(f"[{{services: ['{SERVICE}'], paths: ['/p{index}/*']}}]", "[{user: a}]", name=f"r{index}")
        for index in range(1500)
    )
    assert codes(text) == []


def test_items_of_a_list_are_found_where_they_stand() -> None:
    """A `List` is linted as its items, with positions in the file."""
    text = (
        "kind: List\nitems:\n- apiVersion: security.istio.io/v1\n  kind: AuthorizationPolicy\n"
        "  metadata: {name: a}\n  spec:\n    rules:\n    - to:\n      - operation:\n          methods: [get]\n"
    )
    (problem,) = lint(text)
    assert (problem.code, problem.position.line, problem.position.column) == ("method_case", 10, 21)


def peers(mode: str, namespace: str = "shop", name: str = "p", more: str = "") -> str:
    """Return a PeerAuthentication."""
    mtls = f"mtls: {{mode: {mode}}}" if mode else ""
    return (
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n"
        f"metadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{', '.join(filter(None, (mtls, more)))}}}\n---\n"
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (peers("STRICT"), []),
        (peers("PERMISSIVE"), []),  # a wider document may come to say more
        (peers("UNSET"), ["peer_no_effect"]),
        (peers(""), ["peer_no_effect"]),
        (peers("", more="selector: {matchLabels: {a: b}}, portLevelMtls: {1: {mode: STRICT}}"), []),
        (peers("", more="selector: {matchLabels: {a: b}}, portLevelMtls: {1: {}}"), ["peer_no_effect"]),
        (peers("PERMISSIVE", "istio-system"), ["peer_no_effect"]),
        (peers("PERMISSIVE", "istio-system") + peers("STRICT", "istio-system", "q"), []),
        (peers("STRICT", "istio-system"), []),
        (peers("DISABLE", "istio-system"), []),
    ],
)
def test_peer_documents_without_effect(text: str, found: list[str]) -> None:
    """What holds without a document is said of it; where others may make a difference, nothing is."""
    assert codes(text) == found


def test_federated_trust_domains_are_not_foreign() -> None:
    """A principal of a trust domain whose peers may call is no mistake."""
    text = source('{principals: ["partner.example/ns/a/sa/b"]}')
    assert codes(text) == ["foreign_trust_domain"]
    assert codes(text, federated("partner.example=x")) == []


def test_old_origins_verify_tokens_too() -> None:
    """Conditions about claims are not without tokens where a v1alpha1 policy takes some."""
    asking = source('{requestPrincipals: ["*"]}')
    elsewhere = tokens("other")
    assert codes(elsewhere + asking) == ["claims_without_tokens"]
    policy = (
        "apiVersion: authentication.istio.io/v1alpha1\nkind: Policy\nmetadata: {name: default}\n"
        "spec: {origins: [{jwt: {issuer: 'https://a'}}]}\n"
    )
    assert codes(elsewhere + asking + policy) == []


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("{principalBinding: USE_ORIGIN}", ["no_origins"]),
        ("{principalBinding: USE_ORIGIN, originIsOptional: true}", []),
        ("{principalBinding: USE_ORIGIN, origins: [{jwt: {issuer: 'https://a'}}]}", []),
        ("{principalBinding: USE_PEER}", []),
    ],
)
def test_origins_that_nobody_can_bring(spec: str, found: list[str]) -> None:
    """USE_ORIGIN without origins denies every call."""
    head = "apiVersion: authentication.istio.io/v1alpha1\nkind: Policy\nmetadata: {name: default}\n"
    assert codes(f"{head}spec: {spec}\n") == found
