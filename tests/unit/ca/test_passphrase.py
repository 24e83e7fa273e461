"""A passphrase comes from where it was said, is checked before it is used, and is asked for only if need be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ca.passphrase import PassphraseSource
from garrison.errors import ConfigError


def written(path: Path, content: bytes, mode: int = 0o600) -> Path:
    """Write a file with this mode."""
    path.write_bytes(content)
    path.chmod(mode)
    return path


def answering(*answers: str) -> Iterator[str]:
    """Return what a person types, one after another."""
    return iter(answers)


def test_a_file_comes_before_the_environment_before_a_person(tmp_path: Path) -> None:
    """The more exactly it was said, the more it counts."""
    file = written(tmp_path / "p", b"from the file\n")
    environment = {"GARRISON_CA_PASSPHRASE": "from the environment"}
    assert PassphraseSource(file, environment, ask=lambda _: "typed").to_read(Path("k")) == b"from the file"
    assert (
        PassphraseSource(None, environment, ask=lambda _: "typed").to_read(Path("k"))
        == b"from the environment"
    )
    assert PassphraseSource(None, {}, ask=lambda _: "typed").to_read(Path("k")) == b"typed"


def test_without_any_the_error_says_how() -> None:
    """It names the key, the variable and the option."""
    with pytest.raises(ConfigError, match=r"ca-key.pem.*GARRISON_CA_PASSPHRASE.*--passphrase-file") as caught:
        PassphraseSource(None, {}).to_read(Path("ca-key.pem"))
    assert caught.value.diagnostics[0].code == "no_passphrase"


@pytest.mark.parametrize("content", [b"secret word", b"secret word\n", b"secret word\r\n"])
def test_the_end_of_the_line_is_not_part_of_it(tmp_path: Path, content: bytes) -> None:
    """Editors end lines, and people do not mean it."""
    assert PassphraseSource(written(tmp_path / "p", content), {}).given() == b"secret word"


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o440, 0o640])
def test_a_file_closed_to_others_is_read(tmp_path: Path, mode: int) -> None:
    """Its group may read it, as in Kubernetes."""
    assert PassphraseSource(written(tmp_path / "p", b"secret word", mode), {}).given() == b"secret word"


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o660, 0o601, 0o666])
def test_a_file_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    """Whoever can read or write it would be told the key."""
    with pytest.raises(ConfigError, match="chmod 600"):
        PassphraseSource(written(tmp_path / "p", b"secret word", mode), {}).given()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"\n", "empty"),
        (b"a\nb\n", "one line"),
        (b"a\0b", "one line"),
        (b"x" * 1025, "at most 1024 bytes"),
        (b"x" * 100_000, "at most 1024 bytes"),
    ],
)
def test_what_no_passphrase_file_holds(tmp_path: Path, content: bytes, message: str) -> None:
    """A wrong file is noticed before it locks somebody out."""
    with pytest.raises(ConfigError, match=message):
        PassphraseSource(written(tmp_path / "p", content), {}).given()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """There is no falling back to another source."""
    with pytest.raises(ConfigError, match="no such file"):
        PassphraseSource(tmp_path / "p", {"GARRISON_CA_PASSPHRASE": "x"}, ask=lambda _: "y").given()


def test_a_new_one_is_typed_twice() -> None:
    """A slip of the finger locks nobody out."""
    typed = answering("long enough", "long enough", "long enough", "another thing")
    source = PassphraseSource(None, {}, ask=lambda _: next(typed))
    assert source.to_write("keys") == b"long enough"
    with pytest.raises(ConfigError, match="not the same"):
        source.to_write("keys")


def test_a_new_one_has_a_length() -> None:
    """Seven characters are too few, eight are not; what is read may be shorter, others made it."""
    with pytest.raises(ConfigError, match="at least 8"):
        PassphraseSource(None, {"GARRISON_CA_PASSPHRASE": "1234567"}).to_write("keys")
    assert PassphraseSource(None, {"GARRISON_CA_PASSPHRASE": "12345678"}).to_write("keys") == b"12345678"
    assert PassphraseSource(None, {"GARRISON_CA_PASSPHRASE": "1"}).to_read(Path("k")) == b"1"
    assert PassphraseSource(None, {}).to_write("keys") is None
