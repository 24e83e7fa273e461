"""Who may publish: Ed25519 keys (RFC 8032). Replicas know public keys; private keys stay with publishers."""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_PREFIX = "ed25519:"
_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key, written `ed25519:` and the base64 of its 32 bytes. `identifier` is a hash of it."""

    raw: bytes
    _key: Ed25519PublicKey = field(repr=False, compare=False)

    @classmethod
    def parse(cls, text: str) -> PublicKey:
        """Return the key that `text` spells.

        Raises:
            ValueError: it spells none.

        """
        try:
            raw = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
        except (binascii.Error, ValueError):
            raw = b""
        if not text.startswith(_PREFIX) or len(raw) != _KEY_BYTES:
            raise ValueError(f"`{text}` is not `{_PREFIX}` and the base64 of {_KEY_BYTES} bytes")
        return cls.of(Ed25519PublicKey.from_public_bytes(raw))

    @classmethod
    def of(cls, key: Ed25519PublicKey) -> PublicKey:
        """Return the key as ours."""
        return cls(key.public_bytes_raw(), key)

    @property
    def identifier(self) -> str:
        """What signatures call this key: 16 hexadecimal digits of its SHA-256."""
        return hashlib.sha256(self.raw).hexdigest()[:16]

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Return whether the owner of this key signed `message`."""
        try:
            self._key.verify(signature, message)
        except InvalidSignature:
            return False
        return True

    def __str__(self) -> str:
        return _PREFIX + base64.b64encode(self.raw).decode()


def parse_private_key(pem: bytes) -> Ed25519PrivateKey:
    """Return the key in `pem` (PKCS #8, not encrypted).

    Raises:
        ValueError: there is no such key in it.

    """
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except TypeError as error:
        raise ValueError("the key is encrypted, which is not supported") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError("there is no PEM private key in it") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("it is a private key, but not an Ed25519 one")  # noqa: TRY004 - a value of the file
    return key


def private_pem(key: Ed25519PrivateKey) -> bytes:
    """Return `key` as `parse_private_key` reads it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
