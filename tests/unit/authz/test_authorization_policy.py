"""`AuthorizationPolicy`: what every field, key and pattern means, and that doubt denies."""

from __future__ import annotations

from typing import Any

import pytest
from support.checks import check_request, decide_on, principal, snapshot
from support.policies import (
    operation,
    policy,
    source,
    tokens,
    when,
    with_token,
)

from authz.decision import ReasonCode
from authz.paths import PathNormalization
from authz.policy.compile import MeshSettings

A = principal("a")  # spiffe://cluster.local/ns/default/sa/a
Request = dict[str, Any]


def matches(make: Any, *arguments: Any, request: Any) -> bool:
    """Return whether the rule that `make` builds matches; ALLOW and DENY have to agree on it."""
    allowed = decide_on(make(*arguments), request).allowed
    denied = not decide_on(make(*arguments, "DENY"), request).allowed
    assert allowed is denied
    return allowed


# ------------------------------------------------------------------------------------------------- sources


@pytest.mark.parametrize(
    ("fields", "caller", "expected"),
    [
        ('{principals: ["cluster.local/ns/default/sa/a"]}', A, True),
        ('{principals: ["cluster.local/ns/default/sa/a"]}', principal("ab"), False),
        ('{principals: ["cluster.local/ns/default/sa/a"]}', principal("A"), False),
        ('{principals: ["cluster.local/ns/default/sa/a"]}', "", False),
        ('{principals: ["spiffe://cluster.local/ns/default/sa/a"]}', A, False),
        ('{principals: ["x", "cluster.local/ns/default/sa/a"]}', A, True),
        ('{principals: ["*"]}', A, True),
        ('{principals: ["*"]}', "", False),
        ('{principals: ["cluster.local/ns/default/*"]}', A, True),
        ('{principals: ["cluster.local/ns/other/*"]}', A, False),
        ('{principals: ["*/sa/a"]}', A, True),
        ('{principals: ["*/sa/b"]}', A, False),
        ('{principals: ["*/sa/*"]}', A, False),
        ('{principals: ["cluster.local/*/sa/a"]}', A, False),
        ('{principals: ["cluster.local/ns/default/sa/a*"]}', A, True),
        ('{principals: ["cluster.local/ns/default/sa/."]}', A, False),
        ('{notPrincipals: ["cluster.local/ns/default/sa/a"]}', A, False),
        ('{notPrincipals: ["cluster.local/ns/default/sa/a"]}', principal("b"), True),
        ('{notPrincipals: ["cluster.local/ns/default/sa/a"]}', "", True),
        ('{notPrincipals: ["*"]}', "", True),
        ('{notPrincipals: ["*"]}', A, False),
        ('{principals: ["*"], notPrincipals: ["*/sa/a"]}', A, False),
        ('{principals: ["*"], notPrincipals: ["*/sa/a"]}', principal("b"), True),
        ('{namespaces: ["default"]}', A, True),
        ('{namespaces: ["def"]}', A, False),
        ('{namespaces: ["def*"]}', A, True),
        ('{namespaces: ["*ult"]}', A, True),
        ('{namespaces: ["d*lt"]}', A, True),
        ('{namespaces: ["d*x"]}', A, False),
        ('{namespaces: ["d.fault"]}', A, False),
        ('{namespaces: ["*"]}', A, True),
        ('{namespaces: ["*"]}', "", False),
        ('{namespaces: ["Default"]}', A, False),
        ('{notNamespaces: ["default"]}', A, False),
        ('{notNamespaces: ["other"]}', A, True),
        ('{notNamespaces: ["default"]}', "", True),
        ('{serviceAccounts: ["a"]}', A, True),
        ('{serviceAccounts: ["default/a"]}', A, True),
        ('{serviceAccounts: ["other/a"]}', A, False),
        ('{serviceAccounts: ["a"]}', principal("a", "other"), False),
        ('{serviceAccounts: ["other/a"]}', principal("a", "other"), True),
        ('{serviceAccounts: ["a"]}', principal("a", trust_domain="any.domain"), True),
        ('{serviceAccounts: ["."]}', A, False),
        ('{serviceAccounts: ["a"]}', "", False),
        ('{notServiceAccounts: ["a"]}', A, False),
        ('{notServiceAccounts: ["a"]}', principal("b"), True),
        ('{notServiceAccounts: ["a"]}', "", True),
        ('{trustDomains: ["cluster.local"]}', A, True),
        ('{trustDomains: ["other.local"]}', A, False),
        ('{trustDomains: ["cluster*"]}', A, True),
        ('{trustDomains: ["*.local"]}', A, True),
        ('{trustDomains: ["*.remote"]}', A, False),
        ('{trustDomains: ["*"]}', A, True),
        ('{trustDomains: ["*"]}', "", False),
        ('{trustDomains: ["clusterxlocal"]}', A, False),
        ('{notTrustDomains: ["cluster.local"]}', A, False),
        ('{notTrustDomains: ["other.local"]}', A, True),
        ('{notTrustDomains: ["cluster.local"]}', "", True),
        ('{principals: ["*/sa/a"], trustDomains: ["other.local"]}', A, False),
        ('{ipBlocks: ["10.0.0.1"]}', A, True),
        ('{ipBlocks: ["10.0.0.2"]}', A, False),
        ('{ipBlocks: ["10.0.0.0/24"]}', A, True),
        ('{ipBlocks: ["10.0.1.0/24", "10.0.0.0/31"]}', A, True),
        ('{ipBlocks: ["::ffff:0:0/96"]}', A, False),
        ('{ipBlocks: ["0.0.0.0/0"]}', A, True),
        ('{notIpBlocks: ["10.0.0.1"]}', A, False),
        ('{notIpBlocks: ["10.0.0.2"]}', A, True),
        ('{ipBlocks: ["10.0.0.0/8"], notIpBlocks: ["10.0.0.1"]}', A, False),
    ],
)
def test_sources(fields: str, caller: str, expected: bool) -> None:
    """Each field reads the verified peer; without a certificate only not-forms match."""
    assert matches(source, fields, request=check_request(source=caller)) is expected


