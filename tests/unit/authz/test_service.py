"""The service: always an explicit answer, destinations from the operator, nothing unsafe in a response."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from support.checks import CALL, NOW, SERVICE, check_request, principal, role, snapshot
from support.tokens import Authentication, rsa_signer

from authz.decision import Outcome, ReasonCode, Verdict, deny
from authz.destination import destination_from_attributes
from authz.policy.compile import MeshSettings
from authz.providers import ProviderAnswer
from authz.response import ResponseWriter
from authz.service import CHECK, Authorization, DecisionLog, DestinationResolver, _Allowance
from garrison.identity import SpiffeId
from garrison.transport import Call, Peer


def service(text: str = "", resolver: DestinationResolver | None = None) -> Authorization:
    """Return the service with the policies in `text`."""
    authorization = Authorization(resolver or DestinationResolver(), lambda: NOW, DecisionLog.NONE)
    authorization.use(snapshot(text))
    return authorization


def answer(authorization: Authorization, message: bytes, call: Call = CALL) -> Any:
    """Return the parsed CheckResponse."""
    response = authorization.check(message, call)
    assert isinstance(response, bytes)
    return CheckResponse.FromString(response)


def metadata(response: Any) -> dict[str, Any]:
    """Return the response's dynamic metadata."""
    return dict(response.dynamic_metadata)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x00",
        b"\xff" * 100,
        b"\x0a\x05abc",
        check_request().SerializeToString()[:-3],
        check_request().SerializeToString().replace(b"GET", b"G\xffT"),
    ],
)
def test_what_cannot_be_decoded_or_placed_is_denied(message: bytes) -> None:
    """Garbage, truncation, invalid UTF-8 and the empty request get a denial with a status, never silence."""
    response = answer(service(role("[{}]")), message)
    assert response.status.code != 0
    assert response.denied_response.status.code == 403


def test_unknown_fields_do_not_change_the_answer() -> None:
    """A newer Envoy may send fields that we do not know."""
    message = check_request().SerializeToString() + b"\xf2\x7f\x03abc"
    assert answer(service(role("[{}]")), message).status.code == 0


def test_a_megabyte_of_header_is_answered() -> None:
    """Large requests are decided like others."""
    message = check_request(headers={"x": "y" * 1_000_000}).SerializeToString()
    assert answer(service(role("[{}]")), message).status.code == 0


class Logged:
    """A service that logs at most `most` denials in a second, on a clock of the test's own."""

    def __init__(self, most: int) -> None:
        self.now = NOW
        self.service = Authorization(DestinationResolver(), lambda: self.now, decision_log_lines=most)
        self.service.use(snapshot(""))

    def lines(self, *moments: float) -> list[float]:
        """Deny a call at each moment (seconds after the first), and return those of which there is a line."""
        begin, found = NOW, []
        for moment in moments:
            self.now = begin + moment
            with capture_logs() as lines:
                answer(self.service, check_request().SerializeToString())
            found += [moment] * len(lines)
        return found


def test_a_flood_gets_its_lines_evenly() -> None:
    """A line costs more than a decision: all of a second's at once would hold up whoever calls just then."""
    logged = Logged(100)
    found = logged.lines(*(number / 1000 for number in range(3000)))
    assert found[:20] == [number / 1000 for number in range(20)]
    assert 300 <= len(found) <= 320
    for begin in range(1, 29):
        assert 9 <= sum(begin <= moment * 10 < begin + 1 for moment in found) <= 20
    assert logged.service.unlogged == 3000 - len(found)


def test_who_kept_still_gets_a_fifth_at_once() -> None:
    """A person who tries something sees all of it, and a second later again."""
    assert Logged(100).lines(*[0] * 20, *[1] * 25) == [0] * 20 + [1] * 20
    assert Logged(1).lines(0, 0, 0.5, 1, 1) == [0, 1]
    assert Logged(0).lines(0, 1) == []


