"""A ledger from one store to another: everything, with its audit log and all numbers; or nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from ca.ledger import Ledger, LedgerUnavailableError
from ca.store.contents import Contents
from ca.store.opening import LedgerPlace
from ca.store.redis import RedisLedger
from ca.store.sqlite import SqliteLedger
from garrison.documents import Diagnostic, Position
from garrison.errors import ConfigError
from garrison.identity import TrustDomain
from garrison.redis_address import RedisAddress


def migrate(
    source: LedgerPlace, target: LedgerPlace, trust_domain: TrustDomain, *, warn: Callable[[str], None]
) -> Contents:
    """Copy the ledger at `source` to `target`, where there must be none, and return what was copied (closed).

    What was copied is read again from `target` and compared before it counts.

    Raises:
        ConfigError: there is no ledger to copy, or one in the way; or as `LedgerPlace.open`.
        LedgerUnavailableError: one of them cannot be read or written, the audit log is broken, or the ledger
            was changed meanwhile: whoever uses it has to be stopped. There is nothing at `target` then.

    """
    with contextlib.closing(_open(source, trust_domain, warn)) as opened:
        contents = Contents.of(opened)

        def check(copied: Ledger) -> None:
            if opened.audit_head() != contents.head:
                message = f"`{source.where}`: it was changed while it was copied: stop what uses it"
                raise LedgerUnavailableError(message)
            if not contents.is_same(Contents.of(copied)):
                raise LedgerUnavailableError(f"`{target.where}`: the copy is not what was copied")

        if isinstance(target.where, RedisAddress):
            ledger = RedisLedger(target.redis(target.where), trust_domain, warn=warn, opening="empty")
            with contextlib.closing(ledger):
                _load_redis(ledger, contents, check)
        else:
            assert target.where is not None  # noqa: S101 - the command asks for both
            _load_file(target.where, contents, check)
        return contents


def _load_redis(ledger: RedisLedger, contents: Contents, check: Callable[[Ledger], None]) -> None:
    try:
        ledger.load(contents)
        check(ledger)
        ledger.activate()
    except BaseException:
        ledger.discard()
        raise


def _open(
    source: LedgerPlace, trust_domain: TrustDomain, warn: Callable[[str], None]
) -> SqliteLedger | RedisLedger:
    if isinstance(source.where, RedisAddress):
        return RedisLedger(source.redis(source.where), trust_domain, warn=warn, opening="existing")
    assert source.where is not None  # noqa: S101 - the command asks for both
    if not source.where.exists():
        raise _problem(source.where, "there is no ledger here")
    return SqliteLedger(source.where)


def _load_file(path: Path, contents: Contents, check: Callable[[Ledger], None]) -> None:
    if os.path.lexists(path):
        raise _problem(path, "there is a file already, which is not replaced")
    unfinished = path.with_name(f".new-{path.name}")
    _remove(unfinished)
    try:
        with contextlib.closing(SqliteLedger(unfinished)) as ledger:
            ledger.load(contents)
            check(ledger)
        # Fails if somebody was faster; closed, a ledger is one file.
        os.link(unfinished, path)
    finally:
        _remove(unfinished)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    for ending in ("", "-wal", "-shm"):
        path.with_name(path.name + ending).unlink(missing_ok=True)


def _problem(path: Path, message: str) -> ConfigError:
    return ConfigError([Diagnostic(str(path), Position(1, 1), (), "ledger", message)])