@pytest.mark.parametrize(
    ("address", "fields", "expected"),
    [
        ("10.0.0.1", '{ipBlocks: ["10.0.0.0/8"]}', True),
        ("::ffff:10.0.0.1", '{ipBlocks: ["10.0.0.0/8"]}', True),
        ("2001:db8::1", '{ipBlocks: ["2001:db8::/32"]}', True),
        ("2001:db8::1", '{ipBlocks: ["10.0.0.0/8"]}', False),
        ("2001:db9::1", '{ipBlocks: ["2001:db8::/32"]}', False),
        ("/run/envoy.sock", '{ipBlocks: ["0.0.0.0/0"]}', False),
        ("", '{ipBlocks: ["0.0.0.0/0", "::/0"]}', False),
        ("", '{notIpBlocks: ["0.0.0.0/0", "::/0"]}', True),
    ],
)
def test_addresses(address: str, fields: str, expected: bool) -> None:
    """Addresses compare as numbers, of either family; what is no address is in no block."""
    assert matches(source, fields, request=check_request(source_ip=address)) is expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ('{remoteIpBlocks: ["192.0.2.0/24"]}', True),
        ('{remoteIpBlocks: ["192.0.3.0/24"]}', False),
        ('{remoteIpBlocks: ["10.0.0.1"]}', False),
        ('{notRemoteIpBlocks: ["192.0.2.0/24"]}', False),
        ('{notRemoteIpBlocks: ["10.0.0.1"]}', True),
    ],
)
def test_the_remote_address_is_the_original_clients(fields: str, expected: bool) -> None:
    """`remoteIpBlocks` reads the client that the operator's Envoy found, not the connected peer."""
    request = check_request(extensions={"remote.ip": "192.0.2.7"})
    assert matches(source, fields, request=request) is expected


