"""Advisories of Istio and Envoy about authorization, and ways around an external authorizer: one test each.

Every test is named for the advisory (or the other project's) whose mistake it asks for.
"""

from __future__ import annotations

from typing import Any

import pytest
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from google.rpc.code_pb2 import OK, PERMISSION_DENIED
from support.checks import CALL, NOW, check_request, decide_on, federated, principal, snapshot
from support.policies import connection, operation, policy, source, tokens, when, with_token
from support.tokens import Authentication, ec_signer, ed_signer

from authz.decision import ReasonCode
from authz.paths import PathNormalization
from authz.policy.compile import MeshSettings
from authz.service import Authorization, DestinationResolver
from garrison.errors import ConfigError

A = principal("a")
ADMIN = '{paths: ["/admin"]}'


def denied(text: str, request: Any, mesh: MeshSettings | None = None) -> bool:
    """Return whether `request` is denied."""
    return not decide_on(snapshot(text, mesh), request).allowed


@pytest.mark.parametrize("suffix", ["?", "?a=b", "#", "#a", "?a#b", "#a?b", "?/x"])
def test_cve_2020_8595_query_strings(suffix: str) -> None:
    """A query string does not hide an exact path."""
    request = check_request(path="/admin" + suffix)
    assert denied(operation(ADMIN, "DENY"), request)
    assert denied(operation('{notPaths: ["/admin"]}'), request)
    assert not denied(operation(ADMIN), request)


@pytest.mark.parametrize("path", ["/admin#", "/admin#/public", "/admin#?x"])
def test_cve_2021_39156_fragments(path: str) -> None:
    """A fragment does not get past DENY of a path, nor past ALLOW of other paths (CVE-2021-32779)."""
    assert denied(operation(ADMIN, "DENY"), check_request(path=path))
    assert denied(operation('{notPaths: ["/admin"]}'), check_request(path=path))
    assert denied(operation('{paths: ["/public*"]}'), check_request(path=path))


@pytest.mark.parametrize("host", ["a.com", "A.COM", "a.Com"])
def test_cve_2021_39155_host_case(host: str) -> None:
    """Hosts have no case, neither in the request nor in the policy."""
    for pattern in ("a.com", "A.com"):
        assert denied(operation(f'{{hosts: ["{pattern}"]}}', "DENY"), check_request(host=host))
        assert denied(operation(f'{{notHosts: ["{pattern}"]}}'), check_request(host=host))


@pytest.mark.parametrize("host", ["a.com:80", "a.com:", "a.com.:443", "user@a.com:80"])
def test_istio_security_2021_008_port_in_host(host: str) -> None:
    """A port in the Host header does not get past DENY of the bare name."""
    assert denied(operation('{hosts: ["a.com"]}', "DENY"), check_request(host=host))
    assert denied(operation('{notHosts: ["a.com"]}'), check_request(host=host))


@pytest.mark.parametrize(
    ("path", "mode"),
    [
        ("//admin", "MERGE_SLASHES"),
        ("/x/..//admin", "MERGE_SLASHES"),
        ("/%2fadmin", "DECODE_AND_MERGE_SLASHES"),
        ("/x%2F..%2fadmin", "DECODE_AND_MERGE_SLASHES"),
        ("/x%5C..%5cadmin", "DECODE_AND_MERGE_SLASHES"),
        ("/\\admin", "MERGE_SLASHES"),
    ],
)
def test_cve_2021_31920_slashes(path: str, mode: str) -> None:
    """Repeated and encoded slashes are one slash where the mesh says so (CVE-2021-29492)."""
    mesh = MeshSettings(path_normalization=PathNormalization(mode))
    assert denied(operation(ADMIN, "DENY"), check_request(path=path), mesh)


@pytest.mark.parametrize(
    "headers",
    [
        {"raw_headers": [("x-role", b"guest"), ("x-role", b"admin")]},
        {"raw_headers": [("x-role", b"admin"), ("x-role", b"guest")]},
        {"raw_headers": [("X-Role", b"guest"), ("x-role", b"admin"), ("x-role", b"guest")]},
        {"headers": {"x-role": "guest,admin"}},
        {"headers": {"x-role": "admin,guest"}},
    ],
)
def test_cve_2020_25017_repeated_headers(headers: dict[str, Any]) -> None:
    """No value of a repeated header is overlooked (CVE-2021-32777: only the last; CVE-2026-26308: joined)."""
    request = check_request(**headers)
    assert denied(when("request.headers[x-role]", '["admin"]', "DENY"), request)
    assert denied(when("request.headers[x-role]", '["admin"]', "ALLOW", "notValues"), request)
    assert denied(when("request.headers[x-role]", '["guest"]', "DENY", "notValues"), request)
    assert denied(when("request.headers[x-role]", '["guest"]'), request)
    assert denied(when("request.headers[x-role]", '["admin"]'), request)


