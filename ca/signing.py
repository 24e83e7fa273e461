"""Signatures of a CA: made with its key, and verified before anything that bears one leaves. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from ca import der
from ca.keys import CaKey, CaPublicKey, signature_hash


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a key signs: its AlgorithmIdentifier (DER), and what signing and verifying are told of it."""

    identifier: bytes
    arguments: tuple[Any, ...]

    @classmethod
    def of(cls, key: CaKey | CaPublicKey) -> Scheme:
        """Return how a CA signs with `key`, or with the private key of a public one."""
        algorithm = signature_hash(key)
        if algorithm is None:
            return _ED25519
        if isinstance(key, rsa.RSAPrivateKey | rsa.RSAPublicKey):
            return _RSA_SHA256
        return _ECDSA_SHA384 if isinstance(algorithm, hashes.SHA384) else _ECDSA_SHA256


# RFC 5758, 3.2 (no parameters); RFC 4055, 5 (NULL); RFC 8410, 3.
_ECDSA_SHA256 = Scheme(bytes.fromhex("300a06082a8648ce3d040302"), (ec.ECDSA(hashes.SHA256()),))
_ECDSA_SHA384 = Scheme(bytes.fromhex("300a06082a8648ce3d040303"), (ec.ECDSA(hashes.SHA384()),))
_RSA_SHA256 = Scheme(bytes.fromhex("300d06092a864886f70d01010b0500"), (padding.PKCS1v15(), hashes.SHA256()))
_ED25519 = Scheme(bytes.fromhex("300506032b6570"), ())


def signed(to_be_signed: bytes, key: CaKey, scheme: Scheme) -> bytes:
    """Return `to_be_signed` with its signature: the form of certificates and lists (RFC 5280, 4.1, 5.1)."""
    signature: bytes = cast("Any", key).sign(to_be_signed, *scheme.arguments)
    return der.element(der.SEQUENCE, to_be_signed + scheme.identifier + der.bit_string(signature))


def verify(signature: bytes, data: bytes, key: CaPublicKey, scheme: Scheme) -> bool:
    """Tell whether `signature` is one of `data` under `key`."""
    try:
        cast("Any", key).verify(signature, data, *scheme.arguments)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True