PAIR = {"iss": "https://issuer.example", "sub": "a"}


@pytest.mark.parametrize(
    ("pattern", "subject", "expected"),
    [
        ("https://issuer.example/a", "a", True),
        ("https://issuer.example/b", "a", False),
        ("https://issuer.example", "a", False),
        ("https://issuer.example/", "a", False),
        ("*", "a", True),
        ("*", "", False),
        ("http*", "anybody", True),
        ("https://issuer*", "a", False),
        ("ftp*", "a", False),
        ("https://issuer.example/*", "a", True),
        ("https://issuer.exampl/*", "a", False),
        ("https://issuer.example/ad*", "admin", True),
        ("https://issuer.example/ad*", "a", False),
        ("*min", "admin", True),
        ("*min", "a", False),
        ("*/admin", "admin", True),
        ("*/min", "admin", False),
        ("*issuer.example/a", "a", True),
        ("*other.example/a", "a", False),
        # Split at the last `/`: subject `x/a` is not subject `a` of another issuer.
        ("https://issuer.example/x/a", "x/a", False),
        ("a", "a", False),
    ],
)
def test_request_principals(pattern: str, subject: str, expected: bool) -> None:
    """Issuer and subject both have to match, split at the last `/` of the pattern."""
    request = with_token({"sub": subject})
    rule = f'{{requestPrincipals: ["{pattern}"]}}'
    assert decide_on(tokens() + source(rule), request).allowed is expected
    assert decide_on(tokens() + source(rule, "DENY"), request).allowed is not expected
    negated = f'{{notRequestPrincipals: ["{pattern}"]}}'
    assert decide_on(tokens() + source(negated), request).allowed is not expected
    assert decide_on(tokens() + source(negated, "DENY"), request).allowed is expected


def test_no_token_is_no_request_principal() -> None:
    """Without a token positive fields match nothing, `*` included, and not-forms match."""
    request = check_request()
    assert not decide_on(tokens() + source('{requestPrincipals: ["*"]}'), request).allowed
    assert not decide_on(tokens() + source('{notRequestPrincipals: ["*"]}', "DENY"), request).allowed


def test_tokens_nobody_verifies_are_no_request_principals() -> None:
    """Without a RequestAuthentication a token is only a header."""
    assert not decide_on(source('{requestPrincipals: ["*"]}'), with_token({})).allowed


def test_short_service_accounts_are_of_the_policys_namespace() -> None:
    """`a` in a policy of the root namespace is an account of the root namespace."""
    rules = '[{from: [{source: {serviceAccounts: ["a"]}}]}]'
    mesh_wide = policy(rules, namespace="istio-system")
    assert not decide_on(mesh_wide, check_request(source=A)).allowed
    assert decide_on(mesh_wide, check_request(source=principal("a", "istio-system"))).allowed


# ---------------------------------------------------------------------------------------------- operations


