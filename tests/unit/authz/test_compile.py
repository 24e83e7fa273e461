"""Mistakes in policies: every one is found at once, at its line, column and field."""

from __future__ import annotations

import pytest
from support.checks import role

from authz.policy.compile import MeshSettings, compile_policies
from garrison.documents import Severity, parse

HEADER = "apiVersion: rbac.istio.io/v1alpha1\nkind: {kind}\nmetadata: {{name: default}}\n"


def problems_of(text: str) -> list[str]:
    """Return the diagnostics of `text`, printed."""
    documents, problems = parse(text.encode(), "p.yaml")
    policies, more = compile_policies(documents, MeshSettings())
    assert (policies is None) == any(one.severity is Severity.ERROR for one in more)
    return [str(problem) for problem in [*problems, *more]]


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        (
            "spec: {rules: []}\n",
            "p.yaml:4:15: spec.rules: list should have at least 1 item after validation, not 0 [too_short]",
        ),
        (
            "spec: {rules: [{servces: [a]}]}\n",
            "p.yaml:4:17: spec.rules[0].servces: unknown field `servces` (did you mean `services`?) [unknown_field]",
        ),
        (
            "spec:\n  rules:\n  - methods: [GET, 5]\n",
            "p.yaml:6:20: spec.rules[0].methods[1]: expected a string, got a number (put the value in quotes) [string_type]",
        ),
        (
            'spec: {rules: [{constraints: [{key: "request.heders[a]", values: [b]}]}]}\n',
            "p.yaml:4:37: spec.rules[0].constraints[0].key: `request.heders[a]` is not known here",
        ),
        (
            'spec: {rules: [{constraints: [{key: "request.headers", values: [b]}]}]}\n',
            "`request.headers` is not of the form `request.headers[NAME]` [key_argument]",
        ),
        (
            'spec: {rules: [{constraints: [{key: "destination.ip", values: [10.0.0.1/8]}]}]}\n',
            "`10.0.0.1/8` is neither an IP address nor a CIDR without host bits [address]",
        ),
        (
            'spec: {rules: [{constraints: [{key: "destination.port", values: ["http"]}]}]}\n',
            "`http` is not a port [port]",
        ),
        ("spec: {rules: [{constraints: [{key: a, values: []}]}]}\n", "[too_short]"),
    ],
)
def test_mistakes_in_roles(rest: str, expected: str) -> None:
    """A role with a mistake is refused; the message says where and what would be right."""
    assert any(expected in problem for problem in problems_of(HEADER.format(kind="ServiceRole") + rest))


@pytest.mark.parametrize(
    ("subjects", "expected"),
    [
        ("[{}]", "spec.subjects[0]: the subject names nobody"),
        ("[{usr: a}]", "unknown field `usr` (did you mean `user`?)"),
        ("[{properties: {source.nmespace: a}}]", "`source.nmespace` is not known here"),
        ("[{properties: {source.ip: 1.2.3}}]", "`1.2.3` is neither an IP address"),
        ("[{properties: {source.namespace: a*b}}]", "has a `*` that is not at one end"),
        ("[{user: 5}]", "spec.subjects[0].user: expected a string, got a number"),
    ],
)
def test_mistakes_in_subjects(subjects: str, expected: str) -> None:
    """A subject that would mean more than its author thinks is an error, not ignored."""
    assert any(expected in problem for problem in problems_of(role("[{}]", subjects)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kind: Service\napiVersion: v1\n", "p.yaml:1:7: kind: kind `Service` of `v1` is not known here"),
        ("a: 1\n", "p.yaml:1:1: kind: `kind` is missing"),
        ("- a\n", "expected a mapping with `kind`"),
        (role("[{}]") + role("[{}]"), "there are two ServiceRole default/r, the first at p.yaml:2"),
        (
            HEADER.format(kind="ClusterRbacConfig").replace("default", "other") + "spec: {mode: 'ON'}\n",
            "metadata.name: the name must be `default`",
        ),
        (
            HEADER.format(kind="ClusterRbacConfig") + "spec: {mode: ON_WITH_INCLUSION}\n",
            "`inclusion` cannot be absent (use `inclusion: {}` for none)",
        ),
        (
            HEADER.format(kind="ClusterRbacConfig") + "spec: {mode: ON}\n",
            "spec.mode: `True` is not known here",
        ),
    ],
)
def test_mistakes_of_documents(text: str, expected: str) -> None:
    """Unknown kinds, duplicates and wrong switches are named."""
    assert any(expected in problem for problem in problems_of(text))


def test_all_mistakes_of_all_documents_are_reported() -> None:
    """One run shows everything there is to fix."""
    broken = role("[{servces: [a]}]", "[{properties: {a: b}}]") + role(
        "[{pths: [a]}]", "[{usr: b}]", name="s"
    )
    found = " ".join(problems_of(broken))
    assert all(word in found for word in ("servces", "`a` is not known", "pths", "usr"))


def test_a_binding_to_a_missing_role_is_a_warning() -> None:
    """It grants nothing, as in Istio, and says so."""
    text = role("[{}]").replace("kind: ServiceRole, name: r", "kind: ServiceRole, name: typo")
    found = problems_of(text)
    assert len(found) == 1
    assert "warning: spec.roleRef.name: namespace `default` has no ServiceRole `typo`" in found[0]


def test_items_of_a_list_keep_their_positions() -> None:
    """`kind: List` is a wrapper; mistakes inside are found where they stand."""
    text = (
        "apiVersion: v1\nkind: List\nitems:\n- apiVersion: rbac.istio.io/v1alpha1\n"
        "  kind: ServiceRole\n  metadata: {name: a}\n  spec: {rles: []}\n"
    )
    assert any(problem.startswith("p.yaml:7:10:") for problem in problems_of(text))
