"""`x-forwarded-client-cert`: Envoy's format, and whom its last element names."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.checks import NOW, check_request, principal
from support.credentials import IDENTIFIED, OPEN, Fixed, authentication, claims_of, good, outcome_of
from support.tokens import Authentication, ed_signer

from authz.authn.forwarded import (
    MAX_HEADER_BYTES,
    CertificateError,
    client_claims,
    format_elements,
    parse_elements,
)
from authz.decision import HeaderAction, HeaderMutation, ReasonCode

GATEWAY = principal("gateway", "edge")
CLIENT = "spiffe://partner.example/ns/shop/sa/app"
# As Envoy 1.40 writes it.
SENT = (
    "By=spiffe://cluster.local/ns/edge/sa/gateway;"
    "Hash=468ed33be74eee6556d90c0149c1309e9ba61d6425303443c0748a02dd8de688;"
    'Subject="CN=Test \\"Client\\",OU=Lyft\\, Inc;L=x"'
    f";URI={CLIENT};DNS=a.example;DNS=b.example"
)


def forwarding(trusted: str = "[cluster.local/ns/edge/sa/gateway]", more: str = "") -> str:
    """Return a document that believes what `trusted` peers forward."""
    return authentication(f"[{{forwardedClientCertificate: {{trustedPeers: {trusted}}}{more}}}]")


def test_an_element_is_read_as_envoy_writes_it() -> None:
    """Keys in their order, quotes undone, a backslash that is not before a quote kept."""
    assert parse_elements(SENT) == [
        (
            ("By", "spiffe://cluster.local/ns/edge/sa/gateway"),
            ("Hash", "468ed33be74eee6556d90c0149c1309e9ba61d6425303443c0748a02dd8de688"),
            ("Subject", 'CN=Test "Client",OU=Lyft\\, Inc;L=x'),
            ("URI", CLIENT),
            ("DNS", "a.example"),
            ("DNS", "b.example"),
        )
    ]


def test_claims_name_the_client() -> None:
    """The URI is `sub`; the rest comes along."""
    assert client_claims(SENT) == {
        "by": ["spiffe://cluster.local/ns/edge/sa/gateway"],
        "dns": ["a.example", "b.example"],
        "uri": CLIENT,
        "subject": 'CN=Test "Client",OU=Lyft\\, Inc;L=x',
        "hash": "468ed33be74eee6556d90c0149c1309e9ba61d6425303443c0748a02dd8de688",
        "sub": CLIENT,
    }


@pytest.mark.parametrize(
    ("text", "sub"),
    [
        (f"URI={CLIENT}", CLIENT),
        (f'uri="{CLIENT}"', CLIENT),
        ('URI=;Subject="CN=a"', "CN=a"),
        ('Subject="CN=a";DNS=x.example', "CN=a"),
        ('Hash=1;Subject="";DNS=x.example', "x.example"),
        (f"URI=spiffe://td/evil,URI={CLIENT}", CLIENT),
        (f"Hash=1;Future=x;URI={CLIENT}", CLIENT),
        (f"By=a;By=b;URI={CLIENT}", CLIENT),
    ],
)
def test_the_last_element_names_the_client(text: str, sub: str) -> None:
    """Of it the URI, else the subject, else the only DNS name; what others appended before does not count."""
    assert client_claims(text)["sub"] == sub


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        ",",
        "URI",
        "=x",
        "URI=spiffe://td/a,",
        ",URI=spiffe://td/a",
        "URI=spiffe://td/a;",
        "URI=spiffe://td/a;;Hash=1",
        'Subject="CN=a',
        'Subject="CN=a\\"',
        'Subject="CN=a"x',
        'Subject=CN="a"',
        "Subject=CN=a",
        "U RI=spiffe://td/a",
        "\u00dcRI=spiffe://td/a",
        "Hash=1",
        "Hash=1;Hash=1;URI=spiffe://td/a",
        'Subject="CN=a";Subject="CN=b"',
        "URI=spiffe://td/a;URI=spiffe://td/b",
        "URI=spiffe://td/a;uri=spiffe://td/a",
        "URI=https://td/a",
        "URI=spiffe://TD/a",
        "URI=spiffe://td/../a",
        "URI=spiffe://td",
        "URI=spiffe://td/a?x",
        'URI="spiffe://td/a,spiffe://td/b"',
        'Subject="spiffe://td/a"',
        "DNS=a.example;DNS=b.example",
        "DNS=spiffe://td/a",
        "URI=spiffe://td/a\x00",
        "Hash=" + "a" * MAX_HEADER_BYTES,
    ],
    ids=repr,
)
def test_what_does_not_name_one_client_is_refused(text: str) -> None:
    """Malformed, ambiguous, or a URI that is no SPIFFE ID: nothing of it is repeated."""
    with pytest.raises(CertificateError) as caught:
        client_claims(text)
    assert "td/" not in str(caught.value)


_KEYS = st.sampled_from(["By", "Hash", "Cert", "Chain", "Subject", "URI", "DNS"])
_ELEMENTS = st.lists(
    st.lists(
        st.tuples(_KEYS, st.text(max_size=20).filter(lambda text: not text.endswith("\\"))),
        min_size=1,
        max_size=4,
    ).map(tuple),
    min_size=1,
    max_size=3,
)


@given(_ELEMENTS)
def test_what_is_written_is_read_again(elements: list[Any]) -> None:
    """Every value, whatever characters it has; a backslash before a quote cannot be told from an escape."""
    clean = [tuple((key, value.replace('\\"', '"')) for key, value in element) for element in elements]
    assert parse_elements(format_elements(clean)) == clean


@given(st.text(st.sampled_from('ByURIHash=;,"\\ spife:/td.a'), max_size=60) | st.text(max_size=60))
def test_no_text_is_more_than_refused(text: str) -> None:
    """Parsing ends with an answer or with the one error, and an answer names somebody."""
    with contextlib.suppress(CertificateError):
        assert client_claims(text)["sub"]


# ------------------------------------------------------------------------------------------------- decisions


def test_a_trusted_peers_word_counts() -> None:
    """The client behind it has an identity, with the method's issuer; the header goes no further."""
    text = forwarding() + IDENTIFIED
    call = check_request(source=GATEWAY, headers={"x-forwarded-client-cert": SENT})
    claims = claims_of(text, call)
    assert claims is not None
    assert (claims["iss"], claims["sub"]) == ("default/clients/certificate", CLIENT)
    removal = HeaderMutation("x-forwarded-client-cert", action=HeaderAction.REMOVE)
    assert outcome_of(text, call).mutations.request_headers == (removal,)
    kept = forwarding(more=", forward: true") + IDENTIFIED
    assert outcome_of(kept, call).mutations.request_headers == ()


