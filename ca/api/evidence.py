"""What a call brings to show who its caller is: one thing, found by rules, not yet believed. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from ca.attestors.base import Reason, Refused
from ca.attestors.join_token import is_join_token
from garrison.identity import SpiffeId
from garrison.keys.token import Token, TokenError
from garrison.transport import Call
from garrison.transport.unix_peer import PeerCredentials

# Which of several identities is wanted.
NAMED_ID = b"garrison-spiffe-id"
_AUTHORIZATION = b"authorization"
_SCHEME = "bearer"


@dataclass(frozen=True, slots=True)
class JoinSecret:
    """A join token's secret."""

    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class BearerToken:
    """A JWT, as text and in its parts."""

    text: str = field(repr=False)
    token: Token = field(repr=False)


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """The certificate of a TLS client (DER), whose key it has."""

    der: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class LocalProcess:
    """A process on a Unix socket."""

    credentials: PeerCredentials


Evidence: TypeAlias = JoinSecret | BearerToken | ClientCertificate | LocalProcess


def read_evidence(call: Call, process: PeerCredentials | None) -> Evidence | Refused:
    """Return the evidence of a call; `process` is who the kernel says its caller is, if it can say.

    A token that is sent is what counts, whatever else could be shown. Over TCP without TLS nothing counts.
    """
    if not call.peer.is_private:
        return Refused(Reason.PLAINTEXT, "certificates are given only over TLS and Unix sockets")
    values = _values(call.metadata, _AUTHORIZATION)
    if len(values) > 1:
        return Refused(Reason.MALFORMED, "more than one `authorization` was sent")
    if values:
        return _bearer(values[0])
    if call.peer.certificate is not None:
        return ClientCertificate(call.peer.certificate)
    if process is not None:
        return LocalProcess(process)
    return Refused(Reason.NO_EVIDENCE, "neither token nor client certificate nor local process")


def named_identity(call: Call) -> SpiffeId | Refused | None:
    """Return the identity that the caller wants of those that it may have, None if it does not say."""
    values = _values(call.metadata, NAMED_ID)
    if not values:
        return None
    if len(values) > 1:
        return Refused(Reason.BAD_REQUEST, f"more than one `{NAMED_ID.decode()}` was sent")
    try:
        return SpiffeId.parse(values[0].decode())
    except ValueError as error:
        return Refused(Reason.BAD_REQUEST, f"`{NAMED_ID.decode()}`: {error}")


def describe(call: Call, evidence: Evidence | Refused | None = None) -> str:
    """Return who calls, as far as that is known without believing anything, for logs and records."""
    if isinstance(evidence, LocalProcess):
        process = evidence.credentials
        path = process.path or "an unknown executable"
        return f"uid {process.uid}, gid {process.gid}, {path}, pid {process.pid}"
    return call.peer.address


def _values(metadata: Sequence[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    return [value for key, value in metadata if key == name]


def _bearer(value: bytes) -> Evidence | Refused:
    """RFC 6750, section 2.1; a join token has no dot in it, a JWT has two."""
    try:
        scheme, _, text = value.decode("ascii").partition(" ")
    except UnicodeDecodeError:
        return Refused(Reason.MALFORMED, "`authorization` is not ASCII")
    if scheme.lower() != _SCHEME or not text:
        return Refused(Reason.MALFORMED, "`authorization` is not `Bearer TOKEN`")
    if is_join_token(text):
        return JoinSecret(text)
    try:
        return BearerToken(text, Token.of(text))
    except TokenError as error:
        return Refused(Reason.MALFORMED, str(error))
