"""`garrison credentials`: new API keys, and hashes of keys and passwords to be stored."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from authz.authenticators.basic import is_user_name
from authz.authenticators.clients import hash_key as hash_of
from authz.authenticators.clients import new_key as make_key
from authz.authenticators.clients import weakness
from authz.authenticators.passwords import hash_password as hash_of_password
from authz.tools.options import fail

# More than any key or password, and less than a file that was given by mistake.
_MAX_INPUT = 64 * 1024


@click.group(
    epilog="""\b
Exit codes: 0 done, 2 what was given cannot be used.

\b
Example:
  garrison credentials new-key"""
)
def credentials() -> None:
    """Make API keys, and hash keys and passwords for the files of authenticators."""


@credentials.command(
    "new-key",
    epilog="""\b
Exit codes: 0 done.

\b
Example:
  garrison credentials new-key --json""",
)
@click.option("--json", "as_json", is_flag=True, help="one JSON object instead of text")
def new_key(*, as_json: bool) -> None:
    """Make an API key. It is shown this once: the key is for the client, the hash for the file."""
    key = make_key()
    _print({"key": key, "hash": hash_of(key)}, f"key   {key}\nhash  {hash_of(key)}", as_json=as_json)


@credentials.command(
    "hash-key",
    epilog="""\b
Exit codes: 0 done, 2 the key can be guessed from its hash, or is none.

\b
Example:
  garrison credentials hash-key < key.txt""",
)
@click.option("--json", "as_json", is_flag=True, help="one JSON object instead of text")
def hash_key(*, as_json: bool) -> None:
    """Print the hash of an API key that is typed in or comes on standard input, never an argument."""
    key = _secret("API key", confirm=False)
    if problem := weakness(key):
        fail(problem)
    _print({"hash": hash_of(key)}, hash_of(key), as_json=as_json)


@credentials.command(
    "hash-password",
    epilog="""\b
Exit codes: 0 done, 2 the name or the password cannot be used.

\b
Example:
  garrison credentials hash-password alice >> users""",
)
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="one JSON object instead of text")
def hash_password(*, name: str, as_json: bool) -> None:
    """Print the line of NAME for a file of users.

    The password is typed in or comes on standard input, never as an argument.
    """
    if not is_user_name(name):
        fail("a name has 1 to 253 characters, and no colon, `/` or control character")
    try:
        found = hash_of_password(_secret("password", confirm=True))
    except ValueError as error:
        fail(str(error))
    _print({"name": name, "hash": found}, f"{name}:{found}", as_json=as_json)


def _secret(name: str, *, confirm: bool) -> str:
    """Return what is typed unseen, or the one line on standard input; end the process if there is none."""
    if sys.stdin.isatty():
        found: str = click.prompt(name, hide_input=True, confirmation_prompt=confirm, err=True)
    else:
        try:
            found = sys.stdin.buffer.read(_MAX_INPUT + 1).decode()
        except UnicodeDecodeError:
            fail("standard input is not UTF-8")
        if len(found) > _MAX_INPUT:
            fail(f"standard input has more than {_MAX_INPUT} bytes")
        found = found.removesuffix("\n").removesuffix("\r")
    if not found or "\n" in found:
        fail(f"the {name} is one line, and not empty")
    return found


def _print(data: dict[str, Any], text: str, *, as_json: bool) -> None:
    click.echo(json.dumps(data) if as_json else text)