@given(st.integers(1, 200), st.lists(st.floats(-5, 5), max_size=300))
@settings(deadline=None, max_examples=50)
def test_there_are_never_more_lines_than_allowed(most: int, steps: list[float]) -> None:
    """Whenever calls come; and a clock that is set back does not end the log."""
    allowance, now, at = _Allowance(most), NOW, []
    for step in steps:
        now += abs(step) / most
        if allowance.take(now):
            at.append(now)
    for begin in at:
        assert sum(begin <= moment < begin + 1 for moment in at) <= most + max(most // 5, 1)
    assert allowance.take(now - 100)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_are_an_allow(message: bytes) -> None:
    """Whatever the bytes, without a destination nothing is allowed."""
    assert answer(service(role("[{}]")), message).status.code != 0


def test_a_bug_is_a_denial(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception inside the decision answers 500 and is counted; it does not reach the transport."""

    def broken(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr("authz.service.decide", broken)
    authorization = service(role("[{}]"))
    response = answer(authorization, check_request().SerializeToString())
    assert (response.status.code, response.denied_response.status.code) == (7, 500)
    assert b"secret" not in response.SerializeToString()
    assert authorization.decisions == {(Verdict.DENY, ReasonCode.INTERNAL_ERROR): 1}


def test_without_a_snapshot_everything_is_denied() -> None:
    """Before the first load the answer is 503."""
    authorization = Authorization(DestinationResolver(), lambda: NOW, DecisionLog.NONE)
    response = answer(authorization, check_request().SerializeToString())
    assert response.denied_response.status.code == 503


def test_a_call_that_the_transport_could_not_read_is_denied() -> None:
    """`on_fault` is an ordinary denial: Envoy would take an RPC error for a reason to let the call through."""
    method = service().methods()[CHECK]
    assert method.on_fault is not None
    assert CheckResponse.FromString(method.on_fault(ValueError("x"))).denied_response.status.code == 403


def test_every_answer_says_why_in_its_metadata() -> None:
    """Envoy's access log can print decision, policy, rule, reason and snapshot."""
    authorization = service(role("[{methods: [GET]}]"))
    allowed = metadata(answer(authorization, check_request().SerializeToString()))
    assert (allowed["decision"], allowed["policy"], allowed["rule"]) == ("allow", "ServiceRole default/r", 0)
    assert authorization.snapshot is not None
    assert allowed["snapshot"] == authorization.snapshot.version
    denied = metadata(answer(authorization, check_request(method="PUT").SerializeToString()))
    assert denied["decision"] == "deny"
    assert "request.method `PUT` is not `GET`" in denied["reason"]


def test_what_the_caller_sees() -> None:
    """A denied caller sees Istio's words and nothing of the policies."""
    response = answer(service(role("[{methods: [GET]}]")), check_request(method="PUT").SerializeToString())
    assert response.denied_response.body == "RBAC: access denied"
    assert [header.header.key for header in response.denied_response.headers] == ["content-type"]


def test_a_bad_token_gets_a_challenge() -> None:
    """401 comes with `WWW-Authenticate`."""
    text = str(Authentication(rsa_signer().jwks())) + role("[{}]")
    response = answer(service(text), check_request(headers={"authorization": "Bearer x"}).SerializeToString())
    headers = {header.header.key: header.header.value for header in response.denied_response.headers}
    assert response.denied_response.status.code == 401
    assert headers["www-authenticate"].startswith(
        'Bearer realm="products.default.svc.cluster.local", error="invalid_token", error_description='
    )


@pytest.mark.parametrize(("forward", "removed"), [("true", []), ("false", ["authorization"])])
def test_tokens_are_removed_unless_forwarded(forward: str, removed: list[str]) -> None:
    """Istio's `forwardOriginalToken`: by default the upstream does not see the token."""
    text = str(Authentication(rsa_signer().jwks(), extra=f"forwardOriginalToken: {forward}")) + role("[{}]")
    headers = {"authorization": f"Bearer {rsa_signer().token()}"}
    response = answer(service(text), check_request(headers=headers).SerializeToString())
    assert (response.status.code, list(response.ok_response.headers_to_remove)) == (0, removed)
    response = answer(service(text), check_request().SerializeToString())
    assert list(response.ok_response.headers_to_remove) == []


def test_header_values_hold_no_control_characters() -> None:
    """Envoy emits CR and LF as given, so none may get into a header value."""
    decision = deny(ReasonCode.INVALID_TOKEN, "r", http_status=401, challenge="a\r\nset-cookie: x\x00\x7f")
    response = CheckResponse.FromString(ResponseWriter("v", {}).write(Outcome(decision)))
    assert response.denied_response.headers[0].header.value == "aset-cookie: x"


def test_the_destination_comes_from_the_operator() -> None:
    """Extensions, then metadata, then the asking SVID; the host only where the settings say so."""
    peer = SpiffeId.parse(principal("products"))
    workload = destination_from_attributes({"destination.service": SERVICE})
    assert workload is not None
    known = DestinationResolver({peer: workload})
    plain = check_request(service=None, host=f"{SERVICE}:80").SerializeToString()
    elsewhere = check_request(service="other.default.svc.cluster.local").SerializeToString()
    text = role(f'[{{services: ["{SERVICE}"]}}]')
    named = Call(Peer("x"), [(b"garrison-destination", f"destination.service={SERVICE}".encode())])
    by_svid = Call(Peer("x", peer), ())

    def code(message: bytes, call: Call, resolver: DestinationResolver) -> int:
        status: int = answer(service(text, resolver), message, call).status.code
        return status

    assert code(check_request().SerializeToString(), CALL, DestinationResolver()) == 0
    assert code(plain, CALL, DestinationResolver()) == 7
    assert code(plain, named, DestinationResolver()) == 0
    assert code(elsewhere, named, DestinationResolver()) == 7
    assert code(plain, by_svid, known) == 0
    assert code(plain, Call(Peer("x", SpiffeId.parse(principal("a"))), ()), known) == 7
    assert code(elsewhere, by_svid, known) == 7
    assert code(plain, CALL, DestinationResolver(from_host=True)) == 0


@pytest.mark.parametrize("value", [b"\xff", b"destination.service", b"a=b", b"=" * 1000, b""])
def test_unreadable_metadata_names_no_destination(value: bytes) -> None:
    """Metadata that cannot be read is nothing, and nothing is denied."""
    call = Call(Peer("x"), [(b"garrison-destination", value)])
    assert (
        answer(service(role("[{}]")), check_request(service=None).SerializeToString(), call).status.code == 7
    )


def test_labels_of_two_destinations_with_one_name_stay_apart() -> None:
    """Two versions of a service have the same name and different labels."""
    authorization = service(role('[{constraints: [{key: "destination.labels[v]", values: ["1"]}]}]'))
    for version, code in (("1", 0), ("2", 7), ("1", 0), ("2", 7)):
        request = check_request(extensions={"destination.labels[v]": version})
        assert answer(authorization, request.SerializeToString()).status.code == code


def test_a_swap_changes_the_next_answer() -> None:
    """The next call after `use` is decided on the new snapshot."""
    authorization = service(role("[{}]"))
    message = check_request().SerializeToString()
    assert answer(authorization, message).status.code == 0
    authorization.use(snapshot(""))
    assert answer(authorization, message).status.code == 7


def test_a_token_is_removed_wherever_it_stood() -> None:
    """The same token in header and query: neither copy reaches the upstream."""
    token = rsa_signer().token()
    text = str(Authentication(rsa_signer().jwks())) + role("[{}]")
    request = check_request(headers={"authorization": f"Bearer {token}"}, path=f"/?access_token={token}")
    response = answer(service(text), request.SerializeToString())
    assert list(response.ok_response.headers_to_remove) == ["authorization"]
    changed = {option.header.key: option.header.value for option in response.ok_response.headers}
    assert changed == {":path": "/"}


AUTHORIZATION = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: p, namespace: default}}
spec: {{action: {action}, rules: [{{to: [{{operation: {{methods: [{method}]}}}}]}}]{more}}}
---
"""


@pytest.mark.parametrize("action", ["DENY", "AUDIT"])
def test_a_policy_that_does_not_allow_leaves_roles_in_force(action: str) -> None:
    """Only an ALLOW policy takes the place of roles; DENY and AUDIT never let anybody in."""
    text = AUTHORIZATION.format(action=action, method="PUT", more="")
    authorization = service(role("[{methods: [HEAD]}]") + text)
    assert answer(authorization, check_request(method="GET").SerializeToString()).status.code == 7
    assert answer(authorization, check_request(method="HEAD").SerializeToString()).status.code == 0
    alone = service(text)
    assert answer(alone, check_request(method="GET").SerializeToString()).status.code == 0


def test_audit_is_remarked() -> None:
    """AUDIT shows in the metadata and changes nothing."""
    text = role("[{}]") + AUTHORIZATION.format(action="AUDIT", method="GET", more="")
    response = answer(service(text), check_request().SerializeToString())
    assert (response.status.code, metadata(response)["audit"]) == (0, "AuthorizationPolicy default/p")


class Asked:
    """A provider that answers what it is told to."""

    def __init__(self, provider_answer: ProviderAnswer) -> None:
        self.answer = provider_answer
        self.messages: list[bytes] = []

    async def ask(self, message: bytes) -> ProviderAnswer:
        """Return the answer."""
        self.messages.append(message)
        return self.answer


def delegated(provider: Asked | None, text: str, message: bytes) -> Any:
    """Return the answer of a service whose provider `ext` is `provider`."""
    providers = {"ext": provider} if provider is not None else {}
    authorization = Authorization(DestinationResolver(), lambda: NOW, DecisionLog.NONE, providers=providers)
    authorization.use(snapshot(text, MeshSettings(providers=frozenset({"ext"}))))
    result = authorization.check(message, CALL)
    if not isinstance(result, bytes):
        result = asyncio.run(_wait(result))
    return CheckResponse.FromString(result)


async def _wait(awaitable: Awaitable[bytes]) -> bytes:
    return await awaitable


CUSTOM = AUTHORIZATION.format(action="CUSTOM", method="GET", more=", provider: {name: ext}")


def test_custom_asks_the_provider_first() -> None:
    """Where a CUSTOM rule matches, the provider must allow, and then everything else must, too."""
    message = check_request().SerializeToString()
    theirs = CheckResponse()
    theirs.status.code = 0
    theirs.ok_response.headers.add().header.key = "x-added"
    allows = Asked(ProviderAnswer(None, response=theirs))
    response = delegated(allows, CUSTOM + role("[{}]"), message)
    assert response.status.code == 0
    assert [header.header.key for header in response.ok_response.headers] == ["x-added"]
    assert allows.messages == [message]
    assert delegated(allows, CUSTOM + role("[{methods: [PUT]}]"), message).status.code == 7


def test_custom_denials_keep_the_providers_words() -> None:
    """The provider's status, headers and body reach the caller; the metadata is ours."""
    theirs = CheckResponse()
    theirs.status.code = 7
    theirs.denied_response.body = "log in first"
    denies = Asked(ProviderAnswer("denies it", 302, theirs))
    response = delegated(denies, CUSTOM + role("[{}]"), check_request().SerializeToString())
    assert (response.denied_response.status.code, response.denied_response.body) == (302, "log in first")
    assert metadata(response)["code"] == "custom_denied"


