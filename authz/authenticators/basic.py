"""HTTP Basic (RFC 7617): names and hashed passwords from a file as `htpasswd` writes it.

Hashing takes long and much memory on purpose, so it runs in a few threads, and what was found out is
remembered for a while. A name that nobody has takes as long as a wrong password.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from authz.authenticators.passwords import (
    PasswordHash,
    encode_password,
    new_scrypt,
    parse_password_hash,
)
from authz.authn.credentials import Answer
from garrison.documents import Diagnostic, Position, Severity
from garrison.errors import ConfigError

# As many as are worth a file; the size of each is bounded below.
_MAX_FILE_BYTES = 16 * 1024 * 1024
_MAX_LINE = 1024
_MAX_CREDENTIAL = 2048
# Without `/`, which ends the issuer in `request.auth.principal`; RFC 7617, section 2: no colon, no control.
_NAME = re.compile(r"[^\x00-\x1f\x7f-\x9f/:]{1,253}")

_MALFORMED = Answer.refused("it is no name and password in base64")
# One text for both, here as there.
_WRONG = Answer.refused("no such name, or another password")


@dataclass(frozen=True, slots=True)
class Users:
    """Names with hashes, and the hash that all other names are compared with."""

    hashes: Mapping[str, PasswordHash] = field(default_factory=dict, repr=False)
    decoy: PasswordHash = field(default_factory=lambda: new_scrypt().decoy(), repr=False)


@dataclass(frozen=True, slots=True)
class UserGeneration:
    """The users of one authenticator as they were read at one time."""

    version: str
    users: Users
    warnings: tuple[Diagnostic, ...] = ()


class Passwords:
    """Knows the users that it was last told to use; the question of a `CachingAuthenticator`."""

    def __init__(self) -> None:
        self._users = Users()

    def use(self, generation: UserGeneration) -> None:
        """Know these users, and no others, from now on."""
        self._users = generation.users

    def verify(self, credential: str) -> Answer:
        """Return whose name and password it is. Takes long: for a thread."""
        parsed = parse_basic(credential)
        if parsed is None:
            return _MALFORMED
        users, (name, password) = self._users, parsed
        found = users.hashes.get(name)
        matches = (found or users.decoy).matches(password)
        return Answer.accepted({"sub": name}) if found is not None and matches else _WRONG


def parse_basic(credential: str) -> tuple[str, bytes] | None:
    """Return name and password of `base64(name:password)` in UTF-8, None when it is not that."""
    if len(credential) > _MAX_CREDENTIAL:
        return None
    try:
        text = base64.b64decode(credential, validate=True).decode("utf-8")
        name, colon, password = text.partition(":")
        encoded = encode_password(password)
    except (binascii.Error, ValueError):
        return None
    return (name, encoded) if colon and is_user_name(name) else None


def is_user_name(name: str) -> bool:
    """Return whether somebody can be called `name` here."""
    return _NAME.fullmatch(name) is not None


def load_users(file: Path) -> UserGeneration:
    """Return the users in a file of lines `NAME:HASH`; empty lines and comments (`#`) are left out.

    Raises:
        ConfigError: it cannot be read, or something in it is wrong; every problem is named with its line.

    """
    try:
        with file.open("rb") as opened:
            content = opened.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError([_diagnostic(file, 1, "unreadable", f"cannot be read: {reason}")]) from error
    if len(content) > _MAX_FILE_BYTES:
        message = f"the file has more than {_MAX_FILE_BYTES} bytes"
        raise ConfigError([_diagnostic(file, 1, "file_too_large", message)])
    hashes: dict[str, PasswordHash] = {}
    found: list[Diagnostic] = []
    for number, raw in enumerate(content.split(b"\n"), 1):
        line = raw.rstrip(b"\r")
        if not line.strip() or line.startswith(b"#"):
            continue
        try:
            name, password_hash = _parse_line(line)
        except ValueError as error:
            found.append(_diagnostic(file, number, "user", str(error)))
            continue
        if name in hashes:
            found.append(_diagnostic(file, number, "duplicate_name", f"`{name}` stands in the file twice"))
        hashes[name] = password_hash
        if password_hash.is_weak:
            message = f"the hash of `{name}` is cheaper to try than it should be: make a new one"
            found.append(_diagnostic(file, number, "weak_hash", message, Severity.WARNING))
    if any(one.severity is Severity.ERROR for one in found):
        raise ConfigError([one for one in found if one.severity is Severity.ERROR])
    if not hashes:
        message = "there is no user: nobody is let in by a password"
        found.append(_diagnostic(file, 1, "no_users", message, Severity.WARNING))
    return UserGeneration(hashlib.sha256(content).hexdigest()[:12], _users(hashes), tuple(found))


def _users(hashes: Mapping[str, PasswordHash]) -> Users:
    """Return `hashes` with a decoy that takes as long as most of them do."""
    if not hashes:
        return Users()
    costs = Counter(one.cost for one in hashes.values())
    usual = costs.most_common(1)[0][0]
    return Users(hashes, next(one for one in hashes.values() if one.cost == usual).decoy())


def _parse_line(line: bytes) -> tuple[str, PasswordHash]:
    if len(line) > _MAX_LINE:
        raise ValueError(f"a line has at most {_MAX_LINE} bytes")
    try:
        name, colon, text = line.decode("utf-8").partition(":")
    except UnicodeDecodeError:
        raise ValueError("the line is not UTF-8") from None
    if not colon or not is_user_name(name):
        raise ValueError("a line is `NAME:HASH`, with a name without `/` and control characters")
    return name, parse_password_hash(text)


def _diagnostic(
    file: Path, line: int, code: str, message: str, severity: Severity = Severity.ERROR
) -> Diagnostic:
    return Diagnostic(str(file), Position(line, 1), (), code, message, severity=severity)
