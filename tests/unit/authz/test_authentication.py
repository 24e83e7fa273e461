"""`authentication.istio.io/v1alpha1`: which policy counts, peers, origins, trigger rules, and mistakes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.checks import NOW, check_request, decide_on, principal, role, snapshot
from support.policies import connection, problems_of, tokens
from support.tokens import ISSUER, Authentication, ec_signer, ed_signer, rsa_signer

from authz.authn.authentication import MatchKind, PathMatch, Trigger
from authz.destination import Destination
from garrison.keys.jwks import KeySource

ANYBODY = role("[{services: ['*'], methods: ['*']}]") + role("[{services: ['*']}]", name="tcp")
GOOD = rsa_signer()
MTLS = principal("a")


def policy(spec: str, name: str = "default", namespace: str = "default", kind: str = "Policy") -> str:
    """Return a Policy or MeshPolicy with `spec` in YAML's flow style."""
    return f"""
apiVersion: authentication.istio.io/v1alpha1
kind: {kind}
metadata: {{name: {name}, namespace: {namespace}}}
spec: {spec}
---
"""


def jwt(more: str = "", issuer: str = ISSUER, signer: Any = GOOD) -> str:
    """Return an origin with inline keys and further fields."""
    return f"{{jwt: {{issuer: '{issuer}', jwks: {json.dumps(signer.jwks())}{', ' + more if more else ''}}}}}"


def origins(*found: str, more: str = "") -> str:
    """Return a spec with these origins."""
    return f"{{origins: [{', '.join(found)}]{', ' + more if more else ''}}}"


def bearer(token: str | None = None) -> dict[str, str]:
    """Return the header of a call with a token, by default a good one."""
    return {"authorization": f"Bearer {token or GOOD.token()}"}


BAD = GOOD.token({"exp": NOW - 1})


def code(text: str, request: Any) -> str:
    """Return the reason code of the decision."""
    return decide_on(ANYBODY + text, request).code.value


def at(port: int, request: Any) -> Any:
    """Return the call as if it had come in at `port`."""
    request.attributes.destination.address.socket_address.port_value = port
    return request


# --------------------------------------------------------------------------------------------------- peers


@pytest.mark.parametrize(
    ("peers", "source", "tls", "passes"),
    [
        ("[]", "", False, True),
        ("[{mtls: {}}]", "", False, False),
        ("[{mtls: {}}]", "", True, False),
        ("[{mtls: {}}]", "a.example", True, False),
        ("[{mtls: {}}]", MTLS, True, True),
        ("[{mtls: null}]", "", False, False),
        ("[{mtls: null}]", MTLS, False, True),
        ("[{mtls: {mode: STRICT}}]", "", False, False),
        ("[{mtls: {mode: PERMISSIVE}}]", "", False, True),
        ("[{mtls: {mode: PERMISSIVE, allowTls: true}}]", "", False, True),
        ("[{mtls: {mode: PERMISSIVE}}]", MTLS, True, True),
        ("[{mtls: {allowTls: true}}]", "", False, False),
        ("[{mtls: {allowTls: true}}]", "", True, True),
        ("[{mtls: {allow_tls: true}}]", "a.example", False, True),
        ("[{mtls: {allowTls: false}}]", "", True, False),
        ("[{mtls: {}}, {mtls: {mode: PERMISSIVE}}]", "", False, True),
    ],
)
@pytest.mark.parametrize("tcp", [False, True], ids=["http", "tcp"])
def test_peers(peers: str, source: str, tls: bool, passes: bool, tcp: bool) -> None:
    """STRICT wants an identity, PERMISSIVE nothing, `allow_tls` TLS; one method suffices, none is no demand."""
    request = connection(source=source) if tcp else check_request(source=source)
    if tls:
        request.attributes.tls_session.SetInParent()
    decision = decide_on(ANYBODY + policy(f"{{peers: {peers}}}"), request)
    assert decision.allowed is passes
    if not passes:
        assert decision.code == "peer_authentication_failed"
        assert (decision.http_status, decision.public) == (401, "Peer authentication failed.")
        assert decision.challenge == 'Bearer realm="products.default.svc.cluster.local"'
        assert (decision.policy, decision.field) == ("Policy default/default", "spec.peers")
    optional = policy(f"{{peers: {peers}, peerIsOptional: true}}")
    assert decide_on(ANYBODY + optional, request).allowed


