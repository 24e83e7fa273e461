"""API keys from a file or a folder: everything is in memory, so no call waits.

A key is looked up by its SHA-256. How long that takes depends on the digest, which nobody can choose byte by
byte, and not on how much of a key is right.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from authz.authenticators.base import new_results
from authz.authenticators.clients import (
    MAX_KEY_LENGTH,
    NAME_PATTERN,
    Client,
    Clients,
    KeyFile,
    client_named,
    digest_of,
    parse_hash,
)
from authz.authn.credentials import Answer
from garrison.documents import Diagnostic, Field, Position, Severity, parse, validate
from garrison.documents.yaml import MAX_FILE_BYTES
from garrison.errors import ConfigError

UNKNOWN_KEY = Answer.refused("no client has this key")
_TOO_LONG = Answer.refused(f"a key has at most {MAX_KEY_LENGTH} characters")
# What a Secret holds at most (Kubernetes: 1 MiB in all).
_MAX_CLIENT_BYTES = 1024 * 1024
_MAX_CLIENTS = 100_000
_NAME = re.compile(NAME_PATTERN)


@dataclass(frozen=True, slots=True)
class KeyGeneration:
    """The keys of one authenticator as they were read at one time."""

    version: str
    clients: Clients
    warnings: tuple[Diagnostic, ...] = ()


class ApiKeys:
    """Knows the clients that it was last told to use."""

    is_open: bool | None = None

    def __init__(self) -> None:
        self.results = new_results()
        self._clients = Clients()

    def use(self, generation: KeyGeneration) -> None:
        """Know these clients, and no others, from now on."""
        self._clients = generation.clients

    def known(self, credential: str, now: float) -> Answer:
        """Return the answer."""
        del now  # whoever asked looks at the times of the answer
        answer = self._look_up(credential)
        self.results[answer.result] += 1
        return answer

    def _look_up(self, credential: str) -> Answer:
        if len(credential) > MAX_KEY_LENGTH:
            return _TOO_LONG
        client = self._clients.by_digest.get(digest_of(credential))
        return client.answer if client is not None else UNKNOWN_KEY

    async def ask(self, credential: str) -> Answer:
        """Return the answer."""
        return self.known(credential, 0.0)

    @property
    def remembered(self) -> int:
        """How many keys are known."""
        return len(self._clients)

    async def close(self) -> None:
        """Do nothing: there is nothing to let go of."""


def load_file(file: Path) -> KeyGeneration:
    """Return the keys in a YAML file with a list `keys`.

    Raises:
        ConfigError: it cannot be read, or something in it is wrong; every problem is named with its place.

    """
    content = _read(file, MAX_FILE_BYTES)
    documents, problems = parse(content, str(file))
    if len(documents) > 1:
        problems.append(documents[1].error((), "two_documents", "there can be only one document"))
    found: dict[str, Client] = {}
    warnings: list[Diagnostic] = []
    for document in documents[:1]:
        model = validate(KeyFile, document)
        if isinstance(model, list):
            problems += model
            continue
        names: set[str] = set()
        for index, record in enumerate(model.keys):
            where: Field = ("keys", index)
            if record.name in names:
                message = f"`{record.name}` stands here twice; one client has a list of `hashes`"
                problems.append(document.error((*where, "name"), "duplicate_name", message))
            names.add(record.name)
            client = Client(record.name, record.answer())
            for number, text in enumerate(record.hashes):
                if found.setdefault(parse_hash(text), client) is not client or text in record.hashes[:number]:
                    message = "this hash stands here twice: one key cannot be two clients"
                    problems.append(document.error((*where, "hashes", number), "duplicate_hash", message))
    if not documents and not problems:
        problems.append(_problem(file, "missing_field", "the file is empty; no keys at all are `keys: []`"))
    if problems:
        raise ConfigError(problems)
    if not found:
        warnings.append(_warning(file, "no_keys", "there is no key: nobody is let in by one"))
    return KeyGeneration(hashlib.sha256(content).hexdigest()[:12], Clients(found), tuple(warnings))


def client_files(folder: Path) -> list[Path]:
    """Return the files of a folder that hold keys: all whose name does not start with a dot.

    In a volume of a Kubernetes Secret those are links into `..data`, which is replaced as a whole.

    Raises:
        OSError: the folder cannot be read.

    """
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    return [folder / name for name in names if not (folder / name).is_dir()]


def load_directory(folder: Path) -> KeyGeneration:
    """Return the keys in a folder: the name of a file is a client's, each line in it the hash of a key.

    Raises:
        ConfigError: it cannot be read, or something in it is wrong.

    """
    try:
        files = client_files(folder)
    except OSError as error:
        raise ConfigError([_unreadable(folder, error)]) from error
    problems: list[Diagnostic] = []
    found: dict[str, Client] = {}
    digest = hashlib.sha256()
    if len(files) > _MAX_CLIENTS:
        problems.append(_problem(folder, "too_long", f"a folder has at most {_MAX_CLIENTS} clients"))
        files = []
    for file in files:
        try:
            content = _read(file, _MAX_CLIENT_BYTES)
            _add_client(file, content, found, problems)
        except ConfigError as error:
            problems += error.diagnostics
            continue
        digest.update(repr((file.name, content)).encode())
    if problems:
        raise ConfigError(problems)
    warnings = () if found else (_warning(folder, "no_keys", "there is no key: nobody is let in by one"),)
    return KeyGeneration(digest.hexdigest()[:12], Clients(found), warnings)


def _add_client(file: Path, content: bytes, found: dict[str, Client], problems: list[Diagnostic]) -> None:
    if not _NAME.fullmatch(file.name):
        problems.append(_problem(file, "name", "the name of the file is no name of a client"))
        return
    try:
        lines: Sequence[str] = content.decode("ascii").split("\n")
    except UnicodeDecodeError:
        problems.append(_problem(file, "encoding", "the file is not ASCII"))
        return
    client, before = client_named(file.name), len(found)
    for number, line in enumerate(lines, 1):
        if not (text := line.strip()):
            continue
        try:
            digest = parse_hash(text)
        except ValueError as error:
            problems.append(_problem(file, "hash", str(error), number))
            continue
        if digest in found:
            message = f"client `{found[digest].name}` has this hash, too: one key cannot stand twice"
            problems.append(_problem(file, "duplicate_hash", message, number))
        found.setdefault(digest, client)
    if len(found) == before and not any(one.file == str(file) for one in problems):
        problems.append(
            _problem(file, "no_keys", "there is no hash in it; to remove a client, remove its file")
        )


def _read(file: Path, limit: int) -> bytes:
    try:
        with file.open("rb") as content:
            found = content.read(limit + 1)
    except OSError as error:
        raise ConfigError([_unreadable(file, error)]) from error
    if len(found) > limit:
        raise ConfigError([_problem(file, "file_too_large", f"the file has more than {limit} bytes")])
    return found


def _unreadable(file: Path, error: OSError) -> Diagnostic:
    return _problem(file, "unreadable", f"cannot be read: {(error.strerror or str(error)).lower()}")


def _problem(file: Path, code: str, message: str, line: int = 1) -> Diagnostic:
    return Diagnostic(str(file), Position(line, 1), (), code, message)


def _warning(file: Path, code: str, message: str) -> Diagnostic:
    return Diagnostic(str(file), Position(1, 1), (), code, message, severity=Severity.WARNING)
