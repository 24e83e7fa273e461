"""What holds for every input of the CA: what it parses, matches, counts and renews."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest
from hypothesis import given, settings
from hypothesis import strategies as st

from ca.api.sds_secrets import NamedSecret
from ca.api.sds_subscription import StateOfTheWorld
from ca.attestation import Registrations, selectors_of
from ca.authority import Hierarchy, Lifetimes, X509Svid
from ca.bundle import (
    SpiffeBundle,
    format_certificates,
    format_spiffe_bundle,
    parse_certificates,
    parse_spiffe_bundle,
)
from ca.csr import parse_csr
from ca.describe import describe_file
from ca.inspection import check_leaf
from ca.issuer import BACKDATE, MAX_TTL, MIN_TTL
from ca.keys import KeyType, PublicKey, new_ca_key, new_private_key, signature_hash
from ca.registration import Registration, Selector
from ca.renewal import MIN_INTERVAL
from ca.svid_cache import HeldSvid, SvidCache
from ca.template import leaf_template
from garrison.errors import IssuanceError, RequestError
from garrison.identity import SpiffeId, TrustDomain
from garrison.transport.unix_peer import PeerCredentials

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
HIERARCHY = Hierarchy.create(TrustDomain("td"), now=NOW)
OTHERS = [Hierarchy.create(TrustDomain("td"), now=NOW).root for _ in range(3)]
AUTHORITY = HIERARCHY.authority()
KEY = new_private_key()

SEGMENT = st.from_regex(r"[A-Za-z0-9._-]{1,20}", fullmatch=True).filter(lambda text: text not in {".", ".."})
WORKLOADS = st.lists(SEGMENT, min_size=1, max_size=5).map(
    lambda segments: SpiffeId(TrustDomain("td"), tuple(segments))
)
LABEL = st.from_regex(r"[a-z]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
DNS_NAMES = st.lists(st.lists(LABEL, min_size=1, max_size=3).map(".".join), max_size=3, unique=True)


LONG_LIVED = {
    kind: Hierarchy.create(
        TrustDomain("td"),
        now=NOW,
        new_private_key=partial(new_ca_key, kind),
        lifetimes=Lifetimes(timedelta(days=30_000), timedelta(days=30_000)),
    ).issuer
    for kind in KeyType
}
LEAF_KEYS = [
    new_private_key().public_key(),
    ec.generate_private_key(ec.SECP384R1()).public_key(),
    rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key(),
]


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from(KeyType),
    key=st.sampled_from(LEAF_KEYS),
    spiffe_id=WORKLOADS,
    dns_names=DNS_NAMES,
    serial=st.integers(1, 2**128 - 1),
    age=st.timedeltas(timedelta(hours=1), timedelta(days=29_000)),
    ttl=st.timedeltas(MIN_TTL, MAX_TTL),
)
def test_what_is_signed_is_byte_for_byte_what_the_library_would_write(
    *,
    kind: KeyType,
    key: PublicKey,
    spiffe_id: SpiffeId,
    dns_names: list[str],
    serial: int,
    age: timedelta,
    ttl: timedelta,
) -> None:
    """Whatever the keys, names, numbers and times are: UTCTime and GeneralizedTime, short and long lengths."""
    issuer, now = LONG_LIVED[kind], NOW + age
    made = issuer.issue(spiffe_id, key, now=now, ttl=ttl, serial=serial, dns_names=dns_names).certificate
    template = leaf_template(spiffe_id, key, dns_names)
    builder = (
        x509.CertificateBuilder()
        .issuer_name(issuer.certificate.subject)
        .subject_name(x509.Name([]))
        .public_key(key)
        .serial_number(serial)
        .not_valid_before((now - BACKDATE).replace(microsecond=0))
        .not_valid_after((now + ttl).replace(microsecond=0))
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False
        )
    )
    for one in template.extensions:
        builder = builder.add_extension(one.value, critical=one.critical)
    expected = builder.sign(issuer.key, signature_hash(issuer.key))
    assert made.tbs_certificate_bytes == expected.tbs_certificate_bytes
    assert made.signature_algorithm_oid == expected.signature_algorithm_oid
    assert made.extensions.get_extension_for_class(
        x509.SubjectKeyIdentifier
    ).value == x509.SubjectKeyIdentifier.from_public_key(key)
    made.verify_directly_issued_by(issuer.certificate)


@settings(max_examples=50, deadline=None)
@given(
    WORKLOADS,
    DNS_NAMES,
    st.integers(min_value=1, max_value=2**128 - 1),
    st.timedeltas(min_value=MIN_TTL, max_value=MAX_TTL),
    st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=1824)),
)
def test_an_svid_says_what_was_asked(
    spiffe_id: SpiffeId, dns_names: list[str], serial: int, ttl: timedelta, age: timedelta
) -> None:
    """Whatever is issued names who was meant, and is valid from a little before now to TTL after it."""
    now = NOW + age
    leaf = HIERARCHY.issuer.issue(
        spiffe_id, KEY.public_key(), now=now, ttl=ttl, serial=serial, dns_names=dns_names
    ).certificate
    assert check_leaf(leaf) == spiffe_id
    assert leaf.serial_number == serial
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == dns_names
    assert now - BACKDATE - timedelta(seconds=1) <= leaf.not_valid_before_utc <= now
    assert timedelta(0) <= now + ttl - leaf.not_valid_after_utc < timedelta(seconds=1)


@given(st.binary(max_size=300))
def test_any_bytes_as_a_request_are_refused_in_our_words(data: bytes) -> None:
    """Nothing but a foreseen error comes out of the parser."""
    for text in (
        data,
        b"-----BEGIN CERTIFICATE REQUEST-----\n" + data + b"\n-----END CERTIFICATE REQUEST-----\n",
    ):
        try:
            parse_csr(text)
        except (RequestError, IssuanceError):
            continue
        raise AssertionError(text)


def _refusal(parse: Callable[[bytes], object], data: bytes) -> None:
    with contextlib.suppress(ValueError):
        parse(data)


@given(st.binary(max_size=300), st.integers(min_value=0), st.integers(min_value=0, max_value=255))
def test_damaged_files_are_refused_in_our_words(data: bytes, position: int, value: int) -> None:
    """Certificates, bundles and anything to be shown either parse or are a ValueError."""
    pem = bytearray(format_certificates([HIERARCHY.root]))
    pem[position % len(pem)] = value
    bundle = bytearray(format_spiffe_bundle(SpiffeBundle((HIERARCHY.root,))).encode())
    bundle[position % len(bundle)] = value
    for text in (data, bytes(pem), bytes(bundle)):
        for parse in (parse_certificates, parse_spiffe_bundle, describe_file):
            _refusal(parse, text)


def test_a_version_that_does_not_exist_is_refused_in_our_words() -> None:
    """The library has an error of its own for it, in certificates and in signing requests."""
    der = HIERARCHY.root.public_bytes(Encoding.DER)
    changed = base64.encodebytes(der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x05", 1))
    pem = b"-----BEGIN CERTIFICATE-----\n" + changed + b"-----END CERTIFICATE-----\n"
    bundle = json.dumps({"keys": [{"use": "x509-svid", "x5c": [changed.replace(b"\n", b"").decode()]}]})
    with pytest.raises(ValueError, match="malformed"):
        parse_certificates(pem)
    with pytest.raises(ValueError, match="not a SPIFFE bundle"):
        parse_spiffe_bundle(bundle)
    with pytest.raises(ValueError, match="cannot be read"):
        describe_file(pem)
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    request = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    der = request.public_bytes(Encoding.DER)
    changed = base64.encodebytes(der.replace(b"\x02\x01\x00", b"\x02\x01\x05", 1))
    pem = b"-----BEGIN CERTIFICATE REQUEST-----\n" + changed + b"-----END CERTIFICATE REQUEST-----\n"
    with pytest.raises(RequestError, match="malformed"):
        parse_csr(pem)


@given(st.lists(st.sampled_from([HIERARCHY.root, *OTHERS]), min_size=1, max_size=4))
def test_bundles_round_trip(roots: list[x509.Certificate]) -> None:
    """Roots in PEM read back as they were written."""
    assert parse_certificates(format_certificates(roots)) == tuple(roots)


PEERS = st.builds(
    PeerCredentials,
    pid=st.just(1),
    uid=st.integers(0, 2),
    gid=st.integers(0, 2),
    path=st.sampled_from(["/a", "/b", None]),
)
SELECTORS = st.sampled_from(
    [f"unix:{kind}:{number}" for kind in ("uid", "gid") for number in range(3)]
    + ["unix:path:/a", "unix:path:/b"]
).map(Selector.parse)
REGISTRATIONS = st.lists(
    st.builds(
        Registration,
        spiffe_id=st.sampled_from([SpiffeId.parse(f"spiffe://td/{name}") for name in "abc"]),
        selectors=st.lists(SELECTORS, min_size=1, max_size=3).map(tuple),
    ),
    max_size=6,
)


def _meets(peer: PeerCredentials, selector: Selector) -> bool:
    kind = selector.kind.value
    truth = {"unix:uid": str(peer.uid), "unix:gid": str(peer.gid), "unix:path": peer.path}[kind]
    return truth == selector.value


@given(REGISTRATIONS, PEERS)
def test_entitlement_is_the_plain_reading(registrations: list[Registration], peer: PeerCredentials) -> None:
    """A caller has exactly the identities of which some registration is met in every selector."""
    expected = {
        registration.spiffe_id
        for registration in registrations
        if all(_meets(peer, selector) for selector in registration.selectors)
    }
    found = Registrations(registrations).entitled(selectors_of(peer))
    assert {registration.spiffe_id for registration in found} == expected
    assert len(found) == len(expected)


@given(REGISTRATIONS, PEERS, SELECTORS)
def test_one_more_selector_never_entitles_more(
    registrations: list[Registration], peer: PeerCredentials, extra: Selector
) -> None:
    """Selectors only narrow."""
    narrowed = [
        Registration(registration.spiffe_id, (*registration.selectors, extra))
        for registration in registrations
    ]
    proven = selectors_of(peer)
    before = {registration.spiffe_id for registration in Registrations(registrations).entitled(proven)}
    after = {registration.spiffe_id for registration in Registrations(narrowed).entitled(proven)}
    assert after <= before


AGENTS = st.sampled_from([None, *(SpiffeId.parse(f"spiffe://td/{name}") for name in ("agent", "a"))])


@given(
    st.lists(
        st.builds(
            Registration,
            spiffe_id=st.sampled_from([SpiffeId.parse(f"spiffe://td/{name}") for name in "abc"]),
            selectors=st.lists(SELECTORS, min_size=1, max_size=4).map(tuple),
            parent_id=AGENTS,
            hint=st.sampled_from(["", "x"]),
        ),
        max_size=12,
    ),
    st.frozensets(SELECTORS),
    AGENTS,
)
def test_what_is_found_is_what_a_walk_over_all_would_find(
    registrations: list[Registration], proven: frozenset[Selector], agent: SpiffeId | None
) -> None:
    """The same registrations in the same order, whoever has proved whatever, and those that come directly."""
    expected: dict[SpiffeId, Registration] = {}
    direct: dict[SpiffeId, Registration] = {}
    for one in registrations:
        if one.parent_id == agent and all(selector in proven for selector in one.selectors):
            expected.setdefault(one.spiffe_id, one)
        if one.parent_id is None:
            direct.setdefault(one.spiffe_id, one)
    found = Registrations(registrations)
    assert found.entitled(proven, agent) == tuple(expected.values())
    assert {one.spiffe_id: found.direct(one.spiffe_id) for one in registrations} == {
        one.spiffe_id: direct.get(one.spiffe_id) for one in registrations
    }
    assert tuple(found) == tuple(registrations)


@settings(max_examples=30, deadline=None)
@given(
    st.timedeltas(min_value=timedelta(minutes=1), max_value=MAX_TTL),
    st.floats(min_value=0, max_value=1, exclude_max=True),
    st.lists(st.timedeltas(min_value=timedelta(0), max_value=timedelta(hours=2)), max_size=5),
)
def test_renewal_leaves_time_and_happens_once(ttl: timedelta, random: float, steps: list[timedelta]) -> None:
    """An SVID is due between 45 and 55 percent of its life; renewed then, it is valid and not due again."""
    registration = Registration.parse("spiffe://td/a", ["unix:uid:1"], ttl)
    cache = SvidCache(random=lambda: random, new_key=lambda: KEY)

    async def issue(one: Registration, public_key: PublicKey, now: datetime) -> X509Svid:
        return AUTHORITY.issue(one.spiffe_id, public_key, now=now, ttl=one.svid_ttl)

    def get(now: datetime) -> HeldSvid:
        return asyncio.run(cache.get(registration, now, issue))

    now = NOW
    held = get(now)
    for step in [timedelta(0), *steps]:
        share = (held.renew_at - now) / (held.svid.not_after - now)
        assert 0.44 < share < 0.56
        now += step
        due = now >= held.renew_at
        found = get(now)
        assert (found is not held) == due
        if not due:
            now -= step
            continue
        held = found
        assert now + MIN_INTERVAL <= held.renew_at < held.svid.not_after
        assert get(now) is held


NAMES = st.lists(st.sampled_from(["a", "b", "c"]), max_size=3)


@given(
    NAMES.filter(bool), st.lists(st.tuples(NAMES, st.sampled_from(["none", "last", "old"]), st.booleans()))
)
def test_every_wanted_name_is_answered_and_no_answer_repeats(
    first: list[str], later: list[tuple[list[str], str, bool]]
) -> None:
    """A current request is answered if and only if it adds a name; then the answer holds all of its names."""
    subscription = StateOfTheWorld()
    sent = 0
    wanted: set[str] = set()
    for names, nonce, refused in [(first, "none", False), *later]:
        request = DiscoveryRequest(
            resource_names=names,
            response_nonce={"none": "", "last": str(sent), "old": str(sent - 1)}[nonce],
        )
        if refused:
            request.error_detail.message = "no"
        received = subscription.receive(request)
        stale = nonce == "old"
        if stale or set(names) <= wanted:
            assert received.answer == ()
        else:
            assert set(received.answer) == set(names)
            answered = [NamedSecret(name, "1", Secret(name=name)) for name in received.answer]
            sent += 1
            assert subscription.respond(answered).nonce == str(sent)
        assert received.refusal == ("no" if refused and not stale else None)
        wanted = wanted if stale else set(names)
        assert set(subscription.names) == wanted
