"""`AuthorizationPolicy`: what every field, key and pattern means, and that doubt denies."""

from __future__ import annotations

from typing import Any

import pytest
from support.checks import CALL, check_request, decide_on, federated, principal, role, snapshot
from support.policies import (
    connection,
    operation,
    policy,
    problems_of,
    source,
    tokens,
    when,
    with_token,
)

from authz.attributes import Attributes
from authz.decision import ReasonCode
from authz.paths import PathNormalization
from authz.policy.compile import MeshSettings
from authz.policy.evaluate import marks
from authz.policy.matchers import RequestPrincipalMatcher
from authz.service import DestinationResolver
from garrison.identity import TrustDomain

A = principal("a")  # spiffe://cluster.local/ns/default/sa/a
Request = dict[str, Any]


def matches(make: Any, *arguments: Any, request: Any) -> bool:
    """Return whether the rule that `make` builds matches; ALLOW and DENY have to agree on it."""
    mesh = federated("any.domain")
    allowed = decide_on(snapshot(make(*arguments), mesh), request).allowed
    denied = not decide_on(snapshot(make(*arguments, "DENY"), mesh), request).allowed
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
        ('{namespaces: ["defau*ault"]}', A, False),
        ('{namespaces: ["d*f*u*t"]}', A, True),
        ('{namespaces: ["d*u*f*t"]}', A, False),
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


def test_half_a_request_principal_is_none() -> None:
    """Both halves have to be there, even to `*`."""
    anybody = RequestPrincipalMatcher.of(["*", "*/a", "iss/*"])
    assert anybody.matches(("iss", "a"))
    for value in (("", "a"), ("iss", ""), ("", ""), None):
        assert not anybody.matches(value)


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
        ("request.auth.principal", '["https://issuer.example/x/a"]', {"sub": "x/a"}, False),
        ("request.auth.principal", '["*/a"]', {"sub": "x/a"}, False),
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


# ------------------------------------------------------------------------------------------- trust domains

OLD, NEW = TrustDomain("old-td"), TrustDomain("new-td")
# Of these, peers may call as well: what policies make of a principal is another question.
OTHERS = federated("some-td", "cluster.local", "good-td", "newer-td").federated_trust_domains
MESH = MeshSettings(trust_domain=NEW, trust_domain_aliases=(OLD,), federated_trust_domains=OTHERS)


@pytest.mark.parametrize(
    ("pattern", "domains", "others"),
    [
        ("new-td/ns/default/sa/a", ["new-td", "old-td"], ["some-td", "cluster.local"]),
        ("old-td/ns/default/sa/a", ["new-td", "old-td"], ["some-td", "cluster.local"]),
        ("cluster.local/ns/default/sa/a", ["new-td", "old-td"], ["some-td", "cluster.local"]),
        ("some-td/ns/default/sa/a", ["some-td"], ["new-td", "old-td"]),
        ("cluster.local/ns/default/*", ["cluster.local"], ["new-td"]),
        ("cluster.local/ns/default/sa/*", ["new-td", "old-td"], ["cluster.local"]),
        ("*/ns/default/sa/a", ["new-td", "some-td"], []),
        ("*d-td/ns/default/sa/a", ["new-td", "old-td", "good-td"], ["some-td"]),
        ("new*/ns/default/sa/a", ["new-td", "old-td"], ["newer-td"]),
        ("*", ["new-td", "some-td"], []),
    ],
)
def test_principals_of_our_trust_domains_stand_for_each_other(
    pattern: str, domains: list[str], others: list[str]
) -> None:
    """A principal of five parts in one of ours, or in `cluster.local`, is meant in all of ours."""
    for action, expected in (("ALLOW", True), ("DENY", False)):
        for text in (
            source(f'{{principals: ["{pattern}"]}}', action),
            when("source.principal", f'["{pattern}"]', action),
        ):
            compiled = snapshot(text, MESH)
            for domain in domains:
                request = check_request(source=principal("a", trust_domain=domain))
                assert decide_on(compiled, request).allowed is expected, domain
            for domain in others:
                request = check_request(source=principal("a", trust_domain=domain))
                assert decide_on(compiled, request).allowed is not expected, domain


