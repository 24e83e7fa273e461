"""Trust bundles: the roots of one trust domain, as PEM and in the SPIFFE bundle format."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning

from ca.keys import check_ca_public_key

# How often a consumer should ask again; the SPIFFE default.
REFRESH_HINT_SECONDS = 300
# A few hundred certificates: more than any trust domain has roots.
MAX_PEM_BYTES = 1024 * 1024

_PEM_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def parse_certificates(pem: bytes) -> tuple[x509.Certificate, ...]:
    """Return the certificates in `pem`, in order; text between the blocks is skipped, as openssl writes it.

    Raises:
        ValueError: there is none, one is malformed, or there is a block of another type.

    """
    blocks = _PEM_CERTIFICATE.findall(pem)
    if not blocks:
        raise ValueError("it holds no PEM certificate")
    if pem.count(b"-----BEGIN ") != len(blocks):
        raise ValueError("it holds something other than certificates")
    try:
        with _strictly():
            return tuple(x509.load_pem_x509_certificate(block) for block in blocks)
    except (ValueError, x509.InvalidVersion, CryptographyDeprecationWarning) as error:
        raise ValueError("it holds a malformed certificate") from error


def format_certificates(certificates: Iterable[x509.Certificate]) -> bytes:
    """Return `certificates` as PEM blocks, each ending in a newline."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def format_spiffe_bundle(roots: Iterable[x509.Certificate]) -> str:
    """Return `roots` as a SPIFFE bundle: a JWK set (SPIFFE Trust Domain and Bundle, section 4).

    Entries for X509-SVIDs have `x5c` with exactly one certificate and no `kid` (section 4.2).
    `spiffe_sequence` is left out: it must count changes, and a CA directory keeps no history.
    """
    keys = [
        {
            "use": "x509-svid",
            **_jwk(root),
            "x5c": [base64.b64encode(root.public_bytes(Encoding.DER)).decode()],
        }
        for root in roots
    ]
    return json.dumps({"spiffe_refresh_hint": REFRESH_HINT_SECONDS, "keys": keys}, indent=2)


def parse_spiffe_bundle(text: str | bytes) -> tuple[x509.Certificate, ...]:
    """Return the X.509 authorities of a SPIFFE bundle.

    Entries of an unknown use, and those without a certificate, are skipped; only the first certificate of
    an entry counts (section 4.2.2).

    Raises:
        ValueError: it is not a bundle, or a certificate in it is malformed.

    """
    try:
        keys = json.loads(text)["keys"]
        entries = [key for key in keys if key.get("use") == "x509-svid" and key.get("x5c")]
        ders = [base64.b64decode(entry["x5c"][0], validate=True) for entry in entries]
        with _strictly():
            return tuple(x509.load_der_x509_certificate(der) for der in ders)
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
        x509.InvalidVersion,
        CryptographyDeprecationWarning,
    ) as error:
        raise ValueError("it is not a SPIFFE bundle") from error


@contextlib.contextmanager
def _strictly() -> Iterator[None]:
    """Raise for what the library still tolerates with a warning, such as a negative serial number."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", CryptographyDeprecationWarning)
        yield


def _jwk(certificate: x509.Certificate) -> dict[str, Any]:
    key = check_ca_public_key(certificate.public_key())
    match key:
        case ec.EllipticCurvePublicKey():
            numbers, size = key.public_numbers(), (key.key_size + 7) // 8
            curve = {"secp256r1": "P-256", "secp384r1": "P-384"}[key.curve.name]
            return {"kty": "EC", "crv": curve, "x": _b64(numbers.x, size), "y": _b64(numbers.y, size)}
        case rsa.RSAPublicKey():
            modulus, exponent = key.public_numbers().n, key.public_numbers().e
            return {
                "kty": "RSA",
                "n": _b64(modulus, (modulus.bit_length() + 7) // 8),
                "e": _b64(exponent, (exponent.bit_length() + 7) // 8),
            }
        case ed25519.Ed25519PublicKey():
            # RFC 8037, 2.
            return {"kty": "OKP", "crv": "Ed25519", "x": _b64(int.from_bytes(key.public_bytes_raw()), 32)}


def _b64(number: int, size: int) -> str:
    return base64.urlsafe_b64encode(number.to_bytes(size)).rstrip(b"=").decode()