# ------------------------------------------------------------------------------------------------- origins


@pytest.mark.parametrize(
    ("spec", "headers", "expected"),
    [
        (origins(jwt()), bearer(), "ok"),
        (origins(jwt()), {}, "401"),
        (origins(jwt()), bearer(BAD), "401 invalid"),
        (origins(jwt()), bearer("garbage"), "401 invalid"),
        (origins(jwt()), bearer(GOOD.token({"iss": "https://other.example"})), "401 invalid"),
        (origins(jwt()), {"authorization": "Basic x"}, "401"),
        (origins(jwt("audiences: [a, b]")), bearer(GOOD.token({"aud": "b"})), "ok"),
        (origins(jwt("audiences: [a]")), bearer(GOOD.token({"aud": "b"})), "401 invalid"),
        (origins(jwt("audiences: [a]")), bearer(GOOD.token({"aud": "https://a/"})), "401 invalid"),
        (origins(jwt("audiences: [a]")), bearer(), "401 invalid"),
        # The first that is good wins, whichever it is.
        (origins(jwt(issuer="https://x", signer=ec_signer()), jwt()), bearer(), "ok"),
        (
            origins(jwt(issuer="https://x", signer=ec_signer()), jwt()),
            bearer(ec_signer().token({"iss": "https://x"})),
            "ok",
        ),
        # Places replace the defaults; in a header of its own the token stands alone.
        (origins(jwt("jwtHeaders: [X-Token]")), {"x-token": GOOD.token()}, "ok"),
        (origins(jwt("jwt_headers: [X-Token]")), {"x-token": f"Bearer {GOOD.token()}"}, "401 invalid"),
        (origins(jwt("jwtHeaders: [X-Token]")), bearer(), "401"),
        # Optional: what is no good is as if it were not there.
        (origins(jwt(), more="originIsOptional: true"), {}, "ok"),
        (origins(jwt(), more="origin_is_optional: true"), bearer(BAD), "ok"),
        # No origins: nothing is asked, unless the principal is to be the origin's.
        ("{principalBinding: USE_PEER}", {}, "ok"),
        ("{principalBinding: USE_ORIGIN}", {}, "401"),
        ("{principal_binding: USE_ORIGIN}", bearer(), "401"),
        ("{principalBinding: USE_ORIGIN, originIsOptional: true}", {}, "ok"),
        # Two tokens: which of them speaks would be a guess.
        (
            origins(jwt(), jwt("jwtHeaders: [x-token]", issuer="https://x", signer=ec_signer())),
            {**bearer(), "x-token": ec_signer().token({"iss": "https://x"})},
            "401 invalid",
        ),
        # Keys that are fetched are not there yet: no token is good.
        (
            f"{{origins: [{{jwt: {{issuer: '{ISSUER}', jwksUri: 'https://a/keys'}}}}]}}",
            bearer(),
            "401 invalid",
        ),
        (f"{{origins: [{{jwt: {{issuer: '{ISSUER}'}}}}]}}", bearer(), "401 invalid"),
    ],
)
def test_origins(spec: str, headers: dict[str, str], expected: str) -> None:
    """A token of one of the issuers, or 401; the challenge has an error only where a bad token came."""
    decision = decide_on(ANYBODY + policy(spec), check_request(headers=headers))
    if expected == "ok":
        assert decision.allowed
        return
    assert decision.code == "origin_authentication_failed"
    assert (decision.http_status, decision.public) == (401, "Origin authentication failed.")
    error = ', error="invalid_token"' if "invalid" in expected else ""
    assert decision.challenge == f'Bearer realm="products.default.svc.cluster.local"{error}'
    assert (decision.policy, decision.field) == ("Policy default/default", "spec.origins")


@pytest.mark.parametrize("path", ["/?token=", "/a?b=c&token="])
def test_tokens_in_parameters(path: str) -> None:
    """`jwt_params` replaces the places where tokens are looked for."""
    text = policy(origins(jwt("jwtParams: [token]")))
    assert code(text, check_request(path=path + GOOD.token())) == "role_matched"
    assert code(text, check_request(headers=bearer())) == "origin_authentication_failed"
    default = policy(origins(jwt()))
    assert code(default, check_request(path=f"/?access_token={GOOD.token()}")) == "role_matched"


