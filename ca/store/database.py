"""One SQLite file: private, durable, migrated."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ca.ledger import LedgerUnavailableError
from garrison.documents import Diagnostic, Position
from garrison.errors import ConfigError

# STRICT tables (SQLite 3.37).
_OLDEST_SQLITE = (3, 37, 0)
# Another process holds the file for one commit at a time, which is a matter of milliseconds.
BUSY_SECONDS = 10.0
# Tells our files from those of other programs: "GRSN".
_APPLICATION_ID = 0x4752534E
_SMALLEST_FILE = 512
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class Database:
    """A SQLite file in WAL mode; what a transaction wrote is on disk when it ends.

    There are as many connections as are used at the same time, so who reads never waits for who writes.
    """

    def __init__(self, path: Path, steps: Sequence[str]) -> None:
        """Open the file, made with mode 0600 if there is none, and bring it to the version `len(steps)`.

        Raises:
            ConfigError: it is no such file, of a newer version, or others can write to it.
            LedgerUnavailableError: it cannot be opened or written now.

        """
        self.path = path
        self._lock = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._closed = False
        if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
            wanted = ".".join(map(str, _OLDEST_SQLITE))
            raise _problem(path, "old_sqlite", f"it needs SQLite {wanted}, this is {sqlite3.sqlite_version}")
        _make_private(path)
        try:
            self._migrate(steps)
        except BaseException:
            self.close()
            raise

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Run a transaction that no other one runs beside; an exception undoes all of it.

        Raises:
            LedgerUnavailableError: the file cannot be written: full, locked, gone, damaged.

        """
        with self.reading() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                # After some errors (a full disk) SQLite has undone it already.
                if connection.in_transaction:
                    with contextlib.suppress(sqlite3.Error):
                        connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Read, as of one moment for each statement.

        Raises:
            LedgerUnavailableError: the file cannot be read.

        """
        try:
            connection = self._take()
            try:
                yield connection
            finally:
                self._give_back(connection)
        except sqlite3.Error as error:
            raise LedgerUnavailableError(f"`{self.path}`: {error}") from error

    def close(self) -> None:
        """Close the file; what is at work meanwhile ends first."""
        with self._lock:
            self._closed = True
            connections, self._idle = self._idle, []
        for connection in connections:
            connection.close()

    def _take(self) -> sqlite3.Connection:
        with self._lock:
            if self._closed:
                raise sqlite3.ProgrammingError("it is closed")
            if self._idle:
                return self._idle.pop()
        # Used by one thread at a time, but not always by the same.
        connection = sqlite3.connect(
            self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            _use_wal(connection)
            # In WAL mode the default loses what was committed last when the power fails.
            connection.execute("PRAGMA synchronous = FULL").close()
            connection.execute("PRAGMA trusted_schema = OFF").close()
        except BaseException:
            connection.close()
            raise
        return connection

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(connection)
                return
        connection.close()

    def _migrate(self, steps: Sequence[str]) -> None:
        try:
            with self.reading() as connection:
                version = _version(connection)
        except LedgerUnavailableError as error:
            if getattr(error.__cause__, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB:
                raise _problem(self.path, "not_a_ledger", "it is not a ledger") from error
            raise
        if version == len(steps):
            return
        with self.writing() as connection:
            version = _version(connection)  # again: another process may have been faster
            if version is None:
                raise _problem(self.path, "not_a_ledger", "it is not a ledger")
            if version > len(steps):
                message = (
                    f"it was written by a newer Garrison (version {version}, this one knows {len(steps)})"
                )
                raise _problem(self.path, "newer_ledger", message)
            for step in steps[version:]:
                for statement in _statements(step):
                    connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {len(steps)}")


def _use_wal(connection: sqlite3.Connection) -> None:
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").close()
        except sqlite3.OperationalError as error:
            # Two processes that make the same new file: SQLite's own timeout does not cover this step.
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _version(connection: sqlite3.Connection) -> int | None:
    """Return how many steps were taken; None if the file is another program's."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    is_ours = application == _APPLICATION_ID if tables else application == version == 0
    return int(version) if is_ours else None


def _make_private(path: Path) -> None:
    try:
        folder = path.parent.stat()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _problem(path, "unreadable", f"cannot be opened: {(error.strerror or '').lower()}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _problem(path, "not_a_ledger", "it is no plain file")
        if 0 < status.st_size < _SMALLEST_FILE:
            # SQLite takes it for an empty file, and would write a new ledger over what is left of one.
            raise _problem(path, "not_a_ledger", "it is not a ledger")
        if status.st_size == 0:
            os.fchmod(descriptor, 0o600)  # the umask must not decide
            if os.geteuid() == 0 and status.st_uid != folder.st_uid:
                # An operator's first command as root must not lock out the user that serves.
                os.fchown(descriptor, folder.st_uid, folder.st_gid)
            return
        if status.st_mode & _WRITABLE_BY_OTHERS or status.st_uid not in {0, os.geteuid(), folder.st_uid}:
            raise _problem(path, "not_private", "others can write to it; it should be yours, with mode 0600")
    finally:
        os.close(descriptor)


def _statements(script: str) -> Iterator[str]:
    """Split a script: `executescript` would commit what it finds, and a half migrated file with it."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _problem(path: Path, code: str, message: str) -> ConfigError:
    return ConfigError([Diagnostic(str(path), Position(1, 1), (), code, message)])