def test_aliases_of_trust_domains() -> None:
    """`trustDomains` with one of ours means all of ours; namespaces and accounts have any trust domain."""
    for value, domain, expected in (
        ("new-td", "old-td", True),
        ("old-td", "new-td", True),
        ("some-td", "some-td", True),
        ("some-td", "new-td", False),
        ("cluster.local", "new-td", False),
    ):
        compiled = snapshot(source(f"{{trustDomains: [{value}]}}"), MESH)
        assert (
            decide_on(compiled, check_request(source=principal("a", trust_domain=domain))).allowed is expected
        )
    accounts = snapshot(source("{serviceAccounts: [a]}"), MESH)
    assert decide_on(accounts, check_request(source=principal("a", trust_domain="some-td"))).allowed


# --------------------------------------------------------------------------------------------- connections

HTTP_ONLY = [
    'to: [{operation: {methods: ["GET"]}}]',
    'to: [{operation: {notMethods: ["GET"]}}]',
    'to: [{operation: {paths: ["/a"]}}]',
    'to: [{operation: {notPaths: ["/a"]}}]',
    'to: [{operation: {hosts: ["a.com"]}}]',
    'to: [{operation: {notHosts: ["a.com"]}}]',
    'to: [{operation: {ports: ["9080"]}}, {operation: {methods: ["GET"]}}]',
    'from: [{source: {requestPrincipals: ["*"]}}]',
    'from: [{source: {notRequestPrincipals: ["*"]}}]',
    'from: [{source: {principals: ["*"]}}, {source: {requestPrincipals: ["*"]}}]',
    'when: [{key: "request.headers[a]", values: ["1"]}]',
    'when: [{key: "request.headers[a]", notValues: ["1"]}]',
    'when: [{key: "request.auth.claims[a]", notValues: ["1"]}]',
    'when: [{key: "request.auth.principal", values: ["*"]}]',
    'when: [{key: "request.auth.audiences", values: ["*"]}]',
    'when: [{key: "request.auth.presenter", values: ["*"]}]',
]


@pytest.mark.parametrize("fields", HTTP_ONLY)
def test_on_connections_http_fields_allow_less_and_deny_more(fields: str) -> None:
    """An ALLOW rule with any HTTP field is dropped; of a DENY rule only that field is."""
    request = connection(source=A)
    assert not decide_on(policy(f"[{{{fields}}}]"), request).allowed
    assert decide_on(policy(f"[{{{fields}}}, {{}}]"), request).allowed
    assert not decide_on(policy(f"[{{{fields}}}]", "DENY"), request).allowed


def test_what_is_left_of_a_deny_rule_still_has_to_match() -> None:
    """Dropping an HTTP field leaves the others: ports keep a DENY of paths from every other connection."""
    text = operation('{paths: ["/admin"], ports: ["9080"]}', "DENY")
    assert not decide_on(text, connection(port=9080)).allowed
    assert decide_on(text, connection(port=9081)).allowed


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ('from: [{source: {principals: ["cluster.local/ns/default/sa/a"]}}]', True),
        ('from: [{source: {principals: ["*/sa/b"]}}]', False),
        ('from: [{source: {namespaces: ["default"]}}]', True),
        ('from: [{source: {serviceAccounts: ["a"]}}]', True),
        ('from: [{source: {trustDomains: ["cluster.local"]}}]', True),
        ('from: [{source: {ipBlocks: ["10.0.0.1"]}}]', True),
        ('from: [{source: {ipBlocks: ["10.0.0.9"]}}]', False),
        ('from: [{source: {remoteIpBlocks: ["192.0.2.1"]}}]', True),
        ('to: [{operation: {ports: ["9080"]}}]', True),
        ('to: [{operation: {notPorts: ["9080"]}}]', False),
        ('when: [{key: "connection.sni", values: ["*.a.com"]}]', True),
        ('when: [{key: "destination.ip", values: ["10.0.0.2"]}]', True),
        ("", True),
    ],
)
def test_fields_that_connections_have(fields: str, expected: bool) -> None:
    """Peers, addresses, ports and the SNI count for connections as for requests."""
    request = connection(source=A, sni="www.a.com", extensions={"remote.ip": "192.0.2.1"})
    assert decide_on(policy(f"[{{{fields}}}]"), request).allowed is expected
    assert decide_on(policy(f"[{{{fields}}}]", "DENY"), request).allowed is not expected


# -------------------------------------------------------------------------------------- audit and dry runs


def marks_of(text: str, request: Any) -> dict[str, str]:
    """Return what rules that never decide say about `request`."""
    compiled = snapshot(text)
    context = request.attributes
    destination = DestinationResolver().resolve(context.context_extensions, context.request.http.host, CALL)
    assert destination is not None
    attributes = Attributes(context, compiled.mesh.path_normalization, destination)
    return dict(marks(compiled.policies_for(destination), attributes))


