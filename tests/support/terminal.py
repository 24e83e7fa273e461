"""A real terminal with `ca` at it: what a person sees, types, and is not shown."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

PATIENCE_SECONDS = 60.0
INTERRUPT = "\x03"
END_OF_INPUT = "\x04"
# Opening it makes it the terminal of the session, so that ^C is a signal and /dev/tty leads here. Tests that
# run in the background ignore that signal, and so would what they start.
_COMMAND = """
import os, signal
os.close(os.open(os.ttyname(0), os.O_RDWR))
signal.signal(signal.SIGINT, signal.default_int_handler)
from ca.cli import main
main()
"""


class Terminal:
    """A command at a terminal of its own; `seen` is everything that was printed, and echoed."""

    def __init__(self, arguments: tuple[str | Path, ...], environment: Mapping[str, str]) -> None:
        self._master, slave = pty.openpty()
        self.seen = ""
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _COMMAND, *map(str, arguments)],
                stdin=slave,
                stdout=slave,
                stderr=slave,
                start_new_session=True,
                env=dict(environment),
            )
        finally:
            os.close(slave)

    @property
    def echoes(self) -> bool:
        """Whether what is typed is shown."""
        return bool(termios.tcgetattr(self._master)[3] & termios.ECHO)

    def wait_for(self, prompt: str) -> None:
        """Wait until `prompt` was printed and the terminal echoes nothing."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while prompt not in self.seen or self.echoes:
            assert time.monotonic() < deadline, self.seen
            assert self._read(0.01) or prompt in self.seen, self.seen

    def type(self, text: str) -> None:
        """Type."""
        os.write(self._master, text.encode())

    def end(self) -> int:
        """Read to the end, and return the exit code."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self._read(0.1):
            assert time.monotonic() < deadline, self.seen
        return self._process.wait(PATIENCE_SECONDS)

    def close(self) -> None:
        """End what has not ended."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        os.close(self._master)

    def _read(self, seconds: float) -> bool:
        """Read what there is; tell whether there may be more."""
        if not select.select([self._master], [], [], seconds)[0]:
            return True
        try:
            self.seen += os.read(self._master, 4096).decode()
        except OSError:
            # The last one at the other side has gone.
            return False
        return True


@contextlib.contextmanager
def at_terminal(*arguments: str | Path) -> Iterator[Terminal]:
    """Run `ca` with `arguments` at a terminal; it gets no passphrase from the environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GARRISON_")}
    terminal = Terminal(arguments, environment)
    try:
        yield terminal
    finally:
        terminal.close()
