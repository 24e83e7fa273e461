"""SPIFFE IDs and trust domains are parsed strictly (SPIFFE-ID, section 2)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.identity import SpiffeId, TrustDomain

SEGMENTS = st.from_regex(r"[A-Za-z0-9._-]{1,20}", fullmatch=True).filter(lambda text: text not in {".", ".."})
DOMAINS = st.from_regex(r"[a-z0-9._-]{1,40}", fullmatch=True)


@given(DOMAINS, st.lists(SEGMENTS, max_size=5))
def test_parse_and_format_are_inverse(domain: str, segments: list[str]) -> None:
    """What parses prints as it was written."""
    text = "spiffe://" + "/".join([domain, *segments])
    assert str(SpiffeId.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe://",
        "spiffe:///a",
        "http://td/a",
        "SPIFFE://td/a",
        "spiffe://TD/a",
        "spiffe://td/",
        "spiffe://td//a",
        "spiffe://td/./a",
        "spiffe://td/../admin",
        "spiffe://td/a\n",
        "spiffe://td/a?x=1",
        "spiffe://td/a#f",
        "spiffe://td:80/a",
        "spiffe://u@td/a",
        "spiffe://td/%61",
        "spiffe://td/a,spiffe://td/admin",
        "spiffe://td/a\x00",
        "spiffe://" + "a" * 256,
        "spiffe://td/" + "a" * 2048,
        "O=Lab,CN=alice",
    ],
)
def test_what_is_no_spiffe_id(text: str) -> None:
    """Every deviation from the grammar is refused, never repaired."""
    with pytest.raises(ValueError, match=r"SPIFFE ID|trust domain"):
        SpiffeId.parse(text)


def test_istio_form_gives_namespace_and_service_account() -> None:
    """Only `/ns/<namespace>/sa/<account>` has a namespace and a service account."""
    workload = SpiffeId.workload(TrustDomain("cluster.local"), "default", "web")
    assert (workload.namespace, workload.service_account) == ("default", "web")
    assert workload.principal == "cluster.local/ns/default/sa/web"
    other = SpiffeId.parse("spiffe://cluster.local/ns/default/sa/web/x")
    assert (other.namespace, other.service_account) == (None, None)
