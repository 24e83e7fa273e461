"""Mixer's rules and lists, for any entries, bodies and calls."""

from __future__ import annotations

import contextlib
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.checks import NOW, check_request

from authz.attributes import Attributes
from authz.destination import destination_from_attributes
from authz.mixer.compile import compile_mixer
from authz.mixer.documents import KINDS
from authz.mixer.evaluate import MixerResult, check
from authz.mixer.lists import (
    EntryList,
    EntryType,
    ListError,
    ListSource,
    ListState,
    build_entries,
    failed,
    in_force,
    parse_body,
    succeeded,
)
from authz.paths import PathNormalization
from authz.policy.documents import Resource
from garrison.documents import Document, parse, validate

V4 = st.integers(0, 2**32 - 1).map(IPv4Address)
V6 = st.integers(0, 2**128 - 1).map(IPv6Address)
V4_NETWORKS = st.tuples(V4, st.integers(0, 32)).map(lambda pair: IPv4Network(pair, strict=False))
V6_NETWORKS = st.tuples(V6, st.integers(0, 128)).map(lambda pair: IPv6Network(pair, strict=False))


@given(st.lists(V4_NETWORKS | V6_NETWORKS, max_size=6), V4 | V6, st.data())
def test_address_lists_equal_a_walk_over_their_networks(
    networks: list[IPv4Network | IPv6Network], address: IPv4Address | IPv6Address, data: st.DataObject
) -> None:
    """An address is on a list exactly when one of the networks holds it."""
    from_list: bool = data.draw(st.booleans())
    if networks and from_list:
        network = data.draw(st.sampled_from(networks))
        address = network[data.draw(st.integers(0, min(network.num_addresses, 2**63) - 1))]
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    plain = [
        ip_network((one.network_address.ipv4_mapped, one.prefixlen - 96))
        if isinstance(one, IPv6Network) and one.network_address.ipv4_mapped and one.prefixlen >= 96
        else one
        for one in networks
    ]
    entries = build_entries(EntryType.IP_ADDRESSES, [str(network) for network in networks])
    assert entries.holds(str(address)) is any(address in network for network in plain)


@given(st.sampled_from(EntryType), st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
@example(EntryType.IP_ADDRESSES, b"whitelist: [[]]")
def test_any_body_is_a_list_or_says_why_not(entry_type: EntryType, body: bytes) -> None:
    """Whatever a provider sends, the outcome is a list or a ListError."""
    with contextlib.suppress(ListError):
        build_entries(entry_type, parse_body(entry_type, body))


EVENTS = st.lists(
    st.tuples(st.floats(0, 400, allow_nan=False), st.sampled_from([b"a\n", b"b\n", b"\xff", None])),
    max_size=12,
)


@given(EVENTS, st.floats(0, 400, allow_nan=False))
def test_the_list_in_force_is_the_last_good_one_or_none(
    events: list[tuple[float, bytes | None]], later: float
) -> None:
    """After any history the list is that of the last good answer, and only for its ttl."""
    source = ListSource("http://x/", EntryType.STRINGS, refresh_seconds=60, ttl_seconds=300)
    state, now = ListState(), 0.0
    good: tuple[float, str] | None = None
    for passed, body in events:
        now += passed
        state = failed(source, state, "down", now) if body is None else succeeded(source, state, body, now)
        if body in {b"a\n", b"b\n"}:
            good = (now, body.decode().strip())
        assert now < state.next_fetch_at <= now + 60
    now += later
    entries = in_force(source, state, now)
    assert (entries is None) is (good is None or now >= good[0] + 300)
    if entries is not None and good is not None:
        assert [one for one in ("a", "b") if entries.holds(one)] == [good[1]]


class NoLists:
    """No list was ever fetched."""

    def current(self, source: ListSource) -> EntryList | None:
        """Return nothing."""
        return None


def ask(match: str, headers: dict[str, str]) -> MixerResult:
    """Return what a denier with `match` says to a call with `headers`."""
    text = f"""
{{kind: denier, metadata: {{name: h}}}}
---
{{kind: checknothing, metadata: {{name: n}}}}
---
kind: rule
metadata: {{name: r}}
spec:
  match: '{match}'
  actions: [{{handler: h.denier, instances: [n.checknothing]}}]
"""
    loaded: list[tuple[Resource, Document]] = []
    for document in parse(text.encode(), "m.yaml")[0]:
        document.data["apiVersion"] = "config.istio.io/v1alpha2"
        resource = validate(KINDS[document.data["apiVersion"], document.data["kind"]], document)
        assert not isinstance(resource, list)
        loaded.append((resource, document))
    policies, problems = compile_mixer(loaded, "istio-system")
    assert policies is not None, problems
    context: Any = check_request(headers=headers).attributes
    destination = destination_from_attributes(context.context_extensions)
    assert destination is not None
    attributes = Attributes(context, PathNormalization.BASE, destination)
    return check(policies.for_destination(destination), attributes, NOW, NoLists())


HEADER = st.sampled_from(['request.headers["a"]', 'request.headers["b"]', 'request.headers["c"]'])
WORD = st.sampled_from(["x", "y", "xy"])
CONDITION = (
    st.builds('{} {} "{}"'.format, HEADER, st.sampled_from(["==", "!=", "<", ">="]), WORD)
    | st.builds('{}.startsWith("{}")'.format, HEADER, WORD)
    | st.builds('match({}, "{}*")'.format, HEADER, WORD)
    | st.builds("({} == {}) == false".format, HEADER, HEADER)
)
MATCH = st.recursive(
    CONDITION,
    lambda inner: (
        st.builds("({} {} {})".format, inner, st.sampled_from(["&&", "||"]), inner)
        | st.builds("conditional({}, {}, {})".format, inner, inner, inner)
    ),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(MATCH, st.dictionaries(st.sampled_from("abc"), WORD), st.sampled_from("abc"))
def test_leaving_out_a_header_never_escapes_a_denial(match: str, headers: dict[str, str], gone: str) -> None:
    """A call that is denied is denied without any of its headers too, unless the policy has a default."""
    if ask(match, headers).decision is not None:
        poorer = {name: value for name, value in headers.items() if name != gone}
        assert ask(match, poorer).decision is not None
