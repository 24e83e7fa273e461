"""`garrison serve`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click
import uvloop

from garrison.errors import ConfigError, GarrisonError
from garrison.process.embedded import EmbeddedValkey
from garrison.process.serve import Server
from garrison.process.settings import ENVIRONMENT_PREFIX, Leaf, Settings, leaves, load_settings_and_data
from garrison.process.workers import Children, Workers, control_settings
from garrison.telemetry import log as telemetry_log

CONFIG_ERROR, FAILED = 2, 1


def _option(leaf: Leaf) -> click.Option:
    name = leaf.name.replace(".", "__")
    return click.Option(
        [leaf.flag, name],
        multiple=leaf.is_list,
        default=None,
        help=f"{leaf.description}{' (repeatable)' if leaf.is_list else ''}",
    )


def _serve(config: Path | None, **flags: Any) -> None:
    given = {name.replace("__", "."): value for name, value in flags.items() if value not in (None, ())}
    with errors_reported():
        settings, data = load_settings_and_data(config, os.environ, given)
        lines = telemetry_log.configure(settings.log.level, settings.log.format)
        if settings.workers == 1:
            uvloop.run(_run(settings, lines))
        else:
            uvloop.run(_run_workers(settings, data, lines))


@contextmanager
def errors_reported() -> Iterator[None]:
    """Say in one line each what keeps a process from serving, and end it with the exit code for that."""
    try:
        yield
    except ConfigError as error:
        click.echo("\n".join(f"error: {diagnostic}" for diagnostic in error.diagnostics), err=True)
        sys.exit(CONFIG_ERROR)
    except (GarrisonError, OSError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(FAILED)


async def _run(settings: Settings, lines: telemetry_log.LineWriter) -> None:
    await Server(settings, lines).run()


async def _run_workers(settings: Settings, data: Mapping[str, Any], lines: telemetry_log.LineWriter) -> None:
    rate_limit = settings.rate_limit
    with EmbeddedValkey(rate_limit.embedded_max_bytes) if not rate_limit.redis else nullcontext() as store:
        url = str(store.address) if store is not None else ""
        children = Children(Workers(settings, data, url), store)
        await Server(control_settings(settings, url), lines, children=children).run()


serve = click.Command(
    "serve",
    callback=_serve,
    params=[
        click.Option(
            ["--config"],
            type=click.Path(path_type=Path),
            envvar=f"{ENVIRONMENT_PREFIX}CONFIG",
            help="settings file (YAML); also GARRISON_CONFIG",
        ),
        *map(_option, leaves()),
    ],
    help=(
        "Serve Authorization, RateLimitService, SDS, health and admin HTTP until SIGTERM.\n\n"
        "Each option is also a key of the settings file (`--request-transport` is `request.transport`) and "
        "an environment variable (`GARRISON_REQUEST_TRANSPORT`). Flags win over the environment, and that "
        "over the file."
    ),
    epilog=(
        "\b\nExit codes: 0 drained after SIGTERM, 1 cannot serve, 2 a setting, policy or limit is wrong.\n\n"
        "\b\nExample:\n  garrison serve --config garrison.yaml --log-format json"
    ),
)
