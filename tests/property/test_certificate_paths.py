"""Paths of Ed25519 keys against the library's verifier, which judges the same chains with P-256 keys.

What is accepted here, the library accepts with other keys; what the library accepts, is accepted here unless it
is one of the few things that an SVID has no use for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID as Purpose
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from hypothesis import given, settings
from hypothesis import strategies as st
from support.peer_certificates import BOTH, encoded, uri, usage

from authz.authn.certificates import CertificateVerifier, TrustBundle
from garrison.certificate_paths import PathError, find_path
from garrison.identity import SpiffeId

AT = datetime(2030, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
A = SpiffeId.parse("spiffe://td.example/a")
EC_KEYS = [ec.generate_private_key(ec.SECP256R1()) for _ in range(5)]
ED_KEYS = [Ed25519PrivateKey.generate() for _ in range(5)]
LEAF_KEY = ec.generate_private_key(ec.SECP256R1())
STRANGER = 4
UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4.5"), b"\x05\x00")


@dataclass(frozen=True)
class Link:
    """A certificate of a chain; as it stands, it is in order."""

    times: tuple[int, int] = (-1, 1)  # hours from now
    is_ca: bool | None = True
    basic_is_critical: bool = True
    path_length: int | None = None
    usages: tuple[str, ...] | None = ("key_cert_sign", "crl_sign")
    usage_is_critical: bool = True
    purposes: tuple[x509.ObjectIdentifier, ...] | None = None
    authority_key: str = "right"
    subject_key: str = "right"
    issuer_name: str = "right"
    signed_by: str = "right"
    unknown: bool | None = None  # is it critical
    constraints: bool | None = None
    self_issued: bool = False  # has the name of its issuer


GOOD = Link()
CHANGES: dict[str, list[Any]] = {
    "times": [(-2, -1), (1, 2), (-1, 0), (0, 1)],
    "is_ca": [False, None],
    "basic_is_critical": [False],
    "path_length": [0, 1, 2],
    "usages": [None, ("crl_sign",), ("digital_signature",), ("key_cert_sign",)],
    "usage_is_critical": [False],
    "purposes": [(Purpose.CLIENT_AUTH,), (Purpose.SERVER_AUTH,), (Purpose.ANY_EXTENDED_KEY_USAGE,), BOTH],
    "authority_key": ["other", "missing"],
    "subject_key": ["other", "missing"],
    "issuer_name": ["other", "empty"],
    "signed_by": ["other"],
    "unknown": [False, True],
    "constraints": [False, True],
    "self_issued": [True],
}


@st.composite
def links(draw: st.DrawFn) -> Link:
    """Draw a certificate of a CA with at most two things about it that are not as usual."""
    fields = draw(st.lists(st.sampled_from(sorted(CHANGES)), max_size=2, unique=True))
    return Link(**{name: draw(st.sampled_from(CHANGES[name])) for name in fields})


LEAVES = st.builds(
    Link,
    times=st.sampled_from([(-1, 1), (-1, 1), (-1, 1), *CHANGES["times"]]),
    authority_key=st.sampled_from(["right"] * 4 + ["other", "missing"]),
    issuer_name=st.sampled_from(["right"] * 4 + ["other"]),
    signed_by=st.sampled_from(["right"] * 4 + ["other"]),
    unknown=st.sampled_from([None, None, False, True]),
    constraints=st.none(),
)
CHAINS = st.tuples(st.lists(links(), min_size=1, max_size=3), LEAVES)


def name(text: str) -> x509.Name:
    """Return a subject."""
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)] if text else [])


def build(chain: list[Link], leaf: Link, keys: list[Any]) -> list[x509.Certificate]:
    """Return the certificates of a chain, the root first; keys repeat themselves for nobody."""
    found: list[x509.Certificate] = []
    subjects = [""] * len(chain)
    for number, link in enumerate([*chain, leaf]):
        is_leaf, above = number == len(chain), max(number - 1, 0)
        key = LEAF_KEY if is_leaf else keys[number]
        if not is_leaf:
            own = f"CA {number}"
            subjects[number] = subjects[above] if link.self_issued and number else own
        issuer = {"right": subjects[above], "other": "nobody", "empty": ""}[link.issuer_name]
        # A root names itself, or it is none.
        issuer = issuer if number else subjects[0]
        signing = keys[STRANGER if link.signed_by == "other" else above]
        builder = (
            x509.CertificateBuilder()
            .subject_name(name("" if is_leaf else subjects[number]))
            .issuer_name(name(issuer))
            .public_key(key.public_key())
            .serial_number(number + 1)
            .not_valid_before(AT + link.times[0] * HOUR)
            .not_valid_after(AT + link.times[1] * HOUR)
        )
        for extension, critical in extensions(link, key, keys[above], keys[STRANGER], is_leaf=is_leaf):
            builder = builder.add_extension(extension, critical)
        is_ed25519 = isinstance(signing, Ed25519PrivateKey)
        found.append(builder.sign(signing, None if is_ed25519 else hashes.SHA256()))
    return found


def extensions(
    link: Link, key: Any, issuer: Any, stranger: Any, *, is_leaf: bool
) -> list[tuple[x509.ExtensionType, bool]]:
    """Return what a certificate holds, and whether that is critical."""
    found: list[tuple[x509.ExtensionType, bool]] = []
    if is_leaf:
        found.append((x509.SubjectAlternativeName([uri(str(A))]), True))
        found.append((x509.BasicConstraints(ca=False, path_length=None), True))
        found.append((usage("digital_signature"), True))
        found.append((x509.ExtendedKeyUsage(BOTH), False))
    elif link.is_ca is not None:
        length = link.path_length if link.is_ca else None
        found.append((x509.BasicConstraints(ca=link.is_ca, path_length=length), link.basic_is_critical))
    if not is_leaf and link.usages is not None:
        found.append((usage(*link.usages), link.usage_is_critical))
    if not is_leaf and link.purposes is not None:
        found.append((x509.ExtendedKeyUsage(link.purposes), False))
    named = {"right": issuer, "other": stranger}.get(link.authority_key)
    if named is not None:
        found.append((x509.AuthorityKeyIdentifier.from_issuer_public_key(named.public_key()), False))
    own = {"right": key, "other": stranger}.get(link.subject_key)
    if own is not None:
        found.append((x509.SubjectKeyIdentifier.from_public_key(own.public_key()), False))
    if link.unknown is not None:
        found.append((UNKNOWN, link.unknown))
    if link.constraints is not None:
        found.append((x509.NameConstraints([x509.DNSName("td.example")], None), link.constraints))
    return found


def library(certificates: list[x509.Certificate]) -> bool:
    """Return whether the library accepts a chain, given root first."""
    root, *others, leaf = certificates
    verifier = PolicyBuilder().store(Store([root])).time(AT).build_client_verifier()
    try:
        verifier.verify(leaf, others)
    except VerificationError:
        return False
    return True


def ours(certificates: list[x509.Certificate]) -> bool:
    """Return whether there is a path."""
    root, *others, leaf = certificates
    try:
        path = find_path(leaf, others, [root], AT, purpose=Purpose.CLIENT_AUTH)
    except PathError:
        return False
    return path == (leaf, *reversed(others), root)


def peer(certificates: list[x509.Certificate]) -> bool:
    """Return whether a peer proves its identity with such a chain."""
    root, *others, leaf = certificates
    verifier = CertificateVerifier({"td.example": TrustBundle((root,), tuple(others))})
    return verifier.problem(encoded(leaf), A, AT.timestamp()) is None


def is_plain(chain: list[Link], leaf: Link) -> bool:
    """Return whether there is nothing in it that is refused here although the library understands it."""
    # The library compares no key identifiers, and asks neither of roots nor for critical key usages.
    return all(
        one.constraints is None
        and one.basic_is_critical
        and one.usage_is_critical
        and one.usages is not None
        and "other" not in {one.authority_key, one.subject_key}
        and one.authority_key != "missing"
        and not one.self_issued  # counts here for path lengths
        for one in (*chain, leaf)
    )


def agree(chain: list[Link], leaf: Link) -> None:
    """Fail where anything is accepted here that the library refuses, or kinds of keys differ."""
    plain, edwards = build(chain, leaf, EC_KEYS), build(chain, leaf, ED_KEYS)
    accepted = ours(plain)
    if accepted:
        assert library(plain)
    elif is_plain(chain, leaf):
        assert not library(plain)
    assert ours(edwards) is peer(edwards) is accepted
    assert not library(edwards)
    assert peer(plain) is library(plain)


@pytest.mark.parametrize("place", [0, 1, 2], ids=["root", "first", "second"])
@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in CHANGES.items() for value in values]
)
def test_each_fault_alone(field: str, value: Any, place: int) -> None:
    """Whatever is wrong, and with which certificate, is found by both; nothing else is."""
    chain = [GOOD] * 3
    assert ours(build(chain, GOOD, ED_KEYS))
    chain[place] = replace(GOOD, **{field: value})
    agree(chain, GOOD)


@settings(max_examples=400, deadline=None)
@given(CHAINS)
def test_what_is_accepted_here_the_library_accepts(drawn: tuple[list[Link], Link]) -> None:
    """With P-256 keys never more is accepted than by the library, and Ed25519 keys differ in nothing."""
    agree(*drawn)
