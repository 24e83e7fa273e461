"""Certificates of peers: what proves an identity, and every way in which one does not."""

from __future__ import annotations

from base64 import encodebytes
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, unquote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st
from support.checks import CALL, NOW, SERVICE, check_request, federated, principal, role, snapshot
from support.peer_certificates import AT, BOTH, HOUR, CertificateAuthority, Leaf, encoded, rsa_key, uri, usage

from authz.attributes import Attributes
from authz.authn import certificates as module
from authz.authn.certificates import MAX_CERTIFICATE_BYTES, CertificateVerifier, TrustBundle, trust_bundle
from authz.bundles import TrustBundles
from authz.decision import Decision, Outcome
from authz.environment import Environment
from authz.paths import PathNormalization
from authz.pipeline import decide
from authz.service import DestinationResolver
from ca.authority import Hierarchy
from ca.keys import new_private_key
from garrison.certificate_paths import PathError, find_path
from garrison.identity import SpiffeId, TrustDomain

ROOT = CertificateAuthority()
MIDDLE = CertificateAuthority("test intermediate", ROOT)
STRANGER = CertificateAuthority()  # of the same name
A = SpiffeId.parse(principal("a"))
VERIFIER = CertificateVerifier({"cluster.local": trust_bundle([ROOT.certificate, MIDDLE.certificate])})


def problem(certificate: x509.Certificate | str, now: float = NOW, identity: SpiffeId = A) -> str | None:
    """Return what a fresh verifier says, so that nothing is remembered."""
    verifier = CertificateVerifier({"cluster.local": trust_bundle([ROOT.certificate, MIDDLE.certificate])})
    text = certificate if isinstance(certificate, str) else encoded(certificate)
    return verifier.problem(text, identity, now)


@pytest.mark.parametrize(
    "leaf",
    [
        Leaf(),
        Leaf(key=rsa_key()),
        Leaf(key=ec.generate_private_key(ec.SECP384R1())),
        Leaf(ca=None),
        Leaf(purposes=None),
        Leaf(purposes=[ExtendedKeyUsageOID.CLIENT_AUTH]),
        Leaf(names=[uri(str(A)), x509.DNSName("a.example")]),
        Leaf(usage=usage("digital_signature", "key_encipherment")),
    ],
    ids=["EC", "RSA", "P-384", "no constraints", "no purposes", "client only", "DNS too", "encipherment"],
)
@pytest.mark.parametrize("issuer", [ROOT, MIDDLE], ids=["root", "intermediate"])
def test_an_svid_of_our_bundle_proves_its_identity(leaf: Leaf, issuer: CertificateAuthority) -> None:
    """Any key, with or without what X509-SVID leaves open, under the root or an intermediate of the bundle."""
    assert problem(issuer.issue(leaf)) is None


def test_svids_of_our_own_ca_do() -> None:
    """What `ca/` issues is verified by its root and intermediate, the leaf alone being sent."""
    hierarchy = Hierarchy.create(TrustDomain("cluster.local"), now=AT)
    svid = hierarchy.authority().issue(A, new_private_key().public_key(), now=AT, ttl=timedelta(hours=1))
    (leaf, *_) = x509.load_pem_x509_certificates(svid.chain_pem)
    bundle = trust_bundle([hierarchy.root, hierarchy.issuer.certificate])
    verifier = CertificateVerifier({"cluster.local": bundle})
    assert verifier.problem(encoded(leaf), A, NOW) is None
    alone = CertificateVerifier({"cluster.local": TrustBundle((hierarchy.root,))})
    assert "does not verify" in str(alone.problem(encoded(leaf), A, NOW))


def edwards(domain: str = "cluster.local") -> Hierarchy:
    """Return a CA with Ed25519 keys, as `ca init --key-type ed25519` makes it."""
    return Hierarchy.create(TrustDomain(domain), now=AT, new_private_key=Ed25519PrivateKey.generate)


def issued(hierarchy: Hierarchy, identity: SpiffeId = A) -> str:
    """Return the leaf of an SVID, as Envoy sends it."""
    key = new_private_key().public_key()
    return encoded(hierarchy.authority().issue(identity, key, now=AT, ttl=HOUR).leaf)


