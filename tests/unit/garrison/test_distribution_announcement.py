"""Announcements are believed when somebody known signed them for this channel, and never otherwise."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from garrison.distribution.announcement import Action, Announcement, Trust, seal, unseal, unverified
from garrison.distribution.keys import PublicKey, parse_private_key, private_pem
from garrison.distribution.refusal import Refusal, RefusalError

KEY = Ed25519PrivateKey.from_private_bytes(b"\1" * 32)
OTHER = Ed25519PrivateKey.from_private_bytes(b"\2" * 32)
PUBLIC, OTHER_PUBLIC = PublicKey.of(KEY.public_key()), PublicKey.of(OTHER.public_key())
TRUST = Trust("default", [PUBLIC])
ANNOUNCEMENT = Announcement(Action.PUBLISH, "ab" * 32, "default", 1_800_000_000_000, 1_800_000_000_001, 42)

NUMBERS = st.integers(0, 2**53 - 1)
ANNOUNCEMENTS = st.builds(
    Announcement,
    st.sampled_from(Action),
    st.binary(min_size=32, max_size=32).map(bytes.hex),
    st.just("default"),
    NUMBERS,
    NUMBERS,
    NUMBERS,
)


def refusal(sealed: bytes, trust: Trust = TRUST) -> Refusal:
    """Return why `sealed` is not believed."""
    with pytest.raises(RefusalError) as caught:
        unseal(sealed, trust)
    return caught.value.code


@given(ANNOUNCEMENTS)
def test_what_was_signed_is_believed(announcement: Announcement) -> None:
    """It comes out as it went in, whichever of the trusted keys signed it."""
    assert unseal(seal(announcement, KEY), TRUST) == announcement
    assert unseal(seal(announcement, OTHER), Trust("default", [PUBLIC, OTHER_PUBLIC])) == announcement


@given(ANNOUNCEMENTS, st.data())
def test_no_byte_can_be_changed(announcement: Announcement, data: st.DataObject) -> None:
    """Change, cut or add anything anywhere: the signature is gone."""
    sealed = seal(announcement, KEY)
    start = data.draw(st.integers(0, len(sealed)))
    end = data.draw(st.integers(start, min(len(sealed), start + 4)))
    changed = sealed[:start] + data.draw(st.binary(max_size=4)) + sealed[end:]
    if changed != sealed:
        assert refusal(changed) is Refusal.SIGNATURE


@given(st.binary(max_size=200))
def test_garbage_is_refused(garbage: bytes) -> None:
    """Any bytes give a refusal, also where no signature is asked for."""
    assert refusal(garbage) is Refusal.SIGNATURE
    assert refusal(b"unsigned\n" + garbage, Trust("default", (), True)) is Refusal.UNREADABLE
    assert unverified(b"unsigned\n" + garbage) is None


def test_a_strangers_signature_counts_for_nothing() -> None:
    """A good signature with an unknown key, or with a known key's name on it, is refused."""
    sealed = seal(ANNOUNCEMENT, OTHER)
    assert refusal(sealed) is Refusal.SIGNATURE
    named = sealed.replace(OTHER_PUBLIC.identifier.encode(), PUBLIC.identifier.encode())
    assert refusal(named) is Refusal.SIGNATURE
    assert refusal(seal(ANNOUNCEMENT, KEY), Trust("default")) is Refusal.SIGNATURE


def test_unsigned_is_refused_unless_asked_for() -> None:
    """Leaving the signature out is no way around it."""
    sealed = seal(ANNOUNCEMENT, None)
    assert refusal(sealed) is Refusal.SIGNATURE
    assert unseal(sealed, Trust("default", (), True)) == ANNOUNCEMENT


def test_nothing_else_that_the_key_signed_counts() -> None:
    """The signature of the bare text is not one of the announcement."""
    payload = seal(ANNOUNCEMENT, KEY).partition(b"\n")[2]
    head = seal(ANNOUNCEMENT, KEY).split(b" ")
    text = base64.b64encode(KEY.sign(payload))
    assert refusal(b"%b %b %b\n%b" % (head[0], head[1], text, payload)) is Refusal.SIGNATURE


def test_other_channels_count_for_nothing() -> None:
    """What was signed for staging is no news in production, though the key is the same."""
    assert refusal(seal(replace(ANNOUNCEMENT, channel="staging"), KEY)) is Refusal.CHANNEL


def test_long_announcements_are_not_even_looked_at() -> None:
    """The length is checked first."""
    assert refusal(seal(ANNOUNCEMENT, KEY) + b" " * 4096) is Refusal.OVERSIZE


@pytest.mark.parametrize(
    "wrong",
    [
        replace(ANNOUNCEMENT, sequence=-1),
        replace(ANNOUNCEMENT, sequence=2**53),
        replace(ANNOUNCEMENT, size=True),
        replace(ANNOUNCEMENT, created_ms=1.0),  # type: ignore[arg-type]
        replace(ANNOUNCEMENT, bundle="../../etc/passwd"),
        replace(ANNOUNCEMENT, bundle="AB" * 32),
        replace(ANNOUNCEMENT, bundle=["ab" * 32]),  # type: ignore[arg-type]
    ],
)
def test_fields_are_checked_behind_a_good_signature_too(wrong: Announcement) -> None:
    """A key holder's mistake is no reason to act on it."""
    assert refusal(seal(wrong, KEY)) is Refusal.UNREADABLE


def test_keys_are_written_and_read() -> None:
    """A public key is one word, a private key a PEM file; anything else is said to be none."""
    assert PublicKey.parse(str(PUBLIC)) == PUBLIC
    assert parse_private_key(private_pem(KEY)).private_bytes_raw() == KEY.private_bytes_raw()
    for text in ("", "ed25519:", "ed25519:AAAA", str(PUBLIC)[8:], f"rsa{str(PUBLIC)[7:]}", f"{PUBLIC} "):
        with pytest.raises(ValueError, match="is not `ed25519:`"):
            PublicKey.parse(text)


@pytest.mark.parametrize(
    ("pem", "expected"),
    [
        (b"", "no PEM private key"),
        (
            generate_private_key(SECP256R1()).private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
            "not an Ed25519 one",
        ),
        (
            KEY.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"x"),
            ),
            "is encrypted",
        ),
    ],
    ids=["empty", "ecdsa", "encrypted"],
)
def test_other_private_keys_are_refused(pem: bytes, expected: str) -> None:
    """What cannot sign announcements is named."""
    with pytest.raises(ValueError, match=expected):
        parse_private_key(pem)
