"""Keys: which ones the CA signs for and signs with, and how they are written down."""

from __future__ import annotations

import secrets

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from garrison.errors import IssuanceError

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

# Envoy 1.40 refuses P-521 and Ed25519 in a peer's certificate, so an identity on such a key would be useless.
CURVES = ("secp256r1", "secp384r1")
MIN_RSA_BITS = 2048
# BoringSSL (Envoy) verifies no larger modulus, and a larger one costs us time before we know the caller.
MAX_RSA_BITS = 8192
SERIAL_BITS = 128


def new_private_key() -> ec.EllipticCurvePrivateKey:
    """Return a fresh P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def new_serial() -> int:
    """Return a random serial number in 1 to 2**128 - 1: positive (RFC 5280, 4.1.2.2) and unguessable."""
    return 1 + secrets.randbelow(2**SERIAL_BITS - 1)


def check_public_key(key: object) -> PublicKey:
    """Return `key` if the CA signs for keys of its kind: P-256, P-384, RSA of 2048 to 8192 bits.

    Raises:
        IssuanceError: it does not; the message says what it accepts.

    """
    match key:
        case ec.EllipticCurvePublicKey() if key.curve.name in CURVES:
            return key
        case rsa.RSAPublicKey() if MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
            return key
    raise IssuanceError(
        f"{describe_key(key)} keys are not accepted, only P-256, P-384 and RSA of "
        f"{MIN_RSA_BITS} to {MAX_RSA_BITS} bits"
    )


def describe_key(key: object) -> str:
    """Return the kind of a public key in words, such as `EC secp256r1` or `RSA 2048`."""
    match key:
        case ec.EllipticCurvePublicKey():
            return f"EC {key.curve.name}"
        case rsa.RSAPublicKey():
            return f"RSA {key.key_size}"
    return type(key).__name__.removesuffix("PublicKey").lstrip("_")


def signature_hash(key: PrivateKey) -> hashes.SHA256 | hashes.SHA384:
    """Return the hash to sign with: as strong as the key (RFC 5758, 3.2)."""
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name == "secp384r1":
        return hashes.SHA384()
    return hashes.SHA256()


def private_key_pem(key: PrivateKey) -> bytes:
    """Return `key` as unencrypted PKCS#8 PEM, the one form that every consumer reads."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def parse_private_key(pem: bytes) -> PrivateKey:
    """Return the unencrypted private key in `pem`, if it is one that the CA may sign with.

    Raises:
        ValueError: it holds none, an encrypted one, or one of another kind.

    """
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except TypeError as error:
        raise ValueError("the private key is encrypted, and only unencrypted ones are read") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError("it holds no readable PEM private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise ValueError("only EC and RSA keys can sign here")  # noqa: TRY004 - it is the text that is wrong
    try:
        check_public_key(key.public_key())
    except IssuanceError as error:
        raise ValueError(str(error)) from error
    return key
