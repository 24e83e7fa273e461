"""What the CA signs is an X509-SVID by the standard, or nothing."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from ca.authority import Authority, Hierarchy
from ca.bundle import format_certificates
from ca.inspection import check_key_pair, check_leaf, check_signed, check_signing
from ca.issuer import BACKDATE, MAX_TTL, Issuer
from ca.keys import check_public_key, new_private_key
from ca.template import Signatory, Stamp, Template, ca_template, check_dns_name, leaf_template
from garrison.errors import IssuanceError
from garrison.identity import SpiffeId, TrustDomain

WEB = SpiffeId.parse("spiffe://cluster.local/ns/default/sa/web")
KEY = new_private_key()
HOUR = timedelta(hours=1)


def issue(issuer: Issuer, now: datetime, spiffe_id: SpiffeId = WEB, **changed: object) -> x509.Certificate:
    """Issue a leaf with everything ordinary but what is `changed`."""
    arguments = {"ttl": HOUR, "serial": 7, **changed}
    return issuer.issue(spiffe_id, KEY.public_key(), now=now, **arguments).certificate  # type: ignore[arg-type]


def test_leaf_follows_the_profile(hierarchy: Hierarchy, now: datetime) -> None:
    """A leaf has the registered ID, both usages, no CA right, and critical flags where the standard has them."""
    leaf = issue(hierarchy.issuer, now, dns_names=["web.default", "web"])
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.critical
    assert names.value.get_values_for_type(x509.UniformResourceIdentifier) == [str(WEB)]
    assert names.value.get_values_for_type(x509.DNSName) == ["web.default", "web"]
    assert leaf.subject == x509.Name([])
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_encipherment
    basic = leaf.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basic.critical, basic.value.ca) == (True, False)
    extended = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(extended) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    authority_key = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    issuer_key = hierarchy.issuer.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    assert authority_key.key_identifier == issuer_key.value.digest
    assert leaf.serial_number == 7
    assert leaf.version is x509.Version.v3


def test_ca_certificates_follow_the_profile(hierarchy: Hierarchy) -> None:
    """Both CA certificates name the trust domain only, may only sign, and limit what stands below them."""
    root, intermediate = hierarchy.root, hierarchy.issuer.certificate
    for certificate, path_length in ((root, 1), (intermediate, 0)):
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, path_length)
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
        assert (usage.critical, usage.value.key_cert_sign, usage.value.digital_signature) == (
            True,
            True,
            False,
        )
        assert check_signing(certificate) == TrustDomain("cluster.local")
        assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    assert root.subject != intermediate.subject
    assert root.issuer == root.subject
    assert intermediate.issuer == root.subject


def test_two_cas_of_one_domain_have_different_subjects(hierarchy: Hierarchy, now: datetime) -> None:
    """A verifier that finds issuers by subject never meets two keys under one name."""
    other = Hierarchy.create(TrustDomain("cluster.local"), now=now)
    assert other.root.subject != hierarchy.root.subject
    assert other.issuer.certificate.subject != hierarchy.issuer.certificate.subject


def test_openssl_accepts_the_chain(authority: Authority, now: datetime, tmp_path: Path) -> None:
    """An independent implementation in strict mode verifies leaf, intermediate and root."""
    svid = authority.issue(WEB, KEY.public_key(), now=now, ttl=HOUR)
    (tmp_path / "root.pem").write_bytes(authority.bundle_pem())
    (tmp_path / "leaf.pem").write_bytes(svid.chain_pem)
    (tmp_path / "chain.pem").write_bytes(format_certificates(authority.chain))
    moment = str(int(now.timestamp()))
    command = ["openssl", "verify", "-x509_strict", "-attime", moment, "-CAfile", "root.pem"]
    command += ["-purpose", "sslclient", "-untrusted", "chain.pem", "leaf.pem"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 0, done.stderr


def test_validity_is_backdated_and_ends_after_the_ttl(hierarchy: Hierarchy, now: datetime) -> None:
    """A leaf starts a little early for slow clocks and lasts `ttl` from now."""
    later = now + HOUR
    leaf = issue(hierarchy.issuer, later)
    assert leaf.not_valid_before_utc == (later - BACKDATE).replace(microsecond=0)
    assert leaf.not_valid_after_utc == (later + HOUR).replace(microsecond=0)


def test_validity_stays_within_the_issuers(hierarchy: Hierarchy, now: datetime) -> None:
    """A leaf neither starts before nor ends after the certificate that signed it."""
    issuer = hierarchy.issuer.certificate
    early = issue(hierarchy.issuer, issuer.not_valid_before_utc)
    assert early.not_valid_before_utc == issuer.not_valid_before_utc
    late = issue(hierarchy.issuer, issuer.not_valid_after_utc - timedelta(minutes=10))
    assert late.not_valid_after_utc == issuer.not_valid_after_utc


def test_an_issuer_outside_its_validity_refuses(hierarchy: Hierarchy) -> None:
    """Neither an expired nor a future CA certificate signs."""
    issuer = hierarchy.issuer.certificate
    with pytest.raises(IssuanceError, match="expired at"):
        issue(hierarchy.issuer, issuer.not_valid_after_utc)
    with pytest.raises(IssuanceError, match="not valid before"):
        issue(hierarchy.issuer, issuer.not_valid_before_utc - timedelta(seconds=1))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ttl": MAX_TTL + timedelta(seconds=1)}, "a TTL is"),
        ({"ttl": timedelta.max}, "a TTL is"),
        ({"ttl": timedelta(0)}, "a TTL is"),
        ({"ttl": timedelta(seconds=-5)}, "a TTL is"),
        ({"spiffe_id": SpiffeId.parse("spiffe://other.test/a")}, "outside this CA's trust domain"),
        ({"spiffe_id": TrustDomain("cluster.local").spiffe_id}, "has no path"),
        ({"spiffe_id": SpiffeId(TrustDomain("cluster.local"), ("a/b",))}, "is not a SPIFFE ID"),
        ({"spiffe_id": SpiffeId(TrustDomain("cluster.local"), ("a b",))}, "path characters"),
        ({"dns_names": ["*.example.org"]}, "DNS name"),
        ({"dns_names": ["Web"]}, "DNS name"),
        ({"dns_names": ["10.0.0.1"]}, "DNS name"),
        ({"serial": 0}, "serial"),
        ({"serial": -1}, "serial"),
        ({"serial": 2**128}, "serial"),
    ],
)
def test_what_the_ca_refuses(
    hierarchy: Hierarchy, now: datetime, changed: dict[str, object], message: str
) -> None:
    """A request outside the rules is refused with the rule in its text."""
    with pytest.raises(IssuanceError, match=message):
        issue(hierarchy.issuer, now, **changed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", ["", ".", "a.", "-a", "a-", "a..b", "a_b", "a\n", "x" * 64, ".".join(["a" * 49] * 6), "1"]
)
def test_what_is_no_dns_name(name: str) -> None:
    """Only host names in lower case get into a certificate."""
    with pytest.raises(IssuanceError, match="DNS name"):
        check_dns_name(name)


def test_key_policy() -> None:
    """P-256, P-384 and large enough RSA keys are signed for; what Envoy cannot use is not."""
    for good in (ec.SECP256R1(), ec.SECP384R1()):
        check_public_key(ec.generate_private_key(good).public_key())
    check_public_key(rsa.generate_private_key(65537, 2048).public_key())
    for bad in (
        ec.generate_private_key(ec.SECP521R1()).public_key(),
        ec.generate_private_key(ec.SECP224R1()).public_key(),
        ec.generate_private_key(ec.SECP256K1()).public_key(),
        rsa.generate_private_key(65537, 1024).public_key(),
        ed25519.Ed25519PrivateKey.generate().public_key(),
    ):
        with pytest.raises(IssuanceError, match="are not accepted"):
            check_public_key(bad)


@pytest.mark.parametrize(
    "key", [rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())]
)
def test_other_ca_keys_sign_too(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, now: datetime) -> None:
    """A plugged-in CA may have an RSA or P-384 key."""
    hierarchy = Hierarchy.create(TrustDomain("td"), now=now, new_private_key=lambda: key)
    leaf = issue(hierarchy.issuer, now, SpiffeId.parse("spiffe://td/a"))
    assert check_leaf(leaf).path == "/a"


def test_a_surprise_in_the_signed_certificate_is_refused(hierarchy: Hierarchy, now: datetime) -> None:
    """A certificate that differs from its template in anything never leaves the issuer."""
    leaf = issue(hierarchy.issuer, now)
    template = leaf_template(WEB, KEY.public_key())
    stamp = Stamp(
        leaf.not_valid_before_utc,
        leaf.not_valid_after_utc,
        leaf.serial_number,
        Signatory.of(hierarchy.issuer.certificate),
    )
    signed = leaf.public_bytes(Encoding.DER)
    assert check_signed(signed, template, stamp) == leaf
    other = leaf_template(SpiffeId.parse("spiffe://cluster.local/admin"), KEY.public_key())
    with pytest.raises(IssuanceError, match="other extensions"):
        check_signed(signed, other, stamp)
    another_key = leaf_template(WEB, new_private_key().public_key())
    with pytest.raises(IssuanceError, match="another subject, key or issuer"):
        check_signed(signed, replace(template, key_der=another_key.key_der), stamp)
    with pytest.raises(IssuanceError, match="another subject, key or issuer"):
        check_signed(signed, template, replace(stamp, by=Signatory.of(hierarchy.root)))
    with pytest.raises(IssuanceError, match="other extensions"):
        check_signed(
            signed,
            template,
            replace(
                stamp,
                by=replace(stamp.by, authority_key=Signatory.of(hierarchy.root).authority_key),
            ),
        )
    with pytest.raises(IssuanceError, match="validity or serial"):
        check_signed(signed, template, replace(stamp, serial=8))
    with pytest.raises(IssuanceError, match="does not verify"):
        check_signed(signed, template, replace(stamp, by=replace(stamp.by, key=KEY.public_key())))
    damaged = bytearray(signed)
    damaged[-1] ^= 1
    with pytest.raises(IssuanceError, match="does not verify"):
        check_signed(bytes(damaged), template, stamp)


def build(*extensions: tuple[x509.ExtensionType, bool], subject: x509.Name | None = None) -> x509.Certificate:
    """Return a certificate with just `extensions`, as a careless CA might sign it."""
    now = datetime(2030, 1, 1)  # noqa: DTZ001 - the builder takes naive times as UTC
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject or x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + HOUR)
    )
    for value, critical in extensions:
        builder = builder.add_extension(value, critical=critical)
    return builder.sign(KEY, hashes.SHA256())


def pairs(template: Template) -> dict[int, tuple[x509.ExtensionType, bool]]:
    """Return the extensions of `template` with whether they are critical, numbered."""
    return dict(enumerate((one.value, one.critical) for one in template.extensions))


GOOD = pairs(leaf_template(WEB, KEY.public_key()))
SIGNING = pairs(ca_template(TrustDomain("td"), KEY.public_key(), name="x", path_length=0))


def uris(*values: str) -> x509.SubjectAlternativeName:
    """Return an alternative name with these URIs."""
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(value) for value in values])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({0: None}, "no basic constraints"),
        ({0: (x509.BasicConstraints(ca=True, path_length=None), True)}, "must not be a CA"),
        ({1: None}, "no critical key usage"),
        ({1: (GOOD[1][0], False)}, "no critical key usage"),
        ({1: SIGNING[1]}, "key usage must be"),
        ({2: (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)}, "both serverAuth"),
        ({3: None}, "no SPIFFE ID"),
        ({3: (x509.SubjectAlternativeName([x509.DNSName("web")]), True)}, "no SPIFFE ID"),
        ({3: (uris("spiffe://td/a", "spiffe://td/b"), True)}, "more than one URI"),
        ({3: (uris("https://td/a"), True)}, "does not start with"),
        ({3: (uris("spiffe://td"), True)}, "needs a path"),
        ({3: (GOOD[3][0], False)}, "must be critical"),
    ],
)
def test_inspection_knows_each_rule_for_leaves(
    changes: dict[int, tuple[x509.ExtensionType, bool] | None], message: str
) -> None:
    """Each rule of the leaf profile is checked by itself."""
    extensions = [extension for extension in {**GOOD, **changes}.values() if extension is not None]
    with pytest.raises(IssuanceError, match=message):
        check_leaf(build(*extensions))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({0: GOOD[0]}, "is not a CA"),
        ({1: GOOD[1]}, "no keyCertSign"),
        ({2: (uris("spiffe://td/a"), False)}, "has no path"),
    ],
)
def test_inspection_knows_each_rule_for_cas(
    changes: dict[int, tuple[x509.ExtensionType, bool]], message: str
) -> None:
    """Each rule of the signing profile is checked by itself."""
    with pytest.raises(IssuanceError, match=message):
        check_signing(build(*{**SIGNING, **changes}.values()))


def test_an_issuer_needs_its_own_key_and_a_trust_domain(hierarchy: Hierarchy) -> None:
    """A certificate with another's key, or without a URI, does not become an issuer."""
    with pytest.raises(IssuanceError, match="do not belong together"):
        Issuer.build(hierarchy.issuer.certificate, KEY)
    with pytest.raises(IssuanceError, match="names no trust domain"):
        Issuer.build(build(SIGNING[0], SIGNING[1]), KEY)
    check_key_pair(hierarchy.root, hierarchy.root_key)
