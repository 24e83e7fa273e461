"""What Mixer's rules say to calls: Istio's answers, and closed wherever Istio's were open by accident."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import pytest
from support.checks import NOW, check_request, principal

from authz.attributes import Attributes
from authz.destination import destination_from_attributes
from authz.mixer.compile import compile_mixer
from authz.mixer.documents import KINDS
from authz.mixer.evaluate import HeaderOperation, MixerResult, check
from authz.mixer.lists import EntryList, EntryType, ListSource, build_entries
from authz.mixer.rules import DirectResponse, MixerPolicies
from authz.paths import PathNormalization
from authz.policy.documents import Resource
from garrison.documents import Document, parse, validate


def compiled(text: str) -> MixerPolicies:
    """Return the policies in `text`; `apiVersion` is added."""
    documents, problems = parse(text.encode(), "m.yaml")
    loaded: list[tuple[Resource, Document]] = []
    for document in documents:
        document.data.setdefault("apiVersion", "config.istio.io/v1alpha2")
        resource = validate(KINDS[document.data["apiVersion"], document.data["kind"]], document)
        assert not isinstance(resource, list), resource
        loaded.append((resource, document))
    policies, more = compile_mixer(loaded, "istio-system")
    assert policies is not None, [str(problem) for problem in (*problems, *more)]
    return policies


class Lists:
    """Fetched lists by URL."""

    def __init__(self, **entries: Sequence[str]) -> None:
        self._entries = entries

    def current(self, source: ListSource) -> EntryList | None:
        """Return the list, if it was fetched."""
        name = source.url.rpartition("/")[2]
        return build_entries(source.entry_type, self._entries[name]) if name in self._entries else None


def ask(
    text: str | MixerPolicies,
    request: Any = None,
    lists: Lists | None = None,
    claims: Mapping[str, Any] | None = None,
) -> MixerResult:
    """Return what the policies say to a call."""
    policies = compiled(text) if isinstance(text, str) else text
    context = (request or check_request()).attributes
    destination = destination_from_attributes(context.context_extensions)
    assert destination is not None
    attributes = Attributes(context, PathNormalization.BASE, destination)
    attributes.claims = claims
    return check(policies.for_destination(destination), attributes, NOW, lists or Lists())


def deny(match: str, *, more: str = "", status: str = "{code: 7, message: Not allowed}") -> str:
    """Return a denier for calls that match."""
    return f"""
kind: denier
metadata: {{name: h}}
spec: {{status: {status}}}
---
kind: checknothing
metadata: {{name: n}}
---
kind: rule
metadata: {{name: r}}
spec:
  match: {match}
  actions: [{{handler: h.denier, instances: [n.checknothing]}}]
{more}
---
"""


def listed(params: str, value: str = 'request.headers["x-user"]', match: str = "") -> str:
    """Return a list that every call's `value` is looked up in."""
    return f"""
kind: handler
metadata: {{name: users}}
spec: {{compiledAdapter: listchecker, params: {params}}}
---
kind: instance
metadata: {{name: user}}
spec: {{compiledTemplate: listentry, params: {{value: '{value}'}}}}
---
kind: rule
metadata: {{name: r}}
spec: {{match: '{match}', actions: [{{handler: users, instances: [user]}}]}}
---
"""


def header(value: str | None) -> Any:
    """Return a call with the header x-user."""
    return check_request(headers={} if value is None else {"x-user": value})


def test_a_denier_denies_with_its_status_and_says_who() -> None:
    """The HTTP status follows the code; the body is Istio's; the decision names rule and action."""
    result = ask(deny('request.method == "GET"'))
    decision = result.decision
    assert decision is not None
    assert not decision.allowed
    assert (decision.http_status, decision.public) == (403, "PERMISSION_DENIED:h.denier.default:Not allowed")
    assert (decision.policy, decision.rule, decision.field) == ("rule default/r", 0, "spec.actions[0]")
    assert (result.status, result.message) == (7, "h.denier.default:Not allowed")
    assert (result.valid_duration, result.valid_use_count) == (timedelta(seconds=5), 1000)


@pytest.mark.parametrize(
    ("code", "http_status"),
    list(enumerate([200, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401])),
)
def test_every_code_has_its_http_status(code: int, http_status: int) -> None:
    """Istio's table; code 0 is no denial."""
    decision = ask(deny("true == true", status=f"{{code: {code}}}")).decision
    assert (decision.http_status if decision else 200) == http_status


