"""Private keys encrypted with a passphrase: PKCS#8 `EncryptedPrivateKeyInfo`, which other tools read too.

The library's own writer derives the key in 2048 rounds, which a graphics card tries a million times a
second. So the structure is put together here: PBES2 (RFC 8018, 6.2 and appendix A.4) with
PBKDF2-HMAC-SHA-256 and AES-256-CBC, what OpenSSL, GnuTLS, NSS and Java all read. Scrypt is read but not
written: OpenSSL refuses it at a cost that would be worth having (more than 32 MiB).

No randomness here: salt and initialization vector are arguments.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes, padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC
from cryptography.x509 import ObjectIdentifier

# OWASP Password Storage Cheat Sheet (2023) for PBKDF2 with SHA-256; about 0.1 s.
PBKDF2_ROUNDS = 600_000
# A file that asks for more would only keep us busy.
MAX_PBKDF2_ROUNDS = 20_000_000
MAX_SCRYPT_BYTES = 256 * 1024 * 1024
SALT_BYTES = 16
IV_BYTES = 16
# OpenSSL's default (N 2**14, r 8, p 1): 16 MiB for each guess, which is what a graphics card lacks.
_LEAST_SCRYPT_COST = 2**14 * 8
_KEY_BYTES = 32

_PBES2 = ObjectIdentifier("1.2.840.113549.1.5.13")
_PBKDF2 = ObjectIdentifier("1.2.840.113549.1.5.12")
_SCRYPT = ObjectIdentifier("1.3.6.1.4.1.11591.4.11")
_AES_256_CBC = ObjectIdentifier("2.16.840.1.101.3.4.1.42")
_HMAC_SHA1 = ObjectIdentifier("1.2.840.113549.2.7")
_HMAC_SHA256 = ObjectIdentifier("1.2.840.113549.2.9")
_HASHES = {
    _HMAC_SHA1: "SHA-1",
    ObjectIdentifier("1.2.840.113549.2.8"): "SHA-224",
    _HMAC_SHA256: "SHA-256",
    ObjectIdentifier("1.2.840.113549.2.10"): "SHA-384",
    ObjectIdentifier("1.2.840.113549.2.11"): "SHA-512",
}
_CIPHERS = {
    ObjectIdentifier("2.16.840.1.101.3.4.1.2"): "AES-128-CBC",
    ObjectIdentifier("2.16.840.1.101.3.4.1.22"): "AES-192-CBC",
    _AES_256_CBC: "AES-256-CBC",
}
_BLOCK = re.compile(
    rb"-----BEGIN ENCRYPTED PRIVATE KEY-----(?P<body>[\sA-Za-z0-9+/=]+)-----END ENCRYPTED PRIVATE KEY-----"
)
_PLAIN = re.compile(rb"-----BEGIN (?:EC |RSA )?PRIVATE KEY-----")


@dataclass(frozen=True, slots=True)
class KeyEncryption:
    """How a key file is protected, in words; `weak` says that it should be written anew."""

    text: str
    weak: bool


PLAIN = KeyEncryption("none", weak=True)


@asn1.sequence
class _Prf:
    algorithm: ObjectIdentifier
    parameters: asn1.Null | None


@asn1.sequence
class _Pbkdf2Parameters:
    salt: bytes
    rounds: int
    key_bytes: int | None
    prf: _Prf | None


@asn1.sequence
class _ScryptParameters:
    """RFC 7914, 7.1."""

    salt: bytes
    cost: int
    block_size: int
    parallelization: int
    key_bytes: int | None


@asn1.sequence
class _Algorithm:
    algorithm: ObjectIdentifier
    parameters: asn1.TLV


@asn1.sequence
class _Pbes2Parameters:
    kdf: _Algorithm
    cipher: _Algorithm


@asn1.sequence
class _EncryptedPrivateKeyInfo:
    algorithm: _Algorithm
    data: bytes


@asn1.sequence
class _WrittenKdf:
    algorithm: ObjectIdentifier
    parameters: _Pbkdf2Parameters


@asn1.sequence
class _WrittenCipher:
    algorithm: ObjectIdentifier
    initialization_vector: bytes


@asn1.sequence
class _WrittenPbes2:
    kdf: _WrittenKdf
    cipher: _WrittenCipher


@asn1.sequence
class _WrittenAlgorithm:
    algorithm: ObjectIdentifier
    parameters: _WrittenPbes2


@asn1.sequence
class _WrittenInfo:
    algorithm: _WrittenAlgorithm
    data: bytes


def encrypt_key(pkcs8_der: bytes, passphrase: bytes, *, salt: bytes, iv: bytes) -> bytes:
    """Return a PKCS#8 key encrypted with `passphrase`, as PEM.

    `salt` and `iv` are fresh random bytes: `SALT_BYTES` and `IV_BYTES` of them.
    """
    derived = PBKDF2HMAC(hashes.SHA256(), _KEY_BYTES, salt, PBKDF2_ROUNDS).derive(passphrase)
    padder = padding.PKCS7(algorithms.AES.block_size).padder()
    encryptor = Cipher(algorithms.AES(derived), modes.CBC(iv)).encryptor()
    data = encryptor.update(padder.update(pkcs8_der) + padder.finalize()) + encryptor.finalize()
    kdf = _Pbkdf2Parameters(
        salt=salt,
        rounds=PBKDF2_ROUNDS,
        key_bytes=None,
        prf=_Prf(algorithm=_HMAC_SHA256, parameters=asn1.Null()),
    )
    info = _WrittenInfo(
        algorithm=_WrittenAlgorithm(
            algorithm=_PBES2,
            parameters=_WrittenPbes2(
                kdf=_WrittenKdf(algorithm=_PBKDF2, parameters=kdf),
                cipher=_WrittenCipher(algorithm=_AES_256_CBC, initialization_vector=iv),
            ),
        ),
        data=data,
    )
    body = base64.encodebytes(asn1.encode_der(info)).replace(b"\n", b"")
    lines = b"\n".join(body[start : start + 64] for start in range(0, len(body), 64))
    return b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n" + lines + b"\n-----END ENCRYPTED PRIVATE KEY-----\n"


def describe_encryption(pem: bytes) -> KeyEncryption:
    """Return how the one key in `pem` is protected; whether the passphrase fits is not known here.

    Raises:
        ValueError: it is malformed, or asks for more work than any honest file does.

    """
    if pem.startswith(b"pkcs11:"):
        return KeyEncryption("in a token (PKCS#11)", weak=False)
    match = _BLOCK.search(pem)
    if match is None:
        if b"\nProc-Type: 4,ENCRYPTED" in pem.replace(b"\r", b""):
            # OpenSSL's old form: one round of MD5.
            return KeyEncryption("OpenSSL's old PEM encryption", weak=True)
        if _PLAIN.search(pem):
            return PLAIN
        raise ValueError("it holds no readable PEM private key")
    try:
        der = base64.b64decode(b"".join(match["body"].split()), validate=True)
        info = asn1.decode_der(_EncryptedPrivateKeyInfo, der)
        if info.algorithm.algorithm != _PBES2:
            return KeyEncryption(f"PBES1 ({info.algorithm.algorithm.dotted_string})", weak=True)
        parameters = info.algorithm.parameters.parse(_Pbes2Parameters)
        kdf, strong = _describe_kdf(parameters.kdf)
    except (binascii.Error, ValueError) as error:
        if isinstance(error, _TooMuchWorkError):
            raise
        raise ValueError("it holds a malformed encrypted private key") from error
    cipher = _CIPHERS.get(parameters.cipher.algorithm)
    name = cipher or parameters.cipher.algorithm.dotted_string
    return KeyEncryption(f"{kdf}, {name}", weak=not strong or cipher is None)


class _TooMuchWorkError(ValueError):
    """A key file whose derivation would take minutes or gigabytes."""


def _describe_kdf(kdf: _Algorithm) -> tuple[str, bool]:
    if kdf.algorithm == _PBKDF2:
        pbkdf2 = kdf.parameters.parse(_Pbkdf2Parameters)
        if not 0 < pbkdf2.rounds <= MAX_PBKDF2_ROUNDS:
            raise _TooMuchWorkError(f"its key derivation has {pbkdf2.rounds} rounds")
        prf = _HMAC_SHA1 if pbkdf2.prf is None else pbkdf2.prf.algorithm
        name = _HASHES.get(prf, prf.dotted_string)
        strong = pbkdf2.rounds >= PBKDF2_ROUNDS and name in {"SHA-256", "SHA-384", "SHA-512"}
        return f"PBKDF2-HMAC-{name} with {pbkdf2.rounds} rounds", strong
    if kdf.algorithm == _SCRYPT:
        scrypt = kdf.parameters.parse(_ScryptParameters)
        numbers = (scrypt.cost, scrypt.block_size, scrypt.parallelization)
        work = scrypt.cost * scrypt.block_size * scrypt.parallelization
        # The library needs 128 * N * r bytes, p times over.
        if min(numbers) < 1 or 128 * work > MAX_SCRYPT_BYTES:
            raise _TooMuchWorkError("its key derivation (scrypt) needs more memory than is allowed")
        strong = work >= _LEAST_SCRYPT_COST
        return f"scrypt with N {scrypt.cost}, r {scrypt.block_size}, p {scrypt.parallelization}", strong
    return f"unknown key derivation {kdf.algorithm.dotted_string}", False