@pytest.mark.parametrize(
    ("fields", "request_", "expected"),
    [
        ('{methods: ["GET"]}', {}, True),
        ('{methods: ["GET"]}', {"method": "POST"}, False),
        ('{methods: ["GET"]}', {"method": "get"}, False),
        ('{methods: ["*"]}', {"method": "FOO"}, True),
        ('{methods: ["P*"]}', {"method": "PUT"}, True),
        ('{methods: ["*T"]}', {"method": "PUT"}, True),
        ('{notMethods: ["GET"]}', {"method": "POST"}, True),
        ('{notMethods: ["GET"]}', {}, False),
        (
            '{methods: ["POST"], paths: ["/pkg.Service/Method"]}',
            {"method": "POST", "path": "/pkg.Service/Method"},
            True,
        ),
        ('{hosts: ["a.com"]}', {"host": "a.com"}, True),
        ('{hosts: ["a.com"]}', {"host": "A.CoM"}, True),
        ('{hosts: ["A.com"]}', {"host": "a.com"}, True),
        ('{hosts: ["a.com:*"]}', {"host": "a.com:80"}, True),
        ('{hosts: ["a.com:*"]}', {"host": "a.com"}, False),
        ('{hosts: ["*.com"]}', {"host": "a.com"}, True),
        ('{hosts: ["a.*"]}', {"host": "a.com"}, True),
        ('{hosts: ["a.com"]}', {"host": "b.a.com"}, False),
        ('{hosts: ["a.com"]}', {"host": "a.com.evil"}, False),
        ('{hosts: ["a.com"]}', {"host": ""}, False),
        ('{notHosts: ["a.com"]}', {"host": "b.com"}, True),
        ('{notHosts: ["a.com"]}', {"host": "A.com"}, False),
        ('{notHosts: ["a.com"]}', {"host": ""}, True),
        ('{ports: ["9080"]}', {}, True),
        ('{ports: ["80"]}', {}, False),
        ('{ports: ["80", "09080"]}', {}, True),
        ('{notPorts: ["9080"]}', {}, False),
        ('{notPorts: ["80"]}', {}, True),
        ('{paths: ["/a"]}', {"path": "/a"}, True),
        ('{paths: ["/a"]}', {"path": "/A"}, False),
        ('{paths: ["/a"]}', {"path": "/a/"}, False),
        ('{paths: ["/a"]}', {"path": "/a?b"}, True),
        ('{paths: ["/a"]}', {"path": "/a#b"}, True),
        ('{paths: ["/a*"]}', {"path": "/a/b"}, True),
        ('{paths: ["*/b"]}', {"path": "/a/b"}, True),
        ('{paths: ["*"]}', {"path": "/a"}, True),
        ('{paths: ["*"]}', {"path": "", "method": "CONNECT"}, False),
        ('{paths: ["/a/*/c"]}', {"path": "/a/b/c"}, False),
        ('{paths: ["/a/*/c"]}', {"path": "/a/*/c"}, True),
        ('{paths: ["*b*"]}', {"path": "/ab*"}, True),
        ('{paths: ["*b*"]}', {"path": "/abc"}, False),
        ('{paths: ["/.*"]}', {"path": "/x"}, False),
        ('{notPaths: ["/a"]}', {"path": "/a?b"}, False),
        ('{notPaths: ["/a"]}', {"path": "/b"}, True),
        ('{notPaths: ["*"]}', {"path": "", "method": "CONNECT"}, True),
        ('{paths: ["/a*"], notPaths: ["/a/b"]}', {"path": "/a/b"}, False),
        ('{paths: ["/a*"], notPaths: ["/a/b"]}', {"path": "/a/c"}, True),
        ('{paths: ["/a"], methods: ["PUT"]}', {"path": "/a"}, False),
        ('{paths: ["/a"], hosts: ["products"], methods: ["GET"], ports: ["9080"]}', {"path": "/a"}, True),
    ],
)
def test_operations(fields: str, request_: Request, expected: bool) -> None:
    """Fields of an operation must all hold; of a list one value suffices."""
    assert matches(operation, fields, request=check_request(**request_)) is expected