def test_the_token_gives_claims_and_goes_on() -> None:
    """Policies see its claims whatever the binding, and the upstream gets it."""
    for binding in ("USE_PEER", "USE_ORIGIN"):
        text = policy(origins(jwt(), more=f"principalBinding: {binding}"))
        text += role("[{}]", f'[{{properties: {{"request.auth.principal": "{ISSUER}/a"}}}}]')
        compiled = snapshot(text)
        assert decide_on(compiled, check_request(headers=bearer())).allowed
        assert not decide_on(compiled, check_request(headers=bearer(GOOD.token({"sub": "b"})))).allowed
        optional = text.replace("origins:", "originIsOptional: true, origins:")
        assert not decide_on(optional, check_request(headers=bearer(BAD))).allowed


def test_connections_have_no_token() -> None:
    """A TCP connection to a service that wants a token is refused; without the demand it is not."""
    assert code(policy(origins(jwt())), connection()) == "origin_authentication_failed"
    assert code(policy(origins(jwt(), more="originIsOptional: true")), connection()) == "role_matched"
    triggered = policy(origins(jwt("triggerRules: [{includedPaths: [{prefix: /admin}]}]")))
    assert code(triggered, connection()) == "origin_authentication_failed"


# ------------------------------------------------------------------------------------------- trigger rules


@pytest.mark.parametrize(
    ("rules", "path", "asked"),
    [
        ("[]", "/a", True),
        ("[{}]", "/a", True),
        ("[{excludedPaths: [{exact: /a}]}]", "/a", False),
        ("[{excluded_paths: [{exact: /a}]}]", "/b", True),
        ("[{excludedPaths: [{prefix: /p/}, {suffix: .png}]}]", "/p/a", False),
        ("[{excludedPaths: [{prefix: /p/}, {suffix: .png}]}]", "/x.png", False),
        ("[{excludedPaths: [{regex: '/v[0-9]+/ok'}]}]", "/v12/ok", False),
        ("[{excludedPaths: [{regex: '/v[0-9]+/ok'}]}]", "/v12/okay", True),
        ("[{excludedPaths: [{regex: '/a|/b'}]}]", "/bb", True),
        ("[{includedPaths: [{exact: /a}]}]", "/a", True),
        ("[{included_paths: [{exact: /a}]}]", "/b", False),
        ("[{excludedPaths: [{exact: /p/a}], includedPaths: [{prefix: /p/}]}]", "/p/a", False),
        ("[{excludedPaths: [{exact: /p/a}], includedPaths: [{prefix: /p/}]}]", "/p/b", True),
        ("[{excludedPaths: [{exact: /p/a}], includedPaths: [{prefix: /p/}]}]", "/q", False),
        # One rule that matches suffices.
        ("[{excludedPaths: [{exact: /a}]}, {includedPaths: [{exact: /a}]}]", "/a", True),
        ("[{includedPaths: [{exact: /a}]}, {includedPaths: [{exact: /b}]}]", "/c", False),
        # The path has its query (Istio 1.1); without, it must be excluded as well.
        ("[{excludedPaths: [{exact: /a}]}]", "/a?x=1", True),
        ("[{excludedPaths: [{exact: '/a?x=1'}]}]", "/a?x=1", True),
        ("[{excludedPaths: [{prefix: /a}]}]", "/a?x=1", False),
        ("[{excludedPaths: [{suffix: .png}]}]", "/admin?x=.png", True),
        ("[{includedPaths: [{exact: /a}]}]", "/a?x=1", True),
        ("[{includedPaths: [{suffix: 'x=1'}]}]", "/a?x=1", True),
        # What an upstream may take for another path does not get past.
        ("[{excludedPaths: [{prefix: /p/}]}]", "/p/../admin", True),
        ("[{excludedPaths: [{prefix: /p/}]}]", "/p/%2e%2e/admin", True),
        ("[{excludedPaths: [{prefix: /p/}]}]", "/p/..;/admin", True),
        ("[{excludedPaths: [{prefix: /p/}]}]", "/p/a;x=y", False),
        ("[{includedPaths: [{prefix: /admin}]}]", "/p/../admin", True),
        ("[{includedPaths: [{prefix: /admin}]}]", "/%61dmin", True),
        ("[{includedPaths: [{exact: /admin}]}]", "/admin;x=y", True),
        # No path, or not all of its bytes.
        ("[{excludedPaths: [{regex: '.*'}]}]", "", True),
        ("[{includedPaths: [{exact: /a}]}]", "", True),
        # Too long to be looked at.
        ("[{excludedPaths: [{regex: '/a*'}]}]", "/" + "a" * 20_000, True),
        ("[{includedPaths: [{regex: '/b*'}]}]", "/" + "a" * 20_000, True),
    ],
)
def test_trigger_rules(rules: str, path: str, asked: bool) -> None:
    """A path is excluded if every reading of it is, and included if one is; no rule that matches asks nothing."""
    text = policy(origins(jwt(f"triggerRules: {rules}")))
    request = check_request(path=path, method="GET" if path else "CONNECT")
    assert code(text, request) == ("origin_authentication_failed" if asked else "role_matched")