def test_svids_of_an_ed25519_ca_do() -> None:
    """The library refuses those; they are verified here, alone or beside a CA of another kind, and cached."""
    new, old = edwards(), Hierarchy.create(TrustDomain("cluster.local"), now=AT)
    alone = trust_bundle([new.root, new.issuer.certificate])
    both = trust_bundle([old.root, old.issuer.certificate, new.root, new.issuer.certificate])
    for bundle in (alone, both):
        verifier = CertificateVerifier({"cluster.local": bundle})
        certificate = issued(new)
        assert verifier.problem(certificate, A, NOW) is None
        assert verifier.problem(certificate, A, NOW + 1) is None
        assert "a certificate expired at" in str(verifier.problem(certificate, A, NOW + 3601))
    assert CertificateVerifier({"cluster.local": both}).problem(issued(old), A, NOW) is None
    rootless = CertificateVerifier({"cluster.local": TrustBundle((new.root,))})
    assert "its issuer is not among them" in str(rootless.problem(issued(new), A, NOW))


def test_an_ed25519_ca_vouches_for_nobody_else() -> None:
    """Another CA of the same name, a name of another domain, a signature that was changed: none of them."""
    ours, twin = edwards(), edwards()
    verifier = CertificateVerifier({"cluster.local": trust_bundle([ours.root, ours.issuer.certificate])})
    assert "does not verify" in str(verifier.problem(issued(twin), A, NOW))
    theirs = edwards("partner.example")
    partner = SpiffeId.parse(principal("a", trust_domain="partner.example"))
    assert "there is no trust bundle" in str(verifier.problem(issued(theirs, partner), partner, NOW))
    (leaf,) = x509.load_pem_x509_certificates(unquote(issued(ours)).encode())
    for place in (-1, -64, 60):
        damaged = bytearray(leaf.public_bytes(Encoding.DER))
        damaged[place] ^= 1
        text = encodebytes(bytes(damaged)).decode()
        pem = quote(f"-----BEGIN CERTIFICATE-----\n{text}-----END CERTIFICATE-----\n", safe="-")
        assert verifier.problem(pem, A, NOW) is not None


def test_what_the_library_judges_is_left_to_it() -> None:
    """An Ed25519 key somewhere in a bundle changes nothing for chains of other keys, nor do weak links count."""
    new = edwards()
    bundle = trust_bundle([new.root, new.issuer.certificate, ROOT.certificate, MIDDLE.certificate])
    verifier = CertificateVerifier({"cluster.local": bundle})
    assert verifier.problem(encoded(MIDDLE.issue()), A, NOW) is None
    assert "does not verify" in str(verifier.problem(encoded(STRANGER.issue()), A, NOW))
    # The walk alone would take this path, but is not asked for paths of such keys.
    leaf = MIDDLE.issue()
    assert len(find_path(leaf, [MIDDLE.certificate], [ROOT.certificate], AT)) == 3
    with pytest.raises(PathError):
        find_path(leaf, [MIDDLE.certificate], [ROOT.certificate], AT, needs_ed25519=True)


@pytest.mark.parametrize(
    ("key", "algorithm", "why"),
    [
        (rsa_key(1024), hashes.SHA256(), "the key of `CN=middle` is of a kind that is not accepted"),
        (ec.generate_private_key(ec.SECP224R1()), hashes.SHA256(), "is of a kind that is not accepted"),
        (rsa_key(), hashes.SHA224(), "a signature in the chain is of a kind that is not accepted"),
        (rsa_key(), hashes.SHA256(), None),
        (ec.generate_private_key(ec.SECP384R1()), hashes.SHA384(), None),
    ],
)
def test_weak_links_under_an_ed25519_root(key: Any, algorithm: Any, why: str | None) -> None:
    """A strong root makes no weak intermediate stronger."""
    root = CertificateAuthority("root", key=Ed25519PrivateKey.generate())
    middle = CertificateAuthority("middle", root, key=key, algorithm=algorithm)
    verifier = CertificateVerifier({"cluster.local": trust_bundle([root.certificate, middle.certificate])})
    found = verifier.problem(encoded(middle.issue()), A, NOW)
    assert found is None if why is None else why in str(found)


