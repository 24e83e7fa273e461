"""Hashes of passwords: slow on purpose, so that who steals a file learns little by trying.

Ours are scrypt in PHC format (`$scrypt$ln=15,r=8,p=3$SALT$HASH`); `htpasswd -B` makes bcrypt, which is taken
as well. Others are not: they are as quick to try as they are to compute.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from typing import Protocol

import bcrypt

MAX_PASSWORD_BYTES = 1024
# OWASP, "Password Storage": N=2^15, r=8, p=3 is as good as N=2^17, p=1, with a quarter of its memory.
_LN, _R, _P = 15, 8, 3
_SALT_BYTES, _HASH_BYTES = 16, 32
# N times r times p of the least that OWASP names.
_WORTHY_COST = 2**14 * 8 * 5
_MOST_MEMORY = 128 * 1024 * 1024
_MOST_P = 16
_SCRYPT = re.compile(
    r"\$scrypt\$ln=([0-9]{1,2}),r=([0-9]{1,2}),p=([0-9]{1,2})\$([A-Za-z0-9+/]+)\$([A-Za-z0-9+/]+)"
)
_BCRYPT = re.compile(r"\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{53}")
_WORTHY_ROUNDS, _LEAST_ROUNDS, _MOST_ROUNDS = 10, 4, 15
# bcrypt reads no more; longer passwords that differ only after that would be the same.
_BCRYPT_BYTES = 72


class PasswordHash(Protocol):
    """A hash that a password may match."""

    @property
    def is_weak(self) -> bool:
        """Whether trying passwords is cheaper than it should be."""

    @property
    def cost(self) -> tuple[object, ...]:
        """What decides how long matching takes."""

    def matches(self, password: bytes) -> bool:
        """Return whether it is the hash of `password`; takes its time, whatever the answer."""

    def decoy(self) -> PasswordHash:
        """Return a hash that no password has, and that takes as long as this one."""


@dataclass(frozen=True, slots=True)
class ScryptHash:
    """RFC 7914."""

    ln: int
    r: int
    p: int
    salt: bytes
    digest: bytes

    @property
    def is_weak(self) -> bool:
        """Whether it costs less than OWASP asks for."""
        return (1 << self.ln) * self.r * self.p < _WORTHY_COST

    @property
    def cost(self) -> tuple[object, ...]:
        """The parameters."""
        return "scrypt", self.ln, self.r, self.p

    def matches(self, password: bytes) -> bool:
        """Return whether it is the hash of `password`."""
        return hmac.compare_digest(self._hash(password, len(self.digest)), self.digest)

    def _hash(self, password: bytes, size: int) -> bytes:
        n = 1 << self.ln
        memory = 128 * self.r * (n + self.p + 2) + 1024 * 1024
        return hashlib.scrypt(password, salt=self.salt, n=n, r=self.r, p=self.p, maxmem=memory, dklen=size)

    def decoy(self) -> ScryptHash:
        """Return a hash that no password has."""
        return ScryptHash(self.ln, self.r, self.p, secrets.token_bytes(_SALT_BYTES), secrets.token_bytes(32))

    def of(self, password: bytes) -> ScryptHash:
        """Return the hash of `password` with these parameters and salt."""
        return ScryptHash(self.ln, self.r, self.p, self.salt, self._hash(password, _HASH_BYTES))

    def __str__(self) -> str:
        salt, digest = (base64.b64encode(part).rstrip(b"=").decode() for part in (self.salt, self.digest))
        return f"$scrypt$ln={self.ln},r={self.r},p={self.p}${salt}${digest}"


@dataclass(frozen=True, slots=True)
class BcryptHash:
    """As `htpasswd -B` makes them."""

    text: bytes
    rounds: int

    @property
    def is_weak(self) -> bool:
        """Whether it has fewer rounds than OWASP asks for."""
        return self.rounds < _WORTHY_ROUNDS

    @property
    def cost(self) -> tuple[object, ...]:
        """The parameters."""
        return "bcrypt", self.rounds

    def matches(self, password: bytes) -> bool:
        """Return whether it is the hash of `password`; never of one with more than 72 bytes."""
        same: bool = bcrypt.checkpw(password[:_BCRYPT_BYTES], self.text)
        return same and len(password) <= _BCRYPT_BYTES

    def decoy(self) -> BcryptHash:
        """Return a hash that no password has."""
        return BcryptHash(bcrypt.gensalt(self.rounds) + b"." * 31, self.rounds)


def hash_password(password: str) -> str:
    """Return a hash of `password` to be stored, with a new salt.

    Raises:
        ValueError: no such password can be sent.

    """
    return str(new_scrypt().of(encode_password(password)))


def new_scrypt(ln: int = _LN, r: int = _R, p: int = _P) -> ScryptHash:
    """Return the parameters of a new hash, with a salt."""
    return ScryptHash(ln, r, p, secrets.token_bytes(_SALT_BYTES), b"")


def encode_password(password: str) -> bytes:
    """Return the bytes of a password that HTTP Basic can carry (RFC 7617, section 2).

    Raises:
        ValueError: it has control characters, or is too long.

    """
    encoded = password.encode("utf-8", "surrogateescape")
    if not encoded or len(encoded) > MAX_PASSWORD_BYTES:
        raise ValueError(f"a password has 1 to {MAX_PASSWORD_BYTES} bytes")
    if any(character < " " or "\x7f" <= character <= "\x9f" for character in password):
        raise ValueError("a password has no control characters")
    return encoded


def parse_password_hash(text: str) -> PasswordHash:
    """Return the hash that `text` spells.

    Raises:
        ValueError: it spells none that is taken; the message does not repeat it.

    """
    if found := _SCRYPT.fullmatch(text):
        ln, r, p = (int(number) for number in found.groups()[:3])
        salt, digest = _decoded(found[4]), _decoded(found[5])
        if not (ln >= 1 and r >= 1 and 1 <= p <= _MOST_P and 128 * r * (1 << ln) <= _MOST_MEMORY):
            raise ValueError(f"scrypt takes at most 128 MiB (128 * r * 2^ln) and p={_MOST_P}")
        if len(salt) < 8 or not 16 <= len(digest) <= 64:
            raise ValueError("the salt has at least 8 bytes, the hash 16 to 64")
        return ScryptHash(ln, r, p, salt, digest)
    if found := _BCRYPT.fullmatch(text):
        rounds = int(found[1])
        if not _LEAST_ROUNDS <= rounds <= _MOST_ROUNDS:
            raise ValueError(f"bcrypt has {_LEAST_ROUNDS} to {_MOST_ROUNDS} rounds here")
        return BcryptHash(text.encode(), rounds)
    raise ValueError(
        "this is no scrypt or bcrypt hash; plain passwords, MD5, SHA and crypt are not taken: make a new one"
        " with `garrison credentials hash-password` or `htpasswd -nB`"
    )


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        raise ValueError("the salt or the hash is not base64") from None
