"""Peers: each row of Istio's table of PeerAuthentication, precedence, mistakes, and trust domains."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.checks import check_request, decide_on, federated, principal, role, snapshot
from support.policies import connection, problems_of

from authz.authn import peers as module
from authz.authn.peers import FederatedDomain, PeerMode
from authz.destination import Destination
from authz.policy.compile import MeshSettings, compile_policies
from authz.policy.index import PolicyIndex
from garrison.documents import parse
from garrison.identity import TrustDomain

ALL = role("[{services: ['*'], methods: ['*']}]") + role("[{services: ['*']}]", name="tcp")
ROOT, OTHER = "istio-system", 9999
APP = {"destination.labels[app]": "a"}


def peers(
    spec: str, *, name: str = "p", namespace: str = "default", created: str = "", version: str = "v1"
) -> str:
    """Return a PeerAuthentication with `spec` in YAML's flow style."""
    stamp = f', creationTimestamp: "{created}"' if created else ""
    return f"""
apiVersion: security.istio.io/{version}
kind: PeerAuthentication
metadata: {{name: {name}, namespace: {namespace}{stamp}}}
spec: {spec}
---
"""


def mode(name: str) -> str:
    """Return a spec without selector."""
    return f"{{mtls: {{mode: {name}}}}}"


def ported(name: str, ports: str) -> str:
    """Return a spec for the workload `a` with `ports`."""
    return f"{{selector: {{matchLabels: {{app: a}}}}, mtls: {{mode: {name}}}, portLevelMtls: {ports}}}"


def call(source: str = "", port: int = 9080, extensions: Any = None, **fields: Any) -> Any:
    """Return a call of the workload `a` that came in at `port`."""
    request = check_request(source=source, extensions={**APP, **(extensions or {})}, **fields)
    request.attributes.destination.address.socket_address.port_value = port
    return request


def code(text: str, request: Any) -> str:
    """Return the reason code of the decision."""
    return decide_on(ALL + text, request).code.value


MTLS = principal("a")


@pytest.mark.parametrize(
    ("spec", "at_port", "elsewhere"),
    [
        (ported("DISABLE", "{8080: {mode: DISABLE}}"), "ok/fail", "ok/fail"),
        (ported("STRICT", "{8080: {mode: STRICT}}"), "fail/ok", "fail/ok"),
        (ported("PERMISSIVE", "{8080: {mode: PERMISSIVE}}"), "ok/ok", "ok/ok"),
        (ported("DISABLE", "{8080: {mode: STRICT}}"), "fail/ok", "ok/fail"),
        (ported("STRICT", "{8080: {mode: DISABLE}}"), "ok/fail", "fail/ok"),
        (ported("PERMISSIVE", "{8080: {mode: STRICT}}"), "fail/ok", "ok/ok"),
        (ported("STRICT", "{8080: {mode: PERMISSIVE}}"), "ok/ok", "fail/ok"),
        (ported("PERMISSIVE", "{8080: {mode: DISABLE}}"), "ok/fail", "ok/ok"),
        (ported("DISABLE", "{8080: {mode: PERMISSIVE}}"), "ok/ok", "ok/fail"),
        (mode("DISABLE"), "ok/fail", "ok/fail"),
        (mode("STRICT"), "fail/ok", "fail/ok"),
        (mode("PERMISSIVE"), "ok/ok", "ok/ok"),
    ],
)
@pytest.mark.parametrize("tcp", [False, True], ids=["http", "tcp"])
def test_istio_s_table(spec: str, at_port: str, elsewhere: str, tcp: bool) -> None:
    """Plaintext and mTLS pass at a port and elsewhere exactly as the modes say, also for connections."""

    def row(port: int) -> str:
        found = []
        for source in ("", MTLS):
            request = (
                connection(source=source, port=port, extensions=APP)
                if tcp
                else call(source=source, port=port)
            )
            found.append("ok" if decide_on(ALL + peers(spec), request).allowed else "fail")
        return "/".join(found)

    assert (row(8080), row(OTHER)) == (at_port, elsewhere)


