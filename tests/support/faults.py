"""A file system that fails at the n-th operation: once (a full disk), or for good (the power is gone)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest

# Whatever `ca.atomic_files` and `ca.directory` do to files goes through these.
OPERATIONS = (
    "open",
    "write",
    "fsync",
    "fchmod",
    "chmod",
    "link",
    "rename",
    "replace",
    "unlink",
    "mkdir",
    "rmdir",
)


class PowerCut(BaseException):
    """The process is gone: no handler runs, and nothing more reaches the disk."""


class FaultyDisk:
    """Counts the operations, and lets the one numbered `fail_at` fail; with `power` everything after it too."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail_at: int, *, power: bool) -> None:
        self.count = 0
        self._fail_at = fail_at
        self._power = power
        self._patch = monkeypatch
        for name in OPERATIONS:
            monkeypatch.setattr(os, name, self._wrapped(getattr(os, name)))
        # `shutil.rmtree` would not go through the above.
        monkeypatch.setattr("shutil.rmtree", self._wrapped(__import__("shutil").rmtree))

    @property
    def failed(self) -> bool:
        """Tell whether the operation that was to fail has been reached."""
        return self.count >= self._fail_at

    def repair(self) -> None:
        """Let everything work again."""
        self._patch.undo()

    def _wrapped(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self.count += 1
            if self._power and self.count >= self._fail_at:
                raise PowerCut
            if self.count == self._fail_at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return operation(*arguments, **named)

        return call
