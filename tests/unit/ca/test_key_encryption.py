"""Keys at rest: what is written resists guessing and is read by other tools; what is read is looked at first."""

from __future__ import annotations

import base64
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from ca.key_encryption import PBKDF2_ROUNDS, describe_encryption
from ca.keys import KeyType, WrongPassphraseError, key_file, new_ca_key, parse_private_key, private_key_pem

PASSPHRASE = "correct horse bättery".encode()
KEYS = {kind: new_ca_key(kind) for kind in KeyType}
KEY = KEYS[KeyType.P256]
NEEDS_OPENSSL = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command here")
NEEDS_CERTTOOL = pytest.mark.skipif(shutil.which("certtool") is None, reason="no certtool (gnutls-bin) here")


@pytest.mark.parametrize("kind", KeyType)
def test_an_encrypted_key_reads_back(kind: KeyType) -> None:
    """What was encrypted is the same key again, for us and for the library alone."""
    pem = key_file(KEYS[kind], PASSPHRASE)
    assert parse_private_key(pem, lambda: PASSPHRASE).public_key() == KEYS[kind].public_key()
    assert load_pem_private_key(pem, PASSPHRASE).public_key() == KEYS[kind].public_key()
    assert describe_encryption(pem).text == f"PBKDF2-HMAC-SHA-256 with {PBKDF2_ROUNDS} rounds, AES-256-CBC"
    assert not describe_encryption(pem).weak


def test_two_files_of_one_key_have_nothing_in_common() -> None:
    """Salt and initialization vector are fresh each time."""
    one, other = (key_file(KEY, PASSPHRASE).splitlines()[2:-1] for _ in range(2))
    assert not set(one) & set(other)


@pytest.mark.parametrize("passphrase", [b"", b"wrong", PASSPHRASE + b" "])
def test_a_wrong_passphrase_is_said(passphrase: bytes) -> None:
    """It is an error of its own, not a broken file."""
    with pytest.raises(WrongPassphraseError, match="passphrase is wrong"):
        parse_private_key(key_file(KEY, PASSPHRASE), lambda: passphrase)


def test_a_plain_key_asks_for_nothing() -> None:
    """The passphrase is asked for only when it is needed."""

    def never() -> bytes:
        raise AssertionError

    assert parse_private_key(private_key_pem(KEY), never).public_key() == KEY.public_key()
    assert describe_encryption(private_key_pem(KEY)).weak


@NEEDS_OPENSSL
@pytest.mark.parametrize("kind", KeyType)
def test_openssl_reads_what_we_write(kind: KeyType, tmp_path: Path) -> None:
    """OpenSSL decrypts every kind of key to the same one."""
    (tmp_path / "key.pem").write_bytes(key_file(KEYS[kind], PASSPHRASE))
    (tmp_path / "pass").write_bytes(PASSPHRASE + b"\n")
    done = subprocess.run(
        ["openssl", "pkey", "-in", tmp_path / "key.pem", "-passin", f"file:{tmp_path}/pass"],
        capture_output=True,
        check=False,
        timeout=20,
    )
    assert done.returncode == 0, done.stderr
    assert load_pem_private_key(done.stdout, None).public_key() == KEYS[kind].public_key()


@NEEDS_CERTTOOL
def test_gnutls_reads_what_we_write(tmp_path: Path) -> None:
    """GnuTLS decrypts it as well."""
    (tmp_path / "key.pem").write_bytes(key_file(KEY, b"correct horse battery"))
    done = subprocess.run(
        ["certtool", "--key-info", "--infile", tmp_path / "key.pem", "--password", "correct horse battery"],
        capture_output=True,
        check=False,
        timeout=20,
    )
    assert done.returncode == 0, done.stderr
    assert b"EC/ECDSA" in done.stdout


@NEEDS_OPENSSL
@pytest.mark.parametrize(
    ("options", "text", "weak"),
    [
        (
            ["-v2", "aes-256-cbc", "-iter", "600000"],
            "PBKDF2-HMAC-SHA-256 with 600000 rounds, AES-256-CBC",
            False,
        ),
        (
            ["-v2", "aes-128-cbc", "-iter", "700000"],
            "PBKDF2-HMAC-SHA-256 with 700000 rounds, AES-128-CBC",
            False,
        ),
        (["-v2", "aes-256-cbc"], "PBKDF2-HMAC-SHA-256 with 2048 rounds, AES-256-CBC", True),
        (["-v2prf", "hmacWithSHA1", "-iter", "600000"], "PBKDF2-HMAC-SHA-1 with 600000 rounds", True),
        (["-scrypt"], "scrypt with N 16384, r 8, p 1, AES-256-CBC", False),
    ],
)
def test_what_openssl_writes_is_read_and_judged(
    options: list[str], text: str, weak: bool, tmp_path: Path
) -> None:
    """Every form of PBES2 that openssl writes loads; the ones that are quick to guess are called weak."""
    done = subprocess.run(
        ["openssl", "pkcs8", "-topk8", "-passout", "pass:correct", *options],
        input=private_key_pem(KEY),
        capture_output=True,
        check=False,
        timeout=20,
    )
    assert done.returncode == 0, done.stderr
    assert parse_private_key(done.stdout, lambda: b"correct").public_key() == KEY.public_key()
    found = describe_encryption(done.stdout)
    assert (found.text.startswith(text), found.weak) == (True, weak), found


def test_what_the_library_writes_is_read_and_called_weak() -> None:
    """Its 2048 rounds are why we write the structure ourselves."""
    pem = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    assert parse_private_key(pem, lambda: b"x").public_key() == KEY.public_key()
    assert describe_encryption(pem).weak
    old = KEY.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"x"))
    assert parse_private_key(old, lambda: b"x").public_key() == KEY.public_key()
    assert describe_encryption(old) == describe_encryption(old.replace(b"\n", b"\r\n"))
    assert describe_encryption(old).weak


def _with_rounds(rounds: bytes) -> bytes:
    der = base64.b64decode(b"".join(key_file(KEY, PASSPHRASE).splitlines()[1:-1]))
    changed = der.replace(PBKDF2_ROUNDS.to_bytes(3), rounds, 1)
    assert changed != der
    body = base64.encodebytes(changed)
    return b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n" + body + b"-----END ENCRYPTED PRIVATE KEY-----\n"


def test_a_file_cannot_keep_us_busy() -> None:
    """A derivation of millions of rounds is refused before anything is derived."""

    def never() -> bytes:
        raise AssertionError

    # The largest number of that length: 8 388 607 is still read, and would be derived; so try negative ones too.
    with pytest.raises(ValueError, match="rounds"):
        parse_private_key(_with_rounds(b"\x80\x00\x01"), never)


def test_two_keys_in_a_file_are_refused() -> None:
    """The library would take the first and say nothing."""
    pem = private_key_pem(KEY)
    for second in (pem, key_file(KEY, PASSPHRASE)):
        with pytest.raises(ValueError, match="more than one"):
            parse_private_key(pem + second, lambda: PASSPHRASE)


def test_a_file_that_is_too_large_is_refused() -> None:
    """The limit is said."""
    with pytest.raises(ValueError, match="at most 65536 bytes"):
        parse_private_key(private_key_pem(KEY) + b"\n" * 65_536)