def test_a_rule_that_does_not_match_says_nothing() -> None:
    """Without an adapter the result is OK for a minute or ten thousand uses."""
    assert ask(deny('request.method == "PUT"')) == MixerResult()
    assert MixerResult().valid_duration == timedelta(minutes=1)
    assert MixerResult().valid_use_count == 10_000


@pytest.mark.parametrize(
    ("match", "denied"),
    [
        ('request.headers["x-user"] == "bad"', True),  # absent: nobody can tell, so the denial stands
        ('(request.headers["x-user"] | "") == "bad"', False),
        ('request.headers["x-user"] != "good"', True),
        ('request.method == "PUT" && request.headers["x-user"] == "bad"', False),  # decided without it
        ('request.headers["x-user"] == "bad" && request.method == "PUT"', False),  # in either order
        ('request.method == "GET" || request.headers["x-user"] == "bad"', True),
        ('ip(request.path) == ip("10.0.0.1")', True),
        ('request.headers["x-user"] == "bad" && source.labels["app"] == "x"', True),
    ],
)
def test_leaving_something_out_does_not_escape_a_denier(match: str, denied: bool) -> None:
    """A match that cannot be evaluated is taken as a match by handlers that deny."""
    result = ask(deny(f"'{match}'"))
    assert (result.decision is not None) is denied


def test_a_doubtful_denial_says_what_is_missing() -> None:
    """Operators read which attribute was absent; callers do not."""
    decision = ask(deny('\'source.labels["app"] == "reviews"\'')).decision
    assert decision is not None
    assert decision.reason.endswith("whether the rule matches is not known: `source.labels[app]` is absent")
    assert decision.public == "PERMISSION_DENIED:h.denier.default:Not allowed"


def test_a_doubtful_match_denies_nobody_whom_the_handler_lets_through() -> None:
    """In doubt the handler is asked; who is on the whitelist passes either way."""
    text = listed("{overrides: [joe]}", match='source.labels["app"] == "x"')
    assert ask(text, header("joe")).decision is None
    assert ask(text, header("eve")).decision is not None


@pytest.mark.parametrize(
    ("params", "value", "status", "message"),
    [
        ("{overrides: [joe]}", "joe", 0, ""),
        ("{overrides: [joe]}", "eve", 5, "users.handler.default:eve is not whitelisted"),
        ("{overrides: [joe], blacklist: true}", "joe", 7, "users.handler.default:joe is blacklisted"),
        ("{overrides: [joe], blacklist: true}", "eve", 0, ""),
        ("{overrides: [], blacklist: true}", "eve", 0, ""),
        ("{overrides: []}", "eve", 5, "users.handler.default:eve is not whitelisted"),
        ("{overrides: [JOE], entryType: CASE_INSENSITIVE_STRINGS}", "joe", 0, ""),
        (
            "{overrides: ['^j'], entryType: REGEX, blacklist: true}",
            "joe",
            7,
            "users.handler.default:joe is blacklisted",
        ),
        ("{overrides: [10.0.0.0/8], entryType: IP_ADDRESSES}", "10.1.1.1", 0, ""),
        (
            "{overrides: [10.0.0.0/8], entryType: IP_ADDRESSES}",
            "1.1.1.1",
            5,
            "users.handler.default:1.1.1.1 is not whitelisted",
        ),
        (
            "{entryType: IP_ADDRESSES, blacklist: true}",
            "joe",
            3,
            "users.handler.default:joe is not a valid IP address",
        ),
    ],
)
def test_lists(params: str, value: str, status: int, message: str) -> None:
    """Statuses and messages are Mixer's."""
    result = ask(listed(params), header(value))
    assert (result.status, result.message) == (status, message)
    assert (result.decision is None) is (status == 0)
    assert (result.valid_duration, result.valid_use_count) == (timedelta(seconds=300), 10_000)


def test_a_list_of_addresses_reads_addresses() -> None:
    """`source.ip | ip(...)` is looked up as an address, as in Istio's own example."""
    text = listed("{overrides: [10.57.0.0/16], entryType: IP_ADDRESSES}", value='source.ip | ip("0.0.0.0")')
    assert ask(text, check_request(source_ip="10.57.1.2")).decision is None
    decision = ask(text, check_request(source_ip="10.58.1.2")).decision
    assert decision is not None
    assert (decision.http_status, decision.public) == (
        404,
        "NOT_FOUND:users.handler.default:10.58.1.2 is not whitelisted",
    )


FETCHED = "{providerUrl: 'http://x/users', overrides: [root], blacklist: %s}"