TRIED = '{istio.io/dry-run: "true"}'
ADMIN = '[{to: [{operation: {paths: ["/admin"]}}]}]'


def verdict(result: str, document: str) -> dict[str, str]:
    """Return the marks of one tried policy, by the names of Istio's metadata."""
    title = f"AuthorizationPolicy default/{document}" if document != "none" else "none"
    return {"shadow_engine_result": result, "shadow_effective_policy_id": title}


@pytest.mark.parametrize(
    ("text", "path", "expected"),
    [
        (policy(ADMIN, "DENY", annotations=TRIED), "/admin", verdict("denied", "p")),
        (policy(ADMIN, "DENY", annotations=TRIED), "/a", verdict("allowed", "none")),
        (policy(ADMIN, annotations=TRIED), "/admin", verdict("allowed", "p")),
        (policy(ADMIN, annotations=TRIED), "/a", verdict("denied", "none")),
        (policy("[]", annotations=TRIED), "/a", verdict("denied", "none")),
        (
            policy(ADMIN, annotations=TRIED) + policy("[{}]", "DENY", name="q", annotations=TRIED),
            "/admin",
            verdict("denied", "q"),
        ),
        (policy(ADMIN, annotations="{istio.io/dry-run: 'false'}"), "/a", {}),
        (policy(ADMIN, "AUDIT"), "/admin", {"audit": "AuthorizationPolicy default/p"}),
        (policy(ADMIN, "AUDIT"), "/a", {}),
        (policy(ADMIN), "/admin", {}),
    ],
)
def test_marks(text: str, path: str, expected: dict[str, str]) -> None:
    """AUDIT and dry runs are reported, by the names of Istio's metadata."""
    assert marks_of(text, check_request(path=path)) == expected


@pytest.mark.parametrize("value", ["1", "t", "T", "true", "True", "TRUE"])
def test_what_is_tried_never_decides(value: str) -> None:
    """A dry run neither denies nor allows, nor does it make anything have to allow."""
    annotations = f'{{istio.io/dry-run: "{value}"}}'
    allowing = policy("[{}]", name="q")
    assert decide_on(policy("[{}]", "DENY", annotations=annotations) + allowing, check_request()).allowed
    assert decide_on(policy("[]", annotations=annotations) + allowing, check_request()).allowed
    assert decide_on(policy("[]", annotations=annotations), check_request()).allowed
    nothing = policy("[]", name="q")
    assert not decide_on(policy("[{}]", annotations=annotations) + nothing, check_request()).allowed


@pytest.mark.parametrize("value", ["0", "f", "F", "false", "False", "FALSE"])
def test_a_dry_run_that_is_off_is_enforced(value: str) -> None:
    """The annotation can say no."""
    annotations = f'{{istio.io/dry-run: "{value}"}}'
    assert not decide_on(policy("[{}]", "DENY", annotations=annotations), check_request()).allowed


# --------------------------------------------------------------------------------------- beside roles


@pytest.mark.parametrize(
    ("extra", "allowed"),
    [
        (policy("[]"), False),
        (policy("[{}]"), True),
        (policy("[{}]", "DENY"), False),
        (policy("[]", annotations=TRIED), True),
        (policy("[{}]", "AUDIT"), True),
        (policy("[]", spec="selector: {matchLabels: {app: x}}"), True),
        (operation('{paths: ["/x"]}', "DENY"), True),
    ],
)
def test_roles_that_allow_beside_policies(extra: str, allowed: bool) -> None:
    """Where an ALLOW policy is enforced roles are not looked at; DENY comes before roles."""
    assert decide_on(role("[{}]") + extra, check_request()).allowed is allowed


@pytest.mark.parametrize(
    "extra",
    [
        operation('{paths: ["/x"]}', "DENY"),
        policy("[{}]", "AUDIT"),
        policy("[{}]", annotations=TRIED),
        policy("[{}]", namespace="other"),
        policy("[{}]", spec="selector: {matchLabels: {app: x}}"),
    ],
)
def test_a_policy_that_does_not_allow_leaves_roles_in_force(extra: str) -> None:
    """What roles do not allow stays denied beside DENY, AUDIT, dry runs and policies for others."""
    assert not decide_on(role('[{paths: ["/only"]}]') + extra, check_request()).allowed


# --------------------------------------------------------------------------------------------- validation