def test_bytes_that_are_not_utf_8_exclude_nothing() -> None:
    """Envoy shows `!` for them and forwards the bytes: such a path is not known, so the token is asked for."""
    raw = check_request(path="/p/!", raw_headers=[(":path", b"/p/\xff")])
    for rules in ("[{excludedPaths: [{prefix: /p/}]}]", "[{includedPaths: [{exact: /x}]}]"):
        assert code(policy(origins(jwt(f"triggerRules: {rules}"))), raw) == "origin_authentication_failed"


def test_only_triggered_issuers_count() -> None:
    """A token of an issuer that is not asked at this path is no good here."""
    other = jwt("triggerRules: [{includedPaths: [{prefix: /b}]}]", issuer="https://x", signer=ec_signer())
    text = policy(origins(jwt("triggerRules: [{includedPaths: [{prefix: /a}]}]"), other))
    theirs = bearer(ec_signer().token({"iss": "https://x"}))
    assert code(text, check_request(path="/a", headers=bearer())) == "role_matched"
    assert code(text, check_request(path="/a", headers=theirs)) == "origin_authentication_failed"
    assert code(text, check_request(path="/b", headers=theirs)) == "role_matched"
    assert code(text, check_request(path="/b", headers=bearer())) == "origin_authentication_failed"
    assert code(text, check_request(path="/c")) == "role_matched"


MATCHES = st.builds(
    PathMatch,
    st.sampled_from([MatchKind.EXACT, MatchKind.PREFIX, MatchKind.SUFFIX]),
    st.text("/ab", min_size=1, max_size=3),
)


@given(
    st.lists(MATCHES, max_size=3).map(tuple),
    st.lists(MATCHES, max_size=3).map(tuple),
    st.lists(st.text("/ab", max_size=4), min_size=1, max_size=3),
    st.text("/ab", max_size=4),
)
def test_one_more_reading_never_asks_for_less(
    excluded: tuple[PathMatch, ...], included: tuple[PathMatch, ...], readings: list[str], more: str
) -> None:
    """With one reading this is Istio's rule; each further one can only make it ask."""
    trigger = Trigger(excluded, included)

    def fits(one: PathMatch, path: str) -> bool:
        return {
            MatchKind.EXACT: path == one.text,
            MatchKind.PREFIX: path.startswith(one.text),
            MatchKind.SUFFIX: path.endswith(one.text),
        }[one.kind]

    first = readings[0]
    istio = not any(fits(one, first) for one in excluded) and (
        not included or any(fits(one, first) for one in included)
    )
    assert trigger.matches([first], is_whole=True) is istio
    if trigger.matches(readings, is_whole=True):
        assert trigger.matches([*readings, more], is_whole=True)
    assert trigger.matches(readings, is_whole=False)


# ---------------------------------------------------------------------------------------- which one counts

STRICT, OPEN = "peers: [{mtls: {}}]", "peers: []"


def target(*names: str, more: str = STRICT, ports: str = "") -> str:
    """Return a spec for these services."""
    return f"{{targets: [{', '.join(f'{{name: {name}{ports}}}' for name in names)}], {more}}}"


MESH = {"kind": "MeshPolicy"}