@pytest.mark.parametrize(
    ("spec", "source", "certificate", "expected", "why"),
    [
        ("STRICT", "", "", "plaintext_not_allowed", "the peer came without a certificate"),
        ("STRICT", "a.example", "", "peer_without_identity", "with a certificate that has no SPIFFE ID"),
        ("STRICT", "CN=a", "", "peer_without_identity", "with a certificate that has no SPIFFE ID"),
        ("STRICT", "", "-----BEGIN", "peer_without_identity", "with a certificate that has no SPIFFE ID"),
        ("DISABLE", MTLS, "", "mtls_not_allowed", "the peer came with a certificate"),
        ("DISABLE", "a.example", "", "mtls_not_allowed", "the peer came with a certificate"),
        ("DISABLE", "", "-----BEGIN", "mtls_not_allowed", "the peer came with a certificate"),
    ],
)
def test_a_refused_peer_is_told_apart(
    spec: str, source: str, certificate: str, expected: str, why: str
) -> None:
    """Each way to be refused has its code, 403, and a reason that names the document and its field."""
    request = call(source=source)
    request.attributes.source.certificate = certificate
    decision = decide_on(ALL + peers(mode(spec)), request)
    assert (decision.code, decision.http_status, decision.allowed) == (expected, 403, False)
    assert decision.reason.startswith(f"PeerAuthentication default/p says {spec}: ")
    assert decision.reason.endswith(why)
    assert (decision.policy, decision.field) == ("PeerAuthentication default/p", "spec.mtls")


def test_the_peer_comes_before_everything_else() -> None:
    """A refused peer is refused before CUSTOM, tokens and policies are looked at."""
    text = (
        peers(mode("STRICT"))
        + """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ask}
spec: {action: CUSTOM, provider: {name: ext}, rules: [{}]}
"""
    )
    assert code(text, call()) == "plaintext_not_allowed"
    assert code(text, call(source=MTLS)) == "custom_denied"


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ([], PeerMode.PERMISSIVE),
        ([(ROOT, mode("STRICT"))], PeerMode.STRICT),
        ([(ROOT, mode("STRICT")), ("default", mode("PERMISSIVE"))], PeerMode.PERMISSIVE),
        ([(ROOT, mode("STRICT")), ("default", mode("UNSET"))], PeerMode.STRICT),
        ([(ROOT, mode("STRICT")), ("default", "{}")], PeerMode.STRICT),
        ([(ROOT, mode("STRICT")), ("other", mode("DISABLE"))], PeerMode.STRICT),
        ([("default", mode("STRICT")), ("default", ported("DISABLE", "{1: {}}"))], PeerMode.DISABLE),
        ([("default", mode("STRICT")), ("default", ported("UNSET", "{1: {}}"))], PeerMode.STRICT),
        ([("default", "{selector: {matchLabels: {app: b}}, mtls: {mode: STRICT}}")], PeerMode.PERMISSIVE),
        ([("default", "{selector: {}, mtls: {mode: STRICT}}")], PeerMode.STRICT),
        # A selector in the root namespace selects nothing.
        ([(ROOT, "{selector: {matchLabels: {app: a}}, mtls: {mode: STRICT}}")], PeerMode.PERMISSIVE),
        ([(ROOT, mode("UNSET"))], PeerMode.PERMISSIVE),
        # No age: the strictest of a scope. DISABLE takes less than PERMISSIVE.
        ([("default", mode("PERMISSIVE")), ("default", mode("STRICT"))], PeerMode.STRICT),
        ([("default", mode("STRICT")), ("default", mode("DISABLE"))], PeerMode.STRICT),
        ([("default", mode("PERMISSIVE")), ("default", mode("DISABLE"))], PeerMode.DISABLE),
        ([(ROOT, mode("STRICT")), ("default", mode("PERMISSIVE")), ("default", "{}")], PeerMode.STRICT),
    ],
)
def test_the_narrowest_mode_that_is_set_wins(documents: list[tuple[str, str]], expected: PeerMode) -> None:
    """Workload before namespace before mesh; UNSET inherits."""
    text = "".join(
        peers(spec, name=f"p{number}", namespace=namespace)
        for number, (namespace, spec) in enumerate(documents)
    )
    found = snapshot(text).policies_for(Destination("s", "default", labels={"app": "a"}))
    assert found.peers.otherwise.mode is expected


