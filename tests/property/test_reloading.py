"""What is remembered between loads, or worked out ahead, changes nothing: it is what a fresh load gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checks import check_request, decide_on, principal, role
from support.policies import policy

from authz.destination import Destination
from authz.policy.compile import MeshSettings, compile_policies
from authz.policy.index import DestinationPolicies, Stage
from authz.snapshot import Snapshot, build_snapshot
from garrison.documents import Document, parse
from garrison.errors import ConfigError
from garrison.identity import TrustDomain

NAMES = ["a", "b", "c"]
SERVICES = ["a.default.svc.cluster.local", "b.default.svc.cluster.local", "a.*", "*.cluster.local", "*", "b*"]
SPELLED = st.lists(st.sampled_from(SERVICES), min_size=1, max_size=3).map(repr)
ROLES = st.builds(
    lambda services, path, constraint: (
        f"[{{services: {services}, paths: [{path}], constraints: [{constraint}]}}]"
    ),
    SPELLED,
    st.sampled_from(["/x", "/y/*", '"*/z"']),
    st.sampled_from(
        ["", "", '{key: "destination.labels[app]", values: [v]}', '{key: "destination.name", values: [c]}']
    ),
)


def binding(name: str, role_name: str, users: Sequence[str], mode: str) -> str:
    """Return a binding of `role_name`."""
    subjects = "[" + ", ".join(f'{{user: "{user}"}}' for user in users) + "]"
    return f"""