HEAD = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\n"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("{action: CUSTOM, rules: [{}]}", "p.yaml:4:7: spec: CUSTOM needs a `provider` [missing_field]"),
        (
            "{provider: {name: x}, rules: [{}]}",
            "p.yaml:4:18: spec.provider: only CUSTOM has a provider [exclusive]",
        ),
        ("{action: DENY}", "p.yaml:4:7: spec: DENY needs `rules` [missing_field]"),
        ("{action: CUSTOM, provider: {name: x}}", "CUSTOM needs `rules` [missing_field]"),
        ("{action: LOG}", "p.yaml:4:16: spec.action:"),
        ("{rules: [{from: []}]}", "p.yaml:4:23: spec.rules[0].from: list should have at least 1 item"),
        ("{rules: [{to: []}]}", "spec.rules[0].to: list should have at least 1 item"),
        ("{rules: [{when: []}]}", "spec.rules[0].when: list should have at least 1 item"),
        (
            "{rules: [{from: [{source: {}}]}]}",
            "p.yaml:4:33: spec.rules[0].from[0].source: the source is empty [empty]",
        ),
        (
            "{rules: [{to: [{operation: {}}]}]}",
            "p.yaml:4:34: spec.rules[0].to[0].operation: the operation is empty",
        ),
        ("{rules: [{from: [{}]}]}", "spec.rules[0].from[0].source:"),
        (
            "{rules: [{to: [{operation: {paths: []}}]}]}",
            "spec.rules[0].to[0].operation.paths: list should have",
        ),
        (
            "{rules: [{to: [{operation: {paths: ['']}}]}]}",
            "spec.rules[0].to[0].operation.paths[0]: string should have",
        ),
        ("{rules: [{to: [{operation: {path: [a]}}]}]}", "(did you mean `paths`?) [unknown_field]"),
        (
            "{rules: [{to: [{operation: {ports: ['1', '65536']}}]}]}",
            "p.yaml:4:48: spec.rules[0].to[0].operation.ports[1]: `65536` is not a port",
        ),
        ("{rules: [{to: [{operation: {ports: ['+1']}}]}]}", "`+1` is not a port [port]"),
        ("{rules: [{to: [{operation: {ports: [80]}}]}]}", "expected a string, got a number"),
        (
            "{rules: [{from: [{source: {ipBlocks: ['::', x]}}]}]}",
            "spec.rules[0].from[0].source.ipBlocks[1]: `x` is neither",
        ),
        ("{rules: [{from: [{source: {remoteIpBlocks: ['10.0.0.1/8']}}]}]}", "[address]"),
        ("{rules: [{from: [{source: {serviceAccounts: [a], principals: [b]}}]}]}", "[exclusive]"),
        ("{rules: [{from: [{source: {serviceAccounts: [a], notNamespaces: [b]}}]}]}", "[exclusive]"),
        ("{rules: [{from: [{source: {notServiceAccounts: [a], notPrincipals: [b]}}]}]}", "[exclusive]"),
        (
            "{rules: [{from: [{source: {serviceAccounts: [a, 'b*']}}]}]}",
            "serviceAccounts[1]: `b*` is neither",
        ),
        ("{rules: [{from: [{source: {serviceAccounts: [a/b/c]}}]}]}", "[service_account]"),
        ("{rules: [{from: [{source: {serviceAccounts: [a/]}}]}]}", "[service_account]"),
        ("{rules: [{from: [{source: {serviceAccounts: [/a]}}]}]}", "[service_account]"),
        (f"{{rules: [{{from: [{{source: {{serviceAccounts: [{'a' * 321}]}}}}]}}]}}", "[service_account]"),
        (
            f"{{rules: [{{from: [{{source: {{serviceAccounts: {list('abcdefghijklmnopq')}}}}}]}}]}}",
            "not 17 [service_account]",
        ),
        (
            "{rules: [{from: [{source: {trustDomains: [a, b/c]}}]}]}",
            "trustDomains[1]: `b/c` is no trust domain",
        ),
        ("{rules: [{from: [{source: {trustDomains: ['*a*']}}]}]}", "[trust_domain]"),
        ("{rules: [{from: [{source: {trustDomains: ['a*b']}}]}]}", "[trust_domain]"),
        ("{rules: [{when: [{values: [a]}]}]}", "spec.rules[0].when[0].key:"),
        ("{rules: [{when: [{key: '', values: [a]}]}]}", "spec.rules[0].when[0].key:"),
        (
            "{rules: [{when: [{key: source.ip}]}]}",
            "spec.rules[0].when[0]: a condition needs `values` or `notValues`",
        ),
        (
            "{rules: [{when: [{key: source.ip, values: [x]}]}]}",
            "spec.rules[0].when[0].values[0]: `x` is neither",
        ),
        ("{rules: [{when: [{key: 'request.headers[]', values: [x]}]}]}", "[key_argument]"),
        ("{rules: [{when: [{key: 'request.headers', values: [x]}]}]}", "[key_argument]"),
        ("{rules: [{when: [{key: 'request.auth.claims[a][]', values: [x]}]}]}", "[key_argument]"),
        ("{rules: [{when: [{key: 'request.auth.claims[[a]]', values: [x]}]}]}", "[key_argument]"),
        ("{rules: [{when: [{key: 'source.ip[a]', values: [x]}]}]}", "[unknown_key]"),
        *(
            (f"{{rules: [{{when: [{{key: '{key}', values: [x]}}]}}]}}", f"`{key}` is not known here")
            for key in (
                "destination.labels[app]",
                "destination.name",
                "destination.namespace",
                "destination.user",
                "source.user",
                "request.header[a]",
                "source.any",
                "request.path",
                "request.auth.pair",
            )
        ),
        ("{selector: {matchLabels: {'': a}}}", "p.yaml:4:"),
        ("{selector: {matchLabels: {'a*': b}}}", "[selector]"),
        ("{selector: {matchLabels: {a: 'b*'}}}", "[selector]"),
        (
            f"{{targetRefs: [{GATEWAY}], selector: {{}}}}",
            "only one of `selector`, `targetRef` and `targetRefs`",
        ),
        (f"{{targetRefs: [{GATEWAY}], targetRef: {GATEWAY}}}", "[exclusive]"),
        ("{targetRefs: [{kind: Service, name: ''}]}", "spec.targetRefs[0].name:"),
        (
            "{targetRefs: [{kind: Service, name: a, namespace: b}]}",
            "spec.targetRefs[0].namespace: a target has no namespace",
        ),
        (
            "{targetRefs: [{kind: Service, name: a, group: b}]}",
            "spec.targetRefs[0].group: the group of a Service is ``",
        ),
        ("{targetRef: {kind: Gateway, name: a}}", "spec.targetRef.group: the group of a Gateway"),
        ("{targetRefs: [{kind: Pod, name: a}]}", "spec.targetRefs[0].kind:"),
        (f"{{targetRefs: [{CLASS}]}}", "a GatewayClass is a target only in namespace `istio-system`"),
        (f"{{targetRefs: [{', '.join([GATEWAY] * 17)}]}}", "[too_long]"),
        (f"{{rules: [{', '.join(['{}'] * 513)}]}}", "[too_long]"),
        ("{rules: [null]}", "p.yaml:4:16:"),
        *(
            (f"{{rules: [{{to: [{{operation: {{paths: ['/ok', '{path}']}}}}]}}]}}", "operation.paths[1]:")
            for path in (
                "/a/{x}",
                "/a{*}",
                "/{*}b",
                "/{**}/{*}",
                "/{**}/{**}",
                "/{*}/*",
                "/*/{*}",
                "/a?b/{*}",
                "/a}",
                "/{",
                "/{***}",
                "a/{*}",
            )
        ),
    ],
)
def test_mistakes(spec: str, expected: str) -> None:
    """What Istio refuses is refused, where it stands."""
    assert any(expected in problem for problem in problems_of(f"{HEAD}spec: {spec}\n"))