def test_cve_2020_16844_suffix_principals_on_connections() -> None:
    """A principal with a star at its start is denied on TCP as on HTTP."""
    text = source('{principals: ["*/sa/a"]}', "DENY")
    assert denied(text, connection(source=A))
    assert denied(text, check_request(source=A))
    assert not denied(text, connection(source=principal("b")))


@pytest.mark.parametrize(
    ("fields", "caller"),
    [
        ('{serviceAccounts: ["default/a.b"]}', principal("axb")),
        ('{serviceAccounts: ["[ab]"]}', A),
        ('{principals: ["*/sa/a.b"]}', principal("axb")),
        ('{principals: ["*.*"]}', A),
        ('{namespaces: ["d.fault"]}', A),
        ('{namespaces: ["[a-z]*"]}', A),
        ('{trustDomains: ["cluster.local"]}', principal("a", trust_domain="clusterxlocal")),
        ('{trustDomains: ["*r.local"]}', principal("a", trust_domain="clusterxlocal")),
    ],
)
def test_cve_2026_39350_names_are_no_regular_expressions(fields: str, caller: str) -> None:
    """Dots and brackets in names are themselves (note 59992)."""
    mesh = federated("clusterxlocal")
    assert denied(source(fields), check_request(source=caller), mesh)
    assert not denied(source(fields, "DENY"), check_request(source=caller), mesh)


@pytest.mark.parametrize("path", ["/admin/*", "/admin/a*b", "/admin/a=b", "/admin/a|b", "/admin/a\u00e9"])
def test_cve_2025_46821_path_templates(path: str) -> None:
    """No character of a request's path gets it past a template that denies."""
    for template in ("/admin/{*}", "/admin/{**}", "/{*}/{*}"):
        assert denied(operation(f'{{paths: ["{template}"]}}', "DENY"), check_request(path=path))
        assert denied(operation(f'{{notPaths: ["{template}"]}}'), check_request(path=path))


def test_cve_2026_73552_bytes_that_are_not_utf_8() -> None:
    """Odd bytes in a header neither hide it from a DENY nor satisfy a not-form."""
    for raw in (b"admin\xff", b"admin\xc0\xae", b"admin\x80"):
        request = check_request(raw_headers=[("x-role", raw)])
        assert denied(when("request.headers[x-role]", '["admin*"]', "DENY"), request)
        assert denied(when("request.headers[x-role]", '["admin*"]', "ALLOW", "notValues"), request)
        assert denied(when("request.headers[x-role]", '["*"]', "DENY"), request)
        assert denied(when("request.headers[x-role]", '["admin"]'), request)


@pytest.mark.parametrize(
    "path", ["/admin;x=y", "/admin;", "/a/..;/admin", "/admin;a/;b", "/public;/../admin"]
)
def test_cve_2026_73553_matrix_parameters(path: str) -> None:
    """What follows a semicolon does not get past DENY of a path (CVE-2026-73511)."""
    for fields in ('{paths: ["/admin*"]}', '{paths: ["/admin", "/admin/{**}"]}'):
        assert denied(operation(fields, "DENY"), check_request(path=path))
        assert denied(operation(fields.replace("paths", "notPaths")), check_request(path=path))
    assert denied(operation('{paths: ["/admin"]}'), check_request(path="/admin;x=y"))


def test_cve_2026_73547_connect_has_no_path() -> None:
    """A CONNECT matches no path, and a DENY of everything but some paths denies it."""
    request = check_request(method="CONNECT", path="", host="a.com:443")
    assert denied(operation('{paths: ["*"]}'), request)
    assert denied(operation('{paths: ["/{**}"]}'), request)
    assert denied(operation('{notPaths: ["/public"]}', "DENY"), request)
    assert denied(operation('{hosts: ["a.com"]}', "DENY"), request)


def served(text: str, message: bytes) -> CheckResponse:
    """Return the answer of the whole service to a message."""
    service = Authorization(DestinationResolver(), lambda: NOW)
    service.use(snapshot(text))
    answer = service.check(message, CALL)
    assert isinstance(answer, bytes)
    return CheckResponse.FromString(answer)


