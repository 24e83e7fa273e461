"""A real `garrison serve` in a process of its own, for tests."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# How long a condition may take before a test gives up; nothing waits this long when all is well.
PATIENCE_SECONDS = 30.0

Event = dict[str, Any]


class Serving:
    """A running server and its log, one event a line; `command` may be another one that serves."""

    def __init__(
        self,
        arguments: list[str],
        environment: dict[str, str] | None = None,
        command: Sequence[str] = ("serve",),
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "garrison", *command, *arguments],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self.seen: list[Event] = []
        self._arriving: queue.Queue[Event | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                self._arriving.put(json.loads(line))
            except ValueError:
                self._arriving.put({"event": "text", "text": line})
        self._arriving.put(None)

    def wait_for(self, name: str, fits: Callable[[Event], bool] = lambda _: True) -> Event:
        """Return the next event called `name` that fits; fail when the process ends before."""
        while True:
            event = self._arriving.get(timeout=PATIENCE_SECONDS)
            assert event is not None, f"the server ended without `{name}`: {self.seen}"
            self.seen.append(event)
            if event["event"] == name and fits(event):
                return event

    def wait_until_seen(self, name: str) -> None:
        """Return once there was an event called `name`, perhaps before what was waited for until now."""
        if all(event["event"] != name for event in self.seen):
            self.wait_for(name)

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Return the exit code once the process has ended."""
        code = self.process.wait(PATIENCE_SECONDS)
        self._reader.join(PATIENCE_SECONDS)
        return code

    def close(self) -> None:
        """End the process whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(PATIENCE_SECONDS)
        assert self.process.stderr is not None
        self.process.stderr.close()


@contextmanager
def serving(*arguments: str, environment: dict[str, str] | None = None) -> Iterator[Serving]:
    """Run `garrison serve` for the length of a block."""
    server = Serving(list(arguments), environment)
    try:
        yield server
    finally:
        server.close()


def write_settings(folder: Path, more: str = "") -> Path:
    """Return a settings file with free ports, Unix sockets in `folder`, and a folder of policies."""
    (folder / "policies").mkdir(exist_ok=True)
    (folder / "limits").mkdir(exist_ok=True)
    file = folder / "garrison.yaml"
    file.write_text(
        f"""
policies: [policies]
limits: [limits]
request: {{listen: ["unix://{folder}/r.sock", "tcp://127.0.0.1:0"]}}
control: {{listen: ["unix://{folder}/c.sock", "tcp://127.0.0.1:0"]}}
admin: {{listen: "tcp://127.0.0.1:0"}}
{more}
"""
    )
    return file
