"""`garrison credentials`: keys that are shown once, hashes to be stored, and nothing secret as an argument."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from authz.authenticators.clients import hash_key, weakness
from authz.authenticators.passwords import parse_password_hash
from garrison.cli import main


def run(*arguments: str, given: str | bytes | None = None) -> tuple[int, str]:
    """Run a command; return its exit code and what it prints."""
    result = CliRunner().invoke(main, ["credentials", *arguments], input=given)
    return result.exit_code, result.output


def test_a_new_key_comes_with_its_hash() -> None:
    """For people and for machines."""
    code, output = run("new-key", "--json")
    made = json.loads(output)
    assert (code, made["hash"], weakness(made["key"])) == (0, hash_key(made["key"]), "")
    code, output = run("new-key")
    (_, key), (_, hashed) = (line.split() for line in output.splitlines())
    assert (code, hashed) == (0, hash_key(key))


def test_a_key_from_standard_input_is_hashed() -> None:
    """With the line end that a file has."""
    key = "p4rtner-Key_0123456789abc"
    assert run("hash-key", given=f"{key}\n") == (0, f"{hash_key(key)}\n")
    code, output = run("hash-key", "--json", given=key)
    assert (code, json.loads(output)) == (0, {"hash": hash_key(key)})


@pytest.mark.parametrize("given", ["", "\n", "s3cret", "a" * 30, "a\nb", b"\xff" * 30, "x" * 70_000])
def test_what_is_no_key_is_refused(given: str | bytes) -> None:
    """Exit code 2, and not repeated."""
    code, output = run("hash-key", given=given)
    assert code == 2
    assert output.startswith("error: ")
    assert "s3cret" not in output


def test_a_password_becomes_a_line_of_the_file() -> None:
    """Name and a hash that it matches."""
    code, output = run("hash-password", "alice", given="pass wörd\n")
    name, _, hashed = output.strip().partition(":")
    assert (code, name) == (0, "alice")
    assert parse_password_hash(hashed).matches("pass wörd".encode())
    code, output = run("hash-password", "alice", "--json", given="x")
    assert (code, json.loads(output)["name"]) == (0, "alice")


@pytest.mark.parametrize(
    ("name", "given"), [("a:b", "x"), ("a/b", "x"), ("", "x"), ("alice", ""), ("alice", "a\tb")]
)
def test_what_is_no_user_is_refused(name: str, given: str) -> None:
    """Exit code 2, with what would be right."""
    code, output = run("hash-password", name, given=given)
    assert code == 2
    assert output.startswith("error: ")
