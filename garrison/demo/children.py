"""Child processes that never outlive their starter, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import garrison.launch
from garrison.errors import DependencyError

_LAUNCHER = Path(garrison.launch.__file__)
_POLL_SECONDS = 0.01
TAIL_LINES = 15


class StartError(DependencyError):
    """Something the demo needs did not start; the message ends with the tail of its log."""


@dataclass(frozen=True, slots=True)
class Child:
    """A running program and the file that takes its output."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    @property
    def exit_code(self) -> int | None:
        """How it ended; None while it runs."""
        return self.process.poll()

    def tail(self) -> str:
        """Return the last lines of its log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-TAIL_LINES:])

    def wait_until(self, ready: Callable[[], bool], what: str, timeout_seconds: float) -> None:
        """Return once `ready()` holds.

        Raises:
            StartError: the child ended, or the time is over.

        """
        deadline = time.monotonic() + timeout_seconds
        while not ready():
            if self.exit_code is not None:
                raise StartError(f"{self.name} ended with exit code {self.exit_code}:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise StartError(f"{self.name}: {what} took over {timeout_seconds:g} s:\n{self.tail()}")
            time.sleep(_POLL_SECONDS)

    def stop(self, timeout_seconds: float = 20.0) -> int:
        """Ask it to end (SIGTERM), insist after `timeout_seconds` (SIGKILL); return its exit code."""
        if self.exit_code is None:
            self.process.terminate()
        try:
            return self.process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self._kill_group()
            return self.process.wait()

    def _kill_group(self) -> None:
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


class Children:
    """All that was started; `close` stops the latest first. Start only from a thread that lives to the end.

    (The kernel's notice of a parent's death is about the *thread* that started the child, prctl(2).)
    """

    def __init__(self) -> None:
        self._children: list[Child] = []

    def start(
        self, name: str, command: Sequence[str | Path], log: Path, *, files: Sequence[int] = ()
    ) -> Child:
        """Start `command` in a session of its own, so that a terminal's Ctrl-C reaches only its starter."""
        launcher = [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid())]
        with log.open("ab") as output:
            process = subprocess.Popen(  # noqa: S603 - our own programs, no shell
                [*launcher, *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                pass_fds=tuple(files),
            )
        child = Child(name, process, log)
        self._children.append(child)
        return child

    def stop(self, child: Child) -> int:
        """Stop one child and forget it; return its exit code."""
        self._children.remove(child)
        return child.stop()

    def ended(self) -> list[Child]:
        """Return the children that ended by themselves."""
        return [child for child in self._children if child.exit_code is not None]

    def close(self) -> None:
        """Stop everything."""
        for child in self._children:
            if child.exit_code is None:
                child.process.terminate()
        while self._children:
            self._children.pop().stop()