def test_a_maze_of_certificates_ends() -> None:
    """Ed25519 certificates that all could have issued each other are bounded work, and prove nothing."""
    key = Ed25519PrivateKey.generate()
    maze = [CertificateAuthority("same", key=key) for _ in range(40)]
    other = CertificateAuthority("same", key=Ed25519PrivateKey.generate())
    bundle = TrustBundle((other.certificate,), tuple(one.certificate for one in maze))
    verifier = CertificateVerifier({"cluster.local": bundle})
    assert "does not verify" in str(verifier.problem(encoded(maze[0].issue()), A, NOW))


@pytest.mark.parametrize(
    ("certificate", "why"),
    [
        (STRANGER.issue(), "does not verify"),
        (CertificateAuthority("other").issue(), "does not verify"),
        (MIDDLE.issue(Leaf(end=AT)), None),
        (MIDDLE.issue(Leaf(end=AT - timedelta(seconds=1))), "not valid at validation time"),
        (MIDDLE.issue(Leaf(begin=AT + timedelta(seconds=1))), "not valid at validation time"),
        (MIDDLE.issue(Leaf(names=[uri(str(A)), uri(principal("b"))])), "it has 2 URI SANs"),
        (MIDDLE.issue(Leaf(names=[uri(str(A)), uri(str(A))])), "it has 2 URI SANs"),
        (MIDDLE.issue(Leaf(names=[x509.DNSName("a.example")])), "it has 0 URI SANs"),
        (MIDDLE.issue(Leaf(names=[])), "it has no SAN"),
        (MIDDLE.issue(Leaf(names=[uri(principal("b"))])), "another one than Envoy reports"),
        (MIDDLE.issue(Leaf(names=[uri(str(A) + "\x00")])), "another one than Envoy reports"),
        (MIDDLE.issue(Leaf(names=[uri(str(A)), x509.DNSName("a\x00b")])), "has a NUL byte"),
        (MIDDLE.issue(Leaf(ca=True)), "that of a CA"),
        (MIDDLE.issue(Leaf(usage=None)), "no critical key usage"),
        (MIDDLE.issue(Leaf(usage_is_critical=False)), "no critical key usage"),
        (MIDDLE.issue(Leaf(usage=usage("key_agreement"))), "lacks digitalSignature"),
        (MIDDLE.issue(Leaf(usage=usage("digital_signature", "key_cert_sign"))), "may sign"),
        (MIDDLE.issue(Leaf(usage=usage("digital_signature", "crl_sign"))), "may sign"),
        (MIDDLE.issue(Leaf(purposes=[ExtendedKeyUsageOID.SERVER_AUTH])), "lacks clientAuth"),
        (MIDDLE.issue(Leaf(key=rsa_key(1024))), "its key is neither RSA of 2048 bits or more"),
        (MIDDLE.issue(Leaf(key=ec.generate_private_key(ec.SECP224R1()))), "its key is neither"),
        (MIDDLE.certificate, "it has no SAN"),
        (ROOT.certificate, "it has no SAN"),
    ],
)
def test_what_does_not_prove_an_identity(certificate: x509.Certificate, why: str | None) -> None:
    """A foreign or untrusted issuer, times, names, purposes: each is told apart."""
    found = problem(certificate)
    assert found is None if why is None else why in str(found)


def test_a_self_signed_svid_proves_nothing() -> None:
    """A leaf that signed itself is nobody's, even with our names."""

    class Own(CertificateAuthority):
        def issue(self, leaf: Leaf | None = None) -> x509.Certificate:
            return super().issue(replace(leaf or Leaf(), key=self.key))

    assert "does not verify" in str(problem(Own().issue()))