@pytest.mark.parametrize(
    ("template", "path", "expected"),
    [
        ("/a/{**}", "/a/", True),
        ("/a/{**}", "/a/x/y", True),
        ("/a/{**}", "/a", False),
        ("/a/{**}", "/ab/x", False),
        ("/a/{*}", "/a/x", True),
        ("/a/{*}", "/a/", False),
        ("/a/{*}", "/a/x/y", False),
        ("/a/{*}", "/a/x*y", True),
        ("/a/{*}", "/a/x%20y", True),
        ("/a/{*}/c", "/a/b/c", True),
        ("/a/{*}/c", "/a/b/b/c", False),
        ("/store/{**}/cart", "/store//cart", True),
        ("/store/{**}/cart", "/store/x/y/cart", True),
        ("/store/{**}/cart", "/store/cart", False),
        ("/foo/{*}/bar/{**}", "/foo/x/bar/", True),
        ("/foo/{*}/bar/{**}", "/foo/x/bar/y/z", True),
        ("/foo/{*}/bar/{**}", "/foo//bar/x", False),
        ("/foo/{**}/", "/foo/bar/", True),
        ("/foo/{**}/", "/foo/bar/baz.txt", False),
        ("/a.b/{*}", "/a.b/x", True),
        ("/a.b/{*}", "/axb/x", False),
        ("/a+(b)/{*}", "/a+(b)/x", True),
        ("/{*}", "/x?y/z", True),
        ("/{*}/{*}", "/x", False),
        ("/{**}", "/", True),
    ],
)
def test_path_templates(template: str, path: str, expected: bool) -> None:
    """`{*}` is one segment, `{**}` any number of characters; each fills a whole segment."""
    assert matches(operation, f'{{paths: ["{template}"]}}', request=check_request(path=path)) is expected


def test_templates_and_patterns_in_one_list() -> None:
    """One value of `paths` suffices, whatever its form."""
    fields = '{paths: ["/a/{*}", "/b*"]}'
    for path, expected in (("/a/x", True), ("/bc", True), ("/a", False)):
        assert matches(operation, fields, request=check_request(path=path)) is expected


@pytest.mark.parametrize(
    ("mode", "path", "expected"),
    [
        ("NONE", "/x/../admin", False),
        ("BASE", "/x/../admin", True),
        ("BASE", "/x\\..\\admin", True),
        ("BASE", "/%61dmin", True),
        ("BASE", "//admin", False),
        ("MERGE_SLASHES", "//admin", True),
        ("MERGE_SLASHES", "/x%2f..%2fadmin", False),
        ("DECODE_AND_MERGE_SLASHES", "/x%2f..%2Fadmin", True),
        ("DECODE_AND_MERGE_SLASHES", "/x%5c..%5Cadmin", True),
        ("DECODE_AND_MERGE_SLASHES", "/x%252f..%252fadmin", False),
    ],
)
def test_path_normalization(mode: str, path: str, expected: bool) -> None:
    """The mesh says which spellings are one path; both actions compare the same form."""
    mesh = MeshSettings(path_normalization=PathNormalization(mode))
    request = check_request(path=path)
    assert decide_on(snapshot(operation('{paths: ["/admin"]}'), mesh), request).allowed is expected
    assert (
        decide_on(snapshot(operation('{paths: ["/admin"]}', "DENY"), mesh), request).allowed is not expected
    )


# ---------------------------------------------------------------------------------------------------- when