@pytest.mark.parametrize(
    ("annotation", "action", "expected"),
    [
        ("maybe", "ALLOW", "`maybe` is neither true nor false [dry_run]"),
        ("yes", "DENY", "[dry_run]"),
        ("", "DENY", "[dry_run]"),
        ("true", "AUDIT", "only ALLOW and DENY can be tried without being enforced [dry_run]"),
        ("true", "CUSTOM", "[dry_run]"),
    ],
)
def test_mistakes_of_dry_runs(annotation: str, action: str, expected: str) -> None:
    """Only a clear yes or no, and only for ALLOW and DENY."""
    text = policy("[{}]", action, annotations=f'{{istio.io/dry-run: "{annotation}"}}')
    assert any(expected in problem for problem in problems_of(text))


def test_no_other_kind_can_be_tried() -> None:
    """The annotation on another kind is refused: it would be enforced although its author thinks not."""
    text = role("[{}]").replace("name: r,", f"name: r, annotations: {TRIED},")
    assert sum("[dry_run]" in problem for problem in problems_of(text)) == 2


@pytest.mark.parametrize(
    "fields",
    [
        "from: [{source: {principals: [a]}}]",
        "from: [{source: {notPrincipals: [a]}}]",
        "from: [{source: {namespaces: [a]}}]",
        "from: [{source: {serviceAccounts: [a]}}]",
        "from: [{source: {trustDomains: [a]}}]",
        "from: [{source: {requestPrincipals: [a]}}]",
        "from: [{source: {notRequestPrincipals: [a]}}]",
        "when: [{key: source.principal, values: [a]}]",
        "when: [{key: source.namespace, values: [a]}]",
        "when: [{key: source.serviceAccount, values: [a]}]",
        "when: [{key: source.trustDomain, values: [a]}]",
        "when: [{key: request.auth.principal, values: [a]}]",
        "when: [{key: 'request.auth.claims[a]', notValues: [a]}]",
    ],
)
def test_custom_knows_no_identities(fields: str) -> None:
    """CUSTOM is decided before tokens, so rules on identities are refused."""
    text = policy(f"[{{{fields}}}]", "CUSTOM", spec="provider: {name: x}")
    found = problems_of(text, MeshSettings(providers=frozenset({"x"})))
    assert len(found) == 1
    assert found[0].endswith("[not_for_custom]")