@pytest.mark.parametrize(
    ("documents", "asked"),
    [
        ([], False),
        ([policy(f"{{{STRICT}}}", **MESH)], True),
        ([policy(f"{{{STRICT}}}", **MESH), policy("{}")], False),
        ([policy("{}", **MESH), policy(f"{{{STRICT}}}")], True),
        ([policy(f"{{{STRICT}}}"), policy(target("products", more=OPEN), "p")], False),
        ([policy("{}"), policy(target("products"), "p")], True),
        ([policy("{}"), policy(target("x", "products"), "p")], True),
        ([policy("{}"), policy(target("reviews"), "p")], False),
        ([policy("{}"), policy(target("products"), "p", "other")], False),
        ([policy(f"{{{STRICT}}}", namespace="other")], False),
        # A port filter is more specific, whatever the names.
        (
            [
                policy(target("products", more=OPEN), "a"),
                policy(target("products", ports=", ports: [{number: 9080}]"), "b"),
            ],
            True,
        ),
        (
            [
                policy(target("products", more=OPEN), "a"),
                policy(target("products", ports=", ports: [{number: 80}]"), "b"),
            ],
            False,
        ),
        # Nothing is merged: what the more specific one leaves out is not asked.
        ([policy(f"{{{STRICT}}}"), policy(target("products", more="peerIsOptional: true"), "p")], False),
        # Two equally specific: the first by name, in whatever order they come.
        ([policy(target("products"), "a"), policy(target("products", more=OPEN), "b")], True),
        ([policy(target("products"), "b"), policy(target("products", more=OPEN), "a")], False),
        # Labels narrow a target down.
        ([policy(target("products", ports=", labels: {v: '1'}"), "p")], True),
        ([policy(target("products", ports=", labels: {v: '2'}"), "p")], False),
    ],
)
def test_the_most_specific_policy_counts_alone(documents: list[str], asked: bool) -> None:
    """Service with port, service, namespace, mesh."""
    request = check_request(extensions={"destination.labels[v]": "1"})
    expected = "peer_authentication_failed" if asked else "role_matched"
    assert code("".join(documents), request) == expected
    assert code("".join(reversed(documents)), request) == expected


def test_ports_are_those_of_the_connection() -> None:
    """A port that nobody knows, where ports tell policies apart, is refused with its reason."""
    text = policy(target("products", ports=", ports: [{number: 8080}, {number: 8081}]"), "p")
    assert code(text, at(8080, check_request())) == "peer_authentication_failed"
    assert code(text, at(8081, check_request())) == "peer_authentication_failed"
    assert code(text, at(9080, check_request())) == "role_matched"
    unknown = decide_on(ANYBODY + text, at(0, check_request(source=MTLS)))
    assert unknown.code == "peer_authentication_failed"
    assert "nobody knows the port" in unknown.reason
    extension = check_request(extensions={"destination.port": "9080"})
    assert code(text, at(0, extension)) == "role_matched"


def test_two_for_one_service_are_warned_of() -> None:
    """The one that does not count is named."""
    (problem,) = problems_of(policy(target("products"), "a") + policy(target("x", "products"), "b"))
    assert "spec.targets[1]" in problem
    assert "Policy default/a is for the same service and ports: it counts" in problem
    different = policy(target("products"), "a") + policy(
        target("products", ports=", ports: [{number: 1}]"), "b"
    )
    assert problems_of(different) == []


# ------------------------------------------------------------------------------- together with the new kinds


def test_old_and_new_kinds_both_hold() -> None:
    """Adding a document of either kind never lets anything in."""
    strict = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: p}
