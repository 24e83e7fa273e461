"""`python -m garrison.process.worker DESCRIPTOR`: one worker, as the control process starts it."""

from __future__ import annotations

import socket
import sys

import uvloop

from garrison.process.cli import errors_reported
from garrison.process.link import WorkerLink
from garrison.process.serve import Server
from garrison.process.settings import Settings
from garrison.process.workers import Assignment
from garrison.telemetry import log as telemetry_log


def main() -> None:
    """Be told what to serve, and serve it until SIGTERM or the end of the control process."""
    link = WorkerLink(socket.socket(fileno=int(sys.argv[1])))
    message = link.receive()
    if message is None:  # the control process is gone already
        sys.exit(1)
    assignment = Assignment.of(message)
    link.tell_bundles(assignment.bundles)
    with errors_reported():
        settings = assignment.parse_settings()
        link.watch(settings.drain_grace.total_seconds())
        lines = telemetry_log.configure(settings.log.level, settings.log.format, worker=assignment.number)
        uvloop.run(_run(settings, lines, link))


async def _run(settings: Settings, lines: telemetry_log.LineWriter, link: WorkerLink) -> None:
    await Server(settings, lines, link=link).run()


if __name__ == "__main__":
    main()
