"""HTTP Basic: what is sent is parsed strictly, names and hashes come from a file, both kinds of no are one."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.authenticators.basic import Passwords, Users, load_users, parse_basic
from authz.authenticators.passwords import PasswordHash, new_scrypt
from authz.authn.credentials import Answer, Result
from garrison.documents import Severity
from garrison.errors import ConfigError


def cheap(password: str) -> str:
    """Return a hash that tests can afford."""
    return str(new_scrypt(ln=4, r=1, p=1).of(password.encode()))


def sent(text: str | bytes) -> str:
    """Return what a client sends for `name:password`."""
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def passwords(folder: Path, *lines: str) -> Passwords:
    """Return what knows the users in a file of these lines."""
    file = folder / "users"
    file.write_text("\n".join(lines))
    found = Passwords()
    found.use(load_users(file))
    return found


def test_a_name_with_its_password_is_let_in(tmp_path: Path) -> None:
    """The password may have colons and any characters; comments and empty lines are nothing."""
    known = passwords(tmp_path, "# users", "", f"alice:{cheap('a:b')}", f"jürgen:{cheap('pass wörd')}\r")
    assert known.verify(sent("alice:a:b")) == Answer.accepted({"sub": "alice"})
    assert known.verify(sent("jürgen:pass wörd")) == Answer.accepted({"sub": "jürgen"})


@pytest.mark.parametrize("text", ["alice:b", "bob:a", "Alice:a", "alice:a ", "alice :a", "alice:A"])
def test_a_wrong_name_and_a_wrong_password_are_the_same(tmp_path: Path, text: str) -> None:
    """Nobody learns which names there are."""
    known = passwords(tmp_path, f"alice:{cheap('a')}")
    answer = known.verify(sent(text))
    assert (answer.result, answer.reason) == (Result.REFUSED, "no such name, or another password")


def test_a_name_that_nobody_has_is_hashed_as_well() -> None:
    """With the cost that most hashes have: the time tells nothing either."""
    hashed: list[str] = []

    class Noting:
        is_weak, cost = False, ("noting",)

        def __init__(self, name: str) -> None:
            self.name = name

        def matches(self, password: bytes) -> bool:
            hashed.append(self.name)
            return True

        def decoy(self) -> PasswordHash:
            return Noting("decoy")

    known = Passwords()
    known._users = Users({"alice": Noting("alice")}, Noting("decoy"))
    assert known.verify(sent("alice:x")).result is Result.ACCEPTED
    # Even a decoy that says yes lets nobody in.
    assert known.verify(sent("bob:x")).result is Result.REFUSED
    assert hashed == ["alice", "decoy"]


def test_the_decoy_costs_what_most_hashes_cost(tmp_path: Path) -> None:
    """So that of names with the usual cost, those that are there cannot be told from others."""
    dear = str(new_scrypt(ln=5, r=1, p=1).of(b"x"))
    known = passwords(tmp_path, f"a:{cheap('x')}", f"b:{dear}", f"c:{dear}")
    assert known._users.decoy.cost == ("scrypt", 5, 1, 1)


@pytest.mark.parametrize(
    "credential",
    [
        "",
        "x",
        "!!!!",
        sent("alice"),
        sent(":a"),
        sent("alice:"),
        sent("a/b:c"),
        sent("a\nb:c"),
        sent("alice:a\x00"),
        sent(b"alice:\xff"),
        sent("alice:" + "a" * 2000),
        sent("alice:a") + "\n",
        sent("alice:a")[:-1],
    ],
)
def test_what_is_no_name_and_password_is_refused(credential: str) -> None:
    """RFC 7617: base64 of UTF-8 text with a colon, without control characters."""
    assert parse_basic(credential) is None


@given(st.binary(max_size=60) | st.text(max_size=40).map(str.encode))
def test_no_bytes_are_more_than_refused(content: bytes) -> None:
    """Whatever is sent; what is parsed has a name and a password."""
    parsed = parse_basic(base64.b64encode(content).decode())
    assert parsed is None or (
        parsed[0] and parsed[1] and b":".join((parsed[0].encode(), parsed[1])) == content
    )
    parse_basic(content.decode("latin-1"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("alice", ":2:1: a line is `NAME:HASH`"),
        ("a/b:HASH", ":2:1: a line is `NAME:HASH`"),
        ("alice:s3cret", ":2:1: this is no scrypt or bcrypt hash; plain passwords"),
        ("alice:$apr1$x$y", "make a new one with `garrison credentials hash-password`"),
        ("bob:HASH", ":2:1: `bob` stands in the file twice"),
        ("x" * 2000, "a line has at most 1024 bytes"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path: Path, line: str, expected: str) -> None:
    """With their line; nothing that may be a password is repeated."""
    with pytest.raises(ConfigError) as caught:
        passwords(tmp_path, f"bob:{cheap('x')}", line.replace("HASH", cheap("y")))
    (problem,) = caught.value.diagnostics
    assert expected in str(problem)
    assert "s3cret" not in str(problem)


def test_a_file_that_cannot_be_read_is_a_mistake(tmp_path: Path) -> None:
    """It is no file without users; bytes that are not UTF-8 are one as well."""
    with pytest.raises(ConfigError, match="cannot be read"):
        load_users(tmp_path / "none")
    (tmp_path / "users").write_bytes(b"\xff:x")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_users(tmp_path / "users")


def test_weak_hashes_and_empty_files_are_warned_of(tmp_path: Path) -> None:
    """They are loaded."""
    file = tmp_path / "users"
    file.write_text(f"alice:{cheap('x')}")
    found = load_users(file).warnings
    assert [(one.code, one.severity) for one in found] == [("weak_hash", Severity.WARNING)]
    file.write_text("# nobody")
    assert [one.code for one in load_users(file).warnings] == ["no_users"]


def test_without_a_file_nobody_is_let_in() -> None:
    """Before the first load there are no users."""
    found = Passwords()
    found._users = Users({}, new_scrypt(ln=4, r=1, p=1).decoy())
    assert found.verify(sent("alice:a")).result is Result.REFUSED