apiVersion: rbac.istio.io/v1alpha1
kind: ServiceRoleBinding
metadata: {{name: {name}, namespace: default}}
spec: {{mode: {mode}, subjects: {subjects}, roleRef: {{kind: ServiceRole, name: {role_name}}}}}
"""


PLAIN_ROLES = st.builds(
    lambda rules, name: role(rules, "[]", name).split("---")[0], ROLES, st.sampled_from(NAMES)
)
USERS = st.lists(
    st.sampled_from(["*", "s1", "cluster.local/ns/default/sa/s2", "spiffe://x/ns/a/sa/b"]),
    min_size=1,
    max_size=2,
)
MODES = st.sampled_from(["ENFORCED", "ENFORCED", "PERMISSIVE"])
BINDINGS = st.builds(binding, st.sampled_from(NAMES), st.sampled_from(NAMES), USERS, MODES)
BINDINGS_OF_A = st.builds(binding, st.just("a"), st.just("a"), USERS, MODES)
POLICIES = st.builds(
    lambda rules, action, name, namespace, label, dry_run: policy(
        rules,
        action,
        name=name,
        namespace=namespace,
        spec=f"selector: {{matchLabels: {{{label}}}}}" if label else "",
        annotations=f'{{"istio.io/dry-run": "{dry_run}"}}',
    ).split("---")[0],
    st.sampled_from(
        ["[{}]", "[]", "[{to: [{operation: {paths: [/x]}}]}]", "[{to: [{operation: {hosts: [x]}}]}]"]
    ),
    st.sampled_from(["ALLOW", "DENY", "AUDIT"]),
    st.sampled_from(NAMES),
    st.sampled_from(["default", "other", "istio-system"]),
    st.sampled_from(["", "app: v", "app: w", "app: v, tier: t"]),
    st.sampled_from(["false", "false", "true"]),
)
SWITCH = st.sampled_from(["ON", "OFF"]).map(
    lambda mode: (
        "apiVersion: rbac.istio.io/v1alpha1\nkind: ClusterRbacConfig\n"
        f"metadata: {{name: default}}\nspec: {{mode: '{mode}'}}\n"
    )
)
ROLE_A = role("[{paths: [/x]}]", "[]", "a").split("---")[0]
WRONG = st.sampled_from(
    ["kind: Nothing\n", ROLE_A.replace("[/x]", "x"), policy("[{}]", "CUSTOM").split("---")[0]]
)
DOCUMENTS = st.one_of(PLAIN_ROLES, BINDINGS, BINDINGS, POLICIES, SWITCH, WRONG)
MESHES = [MeshSettings(), MeshSettings(trust_domain=TrustDomain("x"))]
DESTINATIONS = [
    Destination(service, namespace, labels=labels)
    for service in ("a.default.svc.cluster.local", "b.default.svc.cluster.local", "c.x")
    for namespace in ("default", "other")
    for labels in ({}, {"app": "v"}, {"app": "v", "tier": "t"})
]


def read(texts: Sequence[str]) -> list[Document]:
    """Return the documents of `texts`, each in a file of its own."""
    return [
        document for number, text in enumerate(texts) for document in parse(text.encode(), f"{number}")[0]
    ]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(DOCUMENTS, max_size=4),
    st.lists(
        st.one_of(
            st.tuples(st.integers(1, 5), DOCUMENTS, st.sampled_from(MESHES)),
            st.tuples(st.just(1), BINDINGS_OF_A, st.sampled_from(MESHES)),
        ),
        max_size=6,
    ),
)
def test_a_reload_gives_what_a_fresh_load_gives(texts: list[str], edits: list[tuple[int, str, Any]]) -> None:
    """After any edits, and under changed settings, kept documents come to what they come to when new."""
    texts = [ROLE_A, binding("a", "a", ["s1"], "ENFORCED"), *texts]
    kept = dict(enumerate(texts))
    documents = {number: parse(text.encode(), f"{number}")[0] for number, text in kept.items()}
    for place, text, mesh in [(0, texts[0], MESHES[0]), *edits]:
        kept[place] = text
        documents[place] = parse(text.encode(), f"{place}")[0]
        again, problems = compile_policies([one for found in documents.values() for one in found], mesh)
        fresh, expected = compile_policies(
            [one for number, known in kept.items() for one in parse(known.encode(), f"{number}")[0]], mesh
        )
        assert problems == expected
        assert (again is None) == (fresh is None)
        if again is not None and fresh is not None:
            assert again.policies == fresh.policies
            assert again.enforcement == fresh.enforcement
            assert again.has_roles == fresh.has_roles


def _named(text: str) -> tuple[str, str]:
    metadata = parse(text.encode(), "p.yaml")[0][0].data["metadata"]
    return metadata["name"], metadata["namespace"]


def rules_of(stage: Stage) -> list[list[tuple[str, int]] | None]:
    """Return the rules of each part of a stage, in their order."""
    return [
        None if index is None else [(rule.policy, rule.index) for rule in index.rules]
        for index in (stage.custom, stage.audit, stage.deny, stage.allow, stage.shadow_deny)
    ]


def shape_of(found: DestinationPolicies) -> Any:
    """Return what applies to a destination, without objects that are equal only to themselves."""
    return rules_of(found.http), rules_of(found.tcp), found.by_roles, found.memo_on, found.has_marks


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.one_of(PLAIN_ROLES, POLICIES), min_size=1, max_size=6, unique_by=_named),
    st.lists(BINDINGS, min_size=1, max_size=3, unique_by=_named),
)
def test_policies_in_groups_are_those_that_apply_one_by_one(texts: list[str], bindings: list[str]) -> None:
    """Whatever is indexed ahead: the same rules apply to a destination, in the same order, and decide alike."""
    try:
        built = [_snapshot([*texts, *bindings], size) for size in (1, 2, 10**9)]
    except ConfigError:
        return
    for destination in DESTINATIONS:
        first, *others = [shape_of(snapshot.policies_for(destination)) for snapshot in built]
        assert others == [first, first]
    for path in ("/x", "/y/z", "/w"):
        for user in ("s1", "s2"):
            call = check_request(path=path, source=principal(user))
            decisions = {decide_on(snapshot, call).verdict for snapshot in built}
            assert len(decisions) == 1


def _snapshot(texts: Sequence[str], worth_grouping: int) -> Snapshot:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("authz.policy.index._WORTH_GROUPING", worth_grouping)
        patch.setattr("authz.policy.index._SORTED_AT_ONCE", 2)
        return build_snapshot(read(texts), MeshSettings(), [])
