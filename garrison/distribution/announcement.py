"""An announcement: this bundle is the current one, says the owner of this key.

    ed25519 <key identifier> <signature, base64>
    {"action":"publish","bundle":"<SHA-256>","channel":"default","created_ms":…,"sequence":…,"size":…}

The signature covers a fixed line and then every byte after the first newline. Nothing of those bytes is read
before the signature is found good. The bundle itself is not signed: its SHA-256 is.

The sequence number only ever grows, so that an old announcement cannot be passed off as new. It is the time
of publishing in milliseconds, or one more than the last one: so it grows on even when Redis has lost
everything. The channel is in it so that what was signed for one channel is worth nothing on another.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from garrison.distribution.bundle import VERSION_LENGTH
from garrison.distribution.keys import PublicKey
from garrison.distribution.refusal import Refusal, RefusalError

MAX_ANNOUNCEMENT_BYTES = 4096
CHANNEL_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")

# No other protocol signs bytes that start like this.
_CONTEXT = b"garrison policy announcement 1\n"
_UNSIGNED = b"unsigned"
_DIGEST = re.compile(r"[0-9a-f]{64}")
# Every JSON reader and every Prometheus server gets whole numbers up to here right.
_MAX_NUMBER = 2**53 - 1


class Action(StrEnum):
    """How a bundle became the current one."""

    PUBLISH = "publish"
    ROLLBACK = "rollback"


@dataclass(frozen=True, slots=True)
class Announcement:
    """What is signed. `bundle` is the SHA-256 of the bundle in hexadecimal, `size` its length in bytes."""

    action: Action
    bundle: str
    channel: str
    created_ms: int
    sequence: int
    size: int

    @property
    def version(self) -> str:
        """The name of the bundle that people see and type."""
        return self.bundle[:VERSION_LENGTH]


@dataclass(frozen=True, slots=True)
class Trust:
    """What a reader believes: announcements for `channel` that the owner of one of `keys` signed.

    `unsigned_from_trusted_connection` believes whoever can write to Redis instead; whoever sets it has made
    sure of the connection (`garrison.redis_address`).
    """

    channel: str
    keys: Sequence[PublicKey] = ()
    unsigned_from_trusted_connection: bool = False


def seal(announcement: Announcement, key: Ed25519PrivateKey | None) -> bytes:
    """Return `announcement` as it is stored, signed with `key`; without a key it says that it is unsigned."""
    payload = _payload(announcement)
    if key is None:
        return b"%b\n%b" % (_UNSIGNED, payload)
    signature = base64.b64encode(key.sign(_CONTEXT + payload))
    identifier = PublicKey.of(key.public_key()).identifier.encode()
    return b"ed25519 %b %b\n%b" % (identifier, signature, payload)


def unseal(sealed: bytes, trust: Trust) -> Announcement:
    """Return the announcement in `sealed`, if it is to be believed.

    Raises:
        RefusalError: it is too long, signed by nobody known, not for this channel, or not an announcement.

    """
    if len(sealed) > MAX_ANNOUNCEMENT_BYTES:
        raise RefusalError(Refusal.OVERSIZE, f"the announcement has more than {MAX_ANNOUNCEMENT_BYTES} bytes")
    head, _, payload = sealed.partition(b"\n")
    _authenticate(head, payload, trust)
    announcement = read_payload(payload)
    if announcement.channel != trust.channel:
        raise RefusalError(
            Refusal.CHANNEL,
            f"the announcement is for channel `{announcement.channel}`, not `{trust.channel}`",
        )
    return announcement


def _authenticate(head: bytes, payload: bytes, trust: Trust) -> None:
    if trust.unsigned_from_trusted_connection:
        return
    if head == _UNSIGNED:
        raise RefusalError(Refusal.SIGNATURE, "the announcement is not signed")
    algorithm, _, rest = head.partition(b" ")
    identifier, _, text = rest.partition(b" ")
    try:
        signature = base64.b64decode(text, validate=True)
    except binascii.Error:
        signature = b""
    # Base64 has several spellings of some values: only one is ours.
    if algorithm != b"ed25519" or not signature or base64.b64encode(signature) != text:
        raise RefusalError(Refusal.SIGNATURE, "the announcement has no signature that can be read")
    named = [key for key in trust.keys if key.identifier.encode() == identifier]
    if not named:
        raise RefusalError(
            Refusal.SIGNATURE, "the announcement is signed with a key that is not trusted here"
        )
    if not any(key.verifies(signature, _CONTEXT + payload) for key in named):
        raise RefusalError(Refusal.SIGNATURE, "the signature is not one of this announcement")


def unverified(sealed: bytes) -> Announcement | None:
    """Return what `sealed` claims, whoever wrote it, for show only; None if it cannot be read."""
    try:
        return read_payload(sealed[:MAX_ANNOUNCEMENT_BYTES].partition(b"\n")[2])
    except RefusalError:
        return None


def read_payload(payload: bytes) -> Announcement:
    """Return the announcement that `payload` spells; there is one spelling of each.

    Raises:
        RefusalError: it spells none.

    """
    try:
        fields = json.loads(payload)
        announcement = Announcement(**{**fields, "action": Action(fields["action"])})
        right = _is_right(announcement) and _payload(announcement) == payload
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise RefusalError(Refusal.UNREADABLE, "the announcement cannot be read") from error
    if not right:
        raise RefusalError(Refusal.UNREADABLE, "the announcement has a field that is wrong")
    return announcement


def _is_right(announcement: Announcement) -> bool:
    numbers = (announcement.created_ms, announcement.sequence, announcement.size)
    return (
        all(type(number) is int and 0 <= number <= _MAX_NUMBER for number in numbers)
        and CHANNEL_NAME.fullmatch(announcement.channel) is not None
        and _DIGEST.fullmatch(announcement.bundle) is not None
    )


def _payload(announcement: Announcement) -> bytes:
    return json.dumps(asdict(announcement), sort_keys=True, separators=(",", ":")).encode()
