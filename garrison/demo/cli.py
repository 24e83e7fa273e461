"""`garrison demo`: start the mesh, make every call of the table, say what came of it."""

from __future__ import annotations

import http.client
import shutil
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from garrison.demo.mesh import Mesh, Say, as_json, run_folder, start
from garrison.demo.rows import (
    Row,
    check,
    every_other_pair,
    header_claims,
    page_claims,
    quota_rows,
    role_claims,
    token_claims,
)
from garrison.demo.scenarios import broken_policy_row, handshake_rows, policy_change_rows, restart_row
from garrison.demo.table import render
from garrison.demo.topology import INGRESS
from garrison.errors import DependencyError

EXIT_OK, EXIT_DIFFERS, EXIT_NOT_STARTED, EXIT_INTERRUPTED = 0, 1, 2, 130
_WIDE = 200
_WATCH_SECONDS = 0.5


@click.command(
    "demo",
    epilog="\b\nExit codes: 0 every row as expected, 1 a row differs, 2 the mesh did not start,\n"
    "130 interrupted.\n\n"
    "\b\nExample:\n  garrison demo --json rows.json",
)
@click.option("--up", is_flag=True, help="Leave the mesh running and print calls to try; Ctrl-C stops it.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write the rows to this file, too."
)
@click.option("--keep", is_flag=True, help="Keep the run's folder: logs, Envoy configs, policies.")
@click.option(
    "--policies",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Enforce these policies instead of the example's.",
)
@click.option(
    "--dir",
    "parent",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".demo"),
    show_default=True,
    help="Where the run's folder is made.",
)
def demo(*, up: bool, json_file: Path | None, keep: bool, policies: Path | None, parent: Path) -> None:
    """Run BookInfo behind real Envoys that ask Garrison, and check what it answers."""
    outcome = EXIT_NOT_STARTED
    with _interruptible():
        try:
            with run_folder(parent, keep=lambda: keep or outcome in {EXIT_DIFFERS, EXIT_NOT_STARTED}) as run:
                try:
                    with start(run, click.echo, policies=policies) as mesh:
                        outcome = _stay_up(mesh) if up else _make_every_call(mesh, json_file)
                except DependencyError as error:
                    click.echo(f"the mesh did not start: {error}", err=True)
                except KeyboardInterrupt:
                    outcome = EXIT_OK if up else EXIT_INTERRUPTED
                    click.echo("\n==> stopped")
                if keep or outcome in {EXIT_DIFFERS, EXIT_NOT_STARTED}:
                    click.echo(f"Logs, Envoy configs and policies of this run: {run}")
        except OSError as error:
            click.echo(f"the mesh did not start: {error}", err=True)
    sys.exit(outcome)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Make SIGTERM end the run as Ctrl-C does, and further signals wait for the end."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _make_every_call(mesh: Mesh, json_file: Path | None) -> int:
    started = time.monotonic()
    rows = make_every_call(mesh, click.echo)
    width = shutil.get_terminal_size((_WIDE, 24)).columns
    click.echo("\n" + render(rows, width, colour=sys.stdout.isatty()))
    wrong = [row for row in rows if not row.ok]
    took = time.monotonic() - started
    click.echo(f"\n{len(rows) - len(wrong)} of {len(rows)} rows as expected, {took:.1f} s.")
    if added := [row.added_ms for row in rows if row.added_ms is not None]:
        click.echo(f"Asking Garrison added {statistics.median(added):.1f} ms to a call in the median.")
    if json_file is not None:
        json_file.write_text(
            as_json({"ok": not wrong, "rows": [row.as_json() for row in rows]}), encoding="utf-8"
        )
    click.echo(_NEXT)
    return EXIT_DIFFERS if wrong else EXIT_OK


_NEXT = """\
Next: `make demo-up` leaves the mesh running for calls of your own; `garrison demo --keep` keeps its logs.
      examples/bookinfo/policies holds the policies, docs/howto/demo.md explains each row,
      docs/howto/connect-envoy.md puts Garrison behind an Envoy of yours."""


def make_every_call(mesh: Mesh, say: Say) -> list[Row]:
    """Return all rows of the table, in order."""
    claims = [*role_claims(), *header_claims(), *page_claims(), *token_claims(mesh.tokens, mesh.stranger)]
    steps: Sequence[tuple[str, Callable[[], list[Row]]]] = (
        ("calls between services, and from outside", lambda: [check(mesh, claim) for claim in claims]),
        ("every other pair of services", lambda: [every_other_pair(mesh)]),
        ("connections without our certificates", lambda: handshake_rows(mesh)),
        ("quota", lambda: quota_rows(mesh)),
        ("a restart under traffic", lambda: [restart_row(mesh)]),
        ("policy changes under traffic", lambda: policy_change_rows(mesh)),
        ("a broken policy", lambda: [broken_policy_row(mesh)]),
    )
    rows: list[Row] = []
    for what, step in steps:
        say(f"==> {what}")
        try:
            rows += step()
        except (OSError, http.client.HTTPException, DependencyError) as error:
            rows.append(
                Row(
                    "failure",
                    what,
                    "to be carried out",
                    f"{type(error).__name__}: {error}",
                    "",
                    None,
                    ok=False,
                )
            )
    return rows


def _stay_up(mesh: Mesh) -> int:
    click.echo(_calls_to_try(mesh))
    stop = threading.Event()
    while not stop.wait(_WATCH_SECONDS):
        for child in mesh.ended():
            click.echo(f"{child.name} ended with exit code {child.exit_code}:\n{child.tail()}", err=True)
            return EXIT_NOT_STARTED
    return EXIT_OK


def _calls_to_try(mesh: Mesh) -> str:
    edge = f"http://127.0.0.1:{mesh.ports[INGRESS].outbound}"
    token = mesh.tokens.sign("a@foo.com")
    sidecar = {name: f"http://127.0.0.1:{ports.outbound}" for name, ports in mesh.ports.items()}
    ratings = f"{sidecar['reviews-v2']}/ratings/0"
    return f"""
The mesh is up. Try, from another terminal:

  TOKEN={token}

  # from outside, through the ingress: the page; products with a token (200), and without (403)
  curl -i {edge}/productpage
  curl -i -H "authorization: Bearer $TOKEN" {edge}/api/v1/products
  curl -i {edge}/api/v1/products

  # from inside, as the application behind a sidecar: details as productpage (200), and as ratings (403)
  curl -i -H "host: details" -H "x-details-version: v1" {sidecar["productpage"]}/details/0
  curl -i -H "host: details" -H "x-details-version: v1" {sidecar["ratings"]}/details/0

  # as reviews v2, for one user: the sixth within a minute is refused (429)
  for i in 1 2 3 4 5 6; do
    curl -s -o /dev/null -w '%{{http_code}}\\n' -H "host: ratings" -H "end-user: jason" {ratings}
  done

Policies: {mesh.policies} (edit them, they take effect within a second)
Limits:   {mesh.run / "limits"}
Logs:     {mesh.run / "logs"}

Ctrl-C stops everything."""
