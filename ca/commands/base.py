"""What every `ca` command has: options of one name and meaning, exit codes, and how it prints."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from ca.describe import format_description
from ca.passphrase import NEW_ENVIRONMENT, NO_PASSPHRASE, WRONG_PASSPHRASE, AskFor, PassphraseSource
from garrison.errors import ConfigError, GarrisonError, IssuanceError

EXIT_UNUSABLE = 2
EXIT_REFUSED = 3
EXIT_PASSPHRASE = 4
EXIT_CODES = """\b
Exit codes:
  0  done
  1  interrupted, or given up at a prompt
  2  a command line, file or directory that cannot be used
  3  refused by the rules of the CA
  4  no passphrase, or the wrong one"""

_UNITS = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
_DURATION = re.compile(r"(?:[0-9]{1,6}[dhms])+")


class Failure(click.ClickException):
    """One line on stderr and an exit code, under whichever group the command hangs."""

    def __init__(self, message: str, exit_code: int) -> None:
        line = " ".join(message.split())
        # A name in a hostile certificate cannot write lines or colours of its own.
        super().__init__("".join(one if one.isprintable() else "?" for one in line))
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
            codes = {problem.code for problem in error.diagnostics}
            about_passphrases = codes & {NO_PASSPHRASE, WRONG_PASSPHRASE}
            raise Failure(text, EXIT_PASSPHRASE if about_passphrases else EXIT_UNUSABLE) from error
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
    """Return the duration that `text` spells in days, hours, minutes and seconds.

    Raises:
        ValueError: it spells none.

    """
    if not _DURATION.fullmatch(text):
        raise ValueError(f"`{text}` is not a duration such as `1h`, `90m` or `1h30m`")
    total = timedelta(0)
    try:
        for number, unit in re.findall(r"([0-9]+)([dhms])", text):
            total += timedelta(**{_UNITS[unit]: int(number)})
    except OverflowError as error:
        raise ValueError(f"`{text[:40]}` is too long a duration") from error
    return total


DURATION = Parsed("duration", parse_duration)
DIRECTORY = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(path_type=Path)
READABLE = click.Path(path_type=Path, allow_dash=True)

dir_option = click.option(
    "--dir", "directory", type=DIRECTORY, required=True, help="The directory of the CA."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
force_option = click.option("--force", is_flag=True, help="Replace files that exist.")
passphrase_option = click.option(
    "--passphrase-file",
    type=FILE,
    help="A file with the passphrase of the CA's keys, closed to others; without, GARRISON_CA_PASSPHRASE, "
    "or you are asked.",
)


def passphrase_source(file: Path | None) -> PassphraseSource:
    """Return where the passphrase of existing keys comes from."""
    return PassphraseSource(file, os.environ, ask=_at_terminal())


def passphrase_once(file: Path | None) -> Callable[[Path], bytes]:
    """Return what gives the passphrase of each key of a CA: all have the same, so nobody types it twice."""
    source = passphrase_source(file)
    known: list[bytes] = []

    def passphrase(path: Path) -> bytes:
        if not known:
            known.append(source.to_read(path))
        return known[0]

    return passphrase


def new_passphrase_source(file: Path | None) -> PassphraseSource:
    """Return where the passphrase comes from that takes the place of another."""
    return PassphraseSource(file, os.environ, NEW_ENVIRONMENT, "--new-passphrase-file", _at_terminal())


def read_input(file: Path, most: int) -> bytes:
    """Return what is in `file` (`-`: standard input).

    Raises:
        Failure: it has more than `most` bytes.
        OSError: it cannot be read.

    """
    if str(file) == "-":
        content = sys.stdin.buffer.read(most + 1)
    else:
        with file.open("rb") as opened:
            content = opened.read(most + 1)
    if len(content) > most:
        raise Failure(f"{name_of(file)}: more than {most} bytes are not read", EXIT_UNUSABLE)
    return content


def name_of(file: Path) -> str:
    """Return what messages call `file`."""
    return "standard input" if str(file) == "-" else str(file)


def print_values(as_json: bool, values: Mapping[str, Any]) -> None:  # noqa: FBT001
    """Print `values` as JSON or as aligned lines."""
    click.echo(json.dumps(values, indent=2) if as_json else format_description(dict(values)))


def warn(text: str) -> None:
    """Print a warning to standard error."""
    click.echo(f"Warning: {text}", err=True)


def _at_terminal() -> AskFor | None:
    if not sys.stdin.isatty():
        return None
    return lambda text: str(click.prompt(text, hide_input=True, err=True))
