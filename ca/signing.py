"""Signatures of a CA: made with its key, and verified before anything that bears one leaves. Pure."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from ca import der
from ca.keys import CaKey, CaPublicKey, signature_hash
from garrison.errors import IssuanceError

# Made once; which hash goes with which key is said by `signature_hash`.
_SHA256 = hashes.SHA256()
_ECDSA_SHA256, _ECDSA_SHA384 = ec.ECDSA(_SHA256), ec.ECDSA(hashes.SHA384())
_PKCS1 = padding.PKCS1v15()

# Algorithm identifiers: RFC 5758, 3.2 (no parameters), RFC 4055, 5 (NULL), RFC 8410, 3.
_ECDSA_SHA256_DER = bytes.fromhex("300a06082a8648ce3d040302")
_ECDSA_SHA384_DER = bytes.fromhex("300a06082a8648ce3d040303")
_RSA_SHA256_DER = bytes.fromhex("300d06092a864886f70d01010b0500")
_ED25519_DER = bytes.fromhex("300506032b6570")


def algorithm_identifier(key: CaKey) -> bytes:
    """Return how `key` signs (DER AlgorithmIdentifier).

    Raises:
        IssuanceError: it is no key that a CA signs with.

    """
    match key:
        case ec.EllipticCurvePrivateKey():
            return _ECDSA_SHA384_DER if _ecdsa(key) is _ECDSA_SHA384 else _ECDSA_SHA256_DER
        case rsa.RSAPrivateKey():
            return _RSA_SHA256_DER
        case ed25519.Ed25519PrivateKey():
            return _ED25519_DER
    raise IssuanceError(f"a CA does not sign with a {type(key).__name__}")


def signed(to_be_signed: bytes, key: CaKey) -> bytes:
    """Return `to_be_signed` with its signature: the form of certificates and lists (RFC 5280, 4.1, 5.1).

    Raises:
        IssuanceError: it is no key that a CA signs with.

    """
    signature = der.bit_string(_sign(to_be_signed, key))
    return der.element(der.SEQUENCE, to_be_signed + algorithm_identifier(key) + signature)


def verify(signature: bytes, data: bytes, key: CaPublicKey) -> bool:
    """Tell whether `signature` is one of `data` under `key`."""
    try:
        match key:
            case ec.EllipticCurvePublicKey():
                key.verify(signature, data, _ecdsa(key))
            case rsa.RSAPublicKey():
                key.verify(signature, data, _PKCS1, _SHA256)
            case ed25519.Ed25519PublicKey():
                key.verify(signature, data)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True


def _sign(data: bytes, key: CaKey) -> bytes:
    match key:
        case ec.EllipticCurvePrivateKey():
            return key.sign(data, _ecdsa(key))
        case rsa.RSAPrivateKey():
            return key.sign(data, _PKCS1, _SHA256)
        case ed25519.Ed25519PrivateKey():
            return key.sign(data)
    raise IssuanceError(f"a CA does not sign with a {type(key).__name__}")


def _ecdsa(key: ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey) -> ec.ECDSA:
    return _ECDSA_SHA384 if isinstance(signature_hash(key), hashes.SHA384) else _ECDSA_SHA256