def test_custom_without_its_provider_denies_what_matches() -> None:
    """An undefined provider denies what matches, and nothing else."""
    text = CUSTOM + role("[{}]")
    assert delegated(None, text, check_request().SerializeToString()).status.code == 7
    assert delegated(None, text, check_request(method="PUT").SerializeToString()).status.code == 0


def test_what_is_kept_between_calls_does_not_leak_into_the_next() -> None:
    """One service, one call after the other: destinations, tokens, protocols and peers stay apart."""
    text = str(Authentication(rsa_signer().jwks())) + role("[{methods: [GET]}]", "[{user: a}]")
    peer = SpiffeId.parse(principal("products"))
    workload = destination_from_attributes({"destination.service": SERVICE})
    assert workload is not None
    authorization = service(text, DestinationResolver({peer: workload}))
    plain = check_request(service=None, source=principal("a")).SerializeToString()
    token, other = rsa_signer().token(), rsa_signer().token({"sub": "b"})

    def ask(message: bytes, call: Call = CALL) -> Any:
        return answer(authorization, message, call)

    def call(*authorizations: str, **request: Any) -> bytes:
        raw = [("authorization", f"Bearer {one}".encode()) for one in authorizations]
        more = [(name, value.encode()) for name, value in request.pop("lines", ())]
        message: bytes = check_request(raw_headers=[*raw, *more], **request).SerializeToString()
        return message

    for _ in range(2):
        # The asking SVID names the destination of its own calls only.
        assert ask(plain, Call(Peer("x", peer), ())).status.code == 0
        assert ask(plain).status.code == 7
        # The peer is part of what a decision is remembered by.
        assert ask(call(source=principal("a"))).status.code == 0
        assert ask(call(source=principal("b"))).status.code == 7
        # Only a token that came is removed.
        assert list(ask(call(token, source=principal("a"))).ok_response.headers_to_remove) == [
            "authorization"
        ]
        assert list(ask(call(source=principal("a"))).ok_response.headers_to_remove) == []
        # A token seen before does not vouch for another one beside it.
        assert ask(call(token, other, source=principal("a"))).denied_response.status.code == 401
        assert ask(call(token, "x", source=principal("a"))).denied_response.status.code == 401
        # A denial to a gRPC caller has no content type, the same one to others has.
        grpc = ask(call(method="PUT", source=principal("a"), lines=[("content-type", "application/grpc")]))
        assert (grpc.status.code, len(grpc.denied_response.headers)) == (7, 0)
        assert len(ask(call(method="PUT", source=principal("a"))).denied_response.headers) == 1