def test_a_provider_that_is_not_in_the_settings_is_a_warning() -> None:
    """What matches is denied, as in Istio; the operator hears of it."""
    found = problems_of(policy("[{}]", "CUSTOM", spec="provider: {name: x}"))
    assert len(found) == 1
    assert "warning: spec.provider.name: no provider `x`" in found[0]


# ------------------------------------------------------------- where doubt denies: differences from Istio


@pytest.mark.parametrize(
    ("name", "deny"),
    [
        ("spiffe://cluster.local/region/us/ns/default/sa/a", '{namespaces: ["default"]}'),
        ("spiffe://cluster.local/region/us/ns/default/sa/a", '{serviceAccounts: ["a"]}'),
        ("spiffe://cluster.local/ns/default/x/sa/a/y", '{serviceAccounts: ["a"]}'),
        ("spiffe://cluster.local/ns/default/x/sa/a/y", '{namespaces: ["*x"]}'),
        ("spiffe://cluster.local/ns/default/sa/a%20b", '{principals: ["cluster.local/*"]}'),
        ("spiffe://cluster.local/ns/default/sa/a%20b", '{namespaces: ["default"]}'),
        ("spiffe://cluster.local/ns/default/sa/a%20b", '{trustDomains: ["cluster.local"]}'),
        ("a.example.com", '{principals: ["*"]}'),
        ("CN=a,O=b", '{principals: ["CN=a*"]}'),
        ("spiffe://cluster.local", '{principals: ["*"]}'),
        ("spiffe://cluster.local", '{trustDomains: ["cluster.local"]}'),
        (A, '{principals: ["spiffe://cluster.local/ns/default/sa/a"]}'),
    ],
)
def test_a_name_of_another_form_is_denied_and_never_allowed(name: str, deny: str) -> None:
    """Differs from Istio: who is not called `TD/ns/N/sa/A` is nobody to ALLOW, and still met by DENY."""
    request = check_request(source=name)
    assert not decide_on(source(deny), request).allowed
    assert not decide_on(source(deny, "DENY"), request).allowed
    negated = deny.replace("{", "{not", 1).replace("notp", "notP").replace("notn", "notN")
    negated = negated.replace("nots", "notS").replace("nott", "notT")
    assert not decide_on(source(negated), request).allowed


@pytest.mark.parametrize(
    "host", ["a.com:80", "a.com.", "A.com.:443", "x@a.com", "b.com,a.com", "a.com, b.com"]
)
def test_other_spellings_of_a_host_are_denied_and_never_allowed(host: str) -> None:
    """Differs from Istio: DENY and `notHosts` also look at the host without port, user and final dot."""
    request = check_request(host=host)
    assert not decide_on(operation('{hosts: ["a.com"]}'), request).allowed
    assert not decide_on(operation('{hosts: ["a.com"]}', "DENY"), request).allowed
    assert not decide_on(operation('{notHosts: ["a.com"]}'), request).allowed
    assert not decide_on(operation('{notHosts: ["a.com"]}', "DENY"), request).allowed