def test_cve_2023_27488_requests_that_cannot_be_decoded() -> None:
    """Odd bytes where text must be are denied (CVE-2024-23324); a failed RPC might be let through."""
    good = check_request(path="/aaaa").SerializeToString()
    assert served(policy("[{}]"), good).status.code == OK
    for bad in (good.replace(b"/aaaa", b"/aa\xff\xfe"), good[:-1], good + b"\xff", b"\x0a\xff"):
        assert served(policy("[{}]"), bad).status.code == PERMISSION_DENIED


@pytest.mark.parametrize(
    "headers",
    [
        {"x-envoy-original-path": "/public"},
        {"x-envoy-original-host": "public"},
        {"x-envoy-external-address": "192.0.2.1", "x-forwarded-for": "192.0.2.1"},
        {"x-forwarded-client-cert": f"URI={A}"},
        {"x-envoy-downstream-service-cluster": "public"},
        {"x-http-method-override": "GET", "x-original-url": "/public", "x-rewrite-url": "/public"},
    ],
)
def test_cve_2023_27487_forged_headers(headers: dict[str, str]) -> None:
    """No header of a client decides who it is or what it asks for (CVE-2024-45806)."""
    request = check_request(method="POST", path="/admin", headers=headers)
    for text in (
        operation('{paths: ["/public"]}'),
        operation('{hosts: ["public"]}'),
        operation('{methods: ["GET"]}'),
        source('{principals: ["*"]}'),
        source('{ipBlocks: ["192.0.2.0/24"]}'),
        source('{remoteIpBlocks: ["192.0.2.0/24"]}'),
    ):
        assert denied(text, request)


def test_cve_2020_8843_attributes_from_the_peer() -> None:
    """What a caller calls itself, or the service it calls, in headers is never an attribute."""
    headers = {
        "x-istio-attributes": "source.principal=cluster.local/ns/default/sa/a",
        "source.principal": "cluster.local/ns/default/sa/a",
        "destination.service": "open.default.svc.cluster.local",
        "garrison-destination": "destination.service=open.default.svc.cluster.local",
    }
    assert denied(source('{principals: ["*"]}'), check_request(headers=headers))
    decision = decide_on(policy("[{}]"), check_request(service=None, headers=headers, host="open"))
    assert decision.code is ReasonCode.UNKNOWN_DESTINATION


def test_istio_security_2021_001_tokens_of_unknown_issuers() -> None:
    """With several issuers a token of another one is refused with 401, not taken for no token."""
    issuers = tokens() + str(
        Authentication(ec_signer("k2").jwks(), issuer="https://second.example", name="second")
    )
    token = ed_signer().token({"iss": "https://unknown.example"})
    request = check_request(headers={"authorization": f"Bearer {token}"})
    decision = decide_on(issuers + policy("[{}]"), request)
    assert (decision.allowed, decision.http_status) == (False, 401)


def test_cve_2026_31837_tokens_without_a_usable_key() -> None:
    """A key set without the token's key verifies nothing: 401, whoever has a well-known key."""
    policies = str(Authentication(ed_signer("other").jwks(kid="other"))) + policy("[{}]")
    decision = decide_on(policies, with_token({}))
    assert (decision.allowed, decision.http_status) == (False, 401)


@pytest.mark.parametrize(
    "name",
    [
        f"{A}\x00.evil",
        f"{A},spiffe://cluster.local/ns/x/sa/y",
        "a",
        "CN=a",
        "http://cluster.local/ns/default/sa/a",
        "SPIFFE://cluster.local/ns/default/sa/a",
    ],
)
def test_cve_2025_66220_names_of_certificates(name: str) -> None:
    """A NUL, a second name behind a comma or a name of another type is not the SPIFFE ID (CVE-2022-21656)."""
    for fields in (
        '{principals: ["cluster.local/ns/default/sa/a*"]}',
        '{serviceAccounts: ["a"]}',
        '{namespaces: ["default"]}',
        '{trustDomains: ["cluster.local"]}',
    ):
        assert denied(source(fields), check_request(source=name))


def test_cve_2022_21679_conditions_that_are_not_understood() -> None:
    """A field or key of another version is an error at load, never a rule that always matches."""
    for text in (
        operation('{paths: ["/admin"], bodies: ["x"]}'),
        when("request.body", '["x"]'),
        when("request.body", '["x"]', "DENY"),
    ):
        with pytest.raises(ConfigError, match=r"unknown_(field|key)"):
            snapshot(text)


