"""Our own walk along a chain, for Ed25519, refuses whatever the library's verifier refuses for other keys."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from support.ca_files import ca_usage

from ca.keys import CaKey, KeyType, new_ca_key, new_private_key, signature_hash
from ca.template import leaf_template
from ca.verification import MAX_CERTIFICATES, verify_chain, verify_svid
from garrison.errors import IssuanceError
from garrison.identity import SpiffeId

NOW = datetime(2030, 1, 2, tzinfo=UTC)
WEB = SpiffeId.parse("spiffe://td/web")
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Signer:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: CaKey


def name(text: str) -> x509.Name:
    """Return a subject."""
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def make(
    subject: str,
    key: CaKey,
    issuer: Signer | None = None,
    *,
    path_length: int | None = None,
    is_ca: bool = True,
    may_sign: bool = True,
    ends: datetime = NOW + DAY,
    starts: datetime = NOW - DAY,
    more: tuple[tuple[x509.ExtensionType, bool], ...] = (),
    signed_with: CaKey | None = None,
) -> Signer:
    """Return a CA certificate with one thing or another wrong."""
    signing = signed_with or (key if issuer is None else issuer.key)
    usage = ca_usage() if may_sign else _signature_only()
    above = key if issuer is None else issuer.key
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(subject) if issuer is None else issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(starts)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=path_length if is_ca else None), True)
        .add_extension(usage, True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(above.public_key()), False)
    )
    for extension, critical in more:
        builder = builder.add_extension(extension, critical)
    return Signer(builder.sign(signing, signature_hash(signing)), key)


def _signature_only() -> x509.KeyUsage:
    usage = ca_usage()
    flags = {flag: getattr(usage, flag) for flag in ("content_commitment", "key_encipherment", "crl_sign")}
    return x509.KeyUsage(
        digital_signature=True,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        encipher_only=False,
        decipher_only=False,
        **flags,
    )


LEAF_KEY = new_private_key()


def leaf(issuer: Signer, *, ends: datetime = NOW + DAY, signed_with: CaKey | None = None) -> x509.Certificate:
    """Return an SVID that `issuer` signed."""
    template = leaf_template(WEB, LEAF_KEY.public_key())
    signing = signed_with or issuer.key
    builder = (
        x509.CertificateBuilder()
        .subject_name(template.subject)
        .issuer_name(issuer.certificate.subject)
        .public_key(LEAF_KEY.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - DAY)
        .not_valid_after(ends)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), False)
    )
    for one in template.extensions:
        builder = builder.add_extension(one.value, one.critical)
    return builder.sign(signing, signature_hash(signing))


UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4.5"), b"\x05\x00")
CONSTRAINTS = x509.NameConstraints([x509.UniformResourceIdentifier("td")], None)


@pytest.mark.parametrize("kind", [KeyType.P256, KeyType.ED25519])
@pytest.mark.parametrize(
    "wrong",
    [
        "nothing",
        "root length",
        "intermediate length",
        "intermediate expired",
        "intermediate too early",
        "intermediate no CA",
        "intermediate may not sign",
        "intermediate of another key",
        "root expired",
        "leaf expired",
        "leaf of another key",
        "no intermediate",
        "unknown critical",
        "unknown",
        "name constraints",
        "other root",
    ],
)
def test_both_verifiers_decide_the_same(kind: KeyType, wrong: str) -> None:
    """Each fault is refused whoever looks, and what is right is accepted."""

    def key() -> CaKey:
        return new_ca_key(kind)

    stranger = key()
    root = make(
        "root",
        key(),
        path_length={"root length": 0}.get(wrong, 2),
        ends=NOW - timedelta(hours=1) if wrong == "root expired" else NOW + DAY,
    )
    first = make(
        "first",
        key(),
        root,
        path_length={"intermediate length": 0}.get(wrong, 1),
        is_ca=wrong != "intermediate no CA",
        may_sign=wrong != "intermediate may not sign",
        starts=NOW + timedelta(hours=1) if wrong == "intermediate too early" else NOW - DAY,
        ends=NOW + 2 * DAY if wrong != "intermediate expired" else NOW - timedelta(hours=1),
        more={
            "unknown critical": ((UNKNOWN, True),),
            "unknown": ((UNKNOWN, False),),
            "name constraints": ((CONSTRAINTS, True),),
        }.get(wrong, ()),
        signed_with=stranger if wrong == "intermediate of another key" else None,
    )
    second = make("second", key(), first, path_length=0)
    svid = leaf(
        second,
        ends=NOW - timedelta(hours=1) if wrong == "leaf expired" else NOW + DAY,
        signed_with=stranger if wrong == "leaf of another key" else None,
    )
    chain = [second.certificate, first.certificate]
    if wrong == "no intermediate":
        chain.pop()
    roots = [make("root", key()).certificate if wrong == "other root" else root.certificate]
    if wrong in {"nothing", "unknown"}:
        assert verify_chain(svid, chain, roots, NOW)[-1] == root.certificate
        assert verify_svid(svid, chain[::-1], roots, NOW)[0] == WEB
    else:
        with pytest.raises(IssuanceError):
            verify_chain(svid, chain, roots, NOW)


def test_a_tangle_of_certificates_ends() -> None:
    """Certificates that all could have issued each other are bounded work, and no chain."""
    key = ed25519.Ed25519PrivateKey.generate()
    same = [make("same", key) for _ in range(MAX_CERTIFICATES)]
    tangle = [one.certificate for one in same]
    other = make("same", ed25519.Ed25519PrivateKey.generate())
    with pytest.raises(IssuanceError):
        verify_chain(leaf(same[0]), tangle, [other.certificate], NOW)
    with pytest.raises(IssuanceError, match="at most"):
        verify_chain(leaf(same[0]), [*tangle, tangle[0]], [other.certificate], NOW)


def test_a_root_of_another_type_is_no_root() -> None:
    """A type of key that we do not sign with is not trusted either, also above Ed25519."""
    weak = make("weak", ec.generate_private_key(ec.SECP521R1()))
    strong = make("strong", ed25519.Ed25519PrivateKey.generate(), weak)
    with pytest.raises(IssuanceError, match="not accepted"):
        verify_chain(leaf(strong), [strong.certificate], [weak.certificate], NOW)
