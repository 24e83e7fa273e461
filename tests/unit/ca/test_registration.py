"""Registrations are parsed strictly: what could never match, or in two ways, is none."""

from __future__ import annotations

from datetime import timedelta

import pytest

from ca.registration import Registration, Selector, SelectorKind

WEB = "spiffe://td/web"


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("unix:uid:0", SelectorKind.UNIX_UID, "0"),
        ("unix:gid:4294967294", SelectorKind.UNIX_GID, "4294967294"),
        ("unix:path:/usr/bin/a b:c", SelectorKind.UNIX_PATH, "/usr/bin/a b:c"),
        ("k8s:ns:default", SelectorKind.K8S_NAMESPACE, "default"),
        ("k8s:sa:web.v1", SelectorKind.K8S_SERVICE_ACCOUNT, "web.v1"),
        ("jwt:iss:https://issuer.test/", SelectorKind.JWT_ISSUER, "https://issuer.test/"),
        ("jwt:sub:repo:a/b", SelectorKind.JWT_SUBJECT, "repo:a/b"),
        ("jwt:claim:email=a=b", SelectorKind.JWT_CLAIM, "email=a=b"),
        ("x509:id:spiffe://td/node", SelectorKind.X509_ID, "spiffe://td/node"),
        ("join_token:id:0123456789abcdef", SelectorKind.JOIN_TOKEN, "0123456789abcdef"),
    ],
)
def test_selectors_parse(text: str, kind: SelectorKind, value: str) -> None:
    """A selector is its kind and its value, and prints as it was written."""
    selector = Selector.parse(text)
    assert (selector.kind, selector.value, str(selector)) == (kind, value, text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "unix:uid",
        "unix:uid:",
        "unix:uid:01",
        "unix:uid:+1",
        "unix:uid:-1",
        "unix:uid:1 ",
        "unix:uid:１",  # noqa: RUF001 - a full-width digit is what is refused
        "unix:uid:4294967295",
        "unix:uid:root",
        "UNIX:uid:1",
        "unix:path:envoy",
        "unix:path:",
        "unix:path://bin/envoy",
        "unix:path:/bin/../envoy",
        "unix:path:/bin/./envoy",
        "unix:path:/bin/envoy/",
        "unix:sha256:00",
        "k8s:ns:Default",
        "k8s:ns:a.b",
        f"k8s:ns:{'a' * 64}",
        "k8s:sa:a..b",
        f"k8s:sa:{'a.' * 127}a",
        "k8s:pod:web",
        "jwt:iss:",
        "jwt:sub:a\n",
        "jwt:claim:email",
        "jwt:claim:=a",
        "x509:id:spiffe://td",
        "x509:id:td/node",
        "join_token:id:0123456789ABCDEF",
        f"jwt:sub:{'a' * 5000}",
    ],
)
def test_what_is_no_selector(text: str) -> None:
    """Anything that could never match, or in two ways, is refused."""
    with pytest.raises(ValueError, match="selector"):
        Selector.parse(text)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"selectors": []}, "no selectors"),
        ({"spiffe_id": "spiffe://td"}, "no path"),
        ({"spiffe_id": "td/web"}, "does not start"),
        ({"svid_ttl": timedelta(hours=25)}, "the TTL"),
        ({"svid_ttl": timedelta(0)}, "the TTL"),
        ({"dns_names": ["*.web"]}, "DNS name"),
        ({"parent_id": "spiffe://other/agent"}, "the parent"),
        ({"parent_id": "spiffe://td"}, "the parent"),
        ({"federates_with": ["partner.test", "td"]}, "its own trust domain"),
        ({"federates_with": ["Partner"]}, "trust domain"),
        ({"hint": "a\nb"}, "a hint"),
        ({"hint": "a" * 1025}, "a hint"),
    ],
)
def test_what_cannot_be_registered(changed: dict[str, object], message: str) -> None:
    """What the CA would refuse later, or what is nobody's, is refused when it is written down."""
    arguments = {"spiffe_id": WEB, "selectors": ["unix:uid:1"], **changed}
    with pytest.raises(ValueError, match=message):
        Registration.parse(**arguments)  # type: ignore[arg-type]