@pytest.mark.parametrize(
    ("ages", "expected"),
    [
        (("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"), PeerMode.PERMISSIVE),
        (("2026-01-02T00:00:00Z", "2026-01-01T00:00:00Z"), PeerMode.STRICT),
        (("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z"), PeerMode.STRICT),
        (("2026-01-01T02:00:00+03:00", "2026-01-01T00:00:00Z"), PeerMode.PERMISSIVE),
        (("2026-01-01T00:00:00Z", ""), PeerMode.STRICT),
        (("", "2026-01-01T00:00:00Z"), PeerMode.STRICT),
    ],
)
@pytest.mark.parametrize("where", [ROOT, "default", "workload"])
def test_of_several_in_one_scope_the_oldest_counts(
    ages: tuple[str, str], expected: PeerMode, where: str
) -> None:
    """The oldest, as in Istio; the strictest where an age is not known or the same. The load warns."""
    namespace = "default" if where == "workload" else where
    selector = "selector: {matchLabels: {app: a}}, " if where == "workload" else ""
    text = "".join(
        peers(f"{{{selector}mtls: {{mode: {one}}}}}", name=name, namespace=namespace, created=age)
        for one, name, age in (("PERMISSIVE", "a", ages[0]), ("STRICT", "b", ages[1]))
    )
    found = snapshot(text).policies_for(Destination("s", "default", labels={"app": "a"}))
    assert found.peers.otherwise.mode is expected
    (problem,) = problems_of(text)
    assert "same_scope" in problem
    assert f"PeerAuthentication {namespace}/a is for the same workloads" in problem


def test_unset_ports_have_the_workload_s_mode() -> None:
    """A port that is UNSET inherits from its own document, and through it from wider ones."""
    text = peers(mode("STRICT"), name="n") + peers(ported("DISABLE", "{8080: {}, 9090: {mode: STRICT}}"))
    assert code(text, call(port=8080)) == "role_matched"
    assert code(text, call(port=9090)) == "plaintext_not_allowed"
    text = peers(mode("STRICT"), name="n") + peers(ported("UNSET", "{8080: {}}"))
    assert code(text, call(port=8080)) == "plaintext_not_allowed"


@pytest.mark.parametrize("port", ["", "http", "-1", "0", "8080 ", "٨٠٨٠", "65536", "99999999999"])
def test_an_unknown_port_gets_the_strictest_mode(port: str) -> None:
    """A call of which nobody knows the port meets the strictest of its candidates."""
    text = peers(ported("PERMISSIVE", "{8080: {mode: STRICT}}"))
    assert code(text, call(port=0, extensions={"destination.port": port})) == "plaintext_not_allowed"
    assert code(text, call(port=0, extensions={"destination.port": "80"})) == "role_matched"
    assert code(text, call(port=0, extensions={"destination.port": "8080"})) == "plaintext_not_allowed"
    # What Envoy reports wins over an extension.
    assert code(text, call(port=8080, extensions={"destination.port": "80"})) == "plaintext_not_allowed"


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("{mtls: {mode: strict}}", "5:21: spec.mtls.mode: `strict` is not known here"),
        ("{mtls: {mod: STRICT}}", "5:15: spec.mtls.mod: unknown field `mod`"),
        ("{portLevelMtls: {80: {}}}", "`portLevelMtls` needs a `selector` with labels"),
        ("{selector: {}, portLevelMtls: {80: {}}}", "`portLevelMtls` needs a `selector` with labels"),
        (ported("STRICT", "{}"), "spec.portLevelMtls: `portLevelMtls` is empty"),
        (ported("STRICT", "{0: {}}"), "spec.portLevelMtls.0: `0` is not a port"),
        (ported("STRICT", "{65536: {}}"), "`65536` is not a port"),
        (ported("STRICT", "{http: {}}"), "`http` is not a port"),
        (ported("STRICT", '{"080": {}}'), "`080` is not a port"),
        (ported("STRICT", '{"٨٠": {}}'), "is not a port"),
        (ported("STRICT", '{80: {}, "80": {}}'), "the key `80` stands twice"),
        ("{selector: {matchLabels: {app: 'a*'}}}", "labels have no wildcards"),
    ],
)
def test_what_is_wrong_is_an_error_with_its_place(spec: str, problem: str) -> None:
    """Unknown modes and fields, ports that are none and ports without workloads are errors."""
    documents, problems = parse(peers(spec).encode(), "p.yaml")
    policies, more = compile_policies(documents, MeshSettings())
    assert problems or policies is None
    assert any(problem in str(one) for one in (*problems, *more)), (problems, more)