@pytest.mark.parametrize(
    "source", ["", principal("gateway"), "CN=gateway", principal("gateway", "edge", "other.example")]
)
def test_anybody_elses_word_is_nothing_and_is_removed(source: str) -> None:
    """A forged header is no identity here, and none for the upstream, even where it is to be forwarded."""
    call = check_request(source=source, headers={"x-forwarded-client-cert": SENT})
    for more in ("", ", forward: true"):
        text = forwarding(more=more)
        assert outcome_of(text + IDENTIFIED, call).decision.code is ReasonCode.NO_POLICY_MATCHED
        outcome = outcome_of(text + OPEN, call)
        assert outcome.decision.allowed
        removal = HeaderMutation("x-forwarded-client-cert", action=HeaderAction.REMOVE)
        assert outcome.mutations.request_headers == (removal,)


def test_a_forged_header_is_removed_beside_another_credential() -> None:
    """Also if that one is to be forwarded."""
    method = "{forwardedClientCertificate: {trustedPeers: [cluster.local/ns/edge/sa/gateway]}}"
    removal = HeaderMutation("x-forwarded-client-cert", action=HeaderAction.REMOVE)
    call = check_request(headers={"x-forwarded-client-cert": SENT, "x-api-key": "k"})
    keys = {"keys": Fixed({"k": good("alice")})}
    for forward in ("true", "false"):
        text = authentication(f"[{method}, {{authenticator: keys, forward: {forward}}}]") + IDENTIFIED
        assert removal in outcome_of(text, call, keys).mutations.request_headers


