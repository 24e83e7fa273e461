"""Nothing but a foreseen error comes out of the CA's parsers, whatever goes in.

2000 inputs for each parser and kind of damage, made anew in every run.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from ca.authority import Hierarchy
from ca.bundle import (
    SpiffeBundle,
    format_certificates,
    format_spiffe_bundle,
    parse_certificates,
    parse_spiffe_bundle,
)
from ca.csr import parse_csr
from ca.describe import describe_file
from ca.key_encryption import SALT_BYTES, describe_encryption, encrypt_key
from ca.lint import lint_certificate
from garrison.errors import IssuanceError, RequestError
from garrison.identity import MAX_SPIFFE_ID_BYTES, SpiffeId, TrustDomain

NOW = datetime(2030, 1, 2, tzinfo=UTC)
HIERARCHY = Hierarchy.create(TrustDomain("td"), now=NOW)
INPUTS = settings(max_examples=2000, deadline=None)


def _request() -> bytes:
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://td/a")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    signed = builder.add_extension(names, critical=True).sign(HIERARCHY.issuer.key, hashes.SHA256())
    return signed.public_bytes(Encoding.DER)


REQUEST = _request()
CERTIFICATE = HIERARCHY.root.public_bytes(Encoding.DER)
ENCRYPTED = encrypt_key(b"0" * 138, b"correct horse", salt=b"s" * SALT_BYTES, iv=b"i" * 16)
ENCRYPTED_DER = base64.b64decode(b"".join(ENCRYPTED.splitlines()[1:-1]))


def pem(label: str, der: bytes) -> bytes:
    """Return a textual encoding."""
    return (
        f"-----BEGIN {label}-----\n".encode() + base64.encodebytes(der) + f"-----END {label}-----\n".encode()
    )


@st.composite
def damaged(draw: st.DrawFn, original: bytes) -> bytes:
    """Return `original` with bytes changed, put in, taken out or repeated."""
    data = bytearray(original)
    for _ in range(draw(st.integers(1, 3))):
        position = draw(st.integers(0, len(data)))
        match draw(st.integers(0, 3)):
            case 0:
                data[position : position + 1] = draw(st.binary(min_size=1, max_size=1))
            case 1:
                data[position:position] = draw(st.binary(max_size=8))
            case 2:
                del data[position : position + draw(st.integers(1, 40))]
            case _:
                data[position:position] = data[position : position + draw(st.integers(1, 40))]
    return bytes(data)


def _unless(parse: Callable[[bytes], object], data: bytes, *foreseen: type[Exception]) -> None:
    with contextlib.suppress(*foreseen):
        parse(data)


@INPUTS
@given(damaged(REQUEST), st.booleans())
def test_requests(der: bytes, whole: bool) -> None:
    """A request with an intact signature is the one that was made; any other is refused in our words."""
    data = pem("CERTIFICATE REQUEST", der) if whole else pem("CERTIFICATE REQUEST", REQUEST) + der
    try:
        found = parse_csr(data)
    except (RequestError, IssuanceError):
        return
    assert found.public_key == HIERARCHY.issuer.key.public_key()
    assert found.public_key == parse_csr(pem("CERTIFICATE REQUEST", REQUEST)).public_key


@INPUTS
@given(
    st.text(max_size=40)
    | st.from_regex(r"spiffe://[a-z0-9._-]{0,8}(/[A-Za-z0-9._%-]{0,6}){0,4}", fullmatch=True)
)
def test_spiffe_ids(text: str) -> None:
    """What is accepted is written back exactly, and has nothing that the standard forbids."""
    for candidate in (text, f"spiffe://td/{text}", f"spiffe://{text}/a"):
        try:
            found = SpiffeId.parse(candidate)
        except ValueError:
            continue
        assert str(found) == candidate
        assert len(candidate.encode()) <= MAX_SPIFFE_ID_BYTES
        assert not set(candidate.removeprefix("spiffe://")) & set("%@:?#\\ \t\r\n")
        assert all(segment not in {"", ".", ".."} for segment in found.segments)
        assert found.trust_domain.name == found.trust_domain.name.lower() != ""


BUNDLE = format_spiffe_bundle(
    SpiffeBundle((HIERARCHY.root,), x509_intermediates=(HIERARCHY.issuer.certificate,))
).encode()


@INPUTS
@given(damaged(CERTIFICATE), damaged(BUNDLE))
def test_certificates_and_bundles(der: bytes, text: bytes) -> None:
    """Certificates and bundles parse or are a ValueError; what parses can be shown and linted."""
    certificate = pem("CERTIFICATE", der)
    for data in (certificate, der, text, certificate[:-10]):
        for parse in (parse_certificates, parse_spiffe_bundle, describe_file):
            _unless(parse, data, ValueError)
        with contextlib.suppress(ValueError):
            for found in parse_certificates(data):
                lint_certificate(found, "x", NOW)


@INPUTS
@given(damaged(format_certificates([HIERARCHY.root, HIERARCHY.issuer.certificate])))
def test_pem(data: bytes) -> None:
    """Two blocks are two certificates or an error, never one of the two in silence."""
    try:
        found = parse_certificates(data)
    except ValueError:
        return
    assert len(found) == data.count(b"-----BEGIN ")


@INPUTS
@given(damaged(ENCRYPTED_DER), damaged(ENCRYPTED))
def test_encrypted_keys(der: bytes, text: bytes) -> None:
    """The description of an encrypted key is one, or a ValueError; nothing is derived to find out."""
    for data in (pem("ENCRYPTED PRIVATE KEY", der), text):
        _unless(describe_encryption, data, ValueError)


@pytest.mark.parametrize("extra", [b"", b"\0", REQUEST])
def test_two_requests_are_never_one(extra: bytes) -> None:
    """The library takes the first PEM block of several and ignores what follows; we do not."""
    one = pem("CERTIFICATE REQUEST", REQUEST)
    assert x509.load_pem_x509_csr(one + one).is_signature_valid
    for data in (one + one, one + extra + one, one + b"x", b"x" + one):
        with pytest.raises(RequestError):
            parse_csr(data)
