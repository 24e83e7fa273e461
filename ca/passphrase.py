"""Where the passphrase of encrypted keys comes from: a file, the environment, or somebody at a terminal."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from garrison.documents import Diagnostic, Position
from garrison.errors import ConfigError

ENVIRONMENT = "GARRISON_CA_PASSPHRASE"
NEW_ENVIRONMENT = "GARRISON_CA_NEW_PASSPHRASE"
# NIST SP 800-63B, 5.1.1.2.
MIN_CHARACTERS = 8
MAX_BYTES = 1024
# The codes of diagnostics that mean: not the passphrase.
NO_PASSPHRASE = "no_passphrase"  # noqa: S105 - a code, not a passphrase
WRONG_PASSPHRASE = "wrong_passphrase"  # noqa: S105 - a code, not a passphrase
# A group may read it: that is how Kubernetes gives a Secret to a process that is not root.
_OPEN_TO_OTHERS = stat.S_IWGRP | stat.S_IRWXO

AskFor = Callable[[str], str]
"""Asks at a terminal, with the text that it is given, and returns the answer."""


@dataclass(frozen=True, slots=True)
class PassphraseSource:
    """Asked only when a key turns out to be encrypted, or is to be.

    `file` comes before the environment `variable`, that before `ask`, which is None where nobody can answer.
    """

    file: Path | None
    environment: Mapping[str, str]
    variable: str = ENVIRONMENT
    option: str = "--passphrase-file"
    ask: AskFor | None = None

    def given(self) -> bytes | None:
        """Return the passphrase that is there without asking anybody; None if there is none.

        Raises:
            ConfigError: the file cannot be used, or what is given is empty or too long.

        """
        if self.file is not None:
            return read_passphrase_file(self.file)
        text = self.environment.get(self.variable)
        if text is None:
            return None
        # What the environment holds may be any bytes.
        return _check(text.encode("utf-8", "surrogateescape"), f"environment variable {self.variable}")

    def to_read(self, key_file: Path) -> bytes:
        """Return the passphrase of the encrypted `key_file`.

        Raises:
            ConfigError: there is none (`no_passphrase`), or as `given`.

        """
        found = self.given()
        if found is not None:
            return found
        if self.ask is None:
            message = (
                f"the key is encrypted and there is no passphrase: set {self.variable} or give {self.option}"
            )
            raise _problem(str(key_file), NO_PASSPHRASE, message)
        return _check(self.ask(f"Passphrase of {key_file}").encode(), "passphrase")

    def to_write(self, what: str) -> bytes | None:
        """Return the passphrase that `what` will be encrypted with; None if there is none and nobody to ask.

        At a terminal it is asked for twice.

        Raises:
            ConfigError: it is too short, was typed differently the second time, or as `given`.

        """
        found = self.given()
        if found is None and self.ask is not None:
            found = _check(self.ask(f"New passphrase for {what}").encode(), "passphrase")
            if self.ask("The same again").encode() != found:
                raise _problem("passphrase", "differs", "the two are not the same, nothing was done")
        if found is not None and len(found.decode("utf-8", "replace")) < MIN_CHARACTERS:
            message = f"a new passphrase has at least {MIN_CHARACTERS} characters"
            raise _problem(str(self.file or self.variable), "short_passphrase", message)
        return found


def no_passphrase(key_file: Path) -> bytes:
    """Stand for a passphrase where none is foreseen.

    Raises:
        ConfigError: always.

    """
    return PassphraseSource(None, {}).to_read(key_file)


def read_passphrase_file(path: Path) -> bytes:
    """Return the one line in the file, without its end.

    Raises:
        ConfigError: it cannot be read, is open to others, or does not hold exactly one line.

    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            content = file.read(MAX_BYTES + 3)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise _problem(str(path), "unreadable", f"cannot be read: {reason}") from error
    if stat.S_ISREG(status.st_mode) and status.st_mode & _OPEN_TO_OTHERS:
        mode = f"{stat.S_IMODE(status.st_mode):04o}"
        message = f"others can read or write it (mode {mode}): chmod 600, in Kubernetes `defaultMode: 0440`"
        raise _problem(str(path), "open_to_others", message)
    return _check(content.removesuffix(b"\n").removesuffix(b"\r"), str(path))


def _check(passphrase: bytes, where: str) -> bytes:
    if not passphrase:
        raise _problem(where, NO_PASSPHRASE, "the passphrase is empty")
    if len(passphrase) > MAX_BYTES:
        raise _problem(where, "long_passphrase", f"a passphrase has at most {MAX_BYTES} bytes")
    if b"\n" in passphrase or b"\0" in passphrase:
        raise _problem(where, "not_one_line", "a passphrase is one line of text")
    return passphrase


def _problem(where: str, code: str, message: str) -> ConfigError:
    return ConfigError([Diagnostic(where, Position(1, 1), (), code, message)])