def test_a_certificate_and_a_key_are_two_credentials() -> None:
    """Both good, and still it would be a guess who calls."""
    method = "{forwardedClientCertificate: {trustedPeers: [cluster.local/ns/edge/sa/gateway]}}"
    keys = {"keys": Fixed({"k": good("alice")})}
    for methods in (f"[{method}, {{authenticator: keys}}]", f"[{{authenticator: keys}}, {method}]"):
        call = check_request(source=GATEWAY, headers={"x-forwarded-client-cert": SENT, "x-api-key": "k"})
        decision = outcome_of(authentication(methods) + OPEN, call, keys).decision
        assert (decision.code, decision.http_status) == (ReasonCode.INVALID_CREDENTIAL, 401)


def test_a_forged_header_is_removed_beside_a_token() -> None:
    """And the token is, as without it."""
    signer = ed_signer()
    token = signer.token({"iss": "https://issuer.example", "sub": "alice", "exp": NOW + 60})
    call = check_request(headers={"x-forwarded-client-cert": SENT, "authorization": f"Bearer {token}"})
    outcome = outcome_of(str(Authentication(signer.jwks())) + forwarding() + IDENTIFIED, call)
    assert outcome.decision.allowed
    names = sorted(one.name for one in outcome.mutations.request_headers)
    assert names == ["authorization", "x-forwarded-client-cert"]


def test_a_malformed_header_of_a_trusted_peer_is_refused() -> None:
    """It is there, and it is bad."""
    call = check_request(
        source=GATEWAY, headers={"x-forwarded-client-cert": "URI=spiffe://td/a;URI=spiffe://td/b"}
    )
    decision = outcome_of(forwarding() + OPEN, call).decision
    assert (decision.code, decision.http_status) == (ReasonCode.INVALID_CREDENTIAL, 401)
    assert decision.reason == "forwarded certificate: the certificate has more than one URI"


def test_trusted_peers_are_patterns_of_principals() -> None:
    """With a star at an end, and our trust domain for each of ours."""
    call = check_request(source=GATEWAY, headers={"x-forwarded-client-cert": SENT})
    for trusted, allowed in (
        ("[cluster.local/ns/edge/*]", True),
        ("['*/sa/gateway']", True),
        ("[cluster.local/ns/other/*]", False),
    ):
        assert outcome_of(forwarding(trusted) + IDENTIFIED, call).decision.allowed is allowed, trusted


def test_a_required_certificate_has_no_challenge() -> None:
    """No header can ask for one."""
    text = authentication(
        "[{forwardedClientCertificate: {trustedPeers: [cluster.local/ns/edge/*]}}]", required=True
    )
    decision = outcome_of(text + OPEN, check_request(source=GATEWAY)).decision
    assert (decision.http_status, decision.challenge) == (401, "")


def test_lines_of_the_header_are_one_list() -> None:
    """With `encode_raw_headers`, the last line has the last element."""
    lines = [
        ("x-forwarded-client-cert", b"URI=spiffe://td/first"),
        ("x-forwarded-client-cert", SENT.encode()),
    ]
    claims = claims_of(forwarding() + IDENTIFIED, check_request(source=GATEWAY, raw_headers=lines))
    assert claims is not None
    assert claims["sub"] == CLIENT


def test_the_first_document_that_trusts_the_peer_has_the_header() -> None:
    """Two documents for one destination are not two credentials."""
    text = (
        forwarding("[cluster.local/ns/none/*]").replace("name: clients", "name: a")
        + forwarding().replace("name: clients", "name: b")
        + forwarding().replace("name: clients", "name: c")
        + IDENTIFIED
    )
    claims = claims_of(text, check_request(source=GATEWAY, headers={"x-forwarded-client-cert": SENT}))
    assert claims is not None
    assert claims["iss"] == "default/b/certificate"