@pytest.mark.parametrize("path", ["/admin;x=y", "/admin;", "/public;a/..;b/admin", "/x/..;/admin"])
def test_matrix_parameters_are_denied_and_never_allowed(path: str) -> None:
    """Differs from Istio: DENY and `notPaths` also look at the path as Tomcat would read it."""
    request = check_request(path=path)
    assert not decide_on(operation('{paths: ["/admin"]}'), request).allowed
    assert not decide_on(operation('{paths: ["/admin"]}', "DENY"), request).allowed
    assert not decide_on(operation('{notPaths: ["/admin"]}'), request).allowed


@pytest.mark.parametrize("path", ["/admin/a=b", "/admin/é", "/admin/a|b", "/admin/[x]"])
def test_templates_that_deny_take_any_character(path: str) -> None:
    """Differs from Istio: what Envoy's template does not know as a path character does not get past it."""
    request = check_request(path=path)
    for template in ("/admin/{*}", "/admin/{**}"):
        assert not decide_on(operation(f'{{paths: ["{template}"]}}'), request).allowed
        assert not decide_on(operation(f'{{paths: ["{template}"]}}', "DENY"), request).allowed
        assert not decide_on(operation(f'{{notPaths: ["{template}"]}}'), request).allowed


def test_an_address_that_is_not_known_is_denied_as_the_peers() -> None:
    """Without `remote.ip` the peer counts as the client, but only where that denies."""
    request = check_request()
    assert not decide_on(source('{remoteIpBlocks: ["10.0.0.1"]}'), request).allowed
    assert not decide_on(source('{remoteIpBlocks: ["10.0.0.1"]}', "DENY"), request).allowed
    assert not decide_on(source('{notRemoteIpBlocks: ["10.0.0.1"]}'), request).allowed
    assert decide_on(source('{remoteIpBlocks: ["10.0.0.2"]}', "DENY"), request).allowed


RAW = [("x-a", b"1"), ("X-A", b"2")]


@pytest.mark.parametrize(
    ("headers", "positive", "negative"),
    [
        ({"raw_headers": RAW}, (False, False), (False, False)),
        ({"headers": {"x-a": "1,2"}}, (False, False), (False, False)),
        ({"raw_headers": [("x-a", b"1"), ("x-a", b"1")]}, (True, False), (False, True)),
        ({"raw_headers": [("x-a", b"1\xff")]}, (False, True), (True, False)),
        ({"raw_headers": [("x-a", b"1,2")]}, (False, False), (False, False)),
        ({"raw_headers": [("x-a", b"")]}, (False, True), (True, False)),
        ({"raw_headers": [("x-b", b"1")], "headers": {"x-a": "1"}}, (False, True), (True, False)),
        ({}, (False, True), (True, False)),
    ],
)
def test_every_value_of_a_header_counts(
    headers: Request, positive: tuple[bool, bool], negative: tuple[bool, bool]
) -> None:
    """Differs from Istio: to allow, every value must match; to deny, any of them, also of joined lines."""
    request = check_request(**headers)
    key = "request.headers[x-a]"
    found = tuple(decide_on(when(key, '["1"]', action), request).allowed for action in ("ALLOW", "DENY"))
    assert found == positive
    found = tuple(
        decide_on(when(key, '["1"]', action, "notValues"), request).allowed for action in ("ALLOW", "DENY")
    )
    assert found == negative


def test_a_header_is_the_same_each_time_it_is_asked_for() -> None:
    """Two rules that read one header read the same, whichever map Envoy filled."""
    request = check_request(raw_headers=[("x-b", b"1")], headers={"x-a": "1"})
    attributes = Attributes(request.attributes, PathNormalization.BASE, None)
    assert list(attributes.headers("x-a")) == list(attributes.headers("x-a")) == []
    assert list(attributes.headers("x-b")) == list(attributes.headers("x-b")) == ["1"]


@pytest.mark.parametrize(
    ("header", "value"),
    [(":method", "GET"), (":path", "/a?b"), (":authority", "Products"), ("host", "Products")],
)
def test_pseudo_headers_are_there_even_if_the_filter_left_them_out(header: str, value: str) -> None:
    """`allowed_headers` of the filter must not make a DENY on `:path` vanish."""
    request = check_request(path="/a?b", host="Products")
    assert matches(when, f"request.headers[{header}]", f'["{value}"]', request=request)


def test_the_server_name_has_no_case() -> None:
    """Envoy passes on the SNI as it was sent; a DENY of a host must not depend on its case."""
    for sni in ("WWW.a.com", "www.a.com"):
        request = connection(sni=sni)
        assert matches(when, "connection.sni", '["www.A.com"]', request=request)