@pytest.mark.parametrize(
    ("key", "values", "request_", "expected"),
    [
        ("request.headers[x-a]", '["1"]', {"headers": {"x-a": "1"}}, True),
        ("request.headers[X-A]", '["1"]', {"headers": {"x-a": "1"}}, True),
        ("request.headers[x-a]", '["1"]', {"headers": {"X-A": "1"}}, True),
        ("request.headers[x-a]", '["a"]', {"headers": {"x-a": "A"}}, False),
        ("request.headers[x-a]", '["1*"]', {"headers": {"x-a": "12"}}, True),
        ("request.headers[x-a]", '["*2"]', {"headers": {"x-a": "12"}}, True),
        ("request.headers[x-a]", '["*"]', {"headers": {"x-a": ""}}, True),
        ("request.headers[x-a]", '["*"]', {}, False),
        ("request.headers[x-a]", '["."]', {"headers": {"x-a": "1"}}, False),
        ("request.headers[:method]", '["GET"]', {"headers": {":method": "GET"}}, True),
        ("source.ip", '["10.0.0.0/24"]', {}, True),
        ("source.ip", '["10.0.1.0/24"]', {}, False),
        ("remote.ip", '["192.0.2.1"]', {"extensions": {"remote.ip": "192.0.2.1"}}, True),
        ("destination.ip", '["10.0.0.2"]', {}, True),
        ("destination.ip", '["10.0.0.1"]', {}, False),
        ("destination.port", '["9080"]', {}, True),
        ("destination.port", '["80"]', {}, False),
        ("source.principal", '["cluster.local/ns/default/sa/a"]', {"source": A}, True),
        ("source.principal", '["*"]', {}, False),
        ("source.namespace", '["default"]', {"source": A}, True),
        ("source.namespace", '["default"]', {}, False),
        ("source.serviceAccount", '["a"]', {"source": A}, True),
        ("source.serviceAccount", '["other/a"]', {"source": A}, False),
        ("source.trustDomain", '["*.local"]', {"source": A}, True),
        ("connection.sni", '["www.a.com"]', {"extensions": {"connection.sni": "www.a.com"}}, True),
        ("connection.sni", '["*.a.com"]', {"extensions": {"connection.sni": "www.a.com"}}, True),
        ("connection.sni", '["*"]', {}, False),
    ],
)
def test_when(key: str, values: str, request_: Request, expected: bool) -> None:
    """Every key reads its attribute; `notValues` is the opposite, so absence satisfies it."""
    request = check_request(**request_)
    assert matches(when, key, values, request=request) is expected
    assert decide_on(when(key, values, "ALLOW", "notValues"), request).allowed is not expected
    assert decide_on(when(key, values, "DENY", "notValues"), request).allowed is expected


@pytest.mark.parametrize(
    ("key", "values", "claims", "expected"),
    [
        ("request.auth.claims[email]", '["a@foo.com"]', {}, True),
        ("request.auth.claims[email]", '["*@foo.com"]', {}, True),
        ("request.auth.claims[email]", '["a@foo"]', {}, False),
        ("request.auth.claims[groups]", '["x"]', {"groups": ["w", "x"]}, True),
        ("request.auth.claims[groups]", '["y"]', {"groups": ["w", "x"]}, False),
        ("request.auth.claims[groups]", '["x"]', {"groups": "w x"}, False),
        ("request.auth.claims[scope]", '["read"]', {"scope": "write read"}, True),
        ("request.auth.claims[scope]", '["write read"]', {"scope": "write read"}, False),
        ("request.auth.claims[a][b]", '["x"]', {"a": {"b": "x"}}, True),
        ("request.auth.claims[a][b]", '["x"]', {"a": {"b": ["w", "x"]}}, True),
        ("request.auth.claims[a][b]", '["x"]', {"a": "x"}, False),
        ("request.auth.claims[a][b][c]", '["x"]', {"a": {"b": {"c": "x"}}}, True),
        ("request.auth.claims[a]", '["*"]', {"a": {"b": "x"}}, False),
        ("request.auth.claims[n]", '["1"]', {"n": 1}, False),
        ("request.auth.claims[n]", '["true", "True"]', {"n": True}, False),
        ("request.auth.claims[n]", '["1"]', {"n": [1]}, False),
        ("request.auth.claims[n]", '["*"]', {"n": 1}, False),
        ("request.auth.claims[n]", '["*"]', {}, False),
        ("request.auth.principal", '["https://issuer.example/a"]', {}, True),
        ("request.auth.principal", '["https://issuer.example/b"]', {}, False),
        ("request.auth.audiences", '["b"]', {"aud": ["a", "b"]}, True),
        ("request.auth.audiences", '["b"]', {"aud": "b"}, True),
        ("request.auth.audiences", '["c"]', {"aud": ["a", "b"]}, False),
        ("request.auth.presenter", '["app"]', {"azp": "app"}, True),
        ("request.auth.presenter", '["app"]', {}, False),
    ],
)
def test_when_of_tokens(key: str, values: str, claims: dict[str, Any], expected: bool) -> None:
    """A claim matches by its string or by any string of its list; other types never do."""
    request = with_token(claims)
    assert decide_on(tokens() + when(key, values), request).allowed is expected
    assert decide_on(tokens() + when(key, values, "DENY"), request).allowed is not expected
    assert decide_on(tokens() + when(key, values, "ALLOW", "notValues"), request).allowed is not expected
    assert decide_on(tokens() + when(key, values, "DENY", "notValues"), request).allowed is expected


