"""A signing request counts only when it is one, is whole, and its sender holds the key."""

from __future__ import annotations

import base64

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from ca.csr import MAX_CSR_BYTES, parse_csr
from garrison.errors import IssuanceError, RequestError

KEY = ec.generate_private_key(ec.SECP256R1())


def csr(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey = KEY) -> bytes:
    """Return a request that asks for somebody else's name."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://td/admin")])
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.add_extension(names, critical=True).sign(key, algorithm).public_bytes(Encoding.PEM)


def pem(der: bytes) -> bytes:
    """Return `der` in the armour of a request."""
    body = base64.encodebytes(der)
    return b"-----BEGIN CERTIFICATE REQUEST-----\n" + body + b"-----END CERTIFICATE REQUEST-----\n"


GOOD = csr()
DER = x509.load_pem_x509_csr(GOOD).public_bytes(Encoding.DER)


@pytest.mark.parametrize(
    "key", [KEY, ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)]
)
def test_a_good_request_gives_its_key(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
    """The key of a well-signed request is all that is taken from it."""
    assert parse_csr(csr(key)).public_key == key.public_key()


def test_the_label_of_old_tools_is_read() -> None:
    """`NEW CERTIFICATE REQUEST` is the same thing (RFC 7468, section 7)."""
    assert parse_csr(GOOD.replace(b" CERT", b" NEW CERT")).fingerprint == parse_csr(GOOD).fingerprint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "exactly one"),
        (b"garbage", "exactly one"),
        (GOOD + GOOD, "exactly one"),
        (b"x" + GOOD, "exactly one"),
        (GOOD + b"x", "exactly one"),
        (GOOD.replace(b"REQUEST-----\n", b"REQUEST-----\nProc-Type: 4,ENCRYPTED\n\n", 1), "exactly one"),
        (GOOD.replace(b" REQUEST", b""), "exactly one"),
        (pem(DER + b"\0"), "malformed"),
        (pem(DER[:-1]), "malformed"),
        (pem(b"\x30\x00"), "malformed"),
        (b" " * (MAX_CSR_BYTES + 1), "at most"),
    ],
)
def test_what_is_no_request(text: bytes, message: str) -> None:
    """Anything but one whole request in PEM is refused."""
    with pytest.raises(RequestError, match=message):
        parse_csr(text)


def test_a_request_signed_with_another_key_is_refused() -> None:
    """Who cannot sign with the key does not get it certified."""
    other = x509.load_pem_x509_csr(csr(ec.generate_private_key(ec.SECP256R1())))
    forged = DER.replace(x509.load_pem_x509_csr(GOOD).signature, other.signature)
    if len(forged) != len(DER):  # signatures differ in length: flip a bit of the own one instead
        forged = DER[:-1] + bytes([DER[-1] ^ 1])
    with pytest.raises(RequestError, match="does not verify"):
        parse_csr(pem(forged))


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 1024),
        ec.generate_private_key(ec.SECP521R1()),
        ed25519.Ed25519PrivateKey.generate(),
    ],
)
def test_a_key_outside_the_policy_is_refused(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey,
) -> None:
    """The key policy holds for requests too."""
    with pytest.raises(IssuanceError, match="are not accepted"):
        parse_csr(csr(key))