def test_empty_claims_are_no_claims() -> None:
    """`*` of a claim means one that is not empty."""
    empty: list[dict[str, Any]] = [{"e": ""}, {"e": [""]}, {"e": []}]
    for claims in empty:
        assert not decide_on(tokens() + when("request.auth.claims[e]", '["*"]'), with_token(claims)).allowed


@pytest.mark.parametrize(
    ("values", "text", "elements", "expected"),
    [
        ('["a"]', "a", (), True),
        ('["a*"]', "ab", (), True),
        ('["a"]', "", ("a",), False),
        ('["[a]"]', "", ("b", "a"), True),
        ('["[a*]"]', "", ("ab",), True),
        ('["[*]"]', "", ("x",), True),
        ('["[a]"]', "[a]", (), False),
        ('["[a]"]', "a", (), False),
        ('["*"]', "", ("a",), False),
        ('["*"]', "x", (), True),
        ('["*"]', "", (), False),
        ('["x", "[a]"]', "", ("a",), True),
    ],
)
def test_metadata_of_other_filters(values: str, text: str, elements: tuple[str, ...], expected: bool) -> None:
    """`v` is a string, `[v]` an element of a list; one never passes for the other."""
    request = check_request()
    field = request.attributes.metadata_context.filter_metadata["envoy.filters.http.x"].fields["k"]
    if text:
        field.string_value = text
    for element in elements:
        field.list_value.values.add().string_value = element
    key = "experimental.envoy.filters.http.x[k]"
    assert matches(when, key, values, request=request) is expected


# -------------------------------------------------------------------------------------- remembered answers


def test_remembered_decisions_tell_peers_and_paths_apart() -> None:
    """A second call never gets the answer of one that differs in anything a rule looks at."""
    compiled = snapshot(
        policy('[{from: [{source: {principals: ["CN=evil*"]}}]}]', "DENY")
        + policy('[{to: [{operation: {paths: ["/admin*"]}}]}]', "DENY", name="q")
    )
    for name, path, allowed in (
        ("", "/a", True),
        ("CN=evil", "/a", False),
        ("", "/a", True),
        ("", "/admin", False),
        ("CN=good", "/admin", False),
    ):
        assert decide_on(compiled, check_request(source=name, path=path)).allowed is allowed
    for shown, sent, allowed in (("/public!", b"/public\xff", True), ("/admin!", b"/admin\xff", False)):
        request = check_request(path=shown, raw_headers=[(":path", sent)])
        assert decide_on(compiled, request).allowed is allowed


@pytest.mark.parametrize("condition", ["", 'when: [{key: "request.headers[h]", values: ["1"]}], '])
def test_remembered_decisions_tell_calls_apart_in_every_way(condition: str) -> None:
    """Peer, method, path, header and destination: a call that differs in one gets its own answer."""
    rule = f'{condition}from: [{{source: {{notPrincipals: ["CN=a"]}}}}], to: [{{operation: {{methods: [GET], paths: [/a]}}}}]'
    compiled = snapshot(
        policy(f"[{{{rule}}}]") + policy("[{}]", "DENY", name="q", spec="selector: {matchLabels: {app: x}}")
    )
    good: Request = {"path": "/a", "headers": {"h": "1"}}
    changes: list[Request] = [
        {"source": "CN=a"},
        {"method": "PUT"},
        {"path": "/b"},
        {"extensions": {"destination.labels[app]": "x"}},
    ]
    if condition:
        changes += [{"headers": {"h": "2"}}, {"headers": {"h": ""}}, {"headers": {}}]
    for change in changes:
        assert decide_on(compiled, check_request(**good)).allowed
        assert not decide_on(compiled, check_request(**{**good, **change})).allowed
        assert not decide_on(compiled, check_request(**{**good, **change})).allowed
    assert decide_on(compiled, check_request(**good)).allowed


def test_long_paths_are_not_remembered() -> None:
    """Callers choose paths: what is kept for them is bounded in number and in size."""
    compiled = snapshot(policy("[{}]"))
    for number in range(3):
        assert decide_on(compiled, check_request(path=f"/{number}" + "x" * 300)).allowed
        assert decide_on(compiled, check_request(method=f"M{number}" + "x" * 300)).allowed
    request = check_request(path="/short")
    assert decide_on(compiled, request).allowed
    destination = DestinationResolver().resolve(request.attributes.context_extensions, "", CALL)
    assert destination is not None
    memo = compiled.policies_for(destination).memo
    assert memo is not None
    assert [key[2] for key in memo] == ["/short"]
