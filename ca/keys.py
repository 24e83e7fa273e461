"""Keys: which ones the CA signs for and signs with, and how they are written down."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from enum import StrEnum

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from ca.key_encryption import IV_BYTES, SALT_BYTES, describe_encryption, encrypt_key
from ca.token_keys import TokenEcKey, TokenRsaKey, WrongPinError, is_token_uri, open_token_key
from garrison.errors import IssuanceError

# Of workloads.
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
# Of authorities.
CaPublicKey = PublicKey | ed25519.Ed25519PublicKey
CaKey = PrivateKey | ed25519.Ed25519PrivateKey

# Envoy 1.40 refuses P-521 and Ed25519 in a peer's certificate, so an identity on such a key would be useless.
CURVES = ("secp256r1", "secp384r1")
MIN_RSA_BITS = 2048
# BoringSSL (Envoy) verifies no larger modulus, and a larger one costs us time before we know the caller.
MAX_RSA_BITS = 8192
SERIAL_BITS = 128
# An RSA-8192 key is below 7 kB.
MAX_KEY_FILE_BYTES = 65_536
_PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----")


class KeyType(StrEnum):
    """The kinds of keys that a new CA can have."""

    P256 = "p256"
    P384 = "p384"
    RSA_3072 = "rsa-3072"
    ED25519 = "ed25519"


class WrongPassphraseError(ValueError):
    """What was decrypted with the passphrase is not a key."""


def new_private_key() -> ec.EllipticCurvePrivateKey:
    """Return a fresh P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def new_ca_key(kind: KeyType) -> CaKey:
    """Return a fresh key for a CA."""
    match kind:
        case KeyType.P256:
            return ec.generate_private_key(ec.SECP256R1())
        case KeyType.P384:
            return ec.generate_private_key(ec.SECP384R1())
        case KeyType.RSA_3072:
            return rsa.generate_private_key(public_exponent=65537, key_size=3072)
        case KeyType.ED25519:
            return ed25519.Ed25519PrivateKey.generate()


def new_serial() -> int:
    """Return a random serial number in 1 to 2**128 - 1: positive (RFC 5280, 4.1.2.2) and unguessable."""
    while True:
        if number := int.from_bytes(secrets.token_bytes(SERIAL_BITS // 8)):
            return number


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


def check_ca_public_key(key: object) -> CaPublicKey:
    """Return `key` if a CA may have one of its kind: what `check_public_key` takes, and Ed25519.

    Raises:
        IssuanceError: it may not; the message says what is accepted.

    """
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    return check_public_key(key)


def describe_key(key: object) -> str:
    """Return the kind of a public key in words, such as `EC secp256r1` or `RSA 2048`."""
    match key:
        case ec.EllipticCurvePublicKey():
            return f"EC {key.curve.name}"
        case rsa.RSAPublicKey():
            return f"RSA {key.key_size}"
    return type(key).__name__.removesuffix("PublicKey").lstrip("_")


def signature_hash(key: CaKey | CaPublicKey) -> hashes.SHA256 | hashes.SHA384 | None:
    """Return the hash to sign with: as strong as the key (RFC 5758, 3.2); Ed25519 brings its own."""
    if isinstance(key, ed25519.Ed25519PrivateKey | ed25519.Ed25519PublicKey):
        return None
    if (
        isinstance(key, ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey)
        and key.curve.name == "secp384r1"
    ):
        return hashes.SHA384()
    return hashes.SHA256()


def private_key_pem(key: CaKey) -> bytes:
    """Return `key` as unencrypted PKCS#8 PEM, the one form that every consumer reads."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_key_pem(key: CaPublicKey) -> bytes:
    """Return a public key as PEM (SubjectPublicKeyInfo)."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def key_file(key: CaKey, passphrase: bytes | None) -> bytes:
    """Return `key` as it is written down for a CA: PKCS#8 PEM, encrypted if there is a passphrase.

    Of a key in a token it is the URI.
    """
    if isinstance(key, TokenEcKey | TokenRsaKey):
        return f"{key.uri}\n".encode()
    if passphrase is None:
        return private_key_pem(key)
    der = key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    salt, iv = secrets.token_bytes(SALT_BYTES), secrets.token_bytes(IV_BYTES)
    return encrypt_key(der, passphrase, salt=salt, iv=iv)


def parse_private_key(pem: bytes, passphrase: Callable[[], bytes] | None = None) -> CaKey:
    """Return the private key in `pem`, if it is one that a CA may sign with.

    `passphrase` is called only if the key is encrypted.

    Raises:
        WrongPassphraseError: the passphrase does not open it.
        ValueError: it holds none, several, an encrypted one without `passphrase`, or one of another kind.

    """
    if len(pem) > MAX_KEY_FILE_BYTES:
        raise ValueError(f"a private key has at most {MAX_KEY_FILE_BYTES} bytes")
    if is_token_uri(pem):
        return _token_key(pem, passphrase)
    if len(_PRIVATE_KEY.findall(pem)) > 1:
        raise ValueError("it holds more than one private key")
    encrypted = describe_encryption(pem).text != "none"
    if encrypted and passphrase is None:
        raise ValueError("the private key is encrypted")
    password = passphrase() if encrypted and passphrase is not None else None
    try:
        key = serialization.load_pem_private_key(pem, password=password)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if encrypted and not isinstance(error, UnsupportedAlgorithm):
            raise WrongPassphraseError("the passphrase is wrong, or the file is damaged") from error
        raise ValueError("it holds no readable PEM private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey):
        message = "only EC, RSA and Ed25519 keys can sign here"
        raise ValueError(message)  # noqa: TRY004 - it is the text that is wrong
    try:
        check_ca_public_key(key.public_key())
    except IssuanceError as error:
        raise ValueError(str(error)) from error
    return key


def _token_key(content: bytes, pin: Callable[[], bytes] | None) -> CaKey:
    if pin is None:
        raise ValueError("the key is in a token, whose PIN is the passphrase")
    try:
        key = open_token_key(content.decode("ascii", "replace"), pin)
        check_ca_public_key(key.public_key())
    except WrongPinError as error:
        raise WrongPassphraseError(str(error)) from error
    except IssuanceError as error:
        raise ValueError(str(error)) from error
    return key