def test_values_and_not_values_of_one_condition_must_both_hold() -> None:
    """`values` and `notValues` together are an interval with a hole."""
    rules = '[{when: [{key: "request.headers[h]", values: ["a*"], notValues: ["ab"]}]}]'
    for value, expected in (("ac", True), ("ab", False), ("b", False)):
        assert decide_on(policy(rules), check_request(headers={"h": value})).allowed is expected


# -------------------------------------------------------------------------------------- rules and policies


def test_sources_are_alternatives_and_so_are_operations_but_conditions_are_not() -> None:
    """A rule is one of `from`, one of `to`, and all of `when`."""
    rules = """[{
      from: [{source: {namespaces: ["x"]}}, {source: {namespaces: ["default"]}}],
      to: [{operation: {paths: ["/x"]}}, {operation: {paths: ["/a"]}}],
      when: [{key: "request.headers[a]", values: ["1"]}, {key: "request.headers[b]", values: ["1"]}]
    }]"""
    good: Request = {"source": A, "path": "/a", "headers": {"a": "1", "b": "1"}}
    assert decide_on(policy(rules), check_request(**good)).allowed
    for bad in ({"source": principal("a", "y")}, {"path": "/b"}, {"headers": {"a": "1"}}, {"source": ""}):
        assert not decide_on(policy(rules), check_request(**{**good, **bad})).allowed


@pytest.mark.parametrize(
    ("policies", "allowed", "code"),
    [
        (policy("[]"), False, ReasonCode.NO_POLICY_MATCHED),
        (policy("[{}]"), True, ReasonCode.POLICY_MATCHED),
        (policy("[{}]", "DENY"), False, ReasonCode.DENY_MATCHED),
        (policy("[{}]", "DENY") + policy("[{}]", name="q"), False, ReasonCode.DENY_MATCHED),
        (operation('{paths: ["/x"]}', "DENY"), True, ReasonCode.NO_ALLOW_POLICY),
        (operation('{paths: ["/x"]}', "DENY") + policy("[]", name="q"), False, ReasonCode.NO_POLICY_MATCHED),
        (policy("[]") + policy("[{}]", name="q"), True, ReasonCode.POLICY_MATCHED),
        (policy("[{}]", "AUDIT"), True, ReasonCode.NO_ALLOW_POLICY),
        (policy("[]", "AUDIT"), True, ReasonCode.NO_ALLOW_POLICY),
        (policy("[{}]", "AUDIT") + policy("[]", name="q"), False, ReasonCode.NO_POLICY_MATCHED),
        (policy("[{}]", "AUDIT") + policy("[{}]", "DENY", name="q"), False, ReasonCode.DENY_MATCHED),
        (policy("[]", namespace="other"), True, ReasonCode.NO_ALLOW_POLICY),
        (policy("[{}]", namespace="istio-system"), True, ReasonCode.POLICY_MATCHED),
        (policy("[{}]") + policy("[{}]", "DENY", namespace="istio-system"), False, ReasonCode.DENY_MATCHED),
        (policy("[]", namespace="istio-system") + policy("[{}]"), True, ReasonCode.POLICY_MATCHED),
        (
            policy("[]").replace("spec: {action: ALLOW, rules: []}", "spec: {}"),
            False,
            ReasonCode.NO_POLICY_MATCHED,
        ),
        (policy("[]").replace("spec: {action: ALLOW, rules: []}", ""), False, ReasonCode.NO_POLICY_MATCHED),
    ],
)
def test_the_order_of_actions(policies: str, allowed: bool, code: ReasonCode) -> None:
    """DENY before ALLOW; an ALLOW policy that does not match denies; AUDIT never decides."""
    decision = decide_on(policies, check_request())
    assert (decision.allowed, decision.code) == (allowed, code)


