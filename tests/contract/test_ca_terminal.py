"""Passphrases at a real terminal: asked for, never shown, and given up without harm."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.ca_files import done
from support.terminal import END_OF_INPUT, INTERRUPT, Terminal, at_terminal

from ca.authority import CA_KEY, ROOT_KEY, load_encryption, load_key
from ca.key_encryption import PLAIN

WEB = "spiffe://cluster.local/ns/default/sa/web"
SECRET = "correct horse battery"
WRONG = "incorrect horse"
GIVING_UP = pytest.mark.parametrize("key", [INTERRUPT, END_OF_INPUT], ids=["interrupt", "end of input"])


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a CA whose keys are encrypted."""
    folder = tmp_path_factory.mktemp("terminal")
    (folder / "passphrase").touch(mode=0o600)
    (folder / "passphrase").write_text(SECRET)
    words = ("--trust-domain", "cluster.local", "--passphrase-file", folder / "passphrase")
    done("init", "--dir", folder / "pki", *words)
    return folder / "pki"


def files(folder: Path) -> dict[str, bytes]:
    """Return all files under `folder`."""
    return {str(one): one.read_bytes() for one in sorted(folder.rglob("*")) if one.is_file()}


def end_quietly(terminal: Terminal, code: int) -> str:
    """Return what was printed by a command that ended with `code`: no secret, no traceback, echo as before."""
    assert terminal.end() == code, terminal.seen
    assert terminal.echoes
    for text in (SECRET, WRONG, "Traceback", "Warning: Password input may be echoed"):
        assert text not in terminal.seen
    return terminal.seen.replace("\r\n", "\n")


def test_the_passphrase_of_a_new_ca_is_typed_twice_and_not_shown(tmp_path: Path) -> None:
    """Its keys are encrypted with what was typed."""
    with at_terminal("init", "--dir", tmp_path / "pki", "--trust-domain", "cluster.local") as terminal:
        terminal.wait_for("New passphrase for the keys in ")
        terminal.type(f"{SECRET}\n")
        terminal.wait_for("The same again: ")
        terminal.type(f"{SECRET}\n")
        assert "keys encrypted:     yes" in end_quietly(terminal, 0)
    for name in (CA_KEY, ROOT_KEY):
        assert load_encryption(tmp_path / "pki" / name) != PLAIN
        load_key(tmp_path / "pki" / name, lambda _: SECRET.encode())


@pytest.mark.parametrize(
    ("typed", "code", "message"),
    [
        ((SECRET, WRONG), 2, "Error: passphrase: the two are not the same, nothing was done"),
        (("short", "short"), 2, "a new passphrase has at least 8 characters"),
    ],
)
def test_no_ca_is_made_with_a_passphrase_that_does_not_do(
    tmp_path: Path, typed: tuple[str, str], code: int, message: str
) -> None:
    """Typed differently, or too short: one line says so, and there is nothing in the directory."""
    with at_terminal("init", "--dir", tmp_path / "pki", "--trust-domain", "cluster.local") as terminal:
        for prompt, one in zip(("New passphrase", "The same again"), typed, strict=True):
            terminal.wait_for(prompt)
            terminal.type(f"{one}\n")
        assert message in end_quietly(terminal, code)
    assert files(tmp_path) == {}


@GIVING_UP
@pytest.mark.parametrize("prompts", [1, 2])
def test_a_ca_is_given_up_at_the_prompt(tmp_path: Path, key: str, prompts: int) -> None:
    """At the first question or the second: exit code 1, and nothing was made."""
    with at_terminal("init", "--dir", tmp_path / "pki", "--trust-domain", "cluster.local") as terminal:
        terminal.wait_for("New passphrase for the keys in ")
        if prompts == 2:
            terminal.type(f"{SECRET}\n")
            terminal.wait_for("The same again: ")
        terminal.type(key)
        assert end_quietly(terminal, 1).endswith("\nAborted!\n")
    assert files(tmp_path) == {}


def test_an_svid_is_issued_with_a_passphrase_that_is_not_shown(pki: Path, tmp_path: Path) -> None:
    """It is asked for once."""
    with at_terminal("issue", "--dir", pki, WEB, "--out", tmp_path / "web") as terminal:
        terminal.wait_for(f"Passphrase of {pki / CA_KEY}: ")
        terminal.type(f"{SECRET}\n")
        assert end_quietly(terminal, 0).count("Passphrase of") == 1
    assert sorted(one.name for one in (tmp_path / "web").iterdir()) == ["bundle.pem", "svid.key", "svid.pem"]


def test_a_wrong_passphrase_issues_nothing(pki: Path, tmp_path: Path) -> None:
    """An empty line is asked for again, a wrong one is one line of error and exit code 4."""
    before = files(pki)
    with at_terminal("issue", "--dir", pki, WEB, "--out", tmp_path / "web") as terminal:
        terminal.wait_for("Passphrase of ")
        terminal.type("\n")
        terminal.wait_for(f"{CA_KEY}: \r\nPassphrase of ")
        terminal.type(f"{WRONG}\n")
        said = end_quietly(terminal, 4)
    assert said.endswith("ca-key.pem: the passphrase is wrong, or the file is damaged\n")
    assert said.count("Error: ") == 1
    assert (files(pki), files(tmp_path)) == (before, {})


@GIVING_UP
def test_issuing_is_given_up_at_the_prompt(pki: Path, tmp_path: Path, key: str) -> None:
    """Exit code 1, nothing written and nothing recorded."""
    before = files(pki)
    with at_terminal("issue", "--dir", pki, WEB, "--out", tmp_path / "web") as terminal:
        terminal.wait_for("Passphrase of ")
        terminal.type(key)
        assert end_quietly(terminal, 1).endswith("\nAborted!\n")
    assert (files(pki), files(tmp_path)) == (before, {})
