"""What every `ca` command has: options of one name and meaning, exit codes, and how it prints."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from ca.describe import format_description
from garrison.errors import ConfigError, GarrisonError, IssuanceError

EXIT_UNUSABLE = 2
EXIT_REFUSED = 3
EXIT_CODES = """\b
Exit codes:
  0  done
  2  a command line, file or directory that cannot be used
  3  refused by the rules of the CA"""

_UNITS = {"h": "hours", "m": "minutes", "s": "seconds"}
_DURATION = re.compile(r"(?:[0-9]{1,6}[hms])+")


class Failure(click.ClickException):
    """One line on stderr and an exit code, under whichever group the command hangs."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(" ".join(message.split()))
        self.exit_code = exit_code  # type: ignore[misc]  # click reads it from the instance


class Commands(click.Group):
    """A group whose commands end with a documented exit code for every foreseen failure."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; failures of ours become a message and an exit code."""
        try:
            return super().invoke(ctx)
        except IssuanceError as error:
            raise Failure(str(error), EXIT_REFUSED) from error
        except ConfigError as error:
            text = "; ".join(f"{problem.file}: {problem.message}" for problem in error.diagnostics)
            raise Failure(text, EXIT_UNUSABLE) from error
        except GarrisonError as error:
            raise Failure(str(error), EXIT_UNUSABLE) from error
        except BrokenPipeError:
            raise  # click ends quietly when the reader of our output went away
        except OSError as error:
            where = f"{error.filename}: " if error.filename is not None else ""
            text = f"{where}{(error.strerror or str(error)).lower()}"
            raise Failure(text, EXIT_UNUSABLE) from error


class Parsed(click.ParamType[Any]):
    """A parameter read by one of our parsers."""

    def __init__(self, name: str, parse: Callable[[str], object]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the parsed value, or fail with the parser's reason."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def parse_duration(text: str) -> timedelta:
    """Return the duration that `text` spells in hours, minutes and seconds.

    Raises:
        ValueError: it spells none.

    """
    if not _DURATION.fullmatch(text):
        raise ValueError(f"`{text}` is not a duration such as `1h`, `90m` or `1h30m`")
    total = timedelta(0)
    for number, unit in re.findall(r"([0-9]+)([hms])", text):
        total += timedelta(**{_UNITS[unit]: int(number)})
    return total


DURATION = Parsed("duration", parse_duration)
DIRECTORY = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(path_type=Path)
dir_option = click.option(
    "--dir", "directory", type=DIRECTORY, required=True, help="The directory of the CA."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def print_values(as_json: bool, values: Mapping[str, Any]) -> None:  # noqa: FBT001
    """Print `values` as JSON or as aligned lines."""
    click.echo(json.dumps(values, indent=2) if as_json else format_description(dict(values)))