def test_an_age_that_is_none_is_an_error() -> None:
    """An age that cannot be read would let a younger document win."""
    (problem,) = problems_of(peers(mode("STRICT"), created="yesterday"))
    assert "metadata.creationTimestamp: `yesterday` is not a time" in problem


def test_a_selector_in_the_root_namespace_is_warned_of() -> None:
    """It looks like protection and is none."""
    (problem,) = problems_of(peers("{selector: {matchLabels: {a: b}}, mtls: {mode: STRICT}}", namespace=ROOT))
    assert "selector_in_root" in problem
    assert "protects nobody" in problem


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_both_versions_are_read(version: str) -> None:
    """One schema under two names."""
    assert code(peers(mode("STRICT"), version=version), call()) == "plaintext_not_allowed"


def test_index_takes_only_what_selects() -> None:
    """Another namespace's document changes nothing here, and mesh-wide ones count everywhere."""
    documents, _ = parse(
        (peers(mode("STRICT"), namespace="x") + peers(mode("DISABLE"), namespace=ROOT)).encode(), "p"
    )
    policies, _ = compile_policies(documents, MeshSettings())
    assert policies is not None
    index = PolicyIndex(policies)
    modes = [index.policies_for(Destination("s", name)).peers.otherwise.mode for name in ("x", "y", "")]
    assert modes == ["STRICT", "DISABLE", "DISABLE"]


# ------------------------------------------------------------------------------------------- trust domains


@pytest.mark.parametrize(
    ("domain", "namespace", "taken"),
    [
        ("cluster.local", "default", True),
        ("alias.local", "default", True),
        ("partner.example", "default", True),
        ("partner.example", "other", True),
        ("some.example", "default", True),
        ("some.example", "shop", True),
        ("some.example", "other", False),
        ("stranger.example", "default", False),
        ("cluster.local.", "default", False),
        ("xcluster.local", "default", False),
    ],
)
def test_only_trust_domains_that_are_ours_or_federated_here_may_call(
    domain: str,
    namespace: str,
    taken: bool,
) -> None:
    """Ours, its aliases, and federated ones in the namespaces that they are named for; nobody else."""
    mesh = replace(
        federated("partner.example", "some.example=default", "some.example=shop"),
        trust_domain_aliases=(TrustDomain("alias.local"),),
    )
    request = check_request(
        source=principal("a", trust_domain=domain), service=f"s.{namespace}.svc.cluster.local"
    )
    decision = decide_on(snapshot(role("[{services: ['*']}]", namespace=namespace), mesh), request)
    assert decision.allowed is taken
    if not taken:
        assert (decision.code, decision.http_status) == ("foreign_trust_domain", 403)
        assert f"`{domain}`" in decision.reason
        assert f"namespace `{namespace}`" in decision.reason


def test_federation_ends_where_nobody_knows_the_namespace() -> None:
    """A destination without a namespace is in none of those that a trust domain is federated for."""
    mesh = federated("some.example=shop")
    request = check_request(source=principal("a", trust_domain="some.example"), service="10.0.0.9")
    assert decide_on(snapshot(ALL, mesh), request).code == "foreign_trust_domain"


def test_another_name_of_our_trust_domain_is_not_ours() -> None:
    """`cluster.local` in policies stands for our trust domain; a peer of that name is still somebody else."""
    mesh = MeshSettings(trust_domain=TrustDomain("corp.example"))
    compiled = snapshot(role("[{services: ['*']}]", '[{user: "cluster.local/ns/default/sa/a"}]'), mesh)
    ours, theirs = (
        check_request(source=principal("a", trust_domain=name)) for name in ("corp.example", "cluster.local")
    )
    assert decide_on(compiled, ours).allowed
    assert decide_on(compiled, theirs).code == "foreign_trust_domain"


