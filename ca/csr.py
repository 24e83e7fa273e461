"""Certificate signing requests: of a request, only the public key and the proof of its possession count.

What goes into a certificate comes from the caller's registration: names and extensions that a request asks
for are never copied. Its URIs are kept only so that a request for somebody else can be refused, instead of
being answered with another identity than its sender expects.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from ca.keys import PublicKey, check_public_key
from garrison.errors import RequestError

# An RSA-8192 request with several names stays below 8 kB.
MAX_CSR_BYTES = 16_384

# RFC 7468: one textual encoding and nothing around it. The library alone takes the first of several.
_ONE_CSR = re.compile(
    rb"\s*-----BEGIN (?P<label>(?:NEW )?CERTIFICATE REQUEST)-----"
    rb"[\x20\r\n\tA-Za-z0-9+/=]+"
    rb"-----END (?P=label)-----\s*"
)


@dataclass(frozen=True, slots=True)
class CheckedCsr:
    """A request whose sender holds the private key, of a kind the CA signs for.

    `fingerprint` is the SHA-256 of its DER in hex, for the audit log. `uris` are the URIs it asks for as
    alternative names.
    """

    public_key: PublicKey
    fingerprint: str
    uris: tuple[str, ...] = ()


def parse_csr(pem: bytes) -> CheckedCsr:
    """Return the one signing request in `pem`, with its signature verified.

    Raises:
        RequestError: it is not exactly one PKCS#10 request in PEM, or its signature does not verify.
        IssuanceError: the key is of a kind that the CA does not sign for.

    """
    if len(pem) > MAX_CSR_BYTES:
        raise RequestError(f"a signing request has at most {MAX_CSR_BYTES} bytes")
    if not _ONE_CSR.fullmatch(pem):
        raise RequestError("expected exactly one PEM block of type `CERTIFICATE REQUEST`")
    try:
        request = x509.load_pem_x509_csr(pem)
        der = request.public_bytes(Encoding.DER)
        # Kind and size first: verifying is the costly part.
        public_key = check_public_key(request.public_key())
        proven = _is_signed_by(request, public_key)
        uris = _uris(request)
    except (
        ValueError,
        TypeError,
        UnsupportedAlgorithm,
        x509.InvalidVersion,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ) as error:
        raise RequestError("the signing request is malformed") from error
    if not proven:
        raise RequestError("the signature of the signing request does not verify")
    return CheckedCsr(public_key, hashlib.sha256(der).hexdigest(), uris)


def _is_signed_by(request: x509.CertificateSigningRequest, public_key: PublicKey) -> bool:
    algorithm = request.signature_hash_algorithm
    if not isinstance(public_key, ec.EllipticCurvePublicKey) or algorithm is None:
        return request.is_signature_valid
    # What the library does, but for decoding the key a second time, which takes as long as half of the rest.
    try:
        public_key.verify(request.signature, request.tbs_certrequest_bytes, ec.ECDSA(algorithm))
    except InvalidSignature:
        return False
    return True


def _uris(request: x509.CertificateSigningRequest) -> tuple[str, ...]:
    for extension in request.extensions:
        if isinstance(extension.value, x509.SubjectAlternativeName):
            return tuple(extension.value.get_values_for_type(x509.UniformResourceIdentifier))
    return ()
