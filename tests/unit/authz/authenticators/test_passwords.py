"""Hashes of passwords: ours and bcrypt's are taken, what is quick to try is not."""

from __future__ import annotations

import bcrypt
import pytest

from authz.authenticators.passwords import (
    MAX_PASSWORD_BYTES,
    encode_password,
    hash_password,
    new_scrypt,
    parse_password_hash,
)

# Cheap, for tests.
SCRYPT = str(new_scrypt(ln=4, r=1, p=1).of(b"pass w\xc3\xb6rd"))
BCRYPT = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()


def test_a_new_hash_is_of_its_password_only() -> None:
    """With a salt of its own, and as costly as OWASP asks for."""
    text = hash_password("pass wörd")
    assert text.startswith("$scrypt$ln=15,r=8,p=3$")
    found = parse_password_hash(text)
    assert found.matches("pass wörd".encode())
    assert not found.matches(b"pass word")
    assert not found.is_weak
    assert text != hash_password("pass wörd")


@pytest.mark.parametrize(
    ("text", "password"),
    [
        (SCRYPT, "pass wörd".encode()),
        (BCRYPT, b"secret"),
        (BCRYPT.replace("$2b$", "$2y$"), b"secret"),
        (BCRYPT.replace("$2b$", "$2a$"), b"secret"),
        # RFC 7914, section 12, third vector, as PHC text.
        (
            "$scrypt$ln=14,r=8,p=1$U29kaXVtQ2hsb3JpZGU$cCO9yzr9c0hGHAbNgf046/2o+7qQT44+qbVD9lRdofLVQylVYT8Pz2LUlwUkKpr55h6F3A1lHkDfzwF7RVdYhw",
            b"pleaseletmein",
        ),
    ],
    # Salts are random, and a test has the same name in every process.
    ids=["scrypt", "bcrypt", "bcrypt-2y", "bcrypt-2a", "rfc7914"],
)
def test_a_stored_hash_matches_its_password(text: str, password: bytes) -> None:
    """And no other, longer or shorter; its decoy takes as long and matches nothing."""
    found = parse_password_hash(text)
    assert found.matches(password)
    for other in (b"", password + b" ", password[:-1], password.swapcase()):
        assert not found.matches(other)
    decoy = found.decoy()
    assert decoy.cost == found.cost
    assert not decoy.matches(password)


def test_bcrypt_takes_no_password_that_it_would_cut_off() -> None:
    """Two passwords that agree in 72 bytes must not be one."""
    found = parse_password_hash(bcrypt.hashpw(b"a" * 72, bcrypt.gensalt(4)).decode())
    assert found.matches(b"a" * 72)
    assert not found.matches(b"a" * 73)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s3cret",
        "$apr1$abcdefgh$ijklmnopqrstuvwxyz0123",
        "{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=",
        "$6$salt$hash",
        "$1$salt$hash",
        "$2x$04$" + "a" * 53,
        BCRYPT[:-1],
        BCRYPT.replace("$04$", "$31$"),
        BCRYPT.replace("$04$", "$03$"),
        SCRYPT + "\n",
        SCRYPT.replace("ln=4", "ln=0"),
        SCRYPT.replace("ln=4", "ln=31"),
        SCRYPT.replace("ln=4,r=1", "ln=17,r=16"),
        SCRYPT.replace("p=1", "p=17"),
        "$scrypt$ln=15,r=8,p=1$c2FsdA$" + "A" * 43,
        "$scrypt$ln=15,r=8,p=1$c2FsdHNhbHRzYWx0$AAAA",
        "$scrypt$ln=15,r=8,p=1$c2FsdHNhbHRzYWx0c$" + "A" * 43,
    ],
    ids=[f"case{number}" for number in range(18)],
)
def test_what_is_no_slow_hash_is_refused(text: str) -> None:
    """Plain text and quick hashes, and parameters that would take all memory; nothing of it is repeated."""
    with pytest.raises(ValueError, match=r".") as caught:
        parse_password_hash(text)
    assert "s3cret" not in str(caught.value)


def test_cheap_hashes_are_weak() -> None:
    """They are taken, with a warning."""
    assert parse_password_hash(SCRYPT).is_weak
    assert parse_password_hash(BCRYPT).is_weak


@pytest.mark.parametrize("password", ["", "a\nb", "a\x00", "\x7f", "\x85", "a" * (MAX_PASSWORD_BYTES + 1)])
def test_a_password_is_text_that_can_be_sent(password: str) -> None:
    """RFC 7617, section 2: no control characters."""
    with pytest.raises(ValueError, match="a password has"):
        encode_password(password)