@pytest.mark.parametrize(
    ("reported", "why"),
    [
        ("spiffe://cluster.local/ns/default/sa/../sa/a", "relative path segment"),
        ("spiffe://cluster.local//a", "empty path segment"),
        ("spiffe://cluster.local/a/", "empty path segment"),
        ("spiffe://CLUSTER.local/a", "characters other than"),
        ("SPIFFE://cluster.local/a", "does not start with `spiffe://`"),
        ("spiffe:cluster.local/a", "does not start with `spiffe://`"),
        ("spiffe://cluster.local:80/a", "characters other than"),
        ("spiffe://u@cluster.local/a", "characters other than"),
        ("spiffe://cluster.local/%61", "characters other than"),
        ("spiffe://cluster.local/a?x=1", "characters other than"),
        ("spiffe://cluster.local/a,spiffe://cluster.local/admin", "characters other than"),
        ("spiffe://cluster.local/a\x00", "characters other than"),
        ("spiffe://cluster.local/" + "a" * 2048, "at most 2048 bytes"),
        ("spiffe://", "is empty"),
        ("spiffe://cluster.local", "that of a trust domain, not of a workload"),
    ],
)
def test_what_looks_like_a_spiffe_id_and_is_none_is_refused(reported: str, why: str) -> None:
    """A name that other readers could take for an identity may not call, not even where anybody may."""
    for request in (check_request(source=reported), connection(source=reported)):
        decision = decide_on(ALL, request)
        assert (decision.code, decision.http_status) == ("malformed_spiffe_id", 403)
        assert why in decision.reason


@pytest.mark.parametrize("reported", ["a.example", "O=Lab,CN=spiffe://x/y", "https://spiffe/a", "urn:a"])
def test_other_names_are_no_identity(reported: str) -> None:
    """DNS names, subjects and other URIs can do what plaintext can do."""
    assert decide_on(ALL, check_request(source=reported)).allowed
    assert not decide_on(role("[{}]", "[{user: '*a*'}]"), check_request(source=reported)).allowed


@pytest.mark.parametrize("text", ["", "=shop", "UP", "a.example=", "a/b", "spiffe://a.example"])
def test_a_federation_is_a_trust_domain_and_at_most_a_namespace(text: str) -> None:
    """What is written otherwise is refused, and what is taken is written as it was read."""
    with pytest.raises(ValueError, match=r"trust domain|namespace"):
        FederatedDomain.parse(text)
    for good in ("a.example", "a.example=shop"):
        assert str(FederatedDomain.parse(good)) == good


# ------------------------------------------------------------------------------------------- what is known


def test_who_was_admitted_is_admitted_to_nothing_else() -> None:
    """That a peer may call is remembered by what it depends on: not for ports, not for other destinations."""
    ports = ported("PERMISSIVE", "{8080: {mode: DISABLE}}")
    compiled = snapshot(ALL + peers(ports), federated("some.example=default"))
    for _ in range(2):
        assert decide_on(compiled, call(source=MTLS, port=9090)).allowed
        assert decide_on(compiled, call(source=MTLS, port=8080)).code == "mtls_not_allowed"
    theirs = principal("a", trust_domain="some.example")
    for _ in range(2):
        assert decide_on(compiled, call(source=theirs)).allowed
        elsewhere = check_request(source=theirs, service="s.other.svc.cluster.local")
        assert decide_on(compiled, elsewhere).code == "foreign_trust_domain"
    strict = snapshot(ALL + peers(mode("STRICT")))
    for _ in range(2):
        assert decide_on(strict, call(source=MTLS)).allowed
        assert decide_on(strict, call()).code == "plaintext_not_allowed"
        assert decide_on(strict, call(source="a.example")).code == "peer_without_identity"
    disabled = snapshot(ALL + peers(mode("DISABLE")))
    included = call()
    included.attributes.source.certificate = "-----BEGIN"
    for _ in range(2):
        assert decide_on(disabled, call()).allowed
        assert decide_on(disabled, included).code == "mtls_not_allowed"


def test_who_is_known_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many names come, memory is bounded; destinations with equal rules share what is known."""
    monkeypatch.setattr(module, "MAX_ADMITTED", 3)
    compiled = snapshot(ALL)
    for number in range(10):
        assert decide_on(compiled, check_request(source=principal(f"a{number}"))).allowed
    one, two = (compiled.policies_for(Destination(name, "default")).peers for name in ("s", "t"))
    assert one is two
    assert 1 <= len(one.admitted) <= 3