@pytest.mark.parametrize(
    ("blacklist", "value", "lists", "status"),
    [
        (False, "joe", Lists(users=["joe"]), 0),
        (False, "eve", Lists(users=["joe"]), 5),
        (False, "root", Lists(users=["joe"]), 0),
        (True, "joe", Lists(users=["joe"]), 7),
        (True, "root", Lists(users=["joe"]), 7),
        (True, "eve", Lists(users=["joe"]), 0),
        # No list: what the overrides decide is decided, everything else is denied.
        (False, "joe", Lists(), 14),
        (False, "root", Lists(), 0),
        (True, "eve", Lists(), 14),
        (True, "root", Lists(), 7),
    ],
)
def test_fetched_lists(blacklist: bool, value: str, lists: Lists, status: int) -> None:
    """Overrides add to the fetched list; a list that is not there lets nobody through."""
    assert ask(listed(FETCHED % str(blacklist).lower()), header(value), lists).status == status


def test_a_missing_list_is_told_to_operators_only() -> None:
    """The caller learns that the list is not available, not where it comes from."""
    decision = ask(listed(FETCHED % "false"), header("joe")).decision
    assert decision is not None
    assert (decision.http_status, decision.public) == (
        503,
        "UNAVAILABLE:users.handler.default:the list is not available",
    )
    assert "http://x/users" in decision.reason


def test_an_instance_that_cannot_be_made_denies() -> None:
    """Istio answers INTERNAL, which its proxies could let through; here it is a denial."""
    decision = ask(listed("{overrides: [eve], blacklist: true}"), header(None)).decision
    assert decision is not None
    assert (decision.http_status, decision.public) == (
        500,
        "INTERNAL:users.handler.default:the check could not be made",
    )
    assert "`request.headers[x-user]` is absent" in decision.reason


def test_a_header_sent_twice_is_no_value() -> None:
    """Two lines that differ cannot hide one behind the other; equal ones are one."""
    text = listed("{overrides: [joe]}")
    twice = check_request(raw_headers=[("x-user", b"joe"), ("x-user", b"eve")])
    assert ask(text, twice).status == 13
    same = check_request(raw_headers=[("x-user", b"joe"), ("X-User", b"joe")])
    assert ask(text, same).status == 0


def test_messages_and_validity_are_combined() -> None:
    """All handlers are asked: the first failure's status, all messages, the least validity."""
    second = deny("true == true", status="{code: 16, message: Who}").replace("name: h}", "name: h2}")
    second = (
        second.replace("h.denier", "h2.denier")
        .replace("name: r}", "name: s}")
        .replace("name: n}", "name: n2}")
    )
    second = second.replace("[n.check", "[n2.check")
    result = ask(
        listed("{overrides: [joe], cachingInterval: 2s}").replace("name: r}", "name: q}")
        + deny("''")
        + second,
        header("eve"),
    )
    assert result.status == 5
    assert result.message == (
        "users.handler.default:eve is not whitelisted, h.denier.default:Not allowed, h2.denier.default:Who"
    )
    assert (result.valid_duration, result.valid_use_count) == (timedelta(seconds=2), 1000)
    assert result.decision is not None
    assert result.decision.http_status == 404


def test_what_callers_send_is_shown_in_one_line() -> None:
    """Control characters and text that is not Unicode do not reach body or log, and length is bounded."""
    text = listed("{overrides: []}", value='request.query_params["u"]')
    for query in ("%0d%0aset-cookie:%20x=1", "%ff%80", "x" * 5000):
        decision = ask(text, check_request(path=f"/?u={query}")).decision
        assert decision is not None
        assert decision.public.isprintable() or "\ufffd" in decision.public
        assert "\n" not in decision.public
        assert decision.public.encode()
        assert decision.reason.encode()
        assert len(decision.public) < 400


DIRECT = (
    '{code: 7, message: m, details: [{"@type": type.googleapis.com/istio.policy.v1beta1.DirectHttpResponse,'
    " code: %s, body: 'moved', headers: {location: /there}}]}"
)


@pytest.mark.parametrize(("code", "http_status"), [("MovedPermanently", 301), ("302", 302), ("0", 403)])
def test_direct_responses(code: str, http_status: int) -> None:
    """A denial may carry the response that the caller gets."""
    result = ask(deny("''", status=DIRECT % code))
    assert result.decision is not None
    assert (result.decision.http_status, result.decision.public) == (http_status, "moved")
    assert result.direct_response == DirectResponse(
        int(http_status) if code != "0" else 0, "moved", (("location", "/there"),)
    )