def test_another_root_namespace() -> None:
    """The settings say which namespace is for the whole mesh."""
    mesh = MeshSettings(root_namespace="mesh-config")
    for namespace, denied in (("mesh-config", True), ("istio-system", False)):
        compiled = snapshot(policy("[]", namespace=namespace), mesh)
        assert decide_on(compiled, check_request()).allowed is not denied


@pytest.mark.parametrize(
    ("selector", "labels", "selected"),
    [
        ("{matchLabels: {app: a}}", {"app": "a"}, True),
        ("{matchLabels: {app: a}}", {"app": "b"}, False),
        ("{matchLabels: {app: a}}", {}, False),
        ("{matchLabels: {app: a, v: '1'}}", {"app": "a"}, False),
        ("{matchLabels: {app: a, v: '1'}}", {"app": "a", "v": "1", "more": "x"}, True),
        ("{matchLabels: {app: ''}}", {"app": "a"}, False),
        ("{matchLabels: {app: ''}}", {}, False),
        ("{matchLabels: {}}", {"app": "a"}, True),
        ("{}", {}, True),
    ],
)
def test_selectors(selector: str, labels: dict[str, str], selected: bool) -> None:
    """A policy is for workloads that have all its labels; without labels, for all."""
    text = policy("[{}]", "DENY", spec=f"selector: {selector}") + policy("[{}]", name="q")
    extensions = {f"destination.labels[{name}]": value for name, value in labels.items()}
    assert decide_on(text, check_request(extensions=extensions)).allowed is not selected


GATEWAY = "{group: gateway.networking.k8s.io, kind: Gateway, name: g}"
CLASS = "{group: gateway.networking.k8s.io, kind: GatewayClass, name: istio-waypoint}"
GATEWAY_LABEL = "gateway.networking.k8s.io/gateway-name"


@pytest.mark.parametrize(
    ("target", "namespace", "labels", "selected"),
    [
        (f"targetRefs: [{GATEWAY}]", "default", {GATEWAY_LABEL: "g"}, True),
        (f"targetRef: {GATEWAY}", "default", {GATEWAY_LABEL: "g"}, True),
        (f"targetRefs: [{GATEWAY}]", "default", {GATEWAY_LABEL: "h"}, False),
        (f"targetRefs: [{GATEWAY}]", "default", {}, False),
        (f"targetRefs: [{GATEWAY}]", "istio-system", {GATEWAY_LABEL: "g"}, False),
        (
            f"targetRefs: [{GATEWAY}, {GATEWAY.replace('name: g', 'name: h')}]",
            "default",
            {GATEWAY_LABEL: "h"},
            True,
        ),
        (f"targetRefs: [{CLASS}]", "istio-system", {GATEWAY_LABEL: "waypoint"}, True),
        (f"targetRefs: [{CLASS}]", "istio-system", {}, False),
        ("targetRefs: [{kind: Service, name: products}]", "default", {GATEWAY_LABEL: "waypoint"}, True),
        ("targetRefs: [{kind: Service, group: core, name: details}]", "default", {GATEWAY_LABEL: "w"}, False),
        ("targetRefs: [{kind: Service, name: products}]", "default", {}, False),
        ("selector: {matchLabels: {app: a}}", "default", {GATEWAY_LABEL: "g", "app": "a"}, True),
    ],
)
def test_target_references(target: str, namespace: str, labels: dict[str, str], selected: bool) -> None:
    """`targetRefs` pick gateways and what stands behind waypoints; other workloads ignore such policies."""
    text = policy("[{}]", "DENY", spec=target, namespace=namespace) + policy("[{}]", name="q")
    extensions = {f"destination.labels[{name}]": value for name, value in labels.items()}
    assert decide_on(text, check_request(extensions=extensions)).allowed is not selected