def test_a_leaf_cannot_issue() -> None:
    """Who has an SVID cannot sign another one with its key, even if it is sent as an intermediate."""
    thief = CertificateAuthority("thief")
    stolen = MIDDLE.issue(Leaf(key=thief.key))
    forged = thief.issue(Leaf(names=[uri(principal("admin"))]))
    verifier = CertificateVerifier(
        {"cluster.local": TrustBundle((ROOT.certificate,), (MIDDLE.certificate, stolen))}
    )
    identity = SpiffeId.parse(principal("admin"))
    assert "does not verify" in str(verifier.problem(encoded(forged), identity, NOW))


GOOD = encoded(MIDDLE.issue())
DER = MIDDLE.issue().public_bytes(Encoding.DER)
PEM = MIDDLE.issue().public_bytes(Encoding.PEM).decode()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (GOOD.replace("%2B", "+").replace("%2F", "/").replace("%3D", "="), None),
        (GOOD.replace("%0A", "%0a").replace("%2B", "%2b"), None),
        (GOOD.replace("%0A", "%0D%0A"), None),
        ("".join(f"%{byte:02x}" for byte in PEM.encode()), None),
        (PEM, "not URL-encoded"),
        (quote(GOOD), "not exactly one certificate"),
        (GOOD + "%", "not URL-encoded"),
        (GOOD + "%2", "not URL-encoded"),
        (GOOD + "%zz", "not URL-encoded"),
        (GOOD + "é", "not URL-encoded"),
        (GOOD + "\x00", "not URL-encoded"),
        (GOOD + "%00", "not exactly one certificate"),
        (GOOD + GOOD, "not exactly one certificate"),
        ("a" + GOOD, "not exactly one certificate"),
        (GOOD.replace("CERTIFICATE", "PRIVATE%20KEY"), "not exactly one certificate"),
        (GOOD.replace("%0A", "%0A%0A"), "not a certificate"),
        (quote("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), "not a certificate"),
        (quote("-----BEGIN CERTIFICATE-----\nA\n-----END CERTIFICATE-----\n"), "not a certificate"),
        ("garbage", "not exactly one certificate"),
        ("%FF%FE", "not exactly one certificate"),
        ("A" * (MAX_CERTIFICATE_BYTES + 1), f"more than {MAX_CERTIFICATE_BYTES} bytes"),
        (GOOD + "%0A" * MAX_CERTIFICATE_BYTES, f"more than {MAX_CERTIFICATE_BYTES} bytes"),
    ],
)
def test_it_is_exactly_one_certificate_in_url_encoded_pem(text: str, why: str | None) -> None:
    """Any valid percent-encoding of one PEM block is read; everything else is refused with its reason."""
    found = problem(text)
    assert (found is None) if why is None else (why in str(found))


@given(st.binary(max_size=200), st.integers(0, len(GOOD)), st.integers(0, 8))
def test_garbage_never_proves_and_never_raises(noise: bytes, at: int, cut: int) -> None:
    """Whatever is put into a certificate: a reason, or the same proof as before."""
    text = GOOD[:at] + noise.decode("latin-1") + GOOD[at + cut :]
    assert VERIFIER.problem(noise.decode("latin-1"), A, NOW) is not None
    if (noise or cut) and text != GOOD:
        found = VERIFIER.problem(text, A, NOW)
        assert found is None or isinstance(found, str)


@given(st.data())
def test_a_certificate_with_a_byte_changed_proves_nothing(data: st.DataObject) -> None:
    """Whatever the byte is part of: signature, names, times, version, lengths."""
    at = data.draw(st.integers(0, len(DER) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda value: value != DER[at]))
    changed = DER[:at] + bytes([value]) + DER[at + 1 :]
    pem = b"-----BEGIN CERTIFICATE-----\n" + encodebytes(changed) + b"-----END CERTIFICATE-----\n"
    assert VERIFIER.problem(quote(pem), A, NOW) is not None


def test_a_version_that_does_not_exist_proves_nothing() -> None:
    """The library has an error of its own for it."""
    changed = DER.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x05", 1)
    pem = b"-----BEGIN CERTIFICATE-----\n" + encodebytes(changed) + b"-----END CERTIFICATE-----\n"
    assert VERIFIER.problem(quote(pem), A, NOW) == "it is not a certificate"