OPERATIONS = """
kind: rule
metadata: {name: ops}
spec:
  match: 'request.headers["x-on"] == "yes"'
  requestHeaderOperations:
  - {name: X-User, values: ['request.auth.claims["sub"] | ""']}
  - {name: x-gone, operation: REMOVE}
  responseHeaderOperations:
  - {name: x-app, values: ['"a"', '"" + ""', '"b"'], operation: APPEND}
  - {name: x-two, values: ['"a"', '"b"']}
---
"""


def test_header_operations() -> None:
    """Values are expressions; several values of a REPLACE are one replacement and additions."""
    result = ask(OPERATIONS, check_request(headers={"x-on": "yes"}), claims={"sub": "joe"})
    assert result.decision is None
    assert result.request_headers == (
        HeaderOperation("x-user", "REPLACE", "joe"),
        HeaderOperation("x-gone", "REMOVE"),
    )
    assert result.response_headers == (
        HeaderOperation("x-app", "APPEND", "a"),
        HeaderOperation("x-app", "APPEND", "b"),
        HeaderOperation("x-two", "REPLACE", "a"),
        HeaderOperation("x-two", "APPEND", "b"),
    )
    assert result.valid_duration == timedelta(minutes=1)


def test_replacing_by_nothing_removes() -> None:
    """A caller cannot bring its own value by making the expression empty."""
    call = check_request(headers={"x-on": "yes", "x-user": "admin"})
    assert ask(OPERATIONS, call).request_headers[0] == HeaderOperation("x-user", "REMOVE")


def test_operations_are_for_calls_that_match_and_pass() -> None:
    """No match, a doubtful match, or a denial: no operations."""
    assert ask(OPERATIONS, check_request(headers={"x-on": "no"})).request_headers == ()
    assert ask(OPERATIONS).request_headers == ()
    denied = ask(OPERATIONS + deny("''"), check_request(headers={"x-on": "yes"}))
    assert denied.decision is not None
    assert denied.request_headers == ()


@pytest.mark.parametrize("value", ['request.headers["x-none"]', 'request.query_params["v"]'])
def test_an_operation_that_cannot_be_made_denies(value: str) -> None:
    """A value that is absent, or that no header can have, is not left out but denied."""
    text = f"kind: rule\nmetadata: {{name: o}}\nspec: {{requestHeaderOperations: [{{name: x, values: ['{value}']}}]}}"
    result = ask(text, check_request(path="/?v=a%0d%0ab"))
    assert (result.status, result.decision is None) == (13, False)
    assert result.request_headers == ()


def test_attributes_of_a_call() -> None:
    """Each attribute has the value that Envoy reported, or the operator gave under its name."""
    request = check_request(
        source=principal("s"),
        method="POST",
        path="/a/../b%61?x=1&y=%41&z=1&z=2#f",
        host="Example.com",
        headers={"content-type": "application/grpc", "referer": "r", "user-agent": "ua"},
        extensions={
            "destination.labels[app]": "ratings",
            "destination.user": "cluster.local/ns/default/sa/d",
            "source.labels[app]": "reviews",
            "source.uid": "kubernetes://p",
            "connection.id": "c",
            "connection.sni": "sni.example",
            "origin.user": "o",
            "api.service": "api",
            "my.count": "7",
            "my.flag": "true",
            "my.when": "2018-01-01T00:00:00Z",
            "my.host": "A.example.",
        },
    )
    request.attributes.request.http.size = 12
    request.attributes.request.http.id = "id-1"
    request.attributes.request.http.scheme = "https"
    request.attributes.request.time.FromSeconds(1)
    manifest = (
        "kind: attributemanifest\nmetadata: {name: m}\nspec: {attributes: {my.count: {valueType: INT64},"
        " my.flag: {valueType: BOOL}, my.when: {valueType: TIMESTAMP}, my.host: {valueType: DNS_NAME},"
        " my.none: {valueType: STRING}}}\n---\n"
    )
    conditions = [
        'source.principal == "cluster.local/ns/default/sa/s"',
        'source.user == "cluster.local/ns/default/sa/s"',
        'source.namespace == "default"',
        'source.serviceAccount == "s"',
        'source.ip == ip("10.0.0.1")',
        'origin.ip == ip("10.0.0.1")',
        'origin.user == "o"',
        'source.labels["app"] == "reviews"',
        'source.uid == "kubernetes://p"',
        'destination.service == "products.default.svc.cluster.local"',
        'destination.service.host == "products.default.svc.cluster.local"',
        'destination.service.name == "products"',
        'destination.namespace == "default"',
        'destination.labels["app"] == "ratings"',
        'destination.serviceAccount == "d"',
        'destination.ip == ip("10.0.0.2")',
        "destination.port == 9080",
        'request.method == "POST"',
        'request.host == "example.com"',
        'request.url_path == "/ba"',
        'request.path == "/ba?x=1&y=%41&z=1&z=2"',
        'request.query_params["y"] == "A"',
        '(request.query_params["none"] | "") == ""',
        'request.headers["Referer"] == "r"',
        'request.referer == "r"',
        'request.useragent == "ua"',
        'request.scheme == "https"',
        'request.id == "id-1"',
        "request.size == 12",
        'request.time == timestamp("1970-01-01T00:00:01Z")',
        'context.time == timestamp("2027-01-15T08:00:00Z")',
        'context.protocol == "grpc"',
        'context.reporter.kind == "inbound"',
        "connection.mtls",
        'connection.id == "c"',
        'connection.requested_server_name == "sni.example"',
        'api.service == "api"',
        'request.auth.principal == "iss/sub"',
        'request.auth.audiences == "a"',
        'request.auth.presenter == "azp"',
        'request.auth.claims["groups"] == "g1,g2"',
        '(request.auth.claims["exp"] | "") == ""',
        'request.auth.raw_claims.startsWith("{")',
        "my.count == 7",
        "my.flag",
        'my.when == timestamp("2018-01-01T00:00:00Z")',
        'my.host == dnsName("a.example")',
        '(my.none | "") == ""',
    ]
    claims = {"iss": "iss", "sub": "sub", "aud": ["a", "b"], "azp": "azp", "groups": ["g1", "g2"], "exp": 5}
    for condition in conditions:
        result = ask(manifest + deny(f"'{condition}'"), request, claims=claims)
        assert result.decision is not None, condition
        assert "not known" not in result.decision.reason, (condition, result.decision.reason)
        opposite = ask(manifest + deny(f"'({condition}) == false'"), request, claims=claims)
        assert opposite.decision is None, condition