spec: {mtls: {mode: STRICT}}
---
"""
    assert code(strict + policy("{}"), check_request()) == "plaintext_not_allowed"
    permissive = strict.replace("STRICT", "PERMISSIVE") + policy(f"{{{STRICT}}}")
    assert code(permissive, check_request()) == "peer_authentication_failed"


def test_tokens_of_old_and_new_kinds_must_be_the_same() -> None:
    """One token may satisfy both; of two different ones, which speaks for the caller would be a guess."""
    theirs = ed_signer()
    both = str(Authentication(GOOD.jwks())) + policy(origins(jwt()))
    assert code(both, check_request(headers=bearer())) == "role_matched"
    assert code(both, check_request(headers=bearer(BAD))) == "invalid_token"
    assert code(both, check_request()) == "origin_authentication_failed"
    apart = tokens() + policy(origins(jwt("jwtHeaders: [x-token]")))
    headers = {"authorization": f"Bearer {theirs.token()}", "x-token": GOOD.token({"sub": "b"})}
    decision = decide_on(ANYBODY + apart, check_request(headers=headers))
    assert decision.code == "origin_authentication_failed"
    assert "two different tokens" in decision.reason
    assert decision.challenge.endswith('error="invalid_token"')
    assert code(apart, check_request(headers={"x-token": GOOD.token()})) == "role_matched"


def test_the_keys_to_fetch_are_named() -> None:
    """At `jwks_uri`, else where OpenID discovery of the issuer says; all of them are fetched."""
    spec = origins("{jwt: {issuer: 'https://a', jwks_uri: 'https://a/k'}}", "{jwt: {issuer: 'https://b'}}")
    compiled = snapshot(policy(spec))
    rules = compiled.policies_for(Destination("s", "default")).authentication
    assert rules is not None
    expected = (KeySource("https://a/k", "https://a"), KeySource("", "https://b"))
    assert tuple(one.rule.keys for one in rules.otherwise.origins) == expected
    assert all(one.rule.forward for one in rules.otherwise.origins)
    assert compiled.policies.key_sources == expected


# ------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (policy("{}", "p"), "metadata.name: a policy without targets, so for the whole namespace"),
        (policy(target("a")), "spec.targets: the policy called `default` is for the whole namespace"),
        (policy("{}", "p", **MESH), "metadata.name: the name must be `default`"),
        (policy(target("a"), **MESH), "spec.targets: a MeshPolicy is for all services"),
        (policy(target("a.b"), "p"), "spec.targets[0].name"),
        (policy(target("A"), "p"), "spec.targets[0].name"),
        (policy("{targets: [{}], peers: []}", "p"), "the required field `name` is missing"),
        (
            policy(target("a", ports=", ports: [{name: http}]"), "p"),
            "which port is called `http` is not known",
        ),
        (policy(target("a", ports=", ports: [{number: 0}]"), "p"), "expected the `number` of a port"),
        (policy(target("a", ports=", ports: [{}]"), "p"), "expected the `number` of a port"),
        (policy("{peers: [{jwt: {issuer: a}}]}"), "spec.peers[0].jwt: no version of Istio authenticates"),
        (policy("{peers: [{}]}"), "a method needs `mtls`"),
        (policy("{peers: [{mtls: {mode: DISABLE}}]}"), "`DISABLE` is not known here"),
        (policy("{origins: [{jwt: {}}]}"), "the required field `issuer` is missing"),
        (policy(origins(jwt(), jwt())), f"spec.origins[1].jwt.issuer: `{ISSUER}` stands twice"),
        (policy(origins(jwt("jwksUri: 'https://a'"))), "`jwks` and `jwksUri` exclude each other"),
        (policy(origins("{jwt: {issuer: a, jwksUri: 'ftp://a'}}")), "spec.origins[0].jwt.jwksUri: "),
        (policy(origins("{jwt: {issuer: a}}")), "spec.origins[0].jwt.issuer: "),
        (policy(origins("{jwt: {issuer: a, jwks: '{}'}}")), "the key set has no list `keys`"),
        (policy(origins(jwt("triggerRules: [{excludedPaths: [{}]}]"))), "expected one of `exact`, `prefix`"),
        (
            policy(origins(jwt("triggerRules: [{excludedPaths: [{exact: a, prefix: b}]}]"))),
            "triggerRules[0].excludedPaths[0]: expected one of",
        ),
        (policy(origins(jwt("triggerRules: [{includedPaths: [{regex: '('}]}]"))), "is not an RE2 pattern"),
        (policy(origins(jwt("triggerRules: [{includedPaths: [{regex: 'a)(b'}]}]"))), "is not an RE2 pattern"),
        (policy("{peerIsOptional: true, peer_is_optional: true}"), "unknown field `peer_is_optional`"),
        (policy("{origin: []}"), "unknown field `origin`"),
    ],
)
def test_what_is_wrong_is_an_error_with_its_place(text: str, problem: str) -> None:
    """Names without targets, ports by name, methods that never were, two key sets, patterns that are none."""
    found = problems_of(text)
    assert any(problem in one for one in found), found