def test_a_bundle_vouches_for_its_own_trust_domain_only() -> None:
    """A root of one trust domain proves no identity of another; no bundle proves nothing."""
    partner = CertificateAuthority("partner")
    verifier = CertificateVerifier(
        {
            "cluster.local": trust_bundle([ROOT.certificate]),
            "partner.example": trust_bundle([partner.certificate]),
        }
    )
    theirs = SpiffeId.parse(principal("a", trust_domain="partner.example"))
    other = SpiffeId.parse(principal("a", trust_domain="other.example"))
    assert verifier.problem(encoded(partner.issue(Leaf(names=[uri(str(theirs))]))), theirs, NOW) is None
    assert verifier.problem(encoded(partner.issue()), A, NOW) is not None
    assert verifier.problem(encoded(ROOT.issue(Leaf(names=[uri(str(theirs))]))), theirs, NOW) is not None
    found = verifier.problem(encoded(ROOT.issue(Leaf(names=[uri(str(other))]))), other, NOW)
    assert found == "there is no trust bundle for `other.example`"


def test_what_was_proved_counts_until_it_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate is verified once; it counts from its first to its last second, and for its name only."""
    verifier = CertificateVerifier({"cluster.local": trust_bundle([ROOT.certificate])})
    text = encoded(ROOT.issue())
    assert verifier.problem(text, A, NOW) is None
    verified: list[str] = []
    verify = CertificateVerifier._verify

    def counted(
        self: CertificateVerifier, encoded: str, identity: SpiffeId, now: float
    ) -> tuple[float, float]:
        verified.append(encoded)
        return verify(self, encoded, identity, now)

    monkeypatch.setattr(CertificateVerifier, "_verify", counted)
    hour = HOUR.total_seconds()
    for now in (NOW - hour, NOW, NOW + hour - 0.1):
        assert verifier.problem(text, A, now) is None
    assert verified == []
    assert "not valid at validation time" in str(verifier.problem(text, A, NOW + hour + 1))
    assert "not valid at validation time" in str(verifier.problem(text, A, NOW - hour - 1))
    assert "another one" in str(verifier.problem(text, SpiffeId.parse(principal("b")), NOW))
    assert verifier.problem(text, A, NOW) is None


def test_a_chain_that_expires_first_ends_what_was_proved() -> None:
    """What was proved by an intermediate counts no longer than that."""
    hour = HOUR.total_seconds()
    verifier = CertificateVerifier({"cluster.local": trust_bundle([ROOT.certificate])})
    leaf = encoded(ROOT.issue(Leaf(end=AT + 1000 * HOUR)))
    assert verifier.problem(leaf, A, NOW) is None
    assert verifier.problem(leaf, A, NOW + 239 * hour) is None
    assert verifier.problem(leaf, A, NOW + 241 * hour) is not None


def test_what_was_refused_is_remembered_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad certificate is not verified for each call, and is looked at again soon: it may become valid."""
    verifier = CertificateVerifier({"cluster.local": trust_bundle([ROOT.certificate])})
    text = encoded(ROOT.issue(Leaf(begin=AT + timedelta(seconds=5))))
    assert verifier.problem(text, A, NOW) is not None
    monkeypatch.setattr(module, "_parse", lambda _: pytest.fail("verified again"))
    assert verifier.problem(text, A, NOW + 9) is not None
    monkeypatch.undo()
    assert verifier.problem(text, A, NOW + 11) is None


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many certificates come, good or bad, memory is bounded."""
    monkeypatch.setattr(module, "MAX_CACHED_CERTIFICATES", 2)
    monkeypatch.setattr(module, "MAX_CACHED_REFUSALS", 3)
    verifier = CertificateVerifier({"cluster.local": trust_bundle([ROOT.certificate])})
    for number in range(8):
        assert verifier.problem(encoded(ROOT.issue()), A, NOW) is None
        assert verifier.problem(f"garbage{number}", A, NOW) is not None
        assert len(verifier._proved) <= 2
        assert len(verifier._refused) <= 3
    assert verifier.problem("A" * (MAX_CERTIFICATE_BYTES + 1), A, NOW) is not None
    assert all(len(text) <= MAX_CERTIFICATE_BYTES for text, _ in verifier._refused)


# ------------------------------------------------------------------------------------------ in a decision


def decision(
    verifier: CertificateVerifier | None, certificate: str, source: str = str(A), **mesh: Any
) -> Decision:
    """Return the decision where anybody may do anything."""
    request = check_request(source=source)
    request.attributes.source.certificate = certificate
    bundles = TrustBundles()
    if verifier is not None:
        bundles.use(verifier)
    compiled = snapshot(role("[{}]"), mesh.get("mesh"))
    destination = DestinationResolver().resolve({"destination.service": SERVICE}, "", CALL)
    assert destination is not None
    attributes = Attributes(request.attributes, PathNormalization.BASE, destination)
    outcome = decide(
        compiled.policies_for(destination), attributes, lambda: NOW, Environment(bundles=bundles)
    )
    assert isinstance(outcome, Outcome)
    return outcome.decision


def test_a_certificate_that_proves_nothing_is_refused() -> None:
    """The attack with an untrusted issuer: our name, their CA. 403, with the reason for operators."""
    denied = decision(VERIFIER, encoded(STRANGER.issue()))
    assert (denied.code, denied.http_status) == ("peer_certificate_invalid", 403)
    assert denied.reason.startswith(f"the certificate does not prove `{A}`: it does not verify")
    assert denied.public == "RBAC: access denied"
    assert "<" not in denied.reason
    assert decision(VERIFIER, encoded(MIDDLE.issue())).allowed


def test_who_was_admitted_still_has_to_prove_it() -> None:
    """That a name was let in without a certificate, or with a good one, does not let in a bad one."""
    compiled = snapshot(role("[{}]"))
    bundles = TrustBundles()

    def code(certificate: str) -> str:
        request = check_request(source=str(A))
        request.attributes.source.certificate = certificate
        destination = DestinationResolver().resolve({"destination.service": SERVICE}, "", CALL)
        assert destination is not None
        attributes = Attributes(request.attributes, PathNormalization.BASE, destination)
        found = decide(
            compiled.policies_for(destination), attributes, lambda: NOW, Environment(bundles=bundles)
        )
        assert isinstance(found, Outcome)
        return found.decision.code.value

    assert code(encoded(STRANGER.issue())) == "role_matched"  # nothing verifies yet
    bundles.use(VERIFIER)
    assert code(encoded(MIDDLE.issue())) == "role_matched"
    assert code(encoded(STRANGER.issue())) == "peer_certificate_invalid"


def test_without_bundles_envoy_is_believed() -> None:
    """Nothing is configured: nothing is verified, whatever Envoy includes."""
    assert decision(None, encoded(STRANGER.issue())).allowed
    assert decision(None, "").allowed


def test_certificates_can_be_required() -> None:
    """Then an identity without certificate is refused; what has no identity is as before."""
    required = CertificateVerifier({"cluster.local": trust_bundle([ROOT.certificate])}, required=True)
    assert decision(required, "").code == "peer_certificate_missing"
    assert decision(required, encoded(ROOT.issue())).allowed
    assert decision(VERIFIER, "").allowed
    assert decision(required, "", source="").allowed
    assert decision(required, "", source="a.example").allowed


def test_a_trust_domain_without_bundle_is_refused() -> None:
    """Where some bundle is configured, a certificate of a federated domain that has none proves nothing."""
    theirs = principal("a", trust_domain="partner.example")
    certificate = encoded(ROOT.issue(Leaf(names=[uri(theirs)])))
    mesh = federated("partner.example")
    assert decision(VERIFIER, certificate, theirs, mesh=mesh).code == "peer_certificate_invalid"
    assert decision(VERIFIER, certificate, theirs).code == "foreign_trust_domain"


def test_times_are_those_of_the_call() -> None:
    """The clock of the call decides, not that of the machine: policies are tested at any time."""
    long_ago = datetime(2020, 1, 1, tzinfo=UTC).timestamp()
    assert problem(ROOT.issue(), long_ago) is not None
    assert problem(ROOT.issue(Leaf(purposes=BOTH)), NOW) is None