@pytest.mark.parametrize(
    ("expression", "path", "reason"),
    [
        ('request.query_params["z"] == "1"', "/?z=1&%7a=2", "the query parameter `z` is there 2 times"),
        ('request.query_params["z"] == "1"', "/?" + "&".join(["a=1"] * 1001), "more than 1000 parameters"),
        ('request.headers["x-user"] == "a"', "/", "`request.headers[x-user]` is absent"),
        ('request.auth.principal == "a"', "/", "`request.auth.principal` is absent"),
        ('source.principal == "a"', "/", "`source.principal` is absent"),
        (
            'request.headers[request.query_params["k"]] == "a"',
            "/?k=%ff",
            "an entry of `request.headers` is absent",
        ),
        (
            'source.labels[request.query_params["k"]] == "a"',
            "/?k=%ff",
            "an entry of `source.labels` is absent",
        ),
        ('destination.workload.uid == "a"', "/", "`destination.workload.uid` is absent"),
    ],
)
def test_attributes_without_a_value(expression: str, path: str, reason: str) -> None:
    """What is absent or ambiguous has no value, whatever the caller sends."""
    decision = ask(deny(f"'{expression}'"), check_request(path=path)).decision
    assert decision is not None
    assert reason in decision.reason


def test_operators_cannot_lend_identities() -> None:
    """`source.principal` and tokens come from the connection and the token, never from the extensions."""
    request = check_request(extensions={"source.principal": "x", "request.auth.principal": "x"})
    for name in ("source.principal", "source.user", "request.auth.principal"):
        assert ask(deny(f'\'({name} | "nobody") == "nobody"\''), request).decision is not None


def test_a_tcp_call_has_no_request() -> None:
    """Without HTTP, request attributes are absent and the protocol is tcp."""
    request = check_request()
    request.attributes.request.ClearField("http")
    assert (
        ask(deny('\'context.protocol == "tcp" && (request.path | "") == ""\''), request).decision is not None
    )


def test_istios_sample_decides_as_written() -> None:
    """Reviews v3 may not call ratings; v2 may."""
    text = deny(
        '\'destination.labels["app"] == "ratings" && source.labels["app"]=="reviews"'
        ' && source.labels["version"] == "v3"\''
    )
    for version, denied in (("v2", False), ("v3", True)):
        extensions = {
            "destination.labels[app]": "ratings",
            "source.labels[app]": "reviews",
            "source.labels[version]": version,
        }
        assert (ask(text, check_request(extensions=extensions)).decision is not None) is denied


def test_entry_types_are_those_of_the_documents() -> None:
    """A new entry type in one place needs one in the other."""
    assert {one.value for one in EntryType} == {
        "STRINGS",
        "CASE_INSENSITIVE_STRINGS",
        "IP_ADDRESSES",
        "REGEX",
    }
