"""ResponsePolicy: what an answer changes besides allowing or denying."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from hypothesis import given
from hypothesis import strategies as st
from support.checks import CALL, NOW, answer, check_request, principal, role, snapshot
from support.tokens import Authentication, rsa_signer

from authz.policy.compile import MeshSettings, compile_policies
from authz.service import Authorization, DecisionLog, DestinationResolver
from garrison.documents import parse


def shape(spec: str, namespace: str = "default") -> str:
    """Return a ResponsePolicy with `spec`, in flow style."""
    return f"""
apiVersion: garrison.dev/v1alpha1
kind: ResponsePolicy
metadata: {{name: shape, namespace: {namespace}}}
spec: {spec}
---
"""


def headers(options: Any) -> dict[str, str]:
    """Return header options as a mapping."""
    return {option.header.key: option.header.value for option in options}


def test_an_allowed_call_carries_headers_parameters_and_metadata() -> None:
    """Request and response headers, query parameters and metadata are filled from attributes."""
    spec = """{allowed: {
      requestHeaders: [{name: X-Caller, value: "${source.principal}"}, {name: x-internal, action: REMOVE}],
      responseHeaders: [{name: x-by, value: garrison, action: APPEND}],
      setParameters: {who: "${source.principal}&x=1"}, removeParameters: [debug],
      metadata: {caller: "${source.principal}"}}}"""
    response = answer(role("[{}]") + shape(spec), source=principal("a"), path="/p?debug=1&%77ho=root&keep=2")
    caller = "cluster.local/ns/default/sa/a"
    target = "/p?keep=2&who=cluster.local%2Fns%2Fdefault%2Fsa%2Fa%26x%3D1"
    assert headers(response.ok_response.headers) == {"x-caller": caller, ":path": target}
    assert not response.ok_response.headers[0].append.value
    assert list(response.ok_response.headers_to_remove) == ["x-internal"]
    assert headers(response.ok_response.response_headers_to_add) == {"x-by": "garrison"}
    assert dict(response.dynamic_metadata)["caller"] == caller


def test_an_absent_attribute_removes_the_header() -> None:
    """A client cannot send the header that would have told who it is."""
    spec = '{allowed: {requestHeaders: [{name: x-user, value: "u:${request.auth.claims[sub]}"}]}}'
    text = (
        role("[{}]")
        + str(Authentication(rsa_signer().jwks(), extra="forwardOriginalToken: true"))
        + shape(spec)
    )
    response = answer(text, headers={"x-user": "u:root"})
    assert headers(response.ok_response.headers) == {}
    assert list(response.ok_response.headers_to_remove) == ["x-user"]
    token = {"authorization": f"Bearer {rsa_signer().token()}"}
    assert headers(answer(text, headers=token).ok_response.headers) == {"x-user": "u:a"}


def test_an_absent_attribute_removes_the_parameter() -> None:
    """A client cannot send the parameter that would have told who it is; without one the path stays as it is."""
    text = role("[{}]") + shape('{allowed: {setParameters: {user: "${source.principal}"}}}')
    changed = headers(answer(text, path="/p?user=root&x=1").ok_response.headers)
    assert changed == {":path": "/p?x=1"}
    assert headers(answer(text, path="/p?x=1").ok_response.headers) == {}


def test_what_has_no_query_gets_none() -> None:
    """`OPTIONS *`, CONNECT and gRPC have no query to be set; a caller cannot use that to bring their own."""
    text = role("[{}]") + shape("{allowed: {setParameters: {x: y}}}")
    grpc = {"content-type": "application/grpc"}
    assert headers(answer(text, path="/s/m", headers=grpc).ok_response.headers) == {}
    assert headers(answer(text, path="/s/m?x=z", headers=grpc).ok_response.headers) == {":path": "/s/m"}
    for path in ("*", ""):
        assert headers(answer(text, path=path, method="OPTIONS").ok_response.headers) == {}


def test_two_callers_do_not_get_each_others_headers() -> None:
    """Answers that hold values of a call are made anew for each call."""
    text = role("[{}]") + shape(
        '{allowed: {requestHeaders: [{name: x-caller, value: "${source.principal}"}]}}'
    )
    service = Authorization(DestinationResolver(), lambda: NOW, DecisionLog.NONE)
    service.use(snapshot(text))
    for account in ("a", "b", "a"):
        message = check_request(source=principal(account)).SerializeToString()
        written = service.check(message, CALL)
        assert isinstance(written, bytes)
        found = headers(CheckResponse.FromString(written).ok_response.headers)
        assert found["x-caller"].endswith(f"/{account}")


def test_a_denial_has_status_headers_and_body() -> None:
    """The first shape for the status applies; the body may hold the public reason and attributes."""
    spec = """{denied: [
      {forStatus: [401], status: 302, headers: [{name: location, value: "/login"}]},
      {contentType: application/json, body: '{"error": "${reason}", "path": "${request.path}"}'}]}"""
    text = str(Authentication(rsa_signer().jwks())) + shape(spec)
    denied = answer(text, path="/x").denied_response
    assert (denied.status.code, denied.body) == (403, '{"error": "RBAC: access denied", "path": "/x"}')
    assert headers(denied.headers) == {"content-type": "application/json"}
    denied = answer(text, headers={"authorization": "Bearer x"}).denied_response
    assert (denied.status.code, headers(denied.headers)["location"]) == (302, "/login")
    assert headers(denied.headers)["www-authenticate"].startswith("Bearer")


def test_a_grpc_caller_gets_no_content_type() -> None:
    """Envoy puts status and message into trailers for gRPC callers, unless a content type is in its way."""
    denied = answer("", headers={"content-type": "application/grpc+proto"}).denied_response
    assert (denied.status.code, headers(denied.headers)) == (403, {})
    assert headers(answer("", headers={"content-type": "text/html"}).denied_response.headers)


def test_shapes_are_for_the_workloads_they_select() -> None:
    """Selector and namespace as for other kinds; the root namespace's are for all."""
    spec = "{selector: {matchLabels: {app: a}}, allowed: {metadata: {x: y}}}"
    for namespace, labels, found in (
        ("default", {"destination.labels[app]": "a"}, True),
        ("default", {}, False),
        ("other", {"destination.labels[app]": "a"}, False),
        ("istio-system", {"destination.labels[app]": "a"}, True),
    ):
        response = answer(role("[{}]") + shape(spec, namespace), extensions=labels)
        assert ("x" in dict(response.dynamic_metadata)) is found


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (
            '{allowed: {requestHeaders: [{name: x, value: "${nope}"}]}}',
            "spec.allowed.requestHeaders[0].value: `${nope}` is no attribute",
        ),
        ('{allowed: {requestHeaders: [{name: x, value: "${request.headers}"}]}}', "is no attribute"),
        ('{allowed: {requestHeaders: [{name: x, value: "${reason}"}]}}', "is no attribute"),
        ('{allowed: {requestHeaders: [{name: "a b"}]}}', "spec.allowed.requestHeaders[0].name"),
        ("{allowed: {requestHeaders: [{name: Host, value: x}]}}", "`Host` belongs to the connection"),
        ("{allowed: {requestHeaders: [{name: ':path', value: x}]}}", "spec.allowed.requestHeaders[0].name"),
        ("{denied: [{status: 200}]}", "spec.denied[0].status"),
    ],
)
def test_mistakes(spec: str, expected: str) -> None:
    """Unknown attributes, headers that are not ours and statuses that allow are refused at their place."""
    documents, _ = parse(shape(spec).encode(), "p.yaml")
    policies, problems = compile_policies(documents, MeshSettings())
    assert policies is None
    assert any(expected in str(problem) for problem in problems)


@given(st.text(max_size=60))
def test_no_value_of_a_call_splits_a_response(value: str) -> None:
    """Whatever a caller sends, no control character gets into a header."""
    text = shape('{denied: [{headers: [{name: x-path, value: "${request.path}"}]}]}')
    written = headers(answer(text, path="/" + value).denied_response.headers)
    assert not any(ord(character) < 32 for character in written.get("x-path", ""))