@pytest.mark.parametrize("pattern", ["*" * 2000, "a*" * 1000, "*a" * 1000 + "b"])
def test_cve_2022_24726_patterns_that_take_long(pattern: str) -> None:
    """Patterns and paths of any length are compared without backtracking (CVE-2022-23635)."""
    long = "a" * 20_000
    caller = check_request(source=principal("a", long[:2000]))
    assert denied(source(f'{{namespaces: ["{pattern}b"]}}'), caller)
    assert denied(operation(f'{{paths: ["{pattern}x"]}}'), check_request(path="/" + long))
    template = "/" + "{*}/" * 50 + "x"
    assert denied(operation(f'{{paths: ["{template}"]}}'), check_request(path="/" + "a/" * 5_000))


# ---------------------------------------------------------------- ways around any external authorizer


@pytest.mark.parametrize(
    "path",
    [
        "/public/../admin",
        "/public/%2e%2e/admin",
        "/public/.%2E/admin",
        "/public/..\\admin",
        "/public\\..\\admin",
        "/public/./../admin",
        "/%61dmin",
        "/public/..;/admin",
    ],
)
def test_ghsa_p224_6x5r_fjpm_raw_paths(path: str) -> None:
    """The path that is decided on has no dot segments left (Oathkeeper, CVE-2019-9901)."""
    assert denied(operation('{paths: ["/admin"]}', "DENY"), check_request(path=path))
    if ";" not in path:
        assert denied(operation('{paths: ["/public/*"]}'), check_request(path=path))


def test_encoded_twice_stays_encoded() -> None:
    """Decoding happens once: `%252e` is a name with a percent sign, for us as for Envoy."""
    mesh = MeshSettings(path_normalization=PathNormalization.DECODE_AND_MERGE_SLASHES)
    for path in ("/public/%252e%252e/admin", "/public%252f..%252fadmin"):
        assert denied(operation('{paths: ["/admin"]}'), check_request(path=path), mesh)
        assert not denied(operation('{paths: ["/public*"]}'), check_request(path=path), mesh)


def test_bytes_that_envoy_does_not_show_in_a_path() -> None:
    """Envoy shows `!` for a byte that is not UTF-8 and forwards the byte: no ALLOW, and still every DENY."""
    request = check_request(path="/admin/!", raw_headers=[(":path", b"/admin/\xff")])
    assert denied(operation('{paths: ["/admin/*"]}'), request)
    assert denied(operation('{paths: ["/admin/*"]}', "DENY"), request)
    assert denied(operation('{paths: ["/admin/{*}"]}', "DENY"), request)
    assert denied(operation('{notPaths: ["/admin/*"]}'), request)
    honest = check_request(path="/admin/!", raw_headers=[(":path", b"/admin/!")])
    assert not denied(operation('{paths: ["/admin/*"]}'), honest)


@pytest.mark.parametrize("host", ["a.com,b.com", "b.com,a.com", "b.com, a.com:80"])
def test_two_host_headers(host: str) -> None:
    """Envoy joins two Host lines and forwards them: each is denied, neither is allowed."""
    request = check_request(host=host)
    assert denied(operation('{hosts: ["a.com"]}', "DENY"), request)
    assert denied(operation('{hosts: ["a.com"]}'), request)
    assert denied(operation('{notHosts: ["a.com"]}'), request)


@pytest.mark.parametrize("host", ["", ":80", "@", "::1", "[::1]:80", ",", "."])
def test_hosts_that_are_none(host: str) -> None:
    """Odd hosts are decided on, and are not the allowed one."""
    assert denied(operation('{hosts: ["a.com"]}'), check_request(host=host))
    assert denied(operation('{notHosts: ["a.com"]}', "DENY"), check_request(host=host))


def test_methods_keep_their_case() -> None:
    """HTTP/2 lets any token through as a method: `get` is not GET to an ALLOW."""
    for method in ("get", "Get", "GET ", "FOO"):
        assert denied(operation('{methods: ["GET"]}'), check_request(method=method))


def test_unverified_names_of_peers_are_nobody() -> None:
    """A name that is no SPIFFE ID (a DNS name, a subject) is no principal to ALLOW, but is to DENY."""
    for name in ("a.default.svc.cluster.local", "O=Lab,CN=a", "spiffe://LAB/../admin?x=1#f"):
        assert denied(source('{principals: ["*"]}'), check_request(source=name))
        assert denied(source('{principals: ["*"]}', "DENY"), check_request(source=name))
